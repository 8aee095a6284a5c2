//! The Qwen3 text encoder, as pipelines use it: the hidden states that enter the last layer.
//!
//! # Source
//! transformers `Qwen3Model`; Z-Image reads `hidden_states[-2]`, so the last layer and the final norm are never needed.

use lowtide_core::{ComponentLayout, TensorLayout};
use lowtide_kernels::Rotary;
use serde_json::Value;

use crate::config::ConfigReader;
use crate::layers::{Heads, Linear, RmsNorm, RotaryTable, gated, rotate_heads};
use crate::tensor::{Compute, Tensor};
use crate::weights::{BlockSource, Headers, Weights, record};
use crate::{Error, Result};

/// The numbers of config.json that matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the hidden states (D).
    pub hidden: usize,
    /// Layers of the whole model; one less is run.
    pub layers: usize,
    /// Width of the feed-forward.
    pub intermediate: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    heads: Heads,
    eps: f32,
    rope_theta: f64,
    bias: bool,
}

impl Config {
    /// Reads config.json of a `Qwen3Model` or `Qwen3ForCausalLM`.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_json(value: &Value) -> Result<Config> {
        let config = ConfigReader::new("text_encoder", value);
        config.only("model_type", "qwen3")?;
        config.only("hidden_act", "silu")?;
        if config.flag("use_sliding_window", false)? {
            return Err(config.error("use_sliding_window", "is true, which is not supported"));
        }
        let hidden = config.size("hidden_size", None, 1..=65_536)?;
        let query = config.size("num_attention_heads", None, 1..=1024)?;
        let key_value = config.size("num_key_value_heads", Some(query), 1..=1024)?;
        if query % key_value != 0 {
            return Err(config.error(
                "num_key_value_heads",
                format!("is {key_value}, no divisor of {query} heads"),
            ));
        }
        let dim = config.size("head_dim", Some(hidden / query), 2..=1024)?;
        if dim % 2 != 0 {
            return Err(config.error("head_dim", format!("is {dim}, which is odd")));
        }
        // Newer files nest the rotary settings; older ones have them at the top.
        let nested = config.object("rope_parameters");
        let rope_theta = nested.number(
            "rope_theta",
            Some(config.number("rope_theta", Some(1_000_000.0))?),
        )?;
        nested.only("rope_type", "default")?;
        config.object("rope_scaling").only("rope_type", "default")?;
        Ok(Config {
            hidden,
            layers: config.size("num_hidden_layers", None, 1..=1024)?,
            intermediate: config.size("intermediate_size", None, 1..=262_144)?,
            vocabulary: config.size("vocab_size", None, 1..=4_194_304)?,
            heads: Heads {
                query,
                key_value,
                dim,
                causal: true,
            },
            eps: config.number("rms_norm_eps", Some(1e-6))? as f32,
            rope_theta,
            bias: config.flag("attention_bias", false)?,
        })
    }

    /// Blocks that are run.
    pub fn blocks(&self) -> usize {
        self.layers - 1
    }

    /// Bytes a token of a sequence costs inside a layer, beside the hidden states themselves.
    pub fn layer_bytes_per_token(&self) -> u64 {
        let queries = self.heads.query * self.heads.dim;
        let keys = self.heads.key_value * self.heads.dim;
        // Attention holds the norm's output, then q, k, v; later q, k, v and the result. The feed-forward holds the
        // norm's output and the hidden values, then those and the result.
        let attention = (self.hidden + queries + 2 * keys)
            .max(2 * queries + 2 * keys)
            .max(queries + self.hidden);
        let feed_forward = self.hidden + self.intermediate;
        4 * attention.max(feed_forward) as u64
    }

    /// Multiplications and additions a token costs in all blocks, without attention's scores.
    pub fn flops_per_token(&self) -> u64 {
        let queries = self.heads.query * self.heads.dim;
        let keys = self.heads.key_value * self.heads.dim;
        let layer = self.hidden * (2 * queries + 2 * keys) + 3 * self.hidden * self.intermediate;
        2 * (self.blocks() * layer) as u64
    }

    /// Bytes of the rotary table a token.
    pub fn rotary_bytes_per_token(&self) -> u64 {
        4 * self.heads.dim as u64
    }

    /// Multiplications and additions of attention's scores and values in all blocks, for one query and one key.
    pub fn attention_flops(&self) -> f64 {
        4.0 * (self.blocks() * self.heads.query * self.heads.dim) as f64
    }
}

/// One layer.
struct Layer<'w> {
    input_layernorm: RmsNorm,
    q_proj: Linear<'w>,
    k_proj: Linear<'w>,
    v_proj: Linear<'w>,
    o_proj: Linear<'w>,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    gate_proj: Linear<'w>,
    up_proj: Linear<'w>,
    down_proj: Linear<'w>,
}

