//! The Z-Image single-stream diffusion transformer.
//!
//! Letters: N pictures, S sequences (N, or 2 N with guidance), T_i image tokens of a picture and T_c caption tokens of
//! a sequence (each padded to a multiple of 32), T = T_i + T_c, D width, F feed-forward width, C latent channels,
//! h x w latent size.
//!
//! Two passes over the checkpoint's blocks are told apart. The captions do not depend on the noise level: their
//! embedding and refiner run once a job ([`caption_layout`], [`refine_captions`]). Everything else runs once a step
//! ([`layout`], [`velocities`]), and one visit of a block serves all sequences.
//!
//! # Source
//! diffusers `ZImageTransformer2DModel` and `ZImagePipeline`, basic mode (one picture a sequence).

use std::ops::Range;

use lowtide_core::ComponentLayout;
use lowtide_kernels::{Activation, Rotary};
use serde_json::Value;

use crate::config::ConfigReader;
use crate::device::{Function, Place, Values, ValuesMut, Vector};
use crate::layers::{Heads, Linear, RmsNorm, RotaryTable, gated, layer_norm_scaled, rotate_heads};
use crate::tensor::{Compute, PartMut, Tensor};
use crate::weights::{BlockSource, Headers, Weights, record};
use crate::{Error, Result, ops};

/// Sequences are padded to a multiple of this many tokens.
pub const TOKENS_MULTIPLE: usize = 32;

/// Side of a patch in latent pixels.
const PATCH: usize = 2;

/// Names of the layers that belong to patches of 2 x 2 x 1.
const PATCH_KEY: &str = "2-1";

/// Width of the time embedding at most, and of its sine features.
const TIME_DIM: usize = 256;

/// Hidden width of the time embedding's network.
const TIME_HIDDEN: usize = 1024;

/// Added to the mean square in the norms of queries and keys.
const QK_NORM_EPS: f32 = 1e-5;

/// Added to the variance in the last norm.
const FINAL_NORM_EPS: f32 = 1e-6;

/// The numbers of config.json that matter.
#[derive(Clone, Debug)]
pub struct Config {
    /// Latent channels (C).
    pub channels: usize,
    /// Width (D).
    pub dim: usize,
    /// Main layers.
    pub layers: usize,
    /// Noise refiners, and as many context refiners.
    pub refiners: usize,
    /// Width of the text encoder's hidden states.
    pub caption_dim: usize,
    heads: Heads,
    qk_norm: bool,
    norm_eps: f32,
    time_scale: f32,
    rope_theta: f64,
    axes_dims: Vec<usize>,
    axes_lens: Vec<usize>,
}

