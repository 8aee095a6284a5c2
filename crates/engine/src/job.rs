//! A planned job: what was asked, what it measures, how it will run.

use std::sync::Arc;

use lowtide_core::{
    Budget, Bytes, DeviceProfile, Offload, PhasePlan, PipelineLayout, Plan, Vars, plan,
};

use crate::Result;
use crate::adapters::Active;
use crate::course::Course;
use crate::pipeline::{Part, Phase, Pipeline, Shape, layouts};
use crate::session::work::Work;

/// A planned job, ready to start: one request, or several that share a batch.
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) planned: Planned,
}

/// How a job will run.
pub(crate) struct Planned {
    pub(crate) shape: Shape,
    /// Its phases, as the plan has them.
    pub(crate) phases: Vec<Phase>,
    /// By pass.
    pub(crate) courses: Vec<Course>,
    /// What is added to the weights.
    pub(crate) active: Option<Arc<Active>>,
    pub(crate) vars: Vars,
    pub(crate) plan: Plan,
    pub(crate) quality: lowtide_core::Quality,
    pub(crate) habits: Habits,
}

/// What becomes of weights that are not in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Habits {
    pub(crate) offload: Offload,
    /// Whether a later job is expected to use them again.
    pub(crate) reuse: bool,
}

impl Habits {
    /// Whether weights stay when the phase that used them is over.
    pub(crate) fn keeps(self) -> bool {
        match self.offload {
            Offload::Auto => self.reuse,
            Offload::Never => true,
            Offload::Components | Offload::Stream => false,
        }
    }
}

/// What the job's phases consist of, as the planner sees them.
pub(crate) fn pipeline(model: &dyn Pipeline, shape: &Shape, habits: Habits) -> PipelineLayout {
    let mut pipeline = layouts(model, shape);
    let mut used: Vec<&Part> = Vec::new();
    for part in shape
        .phases(model)
        .into_iter()
        .map(|phase| model.part_of(phase))
    {
        if !used.iter().any(|known| std::ptr::eq(*known, part)) {
            used.push(part);
        }
    }
    let all: Bytes = used.into_iter().map(|part| part.layout.bytes()).sum();
    for phase in &mut pipeline.phases {
        phase.reuse = habits.reuse;
        phase.offload = habits.offload;
        if habits.offload == Offload::Never {
            phase.beside = all.saturating_sub(phase.component.bytes());
        }
    }
    pipeline
}

/// Plans one phase anew with `budget`, after memory was refused although the plan said it would do, or after others took
/// some.
pub(crate) fn replan(
    model: &dyn Pipeline,
    planned: &Planned,
    profile: &DeviceProfile,
    phase: usize,
    budget: Budget,
) -> Result<PhasePlan> {
    let mut pipeline = pipeline(model, &planned.shape, planned.habits);
    let only = pipeline.phases.swap_remove(phase);
    pipeline.phases = vec![only];
    let mut plan = plan(&pipeline, &planned.vars, profile, &budget, planned.quality)?;
    Ok(plan.phases.remove(0))
}

/// The same budget with less in all.
pub(crate) fn less(budget: Budget, total: Bytes) -> Budget {
    Budget { total, ..budget }
}
