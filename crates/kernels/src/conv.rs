//! Convolution of feature maps, whole or by horizontal slices.
//!
//! A convolution is a product whose lanes are pixels of the result and whose k runs over
//! `[channel][ky][kx]`. No unrolled image is ever made: each block reads the few input rows and
//! channels it needs into a stage (where normalisation and activation are applied once), and
//! packs panels from there. With AMX in bf16, convolutions of few channels read the stage itself, once
//! for each tap of the kernel ([`taps`]).

mod stage;
mod taps;

use crate::gemm::{self, PANEL, Problem, Sink};
use crate::isa::{Isa, isa};
use crate::math::{self, Activation};
use crate::rows::Shared;
use crate::simd::{LANES, Vector, per_isa};
use crate::stored::{Format, Matrix, Precision};
pub(crate) use stage::affine_in_place;
use stage::{MapSource, Panels};
use std::ops::Range;
use taps::Taps;

/// A horizontal slice of a feature map, laid out `[channels, count, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRows {
    /// Rows of the whole map.
    pub total: usize,
    /// First row of the slice.
    pub first: usize,
    /// Rows of the slice.
    pub count: usize,
}

impl MapRows {
    /// The whole map.
    pub fn whole(rows: usize) -> Self {
        Self {
            total: rows,
            first: 0,
            count: rows,
        }
    }

    /// Panics unless the slice lies in its map.
    pub fn check(&self, what: &str) {
        assert!(
            self.first + self.count <= self.total,
            "{what} rows {}..{} of a map of {} rows",
            self.first,
            self.first + self.count,
            self.total
        );
    }
}

/// `x -> act(x * scale[c] + shift[c])`: a group norm already reduced to channels.
#[derive(Clone, Copy, Debug)]
pub struct ChannelAffine<'a> {
    /// A factor for each channel.
    pub scale: &'a [f32],
    /// What is added for each channel.
    pub shift: &'a [f32],
    /// Applied last.
    pub act: Activation,
}

/// Zeros around a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Columns before.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns after.
    pub right: usize,
}

impl Padding {
    /// The same on all sides.
    pub fn all(padding: usize) -> Self {
        Self {
            top: padding,
            left: padding,
            bottom: padding,
            right: padding,
        }
    }
}

/// A convolution and what is fused into it.
#[derive(Clone, Copy, Debug)]
pub struct Conv2d<'a> {
    /// `[cout, cin * kernel * kernel]`, as a checkpoint stores `[cout, cin, ky, kx]`.
    pub weight: Matrix<'a>,
    /// `[cout]`.
    pub bias: Option<&'a [f32]>,
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Input rows and columns from one output to the next.
    pub stride: usize,
    /// Zeros on all sides.
    pub padding: usize,
    /// Whether the input is doubled by nearest neighbour first.
    pub upsample: bool,
    /// Applied to the input's numbers as they are read, not to the zeros around them.
    pub input: Option<ChannelAffine<'a>>,
}

impl Conv2d<'_> {
    fn channels_in(&self) -> usize {
        let taps = self.kernel * self.kernel;
        assert!(
            self.stride > 0 && taps > 0 && self.weight.cols.is_multiple_of(taps),
            "a convolution of {} columns with a kernel of {} and a stride of {}",
            self.weight.cols,
            self.kernel,
            self.stride
        );
        self.weight.cols / taps
    }

    /// Rows (or columns) of the result for `size` of the input, `around` zeros added in all.
    fn size_out(&self, size: usize, around: usize) -> usize {
        let padded = (size << usize::from(self.upsample)) + around;
        assert!(
            padded >= self.kernel,
            "a kernel of {} on {padded} rows or columns, padding included",
            self.kernel
        );
        (padded - self.kernel) / self.stride + 1
    }
}

