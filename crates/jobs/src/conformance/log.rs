//! What others learn: events, numbers, commands, workers.

use std::time::Duration;

use lowtide_core::Bytes;
use lowtide_core::job::{JobId, JobState, Priority};

use super::{Fixture, at, claim, id, plain, strict, submit, worker};
use crate::{
    Acknowledgement, EventId, Happening, Heartbeat, Order, Outcome, Policy, Preview, Progress,
    StoreError, Submission,
};

/// In order, of one job or of all, from any point on, in every process; who missed some is told.
pub fn events_tell_a_life_and_resume(fixture: &dyn Fixture) {
    let policy = Policy {
        events_max: 4,
        ..strict()
    };
    let store = fixture.open(policy.clone());
    let other = fixture.open(policy);
    submit(&*store, 1, at(0));
    submit(&*other, 2, at(1));
    let lease = claim(&*store, id(1), at(2)).lease;
    let progress = Progress {
        phase: "denoise".to_owned(),
        step: 1,
        steps: 2,
        eta_ms: None,
    };
    let told = store.progress(&lease, progress.clone(), None, at(3));
    told.expect("the lease holds");
    store.park(&lease, at(4)).expect("the lease holds");
    store
        .park(&lease, at(4))
        .expect("the same again is no event");
    let done = store.complete(&lease, Outcome::default(), at(5));
    done.expect("the lease holds");
    let read = |after, job: Option<JobId>, limit| {
        let events = other.events_after(after, job, limit);
        events.expect("the store answers")
    };
    let all = read(EventId(0), None, 100);
    assert!(!all.gap && all.events.is_sorted_by(|a, b| a.id < b.id));
    let submitted = Happening::Submitted {
        priority: Priority::Normal,
    };
    let claimed = Happening::Claimed {
        worker: worker("one"),
        attempt: 1,
    };
    let life = [
        submitted.clone(),
        claimed,
        Happening::Progress(progress),
        Happening::Parked,
        Happening::Done,
    ];
    let of_one = read(EventId(0), Some(id(1)), 100).events;
    assert_eq!(
        of_one
            .iter()
            .map(|event| event.what.clone())
            .collect::<Vec<_>>(),
        life
    );
    assert!(of_one.iter().all(|event| event.job == Some(id(1))));
    assert_eq!(of_one[4].at, at(5));
    assert_eq!(read(of_one[2].id, Some(id(1)), 1).events, of_one[3..4]);
    assert_eq!(read(all.events[1].id, None, 100).events, all.events[2..]);
    let last = all.events.last().expect("there are six").id;
    assert_eq!(read(last, None, 100).events, []);
    // Six happened, four are kept.
    store.sweep(at(6)).expect("the store answers");
    let kept = read(EventId(0), None, 100);
    assert!(kept.gap);
    assert_eq!(kept.events, all.events[2..]);
    assert!(!read(all.events[1].id, None, 100).gap);
    submit(&*store, 3, at(7));
    assert!(
        read(last, None, 100).events[0].id > last,
        "a number is never used twice"
    );
}

/// Whoever waits is woken by a change, of this process or another.
pub fn changes_by_others_are_noticed(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    let other = fixture.open(Policy::default());
    let long = Duration::from_secs(20);
    for (number, writer) in (1..).zip([&store, &other]) {
        let seen = store.change_mark().expect("the store answers");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| store.wait_change(seen, long));
            submit(&**writer, number, at(0));
            let now = waits.join().expect("it does not panic");
            assert_ne!(now.expect("the store answers"), seen);
        });
    }
    // Everything that happened is accounted for by now, or shows as one more change.
    let mut seen = store.change_mark().expect("the store answers");
    for _ in 0..4 {
        let now = store.wait_change(seen, Duration::from_millis(1));
        seen = now.expect("the store answers");
    }
    assert_eq!(store.wait_change(seen, Duration::ZERO), Ok(seen));
    store.nudge();
}

/// How far it is and what it looks like, until it is over.
pub fn progress_and_previews_are_shown(fixture: &dyn Fixture) {
    let policy = Policy {
        preview_max: Bytes(4),
        ..Policy::default()
    };
    let store = fixture.open(policy);
    submit(&*store, 1, at(0));
    let lease = claim(&*store, id(1), at(0)).lease;
    let preview = |content: &[u8]| Preview {
        media_type: "image/jpeg".to_owned(),
        content: content.to_vec(),
    };
    let progress = Progress {
        phase: "denoise".to_owned(),
        ..Progress::default()
    };
    for content in [b"abc", b"def"] {
        let told = store.progress(&lease, progress.clone(), Some(preview(content)), at(1));
        told.expect("the lease holds");
    }
    assert_eq!(store.preview(id(1)), Ok(Some(preview(b"def"))));
    let large = store.progress(&lease, Progress::default(), Some(preview(b"abcde")), at(2));
    assert!(
        matches!(
            large,
            Err(StoreError::TooLarge {
                field: "preview",
                ..
            })
        ),
        "{large:?}"
    );
    let job = store.job(id(1)).expect("it is there");
    assert_eq!(job.progress, Some(progress), "nothing of what was refused");
    let done = store.complete(&lease, Outcome::default(), at(3));
    done.expect("the lease holds");
    assert_eq!(store.preview(id(1)), Ok(None));
}

