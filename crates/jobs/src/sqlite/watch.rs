//! Noticing that something changed: at once for this process's own writes, by SQLite's counter for those of others.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::fault::Fault;
use super::schema;
use crate::Result;

/// How often the counter is looked at while something happens. A look costs a few microseconds.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// How often while nothing does. Each look without news makes the next pause a quarter longer.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// A counter of changes, and those who wait for it to move.
pub(super) struct Watch {
    state: Mutex<State>,
    moved: Condvar,
    path: PathBuf,
}

struct State {
    /// What callers compare.
    mark: u64,
    /// A connection that only ever looks: SQLite's counter tells a connection of everybody else's writes.
    looker: Connection,
    /// What the counter said last.
    version: i64,
    /// The pause before the next look.
    pause: Duration,
}

impl Watch {
    /// Begins to watch the database.
    pub(super) fn open(path: &Path) -> Result<Watch> {
        let looker = schema::open_reader(path)?;
        let version = version(&looker).map_err(|error| Fault::Sql(error).at(path))?;
        Ok(Watch {
            state: Mutex::new(State {
                mark: 0,
                looker,
                version,
                pause: PAUSE_MIN,
            }),
            moved: Condvar::new(),
            path: path.to_owned(),
        })
    }

    /// This process changed something.
    pub(super) fn changed(&self) {
        self.lock().mark += 1;
        self.moved.notify_all();
    }

    /// Somebody else may have, or there is another reason to look. It counts as a change, so that it is not missed by
    /// one who is just about to wait.
    pub(super) fn nudge(&self) {
        self.changed();
    }

    /// The counter now.
    pub(super) fn mark(&self) -> Result<u64> {
        let mut state = self.lock();
        self.look(&mut state)?;
        Ok(state.mark)
    }

    /// The counter, as soon as it is not `seen`, or after `timeout`.
    pub(super) fn wait(&self, seen: u64, timeout: Duration) -> Result<u64> {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            self.look(&mut state)?;
            let left = end.saturating_duration_since(Instant::now());
            if state.mark != seen || left.is_zero() {
                return Ok(state.mark);
            }
            let pause = state.pause.min(left);
            let unmoved = |state: &mut State| state.mark == seen;
            let waited = self.moved.wait_timeout_while(state, pause, unmoved);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn look(&self, state: &mut State) -> Result<()> {
        let now = version(&state.looker).map_err(|error| Fault::Sql(error).at(&self.path))?;
        if now == state.version {
            state.pause = (state.pause * 5 / 4).min(PAUSE_MAX);
        } else {
            state.version = now;
            state.mark += 1;
            state.pause = PAUSE_MIN;
            self.moved.notify_all();
        }
        Ok(())
    }

    /// A std mutex: it is held for microseconds, and nothing here panics while it is.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("PRAGMA data_version")?
        .query_row([], |row| row.get(0))
}
