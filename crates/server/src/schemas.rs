//! JSON Schemas of what goes in and out.

mod sdapi;

use lowtide_core::job::JobState;
use serde_json::{Map, Value, json};

use crate::Kind;
use crate::openapi::{kind_schema, reference};

/// A job's or an artifact's id.
pub(crate) fn id() -> Value {
    json!({ "type": "string", "pattern": "^[0-7][0-9abcdefghjkmnpqrstvwxyz]{25}$" })
}

/// An input's name.
pub(crate) fn input_id() -> Value {
    json!({ "type": "string", "pattern": "^sha256:[0-9a-f]{64}$" })
}

/// Bytes as people write them.
pub(crate) const SIZE: &str =
    r"^[0-9]{1,6}(\.[0-9]{1,3})? ?([kKmMgGtT]([iI]?[bB])?|[bB])?$|^[0-9]{7,18}$";

/// Letters of an owner's name.
pub(crate) const OWNER_LEN_MAX: usize = 64;

/// A name in a path.
pub(crate) fn name() -> Value {
    json!({ "type": "string", "minLength": 1, "pattern": "^[^/]+$" })
}

/// An idempotency key.
pub(crate) fn key() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$" })
}

/// A whole number within bounds.
pub(crate) fn whole(from: u64, to: u64) -> Value {
    json!({ "type": "integer", "minimum": from, "maximum": to })
}

