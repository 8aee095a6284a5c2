//! LoRA files: which layer each pair of matrices is for, whoever wrote them.
//!
//! Trainers name layers in many ways (`names`); what they mean is found by looking the name up among the layers that
//! the model has, so that nothing is guessed where a name could be read in two ways. Matrices are read later, like any
//! tensor; of numbers, only the alphas are read here.

mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lowtide_core::Dtype;
use serde_json::Value;

use crate::{Checkpoint, Error, Result, TensorEntry};
use names::{Model, Role};

/// Largest rank that is taken: training goes to a few hundred.
const RANK_MAX: usize = 4096;
/// Where peft notes what it trained with.
const PEFT_METADATA: &str = "lora_adapter_metadata";

/// A LoRA: matrices for layers, still in the file.
#[derive(Clone, Debug)]
pub struct Lora {
    /// The file.
    pub checkpoint: Checkpoint,
    /// By component, then by module.
    pub targets: Vec<Target>,
    /// Names in the file, without what says which matrix it is, that mean no layer of this model; in order.
    pub unmatched: Vec<String>,
}

/// What is added to one layer: `strength * alpha / rank * up (down x)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The component, as the model's folder names it: `unet`, `text_encoder`.
    pub component: String,
    /// The layer's name in the component's checkpoint, without `.weight`.
    pub module: String,
    /// (r, in), or (r, in, k, k) for a convolution; with `mid` (r, in, 1, 1).
    pub down: TensorEntry,
    /// (out, r) or (out, r, 1, 1).
    pub up: TensorEntry,
    /// (r of up, r of down, k, k): the core of a convolution in three parts.
    pub mid: Option<TensorEntry>,
    /// What the product is scaled with, over the rank; the rank itself where the file says nothing.
    pub alpha: f32,
    /// Rows of `down`.
    pub rank: usize,
    /// Rows and columns of the layer's kernel; 1 for a matrix.
    pub kernel: usize,
}

impl Target {
    /// Alpha over rank: what the product is scaled with at strength 1.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

/// The layers of a component that a LoRA may be for: all that have a matrix or a convolution as `weight`.
pub fn modules(checkpoint: &Checkpoint) -> Vec<String> {
    let layers = checkpoint.tensors().filter(|t| t.shape.len() >= 2);
    layers
        .filter_map(|t| Some(t.name.strip_suffix(".weight")?.to_owned()))
        .collect()
}

/// The matrices found for one name of the file.
#[derive(Default)]
struct Found<'a> {
    down: Option<&'a TensorEntry>,
    up: Option<&'a TensorEntry>,
    mid: Option<&'a TensorEntry>,
    alpha: Option<&'a TensorEntry>,
}

impl Lora {
    /// Opens a LoRA for a model with these components, each with the names of its layers ([`modules`]).
    ///
    /// # Errors
    /// As [`Checkpoint::open`], and [`Error::Lora`] for kinds that are not LoRA (LoHa, LoKr, DoRA, OFT, whole
    /// differences), matrices that do not go together, or two adapters in one file.
    pub fn open(path: &Path, components: &[(&str, Vec<String>)]) -> Result<Lora> {
        Lora::of(Checkpoint::open(path)?, components)
    }

    /// The same for a file that is open.
    ///
    /// # Errors
    /// As [`Lora::open`].
    pub fn of(checkpoint: Checkpoint, components: &[(&str, Vec<String>)]) -> Result<Lora> {
        let refuse = |module: &str, why: String| Error::Lora {
            file: checkpoint.name().to_owned(),
            module: module.to_owned(),
            why,
        };
        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        let mut unmatched = BTreeSet::new();
        for entry in checkpoint.tensors() {
            let (name, role) = match names::split(&entry.name) {
                Ok(Some(split)) => split,
                Ok(None) => {
                    unmatched.insert(entry.name.clone());
                    continue;
                }
                Err(kind) => {
                    return Err(refuse(&entry.name, format!("{kind} is not applied here")));
                }
            };
            let found = found.entry(name.clone()).or_default();
            let place = match role {
                Role::Down => &mut found.down,
                Role::Up => &mut found.up,
                Role::Mid => &mut found.mid,
                Role::Alpha => &mut found.alpha,
            };
            if place.replace(entry).is_some() {
                return Err(refuse(
                    &name,
                    "two adapters in one file; split them".to_owned(),
                ));
            }
        }
        let model = Model::of(components);
        let noted = Noted::of(&checkpoint);
        let mut targets: BTreeMap<(String, String), Target> = BTreeMap::new();
        for (name, found) in &found {
            let Some((component, module)) = model.resolve(name) else {
                unmatched.insert(name.clone());
                continue;
            };
            let target = assemble(&checkpoint, (&component, &module), found, &noted)
                .map_err(|why| refuse(name, why))?;
            if targets.insert((component, module), target).is_some() {
                return Err(refuse(
                    name,
                    "another name in the file means the same layer".to_owned(),
                ));
            }
        }
        Ok(Lora {
            targets: targets.into_values().collect(),
            unmatched: unmatched.into_iter().collect(),
            checkpoint,
        })
    }
}

