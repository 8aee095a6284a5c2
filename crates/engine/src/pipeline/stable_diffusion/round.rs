//! The U-Net's part of a denoising step: what it sees, what it is told, and guidance.

use lowtide_models::samplers::{guide, rescale};
use lowtide_models::unet_2d_condition::{Added, Condition, Config, Pass, predict};
use lowtide_models::{Result as ModelResult, Tensor};

use super::{Kind, StableDiffusion, time_ids};
use crate::pipeline::{Call, Caption, Round, Running, Seen};
use crate::request::ImageRequest;
use crate::session::rung;
use crate::{Error, Result};

/// Pictures in progress.
struct Prediction {
    model: String,
    config: Config,
    kind: Kind,
    /// What a distilled network is told.
    told: Option<f32>,
    /// Whether it is told a score.
    scored: bool,
}

impl StableDiffusion {
    /// Prepares for pictures.
    pub(super) fn prediction(&self, request: &ImageRequest) -> impl Round + use<> {
        Prediction {
            model: self.folder.name.clone(),
            config: self.unet_config.clone(),
            kind: self.kind,
            told: self.distilled().then_some(request.guidance),
            scored: self.scored,
        }
    }
}

/// Prompts, then with guidance as many negative prompts: which picture, whether negative, the text.
fn sequences<'c>(seen: &'c [Seen<'c>]) -> impl Iterator<Item = (usize, bool, &'c Caption)> {
    let positive = seen.iter().enumerate();
    let negative = seen.iter().enumerate();
    let negative = negative.filter_map(|(k, one)| Some((k, true, one.negative?)));
    positive
        .map(|(k, one)| (k, false, one.positive))
        .chain(negative)
}

impl Prediction {
    fn error(&self, source: lowtide_models::Error) -> Error {
        Error::Model {
            model: self.model.clone(),
            component: "unet",
            source,
        }
    }

    /// Latents as the network takes them, with what stands beside them.
    fn input(&self, seen: &Seen<'_>, scale: f32) -> ModelResult<Tensor> {
        let (_, h, w) = seen.latent.dims3()?;
        let mut input = Tensor::new(&[self.config.in_channels, h, w])?;
        let len = seen.latent.data().len();
        let (latent, beside) = input.data_mut().split_at_mut(len);
        for (to, from) in latent.iter_mut().zip(seen.latent.data()) {
            *to = from * scale;
        }
        match seen.beside {
            Some(more) if more.data().len() == beside.len() => beside.copy_from_slice(more.data()),
            None if beside.is_empty() => {}
            other => {
                return Err(lowtide_models::Error::Shape {
                    what: "mask and picture beside the latents",
                    expected: vec![beside.len()],
                    found: vec![other.map_or(0, |more| more.data().len())],
                });
            }
        }
        Ok(input)
    }

    fn outputs(&self, running: Running<'_>, call: &Call<'_>) -> ModelResult<Vec<Tensor>> {
        let seen = &call.pictures;
        let inputs = seen.iter().map(|one| self.input(one, call.scale));
        let inputs = inputs.collect::<ModelResult<Vec<_>>>()?;
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        let ids = [false, true].map(|negative| time_ids(self.scored, call.size, negative));
        let told: Vec<(usize, bool, &Caption)> = sequences(seen).collect();
        let conditions: Vec<(usize, Condition<'_>)> = told
            .iter()
            .map(|&(k, negative, caption)| {
                let added = (self.kind == Kind::Pooled).then(|| Added {
                    pooled: caption[1].data(),
                    time_ids: &ids[usize::from(negative)],
                });
                let (text, guidance) = (&caption[0], self.told);
                (
                    k,
                    Condition {
                        text,
                        added,
                        guidance,
                    },
                )
            })
            .collect();
        let pass = Pass {
            compute: running.compute,
            config: &self.config,
            chunk_rows: rung(running.plan, "chunk_rows"),
        };
        predict(running.source, pass, &inputs, call.time, &conditions)
    }
}

impl Round for Prediction {
    fn predict(&self, running: Running<'_>, call: &Call<'_>) -> Result<Vec<Tensor>> {
        let mut outputs = self
            .outputs(running, call)
            .map_err(|source| self.error(source))?;
        let negative = outputs.split_off(call.pictures.len());
        let (scale, factor) = (call.request.guidance, call.request.guidance_rescale);
        for (output, negative) in outputs.iter_mut().zip(&negative) {
            let conditional = (factor > 0.0).then(|| output.duplicate());
            let conditional = conditional
                .transpose()
                .map_err(|source| self.error(source))?;
            guide(output.data_mut(), negative.data(), scale);
            if let Some(conditional) = conditional {
                rescale(output.data_mut(), conditional.data(), factor);
            }
        }
        Ok(outputs)
    }
}
