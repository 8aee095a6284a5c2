//! A device on the CPU, for tests: memory behind addresses that mean nothing to the host, and the kernels of the CPU. What
//! runs on it gives the host's bytes, unless somebody on the host touches numbers that are not there.

// Each of those who include it uses some of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowtide_kernels as kernels;
use lowtide_kernels::{Attention, Precision, Rotary};
use lowtide_models::device::{
    Affine, After, Allocation, Bytes, Conv2d, Device, Done, Elementwise, Failure, Finish, Function,
    Gated, GroupNorm, LayerNorm, Lines, Matrix, Memory, Place, Residual, Rows, Slice, Span,
};

/// Addresses begin here: nothing of the host lies so low.
const FIRST: u64 = 4096;

/// Between two allocations, so that what runs over the end of one is found.
const GAP: u64 = 4096;

#[derive(Debug, Default)]
struct State {
    budget: u64,
    next: u64,
    memory: BTreeMap<u64, Vec<u8>>,
    live: u64,
    peak: u64,
    calls: u64,
}

/// The device.
#[derive(Debug)]
pub(crate) struct Shadow {
    state: Mutex<State>,
}

impl Shadow {
    pub(crate) fn new(budget: u64) -> Shadow {
        Shadow {
            state: Mutex::new(State {
                budget,
                ..State::default()
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes allocated.
    pub(crate) fn live(&self) -> u64 {
        self.state().live
    }

    /// The most bytes that were allocated at once.
    pub(crate) fn peak(&self) -> u64 {
        self.state().peak
    }

    /// Counts the peak anew.
    pub(crate) fn reset_peak(&self) {
        let mut state = self.state();
        state.peak = state.live;
    }

    /// From here on the most bytes that may be allocated.
    pub(crate) fn set_budget(&self, budget: u64) {
        self.state().budget = budget;
    }

    /// Operations it was asked for.
    pub(crate) fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Calls `use_bytes` with the bytes of `span`.
    fn bytes<T>(&self, span: Span, use_bytes: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut state = self.state();
        state.calls += 1;
        let (base, memory) = state
            .memory
            .range_mut(..=span.address)
            .next_back()
            .unwrap_or_else(|| panic!("{span:?} is no memory of the device"));
        let start = (span.address - base) as usize;
        assert!(
            start + span.bytes <= memory.len(),
            "{span:?} ends behind its memory of {} bytes at {base}",
            memory.len()
        );
        use_bytes(&mut memory[start..start + span.bytes])
    }

    fn read(&self, span: Span) -> Vec<u8> {
        self.bytes(span, |bytes| bytes.to_vec())
    }

    fn floats(&self, span: Span) -> Vec<f32> {
        let bytes = self.read(span);
        let values = bytes.chunks_exact(4);
        values
            .map(|x| f32::from_ne_bytes([x[0], x[1], x[2], x[3]]))
            .collect()
    }

    fn write(&self, span: Span, values: &[f32]) {
        assert_eq!(span.values(), values.len());
        let values: Vec<u8> = values.iter().flat_map(|x| x.to_ne_bytes()).collect();
        self.bytes(span, |bytes| bytes.copy_from_slice(&values));
    }

    /// Calls `change` with the f32 of `span`.
    fn change(&self, span: Span, change: impl FnOnce(&mut [f32])) -> Done {
        let mut values = self.floats(span);
        change(&mut values);
        self.write(span, &values);
        Ok(())
    }

    fn doubles(&self, span: Span) -> Vec<[f64; 2]> {
        let bytes = self.read(span);
        let double = |bytes: &[u8]| f64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
        let pairs = bytes.chunks_exact(16);
        pairs
            .map(|pair| [double(&pair[..8]), double(&pair[8..])])
            .collect()
    }
}

/// A matrix' bytes, and those of its scales, brought to the host.
struct Brought {
    matrix: Matrix,
    bytes: Vec<u8>,
    scales: Vec<u8>,
}

impl Brought {
    fn of(shadow: &Shadow, matrix: Matrix) -> Brought {
        let scales = matrix.scales.map(|(_, span, _)| shadow.read(span));
        Brought {
            matrix,
            bytes: shadow.read(matrix.data),
            scales: scales.unwrap_or_default(),
        }
    }

    fn view(&self) -> kernels::Matrix<'_> {
        kernels::Matrix {
            stored: self.matrix.stored,
            bytes: &self.bytes,
            rows: self.matrix.rows,
            cols: self.matrix.cols,
            scales: self.matrix.scales.map(|(stored, _, per)| kernels::Scales {
                stored,
                bytes: &self.scales,
                per,
            }),
        }
    }
}

fn view(values: &[f32], rows: Rows) -> kernels::Rows<'_> {
    kernels::Rows::new(values, rows.rows, rows.cols)
}

fn view_mut(values: &mut [f32], rows: Rows) -> kernels::RowsMut<'_> {
    kernels::RowsMut {
        data: values,
        rows: rows.rows,
        cols: rows.cols,
        stride: rows.cols,
    }
}

impl Shadow {
    fn optional(&self, span: Option<Span>) -> Option<Vec<f32>> {
        span.map(|span| self.floats(span))
    }

