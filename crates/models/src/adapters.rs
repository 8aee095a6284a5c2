//! Low-rank additions to layers (LoRA, LoCon), applied beside the weights they belong to.
//!
//! A layer with additions computes `W x + b + sum of strength * scale * up (down x)`. The base weight is never touched:
//! it streams, stays or is quantised as it would without, there is no second copy of it, and another strength costs
//! nothing. What is added to a row depends on that row alone, so chunks and strips give the same bytes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use lowtide_core::{Bytes, ComponentLayout, TensorLayout};
use lowtide_kernels::{Activation, MapRows, Matrix, Padding, Precision, Stored};

use crate::device::{self, Memory, Vector};
use crate::layers::Outputs;
use crate::ops::{self, ChannelAffine, Convolution, MapSlice, Onto, Weight};
use crate::tensor::{Compute, Part, PartMut, Tensor};
use crate::weights::stored;
use crate::{Error, Result};

/// The largest rank that is taken; training goes to a few hundred.
pub const RANK_MAX: usize = 4096;

/// Values between `down` and `up` that are held at once, for linear layers: 1 MiB.
const BETWEEN_VALUES: usize = 256 << 10;

/// Rows below which a chunk is not cut: fewer would read the matrices too often.
const CHUNK_ROWS_MIN: usize = BETWEEN_VALUES / RANK_MAX;

/// Rows of a gate computed at a time, where gate and value cannot be had in one pass.
const GATE_ROWS: usize = 256;

/// One matrix, and where in its LoRA's buffer it begins.
#[derive(Clone, Debug)]
pub struct Factor {
    /// Its name in the file, type and shape.
    pub tensor: TensorLayout,
    /// Byte where it begins.
    pub at: usize,
}

/// What is added to one layer: `scale * up (down x)`, or `scale * up (mid (down x))`.
///
/// # Shapes
/// Letters: r rank, k the layer's kernel (1 where the shape has no such dimensions).
#[derive(Clone, Debug)]
pub struct Pair {
    /// (r, dim_in) or (r, dim_in, k, k); with `mid` (r, dim_in, 1, 1).
    pub down: Factor,
    /// (dim_out, r) or (dim_out, r, 1, 1).
    pub up: Factor,
    /// (r of up, r of down, k, k): the core of a convolution decomposed in three (LoCon, CP).
    pub mid: Option<Factor>,
    /// What the file says the product is multiplied by: alpha over rank.
    pub scale: f32,
}

/// Rows, inputs and kernel of a factor or of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dims {
    rows: usize,
    inputs: usize,
    kernel: usize,
}

impl Dims {
    fn of(shape: &[usize]) -> Option<Dims> {
        let (rows, inputs, kernel) = match *shape {
            [rows, inputs] => (rows, inputs, 1),
            [rows, inputs, kernel, width] if kernel == width => (rows, inputs, kernel),
            _ => return None,
        };
        (rows > 0 && inputs > 0 && kernel > 0).then_some(Dims {
            rows,
            inputs,
            kernel,
        })
    }
}

#[derive(Debug)]
struct Placed {
    stored: Stored,
    dims: Dims,
    range: Range<usize>,
}

impl Placed {
    fn matrix<'a>(&self, bytes: device::Bytes<'a>) -> Weight<'a> {
        let (rows, cols) = (
            self.dims.rows,
            self.dims.inputs * self.dims.kernel * self.dims.kernel,
        );
        let stored = self.stored;
        match bytes.part(self.range.clone()) {
            device::Bytes::Host(bytes) => Weight::Host(Matrix {
                stored,
                bytes,
                rows,
                cols,
                scales: None,
            }),
            device::Bytes::Device(on) => Weight::Device(
                on,
                device::Matrix {
                    stored,
                    data: on.span,
                    rows,
                    cols,
                    scales: None,
                },
            ),
        }
    }
}

#[derive(Debug)]
struct Module {
    down: Placed,
    up: Placed,
    mid: Option<Placed>,
    scale: f32,
}

impl Module {
    /// What the layer it is made for looks like.
    fn dims(&self) -> Dims {
        Dims {
            rows: self.up.dims.rows,
            inputs: self.down.dims.inputs,
            kernel: self.mid.as_ref().map_or(&self.down, |mid| mid).dims.kernel,
        }
    }
}

