//! Which timesteps and noise levels a run visits, before any of it is cut off.

use super::config::{Class, FinalSigma, Options, Spacing};
use super::quantile::beta_quantile;
use super::tables::{self, Growth};
use super::{Method, Schedule};
use crate::{Error, Result};

/// The whole way from noise to picture.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// One a call of the network.
    pub(super) timesteps: Vec<f64>,
    /// Noise over signal before each call and after the last; empty where a table of training timesteps is walked.
    pub(super) sigmas: Vec<f32>,
}

/// The line of `steps` steps along `schedule`.
pub(super) fn line(
    options: &Options,
    method: Method,
    schedule: Schedule,
    steps: usize,
) -> Result<Line> {
    let class = options.class;
    if class.by_table() {
        if schedule != Schedule::Normal {
            return Err(refused(method, schedule));
        }
        let timesteps = table_walk(options, steps)?;
        return Ok(Line {
            timesteps: timesteps.into_iter().map(|t| t as f64).collect(),
            sigmas: Vec::new(),
        });
    }
    let table = tables::sigmas(&options.signal);
    let levels = match schedule {
        Schedule::Simple => simple(&table, steps),
        Schedule::Normal => normal(options, &table, steps),
        _ => spread(options, schedule, &table, steps),
    };
    let last = match options.final_sigma {
        FinalSigma::Zero => 0.0,
        // UniPC goes on at the level of its own last step, the others at the least one of the training.
        FinalSigma::Least
            if class == Class::UniPc
                && !matches!(schedule, Schedule::Normal | Schedule::Simple) =>
        {
            levels.sigmas.last().copied().unwrap_or(0.0) as f32
        }
        FinalSigma::Least => table[0],
    };
    Ok(finished(options, levels, last))
}

fn refused(method: Method, schedule: Schedule) -> Error {
    Error::config(
        "sampler",
        "schedule",
        format!(
            "is '{}', but {} walks the training timesteps and knows only 'normal'",
            schedule.name(),
            method.name()
        ),
    )
}

/// Timesteps with their noise levels, one a step.
struct Levels {
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
}

/// Rounds as the class does, appends the last level, and doubles what second-order methods visit twice.
fn finished(options: &Options, levels: Levels, last: f32) -> Line {
    let Levels {
        mut timesteps,
        sigmas,
    } = levels;
    let mut rounded: Vec<f32> = sigmas.iter().map(|&sigma| sigma as f32).collect();
    rounded.push(last);
    match options.class {
        Class::DpmMultistep | Class::DpmSinglestep | Class::UniPc => {
            // These keep whole timesteps.
            for t in &mut timesteps {
                *t = t.trunc();
            }
        }
        Class::Heun => {
            timesteps = doubled(&timesteps, |_| None);
            rounded = doubled_levels(&rounded);
        }
        Class::DpmSde => {
            let middles = middles(options, &sigmas);
            timesteps = doubled(&timesteps, |step| middles.get(step).copied());
            rounded = doubled_levels(&rounded);
        }
        _ => {}
    }
    Line {
        timesteps,
        sigmas: rounded,
    }
}

/// All but the first twice; the first of each pair is `between` of the step before, where there is one.
fn doubled(values: &[f64], between: impl Fn(usize) -> Option<f64>) -> Vec<f64> {
    let pair = |(step, &value): (usize, &f64)| [between(step).unwrap_or(value), value];
    let rest = values.get(1..).unwrap_or_default();
    let rest = rest.iter().enumerate().flat_map(pair);
    values.iter().take(1).copied().chain(rest).collect()
}

/// All but the first and the last twice.
fn doubled_levels(sigmas: &[f32]) -> Vec<f32> {
    let last = sigmas.len() - 1;
    let times = |i: usize| if i == 0 || i == last { 1 } else { 2 };
    let repeated = |(i, &sigma): (usize, &f32)| std::iter::repeat_n(sigma, times(i));
    sigmas.iter().enumerate().flat_map(repeated).collect()
}

/// The timesteps half way between two levels on a logarithmic scale.
fn middles(options: &Options, sigmas: &[f64]) -> Vec<f64> {
    let clock = Clock::new(&tables::sigmas(&options.signal));
    let middle = |pair: &[f64]| {
        let (from, to) = (-pair[0].ln(), -pair[1].ln());
        clock.timestep((-(from + (to - from) * 0.5)).exp())
    };
    sigmas.windows(2).map(middle).collect()
}

