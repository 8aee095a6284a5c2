//! Maps, and the machine that computes on them: for real, or in a rehearsal that only counts.
//!
//! A rehearsal runs the very code that decodes and encodes, on shapes alone. What it counts, bytes at the worst moment and
//! operations, is what the planner is told, so the two cannot drift apart.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use lowtide_kernels::Activation;

use super::network::{Attention, Conv, Norm};
use crate::device::{Place, ValuesMut};
use crate::layers::{Affine, GroupSums, Heads, Linear, Strip};
use crate::tensor::{Compute, Tensor};
use crate::{Error, Result, ops};

/// Side of the square in which maps are turned into tokens and back: two squares of f32 stay in the first-level cache.
const TRANSPOSE_SIDE: usize = 32;

/// Buffers are rounded up to this many bytes.
const BUFFER_GRAIN: u64 = lowtide_kernels::memory::BUFFER_ALIGNMENT as u64;

/// What a rehearsal counts.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    live: Cell<u64>,
    peak: Cell<u64>,
    flops: Cell<f64>,
}

impl Ledger {
    /// Bytes at the worst moment so far.
    pub(super) fn peak(&self) -> u64 {
        self.peak.get()
    }

    /// Operations so far.
    pub(super) fn flops(&self) -> f64 {
        self.flops.get()
    }

    fn work(&self, flops: f64) {
        self.flops.set(self.flops.get() + flops);
    }
}

/// Bytes that a rehearsal counts as live until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    ledger: Rc<Ledger>,
    bytes: u64,
}

impl Held {
    fn new(ledger: &Rc<Ledger>, elements: usize) -> Held {
        let bytes = (elements as u64 * 4).next_multiple_of(BUFFER_GRAIN);
        let live = ledger.live.get() + bytes;
        ledger.live.set(live);
        ledger.peak.set(ledger.peak.get().max(live));
        Held {
            ledger: Rc::clone(ledger),
            bytes,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger.live.set(self.ledger.live.get() - self.bytes);
    }
}

/// Some rows of a map of `height` rows.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) channels: usize,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) rows: Range<usize>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Real(Strip),
    Rehearsed { _held: Held },
}

impl Map {
    fn real(strip: Strip) -> Result<Map> {
        let (channels, count, width) = strip.rows.dims3()?;
        let (height, rows) = (strip.height, strip.first..strip.first + count);
        Ok(Map {
            channels,
            width,
            height,
            rows,
            values: Values::Real(strip),
        })
    }

    /// Values a channel of the whole map.
    pub(super) fn plane(&self) -> usize {
        self.height * self.width
    }

    fn strip(&self) -> &Strip {
        match &self.values {
            Values::Real(strip) => strip,
            Values::Rehearsed { .. } => {
                unreachable!("a rehearsed map never meets the real machine")
            }
        }
    }

    fn values_there(&mut self) -> ValuesMut<'_> {
        match &mut self.values {
            Values::Real(strip) => strip.rows.values_mut(),
            Values::Rehearsed { .. } => {
                unreachable!("a rehearsed map never meets the real machine")
            }
        }
    }

    /// The same on the host.
    pub(super) fn into_host(self) -> Result<Map> {
        match self.values {
            Values::Real(strip) => Map::real(Strip {
                rows: strip.rows.into_host()?,
                ..strip
            }),
            Values::Rehearsed { .. } => Ok(self),
        }
    }

    /// Its values; `None` in a rehearsal.
    pub(super) fn into_tensor(self) -> Option<Tensor> {
        match self.values {
            Values::Real(strip) => Some(strip.rows),
            Values::Rehearsed { .. } => None,
        }
    }
}

/// A norm whose sums are complete: nothing in a rehearsal.
#[derive(Debug)]
pub(super) struct Finished(Option<Affine>);

/// Sums being gathered: nothing in a rehearsal.
#[derive(Debug)]
pub(super) struct Sums(Option<GroupSums>);

/// Computes, or counts what computing would take.
#[derive(Clone, Debug)]
pub(super) enum Machine {
    /// Computes.
    Real(Compute),
    /// Counts.
    Rehearsal(Rc<Ledger>),
}

impl Machine {
    /// Rows of a map whose values are yet to be written.
    pub(super) fn empty(
        &self,
        channels: usize,
        height: usize,
        width: usize,
        rows: Range<usize>,
    ) -> Result<Map> {
        let values = match self {
            Machine::Real(_) => {
                let tensor = Tensor::new(&[channels, rows.len(), width])?;
                Values::Real(Strip {
                    rows: tensor,
                    first: rows.start,
                    height,
                })
            }
            Machine::Rehearsal(ledger) => Values::Rehearsed {
                _held: Held::new(ledger, channels * rows.len() * width),
            },
        };
        Ok(Map {
            channels,
            width,
            height,
            rows,
            values,
        })
    }

