//! What is known of a job.

use serde::{Deserialize, Serialize};

use lowtide_core::job::{JobId, JobState, Moment, Priority, Setbacks};
use lowtide_core::lifecycle::{AfterJob, KeepAlive};

use crate::{ArtifactId, Delivery, InputId, TraceParent, Webhook, WorkerId};

/// What a client wants beside the job itself: what is done with the model afterwards, where it is traced. Where it says
/// nothing, the configuration does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wishes {
    /// After this job.
    #[serde(default, with = "crate::words::after_job_option")]
    pub after_job: Option<AfterJob>,
    /// From then on.
    #[serde(default, with = "crate::words::keep_alive_option")]
    pub keep_alive: Option<KeepAlive>,
    /// What its work is traced as a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceParent>,
}

/// How much of the queue its owner may have. Every submission says it anew: what holds is what is said last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Jobs of this owner that may wait; the submission is refused where there are as many. Without an owner it means
    /// nothing.
    pub waiting_max: Option<u64>,
    /// Jobs of this owner that may run at once; this one is not begun while there are as many.
    pub running_max: Option<u64>,
    /// The highest priority this job may have.
    pub priority_max: Option<Priority>,
}

/// A job somebody wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Its name, made by the submitter: submitting the same again after a lost answer makes no second job.
    pub id: JobId,
    /// The kind of job, such as `text-to-image`; names the processor.
    pub kind: String,
    /// The model, as the user names it.
    pub model: String,
    /// What to do: JSON, which the store never looks into.
    pub request: String,
    /// What a scheduler wants to know without reading the request (sizes, predicted bytes and seconds): JSON.
    pub hints: Option<String>,
    /// How much it matters; `None` leaves it to the policy's priority for the kind.
    pub priority: Option<Priority>,
    /// When it should be finished; schedulers hurry for it.
    pub deadline: Option<Moment>,
    /// When it is no longer worth beginning; it then fails.
    pub start_by: Option<Moment>,
    /// Together with the owner: a second submission with this key is the first one again.
    pub idempotency_key: Option<String>,
    /// Whose it is.
    pub owner: Option<String>,
    /// How much of the queue its owner may have.
    pub quota: Quota,
    /// Whom to tell of it.
    pub webhook: Option<Webhook>,
    /// What to do with the model afterwards.
    pub wishes: Wishes,
    /// The inputs its request names; they are kept as long as the job is known.
    pub inputs: Vec<InputId>,
}

impl Submission {
    /// A plain one: no deadline, no key, no wishes, priority by kind.
    pub fn new(id: JobId, kind: &str, model: &str, request: &str) -> Submission {
        Submission {
            id,
            kind: kind.to_owned(),
            model: model.to_owned(),
            request: request.to_owned(),
            hints: None,
            priority: None,
            deadline: None,
            start_by: None,
            idempotency_key: None,
            owner: None,
            quota: Quota::default(),
            webhook: None,
            wishes: Wishes::default(),
            inputs: Vec::new(),
        }
    }
}

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it does, such as `loading`, `denoise`, `decode`.
    pub phase: String,
    /// Steps done.
    pub step: u32,
    /// Steps in all; 0 where nobody knows.
    pub steps: u32,
    /// Milliseconds that remain, as predicted.
    pub eta_ms: Option<u64>,
}

/// The latest look at an unfinished picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// Such as `image/jpeg`.
    pub media_type: String,
    /// The file.
    pub content: Vec<u8>,
}

/// A session that was written down so that any worker, or the one that has it, can go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSession {
    /// Who wrote it.
    pub worker: WorkerId,
    /// Where it is, in the worker's words.
    pub location: String,
    /// How far it is.
    pub progress: Progress,
}

/// Why an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "end")]
pub enum AttemptEnd {
    /// With the result.
    Done,
    /// With an error.
    Failed {
        /// What happened, for people.
        reason: String,
        /// Whether another attempt may do better.
        retryable: bool,
    },
    /// The worker stopped renewing its lease.
    LeaseExpired,
    /// The worker gave it back: to make room, or because it was told to end.
    GivenBack,
    /// Somebody no longer wanted it.
    Cancelled,
}

/// One worker's try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Counted from 1; never used twice for a job.
    pub number: u32,
    /// Who tried.
    pub worker: WorkerId,
    /// From when.
    #[serde(with = "crate::words::moment")]
    pub started: Moment,
    /// Until when; `None` while it runs.
    #[serde(with = "crate::words::moment_option")]
    pub ended: Option<Moment>,
    /// Why it ended; `None` while it runs.
    pub end: Option<AttemptEnd>,
}

