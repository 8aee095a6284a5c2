//! What planning gives: where every block of every phase lives, what it costs, and why.

use crate::explain::Reason;
use crate::{Budget, Bytes, UnknownVariable, Vars};

/// Where a component's weights live during a phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// All blocks stay on the device once loaded.
    Resident,
    /// Some blocks stay, the others go through the ring of slots at every visit.
    Streamed {
        /// By block: whether it stays.
        resident: Vec<bool>,
    },
    /// The component is not on the device.
    Host,
}

impl Placement {
    /// Whether `block` stays on the device.
    pub fn is_resident(&self, block: usize) -> bool {
        match self {
            Placement::Resident => true,
            Placement::Streamed { resident } => resident.get(block).copied().unwrap_or(false),
            Placement::Host => false,
        }
    }
}

/// One phase of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PhasePlan {
    /// The phase.
    pub name: String,
    /// The chosen mode.
    pub mode: String,
    /// Its index in the phase's list.
    pub mode_index: usize,
    /// Whether the mode is exact.
    pub exact: bool,
    /// The request's variables and the rung's values.
    pub vars: Vars,
    /// Visits of all blocks: passes times rounds.
    pub visits: u64,
    /// Where the weights live.
    pub placement: Placement,
    /// The ring: the k-th streamed load of the phase, counted from 0 over all visits, goes to slot `k % slots.len()`.
    /// Empty when everything is resident.
    pub slots: Vec<Bytes>,
    /// Bytes of resident blocks and slots, but for blocks that others hold as well.
    pub weights: Bytes,
    /// Bytes of activations at the worst moment.
    pub activation: Bytes,
    /// Bytes held all through the phase, weights of other components that stay meanwhile included.
    pub held: Bytes,
    /// All of them and what was in use before.
    pub peak: Bytes,
    /// Predicted seconds.
    pub seconds: f64,
    /// Seconds of them in which computing waits for weights, or is slowed by the copying of them.
    pub stall_seconds: f64,
    /// Bytes of weights read in all visits.
    pub bytes_moved: Bytes,
    /// Why, with numbers.
    pub reason: Reason,
}

/// How a job will run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The model.
    pub model: String,
    /// Phase after phase.
    pub phases: Vec<PhasePlan>,
    /// What it was planned for.
    pub budget: Budget,
    /// The largest peak of the phases.
    pub peak: Bytes,
    /// The sum of the phases' seconds.
    pub seconds: f64,
    /// The approximate modes in use, as `phase: mode`. Empty when the result is exact.
    pub approximate: Vec<String>,
}

/// Nothing on the ladder fits: the numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoesNotFit {
    /// The phase that needs the most.
    pub phase: String,
    /// Its smallest peak, with what is in use.
    pub needed: Bytes,
    /// The budget it was planned for.
    pub budget: Bytes,
    /// What of it is in use.
    pub in_use: Bytes,
    /// The smallest total budget with which the whole job would fit at the quality asked for.
    pub smallest: Bytes,
    /// Whether it fails only because approximate modes were refused.
    pub exact_only: bool,
    /// The smallest total budget when approximate modes are allowed, where that is less than `smallest`.
    pub smallest_approximate: Option<Bytes>,
}

impl DoesNotFit {
    /// The refusal of work that has one way to run, in a phase that adds `peak` to what is in use.
    pub fn one_way(phase: &str, peak: Bytes, budget: Budget) -> DoesNotFit {
        DoesNotFit {
            phase: phase.to_owned(),
            needed: peak + budget.in_use,
            budget: budget.total,
            in_use: budget.in_use,
            smallest: peak + budget.in_use,
            exact_only: false,
            smallest_approximate: None,
        }
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The lowest rung is too large.
    #[error("{0}")]
    DoesNotFit(DoesNotFit),
    /// The pipeline's formulas ask for more than the request says: this is a bug in the model's card.
    #[error("phase {phase}: {source}")]
    Formula {
        /// Where.
        phase: String,
        /// Which variable.
        source: UnknownVariable,
    },
    /// A pipeline that cannot be planned whatever the budget: this is a bug in the model's card.
    #[error("phase {phase}: {what}")]
    Layout {
        /// Where.
        phase: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A rate of the device profile is not usable.
    #[error("device {device}: {what}")]
    Device {
        /// Which profile.
        device: String,
        /// What is wrong.
        what: &'static str,
    },
}
