//! The operations that layers are made of, where their operands lie.
//!
//! On the host they are those of [`lowtide_kernels`]; on a device, its own. All operands of a call lie in one place.

mod finished;

use lowtide_kernels as kernels;
use lowtide_kernels::{Activation, MapRows, Padding, Per, Precision, Rotary, Stored};

use crate::Result;
use crate::device;
use crate::device::{
    Affine, Conv2d, Elementwise, Finish, Function, Gated, GroupNorm, LayerNorm, Lines, Matrix, On,
    Residual, Rows, Slice, Span, Values, ValuesMut, Vector, elsewhere,
};
use crate::tensor::{Part, PartMut};

pub(crate) use finished::{After, conv2d_finished};

/// A layer's matrix, where it lies.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'w> {
    /// In the CPU's memory.
    Host(kernels::Matrix<'w>),
    /// On a device.
    Device(On<'w>, Matrix),
}

impl<'w> Weight<'w> {
    /// Outputs.
    pub fn rows(&self) -> usize {
        match self {
            Weight::Host(matrix) => matrix.rows,
            Weight::Device(_, matrix) => matrix.rows,
        }
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        match self {
            Weight::Host(matrix) => matrix.cols,
            Weight::Device(_, matrix) => matrix.cols,
        }
    }

    /// Some of its outputs.
    pub(crate) fn rows_at(&self, rows: std::ops::Range<usize>) -> Weight<'w> {
        match self {
            Weight::Host(matrix) => Weight::Host(matrix.rows_at(rows)),
            Weight::Device(on, matrix) => Weight::Device(*on, some_rows(matrix, rows)),
        }
    }

    /// The matrix, which is the CPU's.
    pub(crate) fn host(&self) -> kernels::Matrix<'w> {
        match self {
            Weight::Host(matrix) => *matrix,
            Weight::Device(..) => elsewhere(),
        }
    }

    fn there(&self) -> Matrix {
        match self {
            Weight::Device(_, matrix) => *matrix,
            Weight::Host(_) => elsewhere(),
        }
    }
}

fn some_rows(matrix: &Matrix, rows: std::ops::Range<usize>) -> Matrix {
    let row = matrix.cols * matrix.stored.size();
    let scales = matrix.scales.map(|(stored, data, per)| {
        let each = match per {
            Per::Matrix => 0,
            Per::Row => 1,
            Per::Block => matrix.cols / kernels::BLOCK,
        } * stored.size();
        let data = match per {
            Per::Matrix => data,
            _ => data.bytes_at(rows.start * each..rows.end * each),
        };
        (stored, data, per)
    });
    Matrix {
        data: matrix.data.bytes_at(rows.start * row..rows.end * row),
        rows: rows.len(),
        scales,
        ..*matrix
    }
}

/// A norm reduced to one factor and one summand a channel, and an activation after it.
#[derive(Clone, Copy, Debug)]
pub struct ChannelAffine<'a> {
    /// Factors.
    pub scale: Values<'a>,
    /// Summands.
    pub shift: Values<'a>,
    /// Applied last.
    pub act: Activation,
}

impl<'a> ChannelAffine<'a> {
    fn host(&self) -> kernels::ChannelAffine<'a> {
        kernels::ChannelAffine {
            scale: self.scale.host(),
            shift: self.shift.host(),
            act: self.act,
        }
    }

    fn there(&self) -> Affine {
        Affine {
            scale: self.scale.span(),
            shift: self.shift.span(),
            act: self.act,
        }
    }
}

impl<'a> Part<'a> {
    fn there(&self) -> Rows {
        Rows {
            data: self.values().span(),
            rows: self.rows(),
            cols: self.columns(),
        }
    }
}

/// Where an operand that is written lies on its device; `None` on the host.
fn target<'a>(out: &'a mut PartMut<'_>) -> Option<(On<'a>, Rows)> {
    let (rows, cols) = (out.rows(), out.columns());
    match out.values() {
        ValuesMut::Host(_) => None,
        ValuesMut::Device(on) => {
            let data = on.span;
            Some((on, Rows { data, rows, cols }))
        }
    }
}

/// `out = act(x W^T + bias)`.
pub(crate) fn linear(
    x: Part<'_>,
    w: &Weight<'_>,
    bias: Option<Values<'_>>,
    act: Activation,
    precision: Precision,
    out: &mut PartMut<'_>,
) -> Result<()> {
    if let Some((on, rows)) = target(out) {
        let bias = bias.map(|bias| bias.span());
        let finish = Finish::Linear { bias, act };
        on.device
            .linear(x.there(), w.there(), finish, precision, rows)?;
        return Ok(());
    }
    let bias = bias.map(|bias| bias.host());
    kernels::linear(x.view(), &w.host(), bias, act, precision, out.view());
    Ok(())
}

