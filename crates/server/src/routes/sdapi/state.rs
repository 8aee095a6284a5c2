//! What clients of the web UI expect a server to remember: the chosen checkpoint and a few settings, and how far it is.
//! They are this process' and end with it; what a request says itself comes first.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::extract::State;
use axum::response::Response;
use lowtide_core::job::{JobId, JobState};
use lowtide_jobs::{Job, Order, StoreError};
use serde_json::{Map, Value, json};

use super::translate::model_named;
use super::{Foreign, exchange, object};
use crate::access::Caller;
use crate::answer;
use crate::app::{App, Inner};
use crate::base64;
use crate::fields::wrong;
use crate::incoming::{Asked, Json, JsonOrNothing};
use crate::refusal::Refusal;
use crate::routes::openai::offer;
use crate::routes::{KIND_DEFAULT, Routes, orders};
use crate::schemas;

/// Settings that other programs read before they set them; they change nothing here.
const FIXED: [(&str, &str); 3] = [
    ("sd_vae", "Automatic"),
    ("sd_checkpoint_hash", ""),
    ("outdir_samples", ""),
];

/// What clients have chosen, and the jobs they wait for: those of each key's name apart.
#[derive(Default)]
pub(crate) struct Desktop {
    choices: Mutex<HashMap<String, Choice>>,
    waiting: Mutex<Vec<(String, JobId)>>,
}

/// Settings that are chosen once for many requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Choice {
    /// The model, by our name; `None` is the service's own default.
    pub(super) model: Option<String>,
    /// At which of the last layers the text encoder stops; 1 is the last one.
    clip_stop: Option<u64>,
    /// Whose noise a seed stands for; `None` is the web UI's own, a GPU's.
    noise_cpu: bool,
    /// `png`, `jpeg` or `webp`.
    format: Option<&'static str>,
}

impl Choice {
    /// Sets what the web UI calls `name`; false where it is unknown.
    ///
    /// # Errors
    /// A value that cannot be.
    pub(super) fn set(&mut self, app: &Inner, name: &str, value: &Value) -> Result<bool, Refusal> {
        let text = || value.as_str().ok_or_else(|| wrong(name, "a text", value));
        match name {
            "sd_model_checkpoint" => {
                self.model = match value {
                    Value::Null => None,
                    _ if text()?.is_empty() => None,
                    _ => Some(model_named(app, text()?)?),
                };
            }
            "CLIP_stop_at_last_layers" => {
                let layers = value
                    .as_f64()
                    .filter(|layers| (1.0..=12.0).contains(layers));
                let layers = layers.ok_or_else(|| wrong(name, "a number from 1 to 12", value))?;
                self.clip_stop = Some(layers as u64);
            }
            "randn_source" => {
                self.noise_cpu = match text()? {
                    "CPU" => true,
                    "GPU" | "NV" => false,
                    _ => return Err(Refusal::invalid(name, "GPU, NV or CPU is needed")),
                };
            }
            "samples_format" => {
                self.format = Some(match text()? {
                    "png" => "png",
                    "jpg" | "jpeg" => "jpeg",
                    "webp" => "webp",
                    _ => return Err(Refusal::invalid(name, "png, jpg or webp is needed")),
                });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Puts what is chosen into a request.
    pub(super) fn add_to(&self, app: &Inner, request: &mut Map<String, Value>) {
        let noise = if self.noise_cpu { "cpu" } else { "gpu" };
        offer(app, request, "noise", json!(noise));
        if let Some(stop @ 2..) = self.clip_stop {
            request.insert("clip_skip".to_owned(), json!(stop - 1));
        }
        if let Some(format) = self.format {
            request.insert("output_format".to_owned(), json!(format));
        }
    }

    fn view(&self, app: &Inner) -> Value {
        let model = self.model.clone().or_else(|| default_model(app));
        let mut view = json!({
            "sd_model_checkpoint": model.unwrap_or_default(),
            "CLIP_stop_at_last_layers": self.clip_stop.unwrap_or(1),
            "randn_source": if self.noise_cpu { "CPU" } else { "GPU" },
            "samples_format": match self.format { Some("jpeg") => "jpg", Some(format) => format, None => "png" },
        });
        for (name, value) in FIXED {
            view[name] = json!(value);
        }
        view
    }
}

/// The model where a request names none.
fn default_model(app: &Inner) -> Option<String> {
    let kind = app.kinds.iter().find(|kind| kind.name == KIND_DEFAULT)?;
    kind.model_default.clone()
}

fn held<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desktop {
    /// What this caller has chosen.
    pub(super) fn choice(&self, of: &Caller) -> Choice {
        held(&self.choices)
            .get(of.desk())
            .cloned()
            .unwrap_or_default()
    }

    /// A client waits for a job, until what this returns is dropped.
    pub(super) fn wait_for<'a>(&'a self, caller: &Caller, job: JobId) -> Waiting<'a> {
        held(&self.waiting).push((caller.desk().to_owned(), job));
        Waiting { desktop: self, job }
    }

    fn waited_for(&self, by: &Caller) -> Vec<JobId> {
        let waiting = held(&self.waiting);
        let own = waiting.iter().filter(|(desk, _)| desk == by.desk());
        own.map(|(_, job)| *job).collect()
    }
}

/// See [`Desktop::wait_for`].
pub(super) struct Waiting<'a> {
    desktop: &'a Desktop,
    job: JobId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = held(&self.desktop.waiting);
        if let Some(place) = waiting.iter().position(|(_, job)| *job == self.job) {
            waiting.remove(place);
        }
    }
}

