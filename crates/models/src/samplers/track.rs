//! A run of a sampler: which calls of the network it makes, and what happens between them.

use super::config::{Class, Options, Prediction};
use super::denoise::{Denoiser, Level};
use super::history::History;
use super::line::Line;
use super::{ddim, dpm, euler, flow, lcm, pndm, sde, unipc};
use crate::{Error, Result};

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
    pub(super) fn new(course: Course, first: usize, end: usize) -> Result<Track> {
        let track = Track { course, first, end };
        track.check()?;
        Ok(track)
    }

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
