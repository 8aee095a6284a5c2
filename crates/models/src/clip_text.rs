//! The CLIP text encoders of Stable Diffusion: ViT-L, OpenCLIP's H and bigG, in the form transformers gives them.
//!
//! A prompt comes in chunks of 77 tokens that know nothing of each other; all of them are encoded in one visit of the
//! blocks. What is wanted of each is a hidden state some layers before the end, and sometimes the state of its end token
//! after all layers, which is called pooled.
//!
//! # Source
//! transformers `CLIPTextModel` and `CLIPTextModelWithProjection`; which state is wanted follows diffusers'
//! `encode_prompt`.
//!
//! # Shapes
//! T tokens, D hidden width, P pooled width, L layers.

mod config;

use lowtide_core::{ComponentLayout, TensorLayout};

use crate::layers::{LayerNorm, Linear};
use crate::tensor::{Compute, Tensor};
use crate::weights::{BlockSource, Headers, Weights, record};
use crate::{Error, Result};

pub use config::{Class, Config};

/// How files name the token table, after the prefix that older ones put before every name.
const TOKEN_TABLE: &str = "embeddings.token_embedding.weight";
/// How files name the position table, after that prefix.
const POSITION_TABLE: &str = "embeddings.position_embedding.weight";
/// The prefixes there are.
const ROOTS: [&str; 2] = ["text_model.", ""];
/// What the block of the final norm and the projection is called.
const FINAL: &str = "final";

/// What is wanted of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Layers before the end whose effect the hidden state is not to have: 0 takes the last layer's output.
    pub skip: usize,
    /// Whether the final norm is applied to it.
    pub norm: bool,
    /// Whether the pooled state is wanted as well. It is always that of the last layer, so all layers run.
    pub pooled: bool,
}

impl Wanted {
    /// Stable Diffusion 1 and 2: the state `clip_skip` layers before the end, normed.
    pub fn normed(clip_skip: usize) -> Wanted {
        Wanted {
            skip: clip_skip,
            norm: true,
            pooled: false,
        }
    }

    /// SDXL: the state one layer and `clip_skip` more before the end, as it is; pooled from its second encoder.
    pub fn penultimate(clip_skip: usize, pooled: bool) -> Wanted {
        Wanted {
            skip: clip_skip.saturating_add(1),
            norm: false,
            pooled,
        }
    }

    /// Layers that have to run, of `layers`.
    fn run(&self, layers: usize) -> Result<usize> {
        let taken_after = layers
            .checked_sub(self.skip)
            .ok_or_else(|| Error::BeyondModel {
                what: "clip_skip",
                asked: self.skip,
                limit: layers,
            })?;
        Ok(if self.pooled { layers } else { taken_after })
    }

    fn needs_final(&self) -> bool {
        self.norm || self.pooled
    }
}

/// A chunk of a prompt on its way in.
#[derive(Debug)]
pub struct Sequence {
    /// Rows of the token table, or of learned tokens, (T, D).
    pub rows: Tensor,
    /// The row that is pooled, see [`Config::end_of`].
    pub end: usize,
    /// What is wanted.
    pub wanted: Wanted,
}

/// A chunk of a prompt on its way out.
#[derive(Debug)]
pub struct Encoded {
    /// The hidden state (T, D).
    pub hidden: Tensor,
    /// The pooled state (1, P), where it was wanted.
    pub pooled: Option<Tensor>,
}

/// An encoder that is ready to run.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    /// How products are multiplied.
    pub compute: Compute,
    /// Its numbers.
    pub config: &'a Config,
    /// The layout whose blocks the source hands out.
    pub layout: &'a ComponentLayout,
    /// The first rows of the position table, as many as the longest sequence has or more, (T, D).
    pub positions: &'a Tensor,
}

/// One layer.
struct Layer<'w> {
    layer_norm1: LayerNorm,
    q_proj: Linear<'w>,
    k_proj: Linear<'w>,
    v_proj: Linear<'w>,
    out_proj: Linear<'w>,
    layer_norm2: LayerNorm,
    fc1: Linear<'w>,
    fc2: Linear<'w>,
}

