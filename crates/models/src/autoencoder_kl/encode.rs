//! The encoder: a picture to the mean and the deviation of its latents.

mod network;

use std::ops::Range;

use lowtide_core::{ComponentLayout, Mode, Vars};

use super::cost::{self, Ways};
use super::map::{Machine, Map, real_tensor};
use super::network::Loader;
use super::strips::{Kept, Pace};
use super::{Blocks, Config, Pass, Unit, tiles};
use crate::tensor::{Compute, Tensor};
use crate::weights::{BlockSource, Headers, record};
use crate::{Error, Result};
use network::Block;

/// The logarithm of a variance is kept within these bounds, as in the reference.
const LOG_VARIANCE: Range<f32> = -30.0..20.0;

/// How a picture is encoded. All but tiles give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeMode {
    /// Every map as a whole.
    Whole,
    /// Every resnet in strips of `rows` rows; what it leaves is kept whole.
    ResnetStrips {
        /// Rows of a strip, at every resolution.
        rows: usize,
    },
    /// As [`EncodeMode::ResnetStrips`], but up to the first halving nothing but the picture is kept whole.
    FirstStageStrips {
        /// Rows of a strip of the picture.
        rows: usize,
    },
    /// As [`EncodeMode::FirstStageStrips`], up to the second halving.
    Strips {
        /// Rows of a strip of the picture.
        rows: usize,
    },
    /// Squares that overlap, encoded one by one and blended: not the same bytes, since each square has norms of its own.
    Tiles {
        /// Latent rows and columns of a tile.
        size: usize,
        /// How many of them a tile shares with its neighbour.
        overlap: usize,
    },
}

impl EncodeMode {
    /// The mode that a plan names, with the variables that its rung has set; `None` when there is no such mode.
    pub fn planned(name: &str, vars: &Vars) -> Option<EncodeMode> {
        let value = |name: &str| vars.get(name).and_then(|value| usize::try_from(value).ok());
        let rows = || value(cost::STRIP_ROWS);
        Some(match name {
            "whole" => EncodeMode::Whole,
            "resnet strips" => EncodeMode::ResnetStrips { rows: rows()? },
            "first-stage strips" => EncodeMode::FirstStageStrips { rows: rows()? },
            "strips" => EncodeMode::Strips { rows: rows()? },
            "tiles" => EncodeMode::tiles(value(cost::TILE)?),
            _ => return None,
        })
    }

    /// Tiles that overlap by a quarter, as in the reference.
    pub fn tiles(size: usize) -> EncodeMode {
        EncodeMode::Tiles {
            size,
            overlap: size / 4,
        }
    }

    /// What it is called in plans.
    pub fn name(&self) -> &'static str {
        match self {
            EncodeMode::Whole => "whole",
            EncodeMode::ResnetStrips { .. } => "resnet strips",
            EncodeMode::FirstStageStrips { .. } => "first-stage strips",
            EncodeMode::Strips { .. } => "strips",
            EncodeMode::Tiles { .. } => "tiles",
        }
    }

    fn pace(&self) -> Pace {
        let (rows, kept) = match *self {
            EncodeMode::Whole | EncodeMode::Tiles { .. } => return Pace::Whole,
            EncodeMode::ResnetStrips { rows } => (rows, Kept::Resnets),
            EncodeMode::FirstStageStrips { rows } => (rows, Kept::BehindFirstStage),
            EncodeMode::Strips { rows } => (rows, Kept::Nothing),
        };
        Pace::Strips { rows, kept }
    }
}

/// What a picture's latents are drawn from: a mean and a deviation for each of their values.
#[derive(Debug)]
pub struct Moments {
    /// Means, then deviations (2 C, h, w).
    values: Tensor,
    scaling: f32,
    shift: f32,
}

impl Moments {
    /// From what the network leaves: means, then logarithms of variances.
    fn new(mut values: Tensor, config: &Config) -> Moments {
        let half = values.data().len() / 2;
        for value in &mut values.data_mut()[half..] {
            let log_variance = value.clamp(LOG_VARIANCE.start, LOG_VARIANCE.end);
            *value = (0.5 * log_variance).exp();
        }
        Moments {
            values,
            scaling: config.scaling_factor as f32,
            shift: config.shift_factor as f32,
        }
    }

    /// Dimensions of the latents (C, h, w).
    pub fn shape(&self) -> [usize; 3] {
        let shape = self.values.shape();
        [shape[0] / 2, shape[1], shape[2]]
    }

    /// Means of the latents (C, h, w), neither shifted nor scaled.
    pub fn mean(&self) -> &[f32] {
        let values = self.values.data();
        &values[..values.len() / 2]
    }

    /// Standard deviations of the latents (C, h, w), not scaled.
    pub fn std(&self) -> &[f32] {
        let values = self.values.data();
        &values[values.len() / 2..]
    }

