//! Views of memory that operations take: rows, matrices as they are stored, convolutions.

use crate::memory::{Span, SpanMut};
use lowtide_kernels::{Activation, BLOCK, Per, Stored};
use std::ops::Range;

/// An address and how many bytes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The first byte.
    pub address: u64,
    /// How many.
    pub bytes: usize,
}

impl At {
    /// How many f32 that is.
    ///
    /// # Panics
    /// When they do not begin where f32 may.
    pub fn f32s(self) -> usize {
        assert!(
            self.address.is_multiple_of(4),
            "f32 at address {:#x}",
            self.address
        );
        self.bytes / 4
    }

    /// The same from number `index` on.
    pub(crate) fn after(self, index: usize) -> At {
        assert!(
            index * 4 <= self.bytes,
            "number {index} of {} bytes",
            self.bytes
        );
        At {
            address: self.address + index as u64 * 4,
            bytes: self.bytes - index * 4,
        }
    }
}

/// Memory of some device.
pub trait Memory {
    /// Where it is.
    fn at(&self) -> At;
}

impl Memory for At {
    fn at(&self) -> At {
        *self
    }
}

impl Memory for Span<'_> {
    fn at(&self) -> At {
        At {
            address: self.address(),
            bytes: self.len(),
        }
    }
}

impl Memory for SpanMut<'_> {
    fn at(&self) -> At {
        At {
            address: self.address(),
            bytes: self.len(),
        }
    }
}

/// `rows` rows of `cols` numbers of f32, `stride` apart; as [`lowtide_kernels::Rows`].
#[derive(Clone, Copy, Debug)]
pub struct RowsIn<M> {
    /// At least `(rows - 1) * stride + cols` numbers.
    pub data: M,
    /// Tokens.
    pub rows: usize,
    /// Numbers of a row.
    pub cols: usize,
    /// Numbers from the start of one row to the next.
    pub stride: usize,
}

impl RowsIn<At> {
    /// Some numbers of every row.
    ///
    /// # Panics
    /// When rows have fewer.
    pub fn columns(&self, columns: Range<usize>) -> RowsIn<At> {
        assert!(
            columns.end <= self.cols,
            "{columns:?} of {} columns",
            self.cols
        );
        let numbers = self.rows.saturating_sub(1) * self.stride + columns.len();
        let view = RowsIn {
            data: At {
                address: self.data.address + (columns.start * 4) as u64,
                bytes: if self.rows == 0 { 0 } else { numbers * 4 },
            },
            cols: columns.len(),
            ..*self
        };
        view.at();
        view
    }
}

/// Rows that are read.
pub type Rows<'a> = RowsIn<Span<'a>>;
/// Rows that are written.
pub type RowsMut<'a> = RowsIn<SpanMut<'a>>;

impl<M: Memory> RowsIn<M> {
    /// Contiguous rows.
    ///
    /// # Panics
    /// When there are fewer numbers.
    pub fn new(data: M, rows: usize, cols: usize) -> RowsIn<M> {
        let view = RowsIn {
            data,
            rows,
            cols,
            stride: cols,
        };
        view.at();
        view
    }

    /// The same by address.
    ///
    /// # Panics
    /// When rows overlap, or there are fewer numbers.
    pub fn at(&self) -> RowsIn<At> {
        let (rows, cols, stride) = (self.rows, self.cols, self.stride);
        let data = self.data.at();
        assert!(
            rows <= 1 || stride >= cols,
            "rows of {cols} numbers overlap at stride {stride}"
        );
        assert!(
            rows == 0 || data.f32s() >= (rows - 1) * stride + cols,
            "{rows} rows of {cols} at stride {stride} need more than {} numbers",
            data.f32s()
        );
        RowsIn {
            data,
            rows,
            cols,
            stride,
        }
    }
}

impl RowsIn<At> {
    /// Some of the rows.
    pub(crate) fn part(&self, first: usize, rows: usize) -> RowsIn<At> {
        assert!(first + rows <= self.rows, "rows {first}..{}", first + rows);
        RowsIn {
            data: self.data.after(first * self.stride),
            rows,
            ..*self
        }
    }
}

/// Numbers that a matrix' stored ones are multiplied by; as [`lowtide_kernels::Scales`].
#[derive(Clone, Copy, Debug)]
pub struct ScalesIn<M> {
    /// How each is stored.
    pub stored: Stored,
    /// As many as `per` says for the matrix, at any address; blocks row by row.
    pub data: M,
    /// What each is for.
    pub per: Per,
}

/// Scales on the GPU.
pub type Scales<'a> = ScalesIn<Span<'a>>;

/// A weight matrix, row-major `[rows, cols]`, as a checkpoint stores it; as [`lowtide_kernels::Matrix`].
#[derive(Clone, Copy, Debug)]
pub struct MatrixIn<M> {
    /// How each number is stored.
    pub stored: Stored,
    /// `rows * cols` numbers, at any address; multiples of 16 are read fastest.
    pub data: M,
    /// Outputs, N.
    pub rows: usize,
    /// Inputs, K.
    pub cols: usize,
    /// What the stored numbers are multiplied by, where they are more than that.
    pub scales: Option<ScalesIn<M>>,
}

