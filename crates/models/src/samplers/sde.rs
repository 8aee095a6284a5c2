//! DPM++ SDE: a second-order ancestral step over a Brownian path, with the network called at both of its levels.
//!
//! # Source
//! k-diffusion's `sample_dpmpp_sde`, as diffusers splits it into two calls.

use super::denoise::Level;
use super::tables::exp;
use super::track::{At, Course, Hands, Noise};
use crate::Result;

/// The two noise levels a step goes between, and the one in its middle on a logarithmic scale.
struct Span {
    from: f32,
    to: f32,
    middle: f32,
    /// The call is the first of its step's two.
    first: bool,
}

fn span(course: &Course, at: At) -> Span {
    let first = at.call.is_multiple_of(2);
    let index = if first { at.index } else { at.index - 1 };
    let (from, to) = (course.sigma(index), course.sigma(index + 1));
    let (start, end) = (-from.ln(), -to.ln());
    Span {
        from,
        to,
        middle: exp(-(start + (end - start) * 0.5)),
        first,
    }
}

/// The noise level of the sample at a call.
pub(super) fn level(course: &Course, at: At) -> f32 {
    let span = span(course, at);
    if span.first { span.from } else { span.middle }
}

/// Where the step after a call goes from and to; by way of their logarithms, as the reference does.
fn ends(span: &Span) -> (f32, f32) {
    let back = |sigma: f32| exp(sigma.ln());
    let to = if span.first {
        span.middle
    } else {
        back(span.to)
    };
    (back(span.from), to)
}

pub(super) fn noise(course: &Course, at: At) -> Noise {
    let span = span(course, at);
    if span.to == 0.0 {
        return Noise::None;
    }
    let (from, to) = ends(&span);
    Noise::Brownian { from, to }
}

pub(super) fn step(course: &Course, at: At, hands: Hands<'_>) -> Result<()> {
    let Hands {
        history,
        sample,
        output,
        noise,
    } = hands;
    let span = span(course, at);
    let denoiser = course.denoiser(Level::Added(level(course, at)));
    let Some(noise) = noise else {
        // The last step is Euler's.
        for (x, &o) in sample.iter_mut().zip(output) {
            *x += (*x - denoiser.picture(*x, o)) / span.from * (span.to - span.from);
        }
        return Ok(());
    };
    if span.first {
        history.reserve_sample(sample.len())?;
        history.keep_sample(sample)?;
    }
    let (from, to) = ends(&span);
    let (from2, to2) = (from * from, to * to);
    let up = to.min((to2 * (from2 - to2) / from2).sqrt());
    let down = (to2 - up * up).sqrt();
    let (start, end) = (-span.from.ln(), -down.ln());
    let keep = exp(-end) / from;
    let picture_weight = -(start - end).exp_m1();
    let kept = history.sample()?;
    for (i, x) in sample.iter_mut().enumerate() {
        let picture = denoiser.picture(*x, output[i]);
        *x = keep * kept[i] + picture_weight * picture + noise[i] * up;
    }
    if !span.first {
        history.drop_sample();
    }
    Ok(())
}