    /// The whole map that `fill` writes (channels, height, width).
    pub(super) fn filled(&self, shape: [usize; 3], fill: impl FnOnce(&mut [f32])) -> Result<Map> {
        let [channels, height, width] = shape;
        let Machine::Real(_) = self else {
            return self.empty(channels, height, width, 0..height);
        };
        // The host fills it, wherever it goes.
        let host = Place::Host.enter();
        let mut rows = Tensor::new(&[channels, height, width])?;
        fill(rows.data_mut());
        drop(host);
        let rows = rows.brought_here()?;
        Map::real(Strip {
            rows,
            first: 0,
            height,
        })
    }

    /// Copies the rows that both have from `from` to `to`.
    pub(super) fn copy_rows(&self, to: &mut Map, from: &Map) -> Result<()> {
        let Machine::Real(_) = self else {
            return Ok(());
        };
        let rows = to.rows.start.max(from.rows.start)..to.rows.end.min(from.rows.end);
        if rows.is_empty() {
            return Ok(());
        }
        let width = to.width;
        let (to_plane, to_first) = (to.rows.len() * width, (rows.start - to.rows.start) * width);
        let (from_plane, from_first) = (
            from.rows.len() * width,
            (rows.start - from.rows.start) * width,
        );
        let (channels, count) = (to.channels, rows.len() * width);
        let source = from.strip().rows.values();
        let source = source.part(from_first..source.len());
        let mut target = to.values_there();
        let all = target.len();
        let target = target.part(to_first..all);
        ops::copy_lines((source, from_plane), (target, to_plane), count, channels)
    }

    /// A copy of some rows.
    pub(super) fn crop(&self, x: &Map, rows: Range<usize>) -> Result<Map> {
        let mut copy = self.empty(x.channels, x.height, x.width, rows)?;
        self.copy_rows(&mut copy, x)?;
        Ok(copy)
    }

    /// Rows `rows` of a convolution of `x`, which holds the rows they need; of `silu(norm(x))` where a norm is given.
    pub(super) fn conv(
        &self,
        conv: &Conv<'_>,
        x: &Map,
        norm: Option<&Finished>,
        rows: Range<usize>,
        add: Option<&Map>,
    ) -> Result<Map> {
        match self {
            Machine::Real(compute) => {
                let input = norm.map(|norm| {
                    norm.0
                        .as_ref()
                        .expect("real sums make a real norm")
                        .then(Activation::Silu)
                });
                let around = conv.around(input);
                let add = add.map(|add| &add.strip().rows);
                let layer = conv
                    .layer
                    .as_ref()
                    .expect("the real machine is given loaded layers");
                Map::real(layer.forward(*compute, x.strip(), around, rows, add)?)
            }
            Machine::Rehearsal(ledger) => {
                let (height, width) = (conv.size_out(x.height), conv.size_out(x.width));
                let taps = conv.channels_in * conv.kernel * conv.kernel;
                ledger.work(
                    2.0 * taps as f64 * conv.channels_out as f64 * (rows.len() * width) as f64,
                );
                self.empty(conv.channels_out, height, width, rows)
            }
        }
    }

    /// No rows seen yet.
    pub(super) fn sums(&self, norm: &Norm) -> Result<Sums> {
        let sums = norm.layer.as_ref().map(|layer| layer.sums());
        Ok(Sums(sums.transpose()?))
    }

    /// Adds rows that follow those already added.
    pub(super) fn add_rows(&self, norm: &Norm, x: &Map, sums: &mut Sums) -> Result<()> {
        match (self, &norm.layer, &mut sums.0) {
            (Machine::Real(_), Some(layer), Some(sums)) => layer.add_rows(&x.strip().rows, sums),
            _ => Ok(()),
        }
    }

    /// The norm of a map of `plane` values a channel, all of whose rows were added.
    pub(super) fn finish(&self, norm: &Norm, sums: &Sums, plane: usize) -> Result<Finished> {
        let both = norm.layer.as_ref().zip(sums.0.as_ref());
        let affine = both.map(|(layer, sums)| layer.affine(sums, plane));
        Ok(Finished(affine.transpose()?))
    }

    /// The norm of a map that is there as a whole.
    pub(super) fn norm(&self, norm: &Norm, x: &Map) -> Result<Finished> {
        let mut sums = self.sums(norm)?;
        self.add_rows(norm, x, &mut sums)?;
        self.finish(norm, &sums, x.plane())
    }

    /// Attention of every place of a whole map over every other, added to the map.
    ///
    /// # Memory
    /// The map and four times its size: tokens, queries, keys and values; later the result in place of the tokens.
    pub(super) fn attend(&self, attention: &Attention<'_>, mut x: Map) -> Result<Map> {
        let (tokens, channels) = (x.plane(), x.channels);
        match self {
            Machine::Real(compute) => {
                let norm = self
                    .norm(&attention.norm, &x)?
                    .0
                    .expect("real sums make a real norm");
                let layers = attention
                    .layers
                    .as_ref()
                    .expect("the real machine is given loaded layers");
                let y = attend(*compute, layers, &x.strip().rows, &norm)?;
                add_tokens(&y, x.values_there(), channels)?;
            }
            Machine::Rehearsal(ledger) => {
                let elements = tokens * channels;
                let normed = Held::new(ledger, elements);
                let qkv = [(); 3].map(|()| Held::new(ledger, elements));
                drop(normed);
                let mixed = Held::new(ledger, elements);
                drop(qkv);
                let y = Held::new(ledger, elements);
                drop((mixed, y));
                ledger.work(elements as f64 * (8.0 * channels as f64 + 4.0 * tokens as f64));
            }
        }
        Ok(x)
    }
}

