//! The layers that models are made of. Each borrows its matrices where they lie and owns its small vectors.

use std::ops::Range;

use lowtide_kernels as kernels;
pub use lowtide_kernels::Padding;
use lowtide_kernels::{Activation, MapRows, Mask};

use crate::adapters::{self, Added};
use crate::device::{Allocation, Place, Values, ValuesMut, Vector};
use crate::ops::{self, After, Convolution, MapSlice, NormParameters, Onto, Sums};
pub use crate::ops::{ChannelAffine, Weight};
use crate::tensor::{Compute, Part, PartMut, Tensor};
use crate::{Error, Result};

/// `y = x W^T + b`, and what adapters add.
#[derive(Debug)]
pub struct Linear<'w> {
    pub(crate) weight: Weight<'w>,
    pub(crate) bias: Option<Vector>,
    pub(crate) added: Vec<Added<'w>>,
}

/// A linear layer or some of its outputs.
#[derive(Clone, Debug)]
pub(crate) struct Outputs<'a> {
    weight: Weight<'a>,
    bias: Option<Values<'a>>,
    added: Vec<Added<'a>>,
}

impl<'a> Outputs<'a> {
    pub(crate) fn forward(
        &self,
        compute: Compute,
        x: Part<'_>,
        activation: Activation,
    ) -> Result<Tensor> {
        let mut out = Tensor::new(&[x.rows(), self.weight.rows()])?;
        let at_once = if self.added.is_empty() {
            activation
        } else {
            Activation::None
        };
        let (bias, precision) = (self.bias, compute.precision);
        let mut rows = out.all_mut();
        ops::linear(x, &self.weight, bias, at_once, precision, &mut rows)?;
        adapters::add_to_rows(&self.added, compute, x, activation, &mut rows)?;
        Ok(out)
    }
}

impl Linear<'_> {
    /// The layer that gives some of its outputs.
    pub(crate) fn outputs(&self, rows: Range<usize>) -> Outputs<'_> {
        let added = self.added.iter();
        Outputs {
            weight: self.weight.rows_at(rows.clone()),
            added: added.map(|added| added.outputs(&rows)).collect(),
            bias: self.bias.as_ref().map(|bias| bias.values().part(rows)),
        }
    }

    /// Applies it to rows.
    ///
    /// # Shapes
    /// `x` (R, dim_in) to (R, dim_out), f32.
    ///
    /// # Errors
    /// When the columns do not match, or memory is refused.
    pub fn forward<'a>(&self, compute: Compute, x: impl Into<Part<'a>>) -> Result<Tensor> {
        self.forward_activated(compute, x, Activation::None)
    }

    /// Applies it and then `activation`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_activated<'a>(
        &self,
        compute: Compute,
        x: impl Into<Part<'a>>,
        activation: Activation,
    ) -> Result<Tensor> {
        let x = x.into();
        self.check(x)?;
        self.outputs(0..self.weight.rows())
            .forward(compute, x, activation)
    }

    fn check(&self, x: Part<'_>) -> Result<()> {
        if x.columns() == self.weight.cols() {
            return Ok(());
        }
        let expected = vec![x.rows(), self.weight.cols()];
        Err(Error::Shape {
            what: "linear",
            expected,
            found: vec![x.rows(), x.columns()],
        })
    }
}

/// `silu(x W1^T) * (x W3^T)`: the gated half of a feed-forward, in one pass and one buffer.
///
/// # Shapes
/// `x` (R, dim_in) to (R, hidden), f32.
///
/// # Errors
/// When the columns do not match, or memory is refused.
pub fn gated<'a>(
    compute: Compute,
    x: impl Into<Part<'a>>,
    w1: &Linear<'_>,
    w3: &Linear<'_>,
) -> Result<Tensor> {
    let x = x.into();
    w1.check(x)?;
    w3.check(x)?;
    if !w1.added.is_empty() || !w3.added.is_empty() {
        let [gate, value] = [w1, w3].map(|layer| layer.outputs(0..layer.weight.rows()));
        return adapters::gated_apart(compute, x, (&gate, Activation::Silu), &value);
    }
    let mut out = Tensor::new(&[x.rows(), w1.weight.rows()])?;
    let precision = compute.precision;
    ops::linear_swiglu(x, &w1.weight, &w3.weight, precision, &mut out.all_mut())?;
    Ok(out)
}

