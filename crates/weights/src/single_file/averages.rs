//! U-Nets of which only the moving average was kept. Its names have lost their dots
//! (`model_ema.diffusion_modelinput_blocks00weight`), so every name that a U-Net can have is tried.

use std::collections::BTreeMap;

use super::Named;
use crate::Checkpoint;

/// What all of them begin with.
const PREFIX: &str = "model_ema.diffusion_model";
/// The first convolution.
pub(super) const FIRST: &str = "model_ema.diffusion_modelinput_blocks00weight";
/// The first matrix of the extra conditions.
pub(super) const LABEL: &str = "model_ema.diffusion_modellabel_emb00weight";
/// More blocks than any U-Net has on one side.
const BLOCKS_MAX: usize = 24;
/// More transformer layers than any has in one place.
const DEPTH_MAX: usize = 12;
/// Parts of one block.
const PARTS: usize = 3;

const RESNET: [&str; 6] = [
    "in_layers.0",
    "in_layers.2",
    "emb_layers.1",
    "out_layers.0",
    "out_layers.3",
    "skip_connection",
];
const AROUND: [&str; 3] = ["norm", "proj_in", "proj_out"];
const LAYER: [&str; 13] = [
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "norm1",
    "norm2",
    "norm3",
];
const OUTSIDE: [&str; 8] = [
    "input_blocks.0.0",
    "time_embed.0",
    "time_embed.2",
    "label_emb.0.0",
    "label_emb.0.2",
    "out.0",
    "out.2",
    "out.3",
];

/// The averaged tensors by the names that the others have.
pub(super) fn named(checkpoint: &Checkpoint) -> Named<'_> {
    let mut found = BTreeMap::new();
    let mut look = |module: &str| {
        for end in ["weight", "bias"] {
            let name = format!("{module}.{end}");
            let flat = format!("{PREFIX}{}", name.replace('.', ""));
            if let Some(entry) = checkpoint.get(&flat) {
                found.insert(name, entry);
            }
        }
    };
    OUTSIDE.into_iter().for_each(&mut look);
    let blocks = ["input_blocks", "output_blocks"]
        .into_iter()
        .flat_map(|side| (0..BLOCKS_MAX).map(move |block| format!("{side}.{block}")));
    for block in blocks.chain(["middle_block".to_owned()]) {
        for part in 0..PARTS {
            let part = format!("{block}.{part}");
            for module in RESNET.into_iter().chain(AROUND).chain(["op", "conv"]) {
                look(&format!("{part}.{module}"));
            }
            for depth in 0..DEPTH_MAX {
                for module in LAYER {
                    look(&format!("{part}.transformer_blocks.{depth}.{module}"));
                }
            }
        }
    }
    found
}
