//! Working on jobs.

use std::collections::BTreeSet;
use std::time::Duration;

use lowtide_core::job::{JobId, JobState, Moment, Priority};

use super::{
    Fixture, LEASE, at, candidates, claim, get, id, lost, plain, state, strict, submit, worker,
};
use crate::{
    Artifact, ArtifactId, AttemptEnd, EventId, Happening, Lease, Outcome, Policy, Progress,
    SavedSession, StoreError, Submission, Swept,
};

fn outcome(number: u64) -> Outcome {
    Outcome {
        artifacts: vec![Artifact {
            id: ArtifactId::new(Moment(1), u128::from(number)),
            media_type: "image/png".to_owned(),
            bytes: 7,
            sha256: "00".repeat(32),
        }],
        report: Some("{\"seed\":1}".to_owned()),
    }
}

fn session() -> SavedSession {
    SavedSession {
        worker: worker("one"),
        location: "sessions/1".to_owned(),
        progress: Progress {
            phase: "denoise".to_owned(),
            step: 3,
            steps: 20,
            eta_ms: Some(900),
        },
    }
}

/// By priority, then by arrival; a thousand urgent jobs do not hide the one batch job that has waited longest.
pub fn candidates_come_in_order_and_no_priority_hides_another(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    let priorities = [
        Priority::Batch,
        Priority::Normal,
        Priority::Urgent,
        Priority::Urgent,
    ];
    for (number, priority) in (1..).zip(priorities) {
        let submission = Submission {
            priority: Some(priority),
            hints: Some("{\"s\":1}".to_owned()),
            ..plain(number)
        };
        store.submit(submission, at(number)).expect("there is room");
    }
    assert_eq!(candidates(&*store, at(9)), [id(3), id(4), id(2), id(1)]);
    let few = store.candidates(1, at(9)).expect("the store answers");
    let ids: Vec<JobId> = few.jobs.iter().map(|job| job.id).collect();
    assert_eq!(ids, [id(3), id(2), id(1)]);
    let last = few.jobs.last().expect("there are three");
    assert_eq!((last.priority, last.submitted), (Priority::Batch, at(1)));
    assert_eq!(last.hints.as_deref(), Some("{\"s\":1}"));
    assert_eq!(store.ahead_of(id(1)), Ok(Some(3)));
}

