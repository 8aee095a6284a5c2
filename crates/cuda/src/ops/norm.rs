//! Norms of rows and heads, and softmax.

use super::operands::{Rows, RowsMut};
use crate::error::Error;
use crate::memory::Span;
use lowtide_kernels::Rotary;

/// `out = x / rms(x) * weight * scale`, row by row; as [`lowtide_kernels::rms_norm`].
///
/// # Panics
/// When the shapes do not fit, as for all operations.
pub fn rms_norm(
    x: Rows<'_>,
    weight: Option<Span<'_>>,
    eps: f32,
    scale: Option<Span<'_>>,
    out: RowsMut<'_>,
) -> Result<(), Error> {
    let launch = launches::rms_norm(&x, weight.as_ref(), eps, scale.as_ref(), &out);
    // SAFETY: the description is of this operation, from spans whose lengths it checked.
    unsafe { launch.run(x.data.gpu()) }
}

/// `x += gate * (y / rms(y) * weight)`, row by row; as [`lowtide_kernels::rms_norm_add`].
pub fn rms_norm_add(
    y: Rows<'_>,
    weight: Span<'_>,
    eps: f32,
    gate: Option<Span<'_>>,
    x: RowsMut<'_>,
) -> Result<(), Error> {
    let launch = launches::rms_norm_add(&y, &weight, eps, gate.as_ref(), &x);
    // SAFETY: as in `rms_norm`.
    unsafe { launch.run(y.data.gpu()) }
}

/// `out = (x - mean) / sqrt(variance + eps) * weight * scale + bias`; as [`lowtide_kernels::layer_norm`].
pub fn layer_norm(
    x: Rows<'_>,
    weight: Option<Span<'_>>,
    bias: Option<Span<'_>>,
    eps: f32,
    scale: Option<Span<'_>>,
    out: RowsMut<'_>,
) -> Result<(), Error> {
    let vectors = [weight.as_ref(), bias.as_ref(), scale.as_ref()];
    let launch = launches::layer_norm(&x, vectors, eps, &out);
    // SAFETY: as in `rms_norm`.
    unsafe { launch.run(x.data.gpu()) }
}

/// Softmax of each row, in place; as [`lowtide_kernels::softmax_rows`].
pub fn softmax_rows(x: RowsMut<'_>) -> Result<(), Error> {
    let launch = launches::softmax_rows(&x);
    // SAFETY: as in `rms_norm`.
    unsafe { launch.run(x.data.gpu()) }
}

/// In place on each head: an RMS norm, then a rotary embedding; as [`lowtide_kernels::head_norm_rotary`].
pub fn head_norm_rotary(
    x: RowsMut<'_>,
    head_dim: usize,
    weight: Option<(Span<'_>, f32)>,
    rotary: Option<(Rotary, Span<'_>, Span<'_>)>,
) -> Result<(), Error> {
    let weight = weight.as_ref().map(|(weight, eps)| (weight, *eps));
    let rotary = rotary.as_ref().map(|(kind, cos, sin)| (*kind, cos, sin));
    let launch = launches::head_norm_rotary(&x, head_dim, weight, rotary);
    // SAFETY: as in `rms_norm`.
    unsafe { launch.run(x.data.gpu()) }
}

/// What runs.
pub mod launches {
    use crate::ops::launch::{Launch, THREADS};
    use crate::ops::operands::{Memory, RowsIn, numbers, numbers_if};
    use lowtide_kernels::Rotary;

    fn same_shape<A: Memory, B: Memory>(a: &RowsIn<A>, b: &RowsIn<B>) {
        assert_eq!(
            (a.rows, a.cols),
            (b.rows, b.cols),
            "input and output differ in shape [rows, cols]"
        );
    }

    fn rms(
        x: &RowsIn<impl Memory>,
        weight: Option<&impl Memory>,
        eps: f32,
        scale: Option<&impl Memory>,
        add: bool,
        out: &RowsIn<impl Memory>,
    ) -> Launch {
        same_shape(x, out);
        let (x, out) = (x.at(), out.at());
        Launch::new("rms_rows", [x.rows, 1, 1], THREADS)
            .at(x.data)
            .long(x.stride)
            .int(x.cols)
            .at_if(numbers_if("a weight", weight, x.cols))
            .float(eps)
            .at_if(numbers_if("a scale", scale, x.cols))
            .int(usize::from(add))
            .at(out.data)
            .long(out.stride)
    }

    /// As the operation of that name.
    pub fn rms_norm<M: Memory>(
        x: &RowsIn<M>,
        weight: Option<&M>,
        eps: f32,
        scale: Option<&M>,
        out: &RowsIn<impl Memory>,
    ) -> Launch {
        rms(x, weight, eps, scale, false, out)
    }

    /// As the operation of that name.
    pub fn rms_norm_add<M: Memory>(
        y: &RowsIn<M>,
        weight: &M,
        eps: f32,
        gate: Option<&M>,
        x: &RowsIn<impl Memory>,
    ) -> Launch {
        rms(y, Some(weight), eps, gate, true, x)
    }

    /// As the operation of that name, with weight, bias and scale.
    pub fn layer_norm<M: Memory>(
        x: &RowsIn<M>,
        [weight, bias, scale]: [Option<&M>; 3],
        eps: f32,
        out: &RowsIn<impl Memory>,
    ) -> Launch {
        same_shape(x, out);
        let (x, out) = (x.at(), out.at());
        Launch::new("layer_rows", [x.rows, 1, 1], THREADS)
            .at(x.data)
            .long(x.stride)
            .int(x.cols)
            .at_if(numbers_if("a weight", weight, x.cols))
            .at_if(numbers_if("a bias", bias, x.cols))
            .float(eps)
            .at_if(numbers_if("a scale", scale, x.cols))
            .at(out.data)
            .long(out.stride)
    }

    /// As the operation of that name.
    pub fn softmax_rows(x: &RowsIn<impl Memory>) -> Launch {
        let x = x.at();
        Launch::new("softmax_lines", [x.rows, 1, 1], THREADS)
            .at(x.data)
            .long(x.stride)
            .int(x.cols)
    }

    /// As the operation of that name.
    pub fn head_norm_rotary<M: Memory>(
        x: &RowsIn<impl Memory>,
        head_dim: usize,
        weight: Option<(&M, f32)>,
        rotary: Option<(Rotary, &M, &M)>,
    ) -> Launch {
        let x = x.at();
        assert!(
            head_dim > 0 && x.cols.is_multiple_of(head_dim),
            "{} columns are no whole heads of {head_dim}",
            x.cols
        );
        let heads = x.cols / head_dim;
        let angles = x.rows * (head_dim / 2);
        let (kind, cos, sin) = match rotary {
            None => (0, None, None),
            Some((kind, cos, sin)) => {
                assert!(
                    head_dim.is_multiple_of(2),
                    "a head of {head_dim} has no whole pairs"
                );
                let kind = match kind {
                    Rotary::Interleaved => 1,
                    Rotary::Halves => 2,
                };
                let cos = numbers("cosines", cos, angles);
                (kind, Some(cos), Some(numbers("sines", sin, angles)))
            }
        };
        let (weight, eps) = weight.unzip();
        // Four warps a block, a head each.
        Launch::new(
            "norm_rotate_heads",
            [(x.rows * heads).div_ceil(4), 1, 1],
            128,
        )
        .at(x.data)
        .long(x.stride)
        .long(x.rows)
        .int(heads)
        .int(head_dim)
        .at_if(numbers_if("a weight", weight, head_dim))
        .float(eps.unwrap_or(0.0))
        .int(kind)
        .at_if(cos)
        .at_if(sin)
    }
}
