//! Random histories, compared with the model after every step.

use lowtide_core::job::{JobState, Moment};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::model::{Answer, Hand, Model, Word};
use super::{Fixture, LEASE, START, id, plain, strict, worker};
use crate::{EventId, Happening, JobStore, Lease, Outcome, Policy, StoreError};

/// Jobs in play: few, so that histories meet.
const JOBS: u64 = 5;
/// Histories tried.
const HISTORIES: u32 = 100;
/// Most steps of one.
const STEPS: usize = 120;

#[derive(Clone, Debug)]
enum Step {
    Submit(u64),
    Claim(u64),
    /// By the attempt that many before the latest.
    Say(u64, u32, Word),
    Order(u64, Hand),
    Sweep,
    /// The clock jumps, also back.
    Jump(i64),
    /// Another process goes on.
    Switch,
}

fn step() -> impl Strategy<Value = Step> {
    use Word::{Complete, Fail, FailForGood, GiveBack, Park, Renew, Stopped, Unpark};
    let job = 0..JOBS;
    let words = vec![
        Renew,
        Park,
        Unpark,
        GiveBack,
        Complete,
        Fail,
        FailForGood,
        Stopped,
    ];
    let hands = vec![Hand::Cancel, Hand::Pause, Hand::Resume, Hand::Requeue];
    prop_oneof![
        2 => job.clone().prop_map(Step::Submit),
        4 => job.clone().prop_map(Step::Claim),
        6 => (job.clone(), prop_oneof![4 => Just(0), 1 => Just(1u32)], prop::sample::select(words))
            .prop_map(|(job, back, word)| Step::Say(job, back, word)),
        2 => (job, prop::sample::select(hands)).prop_map(|(job, hand)| Step::Order(job, hand)),
        2 => Just(Step::Sweep),
        3 => prop_oneof![3 => 0..6_000i64, 1 => -20_000..90_000i64].prop_map(Step::Jump),
        1 => Just(Step::Switch),
    ]
}

/// Nothing is lost, nothing is done twice, and no answer surprises, whatever the order of events and the clock.
pub fn random_histories_agree_with_a_simple_model(fixture: &dyn Fixture) {
    let policy = Policy {
        waiting_max: JOBS - 1,
        ..strict()
    };
    let stores = [fixture.open(policy.clone()), fixture.open(policy)];
    let history = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: HISTORIES,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&vec(step(), 1..STEPS), |steps| {
        history.set(history.get() + 1);
        walk(&[&*stores[0], &*stores[1]], history.get(), &steps)
    });
    if let Err(error) = result {
        panic!("{error}\n{runner}");
    }
}

/// One history, with jobs of its own. What is left of it is cancelled, so that the next one has an empty queue.
fn walk(stores: &[&dyn JobStore; 2], history: u64, steps: &[Step]) -> Result<(), TestCaseError> {
    let first = history * JOBS;
    let mut model = Model {
        waiting_max: JOBS as usize - 1,
        ..Model::default()
    };
    let (mut now, mut active) = (START, 0);
    for step in steps {
        let store = stores[active];
        match step {
            Step::Switch => active = 1 - active,
            Step::Jump(ms) => now = Moment(now.0.saturating_add_signed(*ms)),
            other => one(store, (&mut model, first), other, now)?,
        }
        for (number, entry) in &model.jobs {
            let job = store.job(id(first + number)).map_err(fail)?;
            prop_assert_eq!(job.state, entry.state, "job {} after {:?}", number, step);
            prop_assert_eq!(job.attempt, entry.attempt);
            prop_assert_eq!(job.holder.is_some(), entry.state.is_leased());
            prop_assert_eq!(job.outcome.is_some(), entry.done == 1);
        }
    }
    for (number, entry) in &model.jobs {
        let job = id(first + number);
        prop_assert!(entry.done <= 1);
        let events = stores[active].events_after(EventId(0), Some(job), 1_000);
        let events = events.map_err(fail)?.events;
        let done = events.iter().filter(|event| event.what == Happening::Done);
        prop_assert_eq!(done.count(), entry.done as usize);
        if !entry.state.is_final() {
            stores[active].cancel(job, now).map_err(fail)?;
        }
    }
    let end = Moment(now.0 + 1_000_000);
    stores[active].sweep(end).map_err(fail)?;
    let stats = stores[active].stats(end).map_err(fail)?;
    for state in JobState::ALL.into_iter().filter(|state| !state.is_final()) {
        prop_assert_eq!(stats.in_state(state), 0, "{} is left", state);
    }
    Ok(())
}

