//! The graphs that were submitted: jobs know what they draw, not how a client wrote it. They are this process' and the
//! oldest go; a job whose graph is gone is still a job, and its pictures are where jobs' pictures are.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lowtide_core::job::JobId;
use serde_json::Value;

use crate::access::Caller;

/// Graphs kept.
const ENTRIES_MAX: usize = 1_000;

/// Length of a client's name for itself.
pub(super) const CLIENT_LEN_MAX: usize = 128;

/// A submitted graph.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) job: JobId,
    /// Whose it is.
    pub(super) owner: Option<String>,
    /// Who is told of it.
    pub(super) client: String,
    pub(super) graph: Value,
    pub(super) extra: Value,
    /// The node that draws.
    pub(super) sampler: String,
    /// The nodes that save.
    pub(super) outputs: Vec<String>,
}

impl Entry {
    /// The class of one of its nodes.
    pub(super) fn class(&self, node: &str) -> &str {
        self.graph[node]["class_type"].as_str().unwrap_or_default()
    }
}

/// The submitted graphs, oldest first.
#[derive(Default)]
pub(crate) struct Board {
    entries: Mutex<VecDeque<Entry>>,
}

impl Board {
    fn held(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, entry: Entry) {
        let mut entries = self.held();
        if entries.len() == ENTRIES_MAX {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    pub(super) fn forget(&self, job: JobId) {
        self.held().retain(|entry| entry.job != job);
    }

    pub(super) fn entry(&self, job: JobId, caller: &Caller) -> Option<Entry> {
        let of = |entry: &&Entry| entry.job == job && caller.may_see(entry.owner.as_deref());
        self.held().iter().find(of).cloned()
    }

    /// All that the caller may see, oldest first.
    pub(super) fn all(&self, caller: &Caller) -> Vec<Entry> {
        let entries = self.held();
        let seen = entries
            .iter()
            .filter(|entry| caller.may_see(entry.owner.as_deref()));
        seen.cloned().collect()
    }

    pub(super) fn jobs_of(&self, client: &str, caller: &Caller) -> Vec<JobId> {
        let of = |entry: &&Entry| entry.client == client && caller.may_see(entry.owner.as_deref());
        self.held()
            .iter()
            .filter(of)
            .map(|entry| entry.job)
            .collect()
    }
}
