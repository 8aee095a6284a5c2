//! Weights of few bits that are stored with numbers they are multiplied by: fp8 with one factor a matrix or a row, int8
//! with one in every block of 32 (what GGUF calls q8_0).
//!
//! A stretch of a row is widened into scratch when a block of the result needs it, each number times its scale in f32
//! and then rounded as the product wants it; from there on it is a weight like any other. So a row's result depends on
//! its company no more than it does with other weights.

use crate::isa::Isa;
use crate::simd::{LANES, Vector, per_isa};
use crate::stored::{Format, Matrix, Stored, to_f32, widen, widen_part};
use std::ops::Range;

/// Numbers of a row that share a scale in [`Per::Block`].
pub const BLOCK: usize = 32;

/// What a scale is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Per {
    /// The whole matrix.
    Matrix,
    /// A row: one output.
    Row,
    /// [`BLOCK`] numbers of a row, whose length is a multiple of it.
    Block,
}

/// Numbers that a matrix' stored ones are multiplied by, borrowed as they were read.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    /// How each is stored.
    pub stored: Stored,
    /// As many as `per` says for the matrix, of any alignment; blocks row by row.
    pub bytes: &'a [u8],
    /// What each is for.
    pub per: Per,
}

impl<'a> Scales<'a> {
    /// Scales of each row.
    fn of_row(self, cols: usize) -> usize {
        match self.per {
            Per::Matrix => 0,
            Per::Row => 1,
            Per::Block => cols / BLOCK,
        }
    }

    /// Panics unless there are as many as a matrix of this shape needs.
    pub(crate) fn check(&self, rows: usize, cols: usize) {
        assert!(
            self.per != Per::Block || cols.is_multiple_of(BLOCK),
            "rows of {cols} numbers do not come in blocks of {BLOCK}"
        );
        let count = match self.per {
            Per::Matrix => 1,
            Per::Row | Per::Block => rows * self.of_row(cols),
        };
        assert_eq!(
            self.bytes.len(),
            count * self.stored.size(),
            "the scales of a {rows} x {cols} matrix, {:?}, are of another number",
            self.per
        );
    }

    /// Those of some of a matrix' rows.
    pub(crate) fn rows(self, rows: &Range<usize>, cols: usize) -> Scales<'a> {
        let row = self.of_row(cols) * self.stored.size();
        match self.per {
            Per::Matrix => self,
            Per::Row | Per::Block => Scales {
                bytes: &self.bytes[rows.start * row..rows.end * row],
                ..self
            },
        }
    }

    /// Multiplies numbers of rows of `cols` by them, all of the matrix or none.
    ///
    /// # Panics
    /// When there are fewer scales than the numbers need.
    pub fn apply(&self, numbers: &mut [f32], cols: usize) {
        let mut scales = vec![0.0; self.bytes.len() / self.stored.size()];
        to_f32(self.stored, self.bytes, &mut scales);
        for (at, number) in numbers.iter_mut().enumerate() {
            *number *= match self.per {
                Per::Matrix => scales[0],
                Per::Row => scales[at / cols],
                Per::Block => scales[at / BLOCK],
            };
        }
    }

    /// Those of a stretch of a row, and how many numbers before the stretch the first one counts from.
    fn stretch(&self, row: usize, cols: usize, k: &Range<usize>) -> (&'a [u8], usize) {
        let size = self.stored.size();
        let (first, count, before) = match self.per {
            Per::Matrix => (0, 1, 0),
            Per::Row => (row, 1, 0),
            Per::Block => {
                let first = k.start / BLOCK;
                let count = k.end.div_ceil(BLOCK) - first;
                (row * (cols / BLOCK) + first, count, k.start % BLOCK)
            }
        };
        (&self.bytes[first * size..][..count * size], before)
    }
}

/// A stretch of a row, and its scales.
struct Stretch<'a> {
    stored: Stored,
    numbers: &'a [u8],
    count: usize,
    scales: &'a [u8],
    scale_stored: Stored,
    /// Numbers that share a scale: a multiple of sixteen.
    block: usize,
    /// Numbers of the first block that are before the stretch: a multiple of sixteen.
    before: usize,
}

