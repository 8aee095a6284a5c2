//! Stable Diffusion 1, 2 and XL, their inpainting variants and XL's refiner: CLIP text encoders, a U-Net, a VAE.
//!
//! Each text encoder is a stage of the texts; `denoise` runs the U-Net, once a call of the schedule.
//!
//! # Source
//! diffusers `StableDiffusionPipeline`, `StableDiffusionXLPipeline`, their `Img2Img` and `Inpaint` siblings.

mod cost;
mod round;
mod texts;

use std::sync::{Arc, OnceLock};

use lowtide_core::{PhaseLayout, Vars};
use lowtide_models::clip_text::{self, Wanted};
use lowtide_models::samplers::{Begin, Choice, Scheduler};
use lowtide_models::unet_2d_condition as unet;
use lowtide_weights::{Checkpoint, ModelFolder};
use serde_json::Value;

use crate::clip_prompt::Inversion;
use crate::course::Course;
use crate::pipeline::pictures::Vae;
use crate::pipeline::{Opener, Part, Phase, Pipeline, Round, Running, Shape};
use crate::processor::Files;
use crate::request::{ImageRequest, Stretch};
use crate::session::sketch::Sketcher;
use crate::session::work::{Text, TextKey};
use crate::{Error, Result};

/// `_class_name`s of their model_index.json.
const CLASSES: [&str; 7] = [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "LatentConsistencyModelPipeline",
];

/// Components that can be text encoders, in order of use.
const ENCODERS: [&str; 2] = ["text_encoder", "text_encoder_2"];

/// Whether a model is one of these.
pub(crate) fn runs(class: &str) -> bool {
    CLASSES.contains(&class)
}

/// One of its text encoders.
struct Encoder {
    component: &'static str,
    tokenizer: &'static str,
    config: clip_text::Config,
    part: Part,
    /// For the rows of its tables.
    checkpoint: Arc<Checkpoint>,
}

/// What the texts become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The states of one encoder after its final norm.
    Plain,
    /// States of one or two encoders one layer before their end, and a pooled state.
    Pooled,
}

/// An opened model: configurations and layouts, no weights.
pub(crate) struct StableDiffusion {
    folder: Arc<ModelFolder>,
    kind: Kind,
    encoders: Vec<Encoder>,
    unet_config: unet::Config,
    unet: Part,
    unet_checkpoint: Arc<Checkpoint>,
    vae: Vae,
    scheduler: Scheduler,
    sketcher: Sketcher,
    /// An absent negative prompt is zeros.
    zeros_for_empty: bool,
    /// The network is told a score instead of the size that is aimed at.
    scored: bool,
    files: Arc<dyn Files>,
    /// Embeddings that prompts can call by name, once they were needed.
    inversions: OnceLock<Vec<Inversion>>,
}

