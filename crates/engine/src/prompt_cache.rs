//! What was made of prompts, kept for the next job that says the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowtide_core::Bytes;
use lowtide_models::Tensor;

use crate::processor::CacheFigures;

/// Refined captions by the token ids they were made of. The one that was used longest ago goes first.
pub(crate) struct PromptCache {
    bytes_max: Bytes,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<Vec<u32>, Entry>,
    /// Counts uses.
    clock: u64,
    hits: u64,
    misses: u64,
}

struct Entry {
    caption: Arc<Tensor>,
    used: u64,
}

fn bytes(ids: &[u32], caption: &Tensor) -> Bytes {
    Bytes::from(size_of_val(ids) + size_of_val(caption.data()))
}

impl Inner {
    fn bytes(&self) -> Bytes {
        self.entries
            .iter()
            .map(|(ids, entry)| bytes(ids, &entry.caption))
            .sum()
    }
}

impl PromptCache {
    /// A cache of at most so many bytes; none at all turns it off.
    pub(crate) fn new(bytes_max: Bytes) -> PromptCache {
        PromptCache {
            bytes_max,
            inner: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic between two changes can only leave an entry too many or too few.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was made of `ids`, if it is still there.
    pub(crate) fn get(&self, ids: &[u32]) -> Option<Arc<Tensor>> {
        if self.bytes_max == Bytes::ZERO {
            return None;
        }
        let mut inner = self.inner();
        inner.clock += 1;
        let now = inner.clock;
        let found = inner.entries.get_mut(ids).map(|entry| {
            entry.used = now;
            entry.caption.clone()
        });
        match found {
            Some(_) => inner.hits += 1,
            None => inner.misses += 1,
        }
        found
    }

    /// Keeps what was made of `ids`, as far as there is room.
    pub(crate) fn put(&self, ids: &[u32], caption: &Arc<Tensor>) {
        if bytes(ids, caption) > self.bytes_max {
            return;
        }
        let mut inner = self.inner();
        inner.clock += 1;
        let entry = Entry {
            caption: caption.clone(),
            used: inner.clock,
        };
        inner.entries.insert(ids.to_vec(), entry);
        while inner.bytes() > self.bytes_max {
            let oldest = inner.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(ids, _)| ids.clone()) else {
                return;
            };
            inner.entries.remove(&oldest);
        }
    }

    /// Forgets everything; returns the bytes that were in it.
    pub(crate) fn clear(&self) -> Bytes {
        let mut inner = self.inner();
        let had = inner.bytes();
        // The table itself is given back, too.
        inner.entries = HashMap::new();
        had
    }

    /// It in numbers.
    pub(crate) fn figures(&self) -> CacheFigures {
        let inner = self.inner();
        CacheFigures {
            entries: inner.entries.len() as u64,
            bytes: inner.bytes(),
            bytes_max: self.bytes_max,
            hits: inner.hits,
            misses: inner.misses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caption(value: f32) -> Arc<Tensor> {
        Arc::new(Tensor::from_slice(&[1, 10], &[value; 10]).unwrap())
    }

    #[test]
    fn the_one_used_longest_ago_goes_first() {
        // Two entries of 40 + 4 bytes fit, three do not.
        let cache = PromptCache::new(Bytes(100));
        cache.put(&[1], &caption(1.0));
        cache.put(&[2], &caption(2.0));
        assert_eq!(cache.get(&[1]).unwrap().data()[0], 1.0);
        cache.put(&[3], &caption(3.0));
        assert!(cache.get(&[2]).is_none());
        assert!(cache.get(&[1]).is_some() && cache.get(&[3]).is_some());
        let figures = cache.figures();
        assert_eq!((figures.entries, figures.bytes), (2, Bytes(88)));
        assert_eq!((figures.hits, figures.misses), (3, 1));
        assert_eq!(cache.clear(), Bytes(88));
        assert!(cache.get(&[1]).is_none());
    }

    #[test]
    fn what_is_larger_than_the_cache_and_a_cache_of_nothing_keep_nothing() {
        for bytes_max in [Bytes::ZERO, Bytes(43)] {
            let cache = PromptCache::new(bytes_max);
            cache.put(&[1], &caption(1.0));
            assert!(cache.get(&[1]).is_none());
            assert_eq!(cache.figures().entries, 0);
        }
    }
}
