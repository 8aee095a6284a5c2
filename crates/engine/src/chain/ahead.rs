//! Reads weights for later steps while one works: a thread of its own, which takes no more than the working step cedes.

use std::cell::Cell;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lowtide_core::Bytes;
use serde_json::Value;

use crate::processor::{Brought, Forecast, Opened};
use crate::{Error, Result};

/// It only reads files.
const STACK_BYTES: usize = 256 << 10;

/// What is to be read for a step.
pub(super) struct Wanted {
    /// The step.
    pub(super) step: usize,
    pub(super) opened: Arc<dyn Opened>,
    pub(super) request: Value,
    pub(super) forecast: Forecast,
    /// The most that is read for it.
    pub(super) bytes: Bytes,
}

/// What was read for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) step: usize,
    pub(super) brought: Brought,
}

/// The reading in progress. Dropping it stops it.
pub(super) struct Ahead {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// What it may take at most.
    pub(super) wanted: Bytes,
    /// The steps it reads for.
    pub(super) steps: Vec<usize>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    granted: Bytes,
    taken: Bytes,
    stop: bool,
    arrived: Vec<Arrived>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is of plain numbers, so a panic elsewhere leaves them valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `bytes` more were granted; whether they were.
    fn take(&self, bytes: Bytes) -> bool {
        let waiting = |state: &mut State| !state.stop && state.taken + bytes > state.granted;
        let state = self.changed.wait_while(self.lock(), waiting);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.stop {
            return false;
        }
        state.taken += bytes;
        true
    }
}

impl Ahead {
    /// Begins to read, in this order. Nothing is taken before something is granted.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn begin(all: Vec<Wanted>) -> Result<Ahead> {
        let shared = Arc::new(Shared::default());
        let wanted = all.iter().map(|one| one.bytes).sum();
        let steps = all.iter().map(|one| one.step).collect();
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("lowtide-ahead".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || all.into_iter().for_each(|one| read(&theirs, one)))
            .map_err(|_| Error::LoaderStopped)?;
        Ok(Ahead {
            shared,
            thread: Some(thread),
            wanted,
            steps,
        })
    }

    /// What may be taken in all.
    pub(super) fn grant(&self, bytes: Bytes) {
        let mut state = self.shared.lock();
        state.granted = state.granted.max(bytes);
        self.shared.changed.notify_all();
    }

    /// Stops after the read in progress. Returns what was read, and how long that was waited for.
    pub(super) fn stop(mut self) -> (Vec<Arrived>, Duration) {
        let start = Instant::now();
        self.join();
        let arrived = self.shared.lock().arrived.clone();
        (arrived, start.elapsed())
    }

    fn join(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // What a panic left unread is read by the step itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.join();
    }
}

fn read(shared: &Shared, one: Wanted) {
    let left = Cell::new(one.bytes);
    let more = |bytes: Bytes| {
        let enough = bytes > left.get() || !shared.take(bytes);
        if !enough {
            left.set(left.get() - bytes);
        }
        !enough
    };
    // A file that cannot be read is told of by the step that needs it.
    let brought = one.opened.bring(&one.request, &one.forecast, &more);
    if let Ok(brought) = brought
        && brought.bytes > Bytes::ZERO
    {
        let step = one.step;
        shared.lock().arrived.push(Arrived { step, brought });
    }
}
