//! The embedded store: one SQLite file, shared by the processes of one machine.
//!
//! One thread writes, in transactions that carry many callers at once; readers have connections of their own, which
//! neither wait for it nor keep it waiting. Between processes, [`turn`] decides who writes next.

mod access;
mod calls;
mod fault;
mod read;
mod rows;
mod schema;
mod turn;
mod watch;
mod workers;
mod write;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lowtide_core::Bytes;
use lowtide_core::job::{JobId, JobState, Moment};

use self::fault::{Fault, Sql};
use self::read::Readers;
use self::turn::Turnstile;
use self::watch::Watch;
use self::write::Tx;
use self::writer::{Desk, Sync, Writer};
use crate::{
    Accepted, AccessKey, Acknowledgement, Artifact, ArtifactId, Call, Candidates, Claimed, Command,
    CommandId, Directive, EventId, Events, Heartbeat, InputId, Job, JobStore, Lease, Listing, Move,
    Order, Outcome, Policy, Preview, Progress, Removed, Result, Retention, SavedSession, Settled,
    Stats, StoreError, Submission, Swept, Usage, WorkerId, WorkerStatus,
};

/// Pages that a backup copies at a time: all.
const BACKUP_PAGES: i32 = -1;
/// A backup that found the store locked tries again after this.
const BACKUP_AGAIN: Duration = Duration::from_millis(10);

/// What an accepted job survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Killed processes and power cuts: the disk has it before the caller is told.
    #[default]
    Full,
    /// Killed processes; a power cut may take the last moments.
    Relaxed,
}

/// How to open the store.
#[derive(Clone, Debug, Default)]
pub struct SqliteOptions {
    /// Limits and rules.
    pub policy: Policy,
    /// What an accepted job survives.
    pub durability: Durability,
    /// How large the file may grow; `None` for as large as the disk lets it.
    pub size_max: Option<Bytes>,
}

/// The embedded store.
pub struct SqliteStore {
    readers: Readers,
    watch: Arc<Watch>,
    // Dropped last, so that the connection that closes last can write: it moves the log into the file.
    writer: Writer,
    path: PathBuf,
}

impl SqliteStore {
    /// Opens the file, and makes it, or brings it up to date, where necessary. Its folder has to be there.
    ///
    /// # Errors
    /// `Corrupt`, `Foreign`, `TooNew`, `Io`, `NoRoom`, `Busy`.
    pub fn open(path: &Path, options: SqliteOptions) -> Result<SqliteStore> {
        let turnstile = Turnstile::open(path)?;
        let turn = turnstile.take()?;
        let connection = schema::open(path, options.size_max)?;
        drop(turn);
        let watch = Arc::new(Watch::open(path)?);
        let writer = Writer::start(Desk {
            connection,
            path: path.to_owned(),
            policy: Arc::new(options.policy),
            turnstile,
            watch: Arc::clone(&watch),
            relaxed: options.durability == Durability::Relaxed,
        })?;
        Ok(SqliteStore {
            writer,
            readers: Readers::new(path.to_owned()),
            watch,
            path: path.to_owned(),
        })
    }

    /// Copies the whole store, as it is at one moment, to a new file, while it is in use.
    ///
    /// # Errors
    /// `Io` where the file is there already, or cannot be written.
    pub fn backup(&self, to: &Path) -> Result<()> {
        let exists = std::fs::File::create_new(to);
        let file = exists.map_err(|error| StoreError::io("create", to, &error))?;
        let source = schema::open_reader(&self.path)?;
        let copy = || -> Sql<()> {
            let mut target = rusqlite::Connection::open(to)?;
            let backup = rusqlite::backup::Backup::new(&source, &mut target)?;
            // All in one step: between two, a write by anybody else would begin the copy anew, and a large one would
            // never end.
            while backup.step(BACKUP_PAGES)? != rusqlite::backup::StepResult::Done {
                std::thread::sleep(BACKUP_AGAIN);
            }
            Ok(())
        };
        copy().map_err(|fault| fault.at(to))?;
        file.sync_all()
            .map_err(|error| StoreError::io("sync", to, &error))
    }

    /// Reads the whole file and says what is wrong with it.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn check(&self) -> Result<()> {
        let reason: String = self.read(|connection| {
            Ok(connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?)
        })?;
        match reason.as_str() {
            "ok" => Ok(()),
            _ => Err(StoreError::Corrupt {
                path: self.path.clone(),
                reason,
            }),
        }
    }

    fn read<T>(&self, act: impl FnOnce(&rusqlite::Connection) -> Sql<T>) -> Result<T> {
        self.readers.read(act)
    }

    /// On the disk before this returns.
    fn write<T: Send + 'static>(
        &self,
        act: impl FnMut(&Tx<'_>) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        self.writer.call(Sync::Before, act)
    }

    /// Seen by everybody when this returns; on the disk with the next one that has to be.
    fn note<T: Send + 'static>(
        &self,
        act: impl FnMut(&Tx<'_>) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        self.writer.call(Sync::Later, act)
    }
}

