//! Writes finished files and results, so that no computing waits for a disk.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lowtide_core::job::Moment;
use lowtide_engine::processor::Product;
use lowtide_jobs::{Artifact, ArtifactStore, JobStore, Lease, Outcome, StoreError};
use serde_json::json;

use crate::keeper::Keeper;
use crate::log::{Level, Log};
use crate::status::Tallies;
use crate::{Error, Result};

/// Results that may wait to be written; then the computing thread waits, too.
const WAITING_MAX: usize = 16;

/// Threads that write: one store write carries what several of them bring at once.
const THREADS: usize = 8;

/// A store that is busy is asked again for so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// A result on its way out.
pub(crate) struct Finished {
    pub(crate) lease: Lease,
    pub(crate) product: Product,
    /// Files of saved sessions that are of no use afterwards.
    pub(crate) sessions: Vec<PathBuf>,
    /// What the job's end is called in a line.
    pub(crate) line: String,
}

/// What publishing needs.
#[derive(Clone)]
pub(crate) struct Makings {
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
            self.publish(finished);
        }
    }

    fn publish(&self, finished: Finished) {
        let Finished {
            lease,
            product,
            sessions,
            line,
        } = finished;
        let job = lease.job;
        let written = self.put(&product);
        let outcome = match &written {
            Ok(artifacts) => {
                let outcome = Outcome {
                    artifacts: artifacts.clone(),
                    report: Some(product.report.to_string()),
                };
                self.patiently(|now| self.store.complete(&lease, outcome.clone(), now))
            }
            Err(error) => Err(error.clone()),
        };
        match outcome {
            Ok(()) => {
                self.tallies.done.add();
                let fields =
                    json!({ "job": job.to_string(), "artifacts": written.map_or(0, |a| a.len()) });
                self.log
                    .say(Level::Info, format!("job {job} done: {line}"), fields);
            }
            Err(error) => {
                self.failed(&lease, &error);
                for artifact in written.unwrap_or_default() {
                    // What cannot be removed now is found as an orphan later.
                    let _ = self.artifacts.remove(artifact.id);
                }
            }
        }
        self.keeper.let_go(&lease);
        for file in sessions {
            // A leftover is removed at the next start.
            let _ = std::fs::remove_file(file);
        }
    }

    fn failed(&self, lease: &Lease, error: &StoreError) {
        let job = lease.job;
        let fields = json!({ "job": job.to_string() });
        if let StoreError::LeaseLost { .. } = error {
            let text = format!("the result of job {job} is dropped: {error}");
            self.log.say(Level::Warn, text, fields);
            return;
        }
        self.tallies.failed.add();
        let reason = format!("the result could not be kept: {error}");
        let told = self.patiently(|now| self.store.fail(lease, &reason, true, now).map(drop));
        let text = match told {
            Ok(()) => format!("job {job} is tried again: {reason}"),
            Err(second) => format!("job {job}: {reason}; nor could that be said: {second}"),
        };
        self.log.say(Level::Error, text, fields);
    }

    fn put(&self, product: &Product) -> lowtide_jobs::Result<Vec<Artifact>> {
        let mut artifacts = Vec::new();
        for file in &product.files {
            let put = |now| self.artifacts.put(&file.media_type, &file.content, now);
            match self.patiently(put) {
                Ok(artifact) => artifacts.push(artifact),
                Err(error) => {
                    for artifact in artifacts {
                        let Artifact { id, .. } = artifact;
                        let _ = self.artifacts.remove(id);
                    }
                    return Err(error);
                }
            }
        }
        Ok(artifacts)
    }

    /// Tries again while the store is only busy.
    fn patiently<T>(
        &self,
        mut call: impl FnMut(Moment) -> lowtide_jobs::Result<T>,
    ) -> lowtide_jobs::Result<T> {
        let start = Instant::now();
        loop {
            match call((self.clock)()) {
                Err(error) if error.is_retryable() && start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                answer => return answer,
            }
        }
    }
}
