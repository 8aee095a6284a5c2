//! Z-Image: prompt to latents to picture.
//!
//! Its texts have two stages: `encode` (the text encoder, once) and `refine` (the transformer's caption layers, once);
//! `denoise` runs the transformer's other layers, once a step.

mod cost;
mod round;

use std::sync::{Arc, OnceLock};

use lowtide_core::{PhaseLayout, TensorLayout, Vars};
use lowtide_models::flow_match::FlowMatchEuler;
use lowtide_models::samplers::{Method, Schedule};
use lowtide_models::{Tensor, autoencoder_kl, qwen3, z_image};
use lowtide_weights::{Checkpoint, ModelFolder};

use crate::course::Course;
use crate::pipeline::pictures::Vae;
use crate::pipeline::tables::rows;
use crate::pipeline::{Opener, Part, Phase, Pipeline, Round, Running, Shape};
use crate::prompt::{self, PromptEncoder};
use crate::request::ImageRequest;
use crate::session::rung;
use crate::session::sketch::Sketcher;
use crate::session::work::{Text, TextKey};
use crate::{Error, Result};

/// `_class_name` of its model_index.json.
pub(crate) const CLASS: &str = "ZImagePipeline";

/// Names of the stages of its texts.
const STAGES: [&str; 2] = ["encode", "refine"];

/// An opened Z-Image model: configurations and layouts, no weights.
pub(crate) struct ZImage {
    folder: Arc<ModelFolder>,
    text_config: qwen3::Config,
    transformer_config: z_image::Config,
    scheduler: FlowMatchEuler,
    text_encoder: Part,
    /// The transformer's caption layers.
    captions: Part,
    /// The transformer's other layers.
    transformer: Part,
    vae: Vae,
    sketcher: Sketcher,
    text_checkpoint: Arc<Checkpoint>,
    transformer_checkpoint: Arc<Checkpoint>,
    /// Bytes of the chat template around a prompt, once they were needed.
    template_bytes: OnceLock<usize>,
}

impl ZImage {
    /// Reads configurations and headers, and checks that they agree.
    ///
    /// # Errors
    /// When a part is missing, of an unsupported kind, or not what its configuration says.
    pub(crate) fn open(folder: &Arc<ModelFolder>) -> Result<ZImage> {
        let opener = Opener { folder };
        let text_config = qwen3::Config::from_json(opener.config("text_encoder")?)
            .map_err(opener.wrap("text_encoder"))?;
        let transformer_config = z_image::Config::from_json(opener.config("transformer")?)
            .map_err(opener.wrap("transformer"))?;
        let scheduler = FlowMatchEuler::from_json(opener.config("scheduler")?)
            .map_err(opener.wrap("scheduler"))?;
        let vae = Vae::open(&opener)?;
        check_agreement(&text_config, &transformer_config, &vae.config)
            .map_err(opener.wrap("transformer"))?;

        let text_checkpoint = opener.checkpoint("text_encoder")?;
        let transformer_checkpoint = opener.checkpoint("transformer")?;
        let captions = opener.part("transformer", &transformer_checkpoint, |headers| {
            z_image::caption_layout(headers, &transformer_config)
        })?;
        let transformer = opener.part("transformer", &transformer_checkpoint, |headers| {
            z_image::layout(headers, &transformer_config)
        })?;
        let text_encoder = opener.part("text_encoder", &text_checkpoint, |headers| {
            qwen3::layout(headers, &text_config)
        })?;
        Ok(ZImage {
            sketcher: Sketcher::of(folder, transformer_config.channels)?,
            folder: folder.clone(),
            text_encoder,
            captions,
            transformer,
            vae,
            text_config,
            transformer_config,
            scheduler,
            text_checkpoint,
            transformer_checkpoint,
            template_bytes: OnceLock::new(),
        })
    }

    fn error(&self, component: &'static str) -> impl Fn(lowtide_models::Error) -> Error {
        <dyn Pipeline>::wrap(self, component)
    }

    /// The embedding table of the text encoder.
    fn table(&self) -> &TensorLayout {
        &self.text_encoder.layout.tables[0]
    }

