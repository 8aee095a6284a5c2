//! Computes: one file an architecture; names in, tensors out.
//!
//! A model never moves a weight and never names a device; what it computes with is where its weights are ([`device`]). It is a plain loop over the blocks of a [`BlockSource`]; each
//! block is loaded by name through [`Weights`] into layers that borrow their matrices where they lie, applied, and
//! dropped. The same `load` run over a recorder gives the layout, from headers alone.
//!
//! Read [`tensor`], then [`weights`], then [`layers`], then a model.

#![forbid(unsafe_code)]

pub mod adapters;
pub mod autoencoder_kl;
pub mod clip_text;
pub mod config;
pub mod device;
mod error;
pub mod flow_match;
pub mod layers;
pub mod noise;
pub mod ops;
pub mod qwen3;
pub mod resample;
pub mod rrdbnet;
pub mod samplers;
pub mod srvgg_net_compact;
pub mod tensor;
pub mod unet_2d_condition;
pub mod upscaler;
pub mod weights;
pub mod yolov8;
pub mod z_image;

pub use adapters::Adapters;
pub use error::{Error, Result};
pub use lowtide_kernels::Precision;
pub use tensor::{Compute, Tensor};
pub use weights::{BlockSource, Headers, Weights};
