//! What blocks consist of, and the decoder's blocks, by the names of the checkpoint.

use std::ops::Range;

use super::{Config, Unit};
use crate::Result;
use crate::layers::{Around, ChannelAffine, Conv2d, GroupNorm, Linear, Padding};
use crate::weights::Weights;

/// Every norm adds this to the variance, whatever the configuration.
const NORM_EPS: f32 = 1e-6;

/// Where layers come from.
#[derive(Clone)]
pub(super) enum Loader<'w> {
    /// A block's weights.
    Weights(Weights<'w>),
    /// Nowhere: shapes are enough.
    Shapes,
}

/// What a convolution does to the size of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// Nothing.
    Same,
    /// The map is enlarged twice before.
    Double,
    /// Every other row and column is computed, with zeros below and on the right only.
    Halve,
}

/// The zeros around a map that is halved: the first window begins at the first value.
const HALVING_PADDING: Padding = Padding {
    top: 0,
    left: 0,
    bottom: 1,
    right: 1,
};

/// A convolution over `kernel` x `kernel` values.
pub(super) struct Conv<'w> {
    pub(super) channels_in: usize,
    pub(super) channels_out: usize,
    pub(super) kernel: usize,
    pub(super) scale: Scale,
    pub(super) layer: Option<Conv2d<'w>>,
}

impl Conv<'_> {
    /// What happens to its input, normalised by `input` where that is given.
    pub(super) fn around<'a>(&self, input: Option<ChannelAffine<'a>>) -> Around<'a> {
        Around {
            input,
            upsample: self.scale == Scale::Double,
            halve: (self.scale == Scale::Halve).then_some(HALVING_PADDING),
            shift: None,
        }
    }

    /// Rows or columns it makes of `size`.
    pub(super) fn size_out(&self, size: usize) -> usize {
        match self.scale {
            Scale::Same => size,
            Scale::Double => size * 2,
            Scale::Halve => size / 2,
        }
    }

    /// The rows of its input, of `height` rows, that it needs for some rows of its result.
    pub(super) fn rows_in(&self, rows: &Range<usize>, height: usize) -> Range<usize> {
        let by = self.kernel / 2;
        match self.scale {
            Scale::Same => rows.start.saturating_sub(by)..(rows.end + by).min(height),
            Scale::Double => {
                let end = (rows.end + by).min(2 * height);
                rows.start.saturating_sub(by) / 2..end.div_ceil(2)
            }
            Scale::Halve => {
                let end = (2 * rows.end.saturating_sub(1) + self.kernel).min(height);
                2 * rows.start..end
            }
        }
    }
}

/// A group norm.
pub(super) struct Norm {
    pub(super) layer: Option<GroupNorm>,
}

/// `conv2(silu(norm2(conv1(silu(norm1(x)))))) + x`, x brought to the new number of channels by a shortcut.
pub(super) struct Resnet<'w> {
    pub(super) norm1: Norm,
    pub(super) conv1: Conv<'w>,
    pub(super) norm2: Norm,
    pub(super) conv2: Conv<'w>,
    pub(super) conv_shortcut: Option<Conv<'w>>,
}

/// A step of which some rows can be computed from some rows, once its norms are known.
pub(super) enum Stage<'w> {
    /// A bare convolution.
    Conv(Conv<'w>),
    /// A residual block.
    Resnet(Box<Resnet<'w>>),
    /// The last norm and convolution.
    Out { norm: Norm, conv: Conv<'w> },
}

/// Attention over the whole map: to_q, to_k, to_v, to_out.
pub(super) struct Attention<'w> {
    pub(super) norm: Norm,
    pub(super) layers: Option<[Linear<'w>; 4]>,
}

/// A block, loaded.
pub(super) enum Loaded<'w> {
    Stages(Vec<Stage<'w>>),
    Attention(Box<Attention<'w>>),
}

/// A unit of streaming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Everything up to the first resnet.
    Start,
    /// The attention in the middle.
    Attention,
    /// The second resnet in the middle.
    Middle,
    /// A resnet of an early up block, with the upsampler that follows.
    Up { block: usize, resnet: usize },
    /// The rest, which strips visit again and again.
    Tail,
}

impl<'w> Loader<'w> {
    pub(super) fn pp(&self, name: impl std::fmt::Display) -> Loader<'w> {
        match self {
            Loader::Weights(weights) => Loader::Weights(weights.pp(name)),
            Loader::Shapes => Loader::Shapes,
        }
    }

    pub(super) fn conv(
        &self,
        channels_in: usize,
        channels_out: usize,
        kernel: usize,
        name: &str,
    ) -> Result<Conv<'w>> {
        let layer = match self {
            Loader::Weights(weights) => {
                Some(weights.conv2d(channels_in, channels_out, kernel, name)?)
            }
            Loader::Shapes => None,
        };
        Ok(Conv {
            channels_in,
            channels_out,
            kernel,
            scale: Scale::Same,
            layer,
        })
    }

    pub(super) fn norm(&self, config: &Config, channels: usize, name: &str) -> Result<Norm> {
        let layer = match self {
            Loader::Weights(weights) => {
                Some(weights.group_norm(config.norm_num_groups, channels, NORM_EPS, name)?)
            }
            Loader::Shapes => None,
        };
        Ok(Norm { layer })
    }
}

