//! The denoising loop: rounds of pictures, steps of the schedule, guidance.

use std::collections::BTreeMap;

use lowtide_core::PhasePlan;
use lowtide_models::z_image::{Pass, Sequences, velocities};
use lowtide_models::{Compute, Tensor, flow_match, z_image};

use crate::Result;
use crate::pipeline::z_image::{Shape, ZImage};
use crate::request::TextToImage;
use crate::session::rung;
use crate::session::work::Work;
use crate::stream::Stream;

/// Pictures that go through their steps together. They have the same number of steps behind them.
pub(crate) struct Round {
    /// Their places.
    pictures: Vec<usize>,
    /// With all sequences, and with the prompts' alone for steps without guidance.
    sequences: Sequences,
    unguided: Option<Sequences>,
}

impl Round {
    /// The next round of at most `batch` pictures: those that have come farthest go first, so that what was interrupted
    /// is finished before anything is begun.
    pub(crate) fn begin(model: &ZImage, work: &Work, shape: &Shape, batch: usize) -> Result<Round> {
        let unfinished = work.unfinished();
        let farthest = unfinished
            .iter()
            .map(|&i| work.pictures[i].steps)
            .max()
            .unwrap_or(0);
        let pictures: Vec<usize> = unfinished
            .into_iter()
            .filter(|&i| work.pictures[i].steps == farthest)
            .take(batch)
            .collect();
        let texts = |negative: bool| texts(work, &pictures, negative);
        let make = |texts: Vec<usize>| {
            let rows = |text: usize| z_image::padded(work.texts[text].ids.len());
            let captions = texts.into_iter().map(rows).collect();
            Sequences::new(
                &model.transformer_config,
                shape.latent,
                pictures.len(),
                captions,
            )
            .map_err(model.wrap("transformer"))
        };
        let settings = work.settings();
        let truncated = settings.guided() && settings.cfg_truncation <= 1.0;
        Ok(Round {
            unguided: truncated.then(|| make(texts(false))).transpose()?,
            sequences: make(texts(settings.guided()))?,
            pictures,
        })
    }

    /// Whether all its pictures are wanted and lack steps.
    pub(crate) fn goes_on(&self, work: &Work) -> bool {
        self.pictures.iter().all(|&i| {
            let picture = &work.pictures[i];
            work.wants(picture) && picture.steps < work.steps
        })
    }

    /// One step of all its pictures.
    pub(crate) fn step(
        &self,
        model: &ZImage,
        compute: Compute,
        work: &mut Work,
        (plan, source): (&PhasePlan, &mut Stream),
    ) -> Result<()> {
        let first = &work.pictures[self.pictures[0]];
        let image_tokens = z_image::image_tokens(size_of_latent(first.latent.as_ref()));
        let sigmas = model.scheduler.sigmas(work.steps, image_tokens);
        let (from, to) = (sigmas[first.steps], sigmas[first.steps + 1]);
        let time = model.scheduler.time(from);
        let settings = work.settings();
        let guided = guided_at(settings, time);
        let (guidance, limit) = (settings.guidance, settings.cfg_normalization);
        let sequences = match (&self.unguided, guided) {
            (Some(unguided), false) => unguided,
            _ => &self.sequences,
        };
        let mut predicted = {
            let latents: Vec<&Tensor> = self.pictures.iter().map(|&i| latent(work, i)).collect();
            let captions: Vec<&Tensor> = texts(work, &self.pictures, guided)
                .into_iter()
                .map(|text| work.texts[text].caption.as_deref().expect("refined before"))
                .collect();
            let pass = Pass {
                compute,
                config: &model.transformer_config,
                chunk_rows: rung(plan, "chunk_rows"),
            };
            velocities(source, pass, sequences, (&latents, &captions), time)
                .map_err(model.wrap("transformer"))?
        };
        let negative = predicted.split_off(self.pictures.len());
        for (positive, negative) in predicted.iter_mut().zip(&negative) {
            guide(positive, negative, guidance, limit);
        }
        for (&i, velocity) in self.pictures.iter().zip(&mut predicted) {
            let picture = &mut work.pictures[i];
            let latent = picture.latent.as_mut().expect("drawn before");
            // The network predicts the way from noise to picture: at its end is what the picture will be like.
            let ahead = |k: usize| latent.data()[k] + from * velocity.data()[k];
            picture.sketch = model.sketcher.sketch(latent.shape(), ahead);
            // The schedule runs the other way.
            velocity.data_mut().iter_mut().for_each(|v| *v = -*v);
            flow_match::step(latent, velocity, from, to);
            picture.steps += 1;
        }
        Ok(())
    }
}

/// Visits of the blocks that are still to come when rounds begun from now on have `batch` pictures.
pub(crate) fn visits_left(work: &Work, round: Option<&Round>, batch: usize) -> u64 {
    let mut waiting: BTreeMap<usize, usize> = BTreeMap::new();
    for i in work.unfinished() {
        *waiting.entry(work.pictures[i].steps).or_default() += 1;
    }
    let mut visits = 0;
    if let Some(round) = round {
        let steps = work.pictures[round.pictures[0]].steps;
        if let Some(count) = waiting.get_mut(&steps) {
            *count -= round.pictures.len().min(*count);
        }
        visits += work.steps - steps;
    }
    for (steps, count) in waiting {
        visits += count.div_ceil(batch.max(1)) * (work.steps - steps);
    }
    visits as u64
}

/// The texts of a batch of sequences: every picture's prompt, then, if asked for, every picture's negative prompt.
fn texts(work: &Work, pictures: &[usize], negative: bool) -> Vec<usize> {
    let member = |&i: &usize| &work.members[work.pictures[i].member];
    let mut texts: Vec<usize> = pictures.iter().map(|i| member(i).positive).collect();
    if negative {
        texts.extend(pictures.iter().filter_map(|i| member(i).negative));
    }
    texts
}

fn latent(work: &Work, picture: usize) -> &Tensor {
    work.pictures[picture]
        .latent
        .as_ref()
        .expect("drawn before")
}

fn size_of_latent(latent: Option<&Tensor>) -> (usize, usize) {
    match latent.map(Tensor::shape) {
        Some(&[_, h, w]) => (h, w),
        _ => (0, 0),
    }
}

/// Whether the step at `time` is a guided one.
fn guided_at(settings: &TextToImage, time: f32) -> bool {
    settings.guided() && !(settings.cfg_truncation <= 1.0 && time > settings.cfg_truncation)
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
