//! How a job looks from outside.

use lowtide_core::job::{JobState, Moment};
use lowtide_jobs::{Attempt, Job, Progress};
use serde::Serialize;
use serde_json::{Value, json};

use crate::Download;
use crate::app::Inner;
use crate::outlook::{Outlook, Place};
use crate::webhooks;

/// A job as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct JobView {
    id: String,
    seq: u64,
    kind: String,
    model: String,
    pub(crate) state: &'static str,
    priority: &'static str,
    owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Value>,
    submitted_ms: u64,
    started_ms: Option<u64>,
    finished_ms: Option<u64>,
    deadline_ms: Option<u64>,
    attempt: u32,
    position: Option<u64>,
    eta_s: Option<f64>,
    progress: Option<Progress>,
    preview_url: Option<String>,
    artifacts: Vec<Value>,
    report: Option<Value>,
    error: Option<String>,
    history: Vec<Attempt>,
    cancel_requested: bool,
    pause_requested: bool,
    wishes: Value,
    /// Whom it tells, and how far that got.
    webhook: Option<Value>,
    /// How far its model is on its way here, while it waits for that.
    pub(crate) download: Option<Value>,
}

/// JSON that somebody submitted or reported; what is none is a text.
fn parsed(text: String) -> Value {
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

impl JobView {
    /// One of a list, without its request.
    pub(crate) fn listed(job: Job, outlook: &Outlook, now: Moment) -> JobView {
        let place = outlook.place(job.id);
        JobView::new(job, place, now)
    }

    /// One alone, with its request and, while it waits, its true position.
    pub(crate) fn alone(app: &Inner, mut job: Job) -> Result<JobView, lowtide_jobs::StoreError> {
        let now = app.now();
        let mut place = app.forecasts.latest().place(job.id);
        if job.state == JobState::Queued {
            let position = app.store.ahead_of(job.id)?.map(|ahead| ahead + 1);
            place = position.map(|position| Place {
                position,
                // A time belongs to the position it was made for.
                finish: place
                    .filter(|place| place.position == position)
                    .and_then(|place| place.finish),
            });
        }
        let waits = job.state == JobState::Queued;
        let download = app.door.downloads().filter(|_| waits);
        let download = download.and_then(|all| Download::of_job(&all.all(), job.id));
        let request = parsed(std::mem::take(&mut job.request));
        let mut view = JobView::new(job, place, now);
        view.request = Some(request);
        view.download = download;
        Ok(view)
    }

    fn new(job: Job, place: Option<Place>, now: Moment) -> JobView {
        let place = place.filter(|_| job.state == JobState::Queued);
        let running_eta_s = || match job.state.is_leased() {
            true => job.progress.as_ref()?.eta_ms.map(|ms| ms as f64 / 1e3),
            false => None,
        };
        let eta_s = match place {
            Some(place) => place.finish.map(|finish| finish.seconds_since(now)),
            None => running_eta_s(),
        };
        let webhook = job.webhook.as_ref();
        let webhook = webhook.map(|webhook| webhooks::view(webhook, &job));
        let id = job.id.to_string();
        let outcome = job.outcome.unwrap_or_default();
        JobView {
            preview_url: job
                .state
                .is_leased()
                .then(|| format!("/v1/jobs/{id}/preview")),
            id,
            seq: job.seq,
            kind: job.kind,
            model: job.model,
            state: job.state.name(),
            priority: job.priority.name(),
            owner: job.owner,
            request: None,
            submitted_ms: job.submitted.0,
            started_ms: job.started.map(|moment| moment.0),
            finished_ms: job.finished.map(|moment| moment.0),
            deadline_ms: job.deadline.map(|moment| moment.0),
            attempt: job.attempt,
            position: place.map(|place| place.position),
            eta_s,
            progress: job.progress,
            artifacts: outcome.artifacts.iter().map(artifact).collect(),
            report: outcome.report.map(parsed),
            error: job.error,
            history: job.history,
            cancel_requested: job.cancel_requested,
            pause_requested: job.pause_requested,
            webhook,
            wishes: json!({
                "after_job": job.wishes.after_job.map(crate::words::after_job),
                "keep_alive": job.wishes.keep_alive.map(|keep| keep.to_string()),
            }),
            download: None,
        }
    }
}

fn artifact(artifact: &lowtide_jobs::Artifact) -> Value {
    json!({
        "id": artifact.id.to_string(),
        "url": format!("/v1/artifacts/{}", artifact.id),
        "media_type": artifact.media_type,
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
    })
}
