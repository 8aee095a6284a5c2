//! What there is: kinds of jobs, models; and what a request would cost.

use axum::extract::State;
use axum::response::Response;
use lowtide_core::job::Moment;
use lowtide_core::{Budget, Bytes};
use lowtide_jobs::report::ModelStatus;
use serde_json::{Value, json};

use super::Routes;
use super::downloads;
use super::submit::{KIND_DEFAULT, chained};
use crate::answer;
use crate::app::{App, Inner};
use crate::fields::{Fields, wrong};
use crate::fleet::Fleet;
use crate::incoming::{Asked, JsonWithPictures, Segment};
use crate::openapi::{Operation, reference};
use crate::refusal::Refusal;
use crate::{Extra, ModelEntry, pictures, schemas};

pub(super) fn routes(routes: Routes) -> Routes {
    let kinds = Operation::new(
        "catalog",
        "The kinds of jobs, with the schemas of their requests",
    )
    .answers(200, "They", reference("KindList"));
    let models = Operation::new(
        "catalog",
        "The models, as OpenAI lists them, and how they are",
    )
    .answers(200, "They", reference("ModelList"));
    let model = Operation::new("catalog", "A model")
        .segment("name", schemas::name(), "Its name or an alias")
        .answers(200, "The model", reference("Model"));
    let plan = Operation::new(
        "catalog",
        "What a request would cost, and why, without running it",
    )
    .body(reference("PlanRequest"))
    .answers(200, "The plan", reference("Plan"))
    .refuses(&[404]);
    let loras = Operation::new("catalog", "The LoRAs that requests can name").answers(
        200,
        "They",
        reference("ExtraList"),
    );
    let embeddings = Operation::new(
        "catalog",
        "The words of textual inversion that prompts can have",
    )
    .answers(200, "They", reference("ExtraList"));
    routes
        .get("/v1/loras", list_loras, loras)
        .get("/v1/embeddings", list_embeddings, embeddings)
        .get("/v1/kinds", list_kinds, kinds)
        .get("/v1/models", list_models, models)
        .get("/v1/models/{name}", one_model, model)
        .post("/v1/plan", plan_request, plan)
}

async fn list_kinds(State(app): State<App>, asked: Asked) -> Result<Response, Refusal> {
    asked.done()?;
    let kinds: Vec<Value> = app
        .kinds
        .iter()
        .map(|kind| {
            json!({
                "name": kind.name, "about": kind.about, "schema": kind.schema, "model_default": kind.model_default,
            })
        })
        .collect();
    Ok(answer::ok(&json!({ "kinds": kinds })))
}

async fn list_loras(State(app): State<App>, asked: Asked) -> Result<Response, Refusal> {
    asked.done()?;
    app.blocking(|app| Ok(extras(app.door.loras()))).await
}

async fn list_embeddings(State(app): State<App>, asked: Asked) -> Result<Response, Refusal> {
    asked.done()?;
    app.blocking(|app| Ok(extras(app.door.embeddings()))).await
}

fn extras(extras: Vec<Extra>) -> Response {
    let view = |extra: &Extra| json!({ "name": extra.name, "bytes": extra.bytes.0 });
    let data: Vec<Value> = extras.iter().map(view).collect();
    answer::ok(&json!({ "data": data }))
}

async fn list_models(State(app): State<App>, asked: Asked) -> Result<Response, Refusal> {
    asked.done()?;
    app.blocking(|app| {
        let fleet = app.fleet()?;
        let models: Vec<Value> = app
            .door
            .models()
            .iter()
            .map(|entry| model_view(app, entry, &fleet))
            .collect();
        Ok(answer::ok(
            &json!({ "object": "list", "data": models, "downloads": downloads::listed(app) }),
        ))
    })
    .await
}

async fn one_model(
    State(app): State<App>,
    Segment(name): Segment,
    asked: Asked,
) -> Result<Response, Refusal> {
    asked.done()?;
    app.blocking(move |app| {
        let entry = find_model(app, &name)?;
        Ok(answer::ok(&model_view(app, &entry, &app.fleet()?)))
    })
    .await
}

