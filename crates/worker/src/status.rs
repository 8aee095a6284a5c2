//! What is counted and told of a worker.

use std::sync::atomic::{AtomicU64, Ordering};

use lowtide_jobs::report::WorkerCounts;

/// A number that several threads count up.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    pub(crate) fn add_many(&self, many: u64) {
        self.0.fetch_add(many, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything counted since the worker began.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    pub(crate) started: Count,
    pub(crate) done: Count,
    pub(crate) failed: Count,
    pub(crate) cancelled: Count,
    pub(crate) parked: Count,
    pub(crate) rungs: Count,
    pub(crate) bytes_read: Count,
    /// Microseconds.
    pub(crate) busy_us: Count,
}

impl Tallies {
    pub(crate) fn told(&self) -> WorkerCounts {
        WorkerCounts {
            started: self.started.get(),
            done: self.done.get(),
            failed: self.failed.get(),
            cancelled: self.cancelled.get(),
            parked: self.parked.get(),
            rungs: self.rungs.get(),
            bytes_read: self.bytes_read.get(),
            busy_s: self.busy_us.get() as f64 / 1e6,
        }
    }
}