/// What becomes of each result, its bias added, before anything else is added to it.
#[derive(Clone, Copy, Debug, Default)]
pub enum Finish<'a> {
    /// Nothing.
    #[default]
    Plain,
    /// It is multiplied by this.
    Scaled(f32),
    /// It is multiplied by this where it is negative: a leaky ReLU, or a ReLU with 0.
    Leaky(f32),
    /// The same with a number for each channel: PReLU.
    Slopes(&'a [f32]),
    /// It is multiplied by its sigmoid.
    Silu,
    /// A norm reduced to channels, and an activation.
    Affine(ChannelAffine<'a>),
}

/// What becomes of the results of one channel.
#[derive(Clone, Copy)]
enum Last {
    /// Factors of positive numbers and of negative ones.
    Factors(f32, f32),
    /// An activation of what is multiplied and shifted.
    Activated(f32, f32, Activation),
}

impl Finish<'_> {
    fn of(&self, channel: usize) -> Last {
        match *self {
            Finish::Plain => Last::Factors(1.0, 1.0),
            Finish::Scaled(factor) => Last::Factors(factor, factor),
            Finish::Leaky(slope) => Last::Factors(1.0, slope),
            Finish::Slopes(slopes) => Last::Factors(1.0, slopes[channel]),
            Finish::Silu => Last::Activated(1.0, 0.0, Activation::Silu),
            Finish::Affine(ChannelAffine { scale, shift, act }) => {
                Last::Activated(scale[channel], shift[channel], act)
            }
        }
    }

    /// Panics unless there are numbers for as many channels.
    fn check(&self, channels: usize) {
        let fits = match self {
            Finish::Slopes(slopes) => slopes.len() == channels,
            Finish::Affine(affine) => {
                (affine.scale.len(), affine.shift.len()) == (channels, channels)
            }
            Finish::Plain | Finish::Scaled(_) | Finish::Leaky(_) | Finish::Silu => true,
        };
        assert!(
            fits,
            "what finishes results is for another number than {channels} channels"
        );
    }
}

/// Numbers a block may stage, without the rows and columns around it: 384 KiB.
const STAGE_NUMBERS: usize = 96 * 1024;

/// What is added to the result.
#[derive(Clone, Copy)]
enum Residual {
    Nothing,
    Other(Shared<f32>),
    Out,
}

/// Computes rows `out_rows` of a convolution's result from rows `x_rows` of its input.
///
/// Input rows outside the map are zeros. The bits do not depend on how a map is sliced.
///
/// # Shapes
/// `x` `[cin, x_rows.count, width]`; `out` and `add` `[cout, out_rows.count, width_out]`.
///
/// # Panics
/// When shapes do not fit, or input rows that are needed are not in the slice.
#[allow(clippy::too_many_arguments)] // One name for each thing; a struct would only rename them.
pub fn conv2d(
    conv: &Conv2d<'_>,
    x: &[f32],
    x_rows: MapRows,
    width: usize,
    precision: Precision,
    add: Option<&[f32]>,
    out: &mut [f32],
    out_rows: MapRows,
) {
    let padding = Padding::all(conv.padding);
    conv2d_padded(
        conv, padding, x, x_rows, width, precision, add, out, out_rows,
    );
}

/// [`conv2d`] with zeros that differ by side; `conv.padding` is not looked at.
///
/// # Panics
/// As [`conv2d`].
#[allow(clippy::too_many_arguments)]
pub fn conv2d_padded(
    conv: &Conv2d<'_>,
    padding: Padding,
    x: &[f32],
    x_rows: MapRows,
    width: usize,
    precision: Precision,
    add: Option<&[f32]>,
    out: &mut [f32],
    out_rows: MapRows,
) {
    let residual = match add {
        None => Residual::Nothing,
        Some(add) => {
            assert_eq!(add.len(), out.len(), "what is added has another shape");
            // Only ever read.
            Residual::Other(Shared(add.as_ptr().cast_mut()))
        }
    };
    let finish = Finish::Plain;
    convolve(
        conv, padding, finish, x, x_rows, width, precision, residual, out, out_rows,
    );
}

/// `finish(conv(x)) + add`, otherwise as [`conv2d`].
///
/// # Panics
/// As [`conv2d`], and where there are slopes or factors for another number of channels.
#[allow(clippy::too_many_arguments)]
pub fn conv2d_finished(
    conv: &Conv2d<'_>,
    finish: Finish<'_>,
    x: &[f32],
    x_rows: MapRows,
    width: usize,
    precision: Precision,
    add: Option<&[f32]>,
    out: &mut [f32],
    out_rows: MapRows,
) {
    finish.check(conv.weight.rows);
    let residual = match add {
        None => Residual::Nothing,
        Some(add) => {
            assert_eq!(add.len(), out.len(), "what is added has another shape");
            // Only ever read.
            Residual::Other(Shared(add.as_ptr().cast_mut()))
        }
    };
    let padding = Padding::all(conv.padding);
    convolve(
        conv, padding, finish, x, x_rows, width, precision, residual, out, out_rows,
    );
}

