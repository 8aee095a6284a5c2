//! What the planner promises, for random pipelines, budgets and links.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

mod random;

use lowtide_core::{
    Budget, Bytes, DoesNotFit, Mode, PhaseLayout, PhasePlan, Placement, Plan, PlanError, Quality,
    SimDevice, plan,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use random::{Job, job, sized_job};

fn planned(job: &Job, budget: &Budget) -> Result<Plan, DoesNotFit> {
    match plan(&job.pipeline, &job.vars, &job.device, budget, job.quality) {
        Ok(plan) => Ok(plan),
        Err(PlanError::DoesNotFit(numbers)) => Err(numbers),
        Err(other) => panic!("{other}"),
    }
}

fn simulated(job: &Job, plan: &Plan) -> Vec<lowtide_core::SimRun> {
    let mut device = SimDevice::new(job.device.clone(), &plan.budget).unwrap();
    let runs = device.run(&job.pipeline, plan).unwrap();
    assert_eq!(
        device.ledger().in_use(),
        plan.budget.in_use,
        "everything is given back"
    );
    runs
}

/// Every way to mark `count` blocks as resident.
fn masks(count: usize) -> impl Iterator<Item = Vec<bool>> {
    (0..1u32 << count).map(move |bits| (0..count).map(|block| bits >> block & 1 == 1).collect())
}

/// The slots of a split by the rule in the documentation: load k goes to slot k modulo their number.
fn ring(sizes: &[Bytes], resident: &[bool], visits: u64) -> Vec<Bytes> {
    let streamed: Vec<Bytes> = sizes
        .iter()
        .zip(resident)
        .filter(|(_, stays)| !**stays)
        .map(|(size, _)| *size)
        .collect();
    let mut slots = vec![Bytes::ZERO; streamed.len().min(2)];
    for load in 0..streamed.len() * visits.clamp(1, 2) as usize {
        let slot = load % slots.len();
        slots[slot] = slots[slot].max(streamed[load % streamed.len()]);
    }
    slots
}

fn visits(phase: &PhaseLayout, vars: &lowtide_core::Vars) -> u64 {
    phase.passes
        * phase
            .rounds_over
            .as_ref()
            .map_or(1, |(var, total)| total.div_ceil(vars.get(var).unwrap()))
}

/// Every setting of a mode's variables.
fn settings(mode: &Mode, request: &lowtide_core::Vars) -> Vec<lowtide_core::Vars> {
    mode.ladders
        .iter()
        .fold(vec![request.clone()], |settings, ladder| {
            let values = ladder.values();
            settings
                .iter()
                .flat_map(|vars| {
                    values
                        .iter()
                        .map(|&v| vars.clone().with(ladder.var.clone(), v))
                })
                .collect()
        })
}

/// Every candidate of a phase there is, as plans that the simulated device runs. `template` gives what does not matter.
fn candidates(
    job: &Job,
    phase: &PhaseLayout,
    template: &PhasePlan,
    mut each: impl FnMut(PhasePlan),
) {
    let sizes: Vec<Bytes> = phase
        .component
        .blocks
        .iter()
        .map(|block| block.bytes())
        .collect();
    for (mode_index, mode) in phase.modes.iter().enumerate() {
        for vars in settings(mode, &job.vars) {
            for resident in masks(sizes.len()) {
                if mode.resident_blocks.iter().any(|&block| !resident[block]) {
                    continue;
                }
                let visits = visits(phase, &vars);
                let slots = ring(&sizes, &resident, visits);
                let kept: Bytes = sizes
                    .iter()
                    .zip(&resident)
                    .filter(|(_, stays)| **stays)
                    .map(|(size, _)| *size)
                    .sum();
                let weights = kept + slots.iter().copied().sum();
                let activation = mode
                    .activation
                    .corrected_bytes(&vars, phase.correction)
                    .unwrap();
                let held = phase.held.bytes(&vars).unwrap();
                each(PhasePlan {
                    mode_index,
                    exact: mode.exact,
                    visits,
                    placement: Placement::Streamed { resident },
                    slots,
                    weights,
                    activation,
                    held,
                    peak: weights + activation + held + job.in_use,
                    vars: vars.clone(),
                    ..template.clone()
                });
            }
        }
    }
}

/// The smallest peak of each phase and exactness, by trying everything.
fn smallest_peaks(job: &Job, template: &Plan) -> Vec<[Bytes; 2]> {
    let mut peaks = Vec::new();
    for (phase, template) in job.pipeline.phases.iter().zip(&template.phases) {
        let mut smallest = [Bytes(u64::MAX); 2];
        candidates(job, phase, template, |candidate| {
            let slot = &mut smallest[usize::from(candidate.exact)];
            *slot = (*slot).min(candidate.peak);
        });
        peaks.push(smallest);
    }
    peaks
}

/// A budget in which everything fits.
fn ample(job: &Job) -> Budget {
    Budget {
        total: Bytes::gib(1 << 20),
        in_use: job.in_use,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A job never outgrows its budget: run event by event, with every byte in the books.
    #[test]
    fn a_plan_stays_within_its_budget_and_takes_as_long_as_it_says(job in job(14), share in 0.0..1.2f64) {
        let budget = job.budget(share);
        if let Ok(plan) = planned(&job, &budget) {
            let runs = simulated(&job, &plan);
            for (phase, run) in plan.phases.iter().zip(&runs) {
                prop_assert!(run.peak <= phase.peak && phase.peak <= plan.peak && plan.peak <= budget.total);
                prop_assert_eq!(phase.peak, phase.weights + phase.activation + phase.held + budget.in_use);
                prop_assert_eq!(run.peak, phase.peak, "what is predicted is what is used");
                prop_assert_eq!(run.bytes_moved, phase.bytes_moved);
                let off = (run.seconds - phase.seconds).abs();
                prop_assert!(off <= 0.01 * run.seconds, "{} {} s, predicted {} s", phase.name, run.seconds, phase.seconds);
                let off = (run.stall_seconds - phase.stall_seconds).abs();
                prop_assert!(off <= 0.01 * run.seconds);
            }
        }
    }

    /// More budget is never slower, and never turns an exact result into an approximate one or a refusal.
    #[test]
    fn more_budget_is_never_slower(job in job(14), shares in prop::collection::vec(0.0..1.2f64, 6)) {
        let mut shares = shares;
        shares.sort_by(f64::total_cmp);
        let mut before: Option<Plan> = None;
        for share in shares {
            let now = planned(&job, &job.budget(share));
            if let (Some(before), Ok(now)) = (&before, &now) {
                for (before, now) in before.phases.iter().zip(&now.phases) {
                    prop_assert!(now.exact || !before.exact);
                    if now.exact == before.exact {
                        prop_assert!(now.seconds <= before.seconds * (1.0 + 1e-9), "{before:?} then {now:?}");
                    }
                }
            }
            prop_assert!(before.is_none() || now.is_ok());
            before = now.ok().or(before);
        }
    }

    /// Refusal happens exactly when nothing fits, and the smallest budget it names is the smallest there is.
    #[test]
    fn refusal_is_exact(job in job(7), share in 0.0..1.2f64) {
        let generous = Job { quality: Quality::Auto, ..job.clone() };
        let peaks = smallest_peaks(&job, &planned(&generous, &ample(&job)).unwrap());
        let least = |quality: Quality| peaks.iter().map(|&[approximate, exact]| match quality {
            Quality::Exact => exact,
            Quality::Auto => exact.min(approximate),
        }).max().unwrap();
        let smallest = least(job.quality);
        let budget = job.budget(share);
        match planned(&job, &budget) {
            Ok(_) => prop_assert!(budget.total >= smallest),
            Err(refused) => {
                prop_assert!(budget.total < smallest);
                prop_assert_eq!((refused.needed, refused.smallest), (smallest, smallest));
                let approximate = least(Quality::Auto);
                prop_assert_eq!(refused.smallest_approximate, (approximate < smallest).then_some(approximate));
                prop_assert_eq!(refused.exact_only, approximate < smallest && approximate <= budget.total);
                prop_assert_eq!((refused.budget, refused.in_use), (budget.total, budget.in_use));
            }
        }
        let enough = Budget { total: smallest, ..budget };
        prop_assert!(planned(&job, &enough).is_ok());
        if smallest > Bytes::ZERO {
            let too_little = Budget { total: smallest - Bytes(1), ..budget };
            prop_assert!(planned(&job, &too_little).is_err());
        }
    }
}

/// How many times longer the slowest phase of the planner's choice takes than the best found by trying everything, or
/// `None` when the job is refused.
fn slower_than_brute_force(job: &Job, budget: &Budget) -> Option<f64> {
    let chosen = planned(job, budget).ok()?;
    let mut slower = 1.0f64;
    for (phase, chosen) in job.pipeline.phases.iter().zip(&chosen.phases) {
        let mut best = f64::INFINITY;
        candidates(job, phase, chosen, |candidate| {
            if candidate.peak <= budget.total && candidate.exact == chosen.exact {
                let run = SimDevice::new(job.device.clone(), budget)
                    .unwrap()
                    .run_phase(phase, &candidate)
                    .unwrap();
                best = best.min(run.seconds);
            }
        });
        slower = slower.max(chosen.seconds / best);
    }
    Some(slower)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// The chosen split is as fast as the best of all there are, but for ties. 5 % were promised.
    #[test]
    fn the_split_is_the_best_there_is(job in sized_job(3..=9, 1), share in 0.0..1.0f64) {
        if let Some(slower) = slower_than_brute_force(&job, &job.budget(share)) {
            prop_assert!(slower <= 1.002, "{slower} times the best");
        }
    }
}

/// Where there are too many blocks to look at every split, the chosen one is within 5 % of the best in 98 of 100 random
/// cases, and never far off. Always the same cases: this is a measurement, and no proof.
#[test]
fn the_split_of_many_blocks_is_nearly_the_best() {
    let mut runner = TestRunner::deterministic();
    let mut slower = Vec::new();
    for _ in 0..40 {
        let job = sized_job(11..=11, 0)
            .new_tree(&mut runner)
            .unwrap()
            .current();
        slower.extend(
            [0.3, 0.6, 0.9]
                .into_iter()
                .filter_map(|share| slower_than_brute_force(&job, &job.budget(share))),
        );
    }
    slower.sort_by(f64::total_cmp);
    assert!(slower.len() > 60, "only {} jobs fit", slower.len());
    let good = slower.partition_point(|&times| times <= 1.05);
    assert!(
        good * 100 >= slower.len() * 98,
        "only {good} of {} within 5 %",
        slower.len()
    );
    assert!(
        slower[slower.len() - 1] < 1.25,
        "the worst takes {} times the best",
        slower[slower.len() - 1]
    );
}
