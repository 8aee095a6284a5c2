//! The way of a pass from noise to a picture: which network calls it makes, and what becomes of their outputs.

use lowtide_models::Tensor;
use lowtide_models::flow_match::{self, FlowMatchEuler};

/// The schedule of a pass, the same for every picture of it.
pub(crate) enum Course {
    /// A straight way, by Euler's method; the network predicts its direction.
    Flow {
        scheduler: FlowMatchEuler,
        /// One more than there are calls.
        sigmas: Vec<f32>,
    },
}

impl Course {
    /// Calls of the network.
    pub(crate) fn evaluations(&self) -> usize {
        match self {
            Course::Flow { sigmas, .. } => sigmas.len() - 1,
        }
    }

    /// Tensors of a latent's size that are remembered between two calls, at most.
    pub(crate) fn history(&self) -> usize {
        match self {
            Course::Flow { .. } => 0,
        }
    }

    /// What the network is told of the time of call `at`, and what the latents are multiplied by for it.
    pub(crate) fn time(&self, at: usize) -> (f32, f32) {
        match self {
            Course::Flow { scheduler, sigmas } => (scheduler.time(sigmas[at]), 1.0),
        }
    }

    /// Value `k` of the picture that lies ahead, as `output` of call `at` has it.
    pub(crate) fn ahead(&self, at: usize, latent: &Tensor, output: &Tensor, k: usize) -> f32 {
        match self {
            // The network predicts the way from picture to noise.
            Course::Flow { sigmas, .. } => latent.data()[k] - sigmas[at] * output.data()[k],
        }
    }

    /// Moves a picture on by `output` of call `at`.
    pub(crate) fn step(&self, at: usize, latent: &mut Tensor, output: &Tensor) {
        match self {
            Course::Flow { sigmas, .. } => {
                flow_match::step(latent, output, sigmas[at], sigmas[at + 1]);
            }
        }
    }
}
