//! Pipelines: which components a model has, what a job does with them, and what each phase costs.
//!
//! A [`Pipeline`] is one family of models. It says which phases a job has and what they cost, turns texts into what the
//! denoising network reads, and asks that network. Everything else is the same for all families: sessions, schedules,
//! noise, the VAE, what is saved.

pub(crate) mod pictures;
pub(crate) mod stable_diffusion;
pub(crate) mod tables;
pub(crate) mod z_image;

use std::collections::BTreeMap;
use std::sync::Arc;

use lowtide_core::{
    Bytes, ComponentLayout, Dtype, Formula, Mode, Offload, PhaseLayout, PhasePlan, PipelineLayout,
    Vars,
};
use lowtide_models::{Compute, Headers, Tensor};
use lowtide_weights::{Checkpoint, ModelFolder};

use crate::course::Course;
use crate::device::ground;
use crate::processor::Files;
use crate::request::{ImageRequest, Upscaler};
use crate::session::sketch::Sketcher;
use crate::session::work::{Text, TextKey};
use crate::shared::{Counted, Ours};
use crate::stream::{self, Blocks, Stream};
use crate::{Error, Result};
use pictures::Vae;

/// Bytes of one f32.
pub(crate) const F32: f64 = 4.0;

/// Stacks, channels, names and other small things of a phase, in bytes.
pub(crate) const SMALL_THINGS_BYTES: f64 = 512.0 * 1024.0;

/// Most passes of denoising a job has.
pub(crate) const PASSES_MAX: usize = 2;

/// A component's weights: what is in the files, what of it is used, and how to read it.
pub(crate) struct Part {
    /// What is used.
    pub(crate) layout: ComponentLayout,
    /// How to read it.
    pub(crate) blocks: Arc<Blocks>,
}

/// What happens together, with one part in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// The k-th stage of what is made of texts.
    Text(usize),
    /// The pictures that a pass begins from are encoded.
    Picture(usize),
    /// A pass of denoising.
    Denoise(usize),
    /// The latents of a pass are decoded.
    Decode(usize),
}

impl Phase {
    /// Its name in plans and reports.
    pub(crate) fn name(self, model: &dyn Pipeline) -> &'static str {
        let of_pass = |names: [&'static str; PASSES_MAX], pass: usize| names[pass];
        match self {
            Phase::Text(stage) => model.text_stages()[stage],
            Phase::Picture(pass) => of_pass(["picture", "picture_2"], pass),
            Phase::Denoise(pass) => of_pass(["denoise", "denoise_2"], pass),
            Phase::Decode(pass) => of_pass(["decode", "decode_2"], pass),
        }
    }

    /// The component it computes with, as errors name it.
    pub(crate) fn component(self, model: &dyn Pipeline) -> &'static str {
        match self {
            Phase::Picture(_) | Phase::Decode(_) => "vae",
            Phase::Text(_) | Phase::Denoise(_) => model.component(self),
        }
    }
}

/// Where the latents of a pass come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Noise.
    Noise,
    /// A picture that was given, encoded, with noise.
    Given,
    /// The picture of the pass before, enlarged and encoded, with noise.
    Picture,
    /// The latents of the pass before, enlarged, with noise.
    Latents(Upscaler),
}

/// One pass of denoising.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    /// Pixels.
    pub(crate) width: usize,
    /// Pixels.
    pub(crate) height: usize,
    /// Latent rows and columns.
    pub(crate) latent: (usize, usize),
    /// Calls of the network a picture.
    pub(crate) evaluations: usize,
    /// What it begins from.
    pub(crate) origin: Origin,
    /// Whether its latents are decoded.
    pub(crate) decodes: bool,
}

impl Pass {
    /// Whether it has a phase that encodes pictures.
    pub(crate) fn encodes(&self) -> bool {
        matches!(self.origin, Origin::Given | Origin::Picture)
    }
}

/// Sizes of a job that decide what it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Pixels of the result.
    pub(crate) width: usize,
    /// Pixels of the result.
    pub(crate) height: usize,
    /// Pictures of all members together.
    pub(crate) count: usize,
    /// Token counts of the texts, each text once.
    pub(crate) texts: Vec<usize>,
    /// By member: which text is its prompt and, with guidance, which its negative prompt.
    pub(crate) members: Vec<Vec<usize>>,
    /// Whether f32 pictures are kept beside the 8-bit ones.
    pub(crate) keep_values: bool,
    /// Whether part of a given picture is kept.
    pub(crate) masked: bool,
    /// Passes of denoising.
    pub(crate) passes: Vec<Pass>,
    /// Tensors of a latent's size that a sampler keeps between its steps.
    pub(crate) history: usize,
    /// Bytes of LoRAs, held as long as the job runs.
    pub(crate) added: Bytes,
    /// By component, bytes that adding them takes.
    pub(crate) added_scratch: BTreeMap<String, Bytes>,
}

