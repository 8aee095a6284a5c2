//! The store for many machines: a Redis or Valkey server that workers and servers reach over the net.
//!
//! A hash a job, with its record as [`rows`] writes it; ordered sets of what waits, what is leased, what is delayed and
//! what is over; streams of events, whose ids are those of [`EventId`]. Every key of a queue begins alike and has the
//! queue's name in braces, so that a cluster keeps all of them on one server.
//!
//! A job's life follows the rules of `lifecycle`, as in every store: they make a new record from the one known here,
//! and one script writes it, with all sets and the event, if the job still has the version it was made from. What
//! concerns the queue as a whole (room, keys, the order of arrival, the front, a hold) the scripts decide themselves.
//!
//! In reading order: [`address`], [`wire`], [`connect`], [`guard`] (will this server do?), [`link`] (many callers, one
//! round trip; lost connections), [`watch`] (news), [`scripts`], [`rows`]; then what is asked and what changes.

mod access;
mod address;
mod calls;
mod connect;
mod guard;
mod link;
mod read;
mod rows;
mod scripts;
mod watch;
mod wire;
mod workers;
mod write;

use std::sync::Arc;
use std::time::Duration;

use lowtide_core::job::{JobId, JobState, Moment};

use self::address::{Address, Place};
use self::link::{Link, Target};
use self::rows::{Memory, Versions};
use self::watch::{Ear, Mark};
use self::wire::Command;
use crate::{
    Accepted, AccessKey, Acknowledgement, Artifact, ArtifactId, Call, Candidates, Claimed,
    CommandId, Directive, Durability, EventId, Events, Heartbeat, InputId, Job, JobStore, Lease,
    Listing, Move, Order, Outcome, Policy, Preview, Progress, Removed, Result, Retention,
    SavedSession, Settled, Stats, StoreError, Submission, Swept, Usage, WorkerId, WorkerStatus,
};

pub use self::address::redacted;
pub use self::connect::TlsFiles;
pub use self::watch::Listen;

/// Longest name of a queue, bytes.
const QUEUE_LEN_MAX: usize = 64;

/// How to open the store.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// Such as `redis://user:password@host:6379/0`.
    pub url: String,
    /// Several queues can share a server: letters, digits, `-` and `_`.
    pub queue: String,
    /// Limits and rules.
    pub policy: Policy,
    /// What an accepted job survives. `Full` is refused where the server cannot promise it.
    pub durability: Durability,
    /// Files for `rediss://`.
    pub tls: TlsFiles,
    /// Which changes are worth waking up for.
    pub listen: Listen,
    /// How long a call waits for a server that cannot be reached.
    pub patience: Duration,
}

/// How long a call waits unless told otherwise: as long as a server takes to be started anew.
const PATIENCE: Duration = Duration::from_secs(10);

impl RedisOptions {
    /// The queue `main` on this server, with everything else as it is by default.
    pub fn new(url: &str) -> RedisOptions {
        RedisOptions {
            url: url.to_owned(),
            queue: "main".to_owned(),
            policy: Policy::default(),
            durability: Durability::default(),
            tls: TlsFiles::default(),
            listen: Listen::default(),
            patience: PATIENCE,
        }
    }
}

/// The store on a server.
pub struct RedisStore {
    prefix: String,
    policy: Policy,
    sender: String,
    versions: Versions,
    memory: Memory,
    mark: Arc<Mark>,
    writer: Link,
    reader: Link,
    /// Dropped with the store, which ends its thread.
    _ear: Ear,
    address: Address,
}

