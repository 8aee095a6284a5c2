//! The U-Net: `input_blocks.4.1.…` becomes `down_blocks.1.attentions.0.…`. The trained code counts every layer of a
//! side in one list; how many belong to a level is told by where the downsamplers are.

use serde_json::{Value, json};

use super::family::{Family, Generation};
use super::{Named, Part, averages, number, shape, under};
use crate::Checkpoint;

/// Width of a head in 2.x and XL.
const HEAD_WIDTH: usize = 64;
/// Heads of 1.x, whatever their width.
const HEADS_ONE: usize = 8;
/// More blocks than any U-Net has on one side.
const BLOCKS_MAX: usize = 64;
/// Width of the embedding of one size in SDXL, where the shapes do not tell.
const TIME_IDS_WIDTH: usize = 256;

/// One level of a side.
struct Level {
    channels: usize,
    /// For each resnet the transformer layers after it; 0 where there is no attention.
    depths: Vec<usize>,
}

/// How a U-Net is built, by its names and shapes.
struct Structure {
    levels: Vec<Level>,
    /// Resnets of a level on the way down.
    layers: usize,
    mid_depth: usize,
}

/// The U-Net of a file.
pub(super) fn part(checkpoint: &Checkpoint, family: Family) -> Result<Option<Part>, String> {
    let named = match family.averaged {
        true => averages::named(checkpoint),
        false => under(checkpoint, family.unet),
    };
    let structure = Structure::of(&named)?;
    let config = structure.config(&named, checkpoint, family)?;
    let tensors = named
        .iter()
        .filter_map(|(name, entry)| Some(entry.renamed(rename(name, structure.layers)?)))
        .collect();
    Ok(Some(Part { tensors, config }))
}

impl Structure {
    fn of(named: &Named) -> Result<Structure, String> {
        let has = |name: &str| named.contains_key(name);
        let mut levels: Vec<Level> = Vec::new();
        let mut opened = false;
        for block in 1..BLOCKS_MAX {
            let at = format!("input_blocks.{block}");
            if has(&format!("{at}.0.op.weight")) {
                if !opened {
                    return Err(format!("'{at}' makes smaller what nothing was done to"));
                }
                opened = false;
            } else if has(&format!("{at}.0.out_layers.3.weight")) {
                let [channels, ..] = shape::<4>(named, &format!("{at}.0.out_layers.3.weight"))?;
                if !opened {
                    let depths = Vec::new();
                    levels.push(Level { channels, depths });
                    opened = true;
                }
                let level = levels.last_mut().expect("one was just pushed or is open");
                level.depths.push(depth(named, &format!("{at}.1")));
                if level.channels != channels {
                    return Err(format!(
                        "'{at}' has {channels} channels, those before it {}",
                        level.channels
                    ));
                }
            } else {
                break;
            }
        }
        let structure = Structure {
            layers: levels.first().map_or(0, |level| level.depths.len()),
            mid_depth: depth(named, "middle_block.1"),
            levels,
        };
        structure.check(named)?;
        Ok(structure)
    }

    /// Refuses what diffusers' configuration has no words for.
    fn check(&self, named: &Named) -> Result<(), String> {
        if self.levels.is_empty() {
            return Err("its U-Net has no blocks".to_owned());
        }
        for (number, level) in self.levels.iter().enumerate() {
            if level.depths.len() != self.layers
                || level.depths.iter().any(|d| *d != level.depths[0])
            {
                return Err(format!(
                    "level {number} of its U-Net is not like the others: {:?} transformer layers",
                    level.depths
                ));
            }
            let up = self.levels.len() - 1 - number;
            for layer in 0..=self.layers {
                let block = up * (self.layers + 1) + layer;
                let found = depth(named, &format!("output_blocks.{block}.1"));
                if found != level.depths[0] {
                    return Err(format!(
                        "'output_blocks.{block}' has {found} transformer layers, its level {} on the way down",
                        level.depths[0]
                    ));
                }
            }
        }
        let last = self.levels.last().map_or(0, |level| level.depths[0]);
        if self.mid_depth == 0 {
            return Err("its U-Net has no attention in the middle".to_owned());
        }
        if last > 0 && self.mid_depth != last {
            return Err(format!(
                "{} transformer layers in the middle after {last}",
                self.mid_depth
            ));
        }
        Ok(())
    }

    /// A number where all levels agree, else one for each level.
    fn depths(&self) -> Value {
        let last = self.levels.len() - 1;
        let depths: Vec<usize> = self
            .levels
            .iter()
            .enumerate()
            .map(|(number, level)| match level.depths[0] {
                0 if number == last => self.mid_depth.max(1),
                0 => 1,
                depth => depth,
            })
            .collect();
        let used: Vec<usize> = self
            .levels
            .iter()
            .map(|l| l.depths[0])
            .filter(|d| *d > 0)
            .collect();
        match used.first() {
            None => json!(1),
            Some(first) if used.iter().all(|d| d == first) && depths[last] == *first => {
                json!(first)
            }
            Some(_) => json!(depths),
        }
    }

    /// The classes of the blocks, on the way down and up.
    fn kinds(&self) -> (Vec<&'static str>, Vec<&'static str>) {
        let crossed = || self.levels.iter().map(|level| level.depths[0] > 0);
        let kind = |cross, plain| move |is_crossed| if is_crossed { cross } else { plain };
        (
            crossed()
                .map(kind("CrossAttnDownBlock2D", "DownBlock2D"))
                .collect(),
            crossed()
                .rev()
                .map(kind("CrossAttnUpBlock2D", "UpBlock2D"))
                .collect(),
        )
    }

