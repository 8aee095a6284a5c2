//! The U-Net of Stable Diffusion: 1.x, 2.x, their inpainting variants, XL base and refiner, and distilled ones.
//!
//! Letters: N samples (pictures), S sequences (a sample under a condition: 2 N with guidance), C channels of a map, T its
//! places, h x w latent size. Maps are (C, height, width), tokens (T, C), f32.
//!
//! On the way down every map is kept; on the way up each is joined to the channels of the map it is as large as. One visit
//! of a block serves all sequences, and what sequences have in common, such as a sample not yet seen together with its
//! text, is computed and kept once.
//!
//! Group norms, SiLU and the time's embedding are applied while a convolution reads its input or writes its result,
//! residuals are added while it writes: no map exists for any of them. Scores of attention and the two halves of a
//! feed-forward's gate never exist as a whole either.
//!
//! # Source
//! diffusers `UNet2DConditionModel`: `ResnetBlock2D`, `Transformer2DModel`, `BasicTransformerBlock`.

mod config;
mod cost;
mod embedding;
mod flow;
mod network;
mod resnet;
mod transformer;

use lowtide_core::ComponentLayout;

use crate::tensor::{Compute, Tensor};
use crate::weights::{BlockSource, Headers, record};
use crate::{Error, Result};
pub use config::{AddedConfig, Config};
pub use cost::{BATCH, CHUNK_ROWS, Job, modes};
use flow::Flow;

/// What every block of a pass needs to know.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// How products are multiplied.
    pub compute: Compute,
    /// The model.
    pub config: &'a Config,
    /// Tokens of the finest transformer computed together at most, at least 1; of coarser ones, as large a share. Fewer
    /// take less memory and give the same bytes.
    pub chunk_rows: usize,
}

/// What a sample is to become.
#[derive(Clone, Copy, Debug)]
pub struct Condition<'a> {
    /// The text encoder's states (K, cross_attention_dim).
    pub text: &'a Tensor,
    /// What joins the time embedding, where [`Config::added`] says so.
    pub added: Option<Added<'a>>,
    /// The guidance scale that a distilled model is told, where [`Config::time_cond_proj_dim`] says so.
    pub guidance: Option<f32>,
}

/// What joins the time embedding of SDXL.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Added<'a> {
    /// The pooled text, of [`Config::pooled_dim`] values.
    pub pooled: &'a [f32],
    /// Six numbers (original height and width, crop, target size), or five (without the target, with the score) for the
    /// refiner.
    pub time_ids: &'a [f32],
}

/// The blocks in order of use.
///
/// # Errors
/// When a tensor is missing or of another shape or type than the configuration calls for.
pub fn layout(headers: &dyn Headers, config: &Config) -> Result<ComponentLayout> {
    let block = |block: network::Block| {
        record(headers, block.name.clone(), |w| {
            block.load(w, config).map(drop)
        })
    };
    Ok(ComponentLayout {
        name: "unet".to_owned(),
        blocks: network::blocks(config)
            .into_iter()
            .map(block)
            .collect::<Result<_>>()?,
        tables: Vec::new(),
    })
}

/// What the network makes of every sequence, a sample (by its index) and a condition, at `timestep`: noise, velocity or
/// whatever it was trained for. One visit of the blocks of [`layout`].
///
/// # Shapes
/// `samples`: N of (in_channels, h, w), all of one size; returns S of (out_channels, h, w), f32.
///
/// # Errors
/// When something does not fit the model, a block cannot be had, or memory is refused.
pub fn predict(
    source: &mut dyn BlockSource,
    pass: Pass<'_>,
    samples: &[&Tensor],
    timestep: f32,
    sequences: &[(usize, Condition<'_>)],
) -> Result<Vec<Tensor>> {
    let Some(size) = check(pass.config, samples, sequences)? else {
        return Ok(Vec::new());
    };
    let _there = source.place().enter();
    let texts: Vec<_> = sequences
        .iter()
        .map(|(_, told)| told.text.here())
        .collect::<Result<_>>()?;
    let sequences: Vec<(usize, Condition<'_>)> = sequences
        .iter()
        .zip(&texts)
        .map(|(&(sample, told), text)| (sample, Condition { text, ..told }))
        .collect();
    let mut flow = Flow::new(pass, size, &sequences);
    for (index, block) in network::blocks(pass.config).iter().enumerate() {
        let weights = source.block(index)?;
        flow.apply(block, block.load(&weights, pass.config)?, samples, timestep)?;
    }
    flow.predictions()
        .into_iter()
        .map(Tensor::into_host)
        .collect()
}

/// The size of all samples; `None` when there is nothing to do.
fn check(
    config: &Config,
    samples: &[&Tensor],
    sequences: &[(usize, Condition<'_>)],
) -> Result<Option<(usize, usize)>> {
    let Some((first, _)) = samples.split_first().filter(|_| !sequences.is_empty()) else {
        return Ok(None);
    };
    let (_, height, width) = first.dims3()?;
    let expected = [config.in_channels, height.max(1), width.max(1)];
    if let Some(other) = samples.iter().find(|sample| sample.shape() != expected) {
        return Err(Error::Shape {
            what: "samples",
            expected: expected.to_vec(),
            found: other.shape().to_vec(),
        });
    }
    for (sample, condition) in sequences {
        let (tokens, width) = condition.text.dims2()?;
        if *sample >= samples.len() || tokens == 0 || width != config.cross_attention_dim {
            return Err(Error::Shape {
                what: "a sequence's sample, and its text",
                expected: vec![samples.len(), tokens.max(1), config.cross_attention_dim],
                found: vec![*sample, tokens, width],
            });
        }
    }
    Ok(Some((height, width)))
}
