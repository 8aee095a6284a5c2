//! Accepting jobs.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use lowtide_core::job::{JobId, JobState, Moment};
use lowtide_jobs::report::Hints;
use lowtide_jobs::{Accepted, JobStore, StoreError, Submission, Wishes, random_job_id};
use serde::Serialize;
use serde_json::{Value, json};

use super::Routes;
use crate::answer;
use crate::app::{App, Inner};
use crate::fields::{Fields, wrong};
use crate::incoming::JsonWithPictures;
use crate::openapi::{Operation, reference};
use crate::pictures;
use crate::refusal::Refusal;
use crate::schemas::OWNER_LEN_MAX;
use crate::traced::Traced;
use crate::webhooks;
use crate::words;

/// The kind where none is named.
pub(crate) const KIND_DEFAULT: &str = "text-to-image";

/// Ten years: a deadline beyond is a mistake.
const AHEAD_S_MAX: f64 = 315_360_000.0;

/// Where a client may say that a submission is one it made before.
const KEY_HEADER: &str = "idempotency-key";

/// Leaves room for the place in a list.
const KEY_LEN_MAX: usize = 200;

const KEY_RULE: &str = "1 to 200 letters, digits and signs are needed, without spaces";

pub(super) fn routes(routes: Routes) -> Routes {
    let operation = Operation::new("jobs", "Submits a job, or all jobs of a list or none")
        .header("Idempotency-Key", crate::schemas::key(), "A second submission with this key is the first one again; as `idempotency_key` in the body. With a list it is the key of the list")
        .body(reference("Submission"))
        .answers(202, "Accepted: it is on the disk", reference("AcceptedOrList"))
        .answers(200, "It was there before, under its idempotency key", reference("AcceptedOrList"))
        .refuses(&[404, 409, 429]);
    routes.post("/v1/jobs", submit, operation)
}

/// A job that is to be: checked, and not yet in the store.
pub(crate) struct Draft {
    pub(crate) submission: Submission,
    pub(crate) hints: Hints,
}

/// What a client is told of an accepted job.
#[derive(Debug, Serialize)]
struct Receipt {
    id: String,
    state: &'static str,
    position: Option<u64>,
    eta_s: Option<f64>,
    seconds: Option<f64>,
    peak_bytes: Option<u64>,
    links: Links,
}

#[derive(Debug, Serialize)]
struct Links {
    #[serde(rename = "self")]
    job: String,
    events: String,
    cancel: String,
}

async fn submit(
    State(app): State<App>,
    headers: HeaderMap,
    JsonWithPictures(body, turn): JsonWithPictures,
) -> Result<Response, Refusal> {
    let key = key_of(&headers)?;
    let traced = Traced::begin(&headers);
    app.blocking(move |app| {
        // Held until the pictures are on the disk.
        let _turn = turn;
        match body {
            Value::Object(ref fields) if fields.contains_key("jobs") => {
                several(app, body, key, traced)
            }
            body => one(app, body, key, traced),
        }
    })
    .await
}

/// The key in the headers.
pub(crate) fn key_of(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get(KEY_HEADER) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text) if is_key(text) => Ok(Some(text.to_owned())),
        _ => Err(Refusal::malformed("Idempotency-Key", KEY_RULE)),
    }
}

fn is_key(text: &str) -> bool {
    (1..=KEY_LEN_MAX).contains(&text.len()) && text.bytes().all(|sign| sign.is_ascii_graphic())
}

