//! The thread pool, and how work is dealt out.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// Makes the pool with `n` threads (0: one for each core); later calls may only repeat the number.
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

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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
    rayon::in_place_scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| work());
        }
        work();
    });
}
