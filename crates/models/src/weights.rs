//! How a model sees its weights: a scope of names that hands out layers.
//!
//! The same `load` runs in two ways. Over a live block it borrows the bytes where they lie. Over a recorder it only
//! notes names, shapes and types, checked against the file's headers: that is how a layout is made, and how a missing
//! tensor or a wrong shape is found before anything is read.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use lowtide_core::{BlockLayout, Dtype, TensorLayout};
use lowtide_kernels::{BLOCK, Matrix, Per, Scales, Stored, to_f32};

use crate::adapters::{Adapters, Added};
use crate::device::{self, Bytes, On, Place, Vector};
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear, RmsNorm, Weight};
use crate::{Error, Result, ops};

/// Hands out a component's blocks. Where they live, and when they arrive, is not the model's business.
pub trait BlockSource {
    /// The weights of block `index`; the borrow allows one live block, and dropping it frees its slot.
    ///
    /// # Errors
    /// [`Error::Source`] when it cannot be had.
    fn block(&mut self, index: usize) -> Result<Weights<'_>>;

    /// Where all of them are handed out.
    fn place(&self) -> Place {
        Place::Host
    }
}

/// What a checkpoint's headers say.
pub trait Headers {
    /// Type and shape of the tensor called `name`.
    fn tensor(&self, name: &str) -> Option<(Dtype, Vec<usize>)>;
}

/// Where in a block's bytes each tensor lies.
#[derive(Debug)]
pub struct BlockIndex {
    tensors: HashMap<String, (TensorLayout, Range<usize>)>,
}

impl BlockIndex {
    /// The index of a block laid out as `layout` says.
    pub fn new(layout: &BlockLayout) -> BlockIndex {
        let place = |(tensor, at): (&TensorLayout, usize)| {
            let range = at..at + tensor.bytes().as_usize();
            (tensor.name.clone(), (tensor.clone(), range))
        };
        BlockIndex {
            tensors: layout.offsets().map(place).collect(),
        }
    }
}

/// How the kernels read a tensor stored as `dtype`; `name` is asked for when they cannot.
///
/// # Errors
/// [`Error::WrongDtype`].
pub fn stored(dtype: Dtype, name: impl FnOnce() -> String) -> Result<Stored> {
    match dtype {
        Dtype::F32 => Ok(Stored::F32),
        Dtype::F16 => Ok(Stored::F16),
        Dtype::Bf16 => Ok(Stored::Bf16),
        Dtype::F8E4M3 => Ok(Stored::F8E4M3),
        Dtype::F8E5M2 => Ok(Stored::F8E5M2),
        found => Err(Error::WrongDtype {
            name: name(),
            found,
        }),
    }
}

/// What the scales of a weight are called, in its place: as this program and others write them, and as ComfyUI did first.
pub const SCALE_NAMES: [&str; 2] = ["weight_scale", "scale_weight"];

/// Scales that are not known here: in tiles, inverse, of two levels. A weight beside one of them is refused, since without
/// them it would be noise.
pub const STRANGE_SCALES: [&str; 3] = ["weight_scale_inv", "weight_scale_2", "weight_zero_point"];

/// What the numbers of a weight are multiplied by, where they lie.
#[derive(Clone, Copy)]
struct Factors<'w> {
    stored: Stored,
    bytes: Bytes<'w>,
    per: Per,
}

impl<'w> Factors<'w> {
    fn host(&self) -> Scales<'w> {
        let Bytes::Host(bytes) = self.bytes else {
            device::elsewhere();
        };
        Scales {
            stored: self.stored,
            bytes,
            per: self.per,
        }
    }

    fn there(&self) -> (Stored, device::Span, Per) {
        let Bytes::Device(on) = self.bytes else {
            device::elsewhere();
        };
        (self.stored, on.span, self.per)
    }
}

/// Notes what a `load` asks for.
struct Recorder<'h> {
    headers: &'h dyn Headers,
    seen: RefCell<Vec<TensorLayout>>,
}

#[derive(Clone, Copy)]
enum Origin<'w> {
    Live {
        index: &'w BlockIndex,
        bytes: Bytes<'w>,
    },
    Recorded(&'w Recorder<'w>),
}

/// A scope of names in one block.
#[derive(Clone)]
pub struct Weights<'w> {
    origin: Origin<'w>,
    prefix: String,
    adapters: Option<&'w Adapters>,
}

