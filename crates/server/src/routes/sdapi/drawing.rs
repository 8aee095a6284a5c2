//! `txt2img` and `img2img`: a job, and the wait for it.

use axum::extract::State;
use axum::response::Response;
use lowtide_core::job::JobState;
use lowtide_jobs::Job;
use serde_json::{Value, json};

use super::translate::{Begins, Translated, translate};
use super::{Foreign, exchange};
use crate::answer;
use crate::app::{App, Inner};
use crate::base64;
use crate::fields::Fields;
use crate::incoming::{Asked, JsonWithPictures};
use crate::refusal::Refusal;
use crate::routes::Routes;
use crate::routes::submit::{KIND_DEFAULT, draft};
use crate::routes::waiting::Patron;

pub(super) fn routes(routes: Routes) -> Routes {
    let drawing = |summary, body| exchange(summary, body).refuses(&[404, 409, 429]);
    routes
        .post(
            "/sdapi/v1/txt2img",
            from_text,
            drawing(
                "Makes pictures, as clients of the web UI ask for them, and waits for them",
                "SdFromText",
            ),
        )
        .post(
            "/sdapi/v1/img2img",
            from_picture,
            drawing(
                "Makes pictures from a picture, as clients of the web UI ask for them, and waits for them",
                "SdFromPicture",
            ),
        )
}

async fn from_text(
    State(app): State<App>,
    asked: Asked,
    body: Result<JsonWithPictures, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    draw(app, body?, Begins::FromText).await
}

async fn from_picture(
    State(app): State<App>,
    asked: Asked,
    body: Result<JsonWithPictures, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    draw(app, body?, Begins::FromPicture).await
}

/// What the answer needs beside the job.
struct Wanted {
    /// What the client sent, pictures left out: some look for their own settings in it.
    parameters: Value,
    send_images: bool,
    notes: Vec<String>,
}

async fn draw(
    app: App,
    JsonWithPictures(body, turn): JsonWithPictures,
    begins: Begins,
) -> Result<Response, Foreign> {
    let desk = App::clone(&app);
    let (wanted, patron) = app
        .blocking(move |app| {
            let parameters = without_pictures(&body);
            let translated = translate(app, body, &app.sdapi.choice(&app.caller()), begins)?;
            let Translated {
                model,
                request,
                then,
                send_images,
                notes,
            } = translated;
            let submission =
                json!({ "kind": KIND_DEFAULT, "model": model, "request": request, "then": then });
            let now = app.now();
            let draft = draft(app, Fields::of(submission)?, now)?;
            drop(turn);
            let accepted = app.store.submit(draft.submission, now)?;
            app.caller().made(accepted.job);
            let wanted = Wanted {
                parameters,
                send_images,
                notes,
            };
            Ok((wanted, Patron::new(desk, accepted.job, accepted.existed)))
        })
        .await?;
    let desk = App::clone(&app);
    let waiting = desk.sdapi.wait_for(&desk.caller(), patron.job());
    let over = patron.until_over().await?;
    drop(waiting);
    Ok(app.blocking(move |app| result(app, over, wanted)).await?)
}

/// What the client sent, but for pictures, which it has.
fn without_pictures(body: &Value) -> Value {
    let mut parameters = body.clone();
    if let Value::Object(fields) = &mut parameters {
        for name in ["init_images", "mask"] {
            if let Some(value) = fields.get_mut(name) {
                *value = Value::Null;
            }
        }
    }
    parameters
}

fn result(app: &Inner, job: Job, wanted: Wanted) -> Result<Response, Refusal> {
    match job.state {
        JobState::Done => {}
        // Whoever interrupts gets what there is: no picture.
        JobState::Cancelled => {}
        JobState::Failed => {
            let why = job.error.unwrap_or_default();
            return Err(Refusal::Internal {
                problem: format!("job {} failed: {why}", job.id),
            });
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
    let outcome = job.outcome.clone().unwrap_or_default();
    let mut images = Vec::with_capacity(outcome.artifacts.len());
    let mut infotexts = Vec::with_capacity(outcome.artifacts.len());
    for artifact in &outcome.artifacts {
        let file = app.artifacts.read(artifact)?;
        infotexts.push(app.door.parameters_of(&file)?.unwrap_or_default());
        if wanted.send_images {
            images.push(base64::encode(&file));
        }
    }
    let info = info(&job, &infotexts, &wanted.notes);
    Ok(answer::ok(&json!({
        "images": images, "parameters": wanted.parameters, "info": info.to_string(),
    })))
}

/// What was drawn, as the web UI tells it: an object, sent as text.
fn info(job: &Job, infotexts: &[String], notes: &[String]) -> Value {
    let mut request: Value = serde_json::from_str(&job.request).unwrap_or_default();
    let mut model = job.model.clone();
    // Of a job of several steps the first is the one that draws.
    if let Some(step) = request.get_mut("steps").and_then(|steps| steps.get_mut(0)) {
        model = step["model"].as_str().unwrap_or_default().to_owned();
        request = step["request"].take();
    }
    let first = request["seed"].as_u64().unwrap_or_default();
    let count = infotexts.len() as u64;
    let seeds: Vec<u64> = (0..count).map(|place| first.wrapping_add(place)).collect();
    let each = |value: &Value| vec![value.as_str().unwrap_or_default().to_owned(); infotexts.len()];
    let sampler = request["sampler"].as_str().unwrap_or_default();
    json!({
        "prompt": request["prompt"],
        "all_prompts": each(&request["prompt"]),
        "negative_prompt": request["negative"].as_str().unwrap_or_default(),
        "all_negative_prompts": each(&request["negative"]),
        "seed": first,
        "all_seeds": seeds,
        "subseed": first,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": request["width"],
        "height": request["height"],
        "sampler_name": sampler,
        "cfg_scale": request["guidance"],
        "steps": request["steps"],
        "batch_size": count,
        "restore_faces": false,
        "face_restoration_model": null,
        "sd_model_name": model,
        "sd_model_hash": "",
        "sd_vae_name": null,
        "sd_vae_hash": null,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request["strength"],
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": infotexts,
        "styles": [],
        "job_timestamp": job.submitted.0.to_string(),
        "clip_skip": request["clip_skip"].as_u64().map_or(1, |skipped| skipped + 1),
        "is_using_inpainting_conditioning": false,
        "version": concat!("lowtide ", env!("CARGO_PKG_VERSION")),
        "lowtide": { "job": job.id.to_string(), "notes": notes },
    })
}
