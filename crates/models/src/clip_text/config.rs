//! The numbers of a CLIP text encoder.

use lowtide_kernels::Activation;
use serde_json::Value;

use crate::Result;
use crate::config::ConfigReader;
use crate::layers::Heads;

/// `eos_token_id` of files older than the fix that made the field mean something.
const LEGACY_END: usize = 2;

/// Which of the two classes a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `CLIPTextModel`: what is pooled is the state of the end token.
    Plain,
    /// `CLIPTextModelWithProjection`: that state is also projected.
    WithProjection,
}

impl Class {
    /// The class of that name in model_index.json.
    pub fn of(name: &str) -> Option<Class> {
        match name {
            "CLIPTextModel" => Some(Class::Plain),
            "CLIPTextModelWithProjection" => Some(Class::WithProjection),
            _ => None,
        }
    }
}

/// The numbers of config.json that matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the hidden states (D).
    pub hidden: usize,
    /// Layers (L).
    pub layers: usize,
    /// Width of the feed-forward (F).
    pub intermediate: usize,
    /// Rows of the token table.
    pub vocabulary: usize,
    /// Rows of the position table: the longest sequence.
    pub positions: usize,
    /// Width of the projected pooled state (P), where there is a projection.
    pub projection: Option<usize>,
    pub(super) heads: Heads,
    pub(super) eps: f32,
    pub(super) activation: Activation,
    /// Id of the token whose state is pooled; `None` in files that pool at the highest id.
    end: Option<u32>,
}

impl Config {
    /// Reads config.json of `component`. What a file leaves out is as in transformers.
    ///
    /// # Errors
    /// [`crate::Error::Config`].
    pub fn from_json(component: &'static str, class: Class, value: &Value) -> Result<Config> {
        let config = ConfigReader::new(component, value);
        config.only("model_type", "clip_text_model")?;
        if config.flag("use_attention_mask", false)? {
            return Err(config.error("use_attention_mask", "is true, which is not supported"));
        }
        let hidden = config.size("hidden_size", Some(512), 1..=65_536)?;
        let heads = config.size("num_attention_heads", Some(8), 1..=1024)?;
        if hidden % heads != 0 {
            let problem = format!("is {heads}, no divisor of the width {hidden}");
            return Err(config.error("num_attention_heads", problem));
        }
        let activation = match config.word("hidden_act", "quick_gelu")? {
            "quick_gelu" => Activation::QuickGelu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            other => {
                let problem =
                    format!("is '{other}'; supported are 'quick_gelu', 'gelu' and 'gelu_new'");
                return Err(config.error("hidden_act", problem));
            }
        };
        let projection = match class {
            Class::Plain => None,
            Class::WithProjection => Some(config.size("projection_dim", Some(512), 1..=65_536)?),
        };
        let end = config.size("eos_token_id", Some(49_407), 0..=u32::MAX as usize)?;
        Ok(Config {
            hidden,
            layers: config.size("num_hidden_layers", Some(12), 1..=1024)?,
            intermediate: config.size("intermediate_size", Some(2048), 1..=262_144)?,
            vocabulary: config.size("vocab_size", Some(49_408), 1..=4_194_304)?,
            positions: config.size("max_position_embeddings", Some(77), 1..=65_536)?,
            projection,
            heads: Heads {
                query: heads,
                key_value: heads,
                dim: hidden / heads,
                causal: true,
            },
            eps: config.number("layer_norm_eps", Some(1e-5))? as f32,
            activation,
            end: (end != LEGACY_END).then_some(end as u32),
        })
    }

    /// The row that is pooled: the first end token, or the first of the highest id where the file says nothing better;
    /// row 0 when there is none.
    pub fn end_of(&self, ids: &[u32]) -> usize {
        let wanted = self.end.or_else(|| ids.iter().copied().max());
        ids.iter().position(|&id| Some(id) == wanted).unwrap_or(0)
    }

    /// Width of what is pooled.
    pub fn pooled(&self) -> usize {
        self.projection.unwrap_or(self.hidden)
    }

    /// Bytes a token of a sequence costs inside a layer, beside the hidden states themselves. One sequence is computed
    /// at a time.
    pub fn layer_bytes_per_token(&self) -> u64 {
        // Attention holds the norm's output, q, k and v, later those three and the result; the feed-forward the norm's
        // output and the inner values, later those and the result.
        let attention = 4 * self.hidden;
        let feed_forward = self.hidden + self.intermediate;
        4 * attention.max(feed_forward) as u64
    }

    /// Multiplications and additions a token costs in `layers` layers, without attention's scores.
    pub fn flops_per_token(&self, layers: usize) -> u64 {
        let layer = 4 * self.hidden * self.hidden + 2 * self.hidden * self.intermediate;
        2 * layers as u64 * layer as u64
    }

    /// Multiplications and additions of attention's scores and values in `layers` layers, for one query and one key.
    pub fn attention_flops(&self, layers: usize) -> f64 {
        4.0 * layers as f64 * self.hidden as f64
    }
}
