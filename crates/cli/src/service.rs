//! The service: its settings, what the server asks about jobs, the worker it keeps, and the verbs that start them.
//!
//! In reading order: [`keys`] (every setting), [`value`] (what may be written), [`layers`] (from where, the later
//! winning), [`settings`] (what it means); [`catalog`] and [`door`] (what can be asked for); [`instance`] (one server a
//! data folder), [`supervisor`], [`log`]; then the verbs.

mod catalog;
mod door;
mod folders;
mod instance;
mod keys;
mod layers;
mod log;
mod settings;
mod supervisor;
mod value;

use crate::args::ConfigArgs;
use crate::console;
use crate::failure::Failure;
use folders::Surroundings;
use settings::Settings;

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
