//! Which blocks stay and which stream: the splits a planner chooses among.
//!
//! The family of splits depends on the component alone, never on the budget: a larger budget then only adds candidates,
//! and cannot make a plan slower. Up to [`ALL_SPLITS_BLOCKS_MAX`] blocks it is every split there is. Beyond that it is
//! made of orders in which blocks are made to stay, cut at every length.

mod frontier;

use std::collections::HashSet;

use crate::Bytes;

/// Slots of a ring. Prefetching deeper than one block ahead gains nothing; spare memory buys resident blocks.
pub const RING_SLOTS: usize = 2;

/// Up to this many blocks every split is a candidate.
pub(crate) const ALL_SPLITS_BLOCKS_MAX: usize = 10;

/// Sizes that are tried as the largest that may stream, where there are many blocks.
const LIMITS_MAX: usize = 5;

/// One way to divide a component's blocks into those that stay and those that stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    /// By block: whether it stays.
    pub(crate) resident: Vec<bool>,
    /// The others, in order.
    pub(crate) streamed: Vec<usize>,
    /// The ring they go through.
    pub(crate) slots: Vec<Bytes>,
    /// Bytes of the blocks that stay.
    pub(crate) resident_bytes: Bytes,
    /// Bytes of those that do not.
    pub(crate) streamed_bytes: Bytes,
}

impl Split {
    /// The split in which the blocks marked in `resident` stay. `cyclic`: whether blocks are visited more than once.
    pub(crate) fn new(sizes: &[Bytes], resident: Vec<bool>, cyclic: bool) -> Split {
        let streamed: Vec<usize> = (0..sizes.len()).filter(|&block| !resident[block]).collect();
        let slots = ring(
            streamed.iter().map(|&block| sizes[block]),
            streamed.len(),
            cyclic,
        );
        let streamed_bytes: Bytes = streamed.iter().map(|&block| sizes[block]).sum();
        let resident_bytes = sizes.iter().copied().sum::<Bytes>() - streamed_bytes;
        Split {
            resident,
            streamed,
            slots,
            resident_bytes,
            streamed_bytes,
        }
    }

    /// Bytes of resident blocks and ring.
    pub(crate) fn weights(&self) -> Bytes {
        self.resident_bytes + self.slots.iter().copied().sum()
    }
}

/// The slots that `count` streamed blocks need when load k, counted over all visits, goes to slot k modulo two.
///
/// With an odd number of blocks visited again and again, a block meets both slots, so both hold the largest.
fn ring(sizes: impl Iterator<Item = Bytes>, count: usize, cyclic: bool) -> Vec<Bytes> {
    let mut slots = vec![Bytes::ZERO; RING_SLOTS.min(count)];
    for (index, size) in sizes.enumerate() {
        let slot = index % RING_SLOTS;
        slots[slot] = slots[slot].max(size);
    }
    if cyclic && count % RING_SLOTS == 1 && count > 1 {
        let largest = slots.iter().copied().max().unwrap_or(Bytes::ZERO);
        slots.fill(largest);
    }
    slots
}

/// The candidates for a component of blocks of these sizes, of which `required` must stay, in ascending order of bytes.
/// `cyclic`: whether blocks are visited more than once.
pub(crate) fn family(sizes: &[Bytes], required: &[bool], cyclic: bool) -> Vec<Split> {
    let mut seen = Seen {
        sizes,
        required,
        cyclic,
        masks: HashSet::new(),
        splits: Vec::new(),
    };
    seen.add(vec![true; sizes.len()]);
    if sizes.len() <= ALL_SPLITS_BLOCKS_MAX {
        for bits in 0..1u32 << sizes.len() {
            seen.add(
                (0..sizes.len())
                    .map(|block| bits >> block & 1 == 1)
                    .collect(),
            );
        }
    } else {
        add_orders(&mut seen);
    }
    let mut splits = seen.splits;
    splits.sort_by_key(Split::weights);
    splits
}

struct Seen<'a> {
    sizes: &'a [Bytes],
    required: &'a [bool],
    cyclic: bool,
    masks: HashSet<Vec<bool>>,
    splits: Vec<Split>,
}

