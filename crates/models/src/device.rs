//! Where numbers lie, and what computes on them there.
//!
//! The host computes by the kernels of a CPU, on slices. Anything else is a [`Device`]: it hands out memory by address and
//! carries out the same operations on it, in the order in which they are asked for. A model does not see the difference: its
//! tensors are made where its weights are ([`BlockSource::place`]), and come back as numbers at its end.
//!
//! [`BlockSource::place`]: crate::BlockSource::place

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;

use lowtide_kernels::memory::{Buffer, OutOfMemory};
use lowtide_kernels::{Activation, Attention, MapRows, Padding, Per, Precision, Rotary, Stored};

use crate::{Error, Result};

/// A part of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it begins; means nothing to the host.
    pub address: u64,
    /// Its bytes.
    pub bytes: usize,
}

impl Span {
    /// The f32 it has room for.
    pub fn values(&self) -> usize {
        self.bytes / size_of::<f32>()
    }

    /// Some of its f32.
    ///
    /// # Panics
    /// When it has fewer.
    pub fn part(&self, values: std::ops::Range<usize>) -> Span {
        self.bytes_at(values.start * size_of::<f32>()..values.end * size_of::<f32>())
    }

    /// Some of its bytes.
    ///
    /// # Panics
    /// When it has fewer.
    pub fn bytes_at(&self, bytes: std::ops::Range<usize>) -> Span {
        assert!(
            bytes.start <= bytes.end && bytes.end <= self.bytes,
            "bytes {bytes:?} of {}",
            self.bytes
        );
        Span {
            address: self.address + bytes.start as u64,
            bytes: bytes.len(),
        }
    }
}

/// `rows` rows of `cols` f32 each, one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Where they lie.
    pub data: Span,
    /// How many.
    pub rows: usize,
    /// Numbers of each.
    pub cols: usize,
}

/// A matrix as a checkpoint stores it; as [`lowtide_kernels::Matrix`].
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// How a number is stored.
    pub stored: Stored,
    /// Where they lie.
    pub data: Span,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// What the numbers are multiplied by: how each factor is stored, where they lie, and what each is for.
    pub scales: Option<(Stored, Span, Per)>,
}

/// A norm reduced to one factor and one summand a channel, and an activation after it.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    /// Factors.
    pub scale: Span,
    /// Summands.
    pub shift: Span,
    /// Applied last.
    pub act: Activation,
}

/// A convolution; as [`lowtide_kernels::Conv2d`].
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    /// (outputs, inputs * kernel * kernel).
    pub weight: Matrix,
    /// One number an output.
    pub bias: Option<Span>,
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Rows and columns from one output to the next.
    pub stride: usize,
    /// The zeros around the map.
    pub padding: Padding,
    /// Whether the map is enlarged twice first.
    pub upsample: bool,
    /// Applied to the map's numbers as they are read.
    pub input: Option<Affine>,
    /// What becomes of its sums, before anything is added to them.
    pub after: After,
}

/// What becomes of a convolution's sums; as [`lowtide_kernels::Finish`].
#[derive(Clone, Copy, Debug)]
pub enum After {
    /// They stay.
    Plain,
    /// Times a factor.
    Scaled(f32),
    /// Negative ones times a slope.
    Leaky(f32),
    /// The same with a slope a channel.
    Slopes(Span),
}

/// What a product becomes before it is written.
#[derive(Clone, Copy, Debug)]
pub enum Finish {
    /// `act(product + bias)`.
    Linear {
        /// One number an output.
        bias: Option<Span>,
        /// Applied last.
        act: Activation,
    },
    /// `act(out + scale * product)`.
    Add {
        /// The factor.
        scale: f32,
        /// Applied last.
        act: Activation,
    },
}

/// What a convolution's result is added to.
#[derive(Clone, Copy, Debug)]
pub enum Residual {
    /// Nothing.
    Nothing,
    /// Another map of its shape.
    Other(Span),
    /// What is there already.
    Out,
}

