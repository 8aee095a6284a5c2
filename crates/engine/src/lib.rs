//! Carries out: devices, streaming, pipelines, sessions.
//!
//! [`Engine`] opens a model folder and knows its layout from headers alone. A request becomes a plan, a plan becomes a
//! [`Session`]: a step machine that encodes, denoises and decodes, one step a call, so that whoever drives it can look
//! at the world in between. [`upscale`] does the same for pictures that a network makes larger. [`stream`] brings weights from files to where they are used, ahead of need.

#![deny(unsafe_code)]

pub mod adapters;
pub mod chain;
pub mod clip_prompt;
mod course;
mod defaults;
pub mod detector;
pub mod device;
mod early;
mod engine;
mod error;
mod generator;
mod job;
mod lora_files;
mod parameters;
mod pipeline;
mod precision;
pub mod processor;
pub mod processors;
pub mod prompt;
mod prompt_cache;
mod request;
mod session;
pub mod shared;
mod siblings;
pub mod stream;
pub mod upscale;

pub use defaults::{Defaults, Variant, variant_of};
pub use engine::{Engine, Options, Start};
pub use error::{Blame, Error, Result};
pub use lowtide_kernels::Precision;
pub use parameters::MadeBy;
pub use precision::PrecisionChoice;
pub use request::{
    COUNT_MAX, Hires, Image, ImageRequest, LoraUse, NoiseOf, Outcome, PROMPT_BYTES_MAX, Progress,
    Reading, Report, SIDE_MAX, STEPS_MAX, Sketch, Source, Step, Stretch, Upscaler, drawn_seed,
};
pub use session::Session;
