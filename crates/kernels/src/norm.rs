//! Norms of rows, and softmax.

use crate::isa::isa;
use crate::math;
use crate::rows::{Rows, RowsMut};
use crate::simd::{LANES, Vector, per_isa};

fn check_weight(name: &str, weight: Option<&[f32]>, cols: usize) {
    assert!(
        weight.is_none_or(|weight| weight.len() == cols),
        "{name} of another length than {cols} columns"
    );
}

fn check_shapes(x: (usize, usize), out: (usize, usize)) {
    assert_eq!(x, out, "input and output differ in shape [rows, cols]");
}

/// `out = x / rms(x) * weight * scale`, row by row, where `rms` is the root of the mean square
/// plus `eps`.
///
/// # Panics
/// When the shapes do not fit.
pub fn rms_norm(
    x: Rows<'_>,
    weight: Option<&[f32]>,
    eps: f32,
    scale: Option<&[f32]>,
    out: RowsMut<'_>,
) {
    x.check();
    check_shapes((x.rows, x.cols), (out.rows, out.cols));
    check_weight("a weight", weight, x.cols);
    check_weight("a scale", scale, x.cols);
    let isa = isa();
    out.for_each(|row, out| {
        // SAFETY: all lengths were checked.
        unsafe { rms_row(isa, x.row(row), weight, eps, scale, None, out) };
    });
}

/// `x += gate * (y / rms(y) * weight)`, row by row.
///
/// # Panics
/// When the shapes do not fit.
pub fn rms_norm_add(y: Rows<'_>, weight: &[f32], eps: f32, gate: Option<&[f32]>, x: RowsMut<'_>) {
    y.check();
    check_shapes((y.rows, y.cols), (x.rows, x.cols));
    check_weight("a weight", Some(weight), y.cols);
    check_weight("a gate", gate, y.cols);
    let isa = isa();
    x.for_each(|row, x| {
        // SAFETY: all lengths were checked.
        unsafe { rms_row(isa, y.row(row), Some(weight), eps, gate, Some(()), x) };
    });
}

/// `out = (x - mean) / sqrt(variance + eps) * weight * scale + bias`, row by row.
///
/// # Panics
/// When the shapes do not fit.
pub fn layer_norm(
    x: Rows<'_>,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    eps: f32,
    scale: Option<&[f32]>,
    out: RowsMut<'_>,
) {
    x.check();
    check_shapes((x.rows, x.cols), (out.rows, out.cols));
    check_weight("a weight", weight, x.cols);
    check_weight("a bias", bias, x.cols);
    check_weight("a scale", scale, x.cols);
    let isa = isa();
    out.for_each(|row, out| {
        // SAFETY: all lengths were checked.
        unsafe { layer_row(isa, x.row(row), weight, bias, eps, scale, out) };
    });
}

/// Softmax of each row, in place.
pub fn softmax_rows(x: RowsMut<'_>) {
    let isa = isa();
    // SAFETY: rows are whole slices.
    x.for_each(|_, row| unsafe { softmax_row(isa, row) });
}

/// How rotary embeddings pair the numbers of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rotary {
    /// `(2i, 2i + 1)`, as complex numbers.
    Interleaved,
    /// `(i, i + D / 2)`, as in Llama and Qwen.
    Halves,
}

/// In place on each head: an RMS norm (weight of length D, and eps), then a rotary embedding.
///
/// # Shapes
/// `x` `[tokens, heads * D]`, cosines and sines `[tokens, D / 2]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn head_norm_rotary(
    x: RowsMut<'_>,
    head_dim: usize,
    weight: Option<(&[f32], f32)>,
    rotary: Option<(Rotary, &[f32], &[f32])>,
) {
    assert!(
        head_dim > 0 && x.cols.is_multiple_of(head_dim),
        "{} columns are no whole heads of {head_dim}",
        x.cols
    );
    check_weight("a weight", weight.map(|(weight, _)| weight), head_dim);
    let half = head_dim / 2;
    if let Some((_, cos, sin)) = rotary {
        assert!(
            head_dim.is_multiple_of(2) && cos.len() == x.rows * half && sin.len() == x.rows * half,
            "rotary embeddings of {} tokens of {half} pairs from {} cosines and {} sines",
            x.rows,
            cos.len(),
            sin.len()
        );
    }
    let isa = isa();
    x.for_each(|row, line| {
        let turn = rotary.map(|(kind, cos, sin)| {
            let here = row * half..(row + 1) * half;
            (kind, &cos[here.clone()], &sin[here])
        });
        // SAFETY: all lengths were checked.
        unsafe { heads_row(isa, line, head_dim, weight, turn) };
    });
}

/// Calls `$f` with the start of each sixteen numbers below `$count`, then of the rest, with
/// `load` and `store` that fit.
macro_rules! sweep {
    ($count:expr, |$i:ident, $load:ident, $store:ident| $body:expr) => {{
        let count = $count;
        let whole = count / LANES * LANES;
        let mut $i = 0;
        while $i < whole {
            let $load = |from: *const f32| V::load(from.add($i));
            let $store = |v: V, to: *mut f32| v.store(to.add($i));
            let _ = &$store;
            $body;
            $i += LANES;
        }
        if whole < count {
            let $load = |from: *const f32| V::load_part(from.add($i), count - whole);
            let $store = |v: V, to: *mut f32| v.store_part(to.add($i), count - whole);
            let _ = &$store;
            $body;
        }
    }};
}
pub(crate) use sweep;

