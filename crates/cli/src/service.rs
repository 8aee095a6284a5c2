//! The service: its settings, what the server asks about jobs, the worker it keeps, and the verbs that start them.
//!
//! In reading order: [`mod@keys`] (every setting), [`value`] (what may be written), [`layers`] (from where, the later
//! winning), [`settings`] (what it means); [`store`] (where jobs are kept); [`catalog`] and [`door`] (what can be asked
//! for), [`downloads`] (what is fetched for it), [`known`]; [`instance`] (one server a
//! data folder), [`supervisor`], [`log`], [`traces`]; then the verbs, [`mod@access`] (keys) and [`mod@backup`] among them.

mod access;
mod backup;
mod catalog;
mod door;
mod downloads;
mod folders;
mod instance;
mod keys;
mod known;
mod layers;
mod log;
mod net;
mod serve;
mod settings;
mod steps;
mod store;
mod supervisor;
mod traces;
mod value;
mod webhooks;
mod work;

use std::path::PathBuf;

use crate::args::{ConfigArgs, SettingArgs};
use crate::console;
use crate::failure::Failure;
use settings::Settings;

pub(crate) use access::run as keys;
pub(crate) use backup::{backup, restore};
pub(crate) use folders::Surroundings;
pub(crate) use instance::running;
pub(crate) use serve::run as serve;
pub(crate) use settings::ModelsSettings;
pub(crate) use work::run as worker;

/// `lowtide config`: every setting, its value and where that came from.
pub(crate) fn show(args: &ConfigArgs) -> Result<(), Failure> {
    let settings = Settings::read(
        &args.serve.settings,
        args.serve.given(),
        &Surroundings::of_process(),
    )?;
    let text = match args.json {
        true => format!("{}\n", settings::shown_json(&settings)),
        false => settings::shown(&settings),
    };
    Ok(console::print(&text)?)
}

/// Where models are to be looked for, by file and environment.
///
/// # Errors
/// When the settings that say so are wrong.
pub(crate) fn models_settings(around: &Surroundings) -> Result<ModelsSettings, Failure> {
    let args = SettingArgs {
        // Where jobs are kept does not matter here, not even whether there is such a place.
        data_dir: around.data_folder().is_err().then(|| ".".to_owned()),
        ..SettingArgs::default()
    };
    Ok(Settings::read(&args, args.given(), around)?.models)
}

/// Where the server that is meant keeps its data; `None` where the user has no folder for that.
///
/// # Errors
/// When the settings that say so are wrong.
pub(crate) fn data_folder_of(
    args: &SettingArgs,
    around: &Surroundings,
) -> Result<Option<PathBuf>, Failure> {
    if args.data_dir.is_none() && around.data_folder().is_err() {
        return Ok(None);
    }
    let settings = Settings::read(args, args.given(), around)?;
    Ok(Some(settings.server.data_dir))
}
