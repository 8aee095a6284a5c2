//! Dense f32 tensors on the device that computes.
//!
//! A tensor owns its buffer, and making one can fail: the budget is checked before memory is touched. Models use only
//! the operations of this module and of [`crate::layers`]; that is what a device has to offer.

use std::ops::Range;

use lowtide_kernels as kernels;
use lowtide_kernels::memory::Buffer;
use lowtide_kernels::{Rows, RowsMut};

use crate::{Error, Result};

/// How products are multiplied; passed down to every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// Operands of products are rounded to this; sums are always f32.
    pub precision: kernels::Precision,
}

/// A dense, row-major array of f32.
#[derive(Debug)]
pub struct Tensor {
    buffer: Buffer,
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
            buffer: Buffer::new(elements * size_of::<f32>())?,
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
            buffer: Buffer::zeroed(elements * size_of::<f32>())?,
            shape: shape.to_vec(),
        })
    }

    /// A tensor with the given values.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are too few or too many values, else as [`Tensor::new`].
    pub fn from_slice(shape: &[usize], values: &[f32]) -> Result<Tensor> {
        let mut tensor = Tensor::new(shape)?;
        if tensor.data().len() != values.len() {
            return Err(Error::Shape {
                what: "values",
                expected: shape.to_vec(),
                found: vec![values.len()],
            });
        }
        kernels::copy(tensor.data_mut(), values);
        Ok(tensor)
    }

    /// A copy with memory of its own.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn duplicate(&self) -> Result<Tensor> {
        Tensor::from_slice(&self.shape, self.data())
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
        if shape.iter().product::<usize>() != self.data().len() {
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

    /// The values.
    pub fn data(&self) -> &[f32] {
        self.buffer.f32()
    }

    /// The values, to be written.
    pub fn data_mut(&mut self) -> &mut [f32] {
        self.buffer.f32_mut()
    }

    fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Row `index` of a matrix.
    pub fn row(&self, index: usize) -> &[f32] {
        let columns = self.columns();
        &self.data()[index * columns..(index + 1) * columns]
    }

    /// Some rows of a matrix.
    pub fn part(&self, rows: Range<usize>) -> Part<'_> {
        let columns = self.columns();
        Part {
            data: &self.data()[rows.start * columns..rows.end * columns],
            columns,
        }
    }

    /// Some rows of a matrix, to be written.
    pub fn part_mut(&mut self, rows: Range<usize>) -> PartMut<'_> {
        let columns = self.columns();
        PartMut {
            data: &mut self.data_mut()[rows.start * columns..rows.end * columns],
            columns,
        }
    }

    /// All rows of a matrix.
    pub fn all(&self) -> Part<'_> {
        Part {
            data: self.data(),
            columns: self.columns(),
        }
    }

    /// All rows of a matrix, to be written.
    pub fn all_mut(&mut self) -> PartMut<'_> {
        let columns = self.columns();
        PartMut {
            data: self.data_mut(),
            columns,
        }
    }
}

/// Consecutive rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    data: &'a [f32],
    columns: usize,
}

impl<'a> Part<'a> {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.columns
    }

    /// How many columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The values.
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// Some of these rows.
    pub fn rows_at(&self, rows: Range<usize>) -> Part<'a> {
        Part {
            data: &self.data[rows.start * self.columns..rows.end * self.columns],
            columns: self.columns,
        }
    }

    pub(crate) fn view(&self) -> Rows<'a> {
        Rows {
            data: self.data,
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
    data: &'a mut [f32],
    columns: usize,
}

impl PartMut<'_> {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.columns
    }

    /// Overwrites with the rows of `from`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes differ.
    pub fn copy_from(&mut self, from: Part<'_>) -> Result<()> {
        if from.data.len() != self.data.len() {
            let found = vec![from.rows(), from.columns];
            return Err(Error::Shape {
                what: "copy",
                expected: vec![self.rows(), self.columns],
                found,
            });
        }
        kernels::copy(self.data, from.data);
        Ok(())
    }

    /// Some of these rows.
    pub fn rows_at(&mut self, rows: Range<usize>) -> PartMut<'_> {
        let columns = self.columns;
        PartMut {
            data: &mut self.data[rows.start * columns..rows.end * columns],
            columns,
        }
    }

    /// The first `rows` of these rows.
    pub fn first_rows(&mut self, rows: usize) -> PartMut<'_> {
        let columns = self.columns;
        PartMut {
            data: &mut self.data[..rows * columns],
            columns,
        }
    }

    /// Overwrites every row with `row`.
    pub fn fill_rows(&mut self, row: &[f32]) {
        for target in self.data.chunks_exact_mut(self.columns) {
            target.copy_from_slice(row);
        }
    }

    /// Adds `other` element by element.
    pub fn add(&mut self, other: Part<'_>) {
        kernels::add(self.data, other.data);
    }

    /// Multiplies by `other` element by element.
    pub fn mul(&mut self, other: Part<'_>) {
        kernels::mul(self.data, other.data);
    }

    pub(crate) fn view(&mut self) -> RowsMut<'_> {
        let rows = self.rows();
        RowsMut {
            data: self.data,
            rows,
            cols: self.columns,
            stride: self.columns,
        }
    }
}