/// `to_out(softmax(q k^T / sqrt(C)) v)` of the tokens of a map.
///
/// # Shapes
/// `x` (C, height, width) to (height * width, C), f32.
fn attend(
    compute: Compute,
    [to_q, to_k, to_v, to_out]: &[Linear<'_>; 4],
    x: &Tensor,
    norm: &Affine,
) -> Result<Tensor> {
    let (channels, height, width) = x.dims3()?;
    let mut normed = Tensor::new(&[height * width, channels])?;
    normed_tokens(x, norm, &mut normed)?;
    let q = to_q.forward(compute, &normed)?;
    let k = to_k.forward(compute, &normed)?;
    let v = to_v.forward(compute, &normed)?;
    drop(normed);
    let mut mixed = Tensor::new(&[height * width, channels])?;
    let heads = Heads {
        query: 1,
        key_value: 1,
        dim: channels,
        causal: false,
    };
    heads.attend(compute, q.all(), k.all(), v.all(), mixed.all_mut())?;
    drop((q, k, v));
    to_out.forward(compute, &mixed)
}

/// Calls `visit(token, channel)` for every pair, in squares, so that neither side jumps through memory.
fn in_squares(tokens: usize, channels: usize, mut visit: impl FnMut(usize, usize)) {
    for token_start in (0..tokens).step_by(TRANSPOSE_SIDE) {
        for channel_start in (0..channels).step_by(TRANSPOSE_SIDE) {
            for channel in channel_start..(channel_start + TRANSPOSE_SIDE).min(channels) {
                for token in token_start..(token_start + TRANSPOSE_SIDE).min(tokens) {
                    visit(token, channel);
                }
            }
        }
    }
}

/// A map (C, T) to tokens (T, C), normalised on the way.
fn normed_tokens(map: &Tensor, norm: &Affine, out: &mut Tensor) -> Result<()> {
    let channels = norm.scale.len();
    let tokens = map.elements() / channels;
    let (scale, shift) = (norm.scale.values(), norm.shift.values());
    if !map.place().is_host() {
        let factors = [scale, shift];
        return ops::map_to_tokens(map.values(), factors, tokens, 0, &mut out.all_mut());
    }
    let (map, scale, shift, out) = (map.data(), scale.host(), shift.host(), out.data_mut());
    in_squares(tokens, channels, |token, channel| {
        let value = map[channel * tokens + token];
        out[token * channels + channel] = value * scale[channel] + shift[channel];
    });
    Ok(())
}

/// Adds tokens (T, C) to a map (C, T).
fn add_tokens(y: &Tensor, map: ValuesMut<'_>, channels: usize) -> Result<()> {
    let tokens = map.len() / channels;
    let map = match map {
        ValuesMut::Host(map) => map,
        there @ ValuesMut::Device(_) => return ops::add_tokens_to_map(y.all(), there, tokens, 0),
    };
    let y = y.data();
    in_squares(tokens, channels, |token, channel| {
        map[channel * tokens + token] += y[token * channels + channel]
    });
    Ok(())
}

/// A tensor of a map where one must be: after a real run.
pub(super) fn real_tensor(map: Map) -> Result<Tensor> {
    let found = vec![map.channels, map.height, map.width];
    let real = map.into_tensor().ok_or(Error::Shape {
        what: "a real map",
        expected: found.clone(),
        found,
    });
    real?.into_host()
}

/// The values of a whole map.
pub(super) struct Plane<T> {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) data: T,
}

impl Map {
    /// The values of a whole map; `None` in a rehearsal.
    pub(super) fn values(&self) -> Option<Plane<&[f32]>> {
        let Map {
            channels,
            height,
            width,
            ..
        } = *self;
        match &self.values {
            Values::Real(strip) => Some(Plane {
                channels,
                height,
                width,
                data: strip.rows.data(),
            }),
            Values::Rehearsed { .. } => None,
        }
    }

    /// The values of a whole map, to be written; `None` in a rehearsal.
    pub(super) fn values_mut(&mut self) -> Option<Plane<&mut [f32]>> {
        let Map {
            channels,
            height,
            width,
            ..
        } = *self;
        match &mut self.values {
            Values::Real(strip) => Some(Plane {
                channels,
                height,
                width,
                data: strip.rows.data_mut(),
            }),
            Values::Rehearsed { .. } => None,
        }
    }
}
