//! Whether the service is there, and whether it can work.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::Routes;
use super::queue;
use crate::answer;
use crate::app::{App, Inner};
use crate::fleet::Fleet;
use crate::incoming::Asked;
use crate::openapi::{Operation, reference};
use crate::refusal::Refusal;

pub(super) fn routes(routes: Routes) -> Routes {
    let health = |summary| {
        Operation::new("service", summary)
            .answers(200, "It is", reference("Health"))
            .answers(503, "It is not", reference("Health"))
    };
    routes
        .get(
            "/health",
            all,
            health("Whether jobs are accepted and worked on"),
        )
        .get("/health/live", live, health("Whether the process answers"))
        .get(
            "/health/accepting",
            accepting,
            health("Whether jobs are accepted, be there workers or not"),
        )
        .get(
            "/health/ready",
            all,
            health("Whether jobs are accepted and worked on"),
        )
}

async fn live(asked: Asked) -> Result<Response, Refusal> {
    asked.done()?;
    Ok(answer::ok(&json!({ "status": "ok", "live": true })))
}

/// For whoever sends jobs here or elsewhere, where workers come because of jobs that wait.
async fn accepting(State(app): State<App>, asked: Asked) -> Result<Response, Refusal> {
    asked.done()?;
    let problem = app
        .blocking(|app| {
            Ok(store_answers(app)
                .err()
                .map(|error| Refusal::from(error).message()))
        })
        .await?;
    let (code, status) = match problem {
        None => (StatusCode::OK, "ok".to_owned()),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem),
    };
    let body = json!({ "status": status, "live": true, "ready": code == StatusCode::OK, "version": app.options.version, "workers": [] });
    Ok(answer::json(code, &body))
}

/// What is known already is told at once: a store that is unreachable would be waited for.
fn store_answers(app: &Inner) -> lowtide_jobs::Result<()> {
    match app.store.trouble() {
        Some(trouble) => Err(trouble),
        None => queue::answers(app.store.as_ref(), app).map(drop),
    }
}

async fn all(State(app): State<App>, asked: Asked) -> Result<Response, Refusal> {
    asked.done()?;
    let looked = app
        .blocking(|app| {
            let store = store_answers(app);
            let fleet = match store {
                Ok(_) => app.fleet().unwrap_or_default(),
                Err(_) => Fleet::default(),
            };
            Ok((store.map_err(|error| Refusal::from(error).message()), fleet))
        })
        .await?;
    let (store, fleet) = looked;
    let (ready, status) = match (&store, fleet.ready()) {
        (Ok(_), true) => (true, "ok".to_owned()),
        (Ok(_), false) => (false, why_not(&fleet).to_owned()),
        (Err(problem), _) => (false, problem.clone()),
    };
    let workers: Vec<Value> = fleet
        .workers
        .iter()
        .map(|worker| {
            json!({
                "worker": worker.id,
                "alive": worker.alive,
                "ready": worker.ready(),
                "state": worker.status.state,
                "seen_ms": worker.seen.0,
            })
        })
        .collect();
    let code = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({ "status": status, "live": true, "ready": ready, "version": app.options.version, "workers": workers });
    Ok(answer::json(code, &body))
}

fn why_not(fleet: &Fleet) -> &'static str {
    match fleet.alive().next() {
        None => "no worker is there",
        Some(_) => "no worker begins jobs now",
    }
}