/// `(x V^T + b) * gelu(x G^T + c)` of a layer `proj` whose outputs are those of V, then those of G: in one pass and one
/// buffer of half as many columns.
///
/// # Shapes
/// `x` (R, dim_in) to (R, outputs of `proj` / 2), f32.
///
/// # Errors
/// When the columns do not match, or memory is refused.
pub fn geglu<'a>(compute: Compute, x: impl Into<Part<'a>>, proj: &Linear<'_>) -> Result<Tensor> {
    let x = x.into();
    proj.check(x)?;
    let outputs = proj.weight.rows() / 2;
    if !proj.added.is_empty() {
        let [value, gate] = [0..outputs, outputs..2 * outputs].map(|rows| proj.outputs(rows));
        return adapters::gated_apart(compute, x, (&gate, Activation::Gelu), &value);
    }
    let [value, gate] = [0..outputs, outputs..2 * outputs].map(|rows| proj.weight.rows_at(rows));
    let none = match &proj.bias {
        Some(_) => None,
        None => Some(Vector::here(vec![0.0; 2 * outputs])?),
    };
    let bias = proj.bias.as_ref().or(none.as_ref());
    let bias = bias.expect("one of them is there").values();
    let biases = [bias.part(0..outputs), bias.part(outputs..2 * outputs)];
    let mut out = Tensor::new(&[x.rows(), outputs])?;
    let precision = compute.precision;
    ops::linear_geglu(x, [&value, &gate], biases, precision, &mut out.all_mut())?;
    Ok(out)
}

/// Root-mean-square norm with a learned scale.
#[derive(Debug)]
pub struct RmsNorm {
    /// The learned scale, one value a column.
    pub weight: Vector,
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNorm {
    /// `x / rms(x) * weight`, and `* scale` where given.
    ///
    /// # Errors
    /// When memory is refused.
    pub fn forward<'a>(&self, x: impl Into<Part<'a>>, scale: Option<Values<'_>>) -> Result<Tensor> {
        let x = x.into();
        let mut out = Tensor::new(&[x.rows(), x.columns()])?;
        let weight = self.weight.values();
        ops::rms_norm(x, weight, self.eps, scale, &mut out.all_mut())?;
        Ok(out)
    }

    /// `x += gate * norm(y)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add_to(&self, y: &Tensor, gate: Option<Values<'_>>, mut x: PartMut<'_>) -> Result<()> {
        ops::rms_norm_add(y.all(), self.weight.values(), self.eps, gate, &mut x)
    }
}

/// Layer norm with a learned scale and shift.
#[derive(Debug)]
pub struct LayerNorm {
    /// The learned scale, one value a column.
    pub weight: Vector,
    /// The learned shift, one value a column.
    pub bias: Vector,
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNorm {
    /// `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`, row by row.
    ///
    /// # Errors
    /// [`Error::Shape`] when the columns do not match, or memory is refused.
    pub fn forward<'a>(&self, x: impl Into<Part<'a>>) -> Result<Tensor> {
        let x = x.into();
        if x.columns() != self.weight.len() {
            return Err(Error::Shape {
                what: "layer norm",
                expected: vec![x.rows(), self.weight.len()],
                found: vec![x.rows(), x.columns()],
            });
        }
        let mut out = Tensor::new(&[x.rows(), x.columns()])?;
        let norm = NormParameters {
            weight: Some(self.weight.values()),
            bias: Some(self.bias.values()),
            eps: self.eps,
            scale: None,
        };
        ops::layer_norm(x, norm, &mut out.all_mut())?;
        Ok(out)
    }
}

