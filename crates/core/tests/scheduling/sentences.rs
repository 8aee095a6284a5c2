//! Decisions as people read them, and estimates.

use lowtide_core::job::{JobId, Moment, Priority};
use lowtide_core::lifecycle::Residency;
use lowtide_core::schedule::{
    Action, Batch, BatchKey, Candidate, Decision, Device, ModelView, Policy, Session, SessionState,
    WorkerView, decide, estimate, retry_after_s,
};
use lowtide_core::{Bytes, Kind, Ledger};

const NOW: Moment = Moment(1_000_000_000);

fn ago(seconds: u64) -> Moment {
    Moment(NOW.0 - seconds * 1000)
}

fn job(id: u128, model: &str, waited_s: u64) -> Candidate {
    Candidate {
        id: JobId(id),
        kind: "image".into(),
        model: model.into(),
        priority: Priority::Normal,
        submitted: ago(waited_s),
        not_before: None,
        deadline: None,
        seconds: 8.0,
        peak: Bytes::gib(5),
        batch: None,
    }
}

fn model(name: &str, residency: Residency, gib: u64) -> ModelView {
    let at = |place| {
        if residency == place {
            Bytes::gib(gib)
        } else {
            Bytes::ZERO
        }
    };
    ModelView {
        name: name.into(),
        residency,
        device: at(Residency::Device),
        host: at(Residency::Host),
        host_full: Bytes::gib(gib),
        in_flight: 0,
        last_used: ago(310),
        from_host_s: gib as f64,
        from_file_s: 4.0 * gib as f64,
    }
}

fn session(model: &str, remaining_s: f64, ran_s: u64) -> Session {
    Session {
        id: JobId(99),
        model: model.into(),
        priority: Priority::Normal,
        submitted: ago(100),
        deadline: None,
        remaining_s,
        peak: Bytes::gib(5),
        holds: Bytes::gib(1),
        keeps: Bytes::mib(4),
        state: SessionState::Active { since: ago(ran_s) },
    }
}

/// What is decided on a device of 8 GiB with 'flux' on it (4 GiB), 'sdxl' in host memory (3 GiB) and 'qwen' in its files.
struct Desk {
    sessions: Vec<Session>,
    open_max: usize,
    paused: bool,
    starts: u32,
    /// Bytes that belong to nobody we know.
    others: Bytes,
    /// Whether something other than a session uses 'flux' at this moment.
    hand_on_flux: bool,
}

impl Default for Desk {
    fn default() -> Desk {
        Desk {
            sessions: Vec::new(),
            open_max: 2,
            paused: false,
            starts: 0,
            others: Bytes::ZERO,
            hand_on_flux: false,
        }
    }
}

impl Desk {
    fn decide(&self, jobs: &[Candidate]) -> Decision {
        let mut models = vec![
            model("flux", Residency::Device, 4),
            model("sdxl", Residency::Host, 3),
            model("qwen", Residency::Unloaded, 2),
        ];
        let mut ledger = Ledger::new(Bytes::gib(8));
        ledger.charge("flux", Kind::Weights, Bytes::gib(4)).unwrap();
        ledger
            .charge("others", Kind::Activation, self.others)
            .unwrap();
        models[0].in_flight = u32::from(self.hand_on_flux);
        for session in &self.sessions {
            ledger
                .charge("session", Kind::Activation, session.holds)
                .unwrap();
            if let SessionState::Active { .. } = session.state {
                models[0].in_flight = 1;
            }
        }
        let device = Device {
            ledger: &ledger,
            host_free: Bytes::gib(16),
            models: &models,
            sessions: &self.sessions,
            open_max: self.open_max,
            paused: self.paused,
            starts_since_oldest: self.starts,
        };
        decide(jobs, &device, &Policy::default(), NOW)
    }

    fn says(&self, jobs: &[Candidate]) -> String {
        // Ids are long and mostly zeros.
        let short = |text: String| text.replace("000000000000000000000000", "#");
        let decision = self.decide(jobs);
        let aside = decision
            .set_aside
            .iter()
            .map(|aside| short(format!(" | {aside}")));
        short(decision.to_string()) + &aside.collect::<String>()
    }
}

fn urgent(job: Candidate) -> Candidate {
    Candidate {
        priority: Priority::Urgent,
        ..job
    }
}

