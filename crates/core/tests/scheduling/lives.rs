//! What the life of a model promises: when it moves, that it never leaves under a job, and what it says.

use std::time::Duration;

use lowtide_core::job::Moment;
use lowtide_core::lifecycle::{
    AfterJob, Effect, Event, KeepAlive, Life, LifePolicy, MoveWhy, Order, Residency, keeps,
};
use proptest::prelude::*;

const BEGIN: Event = Event::JobBegins { keep_alive: None };

fn begin(keep_alive: &str) -> Event {
    Event::JobBegins {
        keep_alive: Some(keep_alive.parse().expect("a keep-alive")),
    }
}

fn policy(after_job: AfterJob) -> LifePolicy {
    LifePolicy {
        after_job,
        from_host_s: 2.0,
        ..LifePolicy::default()
    }
}

/// Sends events at seconds and writes down every effect in its sentence.
fn told(policy: &LifePolicy, events: &[(u64, Event)]) -> Vec<String> {
    let mut life = Life::default();
    let mut lines = Vec::new();
    for &(at_s, event) in events {
        for effect in life.on_event(event, policy, Moment(at_s * 1000)) {
            lines.push(format!("{at_s}: {effect}"));
        }
    }
    lines
}

#[test]
fn the_idle_timer_goes_first_to_host_memory_then_out() {
    use Event::{Arrived, JobEnds, Tick};
    let events = [
        (0, BEGIN),
        (3, Arrived),
        (10, JobEnds),
        (610, Tick),
        (610, Arrived),
        (1210, Tick),
        (1210, Arrived),
    ];
    assert_eq!(
        told(&policy(AfterJob::Keep), &events),
        [
            "0: moves from unloaded to device: a job needs it",
            "3: ready on the device",
            "10: looks again at 610.000 s",
            "610: moves from device to host: idle 10 min 0 s, the idle timer is 10 min 0 s",
            "610: looks again at 1210.000 s",
            "1210: moves from host to unloaded: idle 20 min 0 s, the idle timer is 10 min 0 s",
        ]
    );
}

#[test]
fn after_a_job_and_what_a_request_says() {
    use Event::{Arrived, JobEnds};
    let run = |policy, begin| told(&policy, &[(0, begin), (3, Arrived), (10, JobEnds)]).pop();
    for (after, begin, said) in [
        (
            AfterJob::Release,
            BEGIN,
            "10: moves from device to unloaded: idle 0 ms, it is released after a job",
        ),
        (
            AfterJob::Offload,
            BEGIN,
            "10: moves from device to host: idle 0 ms, it is offloaded after a job",
        ),
        (
            AfterJob::Keep,
            begin("0"),
            "10: moves from device to unloaded: idle 0 ms, keep-alive is 0 ms",
        ),
        (
            AfterJob::Release,
            begin("5m"),
            "10: looks again at 310.000 s",
        ),
        (
            AfterJob::Release,
            begin("forever"),
            "3: ready on the device",
        ),
        // Loading takes 2 s, which 150 s of idling are worth.
        (
            AfterJob::Release,
            begin("auto"),
            "10: looks again at 160.000 s",
        ),
    ] {
        assert_eq!(
            run(policy(after), begin).as_deref(),
            Some(said),
            "{after:?} {begin:?}"
        );
    }
    let no_room = LifePolicy {
        host_room: false,
        ..policy(AfterJob::Offload)
    };
    assert_eq!(
        run(no_room, BEGIN).as_deref(),
        Some("10: moves from device to unloaded: idle 0 ms, it is offloaded after a job")
    );
}