impl Config {
    /// Reads config.json of a `ZImageTransformer2DModel`.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_json(value: &Value) -> Result<Config> {
        let config = ConfigReader::new("transformer", value);
        config.only("_class_name", "ZImageTransformer2DModel")?;
        if config.get("siglip_feat_dim").is_some() {
            return Err(config.error(
                "siglip_feat_dim",
                "is set: the Omni variant is not supported",
            ));
        }
        let patches = config.sizes("all_patch_size", Some(&[PATCH]), 8, 1..=64)?;
        let frames = config.sizes("all_f_patch_size", Some(&[1]), 8, 1..=64)?;
        if !patches.iter().zip(&frames).any(|pair| pair == (&PATCH, &1)) {
            return Err(config.error(
                "all_patch_size",
                format!("is {patches:?}, without the patch of 2 that is supported"),
            ));
        }
        let dim = config.size("dim", Some(3840), 1..=65_536)?;
        let heads = config.size("n_heads", Some(30), 1..=1024)?;
        if dim % heads != 0 {
            return Err(config.error("n_heads", format!("is {heads}, no divisor of dim {dim}")));
        }
        let axes_dims = config.sizes("axes_dims", Some(&[32, 48, 48]), 3, 2..=1024)?;
        let axes_lens = config.sizes("axes_lens", Some(&[1024, 512, 512]), 3, 1..=65_536)?;
        if axes_dims.len() != 3 || axes_lens.len() != 3 || axes_dims.iter().any(|d| d % 2 != 0) {
            return Err(config.error(
                "axes_dims",
                "and axes_lens must be three numbers each, the dims even",
            ));
        }
        if axes_dims.iter().sum::<usize>() != dim / heads {
            return Err(config.error(
                "axes_dims",
                format!(
                    "is {axes_dims:?}, which does not add up to {} a head",
                    dim / heads
                ),
            ));
        }
        Ok(Config {
            channels: config.size("in_channels", Some(16), 1..=1024)?,
            dim,
            layers: config.size("n_layers", Some(30), 1..=1024)?,
            refiners: config.size("n_refiner_layers", Some(2), 0..=256)?,
            caption_dim: config.size("cap_feat_dim", Some(2560), 1..=65_536)?,
            heads: Heads {
                query: heads,
                key_value: heads,
                dim: dim / heads,
                causal: false,
            },
            qk_norm: config.flag("qk_norm", true)?,
            norm_eps: config.number("norm_eps", Some(1e-5))? as f32,
            time_scale: config.number("t_scale", Some(1000.0))? as f32,
            rope_theta: config.number("rope_theta", Some(256.0))?,
            axes_dims,
            axes_lens,
        })
    }

    /// Width of the feed-forward (F), truncated as the reference truncates it.
    pub fn hidden(&self) -> usize {
        (self.dim as f64 / 3.0 * 8.0) as usize
    }

    /// Values a head.
    pub fn head_dim(&self) -> usize {
        self.heads.dim
    }

    fn time_dim(&self) -> usize {
        self.dim.min(TIME_DIM)
    }

    fn patch_values(&self) -> usize {
        PATCH * PATCH * self.channels
    }

    /// Multiplications and additions of one layer a token, without attention's scores.
    pub fn layer_flops(&self) -> f64 {
        2.0 * (4 * self.dim * self.dim + 3 * self.dim * self.hidden()) as f64
    }

    /// Multiplications and additions of the scores and values of one layer, for one query and one key.
    pub fn attention_flops(&self) -> f64 {
        4.0 * self.dim as f64
    }

    /// Checks that a picture of h x w latent pixels with a caption of `caption_tokens` has positions in this model.
    ///
    /// # Errors
    /// [`Error::BeyondModel`].
    pub fn check_positions(&self, (h, w): (usize, usize), caption_tokens: usize) -> Result<()> {
        let beyond = |what, asked, limit| Err(Error::BeyondModel { what, asked, limit });
        let [texts, rows, columns] = [self.axes_lens[0], self.axes_lens[1], self.axes_lens[2]];
        // The picture takes the position after the padded caption, which starts at 1.
        if padded(caption_tokens) + 2 > texts {
            return beyond(
                "the prompt's length in tokens",
                caption_tokens,
                texts.saturating_sub(2),
            );
        }
        if h / PATCH > rows {
            return beyond(
                "the picture's height in patches of 16 pixels",
                h / PATCH,
                rows,
            );
        }
        if w / PATCH > columns {
            return beyond(
                "the picture's width in patches of 16 pixels",
                w / PATCH,
                columns,
            );
        }
        Ok(())
    }
}

/// Tokens with padding.
pub fn padded(tokens: usize) -> usize {
    tokens.next_multiple_of(TOKENS_MULTIPLE)
}

/// Image tokens of h x w latent pixels, without padding.
pub fn image_tokens((h, w): (usize, usize)) -> usize {
    (h / PATCH) * (w / PATCH)
}

/// Scales and gates of one layer at one noise level: one plus the scale and the gate's tangent for the attention, then the
/// same for the feed-forward, each of D values.
struct Modulation(Tensor);

impl Modulation {
    fn new(compute: Compute, layer: &Linear<'_>, time: &Tensor) -> Result<Modulation> {
        let mut all = layer.forward(compute, time)?;
        let quarter = all.shape()[1] / 4;
        for (i, function) in [
            Function::Plus(1.0),
            Function::Tanh,
            Function::Plus(1.0),
            Function::Tanh,
        ]
        .into_iter()
        .enumerate()
        {
            let part = i * quarter..(i + 1) * quarter;
            ops::apply(function, all.values_mut().part(part))?;
        }
        Ok(Modulation(all))
    }

    fn quarter(&self, index: usize) -> Values<'_> {
        let quarter = self.0.elements() / 4;
        self.0.values().part(index * quarter..(index + 1) * quarter)
    }

    fn scale_msa(&self) -> Values<'_> {
        self.quarter(0)
    }

    fn gate_msa(&self) -> Values<'_> {
        self.quarter(1)
    }

    fn scale_mlp(&self) -> Values<'_> {
        self.quarter(2)
    }

    fn gate_mlp(&self) -> Values<'_> {
        self.quarter(3)
    }
}

