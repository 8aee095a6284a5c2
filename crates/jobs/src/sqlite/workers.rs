//! Commands to workers, and what workers say of themselves.

use lowtide_core::job::Moment;
use rusqlite::{Connection, OptionalExtension, Row};

use super::fault::{Fault, Sql};
use super::rows::{At, Json};
use super::write::Tx;
use crate::accept::fits;
use crate::{
    Acknowledgement, Command, CommandId, Heartbeat, Order, StoreError, WorkerId, WorkerStatus,
};

const COMMAND: &str = "SELECT id, worker, sent, expires, what, acknowledged FROM commands";

impl Tx<'_> {
    /// Gives an order.
    pub(super) fn send(
        &self,
        (worker, order): (&WorkerId, &Order),
        expires: Moment,
        now: Moment,
    ) -> Sql<CommandId> {
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO commands (worker, sent, expires, what) VALUES (?1, ?2, ?3, ?4)",
        )?;
        let id = statement.insert((worker, At(now), At(expires), Json(order)))?;
        Ok(CommandId(
            u64::try_from(id).expect("rows are numbered from 1"),
        ))
    }

    /// Says how one ended.
    pub(super) fn acknowledge(
        &self,
        (worker, command): (&WorkerId, CommandId),
        answer: &Acknowledgement,
    ) -> Sql<()> {
        let known = self::command(self.connection, command)?;
        if known.worker != *worker {
            return Err(StoreError::NoCommand { command }.into());
        }
        let mut statement = self.connection.prepare_cached(
            "UPDATE commands SET acknowledged = ?2 WHERE id = ?1 AND acknowledged IS NULL",
        )?;
        statement.execute((number(command), Json(answer)))?;
        Ok(())
    }

    /// Notes what a worker says.
    pub(super) fn heartbeat(&self, heartbeat: &Heartbeat, now: Moment) -> Sql<()> {
        let json_max = self.policy.json_max;
        fits("status", heartbeat.status.len(), json_max)?;
        let cards = heartbeat.cards.as_deref();
        fits("cards", cards.unwrap_or_default().len(), json_max)?;
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO workers VALUES (?1, ?2, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET
             seen = ?2, expires = ?3, cards = ifnull(?4, cards), status = ?5",
        )?;
        statement.execute((
            &heartbeat.worker,
            At(now),
            At(now + heartbeat.ttl),
            cards,
            &heartbeat.status,
        ))?;
        Ok(())
    }

    /// Forgets a worker, and what it was told.
    pub(super) fn forget_worker(&self, worker: &WorkerId) -> Sql<()> {
        for table in ["workers", "commands"] {
            let sql = format!("DELETE FROM {table} WHERE worker = ?1");
            self.connection.prepare_cached(&sql)?.execute([worker])?;
        }
        Ok(())
    }
}

/// What this worker has not answered yet.
pub(super) fn open_commands(
    connection: &Connection,
    worker: &WorkerId,
    now: Moment,
) -> Sql<Vec<Command>> {
    let mut statement = connection.prepare_cached(&format!(
        "{COMMAND} WHERE worker = ?1 AND acknowledged IS NULL AND expires > ?2 ORDER BY id"
    ))?;
    let commands = statement.query_map((worker, At(now)), read)?;
    Ok(commands.collect::<rusqlite::Result<_>>()?)
}

/// One command.
pub(super) fn command(connection: &Connection, command: CommandId) -> Sql<Command> {
    let mut statement = connection.prepare_cached(&format!("{COMMAND} WHERE id = ?1"))?;
    statement
        .query_row([number(command)], read)
        .optional()?
        .ok_or(Fault::Refused(StoreError::NoCommand { command }))
}

/// All workers.
pub(super) fn workers(connection: &Connection) -> Sql<Vec<WorkerStatus>> {
    let mut statement = connection.prepare_cached(
        "SELECT worker, first_seen, seen, expires, cards, status FROM workers ORDER BY worker",
    )?;
    let workers = statement.query_map([], |row| {
        let at = |column| row.get(column).map(|At(moment)| moment);
        Ok(WorkerStatus {
            worker: row.get(0)?,
            first_seen: at(1)?,
            seen: at(2)?,
            expires: at(3)?,
            cards: row.get(4)?,
            status: row.get(5)?,
        })
    })?;
    Ok(workers.collect::<rusqlite::Result<_>>()?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Command> {
    let Json(order) = row.get(4)?;
    let acknowledged: Option<Json<Acknowledgement>> = row.get(5)?;
    Ok(Command {
        id: CommandId(row.get(0)?),
        worker: row.get(1)?,
        order,
        sent: row.get::<_, At>(2)?.0,
        expires: row.get::<_, At>(3)?.0,
        acknowledged: acknowledged.map(|Json(answer)| answer),
    })
}

fn number(command: CommandId) -> i64 {
    // A number that is no row's finds none.
    i64::try_from(command.0).unwrap_or(-1)
}
