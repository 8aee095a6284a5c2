//! Matrix products over weights that lie as they were read.
//!
//! The lanes of a vector run over activations (tokens, pixels, queries). A block of the result is
//! computed by one thread: for each stretch of k, activations are packed into panels of up to
//! [`PANEL`] lanes that fit the first cache, `[k][lanes]`, and each number (or bf16 pair) of a
//! weight row is broadcast against them. Weights of another format than the products' are widened
//! a block at a time into scratch.
//!
//! Whatever the shape of a call, an element is the sum over stretches of [`Format::stretch`]
//! numbers, in ascending order, of sums started at zero and run in ascending k. So a row has the
//! same bits alone and among others, and on any number of threads.

pub(crate) mod tile;

#[cfg(target_arch = "x86_64")]
mod avx512bf16;

use crate::isa::Isa;
use crate::scratch::{self, Scratch};
use crate::stored::{Format, Matrix, Stored, round_to_bf16, to_bf16_pairs, widen_to_f32};
use crate::threads::{parallel, threads};
use std::ops::Range;
use tile::{Operand, Product};

/// Lanes of a full panel.
pub(crate) const PANEL: usize = 64;

/// Sums of one block, over all its weights: half of a typical second-level cache of 1 MiB.
const BLOCK_SUMS: usize = 128 * 1024;

/// Panels of one block; more would not spread the cost of widening weights much further.
const BLOCK_PANELS: usize = 8;

/// Products below which a second thread costs more than it brings.
const SERIAL_PRODUCTS: usize = 400_000;

impl Format {
    /// Numbers of k in one stretch. A panel of it fills most of a first-level cache, and it is a
    /// whole number of channels of a 3 x 3 convolution.
    pub(crate) fn stretch(self) -> usize {
        match self {
            Format::F32 | Format::Rounded => 144,
            Format::Pairs => 288,
        }
    }
}

/// The activations of a product: lanes by k.
pub(crate) trait Source: Sync {
    /// Reads what the panels of a block need of a stretch of k, before they are packed.
    fn stage(&self, _lanes: &Range<usize>, _k: &Range<usize>, _stage: &mut scratch::Buffer) {}

    /// Packs lanes (at most [`PANEL`]) of a block and a stretch into `panel`, `[steps][width]`, zeros in the
    /// lanes beyond `lanes`.
    fn pack(
        &self,
        block: &Range<usize>,
        lanes: Range<usize>,
        k: &Range<usize>,
        stage: &[f32],
        panel: Panel<'_>,
    );
}

/// Where a source packs to.
pub(crate) struct Panel<'a> {
    /// `steps * width` 32-bit numbers: f32, or bf16 pairs by their bits.
    pub(crate) data: &'a mut [f32],
    /// Lanes, a multiple of sixteen.
    pub(crate) width: usize,
}

/// Takes finished sums.
pub(crate) trait Sink: Sync {
    /// Handles `sums`, `[weight][panel][n][PANEL]` with `n` relative to the block's.
    fn finish(&self, sums: &mut [f32], lanes: Range<usize>, n: Range<usize>);
}

/// A product to compute.
pub(crate) struct Problem<'a> {
    pub(crate) isa: Isa,
    pub(crate) format: Format,
    /// One, or two of the same shape.
    pub(crate) weights: &'a [&'a Matrix<'a>],
    /// Activations, M.
    pub(crate) lanes: usize,
}

/// How a problem is cut into blocks.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    /// Panels of a block.
    panels: usize,
    /// Blocks along the lanes.
    lane_blocks: usize,
    /// Outputs of a block.
    outputs: usize,
    /// Blocks along the outputs.
    output_blocks: usize,
}

impl Cut {
    fn new(lanes: usize, outputs: usize, k: usize, weights: usize, threads: usize) -> Self {
        let panels = lanes.div_ceil(PANEL);
        let serial = lanes * outputs * k * weights < SERIAL_PRODUCTS;
        let threads = if serial { 1 } else { threads };
        let block_panels = panels.div_ceil(panels.div_ceil(BLOCK_PANELS));
        let lane_blocks = panels.div_ceil(block_panels);
        let most = (BLOCK_SUMS / (weights * PANEL * block_panels)).max(1);
        let fewest_blocks = outputs.div_ceil(most);
        // Of a few numbers of blocks, the one whose slowest thread is done first. A block costs its
        // outputs and, for packing, about as much as sixteen more.
        let cost = |blocks: usize| {
            let rounds = (lane_blocks * blocks).div_ceil(threads);
            rounds * (outputs.div_ceil(blocks) + 16)
        };
        let output_blocks = (fewest_blocks..fewest_blocks + 2 * threads)
            .min_by_key(|blocks| cost(*blocks))
            .unwrap_or(fewest_blocks);
        let block_outputs = outputs.div_ceil(output_blocks).next_multiple_of(6);
        Self {
            panels: block_panels,
            lane_blocks,
            outputs: block_outputs,
            output_blocks: outputs.div_ceil(block_outputs),
        }
    }
}

/// Computes all products and hands the sums of each block to `sink`, in parallel.
pub(crate) fn run(problem: &Problem<'_>, source: &impl Source, sink: &impl Sink) {
    let first = problem.weights[0];
    for weight in problem.weights {
        weight.check();
        assert_eq!(
            (weight.rows, weight.cols),
            (first.rows, first.cols),
            "weights of one product differ in shape"
        );
    }
    if problem.lanes == 0 || first.rows == 0 {
        return;
    }
    let cut = Cut::new(
        problem.lanes,
        first.rows,
        first.cols,
        problem.weights.len(),
        threads(),
    );
    parallel(cut.lane_blocks * cut.output_blocks, |task| {
        let (lane_block, output_block) = (task / cut.output_blocks, task % cut.output_blocks);
        let lane = lane_block * cut.panels * PANEL;
        let output = output_block * cut.outputs;
        let block = Block {
            lanes: lane..(lane + cut.panels * PANEL).min(problem.lanes),
            outputs: output..(output + cut.outputs).min(first.rows),
        };
        scratch::with(|scratch| block.run(problem, source, sink, scratch));
    });
}

