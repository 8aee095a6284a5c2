//! The noise a model was trained with: what is left of the picture at every training timestep.
//!
//! Rounding is part of it: betas are f32, PyTorch's `linspace` fuses its multiplication and addition, and its cumulated
//! product keeps a double and rounds what it stores.

use std::f32::consts::{LN_2, SQRT_2};
use std::f64::consts::FRAC_PI_2;

/// How betas grow from the first training timestep to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// Evenly.
    Linear,
    /// Evenly in their square root.
    ScaledLinear,
    /// From a squared cosine; start and end are not looked at.
    Cosine,
}

/// `steps` values from `start` to `end` as PyTorch's f32 `linspace` gives them: from both ends to the middle.
pub(super) fn linspace(start: f64, end: f64, steps: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    if steps == 1 {
        return vec![start];
    }
    let step = (end - start) / (steps - 1) as f32;
    let value = |i: usize| {
        if i < steps / 2 {
            step.mul_add(i as f32, start)
        } else {
            step.mul_add(-((steps - 1 - i) as f32), end)
        }
    };
    (0..steps).map(value).collect()
}

/// The betas of a growth.
pub(super) fn betas(growth: Growth, start: f64, end: f64, steps: usize) -> Vec<f32> {
    match growth {
        Growth::Linear => linspace(start, end, steps),
        Growth::ScaledLinear => {
            let roots = linspace(start.sqrt(), end.sqrt(), steps);
            roots.into_iter().map(|root| root * root).collect()
        }
        Growth::Cosine => {
            let left = |t: f64| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
            let beta = |i: usize| {
                let (from, to) = (i as f64 / steps as f64, (i + 1) as f64 / steps as f64);
                // The last beta would be 1 and leave nothing.
                (1.0 - left(to) / left(from)).min(0.999) as f32
            };
            (0..steps).map(beta).collect()
        }
    }
}

/// The cumulated product of `1 - beta`: the share of the picture's variance at every training timestep.
pub(super) fn signal(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0_f64;
    let next = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(next).collect()
}

/// Betas rescaled so that at the last timestep nothing is left of the picture.
///
/// # Source
/// Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.
pub(super) fn without_terminal_signal(betas: &[f32]) -> Vec<f32> {
    let mut roots: Vec<f32> = signal(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
        return Vec::new();
    };
    let stretch = first / (first - last);
    for root in &mut roots {
        *root = (*root - last) * stretch;
    }
    let squares: Vec<f32> = roots.iter().map(|root| root * root).collect();
    let mut previous = 1.0;
    let beta = |&square: &f32| {
        let alpha = square / previous;
        previous = square;
        1.0 - alpha
    };
    squares.iter().map(beta).collect()
}

/// Noise over signal at every training timestep, from the least to the most noise.
pub(super) fn sigmas(signal: &[f32]) -> Vec<f32> {
    signal.iter().map(|&a| ((1.0 - a) / a).sqrt()).collect()
}

/// numpy's f32 logarithm of a normal number above 0, as its SIMD code rounds it: where a timestep is cut to a whole one,
/// the last bit of a logarithm decides between 999 and 998.
pub(super) fn ln(x: f32) -> f32 {
    // A rational approximation of ln(1 + y), the highest power first.
    const OVER: [f32; 6] = [
        0.025_899_792,
        0.380_883_78,
        1.480_000_6,
        2.112_677_6,
        1.0,
        0.0,
    ];
    const UNDER: [f32; 6] = [
        0.005_875_095_3,
        0.154_647_63,
        0.986_494_3,
        2.453_006,
        2.612_677_6,
        1.0,
    ];
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as f32 - 127.0;
    let mut mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f80_0000);
    if mantissa > SQRT_2 {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    let y = mantissa - 1.0;
    let at = |terms: [f32; 6]| {
        let all = terms.into_iter();
        all.fold(0.0, |sum: f32, term| sum.mul_add(y, term))
    };
    exponent.mul_add(LN_2, at(OVER) / at(UNDER))
}

