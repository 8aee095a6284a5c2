//! The arguments of the service: `serve`, `worker`, `config`, and of the verbs that ask a running server.

use clap::{Args, Subcommand, ValueHint};
use lowtide_core::job::Priority;
use std::path::PathBuf;

/// An argument of the command line that means a setting: its name, the setting's place, what was written.
pub(crate) type GivenSetting = (&'static str, &'static str, String);

/// Settings of the service. Without them the file, the environment and the defaults hold.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SettingArgs {
    /// Read this file instead of lowtide.toml or lowtide.yaml here or in the user's folder
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Folder of the queue, the pictures and parked jobs [default: the user's data folder]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data_dir: Option<String>,
    /// The queue: a file, or redis://HOST for many machines [default: lowtide.db in the data folder]
    #[arg(long, value_name = "FILE|URL")]
    pub(crate) store: Option<String>,
    /// Keep files in S3, at s3://BUCKET or s3://BUCKET/FOLDER, with the keys of AWS_ACCESS_KEY_ID [default: a folder]
    #[arg(long, value_name = "URL")]
    pub(crate) artifacts: Option<String>,
    /// Folder of model folders
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) models: Option<String>,
    /// What pictures are computed on: auto, cpu, cuda:0, or several: cuda:0,cuda:1 [default: auto, all GPUs it knows]
    #[arg(long, value_name = "WORD")]
    pub(crate) device: Option<String>,
    /// The most memory weights and activations may use, such as 6GiB [default: free memory less the reserve]
    #[arg(long, value_name = "SIZE")]
    pub(crate) budget: Option<String>,
    /// Memory left for others, such as 1GiB or 10%
    #[arg(long, value_name = "SIZE|SHARE")]
    pub(crate) reserve: Option<String>,
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<String>,
    /// What the networks compute in: auto, f32 or bf16; on GPUs also tf32 or f16
    #[arg(long, value_name = "WORD")]
    pub(crate) precision: Option<String>,
    /// How weights that do not fit move: auto, never, components or stream
    #[arg(long, value_name = "WORD")]
    pub(crate) offload: Option<String>,
    /// How long models stay after a job: 0, 90s, 10m, forever or auto
    #[arg(long, value_name = "TIME")]
    pub(crate) keep_alive: Option<String>,
    /// Models to load before the first job, separated by commas
    #[arg(long, value_name = "NAMES")]
    pub(crate) preload: Option<String>,
    /// Any other setting, such as worker.idle_timeout=10m; 'lowtide config' shows them all
    #[arg(long, value_name = "SETTING=VALUE")]
    pub(crate) set: Vec<String>,
    /// Lines for people (text) or programs (json)
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log: Option<String>,
    /// Say every decision and why
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

impl SettingArgs {
    /// What was given, as settings.
    pub(crate) fn given(&self) -> Vec<GivenSetting> {
        let optional = [
            ("--data-dir", "server.data_dir", &self.data_dir),
            ("--store", "server.store", &self.store),
            ("--artifacts", "server.files_bucket", &self.artifacts),
            ("--models", "models.dirs", &self.models),
            ("--device", "device.name", &self.device),
            ("--budget", "device.budget", &self.budget),
            ("--reserve", "device.reserve", &self.reserve),
            ("--threads", "device.threads", &self.threads),
            ("--precision", "device.precision", &self.precision),
            ("--offload", "device.offload", &self.offload),
            ("--keep-alive", "worker.keep_alive", &self.keep_alive),
            ("--preload", "worker.preload", &self.preload),
            ("--log", "log.format", &self.log),
        ];
        let verbose = self.verbose.then(|| "debug".to_owned());
        let given = optional
            .into_iter()
            .chain([("--verbose", "log.level", &verbose)]);
        given
            .filter_map(|(name, place, text)| Some((name, place, text.clone()?)))
            .collect()
    }
}

