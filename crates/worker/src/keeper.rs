//! Keeps leases alive and tells how things are, whatever the computing thread is busy with.
//!
//! One thread renews every lease at a third of its length, passes on the latest progress of each job, and sends the
//! heartbeat. What the store answers (somebody cancelled, the lease is lost) is noted for the computing thread to see
//! between two steps.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lowtide_core::job::{JobId, Moment};
use lowtide_engine::device::figures::Figures;
use lowtide_jobs::report::{Cards, Memory, Status, WorkerState};
use lowtide_jobs::{
    Directive, Heartbeat, JobStore, Lease, Preview, Progress, StoreError, WorkerId,
};
use serde_json::json;

use crate::log::{Level, Log};
use crate::meter::Meter;
use crate::{Error, Result};

/// Progress of a job is passed on no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_millis(60);

/// After a queue that did not answer, a lease is renewed again so soon.
const RENEW_AGAIN: Duration = Duration::from_millis(300);

/// A heartbeat is good for so many of its intervals.
const HEARTBEATS_MISSED_MAX: u32 = 15;

/// What the computing thread has to know of a job it works on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// What somebody wants done with it.
    pub(crate) directive: Directive,
    /// Nothing written about it counts any more.
    pub(crate) lost: bool,
}

/// What the keeper is made of.
pub(crate) struct Makings {
    pub(crate) store: Arc<dyn JobStore>,
    pub(crate) worker: WorkerId,
    pub(crate) lease: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) threads: usize,
    pub(crate) log: Log,
    pub(crate) clock: fn() -> Moment,
}

/// The thread and what it shares.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    makings: Makings,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    leases: HashMap<JobId, Held>,
    status: Status,
    cards: Option<Cards>,
    /// Something is to be told before its time.
    hurry: bool,
    job_runs: bool,
    job_peak: u64,
    meter: Meter,
    ends: bool,
}

struct Held {
    lease: Lease,
    look: Look,
    news: Option<(Progress, Option<Preview>)>,
    told: Instant,
    /// When renewing it is due.
    due: Instant,
}

