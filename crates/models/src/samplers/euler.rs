//! Euler, Euler with fresh noise, and Heun: steps along the direction from the picture to the sample.
//!
//! # Source
//! Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", algorithms 1 and 2; the ancestral
//! step is k-diffusion's.

use super::config::Spacing;
use super::denoise::Level;
use super::track::{At, Course, Hands};
use crate::Result;

/// Standard deviation of the noise a run begins with.
pub(super) fn init_noise_sigma(course: &Course) -> f32 {
    let largest = course.line.sigmas.iter().copied().fold(0.0, f32::max);
    match course.options.spacing {
        Spacing::Linspace | Spacing::Trailing => largest,
        Spacing::Leading => (largest * largest + 1.0).sqrt(),
    }
}

pub(super) fn step(course: &Course, at: At, hands: Hands<'_>) {
    let (from, to) = (course.sigma(at.index), course.sigma(at.index + 1));
    let denoiser = course.denoiser(Level::Added(from));
    for (x, &o) in hands.sample.iter_mut().zip(hands.output) {
        let slope = (*x - denoiser.picture(*x, o)) / from;
        *x += slope * (to - from);
    }
}

pub(super) fn ancestral(course: &Course, at: At, hands: Hands<'_>) {
    let (from, to) = (course.sigma(at.index), course.sigma(at.index + 1));
    let denoiser = course.denoiser(Level::Added(from));
    let (from2, to2) = (from * from, to * to);
    let up = (to2 * (from2 - to2) / from2).sqrt();
    let down = (to2 - up * up).sqrt();
    for (i, x) in hands.sample.iter_mut().enumerate() {
        let slope = (*x - denoiser.picture(*x, hands.output[i])) / from;
        *x += slope * (down - from);
        if let Some(fresh) = hands.noise {
            *x += fresh[i] * up;
        }
    }
}

/// Even calls go to the next level; odd ones go there again with the mean of the slopes at both ends.
pub(super) fn heun(course: &Course, at: At, hands: Hands<'_>) -> Result<()> {
    let Hands {
        history,
        sample,
        output,
        ..
    } = hands;
    if at.call.is_multiple_of(2) {
        let (from, to) = (course.sigma(at.index), course.sigma(at.index + 1));
        let denoiser = course.denoiser(Level::Added(from));
        history.reserve_sample(sample.len())?;
        let mut slopes = history.room(sample.len(), 1)?;
        history.keep_sample(sample)?;
        let all = slopes.data_mut().iter_mut();
        for ((x, &o), slope) in sample.iter_mut().zip(output).zip(all) {
            *slope = (*x - denoiser.picture(*x, o)) / from;
            *x += *slope * (to - from);
        }
        history.push(slopes);
    } else {
        let (from, to) = (course.sigma(at.index - 1), course.sigma(at.index));
        let denoiser = course.denoiser(Level::Added(to));
        let (first, start) = (history.output(0)?, history.sample()?);
        for (i, x) in sample.iter_mut().enumerate() {
            let slope = (*x - denoiser.picture(*x, output[i])) / to;
            *x = start[i] + (first[i] + slope) / 2.0 * (to - from);
        }
        history.drop_sample();
        history.drop_outputs();
    }
    Ok(())
}
