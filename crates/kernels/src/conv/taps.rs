//! Convolutions of few channels in bf16, tap by tap.
//!
//! Unrolling a 3 x 3 convolution into panels writes each number of the input nine times, which costs more than the
//! products where outputs are few. Here a band of the input is staged once, as planes of channel pairs, and each tap of
//! the kernel reads the same planes from another place: sixteen pairs of channels are the steps of a product, a step
//! being a plane further. The weights are put in that order once a call.
//!
//! The order of an element's sum is that of groups: 32 channels after each other, of each group the taps. It depends on
//! nothing but channels and kernel, and so does whether a convolution goes this way.

use std::ops::Range;

use super::stage::{MapSource, Panels};
use super::{Conv2d, MapRows};
use crate::gemm::amx::{self, Tiles};
use crate::gemm::taps::TapProduct;
use crate::gemm::tile::Operand;
use crate::gemm::{PANEL, Sink};
use crate::isa::Isa;
use crate::rows::Shared;
use crate::scaled;
use crate::scratch::{self, Buffer, Reserved};
use crate::simd::{LANES, Vector, per_isa};
use crate::stored::{Format, Matrix, to_bf16_pairs};
use crate::threads::{parallel, threads};

/// Channels of a group.
const GROUP: usize = 32;

/// Outputs that are multiplied together: two tiles.
const OUTPUTS: usize = 32;

/// Numbers of the weights of a convolution that goes this way, at most: they stay in a second-level cache, 288 KiB.
const WEIGHTS_MAX: usize = 144 * 1024;

/// Channels of a convolution that goes this way, at least: a group of fewer is mostly zeros.
const CHANNELS_MIN: usize = 16;

/// Rows and columns of a kernel, at most.
const KERNEL_MAX: usize = 7;

/// Pairs that a band stages, at most: 640 KiB.
const STAGED: usize = 160 * 1024;

/// Bands of fewer rows are mostly the rows around them.
const BAND_ROWS_MIN: usize = 4;

/// Products below which a second thread costs more than it brings.
const SERIAL_PRODUCTS: usize = 400_000;

/// Whether a convolution goes this way, whatever its map.
pub(super) fn takes(conv: &Conv2d<'_>, isa: Isa, format: Format) -> bool {
    let taps = conv.kernel * conv.kernel;
    let channels = conv.weight.cols / taps;
    let groups = channels.div_ceil(GROUP);
    // One instruction set less to keep in order of sums: where there are no tiles, panels do as well.
    isa.has_tiles()
        && format == Format::Pairs
        && (2..=KERNEL_MAX).contains(&conv.kernel)
        && conv.stride == 1
        && channels >= CHANNELS_MIN
        && conv.weight.rows.next_multiple_of(LANES) * groups * GROUP * taps <= WEIGHTS_MAX
}

/// A convolution that goes this way.
pub(super) struct Taps<'a> {
    pub(super) isa: Isa,
    pub(super) weight: &'a Matrix<'a>,
    pub(super) kernel: usize,
    pub(super) out_rows: MapRows,
    pub(super) panels: Panels,
    pub(super) width_out: usize,
}

