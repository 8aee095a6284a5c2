//! What every store promises.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use lowtide_core::Bytes;
use lowtide_core::job::{JobId, JobState, Moment, Priority, RetryPolicy};
use serde::{Deserialize, Serialize};

use crate::{
    AccessKey, Acknowledgement, Artifact, ArtifactId, Call, Candidate, Command, CommandId, EventId,
    Events, Heartbeat, InputId, Job, Lease, Order, Outcome, Preview, Progress, Result,
    SavedSession, Settled, StoreError, Submission, Usage, WorkerId, WorkerStatus,
};

/// Limits and rules of a queue. Every process that opens a store brings its own; they should agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Jobs that may wait.
    pub waiting_max: u64,
    /// Jobs in one batch submission.
    pub batch_len_max: usize,
    /// Length of a request, and of what comes with it (hints, report, cards, status).
    pub json_max: Bytes,
    /// Length of a preview.
    pub preview_max: Bytes,
    /// How often and how soon a job is tried again.
    pub retry: RetryPolicy,
    /// Events kept, at least; about this many more may be there until the next sweep.
    pub events_max: u64,
    /// Acknowledged and expired commands, and workers that are gone, are kept this long.
    pub stale_kept: Duration,
    /// What `Retry-After` says while nothing has finished yet.
    pub retry_after_default: Duration,
    /// Priority of a kind, for submissions that name none. What is not here is normal.
    pub priority_by_kind: BTreeMap<String, Priority>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            waiting_max: 10_000,
            batch_len_max: 1_000,
            json_max: Bytes::mib(1),
            preview_max: Bytes::kib(512),
            retry: RetryPolicy::default(),
            events_max: 100_000,
            stale_kept: Duration::from_secs(24 * 60 * 60),
            retry_after_default: Duration::from_secs(10),
            priority_by_kind: BTreeMap::new(),
        }
    }
}

/// An accepted job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its name: the submission's, or that of the job that has its idempotency key.
    pub job: JobId,
    /// Whether it was there before.
    pub existed: bool,
    /// Jobs before it when it was accepted; `None` where it existed.
    pub ahead: Option<u64>,
}

/// What a worker should do at its next look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directive {
    /// Stop; nobody wants it any more.
    pub cancel: bool,
    /// Park; somebody wants the memory.
    pub pause: bool,
}

/// A job and the right to work on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The right.
    pub lease: Lease,
    /// The job.
    pub job: Job,
}

/// What can be chosen among.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Somebody holds the queue: nothing may be claimed.
    pub held: bool,
    /// By priority, then by turn, then by arrival; of several owners each has one in each round.
    pub jobs: Vec<Candidate>,
}

/// Another place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Another priority; its turn there is by arrival.
    To(Priority),
    /// Before all others of its priority.
    ToFront,
}

/// Which jobs to list, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Only those in one of these states; empty for all.
    pub states: Vec<JobState>,
    /// Only those of this owner.
    pub owner: Option<String>,
    /// Only those that arrived before this one (the `seq` of the last one seen).
    pub before: Option<u64>,
    /// At most this many.
    pub limit: usize,
}

/// What passing time did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Jobs whose lease ended: they wait again, or are failed or cancelled.
    pub leases_ended: u64,
    /// Jobs that failed because they were to begin earlier.
    pub too_late: u64,
}

/// How much of the past is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Jobs that were over for longer go. `None`: none.
    pub age_max: Option<Duration>,
    /// When the artifacts together have more bytes, the jobs that were over first go. `None`: no bound.
    pub artifacts_max: Option<Bytes>,
    /// When there are more jobs that are over, those that were over first go. `None`: no bound.
    pub jobs_max: Option<u64>,
}

/// What retention removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Jobs that are no longer known.
    pub jobs: u64,
    /// Artifacts whose files can go.
    pub artifacts: Vec<ArtifactId>,
    /// Whether there is more to remove: one call does a bounded amount of work.
    pub more: bool,
}

