//! Linear layers on rows of activations.

use crate::gemm::{self, PANEL, Panel, Problem, Sink, Source};
use crate::isa::{Isa, isa};
use crate::math::{self, Activation};
use crate::rows::{Rows, RowsMut, Shared};
use crate::scratch::Buffer;
use crate::simd::{LANES, Vector, per_isa};
use crate::stored::{Format, Matrix, Precision};
use std::ops::Range;

/// `out[m, n] = act(sum over k of x[m, k] * w[n, k] + bias[n])`.
///
/// # Shapes
/// `x` `[M, K]`, `w` `[N, K]`, `bias` `[N]`, `out` `[M, N]`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn linear(
    x: Rows<'_>,
    w: &Matrix<'_>,
    bias: Option<&[f32]>,
    act: Activation,
    precision: Precision,
    out: RowsMut<'_>,
) {
    let finish = Finish::Linear { bias, act };
    assert!(
        bias.is_none_or(|bias| bias.len() == w.rows),
        "a bias of another length than {} outputs",
        w.rows
    );
    product(x, &[w], finish, precision, out);
}

/// `out[m, n] = act(out[m, n] + scale * sum over k of x[m, k] * w[n, k])`: a product beside another.
///
/// # Shapes
/// `x` `[M, K]`, `w` `[N, K]`, `out` `[M, N]`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn linear_add(
    x: Rows<'_>,
    w: &Matrix<'_>,
    scale: f32,
    act: Activation,
    precision: Precision,
    out: RowsMut<'_>,
) {
    product(x, &[w], Finish::Add { scale, act }, precision, out);
}

/// `out = silu(x w1^T) * (x w3^T)`: the gated feed-forward without a second hidden buffer.
///
/// # Shapes
/// `x` `[M, K]`, `w1` and `w3` `[N, K]`, `out` `[M, N]`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn linear_swiglu(
    x: Rows<'_>,
    w1: &Matrix<'_>,
    w3: &Matrix<'_>,
    precision: Precision,
    out: RowsMut<'_>,
) {
    product(x, &[w1, w3], Finish::Gate, precision, out);
}

/// `out = (x value^T + bias) * gelu(x gate^T + bias)`: GEGLU without the two hidden buffers it is made of.
///
/// # Shapes
/// `x` `[M, K]`, `value` and `gate` `[N, K]`, `biases` of value and gate `[N]` each, `out` `[M, N]`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn linear_geglu(
    x: Rows<'_>,
    [value, gate]: [&Matrix<'_>; 2],
    biases: [&[f32]; 2],
    precision: Precision,
    out: RowsMut<'_>,
) {
    assert!(
        biases.iter().all(|bias| bias.len() == value.rows) && gate.rows == value.rows,
        "biases of {} and {} numbers, and a gate of {} outputs, for {} outputs",
        biases[0].len(),
        biases[1].len(),
        gate.rows,
        value.rows
    );
    let finish = Finish::Geglu { biases };
    product(x, &[value, gate], finish, precision, out);
}

fn product(
    x: Rows<'_>,
    weights: &[&Matrix<'_>],
    finish: Finish<'_>,
    precision: Precision,
    out: RowsMut<'_>,
) {
    x.check();
    out.check();
    let (rows, cols) = (weights[0].rows, weights[0].cols);
    assert_eq!(
        (x.cols, out.cols, out.rows),
        (cols, rows, x.rows),
        "x [{}, {}] times w [{rows}, {cols}] into out [{}, {}] (x cols, out cols, out rows)",
        x.rows,
        x.cols,
        out.rows,
        out.cols
    );
    let isa = isa();
    let format = Format::of(precision, isa);
    let problem = Problem {
        isa,
        format,
        weights,
        lanes: x.rows,
        panels: x.rows.div_ceil(PANEL),
        run: x.rows.div_ceil(PANEL).max(1),
        most: usize::MAX,
    };
    let sink = RowSink {
        isa,
        rows: x.rows,
        finish,
        out: Shared(out.data.as_mut_ptr()),
        stride: out.stride,
        streamed: out.rows * out.cols * 4 >= STREAMED_BYTES,
    };
    gemm::run(&problem, &RowSource { isa, format, x }, &sink);
}

/// Rows as the lanes of a product.
pub(crate) struct RowSource<'a> {
    pub(crate) isa: Isa,
    pub(crate) format: Format,
    pub(crate) x: Rows<'a>,
}

