//! Weights of an opened model between jobs: kept, forgotten, read ahead.

use std::time::Instant;

use lowtide_core::{Bytes, Offload, PhaseBlocks, Plan, worth_reading};

use super::Engine;
use crate::device::cpu;
use crate::pipeline::{self, Part};
use crate::processor::Brought;
use crate::request::ImageRequest;
use crate::shared::Counted;
use crate::stream::Failure;
use crate::{Error, Result};

impl Engine {
    /// Bytes of weights kept in memory between phases and jobs.
    pub fn kept(&self) -> Bytes {
        self.model.kept()
    }

    /// Bytes of weights in memory now, those that a running session uses included.
    pub fn held(&self) -> Bytes {
        self.model.held()
    }

    /// The same, but for blocks that were `counted`: those that several models share count once in a sum over models.
    pub fn held_beside(&self, counted: &mut Counted) -> Bytes {
        self.model.held_beside(counted)
    }

    /// Forgets all kept weights, and what was made of prompts, and says how many bytes that gave back. Weights that a
    /// running session uses go when it is done with them, those that another model uses as well with that one.
    pub fn forget_weights(&self) -> Bytes {
        let kept = self.model.ours().bytes() + self.prompts.clear() + self.loras.forget();
        for part in self.model.parts() {
            part.blocks.forget_unless(|_| false);
        }
        for (_, bytes) in self.folder.embedded_files() {
            cpu::forget_pages(bytes);
        }
        cpu::give_back();
        kept
    }

    /// Forgets kept weights until at most `most` bytes of them are held that nobody else holds: of the parts that are
    /// worth the least first, of each the last blocks first. Returns what came back.
    pub fn shrink(&self, most: Bytes) -> Bytes {
        let ours = self.model.ours();
        let surplus = ours.bytes().saturating_sub(most);
        let mut back = Bytes::ZERO;
        for part in self.model.parts().into_iter().rev() {
            if back >= surplus {
                break;
            }
            back += part.blocks.forget_some(surplus - back, &ours);
        }
        if back > Bytes::ZERO {
            // Buffers kept for reuse would be in the way of whoever this was done for.
            lowtide_kernels::memory::trim();
        }
        back
    }

    /// Reads, in the order of their use, the weights that a job of these sizes keeps in memory when it runs by `plan`,
    /// as far as no phase of it has to push them out before they are used. `more` is asked before each block whether
    /// so many bytes more may be taken, and may let it wait; no session of the model may run meanwhile.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn bring(
        &self,
        request: &ImageRequest,
        plan: &Plan,
        more: &dyn Fn(Bytes) -> bool,
    ) -> Result<Brought> {
        let (passes, _) = self.passes(request)?;
        let phases = pipeline::phases(&*self.model, &passes);
        let parts: Vec<&Part> = phases
            .iter()
            .map(|&phase| self.model.part_of(phase))
            .collect();
        let worth = worth_reading(&phase_blocks(&parts, plan), plan.budget.available());
        let mut brought = Brought::default();
        for (part, block) in worth {
            let blocks = &parts[part].blocks;
            if blocks.is_kept(block) {
                continue;
            }
            let bytes = blocks.bytes_of(block);
            if !more(bytes) {
                break;
            }
            let start = Instant::now();
            match blocks.bring(block) {
                Ok(()) => {}
                // Something else was faster; what is there is there.
                Err(Failure::Memory(_)) => break,
                Err(Failure::File(error)) => return Err(error.into()),
                Err(Failure::Stopped | Failure::OutOfOrder { .. }) => {
                    return Err(Error::LoaderStopped);
                }
            }
            brought.bytes += bytes;
            brought.reading += start.elapsed();
        }
        Ok(brought)
    }

    /// Bytes of weights that stay in memory when a job of these sizes runs by `plan`, each once.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub(crate) fn stays(&self, request: &ImageRequest, plan: &Plan) -> Result<Bytes> {
        let (passes, _) = self.passes(request)?;
        let phases = pipeline::phases(&*self.model, &passes);
        let parts: Vec<&Part> = phases
            .iter()
            .map(|&phase| self.model.part_of(phase))
            .collect();
        let blocks = phase_blocks(&parts, plan);
        let worth = worth_reading(&blocks, plan.budget.available());
        let bytes = worth
            .into_iter()
            .map(|(part, block)| parts[part].blocks.bytes_of(block));
        Ok(bytes.sum())
    }

    /// Loads weights ahead of any job, the transformer first, as long as the budget has room for a component; none when
    /// offload says that they come and go.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn preload(&self) -> Result<Bytes> {
        if matches!(self.options.offload, Offload::Components | Offload::Stream) {
            return Ok(Bytes::ZERO);
        }
        for part in self.model.parts() {
            let budget = self.budget();
            let room = budget.available().saturating_sub(self.model.ours().bytes());
            if part.layout.bytes() > room {
                continue;
            }
            match part.blocks.preload() {
                Ok(()) | Err(Failure::Memory(_)) => {}
                Err(Failure::File(error)) => return Err(error.into()),
                Err(Failure::Stopped | Failure::OutOfOrder { .. }) => {
                    return Err(Error::LoaderStopped);
                }
            }
        }
        Ok(self.kept())
    }
}

/// The phases of a plan as reading ahead sees them; a part is named by the first phase that uses it.
fn phase_blocks(parts: &[&Part], plan: &Plan) -> Vec<PhaseBlocks> {
    let place = |part: &Part| parts.iter().position(|other| std::ptr::eq(*other, part));
    let phase = |(part, planned): (&&Part, &lowtide_core::PhasePlan)| PhaseBlocks {
        part: place(part).expect("it is one of them"),
        peak: planned.peak.saturating_sub(plan.budget.in_use),
        stays: (0..part.layout.blocks.len())
            .map(|block| {
                let stays = planned.placement.is_resident(block);
                stays.then(|| part.blocks.bytes_of(block))
            })
            .collect(),
    };
    parts.iter().zip(&plan.phases).map(phase).collect()
}
