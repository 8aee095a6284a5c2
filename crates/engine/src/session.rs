//! A job in progress: a step machine that can be looked at, and dropped, between any two steps.
//!
//! `encode` and `refine` are one step each, `denoise` one a step of the schedule, `decode` one a picture. A step leaves
//! the state as it was when it fails, so that it can be tried again on a lower rung.

mod denoise;
mod saved;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lowtide_core::{Bytes, DeviceProfile, PhasePlan};
use lowtide_kernels::memory;
use lowtide_models::autoencoder_kl::{self, DecodeMode};
use lowtide_models::z_image::{self, Pass};
use lowtide_models::{Compute, Tensor, qwen3};

use crate::job::{Job, replan};
use crate::pipeline::z_image::{Part, ZImage};
use crate::request::{Image, Outcome, Progress, Report, Step};
use crate::session::denoise::Denoise;
pub(crate) use crate::session::saved::Saved;
use crate::stream::{Failure, Stream, Traffic};
use crate::{Error, Result};

const ENCODE: usize = 0;
const REFINE: usize = 1;
const DENOISE: usize = 2;
const DECODE: usize = 3;

/// The phases in order.
const PHASES: [&str; 4] = ["encode", "refine", "denoise", "decode"];

/// Where a job stands: what the next step needs.
enum Stage {
    Encode,
    Refine {
        states: Vec<Tensor>,
    },
    Denoise(Box<Denoise>),
    Decode {
        latents: Vec<Tensor>,
        images: Vec<Image>,
        values: Vec<f32>,
    },
    Over,
}

/// A job in progress.
pub struct Session {
    context: Context,
    stage: Stage,
    stream: Option<Stream>,
}

/// Everything about a job that does not change from step to step, and the report that grows.
struct Context {
    model: Arc<ZImage>,
    compute: Compute,
    profile: DeviceProfile,
    job: Job,
    seconds: BTreeMap<&'static str, f64>,
    waited: BTreeMap<&'static str, f64>,
    peak: BTreeMap<&'static str, Bytes>,
    bytes_read: u64,
    rungs_taken: usize,
    /// Whether blocks that stayed outlive their phase.
    keep: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.park();
        self.stage = Stage::Over;
        memory::set_cache_limit(None);
        memory::trim();
        memory::set_budget(None);
    }
}

impl Session {
    pub(crate) fn new(
        model: Arc<ZImage>,
        compute: Compute,
        profile: DeviceProfile,
        job: Job,
        keep: bool,
    ) -> Session {
        memory::set_budget(Some(job.plan.budget.total.0));
        let context = Context {
            model,
            compute,
            profile,
            job,
            seconds: BTreeMap::new(),
            waited: BTreeMap::new(),
            peak: BTreeMap::new(),
            bytes_read: 0,
            rungs_taken: 0,
            keep,
        };
        let session = Session {
            context,
            stage: Stage::Encode,
            stream: None,
        };
        session.context.enter(ENCODE);
        session
    }

    /// Gives the weights back and keeps what the job has reached: a few tensors. The next [`Session::step`] goes on from
    /// there, to the same bytes.
    pub fn park(&mut self) {
        let phase = self.phase();
        if phase < PHASES.len() {
            self.context.close(&mut self.stream, phase);
        }
        memory::trim();
    }

    /// The plan in force. It changes only when memory was refused unexpectedly and a rung was taken.
    pub fn plan(&self) -> &lowtide_core::Plan {
        &self.context.job.plan
    }

    /// Does one step.
    ///
    /// # Errors
    /// After an error the session is over.
    pub fn step(&mut self) -> Result<Step> {
        let start = Instant::now();
        let phase = self.phase();
        let (done, total) = loop {
            match self.advance() {
                Ok(counted) => break counted,
                Err(error) => match out_of_memory(&error) {
                    Some(refused) if phase < PHASES.len() => self.take_rung(phase, refused)?,
                    _ => {
                        self.stage = Stage::Over;
                        return Err(error);
                    }
                },
            }
        };
        let elapsed = start.elapsed();
        *self.context.seconds.entry(PHASES[phase]).or_default() += elapsed.as_secs_f64();
        self.context.note_peak(phase);
        if let Stage::Decode {
            latents, images, ..
        } = &self.stage
            && images.len() == latents.len()
        {
            return Ok(Step::Finished(Box::new(self.finish())));
        }
        let memory = Bytes(memory::live());
        Ok(Step::Progress(Progress {
            phase: PHASES[phase],
            done,
            total,
            elapsed,
            memory,
        }))
    }

    fn phase(&self) -> usize {
        match &self.stage {
            Stage::Encode => ENCODE,
            Stage::Refine { .. } => REFINE,
            Stage::Denoise(_) => DENOISE,
            Stage::Decode { .. } => DECODE,
            Stage::Over => PHASES.len(),
        }
    }