/// Whoever is first has it, among threads and among processes; nothing is claimed twice, nothing is left.
pub fn of_many_claims_one_wins(fixture: &dyn Fixture) {
    let first = fixture.open(Policy::default());
    let second = fixture.open(Policy::default());
    let jobs = 40;
    for number in 0..jobs {
        submit(&*first, number, at(0));
    }
    let winners: Vec<JobId> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..6)
            .map(|number| {
                let store = if number % 2 == 0 { &first } else { &second };
                scope.spawn(move || {
                    let me = worker(&format!("w{number}"));
                    let mut mine = Vec::new();
                    for number in 0..jobs {
                        match store.claim(id(number), &me, LEASE, at(1)) {
                            Ok(claimed) => mine.push(claimed.lease.job),
                            Err(StoreError::NotClaimable { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                    mine
                })
            })
            .collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Vec<JobId>>| {
            worker.join().expect("a worker does not panic")
        };
        workers.into_iter().flat_map(join).collect()
    });
    assert_eq!(winners.len() as u64, jobs);
    assert_eq!(BTreeSet::from_iter(&winners).len() as u64, jobs);
    assert_eq!(candidates(&*second, at(1)), []);
}

/// Exactly one result becomes visible, and telling it twice does no harm.
pub fn a_job_is_done_once(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    submit(&*store, 1, at(0));
    let claimed = claim(&*store, id(1), at(1_000));
    assert_eq!(
        (claimed.lease.attempt, claimed.job.state),
        (1, JobState::Running)
    );
    assert_eq!(claimed.job.request, plain(1).request);
    let renewed = store.renew(&claimed.lease, LEASE, at(9_000));
    assert_eq!(renewed, Ok(crate::Directive::default()));
    let artifact = outcome(1).artifacts[0].clone();
    assert_eq!(store.artifact(artifact.id), Ok(None));
    for now in [18_000, 18_001, 99_000] {
        let done = store.complete(&claimed.lease, outcome(1), at(now));
        done.expect("the renewed lease holds, and the same again is nothing new");
    }
    lost(store.complete(&claimed.lease, outcome(2), at(18_500)));
    let job = get(&*store, id(1));
    assert_eq!(
        (job.state, job.finished),
        (JobState::Done, Some(at(18_000)))
    );
    assert_eq!((job.started, job.holder), (Some(at(1_000)), None));
    assert_eq!(job.outcome, Some(outcome(1)));
    assert_eq!(
        job.history.last().and_then(|last| last.end.clone()),
        Some(AttemptEnd::Done)
    );
    assert_eq!(
        store.artifact(artifact.id),
        Ok(Some((id(1), artifact.clone())))
    );
    let other = ArtifactId::new(Moment(2), 2);
    assert_eq!(
        store.known_artifacts(&[other, artifact.id]),
        Ok(vec![artifact.id])
    );
    let events = store.events_after(EventId(0), Some(id(1)), 100);
    let events = events.expect("the store answers").events;
    let done = events.iter().filter(|event| event.what == Happening::Done);
    assert_eq!(done.count(), 1);
}

/// Every write of a worker that stalled past its lease is refused, whoever has the job now, and changes nothing.
pub fn a_stale_attempt_changes_nothing(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    submit(&*store, 1, at(0));
    let stale = claim(&*store, id(1), at(0)).lease;
    let try_all = |lease: &Lease, now: Moment| {
        let before = (
            get(&*store, id(1)),
            store.events_after(EventId(0), None, 1_000),
        );
        lost(store.renew(lease, LEASE, now));
        lost(store.progress(lease, Progress::default(), None, now));
        lost(store.checkpoint(lease, session(), now));
        lost(store.park(lease, now));
        lost(store.unpark(lease, now));
        lost(store.give_back(lease, None, now));
        lost(store.complete(lease, outcome(1), now));
        lost(store.fail(lease, "no", true, now));
        lost(store.fail(lease, "no", false, now));
        lost(store.stopped(lease, now));
        let after = (
            get(&*store, id(1)),
            store.events_after(EventId(0), None, 1_000),
        );
        assert_eq!(before, after);
    };
    try_all(&stale, at(10_000));
    let (wrong_worker, wrong_attempt) = (
        Lease {
            worker: worker("two"),
            ..stale.clone()
        },
        Lease {
            attempt: 2,
            ..stale.clone()
        },
    );
    try_all(&wrong_worker, at(1));
    try_all(&wrong_attempt, at(1));
    store.sweep(at(10_000)).expect("the store answers");
    try_all(&stale, at(10_001));
    let fresh = claim(&*store, id(1), at(20_000)).lease;
    assert_eq!(fresh.attempt, 2);
    try_all(&stale, at(20_001));
    try_all(&stale, at(5));
    store
        .complete(&fresh, outcome(2), at(20_002))
        .expect("this one has it");
    try_all(&stale, at(20_003));
    assert_eq!(get(&*store, id(1)).outcome, Some(outcome(2)));
}

/// Whoever saw a worker die need not wait for its leases; jobs of others are left alone, and what the dead one wrote
/// does not count any more.
pub fn jobs_of_a_dead_worker_go_back_at_once(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    for number in 1..=3 {
        submit(&*store, number, at(0));
    }
    let dead = claim(&*store, id(1), at(1)).lease;
    store.park(&dead, at(2)).expect("the lease is good");
    let other = store
        .claim(id(2), &worker("two"), LEASE, at(1))
        .expect("it waits")
        .lease;
    assert_eq!(store.bury(&worker("three"), at(3)), Ok(0));
    assert_eq!(store.bury(&dead.worker, at(3)), Ok(1));
    assert_eq!(store.bury(&dead.worker, at(3)), Ok(0), "once");
    let job = get(&*store, id(1));
    assert_eq!((job.state, job.setbacks.losses), (JobState::Queued, 1));
    lost(store.complete(&dead, outcome(1), at(4)));
    store
        .complete(&other, outcome(2), at(4))
        .expect("its worker lives");
    assert_eq!(state(&*store, id(3)), JobState::Queued);
    let until = job.not_before.expect("it waits a little");
    assert_eq!(claim(&*store, id(1), until).lease.attempt, 2);
}

/// Several jobs are claimed in one go; one that cannot be has its own answer and does not hinder the others.
pub fn several_are_claimed_at_once(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    for number in 1..=3 {
        submit(&*store, number, at(0));
    }
    claim(&*store, id(2), at(1));
    let jobs = [id(1), id(2), id(9), id(3)];
    let claims = store
        .claim_all(&jobs, &worker("two"), LEASE, at(2))
        .expect("the store answers");
    let [Ok(first), Err(taken), Err(unknown), Ok(last)] = &claims[..] else {
        panic!("{claims:?}");
    };
    assert_eq!((first.job.id, last.job.id), (id(1), id(3)));
    assert!(matches!(taken, StoreError::NotClaimable { .. }), "{taken}");
    assert!(matches!(unknown, StoreError::NotFound { .. }), "{unknown}");
    for number in [1, 3] {
        assert_eq!(state(&*store, id(number)), JobState::Running);
    }
    store
        .complete(&last.lease, outcome(3), at(3))
        .expect("the lease is good");
}

/// A worker that vanishes costs a wait; a job that makes worker after worker vanish is given up, with its history.
pub fn an_ended_lease_goes_back_and_then_fails(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    submit(&*store, 1, at(0));
    let mut now = 0;
    for loss in 1..=3 {
        claim(&*store, id(1), at(now));
        assert_eq!(store.sweep(at(now + 9_999)), Ok(Swept::default()));
        now += 10_000;
        let swept = store.sweep(at(now)).expect("the store answers");
        assert_eq!(swept.leases_ended, 1);
        assert_eq!(store.sweep(at(now)), Ok(Swept::default()), "once");
        let job = get(&*store, id(1));
        assert_eq!(job.setbacks.losses, loss);
        let Some(until) = job.not_before.filter(|_| loss < 3) else {
            continue;
        };
        assert!(until > at(now) && job.state == JobState::Queued, "{job:?}");
        let early = store.claim(id(1), &worker("one"), LEASE, at(now));
        assert!(
            matches!(early, Err(StoreError::NotClaimable { .. })),
            "{early:?}"
        );
        assert_eq!(candidates(&*store, at(now)), []);
        assert_eq!(candidates(&*store, until), [id(1)]);
        now = until.0 - at(0).0;
    }
    let job = get(&*store, id(1));
    assert_eq!((job.state, job.history.len()), (JobState::Failed, 3));
    assert!(
        job.history
            .iter()
            .all(|one| one.end == Some(AttemptEnd::LeaseExpired))
    );
    assert!(job.error.is_some_and(|error| error.contains("one")));
    assert_eq!(candidates(&*store, at(now * 2)), []);
}

/// What another attempt may mend comes back after a wait, as often as it may; what none mends does not.
pub fn failures_wait_and_are_limited(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    submit(&*store, 1, at(0));
    submit(&*store, 2, at(0));
    let lease = claim(&*store, id(1), at(0)).lease;
    assert_eq!(
        store.fail(&lease, "no memory", true, at(1)),
        Ok(JobState::Queued)
    );
    let job = get(&*store, id(1));
    assert_eq!(
        (job.setbacks.failures, job.error.as_deref()),
        (1, Some("no memory"))
    );
    let waits = job.not_before.expect("it waits").since(at(1));
    assert!(
        (Duration::from_secs(3)..=Duration::from_secs(4)).contains(&waits),
        "{waits:?}"
    );
    let lease = claim(&*store, id(1), at(10_000)).lease;
    assert_eq!(
        store.fail(&lease, "still none", true, at(10_001)),
        Ok(JobState::Failed)
    );
    let lease = claim(&*store, id(2), at(0)).lease;
    assert_eq!(
        store.fail(&lease, "wrong size", false, at(1)),
        Ok(JobState::Failed)
    );
    let job = get(&*store, id(2));
    assert_eq!(
        (job.error.as_deref(), job.finished),
        (Some("wrong size"), Some(at(1)))
    );
    let end = AttemptEnd::Failed {
        reason: "wrong size".to_owned(),
        retryable: false,
    };
    assert_eq!(job.history[0].end, Some(end));
}

/// A session that was written down is offered to the next attempt, unless it led to an error.
pub fn sessions_are_kept_where_they_can_go_on(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    submit(&*store, 1, at(0));
    let lease = claim(&*store, id(1), at(0)).lease;
    store.park(&lease, at(1)).expect("the lease holds");
    assert_eq!(state(&*store, id(1)), JobState::Parked);
    store
        .renew(&lease, LEASE, at(2))
        .expect("parked ones are leased");
    assert_eq!(candidates(&*store, at(2)), []);
    store.unpark(&lease, at(3)).expect("the lease holds");
    assert_eq!(state(&*store, id(1)), JobState::Running);
    let given = store.give_back(&lease, Some(session()), at(4));
    assert_eq!(given, Ok(JobState::Queued));
    let offered = store.candidates(9, at(4)).expect("the store answers").jobs;
    assert_eq!(offered[0].session, Some(session()));
    assert_eq!(offered[0].setbacks, Default::default());

    let next = claim(&*store, id(1), at(5));
    assert_eq!((next.lease.attempt, next.job.session), (2, Some(session())));
    store.sweep(at(50_000)).expect("the store answers");
    assert_eq!(
        get(&*store, id(1)).session,
        Some(session()),
        "the worker died, not the session"
    );
    let lease = claim(&*store, id(1), at(60_000)).lease;
    let newer = SavedSession {
        location: "sessions/2".to_owned(),
        ..session()
    };
    store
        .checkpoint(&lease, newer.clone(), at(60_001))
        .expect("the lease holds");
    assert_eq!(
        store.give_back(&lease, None, at(60_002)),
        Ok(JobState::Queued)
    );
    assert_eq!(get(&*store, id(1)).session, Some(newer));
    let lease = claim(&*store, id(1), at(60_003)).lease;
    store
        .fail(&lease, "bad state", true, at(60_004))
        .expect("the lease holds");
    assert_eq!(get(&*store, id(1)).session, None);
}
