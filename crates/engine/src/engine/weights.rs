//! Weights of an opened model between jobs: kept, forgotten, loaded.

use lowtide_core::{Bytes, Offload};

use super::Engine;
use crate::device::cpu;
use crate::early;
use crate::pipeline::{self, Part};
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
        let parts = self.model.parts();
        let blocks: Vec<_> = parts.iter().map(|part| &part.blocks).collect();
        early::shrink(&blocks, most)
    }

    /// The parts that the phases of a job of these sizes use, in their order.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub(crate) fn parts_of(&self, request: &ImageRequest) -> Result<Vec<&Part>> {
        let (passes, _) = self.passes(request)?;
        let phases = pipeline::phases(&*self.model, &passes);
        let parts = phases.iter().map(|&phase| self.model.part_of(phase));
        Ok(parts.collect())
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
                Err(Failure::Device(failure)) => {
                    return Err(self.model.wrap("weights")(failure.into()));
                }
                Err(Failure::Stopped | Failure::OutOfOrder { .. }) => {
                    return Err(Error::LoaderStopped);
                }
            }
        }
        Ok(self.kept())
    }
}