#[test]
fn a_hand_waits_for_the_job_and_another_model_does_not_get_the_room() {
    use Event::{Arrived, Hand, JobEnds, JobParks, JobResumes, MakeRoom};
    let to = Residency::Host;
    let events = [
        (0, Hand(Order::Load)),
        (3, Arrived),
        (4, BEGIN),
        (5, Hand(Order::Offload)),
        (5, MakeRoom { to }),
        (6, JobEnds),
        (6, MakeRoom { to }),
        (7, BEGIN),
        (7, Arrived),
        (9, Arrived),
        (10, JobParks),
        (11, MakeRoom { to }),
        (11, Arrived),
        (12, JobResumes),
    ];
    assert_eq!(
        told(&policy(AfterJob::Release), &events),
        [
            "0: moves from unloaded to device: asked for by hand",
            // What happens after a job does not take away what a hand put there.
            "3: looks again at 603.000 s",
            "4: ready on the device",
            "5: offload follows later: 1 job uses it",
            "5: cannot make room: 1 job uses it",
            "6: moves from device to host: asked for by hand",
            "6: cannot make room: it is moving",
            "7: moves from host to device: a job needs it",
            "9: ready on the device",
            "11: moves from device to host: another model needs the room",
            "12: moves from host to device: a job needs it",
        ]
    );
}

#[test]
fn auto_keeps_what_is_asked_for_often() {
    let auto = LifePolicy {
        keep_alive: Some(KeepAlive::Auto),
        ..policy(AfterJob::Keep)
    };
    // Loading takes 2 s, worth 100 s of idling.
    let left_after = |gap_s: u64| {
        let mut life = Life::default();
        let mut effects = Vec::new();
        for round in 0..10 {
            let at = |s: u64| Moment((round * gap_s + s) * 1000);
            if matches!(
                life.on_event(BEGIN, &auto, at(0))[..],
                [Effect::Move { .. }]
            ) {
                life.on_event(Event::Arrived, &auto, at(2));
            }
            effects = life.on_event(Event::JobEnds, &auto, at(5));
            if matches!(effects[..], [Effect::Move { .. }]) {
                life.on_event(Event::Arrived, &auto, at(5));
            }
        }
        matches!(
            effects[..],
            [Effect::Move {
                to: Residency::Host,
                ..
            }]
        )
    };
    assert!(!left_after(60), "asked for every minute, it stays");
    assert!(
        left_after(400),
        "asked for every seven minutes, it goes at once"
    );
    // Near the balance it does what it did.
    for (gap_s, if_kept, if_gone) in [
        (60.0, true, true),
        (90.0, true, false),
        (140.0, true, false),
        (160.0, false, false),
    ] {
        assert_eq!(keeps(true, gap_s, 2.0), if_kept, "{gap_s}");
        assert_eq!(keeps(false, gap_s, 2.0), if_gone, "{gap_s}");
    }
}