/// Counts, ages, throughput.
pub fn numbers_agree_with_the_jobs(fixture: &dyn Fixture) {
    let store = fixture.open(strict());
    for number in 1..=5 {
        let submission = Submission {
            priority: (number == 5).then_some(Priority::Batch),
            ..plain(number)
        };
        store.submit(submission, at(number)).expect("there is room");
    }
    let lease = claim(&*store, id(1), at(1_001)).lease;
    let done = store.complete(&lease, Outcome::default(), at(3_001));
    done.expect("the lease holds");
    claim(&*store, id(2), at(2_002));
    store.cancel(id(3), at(3_002)).expect("it waits");
    let stats = store.stats(at(4_000)).expect("the store answers");
    for (state, jobs) in [
        (JobState::Queued, 2),
        (JobState::Running, 1),
        (JobState::Done, 1),
        (JobState::Cancelled, 1),
        (JobState::Failed, 0),
    ] {
        assert_eq!(stats.in_state(state), jobs, "{state}");
    }
    assert_eq!(
        stats.counts.get(&(JobState::Queued, Priority::Batch)),
        Some(&1)
    );
    assert_eq!(stats.oldest_waiting.get(&Priority::Normal), Some(&at(4)));
    assert_eq!(stats.oldest_waiting.get(&Priority::Urgent), None);
    assert_eq!(stats.oldest_running, Some(at(2_002)));
    let sum = |pick: fn(&crate::Minute) -> u64| stats.minutes.iter().map(pick).sum::<u64>();
    assert_eq!(sum(|minute| minute.submitted), 5);
    assert_eq!(sum(|minute| minute.started), 2);
    assert_eq!(
        (sum(|minute| minute.done), sum(|minute| minute.cancelled)),
        (1, 1)
    );
    assert_eq!(sum(|minute| minute.waited_ms), 1_000 + 2_000);
    assert_eq!(sum(|minute| minute.ran_ms), 2_000);
    let later = store
        .stats(at(2 * 60 * 60 * 1_000))
        .expect("the store answers");
    assert_eq!(later.minutes, [], "two hours later the last hour was quiet");
}

/// Until it is acknowledged or too old; the first answer counts; nobody answers for another.
pub fn commands_are_given_until_acknowledged(fixture: &dyn Fixture) {
    let store = fixture.open(Policy::default());
    let (one, two) = (worker("one"), worker("two"));
    let load = Order::Load {
        model: "demo".to_owned(),
    };
    let send = |to, order: &Order, expires| {
        let sent = store.send(to, order.clone(), at(expires), at(0));
        sent.expect("the store answers")
    };
    let first = send(&one, &load, 1_000);
    let second = send(&one, &Order::Drain, 100);
    send(&two, &Order::Resume, 1_000);
    let other = fixture.open(Policy::default());
    let open = |now| {
        let commands = other.commands(&one, at(now)).expect("the store answers");
        commands
            .into_iter()
            .map(|command| command.id)
            .collect::<Vec<_>>()
    };
    assert_eq!((open(1), open(100)), (vec![first, second], vec![first]));
    let answer = |ok| Acknowledgement {
        at: at(5),
        ok,
        message: "loaded in 2 s".to_owned(),
    };
    let stranger = store.acknowledge(&two, first, answer(true));
    assert_eq!(stranger, Err(StoreError::NoCommand { command: first }));
    for ok in [true, false] {
        let noted = store.acknowledge(&one, first, answer(ok));
        noted.expect("it is this worker's");
    }
    let command = other.command(first).expect("it is there");
    assert_eq!(
        (command.order, command.acknowledged),
        (load, Some(answer(true)))
    );
    assert_eq!(open(6), [second]);
    let unknown = crate::CommandId(u64::MAX);
    assert_eq!(
        other.command(unknown),
        Err(StoreError::NoCommand { command: unknown })
    );
}

/// What a worker says stays until it says something else, and a while after it is gone.
pub fn workers_are_known_until_they_are_gone(fixture: &dyn Fixture) {
    let policy = Policy {
        stale_kept: Duration::from_secs(60),
        ..Policy::default()
    };
    let store = fixture.open(policy);
    let beat = |cards: Option<&str>, status: &str| Heartbeat {
        worker: worker("one"),
        ttl: Duration::from_secs(5),
        cards: cards.map(str::to_owned),
        status: status.to_owned(),
    };
    store
        .heartbeat(beat(Some("[1]"), "{}"), at(0))
        .expect("the store answers");
    store
        .heartbeat(beat(None, "{\"a\":1}"), at(3_000))
        .expect("the store answers");
    let known = fixture.open(strict()).workers().expect("the store answers");
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].first_seen, known[0].seen), (at(0), at(3_000)));
    assert_eq!(
        (known[0].cards.as_deref(), &*known[0].status),
        (Some("[1]"), "{\"a\":1}")
    );
    assert!(known[0].is_alive(at(7_999)) && !known[0].is_alive(at(8_000)));
    store.sweep(at(68_000)).expect("the store answers");
    assert_eq!(store.workers().map(|known| known.len()), Ok(1));
    store.sweep(at(68_001)).expect("the store answers");
    assert_eq!(store.workers(), Ok(Vec::new()));
    store
        .heartbeat(beat(None, "{}"), at(70_000))
        .expect("the store answers");
    store
        .forget_worker(&worker("one"))
        .expect("the store answers");
    assert_eq!(store.workers(), Ok(Vec::new()));
}
