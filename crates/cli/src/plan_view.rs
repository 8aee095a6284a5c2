//! A plan as a table with sentences, and as JSON.

use crate::console::Table;
use lowtide_core::{PhasePlan, Placement, Plan};
use serde_json::{Value, json};

/// The plan for people: a line a phase, the reasons, the whole.
pub(crate) fn text(plan: &Plan) -> String {
    let mut table = Table::new(&[1, 2, 3, 4, 5, 6]);
    table.row([
        "phase",
        "resident",
        "weights",
        "activations",
        "peak",
        "reads",
        "seconds",
        "mode",
    ]);
    for phase in &plan.phases {
        let (resident, blocks) = resident_of(phase);
        table.row([
            phase.name.clone(),
            format!("{resident}/{blocks}"),
            phase.weights.to_string(),
            phase.activation.to_string(),
            phase.peak.to_string(),
            phase.bytes_moved.to_string(),
            format!("{:.2}", phase.seconds),
            if phase.exact {
                phase.mode.clone()
            } else {
                format!("{} (approximate)", phase.mode)
            },
        ]);
    }
    let mut text = format!(
        "{}: budget {}, {} of it in use before\n\n",
        plan.model, plan.budget.total, plan.budget.in_use
    );
    text.push_str(&table.text());
    text.push('\n');
    for phase in &plan.phases {
        text.push_str(&format!("  {}\n", phase.reason));
    }
    let quality = if plan.approximate.is_empty() {
        "exact: the bytes of the picture do not depend on the budget".to_owned()
    } else {
        format!("approximate: {}", plan.approximate.join(", "))
    };
    text.push_str(&format!(
        "\n  peak {}, about {:.1} s, {quality}\n",
        plan.peak, plan.seconds
    ));
    text
}

/// The plan for programs; sizes in bytes.
pub(crate) fn json(plan: &Plan) -> Value {
    let phases: Vec<Value> = plan.phases.iter().map(phase_json).collect();
    json!({
        "model": plan.model,
        "budget": plan.budget.total.0,
        "in_use": plan.budget.in_use.0,
        "peak": plan.peak.0,
        "seconds": plan.seconds,
        "approximate": plan.approximate,
        "phases": phases,
    })
}

/// The sentences, one a phase.
pub(crate) fn reasons(plan: &Plan) -> Vec<String> {
    plan.phases
        .iter()
        .map(|phase| phase.reason.to_string())
        .collect()
}

fn phase_json(phase: &PhasePlan) -> Value {
    let (resident, blocks) = resident_of(phase);
    let vars: serde_json::Map<String, Value> = phase
        .vars
        .iter()
        .map(|(name, value)| (name.to_string(), Value::from(value)))
        .collect();
    let placement = match &phase.placement {
        Placement::Resident => "resident",
        Placement::Streamed { .. } => "streamed",
        Placement::Host => "host",
    };
    json!({
        "name": phase.name,
        "mode": phase.mode,
        "exact": phase.exact,
        "placement": placement,
        "resident_blocks": resident,
        "blocks": blocks,
        "slots": phase.slots.iter().map(|slot| slot.0).collect::<Vec<_>>(),
        "vars": vars,
        "visits": phase.visits,
        "weights": phase.weights.0,
        "activations": phase.activation.0,
        "held": phase.held.0,
        "peak": phase.peak.0,
        "seconds": phase.seconds,
        "stall_seconds": phase.stall_seconds,
        "bytes_moved": phase.bytes_moved.0,
    })
}

/// How many blocks stay, and how many there are.
fn resident_of(phase: &PhasePlan) -> (usize, usize) {
    (phase.reason.resident_blocks, phase.reason.blocks)
}