/// A matrix on the GPU.
pub type Matrix<'a> = MatrixIn<Span<'a>>;

impl<M: Memory> MatrixIn<M> {
    /// The same by address.
    ///
    /// # Panics
    /// When numbers or scales are of another number than the shape says.
    pub fn at(&self) -> MatrixIn<At> {
        let (rows, cols) = (self.rows, self.cols);
        let data = self.data.at();
        assert_eq!(
            data.bytes,
            rows * cols * self.stored.size(),
            "a {rows} x {cols} matrix of {:?} has another number of bytes",
            self.stored
        );
        let scales = self.scales.as_ref().map(|scales| {
            assert!(
                scales.per != Per::Block || cols.is_multiple_of(BLOCK),
                "rows of {cols} numbers do not come in blocks of {BLOCK}"
            );
            let count = match scales.per {
                Per::Matrix => 1,
                Per::Row => rows,
                Per::Block => rows * (cols / BLOCK),
            };
            let data = scales.data.at();
            assert_eq!(
                data.bytes,
                count * scales.stored.size(),
                "the scales of a {rows} x {cols} matrix, {:?}, are of another number",
                scales.per
            );
            ScalesIn {
                stored: scales.stored,
                data,
                per: scales.per,
            }
        });
        MatrixIn {
            stored: self.stored,
            data,
            rows,
            cols,
            scales,
        }
    }
}

/// `x -> act(x * scale[c] + shift[c])`; as [`lowtide_kernels::ChannelAffine`].
#[derive(Clone, Copy, Debug)]
pub struct ChannelAffineIn<M> {
    /// A factor for each channel.
    pub scale: M,
    /// What is added for each channel.
    pub shift: M,
    /// Applied last.
    pub act: Activation,
}

/// A norm reduced to channels, on the GPU.
pub type ChannelAffine<'a> = ChannelAffineIn<Span<'a>>;

impl<M: Memory> ChannelAffineIn<M> {
    /// The same by address.
    ///
    /// # Panics
    /// When there are numbers for other than `channels` channels.
    pub fn at(&self, channels: usize) -> ChannelAffineIn<At> {
        let (scale, shift) = (self.scale.at(), self.shift.at());
        assert!(
            scale.f32s() == channels && shift.f32s() == channels,
            "scale and shift of {} and {} numbers for {channels} channels",
            scale.f32s(),
            shift.f32s()
        );
        ChannelAffineIn {
            scale,
            shift,
            act: self.act,
        }
    }
}

/// A convolution and what is fused into it; as [`lowtide_kernels::Conv2d`].
#[derive(Clone, Copy, Debug)]
pub struct Conv2dIn<M> {
    /// `[cout, cin * kernel * kernel]`, as a checkpoint stores `[cout, cin, ky, kx]`.
    pub weight: MatrixIn<M>,
    /// `[cout]`, f32.
    pub bias: Option<M>,
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Input rows and columns from one output to the next.
    pub stride: usize,
    /// Zeros on all sides.
    pub padding: usize,
    /// Whether the input is doubled by nearest neighbour first.
    pub upsample: bool,
    /// Applied to the input's numbers as they are read, not to the zeros around them. Each is computed as often as the
    /// kernel has taps: for wide kernels on a fast GPU, [`super::channel_affine`] before costs less where there is room.
    pub input: Option<ChannelAffineIn<M>>,
}

/// A convolution on the GPU.
pub type Conv2d<'a> = Conv2dIn<Span<'a>>;

/// What becomes of each result of a convolution, its bias added; as [`lowtide_kernels::Finish`].
#[derive(Clone, Copy, Debug, Default)]
pub enum FinishIn<M> {
    /// Nothing.
    #[default]
    Plain,
    /// It is multiplied by this.
    Scaled(f32),
    /// It is multiplied by this where it is negative.
    Leaky(f32),
    /// The same with a number for each channel.
    Slopes(M),
    /// It is multiplied by its sigmoid.
    Silu,
    /// A norm reduced to channels, and an activation.
    Affine(ChannelAffineIn<M>),
}

/// What becomes of results, on the GPU.
pub type Finish<'a> = FinishIn<Span<'a>>;

/// The f32 of an operand for each of `count` things.
///
/// # Panics
/// When there are others than so many.
pub(crate) fn numbers(what: &str, memory: &impl Memory, count: usize) -> At {
    let at = memory.at();
    assert_eq!(at.f32s(), count, "{what} of another length");
    at
}

/// The same where there may be none.
pub(crate) fn numbers_if(what: &str, memory: Option<&impl Memory>, count: usize) -> Option<At> {
    memory.map(|memory| numbers(what, memory, count))
}
