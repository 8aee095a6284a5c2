//! The VAE: `decoder.up.3.block.0.…` becomes `decoder.up_blocks.0.resnets.0.…`; the decoder's levels are counted from
//! the other end.

use serde_json::{Value, json};

use super::family::Family;
use super::{Named, Part, number, shape, under};
use crate::{Checkpoint, TensorEntry};

/// Where the VAE of a whole model is.
const PREFIXES: [&str; 2] = ["first_stage_model.", "vae."];
/// What latents are multiplied with, in 1.x and 2.x, and in XL.
const SCALES: (f64, f64) = (0.18215, 0.13025);
/// More levels than any VAE has.
const LEVELS_MAX: usize = 16;

/// The VAE of a whole model's file.
pub(super) fn part(checkpoint: &Checkpoint, family: Family) -> Result<Option<Part>, String> {
    let prefix = PREFIXES.iter().find(|prefix| {
        let first = format!("{prefix}decoder.conv_in.weight");
        checkpoint.get(&first).is_some()
    });
    let Some(prefix) = prefix else {
        return Ok(None);
    };
    let (scale, size) = match family.is_xl() {
        true => (SCALES.1, 1024),
        false => (SCALES.0, 512),
    };
    let known = json!({
        "force_upcast": family.is_xl(),
        "sample_size": size,
        "scaling_factor": scale,
    });
    convert(&under(checkpoint, prefix), &known).map(Some)
}

/// A VAE that is alone in its file, under either kind of names.
pub(super) fn alone(checkpoint: &Checkpoint, known: &Value) -> Result<Option<Part>, String> {
    let prefixes = PREFIXES.into_iter().chain([""]);
    for prefix in prefixes {
        let named = under(checkpoint, prefix);
        if named.contains_key("decoder.conv_in.weight") {
            return convert(&named, known).map(Some);
        }
    }
    Ok(None)
}

/// Names and configuration; `known` has what no shape tells.
fn convert(named: &Named, known: &Value) -> Result<Part, String> {
    let trained = named.keys().any(|name| name.starts_with("decoder.up."));
    let levels = levels(named, trained)?;
    let count = levels.len();
    let config = config(named, known, &levels, trained)?;
    let mut tensors = Vec::new();
    for (name, entry) in named {
        let name = match trained {
            true => rename(name, count),
            false => Some(name.clone()).filter(|name| is_own(name)),
        };
        if let Some(name) = name {
            tensors.push(squeezed(entry, name)?);
        }
    }
    Ok(Part { tensors, config })
}

/// The channels of every level and its resnets in the decoder, from the level nearest to the picture.
fn levels(named: &Named, trained: bool) -> Result<Vec<(usize, usize)>, String> {
    let is_there = |name: &String| named.contains_key(name);
    let block = |level: usize, resnet: usize| match trained {
        true => format!("decoder.up.{level}.block.{resnet}.conv2.weight"),
        false => format!("decoder.up_blocks.{level}.resnets.{resnet}.conv2.weight"),
    };
    let mut levels = Vec::new();
    for level in (0..LEVELS_MAX).take_while(|level| is_there(&block(*level, 0))) {
        let [channels, ..] = shape::<4>(named, &block(level, 0))?;
        let resnets = (0..LEVELS_MAX).take_while(|r| is_there(&block(level, *r)));
        levels.push((channels, resnets.count()));
    }
    if !trained {
        levels.reverse();
    }
    match levels.first() {
        None => Err("its VAE has no decoder".to_owned()),
        Some((_, resnets)) if *resnets < 2 || levels.iter().any(|(_, r)| r != resnets) => {
            Err("the levels of its VAE have different numbers of resnets".to_owned())
        }
        Some(_) => Ok(levels),
    }
}

