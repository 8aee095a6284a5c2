//! A planned job: what was asked, what it measures, how it will run.

use lowtide_core::{Budget, Bytes, DeviceProfile, PhasePlan, Plan, Vars, plan};

use crate::Result;
use crate::pipeline::z_image::{Shape, ZImage};
use crate::request::TextToImage;

/// A planned job, ready to start.
pub(crate) struct Job {
    pub(crate) request: TextToImage,
    pub(crate) shape: Shape,
    pub(crate) vars: Vars,
    pub(crate) plan: Plan,
    /// Token ids of the prompt and, with guidance, of the negative prompt.
    pub(crate) prompts: Vec<Vec<u32>>,
}

/// Plans one phase anew with less, after memory was refused although the plan said it would do.
pub(crate) fn replan(
    model: &ZImage,
    job: &Job,
    profile: &DeviceProfile,
    phase: usize,
    total: Bytes,
) -> Result<PhasePlan> {
    let mut pipeline = model.pipeline(&job.shape);
    let only = pipeline.phases.swap_remove(phase);
    pipeline.phases = vec![only];
    let budget = Budget {
        total,
        in_use: job.plan.budget.in_use,
    };
    let mut plan = plan(&pipeline, &job.vars, profile, &budget, job.request.quality)?;
    Ok(plan.phases.remove(0))
}