impl Source for RowSource<'_> {
    type Staged = ();

    fn lanes(&self, panel: usize) -> usize {
        (self.x.rows - panel * PANEL).min(PANEL)
    }

    fn stage(&self, _panels: &Range<usize>, _k: &Range<usize>, _stage: &mut Buffer) {}

    fn pack(&self, panel: usize, k: &Range<usize>, _from: (&(), &[f32]), to: Panel<'_>) {
        let (x, rows) = (&self.x, self.lanes(panel));
        let from = &x.data[panel * PANEL * x.stride + k.start..];
        assert!(from.len() >= (rows - 1) * x.stride + k.len());
        assert!(to.data.len() >= self.format.steps(k.len()) * to.width);
        // SAFETY: just checked.
        unsafe {
            pack_rows(
                self.isa,
                self.format,
                from.as_ptr(),
                x.stride,
                rows,
                k.len(),
                to.data.as_mut_ptr(),
                to.width,
            );
        }
    }

    fn pack_few(&self, k: &Range<usize>, _scratch: (&mut Buffer, &mut Buffer), to: &mut [f32]) {
        let lanes = self.x.rows;
        assert!(to.len() >= self.format.steps(k.len()) * lanes);
        for lane in 0..lanes {
            let from = &self.x.row(lane)[k.clone()];
            let to = to[lane..].as_mut_ptr();
            // SAFETY: just checked.
            unsafe { pack_row(self.isa, self.format, from.as_ptr(), from.len(), to, lanes) };
        }
    }
}

/// Up to sixteen numbers, zeros behind them.
#[inline(always)]
pub(crate) unsafe fn load_up_to<V: Vector>(from: *const f32, count: usize) -> V {
    // SAFETY: the caller promises `count` numbers.
    unsafe {
        if count == LANES {
            V::load(from)
        } else {
            V::load_part(from, count)
        }
    }
}

/// Packs one row of `k` numbers, `stride` steps apart.
#[inline(always)]
unsafe fn pack_row_generic<V: Vector>(
    format: Format,
    from: *const f32,
    k: usize,
    to: *mut f32,
    stride: usize,
) {
    let block = format.numbers(LANES);
    let mut line = [0f32; 2 * LANES];
    for start in (0..k).step_by(block) {
        let length = (k - start).min(block);
        // SAFETY: the caller promises both sides; the line has a block's numbers.
        unsafe {
            let from = from.add(start);
            let low = load_up_to::<V>(from, length.min(LANES));
            match format {
                Format::F32 => low.store(line.as_mut_ptr()),
                Format::Rounded => low.to_bf16().store(line.as_mut_ptr()),
                Format::Pairs => {
                    let beyond = length.saturating_sub(LANES);
                    let high = load_up_to(from.wrapping_add(LANES), beyond);
                    low.store_bf16(high, line.as_mut_ptr().cast());
                }
            }
            let to = to.add(format.steps(start) * stride);
            for (step, number) in line.iter().take(format.steps(length)).enumerate() {
                to.add(step * stride).write(*number);
            }
        }
    }
}

/// Packs `rows` rows of `k` numbers, transposed, as panel `[steps][width]`.
#[inline(always)]
unsafe fn pack_rows_generic<V: Vector>(
    format: Format,
    from: *const f32,
    stride: usize,
    rows: usize,
    k: usize,
    panel: *mut f32,
    width: usize,
) {
    let mut edge = [0f32; 2 * LANES * LANES];
    // Numbers of k that one transposition takes.
    let block = format.numbers(LANES);
    let steps = format.steps(k);
    for row in (0..width).step_by(LANES) {
        let here = rows.saturating_sub(row).min(LANES);
        for start in (0..k).step_by(block) {
            let length = (k - start).min(block);
            // SAFETY: the caller promises rows, k and panel; blocks that are not whole are read
            // from and written by way of arrays that hold a whole one.
            unsafe {
                let (mut from, mut stride) = (from.wrapping_add(row * stride + start), stride);
                // Sixteen rows are more streams than a processor foresees.
                for r in 0..here {
                    let ahead = from.wrapping_add(r * stride + 2 * block);
                    V::prefetch::<false>(ahead);
                    if block > LANES {
                        V::prefetch::<false>(ahead.wrapping_add(LANES));
                    }
                }
                if here < LANES || length < block {
                    edge.fill(0.0);
                    for r in 0..here {
                        let to = edge.as_mut_ptr().add(r * block);
                        std::ptr::copy_nonoverlapping(from.add(r * stride), to, length);
                    }
                    (from, stride) = (edge.as_ptr(), block);
                }
                let step = format.steps(start);
                let to = panel.add(step * width + row);
                if step + LANES <= steps {
                    transpose_block::<V>(format, from, stride, to, width);
                } else {
                    let mut square = [0f32; LANES * LANES];
                    transpose_block::<V>(format, from, stride, square.as_mut_ptr(), LANES);
                    for i in 0..steps - step {
                        V::load(square.as_ptr().add(i * LANES)).store(to.add(i * width));
                    }
                }
            }
        }
    }
}

