//! Orders to workers: where models are to be, and whether jobs are begun.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use lowtide_jobs::{CommandId, Order, WorkerId};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Routes;
use super::catalog::find_model;
use super::jobs::WAIT_S_MAX;
use crate::answer;
use crate::app::App;
use crate::fields::Fields;
use crate::hub;
use crate::incoming::{Asked, JsonOrNothing, Segment};
use crate::openapi::{Operation, reference};
use crate::refusal::Refusal;
use crate::schemas;

/// How long a client waits where it does not say.
const WAIT_S: u64 = 30;

/// An order is worth doing for so long, whether or not the client still waits.
pub(super) const WORTH: Duration = Duration::from_secs(600);

/// The store is asked no more often than this whether a command was acknowledged.
const LOOK_EVERY: Duration = Duration::from_millis(25);

pub(super) fn routes(routes: Routes) -> Routes {
    let answered = |operation: Operation| {
        operation
            .query(
                "wait_s",
                schemas::whole(0, WAIT_S_MAX),
                "Waits so long for the worker; 30 where left out",
            )
            .answers(200, "The worker answered", reference("OrderAnswer"))
            .answers(202, "It is not done yet", reference("OrderAnswer"))
            .refuses(&[408, 413, 415, 422])
            .admin()
    };
    let model = |summary| {
        answered(Operation::new("models", summary).segment(
            "name",
            schemas::name(),
            "The model's name or alias",
        ))
    };
    let every = |summary| answered(Operation::new("models", summary));
    let worker = |summary| {
        answered(Operation::new("workers", summary).segment(
            "id",
            schemas::name(),
            "The worker's name",
        ))
    };
    routes
        .post(
            "/v1/models/offload",
            offload_all,
            every("Takes all models off the device, keeps them in host memory"),
        )
        .post(
            "/v1/models/release",
            release_all,
            every("Takes all models out of memory"),
        )
        .post(
            "/v1/models/{name}/load",
            load,
            model("Brings a model to the device"),
        )
        .post(
            "/v1/models/{name}/offload",
            offload,
            model("Takes a model off the device, keeps it in host memory"),
        )
        .post(
            "/v1/models/{name}/release",
            release,
            model("Takes a model out of memory"),
        )
        .post(
            "/v1/workers/{id}/pause",
            pause,
            worker("Has a worker begin no jobs and park what runs"),
        )
        .post(
            "/v1/workers/{id}/resume",
            resume,
            worker("Has a worker begin jobs again"),
        )
        .post(
            "/v1/workers/{id}/drain",
            drain,
            worker("Has a worker park and save what runs, and end"),
        )
}

/// What every order's request says beside its path.
struct Wait(Duration);

fn wait(mut asked: Asked, body: Value) -> Result<Wait, Refusal> {
    let seconds = asked.whole("wait_s", 0..=WAIT_S_MAX)?.unwrap_or(WAIT_S);
    asked.done()?;
    Fields::of(body)?.done()?;
    Ok(Wait(Duration::from_secs(seconds)))
}

async fn load(
    state: State<App>,
    name: Segment,
    asked: Asked,
    body: JsonOrNothing,
) -> Result<Response, Refusal> {
    of_model(state, name, (asked, body), |model| Order::Load { model }).await
}

async fn offload(
    state: State<App>,
    name: Segment,
    asked: Asked,
    body: JsonOrNothing,
) -> Result<Response, Refusal> {
    of_model(state, name, (asked, body), |model| Order::Offload {
        model: Some(model),
    })
    .await
}

async fn release(
    state: State<App>,
    name: Segment,
    asked: Asked,
    body: JsonOrNothing,
) -> Result<Response, Refusal> {
    of_model(state, name, (asked, body), |model| Order::Release {
        model: Some(model),
    })
    .await
}

async fn offload_all(
    state: State<App>,
    asked: Asked,
    body: JsonOrNothing,
) -> Result<Response, Refusal> {
    of_all(state, (asked, body), Order::Offload { model: None }).await
}

async fn release_all(
    state: State<App>,
    asked: Asked,
    body: JsonOrNothing,
) -> Result<Response, Refusal> {
    of_all(state, (asked, body), Order::Release { model: None }).await
}

async fn pause(
    state: State<App>,
    id: Segment,
    asked: Asked,
    body: JsonOrNothing,
) -> Result<Response, Refusal> {
    of_worker(state, id, (asked, body), Order::Pause { job: None }).await
}

async fn resume(
    state: State<App>,
    id: Segment,
    asked: Asked,
    body: JsonOrNothing,
) -> Result<Response, Refusal> {
    of_worker(state, id, (asked, body), Order::Resume).await
}

async fn drain(
    state: State<App>,
    id: Segment,
    asked: Asked,
    body: JsonOrNothing,
) -> Result<Response, Refusal> {
    of_worker(state, id, (asked, body), Order::Drain).await
}

