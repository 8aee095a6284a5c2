//! What is asked, on connections that cannot write.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use lowtide_core::job::{JobId, JobState, Moment, Priority, Setbacks};
use rusqlite::{Connection, OptionalExtension, Row};

use super::access;
use super::fault::Sql;
use super::rows::{self, At, Col, Id, Json};
use super::schema;
use super::write::held;
use crate::accept::{LINES_MAX, MINUTE_MS, MINUTES};
use crate::numbers::Numbered;
use crate::turns;
use crate::{
    Artifact, ArtifactId, Candidate, Candidates, Event, EventId, Events, InputId, Job, Listing,
    Minute, Preview, Result, SavedSession, Stats, StoreError,
};

/// Connections kept for readers; when more read at once, further ones are opened and closed again.
const KEPT: usize = 4;

/// Connections that are not in use.
pub(super) struct Readers {
    idle: Mutex<Vec<Connection>>,
    path: PathBuf,
}

impl Readers {
    /// For the database at `path`.
    pub(super) fn new(path: PathBuf) -> Readers {
        Readers {
            idle: Mutex::new(Vec::with_capacity(KEPT)),
            path,
        }
    }

    /// Reads what belongs to one moment.
    pub(super) fn read<T>(&self, act: impl FnOnce(&Connection) -> Sql<T>) -> Result<T> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let known = idle().pop();
        let connection = match known {
            Some(connection) => connection,
            None => schema::open_reader(&self.path)?,
        };
        let result = within(&connection, act);
        if connection.is_autocommit() {
            let mut idle = idle();
            if idle.len() < KEPT {
                idle.push(connection);
            }
        }
        result.map_err(|fault| fault.at(&self.path))
    }
}

fn within<T>(connection: &Connection, act: impl FnOnce(&Connection) -> Sql<T>) -> Sql<T> {
    connection.prepare_cached("BEGIN")?.execute([])?;
    let result = act(connection);
    // Nothing was written; where this fails the connection is not used again.
    let _ = connection.prepare_cached("ROLLBACK")?.execute([]);
    result
}

/// Everything known of a job.
pub(super) fn job(connection: &Connection, id: JobId) -> Sql<Job> {
    let mut job = rows::find(connection, id)?.ok_or(StoreError::NotFound { job: id })?;
    rows::complete(connection, &mut job)?;
    Ok(job)
}

/// Jobs, newest first.
pub(super) fn list(connection: &Connection, listing: &Listing) -> Sql<Vec<Job>> {
    let mut conditions = vec!["seq < ?1".to_owned()];
    if !listing.states.is_empty() {
        let numbers = listing
            .states
            .iter()
            .map(|state| Numbered::number(*state).to_string());
        let numbers: Vec<String> = numbers.collect();
        conditions.push(format!("state IN ({})", numbers.join(", ")));
        if !listing.states.contains(&JobState::Done) {
            // What the index of the few unfinished ones is about.
            conditions.push("state <> 4".to_owned());
        }
    }
    if listing.owner.is_some() {
        conditions.push("owner = ?2".to_owned());
    } else {
        conditions.push("?2 IS NULL".to_owned());
    }
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {} FROM jobs WHERE {} ORDER BY seq DESC LIMIT ?3",
        rows::COLUMNS,
        conditions.join(" AND ")
    ))?;
    let before = listing
        .before
        .and_then(|before| i64::try_from(before).ok())
        .unwrap_or(i64::MAX);
    let limit = listing.limit.min(LINES_MAX);
    let jobs = statement.query_map((before, &listing.owner, limit), rows::read)?;
    Ok(jobs.collect::<rusqlite::Result<_>>()?)
}

/// How many are before it.
pub(super) fn ahead_of(connection: &Connection, id: JobId) -> Sql<Option<u64>> {
    let job = rows::find(connection, id)?.ok_or(StoreError::NotFound { job: id })?;
    if job.state != JobState::Queued {
        return Ok(None);
    }
    let mut statement = connection.prepare_cached(
        "SELECT (SELECT ifnull(sum(jobs), 0) FROM tally WHERE state = 0 AND priority < ?1)
         + (SELECT count(*) FROM jobs WHERE state = 0 AND priority = ?1 AND (turn, seq) < (?2, ?3))",
    )?;
    let ahead = statement.query_row((Col(job.priority), job.turn, job.seq), |row| row.get(0))?;
    Ok(Some(ahead))
}