    /// One step of the present stage; moves to the next stage when it was the last. Returns (done, total).
    fn advance(&mut self) -> Result<(usize, usize)> {
        let Session {
            context,
            stage,
            stream,
        } = self;
        match stage {
            Stage::Encode => {
                let states = context.encode(stream)?;
                context.leave(stream, REFINE);
                *stage = Stage::Refine { states };
                Ok((1, 1))
            }
            Stage::Refine { states } => {
                let captions = context.refine(stream, states)?;
                context.leave(stream, DENOISE);
                *stage = Stage::Denoise(Box::new(Denoise::new(
                    &context.model,
                    &context.job,
                    captions,
                )?));
                Ok((1, 1))
            }
            Stage::Denoise(denoise) => {
                context.denoise(stream, denoise)?;
                let counted = denoise.counted();
                if counted.0 == counted.1 {
                    let latents = denoise.take_latents();
                    context.leave(stream, DECODE);
                    *stage = context.decoding(latents);
                }
                Ok(counted)
            }
            Stage::Decode {
                latents,
                images,
                values,
            } => {
                let left = latents.len() - images.len();
                let picture = context.decode(stream, &latents[images.len()], left as u64)?;
                images.push(context.image(&picture, images.len()));
                if context.job.shape.keep_values {
                    values.extend(picture.data().iter().map(|&x| unit(x)));
                }
                Ok((images.len(), latents.len()))
            }
            Stage::Over => Err(Error::request("session", "is over")),
        }
    }

    /// After a refusal that the plan did not foresee: the next rung below the one that failed.
    fn take_rung(&mut self, phase: usize, refused: memory::OutOfMemory) -> Result<()> {
        self.stream = None;
        memory::trim();
        let context = &mut self.context;
        let failed = &context.job.plan.phases[phase];
        let less = Bytes(failed.peak.0.saturating_sub(1));
        match replan(&context.model, &context.job, &context.profile, phase, less) {
            Ok(rung) => {
                context.rungs_taken += 1;
                context.job.plan.phases[phase] = rung;
                if let Stage::Denoise(denoise) = &mut self.stage {
                    denoise.restart_round();
                }
                context.enter(phase);
                Ok(())
            }
            Err(Error::DoesNotFit(_)) => {
                self.stage = Stage::Over;
                Err(Error::OutOfMemory {
                    phase: PHASES[phase],
                    source: refused,
                })
            }
            Err(other) => Err(other),
        }
    }

    fn finish(&mut self) -> Outcome {
        let context = &mut self.context;
        context.leave(&mut self.stream, PHASES.len());
        let Stage::Decode {
            latents,
            images,
            values,
        } = std::mem::replace(&mut self.stage, Stage::Over)
        else {
            unreachable!("only a decoded job finishes")
        };
        let (h, w) = context.job.shape.latent;
        let latents_shape = [
            latents.len(),
            context.model.transformer_config.channels,
            h,
            w,
        ];
        let kept = if context.job.shape.keep_values {
            &latents[..]
        } else {
            &[]
        };
        let report = Report {
            plan: context.job.plan.clone(),
            seconds: context.seconds.clone(),
            waited: context.waited.clone(),
            peak: context.peak.clone(),
            bytes_read: context.bytes_read,
            rungs_taken: context.rungs_taken,
        };
        let latents = kept
            .iter()
            .flat_map(|latent| latent.data())
            .copied()
            .collect();
        Outcome {
            images,
            latents_shape,
            latents,
            values,
            report,
        }
    }
}

impl Context {
    /// Begins a phase: freed buffers may be kept up to its predicted peak, and its own peak is measured.
    fn enter(&self, phase: usize) {
        memory::trim();
        if let Some(plan) = self.job.plan.phases.get(phase) {
            let others = self.make_room(phase, plan);
            memory::set_cache_limit(Some(plan.peak.0.saturating_add(others.0)));
        }
        memory::reset_peak();
    }