impl Shape {
    /// Sequences a picture: two with guidance.
    pub(crate) fn sequences(&self) -> usize {
        self.members.iter().map(Vec::len).max().unwrap_or(1)
    }

    /// The last pass.
    pub(crate) fn last(&self) -> &Pass {
        self.passes.last().expect("a job has a pass")
    }

    /// Latents of a picture in the largest pass, as a number of values a channel.
    pub(crate) fn latent_plane(&self) -> usize {
        let planes = self.passes.iter().map(|pass| pass.latent.0 * pass.latent.1);
        planes.max().unwrap_or(0)
    }

    /// The phases in order.
    pub(crate) fn phases(&self, model: &dyn Pipeline) -> Vec<Phase> {
        phases(model, &self.passes)
    }
}

/// The phases of a job of these passes, in order.
pub(crate) fn phases(model: &dyn Pipeline, passes: &[Pass]) -> Vec<Phase> {
    let mut phases: Vec<Phase> = (0..model.text_stages().len()).map(Phase::Text).collect();
    for (k, pass) in passes.iter().enumerate() {
        phases.extend(pass.encodes().then_some(Phase::Picture(k)));
        phases.push(Phase::Denoise(k));
        phases.extend(pass.decodes.then_some(Phase::Decode(k)));
    }
    phases
}

/// What a phase computes with.
pub(crate) struct Running<'a> {
    pub(crate) compute: Compute,
    /// What the plan says of the phase.
    pub(crate) plan: &'a PhasePlan,
    /// Its weights.
    pub(crate) source: &'a mut Stream,
}

/// What is made of a text for the network that denoises: the tensors of a family.
pub(crate) type Caption = Vec<Tensor>;

/// A call of the network that denoises.
pub(crate) struct Call<'a> {
    pub(crate) request: &'a ImageRequest,
    /// As the schedule counts it.
    pub(crate) time: f32,
    /// The latents are multiplied by this first.
    pub(crate) scale: f32,
    /// By picture.
    pub(crate) pictures: Vec<Seen<'a>>,
    /// Pixels (width, height) of the pass.
    pub(crate) size: (usize, usize),
}

/// A picture as the network sees it.
pub(crate) struct Seen<'a> {
    /// (C, h, w).
    pub(crate) latent: &'a Tensor,
    /// Channels that stand beside the latents: mask and what is left of the given picture.
    pub(crate) beside: Option<&'a Tensor>,
    /// What is made of the prompt.
    pub(crate) positive: &'a Caption,
    /// And, with guidance, of the negative prompt.
    pub(crate) negative: Option<&'a Caption>,
}

/// Pictures that go through their steps together, as a family prepares for them.
pub(crate) trait Round: Send {
    /// The network's output for each picture, guidance applied, as the schedule takes it: (C, h, w).
    fn predict(&self, running: Running<'_>, call: &Call<'_>) -> Result<Vec<Tensor>>;
}

/// One family of models: configurations and layouts, no weights.
pub(crate) trait Pipeline: Send + Sync {
    /// The model's name.
    fn name(&self) -> &str;

    /// Its parts, those first whose weights are worth the most in memory.
    fn parts(&self) -> Vec<&Part>;

    /// The part a phase of texts or denoising computes with.
    fn part(&self, phase: Phase) -> &Part;

    /// What errors call it.
    fn component(&self, phase: Phase) -> &'static str;

    /// The checkpoints that LoRAs can add to, by component.
    fn checkpoints(&self) -> Vec<(&'static str, &Checkpoint)>;

    /// From latents to pictures and back.
    fn vae(&self) -> &Vae;

    /// From latents to a small look.
    fn sketcher(&self) -> &Sketcher;

    /// What the sides of a picture must be divisible by.
    fn multiple(&self) -> usize;

    /// Whether its network reads mask and picture beside the latents.
    fn inpaints(&self) -> bool {
        false
    }

    /// Names of the stages in which texts are made into what the network reads.
    fn text_stages(&self) -> &'static [&'static str];

    /// Whether a request needs a negative prompt.
    fn guided(&self, request: &ImageRequest) -> bool;

    /// Checks what only this family knows.
    ///
    /// # Errors
    /// [`Error::Request`].
    fn check(&self, request: &ImageRequest) -> Result<()>;

    /// The texts of each request: the prompt and, with guidance, the negative prompt. The tokenizer lives only here: it
    /// is large beside a small model.
    ///
    /// # Errors
    /// When the tokenizer cannot be read, or a text gives no token.
    fn texts(&self, requests: &[&ImageRequest]) -> Result<Vec<Vec<TextKey>>>;

