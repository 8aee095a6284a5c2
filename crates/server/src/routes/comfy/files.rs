//! Pictures: sent ahead, and fetched when they are made. Names are made from what this service calls them, so that no
//! client's text is part of a path.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::header;
use axum::response::Response;
use futures_util::stream;
use lowtide_core::job::Moment;
use lowtide_jobs::{Artifact, ArtifactId, InputId, StoreError};
use serde_json::json;

use super::graph::Mask;
use super::{Foreign, operation};
use crate::answer;
use crate::app::{App, Inner};
use crate::incoming::{Asked, Turn, essence, read_long};
use crate::refusal::Refusal;
use crate::routes::{Routes, artifacts};
use crate::{pictures, schemas};

/// Parts of a form.
const PARTS_MAX: usize = 16;

/// What the names of results begin with.
const PREFIX: &str = "lowtide_";

pub(super) fn routes(routes: Routes, at: &impl Fn(&str) -> String) -> Routes {
    let bytes = || json!({ "type": "string", "contentMediaType": "application/octet-stream" });
    let view = operation("A picture that was made, or sent")
        .query("filename", schemas::name(), "Its name")
        .query("subfolder", schemas::name(), "Changes nothing")
        .query("type", schemas::name(), "output, temp or input")
        .answers_with(200, "The file", "*/*", bytes())
        .refuses(&[404, 410]);
    let upload = |summary| {
        operation(summary)
            .body_of(
                "multipart/form-data",
                json!({ "type": "object", "properties": { "image": bytes() } }),
            )
            .answers(200, "The name to load it by", json!({ "type": "object" }))
    };
    routes
        .get(&at("/view"), view_file, view)
        .post(
            &at("/upload/image"),
            upload_file,
            upload("Sends a picture to begin from"),
        )
        .post(
            &at("/upload/mask"),
            upload_file,
            upload("Sends a picture whose transparency is a mask"),
        )
}

/// What a result is called.
pub(super) fn name_of(artifact: &Artifact) -> String {
    let ending = match artifact.media_type.as_str() {
        "image/jpeg" => "jpg",
        "image/webp" => "webp",
        _ => "png",
    };
    format!("{PREFIX}{}.{ending}", artifact.id)
}

/// The middle of a name: without folders and the ending, and what ComfyUI writes behind it.
fn stem(name: &str) -> &str {
    let name = name.split(" [").next().unwrap_or(name);
    let name = name.rsplit(['/', '\\']).next().unwrap_or(name);
    name.split('.').next().unwrap_or(name)
}

fn artifact_of(name: &str) -> Option<ArtifactId> {
    stem(name).strip_prefix(PREFIX)?.parse().ok()
}

fn input_of(name: &str) -> Option<InputId> {
    format!("sha256:{}", stem(name)).parse().ok()
}

/// What a request of ours calls a picture that a graph names.
///
/// # Errors
/// It is none.
pub(super) fn input_named(app: &Inner, name: &str) -> Result<String, Refusal> {
    if let Some(id) = artifact_of(name) {
        return Ok(format!("artifact:{id}"));
    }
    match input_of(name) {
        Some(id) if app.inputs.touch(id, app.now())? => Ok(id.to_string()),
        _ => Err(Refusal::malformed(
            "image",
            format!(
                "there is no picture '{}': send it with /upload/image first",
                name.chars().take(80).collect::<String>()
            ),
        )),
    }
}

/// The content of a picture that a graph names.
fn content(app: &Inner, name: &str) -> Result<Vec<u8>, Refusal> {
    let gone = || {
        Refusal::not_found(format!(
            "there is no picture '{}'",
            name.chars().take(80).collect::<String>()
        ))
    };
    let read = match (artifact_of(name), input_of(name)) {
        (Some(id), _) => {
            let artifact = app.artifact_of_caller(id)?.ok_or_else(gone)?;
            app.artifacts.read(&artifact)
        }
        (_, Some(id)) => app.inputs.read(id, app.options.input_max.0),
        _ => return Err(gone()),
    };
    match read {
        Err(StoreError::InputMissing { .. } | StoreError::ArtifactMissing { .. }) => Err(gone()),
        read => Ok(read?),
    }
}

