//! Samplers: from noise to a picture in so many calls of a network.
//!
//! A [`Scheduler`] is a checkpoint's scheduler_config.json. Together with a [`Choice`] (method, schedule, number of
//! steps, where to begin) it gives a [`Track`]: the timesteps the network is told, what its input is multiplied with,
//! how much noise each step draws, and the arithmetic of each step. What a method remembers between steps is in a
//! [`History`], which can be written down after any step. Everything is f32 over plain slices; tables are computed with
//! the roundings of the reference, so that the same seed gives the same picture.
//!
//! # Source
//! diffusers 0.42.1, one class a method:
//!
//! | method | class | schedules |
//! | --- | --- | --- |
//! | DDIM | `DDIMScheduler` | normal |
//! | PLMS | `PNDMScheduler` with `skip_prk_steps` | normal |
//! | LCM | `LCMScheduler` | normal |
//! | Euler | `EulerDiscreteScheduler` | all |
//! | Euler a | `EulerAncestralDiscreteScheduler` | all; those that the class lacks are Euler's |
//! | Heun | `HeunDiscreteScheduler` | all |
//! | DPM++ 2M | `DPMSolverMultistepScheduler`, `dpmsolver++` | all |
//! | DPM++ 2M SDE | `DPMSolverMultistepScheduler`, `sde-dpmsolver++` | all |
//! | DPM++ 2S | `DPMSolverSinglestepScheduler` | all |
//! | DPM++ SDE | `DPMSolverSDEScheduler` | all |
//! | UniPC | `UniPCMultistepScheduler` | all |
//! | Flow Euler | `FlowMatchEulerDiscreteScheduler` | all |
//!
//! `normal` is the class with none of the three options below; `karras`, `exponential` and `beta` are its
//! `use_karras_sigmas`, `use_exponential_sigmas` and `use_beta_sigmas`. `simple` is no option of diffusers: it is every
//! n-th of the training sigmas from the top, as ComfyUI has it, with the class' own steps between them.
//!
//! A scheduler of one class can be run by another class' method: keys that both know are kept, as `from_config` does.

mod brownian;
mod config;
mod ddim;
mod denoise;
mod dpm;
mod euler;
mod flow;
mod guidance;
mod history;
mod lcm;
mod line;
mod name;
mod pndm;
mod quantile;
mod scheduler;
mod sde;
mod tables;
mod track;
mod unipc;

pub use brownian::BrownianPath;
pub use config::Prediction;
pub use guidance::{guide, rescale};
pub use history::History;
pub use name::{Method, Schedule};
pub use scheduler::{Begin, Choice, Scheduler};
pub use track::{Noise, Track};
