//! What models ask of a device, as kernels.

use lowtide_cuda::ops::{self, RowsIn};
use lowtide_cuda::{Buffer, Error, Event};
use lowtide_kernels::{Attention, Precision, Rotary};
use lowtide_models::device::{
    Affine, After, Conv2d, Device, Done, Elementwise, Finish, Function, Gated, GroupNorm,
    LayerNorm, Lines, Matrix, Residual, Rows, Slice, Span,
};

use super::{Cuda, State, failure};

impl State {
    fn rows(&self, rows: Rows) -> ops::Rows<'_> {
        RowsIn::new(self.span(rows.data), rows.rows, rows.cols)
    }

    fn rows_mut(&self, rows: Rows) -> ops::RowsMut<'_> {
        RowsIn::new(self.span_mut(rows.data), rows.rows, rows.cols)
    }

    fn matrix(&self, matrix: Matrix) -> ops::Matrix<'_> {
        ops::Matrix {
            stored: matrix.stored,
            data: self.span(matrix.data),
            rows: matrix.rows,
            cols: matrix.cols,
            scales: matrix.scales.map(|(stored, data, per)| ops::Scales {
                stored,
                data: self.span(data),
                per,
            }),
        }
    }

    fn affine(&self, affine: Affine) -> ops::ChannelAffine<'_> {
        ops::ChannelAffine {
            scale: self.span(affine.scale),
            shift: self.span(affine.shift),
            act: affine.act,
        }
    }

    fn after(&self, after: After) -> ops::Finish<'_> {
        match after {
            After::Plain => ops::Finish::Plain,
            After::Scaled(factor) => ops::Finish::Scaled(factor),
            After::Leaky(slope) => ops::Finish::Leaky(slope),
            After::Slopes(slopes) => ops::Finish::Slopes(self.span(slopes)),
        }
    }

    fn conv(&self, conv: Conv2d) -> ops::Conv2d<'_> {
        ops::Conv2d {
            weight: self.matrix(conv.weight),
            bias: conv.bias.map(|bias| self.span(bias)),
            kernel: conv.kernel,
            stride: conv.stride,
            padding: conv.kernel / 2,
            upsample: conv.upsample,
            input: conv.input.map(|input| self.affine(input)),
        }
    }
}

impl State {
    fn buffer(&self, bytes: usize) -> Result<Buffer, Error> {
        let (used, budget) = (self.gpu.used(), self.budget);
        if used + bytes as u64 > budget {
            return Err(Error::OutOfMemory {
                asked: bytes as u64,
                used,
                budget,
            });
        }
        Buffer::new(&self.gpu, bytes)
    }
}

impl Device for Cuda {
    fn allocate(&self, bytes: usize) -> Done<Span> {
        self.with(|state| {
            let buffer = match state.buffer(bytes) {
                // What kernels keep for their own use gives way: they ask again for what they need.
                Err(error) if error.is_out_of_memory() && state.gpu.scratch_bytes() > 0 => {
                    state.gpu.forget_scratch();
                    state.buffer(bytes)?
                }
                buffer => buffer?,
            };
            let address = buffer.span().address();
            if bytes > 0 {
                state.buffers.insert(address, buffer);
            }
            Ok(Span { address, bytes })
        })
    }

    fn free(&self, memory: Span) {
        // The buffer goes in order of what was queued; one of no bytes was never kept.
        drop(self.kept().0.buffers.remove(&memory.address));
    }

    fn upload(&self, to: Span, from: &[u8]) -> Done {
        self.with(|state| state.span_mut(to).upload(from))
    }

    fn download(&self, from: Span, to: &mut [u8]) -> Done {
        // What is to be brought back is waited for without the lock, so that weights go on arriving.
        let done: Event = self.with(|state| {
            let event = Event::new(&state.gpu, false)?;
            state.gpu.record(&event)?;
            Ok(event)
        })?;
        done.synchronise().map_err(failure)?;
        self.with(|state| {
            state.span(from).download(to)?;
            state.gpu.check()
        })
    }

    fn zero(&self, to: Span) -> Done {
        self.with(|state| state.span_mut(to).zero())
    }

    fn copy_lines(&self, lines: Lines) -> Done {
        self.with(|state| {
            let (rows, cols) = (lines.count, lines.width);
            let from = RowsIn {
                data: state.span(lines.from),
                rows,
                cols,
                stride: lines.from_pitch,
            };
            let to = RowsIn {
                data: state.span_mut(lines.to),
                rows,
                cols,
                stride: lines.to_pitch,
            };
            ops::copy_strided(from, to)
        })
    }

    fn elementwise(&self, op: Elementwise, x: Span, y: Span) -> Done {
        self.with(|state| {
            let (x, y) = (state.span_mut(x), state.span(y));
            match op {
                Elementwise::Add => ops::add(x, y),
                Elementwise::Mul => ops::mul(x, y),
                Elementwise::Copy => ops::copy(x, y),
                Elementwise::AddScaled(factor) => ops::add_scaled(x, factor, y),
            }
        })
    }

    fn apply(&self, function: Function, x: Span) -> Done {
        self.with(|state| {
            let x = state.span_mut(x);
            match function {
                Function::Act(act) => ops::activate(x, act),
                Function::Tanh => ops::tanh(x),
                Function::Plus(constant) => ops::add_constant(x, constant),
            }
        })
    }

    fn fill_rows(&self, out: Rows, row: Span) -> Done {
        self.with(|state| ops::fill_rows(state.rows_mut(out), state.span(row)))
    }

