//! How the weights of a prompt reach the picture.

use lowtide_models::Tensor;

/// Multiplies the state of each token by its weight, then the whole by what brings its mean back: the default of web
/// interfaces. Weights that are all 1 change nothing, and a mean of zero is left as it is.
///
/// # Shapes
/// `states` (T, D), one chunk; `weights` T.
///
/// # Panics
/// When there are not as many weights as rows.
pub fn emphasise(states: &mut Tensor, weights: &[f32]) {
    let values = states.data_mut();
    assert!(
        !weights.is_empty() && values.len().is_multiple_of(weights.len()),
        "{} weights for {} values",
        weights.len(),
        values.len()
    );
    if weights.iter().all(|&weight| weight == 1.0) {
        return;
    }
    let columns = values.len() / weights.len();
    let before = sum(values);
    for (row, &weight) in values.chunks_exact_mut(columns).zip(weights) {
        row.iter_mut().for_each(|value| *value *= weight);
    }
    let back = (before / sum(values)) as f32;
    if back.is_finite() {
        values.iter_mut().for_each(|value| *value *= back);
    }
}

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emphasised(values: &[f32], weights: &[f32]) -> Vec<f32> {
        let shape = [weights.len(), values.len() / weights.len()];
        let mut states = Tensor::from_slice(&shape, values).expect("a few values");
        emphasise(&mut states, weights);
        states.data().to_vec()
    }

    #[test]
    fn rows_are_weighed_and_the_mean_restored() {
        // The sum is 10, weighed it is 1.5 + 3 + 3 + 4 = 11.5.
        let got = emphasised(&[1.0, 2.0, 3.0, 4.0], &[1.5, 1.0]);
        let back = 10.0 / 11.5;
        for (got, expected) in got.iter().zip([1.5, 3.0, 3.0, 4.0]) {
            assert!((got - expected * back).abs() < 1e-6, "{got}");
        }
    }

    #[test]
    fn without_weights_nothing_changes() {
        let values = [0.1, -0.7, 1e-30, f32::MAX];
        assert_eq!(emphasised(&values, &[1.0, 1.0]), values);
    }

    #[test]
    fn a_mean_that_vanishes_is_not_restored() {
        assert_eq!(emphasised(&[1.0, 2.0], &[2.0, -1.0]), [2.0, -2.0]);
        assert_eq!(emphasised(&[1.0, 2.0], &[0.0, 0.0]), [0.0, 0.0]);
    }
}
