//! PLMS: DDIM's step along a linear combination of the last four outputs.
//!
//! # Source
//! Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", formulas 9 and 12.

use super::config::Prediction;
use super::denoise::Level;
use super::track::{At, Course, Hands};
use crate::Result;

/// Outputs a step combines.
const OUTPUTS_MAX: usize = 4;

/// Weights of the outputs, the latest first.
fn weights(call: usize) -> &'static [f32] {
    match call {
        0 => &[1.0],
        2 => &[1.5, -0.5],
        3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
        _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
    }
}

pub(super) fn step(course: &Course, at: At, hands: Hands<'_>) -> Result<()> {
    let Hands {
        history,
        sample,
        output,
        ..
    } = hands;
    let stride = course.options.train_steps / course.steps;
    let timestep = course.timestep(at.index);
    if at.call == 1 {
        // The first step again, now along the mean of its slopes at both ends.
        let advance = Advance::between(course, timestep + stride, Some(timestep));
        let (before, start) = (history.output(0)?, history.sample()?);
        for (i, x) in sample.iter_mut().enumerate() {
            *x = advance.of(start[i], (output[i] + before[i]) / 2.0);
        }
        history.drop_sample();
        return Ok(());
    }
    if at.call == 0 {
        history.reserve_sample(sample.len())?;
    }
    let mut latest = history.room(sample.len(), OUTPUTS_MAX)?;
    latest.data_mut().copy_from_slice(output);
    history.push(latest);
    if at.call == 0 {
        history.keep_sample(sample)?;
    }
    let advance = Advance::between(course, timestep, timestep.checked_sub(stride));
    let weights = weights(at.call);
    for (i, x) in sample.iter_mut().enumerate() {
        let mut slope = 0.0;
        for (back, weight) in weights.iter().enumerate() {
            slope += weight * history.output(back)?[i];
        }
        *x = advance.of(*x, slope);
    }
    Ok(())
}

/// Formula 9: from one timestep to another.
struct Advance {
    prediction: Prediction,
    level: Level,
    keep: f32,
    slope: f32,
    scale: f32,
}

impl Advance {
    fn between(course: &Course, timestep: usize, previous: Option<usize>) -> Advance {
        let options = &course.options;
        // The step that is taken twice may begin beyond the last training timestep by its offset.
        let from = course.share(timestep.min(options.train_steps - 1));
        let to = previous.map_or(options.final_signal, |t| course.share(t));
        Advance {
            prediction: options.prediction,
            level: Level::of_share(from),
            keep: (to / from).sqrt(),
            slope: to - from,
            scale: from * (1.0 - to).sqrt() + (from * (1.0 - from) * to).sqrt(),
        }
    }

    fn of(&self, x: f32, output: f32) -> f32 {
        let (signal, noise) = self.level.weights();
        let epsilon = match self.prediction {
            Prediction::Velocity => signal * output + noise * x,
            _ => output,
        };
        self.keep * x - self.slope * epsilon / self.scale
    }
}