impl Seen<'_> {
    /// Adds a split, unless it is known or pointless: as many slots as streamed blocks save nothing.
    fn add(&mut self, mut mask: Vec<bool>) {
        for (stays, &must) in mask.iter_mut().zip(self.required) {
            *stays |= must;
        }
        let streamed = mask.iter().filter(|&&stays| !stays).count();
        if (streamed == 0 || streamed > RING_SLOTS) && !self.masks.contains(&mask) {
            self.masks.insert(mask.clone());
            self.splits.push(Split::new(self.sizes, mask, self.cyclic));
        }
    }

    /// Adds every prefix of `order` on top of the blocks of `base`.
    fn add_prefixes(&mut self, base: &[bool], order: &[usize]) {
        let mut mask = base.to_vec();
        self.add(mask.clone());
        for &block in order {
            mask[block] = true;
            self.add(mask.clone());
        }
    }
}

/// Splits for components of many blocks.
fn add_orders(seen: &mut Seen<'_>) {
    let count = seen.sizes.len();
    let sizes = seen.sizes;
    let nothing = vec![false; count];
    let by_size = {
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|&block| (sizes[block], block));
        order
    };
    let ends: Vec<usize> = (0..count).collect();
    seen.add_prefixes(&nothing, &ends);
    seen.add_prefixes(&nothing, &ends.iter().rev().copied().collect::<Vec<_>>());
    seen.add_prefixes(&nothing, &by_size);
    // Blocks above a limit stay, so that the ring is small; of the others, evenly spread ones stay too.
    for limit in limits(sizes) {
        let base: Vec<bool> = sizes.iter().map(|&size| size > limit).collect();
        let rest: Vec<usize> = (0..count).filter(|&block| !base[block]).collect();
        for staying in 0..=rest.len() {
            for mask in spread(&base, &rest, staying) {
                seen.add(mask);
            }
        }
        let largest_first: Vec<usize> = by_size
            .iter()
            .rev()
            .copied()
            .filter(|&block| !base[block])
            .collect();
        seen.add_prefixes(&base, &largest_first);
    }
    if seen.cyclic {
        for mask in frontier::frontier(sizes, seen.required) {
            seen.add(mask);
        }
    }
    for mask in smallest_rings(seen) {
        seen.add(mask);
    }
}

/// `staying` of the blocks in `rest`, evenly spread, from the front and from the back, beside those of `base`.
fn spread(base: &[bool], rest: &[usize], staying: usize) -> [Vec<bool>; 2] {
    let mut front = base.to_vec();
    let mut back = base.to_vec();
    for (index, &block) in rest.iter().enumerate() {
        let chosen = (index + 1) * staying / rest.len() > index * staying / rest.len();
        front[block] |= chosen;
        back[rest[rest.len() - 1 - index]] |= chosen;
    }
    [front, back]
}

/// At most [`LIMITS_MAX`] of the sizes that occur, the largest among them, spread over the others.
fn limits(sizes: &[Bytes]) -> Vec<Bytes> {
    let mut sizes = sizes.to_vec();
    sizes.sort();
    sizes.dedup();
    sizes.reverse();
    let count = sizes.len().min(LIMITS_MAX);
    (0..count)
        .map(|index| sizes[index * sizes.len() / count])
        .collect()
}

/// For every size of the larger slot, the split that needs the least memory with it. Among them is the split that needs
/// the least of all.
fn smallest_rings(seen: &Seen<'_>) -> Vec<Vec<bool>> {
    let mut limits: Vec<Bytes> = seen.sizes.to_vec();
    limits.push(Bytes::ZERO);
    limits.sort();
    limits.dedup();
    let mut masks = Vec::new();
    for (index, &larger) in limits.iter().enumerate() {
        let smaller = limits[..=index]
            .iter()
            .flat_map(|&other| [[larger, other], [other, larger]]);
        let even = smaller.map(|slots| (slots, 0));
        let odd = [([larger, larger], 1)].into_iter().filter(|_| seen.cyclic);
        let best = even
            .chain(odd)
            .filter_map(|(slots, parity)| {
                let (resident, _) = fewest_resident(seen, slots, parity, false)?;
                Some((resident + slots.into_iter().sum(), slots, parity))
            })
            .min_by_key(|(weights, ..)| *weights);
        if let Some((_, slots, parity)) = best {
            masks.extend(fewest_resident(seen, slots, parity, true).map(|(_, mask)| mask));
        }
    }
    masks
}

