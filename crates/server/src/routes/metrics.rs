//! Figures for Prometheus.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use lowtide_core::job::{JobState, Moment, Priority};
use lowtide_jobs::report::{ModelStatus, MoveTally};
use lowtide_jobs::{Stats, Usage};
use serde_json::json;

use super::Routes;
use crate::app::{App, Inner};
use crate::fleet::{Fleet, Worker};
use crate::incoming::Asked;
use crate::openapi::Operation;
use crate::refusal::Refusal;

const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn routes(routes: Routes) -> Routes {
    let metrics = Operation::new("service", "Figures for Prometheus")
        .answers_with(
            200,
            "Text, version 0.0.4",
            "text/plain",
            json!({ "type": "string" }),
        )
        .admin();
    routes.get("/metrics", metrics_text, metrics)
}

async fn metrics_text(State(app): State<App>, asked: Asked) -> Result<Response, Refusal> {
    asked.done()?;
    let text = app
        .blocking(|app| {
            let now = app.now();
            let mut page = Page::default();
            queue(&mut page, &app.store.stats(now)?, now);
            workers(&mut page, &app.fleet()?);
            server(&mut page, app);
            keys(&mut page, &app.store.usage()?, app);
            Ok(page.0)
        })
        .await?;
    Ok(crate::answer::with_type(
        StatusCode::OK,
        MEDIA_TYPE,
        Body::from(text),
    ))
}

/// The text so far.
#[derive(Default)]
struct Page(String);

impl Page {
    /// The lines that come before the values of a name.
    fn about(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(
            self.0,
            "# HELP lowtide_{name} {help}\n# TYPE lowtide_{name} {kind}"
        );
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.0, "lowtide_{name}");
        for (place, (label, text)) in labels.iter().enumerate() {
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(
                self.0,
                "{}{label}=\"{text}\"",
                if place == 0 { '{' } else { ',' }
            );
        }
        let _ = writeln!(
            self.0,
            "{} {value}",
            if labels.is_empty() { "" } else { "}" }
        );
    }

    fn single(&mut self, (name, kind): (&str, &str), help: &str, value: f64) {
        self.about(name, kind, help);
        self.value(name, &[], value);
    }
}

fn queue(page: &mut Page, stats: &Stats, now: Moment) {
    page.about("jobs", "gauge", "Jobs by state and priority.");
    for state in JobState::ALL {
        for priority in Priority::ALL {
            let count = stats.counts.get(&(state, priority)).copied().unwrap_or(0);
            page.value(
                "jobs",
                &[("state", state.name()), ("priority", priority.name())],
                count as f64,
            );
        }
    }
    page.about(
        "queue_oldest_seconds",
        "gauge",
        "How long the job has waited that has waited longest.",
    );
    for priority in Priority::ALL {
        let oldest = stats
            .oldest_waiting
            .get(&priority)
            .map_or(0.0, |at| now.seconds_since(*at));
        page.value(
            "queue_oldest_seconds",
            &[("priority", priority.name())],
            oldest,
        );
    }
    page.single(
        ("queue_held", "gauge"),
        "1 while the queue is held.",
        f64::from(u8::from(stats.held)),
    );
    last_hour(page, stats);
    page.single(
        ("artifacts", "gauge"),
        "Finished files.",
        stats.artifacts as f64,
    );
    page.single(
        ("artifact_bytes", "gauge"),
        "Bytes of finished files.",
        stats.artifact_bytes as f64,
    );
    page.single(
        ("events_total", "counter"),
        "Events in the log since it began.",
        stats.last_event.0 as f64,
    );
}

/// A figure of a key's name.
type OfName = (&'static str, &'static str, &'static str, fn(&Usage) -> f64);

const OF_NAMES: [OfName; 8] = [
    (
        "key_jobs_submitted_total",
        "counter",
        "Jobs accepted, by the key's name.",
        |usage| usage.submitted as f64,
    ),
    (
        "key_jobs_done_total",
        "counter",
        "Jobs done, by the key's name.",
        |usage| usage.done as f64,
    ),
    (
        "key_jobs_failed_total",
        "counter",
        "Jobs failed, by the key's name.",
        |usage| usage.failed as f64,
    ),
    (
        "key_jobs_cancelled_total",
        "counter",
        "Jobs cancelled, by the key's name.",
        |usage| usage.cancelled as f64,
    ),
    (
        "key_files_total",
        "counter",
        "Finished files, by the key's name.",
        |usage| usage.artifacts as f64,
    ),
    (
        "key_work_seconds_total",
        "counter",
        "Seconds workers had its jobs, by the key's name.",
        |usage| usage.worked_ms as f64 / 1e3,
    ),
    (
        "key_jobs_waiting",
        "gauge",
        "Jobs that wait, by the key's name.",
        |usage| usage.waiting as f64,
    ),
    (
        "key_jobs_running",
        "gauge",
        "Jobs that run, by the key's name.",
        |usage| usage.running as f64,
    ),
];

fn keys(page: &mut Page, usage: &[Usage], app: &Inner) {
    for (name, kind, help, of) in OF_NAMES.iter().filter(|_| !usage.is_empty()) {
        page.about(name, kind, help);
        for one in usage {
            page.value(name, &[("key", &one.owner)], of(one));
        }
    }
    let answered = app.access.answered();
    if !answered.is_empty() {
        let help = "Requests that showed a key, by its name.";
        page.about("key_requests_total", "counter", help);
        for (name, count) in &answered {
            page.value("key_requests_total", &[("key", name)], *count as f64);
        }
    }
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed) as f64;
    page.about(
        "requests_refused_total",
        "counter",
        "Requests refused for who sent them.",
    );
    for (reason, refused) in [
        ("no_access", count(&app.access.turned_away)),
        ("too_often", count(&app.access.too_many)),
    ] {
        page.value("requests_refused_total", &[("reason", reason)], refused);
    }
}

