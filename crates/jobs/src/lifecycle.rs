//! A job's life, as arithmetic on its record: no clock, no disk. A store reads a record, applies one of these, and
//! writes it back within one transaction; each returns what to tell others, and changes nothing when it refuses.

use lowtide_core::job::{JobState, Moment, Priority, Retry, Setback, Setbacks};

use crate::error::{Lost, Result, StoreError, Unclaimable};
use crate::{
    Attempt, AttemptEnd, Directive, Happening, Holder, Job, Lease, Move, Outcome, Policy, Progress,
    SavedSession, Submission, WorkerId,
};

/// Longest reason kept of a failure, bytes: the end of a long one says least.
const REASON_LEN_MAX: usize = 4096;

/// What passing time did to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Nothing.
    Nothing,
    /// It was to begin earlier.
    TooLate(Happening),
    /// Its worker stopped renewing the lease.
    LeaseEnded(Happening),
}

impl Policy {
    /// The priority of a submission.
    pub fn priority_of(&self, submission: &Submission) -> Priority {
        let by_kind = || self.priority_by_kind.get(&submission.kind).copied();
        let wanted = submission.priority.or_else(by_kind).unwrap_or_default();
        let most = submission.quota.priority_max.unwrap_or(wanted);
        wanted.min(most)
    }
}

impl Job {
    /// The record of a job accepted now, as the `seq`th of its store.
    pub fn accepted(submission: Submission, priority: Priority, seq: u64, now: Moment) -> Job {
        Job {
            id: submission.id,
            seq,
            state: JobState::Queued,
            kind: submission.kind,
            model: submission.model,
            request: submission.request,
            hints: submission.hints,
            priority,
            turn: 0,
            owner: submission.owner,
            running_max: submission.quota.running_max,
            idempotency_key: submission.idempotency_key,
            webhook: submission.webhook,
            delivery: None,
            wishes: submission.wishes,
            submitted: now,
            started: None,
            finished: None,
            deadline: submission.deadline,
            start_by: submission.start_by,
            not_before: None,
            attempt: 0,
            setbacks: Setbacks::default(),
            history: Vec::new(),
            holder: None,
            cancel_requested: false,
            pause_requested: false,
            progress: None,
            session: None,
            outcome: None,
            error: None,
        }
    }

    /// Whether it may be leased now.
    ///
    /// # Errors
    /// `NotClaimable`, with the reason.
    pub fn check_claimable(&self, now: Moment) -> Result<()> {
        let no = |why| Err(StoreError::NotClaimable { job: self.id, why });
        if self.state != JobState::Queued {
            return no(Unclaimable::State { state: self.state });
        }
        if let Some(until) = self.not_before.filter(|&until| now < until) {
            return no(Unclaimable::TooEarly { until });
        }
        match self.missed(now) {
            Some(start_by) => no(Unclaimable::TooLate { start_by }),
            None => Ok(()),
        }
    }

    /// When it was to begin, where that passed and nothing was begun that could go on.
    fn missed(&self, now: Moment) -> Option<Moment> {
        let over = |&start_by: &Moment| now >= start_by && self.session.is_none();
        self.start_by.filter(over)
    }

    /// Leases it.
    ///
    /// # Errors
    /// As [`Job::check_claimable`].
    pub fn claim(&mut self, worker: &WorkerId, until: Moment, now: Moment) -> Result<Happening> {
        self.check_claimable(now)?;
        self.state = JobState::Running;
        self.attempt += 1;
        self.started = self.started.or(Some(now));
        self.not_before = None;
        self.error = None;
        self.holder = Some(Holder {
            worker: worker.clone(),
            until,
        });
        if self.history.len() == Job::HISTORY_LEN_MAX {
            self.history.remove(0);
        }
        self.history.push(Attempt {
            number: self.attempt,
            worker: worker.clone(),
            started: now,
            ended: None,
            end: None,
        });
        Ok(Happening::Claimed {
            worker: worker.clone(),
            attempt: self.attempt,
        })
    }

    /// The right of whoever has it.
    pub fn lease(&self) -> Option<Lease> {
        self.holder.as_ref().map(|holder| Lease {
            job: self.id,
            worker: holder.worker.clone(),
            attempt: self.attempt,
        })
    }