#[test]
fn a_free_worker_says_what_it_does() {
    let desk = Desk::default();
    let key = BatchKey {
        model: "flux".into(),
        size: [512, 512],
        settings: 1,
    };
    let alike = |id, waited_s| Candidate {
        batch: Some(Batch {
            key: key.clone(),
            more: Bytes::gib(2),
            more_seconds: 3.0,
        }),
        ..job(id, "flux", waited_s)
    };
    let soon = Candidate {
        deadline: Some(Moment(NOW.0 + 30_000)),
        ..job(2, "flux", 1)
    };
    let missed = Candidate {
        deadline: Some(Moment(NOW.0 + 5_000)),
        ..job(2, "qwen", 1)
    };
    let huge = Candidate {
        peak: Bytes::gib(9),
        ..job(2, "sdxl", 1)
    };
    let later = Candidate {
        not_before: Some(Moment(NOW.0 + 2_500)),
        ..job(2, "sdxl", 1)
    };
    for (jobs, said) in [
        (vec![], "waits: no job waits"),
        (vec![later], "waits: the next attempt may begin in 2.5 s"),
        (
            vec![job(1, "flux", 12)],
            "#01 starts (image on 'flux'): normal, waited 12.0 s, the only one",
        ),
        (
            vec![job(1, "sdxl", 12)],
            "#01 starts (image on 'sdxl'): normal, waited 12.0 s, the only one; moves 'flux' (4.00 GiB, idle \
             5 min 10 s) to host memory; loads from host memory in 3.0 s",
        ),
        (
            vec![job(1, "sdxl", 80), job(2, "flux", 5)],
            "#02 starts (image on 'flux'): normal, waited 5.0 s, first of 2 counting as 5.0 s",
        ),
        (
            vec![job(1, "sdxl", 100), job(2, "flux", 5)],
            "#01 starts (image on 'sdxl'): normal, waited 1 min 40 s, first of 2 counting as 10.0 s; moves 'flux' \
             (4.00 GiB, idle 5 min 10 s) to host memory; loads from host memory in 3.0 s",
        ),
        (
            vec![alike(1, 9), alike(2, 8), alike(3, 7)],
            "#01 starts (image on 'flux'): normal, waited 9.0 s, first of 3 counting as 9.0 s; 1 more in its batch",
        ),
        (
            vec![job(1, "flux", 600), soon],
            "#02 starts (image on 'flux'): its deadline leaves 22.0 s, waited 1.0 s",
        ),
        (
            vec![job(1, "flux", 600), missed],
            "#01 starts (image on 'flux'): normal, waited 10 min 0 s, first of 2 counting as 10 min 0 s | #02 misses \
             its deadline by 11.0 s: it takes 8.0 s and its model 8.0 s to load",
        ),
        (
            vec![huge, job(3, "sd3", 5)],
            "waits: none of 2 waiting jobs can run here | #02 needs 9.00 GiB but at most 8.00 GiB of the budget of 8.00 GiB can be had | #03 \
             needs the model 'sd3', which is not here",
        ),
    ] {
        assert_eq!(desk.says(&jobs), said);
    }
    let due = Desk {
        starts: 7,
        ..Desk::default()
    };
    let old = Candidate {
        priority: Priority::Batch,
        ..job(1, "flux", 900)
    };
    assert_eq!(
        due.says(&[old, urgent(job(2, "flux", 1))]),
        "#01 starts (image on 'flux'): the oldest, waited 15 min 0 s: its turn after 7 others"
    );
    let taken = Desk {
        others: Bytes::gib(4),
        ..Desk::default()
    };
    assert_eq!(
        taken.says(&[job(1, "sdxl", 1)]),
        "waits: the one waiting job cannot run here | #01 needs 5.00 GiB but at most 4.00 GiB of the budget of 8.00 GiB can be had"
    );
}

#[test]
fn between_steps_it_says_why_a_session_stays_or_goes() {
    let desk = |remaining_s, ran_s| Desk {
        sessions: vec![session("flux", remaining_s, ran_s)],
        ..Desk::default()
    };
    let quick = Candidate {
        seconds: 2.0,
        ..job(1, "flux", 5)
    };
    for (desk, jobs, said) in [
        (
            desk(31.0, 4),
            vec![],
            "#33 goes on: 31.0 s left, nothing waits",
        ),
        (
            desk(10.0, 4),
            vec![job(1, "flux", 12)],
            "#33 goes on: 10.0 s left, none of 1 waiting is of a higher class or much shorter",
        ),
        (
            desk(31.0, 4),
            vec![urgent(job(1, "sdxl", 1))],
            "#01 starts (image on 'sdxl'): urgent before normal, with 31.0 s left of the other and 7.1 s to switch; \
             parks #33; moves 'flux' (4.00 GiB, idle 5 min 10 s) to host memory; loads from host memory in 3.0 s",
        ),
        (
            desk(6.0, 4),
            vec![urgent(job(1, "sdxl", 1))],
            "#33 goes on: 6.0 s left, switching would take 7.1 s",
        ),
        (
            desk(31.0, 1),
            vec![quick.clone()],
            "#33 goes on: 31.0 s left, ran 1.0 s of the 2.0 s it may before a shorter one",
        ),
        (
            desk(31.0, 4),
            vec![quick],
            "#01 starts (image on 'flux'): takes 2.0 s where 31.0 s are left of the other, which ran 4.0 s; both \
             models stay and switching costs 100 ms; parks #33",
        ),
        (
            Desk {
                open_max: 1,
                ..desk(31.0, 4)
            },
            vec![urgent(job(1, "flux", 1))],
            "#33 goes on: 31.0 s left, 1 of 1 sessions are open",
        ),
        (
            Desk {
                paused: true,
                ..desk(31.0, 4)
            },
            vec![],
            "#33 is parked: the worker is paused",
        ),
    ] {
        assert_eq!(desk.says(&jobs), said);
    }
}