/// Layer norm without learned parameters, times `scale`.
///
/// # Errors
/// When memory is refused.
pub fn layer_norm_scaled<'a>(
    x: impl Into<Part<'a>>,
    eps: f32,
    scale: Values<'_>,
) -> Result<Tensor> {
    let x = x.into();
    let mut out = Tensor::new(&[x.rows(), x.columns()])?;
    let norm = NormParameters {
        weight: None,
        bias: None,
        eps,
        scale: Some(scale),
    };
    ops::layer_norm(x, norm, &mut out.all_mut())?;
    Ok(out)
}

/// Angles of a rotary embedding, a row a token.
#[derive(Debug)]
pub struct RotaryTable {
    /// Cosines (T, head_dim / 2).
    pub cos: Tensor,
    /// Sines (T, head_dim / 2).
    pub sin: Tensor,
}

impl RotaryTable {
    /// The table whose angle for token `t` and pair `p` is `angle(t, p)`, rounded to f32 before cosine and sine are
    /// taken, as the reference implementations do.
    ///
    /// # Errors
    /// When memory is refused.
    pub fn new(
        tokens: usize,
        pairs: usize,
        angle: impl Fn(usize, usize) -> f32,
    ) -> Result<RotaryTable> {
        let mut cos = vec![0.0; tokens * pairs];
        let mut sin = vec![0.0; tokens * pairs];
        for token in 0..tokens {
            for pair in 0..pairs {
                // The double-precision functions of a single-precision angle round correctly.
                let (s, c) = f64::from(angle(token, pair)).sin_cos();
                cos[token * pairs + pair] = c as f32;
                sin[token * pairs + pair] = s as f32;
            }
        }
        let cos = Tensor::from_slice(&[tokens, pairs], &cos)?;
        let sin = Tensor::from_slice(&[tokens, pairs], &sin)?;
        Ok(RotaryTable { cos, sin })
    }

    /// A copy of a table of the host where this thread makes new tensors.
    ///
    /// # Errors
    /// When memory is refused.
    pub fn copied_here(&self) -> Result<RotaryTable> {
        Ok(RotaryTable {
            cos: self.cos.copied_here()?,
            sin: self.sin.copied_here()?,
        })
    }
}

/// Normalises (where `norm` is given) and rotates each head in place.
///
/// # Shapes
/// `x` (T, heads * head_dim); the first T rows of `table` (T or more, head_dim / 2) are used.
///
/// # Errors
/// When the device fails.
pub fn rotate_heads(
    mut x: PartMut<'_>,
    head_dim: usize,
    norm: Option<&RmsNorm>,
    kind: kernels::Rotary,
    table: &RotaryTable,
) -> Result<()> {
    let norm = norm.map(|norm| (norm.weight.values(), norm.eps));
    let rows = 0..x.rows();
    let (cos, sin) = (
        table.cos.part(rows.clone()).values(),
        table.sin.part(rows).values(),
    );
    ops::head_norm_rotary(&mut x, head_dim, norm, (kind, cos, sin))
}

/// Heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; each serves `query / key_value` query heads.
    pub key_value: usize,
    /// Values a head.
    pub dim: usize,
    /// Whether a token sees only itself and what is before it.
    pub causal: bool,
}

impl Heads {
    /// `softmax(q k^T / sqrt(dim)) v` over one sequence, without the score matrix.
    ///
    /// # Shapes
    /// `q`, `out` (T, query * dim); `k`, `v` (T, key_value * dim).
    ///
    /// # Errors
    /// When the device fails.
    pub fn attend(
        &self,
        compute: Compute,
        q: Part<'_>,
        k: Part<'_>,
        v: Part<'_>,
        mut out: PartMut<'_>,
    ) -> Result<()> {
        let spec = kernels::Attention {
            heads: self.query,
            kv_heads: self.key_value,
            head_dim: self.dim,
            scale: 1.0 / (self.dim as f32).sqrt(),
            mask: if self.causal {
                Mask::Causal
            } else {
                Mask::None
            },
            precision: compute.precision,
        };
        ops::attention(&spec, [q, k, v], &mut out)
    }
}