    /// Whether this lease still counts.
    ///
    /// # Errors
    /// `LeaseLost`, with the reason.
    pub fn check_lease(&self, lease: &Lease, now: Moment) -> Result<()> {
        let lost = |why| {
            Err(StoreError::LeaseLost {
                job: self.id,
                attempt: lease.attempt,
                why,
            })
        };
        match &self.holder {
            Some(holder) if self.attempt == lease.attempt && holder.worker == lease.worker => {
                if now < holder.until {
                    Ok(())
                } else {
                    lost(Lost::Expired {
                        until: holder.until,
                    })
                }
            }
            _ => lost(Lost::Superseded {
                state: self.state,
                attempt: self.attempt,
            }),
        }
    }

    /// What its worker should do.
    pub fn directive(&self) -> Directive {
        Directive {
            cancel: self.cancel_requested,
            pause: self.pause_requested,
        }
    }

    /// Makes the lease end then.
    ///
    /// # Errors
    /// `LeaseLost`.
    pub fn renew(&mut self, lease: &Lease, until: Moment, now: Moment) -> Result<()> {
        self.check_lease(lease, now)?;
        if let Some(holder) = &mut self.holder {
            holder.until = until;
        }
        Ok(())
    }

    /// Moves on.
    ///
    /// # Errors
    /// `LeaseLost`.
    pub fn progress(
        &mut self,
        lease: &Lease,
        progress: Progress,
        now: Moment,
    ) -> Result<Happening> {
        self.check_lease(lease, now)?;
        self.progress = Some(progress.clone());
        Ok(Happening::Progress(progress))
    }

    /// Notes where the session was written down.
    ///
    /// # Errors
    /// `LeaseLost`.
    pub fn checkpoint(&mut self, lease: &Lease, session: SavedSession, now: Moment) -> Result<()> {
        self.check_lease(lease, now)?;
        self.session = Some(session);
        Ok(())
    }

    /// Another one steps meanwhile. `None` where that was known.
    ///
    /// # Errors
    /// `LeaseLost`.
    pub fn park(&mut self, lease: &Lease, now: Moment) -> Result<Option<Happening>> {
        self.check_lease(lease, now)?;
        let before = std::mem::replace(&mut self.state, JobState::Parked);
        Ok((before != JobState::Parked).then_some(Happening::Parked))
    }

    /// It steps again. `None` where that was known.
    ///
    /// # Errors
    /// `LeaseLost`.
    pub fn unpark(&mut self, lease: &Lease, now: Moment) -> Result<Option<Happening>> {
        self.check_lease(lease, now)?;
        let before = std::mem::replace(&mut self.state, JobState::Running);
        Ok((before != JobState::Running).then_some(Happening::Unparked))
    }

    /// Goes back to the queue, from where it can go on.
    ///
    /// # Errors
    /// `LeaseLost`.
    pub fn give_back(
        &mut self,
        lease: &Lease,
        session: Option<SavedSession>,
        now: Moment,
    ) -> Result<Happening> {
        self.check_lease(lease, now)?;
        self.session = session.or_else(|| self.session.take());
        Ok(self.wait(AttemptEnd::GivenBack, Happening::GivenBack, now))
    }

    /// Has its result. `None` where it already had it from this lease.
    ///
    /// # Errors
    /// `LeaseLost`.
    pub fn complete(
        &mut self,
        lease: &Lease,
        outcome: Outcome,
        now: Moment,
    ) -> Result<Option<Happening>> {
        let same_attempt = self.history.last().is_some_and(|last| {
            last.number == lease.attempt
                && last.worker == lease.worker
                && last.end == Some(AttemptEnd::Done)
        });
        if same_attempt && self.outcome.as_ref() == Some(&outcome) {
            return Ok(None);
        }
        self.check_lease(lease, now)?;
        self.outcome = Some(outcome);
        self.finish(Some(AttemptEnd::Done), JobState::Done, now);
        Ok(Some(Happening::Done))
    }

    /// The attempt ends with an error, which another attempt may or may not mend.
    ///
    /// # Errors
    /// `LeaseLost`.
    pub fn fail(
        &mut self,
        lease: &Lease,
        (reason, retryable): (&str, bool),
        policy: &Policy,
        now: Moment,
    ) -> Result<Happening> {
        self.check_lease(lease, now)?;
        let reason = clipped(reason);
        let setback = match retryable {
            true => Setback::Transient,
            false => Setback::Permanent,
        };
        let end = AttemptEnd::Failed {
            reason: reason.clone(),
            retryable,
        };
        // A session that led to an error may be the error.
        self.session = None;
        Ok(self.set_back(setback, (end, reason), policy, now))
    }

