//! What people do to jobs.

use lowtide_core::job::{JobState, Priority};

use super::{Fixture, LEASE, at, candidates, claim, get, id, plain, state, strict, submit, worker};
use crate::{
    Directive, Move, Outcome, Policy, Progress, StoreError, Submission, Swept, Unclaimable,
};

/// At once, once, and not after the end.
pub fn a_waiting_job_is_cancelled_at_once(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    submit(&*store, 1, at(0));
    for now in [at(1), at(2)] {
        assert_eq!(store.cancel(id(1), now), Ok(JobState::Cancelled));
    }
    let job = get(&*store, id(1));
    assert_eq!((job.finished, job.started), (Some(at(1)), None));
    assert_eq!(candidates(&*store, at(3)), []);
    submit(&*store, 2, at(3));
    let lease = claim(&*store, id(2), at(3)).lease;
    let done = store.complete(&lease, Outcome::default(), at(4));
    done.expect("the lease holds");
    let late = store.cancel(id(2), at(5));
    assert!(
        matches!(late, Err(StoreError::WrongState { .. })),
        "{late:?}"
    );
    assert_eq!(
        store.cancel(id(3), at(5)),
        Err(StoreError::NotFound { job: id(3) })
    );
}

/// The worker learns it with its next write; where it never writes again, the end of the lease cancels.
pub fn a_cancelled_run_stops_at_its_next_look(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    for number in 1..=4 {
        submit(&*store, number, at(0));
    }
    let leases = [1, 2, 3, 4].map(|number| claim(&*store, id(number), at(0)).lease);
    let early = store.stopped(&leases[0], at(1));
    assert!(
        matches!(early, Err(StoreError::WrongState { .. })),
        "{early:?}"
    );
    for lease in &leases {
        for _ in 0..2 {
            assert_eq!(store.cancel(lease.job, at(1)), Ok(JobState::Running));
        }
        let told = Directive {
            cancel: true,
            pause: false,
        };
        assert_eq!(store.renew(lease, LEASE, at(2)), Ok(told));
        assert_eq!(
            store.progress(lease, Progress::default(), None, at(2)),
            Ok(told)
        );
    }
    store.stopped(&leases[0], at(3)).expect("it was told to");
    assert_eq!(
        store.give_back(&leases[1], None, at(3)),
        Ok(JobState::Cancelled)
    );
    assert_eq!(
        store.fail(&leases[2], "no", true, at(3)),
        Ok(JobState::Cancelled)
    );
    store.sweep(at(12_002)).expect("the store answers");
    for lease in &leases {
        assert_eq!(state(&*store, lease.job), JobState::Cancelled);
    }
    // A result that came before the worker looked counts.
    submit(&*store, 5, at(20_000));
    let lease = claim(&*store, id(5), at(20_000)).lease;
    store.cancel(id(5), at(20_001)).expect("it runs");
    let done = store.complete(&lease, Outcome::default(), at(20_002));
    done.expect("the lease holds");
    assert_eq!(state(&*store, id(5)), JobState::Done);
}

/// A waiting one at once; a running one gives its memory back first. Nothing but a person lets it go on.
pub fn a_paused_job_waits_for_a_person(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    submit(&*store, 1, at(0));
    submit(&*store, 2, at(0));
    for _ in 0..2 {
        assert_eq!(store.pause(id(1), at(1)), Ok(JobState::Paused));
    }
    let lease = claim(&*store, id(2), at(1)).lease;
    assert_eq!(store.pause(id(2), at(2)), Ok(JobState::Running));
    let told = Directive {
        cancel: false,
        pause: true,
    };
    assert_eq!(store.renew(&lease, LEASE, at(3)), Ok(told));
    assert_eq!(store.give_back(&lease, None, at(4)), Ok(JobState::Paused));
    store.sweep(at(900_000)).expect("the store answers");
    assert_eq!(candidates(&*store, at(900_000)), []);
    let refused = store.claim(id(1), &worker("one"), LEASE, at(900_000));
    assert!(
        matches!(refused, Err(StoreError::NotClaimable { .. })),
        "{refused:?}"
    );
    for number in [1, 2] {
        assert_eq!(store.resume(id(number), at(900_001)), Ok(JobState::Queued));
    }
    let twice = store.resume(id(1), at(900_002));
    assert!(
        matches!(twice, Err(StoreError::WrongState { .. })),
        "{twice:?}"
    );
    assert_eq!(candidates(&*store, at(900_002)), [id(1), id(2)]);
    // Asked for and taken back before the worker looked; and asked for when the worker vanished.
    let lease = claim(&*store, id(1), at(900_003)).lease;
    store.pause(id(1), at(900_004)).expect("it runs");
    assert_eq!(store.resume(id(1), at(900_005)), Ok(JobState::Running));
    assert_eq!(
        store.renew(&lease, LEASE, at(900_006)),
        Ok(Directive::default())
    );
    store.pause(id(1), at(900_007)).expect("it runs");
    store.sweep(at(990_000)).expect("the store answers");
    assert_eq!(state(&*store, id(1)), JobState::Paused);
}

