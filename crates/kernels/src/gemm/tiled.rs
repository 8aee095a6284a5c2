//! A block by AMX tiles.
//!
//! Tiles multiply so fast that everything around them has to be done rarely. All panels of a block
//! are packed for as much of k as a good part of the second-level cache holds. Then a group of outputs at
//! a time meets them, for a run of k whose weights stay in the first-level cache, while those of
//! the next are asked for. The sums of a group are finished when it is done; only where k is too
//! long to be packed at once those of all groups wait for the rest.
//!
//! The order of an element's sum is that of k in tiles of 32 numbers, whatever the packing and the
//! runs: what is stored between them is the tile itself.

use super::amx::{Ahead, Tiles, product_on};
use super::tile::{Operand, Product};
use super::{Block, PANEL, Panel, Problem, Sink, Source};
use crate::scaled;
use crate::scratch::{Buffer, Scratch};
use crate::stored::{Format, Matrix, Stored, to_bf16_pairs};
use std::ops::Range;

/// Outputs that are multiplied together: two tiles.
const GROUP: usize = 32;

/// Most numbers of k of a run: a group's weights for it are 20 KiB, and panels and sums pass through the first cache
/// beside them.
const RUN: usize = 320;

/// Numbers of k of a tile.
const DEEP: usize = 32;

/// Rows this far apart, or a multiple of it, fall on the same few sets of a first-level cache.
const CROWDED_BYTES: usize = 2048;

/// Numbers of k of a run: about the same for all runs of a chunk, whole tiles.
fn run_numbers(k: usize) -> usize {
    let runs = k.div_ceil(RUN).max(1);
    k.div_ceil(runs).max(1).next_multiple_of(DEEP)
}

/// A panel's steps, made whole tiles.
fn whole_steps(k: usize) -> usize {
    k.next_multiple_of(DEEP) / 2
}

/// Computes a block; `depth` numbers of k are packed at once.
///
/// # Safety
/// `T`'s instructions must be there.
pub(super) unsafe fn run_block<T: Tiles>(
    block: &Block,
    problem: &Problem<'_>,
    depth: usize,
    source: &impl Source,
    sink: &impl Sink,
    scratch: &mut Scratch,
) {
    let cols = problem.weights[0].cols;
    let (panels, outputs) = (block.panels.len(), block.outputs.len());
    // The sums of a group.
    let size = problem.weights.len() * panels * GROUP * PANEL;
    let kept = if depth >= cols {
        1
    } else {
        outputs.div_ceil(GROUP)
    };
    let sums = scratch.sums.take(kept * size);
    if cols == 0 {
        sums.fill(0.0);
    }
    // SAFETY: the caller's promise; kernels never nest.
    let mut tiles = unsafe { T::configure() };
    for first in (0..cols.max(1)).step_by(depth) {
        let chunk = first..(first + depth).min(cols);
        let packed = (&mut scratch.panel, &mut scratch.stage);
        pack(block, problem.format, source, &chunk, packed);
        for (g, start) in block.outputs.clone().step_by(GROUP).enumerate() {
            let rows = start..(start + GROUP).min(block.outputs.end);
            let sums = &mut sums[if kept == 1 { 0 } else { g * size }..][..size];
            let group = Group {
                problem,
                source,
                panels: &block.panels,
                rows: rows.clone(),
                last: block.outputs.end,
                chunk: &chunk,
            };
            // SAFETY: what was packed is there, and the sums have room for the group.
            unsafe { group.multiply(&mut tiles, scratch.panel.all(), &mut scratch.weights, sums) };
            if chunk.end == cols {
                let sums = &mut sums[..problem.weights.len() * panels * rows.len() * PANEL];
                sink.finish(sums, block.panels.clone(), rows);
            }
        }
    }
}

/// Packs all panels of a block, `[panel][whole steps][PANEL]`.
fn pack(
    block: &Block,
    format: Format,
    source: &impl Source,
    chunk: &Range<usize>,
    (packed, stage): (&mut Buffer, &mut Buffer),
) {
    let steps = whole_steps(chunk.len());
    let packed = packed.take(block.panels.len() * steps * PANEL);
    for start in chunk.clone().step_by(format.stretch()) {
        let k = start..(start + format.stretch()).min(chunk.end);
        let staged = source.stage(&block.panels, &k, stage);
        let at = (start - chunk.start) / 2;
        for (p, panel) in block.panels.clone().enumerate() {
            let to = &mut packed[(p * steps + at) * PANEL..][..whole_steps(k.len()) * PANEL];
            let (to, beyond) = to.split_at_mut(format.steps(k.len()) * PANEL);
            let (data, width) = (to, PANEL);
            let from = (&staged, stage.all());
            source.pack(panel, &k, from, Panel { data, width });
            beyond.fill(0.0);
        }
    }
}

/// A group of outputs for the packed part of k.
struct Group<'a, S> {
    problem: &'a Problem<'a>,
    source: &'a S,
    panels: &'a Range<usize>,
    rows: Range<usize>,
    /// The end of the block's outputs.
    last: usize,
    chunk: &'a Range<usize>,
}