impl<'w> Resnet<'w> {
    fn load(
        from: &Loader<'w>,
        config: &Config,
        channels_in: usize,
        channels_out: usize,
    ) -> Result<Resnet<'w>> {
        Ok(Resnet {
            norm1: from.norm(config, channels_in, "norm1")?,
            conv1: from.conv(channels_in, channels_out, 3, "conv1")?,
            norm2: from.norm(config, channels_out, "norm2")?,
            conv2: from.conv(channels_out, channels_out, 3, "conv2")?,
            conv_shortcut: match channels_in == channels_out {
                true => None,
                false => Some(from.conv(channels_in, channels_out, 1, "conv_shortcut")?),
            },
        })
    }
}

impl<'w> Attention<'w> {
    pub(super) fn load(from: &Loader<'w>, config: &Config) -> Result<Attention<'w>> {
        let c = config.channels_deepest();
        let layers = match from {
            Loader::Shapes => None,
            Loader::Weights(weights) => {
                // Checkpoints from before the layers were renamed still go about.
                let old = weights.has("query.weight");
                let names = if old {
                    ["query", "key", "value", "proj_attn"]
                } else {
                    ["to_q", "to_k", "to_v", "to_out.0"]
                };
                let [q, k, v, out] = names.map(|name| weights.linear(c, c, name));
                Some([q?, k?, v?, out?])
            }
        };
        Ok(Attention {
            norm: from.norm(config, c, "group_norm")?,
            layers,
        })
    }
}

impl Block {
    /// The blocks in order of use.
    pub(super) fn all(config: &Config) -> Vec<Block> {
        let mut blocks = vec![Block::Start];
        if config.mid_block_add_attention {
            blocks.push(Block::Attention);
        }
        blocks.push(Block::Middle);
        for block in 0..config.tail_start() {
            blocks.extend((0..=config.layers_per_block).map(|resnet| Block::Up { block, resnet }));
        }
        blocks.push(Block::Tail);
        blocks
    }

    /// What it is called in explanations.
    pub(super) fn name(&self) -> String {
        match self {
            Block::Start => "conv_in".to_owned(),
            Block::Attention => "mid_block.attentions.0".to_owned(),
            Block::Middle => "mid_block.resnets.1".to_owned(),
            Block::Up { block, resnet } => format!("up_blocks.{block}.resnets.{resnet}"),
            Block::Tail => "tail".to_owned(),
        }
    }
}

impl Unit for Block {
    fn load<'w>(&self, root: &Loader<'w>, config: &Config) -> Result<Loaded<'w>> {
        let decoder = root.pp("decoder");
        let c = config.channels_deepest();
        let mut stages = Vec::new();
        match *self {
            Block::Start => {
                let latent = config.latent_channels;
                if config.use_post_quant_conv {
                    stages.push(Stage::Conv(root.conv(
                        latent,
                        latent,
                        1,
                        "post_quant_conv",
                    )?));
                }
                stages.push(Stage::Conv(decoder.conv(latent, c, 3, "conv_in")?));
                stages.push(resnet(&decoder.pp("mid_block.resnets.0"), config, c, c)?);
            }
            Block::Attention => {
                let attention = Attention::load(&decoder.pp("mid_block.attentions.0"), config)?;
                return Ok(Loaded::Attention(Box::new(attention)));
            }
            Block::Middle => stages.push(resnet(&decoder.pp("mid_block.resnets.1"), config, c, c)?),
            Block::Up { block, resnet } => {
                stages.push(up_resnet(&decoder, config, block, resnet)?);
                // The upsampler that leads into the tail belongs to the tail.
                if resnet == config.layers_per_block && block + 1 < config.tail_start() {
                    stages.push(upsampler(&decoder, config, block)?);
                }
            }
            Block::Tail => {
                for block in config.tail_start()..config.block_out_channels.len() {
                    if let Some(before) = block.checked_sub(1) {
                        stages.push(upsampler(&decoder, config, before)?);
                    }
                    for resnet in 0..=config.layers_per_block {
                        stages.push(up_resnet(&decoder, config, block, resnet)?);
                    }
                }
                let last = config.block_out_channels[0];
                let norm = decoder.norm(config, last, "conv_norm_out")?;
                stages.push(Stage::Out {
                    norm,
                    conv: decoder.conv(last, config.out_channels, 3, "conv_out")?,
                });
            }
        }
        Ok(Loaded::Stages(stages))
    }
}

/// A residual block as a stage.
pub(super) fn resnet<'w>(
    scope: &Loader<'w>,
    config: &Config,
    channels_in: usize,
    channels_out: usize,
) -> Result<Stage<'w>> {
    let resnet = Resnet::load(scope, config, channels_in, channels_out)?;
    Ok(Stage::Resnet(Box::new(resnet)))
}

fn up_resnet<'w>(
    decoder: &Loader<'w>,
    config: &Config,
    block: usize,
    index: usize,
) -> Result<Stage<'w>> {
    let channels_out = config.up_channels(block);
    let channels_in = if index > 0 {
        channels_out
    } else {
        config.up_channels(block.saturating_sub(1))
    };
    let scope = decoder.pp(format!("up_blocks.{block}.resnets.{index}"));
    resnet(&scope, config, channels_in, channels_out)
}

fn upsampler<'w>(decoder: &Loader<'w>, config: &Config, block: usize) -> Result<Stage<'w>> {
    let channels = config.up_channels(block);
    let scope = decoder.pp(format!("up_blocks.{block}.upsamplers.0"));
    let conv = scope.conv(channels, channels, 3, "conv")?;
    Ok(Stage::Conv(Conv {
        scale: Scale::Double,
        ..conv
    }))
}
