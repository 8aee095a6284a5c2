//! A run of a sampler: which calls of the network it makes, and what happens between them.

use serde_json::Value;

use super::config::{self, Class, Options, Prediction};
use super::denoise::{Denoiser, Level};
use super::flow::{self, FlowOptions};
use super::history::History;
use super::line::{Line, line};
use super::{Method, Schedule, ddim, dpm, euler, lcm, pndm, sde, unipc};
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

/// What a step is fed with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Noise {
    /// Nothing.
    None,
    /// Standard normal noise of the sample's shape, the next that the job's generator draws.
    Normal,
    /// The normalised increment of a Brownian path between two noise levels.
    Brownian {
        /// Level the step comes from.
        from: f32,
        /// Level it goes to.
        to: f32,
    },
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
        let track = Track { course, first, end };
        track.check()?;
        Ok(track)
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

/// What the methods' steps look at.
#[derive(Clone, Debug)]
pub(super) struct Course {
    pub(super) options: Options,
    pub(super) line: Line,
    /// Number of steps asked for.
    pub(super) steps: usize,
    pub(super) eta: f32,
    pub(super) stochastic: bool,
}

impl Course {
    /// The whole timestep of a call.
    pub(super) fn timestep(&self, index: usize) -> usize {
        self.line.timesteps[index] as usize
    }

    /// The picture's share of the variance at a whole timestep.
    pub(super) fn share(&self, timestep: usize) -> f32 {
        self.options.signal[timestep]
    }

    pub(super) fn sigma(&self, index: usize) -> f32 {
        self.line.sigmas[index]
    }

    /// A denoiser at a noise level.
    pub(super) fn denoiser(&self, level: Level) -> Denoiser {
        Denoiser {
            level,
            prediction: self.options.prediction,
            clip: self.options.clip,
        }
    }

    /// How noise is in the sample before the call `index` of the whole way, or after the last.
    fn level(&self, index: usize) -> Level {
        match self.options.class {
            Class::Ddim | Class::Pndm | Class::Lcm => {
                Level::of_share(self.share(self.timestep(index)))
            }
            Class::DpmMultistep | Class::DpmSinglestep | Class::UniPc => {
                Level::mixed(self.sigma(index))
            }
            Class::FlowMatchEuler => Level::Flow(self.sigma(index)),
            Class::Euler | Class::EulerAncestral | Class::Heun | Class::DpmSde => {
                Level::Added(self.sigma(index))
            }
        }
    }
}

/// Which call of the network a step follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    /// Counted from the run's first.
    pub(super) call: usize,
    /// Counted from the first of the whole way.
    pub(super) index: usize,
}

/// What a step reads and writes.
pub(super) struct Hands<'a> {
    pub(super) history: &'a mut History,
    pub(super) sample: &'a mut [f32],
    pub(super) output: &'a [f32],
    pub(super) noise: Option<&'a [f32]>,
}

/// A run laid out: the calls of the network from first to last, and the arithmetic between them.
#[derive(Clone, Debug)]
pub struct Track {
    course: Course,
    first: usize,
    end: usize,
}

impl Track {
    /// How often the network is called; a step of Heun or DPM++ SDE is two calls, but the last is one.
    pub fn evaluations(&self) -> usize {
        self.end - self.first
    }

    /// The timestep the network is told at call `call`.
    pub fn timestep(&self, call: usize) -> f32 {
        self.course.line.timesteps[self.first + call] as f32
    }

    /// Standard deviation of the noise that a whole run begins with.
    pub fn init_noise_sigma(&self) -> f32 {
        let options = &self.course.options;
        match options.class {
            Class::Euler | Class::EulerAncestral | Class::Heun | Class::DpmSde => {
                euler::init_noise_sigma(&self.course)
            }
            _ => 1.0,
        }
    }

    /// What the sample is multiplied with to become the network's input at call `call`; the sample itself stays.
    pub fn scale_input(&self, call: usize) -> f32 {
        let at = self.at(call);
        let sigma = match self.course.options.class {
            Class::Euler | Class::EulerAncestral | Class::Heun => self.course.sigma(at.index),
            Class::DpmSde => sde::level(&self.course, at),
            _ => return 1.0,
        };
        1.0 / (sigma * sigma + 1.0).sqrt()
    }

    /// What the step after call `call` has to be fed with.
    pub fn noise(&self, call: usize) -> Noise {
        let at = self.at(call);
        if !self.course.stochastic {
            return Noise::None;
        }
        match self.course.options.class {
            Class::Lcm if at.index + 1 == self.course.steps => Noise::None,
            Class::DpmSde => sde::noise(&self.course, at),
            _ => Noise::Normal,
        }
    }

    /// How many tensors of noise the step after call `call` draws from the job's generator.
    pub fn noises(&self, call: usize) -> usize {
        usize::from(self.noise(call) == Noise::Normal)
    }

    /// The two ends of the Brownian path that [`Noise::Brownian`] asks about: the least and the largest noise level.
    pub fn brownian_ends(&self) -> (f32, f32) {
        let above = |&&sigma: &&f32| sigma > 0.0;
        let sigmas = self.course.line.sigmas.iter().filter(above);
        let sigmas = sigmas.copied();
        sigmas.fold((f32::INFINITY, 0.0), |(least, largest), sigma| {
            (sigma.min(least), sigma.max(largest))
        })
    }