/// One sequence within a matrix of many.
struct Segment<'t> {
    rows: Range<usize>,
    rotary: &'t RotaryTable,
}

/// One transformer layer; refiners of captions have no modulation.
struct Layer<'w> {
    modulation: Option<Linear<'w>>,
    attention_norm1: RmsNorm,
    to_q: Linear<'w>,
    to_k: Linear<'w>,
    to_v: Linear<'w>,
    norms: Option<(RmsNorm, RmsNorm)>,
    to_out: Linear<'w>,
    attention_norm2: RmsNorm,
    ffn_norm1: RmsNorm,
    w1: Linear<'w>,
    w2: Linear<'w>,
    w3: Linear<'w>,
    ffn_norm2: RmsNorm,
}

impl<'w> Layer<'w> {
    fn load(w: &Weights<'w>, config: &Config, modulated: bool) -> Result<Layer<'w>> {
        let (d, f, eps) = (config.dim, config.hidden(), config.norm_eps);
        let (attention, ffn) = (w.pp("attention"), w.pp("feed_forward"));
        let norm = |name| attention.rms_norm(config.heads.dim, QK_NORM_EPS, name);
        Ok(Layer {
            modulation: modulated
                .then(|| w.linear(config.time_dim(), 4 * d, "adaLN_modulation.0"))
                .transpose()?,
            attention_norm1: w.rms_norm(d, eps, "attention_norm1")?,
            to_q: attention.linear_no_bias(d, d, "to_q")?,
            to_k: attention.linear_no_bias(d, d, "to_k")?,
            to_v: attention.linear_no_bias(d, d, "to_v")?,
            norms: config
                .qk_norm
                .then(|| Ok::<_, Error>((norm("norm_q")?, norm("norm_k")?)))
                .transpose()?,
            to_out: attention.linear_no_bias(d, d, "to_out.0")?,
            attention_norm2: w.rms_norm(d, eps, "attention_norm2")?,
            ffn_norm1: w.rms_norm(d, eps, "ffn_norm1")?,
            w1: ffn.linear_no_bias(d, f, "w1")?,
            w2: ffn.linear_no_bias(f, d, "w2")?,
            w3: ffn.linear_no_bias(d, f, "w3")?,
            ffn_norm2: w.rms_norm(d, eps, "ffn_norm2")?,
        })
    }

    /// `x` (R, D) in place: attention over each segment, the feed-forward over `chunk_rows` rows at a time.
    ///
    /// # Memory
    /// At most `max(4 * max(chunk_rows, longest segment) * D, chunk_rows * (D + F))` f32 beside `x`.
    fn forward(
        &self,
        pass: Pass<'_>,
        x: &mut Tensor,
        segments: &[Segment<'_>],
        time: Option<&Tensor>,
    ) -> Result<()> {
        let modulation = match (&self.modulation, time) {
            (Some(layer), Some(time)) => Some(Modulation::new(pass.compute, layer, time)?),
            _ => None,
        };
        let modulation = modulation.as_ref();
        for group in groups(segments, pass.chunk_rows) {
            self.attention(pass, x, group, modulation)?;
        }
        let rows = x.shape()[0];
        for start in (0..rows).step_by(pass.chunk_rows) {
            self.feed_forward(
                pass.compute,
                x,
                start..rows.min(start + pass.chunk_rows),
                modulation,
            )?;
        }
        Ok(())
    }

    fn attention(
        &self,
        pass: Pass<'_>,
        x: &mut Tensor,
        group: &[Segment<'_>],
        modulation: Option<&Modulation>,
    ) -> Result<()> {
        let Pass {
            compute, config, ..
        } = pass;
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            return Ok(());
        };
        let rows = first.rows.start..last.rows.end;
        let normed = self
            .attention_norm1
            .forward(x.part(rows.clone()), modulation.map(|m| m.scale_msa()))?;
        let mut q = self.to_q.forward(compute, &normed)?;
        let mut k = self.to_k.forward(compute, &normed)?;
        let v = self.to_v.forward(compute, &normed)?;
        // The norm's output is read for the last time above; its memory takes the result.
        let mut attended = normed;
        let (norm_q, norm_k) = self.norms.as_ref().map(|(q, k)| (q, k)).unzip();
        for segment in group {
            let here = segment.rows.start - rows.start..segment.rows.end - rows.start;
            rotate_heads(
                q.part_mut(here.clone()),
                config.heads.dim,
                norm_q,
                Rotary::Interleaved,
                segment.rotary,
            )?;
            rotate_heads(
                k.part_mut(here.clone()),
                config.heads.dim,
                norm_k,
                Rotary::Interleaved,
                segment.rotary,
            )?;
            let (q, k, v) = (
                q.part(here.clone()),
                k.part(here.clone()),
                v.part(here.clone()),
            );
            config
                .heads
                .attend(compute, q, k, v, attended.part_mut(here))?;
        }
        drop((q, k, v));
        let out = self.to_out.forward(compute, &attended)?;
        self.attention_norm2
            .add_to(&out, modulation.map(|m| m.gate_msa()), x.part_mut(rows))
    }

    fn feed_forward(
        &self,
        compute: Compute,
        x: &mut Tensor,
        rows: Range<usize>,
        modulation: Option<&Modulation>,
    ) -> Result<()> {
        let normed = self
            .ffn_norm1
            .forward(x.part(rows.clone()), modulation.map(|m| m.scale_mlp()))?;
        let hidden = gated(compute, &normed, &self.w1, &self.w3)?;
        drop(normed);
        let out = self.w2.forward(compute, &hidden)?;
        drop(hidden);
        self.ffn_norm2
            .add_to(&out, modulation.map(|m| m.gate_mlp()), x.part_mut(rows))
    }
}

/// Neighbouring segments that are computed together: as many as `chunk_rows` holds, at least one.
fn groups<'s, 't>(segments: &'s [Segment<'t>], chunk_rows: usize) -> Vec<&'s [Segment<'t>]> {
    let mut groups = Vec::new();
    let mut start = 0;
    for end in 1..=segments.len() {
        let full =
            |end: usize| segments[end - 1].rows.end - segments[start].rows.start > chunk_rows;
        if end == segments.len() || full(end + 1) {
            groups.push(&segments[start..end]);
            start = end;
        }
    }
    groups
}

