//! Chooses, phase by phase, the fastest candidate that fits.

use crate::explain::{Cause, MoreMemory, Reason, Rung as TurnedDown};
use crate::pipeline::{Budget, DeviceProfile, Offload, PipelineLayout, Quality};
use crate::plan::{DoesNotFit, PhasePlan, Placement, Plan, PlanError};
use crate::search::{Candidate, Search};
use crate::{Bytes, Vars};

/// A larger budget is worth mentioning when it saves this share of a phase.
const WORTH_MENTIONING: f64 = 0.05;

/// No budget at all.
const UNLIMITED: Bytes = Bytes(u64::MAX);

/// Plans a job: for each phase the fastest exact candidate that fits the budget, an approximate one only where no exact
/// one fits and `quality` allows it. More budget is never slower.
///
/// `request` holds what the user asked for: `width`, `tokens`, `steps`, whatever the formulas name.
///
/// # Errors
/// [`PlanError::DoesNotFit`] with the smallest budget that would do; the others are mistakes in what was passed in.
pub fn plan(
    pipeline: &PipelineLayout,
    request: &Vars,
    device: &DeviceProfile,
    budget: &Budget,
    quality: Quality,
) -> Result<Plan, PlanError> {
    check_device(device)?;
    let searches: Vec<Search<'_>> = pipeline
        .phases
        .iter()
        .map(|phase| Search::new(phase, request, device))
        .collect::<Result<_, _>>()?;
    let mut phases = Vec::with_capacity(searches.len());
    for search in &searches {
        match choose(search, budget, quality) {
            Some(candidate) => phases.push(phase_plan(search, &candidate, budget)),
            None => return Err(refuse(&searches, budget, quality)),
        }
    }
    Ok(Plan {
        model: pipeline.model.clone(),
        budget: *budget,
        peak: phases
            .iter()
            .map(|phase| phase.peak)
            .max()
            .unwrap_or(budget.in_use),
        seconds: phases.iter().map(|phase| phase.seconds).sum(),
        approximate: phases
            .iter()
            .filter(|p| !p.exact)
            .map(|p| format!("{}: {}", p.name, p.mode))
            .collect(),
        phases,
    })
}

fn check_device(device: &DeviceProfile) -> Result<(), PlanError> {
    let wrong = |what| {
        Err(PlanError::Device {
            device: device.name.clone(),
            what,
        })
    };
    let rates = [
        device.link_bytes_per_s,
        device.cold_bytes_per_s,
        device.flops_per_s,
    ];
    if !rates.iter().all(|rate| rate.is_finite() && *rate > 0.0) {
        return wrong("a rate is not a positive number");
    }
    if !(device.block_overhead_s.is_finite() && device.block_overhead_s >= 0.0) {
        return wrong("the overhead of a block is not a number or is negative");
    }
    if !(0.0..=1.0).contains(&device.overlap) {
        return wrong("the overlap is not between 0 and 1");
    }
    Ok(())
}

fn choose(search: &Search<'_>, budget: &Budget, quality: Quality) -> Option<Candidate> {
    if budget.in_use > budget.total {
        return None;
    }
    let available = budget.available();
    search.best(true, available).or_else(|| match quality {
        Quality::Exact => None,
        Quality::Auto => search.best(false, available),
    })
}

/// The refusal of a job of which at least one phase does not fit.
fn refuse(searches: &[Search<'_>], budget: &Budget, quality: Quality) -> PlanError {
    let least = |search: &Search<'_>, quality: Quality| {
        let exact = search.smallest_peak(true);
        match quality {
            Quality::Exact => exact,
            Quality::Auto => exact.into_iter().chain(search.smallest_peak(false)).min(),
        }
    };
    let most_demanding = |quality: Quality| {
        searches
            .iter()
            .map(|search| {
                (
                    search,
                    least(search, quality).map_or(UNLIMITED, |bytes| bytes + budget.in_use),
                )
            })
            .max_by_key(|(_, bytes)| *bytes)
    };
    let Some((search, needed)) = most_demanding(quality) else {
        unreachable!("a job without phases always fits")
    };
    let phase = search.phase.name.clone();
    if needed == UNLIMITED {
        return PlanError::Layout {
            phase,
            what: "it has no exact mode, and approximate ones are refused",
        };
    }
    let approximate = most_demanding(Quality::Auto)
        .map(|(_, bytes)| bytes)
        .filter(|&bytes| bytes < needed);
    PlanError::DoesNotFit(DoesNotFit {
        phase,
        needed,
        budget: budget.total,
        in_use: budget.in_use,
        smallest: needed,
        exact_only: approximate.is_some_and(|bytes| bytes <= budget.total),
        smallest_approximate: approximate,
    })
}