/// Writes row `row` of a scaled matrix, from `k.start` on, as the products of `format` take it.
///
/// # Safety
/// `out` must be good for the steps of `k.len()` numbers in `format`.
pub(crate) unsafe fn write_row(
    (isa, format): (Isa, Format),
    (matrix, scales): (&Matrix<'_>, &Scales<'_>),
    (row, k): (usize, &Range<usize>),
    out: *mut f32,
) {
    let size = matrix.stored.size();
    let start = (row * matrix.cols + k.start) * size;
    let (bytes, before) = scales.stretch(row, matrix.cols, k);
    // Vectors of sixteen lie within a block, since stretches begin at multiples of sixteen.
    assert!(before.is_multiple_of(LANES));
    let stretch = Stretch {
        stored: matrix.stored,
        numbers: &matrix.bytes[start..start + k.len() * size],
        count: k.len(),
        scales: bytes,
        scale_stored: scales.stored,
        block: match scales.per {
            Per::Matrix | Per::Row => usize::MAX / LANES * LANES,
            Per::Block => BLOCK,
        },
        before,
    };
    // SAFETY: the numbers and scales are slices of the lengths that are said; `out` is the caller's promise.
    unsafe { write_stretch(isa, format, &stretch, out) };
}

/// Reads a stretch, scaled. Closures would not be compiled for the instruction set of who calls them.
struct Reader<'a> {
    from: &'a Stretch<'a>,
    /// Scales, widened sixteen at a time.
    scales: [f32; LANES],
    /// Which of them are here.
    here: usize,
}

impl Reader<'_> {
    /// Sixteen numbers, or as many as there are and zeros.
    ///
    /// # Safety
    /// The instruction set must be there, and the slices have as many numbers as the stretch says.
    #[inline(always)]
    unsafe fn vector<V: Vector>(&mut self, first: usize) -> V {
        let from = self.from;
        // SAFETY: the caller's promise.
        unsafe {
            let count = from.count.saturating_sub(first).min(LANES);
            if count == 0 {
                return V::splat(0.0);
            }
            let number = (from.before + first) / from.block;
            if number / LANES != self.here {
                self.here = number / LANES;
                let scale_size = from.scale_stored.size();
                let rest = &from.scales[self.here * LANES * scale_size..];
                let left = (rest.len() / scale_size).min(LANES);
                let scales = widen_part::<V>(from.scale_stored, rest.as_ptr(), left);
                scales.store(self.scales.as_mut_ptr());
            }
            let at = from.numbers.as_ptr().add(first * from.stored.size());
            let stored = if count == LANES {
                widen::<V>(from.stored, at)
            } else {
                widen_part::<V>(from.stored, at, count)
            };
            stored.mul(V::splat(self.scales[number % LANES]))
        }
    }
}

#[inline(always)]
unsafe fn write_generic<V: Vector>(format: Format, from: &Stretch<'_>, out: *mut f32) {
    let mut reader = Reader {
        from,
        scales: [0.0; LANES],
        here: usize::MAX,
    };
    // SAFETY: the slices have as many numbers as the stretch says; the caller promises `out`.
    unsafe {
        match format {
            Format::F32 | Format::Rounded => {
                for first in (0..from.count).step_by(LANES) {
                    let mut v = reader.vector::<V>(first);
                    if format == Format::Rounded {
                        v = v.to_bf16();
                    }
                    match from.count - first {
                        LANES.. => v.store(out.add(first)),
                        rest => v.store_part(out.add(first), rest),
                    }
                }
            }
            Format::Pairs => {
                for first in (0..from.count).step_by(2 * LANES) {
                    let low = reader.vector::<V>(first);
                    let high = reader.vector::<V>(first + LANES);
                    let to = out.add(first / 2).cast::<u32>();
                    match from.count - first {
                        32.. => low.store_bf16(high, to),
                        rest => {
                            let mut pairs = [0u32; LANES];
                            low.store_bf16(high, pairs.as_mut_ptr());
                            std::ptr::copy_nonoverlapping(pairs.as_ptr(), to, rest.div_ceil(2));
                        }
                    }
                }
            }
        }
    }
}

per_isa! {
    /// Writes a scaled stretch of a row.
    ///
    /// # Safety
    /// `out` must be good for the stretch's steps.
    fn write_stretch(format: Format, from: &Stretch<'_>, out: *mut f32) = write_generic;
}
