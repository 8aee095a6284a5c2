//! `lowtide detail` through a running server, where there is one and nothing is asked that only this process can do.

use std::time::Instant;

use serde_json::{Value, json};

use super::Http;
use super::hand_over::{first_given, server_for};
use super::picture::{self, Errand};
use crate::args::{DetailArgs, DetailVerb};
use crate::detail;
use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// Repairs the picture, here or there.
pub(crate) fn detail(verb: &DetailVerb) -> Result<(), Failure> {
    let DetailVerb { args, hand_over } = verb;
    let quiet = args.quiet || args.json;
    match server_for(hand_over, local_option(args), Some(&args.model), quiet)? {
        None => detail::run(args),
        Some(server) => through(&server, verb),
    }
}

/// An option that only means something in this process; so does a detector that is a file here.
fn local_option(args: &DetailArgs) -> Option<&'static str> {
    let is_file = |pass: &Value| {
        let name = pass["detector"].as_str().or(pass["ad_model"].as_str());
        name.is_some_and(|name| std::path::Path::new(name).is_file())
    };
    first_given(&[
        ("--budget", args.budget.is_some()),
        ("--reserve", args.reserve.is_some()),
        ("--threads", args.threads.is_some()),
        ("--precision", args.precision.is_some()),
        ("--device", args.device.is_some()),
        ("a detector's file", args.repair.detail.iter().any(is_file)),
    ])
}

fn through(server: &Http, verb: &DetailVerb) -> Result<(), Failure> {
    let DetailVerb { args, hand_over } = verb;
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    let output = detail::output(args)?;
    let request = |input: &str| {
        let request = detail::request(args, &output, input)?;
        Ok(json!({ "kind": detail::KIND, "model": args.model, "request": request }))
    };
    let errand = Errand {
        hand_over,
        picture: &args.picture,
        output: &output,
        json: args.json,
        quiet: args.quiet,
    };
    match picture::through(server, &errand, &interrupt, request)? {
        Some(report) => detail::tell(args, &output, &report, started),
        None => Ok(()),
    }
}
