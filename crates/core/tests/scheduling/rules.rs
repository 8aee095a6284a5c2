//! Rules of single decisions, and services drawn at random.

use lowtide_core::job::{JobId, Moment, Priority};
use lowtide_core::lifecycle::Residency;
use lowtide_core::schedule::{
    Action, Candidate, Device, ModelView, Policy, Session, SessionState, decide,
};
use lowtide_core::{Bytes, Kind, Ledger};
use proptest::prelude::*;

use crate::promises::mixed;
use crate::service::{World, run};

const NOW: Moment = Moment(100_000_000);
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

type Drawn = (usize, usize, u64, Option<u64>, u64, Option<u64>, u64);

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (
        0..4usize,
        0..3usize,
        0..100_000u64,
        prop::option::weighted(0.2, 0..400u64),
        1..100u64,
        prop::option::weighted(0.2, 0..20_000u64),
        0..3000u64,
    );
    prop::collection::vec(one, 1..20).prop_map(|drawn| {
        let candidate = |(index, job): (usize, Drawn)| {
            let (model, class, age_s, deadline_s, seconds, later, mib) = job;
            Candidate {
                id: JobId(index as u128),
                kind: "image".into(),
                model: NAMES[model].into(),
                priority: Priority::ALL[class],
                submitted: Moment(NOW.0 - age_s * 1000),
                not_before: later.map(|ms: u64| Moment(NOW.0 - 10_000 + ms)),
                deadline: deadline_s.map(|s: u64| Moment(NOW.0 + s * 1000)),
                seconds: seconds as f64,
                peak: Bytes::mib(500 + mib),
                batch: None,
            }
        };
        drawn.into_iter().enumerate().map(candidate).collect()
    })
}

fn models() -> impl Strategy<Value = Vec<ModelView>> {
    let one = (0..3usize, 100..1500u64, 0..1000u64, 0..40u64);
    prop::collection::vec(one, 4).prop_map(|drawn| {
        let view = |(name, (residency, mib, idle_s, load_s)): (&&str, (usize, u64, u64, u64))| {
            let residency = Residency::ALL[residency];
            let at = |place| {
                if residency == place {
                    Bytes::mib(mib)
                } else {
                    Bytes::ZERO
                }
            };
            ModelView {
                name: (*name).into(),
                residency,
                device: at(Residency::Device),
                host: at(Residency::Host),
                host_full: Bytes::mib(mib),
                in_flight: 0,
                last_used: Moment(NOW.0 - idle_s * 1000),
                from_host_s: load_s as f64,
                from_file_s: load_s as f64 * 4.0,
            }
        };
        NAMES.iter().zip(drawn).map(view).collect()
    })
}

/// A ledger of 4 GiB with the models' and the sessions' bytes, if they fit at all.
fn ledger(models: &[ModelView], sessions: &[Session]) -> Option<Ledger> {
    let mut ledger = Ledger::new(Bytes::gib(4));
    for model in models {
        ledger
            .charge(&model.name, Kind::Weights, model.device)
            .ok()?;
    }
    for session in sessions {
        ledger
            .charge("session", Kind::Activation, session.holds)
            .ok()?;
    }
    Some(ledger)
}