impl Taps<'_> {
    fn channels(&self) -> usize {
        self.weight.cols / (self.kernel * self.kernel)
    }

    fn groups(&self) -> usize {
        self.channels().div_ceil(GROUP)
    }

    /// Steps of the products of an output, in 32-bit pairs.
    fn steps(&self) -> usize {
        self.groups() * self.kernel * self.kernel * GROUP / 2
    }

    /// Computes it.
    pub(super) fn run(&self, source: &MapSource<'_>, sink: &impl Sink) {
        let outputs = self.weight.rows;
        if outputs == 0 || self.out_rows.count == 0 || self.width_out == 0 {
            return;
        }
        let outputs_padded = outputs.next_multiple_of(LANES);
        let mut room = scratch::reserve(outputs_padded * self.steps());
        self.arrange(&mut room);
        let weights = room.all();
        let (strips, strip) = self.panels.strips();
        let lanes = strip.next_multiple_of(LANES);
        let bands = Bands::new(self, lanes, strips);
        let tasks = strips * bands.count;
        let work = |task: usize| {
            let (strip, band) = (task / bands.count, task % bands.count);
            let rows = bands.rows(band, self.out_rows.count);
            scratch::with(|scratch| {
                let plan = Band {
                    taps: self,
                    strip,
                    rows,
                    row: bands.row,
                };
                // SAFETY: `takes` has asked for tiles.
                unsafe { plan.run(source, sink, weights, scratch) };
            });
        };
        let products = self.out_rows.count * self.width_out * outputs * self.weight.cols;
        match products < SERIAL_PRODUCTS {
            true => (0..tasks).for_each(work),
            false => parallel(tasks, work),
        }
    }

    /// The weights in the order of the products, `[output][group][tap][channel]`, zeros where there are no channels and
    /// no outputs.
    fn arrange(&self, room: &mut Reserved) {
        let steps = self.steps();
        let outputs = self.weight.rows.next_multiple_of(LANES);
        let to = Shared(room.all_mut()[..outputs * steps].as_mut_ptr());
        parallel(outputs / LANES, |block| {
            scratch::with(|scratch| {
                let row = scratch.small.take(self.weight.cols.div_ceil(2));
                for output in block * LANES..(block + 1) * LANES {
                    // SAFETY: rows are disjoint, and the room has `steps` pairs for each.
                    let to = unsafe {
                        std::slice::from_raw_parts_mut(
                            to.at(output * steps).cast::<u16>(),
                            2 * steps,
                        )
                    };
                    match output < self.weight.rows {
                        true => self.arrange_row(output, row, to),
                        false => to.fill(0),
                    }
                }
            });
        });
    }

    fn arrange_row(&self, output: usize, row: &mut [f32], to: &mut [u16]) {
        let (cols, taps, channels) = (self.weight.cols, self.kernel * self.kernel, self.channels());
        assert!(row.len() >= cols.div_ceil(2));
        if let Some(scales) = &self.weight.scales {
            let how = (self.isa, Format::Pairs);
            // SAFETY: the row has room for the pairs.
            unsafe {
                scaled::write_row(
                    how,
                    (self.weight, scales),
                    (output, &(0..cols)),
                    row.as_mut_ptr(),
                );
            }
        } else {
            let size = self.weight.stored.size();
            let from = self.weight.bytes[output * cols * size..][..cols * size].as_ptr();
            // SAFETY: the row of weights was just checked, and `row` has room for its pairs.
            unsafe {
                to_bf16_pairs(
                    self.isa,
                    self.weight.stored,
                    from,
                    row.as_mut_ptr().cast(),
                    cols,
                );
            }
        }
        // SAFETY: pairs are two numbers of sixteen bits each, `cols` of them.
        let row = unsafe { std::slice::from_raw_parts(row.as_ptr().cast::<u16>(), cols) };
        for (group, to) in to.chunks_exact_mut(taps * GROUP).enumerate() {
            let first = group * GROUP;
            let here = (channels - first).min(GROUP);
            for (tap, to) in to.chunks_exact_mut(GROUP).enumerate() {
                for (channel, to) in to[..here].iter_mut().enumerate() {
                    *to = row[(first + channel) * taps + tap];
                }
                to[here..].fill(0);
            }
        }
    }
}

/// How the rows of a result are cut.
struct Bands {
    each: usize,
    count: usize,
    /// Pairs from one staged row to the next.
    row: usize,
}

