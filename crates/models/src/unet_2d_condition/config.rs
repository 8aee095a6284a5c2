//! config.json of a `UNet2DConditionModel`: resolved to what each level consists of, or refused by name.

use serde_json::Value;

use crate::config::ConfigReader;
use crate::{Error, Result};

/// Resolutions at most.
const LEVELS_MAX: usize = 8;

/// Channels at most, of anything.
const CHANNELS_MAX: usize = 16_384;

/// Resnets of a level and layers of a transformer at most.
const LAYERS_MAX: usize = 64;

/// Numbers of a head at most, as attention has it.
const HEAD_DIM_MAX: usize = 1024;

/// The numbers of config.json that matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Channels of a sample: 4, or 9 where a mask and a masked picture go with it.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Latent rows and columns the model was trained on, where the file says so.
    pub sample_size: Option<usize>,
    /// Width of the text encoder's states.
    pub cross_attention_dim: usize,
    /// Pooled text and sizes that join the time embedding (SDXL).
    pub added: Option<AddedConfig>,
    /// Width of the guidance embedding that distilled models (LCM) are told.
    pub time_cond_proj_dim: Option<usize>,
    pub(super) channels: Vec<usize>,
    pub(super) down: Vec<Level>,
    pub(super) middle: Middle,
    pub(super) up: Vec<Level>,
    pub(super) groups: usize,
    pub(super) norm_eps: f32,
    pub(super) time_dim: usize,
    pub(super) sinusoids: Sinusoids,
    pub(super) kernels: (usize, usize),
}

/// What joins the time embedding beside the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedConfig {
    /// Width of the embedding of each size.
    pub time_dim: usize,
    /// Width of pooled text and all embedded sizes together.
    pub input_dim: usize,
}

/// How numbers become sines and cosines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sinusoids {
    /// Cosines come first.
    pub(super) flip: bool,
    /// Taken from the number of frequencies.
    pub(super) shift: f32,
}

/// One resolution on the way down or up.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Level {
    pub(super) resnets: usize,
    /// What follows every resnet, where something does.
    pub(super) attention: Option<Attentions>,
}

/// The transformers of a level.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Attentions {
    /// Layers of each transformer.
    pub(super) layers: Vec<usize>,
    pub(super) heads: usize,
    /// Whether the first attention of a layer is over the text, too.
    pub(super) text_only: bool,
}

/// What is between down and up.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Middle {
    Nothing,
    Resnet,
    /// A resnet, a transformer, a resnet.
    Transformer(Attentions),
}

impl Config {
    /// Reads config.json of a `UNet2DConditionModel`.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_json(value: &Value) -> Result<Config> {
        let config = ConfigReader::new("unet", value);
        check_fixed(&config)?;
        let channels = config.sizes(
            "block_out_channels",
            Some(&[320, 640, 1280, 1280]),
            LEVELS_MAX,
            1..=CHANNELS_MAX,
        )?;
        let groups = config.size("norm_num_groups", Some(32), 1..=CHANNELS_MAX)?;
        if let Some(odd) = channels.iter().find(|&channels| channels % groups != 0) {
            let problem = format!("is {groups}, no divisor of {odd} channels");
            return Err(config.error("norm_num_groups", problem));
        }
        let levels = Levels::read(&config, &channels)?;
        let (down, up, middle) = (levels.down()?, levels.up()?, levels.middle(value)?);
        let time_dim = config.size("time_embedding_dim", Some(4 * channels[0]), 1..=65_536)?;
        let sinusoids = Sinusoids {
            flip: config.flag("flip_sin_to_cos", true)?,
            shift: config.number("freq_shift", Some(0.0))? as f32,
        };
        let added = added(&config)?;
        for (key, width) in [("block_out_channels", Some(channels[0]))]
            .into_iter()
            .chain([("addition_time_embed_dim", added.map(|added| added.time_dim))])
        {
            if width.is_some_and(|width| (width / 2) as f32 - sinusoids.shift <= 0.0) {
                let problem = format!("is too small for a freq_shift of {}", sinusoids.shift);
                return Err(config.error(key, problem));
            }
        }
        Ok(Config {
            in_channels: config.size("in_channels", Some(4), 1..=1024)?,
            out_channels: config.size("out_channels", Some(4), 1..=1024)?,
            sample_size: config
                .get("sample_size")
                .and_then(Value::as_u64)
                .and_then(|size| usize::try_from(size).ok()),
            cross_attention_dim: cross_attention_dim(&config, channels.len())?,
            added,
            time_cond_proj_dim: config
                .get("time_cond_proj_dim")
                .map(|_| config.size("time_cond_proj_dim", None, 4..=65_536))
                .transpose()?,
            down,
            middle,
            up,
            channels,
            groups,
            norm_eps: config.number("norm_eps", Some(1e-5))? as f32,
            time_dim,
            sinusoids,
            kernels: (
                odd_kernel(&config, "conv_in_kernel")?,
                odd_kernel(&config, "conv_out_kernel")?,
            ),
        })
    }

    /// Width of the pooled text that goes with so many sizes; `None` where the model takes neither or not so many.
    pub fn pooled_dim(&self, time_ids: usize) -> Option<usize> {
        let added = self.added?;
        added
            .input_dim
            .checked_sub(time_ids.checked_mul(added.time_dim)?)
    }

    /// Channels of a resolution, finest first.
    pub(super) fn channels(&self, level: usize) -> usize {
        self.channels[level]
    }
}

