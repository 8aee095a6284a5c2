//! `lowtide pull`: fetches a model, shows how far it is.

mod count;
mod meter;

use lowtide_hub::{Choice, Event, Order, Pulled, Settings, Stop, Wanted, pull};
use serde_json::json;

use crate::args::PullArgs;
use crate::console;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::models::hub_settings;
use crate::service::Surroundings;

pub(crate) use count::Count;
pub(crate) use meter::Meter;

/// Files at a time where nobody says.
pub(crate) const PARALLEL: usize = 8;

/// Pulls what was asked for and prints where it is.
pub(crate) fn run(args: &PullArgs) -> Result<(), Failure> {
    if let Some(url) = &args.server {
        return crate::client::pull(args, url);
    }
    let settings = hub_settings(&Surroundings::of_process())?;
    let wanted: Wanted = args.model.parse()?;
    let order = Order {
        wanted,
        choice: Choice {
            variant: args.variant.clone().filter(|word| !word.is_empty()),
            include: args.include.clone(),
        },
        parallel: usize::from(args.parallel),
    };
    let meter = match (args.json, args.quiet) {
        (true, _) => Meter::json(),
        (false, quiet) => Meter::on_terminal(!quiet),
    };
    let pulled = with(&settings, &order, &meter, args.quiet || args.json)?;
    let folder = pulled.snapshot.folder.display();
    if args.json {
        let line = json!({
            "event": "pulled", "model": order.wanted.to_string(), "commit": pulled.snapshot.commit,
            "folder": folder.to_string(), "files": pulled.files, "bytes": pulled.bytes.0, "fetched": pulled.fetched.0,
        });
        return Ok(console::print(&format!("{line}\n"))?);
    }
    if !args.quiet {
        console::note(&summary(&order.wanted, &pulled));
    }
    Ok(console::print(&format!("{folder}\n"))?)
}

/// Fetches a model because it is about to be used.
pub(crate) fn fetch(
    settings: &Settings,
    wanted: &Wanted,
    choice: Choice,
    quiet: bool,
) -> Result<(), Failure> {
    let order = Order {
        wanted: wanted.clone(),
        choice,
        parallel: PARALLEL,
    };
    let pulled = with(settings, &order, &Meter::on_terminal(!quiet), quiet)?;
    if !quiet {
        console::note(&summary(wanted, &pulled));
    }
    Ok(())
}

fn with(settings: &Settings, order: &Order, meter: &Meter, quiet: bool) -> Result<Pulled, Failure> {
    let stop = Stop::watching(Interrupt::install()?.flag());
    let tell = |event: Event| match event {
        Event::Note(text) => {
            meter.clear();
            if !quiet {
                console::note(&text);
            }
            meter.note(&text);
        }
        Event::Planned {
            commit,
            files,
            bytes,
            there,
        } => meter.begin(&commit, files, bytes, there),
        Event::Resumed { path, bytes } => meter.resumed(&path, bytes),
        Event::Bytes(bytes) => meter.add(bytes),
        Event::Lost(bytes) => meter.lose(bytes),
        Event::Done { path, bytes } => meter.done(&path, bytes),
    };
    let pulled = pull(settings, order, &stop, &tell);
    meter.finish();
    Ok(pulled?)
}

fn summary(wanted: &Wanted, pulled: &Pulled) -> String {
    let commit = &pulled.snapshot.commit[..12];
    match pulled.fetched.0 {
        0 => format!(
            "{wanted} is here ({commit}, {} files, {})",
            pulled.files, pulled.bytes
        ),
        _ => format!(
            "{wanted} is here ({commit}, {} files, {}, of which {} came now)",
            pulled.files, pulled.bytes, pulled.fetched
        ),
    }
}
