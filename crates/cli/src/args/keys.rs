//! The arguments of `keys`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use lowtide_core::job::Priority;

use super::SettingArgs;

pub(super) const EXAMPLES: &str = "\
Examples:
  lowtide keys create --name anna --admin
  lowtide keys create --name ci --per-minute 120 --waiting 20 --running 1 --priority normal --ends 90d
  lowtide keys list
  lowtide keys revoke ci
  lowtide keys usage

Keys are kept where the jobs are, so that every server of a fleet knows them. From the first one on a key is
needed: as Authorization: Bearer, as the password of HTTP Basic, in the panel, and in LOWTIDE_KEY for this
program. A key is shown once; what is kept of it is its sum.";

/// The arguments of `keys`.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    pub(crate) verb: KeysVerb,
    /// Read this file instead of lowtide.toml or lowtide.yaml here or in the user's folder
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, global = true)]
    pub(crate) config: Option<PathBuf>,
    /// The data folder of the service [default: the user's]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, global = true)]
    pub(crate) data_dir: Option<String>,
    /// The queue: a file, or redis://HOST [default: lowtide.db in the data folder]
    #[arg(long, value_name = "FILE|URL", global = true)]
    pub(crate) store: Option<String>,
    /// Any other setting, such as server.store_queue=main
    #[arg(long, value_name = "SETTING=VALUE", global = true)]
    pub(crate) set: Vec<String>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl KeysArgs {
    /// What says where the keys are.
    pub(crate) fn settings(&self) -> SettingArgs {
        SettingArgs {
            config: self.config.clone(),
            data_dir: self.data_dir.clone(),
            store: self.store.clone(),
            set: self.set.clone(),
            ..SettingArgs::default()
        }
    }
}

/// The verbs of `keys`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum KeysVerb {
    /// Make a key and print it, once
    Create(KeyArgs),
    /// List the keys there are and were
    List,
    /// Revoke a key by its id, or all keys of a name
    Revoke {
        /// The key's id, or a name
        key: String,
    },
    /// Show what became of the jobs of each name
    Usage,
}

/// What a new key is to be.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeyArgs {
    /// Whose it is: its jobs are this name's, and keys of one name see the same jobs
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// It sees and changes everybody's jobs, and orders models and workers about
    #[arg(long)]
    pub(crate) admin: bool,
    /// Requests a minute, counted by each server for itself [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) per_minute: Option<u32>,
    /// Jobs that may wait at once [default: as many as anybody's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) waiting: Option<u64>,
    /// Jobs that may run at once, on all workers [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) running: Option<u64>,
    /// The highest priority its jobs may have: urgent, normal or batch
    #[arg(long, value_name = "WORD", value_parser = super::service::priority)]
    pub(crate) priority: Option<Priority>,
    /// After so long it opens nothing, such as 12h or 90d [default: never]
    #[arg(long, value_name = "TIME")]
    pub(crate) ends: Option<String>,
}