impl StableDiffusion {
    /// Reads configurations and headers, and checks that they agree.
    ///
    /// # Errors
    /// When a part is missing, of an unsupported kind, or not what its configuration says.
    pub(crate) fn open(
        folder: &Arc<ModelFolder>,
        files: Arc<dyn Files>,
    ) -> Result<StableDiffusion> {
        folder.check_complete()?;
        let opener = Opener { folder };
        let unet_config =
            unet::Config::from_json(opener.config("unet")?).map_err(opener.wrap("unet"))?;
        let kind = match unet_config.added {
            Some(_) => Kind::Pooled,
            None => Kind::Plain,
        };
        let there = |component: &&&'static str| {
            let found = folder.component(component);
            found.is_some_and(|found| !found.config.is_null())
        };
        let present: Vec<&'static str> = ENCODERS.iter().filter(there).copied().collect();
        if present.is_empty() {
            // Says what is missing.
            opener.config(ENCODERS[0])?;
        }
        let last = present.len() - 1;
        let encoders = present
            .iter()
            .enumerate()
            .map(|(k, component)| Encoder::open(&opener, component, wanted(kind, 0, k == last)))
            .collect::<Result<Vec<_>>>()?;
        let vae = Vae::open(&opener)?;
        let checkpoint = opener.checkpoint("unet")?;
        let unet = opener.part("unet", &checkpoint, |headers| {
            unet::layout(headers, &unet_config)
        })?;
        let scheduler =
            Scheduler::from_json(opener.config("scheduler")?).map_err(opener.wrap("scheduler"))?;
        let flag = |name: &str, otherwise: bool| {
            let setting = folder.setting(name).and_then(Value::as_bool);
            setting.unwrap_or(otherwise)
        };
        // The refiner has the second encoder alone.
        let refines = present == ENCODERS[1..];
        let model = StableDiffusion {
            sketcher: Sketcher::of(folder, vae.config.latent_channels)?,
            zeros_for_empty: kind == Kind::Pooled && flag("force_zeros_for_empty_prompt", true),
            scored: kind == Kind::Pooled && flag("requires_aesthetics_score", refines),
            folder: folder.clone(),
            files,
            inversions: OnceLock::new(),
            kind,
            encoders,
            unet_config,
            unet,
            unet_checkpoint: checkpoint,
            vae,
            scheduler,
        };
        model.check_agreement().map_err(opener.wrap("unet"))?;
        Ok(model)
    }

    /// The components must have been made for each other.
    fn check_agreement(&self) -> lowtide_models::Result<()> {
        let config = &self.unet_config;
        let latent = self.vae.config.latent_channels;
        let complain = |key: &str, ours: usize, whose: &str, theirs: usize| {
            let problem = format!("is {ours}, but {whose} {theirs}");
            Err(lowtide_models::Error::config("unet", key, problem))
        };
        let beside = 2 * latent + 1;
        if config.in_channels != latent && config.in_channels != beside {
            return complain(
                "in_channels",
                config.in_channels,
                "the vae's latents have",
                latent,
            );
        }
        if config.out_channels != latent {
            return complain(
                "out_channels",
                config.out_channels,
                "the vae's latents have",
                latent,
            );
        }
        let states = self.encoders.iter().map(|encoder| encoder.config.hidden);
        let states = match self.kind {
            Kind::Plain => states.take(1).sum::<usize>(),
            Kind::Pooled => states.sum::<usize>(),
        };
        if config.cross_attention_dim != states {
            let whose = "the text encoders' states have";
            return complain(
                "cross_attention_dim",
                config.cross_attention_dim,
                whose,
                states,
            );
        }
        let pooled = self
            .encoders
            .last()
            .map_or(0, |encoder| encoder.config.pooled());
        match config.pooled_dim(time_ids(self.scored, (0, 0), false).len()) {
            Some(wanted) if self.kind == Kind::Pooled && wanted != pooled => {
                let whose = "the pooled text and the sizes leave room for";
                complain(
                    "projection_class_embeddings_input_dim",
                    pooled,
                    whose,
                    wanted,
                )
            }
            None if self.kind == Kind::Pooled => {
                let whose = "the sizes alone need more than";
                complain("projection_class_embeddings_input_dim", pooled, whose, 0)
            }
            _ => Ok(()),
        }
    }

    fn error(&self, component: &'static str) -> impl Fn(lowtide_models::Error) -> Error + use<> {
        <dyn Pipeline>::wrap(self, component)
    }

    fn encoder(&self, phase: Phase) -> Option<&Encoder> {
        match phase {
            Phase::Text(stage) => self.encoders.get(stage),
            _ => None,
        }
    }

    /// Whether its network is told the guidance instead of being asked twice.
    fn distilled(&self) -> bool {
        self.unet_config.time_cond_proj_dim.is_some()
    }
}

/// What the refiner is told of the beauty of what it is to make, and of what it is not to.
const SCORE: f32 = 6.0;
const SCORE_NEGATIVE: f32 = 2.5;