/// Settings of which one value is built.
fn check_fixed(config: &ConfigReader<'_>) -> Result<()> {
    config.only("_class_name", "UNet2DConditionModel")?;
    for (key, only) in [
        ("resnet_time_scale_shift", "default"),
        ("time_embedding_type", "positional"),
        ("attention_type", "default"),
    ] {
        config.only(key, only)?;
    }
    let act = config.word("act_fn", "silu")?;
    if !["silu", "swish"].contains(&act) {
        return Err(config.error("act_fn", format!("is '{act}'; only 'silu' is supported")));
    }
    for key in [
        "center_input_sample",
        "dual_cross_attention",
        "class_embeddings_concat",
        "resnet_skip_time_act",
    ] {
        if config.flag(key, false)? {
            return Err(config.error(key, "is true, which is not supported"));
        }
    }
    for key in [
        "class_embed_type",
        "num_class_embeds",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "time_embedding_act_fn",
        "timestep_post_act",
        "num_attention_heads",
        "cross_attention_norm",
        "mid_block_only_cross_attention",
    ] {
        if let Some(value) = config.get(key) {
            return Err(config.error(key, format!("is {value}, which is not supported")));
        }
    }
    for key in [
        "downsample_padding",
        "mid_block_scale_factor",
        "resnet_out_scale_factor",
    ] {
        let value = config.number(key, Some(1.0))?;
        if value != 1.0 {
            return Err(config.error(key, format!("is {value}; only 1 is supported")));
        }
    }
    // Scores are summed in f32 whatever it says.
    config.flag("upcast_attention", false)?;
    config.flag("use_linear_projection", false)?;
    Ok(())
}

fn odd_kernel(config: &ConfigReader<'_>, key: &str) -> Result<usize> {
    let kernel = config.size(key, Some(3), 1..=15)?;
    if kernel % 2 == 0 {
        return Err(config.error(key, format!("is {kernel}, not an odd number")));
    }
    Ok(kernel)
}

fn added(config: &ConfigReader<'_>) -> Result<Option<AddedConfig>> {
    const KEY: &str = "addition_embed_type";
    if config.get(KEY).is_none() {
        return Ok(None);
    }
    config.only(KEY, "text_time")?;
    let dim = |key: &str| config.size(key, None, 1..=65_536);
    Ok(Some(AddedConfig {
        time_dim: dim("addition_time_embed_dim")?,
        input_dim: dim("projection_class_embeddings_input_dim")?,
    }))
}

/// One number, or one number a level.
fn size_or_sizes(
    config: &ConfigReader<'_>,
    key: &str,
    default: usize,
    levels: usize,
) -> Result<Vec<usize>> {
    let range = 1..=CHANNELS_MAX;
    if !config.get(key).is_some_and(Value::is_array) {
        return Ok(vec![config.size(key, Some(default), range)?; levels]);
    }
    let sizes = config.sizes(key, None, LEVELS_MAX, range)?;
    if sizes.len() == levels {
        Ok(sizes)
    } else {
        Err(wrong_length(config, key, sizes.len(), levels))
    }
}