    fn affine(&self, affine: Option<Affine>) -> Option<[Vec<f32>; 2]> {
        affine.map(|affine| [self.floats(affine.scale), self.floats(affine.shift)])
    }
}

impl Device for Shadow {
    fn allocate(&self, bytes: usize) -> Done<Span> {
        let mut state = self.state();
        let taken = (bytes as u64).next_multiple_of(64);
        if state.live + taken > state.budget {
            return Err(Failure::OutOfMemory {
                asked: taken,
                used: state.live,
                budget: state.budget,
            });
        }
        let address = state.next.max(FIRST);
        state.next = (address + taken + GAP).next_multiple_of(64);
        // Not zeros, so that nobody relies on them.
        state.memory.insert(address, vec![0xff; bytes]);
        state.live += taken;
        state.peak = state.peak.max(state.live);
        Ok(Span { address, bytes })
    }

    fn free(&self, memory: Span) {
        let mut state = self.state();
        let freed = state.memory.remove(&memory.address);
        assert_eq!(freed.map(|freed| freed.len()), Some(memory.bytes));
        state.live -= (memory.bytes as u64).next_multiple_of(64);
    }

    fn upload(&self, to: Span, from: &[u8]) -> Done {
        self.bytes(to, |bytes| bytes.copy_from_slice(from));
        Ok(())
    }

    fn download(&self, from: Span, to: &mut [u8]) -> Done {
        self.bytes(from, |bytes| to.copy_from_slice(bytes));
        Ok(())
    }

    fn zero(&self, to: Span) -> Done {
        self.bytes(to, |bytes| bytes.fill(0));
        Ok(())
    }

    fn copy_lines(&self, lines: Lines) -> Done {
        let from = self.floats(lines.from);
        self.change(lines.to, |to| {
            for line in 0..lines.count {
                to[line * lines.to_pitch..][..lines.width]
                    .copy_from_slice(&from[line * lines.from_pitch..][..lines.width]);
            }
        })
    }

    fn elementwise(&self, op: Elementwise, x: Span, y: Span) -> Done {
        let y = self.floats(y);
        self.change(x, |x| match op {
            Elementwise::Add => kernels::add(x, &y),
            Elementwise::Mul => kernels::mul(x, &y),
            Elementwise::Copy => kernels::copy(x, &y),
            Elementwise::AddScaled(factor) => kernels::add_scaled(x, factor, &y),
        })
    }

    fn apply(&self, function: Function, x: Span) -> Done {
        self.change(x, |x| match function {
            Function::Act(act) => kernels::activate(x, act),
            Function::Tanh => x.iter_mut().for_each(|x| *x = x.tanh()),
            Function::Plus(constant) => x.iter_mut().for_each(|x| *x += constant),
        })
    }

    fn fill_rows(&self, out: Rows, row: Span) -> Done {
        let row = self.floats(row);
        self.change(out.data, |out| {
            for to in out.chunks_exact_mut(row.len()) {
                to.copy_from_slice(&row);
            }
        })
    }

    fn widen(&self, from: Matrix, out: Span) -> Done {
        let brought = Brought::of(self, from);
        self.change(out, |out| {
            kernels::to_f32(from.stored, &brought.bytes, out);
            if let Some(scales) = brought.view().scales {
                scales.apply(out, from.cols);
            }
        })
    }

    fn linear(&self, x: Rows, w: Matrix, finish: Finish, precision: Precision, out: Rows) -> Done {
        let (values, w) = (self.floats(x.data), Brought::of(self, w));
        let (x, w) = (view(&values, x), w.view());
        match finish {
            Finish::Linear { bias, act } => {
                let bias = self.optional(bias);
                self.change(out.data, |to| {
                    let out = view_mut(to, out);
                    kernels::linear(x, &w, bias.as_deref(), act, precision, out);
                })
            }
            Finish::Add { scale, act } => self.change(out.data, |to| {
                kernels::linear_add(x, &w, scale, act, precision, view_mut(to, out));
            }),
        }
    }

