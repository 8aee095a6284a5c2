//! Keys, what became of the jobs of their names, and whose turn it is.

use std::collections::HashMap;

use lowtide_core::job::{Moment, Priority};
use rusqlite::{Connection, OptionalExtension};

use super::fault::Sql;
use super::rows::{At, Col, Json, bounded};
use super::write::Tx;
use crate::turns::OWNERS_MAX;
use crate::{AccessKey, Usage};

/// More than any job takes, and so little that sums of it stay numbers: a hundred years.
const WORKED_MS_MAX: u64 = 100 * 365 * 86_400_000;

impl Tx<'_> {
    /// Keeps a key, and counts for its name from now on.
    pub(super) fn keep_key(&self, key: &AccessKey) -> Sql<()> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO access_keys VALUES (?1, ?2)")?
            .execute((&key.id, Json(key)))?;
        self.connection
            .prepare_cached("INSERT OR IGNORE INTO usage (owner) VALUES (?1)")?
            .execute([&key.name])?;
        Ok(())
    }

    /// Adds to the numbers of an owner that has or had a key.
    pub(super) fn charge(
        &self,
        owner: Option<&str>,
        column: &'static str,
        (files, worked_ms): (u64, u64),
    ) -> Sql<()> {
        let Some(owner) = owner else {
            return Ok(());
        };
        let mut statement = self.connection.prepare_cached(&format!(
            "UPDATE usage SET {column} = {column} + 1, artifacts = artifacts + ?2, worked_ms = worked_ms + ?3
             WHERE owner = ?1"
        ))?;
        statement.execute((owner, bounded(files), bounded(worked_ms.min(WORKED_MS_MAX))))?;
        Ok(())
    }

    /// A job of this owner begins.
    pub(super) fn serve(&self, owner: Option<&str>, now: Moment) -> Sql<()> {
        if let Some(owner) = owner {
            self.connection
                .prepare_cached("INSERT OR REPLACE INTO served VALUES (?1, ?2)")?
                .execute((owner, At(now)))?;
        }
        Ok(())
    }
}

/// All keys, in the order in which they were made.
pub(super) fn keys(connection: &Connection) -> Sql<Vec<AccessKey>> {
    let mut statement = connection.prepare_cached("SELECT record FROM access_keys")?;
    let keys = statement.query_map([], |row| Ok(row.get::<_, Json<AccessKey>>(0)?.0))?;
    let mut keys: Vec<AccessKey> = keys.collect::<rusqlite::Result<_>>()?;
    keys.sort_by(|a, b| (a.made, &a.id).cmp(&(b.made, &b.id)));
    Ok(keys)
}

/// What became of the jobs of each name.
pub(super) fn usage(connection: &Connection) -> Sql<Vec<Usage>> {
    let mut statement = connection.prepare_cached(
        "SELECT owner, submitted, done, failed, cancelled, artifacts, worked_ms FROM usage ORDER BY owner",
    )?;
    let usage = statement.query_map([], |row| {
        Ok(Usage {
            owner: row.get(0)?,
            submitted: row.get(1)?,
            done: row.get(2)?,
            failed: row.get(3)?,
            cancelled: row.get(4)?,
            artifacts: row.get(5)?,
            worked_ms: row.get(6)?,
            ..Usage::default()
        })
    })?;
    let mut usage: Vec<Usage> = usage.collect::<rusqlite::Result<_>>()?;
    for one in &mut usage {
        one.waiting = waiting(connection, &one.owner)?;
        one.running = running(connection, &one.owner)?;
    }
    Ok(usage)
}

/// Jobs of an owner that wait, paused ones included.
pub(super) fn waiting(connection: &Connection, owner: &str) -> Sql<u64> {
    open(connection, owner, (0, 1))
}

/// Jobs of an owner that run, parked ones included.
pub(super) fn running(connection: &Connection, owner: &str) -> Sql<u64> {
    open(connection, owner, (2, 3))
}

fn open(connection: &Connection, owner: &str, (from, to): (u8, u8)) -> Sql<u64> {
    // The index is of open jobs with an owner, and is used where the question says that it is about those.
    let mut statement = connection.prepare_cached(
        "SELECT count(*) FROM jobs WHERE owner = ?1 AND state IN (?2, ?3) AND owner IS NOT NULL AND state < 4",
    )?;
    Ok(statement.query_row((owner, from, to), |row| row.get(0))?)
}

/// Who has jobs that wait for a worker, and when each was served last; of too many, those served longest ago.
pub(super) fn lines(connection: &Connection) -> Sql<HashMap<String, Moment>> {
    let mut next = connection.prepare_cached(
        "SELECT owner FROM jobs WHERE state = 0 AND owner > ?1 AND owner IS NOT NULL AND state < 4
         ORDER BY owner LIMIT 1",
    )?;
    let mut at = connection.prepare_cached("SELECT at FROM served WHERE owner = ?1")?;
    let mut lines: Vec<(Moment, String)> = Vec::new();
    let mut last = String::new();
    // One look at the index an owner: nobody's many jobs are counted.
    while let Some(owner) = next
        .query_row([&last], |row| row.get::<_, String>(0))
        .optional()?
    {
        let served = at
            .query_row([&owner], |row| row.get::<_, At>(0))
            .optional()?;
        lines.push((served.map_or(Moment(0), |At(at)| at), owner.clone()));
        last = owner;
    }
    lines.sort();
    lines.truncate(OWNERS_MAX);
    Ok(lines.into_iter().map(|(at, owner)| (owner, at)).collect())
}

/// The condition of a candidate, of which the first parameter is the class and the second the time.
pub(super) const CLAIMABLE: &str = "state = 0 AND priority = ?1 AND (not_before IS NULL OR not_before <= ?2)
     AND (start_by IS NULL OR start_by > ?2 OR record -> '$.session' IS NOT NULL)
     AND (running_max IS NULL OR owner IS NULL OR running_max > (SELECT count(*) FROM jobs AS other
     WHERE other.owner = jobs.owner AND other.state IN (2, 3) AND other.owner IS NOT NULL AND other.state < 4))";

/// The first jobs of each of these owners that can be claimed: their order of arrival with each.
pub(super) fn first_of_each<T>(
    connection: &Connection,
    (columns, read): (&str, impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>),
    owners: impl Iterator<Item = String>,
    (priority, now, share): (Priority, Moment, usize),
) -> Sql<Vec<T>> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {columns} FROM jobs WHERE {CLAIMABLE} AND owner = ?3 AND owner IS NOT NULL AND state < 4
         ORDER BY turn, seq LIMIT ?4"
    ))?;
    let mut found = Vec::new();
    for owner in owners {
        let jobs = statement.query_map((Col(priority), At(now), owner, share), &read)?;
        for job in jobs {
            found.push(job?);
        }
    }
    Ok(found)
}