/// What happened in a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minute {
    /// Its beginning.
    #[serde(with = "crate::words::moment")]
    pub from: Moment,
    /// Jobs accepted.
    pub submitted: u64,
    /// Attempts begun.
    pub started: u64,
    /// Jobs done.
    pub done: u64,
    /// Jobs failed.
    pub failed: u64,
    /// Jobs cancelled.
    pub cancelled: u64,
    /// Milliseconds from submission to the first attempt, summed over jobs begun.
    pub waited_ms: u64,
    /// Milliseconds of the last attempt, summed over jobs done.
    pub ran_ms: u64,
}

/// Numbers about the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Whether the queue is held.
    pub held: bool,
    /// Jobs by state and priority; what is not here is 0.
    pub counts: HashMap<(JobState, Priority), u64>,
    /// By priority: when the job that has waited longest was accepted.
    pub oldest_waiting: BTreeMap<Priority, Moment>,
    /// When the longest running attempt's job was first begun.
    pub oldest_running: Option<Moment>,
    /// The last hour, oldest first; minutes without anything are left out.
    pub minutes: Vec<Minute>,
    /// Files of finished jobs.
    pub artifacts: u64,
    /// Their bytes.
    pub artifact_bytes: u64,
    /// The latest event.
    pub last_event: EventId,
}

impl Stats {
    /// Jobs in this state, whatever their class.
    pub fn in_state(&self, state: JobState) -> u64 {
        Priority::ALL
            .iter()
            .filter_map(|&priority| self.counts.get(&(state, priority)))
            .sum()
    }
}

/// A durable queue: what it accepted is there after any process was killed.
///
/// Calls block; they may come from many threads. `now` is the caller's clock, and the only one. Times of leases and
/// delays are kept as the clock of that call had them: where clocks jump, jobs run earlier or later, but never twice at
/// once with both results kept, and are never lost.
pub trait JobStore: Send + Sync {
    /// Accepts a job: durable before this returns.
    ///
    /// # Errors
    /// `QueueFull`, `Conflict`, `TooLarge`, `Invalid`, or the store's own trouble; then nothing was accepted.
    fn submit(&self, submission: Submission, now: Moment) -> Result<Accepted>;

    /// Accepts all of these or none.
    ///
    /// # Errors
    /// As [`JobStore::submit`], of the first that cannot be accepted.
    fn submit_all(&self, submissions: Vec<Submission>, now: Moment) -> Result<Vec<Accepted>>;

    /// Everything known of a job.
    ///
    /// # Errors
    /// `NotFound`.
    fn job(&self, job: JobId) -> Result<Job>;

    /// Jobs, newest first, without their requests and hints.
    fn list(&self, listing: &Listing) -> Result<Vec<Job>>;

    /// Jobs that would be begun before this one if order were all; `None` when it does not wait for a worker.
    ///
    /// # Errors
    /// `NotFound`.
    fn ahead_of(&self, job: JobId) -> Result<Option<u64>>;

    /// What can be claimed now: at most `per_priority` of each priority, so that none hides another. Within a priority
    /// owners have turns, so that none hides another, either.
    fn candidates(&self, per_priority: usize, now: Moment) -> Result<Candidates>;

    /// Numbers about the queue.
    fn stats(&self, now: Moment) -> Result<Stats>;

    /// Leases a job to a worker for so long.
    ///
    /// # Errors
    /// `NotFound`, `NotClaimable`.
    fn claim(
        &self,
        job: JobId,
        worker: &WorkerId,
        lease_for: Duration,
        now: Moment,
    ) -> Result<Claimed>;

    /// Leases several jobs to a worker, each as [`JobStore::claim`] would: the answers are in the order of the jobs.
    ///
    /// # Errors
    /// The store's own trouble; then none was leased. What cannot be claimed has its own answer.
    fn claim_all(
        &self,
        jobs: &[JobId],
        worker: &WorkerId,
        lease_for: Duration,
        now: Moment,
    ) -> Result<Vec<Result<Claimed>>>;