/// What can be claimed.
pub(super) fn candidates(
    connection: &Connection,
    per_priority: usize,
    now: Moment,
) -> Sql<Candidates> {
    let mut found = Candidates {
        held: held(connection)?,
        jobs: Vec::new(),
    };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {CANDIDATE} FROM jobs WHERE {} ORDER BY turn, seq LIMIT ?3",
        access::CLAIMABLE
    ))?;
    let limit = per_priority.min(LINES_MAX);
    let served = access::lines(connection)?;
    for priority in Priority::ALL {
        let jobs = statement.query_map((Col(priority), At(now), limit), in_line)?;
        let mut jobs = jobs.collect::<rusqlite::Result<Vec<_>>>()?;
        if jobs.len() == limit && !served.is_empty() {
            // Behind these may be others' first ones.
            let share = turns::share(limit, served.len());
            let of_each = access::first_of_each(
                connection,
                (CANDIDATE, in_line),
                served.keys().cloned(),
                (priority, now, share),
            )?;
            jobs.extend(of_each);
            jobs.sort_by_key(|(place, _)| *place);
            jobs.dedup_by_key(|(place, _)| *place);
        }
        let jobs = jobs.into_iter().map(|((turn, _), job)| (turn < 0, job));
        let in_turn = turns::in_turns(jobs.collect(), &served);
        found.jobs.extend(in_turn.into_iter().take(limit));
    }
    Ok(found)
}

/// The columns [`in_line`] expects.
const CANDIDATE: &str =
    "id, kind, model, owner, submitted, deadline, failures, losses, hints, record -> '$.session',
     priority, turn, seq";

/// A candidate and its place by turn and arrival.
fn in_line(row: &Row<'_>) -> rusqlite::Result<((i64, i64), Candidate)> {
    Ok(((row.get(11)?, row.get(12)?), candidate(row)?))
}

fn candidate(row: &Row<'_>) -> rusqlite::Result<Candidate> {
    let session: Option<Json<SavedSession>> = row.get(9)?;
    Ok(Candidate {
        id: row.get::<_, Id>(0)?.0,
        kind: row.get(1)?,
        model: row.get(2)?,
        priority: row.get::<_, Col<_>>(10)?.0,
        owner: row.get(3)?,
        submitted: row.get::<_, At>(4)?.0,
        deadline: row.get::<_, Option<At>>(5)?.map(|At(moment)| moment),
        setbacks: Setbacks {
            failures: row.get(6)?,
            losses: row.get(7)?,
        },
        hints: row.get(8)?,
        session: session.map(|Json(session)| session),
    })
}

/// Numbers.
pub(super) fn stats(connection: &Connection, now: Moment) -> Sql<Stats> {
    let mut stats = Stats {
        held: held(connection)?,
        ..Stats::default()
    };
    let mut statement =
        connection.prepare_cached("SELECT state, priority, jobs FROM tally WHERE jobs > 0")?;
    let counts = statement.query_map([], |row| {
        let (Col(state), Col(priority)) = (row.get(0)?, row.get(1)?);
        Ok(((state, priority), row.get(2)?))
    })?;
    stats.counts = counts.collect::<rusqlite::Result<_>>()?;
    let mut statement = connection
        .prepare_cached("SELECT min(submitted) FROM jobs WHERE state = 0 AND priority = ?1")?;
    for priority in Priority::ALL {
        let oldest: Option<At> = statement.query_row([Col(priority)], |row| row.get(0))?;
        if let Some(At(oldest)) = oldest {
            stats.oldest_waiting.insert(priority, oldest);
        }
    }
    let mut statement =
        connection.prepare_cached("SELECT min(started) FROM jobs WHERE lease_until IS NOT NULL")?;
    let oldest: Option<At> = statement.query_row([], |row| row.get(0))?;
    stats.oldest_running = oldest.map(|At(moment)| moment);
    let mut statement = connection.prepare_cached("SELECT artifacts, bytes FROM artifact_tally")?;
    (stats.artifacts, stats.artifact_bytes) =
        statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    stats.last_event = EventId(last_event(connection)?);
    stats.minutes = minutes(connection, now)?;
    Ok(stats)
}