/// ComfyUI's "simple": every n-th of the training sigmas, from the top.
fn simple(table: &[f32], steps: usize) -> Levels {
    let stride = table.len() as f64 / steps as f64;
    let index = |step: usize| table.len() - 1 - (step as f64 * stride) as usize;
    Levels {
        timesteps: (0..steps).map(|step| index(step) as f64).collect(),
        sigmas: (0..steps)
            .map(|step| f64::from(table[index(step)]))
            .collect(),
    }
}

/// The class' own spacing of timesteps.
fn normal(options: &Options, table: &[f32], steps: usize) -> Levels {
    let timesteps = spaced(options, steps);
    let sigmas = timesteps.iter().map(|&t| interpolated(table, t)).collect();
    Levels { timesteps, sigmas }
}

/// numpy's `interp` over whole abscissae from 0.
fn interpolated(table: &[f32], at: f64) -> f64 {
    let last = table.len() - 1;
    if at <= 0.0 {
        return f64::from(table[0]);
    }
    if at >= last as f64 {
        return f64::from(table[last]);
    }
    let below = at as usize;
    let (low, high) = (f64::from(table[below]), f64::from(table[below + 1]));
    (high - low) * (at - below as f64) + low
}

/// Karras, exponential and beta: levels between a largest and a least one, and the timesteps that have them.
fn spread(options: &Options, schedule: Schedule, table: &[f32], steps: usize) -> Levels {
    let multistep = matches!(
        options.class,
        Class::DpmMultistep | Class::DpmSinglestep | Class::UniPc
    );
    // Multistep solvers spread over all training levels, the others over those their own spacing reaches.
    let (mut max, mut min) = if multistep {
        (f64::from(table[table.len() - 1]), f64::from(table[0]))
    } else {
        let own = normal(options, table, steps).sigmas;
        (own[0], own[own.len() - 1])
    };
    if matches!(
        options.class,
        Class::Euler | Class::EulerAncestral | Class::UniPc
    ) {
        max = options.sigma_max.unwrap_or(max);
        min = options.sigma_min.unwrap_or(min);
    }
    let sigmas = between(schedule, max, min, steps);
    let clock = Clock::new(table);
    let whole = schedule == Schedule::Karras
        && match options.class {
            Class::DpmMultistep => options.growth != Growth::Cosine,
            Class::DpmSinglestep | Class::UniPc => true,
            _ => false,
        };
    let timestep = |&sigma: &f64| {
        let t = clock.timestep(sigma);
        if whole { t.round_ties_even() } else { t }
    };
    Levels {
        timesteps: sigmas.iter().map(timestep).collect(),
        sigmas,
    }
}

/// `steps` levels from `max` to `min`.
pub(super) fn between(schedule: Schedule, max: f64, min: f64, steps: usize) -> Vec<f64> {
    match schedule {
        Schedule::Karras => {
            const RHO: f64 = 7.0;
            let (from, to) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
            let ramp = linspace(0.0, 1.0, steps);
            let level = |ramp: f64| (from + ramp * (to - from)).powf(RHO);
            ramp.into_iter().map(level).collect()
        }
        Schedule::Exponential => {
            let logarithms = linspace(max.ln(), min.ln(), steps);
            logarithms.into_iter().map(f64::exp).collect()
        }
        Schedule::Beta => {
            let level = |x: f64| min + beta_quantile(1.0 - x) * (max - min);
            linspace(0.0, 1.0, steps).into_iter().map(level).collect()
        }
        // These do not lie between two levels.
        Schedule::Normal | Schedule::Simple => Vec::new(),
    }
}

/// numpy's `linspace`: its last value is exactly `end`, and of one value it is `start`.
pub(super) fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let step = (end - start) / count.saturating_sub(1).max(1) as f64;
    let value = |i: usize| {
        if i > 0 && i + 1 == count {
            end
        } else {
            i as f64 * step + start
        }
    };
    (0..count).map(value).collect()
}

/// Finds the training timestep that has a noise level.
struct Clock {
    logarithms: Vec<f32>,
}

impl Clock {
    fn new(table: &[f32]) -> Clock {
        Clock {
            logarithms: table.iter().map(|&sigma| tables::ln(sigma)).collect(),
        }
    }

    fn timestep(&self, sigma: f64) -> f64 {
        let wanted = sigma.max(1e-10).ln();
        // Not bisected: the last level may be below the one before, see `config::signal`.
        let mut reached = self.logarithms.iter();
        let reached = reached.rposition(|&l| f64::from(l) <= wanted).unwrap_or(0);
        let below = reached.min(self.logarithms.len().saturating_sub(2));
        let low = self.logarithms[below];
        let high = *self.logarithms.get(below + 1).unwrap_or(&low);
        // The reference subtracts the two logarithms in f32.
        let weight = ((f64::from(low) - wanted) / f64::from(low - high)).clamp(0.0, 1.0);
        (1.0 - weight) * below as f64 + weight * (below + 1) as f64
    }
}