    /// The seed of that path, where the scheduler's file fixes one.
    pub fn brownian_seed(&self) -> Option<u64> {
        self.course.options.noise_seed
    }

    /// The most tensors of the sample's size that a [`History`] of this run ever holds.
    pub fn tensors_max(&self) -> usize {
        let options = &self.course.options;
        match options.class {
            Class::Pndm => 4,
            Class::Heun => 2,
            Class::DpmMultistep => options.order,
            Class::DpmSinglestep | Class::UniPc => options.order + 1,
            Class::DpmSde => 1,
            Class::Ddim
            | Class::Euler
            | Class::EulerAncestral
            | Class::Lcm
            | Class::FlowMatchEuler => 0,
        }
    }

    /// Adds noise to a picture's latents, in place, so that the run can begin from them.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lengths differ.
    pub fn add_noise(&self, sample: &mut [f32], noise: &[f32]) -> Result<()> {
        same(sample.len(), noise.len())?;
        let (picture, weight) = self.course.level(self.first).weights();
        mix(sample, noise, picture, weight);
        Ok(())
    }

    /// The latents of a picture as noisy as the sample is after the step of call `call`: what an inpainting run puts
    /// where nothing is to change. After the last step they are the picture's own.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lengths differ.
    pub fn noise_at(
        &self,
        call: usize,
        original: &[f32],
        noise: &[f32],
        into: &mut [f32],
    ) -> Result<()> {
        same(original.len(), into.len())?;
        same(original.len(), noise.len())?;
        into.copy_from_slice(original);
        if call + 1 < self.evaluations() {
            let (picture, weight) = self.course.level(self.first + call + 1).weights();
            mix(into, noise, picture, weight);
        }
        Ok(())
    }

    /// What the output at call `call` says the picture's latents are, for previews.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lengths differ.
    pub fn denoised(
        &self,
        call: usize,
        sample: &[f32],
        output: &[f32],
        into: &mut [f32],
    ) -> Result<()> {
        same(sample.len(), output.len())?;
        same(sample.len(), into.len())?;
        let at = self.at(call);
        let level = match self.course.options.class {
            Class::DpmSde => Level::Added(sde::level(&self.course, at)),
            _ => self.course.level(at.index),
        };
        let denoiser = self.course.denoiser(level);
        for ((picture, &x), &o) in into.iter_mut().zip(sample).zip(output) {
            *picture = denoiser.picture(x, o);
        }
        Ok(())
    }

    /// Moves the sample by the network's output at call `call` (after guidance). `noise` is what [`Track::noise`] asks
    /// for. Calls are made in order, each once, with the history of the one before.
    ///
    /// # Errors
    /// [`Error::Shape`] when lengths differ or noise is missing, [`Error::OutOfMemory`] when the history may not grow;
    /// sample and history are as before then, and the same call can be made again.
    pub fn step(
        &self,
        call: usize,
        history: &mut History,
        sample: &mut [f32],
        output: &[f32],
        noise: Option<&[f32]>,
    ) -> Result<()> {
        same(sample.len(), output.len())?;
        history.check(sample.len())?;
        let wanted = self.noise(call) != Noise::None;
        let noise = noise.filter(|_| wanted);
        if wanted {
            same(sample.len(), noise.map_or(0, <[f32]>::len))?;
        }
        let hands = Hands {
            history,
            sample,
            output,
            noise,
        };
        let (course, at) = (&self.course, self.at(call));
        match course.options.class {
            Class::Ddim => ddim::step(course, at, hands),
            Class::Pndm => pndm::step(course, at, hands)?,
            Class::Euler => euler::step(course, at, hands),
            Class::EulerAncestral => euler::ancestral(course, at, hands),
            Class::Heun => euler::heun(course, at, hands)?,
            Class::DpmMultistep => dpm::multistep(course, at, hands)?,
            Class::DpmSinglestep => dpm::singlestep(course, at, hands)?,
            Class::DpmSde => sde::step(course, at, hands)?,
            Class::UniPc => unipc::step(course, at, hands)?,
            Class::Lcm => lcm::step(course, at, hands),
            Class::FlowMatchEuler => flow::step(course, at, hands),
        }
        Ok(())
    }

    fn at(&self, call: usize) -> At {
        assert!(call < self.evaluations(), "a call beyond the last");
        At {
            call,
            index: self.first + call,
        }
    }

    /// Refuses what would give infinities: noise predicted where nothing is left of the picture.
    fn check(&self) -> Result<()> {
        let options = &self.course.options;
        let blind = |index: usize| self.course.level(index).weights().0 == 0.0;
        if options.prediction == Prediction::Epsilon && (self.first..self.end).any(blind) {
            return Err(Error::config(
                "scheduler",
                "rescale_betas_zero_snr",
                "leaves nothing of the picture where this run begins, which a model that predicts noise cannot start from",
            ));
        }
        Ok(())
    }
}

fn same(expected: usize, found: usize) -> Result<()> {
    if expected == found {
        Ok(())
    } else {
        Err(Error::Shape {
            what: "a sampler's tensors",
            expected: vec![expected],
            found: vec![found],
        })
    }
}

fn mix(sample: &mut [f32], noise: &[f32], picture: f32, weight: f32) {
    for (x, n) in sample.iter_mut().zip(noise) {
        *x = picture * *x + weight * n;
    }
}