/// What one LoRA adds to one component, in memory as its file stores it.
#[derive(Debug)]
pub struct LowRank {
    name: String,
    memory: Memory,
    modules: HashMap<String, Module>,
}

impl LowRank {
    /// What the LoRA called `name` adds, layer by layer: each layer's full name in the component's checkpoint (without
    /// `.weight`), and its factors, which lie in `memory`.
    ///
    /// # Errors
    /// [`Error::Adapter`] when the factors of a layer do not go together, or are of a type no layer computes with.
    pub fn new(
        name: impl Into<String>,
        memory: impl Into<Memory>,
        pairs: impl IntoIterator<Item = (String, Pair)>,
    ) -> Result<LowRank> {
        let (name, memory) = (name.into(), memory.into());
        let mut modules = HashMap::new();
        for (module, pair) in pairs {
            let wrong = |problem: String| Error::Adapter {
                adapter: name.clone(),
                module: module.clone(),
                problem,
            };
            let checked = check(&pair, memory.len(), &wrong)?;
            if modules.insert(module.clone(), checked).is_some() {
                return Err(wrong("is there twice".to_owned()));
            }
        }
        Ok(LowRank {
            name,
            memory,
            modules,
        })
    }

    /// The LoRA's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> Bytes {
        Bytes::from(self.memory.len())
    }

    /// How many layers it adds to.
    pub fn layers(&self) -> usize {
        self.modules.len()
    }

    /// Compares it with the component it is for, which may be laid out in several parts, before anything is computed.
    /// Returns, sorted, the names of the layers that the component does not have.
    ///
    /// # Errors
    /// [`Error::Adapter`] when a layer has another shape.
    pub fn check(&self, layouts: &[&ComponentLayout]) -> Result<Vec<String>> {
        let blocks = layouts.iter().flat_map(|layout| &layout.blocks);
        let tensors = blocks.flat_map(|block| &block.tensors);
        let shapes: HashMap<&str, &[usize]> = tensors
            .filter_map(|tensor| Some((tensor.name.strip_suffix(".weight")?, &tensor.shape[..])))
            .collect();
        let mut unknown = Vec::new();
        for (name, module) in &self.modules {
            match shapes.get(&name[..]).map(|shape| Dims::of(shape)) {
                None => unknown.push(name.clone()),
                Some(None) => return Err(self.wrong(name, "is no linear or convolution layer")),
                Some(Some(layer)) => self.fits(name, module, layer)?,
            }
        }
        unknown.sort();
        Ok(unknown)
    }

    fn wrong(&self, module: &str, problem: impl Into<String>) -> Error {
        Error::Adapter {
            adapter: self.name.clone(),
            module: module.to_owned(),
            problem: problem.into(),
        }
    }

    fn fits(&self, name: &str, module: &Module, layer: Dims) -> Result<()> {
        let found = module.dims();
        if found == layer {
            return Ok(());
        }
        let words = |dims: Dims| match dims.kernel {
            1 => format!("{} x {}", dims.rows, dims.inputs),
            k => format!("{} x {} x {k} x {k}", dims.rows, dims.inputs),
        };
        Err(self.wrong(
            name,
            format!(
                "is {} in the LoRA and {} in the model; it was made for another model",
                words(found),
                words(layer)
            ),
        ))
    }
}