fn config(
    named: &Named,
    known: &Value,
    levels: &[(usize, usize)],
    trained: bool,
) -> Result<Value, String> {
    let [_, latent, ..] = shape::<4>(named, "decoder.conv_in.weight")?;
    let [out_channels, ..] = shape::<4>(named, "decoder.conv_out.weight")?;
    let channels: Vec<usize> = levels.iter().map(|(channels, _)| *channels).collect();
    let has = |start: &str| named.keys().any(|name| name.starts_with(start));
    let attention = if trained {
        "decoder.mid.attn_1."
    } else {
        "decoder.mid_block.attentions."
    };
    let mut config = json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels.len()],
        "force_upcast": true,
        "in_channels": 3,
        "latent_channels": latent,
        "layers_per_block": levels[0].1 - 1,
        "mid_block_add_attention": has(attention),
        "norm_num_groups": 32,
        "out_channels": out_channels,
        "sample_size": 512,
        "scaling_factor": SCALES.0,
        "up_block_types": vec!["UpDecoderBlock2D"; levels.len()],
        "use_post_quant_conv": has("post_quant_conv."),
        "use_quant_conv": has("quant_conv."),
    });
    for key in [
        "scaling_factor",
        "shift_factor",
        "latents_mean",
        "latents_std",
        "force_upcast",
        "sample_size",
    ] {
        if let Some(value) = known.get(key).filter(|value| !value.is_null()) {
            config[key] = value.clone();
        }
    }
    Ok(config)
}

/// The attention's matrices were convolutions of one pixel once.
fn squeezed(entry: &TensorEntry, name: String) -> Result<TensorEntry, String> {
    let is_matrix = name.contains(".attentions.") && name.ends_with(".weight");
    match entry.shape[..] {
        [rows, cols, 1, 1] | [rows, cols, 1] if is_matrix => entry
            .reshaped(name.clone(), vec![rows, cols])
            .ok_or_else(|| format!("'{name}' is stored in another order")),
        _ => Ok(entry.renamed(name)),
    }
}

/// Whether a name is one of the network's own, and not of what trained it.
fn is_own(name: &str) -> bool {
    ["encoder.", "decoder.", "quant_conv.", "post_quant_conv."]
        .iter()
        .any(|start| name.starts_with(start))
}

/// diffusers' name; `None` for what is no part of the network.
fn rename(name: &str, levels: usize) -> Option<String> {
    if !is_own(name) {
        return None;
    }
    let (side, rest) = name.split_once('.')?;
    if side.ends_with("quant_conv") {
        return Some(name.to_owned());
    }
    let inside = |rest: &str| rest.replace("nin_shortcut.", "conv_shortcut.");
    let rest = if let Some(rest) = rest.strip_prefix("norm_out.") {
        format!("conv_norm_out.{rest}")
    } else if let Some(rest) = rest.strip_prefix("mid.block_") {
        let (block, rest) = number(rest)?;
        format!(
            "mid_block.resnets.{}.{}",
            block.checked_sub(1)?,
            inside(rest)
        )
    } else if let Some(rest) = rest.strip_prefix("mid.attn_1.") {
        let (module, rest) = rest.split_once('.')?;
        let module = match module {
            "norm" => "group_norm",
            "q" => "to_q",
            "k" => "to_k",
            "v" => "to_v",
            "proj_out" => "to_out.0",
            _ => return None,
        };
        format!("mid_block.attentions.0.{module}.{rest}")
    } else if let Some(rest) = rest.strip_prefix("down.") {
        sided("down_blocks", "downsample", number(rest)?)?
    } else if let Some(rest) = rest.strip_prefix("up.") {
        let (level, rest) = number(rest)?;
        sided(
            "up_blocks",
            "upsample",
            (levels.checked_sub(level + 1)?, rest),
        )?
    } else {
        rest.to_owned()
    };
    Some(format!("{side}.{rest}"))
}

/// A name inside one level.
fn sided(list: &str, sampler: &str, (level, rest): (usize, &str)) -> Option<String> {
    if let Some(rest) = rest.strip_prefix("block.") {
        let (resnet, rest) = number(rest)?;
        let rest = rest.replace("nin_shortcut.", "conv_shortcut.");
        return Some(format!("{list}.{level}.resnets.{resnet}.{rest}"));
    }
    let rest = rest.strip_prefix(sampler)?.strip_prefix('.')?;
    Some(format!("{list}.{level}.{sampler}rs.0.{rest}"))
}