impl<'w> Layer<'w> {
    fn load(w: &Weights<'w>, config: &Config) -> Result<Layer<'w>> {
        let (d, f) = (config.hidden, config.intermediate);
        let (attention, mlp) = (w.pp("self_attn"), w.pp("mlp"));
        Ok(Layer {
            layer_norm1: w.layer_norm(d, config.eps, "layer_norm1")?,
            q_proj: attention.linear(d, d, "q_proj")?,
            k_proj: attention.linear(d, d, "k_proj")?,
            v_proj: attention.linear(d, d, "v_proj")?,
            out_proj: attention.linear(d, d, "out_proj")?,
            layer_norm2: w.layer_norm(d, config.eps, "layer_norm2")?,
            fc1: mlp.linear(d, f, "fc1")?,
            fc2: mlp.linear(f, d, "fc2")?,
        })
    }

    /// `x` (T, D), one sequence, in place.
    fn forward(&self, compute: Compute, config: &Config, x: &mut Tensor) -> Result<()> {
        let normed = self.layer_norm1.forward(&*x)?;
        let q = self.q_proj.forward(compute, &normed)?;
        let k = self.k_proj.forward(compute, &normed)?;
        let v = self.v_proj.forward(compute, &normed)?;
        drop(normed);
        let mut attended = Tensor::new(q.shape())?;
        let heads = &config.heads;
        heads.attend(compute, q.all(), k.all(), v.all(), attended.all_mut())?;
        drop((q, k, v));
        let out = self.out_proj.forward(compute, &attended)?;
        drop(attended);
        x.all_mut().add(out.all())?;
        drop(out);

        let normed = self.layer_norm2.forward(&*x)?;
        let inner = self
            .fc1
            .forward_activated(compute, &normed, config.activation)?;
        drop(normed);
        let out = self.fc2.forward(compute, &inner)?;
        x.all_mut().add(out.all())
    }
}

/// What comes after the layers.
struct Final<'w> {
    norm: LayerNorm,
    projection: Option<Linear<'w>>,
}

impl<'w> Final<'w> {
    fn load(w: &Weights<'w>, root: &str, config: &Config) -> Result<Final<'w>> {
        let norm = w.layer_norm(
            config.hidden,
            config.eps,
            &format!("{root}final_layer_norm"),
        )?;
        let projection = config
            .projection
            .map(|dim| w.linear_no_bias(config.hidden, dim, "text_projection"))
            .transpose()?;
        Ok(Final { norm, projection })
    }

    fn finish(&self, compute: Compute, one: Running) -> Result<Encoded> {
        let mut pooled = None;
        if one.wanted.pooled {
            pooled = Some(self.pool(compute, &one.state, one.end)?);
        }
        let mut hidden = one.kept.unwrap_or(one.state);
        if one.wanted.norm {
            hidden = self.norm.forward(&hidden)?;
        }
        Ok(Encoded {
            hidden: hidden.into_host()?,
            pooled: pooled.map(Tensor::into_host).transpose()?,
        })
    }

    /// The state of the end token, (1, P).
    fn pool(&self, compute: Compute, state: &Tensor, end: usize) -> Result<Tensor> {
        let normed = self.norm.forward(state.part(end..end + 1))?;
        match &self.projection {
            None => Ok(normed),
            Some(linear) => linear.forward(compute, &normed),
        }
    }
}

/// The scope of layer `i`.
fn layer_scope(root: &str, i: usize) -> String {
    format!("{root}encoder.layers.{i}")
}

/// The layers and what comes after them, as far as `wanted` needs them, and the two tables: tokens, positions. A request
/// that needs less can run over the same layout.
///
/// # Errors
/// When headers and configuration do not agree, or `wanted` skips more layers than there are.
pub fn layout(
    headers: &dyn Headers,
    component: &str,
    config: &Config,
    wanted: &Wanted,
) -> Result<ComponentLayout> {
    let named = |root: &&str| headers.tensor(&format!("{root}{TOKEN_TABLE}")).is_some();
    let root = ROOTS.into_iter().find(named).unwrap_or(ROOTS[0]);
    let table = |name: &str, rows: usize| {
        let name = format!("{root}{name}");
        let (dtype, shape) = headers
            .tensor(&name)
            .ok_or_else(|| Error::MissingTensor { name: name.clone() })?;
        let expected = vec![rows, config.hidden];
        if shape != expected {
            return Err(Error::WrongShape {
                name,
                expected,
                found: shape,
            });
        }
        Ok(TensorLayout { name, dtype, shape })
    };
    let tables = vec![
        table(TOKEN_TABLE, config.vocabulary)?,
        table(POSITION_TABLE, config.positions)?,
    ];
    let mut blocks = Vec::new();
    for i in 0..wanted.run(config.layers)? {
        blocks.push(record(headers, format!("layers.{i}"), |w| {
            Layer::load(&w.pp(layer_scope(root, i)), config).map(drop)
        })?);
    }
    if wanted.needs_final() {
        blocks.push(record(headers, FINAL, |w| {
            Final::load(w, root, config).map(drop)
        })?);
    }
    Ok(ComponentLayout {
        name: component.to_owned(),
        blocks,
        tables,
    })
}

/// A sequence between the layers.
struct Running {
    state: Tensor,
    end: usize,
    wanted: Wanted,
    /// The hidden state that is wanted, where layers run after it.
    kept: Option<Tensor>,
}

impl Running {
    fn start(encoder: &Encoder<'_>, sequence: Sequence) -> Result<Running> {
        let Sequence { rows, end, wanted } = sequence;
        let (tokens, columns) = rows.dims2()?;
        let config = encoder.config;
        if tokens > config.positions {
            return Err(Error::BeyondModel {
                what: "tokens of a chunk",
                asked: tokens,
                limit: config.positions,
            });
        }
        let places = encoder.positions.dims2()?;
        if columns != config.hidden || places.1 != columns || places.0 < tokens || end >= tokens {
            return Err(Error::Shape {
                what: "embedded tokens",
                expected: vec![tokens, config.hidden],
                found: vec![places.0.min(end + 1), columns.min(places.1)],
            });
        }
        let mut state = rows;
        state.all_mut().add(encoder.positions.part(0..tokens))?;
        let state = state.brought_here()?;
        let mut running = Running {
            state,
            end,
            wanted,
            kept: None,
        };
        running.passed(config, 0)?;
        Ok(running)
    }

