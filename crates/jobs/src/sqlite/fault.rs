//! What SQLite complains about, in our words.

use std::path::Path;
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::StoreError;

/// How long a writer waits for another process.
pub(super) const BUSY_WAIT_MAX: Duration = Duration::from_secs(5);

/// Why a transaction did not come about.
#[derive(Debug)]
pub(super) enum Fault {
    /// The rules refused it.
    Refused(StoreError),
    /// SQLite could not.
    Sql(rusqlite::Error),
}

/// What a statement answers.
pub(super) type Sql<T> = std::result::Result<T, Fault>;

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault::Refused(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Fault {
        Fault::Sql(error)
    }
}

impl Fault {
    /// As the store's error about the database at `path`.
    pub(super) fn at(self, path: &Path) -> StoreError {
        match self {
            Fault::Refused(error) => error,
            Fault::Sql(error) => translate(&error, path),
        }
    }
}

fn translate(error: &rusqlite::Error, path: &Path) -> StoreError {
    let (path, reason) = (path.to_owned(), error.to_string());
    let code = match error {
        rusqlite::Error::SqliteFailure(failure, _) => Some(failure.code),
        // A value that is not what we wrote.
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..) => Some(ErrorCode::DatabaseCorrupt),
        _ => None,
    };
    match code {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt { path, reason }
        }
        Some(ErrorCode::DiskFull) => StoreError::NoRoom { path },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy {
            path,
            waited_ms: u64::try_from(BUSY_WAIT_MAX.as_millis()).unwrap_or(u64::MAX),
        },
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly
            | ErrorCode::SystemIoFailure,
        ) => StoreError::Io {
            verb: "read or write",
            path,
            reason,
        },
        _ => StoreError::Database { path, reason },
    }
}
