//! What is to be told soon: which jobs of this server are listened to, what happened to them, and who is being called.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lowtide_core::job::JobId;
use lowtide_jobs::{Happening, Webhook};

use super::body::Event;

/// Jobs whose beginning and progress are told, of those this server accepted; of further ones only the end is.
const WATCHED_MAX: usize = 20_000;

/// How often the progress of one job is told at most, as Cog does.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// A job that is listened to.
#[derive(Debug)]
struct Watched {
    webhook: Webhook,
    /// Whether its beginning was told or is due.
    began: bool,
    start_due: bool,
    progress_due: bool,
    /// When it was told of last.
    told: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    watched: HashMap<JobId, Watched>,
    /// Those of them of which something is due.
    due: BTreeSet<JobId>,
    /// Jobs that somebody is being told of, so that a job's messages come one after the other.
    flying: HashSet<JobId>,
    /// Calls under way.
    calls: usize,
    /// Something changed since the last look.
    stirred: bool,
}

/// Something to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct News {
    pub(super) job: JobId,
    pub(super) webhook: Webhook,
    pub(super) event: Event,
}

/// See the module. A std mutex: it is held for microseconds and never across a wait for anybody else.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    state: Mutex<State>,
    /// Rung when there may be something to do, and when a call ended.
    bell: Condvar,
    told: [AtomicU64; 3],
    failed: [AtomicU64; 3],
    pub(super) given_up: AtomicU64,
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to a job that is about to be submitted; whether anything of it but its end is to be told.
    pub(crate) fn watch(&self, job: JobId, webhook: &Webhook) -> bool {
        let mut state = self.state();
        let wanted = webhook.start || webhook.progress;
        if !wanted || state.watched.len() >= WATCHED_MAX {
            return false;
        }
        let watched = Watched {
            webhook: webhook.clone(),
            began: false,
            start_due: false,
            progress_due: false,
            told: None,
        };
        state.watched.insert(job, watched);
        true
    }

    /// Listens to a job no more.
    pub(crate) fn forget(&self, job: JobId) {
        let mut state = self.state();
        state.watched.remove(&job);
        state.due.remove(&job);
    }

    /// Whether any job is listened to.
    pub(crate) fn listens(&self) -> bool {
        !self.state().watched.is_empty()
    }

    /// Something happened to a job.
    pub(crate) fn heard(&self, job: JobId, what: &Happening) {
        let mut state = self.state();
        let Some(watched) = state.watched.get_mut(&job) else {
            return;
        };
        let webhook = &watched.webhook;
        match what {
            Happening::Claimed { .. } if webhook.start && !watched.began => {
                watched.began = true;
                watched.start_due = true;
            }
            Happening::Progress(_) if webhook.progress => watched.progress_due = true,
            Happening::Done | Happening::Failed { .. } | Happening::Cancelled => {
                // A beginning that is not told yet is told by the end.
                state.watched.remove(&job);
                state.due.remove(&job);
                return;
            }
            _ => return,
        }
        state.due.insert(job);
        state.stirred = true;
        self.bell.notify_all();
    }

    /// Something changed in the store.
    pub(crate) fn stir(&self) {
        self.state().stirred = true;
        self.bell.notify_all();
    }

    /// Takes what is due, and counts it as a call; else when something will be.
    pub(super) fn take(&self, calls_max: usize) -> Result<News, Option<Instant>> {
        let now = Instant::now();
        let mut state = self.state();
        if state.calls >= calls_max {
            return Err(None);
        }
        let mut next: Option<Instant> = None;
        let mut found = None;
        for job in &state.due {
            // It is rung again when that call ended.
            if state.flying.contains(job) {
                continue;
            }
            let Some(watched) = state.watched.get(job) else {
                continue;
            };
            let due = match watched.told {
                Some(told) if !watched.start_due => told + PROGRESS_EVERY,
                _ => now,
            };
            if due <= now {
                found = Some(*job);
                break;
            }
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        let Some(job) = found else {
            return Err(next);
        };
        let watched = state
            .watched
            .get_mut(&job)
            .expect("it was there a line ago");
        let event = match std::mem::take(&mut watched.start_due) {
            true => Event::Start,
            false => {
                watched.progress_due = false;
                Event::Progress
            }
        };
        watched.told = Some(now);
        let (webhook, more) = (watched.webhook.clone(), watched.progress_due);
        if !more {
            state.due.remove(&job);
        }
        state.flying.insert(job);
        state.calls += 1;
        Ok(News {
            job,
            webhook,
            event,
        })
    }

    /// How many more calls there may be.
    pub(super) fn free(&self, calls_max: usize) -> usize {
        calls_max.saturating_sub(self.state().calls)
    }

    /// A call begins about the end of a job. Nothing else is told of it any more.
    pub(super) fn begin_end(&self, job: JobId) {
        let mut state = self.state();
        state.calls += 1;
        state.watched.remove(&job);
        state.due.remove(&job);
    }

    /// Waits until nobody is being told of this job, and keeps others from it; `false` when that takes too long.
    pub(super) fn land(&self, job: JobId, patience: Duration) -> bool {
        let state = self.state();
        let busy = |state: &mut State| state.flying.contains(&job);
        let waited = self.bell.wait_timeout_while(state, patience, busy);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out() && state.flying.insert(job)
    }

    /// A call ended.
    pub(super) fn end(&self, job: JobId) {
        let mut state = self.state();
        state.calls -= 1;
        state.flying.remove(&job);
        state.stirred = true;
        self.bell.notify_all();
    }

    /// Waits until there may be something to do, or so long.
    pub(super) fn wait(&self, time: Duration) {
        let state = self.state();
        let quiet = |state: &mut State| !state.stirred;
        let waited = self.bell.wait_timeout_while(state, time, quiet);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.stirred = false;
    }

    /// Waits until no call is under way, or so long.
    pub(super) fn settle(&self, patience: Duration) {
        let state = self.state();
        let busy = |state: &mut State| state.calls > 0;
        // Whoever is still being called is told again later.
        drop(self.bell.wait_timeout_while(state, patience, busy));
    }

    /// Counts what came of a call.
    pub(super) fn count(&self, event: Event, told: bool) {
        let counters = if told { &self.told } else { &self.failed };
        counters[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What came of calls since the start: event, result, how many.
    pub(crate) fn counts(&self) -> Vec<(&'static str, &'static str, u64)> {
        let of = |event: Event| {
            [("told", &self.told), ("failed", &self.failed)].map(|(result, counters)| {
                let count = counters[event as usize].load(Ordering::Relaxed);
                (event.name(), result, count)
            })
        };
        Event::ALL.into_iter().flat_map(of).collect()
    }

    /// Ends that were given up since the start.
    pub(crate) fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowtide_jobs::Progress;

    fn webhook() -> Webhook {
        Webhook {
            url: "https://example.org/".to_owned(),
            start: true,
            progress: true,
            completed: true,
        }
    }

    fn progress() -> Happening {
        Happening::Progress(Progress {
            phase: "denoise".to_owned(),
            step: 1,
            steps: 2,
            eta_ms: None,
        })
    }

    #[test]
    fn a_jobs_messages_come_one_after_the_other_and_not_too_often() {
        let desk = Desk::default();
        let job = JobId(1);
        assert!(desk.watch(job, &webhook()) && desk.listens());
        desk.heard(JobId(2), &progress());
        assert_eq!(desk.take(9), Err(None), "nothing of others");
        let claimed = Happening::Claimed {
            worker: "w".parse().unwrap(),
            attempt: 1,
        };
        desk.heard(job, &progress());
        desk.heard(job, &claimed);
        assert_eq!(desk.take(0), Err(None), "as many calls as may");
        assert_eq!(desk.take(9).unwrap().event, Event::Start);
        assert_eq!(desk.take(9), Err(None), "that call is under way");
        desk.end(job);
        let later = desk.take(9).unwrap_err();
        assert!(later.is_some_and(|at| at > Instant::now()), "not so soon");
        desk.heard(job, &claimed);
        assert!(desk.take(9).is_err(), "it begins once");
        desk.heard(job, &Happening::Done);
        assert!(!desk.listens());
        assert_eq!(desk.take(9), Err(None), "the end tells everything");
    }

    #[test]
    fn the_end_waits_for_what_is_being_told() {
        let desk = Desk::default();
        let job = JobId(1);
        desk.watch(job, &webhook());
        desk.heard(job, &progress());
        assert_eq!(desk.take(9).unwrap().event, Event::Progress);
        desk.begin_end(job);
        assert!(!desk.land(job, Duration::from_millis(1)));
        desk.end(job);
        assert!(desk.land(job, Duration::from_millis(1)));
        desk.end(job);
        assert_eq!(desk.free(3), 3);
    }
}