/// What every layer of a pass needs to know.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// How products are multiplied.
    pub compute: Compute,
    /// The model.
    pub config: &'a Config,
    /// Tokens computed together at most, at least 1: fewer take less memory and give the same bytes.
    pub chunk_rows: usize,
}

/// The layers before the first refiner.
struct Embedders<'w> {
    time_in: Linear<'w>,
    time_out: Linear<'w>,
    image: Linear<'w>,
    pad: Vector,
}

impl<'w> Embedders<'w> {
    fn load(w: &Weights<'w>, config: &Config) -> Result<Embedders<'w>> {
        let time = w.pp("t_embedder.mlp");
        Ok(Embedders {
            time_in: time.linear(TIME_DIM, TIME_HIDDEN, "0")?,
            time_out: time.linear(TIME_HIDDEN, config.time_dim(), "2")?,
            image: w.linear(
                config.patch_values(),
                config.dim,
                &format!("all_x_embedder.{PATCH_KEY}"),
            )?,
            pad: w.vector("x_pad_token", &[1, config.dim])?,
        })
    }

    /// One picture's patches, embedded and padded, into `rows` (T_i, D).
    fn picture(&self, compute: Compute, latents: &Tensor, mut rows: PartMut<'_>) -> Result<()> {
        let embedded = self.image.forward(compute, &patchify(latents)?)?;
        rows.fill_rows(self.pad.values())?;
        rows.first_rows(embedded.shape()[0])
            .copy_from(embedded.all())
    }

    /// (1, time_dim)
    fn time(&self, compute: Compute, time: f32) -> Result<Tensor> {
        const HALF: usize = TIME_DIM / 2;
        let mut features = [0.0; TIME_DIM];
        for i in 0..HALF {
            let frequency = (-(10_000f32.ln()) * i as f32 / HALF as f32).exp();
            let (sin, cos) = f64::from(time * frequency).sin_cos();
            features[i] = cos as f32;
            features[HALF + i] = sin as f32;
        }
        let features = Tensor::from_slice(&[1, TIME_DIM], &features)?;
        let hidden = self
            .time_in
            .forward_activated(compute, &features, Activation::Silu)?;
        self.time_out.forward(compute, &hidden)
    }
}

/// The layers after the last.
struct Final<'w> {
    modulation: Linear<'w>,
    linear: Linear<'w>,
}

