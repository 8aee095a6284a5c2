//! What trainers call layers.
//!
//! - kohya: `lora_unet_down_blocks_0_attentions_0_…`, dots turned into underscores, which are found by looking them up;
//!   for SDXL also under the names of the training code, `lora_unet_input_blocks_4_1_…`.
//! - diffusers: `unet.down_blocks.0.….to_q.lora.down.weight`, `….processor.to_q_lora.down.weight`,
//!   `….q_proj.lora_linear_layer.up.weight`.
//! - peft: `base_model.model.….to_q.lora_A.weight`, with the adapter's name as another part or without.

use std::collections::{BTreeMap, HashMap};

use crate::single_file::unet_name;

/// Which part of an addition a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Down,
    Up,
    Mid,
    Alpha,
}

/// Ends of names, and what they say.
const ENDS: [(&str, Role); 12] = [
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_mid.weight", Role::Mid),
    (".alpha", Role::Alpha),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
];
/// The same with an adapter's name in between.
const NAMED: [(&str, Role); 2] = [(".lora_A.", Role::Down), (".lora_B.", Role::Up)];
/// Parts of names of other kinds, and what they are called.
const OTHERS: [(&str, &str); 13] = [
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".glora_", "GLoRA"),
    (".a1.weight", "GLoRA"),
    (".on_input", "IA3"),
    (".vera_", "VeRA"),
    (".lora_embedding_", "LoRA of an embedding"),
    (".lora_A.bias", "LoRA with a bias"),
    (".lora_B.bias", "LoRA with a bias"),
];
/// Ends of names that hold a whole difference.
const WHOLE: [&str; 3] = [".diff", ".diff_b", ".lora_B.default.bias"];

/// What begins a name, and the component it means; empty for the main network.
const PREFIXES: [(&str, &str); 12] = [
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("lora_transformer_", "transformer"),
    ("unet.", "unet"),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("transformer.", "transformer"),
    ("te1.", "text_encoder"),
    ("te2.", "text_encoder_2"),
    ("diffusion_model.", ""),
];
/// What peft puts before everything.
const PEFT: &str = "base_model.model.";

/// The layer's name and the tensor's part in it; `None` for what is no part of a LoRA, the kind's name for another.
pub(super) fn split(name: &str) -> Result<Option<(String, Role)>, &'static str> {
    if let Some((_, kind)) = OTHERS.iter().find(|(part, _)| name.contains(part)) {
        return Err(kind);
    }
    if WHOLE.iter().any(|end| name.ends_with(end)) {
        return Err("a whole difference");
    }
    for (end, role) in ENDS {
        if let Some(layer) = name.strip_suffix(end) {
            let old = end.starts_with('_');
            return Ok(Some((
                if old {
                    processor(layer)
                } else {
                    layer.to_owned()
                },
                role,
            )));
        }
    }
    for (part, role) in NAMED {
        if let Some((layer, rest)) = name.split_once(part)
            && rest
                .strip_suffix(".weight")
                .is_some_and(|adapter| !adapter.contains('.'))
        {
            return Ok(Some((layer.to_owned(), role)));
        }
    }
    Ok(None)
}

/// Old diffusers kept LoRAs in the attention's processor: `….attn1.processor.to_out` is `….attn1.to_out.0`.
fn processor(layer: &str) -> String {
    let name = layer.replace(".processor.", ".");
    let Some((attention, projection)) = name.rsplit_once('.') else {
        return name;
    };
    let of_text = attention.ends_with("self_attn");
    let projection = match (projection, of_text) {
        ("to_out", false) => "to_out.0",
        ("to_q", true) => "q_proj",
        ("to_k", true) => "k_proj",
        ("to_v", true) => "v_proj",
        ("to_out", true) => "out_proj",
        (other, _) => other,
    };
    format!("{attention}.{projection}")
}

/// The layers of a model, to look names up in.
pub(super) struct Model {
    components: BTreeMap<String, Layers>,
    /// The one that is meant where a name says nothing.
    main: Option<String>,
}

/// The layers of one component.
struct Layers {
    /// With underscores, to the names with dots; `None` where two become the same.
    flat: HashMap<String, Option<String>>,
    /// Resnets of a level on the way down, in a U-Net.
    resnets: usize,
}

