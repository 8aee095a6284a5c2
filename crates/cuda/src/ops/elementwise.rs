//! Numbers one by one, copies, and stored numbers as f32.

use super::launch::Launch;
use super::operands::{Matrix, Rows, RowsMut};
use crate::error::Error;
use crate::memory::{Span, SpanMut};
use lowtide_kernels::Activation;

/// Queues what was described from spans whose lengths were checked.
fn run(launch: &Launch, on: &SpanMut<'_>) -> Result<(), Error> {
    // SAFETY: only called below, with the description of the operation that is asked for.
    unsafe { launch.run(on.gpu()) }
}

/// `x += y`; as [`lowtide_kernels::add`].
///
/// # Panics
/// When the lengths differ, as for all of two operands.
pub fn add(x: SpanMut<'_>, y: Span<'_>) -> Result<(), Error> {
    run(&launches::add_scaled(&x, 1.0, &y), &x)
}

/// `x += s * y`; as [`lowtide_kernels::add_scaled`].
pub fn add_scaled(x: SpanMut<'_>, s: f32, y: Span<'_>) -> Result<(), Error> {
    run(&launches::add_scaled(&x, s, &y), &x)
}

/// `x *= y`; as [`lowtide_kernels::mul`].
pub fn mul(x: SpanMut<'_>, y: Span<'_>) -> Result<(), Error> {
    run(&launches::mul(&x, &y), &x)
}

/// `x = y`; as [`lowtide_kernels::copy`].
pub fn copy(x: SpanMut<'_>, y: Span<'_>) -> Result<(), Error> {
    run(&launches::copy(&x, &y), &x)
}

/// Rows from one place to another, each with its own stride.
///
/// # Panics
/// When the shapes differ.
pub fn copy_strided(from: Rows<'_>, to: RowsMut<'_>) -> Result<(), Error> {
    run(&launches::copy_strided(&from, &to), &to.data)
}

/// Every row becomes `row`.
///
/// # Panics
/// When it has another length.
pub fn fill_rows(out: RowsMut<'_>, row: Span<'_>) -> Result<(), Error> {
    run(&launches::fill_rows(&out, &row), &out.data)
}

/// `x = act(x)`; as [`lowtide_kernels::activate`].
pub fn activate(x: SpanMut<'_>, act: Activation) -> Result<(), Error> {
    run(&launches::activate(&x, act), &x)
}

/// `x = tanh(x)`.
pub fn tanh(x: SpanMut<'_>) -> Result<(), Error> {
    run(&launches::tanh(&x), &x)
}

/// `x += constant`.
pub fn add_constant(x: SpanMut<'_>, constant: f32) -> Result<(), Error> {
    run(&launches::add_constant(&x, constant), &x)
}

/// Stored numbers as f32, each times its scale where there are scales.
///
/// # Panics
/// When the lengths do not fit.
pub fn widen(from: &Matrix<'_>, out: SpanMut<'_>) -> Result<(), Error> {
    run(&launches::widen(from, &out), &out)
}

/// `out[r] = matrix[ids[r]]`, ids as u32: the embeddings of tokens. An id without a row gives NaN.
///
/// # Panics
/// When the shapes do not fit.
pub fn gather_rows(matrix: &Matrix<'_>, ids: Span<'_>, out: RowsMut<'_>) -> Result<(), Error> {
    run(&launches::gather_rows(matrix, &ids, &out), &out.data)
}

/// What runs.
pub mod launches {
    use crate::ops::launch::Launch;
    use crate::ops::operands::{At, MatrixIn, Memory, RowsIn, numbers};
    use lowtide_kernels::Activation;

    fn combine(x: &impl Memory, y: &impl Memory, s: f32, op: usize) -> Launch {
        let x = x.at();
        let count = x.f32s();
        Launch::along("combine", count.div_ceil(4))
            .at(x)
            .at(numbers("a second operand", y, count))
            .float(s)
            .int(op)
            .long(count)
    }

    fn apply(x: &impl Memory, function: usize, act: Activation, constant: f32) -> Launch {
        let x = x.at();
        Launch::along("apply", x.f32s().div_ceil(4))
            .at(x)
            .int(function)
            .act(act)
            .float(constant)
            .long(x.f32s())
    }

    fn lines(from: At, from_stride: usize, to: RowsIn<At>) -> Launch {
        Launch::along("copy_lines", (to.rows * to.cols).div_ceil(4))
            .at(from)
            .long(from_stride)
            .at(to.data)
            .long(to.stride)
            .long(to.rows)
            .long(to.cols)
    }

    /// As the operation of that name.
    pub fn add_scaled(x: &impl Memory, s: f32, y: &impl Memory) -> Launch {
        combine(x, y, s, 0)
    }

    /// As the operation of that name.
    pub fn mul(x: &impl Memory, y: &impl Memory) -> Launch {
        combine(x, y, 0.0, 1)
    }

    /// As the operation of that name.
    pub fn copy(x: &impl Memory, y: &impl Memory) -> Launch {
        combine(x, y, 0.0, 2)
    }

    /// As the operation of that name.
    pub fn activate(x: &impl Memory, act: Activation) -> Launch {
        apply(x, 0, act, 0.0)
    }

    /// As the operation of that name.
    pub fn tanh(x: &impl Memory) -> Launch {
        apply(x, 1, Activation::None, 0.0)
    }

    /// As the operation of that name.
    pub fn add_constant(x: &impl Memory, constant: f32) -> Launch {
        apply(x, 2, Activation::None, constant)
    }

    /// As the operation of that name.
    pub fn copy_strided(from: &RowsIn<impl Memory>, to: &RowsIn<impl Memory>) -> Launch {
        assert_eq!(
            (from.rows, from.cols),
            (to.rows, to.cols),
            "rows to copy and room for them, [rows, cols]"
        );
        lines(from.at().data, from.stride, to.at())
    }

    /// As the operation of that name.
    pub fn fill_rows(out: &RowsIn<impl Memory>, row: &impl Memory) -> Launch {
        lines(numbers("a row", row, out.cols), 0, out.at())
    }

    /// As the operation of that name.
    pub fn widen(from: &MatrixIn<impl Memory>, out: &impl Memory) -> Launch {
        let from = from.at();
        Launch::along("widen", from.rows * from.cols)
            .matrix(&from)
            .long(from.rows)
            .long(from.cols)
            .at(numbers("room for wide numbers", out, from.rows * from.cols))
    }

    /// As the operation of that name.
    pub fn gather_rows(
        matrix: &MatrixIn<impl Memory>,
        ids: &impl Memory,
        out: &RowsIn<impl Memory>,
    ) -> Launch {
        let (matrix, out) = (matrix.at(), out.at());
        assert_eq!(
            matrix.cols, out.cols,
            "columns of the matrix and of its rows"
        );
        Launch::along("gather_rows", out.rows * out.cols)
            .matrix(&matrix)
            .long(matrix.rows)
            .long(matrix.cols)
            .at(numbers("ids of rows", ids, out.rows))
            .long(out.rows)
            .at(out.data)
            .long(out.stride)
    }
}