/// Makes a target of what was found, if it goes together.
fn assemble(
    checkpoint: &Checkpoint,
    (component, module): (&str, &str),
    found: &Found,
    noted: &Noted,
) -> std::result::Result<Target, String> {
    let (Some(down), Some(up)) = (found.down, found.up) else {
        return Err("one of its two matrices is missing".to_owned());
    };
    for entry in [Some(down), Some(up), found.mid].into_iter().flatten() {
        if !entry.dtype.is_float() {
            return Err(format!("its matrices are stored as {}", entry.dtype));
        }
    }
    let square = |shape: &[usize]| match *shape {
        [rows, cols] => Some((rows, cols, 1)),
        [rows, cols, height, width] if height == width => Some((rows, cols, height)),
        _ => None,
    };
    let mid = found.mid.map(|mid| square(&mid.shape));
    let shapes = (square(&down.shape), square(&up.shape), mid);
    let kernel = match shapes {
        (Some((rank, _, kernel)), Some((_, inner, 1)), None) if inner == rank => kernel,
        (Some((rank, _, 1)), Some((_, inner, 1)), Some(Some((rows, cols, kernel))))
            if (inner, rank) == (rows, cols) =>
        {
            kernel
        }
        _ => {
            let mid = found.mid.map(|mid| format!(", {:?}", mid.shape));
            return Err(format!(
                "its matrices do not go together: {:?}, {:?}{}",
                down.shape,
                up.shape,
                mid.unwrap_or_default()
            ));
        }
    };
    let rank = down.shape[0];
    if rank == 0 || rank > RANK_MAX {
        return Err(format!("a rank of {rank}; up to {RANK_MAX} is taken"));
    }
    let alpha = match found.alpha {
        Some(entry) => number(checkpoint, entry)?,
        None => noted.alpha(component, module).unwrap_or(rank as f32),
    };
    Ok(Target {
        component: component.to_owned(),
        module: module.to_owned(),
        down: down.clone(),
        up: up.clone(),
        mid: found.mid.cloned(),
        alpha,
        rank,
        kernel,
    })
}

/// Reads a tensor of one element.
fn number(checkpoint: &Checkpoint, entry: &TensorEntry) -> std::result::Result<f32, String> {
    if entry.elements() != 1 {
        return Err(format!("its alpha has shape {:?}", entry.shape));
    }
    let mut bytes = [0; 8];
    let size = entry.dtype.size() as usize;
    checkpoint
        .read(entry, &mut bytes[..size])
        .map_err(|error| error.to_string())?;
    let bits = u64::from_le_bytes(bytes);
    let value = match entry.dtype {
        Dtype::F64 => f64::from_bits(bits) as f32,
        Dtype::F32 => f32::from_bits(bits as u32),
        Dtype::Bf16 => f32::from_bits((bits as u32) << 16),
        Dtype::F16 => half(bits as u16),
        Dtype::I64 => bits as i64 as f32,
        Dtype::I32 => bits as u32 as i32 as f32,
        other => return Err(format!("its alpha is stored as {other}")),
    };
    match value.is_finite() {
        true => Ok(value),
        false => Err("its alpha is not a number".to_owned()),
    }
}

/// The value of an f16.
fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        0x1f => f32::NAN,
        exponent => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// What peft noted beside the matrices: alphas, by the ends of names.
struct Noted(Value);

impl Noted {
    fn of(checkpoint: &Checkpoint) -> Noted {
        let text = checkpoint.metadata(PEFT_METADATA);
        Noted(
            text.and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default(),
        )
    }

    fn alpha(&self, component: &str, module: &str) -> Option<f32> {
        let pattern = self.0.get(format!("{component}.alpha_pattern"));
        let patterns = pattern.and_then(Value::as_object).into_iter().flatten();
        let ends = |key: &str| {
            module == key
                || module
                    .strip_suffix(key)
                    .is_some_and(|rest| rest.ends_with('.'))
        };
        let mut special = patterns.filter(|(key, _)| ends(key));
        let alpha = special.next().map(|(_, alpha)| alpha);
        let alpha = alpha.or_else(|| self.0.get(format!("{component}.lora_alpha")))?;
        Some(alpha.as_f64()? as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::half;

    #[test]
    fn halves_are_what_their_bits_say() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc400, -4.0),
            (0x0001, 2f32.powi(-24)),
            (0x7bff, 65504.0),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(half(bits), value);
        }
        assert!(half(0x7c00).is_nan());
    }
}