    /// Makes the lease end so much later than now.
    ///
    /// # Errors
    /// `LeaseLost`.
    fn renew(&self, lease: &Lease, lease_for: Duration, now: Moment) -> Result<Directive>;

    /// Says how far the job is, and shows what it looks like.
    ///
    /// # Errors
    /// `LeaseLost`, `TooLarge`.
    fn progress(
        &self,
        lease: &Lease,
        progress: Progress,
        preview: Option<Preview>,
        now: Moment,
    ) -> Result<Directive>;

    /// Says where the session was written down, should this worker vanish.
    ///
    /// # Errors
    /// `LeaseLost`.
    fn checkpoint(&self, lease: &Lease, session: SavedSession, now: Moment) -> Result<Directive>;

    /// Another job steps meanwhile; the lease goes on.
    ///
    /// # Errors
    /// `LeaseLost`.
    fn park(&self, lease: &Lease, now: Moment) -> Result<Directive>;

    /// The job steps again.
    ///
    /// # Errors
    /// `LeaseLost`.
    fn unpark(&self, lease: &Lease, now: Moment) -> Result<Directive>;

    /// Gives the job back: it is queued, or paused or cancelled where that was asked for. This counts as no failure.
    /// `session`: where it can go on; `None` leaves the latest checkpoint.
    ///
    /// # Errors
    /// `LeaseLost`.
    fn give_back(
        &self,
        lease: &Lease,
        session: Option<SavedSession>,
        now: Moment,
    ) -> Result<JobState>;

    /// Makes the result visible, once and durably. The same lease and outcome a second time change nothing.
    ///
    /// # Errors
    /// `LeaseLost`, `TooLarge`.
    fn complete(&self, lease: &Lease, outcome: Outcome, now: Moment) -> Result<()>;

    /// Ends the attempt with an error. Retryable ones wait and come back, up to the limit.
    ///
    /// # Errors
    /// `LeaseLost`.
    fn fail(&self, lease: &Lease, reason: &str, retryable: bool, now: Moment) -> Result<JobState>;

    /// The worker has stopped, as it was told to.
    ///
    /// # Errors
    /// `LeaseLost`; `WrongState` where nobody asked for it.
    fn stopped(&self, lease: &Lease, now: Moment) -> Result<()>;

    /// Cancels a job: at once where it waits, at the worker's next look where one has it (then its state is what it was).
    /// A cancelled one stays so.
    ///
    /// # Errors
    /// `NotFound`, `WrongState`.
    fn cancel(&self, job: JobId, now: Moment) -> Result<JobState>;

    /// Pauses a job: at once where it waits, at the worker's next look where one has it.
    ///
    /// # Errors
    /// `NotFound`, `WrongState`.
    fn pause(&self, job: JobId, now: Moment) -> Result<JobState>;

    /// Lets a paused job go on.
    ///
    /// # Errors
    /// `NotFound`, `WrongState`.
    fn resume(&self, job: JobId, now: Moment) -> Result<JobState>;

    /// Gives a waiting job another place.
    ///
    /// # Errors
    /// `NotFound`, `WrongState`.
    fn reorder(&self, job: JobId, to: Move, now: Moment) -> Result<()>;

    /// Sends a failed job through the queue again, with a new count of setbacks and its history kept.
    ///
    /// # Errors
    /// `NotFound`, `WrongState`, `QueueFull`.
    fn requeue(&self, job: JobId, now: Moment) -> Result<()>;

    /// Holds the queue, or lets it go: nothing is claimed while it is held; what runs goes on.
    fn hold(&self, held: bool, now: Moment) -> Result<()>;

    /// Lets time pass: ended leases, jobs that were to begin earlier, surplus events, stale commands and workers. Any
    /// process may call it at any time; once a second is often enough.
    fn sweep(&self, now: Moment) -> Result<Swept>;

    /// Forgets what is older or larger than this. The caller then removes the files.
    fn retain(&self, retention: &Retention, now: Moment) -> Result<Removed>;