impl RedisStore {
    /// Reaches the server and checks that it will do.
    ///
    /// # Errors
    /// `Invalid` for a wrong URL, `Unreachable`, `Denied` where the server refuses us or cannot promise what is asked,
    /// `TooNew`.
    pub fn open(options: RedisOptions) -> Result<RedisStore> {
        let address = Address::parse(&options.url)?;
        let queue = &options.queue;
        let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"-_".contains(&letter);
        if !(1..=QUEUE_LEN_MAX).contains(&queue.len()) || !queue.bytes().all(plain) {
            return Err(StoreError::Invalid {
                field: "the queue's name",
                reason: format!("'{queue}': 1 to {QUEUE_LEN_MAX} of a-z A-Z 0-9 - _ are needed"),
            });
        }
        let tls = match &address.place {
            Place::Host { tls: true, .. } => Some(options.tls.read()?),
            Place::Host { .. } | Place::Socket(_) => None,
        };
        let target = Target {
            address: address.clone(),
            tls,
            prefix: format!("lowtide:{{{queue}}}:"),
            relaxed: options.durability == Durability::Relaxed,
            patience: options.patience,
        };
        let versions = Versions::new();
        let mark = Arc::new(Mark::default());
        let writer = Link::start("job-writer", target.clone(), target.connect()?)?;
        let reader = Link::start("job-reader", target.clone(), target.connect()?)?;
        let ear = Ear::open(
            target.clone(),
            Arc::clone(&mark),
            versions.sender(),
            options.listen,
        )?;
        let store = RedisStore {
            prefix: target.prefix,
            policy: options.policy,
            sender: versions.sender(),
            versions,
            memory: Memory::default(),
            mark,
            writer,
            reader,
            _ear: ear,
            address,
        };
        let schema = Command::new("HSETNX")
            .arg(format!("{}meta", store.prefix))
            .arg("schema")
            .number(guard::SCHEMA);
        store.writer.one(schema, true)?;
        Ok(store)
    }

    /// The server, as it may be shown.
    fn name(&self) -> String {
        self.address.to_string()
    }
}

impl JobStore for RedisStore {
    fn submit(&self, submission: Submission, now: Moment) -> Result<Accepted> {
        let mut accepted = self.accept(&[submission], now)?;
        Ok(accepted.pop().expect("each submission is answered"))
    }

    fn submit_all(&self, submissions: Vec<Submission>, now: Moment) -> Result<Vec<Accepted>> {
        self.accept(&submissions, now)
    }

    fn job(&self, job: JobId) -> Result<Job> {
        self.whole(job)
    }

    fn list(&self, listing: &Listing) -> Result<Vec<Job>> {
        let mut jobs = self.list_jobs(listing)?;
        jobs.iter_mut().for_each(|job| job.hints = None);
        Ok(jobs)
    }

    fn ahead_of(&self, job: JobId) -> Result<Option<u64>> {
        self.before(job)
    }

    fn candidates(&self, per_priority: usize, now: Moment) -> Result<Candidates> {
        self.to_choose(per_priority, now)
    }

    fn stats(&self, now: Moment) -> Result<Stats> {
        self.numbers(now)
    }

    fn claim(
        &self,
        job: JobId,
        worker: &WorkerId,
        lease_for: Duration,
        now: Moment,
    ) -> Result<Claimed> {
        let mut claims = self.claim_all_of(&[job], (worker, lease_for), now)?;
        claims.pop().expect("each job is answered")
    }

    fn claim_all(
        &self,
        jobs: &[JobId],
        worker: &WorkerId,
        lease_for: Duration,
        now: Moment,
    ) -> Result<Vec<Result<Claimed>>> {
        self.claim_all_of(jobs, (worker, lease_for), now)
    }

    fn renew(&self, lease: &Lease, lease_for: Duration, now: Moment) -> Result<Directive> {
        self.renew_lease(lease, lease_for, now)
    }

    fn progress(
        &self,
        lease: &Lease,
        progress: Progress,
        preview: Option<Preview>,
        now: Moment,
    ) -> Result<Directive> {
        self.note_progress(lease, (progress, preview), now)
    }

    fn checkpoint(&self, lease: &Lease, session: SavedSession, now: Moment) -> Result<Directive> {
        self.note_session(lease, &session, now)
    }

    fn park(&self, lease: &Lease, now: Moment) -> Result<Directive> {
        self.step_or_park(lease, true, now)
    }

    fn unpark(&self, lease: &Lease, now: Moment) -> Result<Directive> {
        self.step_or_park(lease, false, now)
    }

    fn give_back(
        &self,
        lease: &Lease,
        session: Option<SavedSession>,
        now: Moment,
    ) -> Result<JobState> {
        self.take_back(lease, session.as_ref(), now)
    }

    fn complete(&self, lease: &Lease, outcome: Outcome, now: Moment) -> Result<()> {
        self.has_result(lease, &outcome, now)
    }

