//! What can go wrong, with the numbers.

use std::path::{Path, PathBuf};

use lowtide_core::job::{JobId, JobState, Moment};

use crate::{ArtifactId, CommandId, InputId};

/// Why a lease does not count any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Its time is over.
    #[error("it ended at {} ms", until.0)]
    Expired {
        /// When it ended.
        until: Moment,
    },
    /// Another attempt began, or the job waits for one.
    #[error("the job is {state} at attempt {attempt}")]
    Superseded {
        /// Where the job is now.
        state: JobState,
        /// Its latest attempt.
        attempt: u32,
    },
}

/// Why a job cannot be leased.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclaimable {
    /// It is not waiting for a worker.
    #[error("it is {state}")]
    State {
        /// What it is.
        state: JobState,
    },
    /// Its time has not come.
    #[error("not before {} ms", until.0)]
    TooEarly {
        /// When it comes.
        until: Moment,
    },
    /// It was to begin earlier.
    #[error("it was to begin by {} ms", start_by.0)]
    TooLate {
        /// When it was to begin.
        start_by: Moment,
    },
    /// Somebody holds the whole queue.
    #[error("the queue is held")]
    QueueHeld,
    /// As many jobs of its owner run as may.
    #[error("{running} jobs of its owner run, as many as may")]
    OwnerBusy {
        /// Jobs that run.
        running: u64,
    },
}

/// What a second submission disagrees with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Clash {
    /// The idempotency key.
    #[error("idempotency key")]
    Key,
    /// The id.
    #[error("id")]
    Id,
}

/// Why a store refused or could not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No such job; retention may have removed it.
    #[error("there is no job {job}")]
    NotFound {
        /// The name asked for.
        job: JobId,
    },
    /// No such command, or one for another worker.
    #[error("there is no command {command} for this worker")]
    NoCommand {
        /// The number asked for.
        command: CommandId,
    },
    /// The key or the id was used for another request.
    #[error("this {clash} was used for another request, job {existing}")]
    Conflict {
        /// What both have in common.
        clash: Clash,
        /// The job that was there first.
        existing: JobId,
    },
    /// The bounded queue has no room.
    #[error("{waiting} jobs wait and {limit} may; try again in {retry_after_ms} ms")]
    QueueFull {
        /// Jobs waiting now.
        waiting: u64,
        /// Jobs that may wait.
        limit: u64,
        /// When there may be room, from how fast jobs finished lately.
        retry_after_ms: u64,
    },
    /// As many jobs of this owner wait as may.
    #[error("{waiting} jobs of '{owner}' wait and {limit} may; try again in {retry_after_ms} ms")]
    OwnerFull {
        /// Whose.
        owner: String,
        /// Jobs of this owner that wait now.
        waiting: u64,
        /// Jobs of this owner that may wait.
        limit: u64,
        /// When there may be room, from how fast jobs finished lately.
        retry_after_ms: u64,
    },
    /// Something submitted is longer than allowed.
    #[error("{field} has {bytes} bytes, at most {limit} are allowed")]
    TooLarge {
        /// What is too long.
        field: &'static str,
        /// How long it is.
        bytes: u64,
        /// How long it may be.
        limit: u64,
    },
    /// Something submitted is not what it should be.
    #[error("{field}: {reason}")]
    Invalid {
        /// What is wrong.
        field: &'static str,
        /// What was expected.
        reason: String,
    },
    /// The job cannot be leased now.
    #[error("job {job} cannot be claimed: {why}")]
    NotClaimable {
        /// The job.
        job: JobId,
        /// Why not.
        why: Unclaimable,
    },
    /// What was asked for makes no sense where the job is in its life.
    #[error("job {job} is {state}, so that one cannot {verb} it")]
    WrongState {
        /// The job.
        job: JobId,
        /// Where it is.
        state: JobState,
        /// What was asked for.
        verb: &'static str,
    },
    /// The writer no longer has the job; nothing was changed.
    #[error("attempt {attempt} no longer has job {job}: {why}")]
    LeaseLost {
        /// The job.
        job: JobId,
        /// The attempt that wrote.
        attempt: u32,
        /// What became of it.
        why: Lost,
    },
    /// Another process kept the store to itself for too long.
    #[error("{} is busy: another process has been writing for {waited_ms} ms", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
        /// How long was waited.
        waited_ms: u64,
    },
    /// The server that keeps the store does not answer. Nothing that was accepted is lost, and it is tried again all the
    /// time.
    #[error("the store is unreachable: {store}: {reason}")]
    Unreachable {
        /// The server, without its password.
        store: String,
        /// What the system or the server says.
        reason: String,
    },
    /// The server that keeps the store refuses us, or cannot promise what is asked of it.
    #[error("{store} will not do: {reason}")]
    Denied {
        /// The server, without its password.
        store: String,
        /// Why, and what to change.
        reason: String,
    },
    /// There is no room for more.
    #[error("no room left to write {}: free some space or raise the limit", path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened, read or written.
    #[error("cannot {verb} {}: {reason}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The database is damaged, or is none.
    #[error("{} is damaged ({reason}): restore a backup, or move the file away to begin anew", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The file is a database of another program.
    #[error("{} belongs to another program (application id {application_id:#x})", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it says it is.
        application_id: i32,
    },
    /// The file was written by a newer version.
    #[error("{} has schema {found}, this version knows up to {known}: use a newer lowtide", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest schema known here.
        known: u32,
    },
    /// The database refused a statement; this is a bug.
    #[error("{}: {reason}; this is a bug", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What it says.
        reason: String,
    },
    /// The store's writer has ended.
    #[error("the store is closed")]
    Closed,
    /// The file of an artifact is not there.
    #[error("artifact {artifact} has no file")]
    ArtifactMissing {
        /// Which.
        artifact: ArtifactId,
    },
    /// The file of an artifact is not what was written.
    #[error("artifact {artifact} is damaged: {reason}")]
    ArtifactDamaged {
        /// Which.
        artifact: ArtifactId,
        /// What differs.
        reason: String,
    },
    /// There is no such input; one that no job names goes after some time.
    #[error("there is no input {input}: send it again")]
    InputMissing {
        /// Which.
        input: InputId,
    },
    /// The file of an input is not what was sent.
    #[error("input {input} is damaged, its sum is {found}: send it again")]
    InputDamaged {
        /// Which.
        input: InputId,
        /// What its file is.
        found: InputId,
    },
    /// Inputs take as much room as they may.
    #[error(
        "inputs take {held} bytes and {limit} may be: remove jobs that name them, or raise the limit"
    )]
    InputsFull {
        /// Bytes of all inputs.
        held: u64,
        /// Bytes they may have.
        limit: u64,
    },
}

