//! The way of a pass from noise to a picture: which network calls it makes, and what becomes of their outputs.

use lowtide_models::flow_match::{self, FlowMatchEuler};
use lowtide_models::samplers::{BrownianPath, History, Noise, Track};
use lowtide_models::{Result, Tensor};

/// The schedule of a pass, the same for every picture of it.
#[derive(Debug)]
pub(crate) enum Course {
    /// A straight way, by Euler's method; the network predicts its direction.
    Flow {
        scheduler: FlowMatchEuler,
        /// One more than there are calls.
        sigmas: Vec<f32>,
    },
    /// Any of the samplers.
    Track(Box<Track>),
}

impl Course {
    /// A straight way of which the last `strength` are gone.
    pub(crate) fn flow(scheduler: FlowMatchEuler, mut sigmas: Vec<f32>, strength: f64) -> Course {
        let steps = sigmas.len() - 1;
        let gone = (steps as f64 * strength).min(steps as f64);
        let first = (steps as f64 - gone).max(0.0) as usize;
        sigmas.drain(..first);
        Course::Flow { scheduler, sigmas }
    }

    /// Calls of the network.
    pub(crate) fn evaluations(&self) -> usize {
        match self {
            Course::Flow { sigmas, .. } => sigmas.len() - 1,
            Course::Track(track) => track.evaluations(),
        }
    }

    /// Tensors of a latent's size that are remembered between two calls, at most.
    pub(crate) fn history(&self) -> usize {
        match self {
            Course::Flow { .. } => 0,
            Course::Track(track) => track.tensors_max(),
        }
    }

    /// What the network is told of the time of call `at`, and what the latents are multiplied by for it.
    pub(crate) fn time(&self, at: usize) -> (f32, f32) {
        match self {
            Course::Flow { scheduler, sigmas } => (scheduler.time(sigmas[at]), 1.0),
            Course::Track(track) => (track.timestep(at), track.scale_input(at)),
        }
    }

    /// Makes noise what a whole way begins with.
    pub(crate) fn begin(&self, noise: &mut Tensor) {
        if let Course::Track(track) = self {
            let sigma = track.init_noise_sigma();
            noise.data_mut().iter_mut().for_each(|x| *x *= sigma);
        }
    }

    /// Adds noise to latents, so that the way can begin from them.
    pub(crate) fn add_noise(&self, latent: &mut Tensor, noise: &Tensor) -> Result<()> {
        match self {
            Course::Flow { sigmas, .. } => {
                mix(latent.data_mut(), noise.data(), sigmas[0]);
                Ok(())
            }
            Course::Track(track) => track.add_noise(latent.data_mut(), noise.data()),
        }
    }

    /// What is given, as noisy as a picture is after call `at`.
    pub(crate) fn noise_at(
        &self,
        at: usize,
        (given, noise): (&Tensor, &Tensor),
        into: &mut [f32],
    ) -> Result<()> {
        match self {
            Course::Flow { sigmas, .. } => {
                into.copy_from_slice(given.data());
                if at + 2 < sigmas.len() {
                    mix(into, noise.data(), sigmas[at + 1]);
                }
                Ok(())
            }
            Course::Track(track) => track.noise_at(at, given.data(), noise.data(), into),
        }
    }

    /// What call `at` has to be fed with.
    pub(crate) fn noise(&self, at: usize) -> Noise {
        match self {
            Course::Flow { .. } => Noise::None,
            Course::Track(track) => track.noise(at),
        }
    }

    /// The Brownian path that a picture of this seed follows where its noise is one.
    pub(crate) fn path(&self, seed: u64) -> BrownianPath {
        match self {
            Course::Flow { .. } => BrownianPath::new(seed, (0.0, 1.0)),
            Course::Track(track) => {
                let seed = track.brownian_seed().unwrap_or(seed);
                BrownianPath::new(seed, track.brownian_ends())
            }
        }
    }

    /// The picture's latents that lie ahead, as `output` of call `at` has them, for a look.
    pub(crate) fn ahead(&self, at: usize, latent: &Tensor, output: &Tensor) -> Result<Vec<f32>> {
        let (x, o) = (latent.data(), output.data());
        match self {
            // The network predicts the way from picture to noise.
            Course::Flow { sigmas, .. } => {
                let sigma = sigmas[at];
                Ok(x.iter().zip(o).map(|(x, o)| x - sigma * o).collect())
            }
            Course::Track(track) => {
                let mut ahead = vec![0.0; x.len()];
                track.denoised(at, x, o, &mut ahead)?;
                Ok(ahead)
            }
        }
    }

    /// Moves a picture on by `output` of call `at`. When that fails it is as it was.
    pub(crate) fn step(
        &self,
        at: usize,
        (latent, history): (&mut Tensor, &mut History),
        output: &Tensor,
        noise: Option<&[f32]>,
    ) -> Result<()> {
        match self {
            Course::Flow { sigmas, .. } => {
                flow_match::step(latent, output, sigmas[at], sigmas[at + 1]);
                Ok(())
            }
            Course::Track(track) => {
                track.step(at, history, latent.data_mut(), output.data(), noise)
            }
        }
    }
}

/// `x = sigma noise + (1 - sigma) x`.
fn mix(x: &mut [f32], noise: &[f32], sigma: f32) {
    for (x, noise) in x.iter_mut().zip(noise) {
        *x = sigma * noise + (1.0 - sigma) * *x;
    }
}
