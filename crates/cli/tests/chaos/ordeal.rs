//! What the tests that kill have in common: jobs that are submitted whatever happens, and what must have become of them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lowtide_core::job::{JobId, JobState};
use lowtide_jobs::{ArtifactStore, AttemptEnd, EventId, Happening, Job, JobStore, Listing};
use serde_json::Value;

use crate::expected::{self, Expected};

/// Clients that submit.
const CLIENTS: usize = 4;

/// What was accepted: the id, by the number of the request.
pub(crate) type Accepted = BTreeMap<usize, JobId>;

/// A small generator; its quality does not matter, its seed does.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        low + self.0 % (high - low + 1)
    }

    /// One with the seed that the environment names, or another one each time; it is printed.
    pub(crate) fn seeded() -> Random {
        let seed = number("LOWTIDE_CHAOS_SEED");
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) ^ 0x9e37_79b9_7f4a_7c15);
        println!("LOWTIDE_CHAOS_SEED={seed}");
        Random(seed)
    }
}

/// A number of the environment.
pub(crate) fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Asks until there is an answer.
pub(crate) fn wait<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < limit, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal; returns whether there was such a process.
pub(crate) fn kill(pid: u32, signal: &str) -> bool {
    let sent = Command::new("kill")
        .args([format!("-{signal}"), pid.to_string()])
        .stderr(Stdio::null())
        .status();
    sent.is_ok_and(|status| status.success())
}

/// The end of a log, for whoever has to understand a failure.
pub(crate) fn print_end(log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    let last = lines.len().saturating_sub(80);
    println!("the last lines of all:\n{}", lines[last..].join("\n"));
}

/// Clients that submit so many jobs over HTTP, each under its key until it is accepted.
pub(crate) struct Clients {
    threads: Vec<std::thread::JoinHandle<()>>,
    accepted: Arc<Mutex<Accepted>>,
    jobs: usize,
}

impl Clients {
    /// Starts them. `post` sends a body under a key; between two jobs a client rests for `pause`.
    pub(crate) fn start(
        jobs: usize,
        pause: Duration,
        patience: Duration,
        post: impl Fn(&Value, &str) -> Option<Value> + Clone + Send + 'static,
    ) -> Clients {
        let accepted: Arc<Mutex<Accepted>> = Arc::default();
        let threads = (0..CLIENTS).map(|client| {
            let (post, accepted) = (post.clone(), accepted.clone());
            std::thread::spawn(move || {
                for number in (client..jobs).step_by(CLIENTS) {
                    let body = expected::body(number);
                    let key = format!("chaos-{number}");
                    let id = wait("a job to be accepted", patience, || {
                        post(&body, &key)?["id"].as_str()?.parse().ok()
                    });
                    accepted.lock().unwrap().insert(number, id);
                    // The queue fills slowly enough that kills hit every part of a life.
                    std::thread::sleep(pause);
                }
            })
        });
        Clients {
            threads: threads.collect(),
            accepted,
            jobs,
        }
    }

    /// Waits until all jobs are accepted.
    pub(crate) fn done(self) -> Accepted {
        for thread in self.threads {
            thread.join().unwrap();
        }
        let accepted = self.accepted.lock().unwrap().clone();
        assert_eq!(
            accepted.len(),
            self.jobs,
            "each request was accepted in the end"
        );
        accepted
    }
}

/// Waits until all jobs are over.
pub(crate) fn wait_for_all(store: &dyn JobStore, accepted: &Accepted, limit: Duration) {
    let over = |id: &JobId| store.job(*id).is_ok_and(|job| job.state.is_final());
    // The latest first: most of the others are over then, too.
    wait("all jobs to be over", limit, || {
        accepted.values().rev().all(over).then_some(())
    });
}

/// Takes a running job's worker out of the world until somebody else has the job, then brings it back: what it writes comes
/// too late. `is_theirs` tells whether a job is that worker's. Returns whether it came to that.
pub(crate) fn lose_a_job(
    store: &dyn JobStore,
    is_theirs: impl Fn(&Job) -> bool,
    out: impl FnOnce() -> bool,
    back: impl FnOnce(),
) -> bool {
    let limit = Duration::from_secs(20);
    let listing = Listing {
        states: vec![JobState::Running],
        limit: 10,
        ..Default::default()
    };
    let deadline = Instant::now() + limit;
    let job = loop {
        let running = store.list(&listing).unwrap_or_default();
        if let Some(job) = running.into_iter().find(&is_theirs) {
            break job;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::yield_now();
    };
    if !out() {
        return false;
    }
    // The job may have been done in the moment between.
    let caught = store
        .job(job.id)
        .is_ok_and(|now| now.attempt == job.attempt && now.state == JobState::Running);
    let since = Instant::now();
    let mut moved = false;
    while caught && !moved && since.elapsed() < limit {
        moved = store.job(job.id).is_ok_and(|now| now.attempt > job.attempt);
        std::thread::sleep(Duration::from_millis(20));
    }
    back();
    // Both work for a while.
    std::thread::sleep(Duration::from_millis(500));
    moved
}

/// What became of the jobs, all promises kept.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) attempts: u64,
    /// Whoever tried.
    pub(crate) workers: BTreeSet<String>,
}

/// Each job has one artifact, whole, with the bytes that an undisturbed run gives, and one `done` in the log.
pub(crate) fn verify(
    store: &dyn JobStore,
    artifacts: &dyn ArtifactStore,
    accepted: &Accepted,
) -> Kept {
    let done_events = done_events(store);
    let mut expected = Expected::new();
    let (mut files, mut kept) = (BTreeSet::new(), Kept::default());
    for (number, id) in accepted {
        let job = store.job(*id).unwrap();
        let error = job.error.as_deref().unwrap_or("no error");
        assert_eq!(
            job.state,
            JobState::Done,
            "job {number} ({id}): {error}; {:#?}",
            job.history
        );
        let outcome = job.outcome.as_ref().expect("a done job has an outcome");
        assert_eq!(outcome.artifacts.len(), 1, "one artifact for job {number}");
        let artifact = &outcome.artifacts[0];
        assert!(files.insert(artifact.id), "an artifact belongs to one job");
        // Reading checks length and sum.
        let content = artifacts.read(artifact).unwrap();
        assert_eq!(
            content,
            expected.bytes(*number),
            "the bytes of job {number} ({id}): {:#?}",
            job.history
        );
        assert_eq!(done_events.get(id), Some(&1), "one `done` for job {number}");
        let ends = job
            .history
            .iter()
            .filter(|one| one.end == Some(AttemptEnd::Done));
        assert_eq!(ends.count(), 1);
        kept.attempts += u64::from(job.attempt);
        let workers = job.history.iter().map(|one| one.worker.to_string());
        kept.workers.extend(workers);
    }
    kept
}

/// How often each job was done, by the log.
fn done_events(store: &dyn JobStore) -> BTreeMap<JobId, u64> {
    let mut done = BTreeMap::new();
    let mut after = EventId(0);
    loop {
        let page = store.events_after(after, None, 1000).unwrap();
        assert!(!page.gap, "nothing of the log was thrown away");
        let Some(last) = page.events.last() else {
            return done;
        };
        after = last.id;
        for event in page.events {
            if let (Happening::Done, Some(job)) = (event.what, event.job) {
                *done.entry(job).or_insert(0) += 1;
            }
        }
    }
}