fn ready(job: &Candidate) -> bool {
    job.not_before.is_none_or(|moment| moment <= NOW)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whoever starts on a free device: there is room after what is moved away, and nobody who could run as well and
    /// was submitted earlier by more than the longest head start is passed over.
    #[test]
    fn a_start_fits_and_passes_over_nobody_for_long(
        jobs in candidates(), models in models(), since in 0..12u32,
    ) {
        let Some(ledger) = ledger(&models, &[]) else { return Ok(()) };
        let policy = Policy::default();
        let device = Device {
            ledger: &ledger,
            host_free: Bytes::gib(1),
            models: &models,
            sessions: &[],
            open_max: 2,
            paused: false,
            starts_since_oldest: since,
        };
        let decision = decide(&jobs, &device, &policy, NOW);
        let ready: Vec<&Candidate> = jobs.iter().filter(|job| ready(job)).collect();
        match &decision.action {
            Action::Start { job, switch, .. } => {
                let chosen = jobs.iter().find(|other| other.id == *job).expect("a queued job");
                prop_assert!(ready.contains(&chosen));
                let view = models.iter().find(|view| view.name == chosen.model).expect("its model");
                let moved: Bytes = switch.evict.iter().map(|gone| gone.bytes).sum();
                prop_assert!(switch.evict.iter().all(|gone| gone.model != chosen.model));
                let after = ledger.in_use() - moved + chosen.peak.saturating_sub(view.device);
                prop_assert!(after <= ledger.budget());
                for gone in &switch.evict {
                    prop_assert!(after + gone.bytes > ledger.budget(), "'{}' left for nothing", gone.model);
                }
                let to_host = switch.evict.iter().filter(|gone| gone.to == Residency::Host);
                prop_assert!(to_host.map(|gone| gone.bytes).sum::<Bytes>() <= Bytes::gib(1));
                let first = ready.iter().map(|job| job.submitted).min().expect("one at least");
                let ahead_s = chosen.submitted.seconds_since(first);
                prop_assert!(ahead_s <= policy.head_start_max_s() || chosen.deadline.is_some());
                if since + 1 >= policy.turn {
                    prop_assert_eq!(ahead_s, 0.0, "it is the oldest's turn");
                }
                prop_assert_eq!(decision.starts_since_oldest == 0, ready.iter().all(|other| {
                    (chosen.submitted, chosen.id) <= (other.submitted, other.id)
                }));
            }
            Action::Wait { until } => {
                prop_assert!(ready.is_empty());
                prop_assert_eq!(Some(*until), jobs.iter().filter_map(|job| job.not_before).min());
            }
            other => return Err(TestCaseError::fail(format!("{other:?} with jobs that fit"))),
        }
    }

    /// Nobody takes a running session's place but for a reason: a higher class, a near deadline, or a share that was
    /// had and a job that is much shorter.
    #[test]
    fn a_session_is_parked_only_for_a_reason(
        jobs in candidates(), models in models(), class in 0..3usize, left in 1..200u64,
        ran_s in 0..100u64, age_s in 0..100_000u64, open_max in 1..3usize,
    ) {
        let session = Session {
            id: JobId(1000),
            model: "a".into(),
            priority: Priority::ALL[class],
            submitted: Moment(NOW.0 - age_s * 1000),
            deadline: None,
            remaining_s: left as f64,
            peak: Bytes::gib(1),
            holds: Bytes::mib(400),
            keeps: Bytes::mib(4),
            state: SessionState::Active { since: Moment(NOW.0 - ran_s * 1000) },
        };
        let mut models = models;
        models[0].in_flight = 1;
        (models[0].residency, models[0].device) = (Residency::Device, Bytes::mib(600));
        let sessions = [session.clone()];
        let Some(ledger) = ledger(&models, &sessions) else { return Ok(()) };
        let policy = Policy::default();
        let device = Device {
            ledger: &ledger,
            host_free: Bytes::gib(1),
            models: &models,
            sessions: &sessions,
            open_max,
            paused: false,
            starts_since_oldest: 0,
        };
        let decision = decide(&jobs, &device, &policy, NOW);
        match &decision.action {
            Action::Continue { job } => prop_assert_eq!(*job, session.id),
            Action::Start { job, switch, .. } => {
                prop_assert_eq!(open_max, 2);
                prop_assert_eq!(switch.park, Some(session.id));
                let chosen = jobs.iter().find(|other| other.id == *job).expect("a queued job");
                prop_assert!(ready(chosen) && chosen.priority >= session.priority);
                let load_s = switch.load.as_ref().map_or(0.0, |load| load.seconds);
                prop_assert!(left as f64 > load_s);
                let moved: Bytes = switch.evict.iter().map(|gone| gone.bytes).sum();
                let view = models.iter().find(|view| view.name == chosen.model).expect("its model");
                let parked = ledger.in_use() - (session.holds - session.keeps);
                let after = parked - moved + chosen.peak.saturating_sub(view.device);
                prop_assert!(after <= ledger.budget());
                if chosen.priority == session.priority && chosen.deadline.is_none() {
                    prop_assert!(chosen.seconds * 2.0 <= left as f64);
                    prop_assert!(ran_s as f64 >= 10.0 * load_s && ran_s as f64 >= chosen.seconds);
                }
            }
            other => return Err(TestCaseError::fail(format!("{other:?} beside a session"))),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Services of every kind keep the promises that the simulation checks at every event.
    #[test]
    fn any_service_keeps_its_promises(
        seed in any::<u64>(), count in 1..400usize, load in 0.3..2.0f64, open_max in 1..4usize,
        turn in 1..12u32, gib in 6..12u64, every in 3..100u64,
    ) {
        let world = mixed(seed, count, load);
        let outcome = run(World {
            open_max,
            budget: Bytes::gib(gib),
            policy: Policy { turn, ..Policy::default() },
            out_of_memory_every: Some(every),
            ..world
        });
        prop_assert_eq!(outcome.done + outcome.failed + outcome.cancelled, count);
    }
}
