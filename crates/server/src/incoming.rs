//! What a request consists of, read with limits: its body, its query, the segments of its path.

use std::str::FromStr;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;
use lowtide_core::job::JobId;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use crate::app::App;
use crate::fields::parsed;
use crate::pictures;
use crate::refusal::Refusal;

/// Of a body that is too long so much is still read, so that a client that only looks for the answer afterwards finds
/// one instead of a broken connection.
const DISCARDED_MAX: u64 = 8 << 20;

/// What a client announces is believed so far; beyond it memory comes with what it sends.
const CAPACITY_MAX: u64 = 1 << 20;

/// A body of JSON.
pub(crate) struct Json(pub(crate) Value);

/// As [`Json`], also where a program does not say what it sends; nothing at all is an empty object. A web page always
/// says, so that no foreign page can send this unasked.
pub(crate) struct UntypedJson(pub(crate) Value);

/// A body of JSON that may have pictures in it, as data URLs.
pub(crate) struct JsonWithPictures(pub(crate) Value, pub(crate) Turn);

/// A picture's file.
pub(crate) struct PictureFile(pub(crate) Bytes, pub(crate) Turn);

/// The right to hold a long body; only so many have one at a time.
pub(crate) struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

/// As [`Json`]; nothing at all is an empty object.
pub(crate) struct JsonOrNothing(pub(crate) Value);

impl FromRequest<App> for Json {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Json, Refusal> {
        let (parts, body) = request.into_parts();
        is_json(&parts.headers)?;
        let bytes = read(body, &parts.headers, app, app.options.body_max).await?;
        parse(&bytes).map(Json)
    }
}

impl FromRequest<App> for UntypedJson {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<UntypedJson, Refusal> {
        let (parts, body) = request.into_parts();
        if parts.headers.contains_key(header::CONTENT_TYPE) {
            is_json(&parts.headers)?;
        }
        let bytes = read(body, &parts.headers, app, app.options.body_max).await?;
        if bytes.is_empty() {
            return Ok(UntypedJson(Value::Object(serde_json::Map::new())));
        }
        parse(&bytes).map(UntypedJson)
    }
}

impl FromRequest<App> for JsonWithPictures {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<JsonWithPictures, Refusal> {
        let (parts, body) = request.into_parts();
        is_json(&parts.headers)?;
        let (bytes, turn) = read_long(body, &parts.headers, app, 2).await?;
        Ok(JsonWithPictures(parse(&bytes)?, turn))
    }
}

impl FromRequest<App> for PictureFile {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<PictureFile, Refusal> {
        let (parts, body) = request.into_parts();
        match essence(&parts.headers) {
            Some(essence) if pictures::TYPES.contains(&&essence[..]) => {}
            found => {
                let expected = "a picture, with Content-Type: image/png, image/jpeg or image/webp";
                return Err(Refusal::UnsupportedMediaType { expected, found });
            }
        }
        let turn = Turn::take(app).await?;
        let bytes = read(body, &parts.headers, app, app.options.input_max).await?;
        Ok(PictureFile(bytes, turn))
    }
}

/// A body with up to so many pictures in it, as text or as files.
pub(crate) async fn read_long(
    body: Body,
    headers: &HeaderMap,
    app: &App,
    pictures: u64,
) -> Result<(Bytes, Turn), Refusal> {
    let short = app.options.body_max;
    let turn = match announced(headers) {
        Some(bytes) if bytes <= short.0 => Turn { _permit: None },
        _ => Turn::take(app).await?,
    };
    // As base64 a picture is a third longer.
    let long = app.options.input_max.0.saturating_mul(pictures) / 3 * 4;
    let limit = lowtide_core::Bytes(short.0.saturating_add(long));
    Ok((read(body, headers, app, limit).await?, turn))
}

impl Turn {
    async fn take(app: &App) -> Result<Turn, Refusal> {
        let permit = std::sync::Arc::clone(&app.long_bodies).acquire_owned();
        match tokio::time::timeout(app.options.body_timeout, permit).await {
            Ok(Ok(permit)) => Ok(Turn {
                _permit: Some(permit),
            }),
            _ => Err(Refusal::Unavailable {
                problem: "too many pictures are being sent at once: try again".to_owned(),
            }),
        }
    }
}

impl FromRequest<App> for JsonOrNothing {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<JsonOrNothing, Refusal> {
        let (parts, body) = request.into_parts();
        let bytes = read(body, &parts.headers, app, app.options.body_max).await?;
        if bytes.is_empty() {
            return Ok(JsonOrNothing(Value::Object(serde_json::Map::new())));
        }
        is_json(&parts.headers)?;
        parse(&bytes).map(JsonOrNothing)
    }
}

/// The type of the body, without its parameters.
pub(crate) fn essence(headers: &HeaderMap) -> Option<String> {
    let found = headers.get(header::CONTENT_TYPE)?;
    let text = found.to_str().unwrap_or("?");
    let essence = text.split(';').next().unwrap_or_default();
    Some(essence.trim().to_ascii_lowercase())
}

fn is_json(headers: &HeaderMap) -> Result<(), Refusal> {
    match essence(headers) {
        Some(essence)
            if essence == "application/json"
                || (essence.starts_with("application/") && essence.ends_with("+json")) =>
        {
            Ok(())
        }
        found => Err(Refusal::UnsupportedMediaType {
            expected: "JSON, with Content-Type: application/json",
            found,
        }),
    }
}