pub(super) async fn of_model(
    State(app): State<App>,
    Segment(name): Segment,
    (asked, JsonOrNothing(body)): (Asked, JsonOrNothing),
    order: impl FnOnce(String) -> Order + Send + 'static,
) -> Result<Response, Refusal> {
    let wait = wait(asked, body)?;
    let (order, workers) = app
        .blocking(move |app| {
            let model = find_model(app, &name)?.name;
            let fleet = app.fleet()?;
            let has = |worker: &&crate::fleet::Worker| {
                worker
                    .status
                    .models
                    .iter()
                    .any(|status| status.name == model)
            };
            let workers: Vec<WorkerId> = fleet
                .alive()
                .filter(has)
                .map(|worker| worker.id.clone())
                .collect();
            if workers.is_empty() {
                return Err(Refusal::Unavailable {
                    problem: format!("no worker is there that has the model '{model}'"),
                });
            }
            Ok((order(model), workers))
        })
        .await?;
    carry_out(&app, order, workers, wait).await
}

pub(super) async fn of_all(
    State(app): State<App>,
    (asked, JsonOrNothing(body)): (Asked, JsonOrNothing),
    order: Order,
) -> Result<Response, Refusal> {
    let wait = wait(asked, body)?;
    let workers = app
        .blocking(|app| {
            let workers: Vec<WorkerId> = app
                .fleet()?
                .alive()
                .map(|worker| worker.id.clone())
                .collect();
            match workers.is_empty() {
                true => Err(Refusal::Unavailable {
                    problem: "no worker is there".to_owned(),
                }),
                false => Ok(workers),
            }
        })
        .await?;
    carry_out(&app, order, workers, wait).await
}

async fn of_worker(
    State(app): State<App>,
    Segment(id): Segment,
    (asked, JsonOrNothing(body)): (Asked, JsonOrNothing),
    order: Order,
) -> Result<Response, Refusal> {
    let wait = wait(asked, body)?;
    let unknown = || {
        Refusal::not_found(format!(
            "there is no worker '{}'",
            id.chars().take(100).collect::<String>()
        ))
    };
    let worker: WorkerId = id.parse().map_err(|_| unknown())?;
    let fleet = app.blocking(|app| Ok(app.fleet()?)).await?;
    let found = fleet
        .workers
        .iter()
        .find(|known| known.id == worker)
        .ok_or_else(unknown)?;
    if !found.alive {
        return Err(Refusal::Unavailable {
            problem: format!("worker {worker} was not heard of lately"),
        });
    }
    carry_out(&app, order, vec![worker], wait).await
}

/// Gives the order to all of them and waits until each has answered.
async fn carry_out(
    app: &App,
    order: Order,
    workers: Vec<WorkerId>,
    Wait(wait): Wait,
) -> Result<Response, Refusal> {
    let until = Instant::now() + wait;
    let mut ticks = app.hub.ticks();
    let mut ending = app.hub.ending();
    let sent = app
        .blocking(move |app| {
            let now = app.now();
            let send = |worker: WorkerId| {
                Ok((
                    app.store.send(&worker, order.clone(), now + WORTH, now)?,
                    worker,
                ))
            };
            workers
                .into_iter()
                .map(send)
                .collect::<Result<Vec<(CommandId, WorkerId)>, Refusal>>()
        })
        .await?;
    loop {
        let commands = sent.clone();
        let answers = app
            .blocking(move |app| {
                commands
                    .into_iter()
                    .map(|(command, worker)| Ok((worker, app.store.command(command)?.acknowledged)))
                    .collect::<Result<Vec<_>, Refusal>>()
            })
            .await?;
        let all = answers.iter().all(|(_, answer)| answer.is_some());
        if all || Instant::now() >= until || app.hub.is_ending() {
            return Ok(told(&answers, all));
        }
        tokio::select! {
            _ = ticks.changed() => tokio::time::sleep(LOOK_EVERY).await,
            () = tokio::time::sleep_until(until) => {}
            () = hub::ended(&mut ending) => {}
        }
    }
}

fn told(answers: &[(WorkerId, Option<lowtide_jobs::Acknowledgement>)], all: bool) -> Response {
    let messages: Vec<&str> = answers
        .iter()
        .filter_map(|(_, answer)| Some(answer.as_ref()?.message.as_str()))
        .collect();
    let workers: Vec<Value> = answers
        .iter()
        .map(|(worker, answer)| {
            json!({
                "worker": worker,
                "ok": answer.as_ref().map(|answer| answer.ok),
                "message": answer.as_ref().map(|answer| answer.message.as_str()),
            })
        })
        .collect();
    let ok = all.then(|| {
        answers
            .iter()
            .all(|(_, answer)| answer.as_ref().is_some_and(|answer| answer.ok))
    });
    let message = match all {
        true => messages.join("; "),
        false => "the order was given and is not done yet".to_owned(),
    };
    let status = if all {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    answer::json(
        status,
        &json!({ "ok": ok, "message": message, "workers": workers }),
    )
}
