//! DPM-Solver++, multistep and singlestep, with and without fresh noise.
//!
//! # Source
//! Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", algorithms 1 and 2.

use super::config::{FinalSigma, Formula};
use super::denoise::Level;
use super::track::{At, Course, Hands};
use crate::Result;

/// Below this many steps the last ones are taken with lower orders.
const FEW_STEPS: usize = 15;

/// Log signal to noise of a level.
pub(super) fn lambda(sigma: f32) -> f32 {
    let (signal, noise) = Level::mixed(sigma).weights();
    signal.ln() - noise.ln()
}

/// One step as a sum: of the sample, of pictures (the latest first), and of noise.
struct Sum {
    sample: f32,
    pictures: [f32; 3],
    noise: f32,
}

/// What every order's step is made of.
struct Stride {
    keep: f32,
    signal: f32,
    noise: f32,
    /// Difference of log signal to noise.
    h: f32,
    stochastic: bool,
}

impl Stride {
    fn between(course: &Course, from: f32, to: f32) -> Stride {
        let (signal, noise) = Level::mixed(to).weights();
        let (_, before) = Level::mixed(from).weights();
        let h = lambda(to) - lambda(from);
        let keep = noise / before;
        Stride {
            keep: if course.stochastic {
                keep * (-h).exp()
            } else {
                keep
            },
            signal,
            noise,
            h,
            stochastic: course.stochastic,
        }
    }

    /// `h` as the formulas take it: twice as far when half of the way is noise.
    fn reach(&self) -> f32 {
        if self.stochastic {
            2.0 * self.h
        } else {
            self.h
        }
    }

    /// Weight of the picture itself: `1 - exp(-reach)`.
    fn picture(&self) -> f32 {
        self.signal * (1.0 - (-self.reach()).exp())
    }

    /// Weight of the picture's first difference by `formula`.
    fn difference(&self, formula: Formula) -> f32 {
        match formula {
            Formula::Midpoint => 0.5 * self.picture(),
            Formula::Heun => self.signal * (1.0 - (1.0 - (-self.reach()).exp()) / self.reach()),
        }
    }

    /// Weight of the picture's second difference.
    fn second_difference(&self) -> f32 {
        let reach = self.reach();
        let bent = (1.0 - (-reach).exp() - reach) / (reach * reach);
        // The reference's stochastic formula has this sign.
        let half = if self.stochastic { -0.5 } else { 0.5 };
        self.signal * (bent + half)
    }

    fn fresh(&self) -> f32 {
        if self.stochastic {
            self.noise * (1.0 - (-2.0 * self.h).exp()).sqrt()
        } else {
            0.0
        }
    }

    fn first(&self) -> Sum {
        Sum {
            sample: self.keep,
            pictures: [self.picture(), 0.0, 0.0],
            noise: self.fresh(),
        }
    }
}

pub(super) fn multistep(course: &Course, at: At, hands: Hands<'_>) -> Result<()> {
    let options = &course.options;
    let calls = course.line.timesteps.len();
    let left = calls - at.index;
    let few = options.lower_order_final && calls < FEW_STEPS;
    let plain_end =
        left == 1 && (options.euler_at_final || few || options.final_sigma == FinalSigma::Zero);
    let order = if plain_end {
        1
    } else if left == 2 && few {
        options.order.min(2)
    } else {
        options.order
    };
    let order = order.min(at.call + 1);
    let sum = match order {
        1 => Stride::between(course, course.sigma(at.index), course.sigma(at.index + 1)).first(),
        2 => second(course, at.index),
        _ => third(course, at.index),
    };
    remember(course, at, hands, &sum, Start::Sample)
}

fn second(course: &Course, index: usize) -> Sum {
    let stride = Stride::between(course, course.sigma(index), course.sigma(index + 1));
    let back = lambda(course.sigma(index)) - lambda(course.sigma(index - 1));
    let difference = stride.difference(course.options.formula) / (back / stride.h);
    Sum {
        sample: stride.keep,
        pictures: [stride.picture() + difference, -difference, 0.0],
        noise: stride.fresh(),
    }
}