    /// The embedding rows of `ids`: (T, D).
    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let config = &self.text_config;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocabulary) {
            return Err(Error::Tokenizer {
                model: self.folder.name.clone(),
                problem: format!(
                    "gives token {id}, but the text encoder knows only {}",
                    config.vocabulary
                ),
            });
        }
        let wrap = self.error("text_encoder");
        let mut embedded = Tensor::new(&[ids.len(), config.hidden]).map_err(&wrap)?;
        let out = embedded.data_mut();
        rows(&self.text_checkpoint, self.table(), ids, out, wrap)?;
        Ok(embedded)
    }

    fn run_encoder(&self, running: Running<'_>, texts: &mut [&mut Text]) -> Result<()> {
        let mut states = texts
            .iter()
            .map(|text| self.embed(&text.key.ids[0]))
            .collect::<Result<Vec<_>>>()?;
        let about = (&self.text_config, self.table());
        qwen3::encode(running.source, running.compute, about, &mut states)
            .map_err(self.error("text_encoder"))?;
        for (text, state) in texts.iter_mut().zip(states) {
            text.made = vec![state];
        }
        Ok(())
    }

    fn run_refiner(&self, running: Running<'_>, texts: &mut [&mut Text]) -> Result<()> {
        let pass = z_image::Pass {
            compute: running.compute,
            config: &self.transformer_config,
            chunk_rows: rung(running.plan, "chunk_rows"),
        };
        let states: Vec<&Tensor> = texts.iter().map(|text| &text.made[0]).collect();
        let captions = z_image::refine_captions(running.source, pass, &states)
            .map_err(self.error("transformer"))?;
        for (text, caption) in texts.iter_mut().zip(captions) {
            text.made = vec![caption];
        }
        Ok(())
    }
}

impl Pipeline for ZImage {
    fn name(&self) -> &str {
        &self.folder.name
    }

    fn parts(&self) -> Vec<&Part> {
        let mut parts = vec![&self.transformer];
        parts.extend(self.vae.parts());
        parts.extend([&self.captions, &self.text_encoder]);
        parts
    }

    fn part(&self, phase: Phase) -> &Part {
        match phase {
            Phase::Text(0) => &self.text_encoder,
            Phase::Text(_) => &self.captions,
            _ => &self.transformer,
        }
    }