/// Group norm; its sums are taken over whole maps, row by row in a fixed order, so that strips change nothing.
#[derive(Debug)]
pub struct GroupNorm {
    /// Number of groups.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Learned scale, one value a channel.
    pub weight: Vector,
    /// Learned shift, one value a channel.
    pub bias: Vector,
}

/// Sums of a map's groups, gathered strip by strip.
#[derive(Debug)]
pub struct GroupSums {
    sums: Sums,
}

/// A group norm reduced to one scale and shift a channel.
#[derive(Debug)]
pub struct Affine {
    /// Scale of each channel.
    pub scale: Vector,
    /// Shift of each channel.
    pub shift: Vector,
}

impl Affine {
    /// With an activation after it, as the kernels take it.
    pub fn then(&self, act: Activation) -> ChannelAffine<'_> {
        ChannelAffine {
            scale: self.scale.values(),
            shift: self.shift.values(),
            act,
        }
    }
}

impl GroupNorm {
    /// No rows seen yet, of a map that lies where this thread makes new tensors.
    ///
    /// # Errors
    /// When memory is refused.
    pub fn sums(&self) -> Result<GroupSums> {
        let sums = match Place::here() {
            Place::Host => Sums::Host(vec![[0.0; 2]; self.groups]),
            Place::Device(device) => {
                let memory = Allocation::new(&device, self.groups * size_of::<[f64; 2]>())?;
                device.zero(memory.span())?;
                Sums::Device(memory)
            }
        };
        Ok(GroupSums { sums })
    }

    /// Adds the rows of a strip (channels, rows, width), which follow the rows already added.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is no map of this norm's channels.
    pub fn add_rows(&self, strip: &Tensor, sums: &mut GroupSums) -> Result<()> {
        let (channels, rows, width) = strip.dims3()?;
        if channels != self.weight.len() {
            let expected = vec![self.weight.len(), rows, width];
            return Err(Error::Shape {
                what: "group norm",
                expected,
                found: strip.shape().to_vec(),
            });
        }
        let shape = [channels, rows, width];
        ops::group_sums(strip.values(), shape, self.groups, &mut sums.sums)
    }

    /// The norm of a map of `height * width` = `plane` values a channel, once all its rows were added.
    ///
    /// # Errors
    /// When memory is refused.
    pub fn affine(&self, sums: &GroupSums, plane: usize) -> Result<Affine> {
        let channels = self.weight.len();
        let count = (plane * channels / self.groups) as u64;
        let (weight, bias) = (self.weight.values(), self.bias.values());
        match &sums.sums {
            Sums::Host(sums) => {
                let (scale, shift) =
                    kernels::group_affine(sums, count, self.eps, weight.host(), bias.host());
                Ok(Affine {
                    scale: scale.into(),
                    shift: shift.into(),
                })
            }
            Sums::Device(sums) => {
                let device = sums.device();
                let [scale, shift] = [Vector::on(device, channels)?, Vector::on(device, channels)?];
                let norm = ops::group_norm_there(self.groups, self.eps, weight, bias);
                let out = [scale.values().span(), shift.values().span()];
                device.group_affine(sums.span(), count, norm, out)?;
                Ok(Affine { scale, shift })
            }
        }
    }
}

/// A convolution with a square kernel; stride 1 and zero padding of `kernel / 2` on all sides, unless [`Around::halve`]
/// says otherwise.
#[derive(Debug)]
pub struct Conv2d<'w> {
    pub(crate) weight: Weight<'w>,
    pub(crate) bias: Vector,
    pub(crate) kernel: usize,
    pub(crate) added: Vec<Added<'w>>,
}

/// What happens to a map around a convolution.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around<'a> {
    /// Applied to the input as it is read (not to the padding).
    pub input: Option<ChannelAffine<'a>>,
    /// The input is first enlarged twice, each value becoming four.
    pub upsample: bool,
    /// Every other row and column is computed (stride 2), of a map with these zeros around it.
    pub halve: Option<Padding>,
    /// Added to each channel of the result, beside the bias.
    pub shift: Option<Values<'a>>,
}

