//! A planned job: what was asked, what it measures, how it will run.

use std::sync::Arc;

use lowtide_core::{
    Budget, Bytes, ComponentLayout, DeviceProfile, Offload, PhasePlan, PipelineLayout, Plan, Vars,
    plan,
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
    /// What others held as well when the plan was made.
    pub(crate) shared: Shared,
}

/// By phase: blocks of its component that are on its shelf and that others hold as well, by index. They count among what
/// others use.
pub(crate) type Shared = Vec<Vec<usize>>;

/// What is shared now.
pub(crate) fn shared(model: &dyn Pipeline, shape: &Shape) -> Shared {
    let ours = model.ours();
    let of_phase = |phase| {
        let shared = model.part_of(phase).blocks.shared(&ours).into_iter();
        let shared = shared.enumerate().filter(|(_, shared)| *shared);
        shared.map(|(block, _)| block).collect()
    };
    shape.phases(model).into_iter().map(of_phase).collect()
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

/// What is shared now of what was when the plan was made: the plan's bytes in use have no other.
pub(crate) fn still_shared(model: &dyn Pipeline, planned: &Planned) -> Shared {
    let now = shared(model, &planned.shape);
    let both = |(now, before): (Vec<usize>, &Vec<usize>)| {
        let still = now.into_iter().filter(|block| before.contains(block));
        still.collect()
    };
    now.into_iter().zip(&planned.shared).map(both).collect()
}

/// What the job's phases consist of, as the planner sees them.
pub(crate) fn pipeline(
    model: &dyn Pipeline,
    shape: &Shape,
    habits: Habits,
    shared: &Shared,
) -> PipelineLayout {
    let mut pipeline = layouts(model, shape);
    let mut used: Vec<&Part> = Vec::new();
    let mut all = Bytes::ZERO;
    let phases = shape.phases(model);
    for (phase, shared) in phases.into_iter().zip(shared) {
        let part = model.part_of(phase);
        if !used.iter().any(|known| std::ptr::eq(*known, part)) {
            used.push(part);
            all += needed(&part.layout, shared);
        }
    }
    for (phase, shared) in pipeline.phases.iter_mut().zip(shared) {
        phase.reuse = habits.reuse;
        phase.offload = habits.offload;
        phase.shared.clone_from(shared);
        if habits.offload == Offload::Never {
            phase.beside = all.saturating_sub(needed(&phase.component, shared));
        }
    }
    pipeline
}

/// Bytes of a component that are not there already.
fn needed(component: &ComponentLayout, shared: &[usize]) -> Bytes {
    let there = shared.iter().map(|&block| component.blocks[block].bytes());
    component.bytes() - there.sum()
}

/// Plans one phase anew with `budget`, after memory was refused although the plan said it would do, or after others took
/// some.
pub(crate) fn replan(
    model: &dyn Pipeline,
    planned: &Planned,
    profile: &DeviceProfile,
    phase: usize,
    (budget, shared): (Budget, &Shared),
) -> Result<PhasePlan> {
    let mut pipeline = pipeline(model, &planned.shape, planned.habits, shared);
    let only = pipeline.phases.swap_remove(phase);
    pipeline.phases = vec![only];
    let mut plan = plan(&pipeline, &planned.vars, profile, &budget, planned.quality)?;
    Ok(plan.phases.remove(0))
}

/// The same budget with less in all.
pub(crate) fn less(budget: Budget, total: Bytes) -> Budget {
    Budget { total, ..budget }
}