/// `out += conv(x)`, otherwise as [`conv2d`].
///
/// # Panics
/// As [`conv2d`].
pub fn conv2d_in_place_add(
    conv: &Conv2d<'_>,
    x: &[f32],
    x_rows: MapRows,
    width: usize,
    precision: Precision,
    out: &mut [f32],
    out_rows: MapRows,
) {
    let padding = Padding::all(conv.padding);
    let residual = Residual::Out;
    let finish = Finish::Plain;
    convolve(
        conv, padding, finish, x, x_rows, width, precision, residual, out, out_rows,
    );
}

/// Columns of the result.
///
/// # Panics
/// When shapes do not fit.
fn fits(
    conv: &Conv2d<'_>,
    padding: Padding,
    (x, x_rows, width): (&[f32], MapRows, usize),
    (out, out_rows): (&[f32], MapRows),
) -> usize {
    x_rows.check("input");
    out_rows.check("output");
    let channels = conv.channels_in();
    let width_out = conv.size_out(width, padding.left + padding.right);
    let total_out = conv.size_out(x_rows.total, padding.top + padding.bottom);
    assert_eq!(
        out_rows.total, total_out,
        "a map of {} rows gives {total_out}",
        x_rows.total
    );
    let plane = out_rows.count * width_out;
    assert_eq!(
        (x.len(), out.len()),
        (channels * x_rows.count * width, conv.weight.rows * plane),
        "input [{channels}, {}, {width}] to output [{}, {}, {width_out}]",
        x_rows.count,
        conv.weight.rows,
        out_rows.count
    );
    assert!(
        conv.bias.is_none_or(|bias| bias.len() == conv.weight.rows),
        "a bias of another length than {} channels",
        conv.weight.rows
    );
    if let Some(affine) = &conv.input {
        assert!(
            affine.scale.len() == channels && affine.shift.len() == channels,
            "scale and shift of another length than {channels} channels"
        );
    }
    width_out
}

#[allow(clippy::too_many_arguments)]
fn convolve(
    conv: &Conv2d<'_>,
    padding: Padding,
    finish: Finish<'_>,
    x: &[f32],
    x_rows: MapRows,
    width: usize,
    precision: Precision,
    residual: Residual,
    out: &mut [f32],
    out_rows: MapRows,
) {
    let width_out = fits(conv, padding, (x, x_rows, width), (out, out_rows));
    let plane = out_rows.count * width_out;
    let isa = isa();
    let format = Format::of(precision, isa);
    let source = MapSource::new(conv, padding, (x, x_rows, width), (out_rows, width_out));
    let by_taps = taps::takes(conv, isa, format);
    let panels = match by_taps {
        true => Panels::of_rows(out_rows.count, width_out),
        false => Panels::new(out_rows.count, width_out),
    };
    let sink = PlaneSink {
        isa,
        panels,
        bias: conv.bias,
        finish,
        residual,
        out: Shared(out.as_mut_ptr()),
        plane,
    };
    if by_taps {
        conv.weight.check();
        let taps = Taps {
            isa,
            weight: &conv.weight,
            kernel: conv.kernel,
            out_rows,
            panels,
            width_out,
        };
        return taps.run(&source, &sink);
    }
    let channels_staged = format.stretch().div_ceil(conv.kernel.pow(2)) + 1;
    let problem = Problem {
        isa,
        format,
        weights: &[&conv.weight],
        lanes: plane,
        panels: panels.count(),
        run: panels.run(),
        most: (STAGE_NUMBERS / (channels_staged * conv.stride.pow(2) * PANEL)).max(1),
    };
    gemm::run(&problem, &source.with_format(isa, format), &sink);
}

/// Stores lanes along the pixels of channels.
struct PlaneSink<'a> {
    isa: Isa,
    panels: Panels,
    bias: Option<&'a [f32]>,
    finish: Finish<'a>,
    residual: Residual,
    out: Shared<f32>,
    /// Pixels of a channel of the slice.
    plane: usize,
}

