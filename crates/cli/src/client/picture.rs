//! Verbs that make one picture of another: where they run, and how such a job is handed over.

use std::path::Path;

use anyhow::Context;
use lowtide_media::Format;
use serde_json::{Map, Value, json};

use super::hand_over::{explicit, fetch, offers, wait};
use super::{Http, find};
use crate::args::HandOverArgs;
use crate::console;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::request::read_picture;

/// Where a verb runs.
pub(super) enum Place {
    /// In this process; why, where that is to be said.
    Here(Option<String>),
    /// There.
    Server(Http),
}

/// Chooses. `option`: one that only means something in this process; `model`: the one a server has to have, `None` where
/// the server has its own idea of which is meant.
pub(super) fn place(
    hand_over: &HandOverArgs,
    option: Option<&str>,
    model: Option<&str>,
) -> Result<Place, Failure> {
    let asked = explicit(hand_over);
    if let Some(option) = option {
        if let Some(asked) = asked {
            return Err(Failure::mistake(format!(
                "{option} is for a run in this process; leave it out, or {asked}"
            )));
        }
        let why = (!hand_over.local).then(|| format!("{option} is for this process"));
        return Ok(Place::Here(why));
    }
    if hand_over.local {
        return Ok(Place::Here(None));
    }
    let Some(server) = find(&hand_over.server)? else {
        return match asked {
            Some(asked) => Err(Failure::mistake(format!(
                "no server is running; start one with 'lowtide serve', or {asked}"
            ))),
            None => Ok(Place::Here(Some("no server is running".to_owned()))),
        };
    };
    if let Some(model) = model
        && asked.is_none()
        && !offers(&server, model)?
    {
        let why = format!("the server at {} has no model '{model}'", server.url());
        return Ok(Place::Here(Some(why)));
    }
    Ok(Place::Server(server))
}

/// A picture on its way.
pub(super) struct Errand<'a> {
    pub(super) hand_over: &'a HandOverArgs,
    pub(super) picture: &'a Path,
    pub(super) output: &'a Path,
    pub(super) json: bool,
    pub(super) quiet: bool,
}

/// Sends the picture, submits the job that `body` makes of its name there, and fetches what comes of it. Returns the job's
/// report, or nothing where nobody is to wait.
pub(super) fn through(
    server: &Http,
    errand: &Errand<'_>,
    interrupt: &Interrupt,
    body: impl FnOnce(&str) -> Result<Value, Failure>,
) -> Result<Option<Value>, Failure> {
    let Errand {
        hand_over,
        picture,
        output,
        json,
        quiet,
    } = *errand;
    let file = read_picture("the picture", picture)?;
    if !quiet && !json {
        console::note(&format!("handed over to the server at {}", server.url()));
    }
    let media_type = lowtide_media::format_of(&file).map_or("image/png", Format::media_type);
    let told = server.upload("/v1/inputs", media_type, &file)?;
    let input = told["input"].as_str();
    let input = input.context("the server's answer names no input")?;
    let mut body = body(input)?;
    if let Some(priority) = hand_over.priority {
        body["priority"] = json!(priority.name());
    }
    let accepted = server.post("/v1/jobs", &body)?;
    let id = accepted["id"].as_str();
    let id = id.context("the server's answer names no job")?;
    if hand_over.no_wait {
        let line = match json {
            true => accepted.to_string(),
            false => id.to_owned(),
        };
        console::print(&format!("{line}\n"))?;
        return Ok(None);
    }
    let job = wait(server, id, json || quiet, interrupt)?;
    fetch(server, &job, &[output.to_owned()])?;
    let mut report = match job["report"].is_object() {
        true => job["report"].clone(),
        false => Value::Object(Map::new()),
    };
    report["server"] = json!(server.url());
    report["job"] = job["id"].clone();
    Ok(Some(report))
}