fn last_event(connection: &Connection) -> Sql<u64> {
    let mut statement = connection
        .prepare_cached("SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

fn minutes(connection: &Connection, now: Moment) -> Sql<Vec<Minute>> {
    let mut statement = connection.prepare_cached(
        "SELECT minute, submitted, started, done, failed, cancelled, waited_ms, ran_ms FROM minutes
         WHERE minute > ?1 AND minute <= ?1 + ?2 ORDER BY minute",
    )?;
    let before = (now.0 / MINUTE_MS).saturating_sub(MINUTES);
    let before = i64::try_from(before).unwrap_or(i64::MAX - MINUTES as i64);
    let minutes = statement.query_map((before, MINUTES), |row| {
        Ok(Minute {
            from: Moment(row.get::<_, u64>(0)?.saturating_mul(MINUTE_MS)),
            submitted: row.get(1)?,
            started: row.get(2)?,
            done: row.get(3)?,
            failed: row.get(4)?,
            cancelled: row.get(5)?,
            waited_ms: row.get(6)?,
            ran_ms: row.get(7)?,
        })
    })?;
    Ok(minutes.collect::<rusqlite::Result<_>>()?)
}

/// A finished file.
pub(super) fn artifact(connection: &Connection, id: ArtifactId) -> Sql<Option<(JobId, Artifact)>> {
    let mut statement = connection.prepare_cached(
        "SELECT jobs.id, media_type, bytes, sha256 FROM artifacts JOIN jobs USING (seq) WHERE artifacts.id = ?1",
    )?;
    let found = statement.query_row([id], |row| {
        let artifact = Artifact {
            id,
            media_type: row.get(1)?,
            bytes: row.get(2)?,
            sha256: row.get(3)?,
        };
        Ok((row.get::<_, Id>(0)?.0, artifact))
    });
    Ok(found.optional()?)
}

/// Which of these are known.
pub(super) fn known_artifacts(connection: &Connection, of: &[ArtifactId]) -> Sql<Vec<ArtifactId>> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM artifacts WHERE id = ?1")?;
    let mut known = Vec::new();
    for id in of {
        if statement.exists([id])? {
            known.push(*id);
        }
    }
    Ok(known)
}

/// Which of these jobs name.
pub(super) fn named_inputs(connection: &Connection, of: &[InputId]) -> Sql<Vec<InputId>> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM inputs WHERE input = ?1")?;
    let mut named = Vec::new();
    for input in of {
        if statement.exists([input.bytes()])? {
            named.push(*input);
        }
    }
    Ok(named)
}

/// What it looks like.
pub(super) fn preview(connection: &Connection, id: JobId) -> Sql<Option<Preview>> {
    let mut statement = connection.prepare_cached(
        "SELECT media_type, content FROM previews JOIN jobs USING (seq) WHERE id = ?1",
    )?;
    let found = statement.query_row([Id(id)], |row| {
        Ok(Preview {
            media_type: row.get(0)?,
            content: row.get(1)?,
        })
    });
    Ok(found.optional()?)
}

/// What happened after an event.
pub(super) fn events_after(
    connection: &Connection,
    after: EventId,
    job: Option<JobId>,
    limit: usize,
) -> Sql<Events> {
    let condition = match job {
        Some(_) => "job = ?2",
        None => "?2 IS NULL",
    };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT id, at, job, what FROM events WHERE id > ?1 AND {condition} ORDER BY id LIMIT ?3"
    ))?;
    let from = i64::try_from(after.0).unwrap_or(i64::MAX);
    let events = statement.query_map((from, job.map(Id), limit.min(LINES_MAX)), |row| {
        let Json(what) = row.get(3)?;
        Ok(Event {
            id: EventId(row.get(0)?),
            at: row.get::<_, At>(1)?.0,
            job: row.get::<_, Option<Id>>(2)?.map(|Id(job)| job),
            what,
        })
    })?;
    let events = events.collect::<rusqlite::Result<_>>()?;
    let mut statement =
        connection.prepare_cached("SELECT value FROM settings WHERE name = 'trimmed'")?;
    let trimmed: Option<u64> = statement.query_row([], |row| row.get(0)).optional()?;
    Ok(Events {
        events,
        gap: trimmed.is_some_and(|trimmed| after.0 < trimmed),
    })
}
