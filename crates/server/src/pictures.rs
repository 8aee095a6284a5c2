//! Pictures that requests begin from: as names of what was sent before, of results, or within the request itself. What is
//! recorded of a job has names only.

use lowtide_core::job::Moment;
use lowtide_jobs::{ArtifactId, InputId};
use serde_json::{Value, json};

use crate::app::Inner;
use crate::base64;
use crate::refusal::Refusal;

/// The format that marks a field of a kind's schema as the name of a picture.
const FORMAT: &str = "input-picture";

/// The format that marks a field as a list of steps, each with a kind and a request of that kind.
const STEPS_FORMAT: &str = "job-steps";

/// Types of pictures that are taken.
pub(crate) const TYPES: [&str; 3] = ["image/png", "image/jpeg", "image/webp"];

/// What may stand in such a field.
const RULE: &str = "sha256: and 64 digits (from POST /v1/inputs), artifact: and the id of a result, or a \
                    data:image/...;base64, URL is needed";

/// Longest beginning of a data URL, before its content.
const DATA_HEAD_MAX: usize = 128;

/// The type of a picture, by its first bytes.
pub(crate) fn media_type(file: &[u8]) -> Option<&'static str> {
    match file {
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Some("image/webp"),
        _ => None,
    }
}

/// Stores a picture that a field brings along.
///
/// # Errors
/// When it is too long or none; what the store says.
pub(crate) fn keep(app: &Inner, field: &str, file: &[u8], now: Moment) -> Result<InputId, Refusal> {
    let limit = app.options.input_max.0;
    if file.len() as u64 > limit {
        return Err(Refusal::invalid(
            field,
            format!("it has {} bytes, at most {limit} are allowed", file.len()),
        ));
    }
    if media_type(file).is_none() {
        return Err(Refusal::invalid(
            field,
            "it is no PNG, JPEG or WebP: its first bytes are others",
        ));
    }
    Ok(app.inputs.put(file, now)?)
}

/// Replaces every picture of a request of this kind by its name among the inputs.
///
/// # Errors
/// Which field is wrong, and how.
pub(crate) fn name_all(
    app: &Inner,
    kind: &str,
    request: &mut Value,
    now: Moment,
) -> Result<(), Refusal> {
    for field in fields(app, kind, FORMAT) {
        let Some(Value::String(text)) = request.get(field) else {
            continue;
        };
        let input = named(app, field, text, now)?;
        request[field] = json!(input.to_string());
    }
    for field in fields(app, kind, STEPS_FORMAT) {
        let steps = request.get_mut(field).and_then(Value::as_array_mut);
        for (place, step) in steps.into_iter().flatten().enumerate() {
            let Some(of) = step["kind"].as_str().map(str::to_owned) else {
                continue;
            };
            // A step of steps is refused by whoever reads it.
            if let (false, Some(request)) = (of == kind, step.get_mut("request")) {
                let named = name_all(app, &of, request, now);
                named.map_err(|refusal| refusal.within(&format!("{field}[{place}].request")))?;
            }
        }
    }
    Ok(())
}

/// The kind of jobs that consist of steps.
pub(crate) fn kind_of_steps(app: &Inner) -> Option<&str> {
    let mut kinds = app.kinds.iter().map(|kind| &kind.name[..]);
    kinds.find(|kind| fields(app, kind, STEPS_FORMAT).next().is_some())
}

/// The inputs that a request of this kind names.
pub(crate) fn named_by(app: &Inner, kind: &str, request: &Value) -> Vec<InputId> {
    let mut names: Vec<InputId> = fields(app, kind, FORMAT)
        .filter_map(|field| request.get(field)?.as_str()?.parse().ok())
        .collect();
    for field in fields(app, kind, STEPS_FORMAT) {
        let steps = request.get(field).and_then(Value::as_array);
        for step in steps.into_iter().flatten() {
            if let Some(of) = step["kind"].as_str().filter(|of| *of != kind) {
                names.extend(named_by(app, of, &step["request"]));
            }
        }
    }
    names
}