fn wrong_length(config: &ConfigReader<'_>, key: &str, found: usize, levels: usize) -> Error {
    config.error(
        key,
        format!("has {found} entries, block_out_channels has {levels}"),
    )
}

fn cross_attention_dim(config: &ConfigReader<'_>, levels: usize) -> Result<usize> {
    const KEY: &str = "cross_attention_dim";
    let dims = size_or_sizes(config, KEY, 1280, levels)?;
    if dims.iter().any(|dim| *dim != dims[0]) {
        let problem = format!("is {dims:?}; texts of several widths are not supported");
        return Err(config.error(KEY, problem));
    }
    Ok(dims[0])
}

/// What the lists of config.json say of each level, finest first.
struct Levels<'a> {
    config: &'a ConfigReader<'a>,
    channels: &'a [usize],
    resnets: Vec<usize>,
    heads: Vec<usize>,
    text_only: Vec<bool>,
    layers: Vec<Value>,
    layers_up: Vec<Value>,
}

const LAYERS: &str = "transformer_layers_per_block";
const LAYERS_UP: &str = "reverse_transformer_layers_per_block";

impl<'a> Levels<'a> {
    fn read(config: &'a ConfigReader<'a>, channels: &'a [usize]) -> Result<Levels<'a>> {
        let count = channels.len();
        // The well-known confusion: what is called the dimension of a head is the number of heads.
        let heads = size_or_sizes(config, "attention_head_dim", 8, count)?;
        let resnets = size_or_sizes(config, "layers_per_block", 2, count)?;
        if let Some(many) = resnets.iter().find(|resnets| **resnets > LAYERS_MAX) {
            let problem = format!("is {many}, and the most is {LAYERS_MAX}");
            return Err(config.error("layers_per_block", problem));
        }
        let layers = one_a_level(config, LAYERS, count)?.unwrap_or(vec![Value::from(1); count]);
        let layers_up = match one_a_level(config, LAYERS_UP, count)? {
            Some(layers) => layers,
            None if layers.iter().any(Value::is_array) => {
                return Err(config.error(LAYERS_UP, format!("is missing, and {LAYERS} has lists")));
            }
            None => layers.iter().rev().cloned().collect(),
        };
        Ok(Levels {
            text_only: text_only(config, count)?,
            config,
            channels,
            resnets,
            heads,
            layers,
            layers_up,
        })
    }

    fn attentions(
        &self,
        level: usize,
        (key, layers): (&str, &Value),
        transformers: usize,
    ) -> Result<Attentions> {
        let wrong = || {
            let problem = format!(
                "has {layers} for {transformers} transformers, not a number from 1 to {LAYERS_MAX} or one for each"
            );
            self.config.error(key, problem)
        };
        let one = |layers: &Value| {
            let layers = layers
                .as_u64()
                .and_then(|layers| usize::try_from(layers).ok());
            layers
                .filter(|layers| (1..=LAYERS_MAX).contains(layers))
                .ok_or_else(wrong)
        };
        let layers: Vec<usize> = match layers.as_array() {
            None => vec![one(layers)?; transformers],
            Some(list) if list.len() == transformers => {
                list.iter().map(one).collect::<Result<_>>()?
            }
            Some(_) => return Err(wrong()),
        };
        let (heads, channels) = (self.heads[level], self.channels[level]);
        if channels % heads != 0 || channels / heads > HEAD_DIM_MAX {
            let problem = format!(
                "(the number of heads) is {heads}, which does not divide {channels} channels into heads of at most {HEAD_DIM_MAX}"
            );
            return Err(self.config.error("attention_head_dim", problem));
        }
        Ok(Attentions {
            layers,
            heads,
            text_only: self.text_only[level],
        })
    }

    fn down(&self) -> Result<Vec<Level>> {
        let kinds = block_types(self.config, "down_block_types", self.channels.len())?;
        let level = |(level, attention): (usize, bool)| {
            let resnets = self.resnets[level];
            let attention = attention
                .then(|| self.attentions(level, (LAYERS, &self.layers[level]), resnets))
                .transpose()?;
            Ok(Level { resnets, attention })
        };
        kinds.into_iter().enumerate().map(level).collect()
    }

    /// Coarsest first.
    fn up(&self) -> Result<Vec<Level>> {
        let count = self.channels.len();
        let kinds = block_types(self.config, "up_block_types", count)?;
        let level = |(block, attention): (usize, bool)| {
            let level = count - 1 - block;
            let resnets = self.resnets[level] + 1;
            let attention = attention
                .then(|| self.attentions(level, (LAYERS_UP, &self.layers_up[block]), resnets))
                .transpose()?;
            Ok(Level { resnets, attention })
        };
        kinds.into_iter().enumerate().map(level).collect()
    }

    fn middle(&self, json: &Value) -> Result<Middle> {
        const KEY: &str = "mid_block_type";
        // Null means none here, which is not what an absent key means.
        if json.get(KEY).is_some_and(Value::is_null) {
            return Ok(Middle::Nothing);
        }
        let deepest = self.channels.len() - 1;
        match self.config.word(KEY, "UNetMidBlock2DCrossAttn")? {
            "UNetMidBlock2D" => Ok(Middle::Resnet),
            "UNetMidBlock2DCrossAttn" => {
                let layers = &self.layers[deepest];
                // Of a list, the one transformer takes the first entry.
                let layers = layers.get(0).unwrap_or(layers);
                let attentions = self.attentions(deepest, (LAYERS, layers), 1)?;
                Ok(Middle::Transformer(Attentions {
                    text_only: false,
                    ..attentions
                }))
            }
            other => Err(self.config.error(
                KEY,
                format!("is '{other}'; only 'UNetMidBlock2DCrossAttn', 'UNetMidBlock2D' and null are supported"),
            )),
        }
    }
}

/// A list with an entry a level, or one number for all; `None` when it is absent.
fn one_a_level(config: &ConfigReader<'_>, key: &str, levels: usize) -> Result<Option<Vec<Value>>> {
    match config.get(key) {
        None => Ok(None),
        Some(Value::Array(list)) if list.len() == levels => Ok(Some(list.clone())),
        Some(Value::Array(list)) => Err(wrong_length(config, key, list.len(), levels)),
        Some(one) => Ok(Some(vec![one.clone(); levels])),
    }
}

fn text_only(config: &ConfigReader<'_>, levels: usize) -> Result<Vec<bool>> {
    const KEY: &str = "only_cross_attention";
    let Some(list) = config.get(KEY).and_then(Value::as_array) else {
        return Ok(vec![config.flag(KEY, false)?; levels]);
    };
    if list.len() != levels {
        return Err(wrong_length(config, KEY, list.len(), levels));
    }
    let flag = |value: &Value| {
        value
            .as_bool()
            .ok_or_else(|| config.error(KEY, format!("has {value}, not true or false")))
    };
    list.iter().map(flag).collect()
}

/// Whether each block has transformers.
fn block_types(config: &ConfigReader<'_>, key: &'static str, levels: usize) -> Result<Vec<bool>> {
    let (plain, attention, attention_first) = match key {
        "down_block_types" => ("DownBlock2D", "CrossAttnDownBlock2D", true),
        _ => ("UpBlock2D", "CrossAttnUpBlock2D", false),
    };
    let Some(types) = config.get(key) else {
        // The original four levels, of which the coarsest has none.
        let coarsest = if attention_first { 3 } else { 0 };
        return match levels {
            4 => Ok((0..4).map(|block| block != coarsest).collect()),
            _ => Err(config.error(key, "is missing")),
        };
    };
    let types = types
        .as_array()
        .ok_or_else(|| config.error(key, "is not a list"))?;
    if types.len() != levels {
        return Err(wrong_length(config, key, types.len(), levels));
    }
    let kind = |name: &Value| match name.as_str() {
        Some(name) if name == plain => Ok(false),
        Some(name) if name == attention => Ok(true),
        _ => Err(config.error(
            key,
            format!("has {name}; only '{attention}' and '{plain}' are supported"),
        )),
    };
    types.iter().map(kind).collect()
}