/// JSON.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| {
        let sentence = error.to_string();
        Refusal::Malformed {
            field: None,
            problem: match sentence.starts_with("recursion limit") {
                true => format!("the body is nested deeper than 128 levels ({sentence})"),
                false => format!("the body is not JSON: {sentence}"),
            },
        }
    })
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

async fn read(
    body: Body,
    headers: &HeaderMap,
    app: &App,
    limit: lowtide_core::Bytes,
) -> Result<Bytes, Refusal> {
    let limit = limit.0;
    let announced = announced(headers);
    let asks_first = headers.contains_key(header::EXPECT);
    let too_large = Refusal::TooLarge {
        field: "body",
        limit,
    };
    if announced.is_some_and(|bytes| bytes > limit) && asks_first {
        return Err(too_large);
    }
    let mut chunks = body.into_data_stream();
    let mut kept = Vec::with_capacity(announced.unwrap_or(0).min(limit).min(CAPACITY_MAX) as usize);
    let mut seen = 0_u64;
    let all = async {
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| Refusal::Malformed {
                field: None,
                problem: format!("the body broke off: {error}"),
            })?;
            seen += chunk.len() as u64;
            if seen <= limit {
                kept.extend_from_slice(&chunk);
            } else if seen > limit.saturating_add(DISCARDED_MAX) {
                break;
            }
        }
        Ok(())
    };
    match tokio::time::timeout(app.options.body_timeout, all).await {
        Ok(Ok(())) if seen > limit => Err(too_large),
        Ok(Ok(())) => Ok(kept.into()),
        Ok(Err(refusal)) => Err(refusal),
        Err(_) if seen > limit => Err(too_large),
        Err(_) => Err(Refusal::TooSlow {
            problem: format!("the body took longer than {:?}", app.options.body_timeout),
        }),
    }
}

/// The query, of which parameters are taken one by one.
pub(crate) struct Asked {
    parameters: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Asked, Refusal> {
        match Query::<Vec<(String, String)>>::try_from_uri(&parts.uri) {
            Ok(Query(parameters)) => Ok(Asked {
                parameters,
                known: Vec::new(),
            }),
            Err(error) => Err(Refusal::Malformed {
                field: None,
                problem: format!("the query: {error}"),
            }),
        }
    }
}

impl Asked {
    /// A parameter as text.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, Refusal> {
        self.known.push(name);
        let mut found = None;
        while let Some(place) = self.parameters.iter().position(|(key, _)| key == name) {
            if found.is_some() {
                return Err(Refusal::malformed(name, "it is there twice"));
            }
            found = Some(self.parameters.remove(place).1);
        }
        match found {
            Some(text) if text.is_empty() => Err(Refusal::malformed(name, "it is empty")),
            found => Ok(found),
        }
    }

    /// A parameter that changes nothing, whatever it says.
    pub(crate) fn ignore(&mut self, name: &'static str) {
        self.known.push(name);
        self.parameters.retain(|(key, _)| key != name);
    }

    /// A parameter of any type that is read from text.
    pub(crate) fn read<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, Refusal> {
        parsed(self.text(name)?, |problem| {
            Refusal::malformed(name, problem)
        })
    }

    /// A whole number within bounds.
    pub(crate) fn whole(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Refusal> {
        match self.text(name)? {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(number) if range.contains(&number) => Ok(Some(number)),
                _ => Err(Refusal::malformed(
                    name,
                    format!(
                        "a whole number from {} to {} is needed",
                        range.start(),
                        range.end()
                    ),
                )),
            },
        }
    }

    /// `1` and `true`, or `0` and `false`.
    pub(crate) fn flag(&mut self, name: &'static str) -> Result<bool, Refusal> {
        match self.text(name)?.as_deref() {
            None | Some("0" | "false") => Ok(false),
            Some("1" | "true") => Ok(true),
            Some(_) => Err(Refusal::malformed(name, "1 or 0 is needed")),
        }
    }

    /// Nothing else may be there.
    pub(crate) fn done(self) -> Result<(), Refusal> {
        match self.parameters.first() {
            None => Ok(()),
            Some((stranger, _)) if self.known.is_empty() => Err(Refusal::malformed(
                stranger.as_str(),
                "there are no parameters here",
            )),
            Some((stranger, _)) => Err(Refusal::malformed(
                stranger.as_str(),
                format!(
                    "there is no such parameter; there is {}",
                    self.known.join(", ")
                ),
            )),
        }
    }
}

/// The one variable segment of the path.
pub(crate) struct Segment(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Segment, Refusal> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => Ok(Segment(text)),
            Err(_) => Err(Refusal::not_found("the path is not text in UTF-8")),
        }
    }
}

/// The id in the path, of a job that the caller may see and change; others are not there.
pub(crate) struct Id(pub(crate) JobId);

impl FromRequestParts<App> for Id {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Id, Refusal> {
        let Segment(text) = Segment::from_request_parts(parts, app).await?;
        let id: JobId = text
            .parse()
            .map_err(|error: lowtide_core::job::NotAnId| Refusal::not_found(error.to_string()))?;
        if !app.caller().sees_all() {
            app.blocking(move |app| app.job_of_caller(id)).await?;
        }
        Ok(Id(id))
    }
}