impl Bands {
    fn new(taps: &Taps<'_>, lanes: usize, strips: usize) -> Bands {
        let rows = taps.out_rows.count;
        // What lies beyond the last lanes is read, too.
        let row = (lanes + taps.kernel - 1).next_multiple_of(LANES);
        let planes = taps.groups() * GROUP / 2;
        let most = (STAGED / (planes * row)).saturating_sub(taps.kernel);
        let mut count = rows.div_ceil(most.max(BAND_ROWS_MIN));
        // As many bands as give each thread as many.
        let threads = threads();
        let even = (count * strips).next_multiple_of(threads).div_ceil(strips);
        if rows.div_ceil(even) >= BAND_ROWS_MIN {
            count = even;
        }
        let each = rows.div_ceil(count);
        Bands {
            each,
            count: rows.div_ceil(each),
            row,
        }
    }

    fn rows(&self, band: usize, rows: usize) -> Range<usize> {
        band * self.each..((band + 1) * self.each).min(rows)
    }
}

/// A band of rows of a strip of columns.
struct Band<'a> {
    taps: &'a Taps<'a>,
    strip: usize,
    /// Of the slice of the result.
    rows: Range<usize>,
    /// Pairs from one staged row to the next.
    row: usize,
}

impl Band<'_> {
    /// # Safety
    /// The instruction set must be there.
    unsafe fn run(
        &self,
        source: &MapSource<'_>,
        sink: &impl Sink,
        weights: &[f32],
        scratch: &mut scratch::Scratch,
    ) {
        let taps = self.taps;
        let rows = self.rows.len() + taps.kernel - 1;
        // Planes an odd number of cache lines apart fall on all sets of a cache.
        let lines = rows * self.row / LANES;
        let plane = (lines + usize::from(lines.is_multiple_of(2))) * LANES;
        self.stage(
            source,
            (rows, plane),
            (&mut scratch.panel, &mut scratch.stage),
        );
        let staged = scratch.panel.all();
        let sums = scratch.sums.take(OUTPUTS * PANEL);
        match taps.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => {
                // SAFETY: an `Isa` is only ever one that this processor has.
                unsafe { self.multiply::<amx::Instructions>(staged, plane, weights, sums, sink) }
            }
            // SAFETY: the emulation needs no instruction.
            _ => unsafe { self.multiply::<amx::Emulated>(staged, plane, weights, sums, sink) },
        }
    }

    /// Reads the rows of the input that the band needs, `[pair of channels][row][column]`.
    fn stage(
        &self,
        source: &MapSource<'_>,
        (rows, plane): (usize, usize),
        (staged, lines): (&mut Buffer, &mut Buffer),
    ) {
        let taps = self.taps;
        let (channels, planes) = (taps.channels(), taps.groups() * GROUP / 2);
        let columns = taps.panels.columns(self.strip);
        let width = columns.len() + taps.kernel - 1;
        // A product reads whole tiles, the last of them from the last tap's place.
        let staged = &mut staged.take(planes * plane + LANES)[..planes * plane + LANES];
        let room = self.row;
        let (low, high) = lines.take(2 * room)[..2 * room].split_at_mut(room);
        for (pair, to) in staged.chunks_exact_mut(plane).take(planes).enumerate() {
            let channel = 2 * pair;
            if channel >= channels {
                to.fill(0.0);
                continue;
            }
            for (row, to) in to.chunks_exact_mut(self.row).take(rows).enumerate() {
                let at = (self.rows.start + row, columns.start);
                if channel + 1 < channels
                    && let Some(line) = source.plain_line(channel, at)
                {
                    let Some((line, left)) = line else {
                        to.fill(0.0);
                        continue;
                    };
                    let (other, _) = source
                        .plain_line(channel + 1, at)
                        .flatten()
                        .expect("the channel beside has the same rows");
                    join_row(taps.isa, (line, other), left, &mut to[..width]);
                    continue;
                }
                let low_there = source.line(channel, at, &mut low[..width]);
                let high_there =
                    channel + 1 < channels && source.line(channel + 1, at, &mut high[..width]);
                if !low_there && !high_there {
                    to.fill(0.0);
                    continue;
                }
                if channel + 1 >= channels {
                    high[..width].fill(0.0);
                }
                // SAFETY: all three have room for the row's whole vectors.
                unsafe { join(taps.isa, low.as_ptr(), high.as_ptr(), to.as_mut_ptr(), room) };
            }
        }
    }

    /// # Safety
    /// `T`'s instructions must be there.
    unsafe fn multiply<T: Tiles>(
        &self,
        staged: &[f32],
        plane: usize,
        weights: &[f32],
        sums: &mut [f32],
        sink: &impl Sink,
    ) {
        let taps = self.taps;
        let (outputs, steps) = (taps.weight.rows, taps.steps());
        let padded = outputs.next_multiple_of(LANES);
        let mut places = [0; KERNEL_MAX * KERNEL_MAX];
        let places = &mut places[..taps.kernel * taps.kernel];
        for (tap, place) in places.iter_mut().enumerate() {
            *place = tap / taps.kernel * self.row + tap % taps.kernel;
        }
        let lanes = taps
            .panels
            .columns(self.strip)
            .len()
            .next_multiple_of(LANES);
        let last = (self.rows.len() - 1) * self.row + places[places.len() - 1];
        let planes = taps.groups() * GROUP / 2;
        assert!((planes - 1) * plane + last + lanes <= staged.len());
        assert!(padded * steps <= weights.len());
        // SAFETY: the caller's promise; kernels never nest.
        let mut tiles = unsafe { T::configure() };
        for first in (0..outputs).step_by(OUTPUTS) {
            let end = (first + OUTPUTS).min(outputs);
            for row in 0..self.rows.len() {
                let product = TapProduct {
                    planes: staged[row * self.row..].as_ptr(),
                    plane,
                    places,
                    groups: taps.groups(),
                    lanes,
                    weights: Operand {
                        data: weights[first * steps..].as_ptr().cast(),
                        row_bytes: steps * 4,
                        step_bytes: 4,
                    },
                    outputs: (padded - first).min(OUTPUTS),
                    sums: sums.as_mut_ptr(),
                };
                // SAFETY: planes, weights and sums were just checked.
                unsafe { product.run(&mut tiles) };
                let panel = self.strip * taps.out_rows.count + self.rows.start + row;
                let sums = &mut sums[..(end - first) * PANEL];
                sink.finish(sums, panel..panel + 1, first..end);
            }
        }
    }
}