impl<'w> Final<'w> {
    fn load(w: &Weights<'w>, config: &Config) -> Result<Final<'w>> {
        let w = w.pp(format!("all_final_layer.{PATCH_KEY}"));
        Ok(Final {
            modulation: w.linear(config.time_dim(), config.dim, "adaLN_modulation.1")?,
            linear: w.linear(config.dim, config.patch_values(), "linear")?,
        })
    }
}

impl Final<'_> {
    /// The velocity of each sequence's picture, from the rows of all sequences.
    fn velocities(
        &self,
        pass: Pass<'_>,
        sequences: &Sequences,
        (x, segments): (&Tensor, &[Segment<'_>]),
        time: &Tensor,
    ) -> Result<Vec<Tensor>> {
        let real = image_tokens(sequences.size);
        let mut scale = self.modulation.forward(pass.compute, &silu(time)?)?;
        ops::apply(Function::Plus(1.0), scale.values_mut())?;
        let velocity = |segment: &Segment<'_>| {
            let start = segment.rows.start;
            let mut patches = Tensor::new(&[real, pass.config.patch_values()])?;
            for first in (0..real).step_by(pass.chunk_rows) {
                let end = real.min(first + pass.chunk_rows);
                let rows = x.part(start + first..start + end);
                let normed = layer_norm_scaled(rows, FINAL_NORM_EPS, scale.row(0))?;
                let out = self.linear.forward(pass.compute, &normed)?;
                patches.part_mut(first..end).copy_from(out.all())?;
            }
            unpatchify(&patches, pass.config.channels, sequences.size)?.into_host()
        };
        segments.iter().map(velocity).collect()
    }
}

/// The layers that embed captions.
struct CaptionEmbedder<'w> {
    norm: RmsNorm,
    linear: Linear<'w>,
    pad: Vector,
}