    /// Latents as a scheduler takes them: `(mean + std * noise - shift) * scaling`.
    ///
    /// # Shapes
    /// `noise` (C, h, w), of unit variance, to (C, h, w), f32.
    ///
    /// # Errors
    /// When the noise has another shape, or memory is refused.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        if noise.shape() != self.shape() {
            return Err(Error::Shape {
                what: "noise of a picture's latents",
                expected: self.shape().to_vec(),
                found: noise.shape().to_vec(),
            });
        }
        let mut latents = self.likeliest()?;
        let spread = self.std().iter().zip(noise.data());
        for ((latent, mean), (std, noise)) in
            latents.data_mut().iter_mut().zip(self.mean()).zip(spread)
        {
            *latent = (mean + std * noise - self.shift) * self.scaling;
        }
        Ok(latents)
    }

    /// The latents without noise, as a scheduler takes them: `(mean - shift) * scaling`.
    ///
    /// # Shapes
    /// (C, h, w), f32.
    ///
    /// # Errors
    /// When memory is refused.
    pub fn likeliest(&self) -> Result<Tensor> {
        let mut latents = Tensor::from_slice(&self.shape(), self.mean())?;
        for latent in latents.data_mut() {
            *latent = (*latent - self.shift) * self.scaling;
        }
        Ok(latents)
    }
}

/// The encoder's blocks, from the checkpoint's headers.
///
/// # Errors
/// When a tensor is missing or of another shape or type than the configuration calls for.
pub fn encoder_layout(headers: &dyn Headers, config: &Config) -> Result<ComponentLayout> {
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
        name: "vae_encoder".to_owned(),
        blocks,
        tables: Vec::new(),
    })
}

/// The ways to encode a picture of `height` x `width` pixels, best liked first; [`EncodeMode::planned`] understands their
/// names.
pub fn encode_modes(config: &Config, height: usize, width: usize) -> Vec<Mode> {
    let mut strips: Vec<fn(usize) -> EncodeMode> = vec![|rows| EncodeMode::ResnetStrips { rows }];
    if config.block_out_channels.len() > 1 {
        strips.push(|rows| EncodeMode::FirstStageStrips { rows });
    }
    strips.push(|rows| EncodeMode::Strips { rows });
    let ways = Ways {
        config,
        latent: (height / config.scale(), width / config.scale()),
        whole: EncodeMode::Whole,
        strips,
        tiles: EncodeMode::tiles,
        name: EncodeMode::name,
        blocks: Block::all(config).len(),
        rehearse: |machine, config, (height, width), mode| {
            let picture = Picture {
                height: height * config.scale(),
                width: width * config.scale(),
                values: None,
            };
            let encoder = Encoder { machine, config };
            encoder
                .encode(&mut Blocks::Shapes, &picture, mode)
                .map(drop)
        },
    };
    ways.modes()
}

/// Encodes a picture.
///
/// # Shapes
/// `picture` (in_channels, H, W), f32, -1 to 1; H and W are multiples of [`Config::scale`]. The moments are those of
/// latents (C, H / scale, W / scale).
///
/// # Errors
/// When the picture has another shape, a block cannot be had, or memory is refused.
pub fn encode(
    source: &mut dyn BlockSource,
    compute: Compute,
    config: &Config,
    picture: &Tensor,
    mode: &EncodeMode,
) -> Result<Moments> {
    let (channels, height, width) = picture.dims3()?;
    let scale = config.scale();
    let whole = |side: usize| side.next_multiple_of(scale).max(scale);
    let expected = vec![config.in_channels, whole(height), whole(width)];
    if [channels, height, width] != expected[..] {
        return Err(Error::Shape {
            what: "picture",
            expected,
            found: picture.shape().to_vec(),
        });
    }
    let _there = source.place().enter();
    let encoder = Encoder {
        machine: Machine::Real(compute),
        config,
    };
    let picture = Picture {
        height,
        width,
        values: Some(picture),
    };
    let moments = encoder.encode(&mut Blocks::Source(source), &picture, mode)?;
    Ok(Moments::new(real_tensor(moments)?, config))
}

/// A picture, or its size alone.
struct Picture<'a> {
    height: usize,
    width: usize,
    values: Option<&'a Tensor>,
}

impl Picture<'_> {
    /// A copy of some rows and columns.
    fn part(
        &self,
        machine: &Machine,
        channels: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<Map> {
        machine.filled([channels, rows.len(), columns.len()], |part| {
            let values = self.values.expect("the real machine is given values");
            for (i, line) in part.chunks_exact_mut(columns.len()).enumerate() {
                let (channel, row) = (i / rows.len(), rows.start + i % rows.len());
                let from = (channel * self.height + row) * self.width;
                line.copy_from_slice(&values.data()[from + columns.start..from + columns.end]);
            }
        })
    }
}

/// The loop over the blocks.
struct Encoder<'c> {
    machine: Machine,
    config: &'c Config,
}

impl Encoder<'_> {
    /// Means and logarithms of variances (2 C, h, w).
    fn encode(
        &self,
        blocks: &mut Blocks<'_>,
        picture: &Picture<'_>,
        mode: &EncodeMode,
    ) -> Result<Map> {
        let (machine, config) = (&self.machine, self.config);
        let pass = Pass {
            machine,
            config,
            pace: mode.pace(),
        };
        let units = Block::all(config);
        let mut part = |rows: Range<usize>, columns: Range<usize>| {
            let part = picture.part(machine, config.in_channels, rows, columns)?;
            pass.visit(blocks, &units, part)
        };
        let EncodeMode::Tiles { size, overlap } = *mode else {
            return part(0..picture.height, 0..picture.width);
        };
        let scale = config.scale();
        let latent = (picture.height / scale, picture.width / scale);
        let pixels = |latents: Range<usize>| latents.start * scale..latents.end * scale;
        let tiling = tiles::Tiling::new(size, overlap, 1);
        let moments = 2 * config.latent_channels;
        tiles::stitched(machine, moments, latent, tiling, |rows, columns| {
            part(pixels(rows), pixels(columns))
        })
    }
}