/// Pairs of two rows of a map from column `left` on, zeros where there are none.
fn join_row(isa: Isa, (low, high): (&[f32], &[f32]), left: isize, to: &mut [f32]) {
    let start = ((-left).max(0) as usize).min(to.len());
    let inside = (low.len() as isize - left).max(0) as usize;
    let end = inside.clamp(start, to.len());
    to[..start].fill(0.0);
    to[end..].fill(0.0);
    let first = (left + start as isize) as usize;
    let (low, high) = (&low[first..][..end - start], &high[first..][..end - start]);
    let to = to[start..end].as_mut_ptr();
    // SAFETY: all three are as long.
    unsafe { join(isa, low.as_ptr(), high.as_ptr(), to, low.len()) };
}

#[inline(always)]
unsafe fn join_generic<V: Vector>(low: *const f32, high: *const f32, to: *mut f32, count: usize) {
    // SAFETY: the caller promises `count` numbers of all three.
    unsafe {
        let whole = count / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            V::load(low.add(i)).store_bf16_pairs(V::load(high.add(i)), to.add(i).cast());
        }
        let rest = count - whole;
        if rest > 0 {
            let mut pairs = [0u32; LANES];
            let high = V::load_part(high.add(whole), rest);
            V::load_part(low.add(whole), rest).store_bf16_pairs(high, pairs.as_mut_ptr());
            std::ptr::copy_nonoverlapping(pairs.as_ptr(), to.add(whole).cast(), rest);
        }
    }
}

per_isa! {
    /// Pairs of two rows, rounded to bf16.
    ///
    /// # Safety
    /// All three must be good for `count` numbers.
    fn join(low: *const f32, high: *const f32, to: *mut f32, count: usize) = join_generic;
}