    /// Upper bounds of the token counts of the same texts, without a tokenizer.
    ///
    /// # Errors
    /// When a file cannot be read.
    fn texts_bound(&self, request: &ImageRequest) -> Result<Vec<usize>>;

    /// Whether this can be one of its texts; a saved session may say anything.
    fn knows(&self, text: &TextKey) -> bool;

    /// Shapes of what is made of `text` after so many stages.
    fn text_shapes(&self, text: &TextKey, stages: usize) -> Vec<Vec<usize>>;

    /// Checks that the model knows such sizes and texts.
    ///
    /// # Errors
    /// [`Error::Model`].
    fn check_shape(&self, shape: &Shape) -> Result<()>;

    /// The schedule of a pass of this size.
    ///
    /// # Errors
    /// [`Error::Request`] where the model has no such schedule.
    fn course(&self, request: &ImageRequest, pass: usize, latent: (usize, usize))
    -> Result<Course>;

    /// What a phase of texts or denoising costs.
    fn layout(&self, phase: Phase, shape: &Shape, scratch: f64) -> PhaseLayout;

    /// The variables that its formulas speak of, beside those of [`common_vars`].
    fn vars(&self, shape: &Shape, vars: &mut Vars);

    /// One stage of `texts`, all at once.
    ///
    /// # Errors
    /// When a block cannot be had or memory is refused; then the texts are as they were.
    fn encode(&self, stage: usize, running: Running<'_>, texts: &mut [&mut Text]) -> Result<()>;

    /// Prepares for pictures whose texts are these: (prompt, negative prompt) by picture.
    ///
    /// # Errors
    /// When memory is refused.
    fn round(
        &self,
        shape: &Shape,
        pass: usize,
        texts: &[(&TextKey, Option<&TextKey>)],
        request: &ImageRequest,
    ) -> Result<Box<dyn Round>>;
}

/// Opens a model of a family that is built in.
///
/// # Errors
/// When a part is missing, of an unsupported kind, or not what its configuration says.
pub(crate) fn open(folder: &Arc<ModelFolder>, files: &Arc<dyn Files>) -> Result<Arc<dyn Pipeline>> {
    match &folder.class_name[..] {
        z_image::CLASS => Ok(Arc::new(z_image::ZImage::open(folder)?)),
        class if stable_diffusion::runs(class) => Ok(Arc::new(
            stable_diffusion::StableDiffusion::open(folder, files.clone())?,
        )),
        class => Err(Error::UnsupportedPipeline {
            model: folder.name.clone(),
            class: class.to_owned(),
        }),
    }
}

/// Whether a model is of a family that is built in.
pub(crate) fn runs(class: &str) -> bool {
    class == z_image::CLASS || stable_diffusion::runs(class)
}

impl dyn Pipeline + '_ {
    /// The part a phase computes with.
    pub(crate) fn part_of(&self, phase: Phase) -> &Part {
        match phase {
            Phase::Picture(_) => self.vae().encoder(),
            Phase::Decode(_) => &self.vae().decoder,
            Phase::Text(_) | Phase::Denoise(_) => self.part(phase),
        }
    }

    /// Bytes of its weights that are kept in memory between phases.
    pub(crate) fn kept(&self) -> Bytes {
        self.parts()
            .into_iter()
            .map(|part| part.blocks.kept())
            .sum()
    }

    /// Bytes of its weights in memory, those of a stream that runs included.
    pub(crate) fn held(&self) -> Bytes {
        self.held_beside(&mut Counted::default())
    }

    /// The same, but for blocks that were `counted`.
    pub(crate) fn held_beside(&self, counted: &mut Counted) -> Bytes {
        self.parts()
            .into_iter()
            .map(|part| part.blocks.held_beside(counted))
            .sum()
    }

    /// What of its weights, kept in memory between phases, nobody else holds: what forgetting them gives back.
    pub(crate) fn ours(&self) -> Ours {
        stream::ours(self.parts().into_iter().map(|part| &part.blocks))
    }

    /// Channels, rows and columns of the latents of a pass.
    pub(crate) fn latent_shape(&self, pass: &Pass) -> [usize; 3] {
        let (h, w) = pass.latent;
        [self.vae().config.latent_channels, h, w]
    }

    /// Bytes of all its weights.
    pub(crate) fn bytes(&self) -> Bytes {
        self.parts()
            .into_iter()
            .map(|part| part.layout.bytes())
            .sum()
    }

    /// Says whose error it is.
    pub(crate) fn wrap(
        &self,
        component: &'static str,
    ) -> impl Fn(lowtide_models::Error) -> Error + use<> {
        let model = self.name().to_owned();
        move |source| Error::Model {
            model: model.clone(),
            component,
            source,
        }
    }
}