/// One transposition of sixteen rows to sixteen steps.
#[inline(always)]
unsafe fn transpose_block<V: Vector>(
    format: Format,
    from: *const f32,
    stride: usize,
    to: *mut f32,
    to_stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if format == Format::Pairs {
            return V::transpose_bf16(from, stride, to.cast(), to_stride);
        }
        V::transpose(from, stride, to, to_stride);
        if format == Format::Rounded {
            for i in 0..LANES {
                let to = to.add(i * to_stride);
                V::load(to).to_bf16().store(to);
            }
        }
    }
}

/// What happens to sums before they are stored.
#[derive(Clone, Copy)]
enum Finish<'a> {
    /// Bias and activation.
    Linear {
        bias: Option<&'a [f32]>,
        act: Activation,
    },
    /// Scaled, added to what is there, and activated.
    Add { scale: f32, act: Activation },
    /// SiLU of the first sums times the second.
    Gate,
    /// The first sums times GELU of the second, each with its bias.
    Geglu { biases: [&'a [f32]; 2] },
}

/// Results from this size on, in bytes, are stored past the caches: whoever reads them finds them no nearer otherwise,
/// and lines that are written whole need not be fetched first.
const STREAMED_BYTES: usize = 4 << 20;

/// Where rows are stored.
#[derive(Clone, Copy)]
pub(crate) struct To {
    pub(crate) out: *mut f32,
    pub(crate) stride: usize,
    /// Past the caches, where rows are whole cache lines.
    pub(crate) streamed: bool,
}

impl To {
    /// Through the caches.
    pub(crate) fn near(out: *mut f32, stride: usize) -> Self {
        Self {
            out,
            stride,
            streamed: false,
        }
    }
}

/// Stores lanes as rows.
struct RowSink<'a> {
    isa: Isa,
    rows: usize,
    finish: Finish<'a>,
    out: Shared<f32>,
    stride: usize,
    streamed: bool,
}