    fn linear_gated(&self, x: Rows, gated: Gated, precision: Precision, out: Rows) -> Done {
        let values = self.floats(x.data);
        let [gate, value] = [gated.gate, gated.value].map(|matrix| Brought::of(self, matrix));
        let (x, gate, value) = (view(&values, x), gate.view(), value.view());
        match gated.biases {
            None => self.change(out.data, |to| {
                kernels::linear_swiglu(x, &gate, &value, precision, view_mut(to, out));
            }),
            Some(biases) => {
                let [gate_bias, value_bias] = biases.map(|bias| self.floats(bias));
                self.change(out.data, |to| {
                    let out = view_mut(to, out);
                    let biases = [&value_bias[..], &gate_bias[..]];
                    kernels::linear_geglu(x, [&value, &gate], biases, precision, out);
                })
            }
        }
    }

    fn rms_norm(&self, x: Rows, weight: Span, eps: f32, scale: Option<Span>, out: Rows) -> Done {
        let (values, weight) = (self.floats(x.data), self.floats(weight));
        let scale = self.optional(scale);
        self.change(out.data, |to| {
            let (x, out) = (view(&values, x), view_mut(to, out));
            kernels::rms_norm(x, Some(&weight), eps, scale.as_deref(), out);
        })
    }

    fn rms_norm_add(&self, y: Rows, weight: Span, eps: f32, gate: Option<Span>, x: Rows) -> Done {
        let (values, weight) = (self.floats(y.data), self.floats(weight));
        let gate = self.optional(gate);
        self.change(x.data, |to| {
            let (y, x) = (view(&values, y), view_mut(to, x));
            kernels::rms_norm_add(y, &weight, eps, gate.as_deref(), x);
        })
    }

    fn layer_norm(&self, x: Rows, norm: LayerNorm, out: Rows) -> Done {
        let values = self.floats(x.data);
        let [weight, bias, scale] =
            [norm.weight, norm.bias, norm.scale].map(|span| self.optional(span));
        let (weight, bias, scale) = (weight.as_deref(), bias.as_deref(), scale.as_deref());
        self.change(out.data, |to| {
            let (x, out) = (view(&values, x), view_mut(to, out));
            kernels::layer_norm(x, weight, bias, norm.eps, scale, out);
        })
    }

    fn head_norm_rotary(
        &self,
        x: Rows,
        head_dim: usize,
        weight: Option<(Span, f32)>,
        rotary: Option<(Rotary, Span, Span)>,
    ) -> Done {
        let weight = weight.map(|(weight, eps)| (self.floats(weight), eps));
        let rotary = rotary.map(|(kind, cos, sin)| (kind, self.floats(cos), self.floats(sin)));
        let weight = weight.as_ref().map(|(weight, eps)| (&weight[..], *eps));
        let rotary = rotary
            .as_ref()
            .map(|(kind, cos, sin)| (*kind, &cos[..], &sin[..]));
        self.change(x.data, |to| {
            kernels::head_norm_rotary(view_mut(to, x), head_dim, weight, rotary);
        })
    }

