//! AutoencoderKL: latents to a picture and a picture to latents, whole, in strips, or in tiles.
//!
//! # Source
//! diffusers `AutoencoderKL`: `Decoder`, `Encoder`, `UNetMidBlock2D`, `UpDecoderBlock2D`, `DownEncoderBlock2D`,
//! `ResnetBlock2D`, `tiled_decode` and `_tiled_encode`.
//!
//! Letters: C channels, h x w latent size, H x W = `scale` times that. Maps are (C, height, width), f32.
//!
//! Group norms and SiLU are applied while a convolution reads its input, enlargements likewise, residuals are added
//! while it writes: no map exists for any of them.

mod cost;
mod encode;
mod map;
mod network;
mod strips;
mod tiles;

use lowtide_core::{ComponentLayout, Mode, Vars};
use serde_json::Value;

use crate::config::ConfigReader;
use crate::tensor::{Compute, Tensor};
use crate::weights::{BlockSource, Headers, record};
use crate::{Error, Result};
use cost::Ways;
use map::{Machine, Map, real_tensor};
use network::{Block, Loaded, Loader};
use strips::{Kept, Pace};

pub use encode::{EncodeMode, Moments, encode, encode_modes, encoder_layout};

/// Up blocks in the tail.
const TAIL_UP_BLOCKS: usize = 2;

/// The numbers of config.json that matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Channels of the picture that is encoded.
    pub in_channels: usize,
    /// Channels of the picture that is decoded.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each resolution, finest first.
    pub block_out_channels: Vec<usize>,
    /// Resnets of a down block; an up block has one more.
    pub layers_per_block: usize,
    /// Groups of every norm.
    pub norm_num_groups: usize,
    /// Latents are divided by this.
    pub scaling_factor: f64,
    /// Added to latents after the division.
    pub shift_factor: f64,
    /// Whether there is attention at the lowest resolution.
    pub mid_block_add_attention: bool,
    /// Whether a 1x1 convolution comes last when a picture is encoded.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution comes first when latents are decoded.
    pub use_post_quant_conv: bool,
}

impl Config {
    /// Reads config.json of an `AutoencoderKL`.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_json(value: &Value) -> Result<Config> {
        let config = ConfigReader::new("vae", value);
        config.only("_class_name", "AutoencoderKL")?;
        config.only("act_fn", "silu")?;
        for key in ["latents_mean", "latents_std"] {
            if config.get(key).is_some() {
                return Err(config.error(key, "is set, which is not supported"));
            }
        }
        let block_out_channels = config.sizes("block_out_channels", Some(&[64]), 8, 1..=8192)?;
        let levels = block_out_channels.len();
        // Programs that only decode have configurations with one default entry for all levels of the encoder.
        if config.get("down_block_types").is_some() {
            check_block_types(&config, "down_block_types", "DownEncoderBlock2D", levels)?;
        }
        check_block_types(&config, "up_block_types", "UpDecoderBlock2D", levels)?;
        let norm_num_groups = config.size("norm_num_groups", Some(32), 1..=8192)?;
        if let Some(odd) = block_out_channels
            .iter()
            .find(|&channels| channels % norm_num_groups != 0)
        {
            return Err(config.error(
                "norm_num_groups",
                format!("is {norm_num_groups}, no divisor of {odd} channels"),
            ));
        }
        let scaling_factor = config.number("scaling_factor", Some(0.18215))?;
        // What is too small for f32 would divide by zero, too.
        if scaling_factor as f32 == 0.0 {
            return Err(config.error("scaling_factor", "is 0"));
        }
        Ok(Config {
            in_channels: config.size("in_channels", Some(3), 1..=64)?,
            out_channels: config.size("out_channels", Some(3), 1..=64)?,
            latent_channels: config.size("latent_channels", Some(4), 1..=1024)?,
            block_out_channels,
            layers_per_block: config.size("layers_per_block", Some(1), 1..=16)?,
            norm_num_groups,
            scaling_factor,
            shift_factor: config.number("shift_factor", Some(0.0))?,
            mid_block_add_attention: config.flag("mid_block_add_attention", true)?,
            use_quant_conv: config.flag("use_quant_conv", true)?,
            use_post_quant_conv: config.flag("use_post_quant_conv", true)?,
        })
    }

    /// Pixels a latent becomes in each direction.
    pub fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    fn channels_deepest(&self) -> usize {
        self.up_channels(0)
    }

    /// Channels of up block `block`, coarsest first.
    fn up_channels(&self, block: usize) -> usize {
        self.block_out_channels[self.block_out_channels.len() - 1 - block]
    }

    /// The first up block of the tail.
    fn tail_start(&self) -> usize {
        self.block_out_channels.len().saturating_sub(TAIL_UP_BLOCKS)
    }
}

