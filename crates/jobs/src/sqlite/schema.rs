//! Opening the file: settings, whose it is, and bringing older schemas up to date.

use std::path::Path;

use lowtide_core::Bytes;
use rusqlite::{Connection, OpenFlags};

use super::fault::{BUSY_WAIT_MAX, Fault, Sql};
use crate::{Result, StoreError};

/// Marks the file as ours: "ltjb".
const APPLICATION_ID: i32 = 0x6c74_6a62;

/// Every schema there was, as steps from the one before. `user_version` counts the steps taken.
const MIGRATIONS: [&str; 5] = [
    include_str!("schema_v1.sql"),
    include_str!("schema_v2.sql"),
    include_str!("schema_v3.sql"),
    include_str!("schema_v4.sql"),
    include_str!("schema_v5.sql"),
];

/// The schema this version writes.
const NEWEST: u32 = MIGRATIONS.len() as u32;

/// Pages in the write-ahead log before they are moved to the database: 16 MiB, so that a burst of submissions is not
/// interrupted by it every few hundred jobs.
const CHECKPOINT_PAGES: u32 = 4_096;

/// The write-ahead log is cut back to this after it was moved, bytes.
const LOG_KEPT: u32 = 32 << 20;

/// Memory for pages, per connection, KiB.
const CACHE_KIB: u32 = 2_048;

/// Statements kept prepared, per connection.
const STATEMENTS_KEPT: usize = 64;

/// Opens the file for writing; creates it, or brings it up to date, where necessary.
pub(super) fn open(path: &Path, size_max: Option<Bytes>) -> Result<Connection> {
    let at = |fault: Fault| fault.at(path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection =
        Connection::open_with_flags(path, flags).map_err(|error| at(error.into()))?;
    settle(&connection).map_err(at)?;
    check_owner(&connection, path)?;
    prepare_file(&connection, size_max).map_err(at)?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

/// Opens the file for reading. It must have been opened for writing before.
pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> Sql<Connection> {
        let connection = Connection::open_with_flags(path, flags)?;
        settle(&connection)?;
        Ok(connection)
    };
    open().map_err(|fault| fault.at(path))
}

fn settle(connection: &Connection) -> Sql<()> {
    connection.busy_timeout(BUSY_WAIT_MAX)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    connection.pragma_update(None, "cache_size", -i64::from(CACHE_KIB))?;
    Ok(())
}

/// Only an empty file or one of ours is written to.
fn check_owner(connection: &Connection, path: &Path) -> Result<()> {
    let read = || -> Sql<(i32, u32, u32)> {
        let value = |name| connection.pragma_query_value(None, name, |row| row.get(0));
        let tables = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
            row.get::<_, u32>(0)
        })?;
        Ok((
            value("application_id")?,
            u32::try_from(value("user_version")?).unwrap_or(u32::MAX),
            tables,
        ))
    };
    let (application_id, version, tables) = read().map_err(|fault| fault.at(path))?;
    if application_id != APPLICATION_ID && (application_id != 0 || tables > 0) {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
            application_id,
        });
    }
    if version > NEWEST {
        return Err(StoreError::TooNew {
            path: path.to_owned(),
            found: version,
            known: NEWEST,
        });
    }
    Ok(())
}

fn prepare_file(connection: &Connection, size_max: Option<Bytes>) -> Sql<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", LOG_KEPT)?;
    if let Some(size_max) = size_max {
        let page: u64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        connection.pragma_update(None, "max_page_count", (size_max.0 / page).max(1))?;
    }
    Ok(())
}

/// Takes the steps that are missing, all in one transaction: another process that opens the file at the same time waits,
/// and finds nothing left to do.
fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let mut take_steps = || -> Sql<()> {
        let version = |at: &Connection| {
            at.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0))
        };
        if version(connection)? == NEWEST {
            return Ok(());
        }
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for step in version(&transaction)?..NEWEST {
            transaction.execute_batch(MIGRATIONS[step as usize])?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", NEWEST)?;
        transaction.commit()?;
        Ok(())
    };
    take_steps().map_err(|fault| fault.at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as the first version wrote it.
    fn first_version(path: &Path) {
        let old = Connection::open(path).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.pragma_update(None, "application_id", APPLICATION_ID)
            .unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        for (seq, state) in [(1, 0), (2, 0), (3, 4)] {
            old.execute(
                "INSERT INTO jobs (seq, id, state, priority, turn, kind, model, submitted, finished, attempt, failures, losses,
                 cancel_requested, pause_requested, record)
                 VALUES (?1, ?2, ?3, 1, 0, 'kind', 'demo', 7, iif(?3 = 4, 9, NULL), 0, 0, 0, 0, 0,
                 '{\"wishes\":{\"after_job\":null,\"keep_alive\":null},\"history\":[]}')",
                (seq, [seq as u8; 16], state),
            )
            .unwrap();
            old.execute("INSERT INTO requests VALUES (?1, '{\"a\":1}')", [seq])
                .unwrap();
        }
        old.execute(
            "INSERT INTO artifacts VALUES (?1, 3, 'image/png', 11, 'aa')",
            [[9u8; 16]],
        )
        .unwrap();
    }

    #[test]
    fn the_first_schema_is_brought_up_to_date_with_what_is_in_it() {
        use crate::{JobStore, SqliteOptions, SqliteStore, Submission};
        use lowtide_core::job::{JobId, JobState, Moment};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.sqlite");
        first_version(&path);
        for _ in 0..2 {
            let store = SqliteStore::open(&path, SqliteOptions::default()).unwrap();
            let stats = store.stats(Moment(10)).unwrap();
            assert_eq!(stats.in_state(JobState::Queued), 2);
            assert_eq!(stats.in_state(JobState::Done), 1);
            assert_eq!((stats.artifacts, stats.artifact_bytes), (1, 11));
            let job = store.job(JobId(u128::from_be_bytes([2; 16]))).unwrap();
            assert_eq!(
                (job.request.as_str(), job.submitted),
                ("{\"a\":1}", Moment(7))
            );
        }
        let store = SqliteStore::open(&path, SqliteOptions::default()).unwrap();
        let id = crate::random_job_id(Moment(20));
        store
            .submit(Submission::new(id, "kind", "demo", "{}"), Moment(20))
            .unwrap();
        assert_eq!(store.job(id).unwrap().seq, 4);
        assert_eq!(
            store.stats(Moment(20)).unwrap().in_state(JobState::Queued),
            3
        );
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("foreign.sqlite");
        Connection::open(&foreign)
            .unwrap()
            .execute_batch("CREATE TABLE theirs (a)")
            .unwrap();
        let before = std::fs::read(&foreign).unwrap();
        let error = open(&foreign, None).unwrap_err();
        assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
        assert_eq!(std::fs::read(&foreign).unwrap(), before);

        let newer = folder.path().join("newer.sqlite");
        let connection = open(&newer, None).unwrap();
        connection
            .pragma_update(None, "user_version", NEWEST + 1)
            .unwrap();
        drop(connection);
        let error = open(&newer, None).unwrap_err();
        assert!(matches!(error, StoreError::TooNew { .. }), "{error}");
    }
}
