//! Accepting jobs.

use lowtide_core::job::Moment;
use rusqlite::OptionalExtension;

use super::{Counter, Tx};
use crate::sqlite::access;
use crate::sqlite::fault::Sql;
use crate::sqlite::rows::{self, At, Col};
use crate::{Accepted, Clash, Happening, Job, StoreError, Submission};

/// How many of the latest finished jobs tell how fast the queue empties.
const RECENT: u32 = 32;

impl Tx<'_> {
    /// Accepts all or none.
    pub(in crate::sqlite) fn submit(
        &self,
        submissions: &[Submission],
        now: Moment,
    ) -> Sql<Vec<Accepted>> {
        self.policy.check_batch(submissions.len())?;
        let accept = |submission| self.submit_one(submission, now);
        submissions.iter().map(accept).collect()
    }

    fn submit_one(&self, submission: &Submission, now: Moment) -> Sql<Accepted> {
        self.policy.check(submission)?;
        if let Some((existing, clash)) = self.earlier(submission)? {
            return self.same(existing, submission, clash);
        }
        self.check_room(1, now)?;
        self.check_quota(submission, now)?;
        let priority = self.policy.priority_of(submission);
        let ahead = self.connection.prepare_cached(
            "SELECT ifnull(sum(jobs), 0) FROM tally WHERE state = 0 AND priority <= ?1",
        )?;
        let ahead = { ahead }.query_row([Col(priority)], |row| row.get(0))?;
        let mut job = Job::accepted(submission.clone(), priority, 0, now);
        rows::insert(self.connection, &mut job)?;
        let mut names = self
            .connection
            .prepare_cached("INSERT OR IGNORE INTO inputs VALUES (?1, ?2)")?;
        for input in &submission.inputs {
            names.execute((input.bytes(), job.seq))?;
        }
        self.log(Some(job.id), &Happening::Submitted { priority }, now)?;
        self.count(Counter::Submitted, (0, 0), now)?;
        self.charge(job.owner.as_deref(), "submitted", (0, 0))?;
        Ok(Accepted {
            job: job.id,
            existed: false,
            ahead: Some(ahead),
        })
    }

    /// The job that has this submission's key or id.
    fn earlier(&self, submission: &Submission) -> Sql<Option<(Job, Clash)>> {
        if let Some(job) = rows::find(self.connection, submission.id)? {
            return Ok(Some((job, Clash::Id)));
        }
        let Some(key) = &submission.idempotency_key else {
            return Ok(None);
        };
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {} FROM jobs WHERE ifnull(owner, '') = ?1 AND idempotency_key = ?2",
            rows::COLUMNS
        ))?;
        let owner = submission.owner.as_deref().unwrap_or_default();
        let job = statement.query_row((owner, key), rows::read).optional()?;
        Ok(job.map(|job| (job, Clash::Key)))
    }

    /// The earlier job, if it is of the same request.
    fn same(&self, mut earlier: Job, submission: &Submission, clash: Clash) -> Sql<Accepted> {
        rows::complete(self.connection, &mut earlier)?;
        let existing = earlier.id;
        if !earlier.is_of(submission) {
            return Err(StoreError::Conflict { clash, existing }.into());
        }
        Ok(Accepted {
            job: existing,
            existed: true,
            ahead: None,
        })
    }

    /// Whether the queue has room for so many more.
    pub(super) fn check_room(&self, more: u64, now: Moment) -> Sql<()> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT ifnull(sum(jobs), 0) FROM tally WHERE state <= 1")?;
        let waiting: u64 = statement.query_row([], |row| row.get(0))?;
        let limit = self.policy.waiting_max;
        if waiting + more <= limit {
            return Ok(());
        }
        Err(StoreError::QueueFull {
            waiting,
            limit,
            retry_after_ms: self.retry_after_ms(now)?,
        }
        .into())
    }

    /// Whether its owner may have one more that waits.
    fn check_quota(&self, submission: &Submission, now: Moment) -> Sql<()> {
        let (Some(owner), Some(limit)) = (&submission.owner, submission.quota.waiting_max) else {
            return Ok(());
        };
        let waiting = access::waiting(self.connection, owner)?;
        if waiting < limit {
            return Ok(());
        }
        Err(StoreError::OwnerFull {
            owner: owner.clone(),
            waiting,
            limit,
            retry_after_ms: self.retry_after_ms(now)?,
        }
        .into())
    }

    /// Milliseconds until the next job should finish, by how fast the latest ones did.
    fn retry_after_ms(&self, now: Moment) -> Sql<u64> {
        let mut statement = self.connection.prepare_cached(
            "SELECT count(*), min(finished) FROM
             (SELECT finished FROM jobs WHERE finished IS NOT NULL ORDER BY finished DESC LIMIT ?1)",
        )?;
        let (jobs, since): (u64, Option<At>) =
            statement.query_row([RECENT], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let since = since.map(|At(since)| since);
        Ok(self.policy.retry_after_ms((jobs, since), now))
    }
}
