//! Why the device is as busy, and as full, as it is: sentences with their numbers.

use lowtide_core::{Bytes, Cause, PhasePlan, Plan};
use lowtide_jobs::report::{Explanation, ModelStatus};
use serde_json::json;

/// From this share of its time on, waiting for weights is worth a sentence.
const WAITING_SHARE_MIN: f64 = 0.1;

/// What a worker explains.
pub(crate) struct View<'a> {
    /// The plan of the session that steps, and how long that takes yet.
    pub(crate) active: Option<(&'a str, Option<&'a Plan>)>,
    pub(crate) parked: usize,
    pub(crate) models: &'a [ModelStatus],
    pub(crate) budget: Bytes,
    pub(crate) in_use: Bytes,
    pub(crate) waiting: usize,
    pub(crate) decision: &'a str,
    pub(crate) rungs: u64,
    pub(crate) paused: bool,
    /// A hand holds the queue: whether jobs wait in it is not looked at.
    pub(crate) held: bool,
}

/// The sentences, the most important first.
pub(crate) fn explain(view: &View<'_>) -> Vec<Explanation> {
    let mut said = Vec::new();
    if view.paused {
        let text = "The worker is paused by hand: it begins no job until it is resumed.";
        said.push(Explanation::new("paused", text.to_owned(), json!({})));
    }
    match view.active {
        Some((model, Some(plan))) => running(model, plan, &mut said),
        Some((model, None)) => {
            let text = format!("A job runs on {model}, which needs no plan.");
            said.push(Explanation::new("running", text, json!({ "model": model })));
        }
        None if view.waiting > 0 => {
            let text = format!("{} jobs wait: {}", view.waiting, view.decision);
            let values = json!({ "waiting": view.waiting, "decision": view.decision });
            said.push(Explanation::new("waiting", text, values));
        }
        None if view.held => {
            let text = "The device is idle because the queue is held by hand.".to_owned();
            said.push(Explanation::new("idle_held", text, json!({})));
        }
        None => {
            let text = "The device is idle because no job waits.".to_owned();
            said.push(Explanation::new("idle", text, json!({})));
        }
    }
    if view.parked > 0 {
        let text = format!(
            "{} sessions are parked and go on by themselves.",
            view.parked
        );
        said.push(Explanation::new(
            "parked",
            text,
            json!({ "sessions": view.parked }),
        ));
    }
    said.extend(view.models.iter().filter_map(resting));
    if view.rungs > 0 {
        let text = format!(
            "Memory was refused {} times although the plan said it would do; each time a smaller rung was taken.",
            view.rungs
        );
        said.push(Explanation::new(
            "rungs",
            text,
            json!({ "times": view.rungs }),
        ));
    }
    let text = format!(
        "{} of the budget of {} are in use.",
        view.in_use, view.budget
    );
    let values = json!({ "in_use": view.in_use.0, "budget": view.budget.0 });
    said.push(Explanation::new("budget", text, values));
    said
}

/// The phases of a running job: the one that takes longest first, and what it waits for.
fn running(model: &str, plan: &Plan, said: &mut Vec<Explanation>) {
    let longest = plan
        .phases
        .iter()
        .max_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let Some(longest) = longest else { return };
    let waiting = longest.stall_seconds / longest.seconds.max(1e-9);
    if waiting >= WAITING_SHARE_MIN {
        said.push(waits(model, longest, waiting));
    }
    said.push(placed(model, longest));
    for phase in plan
        .phases
        .iter()
        .filter(|phase| phase.name != longest.name)
    {
        said.push(placed(model, phase));
    }
}

/// Computing that waits for copies is why a device looks idle while a job runs.
fn waits(model: &str, phase: &PhasePlan, share: f64) -> Explanation {
    let moved = phase.bytes_moved;
    let text = format!(
        "{model} waits for weights in {:.0} % of the {} phase: {moved} are copied in {} passes because the budget has no \
         room to keep them.",
        share * 100.0,
        phase.name,
        phase.visits
    );
    let values = json!({ "model": model, "phase": phase.name, "share": share, "moved": moved.0,
                         "passes": phase.visits });
    Explanation::new("waits_for_weights", text, values)
}

/// Where a phase's blocks are, as the planner says it.
fn placed(model: &str, phase: &PhasePlan) -> Explanation {
    let reason = &phase.reason;
    let code = match reason.cause {
        Cause::AllFit => "all_resident",
        Cause::UsedOnce => "streams_once",
        Cause::Hidden => "streams_hidden",
        Cause::Budget => "streams",
        Cause::Asked => "streams_as_asked",
    };
    let mut values = json!({
        "model": model,
        "phase": phase.name,
        "blocks": reason.blocks,
        "resident_blocks": reason.resident_blocks,
        "resident": reason.resident.0,
        "component": reason.component.0,
        "budget": reason.budget.0,
        "in_use": reason.in_use.0,
        "for_weights": reason.for_weights().0,
        "activation": reason.activation.0,
        "passes": reason.visits,
        "seconds": phase.seconds,
        "stall_seconds": phase.stall_seconds,
        "exact": phase.exact,
    });
    if let Some(more) = reason.more {
        values["more_bytes"] = json!(more.bytes.0);
        values["more_saves_s"] = json!(more.seconds);
    }
    Explanation::new(code, reason.to_string(), values)
}

/// A model that holds memory while no job uses it.
fn resting(model: &ModelStatus) -> Option<Explanation> {
    let held = Bytes(model.device_bytes + model.shared_bytes);
    if model.in_flight > 0 || held == Bytes::ZERO {
        return None;
    }
    let idle_s = model.idle_s.unwrap_or(0.0);
    let (until, leaves) = match model.leaves_in_s {
        Some(leaves) => (format!("leaves in {leaves:.0} s"), Some(leaves)),
        None => ("stays".to_owned(), None),
    };
    let text = format!(
        "{} holds {held} for the next job: idle {idle_s:.0} s, {until} (keep-alive {}).",
        model.name, model.keep_alive
    );
    let values = json!({ "model": model.name, "held": held.0, "idle_s": idle_s, "leaves_in_s": leaves,
                         "keep_alive": model.keep_alive });
    Some(Explanation::new("kept", text, values))
}