/// The model of this name or alias.
pub(super) fn find_model(app: &Inner, name: &str) -> Result<ModelEntry, Refusal> {
    let mut models = app.door.models();
    let found = models
        .iter()
        .position(|entry| entry.name == name || entry.aliases.iter().any(|alias| alias == name));
    match found {
        Some(place) => Ok(models.swap_remove(place)),
        None => Err(Refusal::NotFound {
            problem: format!(
                "there is no model '{}'",
                name.chars().take(100).collect::<String>()
            ),
            known: models.into_iter().map(|entry| entry.name).collect(),
        }),
    }
}

/// How a model is on the worker that has the most of it.
fn nearest(entry: &ModelEntry, fleet: &Fleet) -> Option<ModelStatus> {
    let near = |status: &&ModelStatus| match status.residency.as_str() {
        "device" => 2,
        "host" => 1,
        _ => 0,
    };
    let all = fleet.alive().flat_map(|worker| &worker.status.models);
    all.filter(|status| status.name == entry.name)
        .max_by_key(near)
        .cloned()
}

fn model_view(app: &Inner, entry: &ModelEntry, fleet: &Fleet) -> Value {
    let mut ours = match nearest(entry, fleet).and_then(|status| serde_json::to_value(status).ok())
    {
        Some(Value::Object(status)) => status,
        _ => serde_json::Map::from_iter([("residency".to_owned(), json!("unloaded"))]),
    };
    ours.insert("name".to_owned(), json!(entry.name));
    ours.insert("aliases".to_owned(), json!(entry.aliases));
    ours.insert("kinds".to_owned(), json!(entry.kinds));
    ours.insert("bytes".to_owned(), json!(entry.bytes.0));
    ours.insert("defaults".to_owned(), entry.defaults.clone());
    let workers: Vec<&str> = fleet
        .alive()
        .filter(|worker| {
            worker
                .status
                .models
                .iter()
                .any(|status| status.name == entry.name)
        })
        .map(|worker| worker.id.as_str())
        .collect();
    ours.insert("workers".to_owned(), json!(workers));
    json!({
        "id": entry.name,
        "object": "model",
        "created": seconds(app.started),
        "owned_by": "lowtide",
        "lowtide": ours,
    })
}

/// Whole seconds since the epoch, as OpenAI has times.
pub(super) fn seconds(moment: Moment) -> u64 {
    moment.0 / 1000
}

async fn plan_request(
    State(app): State<App>,
    JsonWithPictures(body, turn): JsonWithPictures,
) -> Result<Response, Refusal> {
    let mut fields = Fields::of(body)?;
    let kind = fields
        .text("kind")?
        .unwrap_or_else(|| KIND_DEFAULT.to_owned());
    let model = fields.text("model")?;
    let mut request = match fields.take("request") {
        Some(request @ Value::Object(_)) => request,
        other => return Err(wrong("request", "an object", &other.unwrap_or(Value::Null))),
    };
    let budget = fields
        .take("budget")
        .map(|value| read_bytes("budget", &value))
        .transpose()?;
    let then = fields.take("then");
    fields.done()?;
    app.blocking(move |app| {
        let budget = match budget {
            Some(bytes) => Some(Budget::of(bytes)),
            None => app.fleet()?.budget(),
        };
        let (kind, model) = chained(app, (kind, model), &mut request, then)?;
        pictures::name_all(app, &kind, &mut request, app.now())?;
        drop(turn);
        let planned = app.door.plan(&kind, model.as_deref(), request, budget)?;
        Ok(answer::ok(&json!({
            "model": planned.checked.model,
            "request": planned.checked.request,
            "seconds": planned.checked.hints.seconds,
            "peak_bytes": planned.checked.hints.peak,
            "budget_bytes": budget.map(|budget| budget.available().0),
            "plan": planned.plan,
            "reasons": planned.reasons,
            "approximate": planned.approximate,
        })))
    })
    .await
}

/// Bytes as a number, or as people write them.
fn read_bytes(field: &'static str, value: &Value) -> Result<Bytes, Refusal> {
    match value {
        Value::String(text) => text
            .parse()
            .map_err(|error: lowtide_core::NotASize| Refusal::invalid(field, error.to_string())),
        other => match other.as_u64() {
            Some(bytes) if bytes <= i64::MAX as u64 => Ok(Bytes(bytes)),
            _ => Err(wrong(
                field,
                "a number of bytes, or a size such as 6GiB",
                other,
            )),
        },
    }
}
