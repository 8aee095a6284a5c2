//! DDIM.
//!
//! # Source
//! Song et al., "Denoising Diffusion Implicit Models", formulas 12 and 16.

use super::config::Prediction;
use super::denoise::Level;
use super::track::{At, Course, Hands};

pub(super) fn step(course: &Course, at: At, hands: Hands<'_>) {
    let options = &course.options;
    let timestep = course.timestep(at.index);
    let previous = timestep.checked_sub(options.train_steps / course.steps);
    let from = course.share(timestep);
    let to = previous.map_or(options.final_signal, |t| course.share(t));
    let level = Level::of_share(from);
    let denoiser = course.denoiser(level);
    let (signal, noise) = level.weights();

    let variance = ((1.0 - to) / (1.0 - from)) * (1.0 - from / to);
    let deviation = course.eta * variance.sqrt();
    let picture_weight = to.sqrt();
    let direction_weight = (1.0 - to - deviation * deviation).sqrt();
    for (i, x) in hands.sample.iter_mut().enumerate() {
        let o = hands.output[i];
        let picture = denoiser.picture(*x, o);
        let epsilon = match options.prediction {
            Prediction::Epsilon | Prediction::Flow => o,
            // Neither looks at the clipped picture.
            Prediction::Sample => (*x - signal * o) / noise,
            Prediction::Velocity => signal * o + noise * *x,
        };
        *x = picture_weight * picture + direction_weight * epsilon;
        if let Some(fresh) = hands.noise {
            *x += deviation * fresh[i];
        }
    }
}
