//! Euler for flow matching, with the shifts of its noise levels.
//!
//! # Source
//! Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", section 5.3.2.

use serde_json::Value;

use super::line::{Line, between, linspace};
use super::track::{At, Course, Hands};
use super::{Choice, Schedule, config};
use crate::config::ConfigReader;
use crate::{Error, Result};

/// How levels are shifted towards noise.
#[derive(Clone, Copy, Debug)]
enum Shift {
    /// By a constant.
    Static(f64),
    /// By e to a power that depends on the picture's size.
    Exponential(Size),
    /// By a number that depends on the picture's size.
    Linear(Size),
}

/// The line through two points (patches, shift).
#[derive(Clone, Copy, Debug)]
struct Size {
    base_tokens: f64,
    max_tokens: f64,
    base_shift: f64,
    max_shift: f64,
}

impl Size {
    fn at(&self, tokens: usize) -> f64 {
        let slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens);
        tokens as f64 * slope + (self.base_shift - slope * self.base_tokens)
    }
}

impl Shift {
    fn of(&self, sigma: f64, tokens: usize) -> f64 {
        match self {
            Shift::Static(shift) => shift * sigma / (1.0 + (shift - 1.0) * sigma),
            Shift::Exponential(size) => {
                let e = size.at(tokens).exp();
                e / (e + (1.0 / sigma - 1.0))
            }
            Shift::Linear(size) => {
                let mu = size.at(tokens);
                mu / (mu + (1.0 / sigma - 1.0))
            }
        }
    }
}

/// Options that only flow matching has.
#[derive(Clone, Debug)]
pub(super) struct FlowOptions {
    shift: Shift,
    terminal: Option<f64>,
    train_steps: usize,
    pub(super) schedule: Schedule,
    pub(super) stochastic: bool,
}

impl FlowOptions {
    pub(super) fn read(value: &Value) -> Result<FlowOptions> {
        let common = config::read(value, config::Class::FlowMatchEuler)?;
        let config = ConfigReader::new("scheduler", value);
        let size = Size {
            base_tokens: config.number("base_image_seq_len", Some(256.0))?,
            max_tokens: config.number("max_image_seq_len", Some(4096.0))?,
            base_shift: config.number("base_shift", Some(0.5))?,
            max_shift: config.number("max_shift", Some(1.15))?,
        };
        if size.base_tokens == size.max_tokens {
            return Err(config.error("max_image_seq_len", "equals base_image_seq_len"));
        }
        let dynamic = config.flag("use_dynamic_shifting", false)?;
        let shift = match (dynamic, config.word("time_shift_type", "exponential")?) {
            (false, _) => Shift::Static(positive(&config, "shift", 1.0)?),
            (true, "exponential") => Shift::Exponential(size),
            (true, "linear") => Shift::Linear(size),
            (true, other) => {
                let problem = format!("is '{other}', not exponential or linear");
                return Err(config.error("time_shift_type", problem));
            }
        };
        let terminal = config.number("shift_terminal", Some(0.0))?;
        Ok(FlowOptions {
            shift,
            // The reference treats 0 as absent, too.
            terminal: Some(terminal).filter(|&terminal| terminal != 0.0),
            train_steps: common.train_steps,
            schedule: common.schedule,
            stochastic: config.flag("stochastic_sampling", false)?,
        })
    }
}

fn positive(config: &ConfigReader<'_>, key: &str, default: f64) -> Result<f64> {
    let value = config.number(key, Some(default))?;
    if value > 0.0 {
        Ok(value)
    } else {
        Err(config.error(key, format!("is {value}, not above 0")))
    }
}

/// The noise levels of a run and the timesteps they are told as.
pub(super) fn line(options: &FlowOptions, choice: &Choice) -> Result<Line> {
    let tokens = choice.image_tokens;
    let shifted = |sigma: f64| options.shift.of(sigma, tokens);
    let mut sigmas: Vec<f64> = match (choice.schedule, &choice.flow_sigmas) {
        (Schedule::Simple, _) => {
            let train = options.train_steps;
            let stride = train as f64 / choice.steps as f64;
            let whole = |step: usize| train - (step as f64 * stride) as usize;
            let sigma = |step: usize| shifted(whole(step) as f64 / train as f64);
            (0..choice.steps).map(sigma).collect()
        }
        (_, Some(given)) => {
            let sound = |sigma: &f64| *sigma > 0.0 && *sigma <= 1.0;
            if given.len() != choice.steps || !given.iter().all(sound) {
                return Err(Error::config(
                    "sampler",
                    "flow_sigmas",
                    "are not one number above 0 and up to 1 for every step",
                ));
            }
            given.iter().map(|&sigma| shifted(sigma)).collect()
        }
        (_, None) => own(options, choice.steps).map(shifted).collect(),
    };
    if choice.schedule != Schedule::Simple
        && let (Some(terminal), Some(&last)) = (options.terminal, sigmas.last())
    {
        let scale = (1.0 - last) / (1.0 - terminal);
        // One step ends where it begins; there is nothing to stretch.
        if scale != 0.0 {
            for sigma in &mut sigmas {
                *sigma = 1.0 - (1.0 - *sigma) / scale;
            }
        }
    }
    if !matches!(choice.schedule, Schedule::Normal | Schedule::Simple) {
        let (max, min) = (sigmas[0], sigmas[sigmas.len() - 1]);
        sigmas = between(choice.schedule, max, min, choice.steps);
    }
    let mut sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
    let train = options.train_steps as f32;
    let timesteps = sigmas.iter().map(|&sigma| f64::from(sigma * train));
    let timesteps = timesteps.collect();
    sigmas.push(0.0);
    Ok(Line { timesteps, sigmas })
}

/// The scheduler's own levels before its shift: between its largest and its least one, which a static shift has already
/// moved once.
fn own(options: &FlowOptions, steps: usize) -> impl Iterator<Item = f64> {
    let train = options.train_steps as f64;
    let end = |timestep: f64| {
        let sigma = timestep as f32 / options.train_steps as f32;
        match options.shift {
            Shift::Static(shift) => {
                let shift = shift as f32;
                f64::from(shift * sigma / (1.0 + (shift - 1.0) * sigma))
            }
            _ => f64::from(sigma),
        }
    };
    let all = linspace(end(train) * train, end(1.0) * train, steps);
    all.into_iter().map(move |timestep| timestep / train)
}

pub(super) fn step(course: &Course, at: At, hands: Hands<'_>) {
    let (from, to) = (course.sigma(at.index), course.sigma(at.index + 1));
    for (i, x) in hands.sample.iter_mut().enumerate() {
        let o = hands.output[i];
        *x = match hands.noise {
            Some(fresh) => (1.0 - to) * (*x - from * o) + to * fresh[i],
            None => *x + (to - from) * o,
        };
    }
}
