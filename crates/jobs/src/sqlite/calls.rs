//! Ends of jobs that are still to be told.

use std::time::Duration;

use lowtide_core::job::Moment;
use rusqlite::Connection;

use super::fault::Sql;
use super::rows::{self, At, Id};
use super::write::Tx;
use crate::{Call, Settled};

impl Tx<'_> {
    /// A job's end is to be told.
    pub(super) fn owe_call(&self, seq: u64, now: Moment) -> Sql<()> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO calls VALUES (?1, ?2, 0)")?
            .execute((seq, At(now)))?;
        Ok(())
    }

    /// Takes some that are due.
    pub(super) fn take_calls(
        &self,
        limit: usize,
        hold_for: Duration,
        now: Moment,
    ) -> Sql<Vec<Call>> {
        let until = now + hold_for;
        let mut statement = self.connection.prepare_cached(
            "UPDATE calls SET due = ?1, tries = tries + 1
             WHERE seq IN (SELECT seq FROM calls WHERE due <= ?2 ORDER BY due LIMIT ?3)
             RETURNING tries, (SELECT id FROM jobs WHERE jobs.seq = calls.seq)",
        )?;
        let calls = statement.query_map((At(until), At(now), limit), |row| {
            let Id(job) = row.get(1)?;
            let tries = row.get(0)?;
            Ok(Call { job, tries, until })
        })?;
        Ok(calls.collect::<rusqlite::Result<_>>()?)
    }

    /// Notes what came of a try, if it is still the one that counts.
    pub(super) fn settle_call(&self, call: &Call, settled: &Settled, now: Moment) -> Sql<()> {
        let Some(mut job) = rows::find(self.connection, call.job)? else {
            return Ok(());
        };
        let still = match settled.due() {
            None => self
                .connection
                .prepare_cached("DELETE FROM calls WHERE seq = ?1 AND due = ?2")?
                .execute((job.seq, At(call.until)))?,
            Some(due) => self
                .connection
                .prepare_cached("UPDATE calls SET due = ?3 WHERE seq = ?1 AND due = ?2")?
                .execute((job.seq, At(call.until), At(due)))?,
        };
        if still > 0 {
            job.settle(call, settled, now);
            rows::update(self.connection, &job)?;
        }
        Ok(())
    }
}

/// When the next one is due.
pub(super) fn next(connection: &Connection) -> Sql<Option<Moment>> {
    let mut statement = connection.prepare_cached("SELECT min(due) FROM calls")?;
    let due: Option<At> = statement.query_row([], |row| row.get(0))?;
    Ok(due.map(|At(due)| due))
}