impl JobStore for SqliteStore {
    fn submit(&self, submission: Submission, now: Moment) -> Result<Accepted> {
        let mut accepted = self.submit_all(vec![submission], now)?;
        Ok(accepted.pop().expect("each submission is answered"))
    }

    fn submit_all(&self, submissions: Vec<Submission>, now: Moment) -> Result<Vec<Accepted>> {
        self.write(move |tx| tx.submit(&submissions, now))
    }

    fn job(&self, job: JobId) -> Result<Job> {
        self.read(|connection| read::job(connection, job))
    }

    fn list(&self, listing: &Listing) -> Result<Vec<Job>> {
        self.read(|connection| read::list(connection, listing))
    }

    fn ahead_of(&self, job: JobId) -> Result<Option<u64>> {
        self.read(|connection| read::ahead_of(connection, job))
    }

    fn candidates(&self, per_priority: usize, now: Moment) -> Result<Candidates> {
        self.read(|connection| read::candidates(connection, per_priority, now))
    }

    fn stats(&self, now: Moment) -> Result<Stats> {
        self.read(|connection| read::stats(connection, now))
    }

    fn claim(
        &self,
        job: JobId,
        worker: &WorkerId,
        lease_for: Duration,
        now: Moment,
    ) -> Result<Claimed> {
        let worker = worker.clone();
        self.note(move |tx| tx.claim((job, &worker), lease_for, now))
    }

    fn claim_all(
        &self,
        jobs: &[JobId],
        worker: &WorkerId,
        lease_for: Duration,
        now: Moment,
    ) -> Result<Vec<Result<Claimed>>> {
        let (jobs, worker) = (jobs.to_vec(), worker.clone());
        self.note(move |tx| {
            let claims = jobs.iter().map(|&job| {
                match tx.claim((job, &worker), lease_for, now) {
                    Ok(claimed) => Ok(Ok(claimed)),
                    // It is refused before anything of it is written.
                    Err(Fault::Refused(error)) => Ok(Err(error)),
                    Err(fault) => Err(fault),
                }
            });
            claims.collect()
        })
    }

    fn renew(&self, lease: &Lease, lease_for: Duration, now: Moment) -> Result<Directive> {
        let lease = lease.clone();
        self.note(move |tx| tx.renew(&lease, lease_for, now))
    }

    fn progress(
        &self,
        lease: &Lease,
        progress: Progress,
        preview: Option<Preview>,
        now: Moment,
    ) -> Result<Directive> {
        let lease = lease.clone();
        self.note(move |tx| tx.progress(&lease, (&progress, preview.as_ref()), now))
    }

    fn checkpoint(&self, lease: &Lease, session: SavedSession, now: Moment) -> Result<Directive> {
        let lease = lease.clone();
        self.write(move |tx| tx.checkpoint(&lease, &session, now))
    }

    fn park(&self, lease: &Lease, now: Moment) -> Result<Directive> {
        let lease = lease.clone();
        self.note(move |tx| tx.park(&lease, true, now))
    }

    fn unpark(&self, lease: &Lease, now: Moment) -> Result<Directive> {
        let lease = lease.clone();
        self.note(move |tx| tx.park(&lease, false, now))
    }

    fn give_back(
        &self,
        lease: &Lease,
        session: Option<SavedSession>,
        now: Moment,
    ) -> Result<JobState> {
        let lease = lease.clone();
        self.write(move |tx| tx.give_back(&lease, session.clone(), now))
    }

    fn complete(&self, lease: &Lease, outcome: Outcome, now: Moment) -> Result<()> {
        let lease = lease.clone();
        self.write(move |tx| tx.complete(&lease, &outcome, now))
    }

    fn fail(&self, lease: &Lease, reason: &str, retryable: bool, now: Moment) -> Result<JobState> {
        let (lease, reason) = (lease.clone(), reason.to_owned());
        self.write(move |tx| tx.fail(&lease, (&reason, retryable), now))
    }

    fn stopped(&self, lease: &Lease, now: Moment) -> Result<()> {
        let lease = lease.clone();
        self.write(move |tx| tx.stopped(&lease, now))
    }

    fn cancel(&self, job: JobId, now: Moment) -> Result<JobState> {
        self.write(move |tx| tx.cancel(job, now))
    }