/// A finished file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Its name.
    pub id: ArtifactId,
    /// Such as `image/png`.
    pub media_type: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its content, 64 hexadecimal digits.
    pub sha256: String,
}

/// What came of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its files, in order.
    pub artifacts: Vec<Artifact>,
    /// What the worker reports (seed, rungs, seconds, peaks): JSON, which the store never looks into.
    pub report: Option<String>,
}

/// Who has a job, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The worker.
    pub worker: WorkerId,
    /// From then on the lease is over, whether or not somebody has noticed.
    pub until: Moment,
}

/// Everything known of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// Order of arrival in this store.
    pub seq: u64,
    /// Where it is in its life.
    pub state: JobState,
    /// The kind of job.
    pub kind: String,
    /// The model, as the user named it.
    pub model: String,
    /// What to do: JSON.
    pub request: String,
    /// What a scheduler wants to know: JSON.
    pub hints: Option<String>,
    /// How much it matters.
    pub priority: Priority,
    /// Its turn within the priority: lower first, then by `seq`. 0 unless somebody moved it.
    pub turn: i64,
    /// Whose it is.
    pub owner: Option<String>,
    /// It is not begun while so many jobs of its owner run.
    pub running_max: Option<u64>,
    /// The key it was submitted under.
    pub idempotency_key: Option<String>,
    /// Whom to tell of it.
    pub webhook: Option<Webhook>,
    /// How far telling its end got; `None` before the first try.
    pub delivery: Option<Delivery>,
    /// What to do with the model afterwards.
    pub wishes: Wishes,
    /// When it was accepted.
    pub submitted: Moment,
    /// When a worker first began.
    pub started: Option<Moment>,
    /// When it was over.
    pub finished: Option<Moment>,
    /// When it should be finished.
    pub deadline: Option<Moment>,
    /// When it is no longer worth beginning.
    pub start_by: Option<Moment>,
    /// Before this time no worker may have it.
    pub not_before: Option<Moment>,
    /// Number of the latest attempt; 0 before the first.
    pub attempt: u32,
    /// What went wrong since the submission or the latest requeueing.
    pub setbacks: Setbacks,
    /// The latest attempts, oldest first, at most [`Job::HISTORY_LEN_MAX`].
    pub history: Vec<Attempt>,
    /// Who has it, while it runs.
    pub holder: Option<Holder>,
    /// Somebody no longer wants it; the worker stops at its next look.
    pub cancel_requested: bool,
    /// Somebody wants it paused; the worker parks it at its next look.
    pub pause_requested: bool,
    /// How far it is.
    pub progress: Option<Progress>,
    /// Where its session was written down.
    pub session: Option<SavedSession>,
    /// What came of it, once done.
    pub outcome: Option<Outcome>,
    /// Why it failed, once failed; why the latest attempt did, while it waits for another.
    pub error: Option<String>,
}

impl Job {
    /// Attempts kept in the history: parking makes attempts too, and a record must stay small.
    pub const HISTORY_LEN_MAX: usize = 32;

    /// Milliseconds that workers had it, as far as its history goes back; an attempt that goes on is not counted.
    pub fn worked_ms(&self) -> u64 {
        let ended = self.history.iter().filter_map(|attempt| {
            let ended = attempt.ended?;
            u64::try_from(ended.since(attempt.started).as_millis()).ok()
        });
        ended.fold(0, u64::saturating_add)
    }
}

/// The right to write about a running job. Every write carries it; after the lease is over none of them does anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// Who has it.
    pub worker: WorkerId,
    /// Which attempt this is.
    pub attempt: u32,
}

/// What a scheduler chooses among. Decisions are its business, not the store's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The job.
    pub id: JobId,
    /// The kind of job.
    pub kind: String,
    /// The model.
    pub model: String,
    /// How much it matters.
    pub priority: Priority,
    /// Whose it is.
    pub owner: Option<String>,
    /// When it was accepted: its age.
    pub submitted: Moment,
    /// When it should be finished.
    pub deadline: Option<Moment>,
    /// What went wrong so far.
    pub setbacks: Setbacks,
    /// Sizes and predictions, as submitted: JSON.
    pub hints: Option<String>,
    /// Where its session was written down, if it was begun: the worker that has it goes on soonest.
    pub session: Option<SavedSession>,
}
