//! Dense f32 tensors on the device that computes.
//!
//! A tensor owns its memory, and making one can fail: the budget is checked before memory is touched. It is made where its
//! thread makes new tensors ([`Place::enter`]): on the host, unless a model runs over weights that are on a device.
//! Models use only the operations of this module and of [`crate::layers`].

use std::ops::Range;

use lowtide_kernels as kernels;
use lowtide_kernels::{Rows, RowsMut};

use crate::device::{Elementwise, Memory, On, Place, Values, ValuesMut, bytes_of, elsewhere};
use crate::{Error, Result, ops};

/// How products are multiplied; passed down to every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// Operands of products are rounded to this; sums are always f32.
    pub precision: kernels::Precision,
}

/// A dense, row-major array of f32.
#[derive(Debug)]
pub struct Tensor {
    memory: Memory,
    shape: Vec<usize>,
}

impl Tensor {
    /// A tensor with unspecified contents, for an operation that writes all of it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the budget does not allow it.
    pub fn new(shape: &[usize]) -> Result<Tensor> {
        let elements: usize = shape.iter().product();
        Ok(Tensor {
            memory: Memory::new(elements * size_of::<f32>())?,
            shape: shape.to_vec(),
        })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn zeros(shape: &[usize]) -> Result<Tensor> {
        let elements: usize = shape.iter().product();
        Ok(Tensor {
            memory: Memory::zeroed(elements * size_of::<f32>())?,
            shape: shape.to_vec(),
        })
    }

    /// A tensor with the given values.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are too few or too many values, else as [`Tensor::new`].
    pub fn from_slice(shape: &[usize], values: &[f32]) -> Result<Tensor> {
        let mut tensor = Tensor::new(shape)?;
        if tensor.elements() != values.len() {
            return Err(Error::Shape {
                what: "values",
                expected: shape.to_vec(),
                found: vec![values.len()],
            });
        }
        match tensor.values_mut() {
            ValuesMut::Host(to) => kernels::copy(to, values),
            ValuesMut::Device(on) => on.device.upload(on.span, &bytes_of(values))?,
        }
        Ok(tensor)
    }

    /// A copy with memory of its own, in the same place.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn duplicate(&self) -> Result<Tensor> {
        let _here = self.place().enter();
        let mut copy = Tensor::new(&self.shape)?;
        ops::elementwise(Elementwise::Copy, copy.values_mut(), self.values())?;
        Ok(copy)
    }

    /// Where it lies.
    pub fn place(&self) -> Place {
        match &self.memory {
            Memory::Host(_) => Place::Host,
            Memory::Device(memory) => Place::Device(memory.device().clone()),
        }
    }

    /// A copy of a tensor of the host where this thread makes new ones.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn copied_here(&self) -> Result<Tensor> {
        let mut tensor = Tensor::new(&self.shape)?;
        match (&self.memory, tensor.values_mut()) {
            (_, ValuesMut::Host(to)) => kernels::copy(to, self.data()),
            (Memory::Host(buffer), ValuesMut::Device(on)) => {
                on.device.upload(on.span, buffer.bytes())?;
            }
            (Memory::Device(_), ValuesMut::Device(_)) => elsewhere(),
        }
        Ok(tensor)
    }

    /// A tensor of the host where this thread makes new ones: itself, or a copy.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub(crate) fn here(&self) -> Result<Here<'_>> {
        match Place::here() {
            Place::Host => Ok(Here::Itself(self)),
            Place::Device(_) => Ok(Here::Copy(self.copied_here()?)),
        }
    }

    /// The same numbers where this thread makes new tensors; nothing happens where they are there already.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn brought_here(self) -> Result<Tensor> {
        if self.place().is_host() == Place::here().is_host() {
            return Ok(self);
        }
        if Place::here().is_host() {
            return self.into_host();
        }
        self.copied_here()
    }

    /// The same numbers on the host; nothing happens where they are there already.
    ///
    /// # Errors
    /// As [`Tensor::new`], and when what computed them failed.
    pub fn into_host(self) -> Result<Tensor> {
        let Memory::Device(memory) = &self.memory else {
            return Ok(self);
        };
        let _host = Place::Host.enter();
        let mut host = Tensor::new(&self.shape)?;
        if let Memory::Host(buffer) = &mut host.memory {
            memory
                .device()
                .download(memory.span(), buffer.bytes_mut())?;
        }
        Ok(host)
    }

    /// Its dimensions, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The same values under other dimensions.
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of elements differs.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Tensor> {
        if shape.iter().product::<usize>() != self.elements() {
            return Err(Error::Shape {
                what: "reshape",
                expected: shape.to_vec(),
                found: self.shape,
            });
        }
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// Rows and columns of a matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is not one.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match self.shape[..] {
            [a, b] => Ok((a, b)),
            _ => Err(Error::Shape {
                what: "a matrix",
                expected: vec![0, 0],
                found: self.shape.clone(),
            }),
        }
    }

    /// Channels, height and width of a map.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is not one.
    pub fn dims3(&self) -> Result<(usize, usize, usize)> {
        match self.shape[..] {
            [a, b, c] => Ok((a, b, c)),
            _ => Err(Error::Shape {
                what: "a map",
                expected: vec![0, 0, 0],
                found: self.shape.clone(),
            }),
        }
    }

    /// How many values it has.
    pub fn elements(&self) -> usize {
        self.memory.len() / size_of::<f32>()
    }

    /// The values, on the host.
    ///
    /// # Panics
    /// When they are on a device: that is a bug.
    pub fn data(&self) -> &[f32] {
        self.values().host()
    }

    /// The values, on the host, to be written.
    ///
    /// # Panics
    /// As [`Tensor::data`].
    pub fn data_mut(&mut self) -> &mut [f32] {
        match self.values_mut() {
            ValuesMut::Host(values) => values,
            ValuesMut::Device(_) => elsewhere(),
        }
    }

    /// The values, wherever they lie.
    pub fn values(&self) -> Values<'_> {
        match &self.memory {
            Memory::Host(buffer) => Values::Host(buffer.f32()),
            Memory::Device(memory) => Values::Device(On::new(memory)),
        }
    }

    /// The values, wherever they lie, to be written.
    pub fn values_mut(&mut self) -> ValuesMut<'_> {
        match &mut self.memory {
            Memory::Host(buffer) => ValuesMut::Host(buffer.f32_mut()),
            Memory::Device(memory) => ValuesMut::Device(On::new(memory)),
        }
    }

    fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Row `index` of a matrix.
    pub fn row(&self, index: usize) -> Values<'_> {
        let columns = self.columns();
        self.values().part(index * columns..(index + 1) * columns)
    }

    /// Some rows of a matrix.
    pub fn part(&self, rows: Range<usize>) -> Part<'_> {
        self.all().rows_at(rows)
    }

    /// Some rows of a matrix, to be written.
    pub fn part_mut(&mut self, rows: Range<usize>) -> PartMut<'_> {
        let columns = self.columns();
        let values = match self.values_mut() {
            ValuesMut::Host(all) => {
                ValuesMut::Host(&mut all[rows.start * columns..rows.end * columns])
            }
            ValuesMut::Device(on) => ValuesMut::Device(On {
                span: on.span.part(rows.start * columns..rows.end * columns),
                ..on
            }),
        };
        PartMut { values, columns }
    }

    /// All rows of a matrix.
    pub fn all(&self) -> Part<'_> {
        Part {
            values: self.values(),
            columns: self.columns(),
        }
    }

    /// All rows of a matrix, to be written.
    pub fn all_mut(&mut self) -> PartMut<'_> {
        let columns = self.columns();
        PartMut {
            values: self.values_mut(),
            columns,
        }
    }
}

