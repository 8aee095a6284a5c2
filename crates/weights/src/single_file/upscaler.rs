//! Networks that enlarge pictures: RRDBNet (ESRGAN, Real-ESRGAN, BSRGAN) and SRVGGNetCompact, under any of the names in
//! which people keep them. Out come the names of BasicSR, and a configuration, which the files themselves do not have:
//! shapes tell everything but the activation of a compact network without slopes.
//!
//! # Source
//! The names: <https://github.com/XPixelGroup/BasicSR/tree/master/basicsr/archs>, and for older files
//! <https://github.com/xinntao/ESRGAN>.

use std::collections::BTreeMap;

use serde_json::json;

use super::Part;
use crate::{Checkpoint, TensorEntry};

/// The component's name.
pub(crate) const COMPONENT: &str = "upscaler";
/// Residual in residual dense blocks.
pub(crate) const RRDB: &str = "RRDBNet";
/// A plain stack of convolutions.
pub(crate) const COMPACT: &str = "SRVGGNetCompact";
/// What trainers put before every name.
const WRAPPER: &str = "module.";
/// Convolutions of a block: three dense blocks of five.
const BLOCK_CONVS: usize = 15;
/// The most doublings: 8 times.
const DOUBLINGS_MAX: usize = 3;
/// The most blocks; real ones have 6 to 23.
const BLOCKS_MAX: usize = 256;

/// Tensors by their names without a wrapper.
type Named<'a> = BTreeMap<&'a str, &'a TensorEntry>;

/// The class and the tensors under BasicSR's names; `None` where it is no such network.
pub(super) fn part(checkpoint: &Checkpoint) -> Result<Option<(&'static str, Part)>, String> {
    let strip = |t: &'_ TensorEntry| t.name.strip_prefix(WRAPPER).map_or(0, |_| WRAPPER.len());
    let named: Named = checkpoint
        .tensors()
        .map(|t| (&t.name[strip(t)..], t))
        .collect();
    let has = |name: &str| named.contains_key(name);
    let tensors = if has("conv_first.weight") && has("body.0.rdb1.conv1.weight") {
        renamed(&named, |name| Some(name.to_owned()))
    } else if has("conv_first.weight") && has("RRDB_trunk.0.RDB1.conv1.weight") {
        renamed(&named, trunk_name)
    } else if has("model.0.weight") && has("model.1.sub.0.RDB1.conv1.0.weight") {
        renamed(&named, sequence_names(&named)?)
    } else if has("body.0.weight") && !has("conv_first.weight") && is_compact(&named) {
        return compact(renamed(&named, |name| Some(name.to_owned())), checkpoint).map(Some);
    } else if checkpoint.metadata(crate::ncnn::FORMAT).is_some() {
        return in_order(checkpoint);
    } else {
        return Ok(None);
    };
    dense(tensors).map(Some)
}

/// All tensors that get a name.
fn renamed(named: &Named, name: impl Fn(&str) -> Option<String>) -> Vec<TensorEntry> {
    let entries = named.iter();
    entries
        .filter_map(|(old, entry)| Some(entry.renamed(name(old)?)))
        .collect()
}

/// The names of ESRGAN's own second version.
fn trunk_name(name: &str) -> Option<String> {
    let name = name
        .replace("RRDB_trunk.", "body.")
        .replace(".RDB", ".rdb")
        .replace("trunk_conv.", "conv_body.")
        .replace("HRconv.", "conv_hr.");
    Some(match name.strip_prefix("upconv") {
        Some(rest) => format!("conv_up{rest}"),
        None => name,
    })
}

