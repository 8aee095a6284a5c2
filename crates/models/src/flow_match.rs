//! Flow-matching Euler schedule: which noise levels a job visits, and one step between two of them.
//!
//! # Source
//! diffusers `FlowMatchEulerDiscreteScheduler` and the Z-Image pipeline's choice of sigmas.

use serde_json::Value;

use crate::Result;
use crate::config::ConfigReader;
use crate::tensor::Tensor;

/// How sigmas are shifted towards noise.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shift {
    /// `s x / (1 + (s - 1) x)` with a constant.
    Static(f64),
    /// `e^mu / (e^mu + 1/x - 1)`, mu from the picture's size.
    Exponential(Mu),
    /// `mu / (mu + 1/x - 1)`, mu from the picture's size.
    Linear(Mu),
}

/// The line through two points (tokens, shift) that gives mu.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mu {
    base_tokens: f64,
    max_tokens: f64,
    base_shift: f64,
    max_shift: f64,
}

impl Mu {
    fn at(&self, tokens: usize) -> f64 {
        let slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens);
        tokens as f64 * slope + (self.base_shift - slope * self.base_tokens)
    }
}

/// A checkpoint's scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowMatchEuler {
    shift: Shift,
    shift_terminal: Option<f64>,
    train_steps: f64,
}

impl FlowMatchEuler {
    /// Reads scheduler_config.json.
    ///
    /// # Errors
    /// [`crate::Error::Config`] on wrong values and on options that are not supported.
    pub fn from_json(value: &Value) -> Result<FlowMatchEuler> {
        let config = ConfigReader::new("scheduler", value);
        config.only("_class_name", "FlowMatchEulerDiscreteScheduler")?;
        for key in [
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "invert_sigmas",
            "stochastic_sampling",
        ] {
            if config.flag(key, false)? {
                return Err(config.error(key, "is true, which is not supported"));
            }
        }
        let mu = Mu {
            base_tokens: config.number("base_image_seq_len", Some(256.0))?,
            max_tokens: config.number("max_image_seq_len", Some(4096.0))?,
            base_shift: config.number("base_shift", Some(0.5))?,
            max_shift: config.number("max_shift", Some(1.15))?,
        };
        if mu.base_tokens == mu.max_tokens {
            return Err(config.error("max_image_seq_len", "equals base_image_seq_len"));
        }
        let shift = match (
            config.flag("use_dynamic_shifting", false)?,
            config.word("time_shift_type", "exponential")?,
        ) {
            (false, _) => Shift::Static(config.number("shift", Some(1.0))?),
            (true, "exponential") => Shift::Exponential(mu),
            (true, "linear") => Shift::Linear(mu),
            (true, other) => {
                return Err(config.error(
                    "time_shift_type",
                    format!("is '{other}', not exponential or linear"),
                ));
            }
        };
        // The reference treats 0 as absent, too.
        let shift_terminal =
            Some(config.number("shift_terminal", Some(0.0))?).filter(|&terminal| terminal != 0.0);
        let train_steps = config.number("num_train_timesteps", Some(1000.0))?;
        Ok(FlowMatchEuler {
            shift,
            shift_terminal,
            train_steps,
        })
    }

    /// The noise levels of a job, from 1 down to the terminal 0: `steps + 1` values.
    ///
    /// `image_tokens` is the number of patches of one picture; only dynamic shifts look at it.
    pub fn sigmas(&self, steps: usize, image_tokens: usize) -> Vec<f32> {
        let mut sigmas: Vec<f32> = linspace(1.0, 1.0 / steps as f64, steps);
        for sigma in &mut sigmas {
            *sigma = match self.shift {
                Shift::Static(shift) => {
                    let shift = shift as f32;
                    shift * *sigma / (1.0 + (shift - 1.0) * *sigma)
                }
                Shift::Exponential(mu) => {
                    let e = mu.at(image_tokens).exp() as f32;
                    e / (e + (1.0 / *sigma - 1.0))
                }
                Shift::Linear(mu) => {
                    let mu = mu.at(image_tokens) as f32;
                    mu / (mu + (1.0 / *sigma - 1.0))
                }
            };
        }
        if let (Some(terminal), Some(&last)) = (self.shift_terminal, sigmas.last()) {
            let scale = (1.0 - last) / (1.0 - terminal as f32);
            for sigma in &mut sigmas {
                *sigma = 1.0 - (1.0 - *sigma) / scale;
            }
        }
        sigmas.push(0.0);
        sigmas
    }

    /// The time the network is told at noise level `sigma`: 0 is noise, 1 is a picture.
    pub fn time(&self, sigma: f32) -> f32 {
        let train_steps = self.train_steps as f32;
        // The pipeline counts in thousandths whatever the scheduler's number of training steps.
        (1000.0 - sigma * train_steps) / 1000.0
    }
}

/// `steps` values from `start` to `end`, as PyTorch's `linspace` computes them in f32: from both ends to the middle.
fn linspace(start: f64, end: f64, steps: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    if steps == 1 {
        return vec![start];
    }
    let step = (end - start) / (steps - 1) as f32;
    let value = |i: usize| {
        if i < steps / 2 {
            start + step * i as f32
        } else {
            end - step * (steps - 1 - i) as f32
        }
    };
    (0..steps).map(value).collect()
}

/// One Euler step: `latents += (to - from) * velocity`.
pub fn step(latents: &mut Tensor, velocity: &Tensor, from: f32, to: f32) {
    let dt = to - from;
    for (x, v) in latents.data_mut().iter_mut().zip(velocity.data()) {
        *x += dt * v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scheduler(extra: Value) -> FlowMatchEuler {
        let mut config = json!({"_class_name": "FlowMatchEulerDiscreteScheduler"});
        for (key, value) in extra.as_object().unwrap() {
            config[key] = value.clone();
        }
        FlowMatchEuler::from_json(&config).unwrap()
    }

    #[test]
    fn a_static_shift_bends_the_line() {
        let sigmas = scheduler(json!({"shift": 2.0})).sigmas(4, 64);
        let expected = [1.0, 1.5 / 1.75, 1.0 / 1.5, 0.5 / 1.25, 0.0];
        for (sigma, expected) in sigmas.iter().zip(expected) {
            assert!((sigma - expected as f32).abs() < 1e-6, "{sigmas:?}");
        }
    }

    #[test]
    fn one_step_goes_from_noise_to_picture() {
        assert_eq!(scheduler(json!({"shift": 3.0})).sigmas(1, 64), [1.0, 0.0]);
    }

    #[test]
    fn dynamic_shifts_depend_on_the_size() {
        let dynamic = scheduler(json!({"use_dynamic_shifting": true}));
        assert!(dynamic.sigmas(4, 4096)[1] > dynamic.sigmas(4, 256)[1]);
    }

    #[test]
    fn unsupported_options_are_refused_by_name() {
        let config =
            json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": true});
        let text = FlowMatchEuler::from_json(&config).unwrap_err().to_string();
        assert!(
            text.contains("scheduler") && text.contains("use_karras_sigmas"),
            "{text}"
        );
    }
}
