//! Who sets the limits on this process' memory: of several open sessions, the one that steps.
//!
//! Budget and cache limit are the process', not a session's. A session sets them when it begins to step after another
//! has; they are lifted when the last session is closed, and never while one is open.

use std::sync::{Mutex, MutexGuard, PoisonError};

use lowtide_core::Bytes;
use lowtide_kernels::memory;

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
pub(crate) struct Seat(u64);

impl Seat {
    /// A seat of one's own; it sets no limits yet.
    pub(crate) fn take() -> Seat {
        let mut open = open();
        open.count += 1;
        open.last += 1;
        Seat(open.last)
    }

    /// Whether the limits in force are this seat's.
    pub(crate) fn owns(&self) -> bool {
        open().owner == self.0
    }

    /// Makes the limits this seat's, with this budget.
    pub(crate) fn own(&self, budget: Bytes) {
        open().owner = self.0;
        memory::set_budget(Some(budget.0));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = open();
        open.count -= 1;
        if open.owner == self.0 {
            open.owner = 0;
        }
        if open.count == 0 {
            memory::set_cache_limit(None);
            memory::set_budget(None);
            memory::give_back();
        }
        memory::trim();
    }
}
