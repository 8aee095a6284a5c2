//! Arrays that the compiler vectorises for the target's baseline.

use super::{LANES, Vector};

/// Sixteen lanes in an array.
#[derive(Clone, Copy)]
pub(crate) struct F32x16([f32; LANES]);

/// The nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return ((bits >> 16) | 0x40) as u16;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

impl F32x16 {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (a, b) in out.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        Self(out)
    }

    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(self.0.map(f))
    }
}

impl Vector for F32x16 {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises sixteen elements.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        let mut out = [0f32; LANES];
        // SAFETY: the caller promises `count` < 16 elements.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), count) };
        Self(out)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises sixteen elements.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        // SAFETY: the caller promises `count` < 16 elements.
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, count) };
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller promises sixteen elements of two bytes.
        let bytes = unsafe { from.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        Self(bytes.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)))
    }

    #[inline(always)]
    unsafe fn from_f16(bits: &[u16; LANES]) -> Self {
        Self(bits.map(|b| half::f16::from_bits(b).to_f32()))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        let mut out = c.0;
        for ((out, a), b) in out.iter_mut().zip(self.0).zip(b.0) {
            // Without the instruction a fused product is a slow library call.
            *out = if cfg!(target_arch = "aarch64") {
                a.mul_add(b, *out)
            } else {
                a * b + *out
            };
        }
        Self(out)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self) -> Self {
        // Adding and taking away 1.5 * 2^23 rounds to an integer below 2^22, all that is asked for.
        const MAGIC: f32 = 12_582_912.0;
        self.map(|a| (a + MAGIC) - MAGIC)
    }

    #[inline(always)]
    fn scale2(self, n: Self) -> Self {
        // In two steps, since 2^n itself may lie outside the normal numbers.
        let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
        self.zip(n, |a, n| {
            let n = n as i32;
            let half = n >> 1;
            a * power(half) * power(n - half)
        })
    }

    #[inline(always)]
    fn where_below(self, bound: Self, yes: Self, no: Self) -> Self {
        let mut out = no.0;
        for (((out, a), bound), yes) in out.iter_mut().zip(self.0).zip(bound.0).zip(yes.0) {
            if a < bound {
                *out = yes;
            }
        }
        Self(out)
    }

    #[inline(always)]
    fn to_bf16(self) -> Self {
        self.map(|a| f32::from_bits(u32::from(bf16_bits(a)) << 16))
    }

    #[inline(always)]
    unsafe fn store_bf16_pairs(self, high: Self, to: *mut u32) {
        let mut out = [0u32; LANES];
        for ((out, low), high) in out.iter_mut().zip(self.0).zip(high.0) {
            *out = u32::from(bf16_bits(low)) | u32::from(bf16_bits(high)) << 16;
        }
        // SAFETY: the caller promises sixteen elements.
        unsafe { to.cast::<[u32; LANES]>().write_unaligned(out) };
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        for row in 0..LANES {
            for column in 0..LANES {
                // SAFETY: the caller promises sixteen rows of sixteen on both sides.
                unsafe {
                    to.add(column * to_stride + row)
                        .write(from.add(row * stride + column).read_unaligned());
                }
            }
        }
    }
}
