//! The thread pool, and how work is dealt out.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;

/// Numbers an elementwise kernel gives one task: enough to be worth a fork.
pub(crate) const GRAIN: usize = 16 * 1024;

/// Kernels use little stack; their buffers are in the scratch of a thread.
const STACK_BYTES: usize = 1 << 20;

static THREADS: OnceLock<Result<usize, String>> = OnceLock::new();

/// The pool could not be made as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ThreadsError {
    /// The pool already runs with another number of threads.
    Running {
        /// Threads it has.
        threads: usize,
    },
    /// The operating system or someone else's pool stood in the way.
    Refused {
        /// What was said.
        reason: String,
    },
}

impl fmt::Display for ThreadsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ThreadsError::Running { threads } => {
                write!(f, "the kernels already run on {threads} threads")
            }
            ThreadsError::Refused { reason } => write!(f, "no thread pool: {reason}"),
        }
    }
}

impl std::error::Error for ThreadsError {}

fn build(threads: usize) -> Result<usize, String> {
    rayon::ThreadPoolBuilder::new()
        // The thread that calls a kernel takes part in it, so the pool has one less.
        .num_threads(threads.saturating_sub(1).max(1))
        .stack_size(STACK_BYTES)
        .thread_name(|index| format!("kernel-{index}"))
        .build_global()
        .map(|()| threads)
        .map_err(|error| error.to_string())
}

/// Makes the pool with `n` threads (0: one for each physical core); later calls may only repeat the number.
///
/// # Errors
/// [`ThreadsError::Running`] when the pool has another size, [`ThreadsError::Refused`] when it
/// could not be made.
pub fn set_threads(n: usize) -> Result<(), ThreadsError> {
    let n = if n == 0 { cores() } else { n };
    match THREADS.get_or_init(|| build(n)) {
        Ok(threads) if *threads == n => Ok(()),
        Ok(threads) => Err(ThreadsError::Running { threads: *threads }),
        Err(reason) => Err(ThreadsError::Refused {
            reason: reason.clone(),
        }),
    }
}

/// Threads the kernels use, the caller's included.
pub fn threads() -> usize {
    match THREADS.get_or_init(|| build(cores())) {
        Ok(threads) => *threads,
        // Someone else made rayon's global pool first; then that is the pool.
        Err(_) => rayon::current_num_threads() + 1,
    }
}

/// Physical cores this process may run on: the products fill a core's multipliers, so that a
/// second thread on it only takes cache from the first. A limit on processor time counts as well.
fn cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    physical_cores().map_or(logical, |physical| physical.min(logical))
}

/// Distinct cores among the processors of this process' affinity, as Linux tells.
fn physical_cores() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let core = |processor: usize| {
        let read = |what| {
            let folder = format!("/sys/devices/system/cpu/cpu{processor}/topology");
            std::fs::read_to_string(format!("{folder}/{what}")).ok()
        };
        Some((read("physical_package_id")?, read("core_id")?))
    };
    let cores: Option<BTreeSet<_>> = processors(allowed)?.map(core).collect();
    cores.map(|cores| cores.len()).filter(|cores| *cores > 0)
}

/// The numbers of a list such as `0-3,8`.
fn processors(list: &str) -> Option<impl Iterator<Item = usize> + use<>> {
    /// More than any machine has; a list that says so is not believed.
    const MOST: usize = 1 << 16;
    let mut all = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if last >= MOST {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all.into_iter())
}

/// Runs `f(0..tasks)`, each once, the caller taking part. Tasks are taken in ascending order by
/// whoever is free, so a thread that wakes late simply does less.
pub(crate) fn parallel(tasks: usize, f: impl Fn(usize) + Sync) {
    let helpers = threads().min(tasks).saturating_sub(1);
    if helpers == 0 {
        (0..tasks).for_each(f);
        return;
    }
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            f(task);
        }
    };
    fork(helpers, &work);
}

/// Set in [`Fork::state`] when no more helpers may enter; the rest counts those inside.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// Looks at a helper's end before the caller goes to sleep: some microseconds.
const SPINS: usize = 1000;

/// Work that helpers may join until the caller is done. A helper that comes later finds it closed,
/// so a caller never waits for threads that were busy elsewhere.
struct Fork {
    /// Valid while `state` is not closed or counts a helper.
    work: *const (dyn Fn() + Sync),
    state: AtomicUsize,
    caller: Thread,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` is `Sync`, and is only called while its owner waits.
unsafe impl Send for Fork {}
// SAFETY: as above.
unsafe impl Sync for Fork {}

impl Fork {
    /// What a helper does.
    fn join(&self) {
        let enter = |state| (state & CLOSED == 0).then_some(state + 1);
        let entered = self
            .state
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, enter);
        if entered.is_err() {
            return;
        }
        // SAFETY: having entered, the owner waits for this thread before `work` ends.
        let work = unsafe { &*self.work };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            let mut slot = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            *slot = Some(panic);
        }
        if self.state.fetch_sub(1, Ordering::Release) == CLOSED | 1 {
            self.caller.unpark();
        }
    }

    /// Lets nobody in any more and waits until nobody is inside.
    fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::Relaxed);
        let mut looks = 0;
        while self.state.load(Ordering::Acquire) != CLOSED {
            looks += 1;
            if looks < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::park();
            }
        }
    }
}

/// Runs `work` here and on up to `helpers` other threads at once.
fn fork(helpers: usize, work: &(dyn Fn() + Sync)) {
    // SAFETY: only the lifetime changes; `close` below outlasts every use, on unwinding as well.
    let work_forever =
        unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work) };
    let fork = Arc::new(Fork {
        work: work_forever,
        state: AtomicUsize::new(0),
        caller: std::thread::current(),
        panic: Mutex::new(None),
    });
    for _ in 0..helpers {
        let fork = Arc::clone(&fork);
        rayon::spawn(move || fork.join());
    }
    let here = catch_unwind(AssertUnwindSafe(work));
    fork.close();
    let there = fork
        .panic
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(panic) = here.err().or(there) {
        resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whoever_takes_it() {
        set_threads(3).expect("this process has no pool yet");
        for tasks in [1, 2, 3, 100, 1000] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            parallel(tasks, |task| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
        assert_eq!(set_threads(2), Err(ThreadsError::Running { threads: 3 }));
        assert_eq!(set_threads(3), Ok(()));
    }

    #[test]
    fn lists_of_processors_are_read() {
        let read = |list| processors(list).map(Iterator::collect::<Vec<_>>);
        assert_eq!(read("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(read("5"), Some(vec![5]));
        assert_eq!(read("0-"), None);
        assert_eq!(read("0-4000000000"), None);
    }

    #[test]
    fn there_are_no_more_cores_than_processors() {
        let logical = std::thread::available_parallelism().map_or(1, usize::from);
        assert!((1..=logical).contains(&cores()));
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller() {
        let outcome = catch_unwind(|| {
            parallel(64, |task| assert_ne!(task, 40, "task forty"));
        });
        assert!(outcome.is_err());
        let done = AtomicUsize::new(0);
        parallel(64, |_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 64);
    }
}
