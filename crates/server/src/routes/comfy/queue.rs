//! What waits, what runs, what was: and stopping it.

use axum::extract::State;
use axum::response::Response;
use lowtide_core::job::{JobId, JobState};
use lowtide_jobs::{Job, StoreError};
use serde_json::{Map, Value, json};

use super::board::Entry;
use super::{Foreign, an_object, files, object, operation};
use crate::answer;
use crate::app::{App, Inner};
use crate::incoming::{Asked, Segment, UntypedJson};
use crate::openapi::Operation;
use crate::refusal::Refusal;
use crate::routes::Routes;
use crate::schemas;

pub(super) fn routes(routes: Routes, at: &impl Fn(&str) -> String) -> Routes {
    let order = |summary| ordering(operation(summary));
    let one = object("What became of one graph").segment("prompt_id", schemas::id(), "Its id");
    let all = object("What became of the graphs, newest last").query(
        "max_items",
        schemas::whole(1, 10_000),
        "At most so many, the newest",
    );
    routes
        .get(&at("/queue"), queue, object("What runs and what waits"))
        .post(
            &at("/queue"),
            change_queue,
            order("Takes graphs that wait from the queue"),
        )
        .post(&at("/interrupt"), interrupt, order("Cancels what runs"))
        .get(&at("/history"), history, all)
        .post(
            &at("/history"),
            change_history,
            order("Forgets what became of graphs; jobs stay"),
        )
        .get(&at("/history/{prompt_id}"), one_history, one)
}

fn ordering(operation: Operation) -> Operation {
    operation
        .answers_nothing(200, "Done")
        .refuses(&[404, 408, 413, 415, 422])
}

/// Its graphs and what is known of their jobs, oldest first; jobs that are no longer known are left out.
fn jobs(app: &Inner) -> Result<Vec<(Entry, Job)>, Refusal> {
    let mut known = Vec::new();
    for entry in app.comfy.all(&app.caller()) {
        match app.store.job(entry.job) {
            Ok(job) => known.push((entry, job)),
            Err(StoreError::NotFound { .. }) => app.comfy.forget(entry.job),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(known)
}

/// Graphs that wait or run.
pub(super) fn count(app: &Inner) -> Result<usize, Refusal> {
    let jobs = jobs(app)?;
    Ok(jobs.iter().filter(|(_, job)| !job.state.is_final()).count())
}

pub(super) async fn remaining(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    asked.done()?;
    let all = app.blocking(count).await?;
    Ok(answer::ok(
        &json!({ "exec_info": { "queue_remaining": all } }),
    ))
}

/// A graph as lists have it.
fn item(entry: &Entry, job: &Job) -> Value {
    json!([
        job.seq,
        job.id.to_string(),
        entry.graph,
        entry.extra,
        entry.outputs
    ])
}

async fn queue(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    asked.done()?;
    Ok(app
        .blocking(|app| {
            let all = jobs(app)?;
            let of = |states: &[JobState]| -> Vec<Value> {
                let those = all.iter().filter(|(_, job)| states.contains(&job.state));
                those.map(|(entry, job)| item(entry, job)).collect()
            };
            Ok(answer::ok(&json!({
                "queue_running": of(&[JobState::Running, JobState::Parked]),
                "queue_pending": of(&[JobState::Queued, JobState::Paused]),
            })))
        })
        .await?)
}

/// Which graphs an order is about: those that are named, or all.
struct Which {
    clear: bool,
    named: Vec<JobId>,
}

fn which(body: Value) -> Result<Which, Refusal> {
    let mut body = an_object("body", body)?;
    let clear = body
        .remove("clear")
        .is_some_and(|clear| clear == json!(true));
    let named = match body.remove("delete") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(ids)) => ids,
        Some(_) => return Err(Refusal::malformed("delete", "a list of ids is needed")),
    };
    // A name that is none is of no graph.
    let named = named
        .iter()
        .filter_map(|id| id.as_str()?.parse().ok())
        .collect();
    Ok(Which { clear, named })
}

async fn change_queue(
    State(app): State<App>,
    asked: Asked,
    body: Result<UntypedJson, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    let which = which(body?.0)?;
    cancel(&app, move |job| {
        job.state == JobState::Queued && (which.clear || which.named.contains(&job.id))
    })
    .await
}

