//! What the user typed. What it means is in [`crate::config`].

mod detail;
mod drawing;
mod keys;
mod models;
mod service;
mod steps;
mod upscale;

pub(crate) use detail::*;
pub(crate) use drawing::*;
pub(crate) use keys::*;
pub(crate) use models::*;
pub(crate) use service::*;
pub(crate) use steps::*;
pub(crate) use upscale::{UpscaleArgs, UpscaleVerb};

use crate::gpu::DeviceChoice;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use lowtide_core::Bytes;
use lowtide_engine::PrecisionChoice;
use std::path::PathBuf;

const OVERVIEW: &str = "\
Pictures from a prompt, inside a memory budget.

A job is planned before it starts. What does not fit in the budget streams from the file while
the rest computes, and the picture is the same to the byte. What cannot fit is refused with the
numbers.";

const EXAMPLES: &str = "\
Examples:
  lowtide generate \"a red heart\" -o heart.png
  lowtide generate \"a red heart\" --seed 7 --count 4 -o heart.webp
  lowtide plan \"a lighthouse\" --model ~/models/Z-Image --size 1024x1024 --budget 6GiB
  lowtide models show ~/models/Z-Image
  lowtide upscale heart.png -o large.png --model RealESRGAN_x4plus.pth
  lowtide png-info heart.png
  lowtide doctor

Exit codes:
  0 done   1 failed   2 a mistake in what was asked   3 does not fit in the budget   130 interrupted";

const GENERATE_EXAMPLES: &str = "\
Examples:
  The model that comes with the program, four pictures with seeds 7, 8, 9 and 10:
    lowtide generate \"a blue cat face on a yellow background\" --seed 7 --count 4 -o cat.png
  A model folder in the diffusers layout, in 6 GiB of memory:
    lowtide generate \"a lighthouse at dusk\" --model ~/models/Z-Image --size 768x512 --budget 6GiB -o sea.jpg
  A turbo checkpoint, which is made for few steps and no guidance:
    lowtide generate \"a lighthouse at dusk\" --model ~/models/Z-Image-Turbo --steps 9 --guidance 0 -o sea.png
  From a picture; what is bright in the mask is drawn anew, and nothing else changes:
    lowtide generate \"a straw hat\" --image cat.png --mask hat.png --strength 0.9 -o hat-cat.png
  A sampler by its usual name, a LoRA, and a second pass at twice the size:
    lowtide generate \"a harbour\" --model ~/models/sd15 --sampler \"DPM++ 2M\" --schedule karras \\
      --lora ink:0.8 --hires-scale 2 -o harbour.png
  For a script; the last line on standard output is JSON:
    lowtide generate \"a red heart\" -o heart.png --json

The same seed gives the same picture as diffusers with a generator on the CPU. Without --seed one
is drawn and named in the picture (lowtide png-info).";