fn one(app: &Inner, body: Value, key: Option<String>, traced: Traced) -> Result<Response, Refusal> {
    let now = app.now();
    let draft = draft(app, Fields::of(body)?, now)?.with_key(key)?;
    let (model, hints) = (draft.submission.model.clone(), draft.hints);
    let accepted = accept(app, traced, vec![draft.submission], |store, mut all| {
        let one = all.pop().expect("it is one");
        Ok(vec![store.submit(one, now)?])
    })?;
    let accepted = accepted[0];
    let receipt = receipt(app, accepted, (&model, &hints), now)?;
    let status = if accepted.existed {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let mut response = answer::json(status, &receipt);
    if let Ok(location) = HeaderValue::from_str(&receipt.links.job) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

fn several(
    app: &Inner,
    body: Value,
    key: Option<String>,
    traced: Traced,
) -> Result<Response, Refusal> {
    let mut fields = Fields::of(body)?;
    let jobs = match fields.take("jobs") {
        Some(Value::Array(jobs)) if !jobs.is_empty() => jobs,
        other => {
            return Err(wrong(
                "jobs",
                "a list of at least one job",
                &other.unwrap_or(Value::Null),
            ));
        }
    };
    fields.done()?;
    let now = app.now();
    let mut drafts = Vec::with_capacity(jobs.len());
    for (place, job) in jobs.into_iter().enumerate() {
        let read = Fields::of(job).and_then(|fields| draft(app, fields, now));
        let mut draft = read.map_err(|refusal| refusal.within(&format!("jobs[{place}]")))?;
        // A list that is sent again is the same list again.
        if let (None, Some(key)) = (&draft.submission.idempotency_key, &key) {
            draft.submission.idempotency_key = Some(format!("{key}.{place}"));
        }
        drafts.push(draft);
    }
    let known: Vec<(String, Hints)> = drafts
        .iter()
        .map(|draft| (draft.submission.model.clone(), draft.hints.clone()))
        .collect();
    let all = drafts.into_iter().map(|draft| draft.submission).collect();
    let accepted = accept(app, traced, all, |store, all| store.submit_all(all, now))?;
    let receipts = accepted
        .iter()
        .zip(&known)
        .map(|(&accepted, (model, hints))| receipt(app, accepted, (model, hints), now));
    let receipts = receipts.collect::<Result<Vec<_>, Refusal>>()?;
    let status = match accepted.iter().all(|accepted| accepted.existed) {
        true => StatusCode::OK,
        false => StatusCode::ACCEPTED,
    };
    Ok(answer::json(status, &json!({ "jobs": receipts })))
}

/// Has jobs accepted, and listens to those whose webhooks want more than their end: from before they are in the store, so
/// that nothing is missed.
fn accept(
    app: &Inner,
    traced: Traced,
    mut submissions: Vec<Submission>,
    submit: impl FnOnce(&dyn JobStore, Vec<Submission>) -> Result<Vec<Accepted>, StoreError>,
) -> Result<Vec<Accepted>, Refusal> {
    let marked: Vec<_> = submissions
        .iter_mut()
        .map(|one| traced.mark(app, one))
        .collect();
    let asked: Vec<JobId> = submissions
        .iter()
        .filter_map(|one| Some((one.id, one.webhook.as_ref()?)))
        .filter(|(id, webhook)| app.calls.watch(*id, webhook))
        .map(|(id, _)| id)
        .collect();
    let latest = || Ok(app.store.stats(app.now())?.last_event);
    let followed = match asked.is_empty() {
        true => Ok(()),
        false => app.hub.follow(latest),
    };
    let accepted = followed.and_then(|()| submit(app.store.as_ref(), submissions));
    let new = |id: &JobId| {
        let all = accepted.as_ref().map_or(&[][..], Vec::as_slice);
        all.iter().any(|one| one.job == *id && !one.existed)
    };
    for id in asked.iter().filter(|id| !new(id)) {
        app.calls.forget(*id);
    }
    for marked in marked {
        marked.note(app, accepted.as_ref().err());
    }
    Ok(accepted?)
}

impl Draft {
    fn with_key(mut self, key: Option<String>) -> Result<Draft, Refusal> {
        match (&self.submission.idempotency_key, key) {
            (_, None) => Ok(self),
            (Some(inner), Some(outer)) if *inner != outer => Err(Refusal::conflict(
                "idempotency_key and the header Idempotency-Key say different things",
            )),
            (_, key) => {
                self.submission.idempotency_key = key;
                Ok(self)
            }
        }
    }
}

fn check_owner(owner: Option<&str>) -> Result<(), Refusal> {
    let fits = |owner: &str| (1..=OWNER_LEN_MAX).contains(&owner.chars().count());
    match owner.is_none_or(fits) {
        true => Ok(()),
        false => Err(Refusal::invalid(
            "owner",
            format!("1 to {OWNER_LEN_MAX} letters are needed"),
        )),
    }
}

/// Reads and checks one submission.
pub(crate) fn draft(app: &Inner, mut fields: Fields, now: Moment) -> Result<Draft, Refusal> {
    let kind = fields
        .text("kind")?
        .unwrap_or_else(|| KIND_DEFAULT.to_owned());
    let model = fields.text("model")?;
    let mut request = match fields.take("request") {
        Some(request @ Value::Object(_)) => request,
        other => return Err(wrong("request", "an object", &other.unwrap_or(Value::Null))),
    };
    let then = fields.take("then");
    let priority = fields.word("priority")?;
    let mut later = |name| -> Result<Option<Moment>, Refusal> {
        Ok(fields
            .number(name, 0.0..=AHEAD_S_MAX)?
            .map(|seconds| now.plus_seconds(seconds)))
    };
    let (deadline, start_by) = (later("deadline_s")?, later("start_by_s")?);
    let keep_alive = fields
        .take("keep_alive")
        .map(|value| words::read_keep_alive(&value))
        .transpose()?;
    let after_job = fields
        .text("after_job")?
        .map(|word| words::read_after_job(&word))
        .transpose()?;
    let webhook = webhooks::read(app, &mut fields)?;
    let (owner, idempotency_key) = (fields.text("owner")?, fields.text("idempotency_key")?);
    fields.done()?;
    let caller = app.caller();
    caller.check_priority(priority)?;
    let owner = caller.owner_of(owner)?;
    check_owner(owner.as_deref())?;
    if idempotency_key.as_deref().is_some_and(|key| !is_key(key)) {
        return Err(Refusal::invalid("idempotency_key", KEY_RULE));
    }
    let (kind, model) = chained(app, (kind, model), &mut request, then)?;
    pictures::name_all(app, &kind, &mut request, now)?;
    let checked = app.door.check(
        &kind,
        model.as_deref(),
        request,
        app.forecasts.latest().budget,
    )?;
    let inputs = pictures::named_by(app, &kind, &checked.request);
    Ok(Draft {
        submission: Submission {
            inputs,
            id: random_job_id(now),
            kind,
            model: checked.model,
            request: checked.request.to_string(),
            hints: Some(checked.hints.to_json()),
            priority,
            deadline,
            start_by,
            idempotency_key,
            owner,
            quota: caller.quota(),
            webhook,
            wishes: Wishes {
                trace: None,
                after_job,
                keep_alive,
            },
        },
        hints: checked.hints,
    })
}

/// A job with steps after it is a job of all these steps: `then` has the others.
pub(crate) fn chained(
    app: &Inner,
    (kind, model): (String, Option<String>),
    request: &mut Value,
    then: Option<Value>,
) -> Result<(String, Option<String>), Refusal> {
    let then = match then {
        None => return Ok((kind, model)),
        Some(Value::Array(then)) if then.is_empty() => return Ok((kind, model)),
        Some(Value::Array(then)) => then,
        Some(other) => return Err(wrong("then", "a list of steps", &other)),
    };
    let all = pictures::kind_of_steps(app);
    let all =
        all.ok_or_else(|| Refusal::invalid("then", "jobs of several steps are not done here"))?;
    if kind == all {
        return Err(Refusal::invalid(
            "then",
            "is for a job of one step; add to its steps",
        ));
    }
    let first = json!({ "kind": kind, "model": model, "request": request.take() });
    let steps: Vec<Value> = std::iter::once(first).chain(then).collect();
    *request = json!({ "steps": steps });
    Ok((all.to_owned(), None))
}

fn receipt(
    app: &Inner,
    accepted: Accepted,
    (model, hints): (&str, &Hints),
    now: Moment,
) -> Result<Receipt, Refusal> {
    let job = accepted.job;
    app.caller().made(job);
    if accepted.existed {
        let known = app.store.job(job)?;
        let place = app
            .forecasts
            .latest()
            .place(job)
            .filter(|_| known.state == JobState::Queued);
        let ahead = app.store.ahead_of(job)?;
        let eta_s = place
            .and_then(|place| place.finish)
            .map(|finish| finish.seconds_since(now));
        let hints = known.hints.as_deref().and_then(Hints::from_json);
        return Ok(Receipt::new(
            job,
            known.state,
            (ahead, eta_s),
            hints.as_ref(),
        ));
    }
    app.counters
        .submitted
        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let ahead = accepted.ahead;
    let finish = ahead.and_then(|ahead| {
        app.forecasts
            .latest()
            .newcomer(ahead, model, hints.seconds, now)
    });
    let eta_s = finish.map(|finish| finish.seconds_since(now));
    Ok(Receipt::new(
        job,
        JobState::Queued,
        (ahead, eta_s),
        Some(hints),
    ))
}

impl Receipt {
    fn new(
        job: JobId,
        state: JobState,
        (ahead, eta_s): (Option<u64>, Option<f64>),
        hints: Option<&Hints>,
    ) -> Receipt {
        let path = format!("/v1/jobs/{job}");
        Receipt {
            id: job.to_string(),
            state: state.name(),
            position: ahead.map(|ahead| ahead + 1),
            eta_s,
            seconds: hints.map(|hints| hints.seconds),
            peak_bytes: hints.map(|hints| hints.peak),
            links: Links {
                events: format!("{path}/events"),
                cancel: path.clone(),
                job: path,
            },
        }
    }
}
