//! `lowtide pull --server`: has a server fetch a model, and shows how far it is.

use std::sync::mpsc::RecvTimeoutError;

use anyhow::anyhow;
use lowtide_hub::Wanted;
use serde_json::{Value, json};

use super::Http;
use super::hand_over::{LOOK_EVERY, listen};
use crate::args::PullArgs;
use crate::console;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::pull::Meter;

/// Has the server fetch it. Ctrl-C ends the looking on alone: others may wait for the same model.
pub(crate) fn pull(args: &PullArgs, url: &str) -> Result<(), Failure> {
    let server = Http::new(url, "--server")?;
    let interrupt = Interrupt::install()?;
    let wanted: Wanted = args.model.parse()?;
    let model = wanted.to_string();
    let meter = match (args.json, args.quiet) {
        (true, _) => Meter::json(),
        (false, quiet) => Meter::on_terminal(!quiet),
    };
    // Listened to before it begins, so that a short one is not missed.
    let events = listen(&server, "/v1/events")?;
    let path = format!("/v1/models/{}/pull", model.replace('/', "%2F"));
    let mut now = server.post(&path, &json!({}))?;
    let mut shown = Shown::default();
    loop {
        if now["model"] == model.as_str() && now["job"].is_null() {
            shown.show(&meter, &now);
            match now["state"].as_str() {
                Some("done") => break,
                Some("failed") => {
                    meter.finish();
                    let why = now["error"].as_str().unwrap_or("no reason is known");
                    return Err(Failure::Other(anyhow!("{why}")));
                }
                Some("stopped") => {
                    meter.finish();
                    let text = format!("somebody stopped it; what came of {model} is kept");
                    return Err(Failure::Other(anyhow!(text)));
                }
                _ => {}
            }
        }
        now = loop {
            if let Err(stop) = interrupt.check() {
                meter.finish();
                if !args.quiet && !args.json {
                    console::note(&format!("the server goes on fetching {model}"));
                }
                return Err(stop);
            }
            match events.recv_timeout(LOOK_EVERY) {
                Ok(event) => break event,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    meter.finish();
                    let text = format!(
                        "the server at {} ended; it goes on when it is asked again",
                        server.url()
                    );
                    return Err(Failure::Other(anyhow!(text)));
                }
            }
        };
    }
    meter.finish();
    if args.json {
        let line = json!({ "event": "pulled", "model": model, "server": server.url(), "bytes": now["bytes"] });
        return Ok(console::print(&format!("{line}\n"))?);
    }
    if !args.quiet {
        console::note(&format!("{model} is at the server {}", server.url()));
    }
    Ok(())
}

/// What was shown of a download.
#[derive(Default)]
struct Shown {
    planned: bool,
    there: u64,
}

impl Shown {
    fn show(&mut self, meter: &Meter, now: &Value) {
        let Some(bytes) = now["bytes"].as_u64() else {
            return;
        };
        let there = now["there"].as_u64().unwrap_or_default();
        if !std::mem::replace(&mut self.planned, true) {
            meter.plan(bytes, there);
            self.there = there;
        }
        match there.checked_sub(self.there) {
            Some(more) => meter.add(more),
            None => meter.lose(self.there - there),
        }
        self.there = there;
    }
}
