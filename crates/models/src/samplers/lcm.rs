//! Latent consistency: every step jumps to the picture and, but for the last, back to the next noise level.
//!
//! # Source
//! Luo et al., "Latent Consistency Models", algorithm 3.

use super::denoise::Level;
use super::track::{At, Course, Hands};

/// Spread of the data that the boundary condition is written for.
const SIGMA_DATA: f32 = 0.5;

pub(super) fn step(course: &Course, at: At, hands: Hands<'_>) {
    let timestep = course.timestep(at.index);
    let next = at.index + 1;
    let previous = if next < course.line.timesteps.len() {
        course.timestep(next)
    } else {
        timestep
    };
    let denoiser = course.denoiser(Level::of_share(course.share(timestep)));
    let scaled = timestep as f32 * course.options.timestep_scaling as f32;
    let spread = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
    let skip = SIGMA_DATA * SIGMA_DATA / spread;
    let out = scaled / spread.sqrt();
    let (signal, noise) = Level::of_share(course.share(previous)).weights();
    for (i, x) in hands.sample.iter_mut().enumerate() {
        let picture = denoiser.picture(*x, hands.output[i]);
        let denoised = out * picture + skip * *x;
        *x = match hands.noise {
            Some(fresh) => signal * denoised + noise * fresh[i],
            None => denoised,
        };
    }
}
