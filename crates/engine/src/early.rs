//! Weights that are read before the run that uses them, and weights that make way, whatever the kind of job.
//!
//! A run by a plan uses a part in each phase. What is worth reading early are the blocks that stay, as far as no phase
//! before the one that uses them has to push them out.

use std::sync::Arc;
use std::time::Instant;

use lowtide_core::{Bytes, PhaseBlocks, PhasePlan, Plan, worth_reading};

use crate::device::ground;
use crate::pipeline::Part;
use crate::processor::Brought;
use crate::stream::{self, Blocks, Failure};
use crate::{Error, Result};

/// Reads, in the order of their use, the weights that a run by `plan` keeps in memory; `parts` are those of its phases.
/// `more` is asked before each block whether so many bytes more may be taken, and may let it wait; no stream of a part
/// may run meanwhile.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn bring(parts: &[&Part], plan: &Plan, more: &dyn Fn(Bytes) -> bool) -> Result<Brought> {
    let mut brought = Brought::default();
    for (part, block) in worth(parts, plan) {
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
            Err(Failure::Device(_) | Failure::Stopped | Failure::OutOfOrder { .. }) => {
                return Err(Error::LoaderStopped);
            }
        }
        brought.bytes += bytes;
        brought.reading += start.elapsed();
    }
    Ok(brought)
}

/// Bytes of weights that stay in memory when a run by `plan` uses these parts in its phases, each once.
pub(crate) fn stays(parts: &[&Part], plan: &Plan) -> Bytes {
    let worth = worth(parts, plan).into_iter();
    worth
        .map(|(part, block)| parts[part].blocks.bytes_of(block))
        .sum()
}

/// Forgets blocks on shelves until at most `most` bytes are held there that nobody else holds: of the last of `all`
/// first, of each the last blocks first. Returns what came back.
pub(crate) fn shrink(all: &[&Arc<Blocks>], most: Bytes) -> Bytes {
    let ours = stream::ours(all.iter().copied());
    let surplus = ours.bytes().saturating_sub(most);
    let mut back = Bytes::ZERO;
    for blocks in all.iter().rev() {
        if back >= surplus {
            break;
        }
        back += blocks.forget_some(surplus - back, &ours);
    }
    if back > Bytes::ZERO {
        // Buffers kept for reuse would be in the way of whoever this was done for.
        ground::trim();
    }
    back
}

/// Which blocks of which parts are worth reading; a part is named by the first phase that uses it.
fn worth(parts: &[&Part], plan: &Plan) -> Vec<(usize, usize)> {
    let place = |part: &Part| parts.iter().position(|other| std::ptr::eq(*other, part));
    let phase = |(part, planned): (&&Part, &PhasePlan)| PhaseBlocks {
        part: place(part).expect("it is one of them"),
        peak: planned.peak.saturating_sub(plan.budget.in_use),
        stays: (0..part.layout.blocks.len())
            .map(|block| {
                let stays = planned.placement.is_resident(block);
                stays.then(|| part.blocks.bytes_of(block))
            })
            .collect(),
    };
    let phases: Vec<PhaseBlocks> = parts.iter().zip(&plan.phases).map(phase).collect();
    worth_reading(&phases, plan.budget.available())
}