    fn component(&self, phase: Phase) -> &'static str {
        match phase {
            Phase::Text(0) => "text_encoder",
            _ => "transformer",
        }
    }

    fn checkpoints(&self) -> Vec<(&'static str, &Checkpoint)> {
        vec![
            ("transformer", &self.transformer_checkpoint),
            ("text_encoder", &self.text_checkpoint),
        ]
    }

    fn vae(&self) -> &Vae {
        &self.vae
    }

    fn sketcher(&self) -> &Sketcher {
        &self.sketcher
    }

    fn multiple(&self) -> usize {
        self.vae.config.scale() * 2
    }

    fn text_stages(&self) -> &'static [&'static str] {
        &STAGES
    }

    fn guided(&self, request: &ImageRequest) -> bool {
        request.guidance > 0.0
    }

    fn check(&self, request: &ImageRequest) -> Result<()> {
        // Of a flow there is one Euler, and programs call it so.
        let flow = |sampler: &Method| matches!(sampler, Method::FlowMatchEuler | Method::Euler);
        let unknown = [
            (
                "sampler",
                request.sampler.is_some_and(|sampler| !flow(&sampler)),
            ),
            (
                "schedule",
                request
                    .schedule
                    .is_some_and(|schedule| schedule != Schedule::Normal),
            ),
            ("clip-skip", request.clip_skip != 0),
            ("refiner", request.part.is_some()),
        ];
        match unknown.iter().find(|(_, asked)| *asked) {
            None => Ok(()),
            Some((what, _)) => {
                let problem = format!("is nothing that {} has; leave it out", self.folder.name);
                Err(Error::request(*what, problem))
            }
        }
    }

    fn texts(&self, requests: &[&ImageRequest]) -> Result<Vec<Vec<TextKey>>> {
        let encoder = PromptEncoder::open(&self.folder)?;
        let key = |text: &str| encoder.encode(text).map(TextKey::of_ids);
        let texts = |request: &&ImageRequest| {
            let mut texts = vec![key(&request.prompt)?];
            if self.guided(request) {
                texts.push(key(request.negative.as_deref().unwrap_or(""))?);
            }
            Ok(texts)
        };
        requests.iter().map(texts).collect()
    }

    fn texts_bound(&self, request: &ImageRequest) -> Result<Vec<usize>> {
        let template = match self.template_bytes.get() {
            Some(&bytes) => bytes,
            None => {
                let bytes = prompt::template_bytes(&self.folder)?;
                *self.template_bytes.get_or_init(|| bytes)
            }
        };
        let mut texts = vec![prompt::tokens_max(template, &request.prompt)];
        if self.guided(request) {
            let negative = request.negative.as_deref().unwrap_or("");
            texts.push(prompt::tokens_max(template, negative));
        }
        Ok(texts)
    }

    fn knows(&self, text: &TextKey) -> bool {
        text.ids.len() == 1 && text.tokens() > 0
    }

    fn text_shapes(&self, text: &TextKey, stages: usize) -> Vec<Vec<usize>> {
        match stages {
            0 => Vec::new(),
            1 => vec![vec![text.tokens(), self.transformer_config.caption_dim]],
            _ => vec![vec![
                z_image::padded(text.tokens()),
                self.transformer_config.dim,
            ]],
        }
    }

    fn check_shape(&self, shape: &Shape) -> Result<()> {
        for pass in &shape.passes {
            for &tokens in &shape.texts {
                let checked = self.transformer_config.check_positions(pass.latent, tokens);
                checked.map_err(self.error("transformer"))?;
            }
        }
        Ok(())
    }

    fn course(
        &self,
        request: &ImageRequest,
        pass: usize,
        latent: (usize, usize),
    ) -> Result<Course> {
        let scheduler = self.scheduler.clone();
        let (steps, strength) = request.way(pass);
        let sigmas = scheduler.sigmas(steps, z_image::image_tokens(latent));
        Ok(Course::flow(scheduler, sigmas, strength.unwrap_or(1.0)))
    }

    fn layout(&self, phase: Phase, shape: &Shape, scratch: f64) -> PhaseLayout {
        match phase {
            Phase::Text(0) => self.encode_layout(scratch),
            Phase::Text(_) => self.refine_layout(shape, scratch),
            Phase::Picture(pass) | Phase::Denoise(pass) | Phase::Decode(pass) => {
                self.denoise_layout((phase.name(self), pass), shape, scratch)
            }
        }
    }

    fn vars(&self, shape: &Shape, vars: &mut Vars) {
        self.sizes(shape, vars);
    }

    fn encode(&self, stage: usize, running: Running<'_>, texts: &mut [&mut Text]) -> Result<()> {
        match stage {
            0 => self.run_encoder(running, texts),
            _ => self.run_refiner(running, texts),
        }
    }

    fn round(
        &self,
        shape: &Shape,
        pass: usize,
        texts: &[(&TextKey, Option<&TextKey>)],
        request: &ImageRequest,
    ) -> Result<Box<dyn Round>> {
        round::begin(self, shape.passes[pass].latent, texts, request)
    }
}

/// The components must have been made for each other.
fn check_agreement(
    text: &qwen3::Config,
    transformer: &z_image::Config,
    vae: &autoencoder_kl::Config,
) -> lowtide_models::Result<()> {
    let pairs = [
        (
            "cap_feat_dim",
            transformer.caption_dim,
            "text_encoder",
            text.hidden,
        ),
        (
            "in_channels",
            transformer.channels,
            "vae",
            vae.latent_channels,
        ),
    ];
    for (key, ours, component, theirs) in pairs {
        if ours != theirs {
            let problem = format!("is {ours}, but the {component}'s is {theirs}");
            return Err(lowtide_models::Error::config("transformer", key, problem));
        }
    }
    Ok(())
}
