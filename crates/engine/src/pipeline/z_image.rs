//! Z-Image: prompt to latents to picture.
//!
//! Four phases, each with one component in memory: `encode` (the text encoder, once), `refine` (the transformer's
//! caption layers, once), `denoise` (its other layers, once a step), `decode` (the VAE's decoder, once a picture).

use std::sync::Arc;

use lowtide_core::{
    Bytes, ComponentLayout, Dtype, Formula, Ladder, Mode, Offload, PhaseLayout, PipelineLayout,
    TensorLayout, Vars,
};
use lowtide_kernels as kernels;
use lowtide_models::flow_match::FlowMatchEuler;
use lowtide_models::weights::stored;
use lowtide_models::{Headers, Tensor, autoencoder_kl, qwen3, z_image};
use lowtide_weights::{Checkpoint, ModelFolder};

use crate::request::TextToImage;
use crate::session::sketch::Sketcher;
use crate::stream::Blocks;
use crate::{Error, Result};

/// Bytes of one f32.
const F32: f64 = 4.0;

/// Rows below which smaller chunks save nothing worth the slower products.
const CHUNK_ROWS_MIN: u64 = 64;

/// Stacks, channels, names and other small things of a phase, in bytes.
const SMALL_THINGS_BYTES: f64 = 512.0 * 1024.0;

/// A component's weights: what is in the files, what of it is used, and how to read it.
pub struct Part {
    /// What is used.
    pub layout: ComponentLayout,
    /// How to read it.
    pub blocks: Arc<Blocks>,
}

/// An opened Z-Image model: configurations and layouts, no weights.
pub struct ZImage {
    /// The model's name.
    pub name: String,
    /// The text encoder's configuration.
    pub text_config: qwen3::Config,
    /// The transformer's configuration.
    pub transformer_config: z_image::Config,
    /// The VAE's configuration.
    pub vae_config: autoencoder_kl::Config,
    /// The noise schedule.
    pub scheduler: FlowMatchEuler,
    /// The text encoder.
    pub text_encoder: Part,
    /// The transformer's caption layers.
    pub captions: Part,
    /// The transformer's other layers.
    pub transformer: Part,
    /// The VAE's decoder.
    pub vae: Part,
    /// How latents become a small look at the picture.
    pub(crate) sketcher: Sketcher,
    text_checkpoint: Arc<Checkpoint>,
}

/// The headers of a checkpoint as models ask for them.
struct FileHeaders<'a>(&'a Checkpoint);

impl Headers for FileHeaders<'_> {
    fn tensor(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        self.0
            .get(name)
            .map(|entry| (entry.dtype, entry.shape.clone()))
    }
}

/// Sizes of a job that decide what it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Latent rows and columns.
    pub latent: (usize, usize),
    /// Pictures of all members together.
    pub count: usize,
    /// Steps.
    pub steps: usize,
    /// Token counts of the texts, each text once.
    pub texts: Vec<usize>,
    /// By member: which text is its prompt and, with guidance, which its negative prompt.
    pub members: Vec<Vec<usize>>,
    /// Whether f32 pictures are kept beside the 8-bit ones.
    pub keep_values: bool,
}

impl Shape {
    /// Sequences a picture: two with guidance.
    pub fn sequences(&self) -> usize {
        self.members.iter().map(Vec::len).max().unwrap_or(1)
    }
}

