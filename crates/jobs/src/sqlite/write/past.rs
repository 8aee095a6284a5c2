//! What passing time does, and what is forgotten.

use lowtide_core::job::{JobId, Moment};

use super::Tx;
use crate::accept::{MINUTE_MS, millis};
use crate::sqlite::fault::Sql;
use crate::sqlite::rows::{self, At};
use crate::turns::SERVED_KEPT_MS;
use crate::{Passed, Removed, Retention, Swept, WorkerId};

/// Most jobs one call looks at: a writer must not keep the others waiting.
const JOBS_MAX: u32 = 512;

/// Minutes of throughput kept: a day.
const MINUTES_KEPT: u64 = 24 * 60;

/// Most events thrown away in one call: as many as a thousand jobs a second leave, in about a tenth of a second.
const EVENTS_MAX: i64 = 3_000;

impl Tx<'_> {
    /// Lets time pass.
    pub(in crate::sqlite) fn sweep(&self, now: Moment) -> Sql<Swept> {
        let mut swept = Swept::default();
        for condition in ["lease_until <= ?1", "state = 0 AND start_by <= ?1"] {
            let mut statement = self.connection.prepare_cached(&format!(
                "SELECT {} FROM jobs WHERE {condition} LIMIT {JOBS_MAX}",
                rows::COLUMNS
            ))?;
            let jobs = statement.query_map([At(now)], rows::read)?;
            for job in jobs.collect::<rusqlite::Result<Vec<_>>>()? {
                let mut job = job;
                match job.pass_time(self.policy, now) {
                    Passed::Nothing => {}
                    Passed::TooLate(happening) => {
                        swept.too_late += 1;
                        self.finish(&job, happening, now)?;
                    }
                    Passed::LeaseEnded(happening) => {
                        swept.leases_ended += 1;
                        self.finish(&job, happening, now)?;
                    }
                }
            }
        }
        self.tidy(now)?;
        Ok(swept)
    }

    /// Ends the leases of a worker that died, and forgets it.
    pub(in crate::sqlite) fn bury(&self, worker: &WorkerId, now: Moment) -> Sql<u64> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {} FROM jobs WHERE lease_until IS NOT NULL",
            rows::COLUMNS
        ))?;
        let jobs = statement.query_map([], rows::read)?;
        let mut ended = 0;
        for job in jobs.collect::<rusqlite::Result<Vec<_>>>()? {
            let mut job = job;
            if let Some(happening) = job.worker_died(worker, self.policy, now) {
                self.finish(&job, happening, now)?;
                ended += 1;
            }
        }
        self.forget_worker(worker)?;
        Ok(ended)
    }

    fn tidy(&self, now: Moment) -> Sql<()> {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let run = |sql: &str, parameter: i64| -> Sql<()> {
            self.connection
                .prepare_cached(sql)?
                .execute([parameter])
                .map(|_| ())?;
            Ok(())
        };
        // Noted, so that a reader who resumes before it learns that something is missing.
        run(
            "INSERT OR REPLACE INTO settings SELECT 'trimmed', max(id) - ?1 FROM events HAVING max(id) > ?1",
            number(self.policy.events_max),
        )?;
        run(
            "DELETE FROM events WHERE id IN (SELECT id FROM events
             WHERE id <= (SELECT value FROM settings WHERE name = 'trimmed') ORDER BY id LIMIT ?1)",
            EVENTS_MAX,
        )?;
        let stale = number(now.0.saturating_sub(millis(self.policy.stale_kept)));
        let unserved = number(now.0.saturating_sub(SERVED_KEPT_MS));
        run("DELETE FROM served WHERE at < ?1", unserved)?;
        run("DELETE FROM commands WHERE expires < ?1", stale)?;
        run("DELETE FROM workers WHERE expires < ?1", stale)?;
        let oldest = (now.0 / MINUTE_MS).saturating_sub(MINUTES_KEPT);
        run("DELETE FROM minutes WHERE minute < ?1", number(oldest))
    }

    /// Forgets old jobs.
    pub(in crate::sqlite) fn retain(&self, retention: &Retention, now: Moment) -> Sql<Removed> {
        let mut removed = Removed::default();
        let old = retention
            .age_max
            .map(|age| Moment(now.0.saturating_sub(millis(age))));
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, finished, id, (SELECT ifnull(sum(bytes), 0) FROM artifacts WHERE artifacts.seq = jobs.seq)
             FROM jobs WHERE finished IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM calls WHERE calls.seq = jobs.seq) ORDER BY finished, seq LIMIT ?1",
        )?;
        let (mut finished, mut bytes) = self.totals()?;
        let over = statement.query_map([JOBS_MAX + 1], |row| {
            let At(at) = row.get(1)?;
            let rows::Id(id) = row.get(2)?;
            Ok((row.get(0)?, at, id, row.get(3)?))
        })?;
        let over: Vec<(i64, Moment, JobId, u64)> = over.collect::<rusqlite::Result<_>>()?;
        for (seq, at, id, held) in over {
            let too_old = old.is_some_and(|old| at < old);
            let too_many = retention.jobs_max.is_some_and(|most| finished > most);
            let too_large = retention.artifacts_max.is_some_and(|most| bytes > most.0);
            if !(too_old || too_many || too_large) {
                break;
            }
            if removed.jobs == u64::from(JOBS_MAX) {
                removed.more = true;
                break;
            }
            self.forget((seq, id), &mut removed)?;
            finished -= 1;
            bytes -= held;
        }
        Ok(removed)
    }

    /// Jobs that are over, and bytes of artifacts.
    fn totals(&self) -> Sql<(u64, u64)> {
        let mut statement = self.connection.prepare_cached(
            "SELECT (SELECT ifnull(sum(jobs), 0) FROM tally WHERE state >= 4), bytes FROM artifact_tally",
        )?;
        Ok(statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?)
    }

    fn forget(&self, (seq, id): (i64, JobId), removed: &mut Removed) -> Sql<()> {
        let mut statement = self
            .connection
            .prepare_cached("DELETE FROM artifacts WHERE seq = ?1 RETURNING id")?;
        let artifacts = statement.query_map([seq], |row| row.get(0))?;
        for artifact in artifacts {
            removed.artifacts.push(artifact?);
        }
        for table in ["requests", "previews", "inputs", "jobs"] {
            let sql = format!("DELETE FROM {table} WHERE seq = ?1");
            self.connection.prepare_cached(&sql)?.execute([seq])?;
        }
        self.connection
            .prepare_cached("DELETE FROM events WHERE job = ?1")?
            .execute([rows::Id(id)])?;
        removed.jobs += 1;
        Ok(())
    }
}
