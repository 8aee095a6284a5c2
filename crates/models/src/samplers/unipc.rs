//! UniPC: a corrector that uses the newest output once more for the step behind, and a predictor for the one ahead.
//!
//! # Source
//! Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", algorithms 5
//! and 6.

use super::denoise::Level;
use super::dpm::lambda;
use super::track::{At, Course, Hands};
use crate::{Result, Tensor};

/// The highest order.
const ORDER_MAX: usize = 3;

/// A step from one level to another as a sum: of the sample, of pictures (the latest first), and of the picture at the
/// level it goes to.
#[derive(Default)]
struct Sum {
    sample: f32,
    pictures: [f32; ORDER_MAX],
    ahead: f32,
}

pub(super) fn step(course: &Course, at: At, hands: Hands<'_>) -> Result<()> {
    let Hands {
        history,
        sample,
        output,
        ..
    } = hands;
    let options = &course.options;
    let corrects = at.call > 0 && !options.uncorrected.contains(&(at.index - 1));
    // Before anything changes: both may be refused.
    history.reserve_sample(sample.len())?;
    let full = history.outputs() >= options.order;
    let mut fresh = history.room(sample.len(), options.order)?;

    let corrector = if corrects {
        step_sum(
            course,
            at.index - 1,
            order(course, at.index - 1, at.call - 1),
            true,
        )
    } else {
        Sum::default()
    };
    let order = order(course, at.index, at.call);
    let predictor = step_sum(course, at.index, order, false);
    let denoiser = course.denoiser(Level::mixed(course.sigma(at.index)));
    let (older, kept) = history.parts();
    let older: Vec<&[f32]> = older.iter().rev().map(Tensor::data).collect();
    let kept = kept.map(Tensor::data_mut).unwrap_or_default();
    for (i, slot) in fresh.data_mut().iter_mut().enumerate() {
        let picture = denoiser.picture(sample[i], output[i]);
        let mut x = sample[i];
        if corrects {
            x = corrector.sample * kept[i] + corrector.ahead * picture;
            // The memory of the newest picture is still that of the oldest.
            let oldest = full.then_some(*slot);
            let past = older.iter().map(|older| older[i]).chain(oldest);
            for (weight, past) in corrector.pictures.iter().zip(past) {
                if *weight != 0.0 {
                    x += weight * past;
                }
            }
        }
        kept[i] = x;
        *slot = picture;
        let mut next = predictor.sample * x + predictor.pictures[0] * picture;
        for (weight, older) in predictor.pictures[1..].iter().zip(&older) {
            if *weight != 0.0 {
                next += weight * older[i];
            }
        }
        sample[i] = next;
    }
    history.push(fresh);
    Ok(())
}

/// The order of the predictor at a call: what there is to look back on, and less towards the end.
fn order(course: &Course, index: usize, call: usize) -> usize {
    let left = course.line.timesteps.len() - index;
    let most = course.options.order.min(call + 1);
    // Towards a level without noise only the first order is finite, whatever the file says.
    let ends = course.sigma(index + 1) == 0.0;
    if ends || course.options.lower_order_final {
        most.min(left)
    } else {
        most
    }
}

/// The step from `index` to the level after it: predicted, or corrected with the picture found there.
fn step_sum(course: &Course, index: usize, order: usize, correct: bool) -> Sum {
    let (from, to) = (course.sigma(index), course.sigma(index + 1));
    let (signal, noise) = Level::mixed(to).weights();
    let (_, before) = Level::mixed(from).weights();
    let (lambda_to, lambda_from) = (lambda(to), lambda(from));
    let h = lambda_to - lambda_from;
    let (phi, scale) = (
        (-h).exp_m1(),
        if course.options.bh2 {
            (-h).exp_m1()
        } else {
            -h
        },
    );
    let mut sum = Sum {
        sample: noise / before,
        ..Sum::default()
    };
    sum.pictures[0] = -signal * phi;
    if order == 1 && !correct {
        return sum;
    }
    // How far back the older pictures lie, in units of this step.
    let mut reach = [1.0; ORDER_MAX];
    for (k, reach) in reach.iter_mut().enumerate().take(order - 1) {
        *reach = (lambda(course.sigma(index - k - 1)) - lambda_from) / h;
    }
    let unknowns = if correct { order } else { order - 1 };
    // The ends of the reach of a predictor are the pictures before; of a corrector also the one ahead.
    if correct {
        reach[order - 1] = 1.0;
    }
    let weights = match (correct, order) {
        // The reference's simplifications.
        (true, 1) | (false, 2) => [0.5, 0.0, 0.0],
        _ => solve(&reach, &right_sides(h, phi, scale), unknowns),
    };
    for k in 0..order - 1 {
        let weight = -signal * scale * weights[k] / reach[k];
        sum.pictures[k + 1] += weight;
        sum.pictures[0] -= weight;
    }
    if correct {
        let weight = -signal * scale * weights[order - 1];
        sum.ahead = weight;
        sum.pictures[0] -= weight;
    }
    sum
}

/// `k! phi_(k+1)(-h) / B(h)` for k from 1.
fn right_sides(h: f32, phi: f32, scale: f32) -> [f32; ORDER_MAX] {
    let mut factorial = 1.0;
    let mut term = phi / -h - 1.0;
    let mut sides = [0.0; ORDER_MAX];
    for (i, side) in sides.iter_mut().enumerate() {
        *side = term * factorial / scale;
        factorial *= (i + 2) as f32;
        term = term / -h - 1.0 / factorial;
    }
    sides
}

/// Solves `sum over j of reach[j]^i * x[j] = sides[i]` for the first `count` unknowns.
fn solve(reach: &[f32; ORDER_MAX], sides: &[f32; ORDER_MAX], count: usize) -> [f32; ORDER_MAX] {
    let mut rows = [[0.0_f64; ORDER_MAX + 1]; ORDER_MAX];
    for (i, row) in rows.iter_mut().enumerate().take(count) {
        for (cell, &reach) in row.iter_mut().zip(reach).take(count) {
            *cell = f64::from(reach).powi(i as i32);
        }
        row[ORDER_MAX] = f64::from(sides[i]);
    }
    for pivot in 0..count {
        let largest = (pivot..count)
            .max_by(|&a, &b| rows[a][pivot].abs().total_cmp(&rows[b][pivot].abs()))
            .unwrap_or(pivot);
        rows.swap(pivot, largest);
        for i in 0..count {
            if i != pivot {
                let factor = rows[i][pivot] / rows[pivot][pivot];
                let above = rows[pivot];
                for (cell, above) in rows[i].iter_mut().zip(above) {
                    *cell -= factor * above;
                }
            }
        }
    }
    let mut solution = [0.0; ORDER_MAX];
    for (i, x) in solution.iter_mut().enumerate().take(count) {
        *x = (rows[i][ORDER_MAX] / rows[i][i]) as f32;
    }
    solution
}