fn check(pair: &Pair, bytes: usize, wrong: &impl Fn(String) -> Error) -> Result<Module> {
    let place = |factor: &Factor| {
        let tensor = &factor.tensor;
        let shape = &tensor.shape;
        let dims = Dims::of(shape)
            .ok_or_else(|| wrong(format!("has '{}' of shape {shape:?}", tensor.name)))?;
        let end = factor.at.checked_add(tensor.bytes().as_usize());
        match end.filter(|end| *end <= bytes) {
            Some(end) => Ok(Placed {
                stored: stored(tensor.dtype, || tensor.name.clone())
                    .map_err(|refused| wrong(format!("cannot be used: {refused}")))?,
                dims,
                range: factor.at..end,
            }),
            None => Err(wrong("lies outside its buffer (this is a bug)".to_owned())),
        }
    };
    let (down, up) = (place(&pair.down)?, place(&pair.up)?);
    let mid = pair.mid.as_ref().map(place).transpose()?;
    let (inner, outer) = match &mid {
        None => (down.dims.rows, down.dims.rows),
        Some(mid) => (mid.dims.inputs, mid.dims.rows),
    };
    let one_by_one = up.dims.kernel == 1 && (mid.is_none() || down.dims.kernel == 1);
    if down.dims.rows != inner || up.dims.inputs != outer || !one_by_one {
        let shapes: Vec<String> = [Some(&pair.down), pair.mid.as_ref(), Some(&pair.up)]
            .into_iter()
            .flatten()
            .map(|factor| format!("'{}' {:?}", factor.tensor.name, factor.tensor.shape))
            .collect();
        let shapes = shapes.join(", ");
        return Err(wrong(format!(
            "has matrices that cannot be multiplied: {shapes}"
        )));
    }
    if inner.max(outer) > RANK_MAX {
        return Err(wrong(format!(
            "has rank {}, and the most is {RANK_MAX}",
            inner.max(outer)
        )));
    }
    if !pair.scale.is_finite() {
        return Err(wrong(format!("is scaled by {}", pair.scale)));
    }
    Ok(Module {
        down,
        up,
        mid,
        scale: pair.scale,
    })
}

/// All that is added to one component, with strengths.
#[derive(Clone, Debug, Default)]
pub struct Adapters {
    active: Vec<(Arc<LowRank>, f32)>,
}

impl Adapters {
    /// These LoRAs, each with its strength; they are added in this order, and one of strength zero is left out.
    pub fn new(active: impl IntoIterator<Item = (Arc<LowRank>, f32)>) -> Adapters {
        Adapters {
            active: active.into_iter().filter(|(_, s)| *s != 0.0).collect(),
        }
    }

    /// Whether nothing is added.
    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// Bytes of all matrices.
    pub fn bytes(&self) -> Bytes {
        self.active.iter().map(|(low, _)| low.bytes()).sum()
    }

    /// The most bytes that applying them takes beside what a layer takes without, for maps of up to `pixels` values a
    /// channel.
    pub fn scratch_bytes(&self, pixels: usize) -> Bytes {
        let modules = self.active.iter().flat_map(|(low, _)| low.modules.values());
        let most = modules.map(|module| {
            let (rank, outer) = (module.down.dims.rows, module.up.dims.inputs);
            let map = (rank + if module.mid.is_some() { outer } else { 0 }) * pixels;
            let rows = BETWEEN_VALUES + GATE_ROWS * module.up.dims.rows;
            map.max(rows) * size_of::<f32>()
        });
        Bytes::from(most.max().unwrap_or(0))
    }

    /// What is added to the layer `module`, whose weight is (rows, inputs, kernel, kernel).
    pub(crate) fn at(
        &self,
        module: &str,
        (rows, inputs, kernel): (usize, usize, usize),
    ) -> Result<Vec<Added<'_>>> {
        let layer = Dims {
            rows,
            inputs,
            kernel,
        };
        let mut added = Vec::new();
        for (low, strength) in &self.active {
            let Some(found) = low.modules.get(module) else {
                continue;
            };
            low.fits(module, found, layer)?;
            let bytes = low.memory.bytes();
            added.push(Added {
                down: found.down.matrix(bytes),
                up: found.up.matrix(bytes),
                mid: found.mid.as_ref().map(|mid| mid.matrix(bytes)),
                scale: found.scale * strength,
            });
        }
        Ok(added)
    }
}

/// One addition to a layer.
#[derive(Clone, Debug)]
pub(crate) struct Added<'w> {
    down: Weight<'w>,
    up: Weight<'w>,
    mid: Option<Weight<'w>>,
    scale: f32,
}

impl<'w> Added<'w> {
    /// What is added to some of the outputs.
    pub(crate) fn outputs(&self, rows: &Range<usize>) -> Added<'w> {
        Added {
            up: self.up.rows_at(rows.clone()),
            ..self.clone()
        }
    }
}