impl<'w> CaptionEmbedder<'w> {
    fn load(w: &Weights<'w>, config: &Config) -> Result<CaptionEmbedder<'w>> {
        Ok(CaptionEmbedder {
            norm: w.rms_norm(config.caption_dim, config.norm_eps, "cap_embedder.0")?,
            linear: w.linear(config.caption_dim, config.dim, "cap_embedder.1")?,
            pad: w.vector("cap_pad_token", &[1, config.dim])?,
        })
    }
}

/// The blocks that run once a job: caption embedder and context refiners.
///
/// # Errors
/// When headers and configuration do not agree.
pub fn caption_layout(headers: &dyn Headers, config: &Config) -> Result<ComponentLayout> {
    let embed = record(headers, "cap_embedder", |w| {
        CaptionEmbedder::load(w, config).map(drop)
    })?;
    let refiner = |i: usize| {
        let name = format!("context_refiner.{i}");
        record(headers, name.clone(), |w| {
            Layer::load(&w.pp(&name), config, false).map(drop)
        })
    };
    let blocks = std::iter::once(Ok(embed))
        .chain((0..config.refiners).map(refiner))
        .collect::<Result<_>>()?;
    Ok(ComponentLayout {
        name: "transformer".to_owned(),
        blocks,
        tables: Vec::new(),
    })
}

/// The blocks that run once a step, in order: embedders, noise refiners, layers, the final layer.
///
/// # Errors
/// When headers and configuration do not agree.
pub fn layout(headers: &dyn Headers, config: &Config) -> Result<ComponentLayout> {
    let layer = |name: String| {
        record(headers, name.clone(), |w| {
            Layer::load(&w.pp(&name), config, true).map(drop)
        })
    };
    let mut blocks = vec![record(headers, "embedders", |w| {
        Embedders::load(w, config).map(drop)
    })?];
    for i in 0..config.refiners {
        blocks.push(layer(format!("noise_refiner.{i}"))?);
    }
    for i in 0..config.layers {
        blocks.push(layer(format!("layers.{i}"))?);
    }
    blocks.push(record(headers, "final_layer", |w| {
        Final::load(w, config).map(drop)
    })?);
    Ok(ComponentLayout {
        name: "transformer".to_owned(),
        blocks,
        tables: Vec::new(),
    })
}

/// Embeds and refines captions, all in one visit of the blocks of [`caption_layout`].
///
/// # Shapes
/// Each of `captions` (t, caption_dim), the text encoder's states of one prompt, to (T_c, D).
///
/// # Errors
/// When a block cannot be had or memory is refused.
pub fn refine_captions(
    source: &mut dyn BlockSource,
    pass: Pass<'_>,
    captions: &[&Tensor],
) -> Result<Vec<Tensor>> {
    let _there = source.place().enter();
    let config = pass.config;
    let mut refined = Vec::with_capacity(captions.len());
    {
        let weights = source.block(0)?;
        let embedder = CaptionEmbedder::load(&weights, config)?;
        for caption in captions {
            let (tokens, _) = caption.dims2()?;
            let normed = embedder.norm.forward(&*caption.here()?, None)?;
            let embedded = embedder.linear.forward(pass.compute, &normed)?;
            let mut rows = Tensor::new(&[padded(tokens), config.dim])?;
            rows.part_mut(0..tokens).copy_from(embedded.all())?;
            rows.part_mut(tokens..padded(tokens))
                .fill_rows(embedder.pad.values())?;
            refined.push(rows);
        }
    }
    let longest = refined
        .iter()
        .map(|rows| rows.shape()[0])
        .max()
        .unwrap_or(0);
    // Padding goes on counting: a caption's tokens, real or not, stand at 1, 2, 3, ...
    let rotary = config.rotary(longest, |token| [token + 1, 0, 0])?;
    for i in 0..config.refiners {
        let weights = source.block(1 + i)?;
        let layer = Layer::load(&weights.pp(format!("context_refiner.{i}")), config, false)?;
        for rows in &mut refined {
            let segment = Segment {
                rows: 0..rows.shape()[0],
                rotary: &rotary,
            };
            layer.forward(pass, rows, &[segment], None)?;
        }
    }
    refined.into_iter().map(Tensor::into_host).collect()
}

impl Config {
    /// Angles of `tokens` tokens standing at `position`, on three axes.
    fn rotary(&self, tokens: usize, position: impl Fn(usize) -> [usize; 3]) -> Result<RotaryTable> {
        let axes: Vec<(usize, f64)> = (0..3)
            .flat_map(|axis| {
                let dim = self.axes_dims[axis];
                (0..dim / 2).map(move |i| {
                    (
                        axis,
                        1.0 / self.rope_theta.powf((2 * i) as f64 / dim as f64),
                    )
                })
            })
            .collect();
        RotaryTable::new(tokens, axes.len(), |token, pair| {
            let (axis, frequency) = axes[pair];
            (position(token)[axis] as f64 * frequency) as f32
        })
    }
}

/// What a batch of sequences looks like; made once a job.
pub struct Sequences {
    size: (usize, usize),
    pictures: usize,
    /// Padded caption length of each sequence; sequence s shows picture s mod N.
    captions: Vec<usize>,
    /// One table a caption length: the picture's tokens, then the caption's.
    tables: Vec<(usize, RotaryTable)>,
}

impl Sequences {
    /// `pictures` pictures of h x w latent pixels; `captions` holds the padded caption length of each sequence, all
    /// prompts first, then (with guidance) all negative prompts.
    ///
    /// # Errors
    /// When the model has no such positions or memory is refused.
    pub fn new(
        config: &Config,
        size: (usize, usize),
        pictures: usize,
        captions: Vec<usize>,
    ) -> Result<Sequences> {
        let mut tables: Vec<(usize, RotaryTable)> = Vec::new();
        let (image, columns) = (image_tokens(size), size.1 / PATCH);
        for &caption in &captions {
            config.check_positions(size, caption)?;
            if tables.iter().any(|(length, _)| *length == caption) {
                continue;
            }
            let table = config.rotary(padded(image) + caption, |token| {
                if token < image {
                    [caption + 1, token / columns, token % columns]
                } else if token < padded(image) {
                    [0, 0, 0]
                } else {
                    [token - padded(image) + 1, 0, 0]
                }
            })?;
            tables.push((caption, table));
        }
        Ok(Sequences {
            size,
            pictures,
            captions,
            tables,
        })
    }

    /// A copy where this thread makes new tensors.
    fn copied_here(&self) -> Result<Sequences> {
        let tables = self.tables.iter();
        Ok(Sequences {
            size: self.size,
            pictures: self.pictures,
            captions: self.captions.clone(),
            tables: tables
                .map(|(caption, table)| Ok((*caption, table.copied_here()?)))
                .collect::<Result<_>>()?,
        })
    }

