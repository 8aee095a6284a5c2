//! `lowtide upscale` through a running server, where there is one and nothing is asked that only this process can do.

use std::time::Instant;

use anyhow::Context;
use lowtide_media::Format;
use serde_json::{Value, json};

use super::hand_over::{explicit, fetch, offers, wait};
use super::{Http, find};
use crate::args::{UpscaleArgs, UpscaleVerb};
use crate::console;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::request::read_picture;
use crate::upscale;

/// Makes the picture larger, here or there.
pub(crate) fn upscale(verb: &UpscaleVerb) -> Result<(), Failure> {
    let UpscaleVerb { args, hand_over } = verb;
    let here = |why: String| {
        if !args.quiet && !args.json {
            console::note(&format!("runs here: {why}"));
        }
        upscale::run(args)
    };
    let asked = explicit(hand_over);
    if let Some(option) = local_option(args) {
        if let Some(asked) = asked {
            return Err(Failure::mistake(format!(
                "{option} is for a run in this process; leave it out, or {asked}"
            )));
        }
        return match hand_over.local {
            true => upscale::run(args),
            false => here(format!("{option} is for this process")),
        };
    }
    if hand_over.local {
        return upscale::run(args);
    }
    let Some(server) = find(&hand_over.server)? else {
        return match asked {
            Some(asked) => Err(Failure::mistake(format!(
                "no server is running; start one with 'lowtide serve', or {asked}"
            ))),
            None => here("no server is running".to_owned()),
        };
    };
    // Without a name the server has its own idea of which network is meant.
    if let Some(model) = &args.model
        && asked.is_none()
        && !offers(&server, model)?
    {
        return here(format!(
            "the server at {} has no model '{model}'",
            server.url()
        ));
    }
    through(&server, verb)
}

/// An option that only means something in this process.
fn local_option(args: &UpscaleArgs) -> Option<&'static str> {
    let options = [
        ("--budget", args.budget.is_some()),
        ("--reserve", args.reserve.is_some()),
        ("--threads", args.threads.is_some()),
        ("--precision", args.precision.is_some()),
    ];
    let mut given = options.into_iter().filter(|(_, given)| *given);
    given.next().map(|(name, _)| name)
}

fn through(server: &Http, verb: &UpscaleVerb) -> Result<(), Failure> {
    let UpscaleVerb { args, hand_over } = verb;
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    let output = upscale::output(args)?;
    let file = read_picture("the picture", &args.picture)?;
    if !args.quiet && !args.json {
        console::note(&format!("handed over to the server at {}", server.url()));
    }
    let media_type = lowtide_media::format_of(&file).map_or("image/png", Format::media_type);
    let told = server.upload("/v1/inputs", media_type, &file)?;
    let input = told["input"].as_str();
    let input = input.context("the server's answer names no input")?;
    let mut body = json!({
        "kind": upscale::KIND, "request": upscale::request(args, &output, input)?,
    });
    if let Some(model) = &args.model {
        body["model"] = json!(model);
    }
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
        false => Value::Object(serde_json::Map::new()),
    };
    report["server"] = json!(server.url());
    report["job"] = job["id"].clone();
    upscale::tell(args, &output, &report, started)
}