/// PyTorch's f32 exponential, as its mathematical library rounds it on processors with
/// AVX-512, found by comparing: 1 in 90 is not the nearest f32. A Brownian path knows noise levels to six decimals, so that
/// the last bit of one decides about the noise.
pub(super) fn exp(x: f32) -> f32 {
    const PARTS: f64 = 32.0;
    // ln 2 / 32 in two pieces, and the powers of what is left after the first.
    const STEP: f32 = f32::from_bits(0x3cb1_7218);
    const STEP_REST: f32 = f32::from_bits(0xae82_e308);
    const SQUARE: f32 = f32::from_bits(0x3f00_00f6);
    const CUBE: f32 = f32::from_bits(0x3e2a_abf3);
    // Beyond, results are subnormal, infinite, or no numbers.
    const FAR: f32 = 80.0;
    if x.is_nan() || x.abs() > FAR {
        return x.exp();
    }
    let whole = (f64::from(x) * f64::from(std::f32::consts::LOG2_E) * PARTS).floor();
    let steps = whole as f32;
    let left = (-steps).mul_add(STEP_REST, (-steps).mul_add(STEP, x));
    let (exponent, part) = ((whole / PARTS).floor(), whole.rem_euclid(PARTS));
    let power = (part / PARTS).exp2();
    let near = power as f32;
    let rest = ((power - f64::from(near)) / f64::from(near)) as f32;
    let curve = CUBE.mul_add(left, SQUARE);
    let grown = curve.mul_add(left * left, left + rest);
    near.mul_add(grown, near) * (exponent as f32).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of PyTorch 2.15 on a processor with AVX-512.
    const EXPONENTIALS: [(u32, u32); 12] = [
        (0xbf99_950a, 0x3e9a_3ba0),
        (0xbf0a_ccc8, 0x3f14_db8c),
        (0x3faf_56b8, 0x407b_d215),
        (0xc016_4561, 0x3dc3_b5c9),
        (0xbd98_db44, 0x3f6d_96ad),
        (0x402f_57b0, 0x4177_b961),
        (0x3e95_4ebd, 0x3fab_56e6),
        (0xbfa9_7e80, 0x3e88_3426),
        (0x3e6e_8095, 0x3fa1_9217),
        (0xbfbd_d07e, 0x3e68_6b8e),
        (0xc042_3ee4, 0x3d44_e579),
        (0xc00c_2141, 0x3de5_5036),
    ];

    #[test]
    fn exponentials_are_pytorchs_where_they_are_not_the_nearest() {
        for (x, bits) in EXPONENTIALS {
            let x = f32::from_bits(x);
            assert_eq!(exp(x).to_bits(), bits, "{x}");
            let nearest = f64::from(x).exp() as f32;
            assert_ne!(nearest.to_bits(), bits, "{x}");
        }
        for i in -4000..4000 {
            let x = i as f32 * 1e-2 / 4.0;
            let off = f64::from(exp(x)) / f64::from(x).exp() - 1.0;
            assert!(off.abs() < 0.6 * f64::from(f32::EPSILON), "{x}: {off}");
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY)), (1.0, 0.0));
    }

    #[test]
    fn logarithms_are_close_to_the_true_ones() {
        for i in 0..2000 {
            let x = 1e-4 * 1.01_f32.powi(i);
            let true_one = f64::from(x).ln();
            let off = (f64::from(ln(x)) - true_one).abs();
            assert!(off < 4e-7 * true_one.abs().max(0.1), "{x}: {off}");
        }
    }

    #[test]
    fn a_rescaled_table_ends_without_signal() {
        let betas = betas(Growth::ScaledLinear, 0.00085, 0.012, 1000);
        let rescaled = signal(&without_terminal_signal(&betas));
        assert_eq!(rescaled[999], 0.0);
        assert!((rescaled[0] - signal(&betas)[0]).abs() < 1e-6);
    }
}
