//! What the arguments say.

use std::path::{Path, PathBuf};

use lowtide_core::{Bytes, Dtype};

pub(crate) const HELP: &str = "\
usage: random_checkpoint OUT --tokenizer DIR [--preset tiny|400m|full] [--NAME VALUE ...]

  --tokenizer DIR        a tokenizer folder (tokenizer.json, tokenizer_config.json), or a checkpoint that has one
  --preset NAME          where the dimensions start: tiny (default), 400m, full (Z-Image: 6 B + 4 B)
  --dtype bf16|f32       how the weights are stored (bf16)
  --seed N               same seed, same bytes (0)
  --threads N            threads that draw weights (all)
  --shard-bytes SIZE     the most bytes of one file (5GB)
  --sparse yes|no        headers and holes instead of weights, to open and plan a model of any size (no)

  transformer:  --dim N --layers N --heads N --refiners N --axes N,N,N
  text encoder: --text-hidden N --text-layers N --text-heads N --text-kv-heads N --text-head-dim N
                --text-intermediate N --vocab N
  vae:          --vae-channels N,N,... --vae-layers N --vae-groups N --latent-channels N";

/// The dimensions of the three networks and how to write them.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) out: PathBuf,
    pub(crate) tokenizer: PathBuf,
    pub(crate) dtype: Dtype,
    pub(crate) seed: u64,
    pub(crate) threads: usize,
    pub(crate) shard_bytes: Bytes,
    pub(crate) sparse: bool,
    pub(crate) dim: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) refiners: usize,
    pub(crate) axes: Vec<usize>,
    pub(crate) text_hidden: usize,
    pub(crate) text_layers: usize,
    pub(crate) text_heads: usize,
    pub(crate) text_kv_heads: usize,
    pub(crate) text_head_dim: usize,
    pub(crate) text_intermediate: usize,
    pub(crate) vocab: usize,
    pub(crate) vae_channels: Vec<usize>,
    pub(crate) vae_layers: usize,
    pub(crate) vae_groups: usize,
    pub(crate) latent_channels: usize,
}

impl Settings {
    pub(crate) fn parse(arguments: &[String]) -> Result<Settings, String> {
        let (mut out, mut pairs) = (None, Vec::new());
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.strip_prefix("--") {
                Some(name) => {
                    let value = rest
                        .next()
                        .ok_or_else(|| format!("--{name} needs a value"))?;
                    pairs.push((name, value.as_str()));
                }
                None if out.is_none() => out = Some(PathBuf::from(argument)),
                None => return Err(format!("what is '{argument}'? OUT was given before")),
            }
        }
        let given = |wanted: &str| {
            pairs
                .iter()
                .rev()
                .find(|(name, _)| *name == wanted)
                .map(|(_, value)| *value)
        };
        let mut settings = preset(given("preset").unwrap_or("tiny"))?;
        settings.out = out.ok_or("OUT, the folder to write, is missing")?;
        settings.tokenizer = given("tokenizer")
            .map(PathBuf::from)
            .ok_or("--tokenizer DIR is missing")?;
        if settings
            .tokenizer
            .join("tokenizer/tokenizer.json")
            .is_file()
        {
            settings.tokenizer.push("tokenizer");
        }
        for (name, value) in pairs
            .iter()
            .filter(|(name, _)| !matches!(*name, "preset" | "tokenizer"))
        {
            settings.set(name, value)?;
        }
        settings.vocab = settings.vocab.max(tokens_of(&settings.tokenizer)?);
        settings.check()?;
        Ok(settings)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let wrong = || format!("--{name} {value}: not a number");
        let number = || value.parse::<usize>().map_err(|_| wrong());
        let list = || {
            value
                .split(',')
                .map(|v| v.parse::<usize>().map_err(|_| wrong()))
                .collect::<Result<Vec<_>, _>>()
        };
        match name {
            "dtype" => {
                self.dtype = match value {
                    "bf16" => Dtype::Bf16,
                    "f32" => Dtype::F32,
                    _ => return Err(format!("--dtype {value}: bf16 or f32")),
                }
            }
            "seed" => self.seed = value.parse().map_err(|_| wrong())?,
            "threads" => self.threads = number()?.max(1),
            "shard-bytes" => {
                self.shard_bytes = value.parse().map_err(|e| format!("--shard-bytes: {e}"))?
            }
            "sparse" => {
                self.sparse = match value {
                    "yes" => true,
                    "no" => false,
                    _ => return Err(format!("--sparse {value}: yes or no")),
                }
            }
            "dim" => self.dim = number()?,
            "layers" => self.layers = number()?,
            "heads" => self.heads = number()?,
            "refiners" => self.refiners = number()?,
            "axes" => self.axes = list()?,
            "text-hidden" => self.text_hidden = number()?,
            "text-layers" => self.text_layers = number()?,
            "text-heads" => self.text_heads = number()?,
            "text-kv-heads" => self.text_kv_heads = number()?,
            "text-head-dim" => self.text_head_dim = number()?,
            "text-intermediate" => self.text_intermediate = number()?,
            "vocab" => self.vocab = number()?,
            "vae-channels" => self.vae_channels = list()?,
            "vae-layers" => self.vae_layers = number()?,
            "vae-groups" => self.vae_groups = number()?,
            "latent-channels" => self.latent_channels = number()?,
            _ => return Err(format!("--{name}: no such setting; see --help")),
        }
        Ok(())
    }

    /// What diffusers and transformers would refuse, or compute wrongly.
    fn check(&self) -> Result<(), String> {
        let axes: usize = self.axes.iter().sum();
        let numbers = [
            self.dim,
            self.layers,
            self.heads,
            self.text_hidden,
            self.text_layers,
            self.text_heads,
            self.text_kv_heads,
            self.text_head_dim,
            self.text_intermediate,
            self.vae_layers,
            self.vae_groups,
            self.latent_channels,
        ];
        let even = |n: &usize| *n > 0 && n.is_multiple_of(2);
        if numbers.contains(&0) || self.vae_channels.is_empty() || self.vae_channels.contains(&0) {
            Err("every dimension must be at least 1".to_owned())
        } else if self.axes.len() != 3
            || !self.axes.iter().all(even)
            || self.dim != self.heads * axes
        {
            Err(format!(
                "--dim {} must be --heads {} times the sum of three even --axes {:?}",
                self.dim, self.heads, self.axes
            ))
        } else if !self.text_heads.is_multiple_of(self.text_kv_heads) || !even(&self.text_head_dim)
        {
            Err(
                "--text-heads must be a multiple of --text-kv-heads, and --text-head-dim even"
                    .to_owned(),
            )
        } else if self
            .vae_channels
            .iter()
            .any(|c| !c.is_multiple_of(self.vae_groups))
        {
            Err(format!(
                "every one of --vae-channels must be a multiple of --vae-groups {}",
                self.vae_groups
            ))
        } else {
            Ok(())
        }
    }
}

