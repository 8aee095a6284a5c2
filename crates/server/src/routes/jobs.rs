//! Looking at jobs, and changing what becomes of them.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use lowtide_core::job::{JobId, JobState};
use lowtide_jobs::{Job, JobStore, Listing, Move, StoreError};
use serde_json::{Value, json};

use super::{Routes, waiting};
use crate::Download;
use crate::answer;
use crate::app::{App, Inner};
use crate::fields::Fields;
use crate::incoming::{Asked, Id, Json, JsonOrNothing};
use crate::openapi::{Operation, reference};
use crate::refusal::Refusal;
use crate::schemas;
use crate::view::JobView;

/// Jobs in a list where nobody says how many, and at most.
const LISTED: (u64, u64) = (50, 500);

/// The longest a client may have the server wait for a job.
pub(crate) const WAIT_S_MAX: u64 = 300;

pub(super) fn routes(routes: Routes) -> Routes {
    let one =
        |summary| Operation::new("jobs", summary).segment("id", schemas::id(), "The job's id");
    let changed = |summary| {
        one(summary)
            .answers(200, "The job as it is now", reference("Job"))
            .refuses(&[409])
    };
    let list = Operation::new("jobs", "Lists jobs, newest first, without their requests")
        .query(
            "state",
            schemas::states(),
            "Only those in these states, separated by commas",
        )
        .query(
            "limit",
            schemas::whole(1, LISTED.1),
            "At most so many; 50 where left out",
        )
        .query(
            "before",
            schemas::whole(0, i64::MAX as u64),
            "`next` of the page before",
        )
        .query(
            "owner",
            json!({ "type": "string", "minLength": 1 }),
            "Only those of this owner",
        )
        .answers(200, "A page of jobs", reference("JobList"));
    let look = one("A job")
        .query(
            "wait_s",
            schemas::whole(0, WAIT_S_MAX),
            "Answers when it is over, or after so many seconds",
        )
        .answers(200, "The job", reference("Job"));
    let cancel = one("Cancels a job: at once where it waits, at its next step where it runs")
        .answers(200, "It is cancelled", reference("Job"))
        .answers(202, "Its worker will stop", reference("Job"))
        .refuses(&[409]);
    routes
        .get("/v1/jobs", list_jobs, list)
        .get("/v1/jobs/{id}", look_at, look)
        .delete("/v1/jobs/{id}", cancel_job, cancel)
        .post(
            "/v1/jobs/{id}/pause",
            pause,
            changed("Pauses a job: at once where it waits, at its next step where it runs"),
        )
        .post(
            "/v1/jobs/{id}/resume",
            resume,
            changed("Lets a paused job go on"),
        )
        .post(
            "/v1/jobs/{id}/requeue",
            requeue,
            changed("Sends a failed job through the queue again").refuses(&[429]),
        )
        .post(
            "/v1/jobs/{id}/priority",
            reorder,
            changed("Gives a waiting job another place").body(schemas::place()),
        )
}

async fn list_jobs(State(app): State<App>, mut asked: Asked) -> Result<Response, Refusal> {
    let states = match asked.text("state")? {
        None => Vec::new(),
        Some(words) => words
            .split(',')
            .map(|word| {
                word.trim()
                    .parse()
                    .map_err(|error: lowtide_core::job::NotAWord| {
                        Refusal::malformed("state", error.to_string())
                    })
            })
            .collect::<Result<Vec<JobState>, Refusal>>()?,
    };
    let limit = asked.whole("limit", 1..=LISTED.1)?.unwrap_or(LISTED.0) as usize;
    let before = asked.whole("before", 0..=i64::MAX as u64)?;
    let owner = asked.text("owner")?;
    asked.done()?;
    app.blocking(move |app| {
        let caller = app.caller();
        let owner = match caller.sees_all() {
            true => owner,
            false if owner.as_deref().is_none_or(|owner| owner == caller.desk()) => {
                Some(caller.desk().to_owned())
            }
            // Others have no jobs, as far as this caller is concerned.
            false => return Ok(answer::ok(&json!({ "jobs": [], "next": null }))),
        };
        let jobs = app.store.list(&Listing {
            states,
            owner,
            before,
            limit,
        })?;
        let next = (jobs.len() == limit)
            .then(|| jobs.last().map(|job| job.seq))
            .flatten();
        let (outlook, now) = (app.forecasts.latest(), app.now());
        let downloads = app.door.downloads();
        let downloads = downloads.map_or_else(Vec::new, |downloads| downloads.all());
        let view = |job: Job| {
            let download = Download::of_job(&downloads, job.id);
            let mut view = JobView::listed(job, &outlook, now);
            view.download = download;
            view
        };
        let jobs: Vec<JobView> = jobs.into_iter().map(view).collect();
        Ok(answer::ok(&json!({ "jobs": jobs, "next": next })))
    })
    .await
}

