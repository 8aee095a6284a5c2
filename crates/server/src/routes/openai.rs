//! Pictures as OpenAI's clients ask for them. A dialect: it translates to a job and back, and decides nothing.

mod edits;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lowtide_core::job::JobState;
use lowtide_jobs::{Artifact, Job};
use serde_json::{Map, Value, json};

use self::edits::Edit;
use super::Routes;
use super::catalog::seconds;
use super::submit::{Draft, KIND_DEFAULT, draft, key_of};
use super::waiting::Patron;
use crate::app::{App, Inner};
use crate::base64;
use crate::fields::Fields;
use crate::incoming::{Asked, Json};
use crate::openapi::{Operation, reference};
use crate::refusal::Refusal;

/// Accepted because clients send them; there is nothing they would change here.
const IGNORED: [&str; 7] = [
    "background",
    "input_fidelity",
    "moderation",
    "output_compression",
    "partial_images",
    "style",
    "user",
];

/// Values of `quality` that mean nothing here; `exact` and `auto` do.
const QUALITIES_IGNORED: [&str; 5] = ["standard", "hd", "low", "medium", "high"];

pub(super) fn routes(routes: Routes) -> Routes {
    let generate = Operation::new(
        "openai",
        "Makes pictures, as OpenAI's clients ask for them, and waits for them",
    )
    .errors("OpenaiError")
    .body(reference("OpenaiImageRequest"))
    .answers(200, "The pictures", reference("OpenaiImages"))
    .refuses(&[404, 409, 429]);
    let edit = Operation::new(
        "openai",
        "Makes pictures from a picture, as OpenAI's clients ask for them, and waits for them",
    )
    .errors("OpenaiError")
    .body_of("multipart/form-data", reference("OpenaiEditForm"))
    .body_of("application/json", reference("OpenaiEditRequest"))
    .answers(200, "The pictures", reference("OpenaiImages"))
    .refuses(&[404, 409, 429]);
    routes
        .post("/v1/images/generations", generate_images, generate)
        .post("/v1/images/edits", edit_images, edit)
}

/// A refusal as OpenAI writes it.
struct Foreign(Refusal);

impl From<Refusal> for Foreign {
    fn from(refusal: Refusal) -> Foreign {
        // Its clients know 400 for everything that is wrong with a request.
        Foreign(match refusal {
            Refusal::Invalid { field, problem } => Refusal::Malformed { field, problem },
            other => other,
        })
    }
}