impl Keeper {
    pub(crate) fn start(makings: Makings) -> Result<Keeper> {
        let threads = makings.threads;
        let shared = Arc::new(Shared {
            makings,
            state: Mutex::new(State::new(threads)),
            wake: Condvar::new(),
        });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || theirs.run())
            .map_err(Error::Thread)?;
        Ok(Keeper {
            shared,
            thread: Some(thread),
        })
    }

    /// From now on this lease is renewed.
    pub(crate) fn keep(&self, lease: &Lease) {
        let held = Held {
            lease: lease.clone(),
            look: Look::default(),
            news: None,
            told: Instant::now()
                .checked_sub(PROGRESS_EVERY)
                .unwrap_or_else(Instant::now),
            due: Instant::now() + self.shared.makings.lease / 3,
        };
        self.shared.lock().leases.insert(lease.job, held);
    }

    /// From now on it is not.
    pub(crate) fn let_go(&self, lease: &Lease) {
        let mut state = self.shared.lock();
        if state
            .leases
            .get(&lease.job)
            .is_some_and(|held| held.lease == *lease)
        {
            state.leases.remove(&lease.job);
        }
    }

    /// What is known about a job now.
    pub(crate) fn look(&self, lease: &Lease) -> Look {
        let state = self.shared.lock();
        match state.leases.get(&lease.job) {
            Some(held) if held.lease == *lease => held.look,
            _ => Look {
                lost: true,
                ..Look::default()
            },
        }
    }

    /// The store said this about a job, or refused a write about it.
    pub(crate) fn heard(&self, lease: &Lease, answer: &lowtide_jobs::Result<Directive>) {
        self.shared.heard(lease, answer);
    }

    /// Passes on how far a job is, soon.
    pub(crate) fn note(&self, lease: &Lease, progress: Progress, preview: Option<Preview>) {
        let mut state = self.shared.lock();
        let held = state.leases.get_mut(&lease.job);
        if let Some(held) = held.filter(|held| held.lease == *lease) {
            let preview = preview.or_else(|| held.news.take().and_then(|(_, preview)| preview));
            held.news = Some((progress, preview));
            drop(state);
            self.shared.wake.notify_one();
        }
    }

    /// Asks the store about this job at once.
    pub(crate) fn ask(&self, job: JobId) {
        let lease = {
            let state = self.shared.lock();
            state.leases.get(&job).map(|held| held.lease.clone())
        };
        if let Some(lease) = lease {
            self.shared.renew(&lease);
        }
    }

    /// From now on the worker is like this.
    pub(crate) fn say(&self, status: Status, job_runs: bool, hurry: bool) {
        let mut state = self.shared.lock();
        state.hurry |= hurry || state.status.state != status.state;
        if job_runs && !state.job_runs {
            state.job_peak = 0;
        }
        state.status = status;
        state.job_runs = job_runs;
        state.meter.job_runs(job_runs);
        let hurry = state.hurry;
        drop(state);
        if hurry {
            self.shared.wake.notify_one();
        }
    }

    /// From now on the worker has these cards.
    pub(crate) fn show(&self, cards: Cards) {
        let mut state = self.shared.lock();
        state.cards = Some(cards);
        state.hurry = true;
        drop(state);
        self.shared.wake.notify_one();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.lock().ends = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // A keeper that panicked has said so on standard error already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment or one entry: a panic in between leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let Makings {
            lease, heartbeat, ..
        } = self.makings;
        let mut beat = Instant::now();
        let mut first = true;
        loop {
            let now = Instant::now();
            let mut state = self.lock();
            if state.ends {
                return;
            }
            let due: Vec<Lease> = state
                .leases
                .values()
                .filter(|held| now >= held.due && !held.look.lost)
                .map(|held| held.lease.clone())
                .collect();
            let news = state.take_news(now);
            let beats = first || state.hurry || now >= beat;
            if due.is_empty() && news.is_empty() && !beats {
                let wait = state
                    .next(now, lease)
                    .min(beat.saturating_duration_since(now));
                drop(
                    self.wake
                        .wait_timeout(state, wait.max(Duration::from_millis(1)))
                        .unwrap_or_else(PoisonError::into_inner),
                );
                continue;
            }
            state.hurry = false;
            drop(state);
            for lease in &due {
                self.renew(lease);
            }
            for (lease, progress, preview) in news {
                let now = (self.makings.clock)();
                let answer = self.makings.store.progress(&lease, progress, preview, now);
                self.heard(&lease, &answer);
            }
            if beats {
                self.beat();
                beat = Instant::now() + heartbeat;
                first = false;
            }
        }
    }

    fn renew(&self, lease: &Lease) {
        let now = (self.makings.clock)();
        let began = Instant::now();
        let answer = self.makings.store.renew(lease, self.makings.lease, now);
        let again = match answer {
            Ok(_) => self.makings.lease / 3,
            Err(_) => RENEW_AGAIN.min(self.makings.lease / 3),
        };
        if let Some(held) = self.lock().leases.get_mut(&lease.job) {
            held.due = began + again;
        }
        self.heard(lease, &answer);
    }

    fn heard(&self, lease: &Lease, answer: &lowtide_jobs::Result<Directive>) {
        let mut state = self.lock();
        let Some(held) = state.leases.get_mut(&lease.job) else {
            return;
        };
        if held.lease != *lease {
            return;
        }
        match answer {
            Ok(directive) => {
                held.look.directive.cancel |= directive.cancel;
                held.look.directive.pause = directive.pause;
            }
            Err(StoreError::LeaseLost { .. } | StoreError::NotFound { .. }) => {
                held.look.lost = true;
            }
            Err(error) => {
                // The lease may last until the store answers again.
                let text = format!("the queue did not take news of job {}: {error}", lease.job);
                self.makings
                    .log
                    .say(Level::Warn, text, json!({ "job": lease.job.to_string() }));
            }
        }
    }

    fn beat(&self) {
        let figures = Figures::read();
        let (mut status, cards) = {
            let mut state = self.lock();
            state.job_peak = state.job_peak.max(figures.allocated.0);
            let mut status = state.status.clone();
            status.memory.job_peak = state.job_peak;
            (status.utilisation, status.power_w) = state.meter.read(&figures);
            (status, state.cards.take())
        };
        fill(&mut status.memory, &figures);
        let text = |value: serde_json::Result<String>| value.expect("plain data has JSON");
        let heartbeat = Heartbeat {
            worker: self.makings.worker.clone(),
            ttl: self.makings.heartbeat * HEARTBEATS_MISSED_MAX,
            cards: cards
                .as_ref()
                .map(|cards| text(serde_json::to_string(cards))),
            status: text(serde_json::to_string(&status)),
        };
        let sent = self
            .makings
            .store
            .heartbeat(heartbeat, (self.makings.clock)());
        if let Err(error) = sent {
            let text = format!("the queue did not take the heartbeat: {error}");
            self.makings.log.say(Level::Warn, text, json!({}));
            // The cards were not read: they go along next time.
            let mut state = self.lock();
            state.cards = state.cards.take().or(cards);
        }
    }
}

impl State {
    fn new(threads: usize) -> State {
        State {
            leases: HashMap::new(),
            status: Status::default(),
            cards: None,
            hurry: false,
            job_runs: false,
            job_peak: 0,
            meter: Meter::new(threads),
            ends: false,
        }
    }

    fn take_news(&mut self, now: Instant) -> Vec<(Lease, Progress, Option<Preview>)> {
        let mut news = Vec::new();
        for held in self.leases.values_mut() {
            if now.duration_since(held.told) >= PROGRESS_EVERY
                && !held.look.lost
                && let Some((progress, preview)) = held.news.take()
            {
                held.told = now;
                news.push((held.lease.clone(), progress, preview));
            }
        }
        news
    }

    /// How long nothing has to be done for any lease.
    fn next(&self, now: Instant, lease: Duration) -> Duration {
        let wait = |held: &Held| {
            let renew = held.due.saturating_duration_since(now);
            match held.news {
                Some(_) => renew.min(PROGRESS_EVERY.saturating_sub(now.duration_since(held.told))),
                None => renew,
            }
        };
        let held = self.leases.values().filter(|held| !held.look.lost);
        held.map(wait).min().unwrap_or(lease)
    }
}

/// What the device itself tells.
fn fill(memory: &mut Memory, figures: &Figures) {
    let bytes = |bytes: Option<lowtide_core::Bytes>| bytes.map_or(0, |bytes| bytes.0);
    memory.allocated = figures.allocated.0;
    memory.reserved =
        bytes(figures.resident_own).max(figures.allocated.0.min(bytes(figures.resident)));
    memory.total = bytes(figures.total);
    memory.available = bytes(figures.available);
    memory.peak = memory.peak.max(figures.allocated.0);
}

/// What a worker says of itself before it knows anything.
pub(crate) fn starting(pid: u32, started: Moment) -> Status {
    Status {
        state: WorkerState::Starting,
        pid,
        started_ms: started.0,
        ..Status::default()
    }
}
