//! Ends of jobs that are to be told.

use std::time::Duration;

use super::{Fixture, LEASE, at, get, id, plain, worker};
use crate::{Delivery, DeliveryState, Outcome, Policy, Retention, Settled, Submission, Webhook};

const HOLD: Duration = Duration::from_secs(30);

fn told(number: u64, completed: bool) -> Submission {
    let webhook = Webhook {
        url: "https://example.org/hook".to_owned(),
        start: true,
        progress: false,
        completed,
    };
    Submission {
        webhook: Some(webhook),
        ..plain(number)
    }
}

/// That a job is over is owed to its webhook until it was told, across processes, and to one at a time.
pub fn an_end_is_owed_until_it_was_told(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    store.submit(told(1, true), at(0)).expect("room");
    store.submit(told(2, false), at(0)).expect("room");
    store.submit(told(3, true), at(0)).expect("room");
    store.submit(plain(4), at(0)).expect("room");
    assert_eq!(get(&*store, id(1)).webhook, told(1, true).webhook);
    assert_eq!(store.next_call(), Ok(None), "none is over");
    for number in [1, 2, 4] {
        let one = worker("one");
        let lease = store
            .claim(id(number), &one, LEASE, at(1))
            .expect("free")
            .lease;
        store
            .complete(&lease, Outcome::default(), at(10))
            .expect("it has it");
        let again = store.complete(&lease, Outcome::default(), at(11));
        again.expect("the same again");
    }
    store.cancel(id(3), at(20)).expect("it waits");
    let other = fixture.open(Policy::default());
    drop(store);
    assert_eq!(other.next_call(), Ok(Some(at(10))));
    assert_eq!(other.take_calls(9, HOLD, at(9)), Ok(Vec::new()), "not due");
    let first = other.take_calls(1, HOLD, at(30)).expect("it answers");
    assert_eq!((first.len(), first[0].job, first[0].tries), (1, id(1), 1));
    let second = other.take_calls(9, HOLD, at(31)).expect("it answers");
    assert_eq!(
        (second.len(), second[0].job),
        (1, id(3)),
        "each has one caller"
    );
    let later = Settled::Again {
        due: at(5_000),
        problem: "nobody answers".to_owned(),
    };
    let settle = |call, settled: &Settled, now| {
        let done = other.settle_call(call, settled, at(now));
        done.expect("it answers");
    };
    settle(&first[0], &later, 32);
    settle(&second[0], &Settled::Told, 33);
    assert_eq!(other.next_call(), Ok(Some(at(5_000))));
    let noted = get(&*other, id(1)).delivery.expect("it was tried");
    let waits = Delivery {
        state: DeliveryState::Waiting,
        tries: 1,
        at: at(32),
        due: Some(at(5_000)),
        problem: Some("nobody answers".to_owned()),
    };
    assert_eq!(noted, waits);
    let noted = get(&*other, id(3)).delivery.expect("it was told");
    assert_eq!((noted.state, noted.tries), (DeliveryState::Told, 1));
    let forget = Retention {
        jobs_max: Some(0),
        ..Retention::default()
    };
    other.retain(&forget, at(40)).expect("it answers");
    assert!(
        other.job(id(1)).is_ok() && other.job(id(3)).is_err(),
        "what is owed stays"
    );
}

/// Of several who have the same end one after the other, since the others vanished, only the last one's word counts.
pub fn a_vanished_caller_changes_nothing(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    store.submit(told(1, true), at(0)).expect("room");
    store.cancel(id(1), at(20)).expect("it waits");
    let take = |now| store.take_calls(9, HOLD, at(now)).expect("it answers")[0];
    let settle = |call, settled: &Settled, now| {
        let done = store.settle_call(call, settled, at(now));
        done.expect("it answers");
    };
    let gone = take(5_000);
    assert!(
        store
            .take_calls(9, HOLD, at(34_999))
            .is_ok_and(|none| none.is_empty()),
        "somebody has it"
    );
    let late = take(35_000);
    assert_eq!((gone.tries, late.tries), (1, 2));
    settle(&gone, &Settled::Told, 36_000);
    assert!(store.next_call().expect("it answers").is_some());
    assert_eq!(get(&*store, id(1)).delivery, None);
    let stop = Settled::GivenUp {
        problem: "nobody answers".to_owned(),
    };
    settle(&late, &stop, 37_000);
    assert_eq!(store.next_call(), Ok(None));
    let other = fixture.open(Policy::default());
    let noted = get(&*other, id(1)).delivery.expect("it was tried");
    assert_eq!((noted.state, noted.tries), (DeliveryState::GivenUp, 2));
    let forget = Retention {
        jobs_max: Some(0),
        ..Retention::default()
    };
    other.retain(&forget, at(40_000)).expect("it answers");
    assert!(other.job(id(1)).is_err(), "nothing is owed any more");
}

