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

pub(crate) mod amx;
pub(crate) mod tile;

#[cfg(target_arch = "x86_64")]
mod avx512bf16;

use crate::isa::Isa;
use crate::scratch::{self, Buffer, Scratch};
use crate::simd::LANES;
use crate::stored::{Format, Matrix, Stored, round_to_bf16, to_bf16_pairs, widen_to_f32};
use crate::threads::{parallel, threads};
use std::ops::Range;
use tile::{FEW, Operand, Product, TURNED};

/// Lanes of a full panel.
pub(crate) const PANEL: usize = 64;

/// Sums of one block, over all its weights: half of a typical second-level cache of 1 MiB.
const BLOCK_SUMS: usize = 128 * 1024;

/// Outputs of one block over all its weights, whose stretch may have to be converted: 576 KiB.
const BLOCK_OUTPUTS: usize = 1024;

/// Outputs of a few lanes whose sums are finished together: they stay in the first cache.
const FEW_OUTPUTS: usize = 128;

/// Products below which a second thread costs more than it brings.
const SERIAL_PRODUCTS: usize = 400_000;

impl Format {
    /// Panels of a block. More spread the cost of widening weights further, fewer that of packing.
    fn block_panels(self) -> usize {
        match self {
            Format::F32 | Format::Rounded => 8,
            Format::Pairs => 4,
        }
    }

    /// Numbers of k in one stretch. A panel of it fills most of a first-level cache, and it is a
    /// whole number of channels of a 3 x 3 convolution.
    pub(crate) fn stretch(self) -> usize {
        match self {
            Format::F32 | Format::Rounded => 144,
            Format::Pairs => 288,
        }
    }
}

/// The activations of a product: panels of lanes, by k.
pub(crate) trait Source: Sync {
    /// What is known of a block's stretch once it is staged.
    type Staged;

    /// Lanes of a panel, at most [`PANEL`].
    fn lanes(&self, panel: usize) -> usize;

    /// Reads what the panels of a block need of a stretch of k, before they are packed.
    fn stage(&self, panels: &Range<usize>, k: &Range<usize>, stage: &mut Buffer) -> Self::Staged;

    /// Packs a panel's stretch, `[steps][width]`, zeros in the lanes beyond its own.
    fn pack(&self, panel: usize, k: &Range<usize>, from: (&Self::Staged, &[f32]), to: Panel<'_>);

    /// Packs a stretch of the only panel, of at most [`FEW`] lanes: `[steps][lanes]`.
    fn pack_few(&self, k: &Range<usize>, scratch: (&mut Buffer, &mut Buffer), to: &mut [f32]) {
        let (panel, stage) = scratch;
        let lanes = self.lanes(0);
        let data = &mut panel.take(to.len() / lanes * LANES)[..to.len() / lanes * LANES];
        let staged = self.stage(&(0..1), k, stage);
        let width = LANES;
        self.pack(0, k, (&staged, stage.all()), Panel { data, width });
        for (step, to) in to.chunks_exact_mut(lanes).enumerate() {
            for (lane, to) in to.iter_mut().enumerate() {
                *to = data[step * LANES + lane];
            }
        }
    }
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
    /// Handles `sums`, `[weight][panel][n][PANEL]` with panels and `n` relative to the block's.
    fn finish(&self, sums: &mut [f32], panels: Range<usize>, n: Range<usize>);
}

/// A product to compute.
pub(crate) struct Problem<'a> {
    pub(crate) isa: Isa,
    pub(crate) format: Format,
    /// One, or two of the same shape.
    pub(crate) weights: &'a [&'a Matrix<'a>],
    /// Activations, M.
    pub(crate) lanes: usize,
    /// Panels of them.
    pub(crate) panels: usize,
    /// Panels of which a block takes neighbours; a block lies in one run.
    pub(crate) run: usize,
    /// Most panels of a block, for what its source stages.
    pub(crate) most: usize,
}

/// How a problem is cut into blocks.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    /// Panels of a block.
    panels: usize,
    /// Blocks of a run.
    run_blocks: usize,
    /// Blocks along the panels.
    panel_blocks: usize,
    /// Outputs of a block.
    outputs: usize,
    /// Blocks along the outputs.
    output_blocks: usize,
}

impl Cut {
    fn new(problem: &Problem<'_>, threads: usize) -> Self {
        let weights = problem.weights.len();
        let (outputs, k) = (problem.weights[0].rows, problem.weights[0].cols);
        let serial = problem.lanes * outputs * k * weights < SERIAL_PRODUCTS;
        let threads = if serial { 1 } else { threads };
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
        }
    }
}

/// Outputs that the widest inner loop computes together.
fn together(isa: Isa) -> usize {
    if isa.has_tiles() { 32 } else { 6 }
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
    if problem.panels == 0 || first.rows == 0 {
        return;
    }
    let cut = Cut::new(problem, threads());
    parallel(cut.panel_blocks * cut.output_blocks, |task| {
        let (panel_block, output_block) = (task / cut.output_blocks, task % cut.output_blocks);
        let run = panel_block / cut.run_blocks * problem.run;
        let panel = run + panel_block % cut.run_blocks * cut.panels;
        let end = (panel + cut.panels).min(run + problem.run);
        let output = output_block * cut.outputs;
        let block = Block {
            panels: panel..end.min(problem.panels),
            outputs: output..(output + cut.outputs).min(first.rows),
        };
        if !block.panels.is_empty() {
            scratch::with(|scratch| block.run(problem, source, sink, scratch));
        }
    });
}

