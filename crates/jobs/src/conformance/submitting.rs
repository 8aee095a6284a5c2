//! Accepting jobs.

use std::collections::BTreeMap;
use std::time::Duration;

use lowtide_core::Bytes;
use lowtide_core::job::{JobState, Priority};
use lowtide_core::lifecycle::{AfterJob, KeepAlive};

use super::{Fixture, at, candidates, claim, get, id, plain, submit};
use crate::{Clash, Outcome, Policy, StoreError, Submission, TraceParent, Wishes};

/// A job is there, with everything that was said about it, for every process, and after the store was closed.
pub fn what_is_submitted_is_there(fixture: &dyn Fixture) {
    let policy = Policy {
        priority_by_kind: BTreeMap::from([("video".to_owned(), Priority::Batch)]),
        ..Policy::default()
    };
    let store = fixture.open(policy.clone());
    let full = Submission {
        hints: Some("{\"width\":512}".to_owned()),
        priority: Some(Priority::Urgent),
        deadline: Some(at(9_000)),
        start_by: Some(at(8_000)),
        idempotency_key: Some("k".to_owned()),
        owner: Some("me".to_owned()),
        wishes: Wishes {
            trace: Some(TraceParent::random()),
            after_job: Some(AfterJob::Offload),
            keep_alive: Some(KeepAlive::For(Duration::from_millis(1_500))),
        },
        ..plain(1)
    };
    let accepted = store.submit(full.clone(), at(5)).expect("there is room");
    assert_eq!((accepted.job, accepted.existed), (id(1), false));
    assert_eq!(accepted.ahead, Some(0));
    let by_kind = Submission {
        kind: "video".to_owned(),
        ..plain(2)
    };
    let accepted = store.submit(by_kind, at(6)).expect("there is room");
    assert_eq!(accepted.ahead, Some(1));

    let other = fixture.open(policy.clone());
    drop(store);
    let job = get(&*other, id(1));
    assert_eq!((job.state, job.submitted), (JobState::Queued, at(5)));
    assert_eq!((&job.kind, &job.model), (&full.kind, &full.model));
    assert_eq!((&job.request, &job.hints), (&full.request, &full.hints));
    assert_eq!(job.priority, Priority::Urgent);
    assert_eq!((job.deadline, job.start_by), (full.deadline, full.start_by));
    assert_eq!(
        (&job.owner, &job.idempotency_key),
        (&full.owner, &full.idempotency_key)
    );
    assert_eq!(job.wishes, full.wishes);
    assert_eq!((job.attempt, job.started, job.finished), (0, None, None));
    assert_eq!(get(&*other, id(2)).priority, Priority::Batch);
    assert_eq!(other.ahead_of(id(2)), Ok(Some(1)));
    drop(other);
    assert_eq!(get(&*fixture.open(policy), id(1)), job);
    let missing = fixture.open(Policy::default()).job(id(3));
    assert_eq!(missing, Err(StoreError::NotFound { job: id(3) }));
}

/// A submission whose answer was lost can be repeated, by its id or by its key, even when the queue is full.
pub fn the_same_again_is_the_same_job(fixture: &dyn Fixture) {
    let policy = Policy {
        waiting_max: 2,
        ..Policy::default()
    };
    let store = fixture.open(policy);
    let keyed = |number, owner: &str, request: &str| Submission {
        idempotency_key: Some("k".to_owned()),
        owner: Some(owner.to_owned()),
        request: request.to_owned(),
        ..plain(number)
    };
    let first = keyed(1, "me", "{\"a\":1,\"b\":2}");
    store.submit(first.clone(), at(0)).expect("there is room");
    let other_owner = keyed(2, "you", "{\"c\":1}");
    let accepted = store
        .submit(other_owner, at(1))
        .expect("keys are an owner's");
    assert!(!accepted.existed);
    for again in [first, keyed(3, "me", "{ \"b\": 2, \"a\": 1 }")] {
        let accepted = store.submit(again, at(2)).expect("it is the same");
        assert_eq!((accepted.job, accepted.existed), (id(1), true));
        assert_eq!(accepted.ahead, None);
    }
    assert_eq!(candidates(&*store, at(3)), [id(1), id(2)]);
}

