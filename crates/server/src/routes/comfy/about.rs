//! What there is: memory, nodes, models.

use axum::extract::State;
use axum::response::Response;
use lowtide_jobs::Order;
use serde_json::{Map, Value, json};

use super::{Foreign, an_object, object, operation};
use crate::answer;
use crate::app::{App, Inner};
use crate::incoming::{Asked, Segment, UntypedJson};
use crate::refusal::Refusal;
use crate::routes::{KIND_DEFAULT, Routes, orders};
use crate::schemas;

pub(super) fn routes(routes: Routes, at: &impl Fn(&str) -> String) -> Routes {
    let names = |summary| {
        operation(summary).answers(
            200,
            "Their names",
            json!({ "type": "array", "items": { "type": "string" } }),
        )
    };
    let folder = names("The files of a kind").segment(
        "folder",
        schemas::name(),
        "checkpoints, loras or embeddings",
    );
    let class = object("One class of nodes").segment("class", schemas::name(), "Its name");
    let free = operation("Gives memory back")
        .answers_nothing(200, "The order was given")
        .refuses(&[408, 413, 415, 422])
        .admin();
    routes
        .get(
            &at("/system_stats"),
            system_stats,
            object("The program, and memory in bytes"),
        )
        .post(&at("/free"), free_memory, free)
        .get(
            &at("/object_info"),
            object_info,
            object("The classes of nodes that are understood"),
        )
        .get(&at("/object_info/{class}"), one_class, class)
        .get(
            &at("/embeddings"),
            embeddings,
            names("The words of textual inversion"),
        )
        .get(&at("/models"), folders, names("Kinds of files"))
        .get(&at("/models/{folder}"), models, folder)
        .get(
            &at("/features"),
            features,
            object("What the web socket can, beside what all can"),
        )
}

async fn told(
    app: App,
    asked: Asked,
    tell: impl FnOnce(&Inner) -> Result<Value, Refusal> + Send + 'static,
) -> Result<Response, Foreign> {
    asked.done()?;
    Ok(app.blocking(move |app| Ok(answer::ok(&tell(app)?))).await?)
}

async fn system_stats(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    told(app, asked, |app| {
        let fleet = app.fleet()?;
        let devices: Vec<Value> = fleet
            .alive()
            .enumerate()
            .map(|(index, worker)| {
                let (card, memory) = (&worker.cards.device, &worker.status.memory);
                let free = memory.total.saturating_sub(memory.reserved);
                json!({
                    "name": format!("{} {}", card.name, card.description).trim_end(),
                    "type": card.name.split(':').next().unwrap_or_default(),
                    "index": index,
                    "vram_total": memory.total,
                    "vram_free": free,
                    "torch_vram_total": memory.reserved,
                    "torch_vram_free": memory.reserved.saturating_sub(memory.allocated),
                })
            })
            .collect();
        let total = fleet.memory_sum(|memory| memory.total);
        let used = fleet.memory_sum(|memory| memory.reserved);
        Ok(json!({
            "system": {
                "os": std::env::consts::OS,
                "ram_total": total,
                "ram_free": total.saturating_sub(used),
                "comfyui_version": format!("lowtide {}", app.options.version),
                "python_version": "none",
                "pytorch_version": "none",
                "embedded_python": false,
                "argv": [],
            },
            "devices": devices,
        }))
    })
    .await
}

async fn free_memory(
    State(app): State<App>,
    asked: Asked,
    body: Result<UntypedJson, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    let body = an_object("body", body?.0)?;
    let wants = |name: &str| body.get(name).is_some_and(|value| *value == json!(true));
    let order = match (wants("free_memory"), wants("unload_models")) {
        (true, _) => Some(Order::Release { model: None }),
        (false, true) => Some(Order::Offload { model: None }),
        (false, false) => None,
    };
    if let Some(order) = order {
        app.blocking(move |app| {
            let (fleet, now) = (app.fleet()?, app.now());
            for worker in fleet.alive() {
                app.store
                    .send(&worker.id, order.clone(), now + orders::WORTH, now)?;
            }
            Ok(())
        })
        .await?;
    }
    Ok(answer::with_type(
        axum::http::StatusCode::OK,
        "text/plain",
        axum::body::Body::empty(),
    ))
}