/// Stores a mask as requests of ours have it, bright where something is drawn anew.
///
/// # Errors
/// There is no such picture, or nothing of it can be seen through.
pub(super) fn mask(app: &Inner, mask: &Mask, now: Moment) -> Result<String, Refusal> {
    let mut bright = content(app, &mask.picture)?;
    if mask.of_alpha {
        // There a mask is bright where a picture can be seen through, too.
        let seen_through = app.door.mask_of(&bright)?;
        bright = seen_through.ok_or_else(|| {
            Refusal::malformed(
                "mask",
                "the picture can be seen through nowhere, so that nothing would change",
            )
        })?;
    }
    if mask.inverted {
        bright = app.door.inverted(&bright)?;
    }
    Ok(pictures::keep(app, "mask", &bright, now)?.to_string())
}

async fn view_file(State(app): State<App>, mut asked: Asked) -> Result<Response, Foreign> {
    let name = asked.text("filename")?;
    for other in ["type", "preview", "channel", "rand"] {
        asked.text(other)?;
    }
    // An empty one is what clients send.
    asked.ignore("subfolder");
    asked.done()?;
    let name = name.ok_or_else(|| Refusal::malformed("filename", "it is missing"))?;
    Ok(app
        .blocking(move |app| {
            let file = content(app, &name)?;
            let media_type = pictures::media_type(&file).unwrap_or("application/octet-stream");
            Ok(artifacts::file(media_type, file, stem(&name)))
        })
        .await?)
}

/// A picture in a form.
pub(super) struct Upload {
    file: Vec<u8>,
    turn: Turn,
}

impl FromRequest<App> for Upload {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Upload, Refusal> {
        let (parts, body) = request.into_parts();
        if essence(&parts.headers).as_deref() != Some("multipart/form-data") {
            return Err(Refusal::UnsupportedMediaType {
                expected: "a form (multipart/form-data) with a part 'image'",
                found: essence(&parts.headers),
            });
        }
        let (bytes, turn) = read_long(body, &parts.headers, app, 1).await?;
        let content_type = parts.headers.get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let file = image_of(bytes, content_type.unwrap_or_default()).await?;
        Ok(Upload { file, turn })
    }
}

async fn image_of(bytes: Bytes, content_type: &str) -> Result<Vec<u8>, Refusal> {
    let broken = |error: multer::Error| Refusal::Malformed {
        field: None,
        problem: format!("the form cannot be read: {error}"),
    };
    let boundary = multer::parse_boundary(content_type).map_err(broken)?;
    let whole = stream::iter([Ok::<_, std::convert::Infallible>(bytes)]);
    let mut form = multer::Multipart::new(whole, boundary);
    for _ in 0..PARTS_MAX {
        let Some(part) = form.next_field().await.map_err(broken)? else {
            break;
        };
        if part.name() == Some("image") {
            return Ok(part.bytes().await.map_err(broken)?.to_vec());
        }
    }
    Err(Refusal::malformed(
        "image",
        "the form has no part of this name",
    ))
}

async fn upload_file(
    State(app): State<App>,
    asked: Asked,
    upload: Result<Upload, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    let Upload { file, turn } = upload?;
    Ok(app
        .blocking(move |app| {
            let input = pictures::keep(app, "image", &file, app.now())?;
            drop(turn);
            let ending = match pictures::media_type(&file) {
                Some("image/jpeg") => "jpg",
                Some("image/webp") => "webp",
                _ => "png",
            };
            // Named by its content: the same picture twice is one, and no name can come to mean another.
            let name = format!("{}.{ending}", input.digits());
            Ok(answer::ok(
                &json!({ "name": name, "subfolder": "", "type": "input" }),
            ))
        })
        .await?)
}