    /// Keeps the state where it is the one wanted, after `layers` layers.
    fn passed(&mut self, config: &Config, layers: usize) -> Result<()> {
        let Wanted { skip, pooled, .. } = self.wanted;
        if pooled && skip > 0 && layers + skip == config.layers {
            self.kept = Some(self.state.duplicate()?);
        }
        Ok(())
    }

    fn needs(&self, config: &Config, layer: usize) -> bool {
        self.wanted.pooled || layer + self.wanted.skip < config.layers
    }
}

/// Encodes several chunks in one visit of the blocks. Blocks of the layout that nothing wants are passed over, and none
/// is asked for after the last that something does.
///
/// # Errors
/// When more layers are skipped than there are, a block cannot be had, or memory is refused.
pub fn encode(
    source: &mut dyn BlockSource,
    encoder: &Encoder<'_>,
    sequences: Vec<Sequence>,
) -> Result<Vec<Encoded>> {
    let _there = source.place().enter();
    let (config, compute) = (encoder.config, encoder.compute);
    let blocks = &encoder.layout.blocks;
    let layers = blocks.iter().filter(|block| block.name != FINAL).count();
    let needs_final = sequences.iter().any(|one| one.wanted.needs_final());
    let mut needed = 0;
    for sequence in &sequences {
        needed = needed.max(sequence.wanted.run(config.layers)?);
    }
    if needed > layers || (needs_final && blocks.len() == layers) {
        return Err(Error::Shape {
            what: "blocks of the layout",
            expected: vec![needed, usize::from(needs_final)],
            found: vec![layers, blocks.len() - layers],
        });
    }
    let table = &encoder.layout.tables[0].name;
    let root = table.strip_suffix(TOKEN_TABLE).unwrap_or("");
    let start = |sequence| Running::start(encoder, sequence);
    let mut running: Vec<Running> = sequences.into_iter().map(start).collect::<Result<_>>()?;
    for i in 0..layers {
        if i >= needed && !needs_final {
            break;
        }
        let weights = source.block(i)?;
        if i >= needed {
            continue;
        }
        let layer = Layer::load(&weights.pp(layer_scope(root, i)), config)?;
        for one in running.iter_mut().filter(|one| one.needs(config, i)) {
            layer.forward(compute, config, &mut one.state)?;
            one.passed(config, i + 1)?;
        }
    }
    if !needs_final {
        let encoded = running.into_iter().map(|one| {
            Ok(Encoded {
                hidden: one.state.into_host()?,
                pooled: None,
            })
        });
        return encoded.collect();
    }
    let weights = source.block(layers)?;
    let last = Final::load(&weights, root, config)?;
    let encoded = running.into_iter().map(|one| last.finish(compute, one));
    encoded.collect()
}