pub(super) fn routes(routes: Routes) -> Routes {
    let progress = object("How far the pictures are that this dialect's clients wait for").query(
        "skip_current_image",
        schemas::flag(),
        "1: without the unfinished picture",
    );
    routes
        .get("/sdapi/v1/options", options, object("What is chosen"))
        .post(
            "/sdapi/v1/options",
            set_options,
            exchange("Chooses the checkpoint and a few settings", "SdOptions").refuses(&[404]),
        )
        .get("/sdapi/v1/progress", progress_now, progress)
        .post(
            "/sdapi/v1/interrupt",
            interrupt,
            object("Cancels what is being drawn for this dialect's clients"),
        )
        .post(
            "/sdapi/v1/unload-checkpoint",
            unload,
            object("Takes all models out of memory")
                .refuses(&[408, 413, 415, 422])
                .admin(),
        )
        .post(
            "/sdapi/v1/reload-checkpoint",
            reload,
            object("Brings the chosen checkpoint to the device")
                .refuses(&[404, 408, 413, 415, 422])
                .admin(),
        )
        .get("/sdapi/v1/memory", memory, object("Memory in bytes"))
}

async fn options(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    asked.done()?;
    Ok(app
        .blocking(|app| Ok(answer::ok(&app.sdapi.choice(&app.caller()).view(app))))
        .await?)
}

async fn set_options(
    State(app): State<App>,
    asked: Asked,
    body: Result<Json, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    let Json(body) = body?;
    let Value::Object(settings) = body else {
        return Err(wrong("body", "an object", &body).into());
    };
    Ok(app
        .blocking(move |app| {
            let caller = app.caller();
            let mut choice = app.sdapi.choice(&caller);
            let mut without_effect = Vec::new();
            for (name, value) in &settings {
                if !choice.set(app, name, value)? {
                    without_effect.push(name.clone());
                }
            }
            held(&app.sdapi.choices).insert(caller.desk().to_owned(), choice);
            Ok(answer::ok(&json!({ "without_effect": without_effect })))
        })
        .await?)
}

async fn progress_now(State(app): State<App>, mut asked: Asked) -> Result<Response, Foreign> {
    let skip = asked.flag("skip_current_image")?;
    asked.done()?;
    Ok(app
        .blocking(move |app| Ok(answer::ok(&progress(app, skip)?)))
        .await?)
}

