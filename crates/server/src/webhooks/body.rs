//! What is told: the job as `GET /v1/jobs/{id}` shows it, and beside that what clients of Cog and Replicate read.

use lowtide_core::job::{JobState, Moment};
use lowtide_jobs::{DeliveryState, Job, StoreError, Webhook};
use serde_json::{Map, Value, json};

use crate::app::Inner;
use crate::view::JobView;

/// What is told of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// A worker began.
    Start,
    /// It is a step further.
    Progress,
    /// It is over.
    Completed,
}

impl Event {
    /// All of them, in the order of a life.
    pub(crate) const ALL: [Event; 3] = [Event::Start, Event::Progress, Event::Completed];

    /// The word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Event::Start => "start",
            Event::Progress => "progress",
            Event::Completed => "completed",
        }
    }
}

/// The JSON of a call.
///
/// # Errors
/// Of the store, which is asked for the job's place.
pub(super) fn text(app: &Inner, job: Job, event: Event) -> Result<String, StoreError> {
    let (state, worked_ms) = (job.state, job.worked_ms());
    let times = [
        ("created_at", Some(job.submitted)),
        ("started_at", job.started),
        ("completed_at", job.finished),
    ];
    let output = job.outcome.as_ref().map(|outcome| {
        let base = app.options.webhooks.base.as_deref().unwrap_or_default();
        let files = outcome.artifacts.iter();
        files
            .map(|file| format!("{}/v1/artifacts/{}", base.trim_end_matches('/'), file.id))
            .collect::<Vec<_>>()
    });
    let logs = job
        .progress
        .as_ref()
        .map(|progress| format!("{}: {}/{}\n", progress.phase, progress.step, progress.steps));
    let view = JobView::alone(app, job)?;
    let mut body = serde_json::to_value(&view).expect("a job has JSON");
    body["event"] = event.name().into();
    body["status"] = status(state, event).into();
    body["input"] = body["request"].clone();
    body["output"] = output.filter(|_| state == JobState::Done).into();
    body["logs"] = logs.unwrap_or_default().into();
    body["metrics"] = match state.is_final() {
        true => json!({ "predict_time": worked_ms as f64 / 1e3 }),
        false => json!({}),
    };
    for (name, time) in times {
        body[name] = time.map(Moment::iso).into();
    }
    Ok(body.to_string())
}

/// The state in Cog's words. There a call says `starting` when a prediction begins.
fn status(state: JobState, event: Event) -> &'static str {
    match (state, event) {
        (JobState::Done, _) => "succeeded",
        (JobState::Failed, _) => "failed",
        (JobState::Cancelled, _) => "canceled",
        (_, Event::Start) | (JobState::Queued | JobState::Paused, _) => "starting",
        (JobState::Running | JobState::Parked, _) => "processing",
    }
}

/// Whom a job tells and how far that got, without what may be secret.
pub(crate) fn view(webhook: &Webhook, job: &Job) -> Value {
    let events = [
        (webhook.start, Event::Start),
        (webhook.progress, Event::Progress),
        (webhook.completed, Event::Completed),
    ];
    let events = events.iter().filter(|(told, _)| *told);
    let delivery = match &job.delivery {
        Some(delivery) => json!({
            "state": delivery.state.name(),
            "tries": delivery.tries,
            "at_ms": delivery.at.0,
            "next_ms": delivery.due.map(|due| due.0),
            "problem": delivery.problem,
        }),
        None if webhook.completed && job.state.is_final() => json!({
            "state": DeliveryState::Waiting.name(), "tries": 0, "at_ms": null, "next_ms": null, "problem": null,
        }),
        None => Value::Null,
    };
    let fields = [
        ("url", json!(webhook.shown())),
        (
            "events",
            events
                .map(|(_, event)| event.name())
                .collect::<Vec<_>>()
                .into(),
        ),
        ("delivery", delivery),
    ];
    Value::Object(Map::from_iter(
        fields.map(|(name, value)| (name.to_owned(), value)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_in_cogs_words() {
        for (state, event, word) in [
            (JobState::Running, Event::Start, "starting"),
            (JobState::Running, Event::Progress, "processing"),
            (JobState::Parked, Event::Progress, "processing"),
            (JobState::Queued, Event::Progress, "starting"),
            (JobState::Done, Event::Completed, "succeeded"),
            (JobState::Failed, Event::Completed, "failed"),
            (JobState::Cancelled, Event::Completed, "canceled"),
            // A start that is told late.
            (JobState::Done, Event::Start, "succeeded"),
        ] {
            assert_eq!(status(state, event), word, "{state} {event:?}");
        }
    }
}
