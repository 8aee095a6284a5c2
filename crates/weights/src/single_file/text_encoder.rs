//! The text encoders: CLIP under the names of transformers, and OpenCLIP, whose three projections lie in one matrix
//! and whose last projection lies the other way round.

use serde_json::{Value, json};

use super::family::{Family, Generation};
use super::{Named, Part, number, shape, under};
use crate::{Checkpoint, TensorEntry};

/// Where CLIP-L is.
const CLIP: [&str; 2] = [
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.",
];
/// Where OpenCLIP is, by generation.
const OPEN_CLIP_TWO: &str = "cond_stage_model.model.";
const OPEN_CLIP_XL: &str = "conditioner.embedders.1.model.";
const OPEN_CLIP_REFINER: &str = "conditioner.embedders.0.model.";
/// Layers of OpenCLIP-H, of which 2.x was trained on all but the last.
const LAYERS_TWO: usize = 24;
/// Width of a head, in all of them.
const HEAD_WIDTH: usize = 64;
/// More layers than any text encoder has.
const LAYERS_MAX: usize = 128;

/// The text encoder whose words a U-Net of 1.x or 2.x sees, or the first one of XL.
pub(super) fn first(checkpoint: &Checkpoint, family: Family) -> Result<Option<Part>, String> {
    for prefix in CLIP {
        let named = under(checkpoint, prefix);
        if !named.is_empty() {
            return clip(&named).map(Some);
        }
    }
    let named = under(checkpoint, OPEN_CLIP_TWO);
    match family.generation {
        Generation::Two | Generation::One if !named.is_empty() => {
            open_clip(&named, false).map(Some)
        }
        _ => Ok(None),
    }
}

/// The second one of XL, which gives a pooled state, too.
pub(super) fn second(checkpoint: &Checkpoint, family: Family) -> Result<Option<Part>, String> {
    let prefix = match family.generation {
        Generation::Xl => OPEN_CLIP_XL,
        Generation::Refiner => OPEN_CLIP_REFINER,
        Generation::One | Generation::Two => return Ok(None),
    };
    let named = under(checkpoint, prefix);
    if named.is_empty() {
        return Ok(None);
    }
    open_clip(&named, true).map(Some)
}

/// Width of the pooled state of XL's second encoder, where the file has it.
pub(super) fn pooled(checkpoint: &Checkpoint, family: Family) -> Option<usize> {
    let prefix = match family.generation {
        Generation::Refiner => OPEN_CLIP_REFINER,
        _ => OPEN_CLIP_XL,
    };
    let projection = checkpoint.get(&format!("{prefix}text_projection"));
    let turned = || checkpoint.get(&format!("{prefix}text_projection.weight"));
    match projection {
        Some(entry) => entry.shape.get(1).copied(),
        None => turned()?.shape.first().copied(),
    }
}

/// CLIP-L has transformers' names already, some without what all of them should begin with.
fn clip(named: &Named) -> Result<Part, String> {
    let mut tensors = Vec::new();
    for (name, entry) in named {
        let name = name.strip_prefix("text_model.").unwrap_or(name);
        let ours = ["embeddings.", "encoder.", "final_layer_norm."];
        if ours.iter().any(|start| name.starts_with(start)) && !name.ends_with("position_ids") {
            tensors.push(entry.renamed(format!("text_model.{name}")));
        }
    }
    let config = config(&tensors, "quick_gelu", None)?;
    Ok(Part { tensors, config })
}

fn open_clip(named: &Named, projected: bool) -> Result<Part, String> {
    let mut tensors = Vec::new();
    let layers = (0..LAYERS_MAX)
        .take_while(|layer| {
            named.contains_key(&format!("transformer.resblocks.{layer}.ln_1.weight"))
        })
        .count();
    let layers = match layers {
        LAYERS_TWO if !projected => LAYERS_TWO - 1,
        layers => layers,
    };
    for (name, entry) in named {
        let whole = match name.as_str() {
            "positional_embedding" => "text_model.embeddings.position_embedding.weight",
            "token_embedding.weight" => "text_model.embeddings.token_embedding.weight",
            "ln_final.weight" => "text_model.final_layer_norm.weight",
            "ln_final.bias" => "text_model.final_layer_norm.bias",
            "text_projection" if projected => {
                let turned = entry.transposed("text_projection.weight");
                tensors.push(turned.ok_or("'text_projection' is not a matrix")?);
                continue;
            }
            "text_projection.weight" if projected => "text_projection.weight",
            other => {
                let rest = other.strip_prefix("transformer.resblocks.");
                if let Some((layer, rest)) = rest.and_then(number)
                    && layer < layers
                {
                    block(&mut tensors, entry, layer, rest)?;
                }
                continue;
            }
        };
        tensors.push(entry.renamed(whole));
    }
    let projection = match projected {
        true => {
            let named = tensors.iter().map(|t| (t.name.clone(), t)).collect();
            Some(shape::<2>(&named, "text_projection.weight")?[0])
        }
        false => None,
    };
    let config = config(&tensors, "gelu", projection)?;
    Ok(Part { tensors, config })
}

/// The tensors of one layer that one of OpenCLIP's holds.
fn block(
    tensors: &mut Vec<TensorEntry>,
    entry: &TensorEntry,
    layer: usize,
    rest: &str,
) -> Result<(), String> {
    let at = format!("text_model.encoder.layers.{layer}");
    if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
        let rows = entry.shape.first().copied().unwrap_or(0);
        if rows == 0 || rows % 3 != 0 {
            return Err(format!("'{}' does not have three parts", entry.name));
        }
        for (number, part) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
            let name = format!("{at}.self_attn.{part}.{kind}");
            let part = entry.rows(name, number * (rows / 3), rows / 3);
            tensors
                .push(part.ok_or_else(|| format!("'{}' is stored in another order", entry.name))?);
        }
        return Ok(());
    }
    let pairs = [
        ("attn.out_proj.", "self_attn.out_proj."),
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ];
    for (theirs, ours) in pairs {
        if let Some(rest) = rest.strip_prefix(theirs) {
            tensors.push(entry.renamed(format!("{at}.{ours}{rest}")));
        }
    }
    Ok(())
}

/// The configuration, from tensors under transformers' names.
fn config(
    tensors: &[TensorEntry],
    activation: &str,
    projection: Option<usize>,
) -> Result<Value, String> {
    let named: Named = tensors.iter().map(|t| (t.name.clone(), t)).collect();
    let [vocabulary, width] = shape::<2>(&named, "text_model.embeddings.token_embedding.weight")?;
    let [positions, _] = shape::<2>(&named, "text_model.embeddings.position_embedding.weight")?;
    let [inner, _] = shape::<2>(&named, "text_model.encoder.layers.0.mlp.fc1.weight")?;
    let layers = (0..LAYERS_MAX).take_while(|layer| {
        named.contains_key(&format!(
            "text_model.encoder.layers.{layer}.layer_norm1.weight"
        ))
    });
    let class = match projection {
        Some(_) => "CLIPTextModelWithProjection",
        None => "CLIPTextModel",
    };
    Ok(json!({
        "architectures": [class],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        // As in the published configurations; it means that the end is where the largest id is.
        "eos_token_id": 2,
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": positions,
        "model_type": "clip_text_model",
        "num_attention_heads": (width / HEAD_WIDTH).max(1),
        "num_hidden_layers": layers.count(),
        "pad_token_id": 1,
        "projection_dim": projection.unwrap_or(width),
        "vocab_size": vocabulary,
    }))
}