#[inline(always)]
unsafe fn rms_factor<V: Vector>(x: &[f32], eps: f32) -> f32 {
    // SAFETY: the sweep stays inside `x`.
    unsafe {
        let mut squares = V::splat(0.0);
        sweep!(x.len(), |i, load, _store| {
            let v = load(x.as_ptr());
            squares = v.fma(v, squares);
        });
        1.0 / (squares.sum() / x.len() as f32 + eps).sqrt()
    }
}

#[inline(always)]
unsafe fn rms_row_generic<V: Vector>(
    x: &[f32],
    weight: Option<&[f32]>,
    eps: f32,
    scale: Option<&[f32]>,
    add: Option<()>,
    out: &mut [f32],
) {
    // SAFETY: the caller promises that all slices have the length of `x`.
    unsafe {
        let factor = V::splat(rms_factor::<V>(x, eps));
        sweep!(x.len(), |i, load, store| {
            let mut v = load(x.as_ptr()).mul(factor);
            if let Some(weight) = weight {
                v = v.mul(load(weight.as_ptr()));
            }
            if let Some(scale) = scale {
                v = v.mul(load(scale.as_ptr()));
            }
            if add.is_some() {
                v = v.add(load(out.as_ptr()));
            }
            store(v, out.as_mut_ptr());
        });
    }
}

#[inline(always)]
unsafe fn layer_row_generic<V: Vector>(
    x: &[f32],
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    eps: f32,
    scale: Option<&[f32]>,
    out: &mut [f32],
) {
    // SAFETY: the caller promises that all slices have the length of `x`.
    unsafe {
        let count = x.len() as f32;
        let mut sum = V::splat(0.0);
        sweep!(x.len(), |i, load, _store| sum = sum.add(load(x.as_ptr())));
        let mean_value = sum.sum() / count;
        let mean = V::splat(mean_value);
        let mut squares = V::splat(0.0);
        sweep!(x.len() / LANES * LANES, |i, load, _store| {
            let v = load(x.as_ptr()).sub(mean);
            squares = v.fma(v, squares);
        });
        let mut square = squares.sum();
        for v in &x[x.len() / LANES * LANES..] {
            square += (v - mean_value) * (v - mean_value);
        }
        let factor = V::splat(1.0 / (square / count + eps).sqrt());
        sweep!(x.len(), |i, load, store| {
            let mut v = load(x.as_ptr()).sub(mean).mul(factor);
            if let Some(weight) = weight {
                v = v.mul(load(weight.as_ptr()));
            }
            if let Some(scale) = scale {
                v = v.mul(load(scale.as_ptr()));
            }
            if let Some(bias) = bias {
                v = v.add(load(bias.as_ptr()));
            }
            store(v, out.as_mut_ptr());
        });
    }
}

#[inline(always)]
unsafe fn softmax_row_generic<V: Vector>(row: &mut [f32]) {
    let maximum = row
        .iter()
        .fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m });
    // SAFETY: the sweeps stay inside `row`.
    unsafe {
        let maximum = V::splat(maximum);
        sweep!(row.len(), |i, load, store| {
            store(math::exp(load(row.as_ptr()).sub(maximum)), row.as_mut_ptr());
        });
        let mut sum = V::splat(0.0);
        sweep!(row.len(), |i, load, _store| sum =
            sum.add(load(row.as_ptr())));
        let sum = V::splat(sum.sum());
        sweep!(row.len(), |i, load, store| {
            store(load(row.as_ptr()).div(sum), row.as_mut_ptr());
        });
    }
}

#[inline(always)]
unsafe fn heads_row_generic<V: Vector>(
    line: &mut [f32],
    head_dim: usize,
    weight: Option<(&[f32], f32)>,
    rotary: Option<(Rotary, &[f32], &[f32])>,
) {
    for head in line.chunks_exact_mut(head_dim) {
        if let Some((weight, eps)) = weight {
            // SAFETY: the caller promises a weight as long as a head.
            unsafe {
                let factor = V::splat(rms_factor::<V>(head, eps));
                sweep!(head.len(), |i, load, store| {
                    let v = load(head.as_ptr()).mul(factor).mul(load(weight.as_ptr()));
                    store(v, head.as_mut_ptr());
                });
            }
        }
        match rotary {
            None => {}
            Some((Rotary::Interleaved, cos, sin)) => {
                for (pair, (cos, sin)) in head.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * cos - b * sin;
                    pair[1] = a * sin + b * cos;
                }
            }
            Some((Rotary::Halves, cos, sin)) => {
                let (first, second) = head.split_at_mut(head_dim / 2);
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}

per_isa! {
    /// RMS norm of a row, stored or added.
    ///
    /// # Safety
    /// All slices must have the length of `x`.
    fn rms_row(x: &[f32], weight: Option<&[f32]>, eps: f32, scale: Option<&[f32]>, add: Option<()>, out: &mut [f32]) = rms_row_generic;
    /// Layer norm of a row.
    ///
    /// # Safety
    /// All slices must have the length of `x`.
    fn layer_row(x: &[f32], weight: Option<&[f32]>, bias: Option<&[f32]>, eps: f32, scale: Option<&[f32]>, out: &mut [f32]) = layer_row_generic;
    /// Softmax of a row.
    ///
    /// # Safety
    /// None beyond the instruction set.
    fn softmax_row(row: &mut [f32]) = softmax_row_generic;
    /// Norm and rotation of a token's heads.
    ///
    /// # Safety
    /// The weight must have `head_dim` numbers.
    fn heads_row(line: &mut [f32], head_dim: usize, weight: Option<(&[f32], f32)>, rotary: Option<(Rotary, &[f32], &[f32])>) = heads_row_generic;
}
