//! What changes jobs, each within a transaction somebody else began.

mod past;
mod submit;

use std::time::Duration;

use lowtide_core::job::{JobId, JobState, Moment};
use rusqlite::{Connection, OptionalExtension};

use super::access;
use super::fault::{Fault, Sql};
use super::rows::{self, At, Col, Id, Json};
use crate::accept::{MINUTE_MS, fits, millis};
use crate::{
    Claimed, Directive, Happening, Job, Lease, Move, Outcome, Policy, Preview, Progress,
    SavedSession, StoreError, Unclaimable, WorkerId,
};

/// A transaction, and the rules.
pub(super) struct Tx<'a> {
    /// In the transaction.
    pub(super) connection: &'a Connection,
    /// The rules.
    pub(super) policy: &'a Policy,
}

/// A column of the table of minutes.
#[derive(Clone, Copy)]
enum Counter {
    Submitted,
    Started,
    Done,
    Failed,
    Cancelled,
}

impl Counter {
    fn column(self) -> &'static str {
        match self {
            Counter::Submitted => "submitted",
            Counter::Started => "started",
            Counter::Done => "done",
            Counter::Failed => "failed",
            Counter::Cancelled => "cancelled",
        }
    }
}

impl Tx<'_> {
    /// Leases a job.
    pub(super) fn claim(
        &self,
        (job, worker): (JobId, &WorkerId),
        lease_for: Duration,
        now: Moment,
    ) -> Sql<Claimed> {
        let mut job = self.get(job)?;
        if held(self.connection)? {
            let (job, why) = (job.id, Unclaimable::QueueHeld);
            return Err(StoreError::NotClaimable { job, why }.into());
        }
        if let (Some(owner), Some(most)) = (&job.owner, job.running_max) {
            let running = access::running(self.connection, owner)?;
            if running >= most {
                let (job, why) = (job.id, Unclaimable::OwnerBusy { running });
                return Err(StoreError::NotClaimable { job, why }.into());
            }
        }
        let first = job.started.is_none();
        let happening = job.claim(worker, now + lease_for, now)?;
        self.save(&job, Some(happening), now)?;
        let waited = if first {
            millis(now.since(job.submitted))
        } else {
            0
        };
        self.count(Counter::Started, (waited, 0), now)?;
        self.serve(job.owner.as_deref(), now)?;
        rows::complete(self.connection, &mut job)?;
        let lease = job.lease().expect("it was leased a moment ago");
        Ok(Claimed { lease, job })
    }

    /// Makes a lease longer.
    pub(super) fn renew(&self, lease: &Lease, lease_for: Duration, now: Moment) -> Sql<Directive> {
        let mut job = self.get(lease.job)?;
        job.renew(lease, now + lease_for, now)?;
        self.save(&job, None, now)?;
        Ok(job.directive())
    }

    /// Says how far it is.
    pub(super) fn progress(
        &self,
        lease: &Lease,
        (progress, preview): (&Progress, Option<&Preview>),
        now: Moment,
    ) -> Sql<Directive> {
        let mut job = self.get(lease.job)?;
        let happening = job.progress(lease, progress.clone(), now)?;
        self.save(&job, Some(happening), now)?;
        if let Some(preview) = preview {
            let limit = self.policy.preview_max;
            fits("preview", preview.content.len(), limit)?;
            let mut statement = self
                .connection
                .prepare_cached("INSERT OR REPLACE INTO previews VALUES (?1, ?2, ?3)")?;
            statement.execute((job.seq, &preview.media_type, &preview.content))?;
        }
        Ok(job.directive())
    }

    /// Notes where its session is.
    pub(super) fn checkpoint(
        &self,
        lease: &Lease,
        session: &SavedSession,
        now: Moment,
    ) -> Sql<Directive> {
        let mut job = self.get(lease.job)?;
        job.checkpoint(lease, session.clone(), now)?;
        self.save(&job, None, now)?;
        Ok(job.directive())
    }

    /// Steps, or lets another one step.
    pub(super) fn park(&self, lease: &Lease, park: bool, now: Moment) -> Sql<Directive> {
        let mut job = self.get(lease.job)?;
        let happening = match park {
            true => job.park(lease, now)?,
            false => job.unpark(lease, now)?,
        };
        self.save(&job, happening, now)?;
        Ok(job.directive())
    }

    /// Goes back.
    pub(super) fn give_back(
        &self,
        lease: &Lease,
        session: Option<SavedSession>,
        now: Moment,
    ) -> Sql<JobState> {
        let mut job = self.get(lease.job)?;
        let happening = job.give_back(lease, session, now)?;
        self.finish(&job, happening, now)
    }

    /// Has its result.
    pub(super) fn complete(&self, lease: &Lease, outcome: &Outcome, now: Moment) -> Sql<()> {
        let report = outcome.report.as_deref().unwrap_or_default();
        fits("report", report.len(), self.policy.json_max)?;
        let mut job = self.get(lease.job)?;
        let Some(happening) = job.complete(lease, outcome.clone(), now)? else {
            return Ok(());
        };
        let mut statement = self
            .connection
            .prepare_cached("INSERT INTO artifacts VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for artifact in &outcome.artifacts {
            statement.execute((
                artifact.id,
                job.seq,
                &artifact.media_type,
                i64::try_from(artifact.bytes).unwrap_or(i64::MAX),
                &artifact.sha256,
            ))?;
        }
        self.finish(&job, happening, now).map(|_| ())
    }

    /// Ends with an error.
    pub(super) fn fail(
        &self,
        lease: &Lease,
        (reason, retryable): (&str, bool),
        now: Moment,
    ) -> Sql<JobState> {
        let mut job = self.get(lease.job)?;
        let happening = job.fail(lease, (reason, retryable), self.policy, now)?;
        self.finish(&job, happening, now)
    }

    /// Stopped, as told.
    pub(super) fn stopped(&self, lease: &Lease, now: Moment) -> Sql<()> {
        let mut job = self.get(lease.job)?;
        let happening = job.stopped(lease, now)?;
        self.finish(&job, happening, now).map(|_| ())
    }

    /// No longer wanted.
    pub(super) fn cancel(&self, job: JobId, now: Moment) -> Sql<JobState> {
        let mut job = self.get(job)?;
        match job.cancel(now)? {
            Some(happening) => self.finish(&job, happening, now),
            None => Ok(job.state),
        }
    }

    /// Waits for a person, or no longer.
    pub(super) fn pause(&self, job: JobId, pause: bool, now: Moment) -> Sql<JobState> {
        let mut job = self.get(job)?;
        let happening = match pause {
            true => job.pause()?,
            false => Some(job.resume()?),
        };
        self.save(&job, happening, now)?;
        Ok(job.state)
    }

    /// Another place.
    pub(super) fn reorder(&self, job: JobId, to: Move, now: Moment) -> Sql<()> {
        let mut job = self.get(job)?;
        let mut statement = self.connection.prepare_cached(
            "SELECT turn FROM jobs WHERE state = 0 AND priority = ?1 ORDER BY turn LIMIT 1",
        )?;
        let front: Option<i64> = statement
            .query_row([Col(job.priority)], |row| row.get(0))
            .optional()?;
        let happening = job.reorder(to, front.unwrap_or(0).min(0))?;
        self.save(&job, Some(happening), now)
    }

    /// Through the queue again.
    pub(super) fn requeue(&self, job: JobId, now: Moment) -> Sql<()> {
        let mut job = self.get(job)?;
        let happening = job.requeue()?;
        self.check_room(1, now)?;
        self.save(&job, Some(happening), now)
    }

    /// Holds the queue.
    pub(super) fn hold(&self, held: bool, now: Moment) -> Sql<()> {
        let mut statement = self
            .connection
            .prepare_cached("INSERT OR REPLACE INTO settings VALUES ('held', ?1)")?;
        statement.execute([held])?;
        self.log(None, &Happening::QueueHeld { held }, now)
    }

    fn get(&self, job: JobId) -> Sql<Job> {
        rows::find(self.connection, job)?
            .ok_or_else(|| Fault::Refused(StoreError::NotFound { job }))
    }

    /// Writes a job and what happened to it.
    fn save(&self, job: &Job, happening: Option<Happening>, now: Moment) -> Sql<()> {
        rows::update(self.connection, job)?;
        match happening {
            Some(happening) => self.log(Some(job.id), &happening, now),
            None => Ok(()),
        }
    }

    /// As [`Tx::save`], and what has to be done where the job is over.
    fn finish(&self, job: &Job, happening: Happening, now: Moment) -> Sql<JobState> {
        self.save(job, Some(happening), now)?;
        let counter = match job.state {
            JobState::Done => Counter::Done,
            JobState::Failed => Counter::Failed,
            JobState::Cancelled => Counter::Cancelled,
            JobState::Queued | JobState::Running | JobState::Parked | JobState::Paused => {
                return Ok(job.state);
            }
        };
        let began = job.history.last().map_or(now, |attempt| attempt.started);
        let ran = match job.state {
            JobState::Done => millis(now.since(began)),
            _ => 0,
        };
        self.count(counter, (0, ran), now)?;
        let files = job
            .outcome
            .as_ref()
            .map_or(0, |outcome| outcome.artifacts.len());
        let work = (files as u64, job.worked_ms());
        self.charge(job.owner.as_deref(), counter.column(), work)?;
        if job.calls() {
            self.owe_call(job.seq, now)?;
        }
        let mut statement = self
            .connection
            .prepare_cached("DELETE FROM previews WHERE seq = ?1")?;
        statement.execute([job.seq])?;
        Ok(job.state)
    }

    fn log(&self, job: Option<JobId>, happening: &Happening, now: Moment) -> Sql<()> {
        let mut statement = self
            .connection
            .prepare_cached("INSERT INTO events (at, job, what) VALUES (?1, ?2, ?3)")?;
        statement.execute((At(now), job.map(Id), Json(happening)))?;
        Ok(())
    }

    fn count(&self, counter: Counter, (waited_ms, ran_ms): (u64, u64), now: Moment) -> Sql<()> {
        let column = counter.column();
        let mut statement = self.connection.prepare_cached(&format!(
            "INSERT INTO minutes (minute, {column}, waited_ms, ran_ms) VALUES (?1, 1, ?2, ?3)
             ON CONFLICT DO UPDATE SET {column} = {column} + 1, waited_ms = waited_ms + ?2, ran_ms = ran_ms + ?3"
        ))?;
        let column = |number: u64| i64::try_from(number).unwrap_or(i64::MAX / 2);
        statement.execute((column(now.0 / MINUTE_MS), column(waited_ms), column(ran_ms)))?;
        Ok(())
    }
}

/// Whether somebody holds the queue.
pub(super) fn held(connection: &Connection) -> Sql<bool> {
    let mut statement =
        connection.prepare_cached("SELECT value FROM settings WHERE name = 'held'")?;
    Ok(statement
        .query_row([], |row| row.get(0))
        .optional()?
        .unwrap_or(false))
}
