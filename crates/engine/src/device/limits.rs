//! Who sets the limits on this process' memory: of several open sessions, the one that steps.
//!
//! Budget and cache limit are the process', not a session's. A session sets them when it begins to step after another
//! has; they are lifted when the last session is closed, and never while one is open.

use std::sync::{Mutex, MutexGuard, PoisonError};

use lowtide_core::Bytes;
use lowtide_kernels::memory;

use super::ground;

struct Open {
    count: usize,
    /// The seat that set the limits last; 0 is nobody.
    owner: u64,
    /// The last number given out.
    last: u64,
}

static OPEN: Mutex<Open> = Mutex::new(Open {
    count: 0,
    owner: 0,
    last: 0,
});

fn open() -> MutexGuard<'static, Open> {
    // Every change is of plain numbers, so a panic elsewhere leaves them valid.
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right of one open session to set limits.
pub(crate) struct Seat {
    number: u64,
    /// Whether they are those of what pipelines compute on, else the processor's.
    pipeline: bool,
}

impl Seat {
    /// A seat of one's own; it sets no limits yet.
    pub(crate) fn take() -> Seat {
        Seat::numbered(false)
    }

    /// The same for what pipelines compute on.
    pub(crate) fn take_of_pipeline() -> Seat {
        Seat::numbered(true)
    }

    fn numbered(pipeline: bool) -> Seat {
        let mut open = open();
        open.count += 1;
        open.last += 1;
        let number = open.last;
        Seat { number, pipeline }
    }

    /// Whether the limits in force are this seat's.
    pub(crate) fn owns(&self) -> bool {
        open().owner == self.number
    }

    /// Makes the limits this seat's, with this budget.
    pub(crate) fn own(&self, budget: Bytes) {
        open().owner = self.number;
        match self.pipeline {
            true => {
                if ground::accelerator().is_some() {
                    // What a detector may have on the processor does not bind what a pipeline keeps there.
                    memory::set_budget(None);
                }
                ground::set_budget(Some(budget.0));
            }
            false => memory::set_budget(Some(budget.0)),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = open();
        open.count -= 1;
        if open.owner == self.number {
            open.owner = 0;
        }
        if open.count == 0 {
            memory::set_cache_limit(None);
            memory::set_budget(None);
            ground::set_budget(None);
            memory::give_back();
        }
        ground::trim();
    }
}