    /// Forgets blocks that earlier phases kept until this phase fits beside the rest; returns how many bytes of other
    /// phases are still kept. The phase just over is needed again last, so it goes first.
    fn make_room(&self, phase: usize, plan: &PhasePlan) -> Bytes {
        let budget = self.job.plan.budget;
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

    /// Ends the present phase, whatever stream it had, and begins the next.
    fn leave(&mut self, stream: &mut Option<Stream>, next: usize) {
        self.note_peak(next - 1);
        self.close(stream, next - 1);
        self.enter(next);
    }

    /// Ends a stream, and keeps or forgets what it held.
    fn close(&mut self, stream: &mut Option<Stream>, phase: usize) {
        let Some(stream) = stream.take() else { return };
        let Traffic { bytes_read, waited } = stream.traffic();
        self.bytes_read += bytes_read;
        *self.waited.entry(PHASES[phase]).or_default() += waited.as_secs_f64();
        if self.keep {
            stream.shelve();
        } else {
            drop(stream);
            self.part(phase).0.blocks.forget_unless(|_| false);
        }
    }

    fn note_peak(&mut self, phase: usize) {
        if let Some(name) = PHASES.get(phase) {
            let peak = self.peak.entry(name).or_default();
            *peak = (*peak).max(Bytes(memory::peak()));
        }
    }

    fn part(&self, phase: usize) -> (&Part, &'static str) {
        match phase {
            ENCODE => (&self.model.text_encoder, "text_encoder"),
            REFINE => (&self.model.captions, "transformer"),
            DENOISE => (&self.model.transformer, "transformer"),
            _ => (&self.model.vae, "vae"),
        }
    }

    /// Starts the phase's stream unless it runs already.
    fn open(&self, stream: &mut Option<Stream>, phase: usize, visits: u64) -> Result<()> {
        if stream.is_some() {
            return Ok(());
        }
        let (part, component) = self.part(phase);
        let started = Stream::start(part.blocks.clone(), &self.job.plan.phases[phase], visits)
            .map_err(|failure| match failure {
                Failure::Memory(refused) => lowtide_models::Error::OutOfMemory(refused),
                other => lowtide_models::Error::Source(Box::new(other)),
            });
        *stream = Some(started.map_err(self.model.wrap(component))?);
        Ok(())
    }

    fn encode(&self, stream: &mut Option<Stream>) -> Result<Vec<Tensor>> {
        self.open(stream, ENCODE, 1)?;
        let source = stream.as_mut().expect("just opened");
        let mut states = self
            .job
            .prompts
            .iter()
            .map(|ids| self.model.embed(ids))
            .collect::<Result<Vec<_>>>()?;
        let about = (&self.model.text_config, self.model.table());
        qwen3::encode(source, self.compute, about, &mut states)
            .map_err(self.model.wrap("text_encoder"))?;
        Ok(states)
    }

    fn refine(&self, stream: &mut Option<Stream>, states: &[Tensor]) -> Result<Vec<Tensor>> {
        self.open(stream, REFINE, 1)?;
        let source = stream.as_mut().expect("just opened");
        let chunk_rows = self.rung(REFINE, "chunk_rows");
        let pass = Pass {
            compute: self.compute,
            config: &self.model.transformer_config,
            chunk_rows,
        };
        z_image::refine_captions(source, pass, states).map_err(self.model.wrap("transformer"))
    }

    fn denoise(&self, stream: &mut Option<Stream>, denoise: &mut Denoise) -> Result<()> {
        let visits = denoise.visits_left(self.rung(DENOISE, "batch"));
        self.open(stream, DENOISE, visits)?;
        let source = stream.as_mut().expect("just opened");
        let plan = &self.job.plan.phases[DENOISE];
        denoise.step(&self.model, self.compute, &self.job, (plan, source))
    }

    /// The stage after denoising. Its lists are exactly as large as planned: one that grows would hold twice that for a
    /// moment.
    fn decoding(&self, latents: Vec<Tensor>) -> Stage {
        let shape = &self.job.shape;
        let values = if shape.keep_values {
            3 * shape.width * shape.height * shape.count
        } else {
            0
        };
        Stage::Decode {
            latents,
            images: Vec::with_capacity(shape.count),
            values: Vec::with_capacity(values),
        }
    }

    fn decode(&self, stream: &mut Option<Stream>, latent: &Tensor, visits: u64) -> Result<Tensor> {
        self.open(stream, DECODE, visits)?;
        let source = stream.as_mut().expect("just opened");
        let plan = &self.job.plan.phases[DECODE];
        let mode = DecodeMode::planned(&plan.mode, &plan.vars)
            .expect("the mode is one of those the VAE offered");
        autoencoder_kl::decode(source, self.compute, &self.model.vae_config, latent, &mode)
            .map_err(self.model.wrap("vae"))
    }

    fn rung(&self, phase: usize, var: &str) -> usize {
        rung(&self.job.plan.phases[phase], var)
    }

    fn image(&self, picture: &Tensor, index: usize) -> Image {
        let (width, height) = (self.job.shape.width, self.job.shape.height);
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
            seed: self.job.request.seed.wrapping_add(index as u64),
        }
    }
}

/// The value of a ladder that the plan chose.
fn rung(plan: &PhasePlan, var: &str) -> usize {
    plan.vars.get(var).map_or(1, |value| value.max(1) as usize)
}

/// From the network's -1..1 to 0..1.
fn unit(x: f32) -> f32 {
    (x / 2.0 + 0.5).clamp(0.0, 1.0)
}

fn out_of_memory(error: &Error) -> Option<memory::OutOfMemory> {
    match error {
        Error::Model {
            source: lowtide_models::Error::OutOfMemory(refused),
            ..
        } => Some(*refused),
        _ => None,
    }
}