/// All `blocks` entries of the list under `key` must be `only`, the one kind that is built.
fn check_block_types(
    config: &ConfigReader<'_>,
    key: &str,
    only: &str,
    blocks: usize,
) -> Result<()> {
    let absent = [Value::from(only)];
    let types = match config.get(key) {
        None => &absent[..],
        Some(types) => types
            .as_array()
            .ok_or_else(|| config.error(key, "is not a list"))?,
    };
    if let Some(other) = types.iter().find(|&name| name != only) {
        return Err(config.error(key, format!("has {other}; only '{only}' is supported")));
    }
    if types.len() != blocks {
        return Err(config.error(
            key,
            format!(
                "has {} entries, block_out_channels has {blocks}",
                types.len()
            ),
        ));
    }
    Ok(())
}

/// How a picture is decoded. All but tiles give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeMode {
    /// Every map as a whole.
    Whole,
    /// Every resnet in strips of `rows` rows; what it leaves is kept whole.
    ResnetStrips {
        /// Rows of a strip, at every resolution.
        rows: usize,
    },
    /// As [`DecodeMode::ResnetStrips`] up to the last enlargement; from there on, nothing but the picture is kept whole.
    LastStageStrips {
        /// Rows of a strip, at every resolution.
        rows: usize,
    },
    /// As [`DecodeMode::LastStageStrips`], from the last enlargement but one.
    Strips {
        /// Rows of a strip, at every resolution.
        rows: usize,
    },
    /// Squares that overlap, decoded one by one and blended: not the same bytes, since each square has norms of its own.
    Tiles {
        /// Latent rows and columns of a tile.
        size: usize,
        /// How many of them a tile shares with its neighbour.
        overlap: usize,
    },
}

impl DecodeMode {
    /// The mode that a plan names, with the variables that its rung has set; `None` when there is no such mode.
    pub fn planned(name: &str, vars: &Vars) -> Option<DecodeMode> {
        let value = |name: &str| vars.get(name).and_then(|value| usize::try_from(value).ok());
        let rows = || value(cost::STRIP_ROWS);
        Some(match name {
            "whole" => DecodeMode::Whole,
            "resnet strips" => DecodeMode::ResnetStrips { rows: rows()? },
            "last-stage strips" => DecodeMode::LastStageStrips { rows: rows()? },
            "strips" => DecodeMode::Strips { rows: rows()? },
            "tiles" => DecodeMode::tiles(value(cost::TILE)?),
            _ => return None,
        })
    }

    /// Tiles that overlap by a quarter, as in the reference.
    pub fn tiles(size: usize) -> DecodeMode {
        DecodeMode::Tiles {
            size,
            overlap: size / 4,
        }
    }

    /// What it is called in plans.
    pub fn name(&self) -> &'static str {
        match self {
            DecodeMode::Whole => "whole",
            DecodeMode::ResnetStrips { .. } => "resnet strips",
            DecodeMode::LastStageStrips { .. } => "last-stage strips",
            DecodeMode::Strips { .. } => "strips",
            DecodeMode::Tiles { .. } => "tiles",
        }
    }

    fn pace(&self) -> Pace {
        match *self {
            DecodeMode::Whole | DecodeMode::Tiles { .. } => Pace::Whole,
            DecodeMode::ResnetStrips { rows } => Pace::Strips {
                rows,
                kept: Kept::Resnets,
            },
            DecodeMode::LastStageStrips { rows } => Pace::Strips {
                rows,
                kept: Kept::BeforeLastStage,
            },
            DecodeMode::Strips { rows } => Pace::Strips {
                rows,
                kept: Kept::Nothing,
            },
        }
    }
}

/// The decoder's blocks, from the checkpoint's headers.
///
/// # Errors
/// When a tensor is missing or of another shape or type than the configuration calls for.
pub fn layout(headers: &dyn Headers, config: &Config) -> Result<ComponentLayout> {
    let record_block = |block: Block| {
        record(headers, block.name(), |weights| {
            block
                .load(&Loader::Weights(weights.clone()), config)
                .map(drop)
        })
    };
    let blocks = Block::all(config)
        .into_iter()
        .map(record_block)
        .collect::<Result<_>>()?;
    Ok(ComponentLayout {
        name: "vae".to_owned(),
        blocks,
        tables: Vec::new(),
    })
}

/// The ways to decode latents of `height` x `width`, best liked first; [`DecodeMode::planned`] understands their names.
pub fn modes(config: &Config, height: usize, width: usize) -> Vec<Mode> {
    let mut strips: Vec<fn(usize) -> DecodeMode> = vec![|rows| DecodeMode::ResnetStrips { rows }];
    if config.block_out_channels.len() > 1 {
        strips.push(|rows| DecodeMode::LastStageStrips { rows });
    }
    strips.push(|rows| DecodeMode::Strips { rows });
    let ways = Ways {
        config,
        latent: (height, width),
        whole: DecodeMode::Whole,
        strips,
        tiles: DecodeMode::tiles,
        name: DecodeMode::name,
        blocks: Block::all(config).len(),
        rehearse: |machine, config, (height, width), mode| {
            let latents = Latents {
                height,
                width,
                values: None,
            };
            let decoder = Decoder { machine, config };
            decoder
                .decode(&mut Blocks::Shapes, &latents, mode)
                .map(drop)
        },
    };
    ways.modes()
}

