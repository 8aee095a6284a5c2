//! The quantile of the beta distribution with both parameters equal, which the beta schedule is made of.

/// Both parameters of the beta schedule.
const SHAPE: f64 = 0.6;

/// `ln B(SHAPE, SHAPE)`.
const LN_BETA: f64 = 0.881_841_806_141_785_9;

/// Terms of the continued fraction; it converges in about 20 below one half.
const TERMS_MAX: usize = 300;

/// Halvings and Newton steps; either alone would do with these.
const ROUNDS_MAX: usize = 200;

/// The `x` below which a share `p` of the beta(0.6, 0.6) distribution lies; both in [0, 1].
pub(super) fn beta_quantile(p: f64) -> f64 {
    if p <= 0.0 {
        0.0
    } else if p >= 1.0 {
        1.0
    } else if p > 0.5 {
        // The distribution is symmetric, and the lower half is where the fraction converges fast.
        1.0 - lower(1.0 - p)
    } else {
        lower(p)
    }
}

fn lower(p: f64) -> f64 {
    let (mut below, mut above) = (0.0_f64, 0.5_f64);
    // Where the density is a pure power, its integral can be inverted.
    let mut x = (p * SHAPE * LN_BETA.exp()).powf(1.0 / SHAPE).min(0.5);
    for _ in 0..ROUNDS_MAX {
        let error = share(x) - p;
        if error > 0.0 {
            above = x;
        } else {
            below = x;
        }
        let density = ((SHAPE - 1.0) * (x * (1.0 - x)).ln() - LN_BETA).exp();
        let newton = x - error / density;
        let next = if newton > below && newton < above {
            newton
        } else {
            0.5 * (below + above)
        };
        if (next - x).abs() <= f64::EPSILON * x {
            return next;
        }
        x = next;
    }
    x
}

/// The share of the distribution below `x`, for `x` up to one half: a continued fraction by Lentz's method.
fn share(x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let guard = |value: f64| if value.abs() < TINY { TINY } else { value };
    let front = (SHAPE * (x.ln() + (-x).ln_1p()) - LN_BETA).exp() / SHAPE;
    let mut c = 1.0;
    let mut d = 1.0 / guard(1.0 - 2.0 * SHAPE * x / (SHAPE + 1.0));
    let mut fraction = d;
    for m in 1..TERMS_MAX {
        let m = m as f64;
        let even = m * (SHAPE - m) * x / ((SHAPE + 2.0 * m - 1.0) * (SHAPE + 2.0 * m));
        let odd =
            -(SHAPE + m) * (2.0 * SHAPE + m) * x / ((SHAPE + 2.0 * m) * (SHAPE + 2.0 * m + 1.0));
        let before = fraction;
        for term in [even, odd] {
            d = 1.0 / guard(1.0 + term * d);
            c = guard(1.0 + term / c);
            fraction *= d * c;
        }
        if (fraction - before).abs() <= f64::EPSILON * fraction.abs() {
            break;
        }
    }
    front * fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_scipys() {
        // scipy 1.17: scipy.stats.beta.ppf(p, 0.6, 0.6)
        let known = [
            (1e-6, 1.855_882_462_405_304_3e-10),
            (0.01, 0.000_861_238_821_542_905_9),
            (1.0 / 29.0, 0.006_768_365_908_747_951),
            (0.25, 0.175_680_378_652_694_98),
            (0.5, 0.5),
            (0.75, 0.824_319_621_347_305),
            (0.999, 0.999_981_441_261_482_6),
        ];
        for (p, expected) in known {
            let x = beta_quantile(p);
            assert!((x - expected).abs() < 1e-12 * expected, "{p}: {x}");
        }
        assert_eq!((beta_quantile(0.0), beta_quantile(1.0)), (0.0, 1.0));
    }
}