impl IntoResponse for Foreign {
    fn into_response(self) -> Response {
        let Foreign(refusal) = self;
        let status = refusal.status();
        let kind = match status.as_u16() {
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let code = match &refusal {
            Refusal::NotFound { .. } => "model_not_found",
            Refusal::QueueFull { .. } | Refusal::QuotaReached { .. } => "rate_limit_exceeded",
            other => other.code(),
        };
        let param = refusal
            .field()
            .map(|field| field.trim_start_matches("request."));
        let mut response = refusal.with_body(json!({
            "error": { "message": refusal.message(), "type": kind, "param": param, "code": code },
        }));
        // A job that failed would fail again: its clients would try twice more.
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            response
                .headers_mut()
                .insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

/// What was asked for, beside the job itself.
struct Wanted {
    url: bool,
    b64: bool,
}

async fn generate_images(
    State(app): State<App>,
    headers: HeaderMap,
    asked: Asked,
    body: Result<Json, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    let Json(body) = body?;
    made(app, headers, move |app| translate(app, body, Vec::new())).await
}

async fn edit_images(
    State(app): State<App>,
    headers: HeaderMap,
    asked: Asked,
    edit: Result<Edit, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    let edit = edit?;
    made(app, headers, move |app| {
        let (fields, begun) = edit.settle(app)?;
        translate(app, Value::Object(fields), begun.fields())
    })
    .await
}

/// Submits what is asked and waits for it.
async fn made(
    app: App,
    headers: HeaderMap,
    ask: impl FnOnce(&Inner) -> Result<(Wanted, Draft), Refusal> + Send + 'static,
) -> Result<Response, Foreign> {
    let key = key_of(&headers)?;
    let desk = App::clone(&app);
    let (wanted, patron) = app
        .blocking(move |app| {
            let (wanted, mut draft) = ask(app)?;
            draft.submission.idempotency_key = key;
            let accepted = app.store.submit(draft.submission, app.now())?;
            app.caller().made(accepted.job);
            Ok((wanted, Patron::new(desk, accepted.job, accepted.existed)))
        })
        .await?;
    let over = patron.until_over().await?;
    let base = base_of(&headers);
    Ok(app
        .blocking(move |app| result(app, over, &wanted, &base))
        .await?)
}

/// `http://` and the host as the client knows it.
fn base_of(headers: &HeaderMap) -> String {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or("localhost");
    let secure = headers
        .get("x-forwarded-proto")
        .is_some_and(|scheme| scheme == "https");
    format!("{}://{host}", if secure { "https" } else { "http" })
}

/// A request of ours from one of theirs.
fn translate(
    app: &Inner,
    body: Value,
    begun: Vec<(&'static str, Value)>,
) -> Result<(Wanted, Draft), Refusal> {
    let mut fields = Fields::of(body)?;
    for name in IGNORED {
        fields.take(name);
    }
    if fields.flag("stream")?.unwrap_or(false) {
        return Err(Refusal::invalid(
            "stream",
            "pictures are not streamed here: leave it out",
        ));
    }
    let mut request = Map::new();
    let from_picture = !begun.is_empty();
    for (name, value) in begun {
        if !offer(app, &mut request, name, value) {
            let problem = "this kind of job begins from no picture";
            return Err(Refusal::invalid(name, problem));
        }
    }
    let prompt = fields
        .text("prompt")?
        .ok_or_else(|| Refusal::invalid("prompt", "a text is needed"))?;
    request.insert("prompt".to_owned(), json!(prompt));
    if let Some(size) = fields.text("size")?.filter(|size| size != "auto") {
        let (width, height) = read_size(&size)?;
        request.insert("width".to_owned(), json!(width));
        request.insert("height".to_owned(), json!(height));
    }
    match fields.text("quality")?.as_deref() {
        None => {}
        Some(word @ ("exact" | "auto")) => {
            offer(app, &mut request, "quality", json!(word));
        }
        Some(word) if QUALITIES_IGNORED.contains(&word) => {}
        Some(_) => {
            return Err(Refusal::invalid(
                "quality",
                "auto, low, medium, high, standard, hd or exact is needed",
            ));
        }
    }
    let wanted = read_wanted(&mut fields)?;
    let n = fields.whole("n", 1..=10)?.unwrap_or(1);
    if n > 1 && !offer(app, &mut request, "count", json!(n)) {
        return Err(Refusal::invalid("n", "this kind of job makes one picture"));
    }
    pass_on(app, &mut fields, &mut request, from_picture)?;
    let model = fields.text("model")?;
    fields.done()?;
    let submission = json!({ "kind": KIND_DEFAULT, "model": model, "request": request });
    Ok((wanted, draft(app, Fields::of(submission)?, app.now())?))
}

/// Fields that mean the same here.
fn pass_on(
    app: &Inner,
    fields: &mut Fields,
    request: &mut Map<String, Value>,
    from_picture: bool,
) -> Result<(), Refusal> {
    for (theirs, ours) in [
        ("seed", "seed"),
        ("negative_prompt", "negative"),
        ("steps", "steps"),
        ("guidance", "guidance"),
        ("output_format", "output_format"),
        ("strength", "strength"),
    ] {
        // Without a picture there is nothing of which a part could change.
        if theirs == "strength" && !from_picture {
            continue;
        }
        if let Some(value) = fields.take(theirs)
            && !offer(app, request, ours, value)
        {
            return Err(Refusal::invalid(
                theirs,
                "this kind of job does not know it",
            ));
        }
    }
    Ok(())
}

fn read_wanted(fields: &mut Fields) -> Result<Wanted, Refusal> {
    let (url, b64) = match fields.text("response_format")?.as_deref() {
        // Older clients expect one, newer ones the other.
        None => (true, true),
        Some("url") => (true, false),
        Some("b64_json") => (false, true),
        Some(_) => {
            return Err(Refusal::invalid(
                "response_format",
                "url or b64_json is needed",
            ));
        }
    };
    Ok(Wanted { url, b64 })
}

/// Puts a field into the request where the kind's schema has it.
pub(super) fn offer(
    app: &Inner,
    request: &mut Map<String, Value>,
    name: &str,
    value: Value,
) -> bool {
    let kind = app.kinds.iter().find(|kind| kind.name == KIND_DEFAULT);
    let known = kind.is_some_and(|kind| kind.schema["properties"].get(name).is_some());
    if known {
        request.insert(name.to_owned(), value);
    }
    known
}

fn read_size(size: &str) -> Result<(u32, u32), Refusal> {
    let sides = size
        .split_once('x')
        .and_then(|(width, height)| Some((plain(width)?, plain(height)?)));
    sides
        .ok_or_else(|| Refusal::invalid("size", "WIDTHxHEIGHT is needed, such as 512x512, or auto"))
}

/// Digits alone: `parse` would take a sign, too.
fn plain(digits: &str) -> Option<u32> {
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
}

/// The answer to a job that is over.
fn result(app: &Inner, job: Job, wanted: &Wanted, base: &str) -> Result<Response, Refusal> {
    match job.state {
        JobState::Done => {}
        JobState::Failed => {
            let why = job.error.unwrap_or_default();
            return Err(Refusal::Internal {
                problem: format!("job {} failed: {why}", job.id),
            });
        }
        JobState::Cancelled => {
            return Err(Refusal::conflict(format!("job {} was cancelled", job.id)));
        }
        JobState::Queued | JobState::Running | JobState::Parked | JobState::Paused => {
            return Err(Refusal::Unavailable {
                problem: format!(
                    "the server ends; job {} goes on after its next start",
                    job.id
                ),
            });
        }
    }
    let outcome = job.outcome.unwrap_or_default();
    let data = outcome
        .artifacts
        .iter()
        .map(|artifact| picture(app, artifact, wanted, base));
    let data = data.collect::<Result<Vec<_>, Refusal>>()?;
    let created = seconds(job.finished.unwrap_or_else(|| app.now()));
    let mut response = crate::answer::ok(&json!({ "created": created, "data": data }));
    if let Ok(id) = HeaderValue::from_str(&job.id.to_string()) {
        response.headers_mut().insert("x-request-id", id);
    }
    Ok(response)
}

fn picture(
    app: &Inner,
    artifact: &Artifact,
    wanted: &Wanted,
    base: &str,
) -> Result<Value, Refusal> {
    let mut picture = Map::new();
    if wanted.b64 {
        picture.insert(
            "b64_json".to_owned(),
            json!(base64::encode(&app.artifacts.read(artifact)?)),
        );
    }
    if wanted.url {
        picture.insert(
            "url".to_owned(),
            json!(format!("{base}/v1/artifacts/{}", artifact.id)),
        );
    }
    Ok(Value::Object(picture))
}

#[cfg(test)]
mod tests {
    use super::read_size;

    #[test]
    fn a_size_is_two_plain_numbers() {
        assert_eq!(read_size("640x480"), Ok((640, 480)));
        for size in [
            "640",
            "640x",
            "x",
            "+1x2",
            "-1x2",
            "1x2x3",
            "1 x2",
            "99999999999x1",
            "1X2",
        ] {
            assert!(read_size(size).is_err(), "{size}");
        }
    }
}