async fn interrupt(
    State(app): State<App>,
    asked: Asked,
    body: Result<UntypedJson, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    let body = an_object("body", body?.0)?;
    let named = match body.get("prompt_id") {
        None | Some(Value::Null) => None,
        Some(id) => Some(id.as_str().and_then(|id| id.parse::<JobId>().ok())),
    };
    cancel(&app, move |job| {
        let runs = matches!(job.state, JobState::Running | JobState::Parked);
        runs && named.is_none_or(|id| id == Some(job.id))
    })
    .await
}

async fn cancel(
    app: &App,
    those: impl Fn(&Job) -> bool + Send + 'static,
) -> Result<Response, Foreign> {
    app.blocking(move |app| {
        for (_, job) in jobs(app)? {
            if !those(&job) {
                continue;
            }
            match app.store.cancel(job.id, app.now()) {
                // Over in between: nothing is left to stop.
                Ok(_) | Err(StoreError::WrongState { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })
    .await?;
    Ok(answer::with_type(
        axum::http::StatusCode::OK,
        "text/plain",
        axum::body::Body::empty(),
    ))
}

async fn history(State(app): State<App>, mut asked: Asked) -> Result<Response, Foreign> {
    let most = asked.whole("max_items", 1..=10_000)?.unwrap_or(u64::MAX);
    // Pages of a list that is bounded anyway.
    asked.whole("offset", 0..=u64::MAX)?;
    asked.done()?;
    Ok(app
        .blocking(move |app| {
            let all = jobs(app)?;
            let over: Vec<_> = all.iter().filter(|(_, job)| job.state.is_final()).collect();
            let skipped = over
                .len()
                .saturating_sub(usize::try_from(most).unwrap_or(usize::MAX));
            let told: Map<String, Value> = over[skipped..]
                .iter()
                .map(|(entry, job)| (job.id.to_string(), record(entry, job)))
                .collect();
            Ok(answer::ok(&told))
        })
        .await?)
}

async fn one_history(
    State(app): State<App>,
    Segment(id): Segment,
    asked: Asked,
) -> Result<Response, Foreign> {
    asked.done()?;
    Ok(app
        .blocking(move |app| {
            let mut told = Map::new();
            let caller = app.caller();
            let entry = id.parse().ok();
            let entry = entry.and_then(|id| app.comfy.entry(id, &caller));
            if let Some(entry) = entry
                && let Ok(job) = app.store.job(entry.job)
                && job.state.is_final()
            {
                told.insert(job.id.to_string(), record(&entry, &job));
            }
            // As there, nothing is known of what is not over.
            Ok(answer::ok(&told))
        })
        .await?)
}

/// What became of a graph.
fn record(entry: &Entry, job: &Job) -> Value {
    let done = job.state == JobState::Done;
    let status = match job.state {
        JobState::Done => "success",
        _ => "error",
    };
    let mut outputs = Map::new();
    if done {
        for node in &entry.outputs {
            outputs.insert(node.clone(), output(entry, node, job));
        }
    }
    let told = json!({ "prompt_id": job.id.to_string(), "timestamp": job.finished.map(|at| at.0) });
    let message = match job.state {
        JobState::Done => json!(["execution_success", told]),
        JobState::Cancelled => json!(["execution_interrupted", told]),
        _ => {
            let mut told = told;
            told["exception_message"] = json!(job.error);
            json!(["execution_error", told])
        }
    };
    json!({
        "prompt": item(entry, job),
        "outputs": outputs,
        "status": { "status_str": status, "completed": done, "messages": [message] },
        "meta": {},
    })
}

/// The pictures of a node that saves or shows them.
pub(super) fn output(entry: &Entry, node: &str, job: &Job) -> Value {
    let place = match entry.class(node) {
        "PreviewImage" => "temp",
        _ => "output",
    };
    let outcome = job.outcome.clone().unwrap_or_default();
    let images: Vec<Value> = outcome
        .artifacts
        .iter()
        .map(|artifact| json!({ "filename": files::name_of(artifact), "subfolder": "", "type": place }))
        .collect();
    json!({ "images": images })
}

async fn change_history(
    State(app): State<App>,
    asked: Asked,
    body: Result<UntypedJson, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    let which = which(body?.0)?;
    app.blocking(move |app| {
        for (entry, job) in jobs(app)? {
            if job.state.is_final() && (which.clear || which.named.contains(&entry.job)) {
                app.comfy.forget(entry.job);
            }
        }
        Ok(())
    })
    .await?;
    Ok(answer::with_type(
        axum::http::StatusCode::OK,
        "text/plain",
        axum::body::Body::empty(),
    ))
}
