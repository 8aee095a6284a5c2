//! Checkpoints in one file. A network that enlarges pictures is one, under one of several namings. So are, as web UIs
//! keep them, U-Net, VAE and text encoders of Stable Diffusion 1.x, 2.x and XL under the names of the code that trained
//! them. Which model it is, is told by its keys and shapes; out come the components of a model's folder, with the
//! configurations such a folder would have and the names of diffusers, transformers and BasicSR, each tensor a range of
//! bytes of the one file.
//!
//! # Source
//! The names, checked against diffusers' own conversion by a test:
//! <https://github.com/huggingface/diffusers/blob/main/src/diffusers/loaders/single_file_utils.py>

mod averages;
mod configs;
mod family;
mod text_encoder;
mod unet;
mod upscaler;
mod vae;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::folder::Component;
use crate::{Checkpoint, Error, Result, TensorEntry};
use family::Family;
pub(crate) use unet::rename as unet_name;

/// Tensors by what follows a prefix of their names.
type Named<'a> = BTreeMap<String, &'a TensorEntry>;

/// One component out of a file: its tensors under diffusers' names, and its configuration.
pub(crate) struct Part {
    pub(crate) tensors: Vec<TensorEntry>,
    pub(crate) config: Value,
}

/// A component and, where it is a network, its weights.
pub(crate) type Loaded = (Component, Option<Checkpoint>);

/// What one file is.
pub(crate) struct Opened {
    /// The class of the pipeline, or of the only network.
    pub(crate) class_name: &'static str,
    /// What a folder's index would say besides.
    pub(crate) settings: Map<String, Value>,
    /// The components that such a model has.
    pub(crate) wanted: &'static [&'static str],
    pub(crate) components: Vec<Loaded>,
}

/// Opens a checkpoint of a whole model.
pub(crate) fn open(path: &Path) -> Result<Opened> {
    let checkpoint = Checkpoint::open(path)?;
    let refuse = |why: String| Error::UnknownCheckpoint {
        file: checkpoint.name().to_owned(),
        why,
    };
    if let Some((class_name, part)) = upscaler::part(&checkpoint).map_err(refuse)? {
        return Ok(Opened {
            class_name,
            settings: Map::new(),
            wanted: &[upscaler::COMPONENT],
            components: vec![loaded(upscaler::COMPONENT, part, &checkpoint)],
        });
    }
    let family = Family::of(&checkpoint).map_err(refuse)?;
    let mut components = Vec::new();
    for name in family.components() {
        let part = match *name {
            "scheduler" => {
                let config = configs::scheduler(family, &checkpoint);
                components.push((component(name, config, false), None));
                continue;
            }
            name => part(name, family, &checkpoint).map_err(refuse)?,
        };
        if let Some(part) = part {
            components.push(loaded(name, part, &checkpoint));
        }
    }
    Ok(Opened {
        class_name: family.class_name(),
        settings: configs::settings(family),
        wanted: family.components(),
        components,
    })
}

/// One component of a file that has it alone, or among others. `known` is the configuration of what it replaces.
pub(crate) fn open_component(name: &str, path: &Path, known: &Value) -> Result<Loaded> {
    let checkpoint = Checkpoint::open(path)?;
    let refuse = |why: String| Error::UnknownCheckpoint {
        file: checkpoint.name().to_owned(),
        why,
    };
    if let Ok(family) = Family::of(&checkpoint) {
        return match part(name, family, &checkpoint).map_err(refuse)? {
            Some(part) => Ok(loaded(name, part, &checkpoint)),
            None => Err(refuse(format!("it has no {name}"))),
        };
    }
    if name == "vae"
        && let Some(part) = vae::alone(&checkpoint, known).map_err(refuse)?
    {
        return Ok(loaded(name, part, &checkpoint));
    }
    if !known.is_object() {
        return Err(refuse(format!(
            "nothing tells the configuration of its {name}; give a folder with a config.json"
        )));
    }
    let tensors = checkpoint.tensors().cloned().collect();
    let config = known.clone();
    Ok(loaded(name, Part { tensors, config }, &checkpoint))
}

fn part(
    name: &str,
    family: Family,
    checkpoint: &Checkpoint,
) -> std::result::Result<Option<Part>, String> {
    match name {
        "unet" => unet::part(checkpoint, family),
        "vae" => vae::part(checkpoint, family),
        "text_encoder" => text_encoder::first(checkpoint, family),
        "text_encoder_2" => text_encoder::second(checkpoint, family),
        _ => Ok(None),
    }
}

fn loaded(name: &str, mut part: Part, checkpoint: &Checkpoint) -> Loaded {
    part.tensors.sort_by_key(|t| (t.source, t.offset));
    let view = checkpoint.view(checkpoint.name().to_owned(), part.tensors);
    (component(name, part.config, true), Some(view))
}

/// A component as a folder's index would name it.
pub(crate) fn component(name: &str, config: Value, has_weights: bool) -> Component {
    let class = config.get("_class_name").and_then(Value::as_str);
    let class = class.or_else(|| config.get("architectures")?.get(0)?.as_str());
    let library = match name {
        "unet" | "vae" | "scheduler" => "diffusers",
        upscaler::COMPONENT => "basicsr",
        _ => "transformers",
    };
    Component {
        name: name.to_owned(),
        library: library.to_owned(),
        class: class.unwrap_or_default().to_owned(),
        config,
        has_weights,
    }
}

/// The tensors whose names begin with `prefix`, by the rest of their names.
fn under<'a>(checkpoint: &'a Checkpoint, prefix: &str) -> Named<'a> {
    let tensors = checkpoint.tensors();
    tensors
        .filter_map(|t| Some((t.name.strip_prefix(prefix)?.to_owned(), t)))
        .collect()
}

/// The dimensions of a tensor of that rank.
fn shape<const N: usize>(named: &Named, name: &str) -> std::result::Result<[usize; N], String> {
    let entry = named
        .get(name)
        .ok_or_else(|| format!("tensor '{name}' is missing"))?;
    let found: std::result::Result<[usize; N], _> = entry.shape.as_slice().try_into();
    found.map_err(|_| {
        format!(
            "tensor '{name}' has shape {:?}, not {N} dimensions",
            entry.shape
        )
    })
}

/// A part of a name that is a number, and what follows it.
fn number(rest: &str) -> Option<(usize, &str)> {
    let (number, rest) = rest.split_once('.')?;
    Some((number.parse().ok()?, rest))
}