    /// Picture tokens of one sequence, padded (T_i).
    fn image_rows(&self) -> usize {
        padded(image_tokens(self.size))
    }

    fn table(&self, caption: usize) -> &RotaryTable {
        let found = self.tables.iter().find(|(length, _)| *length == caption);
        &found.expect("every caption length got a table in `new`").1
    }

    /// The pictures as the noise refiner sees them: one for each (picture, caption length), since positions of a
    /// picture depend on the length of its caption and on nothing else of it. Also which of them each sequence takes.
    fn refined_pictures(&self) -> (Vec<(usize, usize)>, Vec<usize>) {
        let mut pairs = Vec::new();
        let mut taken = Vec::new();
        for (s, &caption) in self.captions.iter().enumerate() {
            let pair = (s % self.pictures, caption);
            let at = pairs
                .iter()
                .position(|known| *known == pair)
                .unwrap_or_else(|| {
                    pairs.push(pair);
                    pairs.len() - 1
                });
            taken.push(at);
        }
        (pairs, taken)
    }
}

/// The velocity of every sequence at `time` (0 is noise, 1 a picture), in one visit of the blocks of [`layout`].
///
/// # Shapes
/// `latents`: N of (C, h, w); `captions`: S of (T_c, D) from [`refine_captions`]; returns S of (C, h, w), f32.
///
/// # Errors
/// When a block cannot be had or memory is refused.
pub fn velocities(
    source: &mut dyn BlockSource,
    pass: Pass<'_>,
    sequences: &Sequences,
    (latents, captions): (&[&Tensor], &[&Tensor]),
    time: f32,
) -> Result<Vec<Tensor>> {
    let _there = source.place().enter();
    let config = pass.config;
    // On the host everything is there already.
    let elsewhere = !source.place().is_host();
    let brought = elsewhere.then(|| sequences.copied_here()).transpose()?;
    let sequences = brought.as_ref().unwrap_or(sequences);
    let (pairs, taken) = sequences.refined_pictures();
    let rows_image = sequences.image_rows();
    let mut pictures = Tensor::new(&[pairs.len() * rows_image, config.dim])?;
    let time = {
        let weights = source.block(0)?;
        let embedders = Embedders::load(&weights, config)?;
        for (p, &(picture, _)) in pairs.iter().enumerate() {
            let rows = p * rows_image..(p + 1) * rows_image;
            embedders.picture(pass.compute, latents[picture], pictures.part_mut(rows))?;
        }
        embedders.time(pass.compute, time * config.time_scale)?
    };

    let segments: Vec<Segment<'_>> = pairs
        .iter()
        .enumerate()
        .map(|(p, &(_, caption))| Segment {
            rows: p * rows_image..(p + 1) * rows_image,
            rotary: sequences.table(caption),
        })
        .collect();
    for i in 0..config.refiners {
        let weights = source.block(1 + i)?;
        let layer = Layer::load(&weights.pp(format!("noise_refiner.{i}")), config, true)?;
        layer.forward(pass, &mut pictures, &segments, Some(&time))?;
    }

    let captions: Vec<_> = captions
        .iter()
        .map(|caption| caption.here())
        .collect::<Result<_>>()?;
    let captions: Vec<&Tensor> = captions.iter().map(|caption| &**caption).collect();
    let (mut x, segments) = unify(sequences, &pictures, &taken, &captions)?;
    drop(pictures);
    for i in 0..config.layers {
        let weights = source.block(1 + config.refiners + i)?;
        let layer = Layer::load(&weights.pp(format!("layers.{i}")), config, true)?;
        layer.forward(pass, &mut x, &segments, Some(&time))?;
    }

    let weights = source.block(1 + config.refiners + config.layers)?;
    Final::load(&weights, config)?.velocities(pass, sequences, (&x, &segments), &time)
}

/// Pictures and captions of all sequences in one matrix: each sequence its picture, then its caption.
fn unify<'s>(
    sequences: &'s Sequences,
    pictures: &Tensor,
    taken: &[usize],
    captions: &[&Tensor],
) -> Result<(Tensor, Vec<Segment<'s>>)> {
    let rows_image = sequences.image_rows();
    let total = sequences
        .captions
        .iter()
        .map(|caption| rows_image + caption)
        .sum();
    let mut x = Tensor::new(&[total, pictures.shape()[1]])?;
    let mut segments = Vec::with_capacity(taken.len());
    let mut start = 0;
    for ((&from, caption), &tokens) in taken.iter().zip(captions).zip(&sequences.captions) {
        let middle = start + rows_image;
        x.part_mut(start..middle)
            .copy_from(pictures.part(from * rows_image..(from + 1) * rows_image))?;
        x.part_mut(middle..middle + tokens)
            .copy_from(caption.all())?;
        segments.push(Segment {
            rows: start..middle + tokens,
            rotary: sequences.table(tokens),
        });
        start = middle + tokens;
    }
    Ok((x, segments))
}