impl Around<'_> {
    fn stride(&self) -> usize {
        if self.halve.is_some() { 2 } else { 1 }
    }

    /// The zeros around the map.
    pub(crate) fn padding(&self, kernel: usize) -> Padding {
        self.halve.unwrap_or(Padding::all(kernel / 2))
    }

    /// Rows (or columns) of the result for `size` of the map and `zeros` around them; `None` where the kernel is larger.
    pub(crate) fn size_out(&self, size: usize, kernel: usize, zeros: usize) -> Option<usize> {
        let padded = (size << usize::from(self.upsample)) + zeros;
        Some(padded.checked_sub(kernel)? / self.stride() + 1)
    }
}

/// A horizontal strip of a map (channels, rows, width): `first..first + rows` of `height` rows.
#[derive(Debug)]
pub struct Strip {
    /// The rows (channels, rows, width).
    pub rows: Tensor,
    /// Index of the first row in the whole map.
    pub first: usize,
    /// Rows of the whole map.
    pub height: usize,
}

impl Strip {
    fn map_rows(&self) -> MapRows {
        MapRows {
            total: self.height,
            first: self.first,
            count: self.rows.shape()[1],
        }
    }
}

fn same_shape(what: &'static str, expected: &Tensor, found: &Tensor) -> Result<()> {
    if expected.shape() == found.shape() {
        return Ok(());
    }
    Err(Error::Shape {
        what,
        expected: expected.shape().to_vec(),
        found: found.shape().to_vec(),
    })
}