/// A seed. Other programs take -1 for one that is drawn; here it is left out.
fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        format!(
            "'{text}' is not a whole number from 0 to {}; leave --seed out to have one drawn",
            u64::MAX
        )
    })
}

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "lowtide", version, about = OVERVIEW, after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make pictures from a prompt
    #[command(after_help = GENERATE_EXAMPLES)]
    Generate(Box<GenerateVerb>),
    /// Show how `generate` with the same arguments would use memory, without running it
    #[command(
        after_help = "Example:\n  lowtide plan \"a lighthouse\" --model ~/models/Z-Image --budget 6GiB"
    )]
    Plan(Box<GenerateArgs>),
    /// Make a picture larger, with a network in a file
    #[command(after_help = upscale::EXAMPLES)]
    Upscale(Box<UpscaleVerb>),
    /// Find faces, hands or other things in a picture and draw each anew, at full size
    #[command(after_help = detail::EXAMPLES)]
    Detail(Box<DetailVerb>),
    /// Show where in a picture faces, hands or other things are
    #[command(after_help = detail::DETECT_EXAMPLES)]
    Detect(DetectArgs),
    /// Print what a picture was made with
    #[command(
        after_help = "Example:\n  lowtide png-info heart.png\n\nReads PNG, JPEG and WebP, also those of other \
                            programs that write the same text."
    )]
    PngInfo(PngInfoArgs),
    /// Fetch a model by its name on the hub, into the cache that other programs share
    #[command(
        after_help = "Examples:\n  lowtide pull org/name\n  lowtide pull org/name@v1 --variant fp16\n  lowtide pull org/name --include                             'vae/*'\n\nWhat stops halfway goes on where it ended. HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_CACHE and                             HF_HUB_OFFLINE mean what they mean to other programs."
    )]
    Pull(PullArgs),
    /// List models, show, check, remove or shrink one, or move one by hand
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Serve over HTTP, with a queue, a panel and one worker
    #[command(
        after_help = "Examples:\n  lowtide serve\n  lowtide serve --port 8080 --budget 6GiB --models ~/models\n\n\
                            Then open the address it prints. Settings also come from lowtide.toml or lowtide.yaml \
                            and the environment; 'lowtide config' shows them all."
    )]
    Serve(Box<ServeArgs>),
    /// Copy the queue of this machine and all its files to a new folder, while they are in use
    #[command(
        after_help = "Example:\n  lowtide backup /mnt/backups/monday\n  lowtide restore /mnt/backups/monday --data-dir /srv/new"
    )]
    Backup(Box<BackupArgs>),
    /// Bring a backup back, into an empty place
    Restore(Box<RestoreArgs>),
    /// Work on the queue of a server, as a further process
    #[command(
        after_help = "Example:\n  lowtide worker --data-dir ~/.local/share/lowtide --budget 4GiB\n\nCtrl-C parks and \
                            saves what runs; another worker goes on with it."
    )]
    Worker(Box<WorkerArgs>),
    /// List the jobs of a server, or show, cancel, pause, resume, requeue or move one
    #[command(
        args_conflicts_with_subcommands = false,
        after_help = "Examples:\n  lowtide jobs --state queued\n  lowtide jobs show 7f3k\n  lowtide jobs priority 7f3k urgent"
    )]
    Jobs(JobsArgs),
    /// Make, list and revoke keys to the service, and show what their holders used
    #[command(after_help = keys::EXAMPLES)]
    Keys(Box<KeysArgs>),
    /// Show what a server does: models, memory, jobs in progress
    Ps(PsArgs),
    /// Say why a server's memory and speed are as they are, and what more memory would buy
    Explain(ExplainArgs),
    /// Show devices, memory, instruction sets and what this machine can and cannot do
    Doctor(DoctorArgs),
    /// Show every setting of the service and where its value came from
    #[command(
        after_help = "Example:\n  lowtide config --config ~/lowtide.toml --port 8080\n\nSettings come from \
                            lowtide.toml or lowtide.yaml, then the environment, then arguments; the later wins."
    )]
    Config(Box<ConfigArgs>),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  lowtide completions bash > ~/.local/share/bash-completion/completions/lowtide"
    )]
    Completions(CompletionsArgs),
}

