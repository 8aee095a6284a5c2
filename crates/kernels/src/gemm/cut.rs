//! How a problem is cut into blocks.

use super::{PANEL, Problem};
use crate::isa::Isa;
use crate::stored::Format;

/// Sums of one block, over all its weights: half of a typical second-level cache of 1 MiB.
pub(super) const BLOCK_SUMS: usize = 128 * 1024;

/// Outputs of one block over all its weights, whose stretch may have to be converted: 576 KiB.
const BLOCK_OUTPUTS: usize = 1024;

/// Products below which a second thread costs more than it brings.
const SERIAL_PRODUCTS: usize = 400_000;

/// 32-bit numbers of the panels that are packed at once for tiles: 640 KiB. The processors that
/// have tiles have 2 MiB of second-level cache; sums and weights have to be there as well.
const PACKED: usize = 160 * 1024;

/// Sums of one block for tiles that wait for the rest of k: 832 KiB. With what is packed and staged they fill a huge page.
const TILED_SUMS: usize = 208 * 1024;

/// Panels of a block for tiles. More were slower: what is packed and the sums crowd each other out.
const TILED_PANELS: usize = 4;

/// What packing a panel costs where tiles multiply, in outputs of that panel. Far more than the
/// instructions for it: it reads activations where no prefetch has been.
const PACKING_OUTPUTS: usize = 1000;

/// What reading a weight row costs where tiles multiply, in panels that it is multiplied with.
const READING_PANELS: usize = 2;

/// A rectangle's cut.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Panels of a block.
    pub(super) panels: usize,
    /// Blocks of a run.
    pub(super) run_blocks: usize,
    /// Blocks along the panels.
    pub(super) panel_blocks: usize,
    /// Outputs of a block.
    pub(super) outputs: usize,
    /// Blocks along the outputs.
    pub(super) output_blocks: usize,
    /// Numbers of k for which tiles find their panels packed, whole stretches.
    pub(super) depth: usize,
}

impl Cut {
    pub(super) fn new(problem: &Problem<'_>, threads: usize) -> Self {
        let weights = problem.weights.len();
        let (outputs, k) = (problem.weights[0].rows, problem.weights[0].cols);
        let serial = problem.lanes * outputs * k * weights < SERIAL_PRODUCTS;
        let threads = if serial { 1 } else { threads };
        if problem.isa.has_tiles() && problem.format == Format::Pairs {
            return Self::for_tiles(problem, threads);
        }
        // With few outputs more panels fit, and share what is staged for them.
        let fitting = BLOCK_SUMS / 2 / (weights * PANEL * outputs);
        let base = problem.format.block_panels();
        let wanted = fitting.clamp(base, 2 * base.max(8)).min(problem.most);
        let run_blocks = problem.run.div_ceil(wanted);
        let block_panels = problem.run.div_ceil(run_blocks);
        let run_blocks = problem.run.div_ceil(block_panels);
        let panel_blocks = problem.panels.div_ceil(problem.run) * run_blocks;
        let most =
            (BLOCK_SUMS / (weights * PANEL * block_panels)).clamp(1, BLOCK_OUTPUTS / weights);
        let fewest_blocks = outputs.div_ceil(most);
        // Of a few numbers of blocks, the one whose slowest thread is done first. A block costs its
        // outputs and, for packing, about as much as sixteen more.
        let cost = |blocks: usize| {
            let rounds = (panel_blocks * blocks).div_ceil(threads);
            rounds * (outputs.div_ceil(blocks) + 16)
        };
        let output_blocks = (fewest_blocks..fewest_blocks + 2 * threads)
            .min_by_key(|blocks| cost(*blocks))
            .unwrap_or(fewest_blocks);
        let block_outputs = outputs
            .div_ceil(output_blocks)
            .next_multiple_of(together(problem.isa));
        Self {
            panels: block_panels,
            run_blocks,
            panel_blocks,
            outputs: block_outputs,
            output_blocks: outputs.div_ceil(block_outputs),
            depth: k,
        }
    }