impl Conv2d<'_> {
    /// Rows `out_rows` of the result, from a strip that holds the rows they need; `add`, of the same rows, is added.
    ///
    /// # Shapes
    /// `x` (dim_in, rows, W) to (dim_out, out_rows, W), f32; 2 W when enlarged, about W / 2 when halved.
    ///
    /// # Errors
    /// When memory is refused or shapes do not match.
    pub fn forward(
        &self,
        compute: Compute,
        x: &Strip,
        around: Around<'_>,
        out_rows: Range<usize>,
        add: Option<&Tensor>,
    ) -> Result<Strip> {
        let (out, rows) = self.result(x, around, out_rows)?;
        if let Some(add) = add {
            same_shape("residual", &out, add)?;
        }
        let mut out = Strip {
            rows: out,
            first: rows.first,
            height: rows.total,
        };
        let onto = add.map_or(Onto::Nothing, |add| Onto::Other(add.values()));
        self.run(compute, x, around, onto, &mut out)?;
        Ok(out)
    }

    /// `out += conv(input(x))`, all rows, which are as many as those of x.
    ///
    /// # Errors
    /// As [`Conv2d::forward`].
    pub fn add_to(
        &self,
        compute: Compute,
        x: &Strip,
        input: Option<ChannelAffine<'_>>,
        out: &mut Strip,
    ) -> Result<()> {
        let (channels, rows, width) = out.rows.dims3()?;
        let (channels_in, rows_in, width_in) = x.rows.dims3()?;
        let expected = (self.weight.cols(), self.weight.rows(), rows, width);
        let taps = self.kernel * self.kernel;
        if expected != (channels_in * taps, channels, rows_in, width_in) {
            return Err(Error::Shape {
                what: "convolution added to a map",
                expected: vec![self.weight.rows(), rows_in, width_in],
                found: out.rows.shape().to_vec(),
            });
        }
        let around = Around {
            input,
            ..Around::default()
        };
        self.run(compute, x, around, Onto::Out, out)
    }

    /// `after(conv(x)) + add` from one part of memory to another, without adapters: for networks whose maps are parts of others.
    /// `upsample`: x is first enlarged twice, each value becoming four.
    ///
    /// # Errors
    /// [`Error::Shape`] when the numbers do not match; when a device fails.
    pub(crate) fn apply(
        &self,
        compute: Compute,
        (x, upsample): (MapSlice<'_>, bool),
        after: After<'_>,
        add: Option<Values<'_>>,
        (out, out_rows): (ValuesMut<'_>, MapRows),
    ) -> Result<()> {
        let taps = self.kernel * self.kernel;
        let width_out = x.width << usize::from(upsample);
        let expected = (
            self.weight.cols() / taps * x.rows.count * x.width,
            self.weight.rows() * out_rows.count * width_out,
        );
        if (x.data.len(), out.len()) != expected {
            return Err(Error::Shape {
                what: "convolution of a part",
                expected: vec![expected.0, expected.1],
                found: vec![x.data.len(), out.len()],
            });
        }
        let conv = Convolution {
            weight: self.weight,
            bias: Some(self.bias.values()),
            kernel: self.kernel,
            stride: 1,
            padding: Padding::all(self.kernel / 2),
            upsample,
            input: None,
        };
        let from = (x, compute.precision);
        ops::conv2d_finished(&conv, after, from, add, (out, out_rows))
    }

    /// All rows of `out`, whose shape is known to fit.
    fn run(
        &self,
        compute: Compute,
        x: &Strip,
        around: Around<'_>,
        onto: Onto<'_>,
        out: &mut Strip,
    ) -> Result<()> {
        let (_, _, width) = x.rows.dims3()?;
        let (_, _, width_out) = out.rows.dims3()?;
        let (rows, precision) = (out.map_rows(), compute.precision);
        let shifted = around.shift.map(|shift| self.shifted(shift)).transpose()?;
        let bias = shifted.as_ref().unwrap_or(&self.bias);
        let conv = Convolution {
            weight: self.weight,
            bias: Some(bias.values()),
            kernel: self.kernel,
            stride: around.stride(),
            padding: around.padding(self.kernel),
            upsample: around.upsample,
            input: around.input,
        };
        let slice = MapSlice {
            data: x.rows.values(),
            rows: x.map_rows(),
            width,
        };
        let to = (out.rows.values_mut(), rows, width_out);
        ops::conv2d(&conv, slice, precision, onto, to)?;
        if self.added.is_empty() {
            return Ok(());
        }
        adapters::add_to_map(&self.added, precision, &conv, slice, (&mut out.rows, rows))
    }

    /// The bias with what is added beside it.
    fn shifted(&self, shift: Values<'_>) -> Result<Vector> {
        if let (Values::Host(bias), Values::Host(shift)) = (self.bias.values(), shift) {
            let both = bias.iter().zip(shift);
            return Ok(Vector::from(
                both.map(|(bias, shift)| bias + shift).collect::<Vec<_>>(),
            ));
        }
        Vector::sum(self.bias.values(), shift)
    }

    /// Room for rows `out_rows` of the result, and which rows these are.
    fn result(
        &self,
        x: &Strip,
        around: Around<'_>,
        out_rows: Range<usize>,
    ) -> Result<(Tensor, MapRows)> {
        let (channels, _, width) = x.rows.dims3()?;
        if channels * self.kernel * self.kernel != self.weight.cols() {
            let expected = vec![self.weight.cols() / (self.kernel * self.kernel)];
            return Err(Error::Shape {
                what: "convolution",
                expected,
                found: x.rows.shape().to_vec(),
            });
        }
        let padding = around.padding(self.kernel);
        let (Some(height), Some(width_out)) = (
            around.size_out(x.height, self.kernel, padding.top + padding.bottom),
            around.size_out(width, self.kernel, padding.left + padding.right),
        ) else {
            return Err(Error::Shape {
                what: "a map as large as the kernel",
                expected: vec![self.kernel; 2],
                found: vec![x.height, width],
            });
        };
        let out = Tensor::new(&[self.weight.rows(), out_rows.len(), width_out])?;
        let rows = MapRows {
            total: height,
            first: out_rows.start,
            count: out_rows.len(),
        };
        Ok((out, rows))
    }
}
