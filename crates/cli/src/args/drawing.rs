//! The arguments of `generate` and `plan` about how a picture is drawn: sampler, LoRAs, a picture to begin from, a second
//! pass. What a value may be is the model's business, which says so itself.

use clap::{Args, ValueHint};
use std::path::PathBuf;

/// A LoRA and how strong it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoraArg {
    pub(crate) name: String,
    pub(crate) strength: Option<f32>,
}

fn lora(text: &str) -> Result<LoraArg, String> {
    let (name, strength) = match text.rsplit_once(':') {
        None => (text, None),
        Some((name, strength)) => {
            let number = strength.trim().parse().ok();
            let number = number.filter(|strength: &f32| strength.is_finite());
            let wrong =
                || format!("'{strength}' is no strength; write a number, such as {name}:0.8");
            (name, Some(number.ok_or_else(wrong)?))
        }
    };
    match name.is_empty() {
        true => Err("the name is missing; write NAME or NAME:STRENGTH".to_owned()),
        false => Ok(LoraArg {
            name: name.to_owned(),
            strength,
        }),
    }
}

/// How noise becomes a picture.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Sampling and LoRAs")]
pub(crate) struct SamplingArgs {
    /// Such as "Euler a", "DPM++ 2M", DDIM, UniPC, LCM [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub(crate) sampler: Option<String>,
    /// How noise levels are spread: normal, karras, exponential, simple or beta [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub(crate) schedule: Option<String>,
    /// How much fresh noise DDIM draws, 0 to 1 [default: 0]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) eta: Option<f32>,
    /// Bring the guided prediction back to the spread of the unguided one, 0 to 1 [default: 0]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) guidance_rescale: Option<f32>,
    /// Leave so many last layers of the CLIP text encoder out [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) clip_skip: Option<u32>,
    /// weighted: brackets weigh words, as in web UIs; literal: they stand for themselves [default: weighted]
    #[arg(long, value_name = "WORD")]
    pub(crate) prompt_reading: Option<String>,
    /// Whose random numbers a seed stands for: cpu, as diffusers draws, or gpu, as web UIs draw [default: cpu]
    #[arg(long, value_name = "WORD")]
    pub(crate) noise_of: Option<String>,
    /// Add a LoRA of the folders in $LOWTIDE_LORAS; may be given several times
    #[arg(long, value_name = "NAME[:STRENGTH]", value_parser = lora)]
    pub(crate) lora: Vec<LoraArg>,
}

/// A picture to begin from.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Begin from a picture")]
pub(crate) struct GivenArgs {
    /// Begin from this picture (PNG, JPEG or WebP); with a server also artifact:ID, a result
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) image: Option<PathBuf>,
    /// Draw only what is bright in this picture anew
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "image")]
    pub(crate) mask: Option<PathBuf>,
    /// How much changes, above 0 to 1 [default: 0.75]
    #[arg(
        long,
        value_name = "SHARE",
        requires = "image",
        allow_negative_numbers = true
    )]
    pub(crate) strength: Option<f32>,
    /// How the picture gets the result's size: resize, crop or fill [default: resize]
    #[arg(long, value_name = "WORD", requires = "image")]
    pub(crate) resize: Option<String>,
    /// Blur the mask's edge by so many pixels [default: 4]
    #[arg(
        long,
        value_name = "PIXELS",
        requires = "mask",
        allow_negative_numbers = true
    )]
    pub(crate) mask_blur: Option<f32>,
    /// Draw the whole picture, or only what is masked, at full size [default: whole]
    #[arg(long, value_name = "whole|masked", requires = "mask")]
    pub(crate) inpaint_area: Option<String>,
    /// Surroundings of what is masked that are drawn with it [default: 32]
    #[arg(long, value_name = "PIXELS", requires = "mask")]
    pub(crate) inpaint_padding: Option<u32>,
}

/// A second pass.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Second pass")]
pub(crate) struct HiresArgs {
    /// Draw again, larger by this factor, from the first result
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    pub(crate) hires_scale: Option<f32>,
    /// Steps of the second pass [default: as many as the first]
    #[arg(long, value_name = "N", requires = "hires_scale")]
    pub(crate) hires_steps: Option<u32>,
    /// How much of the first result changes, above 0 to 1 [default: 0.6]
    #[arg(
        long,
        value_name = "SHARE",
        requires = "hires_scale",
        allow_negative_numbers = true
    )]
    pub(crate) hires_strength: Option<f32>,
    /// How the first result becomes larger: latent, latent-nearest or lanczos [default: latent]
    #[arg(long, value_name = "WORD", requires = "hires_scale")]
    pub(crate) hires_upscaler: Option<String>,
}

/// A second model.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Refiner")]
pub(crate) struct RefinerArgs {
    /// Another model goes the rest of the way from noise to picture, such as the refiner of Stable Diffusion XL
    #[arg(long, value_name = "MODEL")]
    pub(crate) refiner: Option<String>,
    /// Where it takes over, between 0 (noise) and 1 (picture) [default: 0.8]
    #[arg(
        long,
        value_name = "SHARE",
        requires = "refiner",
        allow_negative_numbers = true
    )]
    pub(crate) refiner_start: Option<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lora_is_a_name_and_perhaps_a_strength() {
        let read = |text| lora(text).map(|lora| (lora.name, lora.strength));
        assert_eq!(read("ink"), Ok(("ink".to_owned(), None)));
        assert_eq!(read("a/ink:-0.5"), Ok(("a/ink".to_owned(), Some(-0.5))));
        for (wrong, says) in [
            ("ink:much", "ink:0.8"),
            ("ink:", "ink:0.8"),
            (":1", "missing"),
            ("ink:inf", "ink:0.8"),
        ] {
            assert!(read(wrong).unwrap_err().contains(says), "{wrong}");
        }
    }
}