impl Layers {
    fn of(modules: &[String]) -> Layers {
        let mut flat: HashMap<String, Option<String>> = HashMap::new();
        for module in modules {
            flat.entry(module.replace('.', "_"))
                .and_modify(|known| {
                    if known.as_ref() != Some(module) {
                        *known = None;
                    }
                })
                .or_insert_with(|| Some(module.clone()));
        }
        let has =
            |resnet: &usize| flat.contains_key(&format!("down_blocks_0_resnets_{resnet}_conv1"));
        let resnets = (0..64).take_while(has).count();
        Layers { flat, resnets }
    }

    /// The layer of a name with underscores, or with dots: those are looked up the same way.
    fn find(&self, name: &str) -> Option<String> {
        let flat = name.replace('.', "_");
        let known = |name: &str| self.flat.get(name).cloned().flatten();
        known(&flat)
            .or_else(|| known(&format!("text_model_{flat}")))
            .or_else(|| known(&flat.replacen("text_model_text_model_", "text_model_", 1)))
            // Newer text encoders are saved without this word.
            .or_else(|| known(flat.strip_prefix("text_model_")?))
            .or_else(|| known(&format!("{flat}_0")).filter(|_| flat.ends_with("_to_out")))
            .or_else(|| known(&trained(&flat, self.resnets)?))
    }
}

/// diffusers' name, with underscores, for a layer under the name of the training code, with underscores.
fn trained(flat: &str, resnets: usize) -> Option<String> {
    let sides = ["input_blocks_", "output_blocks_", "middle_block_"];
    let dotted = match sides
        .iter()
        .find_map(|side| Some((side, flat.strip_prefix(side)?)))
    {
        Some((side, rest)) => {
            let mut dotted = side.trim_end_matches('_').to_owned();
            let mut rest = rest;
            // A number or two, and what is inside.
            let numbers = if side.starts_with("middle") { 1 } else { 2 };
            for _ in 0..numbers {
                let (number, after) = rest.split_once('_').unwrap_or((rest, ""));
                number.parse::<usize>().ok()?;
                dotted = format!("{dotted}.{number}");
                rest = after;
            }
            let parts = ["in_layers_", "emb_layers_", "out_layers_"];
            let inside = match parts
                .iter()
                .find_map(|part| Some((part, rest.strip_prefix(part)?)))
            {
                Some((part, number)) => format!("{}.{number}", part.trim_end_matches('_')),
                None => rest.to_owned(),
            };
            format!("{dotted}.{inside}")
        }
        None => flat
            .replace("time_embed_", "time_embed.")
            .replace("label_emb_0_", "label_emb.0.")
            .replace("out_", "out."),
    };
    let dotted = format!("{}.", dotted.trim_end_matches('.'));
    let ours = unet_name(&dotted, resnets)?;
    Some(ours.trim_end_matches('.').replace('.', "_"))
}

impl Model {
    pub(super) fn of(components: &[(&str, Vec<String>)]) -> Model {
        let main = ["unet", "transformer"]
            .into_iter()
            .find(|main| components.iter().any(|(name, _)| name == main));
        Model {
            components: components
                .iter()
                .map(|(name, modules)| ((*name).to_owned(), Layers::of(modules)))
                .collect(),
            main: main.map(str::to_owned),
        }
    }

    /// The component and the layer that a name of the file means.
    pub(super) fn resolve(&self, name: &str) -> Option<(String, String)> {
        let name = name.strip_prefix(PEFT).unwrap_or(name);
        for (prefix, component) in PREFIXES {
            if let Some(rest) = name.strip_prefix(prefix) {
                let rest = rest.strip_prefix(PEFT).unwrap_or(rest);
                let component = match component {
                    "" => self.main.as_deref()?,
                    // Some trainers say U-Net whatever the main network is.
                    "unet" if !self.components.contains_key("unet") => self.main.as_deref()?,
                    component => component,
                };
                let found = self.components.get(component)?.find(rest);
                return found.map(|module| (component.to_owned(), module));
            }
        }
        let main = self.main.as_deref()?;
        let found = self.components.get(main)?.find(name);
        found.map(|module| (main.to_owned(), module))
    }
}