fn phase_plan(search: &Search<'_>, candidate: &Candidate, budget: &Budget) -> PhasePlan {
    let rung = &search.rungs[candidate.rung];
    let split = search.split(candidate);
    let mode = &search.phase.modes[rung.mode_index];
    let placement = match split.streamed.is_empty() {
        true => Placement::Resident,
        false => Placement::Streamed {
            resident: split.resident.clone(),
        },
    };
    let loaded_again = rung.visits.saturating_sub(1);
    let moved_again = split.streamed_bytes.0.saturating_mul(loaded_again);
    PhasePlan {
        name: search.phase.name.clone(),
        mode: mode.name.clone(),
        mode_index: rung.mode_index,
        exact: rung.exact,
        vars: rung.vars.clone(),
        visits: rung.visits,
        placement,
        slots: split.slots.clone(),
        weights: split.weights() - search.shared,
        activation: rung.activation,
        held: rung.held,
        peak: candidate.peak + budget.in_use,
        seconds: candidate.seconds,
        stall_seconds: search.stall_seconds(candidate),
        bytes_moved: match rung.visits {
            0 => Bytes::ZERO,
            _ => Bytes(
                (split.resident_bytes + split.streamed_bytes)
                    .0
                    .saturating_add(moved_again),
            ),
        },
        reason: reason(search, candidate, budget),
    }
}

fn reason(search: &Search<'_>, candidate: &Candidate, budget: &Budget) -> Reason {
    let rung = &search.rungs[candidate.rung];
    let split = search.split(candidate);
    let mode = &search.phase.modes[rung.mode_index];
    let more = more_memory(search, candidate, budget);
    let cause = match () {
        () if split.streamed.is_empty() => Cause::AllFit,
        () if search.phase.offload != Offload::Auto => Cause::Asked,
        () if rung.visits <= 1 => Cause::UsedOnce,
        () if is_fastest(search, candidate) => Cause::Hidden,
        () => Cause::Budget,
    };
    let turned_down = mode.ladders.iter().filter_map(|ladder| {
        let value = rung.vars.get(&ladder.var)?;
        let full = ladder.full.max(1);
        (value < full).then(|| TurnedDown {
            var: ladder.var.to_string(),
            value,
            full,
        })
    });
    Reason {
        phase: search.phase.name.clone(),
        mode: mode.name.clone(),
        exact: rung.exact,
        blocks: split.resident.len(),
        resident_blocks: split.resident.len() - split.streamed.len(),
        resident: split.resident_bytes,
        component: split.resident_bytes + split.streamed_bytes,
        slots: split.slots.clone(),
        visits: rung.visits,
        budget: budget.total,
        in_use: budget.in_use,
        activation: rung.activation,
        held: rung.held.saturating_sub(search.phase.beside),
        beside: search.phase.beside,
        offload: search.phase.offload,
        rungs: turned_down.collect(),
        cause,
        more,
        exact_needs: match rung.exact {
            true => None,
            false => search
                .smallest_peak(true)
                .map(|bytes| bytes + budget.in_use),
        },
    }
}

/// Whether no budget would make the phase faster.
fn is_fastest(search: &Search<'_>, candidate: &Candidate) -> bool {
    let exact = search.rungs[candidate.rung].exact;
    let best = search.best(exact, UNLIMITED);
    best.is_none_or(|best| best.seconds >= candidate.seconds * (1.0 - 2e-3))
}

/// The smallest step up in budget that is worth mentioning.
fn more_memory(search: &Search<'_>, candidate: &Candidate, budget: &Budget) -> Option<MoreMemory> {
    if !search.rungs[candidate.rung].exact || candidate.seconds <= 0.0 {
        return None;
    }
    let limit_s = candidate.seconds * (1.0 - WORTH_MENTIONING);
    let next = search.smallest_within(true, UNLIMITED, limit_s)?;
    let bytes = next.peak + budget.in_use - budget.total;
    // That candidate fits no smaller budget; what the planner then chooses may be faster still.
    let chosen = search.best(true, next.peak)?;
    Some(MoreMemory {
        bytes,
        seconds: candidate.seconds - chosen.seconds,
    })
}