impl Sink for RowSink<'_> {
    fn finish(&self, sums: &mut [f32], panels: Range<usize>, n: Range<usize>) {
        let start = panels.start * PANEL;
        let rows = (self.rows - start).min(panels.len() * PANEL);
        let to = To {
            out: self.out.at(start * self.stride + n.start),
            stride: self.stride,
            streamed: self.streamed,
        };
        // SAFETY: blocks are disjoint, and `out` was checked to have all rows and columns.
        unsafe {
            match self.finish {
                Finish::Linear { bias, act } => {
                    let bias = bias.map(|bias| &bias[n.clone()]);
                    store_rows(self.isa, sums, rows, n.len(), bias, None, act, to);
                }
                Finish::Add { scale, act } => {
                    let add = Some(scale);
                    store_rows(self.isa, sums, rows, n.len(), None, add, act, to);
                }
                Finish::Geglu { biases } => {
                    let (value, gate) = sums.split_at_mut(panels.len() * n.len() * PANEL);
                    multiply_gelu(self.isa, value, gate, biases.map(|bias| &bias[n.clone()]));
                    let act = Activation::None;
                    store_rows(self.isa, value, rows, n.len(), None, None, act, to);
                }
                Finish::Gate => {
                    let (gate, value) = sums.split_at_mut(panels.len() * n.len() * PANEL);
                    multiply_gate(self.isa, gate, value);
                    let act = Activation::None;
                    store_rows(self.isa, gate, rows, n.len(), None, None, act, to);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn multiply_gate_generic<V: Vector>(gate: &mut [f32], value: &[f32]) {
    for (gate, value) in gate.chunks_exact_mut(LANES).zip(value.chunks_exact(LANES)) {
        // SAFETY: both chunks have sixteen numbers.
        unsafe {
            let g = math::activate(Activation::Silu, V::load(gate.as_ptr()));
            g.mul(V::load(value.as_ptr())).store(gate.as_mut_ptr());
        }
    }
}

/// `value = (value + bias) * gelu(gate + bias)` on sums `[panel][n][PANEL]`.
#[inline(always)]
unsafe fn multiply_gelu_generic<V: Vector>(
    value: &mut [f32],
    gate: &[f32],
    [value_bias, gate_bias]: [&[f32]; 2],
) {
    let outputs = value_bias.len();
    let lines = value.chunks_exact_mut(PANEL).zip(gate.chunks_exact(PANEL));
    for (line, (value, gate)) in lines.enumerate() {
        let n = line % outputs;
        for lane in (0..PANEL).step_by(LANES) {
            // SAFETY: a panel is whole vectors, and both lines have a panel.
            unsafe {
                let (value, gate) = (value.as_mut_ptr().add(lane), gate.as_ptr().add(lane));
                let gate = V::load(gate).add(V::splat(gate_bias[n]));
                let v = V::load(value).add(V::splat(value_bias[n]));
                v.mul(math::activate(Activation::Gelu, gate)).store(value);
            }
        }
    }
}

/// Stores sums `[panel][n][PANEL]` as rows of `n`, with bias and activation; with `add` that many
/// times the sums are added to what is there.
#[inline(always)]
unsafe fn store_rows_generic<V: Vector>(
    sums: &[f32],
    lanes: usize,
    outputs: usize,
    bias: Option<&[f32]>,
    add: Option<f32>,
    act: Activation,
    to: To,
) {
    let mut edge = [0f32; LANES * PANEL];
    let To { out, stride, .. } = to;
    let aligned = (out as usize).is_multiple_of(64) && stride.is_multiple_of(LANES);
    let streamed = to.streamed && aligned && add.is_none();
    for lane in (0..lanes).step_by(LANES) {
        let here = (lanes - lane).min(LANES);
        let panel = &sums[lane / PANEL * outputs * PANEL..][..outputs * PANEL];
        for n in (0..outputs).step_by(LANES) {
            let length = (outputs - n).min(LANES);
            // SAFETY: the edge is large enough; the caller promises `out`.
            unsafe {
                for i in 0..if streamed { 0 } else { here } {
                    V::prefetch::<true>(out.wrapping_add((lane + i) * stride + n + 2 * LANES));
                }
                let mut from = panel.as_ptr().add(n * PANEL);
                if length < LANES {
                    std::ptr::copy_nonoverlapping(from, edge.as_mut_ptr(), length * PANEL);
                    from = edge.as_ptr();
                }
                let square = V::transposed(from.add(lane % PANEL), PANEL);
                let added = bias.map(|bias| {
                    let from = bias.as_ptr().add(n);
                    if length == LANES {
                        V::load(from)
                    } else {
                        V::load_part(from, length)
                    }
                });
                for (i, v) in square.into_iter().take(here).enumerate() {
                    let mut v = v;
                    if let Some(added) = added {
                        v = v.add(added);
                    }
                    let to = out.add((lane + i) * stride + n);
                    if let Some(scale) = add {
                        let old = if length == LANES {
                            V::load(to)
                        } else {
                            V::load_part(to, length)
                        };
                        v = v.fma(V::splat(scale), old);
                    }
                    v = math::activate(act, v);
                    if length < LANES {
                        v.store_part(to, length);
                    } else if streamed {
                        v.stream(to);
                    } else {
                        v.store(to);
                    }
                }
            }
        }
    }
    if streamed {
        V::end_stream();
    }
}

per_isa! {
    /// Packs one row.
    ///
    /// # Safety
    /// `k` numbers, and as many steps as they make at `stride`, must be there.
    fn pack_row(format: Format, from: *const f32, k: usize, to: *mut f32, stride: usize) = pack_row_generic;
    /// Packs rows, transposed, as a panel.
    ///
    /// # Safety
    /// `rows` rows of `k` numbers at `stride`, and a panel of `steps * width`, must be there.
    pub(crate) fn pack_rows(format: Format, from: *const f32, stride: usize, rows: usize, k: usize, panel: *mut f32, width: usize) = pack_rows_generic;
    /// `value = (value + bias) * gelu(gate + bias)`.
    ///
    /// # Safety
    /// None beyond the instruction set.
    fn multiply_gelu(value: &mut [f32], gate: &[f32], biases: [&[f32]; 2]) = multiply_gelu_generic;
    /// `gate = silu(gate) * value`.
    ///
    /// # Safety
    /// None beyond the instruction set.
    fn multiply_gate(gate: &mut [f32], value: &[f32]) = multiply_gate_generic;
    /// Stores sums as rows.
    ///
    /// # Safety
    /// `out` must be good for `lanes` rows of `outputs` numbers.
    pub(crate) fn store_rows(sums: &[f32], lanes: usize, outputs: usize, bias: Option<&[f32]>, add: Option<f32>, act: Activation, out: To) = store_rows_generic;
}
