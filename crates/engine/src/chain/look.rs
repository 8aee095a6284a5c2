//! What a chain will cost: every step alone, then all of them together.

use lowtide_core::{
    Budget, Bytes, ChainPlan, ChainRoom, DoesNotFit, Plan, StepCost, plan_chain, refuse_chain,
};
use serde_json::Value;

use super::{Handed, IMAGE, Makings, Outlook};
use crate::device::{cpu, figures, ground};
use crate::processor::Forecast;
use crate::{Error, Result};

/// Bytes of a pixel that is handed over: unpacked, and in a file that may be as large.
const HANDED_BYTES_PER_PIXEL: u64 = 6;

/// What a budget leaves unplanned beside everything: small things of whoever drives the chain.
pub(super) const SLACK: Bytes = Bytes::mib(4);

/// A chain's steps, each planned alone.
pub(super) struct Look {
    pub(super) budget: Budget,
    pub(super) forecasts: Vec<Forecast>,
    pub(super) costs: Vec<StepCost>,
    /// Bytes a second at which weights are read.
    bytes_per_s: f64,
}

impl Look {
    /// Plans every step with the other models out of the way. `budget`: what the device allows without what the chain's
    /// own models hold; `None`: as things are in this process.
    pub(super) fn new(makings: &Makings, budget: Option<Budget>) -> Result<Look> {
        let budget = budget.unwrap_or_else(|| now(makings));
        let (mut forecasts, mut costs) = (Vec::new(), Vec::new());
        let mut refused: Vec<(usize, DoesNotFit)> = Vec::new();
        for step in 0..makings.links.len() {
            match look_at(makings, step, budget) {
                Ok((forecast, cost)) => {
                    forecasts.push(forecast);
                    costs.push(cost);
                }
                Err(Error::DoesNotFit(numbers)) => refused.push((step, numbers)),
                Err(error) => return Err(super::request::within(step, error)),
            }
        }
        if let Some(numbers) = refuse_chain(refused, |step| makings.called(step)) {
            return Err(Error::DoesNotFit(numbers));
        }
        Ok(Look {
            budget,
            forecasts,
            costs,
            bytes_per_s: cpu::read_bytes_per_s(),
        })
    }

    /// How the steps from `first` on will run, with what is `there` of each model; where they are counted from `first`.
    pub(super) fn plan(&self, first: usize, there: &[Bytes]) -> ChainPlan {
        let room = ChainRoom {
            available: self.budget.available().saturating_sub(SLACK),
            there,
            bytes_per_s: self.bytes_per_s,
        };
        plan_chain(&self.costs[first..], &room)
    }

    /// All of it together.
    pub(super) fn outlook(self, makings: &Makings) -> Outlook {
        let chain = self.plan(0, &makings.there());
        let plan = self.together(makings, &chain);
        Outlook {
            forecast: Forecast {
                seconds: chain.seconds,
                // What is kept or read ahead beside a step makes way where others need the room.
                peak: self
                    .costs
                    .iter()
                    .map(|cost| cost.peak)
                    .max()
                    .unwrap_or_default(),
                batch: None,
                plan,
            },
            chain,
            names: makings.names.clone(),
            steps: makings
                .links
                .iter()
                .map(|link| (link.kind.clone(), link.model.clone()))
                .collect(),
        }
    }

    /// The steps' plans as one, phases named by their steps.
    fn together(&self, makings: &Makings, chain: &ChainPlan) -> Option<Plan> {
        let (mut phases, mut approximate) = (Vec::new(), Vec::new());
        for (step, forecast) in self.forecasts.iter().enumerate() {
            let Some(plan) = &forecast.plan else { continue };
            for phase in &plan.phases {
                let mut phase = phase.clone();
                phase.name = format!("{} {}", step + 1, phase.name);
                phase.reason.phase = format!("step {}, {}", step + 1, phase.reason.phase);
                phases.push(phase);
            }
            let named = plan.approximate.iter();
            approximate.extend(named.map(|what| format!("step {}: {what}", step + 1)));
        }
        (!phases.is_empty()).then(|| Plan {
            model: makings.names.join(" + "),
            phases,
            budget: self.budget,
            peak: self.budget.in_use + chain.peak,
            seconds: chain.seconds,
            approximate,
        })
    }
}

/// The request of a step, with an empty picture for the one it will be given.
pub(super) fn with_stand_in(makings: &Makings, step: usize) -> Value {
    let link = &makings.links[step];
    let mut request = link.request.clone();
    if let Some(size) = link.given {
        request[IMAGE] = Handed::blank(size).into();
    }
    request
}

/// What the device allows now, without what the chain's own models hold.
fn now(makings: &Makings) -> Budget {
    let ours: Bytes = makings.there().into_iter().sum();
    let not_others = Bytes(ground::scratch_allocated()) + ours;
    let in_use = Bytes(ground::live()).saturating_sub(not_others);
    let options = &makings.options;
    figures::of_pipelines(options.budget, options.reserve, in_use)
}

/// One step alone.
fn look_at(makings: &Makings, step: usize, budget: Budget) -> Result<(Forecast, StepCost)> {
    let link = &makings.links[step];
    let request = with_stand_in(makings, step);
    let [width, height] = link.given.unwrap_or_default();
    let pixels = u64::from(width) * u64::from(height) * link.pictures as u64;
    let handed = ground::of_host(Bytes(pixels * HANDED_BYTES_PER_PIXEL));
    let beside = Budget {
        in_use: budget.in_use + handed,
        ..budget
    };
    let mut forecast = link.opened.forecast(&request, Some(beside))?;
    let (more, more_s) = match &forecast.batch {
        Some(batch) => (batch.more, batch.more_seconds),
        // One after the other.
        None => (Bytes::ZERO, forecast.seconds),
    };
    let others = (link.pictures - 1) as u64;
    forecast.seconds += more_s * others as f64;
    // Where not all fit together, they go in smaller batches.
    let most = beside.available().max(forecast.peak);
    forecast.peak = (forecast.peak + Bytes(more.0.saturating_mul(others))).min(most);
    let phases = forecast.plan.iter().flat_map(|plan| &plan.phases);
    let cost = StepCost {
        model: link.uses,
        peak: forecast.peak + handed,
        stays: link.opened.stays(&request, &forecast)?,
        reads: phases.clone().map(|phase| phase.bytes_moved).sum(),
        seconds: forecast.seconds,
        stall_s: phases.map(|phase| phase.stall_seconds).sum(),
    };
    Ok((forecast, cost))
}
