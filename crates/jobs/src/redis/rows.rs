//! Records as fields of a hash, and those this process knows already.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lowtide_core::job::{JobId, JobState, Moment, Priority, Setbacks};
use serde::{Deserialize, Serialize};

use super::wire::Reply;
use crate::{
    Attempt, Delivery, Holder, Job, Outcome, Progress, SavedSession, Webhook, Wishes, WorkerId,
    words,
};

/// Records kept in memory, at most twice as many for a while: as many as may wait, and some that run.
const KNOWN_MAX: usize = 8_192;

/// A record, without what has fields of its own: request, hints, order of arrival, turn.
#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(with = "words::text")]
    id: JobId,
    #[serde(with = "words::text")]
    state: JobState,
    kind: String,
    model: String,
    #[serde(with = "words::text")]
    priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    running_max: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    webhook: Option<Webhook>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delivery: Option<Delivery>,
    #[serde(default, skip_serializing_if = "is_default")]
    wishes: Wishes,
    submitted: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finished: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_by: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before: Option<u64>,
    #[serde(default, skip_serializing_if = "is_default")]
    attempt: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    setbacks: [u32; 2],
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    history: Vec<Attempt>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holder: Option<(WorkerId, u64)>,
    #[serde(default, skip_serializing_if = "is_default")]
    cancel: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pause: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<SavedSession>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The record as text. Taken apart here, so that no new field is forgotten.
pub(super) fn text(job: &Job) -> String {
    let Job {
        id,
        seq: _,
        state,
        kind,
        model,
        request: _,
        hints: _,
        priority,
        turn: _,
        owner,
        running_max,
        idempotency_key,
        webhook,
        delivery,
        wishes,
        submitted,
        started,
        finished,
        deadline,
        start_by,
        not_before,
        attempt,
        setbacks,
        history,
        holder,
        cancel_requested,
        pause_requested,
        progress,
        session,
        outcome,
        error,
    } = job.clone();
    let ms = |moment: Option<Moment>| moment.map(|moment| moment.0);
    let record = Record {
        id,
        state,
        kind,
        model,
        priority,
        owner,
        running_max,
        key: idempotency_key,
        webhook,
        delivery,
        wishes,
        submitted: submitted.0,
        started: ms(started),
        finished: ms(finished),
        deadline: ms(deadline),
        start_by: ms(start_by),
        not_before: ms(not_before),
        attempt,
        setbacks: [setbacks.failures, setbacks.losses],
        history,
        holder: holder.map(|holder| (holder.worker, holder.until.0)),
        cancel: cancel_requested,
        pause: pause_requested,
        progress,
        session,
        outcome,
        error,
    };
    serde_json::to_string(&record).expect("a record has JSON")
}

/// A job as the server has it: the version that a change has to name.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) version: String,
    /// With hints, without the request.
    pub(super) job: Job,
}

/// The fields [`read`] expects, in this order.
pub(super) const FIELDS: [&str; 5] = ["v", "n", "t", "r", "h"];

/// The job of these fields: version, order of arrival, turn, record and hints. `None` where there is none.
///
/// # Errors
/// What is wrong with the record.
pub(super) fn read(fields: &[Reply]) -> Result<Option<Known>, String> {
    let [version, seq, turn, record, hints @ ..] = fields else {
        return Err(format!("a job has {} fields", fields.len()));
    };
    let Some(version) = version.some() else {
        return Ok(None);
    };
    let record: Record =
        serde_json::from_str(&record.text()).map_err(|error| format!("a job's record: {error}"))?;
    let turn = turn.text().parse();
    let turn = turn.map_err(|_| "a job's turn is no number".to_owned())?;
    let at = |ms: Option<u64>| ms.map(Moment);
    let job = Job {
        id: record.id,
        seq: seq.number(),
        state: record.state,
        kind: record.kind,
        model: record.model,
        request: String::new(),
        hints: hints.first().and_then(Reply::some),
        priority: record.priority,
        turn,
        owner: record.owner,
        running_max: record.running_max,
        idempotency_key: record.key,
        webhook: record.webhook,
        delivery: record.delivery,
        wishes: record.wishes,
        submitted: Moment(record.submitted),
        started: at(record.started),
        finished: at(record.finished),
        deadline: at(record.deadline),
        start_by: at(record.start_by),
        not_before: at(record.not_before),
        attempt: record.attempt,
        setbacks: Setbacks {
            failures: record.setbacks[0],
            losses: record.setbacks[1],
        },
        history: record.history,
        holder: record.holder.map(|(worker, until)| Holder {
            worker,
            until: Moment(until),
        }),
        cancel_requested: record.cancel,
        pause_requested: record.pause,
        progress: record.progress,
        session: record.session,
        outcome: record.outcome,
        error: record.error,
    };
    Ok(Some(Known { version, job }))
}