fn last_hour(page: &mut Page, stats: &Stats) {
    let hour =
        |of: fn(&lowtide_jobs::Minute) -> u64| stats.minutes.iter().map(of).sum::<u64>() as f64;
    page.about(
        "jobs_last_hour",
        "gauge",
        "What happened to jobs within the last hour.",
    );
    for (what, count) in [
        ("submitted", hour(|minute| minute.submitted)),
        ("started", hour(|minute| minute.started)),
        ("done", hour(|minute| minute.done)),
        ("failed", hour(|minute| minute.failed)),
        ("cancelled", hour(|minute| minute.cancelled)),
    ] {
        page.value("jobs_last_hour", &[("what", what)], count);
    }
    page.single(
        ("dispatch_last_hour_seconds_sum", "gauge"),
        "Seconds from submission to the first attempt, over the attempts begun within the last hour.",
        hour(|minute| minute.waited_ms) / 1e3,
    );
    page.single(
        ("dispatch_last_hour_count", "gauge"),
        "Attempts begun within the last hour.",
        hour(|minute| minute.started),
    );
}

/// A figure of a worker.
type Figure = (&'static str, &'static str, &'static str, fn(&Worker) -> f64);

const FIGURES: [Figure; 12] = [
    (
        "worker_jobs_started_total",
        "counter",
        "Attempts begun.",
        |worker| worker.status.counts.started as f64,
    ),
    (
        "worker_jobs_done_total",
        "counter",
        "Jobs done.",
        |worker| worker.status.counts.done as f64,
    ),
    (
        "worker_jobs_failed_total",
        "counter",
        "Attempts that failed.",
        |worker| worker.status.counts.failed as f64,
    ),
    (
        "worker_jobs_cancelled_total",
        "counter",
        "Jobs stopped on demand.",
        |worker| worker.status.counts.cancelled as f64,
    ),
    (
        "worker_parked_total",
        "counter",
        "Sessions parked for another.",
        |worker| worker.status.counts.parked as f64,
    ),
    (
        "worker_rungs_total",
        "counter",
        "Rungs taken after memory was refused.",
        |worker| worker.status.counts.rungs as f64,
    ),
    (
        "worker_read_bytes_total",
        "counter",
        "Bytes of weights read.",
        |worker| worker.status.counts.bytes_read as f64,
    ),
    (
        "worker_busy_seconds_total",
        "counter",
        "Seconds spent computing.",
        |worker| worker.status.counts.busy_s,
    ),
    (
        "utilisation_ratio",
        "gauge",
        "Share of the last second in which something was computed.",
        |worker| worker.status.utilisation.now,
    ),
    (
        "prompt_cache_hits_total",
        "counter",
        "Prompts found in the cache.",
        |worker| worker.status.prompt_cache.hits as f64,
    ),
    (
        "prompt_cache_misses_total",
        "counter",
        "Prompts not found in the cache.",
        |worker| worker.status.prompt_cache.misses as f64,
    ),
    (
        "prompt_cache_bytes",
        "gauge",
        "Bytes of the cache of prompts.",
        |worker| worker.status.prompt_cache.bytes as f64,
    ),
];

fn workers(page: &mut Page, fleet: &Fleet) {
    page.about("worker_up", "gauge", "1 while the worker is heard of.");
    for worker in &fleet.workers {
        page.value(
            "worker_up",
            &[("worker", worker.id.as_str())],
            f64::from(u8::from(worker.alive)),
        );
    }
    for (name, kind, help, of) in FIGURES {
        page.about(name, kind, help);
        for worker in fleet.alive() {
            page.value(name, &[("worker", worker.id.as_str())], of(worker));
        }
    }
    page.about(
        "power_watts",
        "gauge",
        "Power of the device, where it tells.",
    );
    for worker in fleet.alive() {
        if let Some(watts) = worker.status.power_w {
            page.value("power_watts", &[("worker", worker.id.as_str())], watts);
        }
    }
    page.about("memory_bytes", "gauge", "Memory of the device.");
    for worker in fleet.alive() {
        let memory = &worker.status.memory;
        for (what, bytes) in [
            ("budget", memory.budget),
            ("allocated", memory.allocated),
            ("reserved", memory.reserved),
            ("total", memory.total),
            ("available", memory.available),
            ("peak", memory.peak),
        ] {
            page.value(
                "memory_bytes",
                &[("worker", worker.id.as_str()), ("what", what)],
                bytes as f64,
            );
        }
    }
    models(page, fleet);
}

fn each_model(fleet: &Fleet) -> impl Iterator<Item = (&Worker, &ModelStatus)> {
    fleet.alive().flat_map(|worker| {
        worker
            .status
            .models
            .iter()
            .map(move |model| (worker, model))
    })
}

fn models(page: &mut Page, fleet: &Fleet) {
    let each = || each_model(fleet);
    page.about(
        "model_residency",
        "gauge",
        "Where a model is: 0 unloaded, 1 host memory, 2 device.",
    );
    for (worker, model) in each() {
        let near = match model.residency.as_str() {
            "device" => 2.0,
            "host" => 1.0,
            _ => 0.0,
        };
        page.value(
            "model_residency",
            &[("worker", worker.id.as_str()), ("model", &model.name)],
            near,
        );
    }
    page.about(
        "model_bytes",
        "gauge",
        "Bytes of a model on the device and in host memory.",
    );
    for (worker, model) in each() {
        for (place, bytes) in [("device", model.device_bytes), ("host", model.host_bytes)] {
            let labels = [
                ("worker", worker.id.as_str()),
                ("model", model.name.as_str()),
                ("place", place),
            ];
            page.value("model_bytes", &labels, bytes as f64);
        }
    }
    page.about(
        "model_cache_total",
        "counter",
        "Jobs that found their model on the device, and jobs that did not.",
    );
    for (worker, model) in each() {
        for (result, count) in [("hit", model.hits), ("miss", model.misses)] {
            let labels = [
                ("worker", worker.id.as_str()),
                ("model", model.name.as_str()),
                ("result", result),
            ];
            page.value("model_cache_total", &labels, count as f64);
        }
    }
    moves(page, fleet);
}

fn moves(page: &mut Page, fleet: &Fleet) {
    for (name, help, of) in [
        (
            "moves_total",
            "Moves of models.",
            (|tally: &MoveTally| tally.count as f64) as fn(&MoveTally) -> f64,
        ),
        (
            "move_seconds_total",
            "Seconds of these moves.",
            |tally: &MoveTally| tally.seconds,
        ),
    ] {
        page.about(name, "counter", help);
        for (worker, model) in each_model(fleet) {
            let moves = &model.moves;
            for (kind, tally) in [
                ("load", &moves.loads),
                ("restore", &moves.restores),
                ("offload", &moves.offloads),
                ("release", &moves.releases),
                ("failed", &moves.failed),
            ] {
                let labels = [
                    ("worker", worker.id.as_str()),
                    ("model", model.name.as_str()),
                    ("move", kind),
                ];
                page.value(name, &labels, of(tally));
            }
        }
    }
}

fn server(page: &mut Page, app: &Inner) {
    let counters = &app.counters;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed) as f64;
    page.single(
        ("jobs_submitted_total", "counter"),
        "Jobs accepted by this server since it began.",
        count(&counters.submitted),
    );
    page.single(
        ("http_connections", "gauge"),
        "Open connections.",
        count(&counters.connections),
    );
    page.single(
        ("http_connections_refused_total", "counter"),
        "Connections refused because there were too many.",
        count(&counters.refused),
    );
    let help = "Calls of webhooks by what they told and what came of it.";
    page.about("webhook_calls_total", "counter", help);
    for (event, result, count) in app.calls.counts() {
        let labels = [("event", event), ("result", result)];
        page.value("webhook_calls_total", &labels, count as f64);
    }
    page.single(
        ("webhooks_given_up_total", "counter"),
        "Ends of jobs that were not told, and are not tried any more.",
        app.calls.given_up() as f64,
    );
    page.single(
        ("event_streams", "gauge"),
        "Open streams of events.",
        count(&counters.streams),
    );
    page.about(
        "http_requests_total",
        "counter",
        "Requests by route and status.",
    );
    for (route, status, count) in counters.requests() {
        page.value(
            "http_requests_total",
            &[("route", &route), ("status", &status.to_string())],
            count as f64,
        );
    }
    page.single(
        ("uptime_seconds", "gauge"),
        "Seconds since the server began.",
        app.now().seconds_since(app.started),
    );
    page.about("build_info", "gauge", "The version.");
    page.value("build_info", &[("version", &app.options.version)], 1.0);
}
