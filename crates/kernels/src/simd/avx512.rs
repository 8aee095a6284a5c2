//! One AVX-512 register.

use super::{LANES, Vector};
use std::arch::x86_64::*;

/// Sixteen lanes in one register; `BF16` says whether the conversions to bf16 are there.
///
/// Those count subnormal numbers as zero, as the products of bf16 do.
#[derive(Clone, Copy)]
pub(crate) struct F32x16<const BF16: bool>(pub(crate) __m512);

/// An instruction on values that prove AVX-512 is there.
macro_rules! op {
    ($e:expr) => {{
        // SAFETY: a value of `F32x16` exists only where AVX-512 was found, or the caller of an
        // unsafe constructor promises it, together with the memory it names.
        unsafe { $e }
    }};
}

#[inline(always)]
fn first(count: usize) -> __mmask16 {
    (1u32 << count).wrapping_sub(1) as __mmask16
}

impl<const BF16: bool> Vector for F32x16<BF16> {
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(op!(_mm512_set1_ps(value)))
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(op!(_mm512_loadu_ps(from)))
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        Self(op!(_mm512_maskz_loadu_ps(first(count), from)))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        op!(_mm512_storeu_ps(to, self.0));
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        op!(_mm512_mask_storeu_ps(to, first(count), self.0));
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        op!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        })
    }

    #[inline(always)]
    unsafe fn from_f16(bits: &[u16; LANES]) -> Self {
        Self(op!(_mm512_cvtph_ps(_mm256_loadu_si256(
            bits.as_ptr().cast()
        ))))
    }

    #[inline(always)]
    unsafe fn stream(self, to: *mut f32) {
        op!(_mm512_stream_ps(to, self.0));
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
        Self(op!(_mm512_add_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(op!(_mm512_sub_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(op!(_mm512_mul_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(op!(_mm512_div_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Self(op!(_mm512_fmadd_ps(self.0, b.0, c.0)))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(op!(_mm512_max_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(op!(_mm512_min_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn round(self) -> Self {
        Self(op!(_mm512_roundscale_ps::<
            { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
        >(self.0)))
    }

    #[inline(always)]
    fn scale2(self, n: Self) -> Self {
        Self(op!(_mm512_scalef_ps(self.0, n.0)))
    }

    #[inline(always)]
    fn all_ones(self) -> bool {
        op!(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, _mm512_set1_ps(1.0)) == 0xffff)
    }

    #[inline(always)]
    fn where_below(self, bound: Self, yes: Self, no: Self) -> Self {
        op!({
            let mask = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, bound.0);
            Self(_mm512_mask_blend_ps(mask, no.0, yes.0))
        })
    }

    #[inline(always)]
    fn to_bf16(self) -> Self {
        Self(op!(_mm512_castsi512_ps(_mm512_and_si512(
            rounded(self.0),
            _mm512_set1_epi32(0xffff_0000u32 as i32)
        ))))
    }

    #[inline(always)]
    unsafe fn store_bf16_pairs(self, high: Self, to: *mut u32) {
        op!({
            let pairs = if BF16 {
                let both = pack_bf16(self.0, high.0);
                _mm512_permutexvar_epi16(_mm512_loadu_si512(ZIP.as_ptr().cast()), both)
            } else {
                let low = _mm512_srli_epi32::<16>(rounded(self.0));
                _mm512_mask_blend_epi16(0xaaaa_aaaa, low, rounded(high.0))
            };
            _mm512_storeu_si512(to.cast(), pairs);
        });
    }

    #[inline(always)]
    unsafe fn store_bf16(self, next: Self, to: *mut u32) {
        op!({
            let packed = if BF16 {
                pack_bf16(self.0, next.0)
            } else {
                let both = _mm512_loadu_si512(UPPER_HALVES.as_ptr().cast());
                _mm512_permutex2var_epi16(rounded(self.0), both, rounded(next.0))
            };
            _mm512_storeu_si512(to.cast(), packed);
        });
    }

    #[inline(always)]
    unsafe fn transpose_bf16(from: *const f32, stride: usize, to: *mut u32, to_stride: usize) {
        op!({
            let mut r = [_mm512_setzero_ps(); LANES];
            for (row, r) in r.iter_mut().enumerate() {
                let from = from.add(row * stride);
                let (low, high) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(LANES)));
                *r = _mm512_castsi512_ps(if BF16 {
                    pack_bf16(low, high)
                } else {
                    let both = _mm512_loadu_si512(UPPER_HALVES.as_ptr().cast());
                    _mm512_permutex2var_epi16(rounded(low), both, rounded(high))
                });
            }
            transpose_registers(&mut r);
            for (row, r) in r.iter().enumerate() {
                _mm512_storeu_ps(to.add(row * to_stride).cast(), *r);
            }
        });
    }

    #[inline(always)]
    unsafe fn load_every_second(from: *const f32) -> Self {
        op!({
            let (low, high) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(LANES)));
            let places = _mm512_loadu_si512(EVEN.as_ptr().cast());
            Self(_mm512_permutex2var_ps(low, places, high))
        })
    }

    #[inline(always)]
    unsafe fn transposed(from: *const f32, stride: usize) -> [Self; LANES] {
        op!({
            let mut r = [_mm512_setzero_ps(); LANES];
            for (row, r) in r.iter_mut().enumerate() {
                *r = _mm512_loadu_ps(from.add(row * stride));
            }
            transpose_registers(&mut r);
            let mut turned = [Self(r[0]); LANES];
            for (turned, r) in turned.iter_mut().zip(r) {
                *turned = Self(r);
            }
            turned
        })
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        op!({
            let mut r = [_mm512_setzero_ps(); LANES];
            for (row, r) in r.iter_mut().enumerate() {
                *r = _mm512_loadu_ps(from.add(row * stride));
            }
            transpose_registers(&mut r);
            for (row, r) in r.iter().enumerate() {
                _mm512_storeu_ps(to.add(row * to_stride), *r);
            }
        });
    }
}

/// Places that interleave the halves of 32 numbers.
static ZIP: [u16; 2 * LANES] = {
    let mut places = [0; 2 * LANES];
    let mut i = 0;
    while i < 2 * LANES {
        places[i] = (i / 2 + i % 2 * LANES) as u16;
        i += 1;
    }
    places
};

/// Even places of 32 numbers.
static EVEN: [u32; LANES] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];

/// Places of the upper halves of 32 numbers of 32 bits.
static UPPER_HALVES: [u16; 2 * LANES] = {
    let mut places = [0; 2 * LANES];
    let mut i = 0;
    while i < 2 * LANES {
        places[i] = (2 * i + 1) as u16;
        i += 1;
    }
    places
};

/// bf16 of `low`, then of `high`, by the instruction for it.
#[inline(always)]
unsafe fn pack_bf16(low: __m512, high: __m512) -> __m512i {
    op!(std::mem::transmute::<__m512bh, __m512i>(
        _mm512_cvtne2ps_pbh(high, low)
    ))
}

/// Bits whose upper halves are the nearest bf16 of each lane (the lower halves are left over).
#[inline(always)]
unsafe fn rounded(v: __m512) -> __m512i {
    op!({
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_mask_blend_epi32(nan, _mm512_add_epi32(bits, up), quiet)
    })
}

/// Transposes sixteen registers in four rounds of shuffles.
#[inline(always)]
pub(crate) unsafe fn transpose_registers(r: &mut [__m512; LANES]) {
    op!({
        let mut t = *r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        // Pairs of floats: after this, register 4i+j holds column j of rows 4i..4i+4, by quarter.
        for i in 0..4 {
            let d = |v: __m512| _mm512_castps_pd(v);
            let s = |v: __m512d| _mm512_castpd_ps(v);
            r[4 * i] = s(_mm512_unpacklo_pd(d(t[4 * i]), d(t[4 * i + 2])));
            r[4 * i + 1] = s(_mm512_unpackhi_pd(d(t[4 * i]), d(t[4 * i + 2])));
            r[4 * i + 2] = s(_mm512_unpacklo_pd(d(t[4 * i + 1]), d(t[4 * i + 3])));
            r[4 * i + 3] = s(_mm512_unpackhi_pd(d(t[4 * i + 1]), d(t[4 * i + 3])));
        }
        // Quarters of 128 bits: a 4 x 4 transposition of quarters for each j.
        for j in 0..4 {
            let (a, b, c, d) = (r[j], r[4 + j], r[8 + j], r[12 + j]);
            let ab_low = _mm512_shuffle_f32x4::<0x44>(a, b);
            let ab_high = _mm512_shuffle_f32x4::<0xee>(a, b);
            let cd_low = _mm512_shuffle_f32x4::<0x44>(c, d);
            let cd_high = _mm512_shuffle_f32x4::<0xee>(c, d);
            t[j] = _mm512_shuffle_f32x4::<0x88>(ab_low, cd_low);
            t[4 + j] = _mm512_shuffle_f32x4::<0xdd>(ab_low, cd_low);
            t[8 + j] = _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high);
            t[12 + j] = _mm512_shuffle_f32x4::<0xdd>(ab_high, cd_high);
        }
        *r = t;
    });
}
