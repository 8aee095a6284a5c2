//! A small look at a picture that is not decoded yet: one pixel a latent pixel, by a linear map of its channels.

use lowtide_weights::ModelFolder;
use serde_json::Value;

use crate::{Error, Result};

/// The file beside `model_index.json` in which a model may bring its map.
const FILE: &str = "lowtide.json";

/// Turns of the power iteration; it only has to look right.
const TURNS: usize = 12;

/// How latents become colours.
#[derive(Clone, Debug)]
pub(crate) enum Sketcher {
    /// Red, green and blue as weights of the channels and a constant, in 0..1, fitted to what the decoder gives.
    Fitted {
        weights: Vec<[f32; 3]>,
        bias: [f32; 3],
    },
    /// Nothing is known of the channels: their strongest common movements as brightness and tints.
    Components,
}

impl Sketcher {
    /// The map a model brings in `preview` of its `lowtide.json`: `weights`, three numbers a channel, and `bias`.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when it is there and is not that.
    pub(crate) fn of(folder: &ModelFolder, channels: usize) -> Result<Sketcher> {
        let text = folder.read_text(FILE)?.unwrap_or_default();
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        let given = &json["preview"];
        if given.is_null() {
            return Ok(Sketcher::Components);
        }
        let weights: Option<Vec<[f32; 3]>> = given["weights"]
            .as_array()
            .and_then(|rows| rows.iter().map(colour).collect());
        match (weights, colour(&given["bias"])) {
            (Some(weights), Some(bias)) if weights.len() == channels => {
                Ok(Sketcher::Fitted { weights, bias })
            }
            _ => Err(Error::Incomplete {
                model: folder.name.clone(),
                what: format!(
                    "{FILE}: preview needs three weights for each of {channels} channels, and a bias"
                ),
            }),
        }
    }

    /// The pixels, 3 bytes each, of latents of `shape` (C, h, w) whose values `value` tells.
    pub(crate) fn sketch(&self, shape: &[usize], value: impl Fn(usize) -> f32) -> Vec<u8> {
        let &[channels, h, w] = shape else {
            return Vec::new();
        };
        let plane = h * w;
        let at = |channel: usize, pixel: usize| value(channel * plane + pixel);
        let (weights, bias) = match self {
            Sketcher::Fitted { weights, bias } => (weights.clone(), *bias),
            Sketcher::Components => components(channels, plane, &at),
        };
        let mut rgb = Vec::with_capacity(3 * plane);
        for pixel in 0..plane {
            let mut sum = bias;
            for (channel, weight) in weights.iter().enumerate() {
                let x = at(channel, pixel);
                for (sum, weight) in sum.iter_mut().zip(weight) {
                    *sum += weight * x;
                }
            }
            rgb.extend(sum.map(|x| (x.clamp(0.0, 1.0) * 255.0).round() as u8));
        }
        rgb
    }
}

fn colour(value: &Value) -> Option<[f32; 3]> {
    let numbers = value.as_array()?;
    let number = |k: usize| numbers.get(k)?.as_f64().map(|x| x as f32);
    (numbers.len() == 3).then_some([number(0)?, number(1)?, number(2)?])
}

/// Weights and bias that make the first principal component the brightness and the next two the tints.
fn components(
    channels: usize,
    plane: usize,
    at: &impl Fn(usize, usize) -> f32,
) -> (Vec<[f32; 3]>, [f32; 3]) {
    let count = plane.max(1) as f32;
    let means: Vec<f32> = (0..channels)
        .map(|c| (0..plane).map(|p| at(c, p)).sum::<f32>() / count)
        .collect();
    let mut covariance = vec![0.0; channels * channels];
    for a in 0..channels {
        for b in 0..=a {
            let sum: f32 = (0..plane)
                .map(|p| (at(a, p) - means[a]) * (at(b, p) - means[b]))
                .sum();
            covariance[a * channels + b] = sum / count;
            covariance[b * channels + a] = sum / count;
        }
    }
    // How much of a component each colour takes: brightness all alike, tints against each other.
    const SHARES: [[f32; 3]; 3] = [[1.0, 1.0, 1.0], [0.5, 0.0, -0.5], [-0.25, 0.5, -0.25]];
    let mut weights = vec![[0.0; 3]; channels];
    for share in SHARES {
        let (direction, variance) = strongest(&covariance, channels);
        // Two standard deviations either way fill the range.
        let scale = 0.25 / variance.sqrt().max(1e-6);
        for (weight, x) in weights.iter_mut().zip(&direction) {
            for (weight, share) in weight.iter_mut().zip(share) {
                *weight += x * scale * share;
            }
        }
        for a in 0..channels {
            for b in 0..channels {
                covariance[a * channels + b] -= variance * direction[a] * direction[b];
            }
        }
    }
    let mut bias = [0.5; 3];
    for (weight, mean) in weights.iter().zip(&means) {
        for (bias, weight) in bias.iter_mut().zip(weight) {
            *bias -= weight * mean;
        }
    }
    (weights, bias)
}

/// The direction of the largest variance, its largest part positive so that looks do not flicker, and the variance.
fn strongest(covariance: &[f32], channels: usize) -> (Vec<f32>, f32) {
    let mut direction: Vec<f32> = (0..channels).map(|c| 1.0 + 0.1 * c as f32).collect();
    let mut variance = 0.0;
    for _ in 0..TURNS {
        let mut next: Vec<f32> = (0..channels)
            .map(|a| {
                (0..channels)
                    .map(|b| covariance[a * channels + b] * direction[b])
                    .sum()
            })
            .collect();
        let length = next.iter().map(|x| x * x).sum::<f32>().sqrt();
        if length < 1e-12 {
            return (vec![0.0; channels], 0.0);
        }
        next.iter_mut().for_each(|x| *x /= length);
        (direction, variance) = (next, length);
    }
    let largest = direction
        .iter()
        .copied()
        .fold(0.0, |a: f32, b| if b.abs() > a.abs() { b } else { a });
    if largest < 0.0 {
        direction.iter_mut().for_each(|x| *x = -*x);
    }
    (direction, variance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fitted_map_is_applied_as_it_stands() {
        let sketcher = Sketcher::Fitted {
            weights: vec![[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]],
            bias: [0.0, 0.25, 2.0],
        };
        let values = [0.0, 1.0, 0.5, -1.0];
        let rgb = sketcher.sketch(&[2, 1, 2], |k| values[k]);
        assert_eq!(rgb, [0, 128, 255, 255, 0, 255]);
    }

    #[test]
    fn what_differs_in_the_latent_differs_in_the_sketch() {
        // Channel 1 has two halves, the others nothing to say.
        let value = |k: usize| if (16..24).contains(&k) { 3.0 } else { 0.0 };
        let rgb = Sketcher::Components.sketch(&[4, 4, 4], value);
        assert_eq!(rgb.len(), 48);
        assert!(rgb[..24].iter().all(|&x| x == rgb[0]) && rgb[24..].iter().all(|&x| x == rgb[24]));
        assert!(rgb[0] > 150 && rgb[24] < 100, "{rgb:?}");
        let flat = Sketcher::Components.sketch(&[4, 2, 2], |_| 7.0);
        assert!(flat.iter().all(|&x| (127..=128).contains(&x)), "{flat:?}");
    }
}
