//! Two AVX registers.

use super::{LANES, Vector};
use std::arch::x86_64::*;

/// Sixteen lanes in two registers, low half first.
#[derive(Clone, Copy)]
pub(crate) struct F32x16(__m256, __m256);

/// An instruction on values that prove AVX2 is there.
macro_rules! op {
    ($e:expr) => {{
        // SAFETY: a value of `F32x16` exists only where AVX2, FMA and F16C were found, or the
        // caller of an unsafe constructor promises it, together with the memory it names.
        unsafe { $e }
    }};
}

/// A mask of the first `count` (at most 8) of 8 lanes.
#[inline(always)]
unsafe fn first(count: usize) -> __m256i {
    op!(_mm256_cmpgt_epi32(
        _mm256_set1_epi32(count as i32),
        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
    ))
}

/// Bits whose upper halves are the nearest bf16 of each lane.
#[inline(always)]
unsafe fn rounded(v: __m256) -> __m256i {
    op!({
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        _mm256_blendv_epi8(_mm256_add_epi32(bits, up), quiet, nan)
    })
}

/// 2^n for integral n from -126 to 127.
#[inline(always)]
unsafe fn power(n: __m256i) -> __m256 {
    op!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(
        _mm256_add_epi32(n, _mm256_set1_epi32(127))
    )))
}

#[inline(always)]
unsafe fn scale2_half(v: __m256, n: __m256) -> __m256 {
    op!({
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        let rest = _mm256_sub_epi32(n, half);
        _mm256_mul_ps(_mm256_mul_ps(v, power(half)), power(rest))
    })
}

/// Transposes an 8 x 8 block.
#[inline(always)]
unsafe fn transpose_8x8(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    op!({
        let mut r = [_mm256_setzero_ps(); 8];
        for (row, r) in r.iter_mut().enumerate() {
            *r = _mm256_loadu_ps(from.add(row * stride));
        }
        let mut t = r;
        for i in 0..4 {
            t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..2 {
            r[4 * i] = _mm256_shuffle_ps::<0x44>(t[4 * i], t[4 * i + 2]);
            r[4 * i + 1] = _mm256_shuffle_ps::<0xee>(t[4 * i], t[4 * i + 2]);
            r[4 * i + 2] = _mm256_shuffle_ps::<0x44>(t[4 * i + 1], t[4 * i + 3]);
            r[4 * i + 3] = _mm256_shuffle_ps::<0xee>(t[4 * i + 1], t[4 * i + 3]);
        }
        for j in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(r[j], r[4 + j]);
            let high = _mm256_permute2f128_ps::<0x31>(r[j], r[4 + j]);
            _mm256_storeu_ps(to.add(j * to_stride), low);
            _mm256_storeu_ps(to.add((4 + j) * to_stride), high);
        }
    });
}

impl Vector for F32x16 {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        let v = op!(_mm256_set1_ps(value));
        Self(v, v)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        op!(Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))))
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        op!({
            let low = _mm256_maskload_ps(from, first(count.min(8)));
            let high = _mm256_maskload_ps(from.wrapping_add(8), first(count.saturating_sub(8)));
            Self(low, high)
        })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        op!({
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        });
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        op!({
            _mm256_maskstore_ps(to, first(count.min(8)), self.0);
            let high = first(count.saturating_sub(8));
            _mm256_maskstore_ps(to.wrapping_add(8), high, self.1);
        });
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        op!({
            let widen = |from: *const u8| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            Self(widen(from), widen(from.add(16)))
        })
    }

    #[inline(always)]
    unsafe fn from_f16(bits: &[u16; LANES]) -> Self {
        op!({
            let from = bits.as_ptr().cast::<__m128i>();
            Self(
                _mm256_cvtph_ps(_mm_loadu_si128(from)),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(1))),
            )
        })
    }

    #[inline(always)]
    unsafe fn stream(self, to: *mut f32) {
        op!(_mm256_stream_ps(to, self.0));
        op!(_mm256_stream_ps(to.add(LANES / 2), self.1));
    }

    #[inline(always)]
    fn end_stream() {
        op!(_mm_sfence());
    }

    #[inline(always)]
    fn prefetch_far(line: *const f32) {
        op!(_mm_prefetch::<_MM_HINT_T1>(line.cast()));
    }

    #[inline(always)]
    fn prefetch<const WRITE: bool>(line: *const f32) {
        op!(if WRITE {
            _mm_prefetch::<_MM_HINT_ET0>(line.cast());
        } else {
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
        });
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        op!(Self(
            _mm256_add_ps(self.0, other.0),
            _mm256_add_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        op!(Self(
            _mm256_sub_ps(self.0, other.0),
            _mm256_sub_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        op!(Self(
            _mm256_mul_ps(self.0, other.0),
            _mm256_mul_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        op!(Self(
            _mm256_div_ps(self.0, other.0),
            _mm256_div_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        op!(Self(
            _mm256_fmadd_ps(self.0, b.0, c.0),
            _mm256_fmadd_ps(self.1, b.1, c.1)
        ))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        op!(Self(
            _mm256_max_ps(self.0, other.0),
            _mm256_max_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        op!(Self(
            _mm256_min_ps(self.0, other.0),
            _mm256_min_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        op!(Self(
            _mm256_round_ps::<NEAREST>(self.0),
            _mm256_round_ps::<NEAREST>(self.1)
        ))
    }

    #[inline(always)]
    fn scale2(self, n: Self) -> Self {
        op!(Self(scale2_half(self.0, n.0), scale2_half(self.1, n.1)))
    }

    #[inline(always)]
    fn where_below(self, bound: Self, yes: Self, no: Self) -> Self {
        op!({
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, bound.1);
            Self(
                _mm256_blendv_ps(no.0, yes.0, low),
                _mm256_blendv_ps(no.1, yes.1, high),
            )
        })
    }

    #[inline(always)]
    fn to_bf16(self) -> Self {
        op!({
            let upper = _mm256_set1_epi32(0xffff_0000u32 as i32);
            Self(
                _mm256_castsi256_ps(_mm256_and_si256(rounded(self.0), upper)),
                _mm256_castsi256_ps(_mm256_and_si256(rounded(self.1), upper)),
            )
        })
    }

    #[inline(always)]
    unsafe fn store_bf16_pairs(self, high: Self, to: *mut u32) {
        op!({
            let pair = |low: __m256, high: __m256| {
                let low = _mm256_srli_epi32::<16>(rounded(low));
                _mm256_blend_epi16::<0xaa>(low, rounded(high))
            };
            _mm256_storeu_si256(to.cast(), pair(self.0, high.0));
            _mm256_storeu_si256(to.add(8).cast(), pair(self.1, high.1));
        });
    }

    #[inline(always)]
    unsafe fn load_every_second(from: *const f32) -> Self {
        op!({
            let half = |from: *const f32| {
                let (low, high) = (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)));
                let even = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(low, high));
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(even))
            };
            Self(half(from), half(from.add(LANES)))
        })
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        op!({
            transpose_8x8(from, stride, to, to_stride);
            transpose_8x8(from.add(8), stride, to.add(8 * to_stride), to_stride);
            transpose_8x8(from.add(8 * stride), stride, to.add(8), to_stride);
            let corner = from.add(8 * stride + 8);
            transpose_8x8(corner, stride, to.add(8 * to_stride + 8), to_stride);
        });
    }
}