/// `out = act(out + scale * x W^T)`.
pub(crate) fn linear_add(
    x: Part<'_>,
    w: &Weight<'_>,
    scale: f32,
    act: Activation,
    precision: Precision,
    out: &mut PartMut<'_>,
) -> Result<()> {
    if let Some((on, rows)) = target(out) {
        let finish = Finish::Add { scale, act };
        on.device
            .linear(x.there(), w.there(), finish, precision, rows)?;
        return Ok(());
    }
    kernels::linear_add(x.view(), &w.host(), scale, act, precision, out.view());
    Ok(())
}

/// `out = silu(x gate^T) * (x value^T)`.
pub(crate) fn linear_swiglu(
    x: Part<'_>,
    gate: &Weight<'_>,
    value: &Weight<'_>,
    precision: Precision,
    out: &mut PartMut<'_>,
) -> Result<()> {
    if let Some((on, rows)) = target(out) {
        let gated = Gated {
            gate: gate.there(),
            value: value.there(),
            biases: None,
        };
        on.device.linear_gated(x.there(), gated, precision, rows)?;
        return Ok(());
    }
    kernels::linear_swiglu(x.view(), &gate.host(), &value.host(), precision, out.view());
    Ok(())
}

/// `out = (x value^T + bias) * gelu(x gate^T + bias)`.
pub(crate) fn linear_geglu(
    x: Part<'_>,
    [value, gate]: [&Weight<'_>; 2],
    [value_bias, gate_bias]: [Values<'_>; 2],
    precision: Precision,
    out: &mut PartMut<'_>,
) -> Result<()> {
    if let Some((on, rows)) = target(out) {
        let gated = Gated {
            gate: gate.there(),
            value: value.there(),
            biases: Some([gate_bias.span(), value_bias.span()]),
        };
        on.device.linear_gated(x.there(), gated, precision, rows)?;
        return Ok(());
    }
    kernels::linear_geglu(
        x.view(),
        [&value.host(), &gate.host()],
        [value_bias.host(), gate_bias.host()],
        precision,
        out.view(),
    );
    Ok(())
}

/// `out = x / rms(x) * weight * scale`.
pub(crate) fn rms_norm(
    x: Part<'_>,
    weight: Values<'_>,
    eps: f32,
    scale: Option<Values<'_>>,
    out: &mut PartMut<'_>,
) -> Result<()> {
    if let Some((on, rows)) = target(out) {
        let scale = scale.map(|scale| scale.span());
        on.device
            .rms_norm(x.there(), weight.span(), eps, scale, rows)?;
        return Ok(());
    }
    let (weight, scale) = (Some(weight.host()), scale.map(|scale| scale.host()));
    kernels::rms_norm(x.view(), weight, eps, scale, out.view());
    Ok(())
}

/// `x += gate * (y / rms(y) * weight)`.
pub(crate) fn rms_norm_add(
    y: Part<'_>,
    weight: Values<'_>,
    eps: f32,
    gate: Option<Values<'_>>,
    x: &mut PartMut<'_>,
) -> Result<()> {
    if let Some((on, rows)) = target(x) {
        let gate = gate.map(|gate| gate.span());
        on.device
            .rms_norm_add(y.there(), weight.span(), eps, gate, rows)?;
        return Ok(());
    }
    let gate = gate.map(|gate| gate.host());
    kernels::rms_norm_add(y.view(), weight.host(), eps, gate, x.view());
    Ok(())
}

/// Parameters of a layer norm, where they lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormParameters<'a> {
    pub(crate) weight: Option<Values<'a>>,
    pub(crate) bias: Option<Values<'a>>,
    pub(crate) eps: f32,
    pub(crate) scale: Option<Values<'a>>,
}

/// `out = (x - mean) / sqrt(variance + eps) * weight * scale + bias`.
pub(crate) fn layer_norm(
    x: Part<'_>,
    norm: NormParameters<'_>,
    out: &mut PartMut<'_>,
) -> Result<()> {
    let NormParameters {
        weight,
        bias,
        eps,
        scale,
    } = norm;
    if let Some((on, rows)) = target(out) {
        let there = |values: Option<Values<'_>>| values.map(|values| values.span());
        let norm = LayerNorm {
            weight: there(weight),
            bias: there(bias),
            eps,
            scale: there(scale),
        };
        on.device.layer_norm(x.there(), norm, rows)?;
        return Ok(());
    }
    let [weight, bias, scale] = [weight, bias, scale].map(|values| values.map(|v| v.host()));
    kernels::layer_norm(x.view(), weight, bias, eps, scale, out.view());
    Ok(())
}

/// Norm and rotation of each head, in place.
pub(crate) fn head_norm_rotary(
    x: &mut PartMut<'_>,
    head_dim: usize,
    weight: Option<(Values<'_>, f32)>,
    (kind, cos, sin): (Rotary, Values<'_>, Values<'_>),
) -> Result<()> {
    if let Some((on, rows)) = target(x) {
        let weight = weight.map(|(weight, eps)| (weight.span(), eps));
        let rotary = Some((kind, cos.span(), sin.span()));
        on.device.head_norm_rotary(rows, head_dim, weight, rotary)?;
        return Ok(());
    }
    let weight = weight.map(|(weight, eps)| (weight.host(), eps));
    let rotary = Some((kind, cos.host(), sin.host()));
    kernels::head_norm_rotary(x.view(), head_dim, weight, rotary);
    Ok(())
}

/// `out = softmax(q k^T * scale) v`.
pub(crate) fn attention(
    spec: &kernels::Attention,
    [q, k, v]: [Part<'_>; 3],
    out: &mut PartMut<'_>,
) -> Result<()> {
    if let Some((on, rows)) = target(out) {
        on.device
            .attention(spec, q.there(), k.there(), v.there(), rows)?;
        return Ok(());
    }
    kernels::attention(spec, q.view(), k.view(), v.view(), out.view());
    Ok(())
}

/// `x += y`, `x *= y` or `x = y`.
pub(crate) fn elementwise(op: Elementwise, x: ValuesMut<'_>, y: Values<'_>) -> Result<()> {
    match (x, y) {
        (ValuesMut::Host(x), Values::Host(y)) => match op {
            Elementwise::Add => kernels::add(x, y),
            Elementwise::Mul => kernels::mul(x, y),
            Elementwise::Copy => kernels::copy(x, y),
            Elementwise::AddScaled(factor) => kernels::add_scaled(x, factor, y),
        },
        (ValuesMut::Device(x), Values::Device(y)) => {
            x.device.elementwise(op, x.span, y.span)?;
        }
        _ => elsewhere(),
    }
    Ok(())
}

/// `x = function(x)`.
pub(crate) fn apply(function: Function, x: ValuesMut<'_>) -> Result<()> {
    match x {
        ValuesMut::Host(x) => match function {
            Function::Act(act) => kernels::activate(x, act),
            Function::Tanh => x.iter_mut().for_each(|x| *x = x.tanh()),
            Function::Plus(constant) => x.iter_mut().for_each(|x| *x += constant),
        },
        ValuesMut::Device(x) => x.device.apply(function, x.span)?,
    }
    Ok(())
}

/// Every row of `out` becomes `row`.
pub(crate) fn fill_rows(out: &mut PartMut<'_>, row: Values<'_>) -> Result<()> {
    if let Some((on, rows)) = target(out) {
        on.device.fill_rows(rows, row.span())?;
        return Ok(());
    }
    let row = row.host();
    let view = out.view();
    for target in view.data.chunks_exact_mut(row.len()) {
        target.copy_from_slice(row);
    }
    Ok(())
}

/// Lines of f32, `width` each, from one pitch to another.
pub(crate) fn copy_lines(
    (from, from_pitch): (Values<'_>, usize),
    (to, to_pitch): (ValuesMut<'_>, usize),
    width: usize,
    count: usize,
) -> Result<()> {
    match (to, from) {
        (ValuesMut::Host(to), Values::Host(from)) => {
            for line in 0..count {
                to[line * to_pitch..][..width].copy_from_slice(&from[line * from_pitch..][..width]);
            }
        }
        (ValuesMut::Device(to), Values::Device(from)) => to.device.copy_lines(Lines {
            from: from.span,
            from_pitch,
            to: to.span,
            to_pitch,
            width,
            count,
        })?,
        _ => elsewhere(),
    }
    Ok(())
}

/// A map or some rows of it, where they lie (channels, rows, width).
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapSlice<'a> {
    pub(crate) data: Values<'a>,
    pub(crate) rows: MapRows,
    pub(crate) width: usize,
}

impl<'a> MapSlice<'a> {
    /// A whole map.
    pub(crate) fn whole(data: Values<'a>, height: usize, width: usize) -> MapSlice<'a> {
        MapSlice {
            data,
            rows: MapRows::whole(height),
            width,
        }
    }
}

/// A convolution, its operands where they lie; as [`kernels::Conv2d`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Convolution<'a> {
    pub(crate) weight: Weight<'a>,
    pub(crate) bias: Option<Values<'a>>,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: Padding,
    pub(crate) upsample: bool,
    pub(crate) input: Option<ChannelAffine<'a>>,
}

impl<'a> Convolution<'a> {
    fn host(&self) -> kernels::Conv2d<'a> {
        kernels::Conv2d {
            weight: self.weight.host(),
            bias: self.bias.map(|bias| bias.host()),
            kernel: self.kernel,
            stride: self.stride,
            padding: self.kernel / 2,
            upsample: self.upsample,
            input: self.input.map(|input| input.host()),
        }
    }

    fn there(&self) -> Conv2d {
        Conv2d {
            weight: self.weight.there(),
            bias: self.bias.map(|bias| bias.span()),
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            upsample: self.upsample,
            input: self.input.map(|input| input.there()),
            after: device::After::Plain,
        }
    }
}

/// What a convolution's result is added to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Onto<'a> {
    Nothing,
    Other(Values<'a>),
    /// What is there already; only where nothing but the padding of `kernel / 2` is around the map.
    Out,
}

/// `out = conv(x)`, added to what `onto` says.
pub(crate) fn conv2d(
    conv: &Convolution<'_>,
    x: MapSlice<'_>,
    precision: Precision,
    onto: Onto<'_>,
    (out, rows, width): (ValuesMut<'_>, MapRows, usize),
) -> Result<()> {
    let out = match out {
        ValuesMut::Host(out) => out,
        ValuesMut::Device(on) => {
            let residual = match onto {
                Onto::Nothing => Residual::Nothing,
                Onto::Other(add) => Residual::Other(add.span()),
                Onto::Out => Residual::Out,
            };
            let slice = |data, rows, width| Slice { data, rows, width };
            let x = slice(x.data.span(), x.rows, x.width);
            let out = slice(on.span, rows, width);
            on.device
                .conv2d(conv.there(), x, precision, residual, out)?;
            return Ok(());
        }
    };
    let (host, data) = (conv.host(), x.data.host());
    let add = match onto {
        Onto::Nothing => None,
        Onto::Other(add) => Some(add.host()),
        Onto::Out => {
            kernels::conv2d_in_place_add(&host, data, x.rows, x.width, precision, out, rows);
            return Ok(());
        }
    };
    kernels::conv2d_padded(
        &host,
        conv.padding,
        data,
        x.rows,
        x.width,
        precision,
        add,
        out,
        rows,
    );
    Ok(())
}

/// Sums of a map's groups, gathered strip by strip, where the map lies.
#[derive(Debug)]
pub(crate) enum Sums {
    Host(Vec<[f64; 2]>),
    Device(crate::device::Allocation),
}

/// Adds a strip (channels, rows, width) to the sums of its groups.
pub(crate) fn group_sums(
    strip: Values<'_>,
    shape: [usize; 3],
    groups: usize,
    sums: &mut Sums,
) -> Result<()> {
    let [channels, rows, width] = shape;
    match (sums, strip) {
        (Sums::Host(sums), Values::Host(strip)) => {
            kernels::group_sums(strip, channels, rows, width, groups, sums);
        }
        (Sums::Device(sums), Values::Device(strip)) => {
            strip
                .device
                .group_sums(strip.span, shape, groups, sums.span())?;
        }
        _ => elsewhere(),
    }
    Ok(())
}

/// A group norm's parameters on a device.
pub(crate) fn group_norm_there(
    groups: usize,
    eps: f32,
    weight: Values<'_>,
    bias: Values<'_>,
) -> GroupNorm {
    GroupNorm {
        groups,
        eps,
        weight: weight.span(),
        bias: bias.span(),
    }
}

/// `out[t, c] = map[c, first + t] * scale[c] + shift[c]`.
pub(crate) fn map_to_tokens(
    map: Values<'_>,
    [scale, shift]: [Values<'_>; 2],
    plane: usize,
    first: usize,
    out: &mut PartMut<'_>,
) -> Result<()> {
    if let Some((on, rows)) = target(out) {
        let factors = [scale.span(), shift.span()];
        on.device
            .map_to_tokens(map.span(), factors, plane, first, rows)?;
        return Ok(());
    }
    let factors = [scale.host(), shift.host()];
    kernels::map_to_tokens(map.host(), factors, plane, first, out.view());
    Ok(())
}

/// `map[c, first + t] += tokens[t, c]`.
pub(crate) fn add_tokens_to_map(
    tokens: Part<'_>,
    map: ValuesMut<'_>,
    plane: usize,
    first: usize,
) -> Result<()> {
    match map {
        ValuesMut::Host(map) => kernels::add_tokens_to_map(tokens.view(), map, plane, first),
        ValuesMut::Device(on) => {
            on.device
                .add_tokens_to_map(tokens.there(), on.span, plane, first)?;
        }
    }
    Ok(())
}

/// Stored numbers as f32, in rows of `cols`, multiplied by their scales.
pub(crate) fn widen(
    from: On<'_>,
    stored: Stored,
    (scales, cols): (Option<(Stored, Span, Per)>, usize),
    out: &Vector,
) -> Result<()> {
    let matrix = Matrix {
        stored,
        data: from.span,
        rows: out.len() / cols.max(1),
        cols,
        scales,
    };
    from.device.widen(matrix, out.values().span())?;
    Ok(())
}
