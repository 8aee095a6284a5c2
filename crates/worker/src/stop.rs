//! Asking a worker to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks a worker to end: what runs is parked, saved and given back, and [`crate::Worker::run`] returns.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// One that nobody has used.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Asks. The worker sees it after the present step; wake it with [`lowtide_jobs::JobStore::nudge`].
    pub fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was asked.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
