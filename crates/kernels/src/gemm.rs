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
mod cut;
pub(crate) mod taps;
pub(crate) mod tile;
mod tiled;

#[cfg(target_arch = "x86_64")]
mod avx512bf16;

use crate::isa::Isa;
use crate::scaled;
use crate::scratch::{self, Buffer, Scratch};
use crate::simd::LANES;
use crate::stored::{Format, Matrix, Stored, round_to_bf16, to_bf16_pairs, widen_to_f32};
use crate::threads::{parallel, threads};
use cut::Cut;
use std::ops::Range;
use tile::{FEW, Operand, Product, TURNED};

/// Lanes of a full panel.
pub(crate) const PANEL: usize = 64;

/// Outputs of a few lanes whose sums are finished together: they stay in the first cache.
const FEW_OUTPUTS: usize = 128;

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
            scratch::with(|scratch| block.run(problem, cut.depth, source, sink, scratch));
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
        depth: usize,
        source: &impl Source,
        sink: &impl Sink,
        scratch: &mut Scratch,
    ) {
        if problem.format == Format::Pairs {
            match problem.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Amx => {
                    type Tiles = amx::Instructions;
                    // SAFETY: an `Isa` is only ever one that this processor has.
                    unsafe {
                        tiled::run_block::<Tiles>(self, problem, depth, source, sink, scratch);
                    }
                    return;
                }
                Isa::AmxEmulated => {
                    type Tiles = amx::Emulated;
                    // SAFETY: the emulation needs no instruction.
                    unsafe {
                        tiled::run_block::<Tiles>(self, problem, depth, source, sink, scratch);
                    }
                    return;
                }
                _ => {}
            }
        }
        if problem.lanes <= FEW {
            self.run_few(problem, source, sink, scratch);
        } else {
            self.run_panels(problem, source, sink, scratch);
        }
    }

    /// A stretch of k at a time: each panel's is packed to the first cache and meets all outputs.
    fn run_panels(
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
            ..
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
    if as_it_lies && weight.scales.is_none() && cfg!(target_endian = "little") {
        return Operand {
            data: at(outputs.start),
            row_bytes,
            step_bytes: 4,
        };
    }
    let steps = problem.format.steps(k.len());
    for (i, output) in outputs.clone().enumerate() {
        let out = room[i * steps..][..steps].as_mut_ptr();
        if let Some(scales) = &weight.scales {
            // SAFETY: `out` has room for the steps.
            unsafe {
                let how = (problem.isa, problem.format);
                scaled::write_row(how, (weight, scales), (output, k), out);
            }
            continue;
        }
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
