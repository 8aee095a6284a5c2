//! The one thread that writes: what many callers want at once becomes one transaction, and one wait for the disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;

use super::fault::{Fault, Sql};
use super::turn::Turnstile;
use super::watch::Watch;
use super::write::Tx;
use crate::{Policy, Result, StoreError};

/// Most calls in one transaction: bounds how long the first of them waits for the last.
const BATCH_MAX: usize = 256;

/// Most calls that wait for the writer; further callers wait to be let in.
const CALLS_MAX: usize = 1_024;

/// How much of a power cut a write must survive. All of them survive any killed process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sync {
    /// On the disk before the caller is told.
    Before,
    /// With the next write that has to be. What such a write says is either repeated (progress, heartbeats) or only
    /// means something to processes that a power cut ends as well (leases).
    Later,
}

/// Something to do within a transaction.
type Act = dyn FnMut(&Tx<'_>) -> Sql<()> + Send;

/// Something to do, and the caller to tell.
struct Call {
    sync: Sync,
    act: Box<Act>,
    /// Told how the transaction went; the answer itself is kept by the closure that waits.
    answer: Box<dyn FnOnce(Result<()>) + Send>,
}

/// What the thread works with.
pub(super) struct Desk {
    /// Where the file is.
    pub(super) path: PathBuf,
    /// Limits and rules.
    pub(super) policy: Arc<Policy>,
    /// Whose turn it is among processes.
    pub(super) turnstile: Turnstile,
    /// Told of every change.
    pub(super) watch: Arc<Watch>,
    /// Nothing waits for the disk.
    pub(super) relaxed: bool,
    /// The only connection that writes. Dropped after the watch's, which only reads: the last one to close has to move
    /// the log into the file.
    pub(super) connection: Connection,
}

/// The way to the thread.
pub(super) struct Writer {
    calls: Option<SyncSender<Call>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(desk: Desk) -> Result<Writer> {
        let (calls, inbox) = sync_channel(CALLS_MAX);
        let path = desk.path.clone();
        let thread = std::thread::Builder::new()
            .name("job-writer".to_owned())
            .spawn(move || run(desk, &inbox))
            .map_err(|error| StoreError::io("start a thread to write", &path, &error))?;
        Ok(Writer {
            calls: Some(calls),
            thread: Some(thread),
        })
    }

    /// Has `act` done within a transaction and waits until that is over. `act` may be called again where it failed.
    pub(super) fn call<T: Send + 'static>(
        &self,
        sync: Sync,
        mut act: impl FnMut(&Tx<'_>) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = sync_channel(1);
        let (kept, keep) = sync_channel(1);
        let call = Call {
            sync,
            act: Box::new(move |tx| {
                let value = act(tx)?;
                // The receiver outlives the call; an older value would be of an attempt that was undone.
                let _ = kept.try_send(value);
                Ok(())
            }),
            answer: Box::new(move |result| {
                let _ = answer.send(result);
            }),
        };
        let calls = self.calls.as_ref().ok_or(StoreError::Closed)?;
        calls.send(call).map_err(|_| StoreError::Closed)?;
        answered.recv().map_err(|_| StoreError::Closed)??;
        keep.try_recv().map_err(|_| StoreError::Closed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was already seen as `Closed` by whoever called.
            let _ = thread.join();
        }
    }
}

fn run(mut desk: Desk, inbox: &Receiver<Call>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut synchronous = true;
    while let Ok(first) = inbox.recv() {
        batch.push(first);
        batch.extend(inbox.try_iter().take(BATCH_MAX - 1));
        let wanted = !desk.relaxed && batch.iter().any(|call| call.sync == Sync::Before);
        let results = write(&mut desk, &mut batch, (wanted, &mut synchronous));
        for (call, result) in batch.drain(..).zip(results) {
            (call.answer)(result);
        }
    }
}

/// One transaction. The result of each call; where the transaction as a whole failed, its error for all of them.
fn write(
    desk: &mut Desk,
    batch: &mut [Call],
    (wanted, synchronous): (bool, &mut bool),
) -> Vec<Result<()>> {
    let everyone = |error: StoreError, batch: &[Call]| vec![Err(error); batch.len()];
    let turn = match desk.turnstile.take() {
        Ok(turn) => turn,
        Err(error) => return everyone(error, batch),
    };
    let outcome = transact(desk, batch, (wanted, synchronous));
    drop(turn);
    match outcome {
        Ok(results) => {
            if results.iter().any(Result::is_ok) {
                desk.watch.changed();
            }
            results
        }
        Err(fault) => everyone(fault.at(&desk.path), batch),
    }
}

fn transact(
    desk: &Desk,
    batch: &mut [Call],
    (wanted, synchronous): (bool, &mut bool),
) -> Sql<Vec<Result<()>>> {
    let connection = &desk.connection;
    if wanted != *synchronous {
        let level = if wanted { "FULL" } else { "NORMAL" };
        connection.pragma_update(None, "synchronous", level)?;
        *synchronous = wanted;
    }
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let all = each(desk, batch).and_then(|results| {
        connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(results)
    });
    if all.is_err() && !connection.is_autocommit() {
        // Where even this fails, SQLite has undone the transaction itself.
        let _ = connection.execute_batch("ROLLBACK");
    }
    all
}

/// Each call within a savepoint of its own, so that one that is refused leaves the others alone.
fn each(desk: &Desk, batch: &mut [Call]) -> Sql<Vec<Result<()>>> {
    let connection = &desk.connection;
    let tx = Tx {
        connection,
        policy: &desk.policy,
    };
    let mut results = Vec::with_capacity(batch.len());
    for call in batch {
        connection.prepare_cached("SAVEPOINT one")?.execute([])?;
        match (call.act)(&tx) {
            Ok(()) => results.push(Ok(())),
            // A full disk, a damaged page: the transaction as a whole cannot go on.
            Err(Fault::Sql(error)) if connection.is_autocommit() => return Err(error.into()),
            Err(fault) => {
                connection.prepare_cached("ROLLBACK TO one")?.execute([])?;
                results.push(Err(fault.at(&desk.path)));
            }
        }
        connection.prepare_cached("RELEASE one")?.execute([])?;
    }
    Ok(results)
}