    /// The worker has stopped, as it was told to.
    ///
    /// # Errors
    /// `LeaseLost`, `WrongState`.
    pub fn stopped(&mut self, lease: &Lease, now: Moment) -> Result<Happening> {
        self.check_lease(lease, now)?;
        if !self.cancel_requested {
            return Err(self.wrong_state("stop"));
        }
        self.finish(Some(AttemptEnd::Cancelled), JobState::Cancelled, now);
        Ok(Happening::Cancelled)
    }

    /// Nobody wants it any more. `None` where that was known.
    ///
    /// # Errors
    /// `WrongState`.
    pub fn cancel(&mut self, now: Moment) -> Result<Option<Happening>> {
        match self.state {
            JobState::Cancelled => Ok(None),
            JobState::Running | JobState::Parked => {
                let known = std::mem::replace(&mut self.cancel_requested, true);
                Ok((!known).then_some(Happening::CancelRequested))
            }
            JobState::Queued | JobState::Paused => {
                self.finish(None, JobState::Cancelled, now);
                Ok(Some(Happening::Cancelled))
            }
            JobState::Done | JobState::Failed => Err(self.wrong_state("cancel")),
        }
    }

    /// Waits for a person. `None` where it did.
    ///
    /// # Errors
    /// `WrongState`.
    pub fn pause(&mut self) -> Result<Option<Happening>> {
        match self.state {
            JobState::Paused => Ok(None),
            JobState::Running | JobState::Parked => {
                let known = std::mem::replace(&mut self.pause_requested, true);
                Ok((!known).then_some(Happening::Paused { held: true }))
            }
            JobState::Queued => {
                self.state = JobState::Paused;
                Ok(Some(Happening::Paused { held: false }))
            }
            JobState::Done | JobState::Failed | JobState::Cancelled => {
                Err(self.wrong_state("pause"))
            }
        }
    }

    /// Goes on.
    ///
    /// # Errors
    /// `WrongState`.
    pub fn resume(&mut self) -> Result<Happening> {
        match self.state {
            JobState::Paused => self.state = JobState::Queued,
            JobState::Running | JobState::Parked if self.pause_requested => {
                self.pause_requested = false;
            }
            _ => return Err(self.wrong_state("resume")),
        }
        Ok(Happening::Resumed)
    }

    /// Takes another place. `front`: the smallest turn of the priority it goes to the front of.
    ///
    /// # Errors
    /// `WrongState`.
    pub fn reorder(&mut self, to: Move, front: i64) -> Result<Happening> {
        if !is_waiting(self.state) {
            return Err(self.wrong_state("move"));
        }
        match to {
            Move::To(priority) => (self.priority, self.turn) = (priority, 0),
            Move::ToFront => self.turn = front.saturating_sub(1),
        }
        Ok(Happening::Moved {
            priority: self.priority,
        })
    }

    /// Goes through the queue again.
    ///
    /// # Errors
    /// `WrongState`.
    pub fn requeue(&mut self) -> Result<Happening> {
        match self.state {
            JobState::Failed => {
                self.state = JobState::Queued;
                self.setbacks = Setbacks::default();
                self.finished = None;
                self.error = None;
                self.progress = None;
                // There will be another end, which is told anew.
                self.delivery = None;
                // One that passed would end it at once.
                self.start_by = None;
                Ok(Happening::Requeued)
            }
            _ => Err(self.wrong_state("requeue")),
        }
    }

    /// Lets time pass.
    pub fn pass_time(&mut self, policy: &Policy, now: Moment) -> Passed {
        if let Some(holder) = &self.holder {
            if now < holder.until {
                return Passed::Nothing;
            }
            let reason = format!("worker {} stopped renewing its lease", holder.worker);
            return Passed::LeaseEnded(self.lose(reason, policy, now));
        }
        match self.missed(now) {
            Some(start_by) if self.state == JobState::Queued => {
                let late_ms = now.since(start_by).as_millis();
                let reason = format!("it was to begin {late_ms} ms ago");
                self.error = Some(reason.clone());
                self.finish(None, JobState::Failed, now);
                Passed::TooLate(Happening::Failed { reason })
            }
            _ => Passed::Nothing,
        }
    }