/// A failed job that goes through the queue again has another end, which is told as if there had been none before; and
/// telling changes no number of the queue.
pub fn another_end_is_told_anew(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    store.submit(told(1, true), at(0)).expect("room");
    let one = worker("one");
    let run = |now: u64| {
        let claimed = store.claim(id(1), &one, LEASE, at(now)).expect("it waits");
        claimed.lease
    };
    store
        .fail(&run(1), "it broke", false, at(2))
        .expect("it has it");
    let first = store.take_calls(9, HOLD, at(3)).expect("it answers");
    let stop = Settled::GivenUp {
        problem: "nobody answers".to_owned(),
    };
    store
        .settle_call(&first[0], &stop, at(4))
        .expect("it answers");
    assert!(get(&*store, id(1)).delivery.is_some());
    store.requeue(id(1), at(5)).expect("it failed");
    assert_eq!(get(&*store, id(1)).delivery, None);
    let file = crate::Artifact {
        id: crate::ArtifactId::from_bytes([7; 16]),
        media_type: "image/png".to_owned(),
        bytes: 10,
        sha256: "0".repeat(64),
    };
    let outcome = Outcome {
        artifacts: vec![file],
        report: None,
    };
    store.complete(&run(6), outcome, at(8)).expect("it has it");
    let before = store.stats(at(9)).expect("it answers");
    let second = store.take_calls(9, HOLD, at(9)).expect("it answers");
    assert_eq!((second.len(), second[0].tries), (1, 1), "counted anew");
    // What the one who had the first end says late does not concern the second.
    store
        .settle_call(&first[0], &Settled::Told, at(10))
        .expect("it answers");
    assert!(store.next_call().expect("it answers").is_some());
    store
        .settle_call(&second[0], &Settled::Told, at(11))
        .expect("it answers");
    assert_eq!(store.next_call(), Ok(None));
    let noted = get(&*store, id(1)).delivery.expect("it was told");
    assert_eq!((noted.state, noted.tries), (DeliveryState::Told, 1));
    let after = store.stats(at(9)).expect("it answers");
    assert_eq!(after, before, "nothing is counted twice");
}

/// A job that goes on while its end is being told has none: the call is void, and the next end is owed.
pub fn an_end_that_was_taken_back_is_not_told(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    store.submit(told(1, true), at(0)).expect("room");
    let one = worker("one");
    let lease = store.claim(id(1), &one, LEASE, at(1)).expect("free").lease;
    store.fail(&lease, "it broke", false, at(2)).expect("lease");
    let call = store.take_calls(9, HOLD, at(3)).expect("it answers")[0];
    store.requeue(id(1), at(4)).expect("it failed");
    store
        .settle_call(&call, &Settled::Void, at(5))
        .expect("it answers");
    assert_eq!(store.next_call(), Ok(None));
    assert_eq!(get(&*store, id(1)).delivery, None);
    store.cancel(id(1), at(6)).expect("it waits");
    assert_eq!(store.next_call(), Ok(Some(at(6))));
}

/// The same submission with another address is another one.
pub fn a_webhook_is_part_of_what_was_asked(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    let keyed = |completed| Submission {
        idempotency_key: Some("once".to_owned()),
        ..told(1, completed)
    };
    store.submit(keyed(true), at(0)).expect("room");
    assert!(store.submit(keyed(true), at(1)).expect("the same").existed);
    assert!(store.submit(keyed(false), at(1)).is_err());
    let mut long = told(2, true);
    let url = "https://example.org/".to_owned() + &"a".repeat(2_048);
    long.webhook.as_mut().expect("it has one").url = url;
    assert!(store.submit(long, at(2)).is_err(), "an address has a bound");
}