/// The names of the first version, where everything is an element of a sequence.
fn sequence_names(named: &Named) -> Result<impl Fn(&str) -> Option<String>, String> {
    let number = |name: &str, prefix: &str| -> Option<usize> {
        name.strip_prefix(prefix)?
            .strip_suffix(".weight")?
            .parse()
            .ok()
    };
    if let Some(other) = named.keys().find(|name| name.contains(".conv1x1.")) {
        return Err(format!(
            "tensor '{other}' is of ESRGAN+, which this version does not run"
        ));
    }
    // The convolutions after the blocks, in order: doublings, then two more.
    let mut after: Vec<usize> = named
        .keys()
        .filter_map(|name| number(name, "model.").filter(|&at| at > 1))
        .collect();
    after.sort_unstable();
    let body = named.keys().filter_map(|name| number(name, "model.1.sub."));
    let body = body
        .max()
        .ok_or("the convolution after its blocks is missing")?;
    if after.len() < 2 {
        return Err("its last convolutions are missing".to_owned());
    }
    let doublings = after.len() - 2;
    Ok(move |name: &str| {
        let rest = name.strip_prefix("model.")?;
        let (at, rest) = rest.split_once('.')?;
        match at.parse::<usize>().ok()? {
            0 => Some(format!("conv_first.{rest}")),
            1 => {
                let rest = rest.strip_prefix("sub.")?;
                let (block, rest) = rest.split_once('.')?;
                if block.parse() == Ok(body) {
                    return Some(format!("conv_body.{rest}"));
                }
                // `RDB1.conv1.0.weight`
                let (dense, rest) = rest.strip_prefix("RDB")?.split_once('.')?;
                let (conv, rest) = rest.split_once(".0.")?;
                Some(format!("body.{block}.rdb{dense}.{conv}.{rest}"))
            }
            at => {
                let place = after.iter().position(|&found| found == at)?;
                Some(match place.checked_sub(doublings) {
                    None => format!("conv_up{}.{rest}", place + 1),
                    Some(0) => format!("conv_hr.{rest}"),
                    Some(_) => format!("conv_last.{rest}"),
                })
            }
        }
    })
}

/// Whether every tensor is `body.N.weight` or `.bias`.
fn is_compact(named: &Named) -> bool {
    named.keys().all(|name| layer_of(name).is_some())
}

fn layer_of(name: &str) -> Option<usize> {
    let (layer, part) = name.strip_prefix("body.")?.split_once('.')?;
    matches!(part, "weight" | "bias")
        .then(|| layer.parse().ok())
        .flatten()
}

/// The layers of an ncnn model have names of their own; their order is the network's.
fn in_order(checkpoint: &Checkpoint) -> Result<Option<(&'static str, Part)>, String> {
    let weights: Vec<&TensorEntry> = checkpoint
        .tensors()
        .filter(|t| t.name.ends_with(".weight"))
        .collect();
    let convs = weights.iter().filter(|t| t.shape.len() == 4).count();
    let first = weights.first().map(|t| t.shape.as_slice());
    if !matches!(first, Some([_, 3 | 12 | 48, 3, 3])) || convs < 3 {
        return Ok(None);
    }
    let inputs = |at: usize| weights[at].shape.get(1).copied();
    let grows = convs == weights.len() && convs > 4 && inputs(2) > inputs(1);
    let names: Vec<String> = match grows {
        false if weights.len() == convs => (0..convs).map(|k| format!("body.{}", 2 * k)).collect(),
        false => (0..weights.len()).map(|k| format!("body.{k}")).collect(),
        true => {
            let doublings = (0..=DOUBLINGS_MAX)
                .find(|doublings| {
                    (convs - 4)
                        .checked_sub(*doublings)
                        .is_some_and(|n| n % BLOCK_CONVS == 0)
                })
                .ok_or_else(|| format!("{convs} convolutions make no RRDBNet"))?;
            let mut names = vec!["conv_first".to_owned()];
            for at in 0..convs - 4 - doublings {
                let (block, conv) = (at / BLOCK_CONVS, at % BLOCK_CONVS);
                names.push(format!(
                    "body.{block}.rdb{}.conv{}",
                    conv / 5 + 1,
                    conv % 5 + 1
                ));
            }
            names.push("conv_body".to_owned());
            names.extend((1..=doublings).map(|up| format!("conv_up{up}")));
            names.extend(["conv_hr", "conv_last"].map(str::to_owned));
            names
        }
    };
    let mut tensors = Vec::with_capacity(2 * names.len());
    for (entry, name) in weights.iter().zip(&names) {
        tensors.push(entry.renamed(format!("{name}.weight")));
        let layer = entry.name.strip_suffix(".weight").unwrap_or_default();
        let bias = checkpoint.get(&format!("{layer}.bias"));
        tensors.extend(bias.map(|bias| bias.renamed(format!("{name}.bias"))));
    }
    match grows {
        true => dense(tensors).map(Some),
        false => compact(tensors, checkpoint).map(Some),
    }
}

