//! Jobs that are over.

use std::time::Duration;

use lowtide_core::Bytes;
use lowtide_core::job::JobState;

use super::{Fixture, at, claim, id, plain, strict, submit};
use crate::{
    Artifact, ArtifactId, InputId, JobStore, Listing, Outcome, Removed, Retention, Submission,
};

/// Newest first, by state and owner, a page at a time, without what makes a record long.
pub fn jobs_are_listed_in_pages(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    for number in 1..=5 {
        let submission = Submission {
            owner: (number % 2 == 0).then(|| "me".to_owned()),
            ..plain(number)
        };
        store.submit(submission, at(number)).expect("there is room");
    }
    done(&*store, 1, 10);
    store.cancel(id(2), at(11)).expect("it waits");
    let list = |listing: Listing| {
        let jobs = store.list(&listing).expect("the store answers");
        jobs.into_iter()
            .map(|job| (job.id, job.seq))
            .collect::<Vec<_>>()
    };
    let ids = |listing| {
        list(listing)
            .into_iter()
            .map(|(id, _)| id)
            .collect::<Vec<_>>()
    };
    let ten = Listing {
        limit: 10,
        ..Listing::default()
    };
    assert_eq!(ids(ten.clone()), [5, 4, 3, 2, 1].map(id));
    let page = list(Listing {
        limit: 2,
        ..ten.clone()
    });
    let next = Listing {
        before: page.last().map(|(_, seq)| *seq),
        ..ten.clone()
    };
    assert_eq!(ids(next), [3, 2, 1].map(id));
    for (states, expected) in [
        (vec![JobState::Done], vec![1]),
        (
            vec![JobState::Cancelled, JobState::Queued],
            vec![5, 4, 3, 2],
        ),
        (vec![JobState::Running], vec![]),
    ] {
        let listing = Listing {
            states,
            ..ten.clone()
        };
        assert_eq!(
            ids(listing),
            expected.into_iter().map(id).collect::<Vec<_>>()
        );
    }
    let mine = Listing {
        owner: Some("me".to_owned()),
        ..ten.clone()
    };
    assert_eq!(ids(mine), [4, 2].map(id));
    let whole = store.list(&ten).expect("the store answers");
    assert!(whole.iter().all(|job| job.request.is_empty()));
}

/// By age, by number and by bytes, the oldest first; jobs that are not over stay whatever their age.
pub fn retention_forgets_the_oldest(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    for number in 1..=6 {
        submit(&*store, number, at(0));
    }
    for number in 1..=5 {
        done(&*store, number, number * 1_000);
    }
    let retain = |retention| {
        store
            .retain(&retention, at(6_000))
            .expect("the store answers")
    };
    let none = Retention::default();
    assert_eq!(retain(none), Removed::default());
    let removed = |number: u64| Removed {
        jobs: 1,
        artifacts: vec![artifact(number).id],
        more: false,
    };
    let by_age = Retention {
        age_max: Some(Duration::from_secs(5)),
        ..none
    };
    assert_eq!(
        retain(by_age),
        Removed::default(),
        "exactly as old as may be"
    );
    let by_age = Retention {
        age_max: Some(Duration::from_millis(4_999)),
        ..none
    };
    assert_eq!(retain(by_age), removed(1));
    let by_number = Retention {
        jobs_max: Some(3),
        ..none
    };
    assert_eq!(retain(by_number), removed(2));
    let by_bytes = Retention {
        artifacts_max: Some(Bytes(200)),
        ..none
    };
    assert_eq!(retain(by_bytes), removed(3));
    assert!(store.job(id(3)).is_err() && store.job(id(4)).is_ok());
    assert_eq!(store.artifact(artifact(3).id), Ok(None));
    let stats = store.stats(at(6_000)).expect("the store answers");
    assert_eq!((stats.artifacts, stats.artifact_bytes), (2, 200));
    assert_eq!(stats.in_state(JobState::Done), 2);
    let nothing = Retention {
        age_max: Some(Duration::ZERO),
        artifacts_max: Some(Bytes::ZERO),
        jobs_max: Some(0),
    };
    assert_eq!(retain(nothing).jobs, 2);
    assert_eq!(store.job(id(6)).map(|job| job.state), Ok(JobState::Queued));
}

/// Named by several jobs, an input is named until the last of them is forgotten, whatever became of it.
pub fn inputs_are_named_as_long_as_their_jobs_are_known(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    let [a, b, c] = ["a", "b", "c"].map(|content| InputId::of(content.as_bytes()));
    let named = || store.named_inputs(&[c, a, b]).expect("the store answers");
    assert_eq!(named(), []);
    for (number, inputs) in [(1, vec![a, b, a]), (2, vec![a])] {
        let submission = Submission {
            inputs,
            ..plain(number)
        };
        let accepted = store.submit(submission.clone(), at(0));
        assert!(!accepted.expect("there is room").existed);
        let again = store.submit(submission, at(0));
        assert!(again.expect("it is the same").existed);
    }
    // What is refused names nothing.
    let refused = store.submit_all(
        vec![
            Submission {
                inputs: vec![c],
                ..plain(3)
            },
            Submission {
                request: "no JSON".to_owned(),
                ..plain(4)
            },
        ],
        at(0),
    );
    assert!(refused.is_err());
    assert_eq!(
        fixture.open(strict()).named_inputs(&[a, b, c]),
        Ok(vec![a, b])
    );
    done(&*store, 1, 1_000);
    assert_eq!(named(), [a, b], "it is over, but known");
    let none = Retention {
        jobs_max: Some(0),
        ..Retention::default()
    };
    store.retain(&none, at(2_000)).expect("the store answers");
    assert_eq!(named(), [a], "the other one waits");
    store.cancel(id(2), at(3_000)).expect("it waits");
    store.retain(&none, at(4_000)).expect("the store answers");
    assert_eq!(named(), []);
}

fn artifact(number: u64) -> Artifact {
    Artifact {
        id: ArtifactId::new(at(0), u128::from(number)),
        media_type: "image/png".to_owned(),
        bytes: 100,
        sha256: "00".repeat(32),
    }
}

fn done(store: &dyn JobStore, number: u64, ms: u64) {
    let lease = claim(store, id(number), at(ms)).lease;
    let outcome = Outcome {
        artifacts: vec![artifact(number)],
        report: None,
    };
    let done = store.complete(&lease, outcome, at(ms));
    done.expect("the lease holds");
}