impl<'w> Layer<'w> {
    fn load(w: &Weights<'w>, config: &Config) -> Result<Layer<'w>> {
        let (d, f, bias) = (config.hidden, config.intermediate, config.bias);
        let (queries, keys) = (
            config.heads.query * config.heads.dim,
            config.heads.key_value * config.heads.dim,
        );
        let attention = w.pp("self_attn");
        let mlp = w.pp("mlp");
        Ok(Layer {
            input_layernorm: w.rms_norm(d, config.eps, "input_layernorm")?,
            q_proj: attention.linear_if_bias(bias, d, queries, "q_proj")?,
            k_proj: attention.linear_if_bias(bias, d, keys, "k_proj")?,
            v_proj: attention.linear_if_bias(bias, d, keys, "v_proj")?,
            o_proj: attention.linear_if_bias(bias, queries, d, "o_proj")?,
            q_norm: attention.rms_norm(config.heads.dim, config.eps, "q_norm")?,
            k_norm: attention.rms_norm(config.heads.dim, config.eps, "k_norm")?,
            post_attention_layernorm: w.rms_norm(d, config.eps, "post_attention_layernorm")?,
            gate_proj: mlp.linear_no_bias(d, f, "gate_proj")?,
            up_proj: mlp.linear_no_bias(d, f, "up_proj")?,
            down_proj: mlp.linear_no_bias(f, d, "down_proj")?,
        })
    }

    /// `x` (T, D), one sequence, in place.
    fn forward(
        &self,
        compute: Compute,
        config: &Config,
        x: &mut Tensor,
        rotary: &RotaryTable,
    ) -> Result<()> {
        let (tokens, _) = x.dims2()?;
        let heads = &config.heads;
        let normed = self.input_layernorm.forward(&*x, None)?;
        let mut q = self.q_proj.forward(compute, &normed)?;
        let mut k = self.k_proj.forward(compute, &normed)?;
        let v = self.v_proj.forward(compute, &normed)?;
        drop(normed);
        rotate_heads(
            q.all_mut(),
            heads.dim,
            Some(&self.q_norm),
            Rotary::Halves,
            rotary,
        )?;
        rotate_heads(
            k.all_mut(),
            heads.dim,
            Some(&self.k_norm),
            Rotary::Halves,
            rotary,
        )?;
        let mut attended = Tensor::new(&[tokens, heads.query * heads.dim])?;
        heads.attend(compute, q.all(), k.all(), v.all(), attended.all_mut())?;
        drop((q, k, v));
        let out = self.o_proj.forward(compute, &attended)?;
        drop(attended);
        x.all_mut().add(out.all())?;
        drop(out);

        let normed = self.post_attention_layernorm.forward(&*x, None)?;
        let hidden = gated(compute, &normed, &self.gate_proj, &self.up_proj)?;
        drop(normed);
        let out = self.down_proj.forward(compute, &hidden)?;
        x.all_mut().add(out.all())
    }
}

/// The prefix of every name: `Qwen3ForCausalLM` files say `model.layers...`, `Qwen3Model` files `layers...`.
fn root(headers: &dyn Headers) -> &'static str {
    if headers.tensor("model.embed_tokens.weight").is_some() {
        "model."
    } else {
        ""
    }
}

/// The layers that are run, and the embedding table.
///
/// # Errors
/// When headers and configuration do not agree.
pub fn layout(headers: &dyn Headers, config: &Config) -> Result<ComponentLayout> {
    let root = root(headers);
    let name = format!("{root}embed_tokens.weight");
    let (dtype, shape) = headers
        .tensor(&name)
        .ok_or_else(|| Error::MissingTensor { name: name.clone() })?;
    let expected = vec![config.vocabulary, config.hidden];
    if shape != expected {
        return Err(Error::WrongShape {
            name,
            expected,
            found: shape,
        });
    }
    let table = TensorLayout { name, dtype, shape };
    let block = |i: usize| {
        let scope = format!("{root}layers.{i}");
        record(headers, format!("layers.{i}"), |w| {
            Layer::load(&w.pp(&scope), config).map(drop)
        })
    };
    let blocks = (0..config.blocks()).map(block).collect::<Result<_>>()?;
    Ok(ComponentLayout {
        name: "text_encoder".to_owned(),
        blocks,
        tables: vec![table],
    })
}

/// Encodes several prompts in one visit of the blocks.
///
/// # Shapes
/// Each of `prompts`: the embedding rows of its tokens (T, D), f32; replaced by the hidden states before the last
/// layer, (T, D).
///
/// # Errors
/// When a block cannot be had or memory is refused.
pub fn encode(
    source: &mut dyn BlockSource,
    compute: Compute,
    (config, table): (&Config, &TensorLayout),
    prompts: &mut [Tensor],
) -> Result<()> {
    let _there = source.place().enter();
    for prompt in prompts.iter_mut() {
        *prompt = taken(prompt)?.brought_here()?;
    }
    let tokens_max = prompts
        .iter()
        .map(|prompt| prompt.shape()[0])
        .max()
        .unwrap_or(0);
    let half = config.heads.dim / 2;
    let frequency = |pair: usize| {
        1.0 / (config.rope_theta as f32).powf((2 * pair) as f32 / config.heads.dim as f32)
    };
    let rotary = RotaryTable::new(tokens_max, half, |token, pair| {
        token as f32 * frequency(pair)
    })?;
    let root = table.name.strip_suffix("embed_tokens.weight").unwrap_or("");
    for i in 0..config.blocks() {
        let weights = source.block(i)?;
        let layer = Layer::load(&weights.pp(format!("{root}layers.{i}")), config)?;
        for prompt in prompts.iter_mut() {
            layer.forward(compute, config, prompt, &rotary)?;
        }
    }
    for prompt in prompts.iter_mut() {
        *prompt = taken(prompt)?.into_host()?;
    }
    Ok(())
}

/// The tensor, which leaves an empty one behind.
fn taken(tensor: &mut Tensor) -> Result<Tensor> {
    Ok(std::mem::replace(tensor, Tensor::new(&[0])?))
}
