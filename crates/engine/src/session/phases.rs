//! What a session does in each phase, and how it goes from one to the next.

use std::sync::Arc;

use lowtide_core::{Bytes, Offload, PhasePlan};
use lowtide_kernels::memory;
use lowtide_models::autoencoder_kl::{self, DecodeMode};
use lowtide_models::z_image::{self, Pass};
use lowtide_models::{Tensor, qwen3};

use super::denoise::{Round, visits_left};
use super::work::Work;
use super::{Context, DECODE, DENOISE, ENCODE, PHASES, REFINE, Session, rung};
use crate::Result;
use crate::pipeline::z_image::Part;
use crate::request::Image;
use crate::stream::{Failure, Stream, Traffic};

impl Session {
    /// Begins a phase unless it was begun: freed buffers may be kept up to its predicted peak, and its own peak is
    /// measured.
    pub(super) fn enter(&mut self, phase: usize) {
        if self.entered == Some(phase) {
            return;
        }
        if self.entered.is_some() {
            self.leave();
        }
        self.entered = Some(phase);
        if phase == DECODE {
            self.work.forget_texts();
        }
        self.context.enter(phase);
    }

    /// Ends the phase that was begun, whatever stream it had.
    pub(super) fn leave(&mut self) {
        let Some(phase) = self.entered.take() else {
            return;
        };
        if self.context.seat.owns() {
            self.context.note_peak(phase);
        }
        self.context.close(&mut self.stream, phase);
    }

    /// One step of `phase`.
    pub(super) fn advance(&mut self, phase: usize) -> Result<()> {
        let Session {
            context,
            work,
            round,
            stream,
            ..
        } = self;
        match phase {
            ENCODE => context.encode(stream, work),
            REFINE => context.refine(stream, work),
            DENOISE => context.denoise(stream, work, round),
            _ => context.decode(stream, work),
        }
    }
}

impl Context {
    pub(super) fn enter(&self, phase: usize) {
        memory::trim();
        let plan = &self.planned.plan.phases[phase];
        let others = match self.planned.habits.offload {
            // The plan has room for all of them.
            Offload::Never => Bytes::ZERO,
            Offload::Auto | Offload::Components | Offload::Stream => self.make_room(phase, plan),
        };
        memory::set_cache_limit(Some(plan.peak.0.saturating_add(others.0)));
        memory::reset_peak();
    }

    /// Forgets blocks that earlier phases kept until this phase fits beside the rest; returns how many bytes of other
    /// phases are still kept. The phase just over is needed again last, so it goes first.
    fn make_room(&self, phase: usize, plan: &PhasePlan) -> Bytes {
        let budget = self.planned.plan.budget;
        let own = plan.peak.saturating_sub(budget.in_use);
        let allowed = budget
            .total
            .saturating_sub(budget.in_use)
            .saturating_sub(own);
        let others = || -> Bytes {
            (0..PHASES.len())
                .filter(|&p| p != phase)
                .map(|p| self.part(p).0.blocks.kept())
                .sum()
        };
        for before in 1..PHASES.len() {
            if others() <= allowed {
                break;
            }
            let oldest = (phase + PHASES.len() - before) % PHASES.len();
            self.part(oldest).0.blocks.forget_unless(|_| false);
        }
        others()
    }

    /// Ends a stream, and keeps or forgets what it held.
    fn close(&mut self, stream: &mut Option<Stream>, phase: usize) {
        let Some(stream) = stream.take() else { return };
        let Traffic { bytes_read, waited } = stream.traffic();
        self.bytes_read += bytes_read;
        *self.waited.entry(PHASES[phase]).or_default() += waited.as_secs_f64();
        if self.planned.habits.keeps() {
            stream.shelve();
        } else {
            drop(stream);
            self.part(phase).0.blocks.forget_unless(|_| false);
        }
    }

    pub(super) fn note_peak(&mut self, phase: usize) {
        let peak = self.peak.entry(PHASES[phase]).or_default();
        *peak = (*peak).max(Bytes(memory::peak()));
    }

    fn part(&self, phase: usize) -> (&Part, &'static str) {
        let model = &self.makings.model;
        match phase {
            ENCODE => (&model.text_encoder, "text_encoder"),
            REFINE => (&model.captions, "transformer"),
            DENOISE => (&model.transformer, "transformer"),
            _ => (&model.vae, "vae"),
        }
    }

