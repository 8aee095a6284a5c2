//! Keys, quotas, and turns between owners.

use lowtide_core::job::{JobState, Priority};

use super::{Fixture, LEASE, at, candidates, get, id, plain, worker};
use crate::{
    AccessKey, Artifact, ArtifactId, JobStore, Limits, Outcome, Policy, Quota, StoreError,
    Submission, Unclaimable, recognise,
};

fn of(number: u64, owner: &str, quota: Quota) -> Submission {
    Submission {
        owner: Some(owner.to_owned()),
        quota,
        ..plain(number)
    }
}

/// A key is known to every process, as it was kept last; tokens are nowhere.
pub fn keys_are_known_to_every_process(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    assert_eq!(store.access_keys(), Ok(Vec::new()));
    let (mut first, token) = AccessKey::new("one", "root", at(1));
    first.limits = Limits {
        per_minute: Some(60),
        waiting: Some(5),
        running: Some(2),
        priority: Some(Priority::Normal),
    };
    let (second, _) = AccessKey::new("two", "root", at(2));
    store.keep_key(&second).expect("there is room");
    store.keep_key(&first).expect("there is room");
    let other = fixture.open(Policy::default());
    let known = other.access_keys().expect("the store answers");
    assert_eq!(known, [first.clone(), second.clone()]);
    let found = recognise(&known, token.reveal(), at(3)).expect("it was kept");
    assert_eq!(found.id, first.id);
    first.revoked = Some(at(4));
    other.keep_key(&first).expect("there is room");
    drop((store, other));
    let known = fixture.open(Policy::default()).access_keys();
    assert_eq!(known, Ok(vec![first, second]));
}

/// What becomes of the jobs of a name is counted from its first key on, and of others nothing is.
pub fn usage_is_counted_by_name(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    let quota = Quota::default();
    store.submit(of(1, "me", quota), at(0)).expect("room");
    assert_eq!(store.usage(), Ok(Vec::new()));
    store
        .keep_key(&AccessKey::new("me", "root", at(1)).0)
        .expect("room");
    for (number, owner) in [(2, "me"), (3, "me"), (4, "me"), (5, "you"), (6, "me")] {
        store.submit(of(number, owner, quota), at(2)).expect("room");
    }
    let one = worker("one");
    let lease = |number: u64, now| {
        store
            .claim(id(number), &one, LEASE, now)
            .expect("free")
            .lease
    };
    let done = lease(2, at(100));
    let artifact = Artifact {
        id: ArtifactId::random(at(3)),
        media_type: "image/png".to_owned(),
        bytes: 7,
        sha256: "0".repeat(64),
    };
    let outcome = Outcome {
        artifacts: vec![artifact],
        report: None,
    };
    store
        .complete(&done, outcome.clone(), at(350))
        .expect("it has it");
    store
        .complete(&done, outcome, at(360))
        .expect("the same again");
    let failed = lease(3, at(100));
    store
        .fail(&failed, "no", false, at(150))
        .expect("it has it");
    store.cancel(id(4), at(5)).expect("it waits");
    lease(6, at(400));
    lease(5, at(400));
    let usage = store.usage().expect("the store answers");
    assert_eq!(usage.len(), 1, "{usage:?}");
    let mine = &usage[0];
    assert_eq!((mine.owner.as_str(), mine.submitted), ("me", 4));
    assert_eq!((mine.done, mine.failed, mine.cancelled), (1, 1, 1));
    assert_eq!((mine.artifacts, mine.worked_ms), (1, 300));
    assert_eq!(
        (mine.waiting, mine.running),
        (1, 1),
        "the one before the key waits"
    );
}

/// An owner has as many jobs waiting and running as its submissions say, and others are not concerned.
pub fn an_owner_keeps_to_its_quota(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    let quota = Quota {
        waiting_max: Some(2),
        running_max: Some(1),
        priority_max: Some(Priority::Batch),
    };
    let both = vec![of(1, "me", quota), of(2, "me", quota)];
    store.submit_all(both, at(0)).expect("two may wait");
    assert_eq!(
        get(&*store, id(1)).priority,
        Priority::Batch,
        "as high as it may"
    );
    let third = store.submit(of(3, "me", quota), at(1));
    match third {
        Err(StoreError::OwnerFull {
            owner,
            waiting: 2,
            limit: 2,
            retry_after_ms: 1..,
        }) if owner == "me" => {}
        other => panic!("two may wait: {other:?}"),
    }
    let again = store
        .submit(of(2, "me", quota), at(1))
        .expect("it is there");
    assert!(again.existed, "what is there is no further one");
    store
        .submit(of(4, "you", quota), at(2))
        .expect("another's queue");
    let three = vec![of(5, "he", quota), of(6, "he", quota), of(7, "he", quota)];
    assert!(store.submit_all(three, at(2)).is_err(), "all or none");
    assert!(matches!(store.job(id(5)), Err(StoreError::NotFound { .. })));

    let one = worker("one");
    let first = store.claim(id(1), &one, LEASE, at(3)).expect("none runs");
    assert_eq!(
        candidates(&*store, at(3)),
        [id(4)],
        "the second may not begin"
    );
    match store.claim(id(2), &worker("two"), LEASE, at(3)) {
        Err(StoreError::NotClaimable {
            why: Unclaimable::OwnerBusy { running: 1 },
            ..
        }) => {}
        other => panic!("one may run: {other:?}"),
    }
    store.submit(of(3, "me", quota), at(4)).expect("one began");
    store.park(&first.lease, at(4)).expect("it has it");
    assert!(
        store.claim(id(2), &one, LEASE, at(4)).is_err(),
        "a parked one runs"
    );
    store
        .complete(&first.lease, Outcome::default(), at(5))
        .expect("it has it");
    store.claim(id(2), &one, LEASE, at(6)).expect("none runs");
    assert_eq!(get(&*store, id(2)).state, JobState::Running);
}

/// Who sent many jobs does not keep the others waiting, however few are looked at.
pub fn owners_have_turns(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    let quota = Quota::default();
    let many = (1..=30).map(|number| of(number, "much", quota)).collect();
    store.submit_all(many, at(0)).expect("there is room");
    store.submit(of(40, "little", quota), at(1)).expect("room");
    store.submit(of(41, "little", quota), at(2)).expect("room");
    store.submit(plain(50), at(3)).expect("room");
    let few = |store: &dyn JobStore, now| {
        let found = store.candidates(4, now).expect("the store answers");
        let ids: Vec<_> = found.jobs.iter().map(|job| job.id).collect();
        ids
    };
    assert_eq!(few(&*store, at(4))[..2], [id(1), id(40)]);
    store
        .claim(id(1), &worker("one"), LEASE, at(5))
        .expect("free");
    let next = few(&*store, at(6));
    assert_eq!(next[0], id(40), "the other was served longer ago: {next:?}");
    store
        .claim(id(40), &worker("one"), LEASE, at(7))
        .expect("free");
    let next = few(&*store, at(8));
    assert_eq!(next[..2], [id(2), id(41)], "{next:?}");
    let all = candidates(&*store, at(8));
    let place = |number| all.iter().position(|job| *job == id(number));
    assert!(
        place(50) < place(4),
        "who has no name has turns as well: {all:?}"
    );
    assert_eq!(all.len(), 31);
}
