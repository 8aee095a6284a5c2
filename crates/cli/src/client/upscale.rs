//! `lowtide upscale` through a running server, where there is one and nothing is asked that only this process can do.

use std::time::Instant;

use serde_json::json;

use super::Http;
use super::hand_over::{first_given, server_for};
use super::picture::{self, Errand};
use crate::args::{UpscaleArgs, UpscaleVerb};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::upscale;

/// Makes the picture larger, here or there.
pub(crate) fn upscale(verb: &UpscaleVerb) -> Result<(), Failure> {
    let UpscaleVerb { args, hand_over } = verb;
    let quiet = args.quiet || args.json;
    match server_for(hand_over, local_option(args), args.model.as_deref(), quiet)? {
        None => upscale::run(args),
        Some(server) => through(&server, verb),
    }
}

/// An option that only means something in this process.
fn local_option(args: &UpscaleArgs) -> Option<&'static str> {
    first_given(&[
        ("--budget", args.budget.is_some()),
        ("--reserve", args.reserve.is_some()),
        ("--threads", args.threads.is_some()),
        ("--precision", args.precision.is_some()),
        ("--device", args.device.is_some()),
    ])
}

fn through(server: &Http, verb: &UpscaleVerb) -> Result<(), Failure> {
    let UpscaleVerb { args, hand_over } = verb;
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    let output = upscale::output(args)?;
    let request = |input: &str| {
        let request = upscale::request(args, &output, input)?;
        let mut body = json!({ "kind": upscale::KIND, "request": request });
        if let Some(model) = &args.model {
            body["model"] = json!(model);
        }
        Ok(body)
    };
    let errand = Errand {
        hand_over,
        picture: &args.picture,
        output: &output,
        json: args.json,
        quiet: args.quiet,
    };
    match picture::through(server, &errand, &interrupt, request)? {
        Some(report) => upscale::tell(args, &output, &report, started),
        None => Ok(()),
    }
}