    /// Its worker is known to have died: nobody waits for the end of the lease. `None` where another one has it.
    pub fn worker_died(
        &mut self,
        worker: &WorkerId,
        policy: &Policy,
        now: Moment,
    ) -> Option<Happening> {
        let holder = self.holder.as_ref()?;
        if holder.worker != *worker {
            return None;
        }
        let reason = format!("worker {worker} died");
        Some(self.lose(reason, policy, now))
    }

    fn lose(&mut self, reason: String, policy: &Policy, now: Moment) -> Happening {
        let why = (AttemptEnd::LeaseExpired, reason);
        self.set_back(Setback::Lost, why, policy, now)
    }

    fn wrong_state(&self, verb: &'static str) -> StoreError {
        StoreError::WrongState {
            job: self.id,
            state: self.state,
            verb,
        }
    }

    /// Ends an attempt that another one may follow.
    fn set_back(
        &mut self,
        setback: Setback,
        (end, reason): (AttemptEnd, String),
        policy: &Policy,
        now: Moment,
    ) -> Happening {
        self.setbacks = self.setbacks.and(setback);
        self.error = Some(reason.clone());
        // The low bits of an id are random, and the attempt makes each wait another one.
        let random = (self.id.0 as u64) ^ u64::from(self.attempt);
        match policy.retry.after(setback, self.setbacks, now, random) {
            Retry::GiveUp if self.cancel_requested => self.wait(end, Happening::Cancelled, now),
            Retry::GiveUp => {
                self.finish(Some(end), JobState::Failed, now);
                Happening::Failed { reason }
            }
            Retry::From(until) => {
                self.not_before = Some(until);
                self.wait(end, Happening::Delayed { reason, until }, now)
            }
        }
    }

    /// Ends the attempt; the job is queued then, unless a person wanted something else meanwhile.
    fn wait(&mut self, end: AttemptEnd, happening: Happening, now: Moment) -> Happening {
        if self.cancel_requested {
            self.finish(Some(end), JobState::Cancelled, now);
            return Happening::Cancelled;
        }
        self.end_attempt(end, now);
        if std::mem::take(&mut self.pause_requested) {
            self.state = JobState::Paused;
            return Happening::Paused { held: false };
        }
        self.state = JobState::Queued;
        happening
    }

    fn finish(&mut self, end: Option<AttemptEnd>, state: JobState, now: Moment) {
        if let Some(end) = end {
            self.end_attempt(end, now);
        }
        self.state = state;
        self.finished = Some(now);
        self.not_before = None;
        self.session = None;
        self.cancel_requested = false;
        self.pause_requested = false;
    }

    fn end_attempt(&mut self, end: AttemptEnd, now: Moment) {
        self.holder = None;
        if let Some(last) = self.history.last_mut() {
            last.ended = Some(now);
            last.end = Some(end);
        }
    }
}

/// Whether a job in this state takes a place in the bounded queue.
pub(crate) fn is_waiting(state: JobState) -> bool {
    !state.is_leased() && !state.is_final()
}

fn clipped(reason: &str) -> String {
    let end = (0..=REASON_LEN_MAX.min(reason.len()))
        .rev()
        .find(|&end| reason.is_char_boundary(end));
    reason[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowtide_core::job::JobId;
    use std::time::Duration;

    #[test]
    fn the_history_keeps_the_latest() {
        let id = JobId::new(Moment(0), 1);
        let submission = Submission::new(id, "kind", "model", "{}");
        let mut job = Job::accepted(submission, Priority::Normal, 1, Moment(0));
        let worker: WorkerId = "w".parse().unwrap();
        for turn in 0..50 {
            let now = Moment(turn);
            job.claim(&worker, now + Duration::from_millis(10), now)
                .unwrap();
            let lease = job.lease().unwrap();
            job.give_back(&lease, None, now).unwrap();
        }
        assert_eq!(job.history.len(), Job::HISTORY_LEN_MAX);
        assert_eq!(job.history.last().unwrap().number, 50);
        assert_eq!(
            (job.setbacks, job.state),
            (Setbacks::default(), JobState::Queued)
        );
    }

    #[test]
    fn a_long_reason_is_cut_between_letters() {
        assert_eq!(clipped("short"), "short");
        let cut = clipped(&"é".repeat(REASON_LEN_MAX));
        assert!(cut.len() <= REASON_LEN_MAX && cut.ends_with('é'));
    }
}