fn shape_of<'a>(tensors: &'a [TensorEntry], name: &str) -> Result<&'a [usize], String> {
    let found = tensors.iter().find(|t| t.name == name);
    let found = found.ok_or_else(|| format!("tensor '{name}' is missing"))?;
    match found.shape.len() {
        4 => Ok(&found.shape),
        _ => Err(format!(
            "tensor '{name}' has shape {:?} and is no convolution",
            found.shape
        )),
    }
}

/// The configuration of an RRDBNet.
fn dense(tensors: Vec<TensorEntry>) -> Result<(&'static str, Part), String> {
    let first = shape_of(&tensors, "conv_first.weight")?;
    let (features, channels) = (first[0], first[1]);
    let growth = shape_of(&tensors, "body.0.rdb1.conv1.weight")?[0];
    let channels_out = shape_of(&tensors, "conv_last.weight")?[0];
    let is_there = |name: String| tensors.iter().any(|t| t.name == name);
    let blocks = (0..BLOCKS_MAX).take_while(|b| is_there(format!("body.{b}.rdb1.conv1.weight")));
    let doublings = (1..=DOUBLINGS_MAX).take_while(|up| is_there(format!("conv_up{up}.weight")));
    let (blocks, doublings) = (blocks.count(), doublings.count());
    // Networks for small factors see the picture with pixels put beside each other as channels.
    let unshuffle = match channels {
        3 => 1,
        12 => 2,
        48 => 4,
        other => {
            return Err(format!(
                "it takes {other} channels; networks for colour pictures are run"
            ));
        }
    };
    if channels_out != 3 {
        return Err(format!(
            "it makes {channels_out} channels; networks for colour pictures are run"
        ));
    }
    let enlarged = 1usize << doublings;
    if enlarged < unshuffle {
        return Err(format!(
            "it shrinks pictures, {unshuffle} pixels to {enlarged}"
        ));
    }
    let config = json!({
        "_class_name": RRDB, "num_feat": features, "num_grow_ch": growth, "num_block": blocks,
        "doublings": doublings, "unshuffle": unshuffle, "scale": enlarged / unshuffle,
    });
    Ok((RRDB, Part { tensors, config }))
}

/// The configuration of a SRVGGNetCompact.
fn compact(
    tensors: Vec<TensorEntry>,
    checkpoint: &Checkpoint,
) -> Result<(&'static str, Part), String> {
    let layers = tensors.iter().filter(|t| t.shape.len() == 4);
    let last = layers.filter_map(|t| layer_of(&t.name)).max();
    let last = last.ok_or("it has no convolution")?;
    let [features, channels] = shape_of(&tensors, "body.0.weight")?[..2] else {
        return Err("its first layer is no convolution".to_owned());
    };
    let out = shape_of(&tensors, &format!("body.{last}.weight"))?[0];
    if channels != 3 {
        return Err(format!(
            "it takes {channels} channels; networks for colour pictures are run"
        ));
    }
    let scale = (1..=8usize).find(|scale| 3 * scale * scale == out);
    let scale = scale.ok_or_else(|| format!("its last layer makes {out} channels"))?;
    if last < 4 || last % 2 == 1 {
        return Err(format!("its last convolution is layer {last}"));
    }
    let has_slopes = tensors.iter().any(|t| t.name == "body.1.weight");
    let said = checkpoint.metadata("act_type");
    let act = match (has_slopes, said) {
        (true, _) => "prelu",
        (false, Some("leakyrelu")) => "leakyrelu",
        (false, _) => "relu",
    };
    let config = json!({
        "_class_name": COMPACT, "num_feat": features, "num_conv": last / 2 - 1, "upscale": scale,
        "scale": scale, "act_type": act,
    });
    Ok((COMPACT, Part { tensors, config }))
}