/// Versions that nobody else gives: a write bears one, so that it is known again when its answer was lost.
pub(super) struct Versions {
    process: u64,
    next: AtomicU64,
}

impl Versions {
    pub(super) fn new() -> Versions {
        Versions {
            // The lower half is as random as the whole.
            process: words::random() as u64,
            next: AtomicU64::new(0),
        }
    }

    /// A new one.
    pub(super) fn next(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{:x}.{number:x}", self.process)
    }

    /// What tells this process's messages from those of others.
    pub(super) fn sender(&self) -> String {
        format!("{:x}", self.process)
    }
}

/// Records that this process read or wrote lately. They may be old: a change that is made from one names its version,
/// and what a reader is shown was asked for by version.
#[derive(Default)]
pub(super) struct Memory(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<JobId, Arc<Known>>,
    old: HashMap<JobId, Arc<Known>>,
}

impl Memory {
    /// What is known of a job.
    pub(super) fn get(&self, job: JobId) -> Option<Arc<Known>> {
        let mut all = self.lock();
        if let Some(known) = all.young.get(&job) {
            return Some(Arc::clone(known));
        }
        let known = all.old.remove(&job)?;
        all.young.insert(job, Arc::clone(&known));
        Some(known)
    }

    /// From now on this is.
    pub(super) fn put(&self, known: Arc<Known>) {
        let mut all = self.lock();
        if all.young.len() >= KNOWN_MAX {
            // What was not asked for since the last time goes.
            all.old = std::mem::take(&mut all.young);
        }
        all.young.insert(known.job.id, known);
    }

    /// Nothing is.
    pub(super) fn forget(&self, job: JobId) {
        let mut all = self.lock();
        all.young.remove(&job);
        all.old.remove(&job);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Submission;

    fn job() -> Job {
        let id = JobId::new(Moment(5), 9);
        let submission = Submission {
            owner: Some("me".to_owned()),
            deadline: Some(Moment(u64::MAX)),
            ..Submission::new(id, "kind", "model", "{}")
        };
        let mut job = Job::accepted(submission, Priority::Batch, 7, Moment(5));
        let worker: WorkerId = "w".parse().unwrap();
        job.claim(&worker, Moment(10), Moment(6)).unwrap();
        job.turn = -3;
        job
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let job = job();
        let field = |text: &str| Reply::Text(text.as_bytes().to_vec());
        let fields = [
            field("v"),
            field("7"),
            field("-3"),
            field(&text(&job)),
            Reply::Nil,
        ];
        let known = read(&fields).unwrap().unwrap();
        let without = Job {
            request: String::new(),
            ..job
        };
        assert_eq!(known.job, without);
        assert!(read(&[const { Reply::Nil }; 5]).unwrap().is_none());
        assert!(read(&[field("v"), field("7"), field("0"), field("{")]).is_err());
        assert!(read(&[]).is_err());
    }

    #[test]
    fn what_is_asked_for_stays_known() {
        let memory = Memory::default();
        let known = |number: u128| {
            let mut job = job();
            job.id = JobId(number);
            Arc::new(Known {
                version: "v".to_owned(),
                job,
            })
        };
        memory.put(known(1));
        for number in 2..(3 * KNOWN_MAX as u128) {
            memory.put(known(number));
            assert!(memory.get(JobId(1)).is_some(), "{number}");
        }
        assert!(memory.get(JobId(2)).is_none());
        memory.forget(JobId(1));
        assert!(memory.get(JobId(1)).is_none());
    }
}