#[test]
fn urgent_jobs_do_not_interrupt_for_ever() {
    let desk = |starts| Desk {
        sessions: vec![session("flux", 31.0, 4)],
        starts,
        ..Desk::default()
    };
    let old = Candidate {
        priority: Priority::Batch,
        ..job(1, "flux", 900)
    };
    let jobs = [old, urgent(job(2, "flux", 1))];
    let action = desk(14).decide(&jobs).action;
    assert!(matches!(action, Action::Start { job: JobId(2), .. }));
    assert_eq!(
        desk(15).says(&jobs),
        "#33 goes on: 31.0 s left, after 15 others the oldest is next to start"
    );
}

#[test]
fn a_model_in_use_stays_where_it_is() {
    let desk = Desk {
        hand_on_flux: true,
        ..Desk::default()
    };
    assert_eq!(
        desk.says(&[job(1, "sdxl", 1)]),
        "waits: 5.00 GiB are needed but only 4.00 GiB can be free: 4.00 GiB belong to models in use, 0 B to open \
         sessions"
    );
}

#[test]
fn parked_sessions_go_on_in_their_turn_and_held_ones_do_not() {
    let parked = |state| Desk {
        sessions: vec![Session {
            holds: Bytes::mib(4),
            state,
            ..session("flux", 31.0, 0)
        }],
        ..Desk::default()
    };
    let desk = parked(SessionState::Parked);
    let newer = job(1, "flux", 5);
    assert_eq!(
        desk.says(std::slice::from_ref(&newer)),
        "#33 is resumed (on 'flux'): normal, waited 1 min 40 s, first of 2 counting as 6 min 40 s"
    );
    let action = |desk: &Desk, job: Candidate| desk.decide(&[job]).action;
    assert!(matches!(
        action(&desk, urgent(newer.clone())),
        Action::Start { job: JobId(1), .. }
    ));
    let held = parked(SessionState::Held);
    assert!(matches!(held.decide(&[]).action, Action::Nothing));
    let held = Desk {
        open_max: 1,
        ..held
    };
    assert!(
        matches!(action(&held, newer.clone()), Action::Start { .. }),
        "held is not open"
    );
    // The oldest has no room beside what a parked session keeps: that one ends first, whatever else waits.
    let mut tight = Desk {
        starts: 7,
        ..parked(SessionState::Parked)
    };
    tight.sessions[0].holds = Bytes::gib(1);
    let large = Candidate {
        peak: Bytes::gib(8),
        ..job(2, "sdxl", 500)
    };
    assert_eq!(
        tight.says(&[large, urgent(newer)]),
        "#33 is resumed (on 'flux'): ends sooner to make room for the oldest, where 8.00 GiB are needed but only 7.00 \
         GiB can be free: 0 B belong to models in use, 1.00 GiB to open sessions"
    );
}

#[test]
fn estimates_follow_the_order_of_the_scheduler() {
    let views = vec![
        model("flux", Residency::Device, 4),
        model("sdxl", Residency::Host, 3),
    ];
    let worker = |free_in_s: u64| WorkerView {
        free_at: Moment(NOW.0 + free_in_s * 1000),
        loaded: Some("flux".into()),
        models: views.clone(),
    };
    let jobs = [
        job(1, "sdxl", 50),
        job(2, "flux", 20),
        job(3, "flux", 10),
        urgent(job(4, "sdxl", 1)),
        job(5, "qwen", 99),
    ];
    let seen = |workers: &[WorkerView]| -> Vec<(u128, usize, u64, u64)> {
        estimate(&jobs, workers, &Policy::default(), NOW)
            .iter()
            .map(|e| (e.id.0, e.position, e.start.0 - NOW.0, e.finish.0 - NOW.0))
            .collect()
    };
    // The urgent one loads 'sdxl', which then is there for the other; 'flux' has to come back.
    assert_eq!(
        seen(&[worker(10)]),
        [
            (4, 1, 10_000, 21_000),
            (1, 2, 21_000, 29_000),
            (2, 3, 29_000, 41_000),
            (3, 4, 41_000, 49_000)
        ]
    );
    assert_eq!(
        seen(&[worker(10), worker(0)]),
        [
            (4, 1, 0, 11_000),
            (2, 2, 10_000, 18_000),
            (1, 3, 11_000, 19_000),
            (3, 4, 18_000, 26_000)
        ]
    );
    assert_eq!(seen(&[]), []);
    let estimates = estimate(&jobs, &[worker(10)], &Policy::default(), NOW);
    assert_eq!(retry_after_s(&estimates, NOW), Some(10.0));
    assert_eq!(retry_after_s(&[], NOW), None);
}