#[test]
fn keep_alives_are_read() {
    for (text, keep) in [
        ("0", KeepAlive::For(Duration::ZERO)),
        ("45", KeepAlive::For(Duration::from_secs(45))),
        ("90s", KeepAlive::For(Duration::from_secs(90))),
        ("10m", KeepAlive::For(Duration::from_secs(600))),
        ("2h", KeepAlive::For(Duration::from_secs(7200))),
        ("-1", KeepAlive::Forever),
        ("forever", KeepAlive::Forever),
        ("auto", KeepAlive::Auto),
    ] {
        assert_eq!(text.parse(), Ok(keep), "{text}");
        assert_eq!(keep.to_string().parse(), Ok(keep), "{text}");
    }
    for text in [
        "",
        "s",
        "-5",
        "+5",
        "1e3",
        "5d",
        "99999999999999999999",
        "9999999999999999999h",
        "é",
    ] {
        assert!(text.parse::<KeepAlive>().is_err(), "{text}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Wish {
    Begin(Option<KeepAlive>),
    End,
    Park,
    Resume,
    Leave,
    Hand(Order),
    MakeRoom(Residency),
    Arrive(bool),
    Tick,
}

fn wishes() -> impl Strategy<Value = Vec<(u64, Wish)>> {
    let keep = prop::option::of(prop_oneof![
        Just(KeepAlive::Auto),
        Just(KeepAlive::Forever),
        (0..100u64).prop_map(|s| KeepAlive::For(Duration::from_millis(s * 777))),
    ]);
    let order = prop::sample::select(vec![Order::Load, Order::Offload, Order::Release]);
    let place = prop::sample::select(vec![Residency::Host, Residency::Unloaded]);
    let wish = prop_oneof![
        3 => keep.prop_map(Wish::Begin),
        3 => Just(Wish::End),
        1 => Just(Wish::Park),
        1 => Just(Wish::Resume),
        1 => Just(Wish::Leave),
        2 => order.prop_map(Wish::Hand),
        1 => place.prop_map(Wish::MakeRoom),
        5 => prop::bool::weighted(0.9).prop_map(Wish::Arrive),
        3 => Just(Wish::Tick),
    ];
    prop::collection::vec((0..200_000u64, wish), 0..80)
}

proptest! {
    /// Whatever jobs, hands and timers do in whatever order: one move at a time, none away from under a job, a job that
    /// began is told once that it can step, and every move is counted.
    #[test]
    fn nothing_races(
        wishes in wishes(),
        after in prop::sample::select(vec![AfterJob::Keep, AfterJob::Offload, AfterJob::Release]),
        keep in prop::option::of(Just(KeepAlive::Auto)),
    ) {
        let policy = LifePolicy { keep_alive: keep, ..policy(after) };
        let mut life = Life::default();
        let (mut now, mut using, mut parked) = (Moment(0), 0u32, 0u32);
        let (mut at, mut moving, mut moves) = (Residency::Unloaded, None, 0);
        let mut failed = false;
        for (ms, wish) in wishes {
            now = Moment(now.0 + ms);
            let event = match wish {
                Wish::Begin(keep_alive) => { using += 1; Event::JobBegins { keep_alive } }
                Wish::End if using > 0 => { using -= 1; Event::JobEnds }
                Wish::Park if using > 0 => { using -= 1; parked += 1; Event::JobParks }
                Wish::Resume if parked > 0 => { using += 1; parked -= 1; Event::JobResumes }
                Wish::Leave if parked > 0 => { parked -= 1; Event::ParkedJobLeaves }
                Wish::Hand(order) => Event::Hand(order),
                Wish::MakeRoom(to) => Event::MakeRoom { to },
                Wish::Arrive(arrived) if moving.is_some() => {
                    let to = moving.take().expect("it moves");
                    moves += 1;
                    failed = !arrived;
                    if arrived { at = to; Event::Arrived } else { Event::MoveFailed }
                }
                Wish::Tick => Event::Tick,
                _ => continue,
            };
            let effects = life.on_event(event, &policy, now);
            let mut ready = 0;
            for effect in &effects {
                match *effect {
                    Effect::Move { from, to, why } => {
                        prop_assert_eq!(moving.replace(to), None, "two moves at a time");
                        prop_assert_eq!(from, at);
                        prop_assert_ne!(from, to);
                        prop_assert!(using == 0 || to == Residency::Device, "leaves under a job");
                        let timer = matches!(why, MoveWhy::Rest { .. });
                        prop_assert!(!timer || parked == 0, "the timer moves a parked job's model");
                    }
                    Effect::Ready => ready += 1,
                    Effect::WakeAt(moment) => {
                        prop_assert!(moment > now, "wakes at once, again and again");
                    }
                    Effect::Refused { in_flight, moving: on_its_way } => {
                        prop_assert!(in_flight == using && (using > 0 || on_its_way));
                    }
                    Effect::Deferred { in_flight, .. } => prop_assert_eq!(in_flight, using),
                    Effect::Already(place) => prop_assert_eq!(place, at),
                }
            }
            let there = at == Residency::Device && moving.is_none() && using > 0;
            let told = matches!(event, Event::JobBegins { .. } | Event::JobResumes | Event::Arrived);
            prop_assert_eq!(ready, u32::from(there && told));
            prop_assert!(there || using == 0 || moving.is_some() || failed, "a job waits for nothing");
            prop_assert_eq!((life.residency(), life.moving_to(), life.in_flight()), (at, moving, using));
            let c = life.counts();
            let tallies = [c.from_files, c.from_host, c.offloads, c.releases, c.failed];
            prop_assert_eq!(tallies.iter().map(|tally| tally.count).sum::<u64>(), moves);
        }
    }
}