fn preset(name: &str) -> Result<Settings, String> {
    let tiny = Settings {
        out: PathBuf::new(),
        tokenizer: PathBuf::new(),
        dtype: Dtype::Bf16,
        seed: 0,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        shard_bytes: Bytes(5_000_000_000),
        sparse: false,
        dim: 96,
        layers: 2,
        heads: 3,
        refiners: 1,
        axes: vec![8, 12, 12],
        text_hidden: 64,
        text_layers: 3,
        text_heads: 4,
        text_kv_heads: 2,
        text_head_dim: 16,
        text_intermediate: 160,
        vocab: 0,
        vae_channels: vec![16, 32, 32, 32],
        vae_layers: 1,
        vae_groups: 8,
        latent_channels: 16,
    };
    match name {
        "tiny" => Ok(tiny),
        "400m" => Ok(Settings {
            dim: 1152,
            layers: 12,
            heads: 12,
            refiners: 2,
            axes: vec![32, 32, 32],
            text_hidden: 1024,
            text_layers: 8,
            text_heads: 16,
            text_kv_heads: 8,
            text_head_dim: 64,
            text_intermediate: 3072,
            vae_channels: vec![64, 128, 256, 256],
            vae_layers: 2,
            vae_groups: 32,
            ..tiny
        }),
        "full" => Ok(Settings {
            dim: 3840,
            layers: 30,
            heads: 30,
            refiners: 2,
            axes: vec![32, 48, 48],
            text_hidden: 2560,
            text_layers: 36,
            text_heads: 32,
            text_kv_heads: 8,
            text_head_dim: 128,
            text_intermediate: 9728,
            vocab: 151_936,
            vae_channels: vec![128, 256, 512, 512],
            vae_layers: 2,
            vae_groups: 32,
            ..tiny
        }),
        _ => Err(format!("--preset {name}: tiny, 400m or full")),
    }
}

/// How many rows the embedding table of this tokenizer needs: one more than its largest token.
fn tokens_of(folder: &Path) -> Result<usize, String> {
    let path = folder.join("tokenizer.json");
    let failed = |why: String| {
        format!(
            "{}: {why}; --tokenizer needs a folder with a tokenizer.json",
            path.display()
        )
    };
    let text = std::fs::read(&path).map_err(|e| failed(e.to_string()))?;
    let json: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))?;
    let vocabulary = json["model"]["vocab"]
        .as_object()
        .into_iter()
        .flat_map(|v| v.values());
    let added = json["added_tokens"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|token| &token["id"]);
    let largest = vocabulary
        .chain(added)
        .filter_map(serde_json::Value::as_u64)
        .max();
    largest
        .map(|id| id as usize + 1)
        .ok_or_else(|| failed("it has no tokens".to_owned()))
}
