//! From latents to pictures and back: the VAE, the same for all families.

use lowtide_core::{ComponentLayout, Formula, PhaseLayout};
use lowtide_media::{Mask, Picture};
use lowtide_models::Tensor;
use lowtide_models::autoencoder_kl::{self, Config, DecodeMode, EncodeMode, Moments};

use crate::pipeline::{F32, Opener, Origin, Part, Running, Shape, latent_bytes, phase};
use crate::request::Image;
use crate::{Error, Result};

/// An opened VAE.
pub(crate) struct Vae {
    /// Its configuration.
    pub(crate) config: Config,
    /// From latents to pictures.
    pub(crate) decoder: Part,
    /// From pictures to latents, where the checkpoint has that half.
    encoder: Option<Part>,
}

impl Vae {
    /// Reads the component `vae` of a model.
    ///
    /// # Errors
    /// When it is missing or not what its configuration says.
    pub(crate) fn open(opener: &Opener<'_>) -> Result<Vae> {
        const VAE: &str = "vae";
        let config = Config::from_json(opener.config(VAE)?).map_err(opener.wrap(VAE))?;
        let checkpoint = opener.checkpoint(VAE)?;
        let decoder = opener.part(VAE, &checkpoint, |headers| {
            autoencoder_kl::layout(headers, &config)
        })?;
        // Some checkpoints come without this half; then pictures can only be decoded.
        let encoder = match checkpoint.get("encoder.conv_in.weight") {
            Some(_) => Some(opener.part(VAE, &checkpoint, |headers| {
                let layout = autoencoder_kl::encoder_layout(headers, &config)?;
                // Both halves are one network to whoever looks at it.
                Ok(ComponentLayout {
                    name: VAE.to_owned(),
                    ..layout
                })
            })?),
            None => None,
        };
        Ok(Vae {
            encoder,
            config,
            decoder,
        })
    }

    /// The half that encodes.
    pub(crate) fn encoder(&self) -> &Part {
        self.encoder
            .as_ref()
            .expect("a request that needs it was refused without it")
    }

    /// Its parts, the one that every job needs first.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.decoder).chain(&self.encoder)
    }

    /// Whether pictures can be encoded.
    pub(crate) fn encodes(&self) -> bool {
        self.encoder.is_some()
    }

    /// What decoding the latents of a pass costs.
    pub(crate) fn decode_layout(
        &self,
        name: &str,
        shape: &Shape,
        pass: usize,
        scratch: f64,
    ) -> PhaseLayout {
        let latent = shape.passes[pass].latent;
        let modes = autoencoder_kl::modes(&self.config, latent.0, latent.1);
        let pixel = 3.0 + if shape.keep_values { 3.0 * F32 } else { 0.0 };
        let sketch = 3.0 / self.config.latent_channels as f64;
        let held = Formula::sum(&[
            (F32 + sketch, &["count", "latent_values"]),
            (pixel, &["count", "width", "height"]),
            (scratch, &[]),
        ]);
        phase(name, &self.decoder.layout, shape.count as u64, held, modes)
    }

    /// What encoding the pictures a pass begins from costs.
    pub(crate) fn encode_layout(
        &self,
        name: &str,
        shape: &Shape,
        pass: usize,
        scratch: f64,
    ) -> PhaseLayout {
        let size = &shape.passes[pass];
        let modes = autoencoder_kl::encode_modes(&self.config, size.height, size.width);
        let channels = self.config.latent_channels as f64;
        let pixels = (size.width * size.height) as f64;
        // The picture as numbers and as bytes; means and deviations of it and of what a mask leaves.
        let held = Formula::sum(&[
            (
                latent_bytes(shape, self.config.latent_channels),
                &["count", "latent_values"],
            ),
            (F32 * 6.0, &["latent_values"]),
            (3.0, &["count", "width", "height"]),
            (pixels * (3.0 * F32 + 3.0) + scratch + channels, &[]),
        ]);
        let pictures = match size.origin {
            Origin::Picture => shape.count,
            _ => shape.members.len() * if shape.masked { 2 } else { 1 },
        };
        phase(name, &self.encoder().layout, pictures as u64, held, modes)
    }

    /// The moments of a picture's latents.
    ///
    /// # Errors
    /// When a block cannot be had or memory is refused.
    pub(crate) fn encode(
        &self,
        running: Running<'_>,
        picture: &Tensor,
        wrap: impl Fn(lowtide_models::Error) -> Error,
    ) -> Result<Moments> {
        let plan = running.plan;
        let mode = EncodeMode::planned(&plan.mode, &plan.vars)
            .expect("the mode is one of those the VAE offered");
        let (source, compute) = (running.source, running.compute);
        autoencoder_kl::encode(source, compute, &self.config, picture, &mode).map_err(wrap)
    }

    /// The picture of a latent, values -1..1: (3, H, W).
    ///
    /// # Errors
    /// When a block cannot be had or memory is refused.
    pub(crate) fn decode(
        &self,
        running: Running<'_>,
        latent: &Tensor,
        wrap: impl Fn(lowtide_models::Error) -> Error,
    ) -> Result<Tensor> {
        let plan = running.plan;
        let mode = DecodeMode::planned(&plan.mode, &plan.vars)
            .expect("the mode is one of those the VAE offered");
        let (source, compute) = (running.source, running.compute);
        autoencoder_kl::decode(source, compute, &self.config, latent, &mode).map_err(wrap)
    }
}

/// A decoded picture (3, H, W), values -1..1, in bytes.
pub(crate) fn image(picture: &Tensor, seed: u64) -> Image {
    let (height, width) = match picture.shape() {
        &[_, height, width] => (height, width),
        _ => (0, 0),
    };
    let (plane, data) = (width * height, picture.data());
    let mut rgb = Vec::with_capacity(3 * plane);
    for at in 0..plane {
        for channel in 0..3 {
            rgb.push((unit(data[channel * plane + at]) * 255.0).round_ties_even() as u8);
        }
    }
    Image {
        width,
        height,
        rgb,
        seed,
    }
}

/// A picture as a network takes it: (3, H, W), values -1..1. What `mask` lets change is grey.
///
/// # Errors
/// When memory is refused.
pub(crate) fn tensor(picture: &Picture, mask: Option<&Mask>) -> lowtide_models::Result<Tensor> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let plane = width * height;
    let mut tensor = Tensor::new(&[3, height, width])?;
    for (k, x) in tensor.data_mut().iter_mut().enumerate() {
        let (channel, at) = (k / plane, k % plane);
        let hidden = mask.is_some_and(|mask| mask.values()[at] >= 128);
        *x = match hidden {
            true => 0.0,
            false => f32::from(picture.values()[3 * at + channel]) / 255.0 * 2.0 - 1.0,
        };
    }
    Ok(tensor)
}

/// From the network's -1..1 to 0..1.
pub(crate) fn unit(x: f32) -> f32 {
    (x / 2.0 + 0.5).clamp(0.0, 1.0)
}