/// The parts of a map that a call works on.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// (channels, rows, width).
    pub data: Span,
    /// Which rows of the map these are.
    pub rows: MapRows,
    /// Columns.
    pub width: usize,
}

/// An operation on numbers one by one; the second operand is as long as the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elementwise {
    /// `x += y`.
    Add,
    /// `x *= y`.
    Mul,
    /// `x = y`.
    Copy,
    /// `x += factor * y`.
    AddScaled(f32),
}

/// A function of single numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// `act(x)`.
    Act(Activation),
    /// The hyperbolic tangent.
    Tanh,
    /// `x + constant`.
    Plus(f32),
}

/// Lines of f32 that lie at equal distances.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    /// Where they are copied from.
    pub from: Span,
    /// Numbers from one line to the next there.
    pub from_pitch: usize,
    /// Where to.
    pub to: Span,
    /// Numbers from one line to the next there.
    pub to_pitch: usize,
    /// Numbers of a line.
    pub width: usize,
    /// Lines.
    pub count: usize,
}

/// Why a device could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It has no room, or its budget allows no more.
    #[error(
        "the device has no room for {asked} bytes: {used} of its budget of {budget} are in use"
    )]
    OutOfMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes in use.
        used: u64,
        /// Bytes that may ever be.
        budget: u64,
    },
    /// It is lost: nothing in this process can use it any more.
    #[error("{0}")]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Anything else.
    #[error("{0}")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Shorthand for what a device answers.
pub type Done<T = ()> = std::result::Result<T, Failure>;

/// What computes on memory of its own. Operations mean what those of the same name in [`lowtide_kernels`] mean, and follow
/// one another in the order of the calls; a result does not depend on its company there either.
pub trait Device: Debug + Send + Sync {
    /// Memory, with unspecified contents.
    ///
    /// # Errors
    /// [`Failure::OutOfMemory`] beyond the budget.
    fn allocate(&self, bytes: usize) -> Done<Span>;
    /// Gives memory back, as [`Device::allocate`] gave it out, once all that was asked for before is done.
    fn free(&self, memory: Span);
    /// Brings bytes there. `from` can be reused at once.
    fn upload(&self, to: Span, from: &[u8]) -> Done;
    /// Brings bytes back, after all that was asked for before.
    fn download(&self, from: Span, to: &mut [u8]) -> Done;
    /// Zeros.
    fn zero(&self, to: Span) -> Done;
    /// Lines from one place to another.
    fn copy_lines(&self, lines: Lines) -> Done;
    /// `x` with `y`, one by one.
    fn elementwise(&self, op: Elementwise, x: Span, y: Span) -> Done;
    /// `x = function(x)`.
    fn apply(&self, function: Function, x: Span) -> Done;
    /// Every row becomes `row`.
    fn fill_rows(&self, out: Rows, row: Span) -> Done;
    /// Any stored numbers as f32, multiplied by their scales.
    fn widen(&self, from: Matrix, out: Span) -> Done;
    /// `finish(x W^T)`.
    fn linear(&self, x: Rows, w: Matrix, finish: Finish, precision: Precision, out: Rows) -> Done;
    /// `silu(x gate^T) * (x value^T)`, or with the error function's GELU and biases of value and gate.
    fn linear_gated(&self, x: Rows, gated: Gated, precision: Precision, out: Rows) -> Done;
    /// `x / rms(x) * weight * scale`.
    fn rms_norm(&self, x: Rows, weight: Span, eps: f32, scale: Option<Span>, out: Rows) -> Done;
    /// `x += gate * (y / rms(y) * weight)`.
    fn rms_norm_add(&self, y: Rows, weight: Span, eps: f32, gate: Option<Span>, x: Rows) -> Done;
    /// `(x - mean) / sqrt(variance + eps) * weight * scale + bias`.
    fn layer_norm(&self, x: Rows, norm: LayerNorm, out: Rows) -> Done;
    /// Norm and rotation of each head, in place; cosines and sines (rows, head_dim / 2).
    fn head_norm_rotary(
        &self,
        x: Rows,
        head_dim: usize,
        weight: Option<(Span, f32)>,
        rotary: Option<(Rotary, Span, Span)>,
    ) -> Done;
    /// `softmax(q k^T * scale) v`.
    fn attention(&self, spec: &Attention, q: Rows, k: Rows, v: Rows, out: Rows) -> Done;
    /// `conv(input(x)) + residual`.
    fn conv2d(
        &self,
        conv: Conv2d,
        x: Slice,
        precision: Precision,
        residual: Residual,
        out: Slice,
    ) -> Done;
    /// Adds a strip's rows (channels, rows, width) to sums and sums of squares, two f64 a group, in a fixed order.
    fn group_sums(&self, strip: Span, shape: [usize; 3], groups: usize, sums: Span) -> Done;
    /// Factors and summands of a group norm over `count` numbers a group.
    fn group_affine(&self, sums: Span, count: u64, norm: GroupNorm, out: [Span; 2]) -> Done;
    /// `out[t, c] = x[c, first + t] * scale[c] + shift[c]`.
    fn map_to_tokens(
        &self,
        x: Span,
        factors: [Span; 2],
        plane: usize,
        first: usize,
        out: Rows,
    ) -> Done;
    /// `map[c, first + t] += tokens[t, c]`.
    fn add_tokens_to_map(&self, tokens: Rows, map: Span, plane: usize, first: usize) -> Done;
    /// (channels, h, w) to (h / 2 * w / 2, 4 * channels) where `back` is false, else the other way; channels fastest.
    fn patches(&self, map: Span, shape: [usize; 3], patches: Span, back: bool) -> Done;
}