/// Decodes latents as the scheduler left them: they are scaled and shifted here.
///
/// # Shapes
/// `latents` (C, h, w) to (3, H, W), f32, about -1 to 1, not clamped.
///
/// # Errors
/// When the latents have other channels, a block cannot be had, or memory is refused.
pub fn decode(
    source: &mut dyn BlockSource,
    compute: Compute,
    config: &Config,
    latents: &Tensor,
    mode: &DecodeMode,
) -> Result<Tensor> {
    let (channels, height, width) = latents.dims3()?;
    if channels != config.latent_channels || latents.elements() == 0 {
        let expected = vec![config.latent_channels, height.max(1), width.max(1)];
        return Err(Error::Shape {
            what: "latents",
            expected,
            found: latents.shape().to_vec(),
        });
    }
    let _there = source.place().enter();
    let decoder = Decoder {
        machine: Machine::Real(compute),
        config,
    };
    let latents = Latents {
        height,
        width,
        values: Some(latents),
    };
    real_tensor(decoder.decode(&mut Blocks::Source(source), &latents, mode)?)
}

/// Latents, or their size alone.
struct Latents<'a> {
    height: usize,
    width: usize,
    values: Option<&'a Tensor>,
}

impl Latents<'_> {
    /// A copy of some rows and columns, scaled and shifted.
    fn part(
        &self,
        machine: &Machine,
        config: &Config,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
    ) -> Result<Map> {
        let scaling = config.scaling_factor as f32;
        let shift = config.shift_factor as f32;
        machine.filled(
            [config.latent_channels, rows.len(), columns.len()],
            |part| {
                let values = self
                    .values
                    .expect("the real machine is given values")
                    .data();
                for (i, line) in part.chunks_exact_mut(columns.len()).enumerate() {
                    let (channel, row) = (i / rows.len(), rows.start + i % rows.len());
                    let from = (channel * self.height + row) * self.width;
                    let values = &values[from + columns.start..from + columns.end];
                    for (to, value) in line.iter_mut().zip(values) {
                        *to = value / scaling + shift;
                    }
                }
            },
        )
    }
}

/// Where blocks come from: in a rehearsal, shapes are enough.
enum Blocks<'s> {
    Source(&'s mut dyn BlockSource),
    Shapes,
}

/// The loop over the blocks.
struct Decoder<'c> {
    machine: Machine,
    config: &'c Config,
}

impl Decoder<'_> {
    fn decode(
        &self,
        blocks: &mut Blocks<'_>,
        latents: &Latents<'_>,
        mode: &DecodeMode,
    ) -> Result<Map> {
        let (machine, config) = (&self.machine, self.config);
        if let DecodeMode::Tiles { size, overlap } = *mode {
            let tiling = tiles::Tiling::new(size, overlap, config.scale());
            let size = (latents.height, latents.width);
            let tile = |rows, columns| {
                let part = latents.part(machine, config, rows, columns)?;
                self.visit(blocks, part, Pace::Whole)
            };
            return tiles::stitched(machine, config.out_channels, size, tiling, tile);
        }
        let (rows, columns) = (0..latents.height, 0..latents.width);
        let x = latents.part(machine, config, rows, columns)?;
        self.visit(blocks, x, mode.pace())
    }

    /// One visit of all blocks.
    fn visit(&self, blocks: &mut Blocks<'_>, x: Map, pace: Pace) -> Result<Map> {
        let pass = Pass {
            machine: &self.machine,
            config: self.config,
            pace,
        };
        pass.visit(blocks, &Block::all(self.config), x)
    }
}

/// A unit of streaming, of the decoder or of the encoder.
trait Unit {
    /// Loads it from the component's root scope.
    fn load<'w>(&self, root: &Loader<'w>, config: &Config) -> Result<Loaded<'w>>;
}

/// One way through all blocks.
struct Pass<'c> {
    machine: &'c Machine,
    config: &'c Config,
    pace: Pace,
}

impl Pass<'_> {
    fn visit(&self, blocks: &mut Blocks<'_>, units: &[impl Unit], x: Map) -> Result<Map> {
        let mut x = x;
        for (index, unit) in units.iter().enumerate() {
            let loader = match blocks {
                Blocks::Source(source) => Loader::Weights(source.block(index)?),
                Blocks::Shapes => Loader::Shapes,
            };
            x = match unit.load(&loader, self.config)? {
                Loaded::Stages(stages) => strips::apply(self.machine, &stages, x, self.pace)?,
                Loaded::Attention(attention) => self.machine.attend(&attention, x)?,
            };
        }
        Ok(x)
    }
}
