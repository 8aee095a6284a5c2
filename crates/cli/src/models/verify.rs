//! `lowtide models verify`: whether a model's files are what they should be.

use lowtide_core::Bytes;
use lowtide_hub::{Cache, Checked, Wanted};
use serde_json::{Value, json};

use super::{Place, hub_settings};
use crate::console;
use crate::failure::{Failure, one_line};
use crate::interrupt::Interrupt;
use crate::pull::Meter;
use crate::service::Surroundings;

/// Checks a model and prints what came of it.
pub(super) fn run(name: &str, discard: bool, as_json: bool) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    let model = super::find(name)?;
    let sums = match &model.place {
        Place::Cached(wanted, _) => Some(sums(wanted, discard, as_json, &interrupt)?),
        Place::Demo | Place::Own(_) | Place::Foreign(_) if discard => {
            return Err(Failure::mistake(format!(
                "--discard is for models in the cache, whose sums are known; '{name}' is not there"
            )));
        }
        _ => None,
    };
    // Headers say which bytes belong to which tensor; that all of them are there is checked when they are opened.
    let headers = model.open().and_then(|folder| folder.summary());
    let tensors = headers.map_err(|cause| one_line(&cause.to_string()));
    let damaged = sums
        .as_ref()
        .map_or(0, |sums| sums.damaged.len() + sums.broken.len());
    if as_json {
        let report = report(
            name,
            sums.as_ref(),
            &tensors.as_ref().map(|summary| summary.bytes()),
        );
        console::print(&format!("{report}\n"))?;
    } else {
        console::print(&told(
            sums.as_ref(),
            &tensors.as_ref().map(|summary| summary.bytes()),
        ))?;
    }
    let advice = match (&model.place, discard) {
        (Place::Cached(wanted, _), false) if damaged > 0 => format!(
            "'lowtide models verify {name} --discard' removes what is damaged, then 'lowtide pull {wanted}' fetches it again"
        ),
        (Place::Cached(wanted, _), _) => format!("'lowtide pull {wanted}' fetches what is missing"),
        _ => "fetch it again".to_owned(),
    };
    match tensors {
        Err(why) => Err(Failure::mistake(format!("{why}; {advice}"))),
        Ok(_) if damaged > 0 => Err(Failure::mistake(format!(
            "{damaged} of the files of '{name}' are damaged; {advice}"
        ))),
        Ok(_) => Ok(()),
    }
}

/// Sums every file of the repository.
fn sums(
    wanted: &Wanted,
    discard: bool,
    as_json: bool,
    interrupt: &Interrupt,
) -> Result<Checked, Failure> {
    let cache = Cache::new(&hub_settings(&Surroundings::of_process())?);
    let bytes = cache
        .repo(&wanted.repo)?
        .map_or(Bytes::ZERO, |repo| repo.bytes);
    let meter = Meter::on_terminal(!as_json);
    meter.plan(bytes.0, 0);
    let checked = cache.check(&wanted.repo, |count| {
        meter.add(count);
        match interrupt.check() {
            Ok(()) => Ok(()),
            Err(_) => Err(lowtide_hub::Error::Stopped),
        }
    });
    meter.finish();
    let checked = match checked {
        Err(lowtide_hub::Error::Stopped) => return Err(Failure::Interrupted),
        other => other?,
    };
    if discard {
        cache.discard(&wanted.repo, &checked.damaged)?;
    }
    Ok(checked)
}

fn told(sums: Option<&Checked>, tensors: &Result<Bytes, &String>) -> String {
    let mut text = String::new();
    if let Some(sums) = sums {
        text.push_str(&format!(
            "  sums     {} files, {} right\n",
            sums.good, sums.bytes
        ));
        let lists = [
            ("wrong", &sums.damaged),
            ("missing", &sums.broken),
            ("unknown", &sums.unknown),
        ];
        for (word, files) in lists {
            for file in files {
                text.push_str(&format!("  {word:<8} {}\n", file.display()));
            }
        }
    }
    match tensors {
        Ok(bytes) => text.push_str(&format!("  headers  every tensor has its bytes, {bytes}\n")),
        Err(why) => text.push_str(&format!("  headers  {why}\n")),
    }
    text
}

fn report(name: &str, sums: Option<&Checked>, tensors: &Result<Bytes, &String>) -> Value {
    let mut report = json!({ "name": name });
    if let Some(sums) = sums {
        let paths = |files: &[std::path::PathBuf]| -> Vec<String> {
            files
                .iter()
                .map(|file| file.display().to_string())
                .collect()
        };
        report["sums"] = json!({
            "right": sums.good, "bytes": sums.bytes.0, "wrong": paths(&sums.damaged),
            "missing": paths(&sums.broken), "unknown": paths(&sums.unknown),
        });
    }
    match tensors {
        Ok(bytes) => report["tensor_bytes"] = json!(bytes.0),
        Err(why) => report["error"] = json!(why),
    }
    report
}
