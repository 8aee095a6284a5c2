//! Files: finished ones, and unfinished pictures.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lowtide_jobs::ArtifactId;
use serde_json::json;

use super::Routes;
use crate::app::App;
use crate::incoming::{Asked, Id, Segment};
use crate::openapi::Operation;
use crate::refusal::Refusal;
use crate::schemas;

/// What a browser may show as a page of its own: types that cannot carry a program. Others are only saved.
const SHOWN: [(&str, &str); 9] = [
    ("image/png", "png"),
    ("image/jpeg", "jpg"),
    ("image/webp", "webp"),
    ("audio/wav", "wav"),
    ("audio/flac", "flac"),
    ("audio/mpeg", "mp3"),
    ("audio/ogg", "ogg"),
    ("video/mp4", "mp4"),
    ("video/webm", "webm"),
];

/// A name stands for the same bytes for ever.
pub(super) const FOR_EVER: HeaderValue =
    HeaderValue::from_static("private, max-age=31536000, immutable");

pub(super) fn routes(routes: Routes) -> Routes {
    let bytes = || json!({ "type": "string", "contentMediaType": "application/octet-stream" });
    let artifact = Operation::new("artifacts", "A finished file")
        .segment("id", schemas::id(), "The artifact's id")
        .header(
            "If-None-Match",
            json!({ "type": "string" }),
            "The ETag of what the client has",
        )
        .answers_with(200, "The file; its ETag is its SHA-256", "*/*", bytes())
        .answers_nothing(304, "The client has it")
        .refuses(&[410]);
    let preview = Operation::new("artifacts", "The latest look at an unfinished picture")
        .segment("id", schemas::id(), "The job's id")
        .answers_with(200, "The picture", "*/*", bytes());
    routes
        .get("/v1/artifacts/{id}", artifact_file, artifact)
        .get("/v1/jobs/{id}/preview", preview_file, preview)
}

async fn artifact_file(
    State(app): State<App>,
    Segment(text): Segment,
    headers: HeaderMap,
    asked: Asked,
) -> Result<Response, Refusal> {
    asked.done()?;
    // From here on it is a number: no text of a client's becomes part of a path.
    let id: ArtifactId = text
        .parse()
        .map_err(|_| Refusal::not_found("this is not an artifact's id"))?;
    let known = app.blocking(move |app| app.artifact_of_caller(id)).await?;
    let artifact = known.ok_or_else(|| Refusal::not_found(format!("there is no artifact {id}")))?;
    let tag = format!("\"{}\"", artifact.sha256);
    let same = |value: &HeaderValue| {
        value.to_str().is_ok_and(|tags| {
            tags == "*"
                || tags
                    .split(',')
                    .any(|one| one.trim().trim_start_matches("W/") == tag)
        })
    };
    let mut response = if headers.get_all(header::IF_NONE_MATCH).iter().any(same) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let media_type = artifact.media_type.clone();
        let bytes = app
            .blocking(move |app| Ok(app.artifacts.read(&artifact)?))
            .await?;
        file(&media_type, bytes, &format!("lowtide-{id}"))
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, FOR_EVER);
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    Ok(response)
}

async fn preview_file(
    State(app): State<App>,
    Id(id): Id,
    asked: Asked,
) -> Result<Response, Refusal> {
    asked.done()?;
    app.ask(move |store| store.job(id)).await?;
    let preview = app.ask(move |store| store.preview(id)).await?;
    let preview =
        preview.ok_or_else(|| Refusal::not_found(format!("job {id} has no preview now")))?;
    let mut response = file(
        &preview.media_type,
        preview.content,
        &format!("preview-{id}"),
    );
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Bytes with a type that was written by a worker, which is one of a list or only to be saved.
pub(super) fn file(media_type: &str, bytes: Vec<u8>, name: &str) -> Response {
    let shown = SHOWN.iter().find(|(shown, _)| *shown == media_type);
    let (media_type, place, ending) = match shown {
        Some((media_type, ending)) => (*media_type, "inline", *ending),
        None => ("application/octet-stream", "attachment", "bin"),
    };
    let mut response = crate::answer::with_type(StatusCode::OK, media_type, Body::from(bytes));
    if let Ok(value) = HeaderValue::from_str(&format!("{place}; filename=\"{name}.{ending}\"")) {
        response
            .headers_mut()
            .insert(header::CONTENT_DISPOSITION, value);
    }
    response
}
