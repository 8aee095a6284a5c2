//! The denoising loop: rounds of pictures, steps of the schedule, guidance.

use lowtide_core::PhasePlan;
use lowtide_models::z_image::{Pass, Sequences, velocities};
use lowtide_models::{Compute, Tensor, flow_match, noise};

use crate::Result;
use crate::job::Job;
use crate::pipeline::z_image::ZImage;
use crate::session::rung;
use crate::stream::Stream;

/// The state of the denoising phase. A round is one batch of pictures through all steps.
pub(crate) struct Denoise {
    /// All pictures' latents, done, in progress and still noise: (C, h, w) each.
    latents: Vec<Tensor>,
    /// The refined caption of the prompt and, with guidance, of the negative prompt.
    captions: Vec<Tensor>,
    sigmas: Vec<f32>,
    /// First picture of the round.
    first: usize,
    /// The step of the round that comes next.
    step: usize,
    round: Option<Round>,
}

/// What a round needs: made when it begins.
struct Round {
    pictures: usize,
    /// With all sequences, and with the prompt's alone for steps without guidance.
    sequences: Sequences,
    unguided: Option<Sequences>,
}

impl Denoise {
    /// Goes on with what [`Denoise::saved`] told: `first` pictures done, `step` steps of a round of `pictures`.
    pub(crate) fn resumed(
        model: &ZImage,
        job: &Job,
        (captions, latents): (Vec<Tensor>, Vec<Tensor>),
        (first, step, pictures): (usize, usize, usize),
    ) -> Result<Denoise> {
        let image_tokens = lowtide_models::z_image::image_tokens(job.shape.latent);
        let sigmas = model.scheduler.sigmas(job.shape.steps, image_tokens);
        let mut denoise = Denoise {
            latents,
            captions,
            sigmas,
            first,
            step,
            round: None,
        };
        if pictures > 0 {
            denoise.round = Some(denoise.begin_round(model, job, pictures)?);
        }
        Ok(denoise)
    }

    /// Captions, latents, and (pictures done, steps of the round, pictures of the round).
    pub(crate) fn saved(&self) -> (&[Tensor], &[Tensor], (usize, usize, usize)) {
        let pictures = self.round.as_ref().map_or(0, |round| round.pictures);
        (
            &self.captions,
            &self.latents,
            (self.first, self.step, pictures),
        )
    }

    pub(crate) fn new(model: &ZImage, job: &Job, captions: Vec<Tensor>) -> Result<Denoise> {
        let (h, w) = job.shape.latent;
        let shape = [model.transformer_config.channels, h, w];
        let len: usize = shape.iter().product();
        let picture = |index: usize| {
            let values = match &job.request.noise {
                Some(given) => given[index * len..(index + 1) * len].to_vec(),
                None => noise::randn(job.request.seed.wrapping_add(index as u64), len),
            };
            Tensor::from_slice(&shape, &values)
        };
        let latents = (0..job.shape.count)
            .map(picture)
            .collect::<lowtide_models::Result<_>>();
        let latents = latents.map_err(model.wrap("transformer"))?;
        Denoise::resumed(model, job, (captions, latents), (0, 0, 0))
    }

    /// Steps done and steps in all, over all rounds.
    pub(crate) fn counted(&self) -> (usize, usize) {
        let steps = self.sigmas.len() - 1;
        let in_round = self.round.as_ref().map_or(0, |round| round.pictures);
        (
            self.first * steps + self.step * in_round,
            self.latents.len() * steps,
        )
    }

    /// Visits of the blocks that are still to come when rounds have `batch` pictures from the next one on.
    pub(crate) fn visits_left(&self, batch: usize) -> u64 {
        let steps = (self.sigmas.len() - 1) as u64;
        let (this_round, after) = match &self.round {
            Some(round) => (
                steps - self.step as u64,
                self.latents.len() - self.first - round.pictures,
            ),
            None => (0, self.latents.len() - self.first),
        };
        this_round + steps * after.div_ceil(batch.max(1)) as u64
    }

    pub(crate) fn take_latents(&mut self) -> Vec<Tensor> {
        self.round = None;
        std::mem::take(&mut self.latents)
    }

    /// After a rung was taken the batch may be smaller, and pictures of an unfinished round go on from where they are
    /// only together; so the round's tables are made anew for the pictures it had.
    pub(crate) fn restart_round(&mut self) {
        if self.step == 0 {
            self.round = None;
        }
    }

    /// One step of the present round.
    pub(crate) fn step(
        &mut self,
        model: &ZImage,
        compute: Compute,
        job: &Job,
        (plan, source): (&PhasePlan, &mut Stream),
    ) -> Result<()> {
        if self.round.is_none() {
            self.round = Some(self.begin_round(model, job, rung(plan, "batch"))?);
        }
        let round = self.round.as_ref().expect("just begun");
        let pictures = &self.latents[self.first..self.first + round.pictures];
        let (from, to) = (self.sigmas[self.step], self.sigmas[self.step + 1]);
        let time = model.scheduler.time(from);
        let request = &job.request;
        let guided =
            request.guided() && !(request.cfg_truncation <= 1.0 && time > request.cfg_truncation);
        let sequences = match (&round.unguided, guided) {
            (Some(unguided), false) => unguided,
            _ => &round.sequences,
        };
        let texts = if guided {
            &self.captions[..]
        } else {
            &self.captions[..1]
        };
        let captions: Vec<&Tensor> = texts
            .iter()
            .flat_map(|text| std::iter::repeat_n(text, pictures.len()))
            .collect();
        let pass = Pass {
            compute,
            config: &model.transformer_config,
            chunk_rows: rung(plan, "chunk_rows"),
        };
        let mut predicted = velocities(source, pass, sequences, (pictures, &captions), time)
            .map_err(model.wrap("transformer"))?;

        let negative = predicted.split_off(round.pictures);
        for (positive, negative) in predicted.iter_mut().zip(&negative) {
            guide(
                positive,
                negative,
                request.guidance,
                request.cfg_normalization,
            );
        }
        let range = self.first..self.first + round.pictures;
        for (latent, velocity) in self.latents[range].iter_mut().zip(&mut predicted) {
            // The network predicts the way from noise to picture; the schedule runs the other way.
            velocity.data_mut().iter_mut().for_each(|v| *v = -*v);
            flow_match::step(latent, velocity, from, to);
        }
        self.step += 1;
        if self.step + 1 == self.sigmas.len() {
            self.first += round.pictures;
            self.step = 0;
            self.round = None;
        }
        Ok(())
    }

    fn begin_round(&self, model: &ZImage, job: &Job, batch: usize) -> Result<Round> {
        let pictures = batch.min(self.latents.len() - self.first);
        let lengths: Vec<usize> = self
            .captions
            .iter()
            .map(|caption| caption.shape()[0])
            .collect();
        let repeated = |lengths: &[usize]| -> Vec<usize> {
            lengths
                .iter()
                .flat_map(|&length| std::iter::repeat_n(length, pictures))
                .collect()
        };
        let make = |lengths: &[usize]| {
            Sequences::new(
                &model.transformer_config,
                job.shape.latent,
                pictures,
                repeated(lengths),
            )
            .map_err(model.wrap("transformer"))
        };
        let truncated = job.request.guided() && job.request.cfg_truncation <= 1.0;
        let unguided = if truncated {
            Some(make(&lengths[..1])?)
        } else {
            None
        };
        Ok(Round {
            pictures,
            sequences: make(&lengths)?,
            unguided,
        })
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