impl<S: Source> Group<'_, S> {
    /// Adds the group's products to its sums, `[weight][panel][row][PANEL]`.
    ///
    /// # Safety
    /// The panels must be packed, and the sums have room.
    unsafe fn multiply<T: Tiles>(
        &self,
        tiles: &mut T,
        packed: &[f32],
        room: &mut Buffer,
        sums: &mut [f32],
    ) {
        let (panels, rows) = (self.panels.len(), self.rows.len());
        let steps = whole_steps(self.chunk.len());
        for (w, weight) in self.problem.weights.iter().enumerate() {
            let run = run_numbers(self.chunk.len());
            for start in self.chunk.clone().step_by(run) {
                let k = start..(start + run).min(self.chunk.end);
                let operand = whole_tiles(self.problem, weight, &self.rows, &k, room);
                let ahead = self.ahead(w, &k);
                let at = (start - self.chunk.start) / 2;
                for (p, panel) in self.panels.clone().enumerate() {
                    let used = self.source.lanes(panel);
                    let product = Product {
                        panel: packed[(p * steps + at) * PANEL..].as_ptr(),
                        width: PANEL,
                        lanes: used.next_multiple_of(16),
                        used,
                        steps: whole_steps(k.len()),
                        weights: operand,
                        outputs: rows,
                        sums: sums[(w * panels + p) * rows * PANEL..].as_mut_ptr(),
                        add: start > 0,
                    };
                    // SAFETY: a panel has its steps, the operand its rows made whole tiles, the
                    // sums a line for each row.
                    unsafe { product_on(tiles, &product, ahead.part(p, panels)) };
                }
            }
        }
    }

    /// The weights that come after weight `w`'s for `k`, where they lie.
    fn ahead(&self, w: usize, k: &Range<usize>) -> Ahead {
        let of = |w: usize, rows: Range<usize>, start: usize| {
            let weight = self.problem.weights[w];
            let size = weight.stored.size();
            let data = weight.bytes[rows.start * weight.cols * size + start * size..].as_ptr();
            let operand = Operand {
                data,
                row_bytes: weight.cols * size,
                step_bytes: 4,
            };
            Ahead::of(&operand, rows.len())
        };
        if k.end < self.chunk.end {
            return of(w, self.rows.clone(), k.end);
        }
        if w + 1 < self.problem.weights.len() {
            return of(w + 1, self.rows.clone(), self.chunk.start);
        }
        let next = self.rows.end..(self.rows.end + GROUP).min(self.last);
        if next.is_empty() {
            return Ahead::NOTHING;
        }
        of(0, next, self.chunk.start)
    }
}

/// A group's weights for a run of k as whole tiles: where they lie if they are that and a cache
/// takes them well, else copied or converted into `room`, zeros around them.
fn whole_tiles(
    problem: &Problem<'_>,
    weight: &Matrix<'_>,
    rows: &Range<usize>,
    k: &Range<usize>,
    room: &mut Buffer,
) -> Operand {
    let size = weight.stored.size();
    let row_bytes = weight.cols * size;
    let at = |row: usize| &weight.bytes[row * row_bytes + k.start * size..][..k.len() * size];
    let plain =
        weight.stored == Stored::Bf16 && weight.scales.is_none() && cfg!(target_endian = "little");
    let data = at(rows.start).as_ptr();
    let whole = rows.len().is_multiple_of(16) && k.len().is_multiple_of(DEEP);
    let cached = (data as usize).is_multiple_of(64)
        && row_bytes.is_multiple_of(64)
        && !row_bytes.is_multiple_of(CROWDED_BYTES);
    if plain && whole && cached {
        let step_bytes = 4;
        return Operand {
            data,
            row_bytes,
            step_bytes,
        };
    }
    let steps = whole_steps(k.len());
    let room = &mut room.take(rows.len().next_multiple_of(16) * steps)
        [..rows.len().next_multiple_of(16) * steps];
    for (row, to) in rows.clone().zip(room.chunks_exact_mut(steps)) {
        to[k.len() / 2..].fill(0.0);
        if let Some(scales) = &weight.scales {
            // SAFETY: `to` has room for the pairs.
            unsafe {
                let how = (problem.isa, problem.format);
                scaled::write_row(how, (weight, scales), (row, k), to.as_mut_ptr());
            }
            continue;
        }
        let from = at(row).as_ptr();
        // SAFETY: the row has `k.len()` numbers and `to` room for their pairs.
        unsafe {
            if plain {
                std::ptr::copy_nonoverlapping(from, to.as_mut_ptr().cast(), k.len() * size);
            } else {
                let to = to.as_mut_ptr().cast();
                to_bf16_pairs(problem.isa, weight.stored, from, to, k.len());
            }
        }
    }
    room[rows.len() * steps..].fill(0.0);
    Operand {
        data: room.as_ptr().cast(),
        row_bytes: steps * 4,
        step_bytes: 4,
    }
}