/// The arguments of `serve`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServeArgs {
    /// The port [default: 7860; 0 takes one that is free]
    #[arg(short, long, value_name = "N")]
    pub(crate) port: Option<String>,
    /// The address to listen on; 0.0.0.0 opens the service to the network [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<String>,
    #[command(flatten)]
    pub(crate) settings: SettingArgs,
}

/// The arguments of `config`: those of `serve`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    /// Print one line of JSON instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

impl ServeArgs {
    /// What was given, as settings.
    pub(crate) fn given(&self) -> Vec<GivenSetting> {
        let own = [
            ("--port", "server.port", &self.port),
            ("--host", "server.host", &self.host),
        ];
        let own = own
            .into_iter()
            .filter_map(|(name, place, text)| Some((name, place, text.clone()?)));
        own.chain(self.settings.given()).collect()
    }
}

/// The arguments of `worker`.
#[derive(Clone, Debug, Args)]
pub(crate) struct WorkerArgs {
    /// The worker's name among those of this store [default: host, device and process]
    #[arg(long, value_name = "NAME")]
    pub(crate) id: Option<String>,
    /// Started by `serve`: settings come on standard input, and its end means that the parent is gone
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
    #[command(flatten)]
    pub(crate) settings: SettingArgs,
}

/// The arguments of `backup`.
#[derive(Clone, Debug, Args)]
pub(crate) struct BackupArgs {
    /// The folder to make
    #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) folder: PathBuf,
    #[command(flatten)]
    pub(crate) settings: SettingArgs,
}

/// The arguments of `restore`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The folder that `backup` made
    #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) folder: PathBuf,
    #[command(flatten)]
    pub(crate) settings: SettingArgs,
}

/// Which server is asked.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ServerArgs {
    /// The server [default: $LOWTIDE_SERVER, else the one that runs on this machine]
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// The data folder of the server that runs on this machine [default: the user's]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data_dir: Option<String>,
}

/// How `generate` hands over to a server.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct HandOverArgs {
    /// Run here, even where a server runs
    #[arg(long, conflicts_with = "server")]
    pub(crate) local: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// How soon the server should run it: urgent, normal or batch
    #[arg(long, value_name = "WORD", value_parser = priority)]
    pub(crate) priority: Option<Priority>,
    /// Print the job's id and do not wait for the picture
    #[arg(long, overrides_with = "wait")]
    pub(crate) no_wait: bool,
    /// Wait for the picture (the default)
    #[arg(long, overrides_with = "no_wait")]
    pub(crate) wait: bool,
}

pub(super) fn priority(text: &str) -> Result<Priority, String> {
    text.parse()
        .map_err(|wrong: lowtide_core::job::NotAWord| wrong.to_string())
}

/// The arguments of `jobs`.
#[derive(Clone, Debug, Args)]
pub(crate) struct JobsArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<JobsVerb>,
    /// Only jobs in this state: queued, running, parked, paused, done, failed, cancelled
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<String>,
    /// How many, the newest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) limit: u32,
    /// Print the server's JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// The verbs of `jobs`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum JobsVerb {
    /// Show everything known of a job
    Show {
        /// The job's id, or its beginning or end
        id: String,
    },
    /// Cancel a job: at once where it waits, at its next step where it runs
    Cancel {
        /// The job's id
        id: String,
    },
    /// Park a job and give its memory back until it is resumed
    Pause {
        /// The job's id
        id: String,
    },
    /// Let a paused job go on
    Resume {
        /// The job's id
        id: String,
    },
    /// Send a failed job through the queue again
    Requeue {
        /// The job's id
        id: String,
    },
    /// Give a waiting job another place
    Priority {
        /// The job's id
        id: String,
        /// urgent, normal, batch, or front: before all others of its priority
        to: String,
    },
}

/// The arguments of `ps`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PsArgs {
    /// Show it once instead of live
    #[arg(long)]
    pub(crate) once: bool,
    /// Print the server's JSON, once
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// The arguments of `explain`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Also say what so much more memory would buy, such as 3GiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) more: Option<lowtide_core::Bytes>,
    /// Print the server's JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