/// `out = activation(out + additions to x)`, row by row.
///
/// # Memory
/// 1 MiB at most.
pub(crate) fn add_to_rows(
    added: &[Added<'_>],
    compute: Compute,
    x: Part<'_>,
    activation: Activation,
    out: &mut PartMut<'_>,
) -> Result<()> {
    for (i, one) in added.iter().enumerate() {
        let last = i + 1 == added.len();
        let activation = if last { activation } else { Activation::None };
        let rank = one.down.rows();
        let chunk = (BETWEEN_VALUES / rank).max(CHUNK_ROWS_MIN).min(x.rows());
        let mut between = Tensor::new(&[chunk, rank])?;
        for start in (0..x.rows()).step_by(chunk.max(1)) {
            let rows = start..(start + chunk).min(x.rows());
            let mut part = between.part_mut(0..rows.len());
            let none = Activation::None;
            let x = x.rows_at(rows.clone());
            let precision = compute.precision;
            ops::linear(x, &one.down, None, none, precision, &mut part)?;
            let between = between.part(0..rows.len());
            let mut out = out.rows_at(rows);
            ops::linear_add(between, &one.up, one.scale, activation, precision, &mut out)?;
        }
    }
    Ok(())
}

/// `activation(gate(x)) * value(x)` of two layers with additions, for which the fused kernels have no place.
///
/// # Memory
/// The result, and 256 rows of the gate.
pub(crate) fn gated_apart(
    compute: Compute,
    x: Part<'_>,
    (gate, activation): (&Outputs<'_>, Activation),
    value: &Outputs<'_>,
) -> Result<Tensor> {
    let mut out = value.forward(compute, x, Activation::None)?;
    for start in (0..x.rows()).step_by(GATE_ROWS) {
        let rows = start..(start + GATE_ROWS).min(x.rows());
        let gate = gate.forward(compute, x.rows_at(rows.clone()), activation)?;
        out.part_mut(rows).mul(gate.all())?;
    }
    Ok(out)
}

/// A convolution of 1 x 1.
fn pointwise<'a>(weight: Weight<'a>, input: Option<ChannelAffine<'a>>) -> Convolution<'a> {
    Convolution {
        weight,
        bias: None,
        kernel: 1,
        stride: 1,
        padding: Padding::all(0),
        upsample: false,
        input,
    }
}

/// A convolution's result as a map of its own.
fn convolved(
    conv: &Convolution<'_>,
    precision: Precision,
    x: MapSlice<'_>,
    (rows, width): (MapRows, usize),
) -> Result<Tensor> {
    let mut out = Tensor::new(&[conv.weight.rows(), rows.count, width])?;
    let to = (out.values_mut(), rows, width);
    ops::conv2d(conv, x, precision, Onto::Nothing, to)?;
    Ok(out)
}

/// `out += additions to x`, for rows `rows` of the result of `conv`, whose weight and bias are not looked at.
///
/// # Memory
/// As many channels as the rank, once or, where there is a `mid`, twice.
pub(crate) fn add_to_map(
    added: &[Added<'_>],
    precision: Precision,
    conv: &Convolution<'_>,
    x: MapSlice<'_>,
    (out, rows): (&mut Tensor, MapRows),
) -> Result<()> {
    let (_, _, width) = out.dims3()?;
    for one in added {
        let spatial = |weight, input| Convolution {
            weight,
            input,
            bias: None,
            ..*conv
        };
        let between = match one.mid {
            None => {
                let down = spatial(one.down, conv.input);
                convolved(&down, precision, x, (rows, width))?
            }
            Some(mid) => {
                let down = pointwise(one.down, conv.input);
                let inner = convolved(&down, precision, x, (x.rows, x.width))?;
                let x = MapSlice {
                    data: inner.values(),
                    ..x
                };
                convolved(&spatial(mid, None), precision, x, (rows, width))?
            }
        };
        let rank = one.up.cols();
        let scale = Vector::here(vec![one.scale; rank])?;
        let shift = Vector::here(vec![0.0; rank])?;
        let scaled = ChannelAffine {
            scale: scale.values(),
            shift: shift.values(),
            act: Activation::None,
        };
        let up = pointwise(one.up, Some(scaled));
        let from = MapSlice {
            data: between.values(),
            rows,
            width,
        };
        let to = (out.values_mut(), rows, width);
        ops::conv2d(&up, from, precision, Onto::Out, to)?;
    }
    Ok(())
}