    fn fail(&self, lease: &Lease, reason: &str, retryable: bool, now: Moment) -> Result<JobState> {
        self.has_failed(lease, (reason, retryable), now)
    }

    fn stopped(&self, lease: &Lease, now: Moment) -> Result<()> {
        self.has_stopped(lease, now)
    }

    fn cancel(&self, job: JobId, now: Moment) -> Result<JobState> {
        self.cancel_job(job, now)
    }

    fn pause(&self, job: JobId, now: Moment) -> Result<JobState> {
        self.pause_job(job, true, now)
    }

    fn resume(&self, job: JobId, now: Moment) -> Result<JobState> {
        self.pause_job(job, false, now)
    }

    fn reorder(&self, job: JobId, to: Move, now: Moment) -> Result<()> {
        self.move_job(job, to, now)
    }

    fn requeue(&self, job: JobId, now: Moment) -> Result<()> {
        self.requeue_job(job, now)
    }

    fn hold(&self, held: bool, now: Moment) -> Result<()> {
        self.hold_queue(held, now)
    }

    fn sweep(&self, now: Moment) -> Result<Swept> {
        self.pass_time(now)
    }

    fn retain(&self, retention: &Retention, now: Moment) -> Result<Removed> {
        self.forget_old(retention, now)
    }

    fn artifact(&self, artifact: ArtifactId) -> Result<Option<(JobId, Artifact)>> {
        self.find_artifact(artifact)
    }

    fn known_artifacts(&self, of: &[ArtifactId]) -> Result<Vec<ArtifactId>> {
        self.have_jobs(of)
    }

    fn named_inputs(&self, of: &[InputId]) -> Result<Vec<InputId>> {
        self.have_names(of)
    }

    fn preview(&self, job: JobId) -> Result<Option<Preview>> {
        self.latest_preview(job)
    }

    fn events_after(&self, after: EventId, job: Option<JobId>, limit: usize) -> Result<Events> {
        self.log_after(after, job, limit)
    }

    fn change_mark(&self) -> Result<u64> {
        Ok(self.mark.now())
    }

    fn wait_change(&self, seen: u64, timeout: Duration) -> Result<u64> {
        Ok(self.mark.wait(seen, timeout))
    }

    fn nudge(&self) {
        self.mark.changed();
    }

    fn trouble(&self) -> Option<StoreError> {
        self.writer.trouble().or_else(|| self.reader.trouble())
    }

    fn send(
        &self,
        worker: &WorkerId,
        order: Order,
        expires: Moment,
        now: Moment,
    ) -> Result<CommandId> {
        self.give((worker, &order), expires, now)
    }

    fn commands(&self, worker: &WorkerId, now: Moment) -> Result<Vec<crate::Command>> {
        self.open_orders(worker, now)
    }

    fn acknowledge(
        &self,
        worker: &WorkerId,
        command: CommandId,
        answer: Acknowledgement,
    ) -> Result<()> {
        self.answer((worker, command), &answer)
    }

    fn command(&self, command: CommandId) -> Result<crate::Command> {
        self.order(command)
    }

    fn heartbeat(&self, heartbeat: Heartbeat, now: Moment) -> Result<()> {
        self.beat(&heartbeat, now)
    }

    fn forget_worker(&self, worker: &WorkerId) -> Result<()> {
        self.forget_one(worker)
    }

    fn bury(&self, worker: &WorkerId, now: Moment) -> Result<u64> {
        self.bury_worker(worker, now)
    }

    fn workers(&self) -> Result<Vec<WorkerStatus>> {
        self.all_workers()
    }

    fn take_calls(&self, limit: usize, hold_for: Duration, now: Moment) -> Result<Vec<Call>> {
        self.get_calls(limit, hold_for, now)
    }

    fn settle_call(&self, call: &Call, settled: &Settled, now: Moment) -> Result<()> {
        self.end_call(call, settled, now)
    }

    fn next_call(&self) -> Result<Option<Moment>> {
        self.first_call()
    }

    fn keep_key(&self, key: &AccessKey) -> Result<()> {
        self.put_key(key)
    }

    fn access_keys(&self) -> Result<Vec<AccessKey>> {
        self.all_keys()
    }

    fn usage(&self) -> Result<Vec<Usage>> {
        self.all_usage()
    }
}