/// Names of the fields of this format.
fn fields<'a>(
    app: &'a Inner,
    kind: &'a str,
    format: &'static str,
) -> impl Iterator<Item = &'a str> {
    let kinds = app.kinds.iter().filter(move |one| one.name == kind);
    let properties = kinds.filter_map(|kind| kind.schema["properties"].as_object());
    let marked = properties
        .flatten()
        .filter(move |(_, schema)| schema["format"] == format);
    marked.map(|(name, _)| name.as_str())
}

fn named(app: &Inner, field: &str, text: &str, now: Moment) -> Result<InputId, Refusal> {
    if text.starts_with("data:") {
        return keep(app, field, &content(app, field, text)?, now);
    }
    if let Some(id) = text.strip_prefix("artifact:") {
        let id: ArtifactId = id
            .parse()
            .map_err(|_| Refusal::invalid(field, "after artifact: there is no artifact's id"))?;
        return of_result(app, field, id, now);
    }
    let input: InputId = text.parse().map_err(|_| Refusal::invalid(field, RULE))?;
    match app.inputs.touch(input, now)? {
        true => Ok(input),
        false => Err(Refusal::invalid(
            field,
            format!("there is no input {input}: send it with POST /v1/inputs first"),
        )),
    }
}

/// A result becomes an input of its own, so that it stays when its job is forgotten.
fn of_result(app: &Inner, field: &str, id: ArtifactId, now: Moment) -> Result<InputId, Refusal> {
    let gone = || Refusal::invalid(field, format!("there is no artifact {id}"));
    let artifact = app.artifact_of_caller(id)?.ok_or_else(gone)?;
    // What is looked at is bounded before it is read.
    if artifact.bytes > app.options.input_max.0 {
        return Err(Refusal::invalid(
            field,
            format!(
                "artifact {id} has {} bytes, too many to begin from",
                artifact.bytes
            ),
        ));
    }
    let content = match app.artifacts.read(&artifact) {
        Err(lowtide_jobs::StoreError::ArtifactMissing { .. }) => return Err(gone()),
        read => read?,
    };
    keep(app, field, &content, now)
}

/// The content of a data URL.
pub(crate) fn content(app: &Inner, field: &str, url: &str) -> Result<Vec<u8>, Refusal> {
    let malformed = |problem: &str| Refusal::invalid(field, problem);
    let head_len = url
        .bytes()
        .take(DATA_HEAD_MAX)
        .position(|byte| byte == b',');
    let head_len = head_len.ok_or_else(|| malformed(RULE))?;
    let (head, text) = (&url[..head_len], &url[head_len + 1..]);
    let head = head.to_ascii_lowercase();
    if !(head.starts_with("data:image/") && head.ends_with(";base64")) {
        return Err(malformed(RULE));
    }
    if text.len() as u64 / 4 * 3 > app.options.input_max.0 {
        return Err(malformed(&format!(
            "it is longer than {} bytes",
            app.options.input_max.0
        )));
    }
    base64::decode(text).ok_or_else(|| malformed("what follows ;base64, is no base64"))
}

#[cfg(test)]
mod tests {
    use super::media_type;

    #[test]
    fn a_picture_is_known_by_its_first_bytes() {
        let png = b"\x89PNG\r\n\x1a\nrest";
        assert_eq!(media_type(png), Some("image/png"));
        assert_eq!(media_type(b"\xff\xd8\xff\xe0"), Some("image/jpeg"));
        assert_eq!(media_type(b"RIFF....WEBPVP8 "), Some("image/webp"));
        for none in [&b""[..], &png[..7], b"GIF89a", b"RIFF....WAVE", b"<svg/>"] {
            assert_eq!(media_type(none), None, "{none:?}");
        }
    }
}