/// The phases of a job of this shape, with what each costs.
pub(crate) fn layouts(model: &dyn Pipeline, shape: &Shape) -> PipelineLayout {
    let scratch = ground::scratch_bytes() as f64 + SMALL_THINGS_BYTES;
    let added = |phase: Phase| {
        let scratch = shape.added_scratch.get(phase.component(model));
        shape.added.0 as f64 + scratch.map_or(0.0, |bytes| bytes.0 as f64)
    };
    let layout = |phase: Phase| {
        let (name, scratch) = (phase.name(model), scratch + added(phase));
        match phase {
            Phase::Text(_) | Phase::Denoise(_) => model.layout(phase, shape, scratch),
            Phase::Picture(pass) => model.vae().encode_layout(name, shape, pass, scratch),
            Phase::Decode(pass) => model.vae().decode_layout(name, shape, pass, scratch),
        }
    };
    PipelineLayout {
        model: model.name().to_owned(),
        phases: shape.phases(model).into_iter().map(layout).collect(),
    }
}

/// The variables of a job's formulas.
pub(crate) fn vars(model: &dyn Pipeline, shape: &Shape) -> Vars {
    let values = model.vae().config.latent_channels * shape.latent_plane();
    let longest = shape.texts.iter().copied().max().unwrap_or(0);
    let mut vars = Vars::from_iter([
        ("width", shape.width as u64),
        ("height", shape.height as u64),
        ("count", shape.count as u64),
        ("sequences", shape.sequences() as u64),
        ("prompt_tokens", longest as u64),
        (
            "all_prompt_tokens",
            shape.texts.iter().sum::<usize>() as u64,
        ),
        ("latent_values", values as u64),
    ]);
    model.vars(shape, &mut vars);
    vars
}

/// Bytes a picture holds for each value of its latent while it is denoised: the latent, its noise, what it began from
/// and what its schedule remembers, the network's output, and a sketch of three bytes a pixel of any number of channels.
pub(crate) fn latent_bytes(shape: &Shape, channels: usize) -> f64 {
    let given = shape.passes.iter().any(|pass| pass.origin != Origin::Noise);
    // A picture, its noise, and mask and rest beside it, which are as large as a latent and one channel more.
    let beside = if given { 2.0 } else { 0.0 } + if shape.masked { 2.5 } else { 0.0 };
    F32 * (2.0 + beside + shape.history as f64) + 3.0 / channels as f64
}

/// A phase with everything a family does not say.
pub(crate) fn phase(
    name: &str,
    component: &ComponentLayout,
    passes: u64,
    held: Formula,
    modes: Vec<Mode>,
) -> PhaseLayout {
    PhaseLayout {
        name: name.to_owned(),
        component: component.clone(),
        passes,
        rounds_over: None,
        held,
        modes,
        correction: 1.0,
        reuse: false,
        offload: Offload::Auto,
        beside: Bytes::ZERO,
        shared: Vec::new(),
    }
}

/// The headers of a checkpoint as models ask for them.
pub(crate) struct FileHeaders<'a>(pub(crate) &'a Checkpoint);

impl Headers for FileHeaders<'_> {
    fn tensor(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        self.0
            .get(name)
            .map(|entry| (entry.dtype, entry.shape.clone()))
    }
}

/// Opens parts of a model folder and names them in errors.
pub(crate) struct Opener<'a> {
    pub(crate) folder: &'a ModelFolder,
}

impl Opener<'_> {
    /// The configuration of a component.
    pub(crate) fn config(&self, component: &'static str) -> Result<&serde_json::Value> {
        let found = self
            .folder
            .component(component)
            .filter(|found| !found.config.is_null());
        found
            .map(|found| &found.config)
            .ok_or_else(|| Error::Incomplete {
                model: self.folder.name.clone(),
                what: format!("{component}'s configuration is missing; fetch the model again"),
            })
    }

    /// Says whose error it is.
    pub(crate) fn wrap(
        &self,
        component: &'static str,
    ) -> impl Fn(lowtide_models::Error) -> Error + use<> {
        let model = self.folder.name.clone();
        move |source| Error::Model {
            model: model.clone(),
            component,
            source,
        }
    }

    /// A component's weights.
    pub(crate) fn checkpoint(&self, component: &'static str) -> Result<Arc<Checkpoint>> {
        Ok(Arc::new(self.folder.checkpoint(component)?))
    }

    /// A part that consists of what `layout` asks for.
    pub(crate) fn part(
        &self,
        component: &'static str,
        checkpoint: &Arc<Checkpoint>,
        layout: impl FnOnce(&dyn Headers) -> lowtide_models::Result<ComponentLayout>,
    ) -> Result<Part> {
        let layout = layout(&FileHeaders(checkpoint)).map_err(self.wrap(component))?;
        let blocks = Blocks::of_pipeline(&self.folder.name, checkpoint.clone(), &layout)?;
        Ok(Part { layout, blocks })
    }
}