/// A dead letter goes through the queue again, with its history; what did not fail does not.
pub fn a_failed_job_can_be_requeued(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    let submission = Submission {
        start_by: Some(at(100)),
        ..plain(1)
    };
    store.submit(submission, at(0)).expect("there is room");
    let early = store.requeue(id(1), at(0));
    assert!(
        matches!(early, Err(StoreError::WrongState { .. })),
        "{early:?}"
    );
    let lease = claim(&*store, id(1), at(0)).lease;
    store
        .fail(&lease, "no", false, at(1))
        .expect("the lease holds");
    store.requeue(id(1), at(1_000)).expect("it failed");
    let job = get(&*store, id(1));
    assert_eq!(
        (job.state, job.setbacks),
        (JobState::Queued, Default::default())
    );
    assert_eq!(
        (job.history.len(), job.finished, job.error),
        (1, None, None)
    );
    assert_eq!(store.sweep(at(1_000)), Ok(Swept::default()));
    let claimed = claim(&*store, id(1), at(1_001));
    assert_eq!(
        claimed.lease.attempt, 2,
        "an attempt's number is never used twice"
    );
    let done = store.complete(&claimed.lease, Outcome::default(), at(1_002));
    done.expect("the lease holds");
    let done = store.requeue(id(1), at(1_003));
    assert!(
        matches!(done, Err(StoreError::WrongState { .. })),
        "{done:?}"
    );
}

/// To the front of its priority, or to another one.
pub fn jobs_can_be_moved(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    for number in 1..=4 {
        submit(&*store, number, at(number));
    }
    for number in [3, 4] {
        let moved = store.reorder(id(number), Move::ToFront, at(5));
        moved.expect("it waits");
    }
    assert_eq!(candidates(&*store, at(6)), [id(4), id(3), id(1), id(2)]);
    assert_eq!(store.ahead_of(id(1)), Ok(Some(2)));
    let moved = store.reorder(id(2), Move::To(Priority::Urgent), at(6));
    moved.expect("it waits");
    assert_eq!(candidates(&*store, at(6)), [id(2), id(4), id(3), id(1)]);
    let moved = store.reorder(id(4), Move::To(Priority::Normal), at(6));
    moved.expect("it waits");
    assert_eq!(candidates(&*store, at(6)), [id(2), id(3), id(1), id(4)]);
    claim(&*store, id(1), at(7));
    let running = store.reorder(id(1), Move::ToFront, at(8));
    assert!(
        matches!(running, Err(StoreError::WrongState { .. })),
        "{running:?}"
    );
}

/// Nothing is claimed while somebody holds the queue; what runs goes on, and jobs are still accepted.
pub fn a_held_queue_gives_nothing_out(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    submit(&*store, 1, at(0));
    submit(&*store, 2, at(0));
    let lease = claim(&*store, id(1), at(0)).lease;
    store.hold(true, at(1)).expect("the store answers");
    let other = fixture.open(Policy::default());
    assert!(other.candidates(9, at(2)).expect("the store answers").held);
    let refused = other.claim(id(2), &worker("two"), LEASE, at(2));
    let why = Unclaimable::QueueHeld;
    assert_eq!(refused, Err(StoreError::NotClaimable { job: id(2), why }));
    submit(&*other, 3, at(2));
    store.renew(&lease, LEASE, at(3)).expect("the lease holds");
    store.hold(false, at(4)).expect("the store answers");
    claim(&*other, id(2), at(5));
}

/// What nobody wants that late is not begun; what was begun goes on.
pub fn what_was_to_begin_earlier_fails(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    for number in 1..=2 {
        let submission = Submission {
            start_by: Some(at(1_000)),
            ..plain(number)
        };
        store.submit(submission, at(0)).expect("there is room");
    }
    let lease = claim(&*store, id(1), at(999)).lease;
    assert_eq!(candidates(&*store, at(1_000)), []);
    let late = store.claim(id(2), &worker("one"), LEASE, at(1_000));
    let why = Unclaimable::TooLate {
        start_by: at(1_000),
    };
    assert_eq!(late, Err(StoreError::NotClaimable { job: id(2), why }));
    let swept = store.sweep(at(1_500)).expect("the store answers");
    assert_eq!((swept.too_late, swept.leases_ended), (1, 0));
    let job = get(&*store, id(2));
    assert_eq!(
        (job.state, job.finished),
        (JobState::Failed, Some(at(1_500)))
    );
    let done = store.complete(&lease, Outcome::default(), at(1_600));
    done.expect("it was begun in time");
}