fn progress(app: &Inner, skip_image: bool) -> Result<Value, StoreError> {
    let mut jobs: Vec<Job> = Vec::new();
    for id in app.sdapi.waited_for(&app.caller()) {
        match app.store.job(id) {
            Ok(job) if !job.state.is_final() => jobs.push(job),
            Ok(_) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    // What is being drawn, else what is drawn next.
    let current = jobs
        .iter()
        .find(|job| job.holder.is_some())
        .or(jobs.first());
    let progress = current
        .and_then(|job| job.progress.clone())
        .unwrap_or_default();
    let share = match progress.steps {
        0 => 0.0,
        steps => f64::from(progress.step) / f64::from(steps),
    };
    let image = match current {
        Some(job) if !skip_image => app.store.preview(job.id)?,
        _ => None,
    };
    let began = current
        .and_then(|job| job.started)
        .map_or(0, |at| at.0 / 1000);
    Ok(json!({
        "progress": share,
        "eta_relative": progress.eta_ms.map_or(0.0, |ms| ms as f64 / 1e3),
        "state": {
            "skipped": false,
            "interrupted": current.is_some_and(|job| job.cancel_requested),
            "stopping_generation": false,
            "job": current.map(|job| job.id.to_string()).unwrap_or_default(),
            "job_count": jobs.len(),
            "job_timestamp": began.to_string(),
            "job_no": 0,
            "sampling_step": progress.step,
            "sampling_steps": progress.steps,
        },
        "current_image": image.map(|image| base64::encode(&image.content)),
        "textinfo": current.map(|_| progress.phase),
    }))
}

async fn interrupt(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    asked.done()?;
    Ok(app
        .blocking(|app| {
            for id in app.sdapi.waited_for(&app.caller()) {
                let job = app.store.job(id)?;
                let drawn = matches!(job.state, JobState::Running | JobState::Parked);
                if drawn {
                    // Where it is over in between there is nothing left to stop.
                    match app.store.cancel(id, app.now()) {
                        Ok(_) | Err(StoreError::WrongState { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Ok(answer::ok(&json!({})))
        })
        .await?)
}

async fn unload(
    state: State<App>,
    asked: Asked,
    body: Result<JsonOrNothing, Refusal>,
) -> Result<Response, Foreign> {
    orders::of_all(state, (asked, body?), Order::Release { model: None }).await?;
    Ok(answer::ok(&json!({})))
}

async fn reload(
    State(app): State<App>,
    asked: Asked,
    body: Result<JsonOrNothing, Refusal>,
) -> Result<Response, Foreign> {
    let chosen = app
        .sdapi
        .choice(&app.caller())
        .model
        .or_else(|| default_model(&app));
    let Some(model) = chosen else {
        return Err(Refusal::not_found("no checkpoint is chosen, and there is no default").into());
    };
    let load = |model| Order::Load { model };
    orders::of_model(
        State(app),
        crate::incoming::Segment(model),
        (asked, body?),
        load,
    )
    .await?;
    Ok(answer::ok(&json!({})))
}

async fn memory(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    asked.done()?;
    Ok(app
        .blocking(|app| {
            let fleet = app.fleet()?;
            let total = fleet.memory_sum(|memory| memory.total);
            let allocated = fleet.memory_sum(|memory| memory.allocated);
            let reserved = fleet.memory_sum(|memory| memory.reserved);
            let device = json!({
                "system": { "free": total.saturating_sub(reserved), "used": reserved, "total": total },
                "active": { "current": allocated, "peak": allocated },
                "allocated": { "current": allocated, "peak": allocated },
                "reserved": { "current": reserved, "peak": reserved },
                "inactive": { "current": 0, "peak": 0 },
                "events": { "retries": 0, "oom": 0 },
            });
            let ram = device["system"].clone();
            // On a processor the device's memory is the machine's.
            let on_cpu = fleet.alive().all(|worker| !worker.cards.device.name.starts_with("cuda"));
            Ok(answer::ok(&match on_cpu {
                true => json!({ "ram": ram, "cuda": { "error": "the device is a processor" } }),
                false => json!({ "ram": { "error": "the device has memory of its own" }, "cuda": device }),
            }))
        })
        .await?)
}
