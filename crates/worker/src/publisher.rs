//! Writes finished files and results, so that no computing waits for a disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lowtide_core::job::Moment;
use lowtide_engine::processor::Product;
use lowtide_jobs::{Artifact, ArtifactStore, JobStore, Lease, Outcome, StoreError, TraceParent};
use serde_json::json;

use crate::depot::Depot;
use crate::keeper::Keeper;
use crate::log::{Level, Log};
use crate::session::words;
use crate::status::Tallies;
use crate::stopwatch::Stopwatch;
use crate::{Error, Result};

/// Results that may wait to be written; then the computing thread waits, too.
const WAITING_MAX: usize = 16;

/// Threads that write: one store write carries what several of them bring at once.
const THREADS: usize = 8;

/// A store that is busy is asked again for so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// A result is kept for so long while the server that takes files is away: to compute it again would take longer.
const OUTAGE_MAX: Duration = Duration::from_secs(300);

/// A result on its way out.
pub(crate) struct Finished {
    pub(crate) lease: Lease,
    /// What its work is a part of.
    pub(crate) trace: Option<TraceParent>,
    pub(crate) product: Product,
    /// Files of saved sessions that are of no use afterwards.
    pub(crate) sessions: Vec<PathBuf>,
    /// What the job's end is called in a line.
    pub(crate) line: String,
}

/// What publishing needs.
#[derive(Clone)]
pub(crate) struct Makings {
    pub(crate) stopwatch: Stopwatch,
    pub(crate) depot: Depot,
    pub(crate) store: Arc<dyn JobStore>,
    pub(crate) artifacts: Arc<dyn ArtifactStore>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) tallies: Arc<Tallies>,
    pub(crate) log: Log,
    pub(crate) clock: fn() -> Moment,
}

/// The threads.
pub(crate) struct Publisher {
    queue: Option<SyncSender<Finished>>,
    threads: Vec<JoinHandle<()>>,
}

impl Publisher {
    pub(crate) fn start(makings: &Makings) -> Result<Publisher> {
        let (queue, results) = sync_channel(WAITING_MAX);
        let results = Arc::new(Mutex::new(results));
        let thread = |index: usize| {
            let (makings, results) = (makings.clone(), results.clone());
            std::thread::Builder::new()
                .name(format!("publisher-{index}"))
                .stack_size(256 << 10)
                .spawn(move || makings.run(&results))
        };
        let threads = (0..THREADS).map(thread).collect::<std::io::Result<_>>();
        Ok(Publisher {
            queue: Some(queue),
            threads: threads.map_err(Error::Thread)?,
        })
    }

    /// Sends a result on its way.
    pub(crate) fn publish(&self, finished: Finished) {
        let queue = self.queue.as_ref().expect("the queue lives until drop");
        queue
            .send(finished)
            .expect("publishers live until the queue is dropped");
    }
}

impl Drop for Publisher {
    /// Waits until everything is written.
    fn drop(&mut self) {
        drop(self.queue.take());
        for thread in self.threads.drain(..) {
            // One that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Makings {
    fn run(&self, results: &Mutex<Receiver<Finished>>) {
        loop {
            let next = results
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .recv();
            let Ok(finished) = next else { return };
            let lease = finished.lease.clone();
            let (traced, began) = ((lease.job, finished.trace), self.stopwatch.begin());
            let published = catch_unwind(AssertUnwindSafe(|| self.publish(finished)));
            let error = match &published {
                Ok(kept) => kept.as_ref().err().cloned(),
                Err(panic) => Some(words(&**panic)),
            };
            self.stopwatch
                .note(traced, "publish", began, Vec::new(), error);
            if let Err(panic) = published {
                let reason = format!("the program panicked: {}; this is a bug", words(&*panic));
                self.try_again(&lease, &reason);
            }
            self.keeper.let_go(&lease);
        }
    }

    /// Publishes a result, or says why it was not.
    fn publish(&self, finished: Finished) -> std::result::Result<(), String> {
        let Finished {
            lease,
            product,
            sessions,
            line,
            trace: _,
        } = finished;
        let job = lease.job;
        let artifacts = match self.put(&product) {
            Ok(artifacts) => artifacts,
            Err(error) => {
                self.try_again(&lease, &not_kept(&error));
                return Err(not_kept(&error));
            }
        };
        let outcome = Outcome {
            artifacts: artifacts.clone(),
            report: Some(product.report.to_string()),
        };
        let completed = patiently(self.clock, |now| {
            self.store.complete(&lease, outcome.clone(), now)
        });
        match completed {
            Ok(()) => {
                self.tallies.done.add();
                let fields = json!({ "job": job.to_string(), "artifacts": artifacts.len() });
                self.log
                    .say(Level::Info, format!("job {job} done: {line}"), fields);
                self.depot.remove(&sessions);
                Ok(())
            }
            Err(error @ StoreError::LeaseLost { .. }) => {
                let text = format!("the result of job {job} is dropped: {error}");
                self.log
                    .say(Level::Warn, text, json!({ "job": job.to_string() }));
                self.remove(&artifacts);
                Err(error.to_string())
            }
            // Whether it was kept is not known: files that no job has are found and removed later.
            Err(error) => {
                self.try_again(&lease, &not_kept(&error));
                Err(not_kept(&error))
            }
        }
    }

    fn try_again(&self, lease: &Lease, reason: &str) {
        self.tallies.failed.add();
        let job = lease.job;
        let told = patiently(self.clock, |now| self.store.fail(lease, reason, true, now));
        let text = match told {
            Ok(_) => format!("job {job} is tried again: {reason}"),
            Err(second) => format!("job {job}: {reason}; nor could that be said: {second}"),
        };
        self.log
            .say(Level::Error, text, json!({ "job": job.to_string() }));
    }

    fn remove(&self, artifacts: &[Artifact]) {
        for artifact in artifacts {
            // What cannot be removed now is found as an orphan later.
            let _ = self.artifacts.remove(artifact.id);
        }
    }

    fn put(&self, product: &Product) -> lowtide_jobs::Result<Vec<Artifact>> {
        let mut artifacts = Vec::new();
        for file in &product.files {
            let put = |now| self.artifacts.put(&file.media_type, &file.content, now);
            match through_an_outage(self.clock, put) {
                Ok(artifact) => artifacts.push(artifact),
                Err(error) => {
                    self.remove(&artifacts);
                    return Err(error);
                }
            }
        }
        Ok(artifacts)
    }
}

fn not_kept(error: &StoreError) -> String {
    format!("the result could not be kept: {error}")
}

/// Tries again while the store is only busy, and for longer while it is away.
fn through_an_outage<T>(
    clock: fn() -> Moment,
    mut call: impl FnMut(Moment) -> lowtide_jobs::Result<T>,
) -> lowtide_jobs::Result<T> {
    let start = Instant::now();
    loop {
        match patiently(clock, &mut call) {
            Err(StoreError::Unreachable { .. }) if start.elapsed() < OUTAGE_MAX => {}
            answer => return answer,
        }
    }
}

/// Tries again while the store is only busy.
pub(crate) fn patiently<T>(
    clock: fn() -> Moment,
    mut call: impl FnMut(Moment) -> lowtide_jobs::Result<T>,
) -> lowtide_jobs::Result<T> {
    let start = Instant::now();
    loop {
        match call(clock()) {
            Err(error) if error.is_retryable() && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            answer => return answer,
        }
    }
}
