//! Requests by route and status, for the metrics.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What was counted since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// By route, as declared and therefore few, then by status. A std mutex: it is held for less than a microsecond and
    /// never across a wait.
    requests: Mutex<HashMap<Box<str>, BTreeMap<u16, u64>>>,
    /// Open connections.
    pub(crate) connections: AtomicU64,
    /// Connections refused because there were too many.
    pub(crate) refused: AtomicU64,
    /// Jobs accepted by this server.
    pub(crate) submitted: AtomicU64,
    /// Streams of events that are open.
    pub(crate) streams: AtomicU64,
}

impl Counters {
    /// A request was answered.
    pub(crate) fn answered(&self, route: &str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(statuses) = requests.get_mut(route) {
            *statuses.entry(status).or_default() += 1;
        } else {
            requests.insert(route.into(), BTreeMap::from([(status, 1)]));
        }
    }

    /// All of them, sorted.
    pub(crate) fn requests(&self) -> Vec<(Box<str>, u16, u64)> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = requests
            .iter()
            .flat_map(|(route, statuses)| {
                statuses
                    .iter()
                    .map(move |(status, count)| (route.clone(), *status, *count))
            })
            .collect();
        all.sort();
        all
    }
}

/// One more of something for as long as this lives.
pub(crate) struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    /// One more.
    pub(crate) fn new(count: &'a AtomicU64) -> Counted<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