/// The numbers an XL network is told of a picture of (width, height) pixels.
fn time_ids(scored: bool, (width, height): (usize, usize), negative: bool) -> Vec<f32> {
    let (width, height) = (width as f32, height as f32);
    match (scored, negative) {
        (true, false) => vec![height, width, 0.0, 0.0, SCORE],
        (true, true) => vec![height, width, 0.0, 0.0, SCORE_NEGATIVE],
        (false, _) => vec![height, width, 0.0, 0.0, height, width],
    }
}

/// What is wanted of an encoder.
fn wanted(kind: Kind, clip_skip: usize, last: bool) -> Wanted {
    match kind {
        Kind::Plain => Wanted::normed(clip_skip),
        Kind::Pooled => Wanted::penultimate(clip_skip, last),
    }
}

impl Encoder {
    fn open(opener: &Opener<'_>, component: &'static str, wanted: Wanted) -> Result<Encoder> {
        let class = opener.folder.component(component);
        let class = class.map_or("", |found| &found.class[..]);
        let kind = clip_text::Class::of(class).ok_or_else(|| Error::Incomplete {
            model: opener.folder.name.clone(),
            what: format!("{component} is a {class}; supported are CLIPTextModel and CLIPTextModelWithProjection"),
        })?;
        let config = opener.config(component)?;
        let config = clip_text::Config::from_json(component, kind, config);
        let config = config.map_err(opener.wrap(component))?;
        let checkpoint = opener.checkpoint(component)?;
        let part = opener.part(component, &checkpoint, |headers| {
            clip_text::layout(headers, component, &config, &wanted)
        })?;
        Ok(Encoder {
            tokenizer: match component {
                "text_encoder" => "tokenizer",
                _ => "tokenizer_2",
            },
            component,
            config,
            part,
            checkpoint,
        })
    }
}

impl Pipeline for StableDiffusion {
    fn name(&self) -> &str {
        &self.folder.name
    }

    fn parts(&self) -> Vec<&Part> {
        let mut parts = vec![&self.unet];
        parts.extend(self.vae.parts());
        parts.extend(self.encoders.iter().map(|encoder| &encoder.part));
        parts
    }

    fn part(&self, phase: Phase) -> &Part {
        self.encoder(phase)
            .map_or(&self.unet, |encoder| &encoder.part)
    }