    fn pause(&self, job: JobId, now: Moment) -> Result<JobState> {
        self.write(move |tx| tx.pause(job, true, now))
    }

    fn resume(&self, job: JobId, now: Moment) -> Result<JobState> {
        self.write(move |tx| tx.pause(job, false, now))
    }

    fn reorder(&self, job: JobId, to: Move, now: Moment) -> Result<()> {
        self.write(move |tx| tx.reorder(job, to, now))
    }

    fn requeue(&self, job: JobId, now: Moment) -> Result<()> {
        self.write(move |tx| tx.requeue(job, now))
    }

    fn hold(&self, held: bool, now: Moment) -> Result<()> {
        self.write(move |tx| tx.hold(held, now))
    }

    fn sweep(&self, now: Moment) -> Result<Swept> {
        self.note(move |tx| tx.sweep(now))
    }

    fn retain(&self, retention: &Retention, now: Moment) -> Result<Removed> {
        // On the disk before the caller removes files: a job must not come back without its own.
        let retention = *retention;
        self.write(move |tx| tx.retain(&retention, now))
    }

    fn artifact(&self, artifact: ArtifactId) -> Result<Option<(JobId, Artifact)>> {
        self.read(|connection| read::artifact(connection, artifact))
    }

    fn known_artifacts(&self, of: &[ArtifactId]) -> Result<Vec<ArtifactId>> {
        self.read(|connection| read::known_artifacts(connection, of))
    }

    fn named_inputs(&self, of: &[InputId]) -> Result<Vec<InputId>> {
        self.read(|connection| read::named_inputs(connection, of))
    }

    fn preview(&self, job: JobId) -> Result<Option<Preview>> {
        self.read(|connection| read::preview(connection, job))
    }

    fn events_after(&self, after: EventId, job: Option<JobId>, limit: usize) -> Result<Events> {
        self.read(|connection| read::events_after(connection, after, job, limit))
    }

    fn change_mark(&self) -> Result<u64> {
        self.watch.mark()
    }

    fn wait_change(&self, seen: u64, timeout: Duration) -> Result<u64> {
        self.watch.wait(seen, timeout)
    }

    fn nudge(&self) {
        self.watch.nudge();
    }

    fn send(
        &self,
        worker: &WorkerId,
        order: Order,
        expires: Moment,
        now: Moment,
    ) -> Result<CommandId> {
        let worker = worker.clone();
        self.write(move |tx| tx.send((&worker, &order), expires, now))
    }

    fn commands(&self, worker: &WorkerId, now: Moment) -> Result<Vec<Command>> {
        self.read(|connection| workers::open_commands(connection, worker, now))
    }

    fn acknowledge(
        &self,
        worker: &WorkerId,
        command: CommandId,
        answer: Acknowledgement,
    ) -> Result<()> {
        let worker = worker.clone();
        self.note(move |tx| tx.acknowledge((&worker, command), &answer))
    }

    fn command(&self, command: CommandId) -> Result<Command> {
        self.read(|connection| workers::command(connection, command))
    }

    fn heartbeat(&self, heartbeat: Heartbeat, now: Moment) -> Result<()> {
        self.note(move |tx| tx.heartbeat(&heartbeat, now))
    }

    fn forget_worker(&self, worker: &WorkerId) -> Result<()> {
        let worker = worker.clone();
        self.note(move |tx| tx.forget_worker(&worker))
    }

    fn bury(&self, worker: &WorkerId, now: Moment) -> Result<u64> {
        let worker = worker.clone();
        self.write(move |tx| tx.bury(&worker, now))
    }

    fn workers(&self) -> Result<Vec<WorkerStatus>> {
        self.read(workers::workers)
    }

    fn take_calls(&self, limit: usize, hold_for: Duration, now: Moment) -> Result<Vec<Call>> {
        self.write(move |tx| tx.take_calls(limit, hold_for, now))
    }

    fn settle_call(&self, call: &Call, settled: &Settled, now: Moment) -> Result<()> {
        let (call, settled) = (*call, settled.clone());
        self.write(move |tx| tx.settle_call(&call, &settled, now))
    }

    fn next_call(&self) -> Result<Option<Moment>> {
        self.read(calls::next)
    }

    fn keep_key(&self, key: &AccessKey) -> Result<()> {
        let key = key.clone();
        self.write(move |tx| tx.keep_key(&key))
    }

    fn access_keys(&self) -> Result<Vec<AccessKey>> {
        self.read(access::keys)
    }

    fn usage(&self) -> Result<Vec<Usage>> {
        self.read(access::usage)
    }
}
