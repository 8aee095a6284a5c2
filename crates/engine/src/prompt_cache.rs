//! What was made of prompts, kept for the next job that says the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowtide_core::Bytes;

use crate::pipeline::Caption;
use crate::processor::CacheFigures;
use crate::session::work::TextKey;

/// Captions by the texts they were made of. The one that was used longest ago goes first.
pub(crate) struct PromptCache {
    bytes_max: Bytes,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<TextKey, Entry>,
    /// Counts uses.
    clock: u64,
    hits: u64,
    misses: u64,
}

struct Entry {
    caption: Arc<Caption>,
    used: u64,
}

fn bytes(text: &TextKey, caption: &Caption) -> Bytes {
    let tensors = caption.iter().map(|tensor| size_of_val(tensor.data()));
    Bytes::from(text.bytes() + tensors.sum::<usize>())
}

impl Inner {
    fn bytes(&self) -> Bytes {
        self.entries
            .iter()
            .map(|(text, entry)| bytes(text, &entry.caption))
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

    /// What was made of `text`, if it is still there.
    pub(crate) fn get(&self, text: &TextKey) -> Option<Arc<Caption>> {
        if self.bytes_max == Bytes::ZERO {
            return None;
        }
        let mut inner = self.inner();
        inner.clock += 1;
        let now = inner.clock;
        let found = inner.entries.get_mut(text).map(|entry| {
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
    pub(crate) fn put(&self, text: &TextKey, caption: &Arc<Caption>) {
        if bytes(text, caption) > self.bytes_max {
            return;
        }
        let mut inner = self.inner();
        inner.clock += 1;
        let entry = Entry {
            caption: caption.clone(),
            used: inner.clock,
        };
        inner.entries.insert(text.clone(), entry);
        while inner.bytes() > self.bytes_max {
            let oldest = inner.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(text, _)| text.clone()) else {
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
    use lowtide_models::Tensor;

    fn text(id: u32) -> TextKey {
        TextKey::of_ids(vec![id])
    }

    fn caption(value: f32) -> Arc<Caption> {
        Arc::new(vec![Tensor::from_slice(&[1, 10], &[value; 10]).unwrap()])
    }

    #[test]
    fn the_one_used_longest_ago_goes_first() {
        // Two entries of 40 + 4 bytes fit, three do not.
        let cache = PromptCache::new(Bytes(100));
        cache.put(&text(1), &caption(1.0));
        cache.put(&text(2), &caption(2.0));
        assert_eq!(cache.get(&text(1)).unwrap()[0].data()[0], 1.0);
        cache.put(&text(3), &caption(3.0));
        assert!(cache.get(&text(2)).is_none());
        assert!(cache.get(&text(1)).is_some() && cache.get(&text(3)).is_some());
        let figures = cache.figures();
        assert_eq!((figures.entries, figures.bytes), (2, Bytes(88)));
        assert_eq!((figures.hits, figures.misses), (3, 1));
        assert_eq!(cache.clear(), Bytes(88));
        assert!(cache.get(&text(1)).is_none());
    }

    #[test]
    fn what_is_larger_than_the_cache_and_a_cache_of_nothing_keep_nothing() {
        for bytes_max in [Bytes::ZERO, Bytes(43)] {
            let cache = PromptCache::new(bytes_max);
            cache.put(&text(1), &caption(1.0));
            assert!(cache.get(&text(1)).is_none());
            assert_eq!(cache.figures().entries, 0);
        }
    }
}