fn checkpoints(app: &Inner) -> Vec<String> {
    let models = app.door.models().into_iter();
    let drawing = models.filter(|entry| entry.kinds.iter().any(|kind| kind == KIND_DEFAULT));
    drawing.map(|entry| entry.name).collect()
}

fn names(extras: Vec<crate::Extra>) -> Vec<String> {
    extras.into_iter().map(|extra| extra.name).collect()
}

/// The words a field of the default kind may have.
fn words(app: &Inner, field: &str) -> Vec<String> {
    let kind = app.kinds.iter().find(|kind| kind.name == KIND_DEFAULT);
    let words = kind.and_then(|kind| kind.schema["properties"][field]["enum"].as_array());
    let words = words.into_iter().flatten().filter_map(Value::as_str);
    words
        .map(|word| word.to_lowercase().replace("++", "pp").replace(' ', "_"))
        .collect()
}

/// The classes of nodes: inputs as clients read them, with names of lists that are filled in, and outputs.
const NODES: &str = include_str!("nodes.json");

fn nodes(app: &Inner) -> Map<String, Value> {
    let classes: Map<String, Value> = serde_json::from_str(NODES).expect("it is tested to be JSON");
    let list = |word: &str| match word {
        "$checkpoints" => Some(checkpoints(app)),
        "$samplers" => Some(words(app, "sampler")),
        "$schedules" => Some(words(app, "schedule")),
        "$loras" => Some(names(app.door.loras())),
        _ => None,
    };
    let described = |(name, class): (String, Value)| {
        let mut inputs = class["inputs"].as_object().cloned().unwrap_or_default();
        for input in inputs.values_mut() {
            if let Some(filled) = input[0].as_str().and_then(list) {
                input[0] = json!(filled);
            }
        }
        let class = node(&name, inputs, &class["outputs"]);
        (name, class)
    };
    classes.into_iter().map(described).collect()
}

/// One class as clients read it.
fn node(name: &str, inputs: Map<String, Value>, outputs: &Value) -> Value {
    let order: Vec<String> = inputs.keys().cloned().collect();
    let count = outputs.as_array().map_or(0, Vec::len);
    json!({
        "input": { "required": inputs },
        "input_order": { "required": order },
        "output": outputs,
        "output_is_list": vec![false; count],
        "output_name": outputs,
        "name": name,
        "display_name": name,
        "description": "",
        "category": "lowtide",
        "output_node": count == 0,
    })
}

async fn object_info(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    told(app, asked, |app| Ok(Value::Object(nodes(app)))).await
}

async fn one_class(
    State(app): State<App>,
    Segment(class): Segment,
    asked: Asked,
) -> Result<Response, Foreign> {
    told(app, asked, move |app| {
        let known = nodes(app).remove(&class);
        Ok(known.map_or_else(|| json!({}), |node| json!({ class: node })))
    })
    .await
}

async fn embeddings(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    told(app, asked, |app| Ok(json!(names(app.door.embeddings())))).await
}

async fn folders(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    told(app, asked, |_| {
        Ok(json!(["checkpoints", "loras", "embeddings"]))
    })
    .await
}

async fn models(
    State(app): State<App>,
    Segment(folder): Segment,
    asked: Asked,
) -> Result<Response, Foreign> {
    told(app, asked, move |app| match folder.as_str() {
        "checkpoints" => Ok(json!(checkpoints(app))),
        "loras" => Ok(json!(names(app.door.loras()))),
        "embeddings" => Ok(json!(names(app.door.embeddings()))),
        _ => Err(Refusal::not_found(
            "there are checkpoints, loras and embeddings",
        )),
    })
    .await
}

async fn features(State(app): State<App>, asked: Asked) -> Result<Response, Foreign> {
    told(app, asked, |_| Ok(json!({}))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_inputs_and_outputs() {
        let classes: Map<String, Value> = serde_json::from_str(NODES).unwrap();
        assert!(classes.contains_key("KSampler"));
        for (name, class) in &classes {
            assert!(
                class["inputs"].is_object() && class["outputs"].is_array(),
                "{name}"
            );
        }
    }
}
