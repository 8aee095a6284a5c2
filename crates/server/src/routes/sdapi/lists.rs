//! What there is: checkpoints, samplers, LoRAs, as the web UI lists them. Lists of what there is nothing of are empty.

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::translate::LATENT_UPSCALERS;
use super::{Foreign, object, operation};
use crate::answer;
use crate::app::{App, Inner};
use crate::incoming::{Asked, JsonOrNothing};
use crate::openapi::Operation;
use crate::refusal::Refusal;
use crate::routes::{KIND_DEFAULT, Routes};

/// Kinds of jobs whose models enlarge pictures.
pub(super) const KIND_UPSCALE: &str = "upscale";

/// The kind of jobs that does what ADetailer does.
pub(super) const KIND_DETAIL: &str = "detail";

fn list(summary: &'static str) -> Operation {
    operation(summary).answers(
        200,
        "They",
        json!({ "type": "array", "items": { "type": "object" } }),
    )
}

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/sdapi/v1/sd-models", checkpoints, list("The checkpoints"))
        .get("/sdapi/v1/samplers", samplers, list("The samplers"))
        .get(
            "/sdapi/v1/schedulers",
            schedules,
            list("The noise schedules"),
        )
        .get("/sdapi/v1/loras", loras, list("The LoRAs"))
        .get(
            "/sdapi/v1/embeddings",
            embeddings,
            object("The words of textual inversion"),
        )
        .get(
            "/sdapi/v1/upscalers",
            upscalers,
            list("What enlarges pictures"),
        )
        .get(
            "/sdapi/v1/latent-upscale-modes",
            latent_modes,
            list("What enlarges latents"),
        )
        .get(
            "/sdapi/v1/sd-vae",
            nothing,
            list("None: a checkpoint has its own"),
        )
        .get("/sdapi/v1/hypernetworks", nothing, list("None"))
        .get("/sdapi/v1/face-restorers", nothing, list("None"))
        .get(
            "/sdapi/v1/realesrgan-models",
            nothing,
            list("None: see upscalers"),
        )
        .get("/sdapi/v1/prompt-styles", nothing, list("None"))
        .get("/sdapi/v1/script-info", nothing, list("None"))
        .get("/sdapi/v1/scripts", scripts, object("None"))
        .get("/sdapi/v1/cmd-flags", flags, object("None"))
        .post("/sdapi/v1/refresh-checkpoints", refresh, refreshing())
        .post("/sdapi/v1/refresh-loras", refresh, refreshing())
        .post("/sdapi/v1/refresh-embeddings", refresh, refreshing())
}

fn refreshing() -> Operation {
    let operation = operation("Nothing to do: folders are looked at when they are asked about");
    operation
        .answers(200, "Nothing", json!({ "type": "null" }))
        .refuses(&[408, 413, 415, 422])
}

async fn answered(
    app: App,
    asked: Asked,
    tell: impl FnOnce(&Inner) -> Value + Send + 'static,
) -> Result<Response, Foreign> {
    asked.done()?;
    Ok(app.blocking(move |app| Ok(answer::ok(&tell(app)))).await?)
}

async fn checkpoints(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    answered(app, asked, |app| {
        let models = app.door.models();
        let drawing = models
            .iter()
            .filter(|entry| entry.kinds.iter().any(|kind| kind == KIND_DEFAULT));
        let view = |entry: &crate::ModelEntry| {
            json!({
                "title": entry.name, "model_name": entry.name, "hash": null, "sha256": null,
                "filename": entry.name, "config": null,
            })
        };
        drawing.map(view).collect()
    })
    .await
}

/// The words a field of the default kind may have.
fn words<'a>(app: &'a Inner, field: &str) -> impl Iterator<Item = &'a str> {
    let kind = app.kinds.iter().find(|kind| kind.name == KIND_DEFAULT);
    let words = kind.and_then(|kind| kind.schema["properties"][field]["enum"].as_array());
    words.into_iter().flatten().filter_map(Value::as_str)
}

async fn samplers(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    answered(app, asked, |app| {
        let view = |name: &str| {
            let alias = name.to_lowercase().replace("++", "pp").replace(' ', "_");
            json!({ "name": name, "aliases": [format!("k_{alias}"), alias], "options": {} })
        };
        words(app, "sampler").map(view).collect()
    })
    .await
}

async fn schedules(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    answered(app, asked, |app| {
        let view = |(name, label): (&str, &str)| {
            json!({
                "name": name, "label": label, "aliases": [], "default_rho": -1.0, "need_inner_model": false,
            })
        };
        let all = words(app, "schedule").map(|name| view((name, name)));
        std::iter::once(view(("automatic", "Automatic"))).chain(all).collect()
    })
    .await
}

async fn loras(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    answered(app, asked, |app| {
        let loras = app.door.loras();
        let view = |extra: &crate::Extra| {
            json!({ "name": extra.name, "alias": extra.name, "path": extra.name, "metadata": {} })
        };
        loras.iter().map(view).collect()
    })
    .await
}

async fn embeddings(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    answered(app, asked, |app| {
        let all = app.door.embeddings();
        let view = |extra: &crate::Extra| {
            let about = json!({
                "step": null, "sd_checkpoint": null, "sd_checkpoint_name": null, "shape": 0, "vectors": 0,
            });
            (extra.name.clone(), about)
        };
        let loaded: Map<String, Value> = all.iter().map(view).collect();
        json!({ "loaded": loaded, "skipped": {} })
    })
    .await
}

/// Models that enlarge pictures.
fn enlarging(app: &Inner) -> impl Iterator<Item = crate::ModelEntry> {
    let models = app.door.models().into_iter();
    models.filter(|entry| entry.kinds.iter().any(|kind| kind == KIND_UPSCALE))
}

/// Their names.
pub(super) fn upscaling_models(app: &Inner) -> Vec<String> {
    enlarging(app).map(|entry| entry.name).collect()
}

async fn upscalers(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    answered(app, asked, |app| {
        let view = |name: &str, scale: &Value| {
            json!({
                "name": name, "model_name": name, "model_path": null, "model_url": null, "scale": scale,
            })
        };
        let networks = enlarging(app).map(|entry| view(&entry.name, &entry.defaults["scale"]));
        std::iter::once(view("None", &json!(1))).chain(networks).collect()
    })
    .await
}

async fn latent_modes(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    answered(app, asked, |_| {
        LATENT_UPSCALERS
            .iter()
            .map(|(name, _)| json!({ "name": name }))
            .collect()
    })
    .await
}

async fn nothing(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    answered(app, asked, |_| json!([])).await
}

async fn scripts(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    answered(app, asked, |app| {
        // Clients look here for what they may name among `alwayson_scripts`.
        let there = app.kinds.iter().any(|kind| kind.name == KIND_DETAIL);
        let names: &[&str] = if there { &["adetailer"] } else { &[] };
        json!({ "txt2img": names, "img2img": names })
    })
    .await
}

async fn flags(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    answered(app, asked, |_| json!({})).await
}

async fn refresh(
    State(app): State<App>,
    asked: Asked,
    body: Result<JsonOrNothing, Refusal>,
) -> Result<Response, Foreign> {
    body?;
    answered(app, asked, |_| Value::Null).await
}
