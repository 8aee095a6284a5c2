//! Verbs that make one picture of another: how such a job is handed over.

use std::path::Path;

use anyhow::Context;
use lowtide_media::Format;
use serde_json::{Map, Value, json};

use super::Http;
use super::hand_over::{fetch, wait};
use crate::args::HandOverArgs;
use crate::console;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::request::read_picture;

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
