//! Splits that stream the fewest bytes for the memory they need.
//!
//! Where the link is the bottleneck, a pass takes as long as its copies, and which blocks stream hardly matters beside
//! how many bytes do. For a ring of two given slots this is a subset-sum problem: which sums of blocks, taking turns in
//! the slots, can be reached? Sums are told apart at a finite number of levels.

use crate::Bytes;

use super::RING_SLOTS;

/// Levels at which sums of streamed bytes are told apart.
const LEVELS: usize = 256;

/// Pairs of slot sizes tried, times blocks: bounds the work.
const PAIRS_TIMES_BLOCKS_MAX: usize = 2000;

/// A split is kept if it streams this much less than the one before that needs less memory.
const SPACING: f64 = 0.995;

/// One reachable sum.
#[derive(Clone, Copy)]
struct Point {
    weights: Bytes,
    streamed: Bytes,
    pair: usize,
    cell: usize,
}

/// Masks of resident blocks, each of which streams fewer bytes than any other found that needs no more memory.
/// For blocks that are visited again and again; `required` ones always stay.
pub(super) fn frontier(sizes: &[Bytes], required: &[bool]) -> Vec<Vec<bool>> {
    let total: Bytes = sizes.iter().copied().sum();
    if total == Bytes::ZERO {
        return Vec::new();
    }
    let pairs = slot_pairs(sizes);
    let mut points: Vec<Point> = Vec::new();
    for (pair, &slots) in pairs.iter().enumerate() {
        let ring: Bytes = slots.into_iter().sum();
        let sums = Sums::of(sizes, required, slots, total);
        let ends = sums.ends(slots).filter(|&(_, streamed)| streamed > ring);
        points.extend(ends.map(|(cell, streamed)| Point {
            weights: total - streamed + ring,
            streamed,
            pair,
            cell,
        }));
    }
    points.sort_by_key(|point| (point.weights, point.streamed));
    let mut least = f64::INFINITY;
    points.retain(|point| {
        let keep = point.streamed.as_f64() < least * SPACING;
        least = if keep { point.streamed.as_f64() } else { least };
        keep
    });
    points.sort_by_key(|point| point.pair);
    let mut masks = Vec::with_capacity(points.len());
    for of_pair in points.chunk_by(|a, b| a.pair == b.pair) {
        let sums = Sums::of(sizes, required, pairs[of_pair[0].pair], total);
        masks.extend(of_pair.iter().map(|point| sums.mask(point.cell)));
    }
    masks
}

/// The slot sizes to try: all pairs of the sizes that occur, or of some of them where those are too many.
fn slot_pairs(sizes: &[Bytes]) -> Vec<[Bytes; RING_SLOTS]> {
    let mut distinct = sizes.to_vec();
    distinct.sort();
    distinct.dedup();
    let count = (PAIRS_TIMES_BLOCKS_MAX / sizes.len())
        .isqrt()
        .clamp(2, distinct.len().max(2))
        .min(distinct.len());
    let limits: Vec<Bytes> = (1..=count)
        .map(|index| distinct[index * distinct.len() / count - 1])
        .collect();
    limits
        .iter()
        .flat_map(|&first| limits.iter().map(move |&second| [first, second]))
        .collect()
}

/// The sums of streamed bytes that can be reached, by parity of the number of streamed blocks and by level.
struct Sums {
    /// By cell (parity times [`LEVELS`] plus level): one sum.
    reached: Vec<Option<Bytes>>,
    /// By block and cell: the cell from which streaming this block led here, or `None` when it stays.
    from: Vec<Vec<Option<u16>>>,
}

impl Sums {
    fn of(sizes: &[Bytes], required: &[bool], slots: [Bytes; RING_SLOTS], total: Bytes) -> Sums {
        // Finer for small sums: what counts is the error relative to the sum.
        let level =
            |sum: Bytes| ((sum.as_f64() / total.as_f64()).sqrt() * (LEVELS - 1) as f64) as usize;
        let mut reached = vec![None; RING_SLOTS * LEVELS];
        reached[0] = Some(Bytes::ZERO);
        let mut from = Vec::with_capacity(sizes.len());
        for (&size, &must_stay) in sizes.iter().zip(required) {
            let mut came_from = vec![None; reached.len()];
            let mut next = reached.clone();
            for (parity, &slot) in slots.iter().enumerate() {
                if must_stay || size > slot {
                    continue;
                }
                let cells = parity * LEVELS..(parity + 1) * LEVELS;
                for (cell, sum) in cells.clone().zip(&reached[cells]) {
                    let Some(sum) = sum.map(|sum| sum + size) else {
                        continue;
                    };
                    let there = (1 - parity) * LEVELS + level(sum);
                    // Of sums at one level the largest leaves the most memory.
                    if next[there].is_none_or(|other| sum > other) {
                        next[there] = Some(sum);
                        came_from[there] = Some(cell as u16);
                    }
                }
            }
            reached = next;
            from.push(came_from);
        }
        Sums { reached, from }
    }

    /// Cells in which a split may end, and their sums: after an even number of blocks the turns go on as they began;
    /// after an odd number only where both slots are alike.
    fn ends(&self, slots: [Bytes; RING_SLOTS]) -> impl Iterator<Item = (usize, Bytes)> {
        let cells = if slots[0] == slots[1] {
            RING_SLOTS * LEVELS
        } else {
            LEVELS
        };
        self.reached[..cells]
            .iter()
            .enumerate()
            .filter_map(|(cell, sum)| Some((cell, (*sum)?)))
    }

    fn mask(&self, mut cell: usize) -> Vec<bool> {
        let mut mask = vec![true; self.from.len()];
        for (stays, from) in mask.iter_mut().zip(&self.from).rev() {
            if let Some(before) = from[cell] {
                *stays = false;
                cell = usize::from(before);
            }
        }
        mask
    }
}
