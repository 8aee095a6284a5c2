//! The arguments of `models` and `pull`.

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

use super::ServerArgs;

const RM_EXAMPLES: &str = "\
Examples:
  lowtide models rm org/name             the repository, all its revisions
  lowtide models rm org/name@v1 --yes    one revision, without asking; what others share stays";

/// The verbs of `models`.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// List every model that is installed, its size, and the smallest budget it runs in
    List {
        /// Only the models in this folder [default: all: the cache, the configured folders, other programs' folders]
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
        /// Print one line of JSON instead of the table
        #[arg(long)]
        json: bool,
        /// Leave the plans out, which need every model's headers
        #[arg(long)]
        no_plans: bool,
    },
    /// Show a model's components, blocks, bytes and number types, from the files' headers alone
    Show {
        /// A folder, a file, or a name that `models list` shows
        #[arg(value_name = "MODEL", value_hint = ValueHint::DirPath)]
        model: String,
        /// Print one line of JSON instead of the table
        #[arg(long)]
        json: bool,
    },
    /// Check a model's files: sums where the cache has them, headers and ranges everywhere
    Verify {
        /// A folder, a file, or a name that `models list` shows
        #[arg(value_name = "MODEL", value_hint = ValueHint::DirPath)]
        model: String,
        /// Remove files whose sum is wrong, so that the next pull fetches them again
        #[arg(long)]
        discard: bool,
        /// Print one line of JSON instead of sentences
        #[arg(long)]
        json: bool,
    },
    /// Remove a model from the cache or a configured folder
    #[command(after_help = RM_EXAMPLES)]
    Rm {
        /// A name that `models list` shows; org/name@revision for one revision
        #[arg(value_name = "MODEL")]
        model: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        /// Remove only beginnings of files that a pull would go on with
        #[arg(long)]
        partial: bool,
    },
    /// Write a smaller variant of a model: its large matrices in fewer bits
    Convert {
        /// The type of the large matrices; norms, biases, embeddings and the VAE stay as they are
        #[arg(long, value_enum)]
        to: SmallerArg,
        /// A folder in diffusers layout, or a name that `models list` shows
        #[arg(value_name = "MODEL", value_hint = ValueHint::DirPath)]
        model: String,
        /// The folder to write, which must not be there
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        target: PathBuf,
    },
    /// Bring a model to the device of a running server
    Load {
        /// The model's name
        #[arg(value_name = "NAME")]
        model: String,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Take a model off the device of a running server, and keep it in host memory
    Offload {
        /// The model's name [default: all]
        #[arg(value_name = "NAME")]
        model: Option<String>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Take a model out of a running server's memory
    Release {
        /// The model's name [default: all]
        #[arg(value_name = "NAME")]
        model: Option<String>,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// `--to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SmallerArg {
    /// Half of f32's bytes
    Bf16,
    /// A quarter of f32's bytes (E4M3, one scale a matrix), and visibly less exact
    Fp8,
    /// A little more than a quarter of f32's bytes (int8, one scale for every 32 numbers), and much nearer
    #[value(name = "q8_0", alias = "q8")]
    Q8,
}

/// The arguments of `pull`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PullArgs {
    /// org/name, or org/name@revision for a branch, a tag or a commit
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// The variant of the weights, such as fp16 [default: the plain one]
    #[arg(long, value_name = "WORD")]
    pub(crate) variant: Option<String>,
    /// Only files like this, such as 'vae/*'; can be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) include: Vec<String>,
    /// Files fetched at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) parallel: u8,
    /// Have a running server fetch it, into its own cache, instead of this process
    #[arg(long, value_name = "URL", conflicts_with_all = ["variant", "include", "parallel"])]
    pub(crate) server: Option<String>,
    /// Print lines of JSON: what is planned, progress, what came of it
    #[arg(long)]
    pub(crate) json: bool,
    /// Print nothing but the folder and errors
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
}
