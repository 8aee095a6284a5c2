//! Models from a hub: what one would take, fetching it, stopping that.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::Routes;
use crate::app::{App, Inner};
use crate::fields::Fields;
use crate::incoming::{Asked, JsonOrNothing, Segment};
use crate::openapi::{Operation, reference};
use crate::refusal::Refusal;
use crate::{Downloads, answer, schemas};

pub(super) fn routes(routes: Routes) -> Routes {
    let operation = |summary| {
        Operation::new("models", summary)
            .segment(
                "name",
                schemas::name(),
                "org/name or org/name@revision, as one part of the path: / is %2F",
            )
            .refuses(&[403, 404, 422, 503])
    };
    let look = operation("What fetching a model would take: asks the hub").answers(
        200,
        "Its files and bytes",
        reference("Offer"),
    );
    let begin = operation("Has a model fetched from the hub, in the background")
        .answers(202, "It is on its way, or here", reference("Download"))
        .refuses(&[408, 413, 415])
        .admin();
    let stop = operation("Stops fetching a model: what came is kept, jobs that wait for it fail")
        .answers(200, "It stops", reference("Download"))
        .admin();
    routes
        .get("/v1/models/{name}/pull", look_at, look)
        .post("/v1/models/{name}/pull", begin_one, begin)
        .delete("/v1/models/{name}/pull", stop_one, stop)
}

fn downloads(app: &Inner) -> Result<&dyn Downloads, Refusal> {
    app.door.downloads().ok_or_else(|| Refusal::Forbidden {
        problem: "this server fetches no models".to_owned(),
    })
}

async fn look_at(
    State(app): State<App>,
    Segment(name): Segment,
    asked: Asked,
) -> Result<Response, Refusal> {
    asked.done()?;
    app.blocking(move |app| {
        let offer = downloads(app)?.offer(&name)?;
        Ok(answer::ok(&json!({
            "model": offer.model, "commit": offer.commit, "files": offer.files, "bytes": offer.bytes.0,
            "missing_bytes": offer.missing.0, "free_bytes": offer.free.map(|free| free.0),
            "has_room": offer.has_room,
        })))
    })
    .await
}

async fn begin_one(
    State(app): State<App>,
    Segment(name): Segment,
    asked: Asked,
    JsonOrNothing(body): JsonOrNothing,
) -> Result<Response, Refusal> {
    asked.done()?;
    Fields::of(body)?.done()?;
    app.blocking(move |app| {
        let download = downloads(app)?.begin(&name)?;
        Ok(answer::json(StatusCode::ACCEPTED, &download.view()))
    })
    .await
}

async fn stop_one(
    State(app): State<App>,
    Segment(name): Segment,
    asked: Asked,
) -> Result<Response, Refusal> {
    asked.done()?;
    app.blocking(move |app| Ok(answer::ok(&downloads(app)?.stop(&name)?.view())))
        .await
}

/// What the list of models says beside the models.
pub(super) fn listed(app: &Inner) -> Value {
    match app.door.downloads() {
        None => json!({ "allowed": false, "reason": "this server fetches no models", "data": [] }),
        Some(downloads) => {
            let reason = downloads.forbidden();
            let data: Vec<Value> = downloads.all().iter().map(|one| one.view()).collect();
            json!({ "allowed": reason.is_none(), "reason": reason, "data": data })
        }
    }
}
