//! Latents in another size, as `torch.nn.functional.interpolate` makes them: the enlargement between two passes.
//!
//! # Source
//! PyTorch's CPU kernels of `interpolate` with `align_corners=False`, with and without `antialias`.

use crate::tensor::Tensor;
use crate::{Error, Result};

/// How a new value is made of old ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// The value whose place is at or before it: `nearest`.
    Nearest,
    /// The value whose place is nearest to the middle of the new one: `nearest-exact`.
    NearestExact,
    /// A line between two values; between more of them when shrinking if `antialias`.
    Bilinear {
        /// Whether the filter widens as the map shrinks.
        antialias: bool,
    },
    /// A cubic through four values; more of them when shrinking if `antialias`, and then with another slope.
    Bicubic {
        /// Whether the filter widens as the map shrinks.
        antialias: bool,
    },
}

/// Slope of the cubic at the first neighbour.
const SLOPE: f32 = -0.75;

/// As [`SLOPE`], where the filter widens, as in Pillow.
const SLOPE_ANTIALIASED: f32 = -0.5;

/// `x` in `height` x `width`.
///
/// # Shapes
/// (C, h, w) to (C, height, width), f32.
///
/// # Errors
/// [`Error::Shape`] when it is no map or a side is 0; else when memory is refused.
pub fn resample(x: &Tensor, height: usize, width: usize, how: Resampling) -> Result<Tensor> {
    let (channels, from_height, from_width) = x.dims3()?;
    if [channels, from_height, from_width, height, width].contains(&0) {
        return Err(Error::Shape {
            what: "resampling of a map with sides above 0",
            expected: vec![channels.max(1), height.max(1), width.max(1)],
            found: x.shape().to_vec(),
        });
    }
    let (rows, columns) = (how.taps(from_height, height), how.taps(from_width, width));
    let mut wide = Tensor::new(&[channels, from_height, width])?;
    let lines = wide.data_mut().chunks_exact_mut(width);
    for (to, from) in lines.zip(x.data().chunks_exact(from_width)) {
        for (value, taps) in to.iter_mut().zip(&columns) {
            *value = taps.iter().map(|&(at, weight)| from[at] * weight).sum();
        }
    }
    let mut out = Tensor::zeros(&[channels, height, width])?;
    let planes = out.data_mut().chunks_exact_mut(height * width);
    for (to, from) in planes.zip(wide.data().chunks_exact(from_height * width)) {
        for (line, taps) in to.chunks_exact_mut(width).zip(&rows) {
            for &(at, weight) in taps {
                let from = &from[at * width..(at + 1) * width];
                for (value, from) in line.iter_mut().zip(from) {
                    *value += from * weight;
                }
            }
        }
    }
    Ok(out)
}

impl Resampling {
    /// For each of `to` new values along a side, which of `from` old ones it is made of, and with which weights.
    fn taps(self, from: usize, to: usize) -> Vec<Vec<(usize, f32)>> {
        let step = from as f32 / to as f32;
        let last = from - 1;
        let one = |place: f32| vec![((place as usize).min(last), 1.0)];
        let taps = |index: usize| {
            let index = index as f32;
            let centre = (index + 0.5) * step;
            match self {
                Resampling::Nearest => one(index * step),
                Resampling::NearestExact => one(centre),
                Resampling::Bilinear { antialias: false } => {
                    let place = (centre - 0.5).max(0.0);
                    let first = (place as usize).min(last);
                    let share = place - first as f32;
                    vec![(first, 1.0 - share), ((first + 1).min(last), share)]
                }
                Resampling::Bicubic { antialias: false } => {
                    let place = centre - 0.5;
                    let before = place.floor();
                    let share = place - before;
                    let tap = |k: i64| {
                        let at = (before as i64 + k).clamp(0, last as i64) as usize;
                        (at, cubic((share - k as f32).abs(), SLOPE))
                    };
                    (-1..=2).map(tap).collect()
                }
                Resampling::Bilinear { antialias: true } => {
                    widened(centre, step, from, 1.0, |x| (1.0 - x).max(0.0))
                }
                Resampling::Bicubic { antialias: true } => {
                    widened(centre, step, from, 2.0, |x| cubic(x, SLOPE_ANTIALIASED))
                }
            }
        };
        (0..to).map(taps).collect()
    }
}

/// Weights of a filter that reaches `reach` values of the smaller map to each side of `centre`.
fn widened(
    centre: f32,
    step: f32,
    from: usize,
    reach: f32,
    filter: impl Fn(f32) -> f32,
) -> Vec<(usize, f32)> {
    let scale = step.max(1.0);
    let reach = reach * scale;
    let first = (centre - reach + 0.5).max(0.0) as usize;
    let end = ((centre + reach + 0.5) as usize).min(from);
    let weight = |at: usize| filter(((at as f32 - centre + 0.5) / scale).abs());
    let sum: f32 = (first..end).map(weight).sum();
    (first..end).map(|at| (at, weight(at) / sum)).collect()
}

/// The cubic kernel with slope `a` at 1, at a distance.
fn cubic(x: f32, a: f32) -> f32 {
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}
