//! Which model a file is.

use crate::Checkpoint;

/// Where the U-Net is, in the order of looking: as trained, as other tools cut it out, and alone.
const UNET_PREFIXES: [&str; 3] = ["model.diffusion_model.", "diffusion_model.", ""];
/// Channels of a U-Net that sees a mask and a masked picture beside the latents.
const INPAINT_CHANNELS: usize = 9;
/// Width of SDXL's extra conditions in the refiner, where no text encoder tells.
const REFINER_CONDITIONS: usize = 2560;

/// The generation of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    /// CLIP-L, convolutions around the transformers, 8 heads.
    One,
    /// OpenCLIP-H, matrices around the transformers, 64 wide heads.
    Two,
    /// CLIP-L and OpenCLIP-bigG, sizes as conditions.
    Xl,
    /// OpenCLIP-bigG alone, sizes and a score as conditions.
    Refiner,
}

/// A model, as far as its class and its configurations depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Family {
    pub(crate) generation: Generation,
    pub(crate) inpaint: bool,
    /// What its U-Net's names begin with.
    pub(crate) unet: &'static str,
    /// Whether only the averaged weights of its U-Net are there.
    pub(crate) averaged: bool,
}

impl Family {
    /// Tells by keys and shapes.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Result<Family, String> {
        let has = |name: &str| checkpoint.get(name).is_some();
        let starts = |prefix: &str| checkpoint.tensors().any(|t| t.name.starts_with(prefix));
        if has("edm_mean") {
            return Err("a Playground 2.5 checkpoint, which this version does not draw".to_owned());
        }
        let plain = UNET_PREFIXES
            .into_iter()
            .find(|prefix| has(&format!("{prefix}input_blocks.0.0.weight")));
        let average = super::averages::FIRST;
        let averaged = plain.is_none() && has(average);
        let (unet, first) = match plain {
            Some(unet) => (unet, format!("{unet}input_blocks.0.0.weight")),
            None if averaged => (UNET_PREFIXES[0], average.to_owned()),
            None => return Err(unknown(checkpoint)),
        };
        let channels = checkpoint.get(&first).map(|t| t.shape.clone());
        let inpaint = match channels.as_deref() {
            Some([_, channels, _, _]) => *channels == INPAINT_CHANNELS,
            _ => return Err(format!("tensor '{first}' is not a convolution")),
        };
        let label = match averaged {
            true => checkpoint.get(super::averages::LABEL),
            false => checkpoint.get(&format!("{unet}label_emb.0.0.weight")),
        };
        let generation = if let Some(label) = label {
            if starts("conditioner.embedders.0.model.")
                || (!starts("conditioner.embedders.1.")
                    && label.shape.get(1) == Some(&REFINER_CONDITIONS))
            {
                Generation::Refiner
            } else {
                Generation::Xl
            }
        } else {
            let is_matrix = |t: &crate::TensorEntry| {
                let name = t.name.replace('.', "");
                name.ends_with("1proj_inweight") && t.shape.len() == 2
            };
            match checkpoint.tensors().any(is_matrix) {
                true => Generation::Two,
                false => Generation::One,
            }
        };
        Ok(Family {
            generation,
            inpaint,
            unet,
            averaged,
        })
    }

    /// The pipeline's class in diffusers.
    pub(crate) fn class_name(self) -> &'static str {
        match (self.generation, self.inpaint) {
            (Generation::One | Generation::Two, false) => "StableDiffusionPipeline",
            (Generation::One | Generation::Two, true) => "StableDiffusionInpaintPipeline",
            (Generation::Xl, false) => "StableDiffusionXLPipeline",
            (Generation::Xl | Generation::Refiner, true) => "StableDiffusionXLInpaintPipeline",
            (Generation::Refiner, false) => "StableDiffusionXLImg2ImgPipeline",
        }
    }

    /// Its components, in the order of a folder's index.
    pub(crate) fn components(self) -> &'static [&'static str] {
        match self.generation {
            Generation::One | Generation::Two => &["vae", "text_encoder", "unet", "scheduler"],
            Generation::Xl => &["vae", "text_encoder", "text_encoder_2", "unet", "scheduler"],
            Generation::Refiner => &["vae", "text_encoder_2", "unet", "scheduler"],
        }
    }

    /// Whether it is of SDXL's kind.
    pub(crate) fn is_xl(self) -> bool {
        matches!(self.generation, Generation::Xl | Generation::Refiner)
    }
}

/// What a file is that is none of these, as far as its names tell.
fn unknown(checkpoint: &Checkpoint) -> String {
    let any = |part: &str| checkpoint.tensors().any(|t| t.name.contains(part));
    let what = if any("lora_") || any(".lora.") || any("lokr_") || any("hada_") {
        "a LoRA, which goes with a model and is none"
    } else if any("control_model.") || any("controlnet_cond_embedding") {
        "a ControlNet, which goes with a model and is none"
    } else if any("joint_blocks.") {
        "a Stable Diffusion 3 checkpoint, which is not read as a single file"
    } else if any("double_blocks.") {
        "a checkpoint of FLUX or its kind, which is not read as a single file"
    } else if any("decoder.up.") || any("decoder.up_blocks.") {
        "a VAE alone; it can take the place of a model's vae"
    } else if any("down_blocks.") {
        "a network alone in diffusers' names; it can take the place of a model's unet"
    } else if any("string_to_param") || checkpoint.get("*").is_some() || any("emb_params") {
        "a textual inversion, which goes with a model and is none"
    } else {
        "its names are not those of Stable Diffusion 1, 2 or XL"
    };
    what.to_owned()
}