/// A tensor where it is computed with.
#[derive(Debug)]
pub(crate) enum Here<'a> {
    Itself(&'a Tensor),
    Copy(Tensor),
}

impl std::ops::Deref for Here<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Here::Itself(tensor) => tensor,
            Here::Copy(tensor) => tensor,
        }
    }
}

/// Consecutive rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    values: Values<'a>,
    columns: usize,
}

impl<'a> Part<'a> {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    /// How many columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The values, on the host.
    ///
    /// # Panics
    /// When they are on a device: that is a bug.
    pub fn data(&self) -> &'a [f32] {
        self.values.host()
    }

    /// The values, wherever they lie.
    pub fn values(&self) -> Values<'a> {
        self.values
    }

    /// Some of these rows.
    pub fn rows_at(&self, rows: Range<usize>) -> Part<'a> {
        Part {
            values: self
                .values
                .part(rows.start * self.columns..rows.end * self.columns),
            columns: self.columns,
        }
    }

    pub(crate) fn view(&self) -> Rows<'a> {
        Rows {
            data: self.values.host(),
            rows: self.rows(),
            cols: self.columns,
            stride: self.columns,
        }
    }
}

impl<'a> From<&'a Tensor> for Part<'a> {
    fn from(tensor: &'a Tensor) -> Part<'a> {
        tensor.all()
    }
}

/// Consecutive rows of a matrix, to be written.
#[derive(Debug)]
pub struct PartMut<'a> {
    values: ValuesMut<'a>,
    columns: usize,
}

impl PartMut<'_> {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    /// How many columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The values, wherever they lie.
    pub(crate) fn values(&mut self) -> ValuesMut<'_> {
        self.values.again()
    }

    /// Overwrites with the rows of `from`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes differ.
    pub fn copy_from(&mut self, from: Part<'_>) -> Result<()> {
        if from.values.len() != self.values.len() {
            let found = vec![from.rows(), from.columns];
            return Err(Error::Shape {
                what: "copy",
                expected: vec![self.rows(), self.columns],
                found,
            });
        }
        ops::elementwise(Elementwise::Copy, self.values(), from.values)
    }

    /// Some of these rows.
    pub fn rows_at(&mut self, rows: Range<usize>) -> PartMut<'_> {
        let columns = self.columns;
        PartMut {
            values: self.values.part(rows.start * columns..rows.end * columns),
            columns,
        }
    }

    /// The first `rows` of these rows.
    pub fn first_rows(&mut self, rows: usize) -> PartMut<'_> {
        self.rows_at(0..rows)
    }

    /// Overwrites every row with `row`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fill_rows(&mut self, row: Values<'_>) -> Result<()> {
        ops::fill_rows(self, row)
    }

    /// Adds `other` element by element.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add(&mut self, other: Part<'_>) -> Result<()> {
        ops::elementwise(Elementwise::Add, self.values(), other.values)
    }

    /// Multiplies by `other` element by element.
    ///
    /// # Errors
    /// When the device fails.
    pub fn mul(&mut self, other: Part<'_>) -> Result<()> {
        ops::elementwise(Elementwise::Mul, self.values(), other.values)
    }

    pub(crate) fn view(&mut self) -> RowsMut<'_> {
        let (rows, columns) = (self.rows(), self.columns);
        RowsMut {
            data: match self.values() {
                ValuesMut::Host(values) => values,
                ValuesMut::Device(_) => elsewhere(),
            },
            rows,
            cols: columns,
            stride: columns,
        }
    }
}