/// What a store answers.
pub type Result<T> = std::result::Result<T, StoreError>;

impl StoreError {
    /// Whether the same call may succeed later without anybody changing it.
    pub fn is_retryable(&self) -> bool {
        match self {
            StoreError::QueueFull { .. }
            | StoreError::OwnerFull { .. }
            | StoreError::Busy { .. }
            | StoreError::NoRoom { .. }
            | StoreError::Unreachable { .. }
            | StoreError::InputsFull { .. } => true,
            StoreError::NotFound { .. }
            | StoreError::NoCommand { .. }
            | StoreError::Conflict { .. }
            | StoreError::TooLarge { .. }
            | StoreError::Invalid { .. }
            | StoreError::NotClaimable { .. }
            | StoreError::WrongState { .. }
            | StoreError::LeaseLost { .. }
            | StoreError::Denied { .. }
            | StoreError::Io { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Foreign { .. }
            | StoreError::TooNew { .. }
            | StoreError::Database { .. }
            | StoreError::Closed
            | StoreError::ArtifactMissing { .. }
            | StoreError::ArtifactDamaged { .. }
            | StoreError::InputMissing { .. }
            | StoreError::InputDamaged { .. } => false,
        }
    }

    /// What the system said about a file.
    pub fn io(verb: &'static str, path: &Path, error: &std::io::Error) -> StoreError {
        use std::io::ErrorKind;
        let path = path.to_owned();
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                StoreError::NoRoom { path }
            }
            _ => StoreError::Io {
                verb,
                path,
                reason: error.to_string(),
            },
        }
    }
}