fn third(course: &Course, index: usize) -> Sum {
    let stride = Stride::between(course, course.sigma(index), course.sigma(index + 1));
    let lambdas = [0, 1, 2].map(|back| lambda(course.sigma(index - back)));
    let r0 = (lambdas[0] - lambdas[1]) / stride.h;
    let r1 = (lambdas[1] - lambdas[2]) / stride.h;
    let d1 = stride.difference(Formula::Heun);
    let d2 = stride.second_difference();
    // Both differences written as sums of the last three pictures.
    let near = [1.0 / r0, -1.0 / r0, 0.0];
    let far = [0.0, 1.0 / r1, -1.0 / r1];
    let picture = |i: usize| {
        let bend = near[i] - far[i];
        let own = if i == 0 { stride.picture() } else { 0.0 };
        own + d1 * (near[i] + r0 / (r0 + r1) * bend) + d2 * bend / (r0 + r1)
    };
    Sum {
        sample: stride.keep,
        pictures: [picture(0), picture(1), picture(2)],
        noise: stride.fresh(),
    }
}

pub(super) fn singlestep(course: &Course, at: At, hands: Hands<'_>) -> Result<()> {
    let order = singlestep_order(course, at.index).min(at.call + 1);
    if order == 1 {
        let sum = Stride::between(course, course.sigma(at.index), course.sigma(at.index + 1));
        return remember(course, at, hands, &sum.first(), Start::SampleKept);
    }
    // From the level of the step before, over this one's, to the next.
    let from = course.sigma(at.index - 1);
    let stride = Stride::between(course, from, course.sigma(at.index + 1));
    let first = lambda(course.sigma(at.index)) - lambda(from);
    let difference = stride.difference(course.options.formula) / (first / stride.h);
    let sum = Sum {
        sample: stride.keep,
        pictures: [difference, stride.picture() - difference, 0.0],
        noise: stride.fresh(),
    };
    remember(course, at, hands, &sum, Start::Kept)
}

/// Orders 1 and 2 in turn; the last step is always of order 1 towards a sigma of 0.
fn singlestep_order(course: &Course, index: usize) -> usize {
    let options = &course.options;
    let steps = course.steps;
    let zero = options.final_sigma == FinalSigma::Zero;
    let lower_final = options.lower_order_final || zero || !steps.is_multiple_of(options.order);
    let last = index + 1 == steps;
    if options.order == 1 || index.is_multiple_of(2) || (last && (lower_final || zero)) {
        1
    } else {
        2
    }
}

/// Which sample a step starts from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    /// The current one.
    Sample,
    /// The current one, which the next step may start from, too.
    SampleKept,
    /// The one kept.
    Kept,
}

/// Adds the picture to the history and carries out the sum.
fn remember(course: &Course, at: At, hands: Hands<'_>, sum: &Sum, start: Start) -> Result<()> {
    let Hands {
        history,
        sample,
        output,
        noise,
    } = hands;
    if start == Start::SampleKept {
        history.reserve_sample(sample.len())?;
    }
    let mut picture = history.room(sample.len(), course.options.order)?;
    if start == Start::SampleKept {
        history.keep_sample(sample)?;
    }
    let denoiser = course.denoiser(Level::mixed(course.sigma(at.index)));
    let pictures = picture.data_mut().iter_mut();
    for ((picture, &x), &o) in pictures.zip(&*sample).zip(output) {
        *picture = denoiser.picture(x, o);
    }
    history.push(picture);
    if start == Start::Kept {
        sample.copy_from_slice(history.sample()?);
    }
    for x in &mut *sample {
        *x *= sum.sample;
    }
    for (back, &weight) in sum.pictures.iter().enumerate().take(history.outputs()) {
        if weight != 0.0 {
            for (x, picture) in sample.iter_mut().zip(history.output(back)?) {
                *x += weight * picture;
            }
        }
    }
    if let Some(noise) = noise {
        for (x, fresh) in sample.iter_mut().zip(noise) {
            *x += sum.noise * fresh;
        }
    }
    Ok(())
}
