//! Classifier-free guidance over one picture's outputs.

/// Guides in place: `conditional` becomes `unconditional + scale * (conditional - unconditional)`.
pub fn guide(conditional: &mut [f32], unconditional: &[f32], scale: f32) {
    for (c, &u) in conditional.iter_mut().zip(unconditional) {
        *c = u + scale * (*c - u);
    }
}

/// Gives a guided output the spread of the conditional one, mixed by `factor` with what it was; `factor` 0 changes
/// nothing. Both are one picture's, since the spread is taken over all of it.
///
/// # Source
/// Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", section 3.4.
pub fn rescale(guided: &mut [f32], conditional: &[f32], factor: f32) {
    let spread = deviation(guided);
    // Outputs that are all alike have no spread to correct.
    if factor == 0.0 || spread == 0.0 {
        return;
    }
    let ratio = (deviation(conditional) / spread) as f32;
    for g in guided {
        *g = factor * (*g * ratio) + (1.0 - factor) * *g;
    }
}

/// Standard deviation with Bessel's correction.
fn deviation(values: &[f32]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let squares = values
        .iter()
        .map(|&value| (f64::from(value) - mean).powi(2));
    (squares.sum::<f64>() / (count - 1.0).max(1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_of_one_is_the_conditional_output() {
        let mut conditional = [1.0, -2.0, 0.5];
        guide(&mut conditional, &[0.25, 0.5, 4.0], 1.0);
        assert_eq!(conditional, [1.0, -2.0, 0.5]);
        guide(&mut conditional, &[0.0, 0.0, 0.5], 3.0);
        assert_eq!(conditional, [3.0, -6.0, 0.5]);
    }

    #[test]
    fn a_full_rescale_gives_the_conditional_spread() {
        let conditional = [1.0, 2.0, 3.0, 4.0];
        let mut guided = [10.0, -10.0, 20.0, -20.0];
        rescale(&mut guided, &conditional, 1.0);
        assert!((deviation(&guided) - deviation(&conditional)).abs() < 1e-6);
    }

    #[test]
    fn both_are_the_references() {
        // diffusers 0.42.1: rescale_noise_cfg(u + 7.5 * (c - u), c, 0.7) with c = cos(0.7 i), u = sin(0.3 i), i < 16.
        let of = |f: fn(f32) -> f32, step: f32| (0..16).map(|i| f(step * i as f32)).collect();
        let (conditional, unconditional): (Vec<f32>, Vec<f32>) =
            (of(f32::cos, 0.7), of(f32::sin, 0.3));
        let mut guided = conditional.clone();
        guide(&mut guided, &unconditional, 7.5);
        let near = |values: &[f32], expected: [f32; 6]| {
            let pairs = values.iter().zip(expected);
            pairs.for_each(|(v, e)| assert!((v - e).abs() < 2e-5, "{v} is not {e}"));
        };
        near(
            &guided,
            [7.5, 3.815435, -2.395422, -8.87797, -13.124921, -13.507142],
        );
        rescale(&mut guided, &conditional, 0.7);
        near(
            &guided,
            [
                2.847643, 1.448666, -0.909508, -3.370839, -4.983346, -5.128469,
            ],
        );
    }

    #[test]
    fn outputs_without_spread_stay() {
        let mut guided = [2.0; 4];
        rescale(&mut guided, &[1.0, 2.0, 3.0, 4.0], 0.7);
        assert_eq!(guided, [2.0; 4]);
    }
}
