//! A checkpoint's scheduler, and the runs it lays out.

use serde_json::Value;

use super::config::{self, Class, Options, Prediction};
use super::flow::{self, FlowOptions};
use super::line::{Line, line};
use super::track::{Course, Track};
use super::{Method, Schedule};
use crate::config::ConfigReader;
use crate::{Error, Result};

/// A checkpoint's scheduler_config.json.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: Value,
    method: Option<Method>,
    class_name: String,
}

/// Where on the way from noise to picture a run begins and ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Begin {
    /// All of it.
    Whole,
    /// From a picture with noise: the last `strength` of the steps, from above 0 to 1.
    Strength(f64),
    /// A part of the training timesteps, as a base model and a refiner share them: fractions from 0 to 1, counted from
    /// noise to picture.
    Part {
        /// `denoising_start`: the sample comes from another run that ended here.
        start: Option<f64>,
        /// `denoising_end`: the sample goes on to another run.
        end: Option<f64>,
    },
}

/// What a run is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// How a step is computed.
    pub method: Method,
    /// How noise levels are spread over the steps.
    pub schedule: Schedule,
    /// Number of steps of the whole way.
    pub steps: usize,
    /// Which part of the way is gone.
    pub begin: Begin,
    /// DDIM's share of fresh noise, from 0 to 1; other methods do not look at it.
    pub eta: f32,
    /// Patches of one picture; only the dynamic shifts of flow matching look at it.
    pub image_tokens: usize,
    /// Noise levels before they are shifted, for flow matching only; without them the scheduler's own.
    pub flow_sigmas: Option<Vec<f64>>,
}

impl Choice {
    /// The whole way in `steps` steps.
    pub fn new(method: Method, schedule: Schedule, steps: usize) -> Choice {
        Choice {
            method,
            schedule,
            steps,
            begin: Begin::Whole,
            eta: 0.0,
            image_tokens: 4096,
            flow_sigmas: None,
        }
    }
}

impl Scheduler {
    /// Reads a scheduler_config.json; every option that its own class has is checked.
    ///
    /// # Errors
    /// [`Error::Config`] on wrong values, on options that are not supported and on unknown classes.
    pub fn from_json(value: &Value) -> Result<Scheduler> {
        let reader = ConfigReader::new("scheduler", value);
        let Some(Value::String(name)) = value.get("_class_name") else {
            return Err(reader.error("_class_name", "is missing, or not a word"));
        };
        let class = Class::ALL.into_iter().find(|class| class.name() == name);
        let method = match class {
            Some(class) => Some(own_method(&reader, class)?),
            // Their tables are the same; only their own steps are missing.
            None if COUSINS.contains(&name.as_str()) => None,
            None => {
                let known: Vec<&str> = Class::ALL.iter().map(|class| class.name()).collect();
                let problem = format!("is '{name}', not one of {}", known.join(", "));
                return Err(reader.error("_class_name", problem));
            }
        };
        match class {
            Some(Class::FlowMatchEuler) => FlowOptions::read(value).map(|_| ())?,
            Some(class) => config::read(value, class).map(|_| ())?,
            None => config::read(value, Class::Euler).map(|_| ())?,
        }
        Ok(Scheduler {
            config: value.clone(),
            method,
            class_name: name.clone(),
        })
    }

    /// The method of the file's own class.
    ///
    /// # Errors
    /// [`Error::Config`] when that class' steps are not built; another method can still be chosen.
    pub fn method(&self) -> Result<Method> {
        self.method.ok_or_else(|| {
            let problem = format!(
                "is '{}', whose own steps are not supported; choose a sampler by name",
                self.class_name
            );
            Error::config("scheduler", "_class_name", problem)
        })
    }

    /// The schedule that the file asks for with `method`.
    ///
    /// # Errors
    /// As [`Scheduler::track`].
    pub fn schedule(&self, method: Method) -> Result<Schedule> {
        match Class::of(method) {
            Class::FlowMatchEuler => Ok(FlowOptions::read(&self.config)?.schedule),
            class => Ok(config::read(&self.config, class)?.schedule),
        }
    }

    /// What the network's output means.
    ///
    /// # Errors
    /// As [`Scheduler::track`].
    pub fn prediction(&self, method: Method) -> Result<Prediction> {
        Ok(config::read(&self.config, Class::of(method))?.prediction)
    }