/// The two halves of a gated product.
#[derive(Clone, Copy, Debug)]
pub struct Gated {
    /// What is activated.
    pub gate: Matrix,
    /// What it is multiplied with.
    pub value: Matrix,
    /// One number an output of gate and value; then the activation is GELU, else SiLU.
    pub biases: Option<[Span; 2]>,
}

/// A layer norm's parameters.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    /// Factors.
    pub weight: Option<Span>,
    /// Summands.
    pub bias: Option<Span>,
    /// Added to the variance.
    pub eps: f32,
    /// More factors.
    pub scale: Option<Span>,
}

/// A group norm's parameters.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    /// How many groups.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// A factor a channel.
    pub weight: Span,
    /// A summand a channel.
    pub bias: Span,
}

/// Where numbers lie.
#[derive(Clone, Debug, Default)]
pub enum Place {
    /// In memory that the CPU computes on.
    #[default]
    Host,
    /// On a device.
    Device(Arc<dyn Device>),
}

thread_local! {
    static HERE: RefCell<Place> = const { RefCell::new(Place::Host) };
}

/// While it lives, this thread's new tensors are made at the place that was entered.
#[derive(Debug)]
pub struct Entered {
    before: Place,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = std::mem::take(&mut self.before);
        HERE.with(|here| *here.borrow_mut() = before);
    }
}

impl Place {
    /// Where this thread's new tensors are made.
    pub fn here() -> Place {
        HERE.with(|here| here.borrow().clone())
    }

    /// Makes this thread's new tensors here, until what is returned is dropped.
    #[must_use]
    pub fn enter(&self) -> Entered {
        let before = HERE.with(|here| here.replace(self.clone()));
        Entered { before }
    }

    /// Whether it is the memory of the CPU.
    pub fn is_host(&self) -> bool {
        matches!(self, Place::Host)
    }
}

/// A device's memory that goes back when it is dropped.
#[derive(Debug)]
pub struct Allocation {
    device: Arc<dyn Device>,
    span: Span,
}

impl Allocation {
    /// Memory of `device`, with unspecified contents.
    ///
    /// # Errors
    /// As [`Device::allocate`].
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Done<Allocation> {
        Ok(Allocation {
            span: device.allocate(bytes)?,
            device: Arc::clone(device),
        })
    }

    /// Where it lies.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Whose it is.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.device.free(self.span);
    }
}