/// A rectangle of the result.
struct Block {
    lanes: Range<usize>,
    outputs: Range<usize>,
}

impl Block {
    fn run(
        &self,
        problem: &Problem<'_>,
        source: &impl Source,
        sink: &impl Sink,
        scratch: &mut Scratch,
    ) {
        let Scratch {
            panel,
            weights,
            sums,
            stage,
            ..
        } = scratch;
        let cols = problem.weights[0].cols;
        let outputs = self.outputs.len();
        let panels = self.lanes.len().div_ceil(PANEL);
        let stretch = problem.format.stretch();
        let sums = sums.take(problem.weights.len() * panels * outputs * PANEL);
        if cols == 0 {
            sums.fill(0.0);
        }
        for k in (0..cols).step_by(stretch) {
            let k = k..(k + stretch).min(cols);
            let steps = problem.format.steps(k.len());
            source.stage(&self.lanes, &k, stage);
            let room = weights.take(problem.weights.len() * outputs * steps);
            let mut operands = [Operand::EMPTY; 2];
            for (i, weight) in problem.weights.iter().enumerate() {
                let room = &mut room[i * outputs * steps..][..outputs * steps];
                operands[i] = operand(problem, weight, &self.outputs, &k, room);
            }
            for p in 0..panels {
                let start = self.lanes.start + p * PANEL;
                let lanes = start..(start + PANEL).min(self.lanes.end);
                let width = lanes.len().next_multiple_of(16);
                let data = &mut panel.take(steps * PANEL)[..steps * width];
                source.pack(&self.lanes, lanes, &k, stage.all(), Panel { data, width });
                for (i, operand) in operands[..problem.weights.len()].iter().enumerate() {
                    let at = (i * panels + p) * outputs * PANEL;
                    let product = Product {
                        panel: data.as_ptr(),
                        width,
                        lanes: width,
                        steps,
                        weights: *operand,
                        outputs,
                        sums: sums[at..][..outputs * PANEL].as_mut_ptr(),
                        add: k.start > 0,
                    };
                    // SAFETY: the panel has `steps * width` numbers, the operand `outputs` rows of
                    // `steps`, the sums `outputs * PANEL`.
                    unsafe { product.run(problem.isa, problem.format) };
                }
            }
        }
        sink.finish(sums, self.lanes.clone(), self.outputs.clone());
    }
}

/// The weights of a block for a stretch of k: where they lie if they can be multiplied so, else
/// converted into `room`.
fn operand(
    problem: &Problem<'_>,
    weight: &Matrix<'_>,
    outputs: &Range<usize>,
    k: &Range<usize>,
    room: &mut [f32],
) -> Operand {
    let size = weight.stored.size();
    let row_bytes = weight.cols * size;
    let at = |output: usize| {
        let start = output * row_bytes + k.start * size;
        weight.bytes[start..start + k.len() * size].as_ptr()
    };
    let as_it_lies = match problem.format {
        Format::F32 => weight.stored == Stored::F32,
        Format::Pairs => weight.stored == Stored::Bf16 && k.len().is_multiple_of(2),
        Format::Rounded => false,
    };
    if as_it_lies && cfg!(target_endian = "little") {
        return Operand {
            data: at(outputs.start),
            row_bytes,
            step_bytes: 4,
        };
    }
    let steps = problem.format.steps(k.len());
    for (i, output) in outputs.clone().enumerate() {
        let out = room[i * steps..][..steps].as_mut_ptr();
        // SAFETY: `at` has checked that the row has `k.len()` numbers, and `out` has room for the
        // steps made of them.
        unsafe {
            match problem.format {
                Format::Pairs => {
                    to_bf16_pairs(problem.isa, weight.stored, at(output), out.cast(), k.len());
                }
                Format::F32 | Format::Rounded => {
                    widen_to_f32(problem.isa, weight.stored, at(output), out, k.len());
                }
            }
            if problem.format == Format::Rounded {
                round_to_bf16(problem.isa, out, k.len());
            }
        }
    }
    Operand {
        data: room.as_ptr().cast(),
        row_bytes: steps * 4,
        step_bytes: 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_shape_and_fit_the_scratch() {
        for lanes in [1, 16, 63, 64, 65, 96, 1024, 1088, 4096, 100_000] {
            for outputs in [1, 3, 6, 7, 288, 1152, 10_240] {
                for (weights, threads) in [(1, 1), (1, 2), (2, 2), (1, 7), (2, 64)] {
                    let cut = Cut::new(lanes, outputs, 288, weights, threads);
                    assert!(cut.lane_blocks * cut.panels * PANEL >= lanes);
                    assert!(cut.output_blocks * cut.outputs >= outputs);
                    assert!((cut.output_blocks - 1) * cut.outputs < outputs);
                    assert!((cut.lane_blocks - 1) * cut.panels * PANEL < lanes);
                    let sums = weights * cut.panels * PANEL * cut.outputs;
                    assert!(sums <= BLOCK_SUMS + weights * cut.panels * PANEL * 6);
                }
            }
        }
    }
}
