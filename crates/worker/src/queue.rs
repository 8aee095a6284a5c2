//! The store's candidates as the schedule wants them.

use lowtide_core::Bytes;
use lowtide_core::job::{JobId, Moment, Setbacks};
use lowtide_core::schedule::{Batch, BatchKey, Candidate};
use lowtide_jobs::Candidate as Record;
use lowtide_jobs::report::{Hints, StepHints};

/// Predicted seconds of a job that came without a prediction.
const SECONDS_DEFAULT: f64 = 1.0;

/// The jobs that can be begun, as last read.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) jobs: Vec<Candidate>,
}

impl Queue {
    /// From what the store lists: by class, then by turn.
    pub(crate) fn new(records: Vec<Record>) -> Queue {
        let mut jobs = records.into_iter().map(candidate).collect::<Vec<_>>();
        turns_to_times(&mut jobs);
        Queue { jobs }
    }

    /// Forgets a job that somebody else has, or that begins now.
    pub(crate) fn take(&mut self, job: JobId) {
        self.jobs.retain(|candidate| candidate.id != job);
    }
}

/// The steps of a job that has several.
pub(crate) fn steps_of(record: &Record) -> Vec<StepHints> {
    let hints = record.hints.as_deref().and_then(Hints::from_json);
    hints.map_or_else(Vec::new, |hints| hints.steps)
}

fn candidate(record: Record) -> Candidate {
    let hints = record.hints.as_deref().and_then(Hints::from_json);
    let hints = hints.unwrap_or(Hints {
        seconds: SECONDS_DEFAULT,
        ..Hints::default()
    });
    // A session goes on alone: its mates are elsewhere, or further on. So does a job that something happened to: it may
    // have been its own doing.
    let alone = record.session.is_some() || record.setbacks != Setbacks::default();
    let batch = hints.batch.filter(|_| !alone);
    let batch = batch.map(|batch| Batch {
        key: BatchKey {
            model: record.model.clone(),
            size: batch.size,
            settings: digest(&[&record.kind, &batch.settings]),
        },
        more: Bytes(batch.more),
        more_seconds: batch.more_seconds,
    });
    Candidate {
        id: record.id,
        kind: record.kind,
        model: record.model,
        priority: record.priority,
        submitted: record.submitted,
        not_before: None,
        deadline: record.deadline,
        seconds: hints.seconds,
        peak: Bytes(hints.peak),
        batch,
    }
}

/// A schedule orders a class by the time of submission; a hand may have moved a job before others. It then counts as
/// submitted just before those.
fn turns_to_times(jobs: &mut [Candidate]) {
    for index in (0..jobs.len().saturating_sub(1)).rev() {
        let (this, next) = (&jobs[index], &jobs[index + 1]);
        let before = (this.submitted, this.id) <= (next.submitted, next.id);
        if this.priority == next.priority && !before {
            jobs[index].submitted = Moment(next.submitted.0.saturating_sub(1));
        }
    }
}

/// FNV-1a over these texts, each with its end marked.
fn digest(texts: &[&str]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0xff]));
    bytes.fold(OFFSET, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowtide_core::job::Priority;
    use lowtide_jobs::SavedSession;
    use lowtide_jobs::report::BatchHints;

    fn record(id: u128, submitted: u64, hints: Option<Hints>) -> Record {
        Record {
            id: JobId(id),
            kind: "k".to_owned(),
            model: "m".to_owned(),
            priority: Priority::Normal,
            owner: None,
            submitted: Moment(submitted),
            deadline: None,
            setbacks: Setbacks::default(),
            hints: hints.map(|hints| hints.to_json()),
            session: None,
        }
    }

    #[test]
    fn a_job_moved_to_the_front_counts_as_submitted_first() {
        let records = vec![
            record(9, 900, None),
            record(1, 100, None),
            record(2, 200, None),
        ];
        let queue = Queue::new(records);
        let times: Vec<u64> = queue.jobs.iter().map(|job| job.submitted.0).collect();
        assert_eq!(times, [99, 100, 200]);
    }

    #[test]
    fn what_agrees_shares_a_key_and_what_has_a_session_is_alone() {
        let hints = |settings: &str| Hints {
            seconds: 2.0,
            peak: 5 << 30,
            batch: Some(BatchHints {
                size: [64, 64],
                settings: settings.to_owned(),
                more: 7,
                more_seconds: 0.5,
            }),
            steps: Vec::new(),
        };
        let mut begun = record(4, 4, Some(hints("a")));
        begun.session = Some(SavedSession {
            worker: "w".parse().unwrap(),
            location: "x".to_owned(),
            progress: Default::default(),
        });
        let mut failed = record(5, 5, Some(hints("a")));
        failed.setbacks.failures = 1;
        let records = vec![
            record(1, 1, Some(hints("a"))),
            record(2, 2, Some(hints("a"))),
            record(3, 3, Some(hints("b"))),
            begun,
            failed,
        ];
        let mut queue = Queue::new(records);
        let key = |index: usize| {
            queue.jobs[index]
                .batch
                .as_ref()
                .map(|batch| batch.key.clone())
        };
        assert_eq!(key(0), key(1));
        assert_ne!(key(0), key(2));
        assert_eq!((key(3), key(4)), (None, None));
        queue.take(JobId(4));
        assert_eq!(queue.jobs.len(), 4);
    }

    #[test]
    fn a_job_without_hints_can_run() {
        let queue = Queue::new(vec![record(1, 1, None)]);
        assert_eq!(queue.jobs[0].peak, Bytes::ZERO);
        assert!(queue.jobs[0].seconds > 0.0);
    }
}
