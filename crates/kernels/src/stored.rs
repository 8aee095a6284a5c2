//! Weights as a checkpoint stores them, and their exact widening.

use crate::isa::{Isa, isa};
use crate::scaled::Scales;
use crate::simd::{LANES, Vector, per_isa};
use std::ops::Range;

/// How a checkpoint stores a number, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stored {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Four bits of exponent, three of fraction, no infinity ("fn").
    F8E4M3,
    /// The upper half of an f16.
    F8E5M2,
    /// A whole number from -128 to 127; a weight with [`Scales`] beside it.
    I8,
}

impl Stored {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Stored::F32 => 4,
            Stored::F16 | Stored::Bf16 => 2,
            Stored::F8E4M3 | Stored::F8E5M2 | Stored::I8 => 1,
        }
    }
}

/// What products are multiplied in; sums are always f32. Processors have the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Both factors f32; stored weights are widened exactly.
    F32,
    /// Both factors rounded to the nearest bf16. Where the machine multiplies bf16 itself,
    /// subnormal factors, products and sums count as zero, and its instruction says in which
    /// order the products of pairs are added; elsewhere the product is an f32's.
    Bf16,
    /// Both factors rounded to the nearest tf32, which is f32 with ten bits of fraction. GPUs alone
    /// have it: the functions of this crate panic.
    Tf32,
    /// Both factors rounded to the nearest f16. What is beyond its range becomes ±65504 and not
    /// infinite, NaN stays NaN. GPUs alone have it: the functions of this crate panic.
    F16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 4] = [
        Precision::F32,
        Precision::Bf16,
        Precision::Tf32,
        Precision::F16,
    ];

    /// Whether the functions of this crate, which compute on processors, multiply in it.
    pub fn is_of_processors(self) -> bool {
        matches!(self, Precision::F32 | Precision::Bf16)
    }
}

/// A weight matrix, row-major `[rows, cols]`, contiguous, borrowed as it was read.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// How each number is stored.
    pub stored: Stored,
    /// `rows * cols` numbers, of any alignment.
    pub bytes: &'a [u8],
    /// Outputs, N.
    pub rows: usize,
    /// Inputs, K.
    pub cols: usize,
    /// What the stored numbers are multiplied by, where they are more than that.
    pub scales: Option<Scales<'a>>,
}

impl<'a> Matrix<'a> {
    /// Some of its rows.
    pub fn rows_at(&self, rows: Range<usize>) -> Matrix<'a> {
        let row = self.cols * self.stored.size();
        Matrix {
            bytes: &self.bytes[rows.start * row..rows.end * row],
            rows: rows.len(),
            scales: self.scales.map(|scales| scales.rows(&rows, self.cols)),
            ..*self
        }
    }

    /// Panics unless the bytes are as many as the shape says.
    pub(crate) fn check(&self) {
        assert_eq!(
            self.bytes.len(),
            self.rows * self.cols * self.stored.size(),
            "a {} x {} matrix of {:?} has another number of bytes",
            self.rows,
            self.cols,
            self.stored
        );
        if let Some(scales) = &self.scales {
            scales.check(self.rows, self.cols);
        }
    }
}

/// One E4M3 number.
const fn f8e4m3(byte: u8) -> f32 {
    let sign = if byte & 0x80 != 0 { -1.0 } else { 1.0 };
    let exponent = ((byte >> 3) & 15) as u32;
    let fraction = (byte & 7) as f32;
    if byte & 0x7f == 0x7f {
        return f32::NAN;
    }
    if exponent == 0 {
        return sign * fraction / 512.0;
    }
    // 2^(exponent - 7), a normal f32.
    sign * (1.0 + fraction / 8.0) * f32::from_bits((exponent + 120) << 23)
}

static F8E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = f8e4m3(i as u8);
        i += 1;
    }
    table
};

/// Sixteen numbers widened.
///
/// # Safety
/// `from` must be good for sixteen numbers as stored; `V`'s instruction set must be there.
#[inline(always)]
pub(crate) unsafe fn widen<V: Vector>(stored: Stored, from: *const u8) -> V {
    // SAFETY: the caller promises sixteen numbers.
    unsafe {
        match stored {
            Stored::F32 => V::load(from.cast()),
            Stored::Bf16 => V::load_bf16(from),
            Stored::F16 => {
                let bytes = from.cast::<[[u8; 2]; LANES]>().read_unaligned();
                V::from_f16(&bytes.map(u16::from_le_bytes))
            }
            Stored::F8E5M2 => {
                let bytes = from.cast::<[u8; LANES]>().read_unaligned();
                V::from_f16(&bytes.map(|b| u16::from(b) << 8))
            }
            Stored::F8E4M3 => {
                let bytes = from.cast::<[u8; LANES]>().read_unaligned();
                V::load(bytes.map(|b| F8E4M3[usize::from(b)]).as_ptr())
            }
            Stored::I8 => {
                let whole = from.cast::<[i8; LANES]>().read_unaligned();
                V::load(whole.map(f32::from).as_ptr())
            }
        }
    }
}

/// Up to sixteen numbers, zeros behind them.
#[inline(always)]
pub(crate) unsafe fn widen_part<V: Vector>(stored: Stored, from: *const u8, count: usize) -> V {
    let mut block = [0u8; LANES * 4];
    // SAFETY: the caller promises `count` <= 16 numbers; the block holds sixteen of any kind.
    unsafe {
        std::ptr::copy_nonoverlapping(from, block.as_mut_ptr(), count * stored.size());
        widen(stored, block.as_ptr())
    }
}

