//! `lowtide models`: which models there are, what one consists of, whether it is whole, how it goes, how it gets smaller;
//! and how a name becomes a model.

mod convert;
mod library;
mod list;
mod remove;
mod show;
mod variants;
mod verify;

use std::path::Path;

use lowtide_hub::{Choice, Wanted};
use lowtide_weights::ModelFolder;

use crate::args::ModelsCommand;
use crate::client;
use crate::demo;
use crate::failure::Failure;
use crate::pull;
use crate::service::{ModelsSettings, Surroundings, models_settings};

pub(crate) use library::{Library, Model, Place, hub_settings, programs_of};
pub(crate) use variants::variants_of;

/// Runs a verb of `models`.
pub(crate) fn run(command: &ModelsCommand) -> Result<(), Failure> {
    match command {
        ModelsCommand::List {
            dir,
            json,
            no_plans,
        } => list::run(dir.as_deref(), *json, !no_plans),
        ModelsCommand::Show { model, json } => show::run(model, *json),
        ModelsCommand::Verify {
            model,
            discard,
            json,
        } => verify::run(model, *discard, *json),
        ModelsCommand::Rm {
            model,
            yes,
            partial,
        } => remove::run(model, *yes, *partial),
        ModelsCommand::Convert { to, model, target } => convert::run(*to, model, target),
        ModelsCommand::Load { model, server } => client::order_model("load", Some(model), server),
        ModelsCommand::Offload { model, server } => {
            client::order_model("offload", model.as_deref(), server)
        }
        ModelsCommand::Release { model, server } => {
            client::order_model("release", model.as_deref(), server)
        }
    }
}

/// The model a user means by `name`: the demo, a folder or a file, an alias, or one that is found by name.
pub(crate) fn open(name: &str) -> Result<ModelFolder, Failure> {
    opened(&find(name)?)
}

/// What a user wrote may be any file.
fn opened(model: &Model) -> Result<ModelFolder, Failure> {
    const ENDINGS: [&str; 7] = ["safetensors", "sft", "ckpt", "pt", "pth", "bin", "param"];
    let path = model.path().filter(|path| path.is_file());
    let ending = path.and_then(|path| path.extension()?.to_str());
    match ending.filter(|ending| !ENDINGS.contains(&&*ending.to_ascii_lowercase())) {
        None => Ok(model.open()?),
        Some(_) => Err(Failure::mistake(format!(
            "model '{}': not safetensors, nor another file of a model; give a folder in diffusers layout, or a \
             .safetensors or .ckpt file",
            model.name
        ))),
    }
}

/// As [`open`]; fetched first where it is not here and that is allowed, by `download` or by the settings.
pub(crate) fn open_or_fetch(
    name: &str,
    download: bool,
    quiet: bool,
) -> Result<ModelFolder, Failure> {
    let around = Surroundings::of_process();
    let settings = match needs_settings(name) {
        false => return open(name),
        true => models_settings(&around)?,
    };
    let name = settings.aliases.get(name).map_or(name, String::as_str);
    let library = Library::new(&settings, &around)?;
    let here = as_path(name).or_else(|| library.find(name));
    let hub_name = name.parse::<Wanted>().ok().filter(|_| name.contains('/'));
    match (here, hub_name) {
        (Some(model), _) => opened(&model),
        (None, Some(wanted)) if download || settings.download => {
            let choice = Choice::default();
            pull::fetch(&hub_settings(&around)?, &wanted, choice, quiet)?;
            let fetched = Library::new(&settings, &around)?.find(name);
            Ok(fetched.ok_or_else(|| not_found(name, &settings))?.open()?)
        }
        (None, _) => Err(not_found(name, &settings)),
    }
}

/// The model of that name, not opened.
pub(crate) fn find(name: &str) -> Result<Model, Failure> {
    if !needs_settings(name) {
        return as_path(name).ok_or_else(|| not_found(name, &ModelsSettings::default()));
    }
    let around = Surroundings::of_process();
    let settings = models_settings(&around)?;
    let name = settings.aliases.get(name).map_or(name, String::as_str);
    let found = as_path(name).or(Library::new(&settings, &around)?.find(name));
    found.ok_or_else(|| not_found(name, &settings))
}

/// Paths of the smaller variants of the model called `name` that are installed.
pub(crate) fn smaller(name: &str) -> Result<Vec<String>, Failure> {
    let around = Surroundings::of_process();
    let library = Library::new(&models_settings(&around)?, &around)?;
    let variants = variants_of(&library, name).into_iter();
    let paths = variants.filter_map(|model| Some(model.path()?.to_str()?.to_owned()));
    Ok(paths.collect())
}

/// Whether a name says nothing by itself. The demo and paths need no settings, so that wrong ones do not stop them.
fn needs_settings(name: &str) -> bool {
    as_path(name).is_none()
}

fn as_path(name: &str) -> Option<Model> {
    let place = match name == demo::NAME {
        true => Place::Demo,
        false => Place::Own(Path::new(name).to_owned()),
    };
    let there = name == demo::NAME || (!name.is_empty() && Path::new(name).exists());
    there.then(|| Model {
        name: name.to_owned(),
        place,
    })
}

fn not_found(name: &str, settings: &ModelsSettings) -> Failure {
    let hub = name.contains('/') && name.parse::<Wanted>().is_ok();
    let also = match (hub, settings.dirs.first()) {
        (true, _) => format!(
            ", and it is not in the cache; 'lowtide pull {name}' fetches it from the hub, as --download would"
        ),
        (false, Some(dir)) => format!(", here or in '{}'", dir.display()),
        (false, None) => String::new(),
    };
    Failure::mistake(format!(
        "model '{name}': there is no such folder or file{also}; 'lowtide models list' shows what there is ('{}' always is)",
        demo::NAME
    ))
}