impl Sink for PlaneSink<'_> {
    fn finish(&self, sums: &mut [f32], panels: Range<usize>, n: Range<usize>) {
        for (p, panel) in panels.enumerate() {
            let pixels = self.panels.pixels(panel);
            let out = self.out.at(pixels.start);
            let store = Store {
                sums: sums[p * n.len() * PANEL..][..n.len() * PANEL].as_ptr(),
                bias: self.bias,
                finish: self.finish,
                residual: match self.residual {
                    Residual::Nothing => None,
                    Residual::Other(add) => Some(add.at(pixels.start).cast_const()),
                    Residual::Out => Some(out.cast_const()),
                },
                out,
                plane: self.plane,
                channels: n.clone(),
                pixels: pixels.len(),
            };
            // SAFETY: blocks are disjoint, and output and residual were checked to have all channels and pixels.
            unsafe { store_channels(self.isa, &store) };
        }
    }
}

/// Sums of a panel on their way to the planes of channels.
struct Store<'a> {
    /// `[channel][PANEL]`.
    sums: *const f32,
    bias: Option<&'a [f32]>,
    finish: Finish<'a>,
    /// The panel's pixels of channel 0 of what is added.
    residual: Option<*const f32>,
    /// Of the result.
    out: *mut f32,
    plane: usize,
    channels: Range<usize>,
    pixels: usize,
}

#[inline(always)]
unsafe fn store_channels_generic<V: Vector>(store: &Store<'_>) {
    for (i, channel) in store.channels.clone().enumerate() {
        let sums = store.sums.wrapping_add(i * PANEL);
        let at = channel * store.plane;
        let to = (
            store.residual.map(|residual| residual.wrapping_add(at)),
            store.out.wrapping_add(at),
        );
        let bias = store.bias.map_or(0.0, |bias| bias[channel]);
        // SAFETY: the caller promises sums, residual and output.
        unsafe {
            let bias = V::splat(bias);
            match store.finish.of(channel) {
                Last::Factors(positive, negative) => {
                    let finished = Factors {
                        zero: V::splat(0.0),
                        bias,
                        positive: V::splat(positive),
                        negative: V::splat(negative),
                    };
                    store_pixels(sums, store.pixels, &finished, to);
                }
                Last::Activated(scale, shift, act) => {
                    let finished = Activated {
                        bias,
                        scale: V::splat(scale),
                        shift: V::splat(shift),
                        act,
                    };
                    store_pixels(sums, store.pixels, &finished, to);
                }
            }
        }
    }
}

/// What becomes of sixteen sums. No closure: those are not always compiled for the instruction set of who calls them.
trait Finished<V> {
    fn finish(&self, v: V) -> V;
}

struct Factors<V> {
    zero: V,
    bias: V,
    positive: V,
    negative: V,
}

impl<V: Vector> Finished<V> for Factors<V> {
    #[inline(always)]
    fn finish(&self, v: V) -> V {
        let v = v.add(self.bias);
        // Multiplying by one changes nothing, not even a NaN.
        v.where_below(self.zero, v.mul(self.negative), v.mul(self.positive))
    }
}

struct Activated<V> {
    bias: V,
    scale: V,
    shift: V,
    act: Activation,
}

impl<V: Vector> Finished<V> for Activated<V> {
    #[inline(always)]
    fn finish(&self, v: V) -> V {
        math::activate(self.act, v.add(self.bias).fma(self.scale, self.shift))
    }
}

/// The pixels of one channel.
#[inline(always)]
unsafe fn store_pixels<V: Vector>(
    sums: *const f32,
    pixels: usize,
    finished: &impl Finished<V>,
    (residual, out): (Option<*const f32>, *mut f32),
) {
    // SAFETY: the caller promises so many numbers of sums, residual and output.
    unsafe {
        let whole = pixels / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            let mut v = finished.finish(V::load(sums.add(i)));
            if let Some(residual) = residual {
                v = v.add(V::load(residual.add(i)));
            }
            v.store(out.add(i));
        }
        let rest = pixels - whole;
        if rest > 0 {
            let mut v = finished.finish(V::load_part(sums.add(whole), rest));
            if let Some(residual) = residual {
                v = v.add(V::load_part(residual.add(whole), rest));
            }
            v.store_part(out.add(whole), rest);
        }
    }
}

per_isa! {
    /// Stores sums with a bias, finished, and what else is added.
    ///
    /// # Safety
    /// Sums, residual and output must be good for the channels and pixels.
    fn store_channels(store: &Store<'_>) = store_channels_generic;
}