#[inline(always)]
unsafe fn to_f32_generic<V: Vector>(stored: Stored, from: *const u8, out: *mut f32, count: usize) {
    let whole = count / LANES * LANES;
    // SAFETY: the caller promises `count` numbers on both sides.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            widen::<V>(stored, from.add(i * stored.size())).store(out.add(i));
        }
        if whole < count {
            let rest = count - whole;
            widen_part::<V>(stored, from.add(whole * stored.size()), rest)
                .store_part(out.add(whole), rest);
        }
    }
}

#[inline(always)]
unsafe fn round_generic<V: Vector>(data: *mut f32, count: usize) {
    let whole = count / LANES * LANES;
    // SAFETY: the caller promises `count` numbers.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            V::load(data.add(i)).to_bf16().store(data.add(i));
        }
        if whole < count {
            let rest = count - whole;
            V::load_part(data.add(whole), rest)
                .to_bf16()
                .store_part(data.add(whole), rest);
        }
    }
}

/// Writes bf16 pairs of consecutive numbers; an odd last one is paired with zero.
#[inline(always)]
unsafe fn to_pairs_generic<V: Vector>(
    stored: Stored,
    from: *const u8,
    out: *mut u32,
    count: usize,
) {
    let size = stored.size();
    let whole = count / (2 * LANES) * (2 * LANES);
    // SAFETY: the caller promises `count` numbers and room for their pairs.
    unsafe {
        for i in (0..whole).step_by(2 * LANES) {
            let low = widen::<V>(stored, from.add(i * size));
            let high = widen::<V>(stored, from.add((i + LANES) * size));
            low.store_bf16(high, out.add(i / 2));
        }
        if whole < count {
            let rest = count - whole;
            let from = from.add(whole * size);
            let low = widen_part::<V>(stored, from, rest.min(LANES));
            let beyond = rest.saturating_sub(LANES);
            let high = widen_part::<V>(stored, from.add((rest - beyond) * size), beyond);
            let mut pairs = [0u32; LANES];
            low.store_bf16(high, pairs.as_mut_ptr());
            let out = out.add(whole / 2);
            std::ptr::copy_nonoverlapping(pairs.as_ptr(), out, rest.div_ceil(2));
        }
    }
}

per_isa! {
    /// Widens `count` stored numbers.
    ///
    /// # Safety
    /// Both pointers must be good for `count` numbers.
    pub(crate) fn widen_to_f32(stored: Stored, from: *const u8, out: *mut f32, count: usize) = to_f32_generic;
    /// Rounds `count` numbers to bf16 in place.
    ///
    /// # Safety
    /// The pointer must be good for `count` numbers.
    pub(crate) fn round_to_bf16(data: *mut f32, count: usize) = round_generic;
    /// Writes `count` stored numbers as bf16 pairs, the last one beside a zero if `count` is odd.
    ///
    /// # Safety
    /// The pointers must be good for `count` numbers and `count.div_ceil(2)` pairs.
    pub(crate) fn to_bf16_pairs(stored: Stored, from: *const u8, out: *mut u32, count: usize) = to_pairs_generic;
}

/// Widens stored numbers to f32, exactly.
///
/// # Panics
/// When `bytes` and `out` do not hold the same number of numbers.
pub fn to_f32(stored: Stored, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        bytes.len(),
        out.len() * stored.size(),
        "to_f32: bytes and numbers differ in count"
    );
    // SAFETY: both slices hold `out.len()` numbers.
    unsafe { widen_to_f32(isa(), stored, bytes.as_ptr(), out.as_mut_ptr(), out.len()) };
}

/// How a panel and its weights are laid out for the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// f32.
    F32,
    /// f32 numbers that were rounded to bf16: the emulation.
    Rounded,
    /// 32-bit pairs of bf16, consecutive in k.
    Pairs,
}

impl Format {
    pub(crate) fn of(precision: Precision, isa: Isa) -> Self {
        match (precision, isa) {
            (Precision::F32, _) => Format::F32,
            (Precision::Bf16, Isa::Avx512Bf16 | Isa::Amx | Isa::AmxEmulated) => Format::Pairs,
            (Precision::Bf16, Isa::Portable | Isa::Avx2 | Isa::Avx512) => Format::Rounded,
            (Precision::Tf32 | Precision::F16, _) => {
                panic!("products in {precision:?} on a processor, which has none")
            }
        }
    }

    /// Numbers of k in so many steps.
    pub(crate) fn numbers(self, steps: usize) -> usize {
        match self {
            Format::F32 | Format::Rounded => steps,
            Format::Pairs => 2 * steps,
        }
    }

    /// Steps of the products along `k` numbers.
    pub(crate) fn steps(self, k: usize) -> usize {
        match self {
            Format::F32 | Format::Rounded => k,
            Format::Pairs => k.div_ceil(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_processors_have_is_laid_out_and_the_rest_panics() {
        for precision in Precision::ALL {
            let laid_out = std::panic::catch_unwind(|| Format::of(precision, isa()));
            assert_eq!(
                laid_out.is_ok(),
                precision.is_of_processors(),
                "{precision:?}"
            );
        }
    }
}
