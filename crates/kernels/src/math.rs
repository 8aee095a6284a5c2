//! Functions of one variable on sixteen lanes.
//!
//! The exponential is within 2e-7 of the true value relatively wherever the result is a normal
//! number; what is built from it (sigmoid, SiLU, the tanh form of GELU) within 5e-7. `erf` is
//! within 5e-7 absolutely. NaN comes out as NaN.

use crate::simd::Vector;

/// What a layer applies to each of its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    None,
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`, by the error function.
    Gelu,
    /// GELU by its approximation with tanh.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`, the GELU of CLIP.
    QuickGelu,
}

/// A constant on all lanes.
#[inline(always)]
pub(crate) fn constant<V: Vector>(value: f32) -> V {
    // SAFETY: called from kernels only, which were entered after `V`'s instruction set was found.
    unsafe { V::splat(value) }
}

/// `e^r` for `|r| <= ln(2) / 2`: the polynomial of Cephes' `expf`.
#[inline(always)]
fn exp_reduced<V: Vector>(r: V) -> V {
    let mut p = constant::<V>(1.987_569_1e-4);
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = p.fma(r, constant(c));
    }
    p.fma(r.mul(r), r).add(constant(1.0))
}

/// `e^x`.
#[inline(always)]
pub(crate) fn exp<V: Vector>(x: V) -> V {
    let x = constant::<V>(89.0).min(constant::<V>(-105.0).max(x));
    let n = x.mul(constant(std::f32::consts::LOG2_E)).round();
    // ln 2 in two parts, the first with trailing zeros so that n times it is exact.
    let r = n.fma(constant(-0.693_359_4), x);
    let r = n.fma(constant(2.121_944_4e-4), r);
    exp_reduced(r).scale2(n)
}

/// `2^x` for `x <= 0`: the polynomial of Cephes' `exp2f`.
#[inline(always)]
pub(crate) fn exp2_below_one<V: Vector>(x: V) -> V {
    let x = constant::<V>(-152.0).max(x);
    let n = x.round();
    let r = x.sub(n);
    let mut p = constant::<V>(1.535_336_2e-4);
    for c in [
        1.339_887_4e-3,
        9.618_437e-3,
        5.550_332_5e-2,
        2.402_264_8e-1,
        6.931_472e-1,
        1.0,
    ] {
        p = p.fma(r, constant(c));
    }
    p.scale2(n)
}

/// `2^x` for `x` up to 100, within 3e-6 relatively: much less than what rounding the result to
/// bf16 changes, and three fifths of the work.
#[inline(always)]
pub(crate) fn exp2_for_bf16<V: Vector>(x: V) -> V {
    let x = constant::<V>(-152.0).max(x);
    let n = x.round();
    let r = x.sub(n);
    let mut p = constant::<V>(9.570_101e-3);
    for c in [5.591_786e-2, 2.402_474_4e-1, 6.931_218e-1, 9.999_993e-1] {
        p = p.fma(r, constant(c));
    }
    p.scale2(n)
}

/// `x / (1 + e^-(a x))` given `a x`.
#[inline(always)]
fn gated<V: Vector>(x: V, argument: V) -> V {
    let one = constant::<V>(1.0);
    x.div(one.add(exp(constant::<V>(0.0).sub(argument))))
}

/// The error function as a ratio of polynomials on [-4, 4], beyond which f32 has only ±1.
#[inline(always)]
fn erf<V: Vector>(x: V) -> V {
    let x = constant::<V>(4.0).min(constant::<V>(-4.0).max(x));
    let s = x.mul(x);
    let mut p = constant::<V>(-2.726_142_3e-10);
    for c in [
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_5e-5,
        -7.349_906_3e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ] {
        p = p.fma(s, constant(c));
    }
    let mut q = constant::<V>(-1.456_607_2e-5);
    for c in [
        -2.133_740_6e-4,
        -1.682_827e-3,
        -7.373_329e-3,
        -1.426_473_9e-2,
    ] {
        q = q.fma(s, constant(c));
    }
    s.where_below(constant(16.0), x.mul(p).div(q), x.mul(constant(0.25)))
}

/// `act(x)`.
#[inline(always)]
pub(crate) fn activate<V: Vector>(act: Activation, x: V) -> V {
    match act {
        Activation::None => x,
        Activation::Silu => gated(x, x),
        Activation::QuickGelu => gated(x, x.mul(constant(1.702))),
        Activation::Gelu => {
            let half = x.mul(constant(0.5));
            half.fma(erf(x.mul(constant(std::f32::consts::FRAC_1_SQRT_2))), half)
        }
        Activation::GeluTanh => {
            // (1 + tanh u) / 2 = sigmoid(2u)
            let cubic = x.mul(x).fma(constant(0.044_715), constant(1.0));
            let two_u = x.mul(cubic).mul(constant(1.595_769));
            gated(x, two_u)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::LANES;
    use crate::simd::portable::F32x16;

    #[test]
    fn powers_for_bf16_are_within_their_stated_error() {
        for step in -126 * 64..=8 * 64 {
            let x = step as f32 / 64.0 + 0.003;
            let mut got = [0f32; LANES];
            // SAFETY: portable vectors need no instruction, and the array has sixteen numbers.
            unsafe { exp2_for_bf16(F32x16::splat(x)).store(got.as_mut_ptr()) };
            let wanted = f64::from(x).exp2();
            let error = (f64::from(got[0]) / wanted - 1.0).abs();
            assert!(error <= 3e-6, "2^{x} is {}, off by {error:e}", got[0]);
        }
    }

    #[test]
    fn powers_for_bf16_end_in_nothing_and_let_nan_through() {
        for (x, nothing) in [(-200.0, true), (f32::NEG_INFINITY, true), (f32::NAN, false)] {
            let mut got = [0f32; LANES];
            // SAFETY: as above.
            unsafe { exp2_for_bf16(F32x16::splat(x)).store(got.as_mut_ptr()) };
            assert_eq!(got[0] < 1e-40, nothing, "2^{x} is {}", got[0]);
        }
    }
}