/// A rectangle of the result.
struct Block {
    panels: Range<usize>,
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
        if problem.lanes <= FEW && !(problem.isa.has_tiles() && problem.format == Format::Pairs) {
            return self.run_few(problem, source, sink, scratch);
        }
        let Scratch {
            panel,
            weights,
            sums,
            stage,
            ..
        } = scratch;
        let cols = problem.weights[0].cols;
        let outputs = self.outputs.len();
        let panels = self.panels.len();
        let stretch = problem.format.stretch();
        let sums = sums.take(problem.weights.len() * panels * outputs * PANEL);
        if cols == 0 {
            sums.fill(0.0);
        }
        for k in (0..cols).step_by(stretch) {
            let k = k..(k + stretch).min(cols);
            let steps = problem.format.steps(k.len());
            let staged = source.stage(&self.panels, &k, stage);
            let room = weights.take(problem.weights.len() * outputs * steps);
            let mut operands = [Operand::EMPTY; 2];
            for (i, weight) in problem.weights.iter().enumerate() {
                let room = &mut room[i * outputs * steps..][..outputs * steps];
                operands[i] = operand(problem, weight, &self.outputs, &k, room);
            }
            for (p, panel_of_all) in self.panels.clone().enumerate() {
                let used = source.lanes(panel_of_all);
                let width = used.next_multiple_of(16);
                let data = &mut panel.take(steps * PANEL)[..steps * width];
                let from = (&staged, stage.all());
                source.pack(panel_of_all, &k, from, Panel { data, width });
                for (i, operand) in operands[..problem.weights.len()].iter().enumerate() {
                    let at = (i * panels + p) * outputs * PANEL;
                    let product = Product {
                        panel: data.as_ptr(),
                        width,
                        lanes: width,
                        used,
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
        sink.finish(sums, self.panels.clone(), self.outputs.clone());
    }
}

impl Block {
    /// The same for a few lanes, which the weights are read for but once: some rows at a time, each
    /// from its beginning to its end, as memory likes to be read. The order of sums is the same.
    fn run_few(
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
            small,
        } = scratch;
        let cols = problem.weights[0].cols;
        let lanes = problem.lanes;
        let stretch = problem.format.stretch();
        let stretch_steps = problem.format.steps(stretch);
        let all = small.take(problem.format.steps(cols) * lanes);
        for (i, start) in (0..cols).step_by(stretch).enumerate() {
            let k = start..(start + stretch).min(cols);
            let steps = problem.format.steps(k.len());
            let to = &mut all[i * stretch_steps * lanes..][..steps * lanes];
            source.pack_few(&k, (panel, stage), to);
        }
        for first in self.outputs.clone().step_by(FEW_OUTPUTS) {
            let outputs = first..(first + FEW_OUTPUTS).min(self.outputs.end);
            let count = outputs.len();
            let sums = sums.take(problem.weights.len() * count * PANEL);
            if cols == 0 {
                sums.fill(0.0);
            }
            for (i, weight) in problem.weights.iter().enumerate() {
                for output in (0..count).step_by(TURNED) {
                    let rows = output..(output + TURNED).min(count);
                    for (s, start) in (0..cols).step_by(stretch).enumerate() {
                        let k = start..(start + stretch).min(cols);
                        let steps = problem.format.steps(k.len());
                        let room = weights.take(rows.len() * steps);
                        let of_all = first + rows.start..first + rows.end;
                        let product = Product {
                            panel: all[s * stretch_steps * lanes..].as_ptr(),
                            width: lanes,
                            lanes: 0,
                            used: lanes,
                            steps,
                            weights: operand(problem, weight, &of_all, &k, room),
                            outputs: rows.len(),
                            sums: sums[(i * count + output) * PANEL..].as_mut_ptr(),
                            add: start > 0,
                        };
                        // SAFETY: the panel has `steps * lanes` numbers, the operand its rows of
                        // `steps`, the sums a line for each.
                        unsafe { product.run(problem.isa, problem.format) };
                    }
                }
            }
            sink.finish(sums, self.panels.clone(), outputs);
        }
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
        for (panels, run) in [(1, 1), (2, 2), (17, 17), (64, 8), (1563, 1563), (512, 256)] {
            for outputs in [1, 3, 6, 7, 288, 1152, 10_240] {
                for (weights, threads) in [(1, 1), (1, 2), (2, 2), (1, 7), (2, 64)] {
                    let weight = Matrix {
                        stored: Stored::Bf16,
                        bytes: &[],
                        rows: outputs,
                        cols: 288,
                    };
                    let problem = Problem {
                        isa: Isa::Portable,
                        format: Format::F32,
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
                    let sums = weights * cut.panels * PANEL * cut.outputs;
                    assert!(sums <= BLOCK_SUMS + weights * cut.panels * PANEL * 6);
                }
            }
        }
    }
}