/// `timestep_spacing`, from the most noise to the least.
fn spaced(options: &Options, steps: usize) -> Vec<f64> {
    let train = options.train_steps;
    let multistep = matches!(
        options.class,
        Class::DpmMultistep | Class::DpmSinglestep | Class::UniPc
    );
    let end = train - cut_off(options);
    match (options.spacing, multistep) {
        (Spacing::Linspace, true) => {
            let mut all = linspace(0.0, end as f64 - 1.0, steps + 1);
            all.reverse();
            all.pop();
            all.into_iter().map(f64::round_ties_even).collect()
        }
        (Spacing::Linspace, false) => {
            let mut all = linspace(0.0, train as f64 - 1.0, steps);
            all.reverse();
            // All but this one class keep f32.
            if options.class != Class::DpmSde {
                for t in &mut all {
                    *t = f64::from(*t as f32);
                }
            }
            all
        }
        (Spacing::Leading, true) => {
            let stride = end / (steps + 1);
            let timestep = |i: usize| (i * stride + options.steps_offset) as f64;
            (1..=steps).rev().map(timestep).collect()
        }
        (Spacing::Leading, false) => {
            let stride = train / steps;
            let timestep = |i: usize| (i * stride + options.steps_offset) as f64;
            (0..steps).rev().map(timestep).collect()
        }
        (Spacing::Trailing, _) => trailing(train, end, steps),
    }
}

/// From the very last timestep down in equal strides.
fn trailing(train: usize, end: usize, steps: usize) -> Vec<f64> {
    let stride = train as f64 / steps as f64;
    // The reference's range can come out one too long, with a timestep of -1; that one is left out.
    let count = ((end as f64 / stride).ceil() as usize).min(steps);
    let delta = (end as f64 - stride) - end as f64;
    let timestep = |i: usize| (end as f64 + i as f64 * delta).round_ties_even() - 1.0;
    (0..count).map(timestep).filter(|&t| t >= 0.0).collect()
}

/// How many of the noisiest timesteps are left out because their signal is too weak.
fn cut_off(options: &Options) -> usize {
    if !matches!(options.class, Class::DpmMultistep | Class::DpmSinglestep)
        || options.lambda_min == f64::NEG_INFINITY
    {
        return 0;
    }
    let weak = |&&share: &&f32| {
        let lambda = share.sqrt().ln() - (1.0 - share).sqrt().ln();
        f64::from(lambda) < options.lambda_min
    };
    let count = options.signal.iter().rev().take_while(weak).count();
    count.min(options.train_steps - 1)
}

/// The whole timesteps of DDIM, PNDM and LCM.
fn table_walk(options: &Options, steps: usize) -> Result<Vec<usize>> {
    if options.class == Class::Lcm {
        return distilled(options, steps);
    }
    let train = options.train_steps;
    let mut walk: Vec<usize> = match options.spacing {
        Spacing::Linspace => {
            let all = linspace(0.0, train as f64 - 1.0, steps);
            let whole = |t: f64| t.round_ties_even() as usize;
            all.into_iter().rev().map(whole).collect()
        }
        Spacing::Leading => {
            let stride = train / steps;
            let timestep = |i: usize| i * stride + options.steps_offset;
            (0..steps).rev().map(timestep).collect()
        }
        Spacing::Trailing => {
            let all = trailing(train, train, steps);
            all.into_iter().map(|t| t as usize).collect()
        }
    };
    if let Some(&first) = walk.first()
        && first >= train
    {
        return Err(Error::config(
            "scheduler",
            "steps_offset",
            format!("starts {steps} steps at timestep {first}, beyond {train}"),
        ));
    }
    if options.class == Class::Pndm && walk.len() > 1 {
        // The second timestep is visited twice: the first step is taken again with both slopes known.
        walk.insert(2, walk[1]);
    }
    Ok(walk)
}

/// The timesteps a consistency model was distilled on, thinned out.
fn distilled(options: &Options, steps: usize) -> Result<Vec<usize>> {
    let original = options.original_steps;
    if original > options.train_steps {
        return Err(Error::config(
            "scheduler",
            "original_inference_steps",
            format!("is {original}, more than {}", options.train_steps),
        ));
    }
    if steps > original {
        return Err(Error::BeyondModel {
            what: "number of steps of LCM",
            asked: steps,
            limit: original,
        });
    }
    let stride = options.train_steps / original;
    let index = |i: usize| (i as f64 * (original as f64 / steps as f64)).floor() as usize;
    Ok((0..steps)
        .map(|i| (original - index(i)) * stride - 1)
        .collect())
}