    fn widen(&self, from: Matrix, out: Span) -> Done {
        self.with(|state| ops::widen(&state.matrix(from), state.span_mut(out)))
    }

    fn linear(&self, x: Rows, w: Matrix, finish: Finish, precision: Precision, out: Rows) -> Done {
        self.with(|state| {
            let (x, w, out) = (state.rows(x), state.matrix(w), state.rows_mut(out));
            match finish {
                Finish::Linear { bias, act } => {
                    let bias = bias.map(|bias| state.span(bias));
                    ops::linear(x, &w, bias, act, precision, out)
                }
                Finish::Add { scale, act } => ops::linear_add(x, &w, scale, act, precision, out),
            }
        })
    }

    fn linear_gated(&self, x: Rows, gated: Gated, precision: Precision, out: Rows) -> Done {
        self.with(|state| {
            let (x, out) = (state.rows(x), state.rows_mut(out));
            let (gate, value) = (state.matrix(gated.gate), state.matrix(gated.value));
            match gated.biases {
                None => ops::linear_swiglu(x, &gate, &value, precision, out),
                Some([gate_bias, value_bias]) => {
                    let biases = [state.span(value_bias), state.span(gate_bias)];
                    ops::linear_geglu(x, [&value, &gate], biases, precision, out)
                }
            }
        })
    }

    fn rms_norm(&self, x: Rows, weight: Span, eps: f32, scale: Option<Span>, out: Rows) -> Done {
        self.with(|state| {
            let (weight, scale) = (state.span(weight), scale.map(|scale| state.span(scale)));
            ops::rms_norm(state.rows(x), Some(weight), eps, scale, state.rows_mut(out))
        })
    }

    fn rms_norm_add(&self, y: Rows, weight: Span, eps: f32, gate: Option<Span>, x: Rows) -> Done {
        self.with(|state| {
            let (weight, gate) = (state.span(weight), gate.map(|gate| state.span(gate)));
            ops::rms_norm_add(state.rows(y), weight, eps, gate, state.rows_mut(x))
        })
    }

    fn layer_norm(&self, x: Rows, norm: LayerNorm, out: Rows) -> Done {
        self.with(|state| {
            let [weight, bias, scale] =
                [norm.weight, norm.bias, norm.scale].map(|span| span.map(|span| state.span(span)));
            let (x, out) = (state.rows(x), state.rows_mut(out));
            ops::layer_norm(x, weight, bias, norm.eps, scale, out)
        })
    }

    fn head_norm_rotary(
        &self,
        x: Rows,
        head_dim: usize,
        weight: Option<(Span, f32)>,
        rotary: Option<(Rotary, Span, Span)>,
    ) -> Done {
        self.with(|state| {
            let weight = weight.map(|(weight, eps)| (state.span(weight), eps));
            let rotary = rotary.map(|(kind, cos, sin)| (kind, state.span(cos), state.span(sin)));
            ops::head_norm_rotary(state.rows_mut(x), head_dim, weight, rotary)
        })
    }

    fn attention(&self, spec: &Attention, q: Rows, k: Rows, v: Rows, out: Rows) -> Done {
        self.with(|state| {
            let (q, k, v) = (state.rows(q), state.rows(k), state.rows(v));
            ops::attention(spec, q, k, v, state.rows_mut(out))
        })
    }

    fn conv2d(
        &self,
        conv: Conv2d,
        x: Slice,
        precision: Precision,
        residual: Residual,
        out: Slice,
    ) -> Done {
        self.with(|state| {
            let map = state.span(x.data);
            let residual = match residual {
                Residual::Nothing => ops::Residual::Nothing,
                Residual::Other(add) => ops::Residual::Other(state.span(add)),
                Residual::Out => ops::Residual::Out,
            };
            ops::convolve(
                &state.conv(conv),
                conv.padding,
                state.after(conv.after),
                (map, x.rows, x.width),
                precision,
                residual,
                (state.span_mut(out.data), out.rows),
            )
        })
    }

    fn group_sums(&self, strip: Span, shape: [usize; 3], groups: usize, sums: Span) -> Done {
        self.with(|state| ops::group_sums(state.span(strip), shape, groups, state.span_mut(sums)))
    }

    fn group_affine(&self, sums: Span, count: u64, norm: GroupNorm, out: [Span; 2]) -> Done {
        self.with(|state| {
            let parameters = [state.span(norm.weight), state.span(norm.bias)];
            let out = out.map(|span| state.span_mut(span));
            ops::group_affine(state.span(sums), count, norm.eps, parameters, out)
        })
    }

    fn map_to_tokens(
        &self,
        x: Span,
        factors: [Span; 2],
        plane: usize,
        first: usize,
        out: Rows,
    ) -> Done {
        self.with(|state| {
            let factors = factors.map(|span| state.span(span));
            ops::map_to_tokens(state.span(x), factors, plane, first, state.rows_mut(out))
        })
    }

    fn add_tokens_to_map(&self, tokens: Rows, map: Span, plane: usize, first: usize) -> Done {
        self.with(|state| {
            ops::add_tokens_to_map(state.rows(tokens), state.span_mut(map), plane, first)
        })
    }

    fn patches(&self, map: Span, shape: [usize; 3], patches: Span, back: bool) -> Done {
        self.with(|state| match back {
            false => ops::patchify(state.span(map), shape, state.span_mut(patches)),
            true => ops::unpatchify(state.span(patches), shape, state.span_mut(map)),
        })
    }
}
