//! What a network's output says about the picture.

use super::config::Prediction;

/// How noise is in a sample.
#[derive(Clone, Copy, Debug)]
pub(super) enum Level {
    /// `signal * picture + noise * epsilon`.
    Mixed {
        /// Weight of the picture.
        signal: f32,
        /// Weight of the noise.
        noise: f32,
    },
    /// `picture + sigma * epsilon`.
    Added(f32),
    /// `(1 - sigma) * picture + sigma * epsilon`.
    Flow(f32),
}

impl Level {
    /// The level of a variance-preserving sample with `sigma` noise over signal.
    pub(super) fn mixed(sigma: f32) -> Level {
        let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
        Level::Mixed {
            signal,
            noise: sigma * signal,
        }
    }

    /// The level of a training timestep with `share` of the variance the picture's.
    pub(super) fn of_share(share: f32) -> Level {
        Level::Mixed {
            signal: share.sqrt(),
            noise: (1.0 - share).sqrt(),
        }
    }

    /// Weights of picture and noise in a sample.
    pub(super) fn weights(self) -> (f32, f32) {
        match self {
            Level::Mixed { signal, noise } => (signal, noise),
            Level::Added(sigma) => (1.0, sigma),
            Level::Flow(sigma) => (1.0 - sigma, sigma),
        }
    }
}

/// Turns one sample and one output into the picture they speak of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Denoiser {
    pub(super) level: Level,
    pub(super) prediction: Prediction,
    /// The picture is held within plus and minus this.
    pub(super) clip: Option<f32>,
}

impl Denoiser {
    /// The picture's value where the sample is `x` and the output `o`.
    #[inline]
    pub(super) fn picture(&self, x: f32, o: f32) -> f32 {
        let picture = match (self.prediction, self.level) {
            (Prediction::Sample, _) => o,
            (Prediction::Epsilon, Level::Mixed { signal, noise }) => (x - noise * o) / signal,
            (Prediction::Velocity, Level::Mixed { signal, noise }) => signal * x - noise * o,
            (Prediction::Velocity, Level::Added(sigma)) => {
                let spread = sigma * sigma + 1.0;
                o * (-sigma / spread.sqrt()) + x / spread
            }
            (Prediction::Epsilon, Level::Added(sigma))
            | (Prediction::Flow, Level::Added(sigma))
            | (_, Level::Flow(sigma)) => x - sigma * o,
            (Prediction::Flow, Level::Mixed { noise, .. }) => x - noise * o,
        };
        match self.clip {
            Some(range) => picture.clamp(-range, range),
            None => picture,
        }
    }
}