async fn look_at(
    State(app): State<App>,
    Id(id): Id,
    mut asked: Asked,
) -> Result<Response, Refusal> {
    let wait_s = asked.whole("wait_s", 0..=WAIT_S_MAX)?;
    asked.done()?;
    if let Some(seconds @ 1..) = wait_s {
        waiting::until_over(&app, id, Some(Duration::from_secs(seconds))).await?;
    }
    app.blocking(move |app| answer_job(app, id, StatusCode::OK))
        .await
}

/// The job as it is now.
fn answer_job(app: &Inner, id: JobId, status: StatusCode) -> Result<Response, Refusal> {
    let view = JobView::alone(app, app.store.job(id)?)?;
    Ok(answer::json(status, &view))
}

async fn cancel_job(State(app): State<App>, Id(id): Id, asked: Asked) -> Result<Response, Refusal> {
    asked.done()?;
    app.blocking(move |app| {
        // The store takes a second cancelling for the first one's echo; a client should hear that nothing was left to
        // cancel.
        let state = app.store.job(id)?.state;
        if state.is_final() {
            return Err(StoreError::WrongState {
                job: id,
                state,
                verb: "cancel",
            }
            .into());
        }
        let state = app.store.cancel(id, app.now())?;
        answer_job(
            app,
            id,
            if state.is_final() {
                StatusCode::OK
            } else {
                StatusCode::ACCEPTED
            },
        )
    })
    .await
}

/// Makes a change that needs no words, and answers with the job.
async fn change(
    app: App,
    id: JobId,
    body: Value,
    act: impl FnOnce(&dyn JobStore, &Inner) -> Result<(), StoreError> + Send + 'static,
) -> Result<Response, Refusal> {
    Fields::of(body)?.done()?;
    app.blocking(move |app| {
        act(app.store.as_ref(), app)?;
        answer_job(app, id, StatusCode::OK)
    })
    .await
}

async fn pause(
    State(app): State<App>,
    Id(id): Id,
    JsonOrNothing(body): JsonOrNothing,
) -> Result<Response, Refusal> {
    change(app, id, body, move |store, app| {
        store.pause(id, app.now()).map(drop)
    })
    .await
}

async fn resume(
    State(app): State<App>,
    Id(id): Id,
    JsonOrNothing(body): JsonOrNothing,
) -> Result<Response, Refusal> {
    change(app, id, body, move |store, app| {
        store.resume(id, app.now()).map(drop)
    })
    .await
}

async fn requeue(
    State(app): State<App>,
    Id(id): Id,
    JsonOrNothing(body): JsonOrNothing,
) -> Result<Response, Refusal> {
    change(app, id, body, move |store, app| {
        store.requeue(id, app.now())
    })
    .await
}

async fn reorder(
    State(app): State<App>,
    Id(id): Id,
    Json(body): Json,
) -> Result<Response, Refusal> {
    let mut fields = Fields::of(body)?;
    let (priority, front) = (fields.word("priority")?, fields.flag("front")?);
    fields.done()?;
    let moves: Vec<Move> = priority
        .map(Move::To)
        .into_iter()
        .chain(front.unwrap_or(false).then_some(Move::ToFront))
        .collect();
    if moves.is_empty() {
        return Err(Refusal::invalid(
            "priority",
            "urgent, normal or batch is needed, or front: true",
        ));
    }
    app.blocking(move |app| {
        let caller = app.caller();
        caller.check_priority(priority)?;
        // Before all others is before those of others.
        if moves.contains(&Move::ToFront) {
            caller.check_admin()?;
        }
        for to in moves {
            app.store.reorder(id, to, app.now())?;
        }
        answer_job(app, id, StatusCode::OK)
    })
    .await
}
