//! The encoder's blocks, by the names of the checkpoint.

use super::super::network::{Attention, Conv, Loaded, Loader, Scale, Stage, resnet};
use super::super::{Config, Unit};
use crate::Result;

/// Down blocks in the head, which strips visit again and again.
const HEAD_DOWN_BLOCKS: usize = 2;

/// A unit of streaming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Everything up to the second halving.
    Head,
    /// A resnet of a later down block, with the halving that follows.
    Down { block: usize, resnet: usize },
    /// The first resnet in the middle.
    Middle,
    /// The attention in the middle.
    Attention,
    /// The rest.
    End,
}

impl Block {
    /// The blocks in order of use.
    pub(super) fn all(config: &Config) -> Vec<Block> {
        let mut blocks = vec![Block::Head];
        for block in HEAD_DOWN_BLOCKS..config.block_out_channels.len() {
            blocks.extend((0..config.layers_per_block).map(|resnet| Block::Down { block, resnet }));
        }
        blocks.push(Block::Middle);
        if config.mid_block_add_attention {
            blocks.push(Block::Attention);
        }
        blocks.push(Block::End);
        blocks
    }

    /// What it is called in explanations.
    pub(super) fn name(&self) -> String {
        match self {
            Block::Head => "head".to_owned(),
            Block::Down { block, resnet } => format!("down_blocks.{block}.resnets.{resnet}"),
            Block::Middle => "mid_block.resnets.0".to_owned(),
            Block::Attention => "mid_block.attentions.0".to_owned(),
            Block::End => "conv_out".to_owned(),
        }
    }
}

impl Unit for Block {
    fn load<'w>(&self, root: &Loader<'w>, config: &Config) -> Result<Loaded<'w>> {
        let encoder = root.pp("encoder");
        let c = config.channels_deepest();
        let mut stages = Vec::new();
        match *self {
            Block::Head => {
                let first = config.block_out_channels[0];
                stages.push(Stage::Conv(encoder.conv(
                    config.in_channels,
                    first,
                    3,
                    "conv_in",
                )?));
                let levels = config.block_out_channels.len();
                for block in 0..levels.min(HEAD_DOWN_BLOCKS) {
                    for resnet in 0..config.layers_per_block {
                        down_resnet(&encoder, config, (block, resnet), &mut stages)?;
                    }
                }
            }
            Block::Down { block, resnet } => {
                down_resnet(&encoder, config, (block, resnet), &mut stages)?;
            }
            Block::Middle => stages.push(resnet(&encoder.pp("mid_block.resnets.0"), config, c, c)?),
            Block::Attention => {
                let attention = Attention::load(&encoder.pp("mid_block.attentions.0"), config)?;
                return Ok(Loaded::Attention(Box::new(attention)));
            }
            Block::End => {
                stages.push(resnet(&encoder.pp("mid_block.resnets.1"), config, c, c)?);
                let moments = 2 * config.latent_channels;
                stages.push(Stage::Out {
                    norm: encoder.norm(config, c, "conv_norm_out")?,
                    conv: encoder.conv(c, moments, 3, "conv_out")?,
                });
                if config.use_quant_conv {
                    let quant = root.conv(moments, moments, 1, "quant_conv")?;
                    stages.push(Stage::Conv(quant));
                }
            }
        }
        Ok(Loaded::Stages(stages))
    }
}

/// A resnet, by the indices of its down block and within it; the halving where it is the last of a down block that has
/// one.
fn down_resnet<'w>(
    encoder: &Loader<'w>,
    config: &Config,
    (block, index): (usize, usize),
    stages: &mut Vec<Stage<'w>>,
) -> Result<()> {
    let channels = &config.block_out_channels;
    let channels_out = channels[block];
    let channels_in = match index {
        0 => channels[block.saturating_sub(1)],
        _ => channels_out,
    };
    let scope = encoder.pp(format!("down_blocks.{block}"));
    let resnet_scope = scope.pp(format!("resnets.{index}"));
    stages.push(resnet(&resnet_scope, config, channels_in, channels_out)?);
    if index + 1 == config.layers_per_block && block + 1 < channels.len() {
        let conv = scope
            .pp("downsamplers.0")
            .conv(channels_out, channels_out, 3, "conv")?;
        stages.push(Stage::Conv(Conv {
            scale: Scale::Halve,
            ..conv
        }));
    }
    Ok(())
}
