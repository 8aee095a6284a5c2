//! Records as rows.

use lowtide_core::job::{JobId, Moment, Setbacks};
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::fault::Sql;
use crate::numbers::Numbered;
use crate::{
    ArtifactId, Attempt, Delivery, Holder, Job, Outcome, Progress, SavedSession, Webhook, Wishes,
    WorkerId,
};

/// What is only read whole.
#[derive(Serialize, Deserialize)]
struct Rest {
    wishes: Wishes,
    history: Vec<Attempt>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<SavedSession>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    webhook: Option<Webhook>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delivery: Option<Delivery>,
}

/// The columns [`read`] expects.
pub(super) const COLUMNS: &str = "seq, id, state, priority, turn, kind, model, owner, idempotency_key, submitted, \
     started, finished, deadline, start_by, not_before, attempt, failures, losses, worker, lease_until, \
     cancel_requested, pause_requested, record, running_max";

/// A value of core as a column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Col<T>(pub(super) T);

impl<T: Numbered> ToSql for Col<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.number().into())
    }
}

impl<T: Numbered> FromSql for Col<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Col<T>> {
        let number = value.as_i64()?;
        let mut all = T::ALL.iter().copied();
        all.find(|word| i64::from(word.number()) == number)
            .map(Col)
            .ok_or(FromSqlError::OutOfRange(number))
    }
}

/// A moment as a column.
#[derive(Clone, Copy, Debug)]
pub(super) struct At(pub(super) Moment);

impl ToSql for At {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        // What lies beyond the year 292 million is as good as never.
        Ok(i64::try_from(self.0.0).unwrap_or(i64::MAX).into())
    }
}

impl FromSql for At {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<At> {
        let number = value.as_i64()?;
        let time = u64::try_from(number).map_err(|_| FromSqlError::OutOfRange(number))?;
        Ok(At(Moment(time)))
    }
}

/// A job's id as a column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Id(pub(super) JobId);

impl ToSql for Id {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.0.to_be_bytes().to_vec().into())
    }
}

impl FromSql for Id {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Id> {
        let bytes = <[u8; 16]>::column_result(value)?;
        Ok(Id(JobId(u128::from_be_bytes(bytes))))
    }
}

impl ToSql for ArtifactId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.to_bytes().to_vec().into())
    }
}

impl FromSql for ArtifactId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<ArtifactId> {
        <[u8; 16]>::column_result(value).map(ArtifactId::from_bytes)
    }
}

impl ToSql for WorkerId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for WorkerId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<WorkerId> {
        value
            .as_str()?
            .parse()
            .map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// A column of JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> ToSql for Json<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        serde_json::to_string(&self.0)
            .map(ToSqlOutput::from)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    }
}

impl<T: for<'de> Deserialize<'de>> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Json<T>> {
        serde_json::from_str(value.as_str()?)
            .map(Json)
            .map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// The job in a row of [`COLUMNS`], without request and hints.
pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Job> {
    let Json(rest): Json<Rest> = row.get("record")?;
    let worker: Option<WorkerId> = row.get("worker")?;
    let at = |name| -> rusqlite::Result<Option<Moment>> {
        Ok(row.get::<_, Option<At>>(name)?.map(|At(moment)| moment))
    };
    Ok(Job {
        id: row.get::<_, Id>("id")?.0,
        seq: row.get("seq")?,
        state: row.get::<_, Col<_>>("state")?.0,
        kind: row.get("kind")?,
        model: row.get("model")?,
        request: String::new(),
        hints: None,
        priority: row.get::<_, Col<_>>("priority")?.0,
        turn: row.get("turn")?,
        owner: row.get("owner")?,
        running_max: row.get("running_max")?,
        idempotency_key: row.get("idempotency_key")?,
        webhook: rest.webhook,
        delivery: rest.delivery,
        wishes: rest.wishes,
        submitted: row.get::<_, At>("submitted")?.0,
        started: at("started")?,
        finished: at("finished")?,
        deadline: at("deadline")?,
        start_by: at("start_by")?,
        not_before: at("not_before")?,
        attempt: row.get("attempt")?,
        setbacks: Setbacks {
            failures: row.get("failures")?,
            losses: row.get("losses")?,
        },
        history: rest.history,
        holder: worker
            .zip(at("lease_until")?)
            .map(|(worker, until)| Holder { worker, until }),
        cancel_requested: row.get("cancel_requested")?,
        pause_requested: row.get("pause_requested")?,
        progress: rest.progress,
        session: rest.session,
        outcome: rest.outcome,
        error: rest.error,
    })
}

/// The job of this name, without request and hints.
pub(super) fn find(connection: &Connection, job: JobId) -> Sql<Option<Job>> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1"))?;
    Ok(statement.query_row([Id(job)], read).optional()?)
}

/// Adds what [`read`] leaves out.
pub(super) fn complete(connection: &Connection, job: &mut Job) -> Sql<()> {
    let mut statement = connection.prepare_cached(
        "SELECT request, hints FROM jobs JOIN requests USING (seq) WHERE seq = ?1",
    )?;
    (job.request, job.hints) =
        statement.query_row([job.seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(())
}

fn rest(job: &Job) -> Json<Rest> {
    Json(Rest {
        wishes: job.wishes,
        history: job.history.clone(),
        progress: job.progress.clone(),
        session: job.session.clone(),
        outcome: job.outcome.clone(),
        error: job.error.clone(),
        webhook: job.webhook.clone(),
        delivery: job.delivery.clone(),
    })
}

/// What a column can hold of a number.
pub(super) fn bounded(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Writes a new one; its `seq` is what the database says.
pub(super) fn insert(connection: &Connection, job: &mut Job) -> Sql<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO jobs (id, state, priority, turn, kind, model, hints, owner, idempotency_key, submitted, deadline,
         start_by, attempt, failures, losses, cancel_requested, pause_requested, record, running_max)
         VALUES (?1, ?2, ?3, 0, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 0, 0, 0, 0, 0, ?12, ?13)",
    )?;
    let seq = statement.insert(params![
        Id(job.id),
        Col(job.state),
        Col(job.priority),
        job.kind,
        job.model,
        job.hints,
        job.owner,
        job.idempotency_key,
        At(job.submitted),
        job.deadline.map(At),
        job.start_by.map(At),
        rest(job),
        job.running_max.map(bounded)
    ])?;
    job.seq = u64::try_from(seq).expect("rows are numbered from 1");
    let mut statement = connection.prepare_cached("INSERT INTO requests VALUES (?1, ?2)")?;
    statement.execute((job.seq, &job.request))?;
    Ok(())
}

/// Writes what can change.
pub(super) fn update(connection: &Connection, job: &Job) -> Sql<()> {
    let mut statement = connection.prepare_cached(
        "UPDATE jobs SET state = ?2, priority = ?3, turn = ?4, started = ?5, finished = ?6, start_by = ?7,
         not_before = ?8, attempt = ?9, failures = ?10, losses = ?11, worker = ?12, lease_until = ?13,
         cancel_requested = ?14, pause_requested = ?15, record = ?16 WHERE seq = ?1",
    )?;
    statement.execute(params![
        job.seq,
        Col(job.state),
        Col(job.priority),
        job.turn,
        job.started.map(At),
        job.finished.map(At),
        job.start_by.map(At),
        job.not_before.map(At),
        job.attempt,
        job.setbacks.failures,
        job.setbacks.losses,
        job.holder.as_ref().map(|holder| &holder.worker),
        job.holder.as_ref().map(|holder| At(holder.until)),
        job.cancel_requested,
        job.pause_requested,
        rest(job),
    ])?;
    Ok(())
}
