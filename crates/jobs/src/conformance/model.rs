//! A store as simple as can be: what a real one must agree with. Written from the promises, not from a store's code.

use std::collections::BTreeMap;
use std::time::Duration;

use lowtide_core::job::{JobState, Moment};

use super::{LEASE, strict};

/// What one operation answered, as far as it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It went well; the job is in this state.
    Ok(JobState),
    /// The lease does not count any more.
    Lost,
    /// Not now, or not in this state.
    No,
    /// There is no room.
    Full,
    /// No such job.
    Unknown,
}

/// What a model knows of a job.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) state: JobState,
    /// Attempts begun.
    pub(super) attempt: u32,
    /// Until when the latest has it.
    until: Option<Moment>,
    cancel: bool,
    pause: bool,
    failures: u32,
    losses: u32,
    /// Earliest and latest moment that a wait may end.
    wait: Option<(Moment, Moment)>,
    /// Times it was done.
    pub(super) done: u32,
    /// The attempt that did it.
    done_by: Option<u32>,
}

/// All jobs, by number.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) jobs: BTreeMap<u64, Entry>,
    pub(super) waiting_max: usize,
}

impl Model {
    pub(super) fn submit(&mut self, number: u64) -> Answer {
        if let Some(entry) = self.jobs.get(&number) {
            return Answer::Ok(entry.state);
        }
        if self.waiting() >= self.waiting_max {
            return Answer::Full;
        }
        let entry = Entry {
            state: JobState::Queued,
            attempt: 0,
            until: None,
            cancel: false,
            pause: false,
            failures: 0,
            losses: 0,
            wait: None,
            done: 0,
            done_by: None,
        };
        self.jobs.insert(number, entry);
        Answer::Ok(JobState::Queued)
    }

    fn waiting(&self) -> usize {
        let waits = |entry: &&Entry| matches!(entry.state, JobState::Queued | JobState::Paused);
        self.jobs.values().filter(waits).count()
    }

    /// What a claim must answer; `None` where the wait's end is a matter of chance.
    pub(super) fn claimable(&self, number: u64, now: Moment) -> Option<Answer> {
        let Some(entry) = self.jobs.get(&number) else {
            return Some(Answer::Unknown);
        };
        if entry.state != JobState::Queued {
            return Some(Answer::No);
        }
        match entry.wait {
            Some((earliest, _)) if now < earliest => Some(Answer::No),
            Some((_, latest)) if now < latest => None,
            _ => Some(Answer::Ok(JobState::Running)),
        }
    }

    pub(super) fn claimed(&mut self, number: u64, now: Moment) {
        let entry = self.jobs.get_mut(&number).expect("it was claimable");
        entry.state = JobState::Running;
        entry.attempt += 1;
        entry.until = Some(now + LEASE);
        entry.wait = None;
    }

    /// Something a worker says, with the lease of an attempt.
    pub(super) fn say(&mut self, (number, attempt): (u64, u32), word: Word, now: Moment) -> Answer {
        let Some(entry) = self.jobs.get_mut(&number) else {
            return Answer::Unknown;
        };
        if word == Word::Complete && entry.done_by == Some(attempt) {
            return Answer::Ok(entry.state);
        }
        if attempt != entry.attempt || entry.until.is_none_or(|until| now >= until) {
            return Answer::Lost;
        }
        match word {
            Word::Renew => entry.until = Some(now + LEASE),
            Word::Park => entry.state = JobState::Parked,
            Word::Unpark => entry.state = JobState::Running,
            Word::Stopped if !entry.cancel => return Answer::No,
            Word::Stopped => entry.over(JobState::Cancelled),
            Word::GiveBack => entry.back(None),
            Word::Complete => {
                entry.done += 1;
                entry.done_by = Some(attempt);
                entry.over(JobState::Done);
            }
            Word::FailForGood => {
                entry.failures += 1;
                let end = if entry.cancel {
                    JobState::Cancelled
                } else {
                    JobState::Failed
                };
                entry.over(end);
            }
            Word::Fail => {
                entry.failures += 1;
                let (count, most) = (entry.failures, strict().retry.failures_max);
                entry.set_back(count, most, now);
            }
        }
        Answer::Ok(entry.state)
    }

    /// Something a person says.
    pub(super) fn order(&mut self, number: u64, hand: Hand) -> Answer {
        let waiting = self.waiting();
        let Some(entry) = self.jobs.get_mut(&number) else {
            return Answer::Unknown;
        };
        let leased = entry.until.is_some();
        let waits = matches!(entry.state, JobState::Queued | JobState::Paused);
        match hand {
            Hand::Cancel if leased => entry.cancel = true,
            Hand::Cancel if waits => entry.over(JobState::Cancelled),
            Hand::Cancel if entry.state == JobState::Cancelled => {}
            Hand::Pause if leased => entry.pause = true,
            Hand::Pause if waits => entry.state = JobState::Paused,
            Hand::Resume if leased && entry.pause => entry.pause = false,
            Hand::Resume if entry.state == JobState::Paused => entry.state = JobState::Queued,
            Hand::Requeue if entry.state == JobState::Failed => {
                if waiting >= self.waiting_max {
                    return Answer::Full;
                }
                entry.state = JobState::Queued;
                (entry.failures, entry.losses) = (0, 0);
            }
            _ => return Answer::No,
        }
        Answer::Ok(entry.state)
    }

    pub(super) fn sweep(&mut self, now: Moment) {
        for entry in self.jobs.values_mut() {
            if entry.until.is_some_and(|until| now >= until) {
                entry.losses += 1;
                let (count, most) = (entry.losses, strict().retry.losses_max);
                entry.set_back(count, most, now);
            }
        }
    }
}

impl Entry {
    fn over(&mut self, state: JobState) {
        (self.state, self.until, self.wait) = (state, None, None);
        (self.cancel, self.pause) = (false, false);
    }

    fn back(&mut self, wait: Option<(Moment, Moment)>) {
        if self.cancel {
            return self.over(JobState::Cancelled);
        }
        self.until = None;
        self.wait = wait;
        let paused = std::mem::take(&mut self.pause);
        self.state = if paused {
            JobState::Paused
        } else {
            JobState::Queued
        };
    }

    fn set_back(&mut self, count: u32, most: u32, now: Moment) {
        if count >= most {
            let end = if self.cancel {
                JobState::Cancelled
            } else {
                JobState::Failed
            };
            return self.over(end);
        }
        let full = Duration::from_secs(4 << (count - 1)).min(Duration::from_secs(60));
        self.back(Some((now + full / 4 * 3, now + full)));
    }
}

/// What a worker can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Renew,
    Park,
    Unpark,
    GiveBack,
    Complete,
    Fail,
    FailForGood,
    Stopped,
}

/// What a person can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hand {
    Cancel,
    Pause,
    Resume,
    Requeue,
}