/// Memory somewhere.
#[derive(Debug)]
pub enum Memory {
    /// The CPU's.
    Host(Buffer),
    /// A device's.
    Device(Allocation),
}

impl Memory {
    /// Memory where this thread makes new tensors.
    pub(crate) fn new(bytes: usize) -> Result<Memory> {
        match Place::here() {
            Place::Host => Ok(Memory::Host(Buffer::new(bytes)?)),
            Place::Device(device) => Ok(Memory::Device(Allocation::new(&device, bytes)?)),
        }
    }

    /// The same, all zeros.
    pub(crate) fn zeroed(bytes: usize) -> Result<Memory> {
        match Place::here() {
            Place::Host => Ok(Memory::Host(Buffer::zeroed(bytes)?)),
            Place::Device(device) => {
                let memory = Allocation::new(&device, bytes)?;
                device.zero(memory.span())?;
                Ok(Memory::Device(memory))
            }
        }
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        match self {
            Memory::Host(buffer) => buffer.len(),
            Memory::Device(allocation) => allocation.span.bytes,
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where its bytes lie.
    pub fn bytes(&self) -> Bytes<'_> {
        match self {
            Memory::Host(buffer) => Bytes::Host(buffer.bytes()),
            Memory::Device(memory) => Bytes::Device(On::new(memory)),
        }
    }
}

impl From<Buffer> for Memory {
    fn from(buffer: Buffer) -> Memory {
        Memory::Host(buffer)
    }
}

/// A part of a device's memory that somebody holds.
#[derive(Clone, Copy, Debug)]
pub struct On<'a> {
    pub(crate) device: &'a Arc<dyn Device>,
    pub(crate) span: Span,
}

impl<'a> On<'a> {
    pub(crate) fn new(memory: &'a Allocation) -> On<'a> {
        On {
            device: &memory.device,
            span: memory.span,
        }
    }

    /// Some of its bytes.
    pub fn bytes_at(&self, bytes: std::ops::Range<usize>) -> On<'a> {
        On {
            span: self.span.bytes_at(bytes),
            ..*self
        }
    }
}

/// Bytes somewhere: those of a block.
#[derive(Clone, Copy, Debug)]
pub enum Bytes<'a> {
    /// In the CPU's memory.
    Host(&'a [u8]),
    /// On a device.
    Device(On<'a>),
}

impl<'a> Bytes<'a> {
    /// Some of them.
    pub(crate) fn part(&self, bytes: std::ops::Range<usize>) -> Bytes<'a> {
        match self {
            Bytes::Host(all) => Bytes::Host(&all[bytes]),
            Bytes::Device(on) => Bytes::Device(on.bytes_at(bytes)),
        }
    }
}

impl<'a> From<&'a Vec<u8>> for Bytes<'a> {
    fn from(bytes: &'a Vec<u8>) -> Bytes<'a> {
        Bytes::Host(bytes)
    }
}

impl<'a> From<&'a [u8]> for Bytes<'a> {
    fn from(bytes: &'a [u8]) -> Bytes<'a> {
        Bytes::Host(bytes)
    }
}

/// f32 somewhere.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// In the CPU's memory.
    Host(&'a [f32]),
    /// On a device.
    Device(On<'a>),
}

impl<'a> Values<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Values::Host(values) => values.len(),
            Values::Device(on) => on.span.values(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    pub fn part(&self, values: std::ops::Range<usize>) -> Values<'a> {
        match self {
            Values::Host(all) => Values::Host(&all[values]),
            Values::Device(on) => Values::Device(On {
                span: on.span.part(values),
                ..*on
            }),
        }
    }

    /// The numbers, which are the CPU's.
    ///
    /// # Panics
    /// When they are on a device: that is a bug.
    pub fn host(&self) -> &'a [f32] {
        match self {
            Values::Host(values) => values,
            Values::Device(_) => elsewhere(),
        }
    }

    /// Where on the device they lie.
    ///
    /// # Panics
    /// When they are the CPU's: that is a bug.
    pub(crate) fn span(&self) -> Span {
        match self {
            Values::Device(on) => on.span,
            Values::Host(_) => elsewhere(),
        }
    }
}

