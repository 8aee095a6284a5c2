//! Reads the request of a chain, and checks every step with what it will be given.

use serde_json::{Map, Value};

use super::{Handed, IMAGE, KIND, Link, Models};
use crate::request::COUNT_MAX;
use crate::{Error, Result};

/// Most steps of a chain.
pub const STEPS_MAX: usize = 8;

/// What is taken for the size of a picture that nobody can foretell.
const SIZE_UNKNOWN: [u32; 2] = [512, 512];

/// Fields that a step takes from the first one where it leaves them out.
const INHERITED: [&str; 2] = ["prompt", "negative"];

/// Longest name of a kind or model in a request.
const NAME_BYTES_MAX: usize = 512;

/// A step as a request has it.
struct Asked<'a> {
    kind: &'a str,
    model: Option<&'a str>,
    request: Map<String, Value>,
}

/// Kind and model of each step of a request, as far as it names them: which models a stored chain needs.
pub fn models_of(request: &Value) -> Vec<(String, Option<String>)> {
    let steps = read(request).unwrap_or_default();
    let named = |asked: Asked<'_>| (asked.kind.to_owned(), asked.model.map(str::to_owned));
    steps.into_iter().map(named).collect()
}

/// Opens the models of a chain and checks its steps one after the other: how large the pictures of one are decides what
/// the next can be asked.
pub(super) fn open(request: &Value, models: &dyn Models) -> Result<Vec<Link>> {
    let asked = read(request)?;
    let first: Map<String, Value> = asked[0].request.clone();
    let mut links: Vec<Link> = Vec::with_capacity(asked.len());
    let (mut given, mut pictures) = (None, 1);
    for (step, mut asked) in asked.into_iter().enumerate() {
        let last = |step: usize, all: usize| step + 1 == all;
        let schema = models.schema(asked.kind).ok_or_else(|| {
            let shown: String = asked.kind.chars().take(80).collect();
            wrong(step, "kind", &format!("'{shown}' is no kind of job here"))
        })?;
        let has = |field: &str| schema["properties"].get(field).is_some();
        if step > 0 {
            if !has(IMAGE) {
                let problem = format!(
                    "'{}' takes no picture; it can only be the first step",
                    asked.kind
                );
                return Err(wrong(step, "kind", &problem));
            }
            for field in INHERITED.into_iter().filter(|field| has(field)) {
                if let (true, Some(value)) = (lacks(&asked.request, field), first.get(field)) {
                    asked.request.insert(field.to_owned(), value.clone());
                }
            }
            let stand_in = Handed::blank(given.unwrap_or(SIZE_UNKNOWN));
            asked.request.insert(IMAGE.to_owned(), stand_in.into());
        }
        // Nothing is lost between two steps.
        if !last(step, read_len(request)) && has("output_format") {
            asked
                .request
                .insert("output_format".to_owned(), "png".into());
        }
        let opened = models.open(asked.kind, asked.model);
        let (model, opened) = opened.map_err(|error| within(step, error))?;
        let whole = models.complete(asked.kind, asked.request);
        let checked = whole.and_then(|whole| opened.check(&whole));
        let mut checked = checked.map_err(|error| within(step, error))?;
        let size = opened.result_size(&checked, given);
        if step > 0
            && let Some(fields) = checked.as_object_mut()
        {
            fields.remove(IMAGE);
        }
        let each = checked["count"].as_u64().map_or(1, |count| count as usize);
        links.push(Link {
            kind: asked.kind.to_owned(),
            model,
            opened,
            request: checked,
            uses: 0,
            given: (step > 0).then(|| given.unwrap_or(SIZE_UNKNOWN)),
            pictures,
            each,
        });
        pictures = pictures.saturating_mul(each);
        if pictures > COUNT_MAX {
            let problem =
                format!("makes {pictures} pictures of all before; at most {COUNT_MAX} are made");
            return Err(wrong(step, "request.count", &problem));
        }
        given = size;
    }
    Ok(links)
}

fn read_len(request: &Value) -> usize {
    request["steps"].as_array().map_or(0, Vec::len)
}

fn lacks(request: &Map<String, Value>, field: &str) -> bool {
    request.get(field).is_none_or(Value::is_null)
}

fn read(request: &Value) -> Result<Vec<Asked<'_>>> {
    let fields = request
        .as_object()
        .ok_or_else(|| Error::request("request", "must be a JSON object"))?;
    if let Some(unknown) = fields.keys().find(|key| *key != "steps") {
        let shown: String = unknown.chars().take(64).collect();
        return Err(Error::request(
            shown,
            "is not a field here; there are steps",
        ));
    }
    let steps = fields.get("steps").and_then(Value::as_array);
    let steps = steps.filter(|steps| (1..=STEPS_MAX).contains(&steps.len()));
    let rule = format!(
        "must be a list of 1 to {STEPS_MAX} steps, each with a kind, a model and a request"
    );
    let steps = steps.ok_or_else(|| Error::request("steps", rule))?;
    steps
        .iter()
        .enumerate()
        .map(|(k, step)| read_step(k, step))
        .collect()
}

fn read_step(step: usize, value: &Value) -> Result<Asked<'_>> {
    let fields = value
        .as_object()
        .ok_or_else(|| Error::request(format!("steps[{step}]"), "must be an object with a kind"))?;
    let known = ["kind", "model", "request"];
    if let Some(unknown) = fields.keys().find(|key| !known.contains(&&key[..])) {
        let shown: String = unknown.chars().take(64).collect();
        let problem = "is not a field here; there are kind, model, request";
        return Err(wrong(step, &shown, problem));
    }
    let text = |field: &str| match fields.get(field).filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => match value.as_str().filter(|text| text.len() <= NAME_BYTES_MAX) {
            Some(text) => Ok(Some(text)),
            None => Err(wrong(step, field, "must be a name")),
        },
    };
    let kind = text("kind")?.ok_or_else(|| wrong(step, "kind", "is missing"))?;
    if kind == KIND {
        return Err(wrong(step, "kind", "cannot be another chain"));
    }
    let model = text("model")?;
    let request = match fields.get("request") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(request)) => request.clone(),
        Some(_) => return Err(wrong(step, "request", "must be an object")),
    };
    if step > 0 && !lacks(&request, IMAGE) {
        let problem = "is what the step before makes; leave it out";
        return Err(wrong(step, "request.image", problem));
    }
    Ok(Asked {
        kind,
        model,
        request,
    })
}

fn wrong(step: usize, field: &str, problem: &str) -> Error {
    Error::request(format!("steps[{step}].{field}"), problem)
}

/// Says in which step a field is.
pub(super) fn within(step: usize, error: Error) -> Error {
    match error {
        Error::Request { what, problem } if what == "model" => wrong(step, "model", &problem),
        Error::Request { what, problem } => wrong(step, &format!("request.{what}"), &problem),
        other => other,
    }
}
