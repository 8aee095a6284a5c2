//! The queue as a whole.

use axum::extract::State;
use axum::response::Response;
use lowtide_core::job::{JobState, Priority};
use lowtide_jobs::{JobStore, Stats, StoreError};
use serde_json::{Map, Value, json};

use super::Routes;
use crate::answer;
use crate::app::{App, Inner};
use crate::fields::Fields;
use crate::incoming::{Asked, JsonOrNothing};
use crate::openapi::{Operation, reference};
use crate::refusal::Refusal;

pub(super) fn routes(routes: Routes) -> Routes {
    let numbers = |summary| {
        Operation::new("queue", summary).answers(200, "Numbers about the queue", reference("Queue"))
    };
    let change = |summary| {
        let numbers = numbers(summary).refuses(&[408, 413, 415, 422]);
        numbers.admin()
    };
    routes
        .get("/v1/queue", look, numbers("Numbers about the queue"))
        .post(
            "/v1/queue/hold",
            hold,
            change("Holds the queue: nothing is begun; what runs goes on"),
        )
        .post("/v1/queue/release", release, change("Lets the queue go"))
}

async fn look(State(app): State<App>, asked: Asked) -> Result<Response, Refusal> {
    asked.done()?;
    app.blocking(numbers).await
}

async fn hold(
    State(app): State<App>,
    JsonOrNothing(body): JsonOrNothing,
) -> Result<Response, Refusal> {
    set(app, body, true).await
}

async fn release(
    State(app): State<App>,
    JsonOrNothing(body): JsonOrNothing,
) -> Result<Response, Refusal> {
    set(app, body, false).await
}

async fn set(app: App, body: Value, held: bool) -> Result<Response, Refusal> {
    Fields::of(body)?.done()?;
    app.blocking(move |app| {
        app.store.hold(held, app.now())?;
        numbers(app)
    })
    .await
}

fn numbers(app: &Inner) -> Result<Response, Refusal> {
    let now = app.now();
    let stats = app.store.stats(now)?;
    let by_state = |of: &dyn Fn(JobState) -> Value| -> Value {
        Value::Object(
            JobState::ALL
                .iter()
                .map(|&state| (state.name().to_owned(), of(state)))
                .collect(),
        )
    };
    let oldest: Map<String, Value> = stats
        .oldest_waiting
        .iter()
        .map(|(priority, at)| (priority.name().to_owned(), json!(now.seconds_since(*at))))
        .collect();
    Ok(answer::ok(&json!({
        "held": stats.held,
        "states": by_state(&|state| json!(stats.in_state(state))),
        "waiting": waiting(&stats),
        "oldest_waiting_s": oldest,
        "oldest_running_s": stats.oldest_running.map(|at| now.seconds_since(at)),
        "minutes": stats.minutes,
        "artifacts": stats.artifacts,
        "artifact_bytes": stats.artifact_bytes,
        "last_event": stats.last_event,
    })))
}

/// Queued jobs by priority.
fn waiting(stats: &Stats) -> Value {
    let count = |priority: Priority| {
        stats
            .counts
            .get(&(JobState::Queued, priority))
            .copied()
            .unwrap_or(0)
    };
    Value::Object(
        Priority::ALL
            .iter()
            .map(|&priority| (priority.name().to_owned(), json!(count(priority))))
            .collect(),
    )
}

/// Whether the store answers.
pub(super) fn answers(store: &dyn JobStore, app: &Inner) -> Result<Stats, StoreError> {
    store.stats(app.now())
}