fn one(
    store: &dyn JobStore,
    (model, first): (&mut Model, u64),
    step: &Step,
    now: Moment,
) -> Result<(), TestCaseError> {
    let expected = match step {
        Step::Submit(number) => {
            let answer = store.submit(plain(first + number), now);
            let state = |_| store.job(id(first + number)).map(|job| job.state);
            prop_assert_eq!(said(answer.and_then(state))?, model.submit(*number));
            return Ok(());
        }
        Step::Claim(number) => {
            let answer = store.claim(id(first + number), &worker("one"), LEASE, now);
            let answer = said(answer.map(|claimed| claimed.job.state))?;
            if answer == Answer::Ok(JobState::Running) {
                prop_assert_ne!(model.claimable(*number, now), Some(Answer::No));
                model.claimed(*number, now);
            } else if let Some(expected) = model.claimable(*number, now) {
                prop_assert_eq!(answer, expected);
            }
            return Ok(());
        }
        Step::Say(number, back, word) => {
            let attempt = model.jobs.get(number).map_or(1, |entry| entry.attempt);
            let lease = Lease {
                job: id(first + number),
                worker: worker("one"),
                attempt: attempt.saturating_sub(*back),
            };
            let answer = said(say(store, &lease, *word, now))?;
            let expected = model.say((*number, lease.attempt), *word, now);
            (answer, expected)
        }
        Step::Order(number, hand) => {
            let job = id(first + number);
            let answer = match hand {
                Hand::Cancel => store.cancel(job, now),
                Hand::Pause => store.pause(job, now),
                Hand::Resume => store.resume(job, now),
                Hand::Requeue => store.requeue(job, now).map(|()| JobState::Queued),
            };
            (said(answer)?, model.order(*number, *hand))
        }
        Step::Sweep => {
            store.sweep(now).map_err(fail)?;
            model.sweep(now);
            return Ok(());
        }
        Step::Jump(_) | Step::Switch => return Ok(()),
    };
    prop_assert_eq!(expected.0, expected.1, "{:?}", step);
    Ok(())
}

fn say(store: &dyn JobStore, lease: &Lease, word: Word, now: Moment) -> crate::Result<JobState> {
    let state = || store.job(lease.job).map(|job| job.state);
    match word {
        Word::Renew => store.renew(lease, LEASE, now).and_then(|_| state()),
        Word::Park => store.park(lease, now).and_then(|_| state()),
        Word::Unpark => store.unpark(lease, now).and_then(|_| state()),
        Word::GiveBack => store.give_back(lease, None, now),
        Word::Complete => store
            .complete(lease, Outcome::default(), now)
            .and_then(|()| state()),
        Word::Fail => store.fail(lease, "no", true, now),
        Word::FailForGood => store.fail(lease, "no", false, now),
        Word::Stopped => store.stopped(lease, now).and_then(|()| state()),
    }
}

fn said(result: crate::Result<JobState>) -> Result<Answer, TestCaseError> {
    match result {
        Ok(state) => Ok(Answer::Ok(state)),
        Err(StoreError::LeaseLost { .. }) => Ok(Answer::Lost),
        Err(StoreError::NotClaimable { .. } | StoreError::WrongState { .. }) => Ok(Answer::No),
        Err(StoreError::QueueFull { .. }) => Ok(Answer::Full),
        Err(StoreError::NotFound { .. }) => Ok(Answer::Unknown),
        Err(other) => Err(fail(other)),
    }
}

fn fail(error: StoreError) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}
