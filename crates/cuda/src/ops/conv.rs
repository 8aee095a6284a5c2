//! Convolution of feature maps, whole or by horizontal slices.

use super::operands::{At, Conv2d, Finish, FinishIn, Memory};
use crate::error::Error;
use crate::memory::{Span, SpanMut};
use lowtide_kernels::{MapRows, Padding, Precision};

/// What is added to a convolution's result.
#[derive(Clone, Copy, Debug)]
pub enum Residual<M> {
    /// Nothing.
    Nothing,
    /// Another map of its shape.
    Other(M),
    /// What is there already.
    Out,
}

/// Computes rows `out_rows` of a convolution's result from rows `x_rows` of its input; as [`lowtide_kernels::conv2d`], with
/// zeros by side, what becomes of results, and what they are added to. `conv.padding` is not looked at.
///
/// # Shapes
/// `x` `[cin, x_rows.count, width]`; `out` and what is added `[cout, out_rows.count, width_out]`.
///
/// # Panics
/// When shapes do not fit, or input rows that are needed are not in the slice.
pub fn convolve(
    conv: &Conv2d<'_>,
    padding: Padding,
    finish: Finish<'_>,
    (x, x_rows, width): (Span<'_>, MapRows, usize),
    precision: Precision,
    residual: Residual<Span<'_>>,
    (out, out_rows): (SpanMut<'_>, MapRows),
) -> Result<(), Error> {
    let launch = launches::convolve(
        conv,
        padding,
        &finish,
        (&x, x_rows, width),
        precision,
        &residual,
        (&out, out_rows),
    );
    // SAFETY: the description is of this operation, from spans whose lengths it checked.
    unsafe { launch.run(out.gpu()) }
}

/// What becomes of a sum in kernels/conv.cu.
struct Last {
    code: usize,
    act: lowtide_kernels::Activation,
    positive: f32,
    negative: f32,
    scale: Option<At>,
    shift: Option<At>,
}

impl Last {
    fn of<M: Memory>(finish: &FinishIn<M>, channels: usize) -> Last {
        let factors = |positive, negative| Last {
            code: 0,
            act: lowtide_kernels::Activation::None,
            positive,
            negative,
            scale: None,
            shift: None,
        };
        match finish {
            FinishIn::Plain => factors(1.0, 1.0),
            FinishIn::Scaled(factor) => factors(*factor, *factor),
            FinishIn::Leaky(slope) => factors(1.0, *slope),
            FinishIn::Slopes(slopes) => Last {
                code: 1,
                scale: Some(super::operands::numbers("slopes", slopes, channels)),
                ..factors(1.0, 1.0)
            },
            FinishIn::Silu => Last {
                code: 2,
                act: lowtide_kernels::Activation::Silu,
                ..factors(1.0, 1.0)
            },
            FinishIn::Affine(affine) => {
                let affine = affine.at(channels);
                Last {
                    code: 2,
                    act: affine.act,
                    scale: Some(affine.scale),
                    shift: Some(affine.shift),
                    ..factors(1.0, 1.0)
                }
            }
        }
    }
}

/// What runs.
pub mod launches {
    use super::{Last, Residual};
    use crate::ops::launch::{Launch, THREADS, is_as_multiplied};
    use crate::ops::linear::launches::is_narrow;
    use crate::ops::operands::{At, Conv2dIn, FinishIn, Memory, numbers, numbers_if};
    use lowtide_kernels::{Activation, MapRows, Padding, Precision};

    /// Pixels of a tile, and its channels at most.
    const TILE_PIXELS: usize = 128;
    const TILE_CHANNELS: usize = 128;

    /// Rows (or columns) of the result for `size` of the input, `around` zeros added in all.
    fn size_out<M>(conv: &Conv2dIn<M>, size: usize, around: usize) -> usize {
        let padded = (size << usize::from(conv.upsample)) + around;
        assert!(
            padded >= conv.kernel,
            "a kernel of {} on {padded} rows or columns, padding included",
            conv.kernel
        );
        (padded - conv.kernel) / conv.stride + 1
    }

    /// Panics unless the slice has the input rows that results need.
    fn check_needed<M>(conv: &Conv2dIn<M>, top: usize, x_rows: MapRows, out_rows: MapRows) {
        if out_rows.count == 0 {
            return;
        }
        let up = usize::from(conv.upsample);
        let last = out_rows.first + out_rows.count - 1;
        let first = (out_rows.first * conv.stride).saturating_sub(top) >> up;
        let end = (last * conv.stride + conv.kernel).saturating_sub(top);
        let end = end.div_ceil(1 << up).min(x_rows.total);
        assert!(
            first >= end || (x_rows.first <= first && end <= x_rows.first + x_rows.count),
            "rows {first}..{end} of the input are needed, rows {}..{} are there",
            x_rows.first,
            x_rows.first + x_rows.count
        );
    }

    /// Channels of the input and columns of the result.
    fn fits<M: Memory>(
        conv: &Conv2dIn<M>,
        padding: Padding,
        (x, x_rows, width): (At, MapRows, usize),
        (out, out_rows): (At, MapRows),
    ) -> (usize, usize) {
        x_rows.check("input");
        out_rows.check("output");
        let taps = conv.kernel * conv.kernel;
        assert!(
            conv.stride > 0 && taps > 0 && conv.weight.cols.is_multiple_of(taps),
            "a convolution of {} columns with a kernel of {} and a stride of {}",
            conv.weight.cols,
            conv.kernel,
            conv.stride
        );
        let channels = conv.weight.cols / taps;
        let width_out = size_out(conv, width, padding.left + padding.right);
        let total_out = size_out(conv, x_rows.total, padding.top + padding.bottom);
        assert_eq!(
            out_rows.total, total_out,
            "a map of {} rows gives {total_out}",
            x_rows.total
        );
        let plane = out_rows.count * width_out;
        assert_eq!(
            (x.f32s(), out.f32s()),
            (channels * x_rows.count * width, conv.weight.rows * plane),
            "input [{channels}, {}, {width}] to output [{}, {}, {width_out}]",
            x_rows.count,
            conv.weight.rows,
            out_rows.count
        );
        check_needed(conv, padding.top, x_rows, out_rows);
        (channels, width_out)
    }

    fn kernel(precision: Precision, copied: bool, narrow: bool) -> &'static str {
        macro_rules! kernels_of {
            ($of:literal) => {
                [concat!("conv_", $of), concat!("conv_", $of, "_narrow")]
            };
        }
        let kernels = match (precision, copied) {
            (Precision::Bf16, true) => kernels_of!("bf16_copied"),
            (Precision::Bf16, false) => kernels_of!("bf16_widened"),
            (Precision::F16, true) => kernels_of!("f16_copied"),
            (Precision::F16, false) => kernels_of!("f16_widened"),
            (Precision::Tf32, _) => kernels_of!("tf32_widened"),
            (Precision::F32, _) => kernels_of!("f32_widened"),
        };
        kernels[usize::from(narrow)]
    }

    /// As the operation of that name.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn convolve<M: Memory>(
        conv: &Conv2dIn<M>,
        padding: Padding,
        finish: &FinishIn<M>,
        (x, x_rows, width): (&impl Memory, MapRows, usize),
        precision: Precision,
        residual: &Residual<M>,
        (out, out_rows): (&impl Memory, MapRows),
    ) -> Launch {
        let (x, out, weight) = (x.at(), out.at(), conv.weight.at());
        let (channels, width_out) = fits(conv, padding, (x, x_rows, width), (out, out_rows));
        let last = Last::of(finish, weight.rows);
        let input = conv.input.as_ref().map(|input| input.at(channels));
        let add = match residual {
            Residual::Nothing => None,
            Residual::Other(add) => Some(numbers("what is added", add, out.f32s())),
            Residual::Out => Some(out),
        };
        let plane = out_rows.count * width_out;
        assert!(
            x_rows.count * width <= i32::MAX as usize,
            "channels of {} x {width}: more than 2^31 - 1 numbers, take strips",
            x_rows.count
        );
        let narrow = is_narrow(weight.rows, TILE_CHANNELS);
        let across = TILE_CHANNELS >> usize::from(narrow);
        let tiles = plane.div_ceil(TILE_PIXELS) * weight.rows.div_ceil(across);
        let kernel = kernel(precision, is_as_multiplied(&weight, precision), narrow);
        Launch::new(kernel, [tiles, 1, 1], THREADS)
            .at(x)
            .int(x_rows.first)
            .int(x_rows.count)
            .int(x_rows.total)
            .int(width)
            .int(conv.kernel)
            .int(conv.stride)
            .int(padding.top)
            .int(padding.left)
            .int(usize::from(conv.upsample))
            .at_if(input.map(|input| input.scale))
            .at_if(input.map(|input| input.shift))
            .act(input.map_or(Activation::None, |input| input.act))
            .matrix(&weight)
            .int(weight.cols)
            .at_if(numbers_if("a bias", conv.bias.as_ref(), weight.rows))
            .int(last.code)
            .act(last.act)
            .float(last.positive)
            .float(last.negative)
            .at_if(last.scale)
            .at_if(last.shift)
            .at_if(add)
            .at(out)
            .int(out_rows.first)
            .int(width_out)
            .long(plane)
            .int(weight.rows)
    }
}