    /// Starts the phase's stream unless it runs already.
    fn open<'s>(
        &self,
        stream: &'s mut Option<Stream>,
        phase: usize,
        visits: u64,
    ) -> Result<&'s mut Stream> {
        if stream.is_none() {
            let (part, component) = self.part(phase);
            let plan = &self.planned.plan.phases[phase];
            let started =
                Stream::start(part.blocks.clone(), plan, visits).map_err(|failure| match failure {
                    Failure::Memory(refused) => lowtide_models::Error::OutOfMemory(refused),
                    other => lowtide_models::Error::Source(Box::new(other)),
                });
            *stream = Some(started.map_err(self.makings.model.wrap(component))?);
        }
        Ok(stream.as_mut().expect("just opened"))
    }

    fn encode(&self, stream: &mut Option<Stream>, work: &mut Work) -> Result<()> {
        let model = &self.makings.model;
        let texts = work.unencoded();
        let source = self.open(stream, ENCODE, 1)?;
        let mut states = texts
            .iter()
            .map(|&text| model.embed(&work.texts[text].ids))
            .collect::<Result<Vec<_>>>()?;
        let about = (&model.text_config, model.table());
        qwen3::encode(source, self.makings.compute, about, &mut states)
            .map_err(model.wrap("text_encoder"))?;
        for (text, state) in texts.into_iter().zip(states) {
            work.texts[text].state = Some(state);
        }
        Ok(())
    }

    fn refine(&self, stream: &mut Option<Stream>, work: &mut Work) -> Result<()> {
        let model = &self.makings.model;
        let texts = work.uncaptioned();
        let source = self.open(stream, REFINE, 1)?;
        let pass = Pass {
            compute: self.makings.compute,
            config: &model.transformer_config,
            chunk_rows: self.rung(REFINE, "chunk_rows"),
        };
        let states: Vec<&Tensor> = texts
            .iter()
            .map(|&text| work.texts[text].state.as_ref().expect("encoded before"))
            .collect();
        let captions =
            z_image::refine_captions(source, pass, &states).map_err(model.wrap("transformer"))?;
        for (text, caption) in texts.into_iter().zip(captions) {
            let text = &mut work.texts[text];
            let caption = Arc::new(caption);
            self.makings.prompts.put(&text.ids, &caption);
            text.caption = Some(caption);
            text.state = None;
        }
        Ok(())
    }

    fn denoise(
        &self,
        stream: &mut Option<Stream>,
        work: &mut Work,
        round: &mut Option<Round>,
    ) -> Result<()> {
        let (model, shape) = (&self.makings.model, &self.planned.shape);
        work.draw(model, shape.latent)?;
        let batch = self.rung(DENOISE, "batch");
        let visits = visits_left(work, round.as_ref(), batch);
        let source = self.open(stream, DENOISE, visits)?;
        let plan = &self.planned.plan.phases[DENOISE];
        let going = match round.take() {
            Some(going) => going,
            None => Round::begin(model, work, shape, batch)?,
        };
        going.step(model, self.makings.compute, work, (plan, source))?;
        *round = Some(going).filter(|round| round.goes_on(work));
        Ok(())
    }

    fn decode(&self, stream: &mut Option<Stream>, work: &mut Work) -> Result<()> {
        let model = &self.makings.model;
        let (done, total) = work.decoded();
        let at = work.undecoded().expect("there is a picture to decode");
        let source = self.open(stream, DECODE, (total - done) as u64)?;
        let plan = &self.planned.plan.phases[DECODE];
        let mode = DecodeMode::planned(&plan.mode, &plan.vars)
            .expect("the mode is one of those the VAE offered");
        let picture = &mut work.pictures[at];
        let latent = picture.latent.as_ref().expect("denoised before");
        let decoded = autoencoder_kl::decode(
            source,
            self.makings.compute,
            &model.vae_config,
            latent,
            &mode,
        )
        .map_err(model.wrap("vae"))?;
        picture.image = Some(self.image(&decoded, picture.seed));
        picture.sketch = Vec::new();
        if self.planned.shape.keep_values {
            picture.values = decoded.data().iter().map(|&x| unit(x)).collect();
        }
        Ok(())
    }

    fn rung(&self, phase: usize, var: &str) -> usize {
        rung(&self.planned.plan.phases[phase], var)
    }

    fn image(&self, picture: &Tensor, seed: u64) -> Image {
        let (width, height) = (self.planned.shape.width, self.planned.shape.height);
        let plane = width * height;
        let data = picture.data();
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
}

/// From the network's -1..1 to 0..1.
fn unit(x: f32) -> f32 {
    (x / 2.0 + 0.5).clamp(0.0, 1.0)
}