impl<'a> From<&'a [f32]> for Values<'a> {
    fn from(values: &'a [f32]) -> Values<'a> {
        Values::Host(values)
    }
}

/// f32 somewhere, to be written.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// In the CPU's memory.
    Host(&'a mut [f32]),
    /// On a device.
    Device(On<'a>),
}

impl ValuesMut<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            ValuesMut::Host(values) => values.len(),
            ValuesMut::Device(on) => on.span.values(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    pub fn part(&mut self, values: std::ops::Range<usize>) -> ValuesMut<'_> {
        match self {
            ValuesMut::Host(all) => ValuesMut::Host(&mut all[values]),
            ValuesMut::Device(on) => ValuesMut::Device(On {
                span: on.span.part(values),
                ..*on
            }),
        }
    }

    /// The same, for a shorter time.
    pub(crate) fn again(&mut self) -> ValuesMut<'_> {
        match self {
            ValuesMut::Host(all) => ValuesMut::Host(all),
            ValuesMut::Device(on) => ValuesMut::Device(*on),
        }
    }
}

impl<'a> ValuesMut<'a> {
    /// The first `at` of them to be read, and the others to be written.
    pub(crate) fn split_at(self, at: usize) -> (Values<'a>, ValuesMut<'a>) {
        match self {
            ValuesMut::Host(all) => {
                let (read, write) = all.split_at_mut(at);
                (Values::Host(read), ValuesMut::Host(write))
            }
            ValuesMut::Device(on) => {
                let all = Values::Device(on);
                let write = On {
                    span: on.span.part(at..on.span.values()),
                    ..on
                };
                (all.part(0..at), ValuesMut::Device(write))
            }
        }
    }
}

pub(crate) fn elsewhere() -> ! {
    panic!("an operand is not where the others are (this is a bug)")
}

pub(crate) fn bytes_of(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

/// A layer's small vector.
#[derive(Debug)]
pub struct Vector(Held);

#[derive(Debug)]
enum Held {
    Host(Vec<f32>),
    Device(Allocation),
}

impl Vector {
    /// How many numbers.
    pub fn len(&self) -> usize {
        self.values().len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its numbers.
    pub fn values(&self) -> Values<'_> {
        match &self.0 {
            Held::Host(values) => Values::Host(values),
            Held::Device(memory) => Values::Device(On::new(memory)),
        }
    }

    /// A vector of `len` numbers on `device`, yet to be written.
    pub(crate) fn on(device: &Arc<dyn Device>, len: usize) -> Result<Vector> {
        let memory = Allocation::new(device, len * size_of::<f32>())?;
        Ok(Vector(Held::Device(memory)))
    }

    /// `a + b`, both on one device.
    pub(crate) fn sum(a: Values<'_>, b: Values<'_>) -> Result<Vector> {
        let (Values::Device(a), Values::Device(b)) = (a, b) else {
            elsewhere()
        };
        let sum = Vector::on(a.device, a.span.values())?;
        let to = sum.values().span();
        a.device.elementwise(Elementwise::Copy, to, a.span)?;
        a.device.elementwise(Elementwise::Add, to, b.span)?;
        Ok(sum)
    }

    /// These numbers, where this thread makes new tensors.
    pub(crate) fn here(values: Vec<f32>) -> Result<Vector> {
        match Place::here() {
            Place::Host => Ok(Vector::from(values)),
            Place::Device(device) => {
                let vector = Vector::on(&device, values.len())?;
                device.upload(vector.values().span(), &bytes_of(&values))?;
                Ok(vector)
            }
        }
    }
}

impl From<Vec<f32>> for Vector {
    fn from(values: Vec<f32>) -> Vector {
        Vector(Held::Host(values))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::OutOfMemory {
                asked,
                used,
                budget,
            } => Error::OutOfMemory(OutOfMemory {
                needed: asked,
                live: used,
                budget,
            }),
            other => Error::Device(other),
        }
    }
}