    fn component(&self, phase: Phase) -> &'static str {
        self.encoder(phase)
            .map_or("unet", |encoder| encoder.component)
    }

    fn checkpoints(&self) -> Vec<(&'static str, &Checkpoint)> {
        let encoders = self.encoders.iter();
        let encoders = encoders.map(|encoder| (encoder.component, &*encoder.checkpoint));
        std::iter::once(("unet", &*self.unet_checkpoint))
            .chain(encoders)
            .collect()
    }

    fn vae(&self) -> &Vae {
        &self.vae
    }

    fn sketcher(&self) -> &Sketcher {
        &self.sketcher
    }

    fn multiple(&self) -> usize {
        self.vae.config.scale()
    }

    fn inpaints(&self) -> bool {
        self.unet_config.in_channels != self.vae.config.latent_channels
    }

    fn text_stages(&self) -> &'static [&'static str] {
        const STAGES: [&str; 2] = ["encode", "encode_2"];
        &STAGES[..self.encoders.len()]
    }

    fn guided(&self, request: &ImageRequest) -> bool {
        request.guidance > 1.0 && !self.distilled()
    }

    fn check(&self, request: &ImageRequest) -> Result<()> {
        let masked = request
            .source
            .as_ref()
            .is_some_and(|source| source.mask.is_some());
        if self.inpaints() && !masked {
            let problem = format!(
                "is missing: {} redraws parts of a picture; give a picture and a mask",
                self.folder.name
            );
            return Err(Error::request("mask", problem));
        }
        if self.inpaints() && request.hires.is_some() {
            let problem = format!(
                "cannot be used with {}, which needs a mask",
                self.folder.name
            );
            return Err(Error::request("hires-scale", problem));
        }
        for (what, asked) in [
            ("cfg-normalization", request.cfg_normalization.is_some()),
            ("cfg-truncation", request.cfg_truncation < 1.0),
        ] {
            if asked {
                let problem = format!("is nothing that {} has; leave it out", self.folder.name);
                return Err(Error::request(what, problem));
            }
        }
        let layers = self
            .encoders
            .iter()
            .map(|encoder| encoder.config.layers)
            .min();
        let most = layers
            .unwrap_or(1)
            .saturating_sub(1 + usize::from(self.kind == Kind::Pooled));
        if request.clip_skip > most {
            let problem = format!("is {}; this model has {most} to skip", request.clip_skip);
            return Err(Error::request("clip-skip", problem));
        }
        // Says what is wrong with sampler and schedule before anything is planned.
        self.course(request, 0, (64, 64)).map(drop)
    }

    fn texts(&self, requests: &[&ImageRequest]) -> Result<Vec<Vec<TextKey>>> {
        self.tokenize(requests)
    }

    fn texts_bound(&self, request: &ImageRequest) -> Result<Vec<usize>> {
        self.tokens_bound(request)
    }

    fn knows(&self, text: &TextKey) -> bool {
        self.is_text(text)
    }

    fn text_shapes(&self, text: &TextKey, stages: usize) -> Vec<Vec<usize>> {
        self.made_shapes(text, stages)
    }

    fn check_shape(&self, _shape: &Shape) -> Result<()> {
        Ok(())
    }

    fn course(
        &self,
        request: &ImageRequest,
        pass: usize,
        _latent: (usize, usize),
    ) -> Result<Course> {
        let wrap = self.error("scheduler");
        let method = match request.sampler {
            Some(method) => method,
            None => self.scheduler.method().map_err(&wrap)?,
        };
        let schedule = match request.schedule {
            Some(schedule) => schedule,
            None => self.scheduler.schedule(method).map_err(&wrap)?,
        };
        let (steps, strength) = request.way(pass);
        if strength.is_some_and(|strength| (steps as f64 * strength) as usize == 0) {
            let what = ["strength", "hires-strength"][pass];
            let problem = format!("leaves none of {steps} steps to be done; use more of either");
            return Err(Error::request(what, problem));
        }
        let begin = match (request.part, strength) {
            (Some(Stretch::Before(end)), _) => Begin::Part {
                start: None,
                end: Some(end),
            },
            (Some(Stretch::After(start)), _) => Begin::Part {
                start: Some(start),
                end: None,
            },
            (None, Some(strength)) => Begin::Strength(strength),
            (None, None) => Begin::Whole,
        };
        let choice = Choice {
            begin,
            eta: request.eta,
            ..Choice::new(method, schedule, steps)
        };
        let asked = request.sampler.is_some() || request.schedule.is_some();
        let track = self.scheduler.track(&choice).map_err(|error| match error {
            lowtide_models::Error::Config { problem, .. } if asked => {
                let words = format!("{} {}", method.name(), schedule.name());
                Error::request("sampler", format!("'{words}': {problem}"))
            }
            other => wrap(other),
        })?;
        Ok(Course::Track(Box::new(track)))
    }

    fn layout(&self, phase: Phase, shape: &Shape, scratch: f64) -> PhaseLayout {
        match phase {
            Phase::Text(stage) => self.encode_layout(stage, shape, scratch),
            Phase::Picture(pass) | Phase::Denoise(pass) | Phase::Decode(pass) => {
                self.denoise_layout((phase.name(self), pass), shape, scratch)
            }
        }
    }

    fn vars(&self, _shape: &Shape, _vars: &mut Vars) {}

    fn encode(&self, stage: usize, running: Running<'_>, texts: &mut [&mut Text]) -> Result<()> {
        self.run_encoder(stage, running, texts)
    }

    fn round(
        &self,
        _shape: &Shape,
        _pass: usize,
        _texts: &[(&TextKey, Option<&TextKey>)],
        request: &ImageRequest,
    ) -> Result<Box<dyn Round>> {
        Ok(Box::new(self.prediction(request)))
    }
}
