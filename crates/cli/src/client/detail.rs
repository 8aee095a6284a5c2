//! `lowtide detail` through a running server, where there is one and nothing is asked that only this process can do.

use std::time::Instant;

use anyhow::Context;
use lowtide_media::Format;
use serde_json::{Map, Value, json};

use super::hand_over::{explicit, fetch, offers, wait};
use super::{Http, find};
use crate::args::{DetailArgs, DetailVerb};
use crate::console;
use crate::detail;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::request::read_picture;

/// Repairs the picture, here or there.
pub(crate) fn detail(verb: &DetailVerb) -> Result<(), Failure> {
    let DetailVerb { args, hand_over } = verb;
    let here = |why: String| {
        if !args.quiet && !args.json {
            console::note(&format!("runs here: {why}"));
        }
        detail::run(args)
    };
    let asked = explicit(hand_over);
    if let Some(option) = local_option(args) {
        if let Some(asked) = asked {
            return Err(Failure::mistake(format!(
                "{option} is for a run in this process; leave it out, or {asked}"
            )));
        }
        return match hand_over.local {
            true => detail::run(args),
            false => here(format!("{option} is for this process")),
        };
    }
    if hand_over.local {
        return detail::run(args);
    }
    let Some(server) = find(&hand_over.server)? else {
        return match asked {
            Some(asked) => Err(Failure::mistake(format!(
                "no server is running; start one with 'lowtide serve', or {asked}"
            ))),
            None => here("no server is running".to_owned()),
        };
    };
    if asked.is_none() && !offers(&server, &args.model)? {
        return here(format!(
            "the server at {} has no model '{}'",
            server.url(),
            args.model
        ));
    }
    through(&server, verb)
}

/// An option that only means something in this process; so does a detector that is a file here.
fn local_option(args: &DetailArgs) -> Option<&'static str> {
    let is_file = |pass: &Value| {
        let name = pass["detector"].as_str().or(pass["ad_model"].as_str());
        name.is_some_and(|name| std::path::Path::new(name).is_file())
    };
    let options = [
        ("--budget", args.budget.is_some()),
        ("--reserve", args.reserve.is_some()),
        ("--threads", args.threads.is_some()),
        ("--precision", args.precision.is_some()),
        ("a detector's file", args.repair.detail.iter().any(is_file)),
    ];
    let mut given = options.into_iter().filter(|(_, given)| *given);
    given.next().map(|(name, _)| name)
}

fn through(server: &Http, verb: &DetailVerb) -> Result<(), Failure> {
    let DetailVerb { args, hand_over } = verb;
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    let output = detail::output(args)?;
    let file = read_picture("the picture", &args.picture)?;
    if !args.quiet && !args.json {
        console::note(&format!("handed over to the server at {}", server.url()));
    }
    let media_type = lowtide_media::format_of(&file).map_or("image/png", Format::media_type);
    let told = server.upload("/v1/inputs", media_type, &file)?;
    let input = told["input"].as_str();
    let input = input.context("the server's answer names no input")?;
    let request = detail::request(args, &output, input)?;
    let mut body = json!({ "kind": detail::KIND, "model": args.model, "request": request });
    if let Some(priority) = hand_over.priority {
        body["priority"] = json!(priority.name());
    }
    let accepted = server.post("/v1/jobs", &body)?;
    let id = accepted["id"].as_str();
    let id = id.context("the server's answer names no job")?;
    if hand_over.no_wait {
        let line = match args.json {
            true => accepted.to_string(),
            false => id.to_owned(),
        };
        return Ok(console::print(&format!("{line}\n"))?);
    }
    let job = wait(server, id, args.json || args.quiet, &interrupt)?;
    fetch(server, &job, std::slice::from_ref(&output))?;
    let mut report = match job["report"].is_object() {
        true => job["report"].clone(),
        false => Value::Object(Map::new()),
    };
    report["server"] = json!(server.url());
    report["job"] = job["id"].clone();
    detail::tell(args, &output, &report, started)
}