/// Yes or no in a query.
pub(crate) fn flag() -> Value {
    json!({ "type": "string", "enum": ["0", "1", "true", "false"] })
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn number() -> Value {
    json!({ "type": "number" })
}

fn or_null(schema: Value) -> Value {
    json!({ "anyOf": [schema, { "type": "null" }] })
}

fn list(of: Value) -> Value {
    json!({ "type": "array", "items": of })
}

/// An object of which all fields are always there; more may come.
fn object(fields: Value) -> Value {
    let required: Vec<&str> = fields
        .as_object()
        .map(|fields| fields.keys().map(String::as_str).collect())
        .unwrap_or_default();
    json!({ "type": "object", "required": required, "properties": fields })
}

/// Each of these properties may as well be null, which is as good as leaving it out.
fn nullable(properties: &mut Map<String, Value>, required: &[&str]) {
    for (name, schema) in properties.iter_mut() {
        if !required.contains(&name.as_str()) {
            *schema = or_null(schema.take());
        }
    }
}

/// An object schema whose properties may be null unless they are required.
fn optional(mut schema: Value) -> Value {
    let required: Vec<String> = schema["required"]
        .as_array()
        .map(|names| {
            names
                .iter()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect()
        })
        .unwrap_or_default();
    let required: Vec<&str> = required.iter().map(String::as_str).collect();
    if let Some(properties) = schema["properties"].as_object_mut() {
        nullable(properties, &required);
    }
    schema
}

fn any_object() -> Value {
    json!({ "type": "object" })
}

fn priority() -> Value {
    json!({ "type": "string", "enum": ["urgent", "normal", "batch"] })
}

fn state() -> Value {
    let names: Vec<&str> = JobState::ALL.iter().map(|state| state.name()).collect();
    json!({ "type": "string", "enum": names })
}

/// States of jobs in a query, separated by commas.
pub(crate) fn states() -> Value {
    let names: Vec<&str> = JobState::ALL.iter().map(|state| state.name()).collect();
    let one = names.join("|");
    json!({ "type": "string", "pattern": format!("^({one})(,({one}))*$") })
}

/// Another place in the queue.
pub(crate) fn place() -> Value {
    json!({
        "type": "object",
        "properties": { "priority": priority(), "front": { "type": "boolean", "description": "Before all others of its priority" } },
        "anyOf": [{ "required": ["priority"] }, { "required": ["front"], "properties": { "front": { "const": true } } }],
        "additionalProperties": false,
    })
}

/// What a submission says beside its request; one alternative for each kind of job.
fn submissions(kinds: &[Kind], more: &Value) -> Vec<Value> {
    kinds
        .iter()
        .map(|kind| {
            let mut properties = Map::new();
            properties.insert("kind".to_owned(), json!({ "const": kind.name }));
            properties.insert("model".to_owned(), text());
            properties.insert("request".to_owned(), reference(&kind_schema(&kind.name)));
            properties.extend(more.as_object().cloned().unwrap_or_default());
            let mut required = vec!["request"];
            if kind.name != crate::routes::KIND_DEFAULT {
                required.push("kind");
            }
            if kind.model_default.is_none() {
                required.push("model");
            }
            nullable(&mut properties, &required);
            json!({ "type": "object", "required": required, "properties": properties, "additionalProperties": false })
        })
        .collect()
}

/// The body of a submission.
pub(crate) fn submission(kinds: &[Kind]) -> Value {
    let seconds = |about: &str| json!({ "type": "number", "minimum": 0, "maximum": 315_360_000, "description": about });
    let mut more = json!({
        "priority": priority(),
        "deadline_s": seconds("It should be done within so many seconds; schedulers hurry for it"),
        "start_by_s": seconds("After so many seconds it is no longer worth beginning"),
        "keep_alive": {
            "description": "How long the model stays after the job: seconds, a duration such as 10m, forever or auto",
            "anyOf": [
                { "type": "integer", "minimum": -1, "maximum": crate::words::KEEP_MAX.as_secs() },
                { "type": "string", "pattern": "^([0-9]{1,8}s?|[0-9]{1,6}m|[0-9]{1,5}h|forever|auto|-1)$" },
            ],
        },
        "after_job": { "type": "string", "enum": ["keep", "offload", "release"] },
        "then": then(),
        "owner": { "type": "string", "minLength": 1, "maxLength": OWNER_LEN_MAX },
        "idempotency_key": key(),
    });
    for (name, schema) in crate::webhooks::schema() {
        more[name] = schema;
    }
    let one = submissions(kinds, &more);
    let mut all = one.clone();
    all.push(json!({
        "type": "object",
        "required": ["jobs"],
        "properties": { "jobs": { "type": "array", "minItems": 1, "items": { "anyOf": one } } },
        "additionalProperties": false,
    }));
    json!({ "anyOf": all })
}

/// Steps after a job.
fn then() -> Value {
    json!({
        "type": "array",
        "description": "Further jobs, each with the picture of the one before; together they are one job of the kind chain",
        "items": {
            "type": "object",
            "required": ["kind"],
            "properties": { "kind": text(), "model": or_null(text()), "request": {} },
            "additionalProperties": false,
        },
    })
}

/// The body of a question for a plan.
pub(crate) fn plan_request(kinds: &[Kind]) -> Value {
    let budget = json!({
        "description": "Bytes, as a number or as people write them; what the worker has where left out",
        "anyOf": [whole(0, i64::MAX as u64), { "type": "string", "pattern": SIZE }],
    });
    let more = json!({ "budget": budget, "then": then() });
    json!({ "anyOf": submissions(kinds, &more) })
}

/// Schemas by name.
pub(crate) fn all() -> Map<String, Value> {
    let mut all = Map::new();
    for (name, schema) in errors()
        .into_iter()
        .chain(jobs())
        .chain(models())
        .chain(service())
        .chain(openai())
        .chain(sdapi::sdapi())
        .chain(comfyui())
    {
        all.insert(name.to_owned(), schema);
    }
    all
}

fn errors() -> Vec<(&'static str, Value)> {
    vec![
        (
            "Error",
            object(json!({
                "error": {
                    "type": "object",
                    "required": ["code", "message"],
                    "properties": { "code": text(), "message": text(), "field": text() },
                },
            })),
        ),
        (
            "OpenaiError",
            object(json!({
                "error": object(json!({
                    "message": text(), "type": text(), "param": or_null(text()), "code": or_null(text()),
                })),
            })),
        ),
    ]
}

fn jobs() -> Vec<(&'static str, Value)> {
    let receipt = object(json!({
        "id": id(), "state": state(), "position": or_null(count()), "eta_s": or_null(number()),
        "seconds": or_null(number()), "peak_bytes": or_null(count()),
        "links": object(json!({ "self": text(), "events": text(), "cancel": text() })),
    }));
    let progress = object(
        json!({ "phase": text(), "step": count(), "steps": count(), "eta_ms": or_null(count()) }),
    );
    let artifact = object(json!({
        "id": id(), "url": text(), "media_type": text(), "bytes": count(), "sha256": text(),
    }));
    let mut job = object(json!({
        "id": id(), "seq": count(), "kind": text(), "model": text(), "state": state(), "priority": priority(),
        "owner": or_null(text()), "submitted_ms": count(), "started_ms": or_null(count()),
        "finished_ms": or_null(count()), "deadline_ms": or_null(count()), "attempt": count(),
        "position": or_null(count()), "eta_s": or_null(number()), "progress": or_null(progress),
        "preview_url": or_null(text()), "artifacts": list(artifact), "report": {}, "error": or_null(text()),
        "history": list(any_object()), "cancel_requested": { "type": "boolean" },
        "pause_requested": { "type": "boolean" }, "wishes": any_object(), "download": or_null(any_object()),
        "webhook": or_null(any_object()),
    }));
    job["properties"]["request"] = any_object();
    vec![
        ("Accepted", receipt),
        (
            "AcceptedOrList",
            json!({ "anyOf": [reference("Accepted"), object(json!({ "jobs": list(reference("Accepted")) }))] }),
        ),
        ("Job", job),
        (
            "JobList",
            object(json!({ "jobs": list(reference("Job")), "next": or_null(count()) })),
        ),
        (
            "Plan",
            object(json!({
                "model": text(), "request": any_object(), "seconds": number(), "peak_bytes": count(),
                "budget_bytes": or_null(count()), "plan": {}, "reasons": list(text()), "approximate": list(text()),
            })),
        ),
    ]
}

fn models() -> Vec<(&'static str, Value)> {
    let kind = object(json!({
        "name": text(), "about": text(), "schema": any_object(), "model_default": or_null(text()),
    }));
    let model = object(json!({
        "id": text(), "object": { "const": "model" }, "created": count(), "owned_by": text(), "lowtide": any_object(),
    }));
    vec![
        ("KindList", object(json!({ "kinds": list(kind) }))),
        ("Model", model),
        (
            "ModelList",
            object(json!({
                "object": { "const": "list" }, "data": list(reference("Model")),
                "downloads": object(json!({
                    "allowed": { "type": "boolean" }, "reason": or_null(text()), "data": list(reference("Download")),
                })),
            })),
        ),
        (
            "Download",
            object(json!({
                "model": text(),
                "state": { "type": "string", "enum": ["waiting", "looking", "fetching", "done", "failed", "stopped"] },
                "files": or_null(count()), "bytes": or_null(count()), "there": count(),
                "bytes_per_s": or_null(count()), "remaining_s": or_null(count()), "error": or_null(text()),
                "jobs": list(id()),
            })),
        ),
        (
            "Offer",
            object(json!({
                "model": text(), "commit": text(), "files": count(), "bytes": count(), "missing_bytes": count(),
                "free_bytes": or_null(count()), "has_room": { "type": "boolean" },
            })),
        ),
        (
            "OrderAnswer",
            object(json!({
                "ok": or_null(json!({ "type": "boolean" })), "message": text(), "workers": list(any_object()),
            })),
        ),
    ]
}

fn service() -> Vec<(&'static str, Value)> {
    let sample = object(json!({
        "at_ms": count(), "allocated": count(), "reserved": count(),
        "holders": list(object(json!({ "name": text(), "kind": text(), "bytes": count() }))),
    }));
    let explanation = object(json!({ "code": text(), "text": text(), "values": any_object() }));
    let what_if = object(
        json!({ "more_bytes": count(), "seconds": number(), "saves_s": number(), "text": text() }),
    );
    let mut stats = object(
        json!({ "vram_allocated": number(), "vram_reserved": number(), "vram_total": number() }),
    );
    stats["properties"]["detail"] = any_object();
    vec![
        (
            "Queue",
            object(json!({
                "held": { "type": "boolean" }, "states": any_object(), "waiting": any_object(),
                "oldest_waiting_s": any_object(), "oldest_running_s": or_null(number()), "minutes": list(any_object()),
                "artifacts": count(), "artifact_bytes": count(), "last_event": count(),
            })),
        ),
        ("GpuStats", stats),
        (
            "GpuHistory",
            object(json!({ "budget": count(), "samples": list(sample) })),
        ),
        (
            "Explain",
            object(
                json!({ "summary": text(), "explanations": list(explanation), "what_if": list(what_if) }),
            ),
        ),
        (
            "Health",
            json!({
                "type": "object", "required": ["status", "live"],
                "properties": {
                    "status": text(), "live": { "type": "boolean" }, "ready": { "type": "boolean" },
                    "workers": list(any_object()),
                },
            }),
        ),
    ]
}

fn openai() -> Vec<(&'static str, Value)> {
    let ignored = |about: &str| json!({ "description": about });
    vec![
        (
            "OpenaiImageRequest",
            optional(json!({
                "type": "object",
                "required": ["prompt"],
                "additionalProperties": false,
                "properties": {
                    "model": text(),
                    "prompt": { "type": "string" },
                    "n": whole(1, 10),
                    "size": { "type": "string", "pattern": "^([1-9][0-9]{0,4}x[1-9][0-9]{0,4}|auto)$" },
                    "response_format": { "type": "string", "enum": ["url", "b64_json"], "description": "Both where left out" },
                    "output_format": { "type": "string", "enum": ["png", "jpeg", "webp"] },
                    "quality": {
                        "type": "string",
                        "enum": ["auto", "exact", "standard", "hd", "low", "medium", "high"],
                        "description": "exact refuses approximate rungs; the others but auto change nothing",
                    },
                    "seed": whole(0, u64::MAX),
                    "negative_prompt": text(),
                    "steps": { "type": "integer", "minimum": 1 },
                    "guidance": { "type": "number" },
                    "stream": { "const": false },
                    "user": ignored("Changes nothing"),
                    "style": ignored("Changes nothing"),
                    "background": ignored("Changes nothing"),
                    "moderation": ignored("Changes nothing"),
                    "output_compression": ignored("Changes nothing"),
                    "partial_images": ignored("Changes nothing"),
                },
            })),
        ),
        (
            "OpenaiEditRequest",
            openai_edit(
                &json!({ "type": "string", "pattern": "^data:image/[a-z]+;base64,[A-Za-z0-9+/]*={0,2}$" }),
            ),
        ),
        (
            "OpenaiEditForm",
            openai_edit(
                &json!({ "type": "string", "contentMediaType": "application/octet-stream" }),
            ),
        ),
        (
            "Input",
            object(json!({ "input": input_id(), "media_type": text(), "bytes": count() })),
        ),
        (
            "ExtraList",
            object(json!({ "data": list(object(json!({ "name": text(), "bytes": count() }))) })),
        ),
        (
            "OpenaiImages",
            object(json!({
                "created": count(),
                "data": list(json!({ "type": "object", "properties": { "b64_json": text(), "url": text() } })),
            })),
        ),
    ]
}

/// What ComfyUI's clients send.
fn comfyui() -> Vec<(&'static str, Value)> {
    let node = json!({
        "type": "object",
        "required": ["class_type", "inputs"],
        "properties": { "class_type": text(), "inputs": { "type": "object" } },
    });
    vec![
        (
            "ComfyPrompt",
            json!({
                "type": "object",
                "required": ["prompt"],
                "properties": {
                    "prompt": { "type": "object", "additionalProperties": node },
                    "client_id": text(),
                    "front": { "type": "boolean" },
                },
            }),
        ),
        (
            "ComfyError",
            object(json!({
                "error": object(json!({ "type": text(), "message": text(), "details": text() })),
                "node_errors": { "type": "object" },
            })),
        ),
    ]
}

/// What OpenAI's clients send to have a picture changed; `picture`: how they send pictures.
fn openai_edit(picture: &Value) -> Value {
    json!({
        "type": "object",
        "required": ["prompt", "image"],
        "properties": {
            "model": text(),
            "prompt": { "type": "string" },
            "image": picture,
            "mask": {
                "allOf": [picture],
                "description": "What can be seen through is drawn anew; without it, what can be seen through in the picture",
            },
            "n": whole(1, 10),
            "size": { "type": "string", "pattern": "^([1-9][0-9]{0,4}x[1-9][0-9]{0,4}|auto)$" },
            "response_format": { "type": "string", "enum": ["url", "b64_json"], "description": "Both where left out" },
            "output_format": { "type": "string", "enum": ["png", "jpeg", "webp"] },
            "quality": { "type": "string", "enum": ["auto", "exact", "standard", "hd", "low", "medium", "high"] },
            "strength": {
                "type": "number", "minimum": 0, "maximum": 1,
                "description": "How much of the picture changes; all of what is masked where left out",
            },
            "seed": whole(0, u64::MAX),
            "negative_prompt": text(),
            "steps": { "type": "integer", "minimum": 1 },
            "guidance": { "type": "number" },
        },
    })
}