    /// Tiles multiply so fast that packing, and reading weights for a few lanes only, decide: of
    /// many cuts, the one whose slowest thread is done first.
    fn for_tiles(problem: &Problem<'_>, threads: usize) -> Self {
        let weights = problem.weights.len();
        let (outputs, k) = (problem.weights[0].rows, problem.weights[0].cols);
        let stretch = problem.format.stretch();
        let mut best = None;
        for most_panels in 1..=TILED_PANELS.min(problem.most).min(problem.run) {
            let run_blocks = problem.run.div_ceil(most_panels);
            let panels = problem.run.div_ceil(run_blocks);
            let run_blocks = problem.run.div_ceil(panels);
            let panel_blocks = problem.panels.div_ceil(problem.run) * run_blocks;
            let stretches = PACKED / (PANEL * panels) / problem.format.steps(stretch);
            let depth = stretches * stretch;
            // The sums of a block stay between two packings.
            let most = TILED_SUMS / (weights * PANEL * panels);
            let fewest = if depth >= k {
                1
            } else {
                outputs.div_ceil(most)
            };
            for blocks in fewest..fewest + 2 * threads {
                let together = together(problem.isa);
                let block_outputs = outputs.div_ceil(blocks).next_multiple_of(together);
                let output_blocks = outputs.div_ceil(block_outputs);
                let rounds = (panel_blocks * output_blocks).div_ceil(threads);
                let reading = READING_PANELS * weights * block_outputs;
                let cost = panels * (weights * block_outputs + PACKING_OUTPUTS) + reading;
                let cut = Self {
                    panels,
                    run_blocks,
                    panel_blocks,
                    outputs: block_outputs,
                    output_blocks,
                    depth,
                };
                let cost = rounds * cost;
                if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                    best = Some((cost, cut));
                }
            }
        }
        best.expect("there is a panel, so one cut was tried").1
    }
}

/// Outputs that the widest inner loop computes together.
fn together(isa: Isa) -> usize {
    if isa.has_tiles() { 32 } else { 6 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stored::{Matrix, Stored};

    #[test]
    fn blocks_cover_every_shape_and_fit_the_scratch() {
        let tiled = (Isa::AmxEmulated, Format::Pairs);
        for (isa, format) in [(Isa::Portable, Format::F32), tiled] {
            for (panels, run) in [(1, 1), (2, 2), (17, 17), (64, 8), (1563, 1563), (512, 256)] {
                for outputs in [1, 3, 6, 7, 288, 1152, 10_240] {
                    for (weights, threads) in [(1, 1), (1, 2), (2, 2), (1, 7), (2, 64)] {
                        for cols in [288, 10_240] {
                            let sizes = [panels, run, outputs, cols, weights];
                            check(isa, format, sizes, threads);
                        }
                    }
                }
            }
        }
    }

    fn check(isa: Isa, format: Format, sizes: [usize; 5], threads: usize) {
        let [panels, run, outputs, cols, weights] = sizes;
        let weight = Matrix {
            stored: Stored::Bf16,
            bytes: &[],
            rows: outputs,
            cols,
            scales: None,
        };
        let problem = Problem {
            isa,
            format,
            weights: &[&weight, &weight][..weights],
            lanes: panels * PANEL,
            panels,
            run,
            most: usize::MAX,
        };
        let cut = Cut::new(&problem, threads);
        assert!(cut.run_blocks * cut.panels >= run);
        assert!((cut.run_blocks - 1) * cut.panels < run);
        assert_eq!(cut.panel_blocks, panels / run * cut.run_blocks);
        assert!(cut.output_blocks * cut.outputs >= outputs);
        assert!((cut.output_blocks - 1) * cut.outputs < outputs);
        let kept = if format == Format::Pairs && cut.depth >= cols {
            cut.outputs.min(together(isa))
        } else {
            cut.outputs
        };
        let sums = weights * cut.panels * PANEL * kept;
        let most = if format == Format::Pairs {
            TILED_SUMS
        } else {
            BLOCK_SUMS
        };
        assert!(sums <= most + weights * cut.panels * PANEL * together(isa));
        if format == Format::Pairs {
            assert!(cut.depth > 0 && cut.depth.is_multiple_of(format.stretch()));
            assert!(format.steps(cut.depth) * PANEL * cut.panels <= PACKED);
        }
    }
}
