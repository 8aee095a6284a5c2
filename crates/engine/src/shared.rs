//! Blocks with the same content are in memory once, whichever models they belong to.
//!
//! Many checkpoints of a family have the same text encoder or VAE. Whether two blocks are the same is not asked of
//! names, paths or checksums but of their bytes: what was just read is compared with the blocks of that form that are in
//! memory, and given up where one is equal.
//!
//! On a device with memory of its own nothing is compared: there a block is held by those who brought it.
//!
//! A block that several hold goes when the last of them lets go. Until then nobody gives memory back by forgetting it,
//! so that for a budget it counts among what others use, and a phase that uses it needs no memory for it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lowtide_core::Bytes;
use lowtide_models::device::{self, Memory};

/// Where the tensors of a block lie in it. What is between them is padding, and may be anything.
pub(crate) type Form = Arc<[Range<usize>]>;

/// The blocks in memory, by form. Held while anybody looks at how many hold a block, too, so that a comparison on
/// another thread never counts as a holder.
static LIVE: Mutex<Option<Live>> = Mutex::new(None);

type Live = HashMap<Form, Vec<Weak<Memory>>>;

fn live() -> MutexGuard<'static, Option<Live>> {
    // A list is changed by one push or one retain, so a panic elsewhere leaves it valid.
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One component's hold on a block: its shelf and its streams have it in common.
pub(crate) struct Claim {
    /// As many count it as components hold it.
    memory: Arc<Memory>,
}

impl Claim {
    /// Holds `memory`, or what is equal to it in the host's.
    pub(crate) fn new(form: &Form, memory: Memory) -> Claim {
        let device::Bytes::Host(bytes) = memory.bytes() else {
            let memory = Arc::new(memory);
            return Claim { memory };
        };
        let mut live = live();
        let same_form = live
            .get_or_insert_default()
            .entry(form.clone())
            .or_default();
        same_form.retain(|other| other.strong_count() > 0);
        let equal = same_form
            .iter()
            .filter_map(Weak::upgrade)
            .find(|other| equal(form, other, bytes));
        let memory = equal.unwrap_or_else(|| {
            let memory = Arc::new(memory);
            same_form.push(Arc::downgrade(&memory));
            memory
        });
        Claim { memory }
    }

    /// Its weights.
    pub(crate) fn bytes(&self) -> device::Bytes<'_> {
        self.memory.bytes()
    }

    /// Bytes it takes.
    pub(crate) fn len(&self) -> Bytes {
        Bytes::from(self.memory.len())
    }

    /// Whether both hold the same memory.
    pub(crate) fn is_of(&self, other: &Claim) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
    }

    fn place(&self) -> usize {
        Arc::as_ptr(&self.memory) as usize
    }
}

fn equal(form: &Form, a: &Memory, b: &[u8]) -> bool {
    let device::Bytes::Host(a) = a.bytes() else {
        return false;
    };
    let tensor = |at: &Range<usize>| a[at.clone()] == b[at.clone()];
    a.len() == b.len() && form.iter().all(tensor)
}

/// Which of some claims' blocks nobody else holds.
pub(crate) struct Ours {
    /// By place of a block that only these claims hold.
    alone: HashMap<usize, Bytes>,
}

impl Ours {
    /// Looks at who holds what. A component may be in `claims` once, with each of its blocks.
    pub(crate) fn of(claims: &[Arc<Claim>]) -> Ours {
        let _nobody_compares = live();
        let mut held: HashMap<usize, (usize, &Claim)> = HashMap::new();
        for claim in claims {
            held.entry(claim.place()).or_insert((0, claim)).0 += 1;
        }
        let alone = held
            .into_iter()
            .filter(|(_, (count, claim))| Arc::strong_count(&claim.memory) == *count)
            .map(|(place, (_, claim))| (place, claim.len()));
        Ours {
            alone: alone.collect(),
        }
    }

    /// Whether others hold this block, too.
    pub(crate) fn is_shared(&self, claim: &Claim) -> bool {
        !self.alone.contains_key(&claim.place())
    }

    /// Bytes that come back when all of the claims go.
    pub(crate) fn bytes(&self) -> Bytes {
        self.alone.values().copied().sum()
    }
}

/// Blocks that were counted: in a sum over several models each counts once.
#[derive(Debug, Default)]
pub struct Counted(HashSet<usize>);

impl Counted {
    /// The block's bytes, unless it was counted before.
    pub(crate) fn add(&mut self, claim: &Claim) -> Bytes {
        match self.0.insert(claim.place()) {
            true => claim.len(),
            false => Bytes::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

    use lowtide_kernels::memory::Buffer;

    use super::*;

    fn block(values: &[u8]) -> Memory {
        let mut buffer = Buffer::new(values.len()).unwrap();
        buffer.bytes_mut().copy_from_slice(values);
        buffer.into()
    }

    /// Forms of their own, so that tests beside each other do not meet.
    fn form(first: usize) -> Form {
        Arc::new([0..first, 64..96])
    }

    fn content(first: usize, padding: u8) -> Vec<u8> {
        let mut values = vec![padding; 96];
        values[..first].fill(7);
        values[64..].fill(8);
        values
    }

    #[test]
    fn equal_blocks_are_one_whatever_their_padding_and_others_are_not() {
        let form = form(40);
        let a = Claim::new(&form, block(&content(40, 1)));
        let b = Claim::new(&form, block(&content(40, 2)));
        assert!(a.is_of(&b));
        for at in [0, 39, 64, 95] {
            let mut other = content(40, 1);
            other[at] ^= 0x80;
            assert!(!a.is_of(&Claim::new(&form, block(&other))), "byte {at}");
        }
        // The same bytes cut otherwise: what is padding here is weights there.
        let wider: Form = Arc::new([0..41, 64..96]);
        assert!(!a.is_of(&Claim::new(&wider, block(&content(40, 1)))));
    }

    #[test]
    fn a_block_is_given_back_by_the_last_who_holds_it() {
        let form = form(41);
        let a = Arc::new(Claim::new(&form, block(&content(41, 0))));
        let b = Arc::new(Claim::new(&form, block(&content(41, 0))));
        let c = Arc::new(Claim::new(&form, block(&content(41, 0))));
        let bytes = |claims: &[&Arc<Claim>]| {
            let claims: Vec<_> = claims.iter().map(|claim| Arc::clone(claim)).collect();
            Ours::of(&claims).bytes()
        };
        assert_eq!(bytes(&[&a]), Bytes::ZERO);
        assert_eq!(bytes(&[&a, &b]), Bytes::ZERO);
        assert_eq!(bytes(&[&a, &b, &c]), Bytes(96), "once, not three times");
        let mut counted = Counted::default();
        let sum: Bytes = [&a, &b, &c]
            .map(|claim| counted.add(claim))
            .into_iter()
            .sum();
        assert_eq!(sum, Bytes(96));
        drop(c);
        assert!(Ours::of(std::slice::from_ref(&a)).is_shared(&a));
        drop(b);
        assert!(!Ours::of(std::slice::from_ref(&a)).is_shared(&a));
        let device::Bytes::Host(bytes) = a.bytes() else {
            panic!("it is the host's")
        };
        assert_eq!(bytes[..41], [7; 41]);
        let gone = Arc::downgrade(&a.memory);
        drop(a);
        assert!(
            gone.upgrade().is_none(),
            "the list of those in memory holds none"
        );
    }
}