/// A key or an id means one request.
pub fn another_request_under_the_same_key_is_refused(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    let keyed = |number, request: &str| Submission {
        idempotency_key: Some("k".to_owned()),
        request: request.to_owned(),
        ..plain(number)
    };
    store.submit(keyed(1, "{}"), at(0)).expect("there is room");
    for (other, clash) in [(keyed(2, "[]"), Clash::Key), (keyed(1, "[]"), Clash::Id)] {
        let existing = id(1);
        let refused = store.submit(other, at(1));
        assert_eq!(refused, Err(StoreError::Conflict { clash, existing }));
    }
    assert_eq!(candidates(&*store, at(1)), [id(1)]);
}

/// All of a batch, or none of it.
pub fn a_batch_is_accepted_whole_or_not_at_all(fixture: &dyn Fixture) {
    let policy = Policy {
        waiting_max: 5,
        batch_len_max: 4,
        ..Policy::default()
    };
    let store = fixture.open(policy);
    let accepted = store.submit_all((1..=3).map(plain).collect(), at(0));
    let ahead: Vec<_> = accepted
        .expect("there is room")
        .iter()
        .map(|one| one.ahead)
        .collect();
    assert_eq!(ahead, [Some(0), Some(1), Some(2)]);
    let too_many = store.submit_all((4..=6).map(plain).collect(), at(1));
    assert!(
        matches!(too_many, Err(StoreError::QueueFull { .. })),
        "{too_many:?}"
    );
    let too_long = store.submit_all((4..=8).map(plain).collect(), at(1));
    assert!(
        matches!(too_long, Err(StoreError::TooLarge { field: "batch", .. })),
        "{too_long:?}"
    );
    assert_eq!(candidates(&*store, at(2)), [id(1), id(2), id(3)]);
    assert_eq!(store.submit_all(Vec::new(), at(2)), Ok(Vec::new()));
}

/// The queue is bounded, and tells how soon it may have room, by how fast jobs finish.
pub fn a_full_queue_refuses_and_says_when(fixture: &dyn Fixture) {
    let policy = Policy {
        waiting_max: 2,
        retry_after_default: Duration::from_secs(7),
        ..Policy::default()
    };
    let store = fixture.open(policy);
    let full = |retry_after_ms| StoreError::QueueFull {
        waiting: 2,
        limit: 2,
        retry_after_ms,
    };
    submit(&*store, 1, at(0));
    submit(&*store, 2, at(0));
    let refused = store.submit(plain(3), at(0));
    assert_eq!(refused, Err(full(7_000)));
    assert!(full(0).is_retryable());
    // Two jobs in 6 s, the first of them at 3 s.
    for (number, done) in [(1, 3_000), (2, 6_000)] {
        let lease = claim(&*store, id(number), at(done - 1_000)).lease;
        submit(&*store, number + 10, at(done - 900));
        let completed = store.complete(&lease, Outcome::default(), at(done));
        completed.expect("the lease holds");
    }
    let refused = store.submit(plain(3), at(7_000));
    assert_eq!(refused, Err(full(2_000)));
    store.pause(id(11), at(7_000)).expect("it waits");
    let refused = store.submit(plain(3), at(7_000));
    assert_eq!(refused, Err(full(2_000)), "a paused one takes its place");
    store.cancel(id(11), at(7_000)).expect("it waits");
    submit(&*store, 3, at(7_000));
}

/// Refused with the name of what is wrong, and not kept.
pub fn what_makes_no_sense_is_refused(fixture: &dyn Fixture) {
    let policy = Policy {
        json_max: Bytes(100),
        ..Policy::default()
    };
    let store = fixture.open(policy);
    let long = format!("\"{}\"", "a".repeat(99));
    let name = "a".repeat(257);
    let refused = |submission: Submission| match store.submit(submission, at(0)) {
        Err(StoreError::TooLarge { field, .. } | StoreError::Invalid { field, .. }) => field,
        other => panic!("refused, but: {other:?}"),
    };
    let with = |change: &dyn Fn(&mut Submission)| {
        let mut submission = plain(1);
        change(&mut submission);
        refused(submission)
    };
    assert_eq!(with(&|it| it.request = "{".to_owned()), "request");
    assert_eq!(with(&|it| it.request = "[".repeat(100)), "request");
    assert_eq!(with(&|it| it.request.clone_from(&long)), "request");
    assert_eq!(with(&|it| it.hints = Some("nope".to_owned())), "hints");
    assert_eq!(with(&|it| it.kind = String::new()), "kind");
    assert_eq!(with(&|it| it.model.clone_from(&name)), "model");
    assert_eq!(with(&|it| it.owner = Some(name.clone())), "owner");
    assert_eq!(
        with(&|it| it.idempotency_key = Some(String::new())),
        "idempotency key"
    );
    assert_eq!(candidates(&*store, at(0)), []);
}
