//! What a chain took: seconds of work, of loading, of waiting for weights, step by step and in all.

use std::time::Duration;

use lowtide_core::{Bytes, StepPlan};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Makings;
use super::look::Look;

/// What a step took so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Tally {
    /// Seconds it had the device, waiting included.
    pub(super) total_s: f64,
    /// Seconds of them in which it waited for weights.
    pub(super) waiting_s: f64,
    /// Seconds in which its weights were read, here or ahead, whoever waited.
    pub(super) loading_s: f64,
    /// Bytes of weights it read itself.
    pub(super) bytes_read: u64,
    /// Bytes of its weights that were read ahead of it.
    pub(super) bytes_ahead: u64,
    /// Pictures it made.
    pub(super) pictures: usize,
    /// What the plan said when it began.
    pub(super) planned: Value,
    /// The reports of its runs.
    pub(super) reports: Vec<Value>,
}

impl Tally {
    /// A run of the step is over: what it says of itself.
    pub(super) fn add(&mut self, report: &Value, pictures: usize) {
        let number = |field: &str| report[field].as_f64().unwrap_or(0.0);
        let waited = number("load_seconds");
        self.waiting_s += waited;
        // A kind that does not say how long it read, read while it waited.
        self.loading_s += report["reading_seconds"].as_f64().unwrap_or(waited);
        self.bytes_read += report["bytes_read"].as_u64().unwrap_or(0);
        self.pictures += pictures;
        self.reports.push(report.clone());
    }

    pub(super) fn arrived(&mut self, bytes: Bytes, reading: Duration) {
        self.bytes_ahead += bytes.0;
        self.loading_s += reading.as_secs_f64();
    }

    fn work_s(&self) -> f64 {
        (self.total_s - self.waiting_s).max(0.0)
    }

    fn seconds(&self) -> Value {
        json!({
            "total": self.total_s,
            "work": self.work_s(),
            "loading": self.loading_s,
            "waiting": self.waiting_s,
        })
    }
}

/// What is planned for a step; other steps are counted from `first`.
pub(super) fn planned(
    (kind, model): (&str, &str),
    (first, plan): (usize, &StepPlan),
    names: &[String],
) -> Value {
    let beside: Map<String, Value> = plan
        .beside
        .iter()
        .map(|share| (names[share.model].clone(), share.bytes.0.into()))
        .collect();
    let ahead: Vec<Value> = plan
        .ahead
        .iter()
        .map(
            |ahead| json!({ "step": first + ahead.step + 1, "bytes": ahead.bytes.0, "read": ahead.read.0 }),
        )
        .collect();
    json!({
        "kind": kind,
        "model": model,
        "there": plan.there.0,
        "bytes_read": plan.reads.0,
        "beside": beside,
        "ahead": ahead,
        "peak": plan.peak.0,
        "seconds": plan.seconds,
        "loading_seconds": plan.loading_s,
        "waiting_seconds": plan.waiting_s,
    })
}

/// The report of a whole chain.
pub(super) fn whole(makings: &Makings, look: &Look, tallies: &[Tally]) -> Value {
    let sum = |of: fn(&Tally) -> f64| tallies.iter().map(of).sum::<f64>();
    let bytes = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let all = makings.links.iter().zip(tallies).enumerate();
    let steps = all.clone().map(|(k, (link, tally))| {
        json!({
            "step": k + 1,
            "kind": link.kind,
            "model": link.model,
            "pictures": tally.pictures,
            "seconds": tally.seconds(),
            "bytes_read": tally.bytes_read,
            "bytes_ahead": tally.bytes_ahead,
            "planned": tally.planned,
            "reports": tally.reports,
        })
    });
    let seconds: Map<String, Value> = all
        .clone()
        .map(|(k, (link, tally))| (format!("{} {}", k + 1, link.kind), tally.total_s.into()))
        .collect();
    let lists = |field: &'static str| -> Vec<Value> {
        let reports = tallies.iter().flat_map(|tally| &tally.reports);
        let lists = reports.filter_map(|report| report[field].as_array());
        lists.flatten().cloned().collect()
    };
    let approximate = lists("approximate");
    let seeds = tallies.first().and_then(|tally| tally.reports.first());
    json!({
        "chain": {
            "steps": steps.collect::<Vec<_>>(),
            "seconds": {
                "total": sum(|tally| tally.total_s),
                "work": sum(Tally::work_s),
                "loading": sum(|tally| tally.loading_s),
                "waiting": sum(|tally| tally.waiting_s),
            },
        },
        "seeds": seeds.map_or(Value::Null, |report| report["seeds"].clone()),
        "model": makings.names.join(" + "),
        "seconds": seconds,
        "load_seconds": sum(|tally| tally.waiting_s),
        "reading_seconds": sum(|tally| tally.loading_s),
        "bytes_read": bytes(|tally| tally.bytes_read + tally.bytes_ahead),
        "rungs_taken": tallies.iter().flat_map(|tally| &tally.reports)
            .filter_map(|report| report["rungs_taken"].as_u64()).sum::<u64>(),
        "memory": {
            "budget": look.budget.total.0,
            "in_use_before": look.budget.in_use.0,
            "predicted_peak": peaks(tallies, "predicted_peak"),
            "measured_peak": peaks(tallies, "measured_peak"),
        },
        "quality": if approximate.is_empty() { "exact" } else { "approximate" },
        "approximate": approximate,
        "notes": lists("notes"),
        "reasons": lists("reasons"),
    })
}

/// Peaks by phase, each named by its step.
fn peaks(tallies: &[Tally], which: &str) -> Map<String, Value> {
    let mut all = Map::new();
    for (k, tally) in tallies.iter().enumerate() {
        for report in &tally.reports {
            let phases = report["memory"][which].as_object();
            for (phase, bytes) in phases.into_iter().flatten() {
                all.insert(format!("{} {phase}", k + 1), bytes.clone());
            }
        }
    }
    all
}