    /// The finished file of this name, and whose it is.
    fn artifact(&self, artifact: ArtifactId) -> Result<Option<(JobId, Artifact)>>;

    /// Which of these are files of finished jobs; the others can go once no attempt can still publish them.
    fn known_artifacts(&self, of: &[ArtifactId]) -> Result<Vec<ArtifactId>>;

    /// Which of these inputs jobs name, living or over; the others can go once no submission can still name them.
    fn named_inputs(&self, of: &[InputId]) -> Result<Vec<InputId>>;

    /// The latest preview of a running or parked job.
    fn preview(&self, job: JobId) -> Result<Option<Preview>>;

    /// Events after this one, oldest first, of one job or of all.
    fn events_after(&self, after: EventId, job: Option<JobId>, limit: usize) -> Result<Events>;

    /// A number that is another one after something changed, by whatever process.
    fn change_mark(&self) -> Result<u64>;

    /// Waits until the number is another one than `seen`, at most `timeout`; returns what it is then.
    fn wait_change(&self, seen: u64, timeout: Duration) -> Result<u64>;

    /// Counts as a change and makes those who wait look at once: for callers who know that another process changed
    /// something, or of another reason to look, such as the end of this process.
    fn nudge(&self);

    /// What keeps the store from answering now, as far as that is known without asking it: nothing for a store that is
    /// a file.
    fn trouble(&self) -> Option<StoreError> {
        None
    }

    /// Gives an order to a worker; it need not be done after `expires`.
    fn send(
        &self,
        worker: &WorkerId,
        order: Order,
        expires: Moment,
        now: Moment,
    ) -> Result<CommandId>;

    /// Orders this worker has not acknowledged, oldest first.
    fn commands(&self, worker: &WorkerId, now: Moment) -> Result<Vec<Command>>;

    /// Says how a command ended; the first answer counts.
    ///
    /// # Errors
    /// `NoCommand`.
    fn acknowledge(
        &self,
        worker: &WorkerId,
        command: CommandId,
        answer: Acknowledgement,
    ) -> Result<()>;

    /// A command and how it ended.
    ///
    /// # Errors
    /// `NoCommand`.
    fn command(&self, command: CommandId) -> Result<Command>;

    /// Notes what a worker says of itself.
    ///
    /// # Errors
    /// `TooLarge`, `Invalid`.
    fn heartbeat(&self, heartbeat: Heartbeat, now: Moment) -> Result<()>;

    /// Forgets a worker that said goodbye.
    fn forget_worker(&self, worker: &WorkerId) -> Result<()>;

    /// Ends the leases of a worker that is known to have died, as of a process that its parent saw end, and forgets it;
    /// returns how many jobs go back to the queue, or fail for good. Without this they wait until their leases end.
    fn bury(&self, worker: &WorkerId, now: Moment) -> Result<u64>;

    /// All workers known, also those that count as gone.
    fn workers(&self) -> Result<Vec<WorkerStatus>>;

    /// Takes jobs that are over and whose end is still to be told, those first that are due first; nobody else gets them
    /// for so long, or until [`JobStore::settle_call`]. What is not settled is due again then.
    fn take_calls(&self, limit: usize, hold_for: Duration, now: Moment) -> Result<Vec<Call>>;

    /// Notes with the job what came of a call, durably; nothing, if somebody else has it meanwhile.
    fn settle_call(&self, call: &Call, settled: &Settled, now: Moment) -> Result<()>;

    /// When the next call is due.
    fn next_call(&self) -> Result<Option<Moment>>;

    /// Keeps a key, in the place of an earlier one of this id: durable before this returns, and known to every process
    /// that has this store. What becomes of the jobs of its name is counted from then on.
    fn keep_key(&self, key: &AccessKey) -> Result<()>;

    /// All keys there ever were, in the order in which they were made.
    fn access_keys(&self) -> Result<Vec<AccessKey>>;

    /// What became of the jobs of each name that has or had a key, in the order of the names.
    fn usage(&self) -> Result<Vec<Usage>>;
}
