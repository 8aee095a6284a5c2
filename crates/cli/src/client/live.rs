//! `lowtide ps`: models, memory and what runs, live; `lowtide explain`: why.

use std::io::IsTerminal;
use std::time::Duration;

use lowtide_core::Bytes;
use lowtide_jobs::report::{ModelStatus, SessionStatus, Status};
use serde_json::Value;

use super::{Http, found};
use crate::args::{ExplainArgs, PsArgs};
use crate::console::{self, Table};
use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// How often the picture is drawn anew.
const EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether somebody asked to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Characters of the memory bar.
const BAR_WIDTH: usize = 32;
/// Clears a terminal and begins at its top.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows what a server does, again and again on a terminal.
pub(crate) fn ps(args: &PsArgs) -> Result<(), Failure> {
    let server = found(&args.server)?;
    let look = || server.get("/gpu/stats?detail=1");
    if args.json {
        return Ok(console::print(&format!("{}\n", look()?))?);
    }
    if args.once || !std::io::stdout().is_terminal() {
        return Ok(console::print(&view(&server, &look()?))?);
    }
    let interrupt = Interrupt::install()?;
    loop {
        let text = view(&server, &look()?);
        console::print(&format!("{CLEAR}{text}\n  Ctrl-C ends this view\n"))?;
        let mut waited = Duration::ZERO;
        while waited < EVERY {
            // To be asked to stop is how this ends.
            if interrupt.check().is_err() {
                return Ok(());
            }
            std::thread::park_timeout(LOOK_EVERY);
            waited += LOOK_EVERY;
        }
    }
}

fn view(server: &Http, stats: &Value) -> String {
    let workers = stats["detail"]["workers"].as_array();
    let workers = workers.map(Vec::as_slice).unwrap_or_default();
    if workers.is_empty() {
        return format!("{}: no worker has said anything yet\n", server.url());
    }
    let mut text = String::new();
    for worker in workers {
        let name = worker["worker"].as_str().unwrap_or("worker");
        let status: Status = serde_json::from_value(worker["status"].clone()).unwrap_or_default();
        if worker["alive"].as_bool() == Some(false) {
            text.push_str(&format!("{name}: gone\n"));
            continue;
        }
        text.push_str(&worker_text(name, &status));
    }
    text
}

fn worker_text(name: &str, status: &Status) -> String {
    let state = format!("{:?}", status.state).to_lowercase();
    let memory = &status.memory;
    let share = memory.allocated as f64 / memory.budget.max(1) as f64;
    let filled = ((share * BAR_WIDTH as f64).round() as usize).min(BAR_WIDTH);
    let mut text = format!(
        "{name}: {state}, {:.0} % busy\n  {}{} {} of {}\n",
        status.utilisation.now * 100.0,
        "█".repeat(filled),
        "░".repeat(BAR_WIDTH - filled),
        Bytes(memory.allocated),
        Bytes(memory.budget)
    );
    if !status.models.is_empty() {
        let mut table = Table::new(&[2]);
        for model in &status.models {
            table.row(model_row(model));
        }
        text.push_str(&table.text());
    }
    if !status.sessions.is_empty() {
        let mut table = Table::new(&[4]);
        for session in &status.sessions {
            table.row(session_row(session));
        }
        text.push_str(&table.text());
    }
    if !status.decision.is_empty() {
        text.push_str(&format!("  {}\n", status.decision));
    }
    text
}

/// ⚪ unloaded, 🟡 in host memory, 🟢 on the device.
fn light(residency: &str) -> &'static str {
    match residency {
        "device" => "🟢",
        "host" => "🟡",
        _ => "⚪",
    }
}

fn model_row(model: &ModelStatus) -> [String; 4] {
    let held = model.device_bytes + model.shared_bytes + model.host_bytes;
    let life = match (&model.moving_to, model.in_flight, model.idle_s) {
        (Some(to), _, _) => format!("on its way to {to}"),
        (None, 1.., _) => format!("{} in flight", model.in_flight),
        (None, 0, Some(idle)) => match model.leaves_in_s {
            Some(left) => format!("idle for {idle:.0} s, leaves in {left:.0} s"),
            None => format!("idle for {idle:.0} s"),
        },
        (None, 0, None) => String::new(),
    };
    [
        format!("{} {}", light(&model.residency), model.name),
        model.residency.clone(),
        format!("{} of {}", Bytes(held), Bytes(model.bytes)),
        life,
    ]
}

fn session_row(session: &SessionStatus) -> [String; 6] {
    let batch = match session.jobs.len() {
        0 | 1 => String::new(),
        count => format!("batch of {count}"),
    };
    [
        session.jobs.first().cloned().unwrap_or_default(),
        session.model.clone(),
        session.state.clone(),
        format!("{} {}/{}", session.phase, session.step, session.steps),
        format!("{:.0} s left", session.remaining_s),
        batch,
    ]
}

/// Prints why things are as they are, and what more memory would buy.
pub(crate) fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    let server = found(&args.server)?;
    let more = args
        .more
        .map_or_else(String::new, |Bytes(more)| format!("?more={more}"));
    let answer = server.get(&format!("/gpu/explain{more}"))?;
    let text = match args.json {
        true => format!("{answer}\n"),
        false => explained(&answer),
    };
    Ok(console::print(&text)?)
}

fn explained(answer: &Value) -> String {
    let mut lines: Vec<&str> = answer["summary"].as_str().into_iter().collect();
    for list in ["explanations", "what_if"] {
        let items = answer[list].as_array().into_iter().flatten();
        lines.extend(items.filter_map(|item| item["text"].as_str()));
    }
    lines.dedup();
    lines.iter().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use lowtide_jobs::report::Memory;

    use super::*;

    #[test]
    fn a_worker_in_a_few_lines() {
        let model = |residency: &str| ModelStatus {
            name: "demo".to_owned(),
            residency: residency.to_owned(),
            idle_s: Some(12.0),
            leaves_in_s: Some(588.0),
            bytes: 4 << 20,
            device_bytes: 2 << 20,
            ..ModelStatus::default()
        };
        let status = Status {
            memory: Memory {
                budget: 8 << 20,
                allocated: 4 << 20,
                ..Memory::default()
            },
            models: vec![model("device"), model("host"), model("unloaded")],
            sessions: vec![SessionStatus {
                jobs: vec!["a".to_owned(), "b".to_owned()],
                phase: "denoise".to_owned(),
                step: 3,
                steps: 20,
                ..SessionStatus::default()
            }],
            decision: "it waits".to_owned(),
            ..Status::default()
        };
        let text = worker_text("cpu", &status);
        for part in [
            "🟢",
            "🟡",
            "⚪",
            "4.0 MiB of 8.0 MiB",
            "leaves in 588 s",
            "denoise 3/20",
            "batch of 2",
            "it waits",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.matches('█').count(), BAR_WIDTH / 2);
    }
}
