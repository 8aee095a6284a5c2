//! The arguments of `upscale`.

use clap::{Args, ValueHint};
use lowtide_core::Bytes;
use std::path::PathBuf;

use crate::gpu::DeviceChoice;

use super::{HandOverArgs, PrecisionArg, QualityArg};

pub(super) const EXAMPLES: &str = "\
Examples:
  lowtide upscale cat.png -o large.png --model ~/models/RealESRGAN_x4plus.pth
  lowtide upscale cat.png --scale 2 --budget 500MiB
  lowtide upscale scan.jpg -o scan.webp --model realesr-animevideov3 --scale 3.5 --tile 256

A model is a network in one file: RRDBNet (ESRGAN, Real-ESRGAN, BSRGAN) or SRVGGNetCompact, as .pth,
.safetensors, or .param beside .bin. By name it is looked for where models are, and where ComfyUI and web
UIs keep such files.";

/// What is made larger, and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpscaleArgs {
    /// The picture: PNG, JPEG or WebP
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) picture: PathBuf,
    /// Where the result goes; .png, .jpg or .webp [default: beside the picture, with the factor in its name]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// A network's file, or a name `models list` shows [default: the only one there is]
    #[arg(short, long, value_name = "MODEL", value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<String>,
    /// How many times wider and higher, 1 to 16; fractions too [default: the network's own]
    #[arg(long, value_name = "FACTOR")]
    pub(crate) scale: Option<f64>,
    /// Cut the picture into tiles of this side, in its pixels [default: as memory allows]
    #[arg(long, value_name = "PIXELS")]
    pub(crate) tile: Option<u32>,
    /// `exact` refuses tiles that overlap by less than results depend on
    #[arg(long, value_enum, default_value_t = QualityArg::Auto)]
    pub(crate) quality: QualityArg,
    /// What the network computes in [default: auto, which is bf16 on a GPU and where the processor has it, else f32]
    #[arg(long, value_enum)]
    pub(crate) precision: Option<PrecisionArg>,
    /// What computes: auto, cpu or a GPU such as cuda:0 [default: auto, a GPU where this build knows one]
    #[arg(long, value_name = "WORD")]
    pub(crate) device: Option<DeviceChoice>,
    /// The most memory everything may use, such as 600MiB [default: free memory less the reserve]
    #[arg(long, value_name = "SIZE")]
    pub(crate) budget: Option<Bytes>,
    /// Memory left for others when no budget is given [default: a sixteenth of the memory, at most 1GiB]
    #[arg(long, value_name = "SIZE", conflicts_with = "budget")]
    pub(crate) reserve: Option<Bytes>,
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print one line of JSON at the end: output, size, seconds, memory, plan, reasons
    #[arg(long)]
    pub(crate) json: bool,
    /// Print nothing but errors
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
}

/// The arguments of `upscale`, and how it is handed over.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpscaleVerb {
    #[command(flatten)]
    pub(crate) args: UpscaleArgs,
    #[command(flatten)]
    pub(crate) hand_over: HandOverArgs,
}
