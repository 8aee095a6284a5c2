//! Products of bf16 pairs by AVX-512.

use super::tile::{self, Multiply, Product};
use crate::simd::avx512;
use std::arch::x86_64::*;

type F32x16 = avx512::F32x16<true>;

/// Products of bf16 pairs: two steps of k at once.
struct Pairs;

/// Sixteen pairs. Exists only where the instruction was found.
#[derive(Clone, Copy)]
struct Pair(__m512i);

impl Multiply for Pairs {
    type Sum = F32x16;
    type Step = Pair;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Pair {
        // SAFETY: the caller's promise.
        Pair(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> Pair {
        // SAFETY: the caller's promise.
        Pair(unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) })
    }

    #[inline(always)]
    fn bits(v: F32x16) -> Pair {
        // SAFETY: a vector exists only where AVX-512 was found.
        Pair(unsafe { _mm512_castps_si512(v.0) })
    }

    #[inline(always)]
    fn step(sum: F32x16, x: Pair, w: Pair) -> F32x16 {
        // SAFETY: a `Pair` exists only where AVX-512 with bf16 was found, and any 512 bits are one.
        unsafe {
            let x = std::mem::transmute::<__m512i, __m512bh>(x.0);
            let w = std::mem::transmute::<__m512i, __m512bh>(w.0);
            avx512::F32x16(_mm512_dpbf16_ps(sum.0, x, w))
        }
    }
}

/// A product of bf16 pairs.
///
/// # Safety
/// The panel, the weights and the sums must be as large as said, and AVX-512-BF16 be there.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn product(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe { tile::product::<Pairs>(p) }
}
