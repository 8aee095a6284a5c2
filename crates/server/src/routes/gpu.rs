//! Memory: now and over time.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::Routes;
use crate::answer;
use crate::app::App;
use crate::fleet::Worker;
use crate::incoming::Asked;
use crate::openapi::{Operation, reference};
use crate::refusal::Refusal;
use crate::schemas;

/// The unit of the three figures that others show, too.
const MB: f64 = 1e6;

/// Minutes of the chart where nobody says how many, and at most.
const MINUTES: (u64, u64) = (10, 60);

pub(super) fn routes(routes: Routes) -> Routes {
    let stats = Operation::new("memory", "Memory in MB, all workers together")
        .query(
            "detail",
            schemas::flag(),
            "1: every worker, with its models and sessions",
        )
        .answers(200, "The figures", reference("GpuStats"));
    let history = Operation::new("memory", "Memory over time: a sample a second")
        .query(
            "minutes",
            schemas::whole(1, MINUTES.1),
            "How far back; 10 where left out",
        )
        .answers(200, "The samples, oldest first", reference("GpuHistory"));
    routes
        .get("/gpu/stats", stats_now, stats)
        .get("/gpu/history", stats_then, history)
}

async fn stats_now(State(app): State<App>, mut asked: Asked) -> Result<Response, Refusal> {
    let detail = asked.flag("detail")?;
    asked.done()?;
    app.blocking(move |app| {
        let (fleet, now) = (app.fleet()?, app.now());
        // Bytes to MB with three digits behind the point.
        let mb = |bytes: u64| (bytes as f64 / MB * 1e3).round() / 1e3;
        let mut answer = json!({
            "vram_allocated": mb(fleet.memory_sum(|memory| memory.allocated)),
            "vram_reserved": mb(fleet.memory_sum(|memory| memory.reserved)),
            "vram_total": mb(fleet.memory_sum(|memory| memory.total)),
        });
        if detail {
            let worker = |worker: &Worker| {
                json!({
                    "worker": worker.id,
                    "alive": worker.alive,
                    "seen_ms": worker.seen.0,
                    "device": worker.cards.device,
                    "cards": { "device": worker.cards.device, "kinds": worker.cards.kinds },
                    "status": worker.status,
                })
            };
            let workers: Vec<Value> = fleet.workers.iter().map(worker).collect();
            answer["detail"] = json!({
                "at_ms": now.0,
                "budget_bytes": fleet.memory_sum(|memory| memory.budget),
                "workers": workers,
            });
        }
        Ok(answer::ok(&answer))
    })
    .await
}

async fn stats_then(State(app): State<App>, mut asked: Asked) -> Result<Response, Refusal> {
    let minutes = asked.whole("minutes", 1..=MINUTES.1)?.unwrap_or(MINUTES.0);
    asked.done()?;
    app.blocking(move |app| {
        let fleet = app.fleet()?;
        let samples = app
            .history
            .last(Duration::from_secs(minutes * 60), app.now());
        Ok(answer::ok(
            &json!({ "budget": fleet.memory_sum(|memory| memory.budget), "samples": samples }),
        ))
    })
    .await
}