    /// Lays out a run.
    ///
    /// # Errors
    /// [`Error::Config`] when the file's options do not go with the method or the choice makes no sense, and
    /// [`Error::BeyondModel`] when there are more steps than the model has timesteps.
    pub fn track(&self, choice: &Choice) -> Result<Track> {
        let class = Class::of(choice.method);
        let flows = self.method == Some(Method::FlowMatchEuler);
        if flows != (class == Class::FlowMatchEuler) {
            let problem = format!(
                "is '{}', which does not go with a model trained for {}",
                choice.method.name(),
                self.class_name
            );
            return Err(Error::config("sampler", "method", problem));
        }
        let options = config::read(&self.config, class)?;
        if choice.steps == 0 || choice.steps > options.train_steps {
            return Err(Error::BeyondModel {
                what: "number of steps",
                asked: choice.steps,
                limit: options.train_steps,
            });
        }
        if !(0.0..=1.0).contains(&choice.eta) {
            let problem = format!("is {}, not from 0 to 1", choice.eta);
            return Err(Error::config("sampler", "eta", problem));
        }
        let flow = match class {
            Class::FlowMatchEuler => Some(FlowOptions::read(&self.config)?),
            _ => None,
        };
        let line = match &flow {
            Some(flow) => flow::line(flow, choice)?,
            None => line(&options, choice.method, choice.schedule, choice.steps)?,
        };
        let (first, end) = part(&options, &line, choice)?;
        let course = Course {
            stochastic: match choice.method {
                Method::Dpmpp2MSde => true,
                Method::Ddim => choice.eta > 0.0,
                // The singlestep class has no method of its own for its stochastic algorithm.
                Method::Dpmpp2S => {
                    config::stochastic(&ConfigReader::new("scheduler", &self.config))?
                }
                Method::EulerAncestral | Method::Lcm | Method::DpmppSde => true,
                Method::FlowMatchEuler => flow.as_ref().is_some_and(|flow| flow.stochastic),
                _ => false,
            },
            options,
            line,
            steps: choice.steps,
            eta: choice.eta,
        };
        Track::new(course, first, end)
    }
}

/// Classes whose files describe the same tables, though their own steps are not built.
const COUSINS: [&str; 6] = [
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "TCDScheduler",
];

fn own_method(config: &ConfigReader<'_>, class: Class) -> Result<Method> {
    if class == Class::DpmMultistep && config::stochastic(config)? {
        return Ok(Method::Dpmpp2MSde);
    }
    let is = |method: &Method| Class::of(*method) == class;
    let method = Method::ALL.into_iter().find(is);
    Ok(method.expect("every class has a method"))
}

/// The first call and the one after the last.
fn part(options: &Options, line: &Line, choice: &Choice) -> Result<(usize, usize)> {
    let calls = line.timesteps.len();
    let twice = matches!(options.class, Class::Heun | Class::DpmSde);
    let outside = |what: &str, value: f64, range: &str| {
        Error::config("sampler", what, format!("is {value}, not {range}"))
    };
    let cut = |fraction: f64| {
        let train = options.train_steps as f64;
        (train - fraction * train).round_ties_even()
    };
    let (first, end) = match choice.begin {
        Begin::Whole => (0, calls),
        Begin::Strength(strength) => {
            if !(0.0..=1.0).contains(&strength) {
                return Err(outside("strength", strength, "from 0 to 1"));
            }
            let kept = ((choice.steps as f64 * strength) as usize).min(choice.steps);
            let skipped = choice.steps - kept;
            (if twice { skipped * 2 } else { skipped }, calls)
        }
        Begin::Part { start, end } => {
            for (what, value) in [("denoising_start", start), ("denoising_end", end)] {
                if let Some(value) = value
                    && !(0.0..=1.0).contains(&value)
                {
                    return Err(outside(what, value, "from 0 to 1"));
                }
            }
            let first = start.map_or(0, |start| {
                let rest = line.timesteps.iter().filter(|&&t| t < cut(start)).count();
                // A step of two calls is not begun in its middle.
                let rest = if twice && rest % 2 == 0 {
                    rest + 1
                } else {
                    rest
                };
                calls.saturating_sub(rest)
            });
            let whole = !end.is_some_and(|end| end > 0.0 && end < 1.0);
            let end = end.filter(|_| !whole).map_or(calls, |end| {
                let on = |t: &&f64| **t >= cut(end);
                first + line.timesteps[first..].iter().filter(on).count()
            });
            (first, end)
        }
    };
    if first >= end {
        return Err(Error::config(
            "sampler",
            "steps",
            format!(
                "are {}, of which this strength or part leaves none; use more of either",
                choice.steps
            ),
        ));
    }
    Ok((first, end))
}
