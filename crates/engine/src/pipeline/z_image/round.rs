//! The transformer's part of a denoising step: velocities, and guidance.

use lowtide_models::z_image::{self, Config, Sequences, velocities};
use lowtide_models::{Compute, Tensor};

use super::ZImage;
use crate::pipeline::{Call, Round, Running};
use crate::request::ImageRequest;
use crate::session::rung;
use crate::session::work::TextKey;
use crate::{Error, Result};

/// Pictures in progress.
struct Velocities {
    model: String,
    config: Config,
    guided: bool,
    /// With all sequences, and with the prompts' alone for steps without guidance.
    sequences: Sequences,
    unguided: Option<Sequences>,
}

/// Prepares for pictures with these texts.
pub(super) fn begin(
    model: &ZImage,
    latent: (usize, usize),
    texts: &[(&TextKey, Option<&TextKey>)],
    request: &ImageRequest,
) -> Result<Box<dyn Round>> {
    let config = &model.transformer_config;
    let rows = |text: &TextKey| z_image::padded(text.tokens());
    let positive: Vec<usize> = texts.iter().map(|(positive, _)| rows(positive)).collect();
    let negative = texts.iter().filter_map(|(_, negative)| negative.map(rows));
    let all: Vec<usize> = positive.iter().copied().chain(negative).collect();
    let guided = all.len() > positive.len();
    let make = |captions: Vec<usize>| {
        Sequences::new(config, latent, texts.len(), captions).map_err(model.error("transformer"))
    };
    let truncated = guided && request.cfg_truncation <= 1.0;
    Ok(Box::new(Velocities {
        model: model.folder.name.clone(),
        config: config.clone(),
        guided,
        unguided: truncated.then(|| make(positive)).transpose()?,
        sequences: make(all)?,
    }))
}

impl Velocities {
    fn error(&self, source: lowtide_models::Error) -> Error {
        Error::Model {
            model: self.model.clone(),
            component: "transformer",
            source,
        }
    }

    fn pass(&self, compute: Compute, chunk_rows: usize) -> z_image::Pass<'_> {
        z_image::Pass {
            compute,
            config: &self.config,
            chunk_rows,
        }
    }
}

impl Round for Velocities {
    fn predict(&self, running: Running<'_>, call: &Call<'_>) -> Result<Vec<Tensor>> {
        let truncation = call.request.cfg_truncation;
        let guided = self.guided && !(truncation <= 1.0 && call.time > truncation);
        let sequences = match (&self.unguided, guided) {
            (Some(unguided), false) => unguided,
            _ => &self.sequences,
        };
        let seen = &call.pictures;
        let latents: Vec<&Tensor> = seen.iter().map(|picture| picture.latent).collect();
        let mut captions: Vec<&Tensor> = seen.iter().map(|picture| &picture.positive[0]).collect();
        if guided {
            let negatives = seen.iter().filter_map(|picture| picture.negative);
            captions.extend(negatives.map(|caption| &caption[0]));
        }
        let pass = self.pass(running.compute, rung(running.plan, "chunk_rows"));
        let about = (&latents[..], &captions[..]);
        let mut predicted = velocities(running.source, pass, sequences, about, call.time)
            .map_err(|source| self.error(source))?;
        let negative = predicted.split_off(seen.len());
        let (scale, limit) = (call.request.guidance, call.request.cfg_normalization);
        for (positive, negative) in predicted.iter_mut().zip(&negative) {
            guide(positive, negative, scale, limit);
        }
        // The network predicts the way from noise to picture, the schedule runs the other way.
        for velocity in &mut predicted {
            velocity.data_mut().iter_mut().for_each(|v| *v = -*v);
        }
        Ok(predicted)
    }
}

/// `positive += scale (positive - negative)`, its norm kept below `limit` times what it was.
fn guide(positive: &mut Tensor, negative: &Tensor, scale: f32, limit: Option<f32>) {
    let norm = |tensor: &Tensor| {
        tensor
            .data()
            .iter()
            .map(|&x| f64::from(x) * f64::from(x))
            .sum::<f64>()
            .sqrt() as f32
    };
    let limit = limit
        .filter(|&limit| limit > 0.0)
        .map(|limit| norm(positive) * limit);
    for (p, n) in positive.data_mut().iter_mut().zip(negative.data()) {
        *p += scale * (*p - n);
    }
    if let Some(limit) = limit {
        let guided = norm(positive);
        if guided > limit {
            let shrink = limit / guided;
            positive.data_mut().iter_mut().for_each(|p| *p *= shrink);
        }
    }
}