/// The fewest resident bytes of a split whose streamed blocks fit `slots` in turn and whose number, when blocks are
/// visited again and again, is even (`parity` 0) or odd (1); and the split itself if `traced`.
fn fewest_resident(
    seen: &Seen<'_>,
    slots: [Bytes; RING_SLOTS],
    parity: usize,
    traced: bool,
) -> Option<(Bytes, Vec<bool>)> {
    // By parity of the streamed blocks so far: the fewest resident bytes, and at each block whether it stayed.
    let mut least = [Some(Bytes::ZERO), None];
    let mut stayed: Vec<[bool; 2]> = Vec::new();
    for (block, &size) in seen.sizes.iter().enumerate() {
        let mut next = [None, None];
        let mut choice = [true; 2];
        for after in 0..2 {
            let keeps = least[after].map(|bytes| bytes + size);
            let before = 1 - after;
            let streams = least[before].filter(|_| !seen.required[block] && size <= slots[before]);
            (next[after], choice[after]) = match (keeps, streams) {
                (Some(kept), Some(streamed)) if kept < streamed => (Some(kept), true),
                (kept, None) => (kept, true),
                (_, streamed) => (streamed, false),
            };
        }
        least = next;
        if traced {
            stayed.push(choice);
        }
    }
    let end = if seen.cyclic {
        parity
    } else {
        (0..2).min_by_key(|&end| least[end].map_or(u64::MAX, |b| b.0))?
    };
    let resident = least[end]?;
    let mut mask = Vec::new();
    if traced {
        mask = vec![true; seen.sizes.len()];
        let mut state = end;
        for block in (0..mask.len()).rev() {
            mask[block] = stayed[block][state];
            state = if mask[block] { state } else { 1 - state };
        }
    }
    Some((resident, mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(sizes: &[u64]) -> Vec<Bytes> {
        sizes.iter().map(|&size| Bytes(size)).collect()
    }

    fn split(sizes: &[u64], cyclic: bool) -> Split {
        Split::new(&bytes(sizes), vec![false; sizes.len()], cyclic)
    }

    #[test]
    fn slots_alternate_and_an_odd_ring_holds_the_largest_twice() {
        assert_eq!(split(&[100, 1, 90, 2], true).slots, bytes(&[100, 2]));
        assert_eq!(split(&[100, 1, 90], false).slots, bytes(&[100, 1]));
        assert_eq!(split(&[100, 1, 90], true).slots, bytes(&[100, 100]));
    }

    #[test]
    fn the_family_of_many_blocks_contains_the_split_that_needs_least() {
        // Twelve blocks are too many for the family to be exhaustive and few enough to try all splits here.
        for (sizes, required) in [
            (vec![100, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], None),
            (vec![7, 3, 9, 100, 2, 80, 6, 5, 4, 70, 8, 60], None),
            (vec![7, 3, 9, 100, 2, 80, 6, 5, 4, 70, 8, 60], Some(4)),
            (vec![50, 50, 1, 50, 50, 1, 50, 50, 1, 50, 50], None),
        ] {
            let sizes = bytes(&sizes);
            let mut must = vec![false; sizes.len()];
            if let Some(block) = required {
                must[block] = true;
            }
            for cyclic in [false, true] {
                let brute = (0..1u32 << sizes.len())
                    .map(|bits| {
                        (0..sizes.len())
                            .map(|b| must[b] || bits >> b & 1 == 1)
                            .collect()
                    })
                    .map(|mask| Split::new(&sizes, mask, cyclic).weights())
                    .min();
                assert_eq!(
                    family(&sizes, &must, cyclic).first().map(Split::weights),
                    brute,
                    "{sizes:?} {cyclic}"
                );
            }
        }
    }
}