fn silu(x: &Tensor) -> Result<Tensor> {
    let mut out = x.duplicate()?;
    ops::apply(Function::Act(Activation::Silu), out.values_mut())?;
    Ok(out)
}

/// (C, h, w) to (tokens, 2 * 2 * C): a row a patch, channels fastest.
fn patchify(latents: &Tensor) -> Result<Tensor> {
    let (channels, h, w) = latents.dims3()?;
    if !Place::here().is_host() {
        return patchify_there(latents);
    }
    let mut patches = Tensor::new(&[image_tokens((h, w)), PATCH * PATCH * channels])?;
    for_patches((channels, h, w), |map, patch| {
        patches.data_mut()[patch] = latents.data()[map]
    });
    Ok(patches)
}

/// [`patchify`] of latents of the host, on the device where this thread makes new tensors.
fn patchify_there(latents: &Tensor) -> Result<Tensor> {
    let (channels, h, w) = latents.dims3()?;
    let map = latents.copied_here()?;
    let mut patches = Tensor::new(&[image_tokens((h, w)), PATCH * PATCH * channels])?;
    if let ValuesMut::Device(to) = patches.values_mut() {
        to.device
            .patches(map.values().span(), [channels, h, w], to.span, false)?;
    }
    Ok(patches)
}

/// The inverse of [`patchify`].
fn unpatchify(patches: &Tensor, channels: usize, (h, w): (usize, usize)) -> Result<Tensor> {
    let mut map = Tensor::new(&[channels, h, w])?;
    if let ValuesMut::Device(to) = map.values_mut() {
        to.device
            .patches(to.span, [channels, h, w], patches.values().span(), true)?;
        return Ok(map);
    }
    for_patches((channels, h, w), |at, patch| {
        map.data_mut()[at] = patches.data()[patch]
    });
    Ok(map)
}

/// Calls `pair(index in the map, index in the patches)` for every value.
fn for_patches((channels, h, w): (usize, usize, usize), mut pair: impl FnMut(usize, usize)) {
    let width = PATCH * PATCH * channels;
    for y in 0..h {
        for x in 0..w {
            let token = (y / PATCH) * (w / PATCH) + x / PATCH;
            let within = (y % PATCH) * PATCH + x % PATCH;
            for c in 0..channels {
                pair((c * h + y) * w + x, token * width + within * channels + c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_go_back_to_the_map_they_came_from() {
        let values: Vec<f32> = (0..3 * 4 * 6).map(|i| i as f32).collect();
        let map = Tensor::from_slice(&[3, 4, 6], &values).unwrap();
        let patches = patchify(&map).unwrap();
        assert_eq!(patches.shape(), [6, 12]);
        // The second value of the first row is channel 1 of the first pixel.
        assert_eq!(patches.data()[1], 24.0);
        assert_eq!(unpatchify(&patches, 3, (4, 6)).unwrap().data(), values);
    }

    #[test]
    fn groups_hold_what_the_chunk_allows_and_at_least_one() {
        let table = RotaryTable::new(0, 1, |_, _| 0.0).unwrap();
        let segments: Vec<Segment<'_>> = (0..5)
            .map(|i| Segment {
                rows: i * 10..(i + 1) * 10,
                rotary: &table,
            })
            .collect();
        let sizes = |chunk| {
            groups(&segments, chunk)
                .iter()
                .map(|group| group.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(sizes(1), [1, 1, 1, 1, 1]);
        assert_eq!(sizes(20), [2, 2, 1]);
        assert_eq!(sizes(29), [2, 2, 1]);
        assert_eq!(sizes(1000), [5]);
    }
}
