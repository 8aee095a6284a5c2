//! What was found out about models, as long as their files are as they were: a list of hundreds is asked for often, and
//! opening each reads every header.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use lowtide_core::Bytes;
use serde_json::Value;

use crate::models::Model;

/// The most models that are remembered.
const KNOWN_MAX: usize = 4096;

/// What tells that a model is another one than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp(Vec<(SystemTime, u64)>);

impl Stamp {
    /// Of a folder: itself, its index and its parts' folders; of a file: it.
    pub(super) fn of(model: &Model) -> Stamp {
        let Some(path) = model.path() else {
            return Stamp(Vec::new());
        };
        let about = |path: &Path| {
            let metadata = path.metadata().ok()?;
            let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            Some((changed, metadata.len()))
        };
        let mut stamps: Vec<(SystemTime, u64)> = about(path).into_iter().collect();
        if path.is_dir() {
            let inside = std::fs::read_dir(path).into_iter().flatten();
            let mut inside: Vec<_> = inside
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect();
            inside.sort();
            stamps.extend(inside.iter().filter_map(|path| about(path)));
        }
        Stamp(stamps)
    }
}

/// What is known of a model.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// The kinds that run it.
    pub(super) kinds: Vec<&'static str>,
    /// What it shows of itself, by kind; those that could not be opened are left out.
    pub(super) cards: BTreeMap<&'static str, (Bytes, Value)>,
    /// Whether the cards were asked for.
    pub(super) shown: bool,
}

/// Everything that was found out.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<BTreeMap<String, (Stamp, Known)>>);

impl Memory {
    /// What is known of a model that is as it was then.
    pub(super) fn of(&self, name: &str, stamp: &Stamp) -> Option<Known> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, known) = all.get(name)?;
        (seen == stamp).then(|| known.clone())
    }

    /// Remembers.
    pub(super) fn keep(&self, name: &str, stamp: Stamp, known: Known) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KNOWN_MAX && !all.contains_key(name) {
            all.pop_first();
        }
        all.insert(name.to_owned(), (stamp, known));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Place;

    #[test]
    fn a_model_that_changed_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let model = Model {
            name: "mine".to_owned(),
            place: Place::Own(folder.path().to_owned()),
        };
        std::fs::write(folder.path().join("model_index.json"), "{}").unwrap();
        let memory = Memory::default();
        let first = Stamp::of(&model);
        memory.keep("mine", first.clone(), Known::default());
        assert!(memory.of("mine", &first).is_some());
        assert!(memory.of("other", &first).is_none());
        std::fs::write(folder.path().join("model_index.json"), "{ }").unwrap();
        let second = Stamp::of(&model);
        assert_ne!(first, second);
        assert!(memory.of("mine", &second).is_none());
    }
}