impl ZImage {
    /// Reads configurations and headers, and checks that they agree.
    ///
    /// # Errors
    /// When a part is missing, of an unsupported kind, or not what its configuration says.
    pub fn open(folder: &ModelFolder) -> Result<ZImage> {
        if folder.class_name != "ZImagePipeline" {
            let (model, class) = (folder.name.clone(), folder.class_name.clone());
            return Err(Error::UnsupportedPipeline { model, class });
        }
        let config = |component: &'static str| {
            let found = folder
                .component(component)
                .filter(|found| !found.config.is_null());
            found
                .map(|found| &found.config)
                .ok_or_else(|| Error::Incomplete {
                    model: folder.name.clone(),
                    what: format!("{component}'s configuration is missing; fetch the model again"),
                })
        };
        let wrap = |component: &'static str| {
            let model = folder.name.clone();
            move |source| Error::Model {
                model,
                component,
                source,
            }
        };
        let text_config =
            qwen3::Config::from_json(config("text_encoder")?).map_err(wrap("text_encoder"))?;
        let transformer_config =
            z_image::Config::from_json(config("transformer")?).map_err(wrap("transformer"))?;
        let vae_config = autoencoder_kl::Config::from_json(config("vae")?).map_err(wrap("vae"))?;
        let scheduler =
            FlowMatchEuler::from_json(config("scheduler")?).map_err(wrap("scheduler"))?;
        check_agreement(&text_config, &transformer_config, &vae_config)
            .map_err(wrap("transformer"))?;

        let text_checkpoint = Arc::new(folder.checkpoint("text_encoder")?);
        let transformer_checkpoint = Arc::new(folder.checkpoint("transformer")?);
        let vae_checkpoint = Arc::new(folder.checkpoint("vae")?);
        let part = |checkpoint: &Arc<Checkpoint>,
                    layout: lowtide_models::Result<ComponentLayout>,
                    component| {
            let layout = layout.map_err(wrap(component))?;
            let blocks = Blocks::new(&folder.name, checkpoint.clone(), &layout)?;
            Ok::<_, Error>(Part { layout, blocks })
        };
        let transformer_headers = FileHeaders(&transformer_checkpoint);
        let captions = z_image::caption_layout(&transformer_headers, &transformer_config);
        let steps = z_image::layout(&transformer_headers, &transformer_config);
        let text = qwen3::layout(&FileHeaders(&text_checkpoint), &text_config);
        let vae = autoencoder_kl::layout(&FileHeaders(&vae_checkpoint), &vae_config);
        Ok(ZImage {
            name: folder.name.clone(),
            text_encoder: part(&text_checkpoint, text, "text_encoder")?,
            captions: part(&transformer_checkpoint, captions, "transformer")?,
            transformer: part(&transformer_checkpoint, steps, "transformer")?,
            vae: part(&vae_checkpoint, vae, "vae")?,
            sketcher: Sketcher::of(folder, transformer_config.channels)?,
            text_config,
            transformer_config,
            vae_config,
            scheduler,
            text_checkpoint,
        })
    }

    /// Its parts, those first whose weights are worth the most in memory.
    pub fn parts(&self) -> [&Part; 4] {
        [
            &self.transformer,
            &self.vae,
            &self.captions,
            &self.text_encoder,
        ]
    }

    /// Bytes of its weights that are kept in memory between phases.
    pub fn kept(&self) -> Bytes {
        self.parts()
            .map(|part| part.blocks.kept())
            .into_iter()
            .sum()
    }

    /// Bytes of its weights in memory, those of a stream that runs included.
    pub fn held(&self) -> Bytes {
        self.parts()
            .map(|part| part.blocks.held())
            .into_iter()
            .sum()
    }

    /// Says whose error it is.
    pub(crate) fn wrap(&self, component: &'static str) -> impl Fn(lowtide_models::Error) -> Error {
        let model = self.name.clone();
        move |source| Error::Model {
            model: model.clone(),
            component,
            source,
        }
    }

    /// What the sides of a picture must be divisible by.
    pub fn multiple(&self) -> usize {
        self.vae_config.scale() * 2
    }

    /// The embedding table of the text encoder.
    pub fn table(&self) -> &TensorLayout {
        &self.text_encoder.layout.tables[0]
    }

    /// The embedding rows of `ids`, read one by one from the file: (T, D).
    ///
    /// # Errors
    /// When an id is beyond the table, or the file cannot be read.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let wrap = self.wrap("text_encoder");
        let (config, table) = (&self.text_config, self.table());
        let entry = self
            .text_checkpoint
            .get(&table.name)
            .ok_or_else(|| Error::Incomplete {
                model: self.name.clone(),
                what: format!("tensor {} is missing", table.name),
            })?;
        let stored = stored(table.dtype, || table.name.clone()).map_err(&wrap)?;
        let row_bytes = config.hidden * stored.size();
        let mut row = vec![0; row_bytes];
        let mut rows = Tensor::new(&[ids.len(), config.hidden]).map_err(wrap)?;
        for (&id, out) in ids
            .iter()
            .zip(rows.data_mut().chunks_exact_mut(config.hidden))
        {
            if id as usize >= config.vocabulary {
                return Err(Error::Tokenizer {
                    model: self.name.clone(),
                    problem: format!(
                        "gives token {id}, but the text encoder knows only {}",
                        config.vocabulary
                    ),
                });
            }
            self.text_checkpoint
                .read_range(entry, id as u64 * row_bytes as u64, &mut row)?;
            kernels::to_f32(stored, &row, out);
        }
        Ok(rows)
    }

    /// The sizes of a job, checked against the model: token counts of its texts, and which of them each member uses.
    ///
    /// # Errors
    /// [`Error::Request`], or [`Error::Model`] when the model has no such positions.
    pub fn shape(
        &self,
        request: &TextToImage,
        (texts, members): (Vec<usize>, Vec<Vec<usize>>),
        keep_values: bool,
    ) -> Result<Shape> {
        request.check(self.multiple())?;
        let scale = self.vae_config.scale();
        let (width, height) = (request.width, request.height);
        let latent = (height / scale, width / scale);
        for &tokens in &texts {
            let checked = self.transformer_config.check_positions(latent, tokens);
            checked.map_err(self.wrap("transformer"))?;
        }
        Ok(Shape {
            width,
            height,
            latent,
            count: request.count * members.len(),
            steps: request.steps,
            texts,
            members,
            keep_values,
        })
    }

    /// The phases of a job of this shape, with what each costs.
    pub fn pipeline(&self, shape: &Shape) -> PipelineLayout {
        let scratch = kernels::scratch_bytes(kernels::threads()) as f64 + SMALL_THINGS_BYTES;
        let phases = vec![
            self.encode(scratch),
            self.refine(shape, scratch),
            self.denoise(shape, scratch),
            self.decode(shape, scratch),
        ];
        PipelineLayout {
            model: self.name.clone(),
            phases,
        }
    }

    /// The variables that the formulas of [`ZImage::pipeline`] speak of.
    pub fn vars(&self, shape: &Shape) -> Vars {
        let longest = shape.texts.iter().copied().max().unwrap_or(0);
        let captions: Vec<usize> = shape
            .texts
            .iter()
            .map(|&tokens| z_image::padded(tokens))
            .collect();
        let longest_caption = captions.iter().copied().max().unwrap_or(0);
        let distinct = |texts: &mut dyn Iterator<Item = usize>| {
            let mut lengths: Vec<usize> = texts.map(|text| captions[text]).collect();
            lengths.sort_unstable();
            lengths.dedup();
            lengths.len()
        };
        let members = shape.members.iter();
        let lengths_a_picture = members
            .map(|texts| distinct(&mut texts.iter().copied()))
            .max();
        let image_tokens = z_image::padded(z_image::image_tokens(shape.latent));
        let values = self.transformer_config.channels * shape.latent.0 * shape.latent.1;
        Vars::from_iter([
            ("width", shape.width as u64),
            ("height", shape.height as u64),
            ("steps", shape.steps as u64),
            ("count", shape.count as u64),
            ("prompt_tokens", longest as u64),
            (
                "all_prompt_tokens",
                shape.texts.iter().sum::<usize>() as u64,
            ),
            ("caption_tokens", longest_caption as u64),
            ("all_caption_tokens", captions.iter().sum::<usize>() as u64),
            ("caption_lengths", lengths_a_picture.unwrap_or(0) as u64),
            ("tables", distinct(&mut (0..captions.len())) as u64),
            ("sequences", shape.sequences() as u64),
            ("image_tokens", image_tokens as u64),
            ("tokens", (image_tokens + longest_caption) as u64),
            ("latent_values", values as u64),
        ])
    }

    fn encode(&self, scratch: f64) -> PhaseLayout {
        let config = &self.text_config;
        let layer = config.layer_bytes_per_token() as f64;
        let mode = Mode {
            name: "whole".to_owned(),
            exact: true,
            activation: Formula::sum(&[(
                layer + config.rotary_bytes_per_token() as f64,
                &["prompt_tokens"],
            )]),
            flops: Formula::sum(&[
                (config.flops_per_token() as f64, &["all_prompt_tokens"]),
                (
                    config.attention_flops(),
                    &["all_prompt_tokens", "prompt_tokens"],
                ),
            ]),
            ladders: Vec::new(),
            resident_blocks: Vec::new(),
        };
        let held = Formula::sum(&[
            (F32 * config.hidden as f64, &["all_prompt_tokens"]),
            (scratch, &[]),
        ]);
        phase("encode", &self.text_encoder.layout, 1, held, vec![mode])
    }

    fn refine(&self, shape: &Shape, scratch: f64) -> PhaseLayout {
        let config = &self.transformer_config;
        let (d, f) = (config.dim as f64, config.hidden() as f64);
        let longest = shape
            .texts
            .iter()
            .map(|&tokens| z_image::padded(tokens))
            .max()
            .unwrap_or(0) as u64;
        let mode = Mode {
            name: "chunks".to_owned(),
            exact: true,
            // The embedder holds the norm's output, the embedded rows and the padded rows of one caption.
            activation: Formula::sum(&[(F32 * 4.0 * d, &["caption_tokens"])])
                .or(Formula::sum(&[(F32 * (d + f), &["chunk_rows"])]))
                .or(Formula::sum(&[(
                    F32 * (config.caption_dim as f64 + d),
                    &["caption_tokens"],
                )]))
                .plus(F32 * d, &["all_caption_tokens"]),
            flops: Formula::sum(&[
                (
                    (config.refiners as f64) * config.layer_flops(),
                    &["all_caption_tokens"],
                ),
                (2.0 * d * config.caption_dim as f64, &["all_caption_tokens"]),
            ]),
            ladders: vec![Ladder::new(
                "chunk_rows",
                longest,
                CHUNK_ROWS_MIN.min(longest),
                32,
            )],
            resident_blocks: Vec::new(),
        };
        let held = Formula::sum(&[
            (F32 * config.caption_dim as f64, &["all_prompt_tokens"]),
            (F32 * config.head_dim() as f64, &["caption_tokens"]),
            (scratch, &[]),
        ]);
        phase("refine", &self.captions.layout, 1, held, vec![mode])
    }

    /// The worst moments of a step: attention over one sequence or over the rows of a chunk, the feed-forward of a
    /// chunk, pictures and captions put together, pictures taken in, velocities given out.
    fn denoise_activation(&self) -> Formula {
        let config = &self.transformer_config;
        let (d, f, c) = (
            config.dim as f64,
            config.hidden() as f64,
            config.channels as f64,
        );
        let state: (f64, &[&'static str]) = (F32 * d, &["batch", "sequences", "tokens"]);
        let pictures: (f64, &[&'static str]) =
            (F32 * d, &["batch", "caption_lengths", "image_tokens"]);
        Formula::sum(&[state, (F32 * 4.0 * d, &["tokens"])])
            .or(Formula::sum(&[state, (F32 * 4.0 * d, &["chunk_rows"])]))
            .or(Formula::sum(&[state, (F32 * (d + f), &["chunk_rows"])]))
            .or(Formula::sum(&[state, pictures]))
            .or(Formula::sum(&[
                pictures,
                (F32 * (d + 4.0 * c), &["image_tokens"]),
            ]))
            .or(Formula::sum(&[
                state,
                (F32, &["batch", "sequences", "latent_values"]),
                (F32 * 4.0 * c, &["image_tokens"]),
            ]))
    }

    fn denoise(&self, shape: &Shape, scratch: f64) -> PhaseLayout {
        let config = &self.transformer_config;
        let d = config.dim as f64;
        let (image, caption) = {
            let vars = self.vars(shape);
            (
                vars.get("image_tokens").unwrap_or(0),
                vars.get("caption_tokens").unwrap_or(0),
            )
        };
        let sequences = shape.sequences() as u64;
        let rows = shape.count as u64 * sequences * (image + caption);
        let layers = config.layers as f64;
        let mode = Mode {
            name: "chunks".to_owned(),
            exact: true,
            activation: self.denoise_activation(),
            flops: Formula::sum(&[
                (
                    layers * config.layer_flops(),
                    &["batch", "sequences", "tokens"],
                ),
                (
                    layers * config.attention_flops(),
                    &["batch", "sequences", "tokens", "tokens"],
                ),
                (
                    config.refiners as f64 * config.layer_flops(),
                    &["batch", "caption_lengths", "image_tokens"],
                ),
            ]),
            ladders: vec![
                Ladder::new("batch", shape.count as u64, 1, 1),
                Ladder::new("chunk_rows", rows, CHUNK_ROWS_MIN.min(rows), 32),
            ],
            resident_blocks: Vec::new(),
        };
        let held = Formula::sum(&[
            (F32 * 2.0 + self.sketch_bytes(), &["count", "latent_values"]),
            (F32 * d, &["all_caption_tokens"]),
            (F32 * config.head_dim() as f64, &["tables", "tokens"]),
            (scratch, &[]),
        ]);
        let mut phase = phase(
            "denoise",
            &self.transformer.layout,
            shape.steps as u64,
            held,
            vec![mode],
        );
        phase.rounds_over = Some(("batch".into(), shape.count as u64));
        phase
    }

    /// Bytes of a sketch for each value of a latent: three a pixel, of any number of channels.
    fn sketch_bytes(&self) -> f64 {
        3.0 / self.transformer_config.channels as f64
    }

    fn decode(&self, shape: &Shape, scratch: f64) -> PhaseLayout {
        let modes = autoencoder_kl::modes(&self.vae_config, shape.latent.0, shape.latent.1);
        let pixel = 3.0 + if shape.keep_values { 3.0 * F32 } else { 0.0 };
        let held = Formula::sum(&[
            (F32 + self.sketch_bytes(), &["count", "latent_values"]),
            (pixel, &["count", "width", "height"]),
            (scratch, &[]),
        ]);
        phase("decode", &self.vae.layout, shape.count as u64, held, modes)
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

fn phase(
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
    }
}
