//! Graphs as ComfyUI's clients send them, at the root and under `/api`. A dialect: it translates the common
//! text-to-image and image-to-image graphs to jobs and back, and decides nothing. Other nodes are refused by name.

mod about;
mod board;
mod files;
mod graph;
mod queue;
mod socket;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use self::board::Entry;
use self::graph::{Drawing, Wrong};
use super::Routes;
use super::catalog::find_model;
use super::submit::{KIND_DEFAULT, draft};
use crate::answer;
use crate::app::{App, Inner};
use crate::fields::{Fields, wrong};
use crate::incoming::{Asked, UntypedJson};
use crate::openapi::{Operation, reference};
use crate::refusal::Refusal;

pub(crate) use board::Board;

pub(super) fn routes(mut routes: Routes) -> Routes {
    // Its web page asks under /api, most programs at the root.
    for root in ["", "/api"] {
        let at = |path: &str| format!("{root}{path}");
        routes = routes
            .get(
                &at("/prompt"),
                queue::remaining,
                object("How many graphs wait and run"),
            )
            .post(
                &at("/prompt"),
                submit,
                operation("Submits a graph of nodes")
                    .body(reference("ComfyPrompt"))
                    .answers(
                        200,
                        "Accepted: it is on the disk",
                        json!({ "type": "object" }),
                    )
                    .refuses(&[404, 409, 429]),
            );
        routes = queue::routes(routes, &at);
        routes = files::routes(routes, &at);
        routes = about::routes(routes, &at);
        routes = socket::routes(routes, &at);
    }
    routes
}

/// One of these routes, before it is said what it answers.
fn operation(summary: &'static str) -> Operation {
    Operation::new("comfyui", summary).errors("ComfyError")
}

/// One that answers an object.
fn object(summary: &'static str) -> Operation {
    operation(summary).answers(200, "It", json!({ "type": "object" }))
}

/// A refusal as ComfyUI writes it: where a node is at fault, it is named.
struct Foreign {
    refusal: Refusal,
    node: Option<(String, String)>,
    kind: &'static str,
}

impl From<Refusal> for Foreign {
    fn from(refusal: Refusal) -> Foreign {
        Foreign {
            // Its clients know 400 for everything that is wrong with a prompt.
            refusal: match refusal {
                Refusal::Invalid { field, problem } => Refusal::Malformed { field, problem },
                other => other,
            },
            node: None,
            kind: "invalid_prompt",
        }
    }
}

impl IntoResponse for Foreign {
    fn into_response(self) -> Response {
        let message = self.refusal.message();
        let trouble = |kind: &str, message: &str| json!({ "type": kind, "message": message, "details": "", "extra_info": {} });
        let mut nodes = Map::new();
        let mut error = trouble(self.kind, &message);
        if let Some((id, class)) = self.node {
            error["type"] = json!("prompt_outputs_failed_validation");
            nodes.insert(
                id,
                json!({ "errors": [trouble(self.kind, &message)], "dependent_outputs": [], "class_type": class }),
            );
        }
        self.refusal
            .with_body(json!({ "error": error, "node_errors": nodes }))
    }
}

/// A graph's trouble as a refusal.
fn refused(trouble: Wrong, graph: &Value) -> Foreign {
    let class = |id: &String| {
        graph[id.as_str()]["class_type"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    Foreign {
        node: trouble.node.as_ref().map(|id| (id.clone(), class(id))),
        kind: trouble.kind,
        refusal: Refusal::Malformed {
            field: None,
            problem: match &trouble.node {
                Some(id) => format!(
                    "node {}: {}",
                    id.chars().take(40).collect::<String>(),
                    trouble.message
                ),
                None => trouble.message,
            },
        },
    }
}

async fn submit(
    State(app): State<App>,
    _: HeaderMap,
    asked: Asked,
    body: Result<UntypedJson, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    let UntypedJson(body) = body?;
    let mut fields = Fields::of(body)?;
    let graph = fields.take("prompt").unwrap_or(Value::Null);
    let client = fields.text("client_id")?.unwrap_or_default();
    let extra = fields.take("extra_data").unwrap_or_else(|| json!({}));
    let front = fields.flag("front")?.unwrap_or(false);
    // What else its page sends speaks of its own bookkeeping.
    for name in ["number", "prompt_id", "partial_execution_targets"] {
        fields.take(name);
    }
    fields.done()?;
    let drawing = graph::read(&graph).map_err(|trouble| refused(trouble, &graph))?;
    let sent = Sent {
        graph,
        client,
        extra,
        front,
    };
    Ok(app.blocking(move |app| accept(app, drawing, sent)).await?)
}

/// What a client sent beside the graph's meaning.
struct Sent {
    graph: Value,
    client: String,
    extra: Value,
    front: bool,
}

fn accept(app: &Inner, drawing: Drawing, sent: Sent) -> Result<Response, Refusal> {
    if sent.client.len() > board::CLIENT_LEN_MAX {
        return Err(Refusal::invalid("client_id", "it is too long"));
    }
    let now = app.now();
    let mut request = drawing.request;
    if let Some(picture) = &drawing.image {
        request.insert("image".to_owned(), json!(files::input_named(app, picture)?));
    }
    if let Some(mask) = &drawing.mask {
        request.insert("mask".to_owned(), json!(files::mask(app, mask, now)?));
    }
    let stem = drawing
        .model
        .rsplit(['/', '\\'])
        .next()
        .unwrap_or(&drawing.model);
    let stem = [".safetensors", ".ckpt"]
        .iter()
        .find_map(|ending| stem.strip_suffix(ending))
        .unwrap_or(stem);
    let model = match find_model(app, &drawing.model) {
        Ok(entry) => entry.name,
        Err(refusal) => find_model(app, stem).map_err(|_| refusal)?.name,
    };
    let known = app.kinds.iter().find(|kind| kind.name == KIND_DEFAULT);
    if let Some(kind) = known {
        // Whose noise is drawn is said where there is a choice.
        if kind.schema["properties"].get("noise").is_none() {
            request.remove("noise");
        }
    }
    let submission = json!({
        "kind": KIND_DEFAULT, "model": model, "request": request,
        "priority": if sent.front { Some("urgent") } else { None },
    });
    let draft = draft(app, Fields::of(submission)?, now)?;
    let job = draft.submission.id;
    // Known before a worker can begin it, so that none of its news is missed.
    app.comfy.add(Entry {
        job,
        owner: draft.submission.owner.clone(),
        client: sent.client,
        graph: sent.graph,
        extra: sent.extra,
        sampler: drawing.sampler,
        outputs: drawing.outputs,
    });
    match app.store.submit(draft.submission, now) {
        Ok(_) => app.caller().made(job),
        Err(error) => {
            app.comfy.forget(job);
            return Err(error.into());
        }
    }
    let number = app.store.job(job)?.seq;
    Ok(answer::json(
        StatusCode::OK,
        &json!({ "prompt_id": job.to_string(), "number": number, "node_errors": {} }),
    ))
}

/// Complaints about a value that is of another type than an object.
fn an_object(field: &'static str, value: Value) -> Result<Map<String, Value>, Refusal> {
    match value {
        Value::Object(object) => Ok(object),
        other => Err(wrong(field, "an object", &other)),
    }
}