/// Runs `load` over a recorder and returns what it asked for, as the layout of the block called `block`.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::WrongShape`] or [`Error::WrongDtype`] where the headers do not agree.
pub fn record(
    headers: &dyn Headers,
    block: impl Into<String>,
    load: impl FnOnce(&Weights<'_>) -> Result<()>,
) -> Result<BlockLayout> {
    let recorder = Recorder {
        headers,
        seen: RefCell::default(),
    };
    load(&Weights {
        origin: Origin::Recorded(&recorder),
        prefix: String::new(),
        adapters: None,
    })?;
    Ok(BlockLayout {
        name: block.into(),
        tensors: recorder.seen.into_inner(),
    })
}

impl<'w> Weights<'w> {
    /// The block whose tensors lie in `bytes` as `index` says.
    pub fn live(index: &'w BlockIndex, bytes: impl Into<Bytes<'w>>) -> Weights<'w> {
        let bytes = bytes.into();
        Weights {
            origin: Origin::Live { index, bytes },
            prefix: String::new(),
            adapters: None,
        }
    }

    /// The same, whose layers come with what `adapters` add to them.
    pub fn with_adapters(self, adapters: Option<&'w Adapters>) -> Weights<'w> {
        Weights { adapters, ..self }
    }

    /// What is added to the layer `name`, whose weight is (rows, inputs, kernel, kernel).
    fn added(&self, name: &str, dims: (usize, usize, usize)) -> Result<Vec<Added<'w>>> {
        match self.adapters {
            None => Ok(Vec::new()),
            Some(adapters) => adapters.at(&format!("{}{name}", self.prefix), dims),
        }
    }

    /// The scope `name` within this one.
    pub fn pp(&self, name: impl std::fmt::Display) -> Weights<'w> {
        Weights {
            origin: self.origin,
            prefix: format!("{}{name}.", self.prefix),
            adapters: self.adapters,
        }
    }

    /// Whether the checkpoint has `name` here.
    pub fn has(&self, name: &str) -> bool {
        let full = format!("{}{name}", self.prefix);
        match self.origin {
            Origin::Live { index, .. } => index.tensors.contains_key(&full),
            Origin::Recorded(recorder) => recorder.headers.tensor(&full).is_some(),
        }
    }

    /// Type and bytes of a tensor whose shape is one of `shapes` (the first is the one called for).
    fn raw(&self, name: &str, shapes: &[&[usize]]) -> Result<(Dtype, Bytes<'w>)> {
        let full = format!("{}{name}", self.prefix);
        let missing = || Error::MissingTensor { name: full.clone() };
        let (dtype, shape, bytes) = match self.origin {
            Origin::Live { index, bytes } => {
                let (layout, range) = index.tensors.get(&full).ok_or_else(missing)?;
                (
                    layout.dtype,
                    layout.shape.clone(),
                    bytes.part(range.clone()),
                )
            }
            Origin::Recorded(recorder) => {
                let (dtype, shape) = recorder.headers.tensor(&full).ok_or_else(missing)?;
                (dtype, shape, Bytes::Host(&[]))
            }
        };
        if !shapes.contains(&&shape[..]) {
            let expected = shapes[0].to_vec();
            return Err(Error::WrongShape {
                name: full,
                expected,
                found: shape,
            });
        }
        if let Origin::Recorded(recorder) = self.origin {
            recorder.seen.borrow_mut().push(TensorLayout {
                name: full,
                dtype,
                shape,
            });
        }
        Ok((dtype, bytes))
    }

    fn stored(&self, name: &str, dtype: Dtype) -> Result<Stored> {
        stored(dtype, || format!("{}{name}", self.prefix))
    }

    /// The matrix `weight`, with its scales if it has some.
    fn matrix(&self, shapes: &[&[usize]]) -> Result<Weight<'w>> {
        let (dtype, bytes) = self.raw("weight", shapes)?;
        let (rows, cols) = (shapes[0][0], shapes[0][1..].iter().product());
        let scales = match dtype {
            Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::I8 => self.scales(rows, cols)?,
            _ => None,
        };
        let stored = match (dtype, scales) {
            (Dtype::I8, Some(_)) => Stored::I8,
            _ => self.stored("weight", dtype)?,
        };
        Ok(match bytes {
            Bytes::Host(bytes) => Weight::Host(Matrix {
                stored,
                bytes,
                rows,
                cols,
                scales: scales.map(|scales| scales.host()),
            }),
            Bytes::Device(on) => Weight::Device(
                on,
                device::Matrix {
                    stored,
                    data: on.span,
                    rows,
                    cols,
                    scales: scales.map(|scales| scales.there()),
                },
            ),
        })
    }

    /// What the numbers of `weight` are multiplied by: one number, one a row, or one for every [`BLOCK`] of a row.
    fn scales(&self, rows: usize, cols: usize) -> Result<Option<Factors<'w>>> {
        if let Some(strange) = STRANGE_SCALES.into_iter().find(|name| self.has(name)) {
            return Err(Error::UnknownScales {
                name: format!("{}{strange}", self.prefix),
            });
        }
        let Some(name) = SCALE_NAMES.into_iter().find(|name| self.has(name)) else {
            return Ok(None);
        };
        let blocks = [rows, cols / BLOCK];
        let mut shapes: Vec<(&[usize], Per)> = vec![(&[], Per::Matrix), (&[1], Per::Matrix)];
        let each = [rows];
        let (column, channel) = ([rows, 1], [rows, 1, 1, 1]);
        shapes.extend([
            (&each[..], Per::Row),
            (&column[..], Per::Row),
            (&channel[..], Per::Row),
        ]);
        if cols.is_multiple_of(BLOCK) && cols > 0 {
            shapes.push((&blocks[..], Per::Block));
        }
        for (shape, per) in shapes.iter().copied() {
            let (dtype, bytes) = match self.raw(name, &[shape]) {
                Err(Error::WrongShape { .. }) => continue,
                found => found?,
            };
            let stored = self.stored(name, dtype)?;
            return Ok(Some(Factors { stored, bytes, per }));
        }
        // The error of the form that would be the usual one for it.
        self.raw(name, &[&blocks]).map(|_| None)
    }

    /// A small tensor, widened to f32, on the host. Empty when recorded.
    ///
    /// # Errors
    /// When it is missing or not of this shape, or its block is on a device.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (dtype, bytes) = self.raw(name, &[shape])?;
        let stored = self.stored(name, dtype)?;
        let Bytes::Host(bytes) = bytes else {
            device::elsewhere();
        };
        let mut values = vec![0.0; bytes.len() / stored.size()];
        to_f32(stored, bytes, &mut values);
        if let Some((scales, cols)) = self.scales_of_values(name, dtype, shape)? {
            scales.host().apply(&mut values, cols);
        }
        Ok(values)
    }

    /// The scales of a small tensor that is itself called `weight`, and the length of its rows.
    fn scales_of_values(
        &self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Option<(Factors<'w>, usize)>> {
        let few_bits = matches!(dtype, Dtype::F8E4M3 | Dtype::F8E5M2);
        if !few_bits || name != "weight" || shape.is_empty() {
            return Ok(None);
        }
        let cols = shape[1..].iter().product();
        let scales = self.scales(shape[0], cols)?;
        Ok(scales.map(|scales| (scales, cols)))
    }

    /// A small tensor, widened to f32, where the block lies. Empty when recorded.
    ///
    /// # Errors
    /// When it is missing or not of this shape, or memory is refused.
    pub fn vector(&self, name: &str, shape: &[usize]) -> Result<Vector> {
        let on = match self.raw_place() {
            None => return Ok(self.values(name, shape)?.into()),
            Some(on) => on,
        };
        let (dtype, bytes) = self.raw(name, &[shape])?;
        let stored = self.stored(name, dtype)?;
        let Bytes::Device(from) = bytes else {
            device::elsewhere();
        };
        let vector = Vector::on(on.device, shape.iter().product())?;
        let scales = self.scales_of_values(name, dtype, shape)?;
        let (scales, cols) = match scales {
            None => (None, shape.iter().product()),
            Some((scales, cols)) => (Some(scales.there()), cols),
        };
        ops::widen(from, stored, (scales, cols), &vector)?;
        Ok(vector)
    }

    /// The device that the block lies on.
    /// Where they lie.
    pub(crate) fn place(&self) -> Place {
        match self.raw_place() {
            None => Place::Host,
            Some(on) => Place::Device(on.device.clone()),
        }
    }

    fn raw_place(&self) -> Option<On<'w>> {
        match self.origin {
            Origin::Live {
                bytes: Bytes::Device(on),
                ..
            } => Some(on),
            _ => None,
        }
    }

    /// A linear layer without bias: weight `[dim_out, dim_in]` under `name`.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape or type.
    pub fn linear_no_bias(&self, dim_in: usize, dim_out: usize, name: &str) -> Result<Linear<'w>> {
        let weight = self
            .pp(name)
            .matrix(&[&[dim_out, dim_in], &[dim_out, dim_in, 1, 1]])?;
        Ok(Linear {
            weight,
            bias: None,
            added: self.added(name, (dim_out, dim_in, 1))?,
        })
    }

    /// A linear layer with bias.
    ///
    /// # Errors
    /// As [`Weights::linear_no_bias`].
    pub fn linear(&self, dim_in: usize, dim_out: usize, name: &str) -> Result<Linear<'w>> {
        let layer = self.linear_no_bias(dim_in, dim_out, name)?;
        Ok(Linear {
            bias: Some(self.pp(name).vector("bias", &[dim_out])?),
            ..layer
        })
    }

    /// A linear layer with a bias where `bias` says so.
    ///
    /// # Errors
    /// As [`Weights::linear_no_bias`].
    pub fn linear_if_bias(
        &self,
        bias: bool,
        dim_in: usize,
        dim_out: usize,
        name: &str,
    ) -> Result<Linear<'w>> {
        if bias {
            self.linear(dim_in, dim_out, name)
        } else {
            self.linear_no_bias(dim_in, dim_out, name)
        }
    }

    /// A root-mean-square norm over `dim` values.
    ///
    /// # Errors
    /// As [`Weights::linear_no_bias`].
    pub fn rms_norm(&self, dim: usize, eps: f32, name: &str) -> Result<RmsNorm> {
        Ok(RmsNorm {
            weight: self.pp(name).vector("weight", &[dim])?,
            eps,
        })
    }

    /// A layer norm over `dim` values, with scale and shift.
    ///
    /// # Errors
    /// As [`Weights::linear_no_bias`].
    pub fn layer_norm(&self, dim: usize, eps: f32, name: &str) -> Result<LayerNorm> {
        let scope = self.pp(name);
        Ok(LayerNorm {
            weight: scope.vector("weight", &[dim])?,
            bias: scope.vector("bias", &[dim])?,
            eps,
        })
    }

    /// A group norm over `channels` in `groups`.
    ///
    /// # Errors
    /// As [`Weights::linear_no_bias`].
    pub fn group_norm(
        &self,
        groups: usize,
        channels: usize,
        eps: f32,
        name: &str,
    ) -> Result<GroupNorm> {
        let scope = self.pp(name);
        let weight = scope.vector("weight", &[channels])?;
        let bias = scope.vector("bias", &[channels])?;
        Ok(GroupNorm {
            groups,
            eps,
            weight,
            bias,
        })
    }

    /// A convolution with a square kernel and without a bias, as a norm stands behind.
    ///
    /// # Errors
    /// As [`Weights::linear_no_bias`].
    pub fn conv2d_no_bias(
        &self,
        dim_in: usize,
        dim_out: usize,
        kernel: usize,
        name: &str,
    ) -> Result<Conv2d<'w>> {
        let shape = [dim_out, dim_in, kernel, kernel];
        Ok(Conv2d {
            weight: self.pp(name).matrix(&[&shape])?,
            bias: Vector::here(vec![0.0; dim_out])?,
            kernel,
            added: self.added(name, (dim_out, dim_in, kernel))?,
        })
    }

    /// A convolution with a square kernel and bias.
    ///
    /// # Errors
    /// As [`Weights::linear_no_bias`].
    pub fn conv2d(
        &self,
        dim_in: usize,
        dim_out: usize,
        kernel: usize,
        name: &str,
    ) -> Result<Conv2d<'w>> {
        let scope = self.pp(name);
        let weight = scope.matrix(&[&[dim_out, dim_in, kernel, kernel]])?;
        let bias = scope.vector("bias", &[dim_out])?;
        Ok(Conv2d {
            weight,
            bias,
            kernel,
            added: self.added(name, (dim_out, dim_in, kernel))?,
        })
    }
}
