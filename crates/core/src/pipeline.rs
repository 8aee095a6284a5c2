//! What a plan is made from: the phases of a model, the rungs each can be run on, and the device's rates.

use crate::formula::VarName;
use crate::{Bytes, ComponentLayout, Formula};

/// The values a rung may take for one variable: `full`, half of it, a quarter, and so on down to `floor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// The variable it sets, such as `rows` or `batch`.
    pub var: VarName,
    /// The first value: everything at once.
    pub full: u64,
    /// The last value.
    pub floor: u64,
    /// Every value but `full` is rounded up to a multiple of this.
    pub step: u64,
}

impl Ladder {
    /// A ladder from `full` down to `floor` in multiples of `step`.
    pub fn new(var: impl Into<VarName>, full: u64, floor: u64, step: u64) -> Ladder {
        Ladder {
            var: var.into(),
            full,
            floor,
            step,
        }
    }

    /// The candidate values, largest first, each once. At least 1 each, whatever the fields say.
    pub fn values(&self) -> Vec<u64> {
        let full = self.full.max(1);
        let step = self.step.max(1);
        let round = |value: u64| value.max(1).div_ceil(step).saturating_mul(step).min(full);
        let floor = round(self.floor);
        let mut values = vec![full];
        let mut value = full;
        while value > floor {
            value = round(value.div_ceil(2)).max(floor);
            if values.last() == Some(&value) {
                break;
            }
            values.push(value);
        }
        values
    }

    /// How many pieces `value` makes of `full`.
    pub fn pieces(&self, value: u64) -> u64 {
        self.full.max(1).div_ceil(value.max(1))
    }
}

/// One way to compute a phase: whole, in rows, in strips, tiled.
#[derive(Clone, Debug, PartialEq)]
pub struct Mode {
    /// What it is called in explanations.
    pub name: String,
    /// Whether its results are the same bytes as those of every other exact mode.
    pub exact: bool,
    /// Bytes beside the weights at the worst moment.
    pub activation: Formula,
    /// Floating-point operations of one pass over all blocks.
    pub flops: Formula,
    /// The variables it can turn down to need less memory.
    pub ladders: Vec<Ladder>,
    /// Blocks this mode cannot stream, by index. Usually none.
    pub resident_blocks: Vec<usize>,
}

/// One phase of a pipeline: a component and how often its blocks are visited.
#[derive(Clone, Debug, PartialEq)]
pub struct PhaseLayout {
    /// `encode`, `denoise`, `decode`.
    pub name: String,
    /// The network whose blocks it visits.
    pub component: ComponentLayout,
    /// Visits of all blocks in a round, such as the number of denoising steps.
    pub passes: u64,
    /// A variable and a total: the phase has `ceil(total / value)` rounds. `None` means one.
    pub rounds_over: Option<(VarName, u64)>,
    /// Bytes held all through the phase whatever the rung: latents, embeddings, tables, tokenizer.
    pub held: Formula,
    /// The ways to compute it, best liked first.
    pub modes: Vec<Mode>,
    /// Factor on the activation bytes, learned from measured peaks of earlier jobs; 1 at first.
    pub correction: f64,
    /// Whether a later job is expected to use the weights again: then ties go to residency, else to the smaller peak.
    pub reuse: bool,
    /// What the user says about weights that leave the device.
    pub offload: Offload,
    /// Bytes of other components' weights that stay on the device meanwhile; only [`Offload::Never`] has such.
    pub beside: Bytes,
    /// Blocks that somebody else holds on the device as well, by index: they are among what is in use already, so that
    /// they stay, need no memory and are not read.
    pub shared: Vec<usize>,
}

/// What a user wants to happen to weights that are not in use. Whatever it is, the results are the same bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Offload {
    /// The planner decides: what is fastest in the budget.
    #[default]
    Auto,
    /// All components stay on the device together, or the job is refused.
    Never,
    /// One component at a time is on the device, whole, or the job is refused.
    Components,
    /// As few weights on the device as can be: blocks stream.
    Stream,
}

impl Offload {
    /// All of them.
    pub const ALL: [Offload; 4] = [
        Offload::Auto,
        Offload::Never,
        Offload::Components,
        Offload::Stream,
    ];

    /// The word users write.
    pub fn name(self) -> &'static str {
        match self {
            Offload::Auto => "auto",
            Offload::Never => "never",
            Offload::Components => "components",
            Offload::Stream => "stream",
        }
    }

    /// What a word means.
    pub fn named(word: &str) -> Option<Offload> {
        Offload::ALL
            .into_iter()
            .find(|offload| offload.name() == word)
    }
}

/// Everything a job goes through, phase after phase. Phases never overlap, so they share memory.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineLayout {
    /// The name the user knows.
    pub model: String,
    /// In order.
    pub phases: Vec<PhaseLayout>,
}

/// What a device is able to do, measured.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceProfile {
    /// `cpu`, `cuda:0`.
    pub name: String,
    /// Bytes a second from where a streamed block lives into its slot, when it has been read before.
    pub link_bytes_per_s: f64,
    /// Bytes a second of a block's first read, usually from a disk.
    pub cold_bytes_per_s: f64,
    /// Operations a second the models reach, not the peak on the data sheet.
    pub flops_per_s: f64,
    /// Seconds one visit of one block costs whatever its size. Work done in pieces pays it for every piece.
    pub block_overhead_s: f64,
    /// Share of the copy time that can hide behind computing, 0 to 1: 1 with a DMA engine, less on a CPU whose cores
    /// also copy.
    pub overlap: f64,
}

/// Whether approximate modes may be used when no exact one fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// Only exact modes.
    Exact,
    /// Approximate modes when no exact one fits.
    Auto,
}

/// What a device's memory allows a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes that may ever be in use.
    pub total: Bytes,
    /// Bytes of them held by others or by the process itself, which no plan can reclaim.
    pub in_use: Bytes,
}

impl Budget {
    /// A budget of which nothing is in use.
    pub fn of(total: Bytes) -> Budget {
        Budget {
            total,
            in_use: Bytes::ZERO,
        }
    }

    /// What a plan may use.
    pub fn available(&self) -> Bytes {
        self.total.saturating_sub(self.in_use)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ladder_halves_down_to_its_floor() {
        assert_eq!(
            Ladder::new("rows", 512, 64, 1).values(),
            [512, 256, 128, 64]
        );
        assert_eq!(Ladder::new("rows", 100, 30, 1).values(), [100, 50, 30]);
        assert_eq!(Ladder::new("rows", 100, 1, 32).values(), [100, 64, 32]);
        assert_eq!(Ladder::new("batch", 3, 1, 1).values(), [3, 2, 1]);
        assert_eq!(Ladder::new("batch", 1, 1, 1).values(), [1]);
        assert_eq!(Ladder::new("rows", 10, 20, 16).values(), [10]);
        assert_eq!(Ladder::new("rows", 0, 0, 0).values(), [1]);
    }

    #[test]
    fn every_offload_is_found_by_its_word() {
        for offload in Offload::ALL {
            assert_eq!(Offload::named(offload.name()), Some(offload));
        }
        assert_eq!(Offload::named("always"), None);
    }

    #[test]
    fn pieces_cover_the_whole() {
        let ladder = Ladder::new("rows", 100, 1, 32);
        assert_eq!(
            ladder
                .values()
                .iter()
                .map(|&v| ladder.pieces(v))
                .collect::<Vec<_>>(),
            [1, 2, 4]
        );
    }
}