/// The arguments of `generate` and `plan`.
#[derive(Clone, Debug, Args)]
pub(crate) struct GenerateArgs {
    /// What the picture should show
    pub(crate) prompt: String,
    /// `demo` (comes with the program), a folder, a file, org/name of the hub, or another name `models list` shows
    #[arg(short, long, default_value = crate::demo::NAME, value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub(crate) model: String,
    /// Fetch the model from the hub where it is not here (`models.download = true` does so always)
    #[arg(long)]
    pub(crate) download: bool,
    /// What the picture should not show; works with guidance above 0
    #[arg(short, long, value_name = "PROMPT")]
    pub(crate) negative: Option<String>,
    /// Width x height in pixels, both divisible by 8, for some models by 16 [default: that of --image, else the model's,
    /// else 1024x1024]
    #[arg(long, value_name = "WxH")]
    pub(crate) size: Option<String>,
    /// Denoising steps [default: the model's, else 50; turbo checkpoints want 8 or 9]
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u32>,
    /// Weight of the prompt, as diffusers counts it; 0 switches guidance off and halves the time [default: the
    /// model's, else 5; turbo checkpoints want 0]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    pub(crate) guidance: Option<f32>,
    /// Limit the guided prediction's norm to this multiple of the unguided one's
    #[arg(long, value_name = "FACTOR")]
    pub(crate) cfg_normalization: Option<f32>,
    /// Guide only while the normalised time is at most this
    #[arg(long, value_name = "TIME", default_value_t = 1.0)]
    pub(crate) cfg_truncation: f32,
    /// Seed of the first picture; picture k of several uses seed + k - 1 [default: drawn]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = seed)]
    pub(crate) seed: Option<u64>,
    /// How many pictures
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) count: u32,
    /// Where the picture goes; .png, .jpg or .webp; several become name-1.png, name-2.png [default: the prompt and
    /// the seed]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// `exact` refuses what would change the picture to save memory, such as decoding in tiles
    #[arg(long, value_enum, default_value_t = QualityArg::Auto)]
    pub(crate) quality: QualityArg,
    /// What the networks compute in [default: auto, which is bf16 on a GPU and where the processor has it, else f32]
    #[arg(long, value_enum)]
    pub(crate) precision: Option<PrecisionArg>,
    /// What the picture is computed on: auto, cpu or a GPU such as cuda:0 [default: auto, a GPU where this build knows one]
    #[arg(long, value_name = "WORD")]
    pub(crate) device: Option<DeviceChoice>,
    /// The most memory weights and activations may use, such as 600MiB [default: free memory less the reserve]
    #[arg(long, value_name = "SIZE")]
    pub(crate) budget: Option<Bytes>,
    /// Memory left for others when no budget is given [default: a sixteenth of the memory, at most 1GiB]
    #[arg(long, value_name = "SIZE", conflicts_with = "budget")]
    pub(crate) reserve: Option<Bytes>,
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) given: GivenArgs,
    #[command(flatten)]
    pub(crate) hires: HiresArgs,
    #[command(flatten)]
    pub(crate) steps_after: StepsArgs,
    #[command(flatten)]
    pub(crate) refiner: RefinerArgs,
    /// Print one line of JSON at the end: seed, outputs, seconds, memory, plan, reasons
    #[arg(long)]
    pub(crate) json: bool,
    /// Print nothing but errors
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
    /// Start from the tensor `noise` (N, C, H/8, W/8), f32, of this safetensors file instead of the seed; N is the count
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) noise: Option<PathBuf>,
    /// Also write the tensors `latents` and `image` (0 to 1), f32, to this safetensors file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) dump: Option<PathBuf>,
}

/// The arguments of `generate`: those of `plan`, and how it is handed over.
#[derive(Clone, Debug, Args)]
pub(crate) struct GenerateVerb {
    #[command(flatten)]
    pub(crate) args: GenerateArgs,
    #[command(flatten)]
    pub(crate) hand_over: HandOverArgs,
}

/// `--quality`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum QualityArg {
    /// Only what gives the same bytes as without a budget
    Exact,
    /// Approximate means where no exact one fits, named in the result
    Auto,
}

/// `--precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionArg {
    /// 32-bit floats
    F32,
    /// Products of 19 bits, summed in 32; of GPUs alone
    Tf32,
    /// bfloat16 products, summed in 32 bits
    Bf16,
    /// Products of half precision, summed in 32 bits; of GPUs alone
    F16,
    /// bf16 on a GPU and where the processor has it, else f32
    Auto,
}

impl PrecisionArg {
    /// What it means to the engine.
    pub(crate) fn choice(self) -> PrecisionChoice {
        match self {
            PrecisionArg::F32 => PrecisionChoice::F32,
            PrecisionArg::Tf32 => PrecisionChoice::Tf32,
            PrecisionArg::Bf16 => PrecisionChoice::Bf16,
            PrecisionArg::F16 => PrecisionChoice::F16,
            PrecisionArg::Auto => PrecisionChoice::Auto,
        }
    }
}

/// The arguments of `png-info`.
#[derive(Debug, Args)]
pub(crate) struct PngInfoArgs {
    /// The picture
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
}

/// The arguments of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print one line of JSON instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

/// The arguments of `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_declarations_agree_with_each_other() {
        Cli::command().debug_assert();
    }
}