    fn attention(&self, spec: &Attention, q: Rows, k: Rows, v: Rows, out: Rows) -> Done {
        let [queries, keys, values] = [q, k, v].map(|rows| self.floats(rows.data));
        self.change(out.data, |to| {
            let (q, k, v) = (view(&queries, q), view(&keys, k), view(&values, v));
            kernels::attention(spec, q, k, v, view_mut(to, out));
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
        let (values, weight) = (self.floats(x.data), Brought::of(self, conv.weight));
        let (bias, input) = (self.optional(conv.bias), self.affine(conv.input));
        let host = kernels::Conv2d {
            weight: weight.view(),
            bias: bias.as_deref(),
            kernel: conv.kernel,
            stride: conv.stride,
            padding: conv.kernel / 2,
            upsample: conv.upsample,
            input: conv.input.zip(input.as_ref()).map(|(affine, both)| {
                let [scale, shift] = both;
                let act = affine.act;
                kernels::ChannelAffine { scale, shift, act }
            }),
        };
        let add = match residual {
            Residual::Other(add) => Some(self.floats(add)),
            _ => None,
        };
        let slopes = match conv.after {
            After::Slopes(slopes) => self.floats(slopes),
            _ => Vec::new(),
        };
        let finish = match conv.after {
            After::Plain => None,
            After::Scaled(factor) => Some(kernels::Finish::Scaled(factor)),
            After::Leaky(slope) => Some(kernels::Finish::Leaky(slope)),
            After::Slopes(_) => Some(kernels::Finish::Slopes(&slopes)),
        };
        if let Some(finish) = finish {
            assert_eq!(conv.padding, kernels::Padding::all(conv.kernel / 2));
            let precision = (precision, add.as_deref());
            return self.change(out.data, |to| {
                kernels::conv2d_finished(
                    &host,
                    finish,
                    &values,
                    x.rows,
                    x.width,
                    precision.0,
                    precision.1,
                    to,
                    out.rows,
                );
            });
        }
        self.change(out.data, |to| match residual {
            Residual::Out => kernels::conv2d_in_place_add(
                &host, &values, x.rows, x.width, precision, to, out.rows,
            ),
            _ => kernels::conv2d_padded(
                &host,
                conv.padding,
                &values,
                x.rows,
                x.width,
                precision,
                add.as_deref(),
                to,
                out.rows,
            ),
        })
    }

    fn group_sums(&self, strip: Span, shape: [usize; 3], groups: usize, sums: Span) -> Done {
        let [channels, rows, width] = shape;
        let (values, mut found) = (self.floats(strip), self.doubles(sums));
        kernels::group_sums(&values, channels, rows, width, groups, &mut found);
        let found: Vec<u8> = found
            .iter()
            .flatten()
            .flat_map(|sum| sum.to_ne_bytes())
            .collect();
        self.upload(sums, &found)
    }

    fn group_affine(&self, sums: Span, count: u64, norm: GroupNorm, out: [Span; 2]) -> Done {
        let sums = self.doubles(sums);
        assert_eq!(sums.len(), norm.groups);
        let (weight, bias) = (self.floats(norm.weight), self.floats(norm.bias));
        let (scale, shift) = kernels::group_affine(&sums, count, norm.eps, &weight, &bias);
        self.write(out[0], &scale);
        self.write(out[1], &shift);
        Ok(())
    }

    fn map_to_tokens(
        &self,
        x: Span,
        factors: [Span; 2],
        plane: usize,
        first: usize,
        out: Rows,
    ) -> Done {
        let (values, [scale, shift]) = (self.floats(x), factors.map(|span| self.floats(span)));
        self.change(out.data, |to| {
            let factors = [&scale[..], &shift[..]];
            kernels::map_to_tokens(&values, factors, plane, first, view_mut(to, out));
        })
    }

    fn add_tokens_to_map(&self, tokens: Rows, map: Span, plane: usize, first: usize) -> Done {
        let values = self.floats(tokens.data);
        self.change(map, |map| {
            kernels::add_tokens_to_map(view(&values, tokens), map, plane, first);
        })
    }

    fn patches(&self, map: Span, shape: [usize; 3], patches: Span, back: bool) -> Done {
        let [channels, h, w] = shape;
        let [mut cells, mut rows] = [map, patches].map(|span| self.floats(span));
        for y in 0..h {
            for x in 0..w {
                let token = y / 2 * (w / 2) + x / 2;
                let within = y % 2 * 2 + x % 2;
                for c in 0..channels {
                    let cell = &mut cells[(c * h + y) * w + x];
                    let row = &mut rows[(token * 4 + within) * channels + c];
                    if back {
                        *cell = *row;
                    } else {
                        *row = *cell;
                    }
                }
            }
        }
        self.write(map, &cells);
        self.write(patches, &rows);
        Ok(())
    }
}

/// Blocks that were brought to a device.
#[derive(Debug)]
pub(crate) struct There {
    pub(crate) shadow: Arc<Shadow>,
    blocks: Vec<Memory>,
}

impl There {
    pub(crate) fn new<'a>(blocks: impl Iterator<Item = &'a [u8]>) -> There {
        let shadow = Arc::new(Shadow::new(u64::MAX));
        let blocks = blocks.map(|block| brought(&shadow, block)).collect();
        There { shadow, blocks }
    }

    pub(crate) fn bytes(&self, block: usize) -> Bytes<'_> {
        self.blocks[block].bytes()
    }

    pub(crate) fn place(&self) -> Place {
        let device: Arc<dyn Device> = self.shadow.clone();
        Place::Device(device)
    }
}

/// Bytes brought to a device.
pub(crate) fn brought(shadow: &Arc<Shadow>, bytes: &[u8]) -> Memory {
    let device: Arc<dyn Device> = shadow.clone();
    let memory = Allocation::new(&device, bytes.len()).expect("room");
    device.upload(memory.span(), bytes).expect("a copy");
    Memory::Device(memory)
}