    fn config(
        &self,
        named: &Named,
        checkpoint: &Checkpoint,
        family: Family,
    ) -> Result<Value, String> {
        let [_, in_channels, ..] = shape::<4>(named, "input_blocks.0.0.weight")?;
        let [out_channels, ..] = shape::<4>(named, "out.2.weight")?;
        let channels: Vec<usize> = self.levels.iter().map(|level| level.channels).collect();
        let (down, up) = self.kinds();
        let context = named
            .keys()
            .find(|name| name.ends_with(".attn2.to_k.weight"));
        let context = context.ok_or("its U-Net has no attention to a text")?;
        let [_, context] = shape::<2>(named, context)?;
        let linear = family.generation != Generation::One;
        let heads = match linear {
            true => json!(
                channels
                    .iter()
                    .map(|c| (c / HEAD_WIDTH).max(1))
                    .collect::<Vec<_>>()
            ),
            false => json!(HEADS_ONE),
        };
        let mut config = json!({
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "attention_head_dim": heads,
            "block_out_channels": channels,
            "center_input_sample": false,
            "cross_attention_dim": context,
            "down_block_types": down,
            "downsample_padding": 1,
            "flip_sin_to_cos": true,
            "freq_shift": 0,
            "in_channels": in_channels,
            "layers_per_block": self.layers,
            "mid_block_scale_factor": 1,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "norm_eps": 1e-5,
            "norm_num_groups": 32,
            "out_channels": out_channels,
            "sample_size": sample_size(family),
            "transformer_layers_per_block": self.depths(),
            "up_block_types": up,
            "use_linear_projection": linear,
        });
        if family.is_xl() {
            add_conditions(&mut config, named, checkpoint, family)?;
        }
        Ok(config)
    }
}

/// Rows and columns of latents of the size it was trained for.
fn sample_size(family: Family) -> usize {
    match family.generation {
        Generation::One => 64,
        Generation::Two if family.inpaint => 64,
        Generation::Two => 96,
        Generation::Xl | Generation::Refiner => 128,
    }
}

/// The conditions of XL besides the text: a pooled state, and five or six numbers.
fn add_conditions(
    config: &mut Value,
    named: &Named,
    checkpoint: &Checkpoint,
    family: Family,
) -> Result<(), String> {
    let [_, conditions] = shape::<2>(named, "label_emb.0.0.weight")?;
    let ids = match family.generation {
        Generation::Refiner => 5,
        _ => 6,
    };
    let pooled = super::text_encoder::pooled(checkpoint, family);
    let width = pooled.and_then(|pooled| conditions.checked_sub(pooled));
    config["addition_embed_type"] = json!("text_time");
    config["addition_time_embed_dim"] = json!(width.map_or(TIME_IDS_WIDTH, |width| width / ids));
    config["projection_class_embeddings_input_dim"] = json!(conditions);
    Ok(())
}

/// How many transformer layers are at a place.
fn depth(named: &Named, at: &str) -> usize {
    let has = |layer: &usize| {
        named.contains_key(&format!("{at}.transformer_blocks.{layer}.norm1.weight"))
    };
    (0..BLOCKS_MAX).take_while(has).count()
}

/// diffusers' name; `None` for what is no part of the network. `layers` is the resnets of a level on the way down.
pub(crate) fn rename(name: &str, layers: usize) -> Option<String> {
    let pairs = [
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("label_emb.0.0.", "add_embedding.linear_1."),
        ("label_emb.0.2.", "add_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
        ("middle_block.1.", "mid_block.attentions.0."),
    ];
    for (theirs, ours) in pairs {
        if let Some(rest) = name.strip_prefix(theirs) {
            return Some(format!("{ours}{rest}"));
        }
    }
    if let Some(rest) = name.strip_prefix("middle_block.") {
        let (part, rest) = number(rest)?;
        let number = [0, 2].iter().position(|p| *p == part)?;
        return Some(format!("mid_block.resnets.{number}.{}", resnet(rest)?));
    }
    let (side, rest, before) = match name.split_once('.')? {
        ("input_blocks", rest) => ("down", rest, 1),
        ("output_blocks", rest) => ("up", rest, 0),
        _ => return None,
    };
    let (block, rest) = number(rest)?;
    let (part, rest) = number(rest)?;
    let block = block.checked_sub(before)?;
    let (level, layer) = (block / (layers + 1), block % (layers + 1));
    let level = format!("{side}_blocks.{level}");
    Some(if let Some(rest) = rest.strip_prefix("op.") {
        format!("{level}.downsamplers.0.conv.{rest}")
    } else if let Some(rest) = rest.strip_prefix("conv.") {
        format!("{level}.upsamplers.0.conv.{rest}")
    } else if part == 0 {
        format!("{level}.resnets.{layer}.{}", resnet(rest)?)
    } else {
        format!("{level}.attentions.{layer}.{rest}")
    })
}

/// A name inside a resnet.
fn resnet(rest: &str) -> Option<String> {
    let pairs = [
        ("in_layers.0.", "norm1."),
        ("in_layers.2.", "conv1."),
        ("emb_layers.1.", "time_emb_proj."),
        ("out_layers.0.", "norm2."),
        ("out_layers.3.", "conv2."),
        ("skip_connection.", "conv_shortcut."),
    ];
    pairs
        .iter()
        .find_map(|(theirs, ours)| Some(format!("{ours}{}", rest.strip_prefix(theirs)?)))
}
