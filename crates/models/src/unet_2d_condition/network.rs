//! The blocks in order of use, and what each consists of.

use super::config::{Attentions, Config, Middle};
use super::embedding::Embedders;
use super::resnet::{Output, Resnet, Sampler};
use super::transformer::Layer;
use crate::Result;
use crate::weights::Weights;

/// A unit of streaming: its name is its scope in the checkpoint, its level says which size maps have (0 is finest).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Block {
    pub(super) name: String,
    pub(super) level: usize,
    pub(super) kind: Kind,
}

/// What a block does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Embeds the time and what joins it, and the samples.
    Start,
    /// A residual block.
    Resnet(ResnetShape),
    /// One layer of a transformer.
    Layer(LayerShape),
    /// Halves rows and columns; what it leaves is kept for the way up.
    Down { channels: usize },
    /// Doubles rows and columns, to those of level `level - 1`.
    Up { channels: usize },
    /// The last norm and convolution.
    Output,
}

/// Channels of a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResnetShape {
    pub(super) channels_in: usize,
    /// Channels kept on the way down that join the input.
    pub(super) channels_skip: usize,
    pub(super) channels_out: usize,
    /// Whether the result is kept for the way up.
    pub(super) keep: bool,
}

/// One layer of a transformer, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LayerShape {
    pub(super) channels: usize,
    pub(super) heads: usize,
    pub(super) text_dim: usize,
    pub(super) text_only: bool,
    pub(super) index: usize,
    /// The last one ends with the transformer's last layer, too.
    pub(super) last: bool,
    /// Whether the result is kept for the way up.
    pub(super) keep: bool,
}

/// A block, loaded.
pub(super) enum Loaded<'w> {
    Start(Box<Embedders<'w>>),
    Resnet(Box<Resnet<'w>>),
    Layer(Box<Layer<'w>>),
    Sampler(Sampler<'w>),
    Output(Output<'w>),
}

impl Block {
    /// Loads it from the component's root scope.
    pub(super) fn load<'w>(&self, root: &Weights<'w>, config: &Config) -> Result<Loaded<'w>> {
        let scope = root.pp(&self.name);
        Ok(match &self.kind {
            Kind::Start => Loaded::Start(Box::new(Embedders::load(root, config)?)),
            Kind::Resnet(shape) => Loaded::Resnet(Box::new(Resnet::load(&scope, config, shape)?)),
            Kind::Layer(shape) => {
                // The layer's own scope lies in the transformer's.
                let transformer = self.name.split(".transformer_blocks").next();
                let scope = root.pp(transformer.unwrap_or(&self.name));
                Loaded::Layer(Box::new(Layer::load(&scope, config, shape)?))
            }
            Kind::Down { channels } | Kind::Up { channels } => {
                Loaded::Sampler(Sampler::load(&scope, *channels)?)
            }
            Kind::Output => Loaded::Output(Output::load(root, config)?),
        })
    }
}

/// The blocks in order of use.
pub(super) fn blocks(config: &Config) -> Vec<Block> {
    let mut builder = Builder {
        config,
        blocks: Vec::new(),
        channels: config.channels(0),
        kept: Vec::new(),
    };
    builder.push("conv_in", 0, Kind::Start);
    builder.kept.push(builder.channels);
    builder.down();
    builder.middle();
    builder.up();
    builder.push("conv_out", 0, Kind::Output);
    builder.blocks
}

struct Builder<'c> {
    config: &'c Config,
    blocks: Vec<Block>,
    /// Channels of the current map.
    channels: usize,
    /// Channels of each map kept for the way up.
    kept: Vec<usize>,
}

impl Builder<'_> {
    fn push(&mut self, name: impl Into<String>, level: usize, kind: Kind) {
        self.blocks.push(Block {
            name: name.into(),
            level,
            kind,
        });
    }

    fn resnet(&mut self, name: String, level: usize, channels_skip: usize, keep: bool) {
        let channels_out = self.config.channels(level);
        let shape = ResnetShape {
            channels_in: self.channels,
            channels_skip,
            channels_out,
            keep,
        };
        self.push(name, level, Kind::Resnet(shape));
        self.channels = channels_out;
    }

    fn transformer(
        &mut self,
        name: &str,
        level: usize,
        (attentions, index): (&Attentions, usize),
        keep: bool,
    ) {
        let layers = attentions.layers[index];
        for index in 0..layers {
            let last = index + 1 == layers;
            let shape = LayerShape {
                channels: self.channels,
                heads: attentions.heads,
                text_dim: self.config.cross_attention_dim,
                text_only: attentions.text_only,
                index,
                last,
                keep: keep && last,
            };
            let name = format!("{name}.transformer_blocks.{index}");
            self.push(name, level, Kind::Layer(shape));
        }
    }

    fn down(&mut self) {
        let config = self.config;
        for (level, stack) in config.down.iter().enumerate() {
            let name = format!("down_blocks.{level}");
            for i in 0..stack.resnets {
                let attention = stack.attention.as_ref();
                self.resnet(format!("{name}.resnets.{i}"), level, 0, attention.is_none());
                if let Some(attentions) = attention {
                    let name = format!("{name}.attentions.{i}");
                    self.transformer(&name, level, (attentions, i), true);
                }
                self.kept.push(self.channels);
            }
            if level + 1 < config.down.len() {
                let channels = self.channels;
                let name = format!("{name}.downsamplers.0");
                self.push(name, level, Kind::Down { channels });
                self.kept.push(channels);
            }
        }
    }

    fn middle(&mut self) {
        let (config, deepest) = (self.config, self.config.down.len() - 1);
        if config.middle == Middle::Nothing {
            return;
        }
        self.resnet("mid_block.resnets.0".to_owned(), deepest, 0, false);
        if let Middle::Transformer(attentions) = &config.middle {
            self.transformer("mid_block.attentions.0", deepest, (attentions, 0), false);
            self.resnet("mid_block.resnets.1".to_owned(), deepest, 0, false);
        }
    }

    fn up(&mut self) {
        let config = self.config;
        for (block, stack) in config.up.iter().enumerate() {
            let level = config.up.len() - 1 - block;
            let name = format!("up_blocks.{block}");
            for i in 0..stack.resnets {
                let skip = self.kept.pop().unwrap_or(0);
                self.resnet(format!("{name}.resnets.{i}"), level, skip, false);
                if let Some(attentions) = &stack.attention {
                    let name = format!("{name}.attentions.{i}");
                    self.transformer(&name, level, (attentions, i), false);
                }
            }
            if level > 0 {
                let channels = self.channels;
                self.push(format!("{name}.upsamplers.0"), level, Kind::Up { channels });
            }
        }
    }
}

/// Rows and columns of each level: half of the finer one's, rounded up.
pub(super) fn sizes(config: &Config, finest: (usize, usize)) -> Vec<(usize, usize)> {
    let halved = |(rows, columns): &(usize, usize)| Some((rows.div_ceil(2), columns.div_ceil(2)));
    std::iter::successors(Some(finest), halved)
        .take(config.down.len())
        .collect()
}
