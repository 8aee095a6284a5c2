//! `lowtide models`: which models there are, and what one consists of; and how a name becomes a model.

use crate::args::ModelsCommand;
use crate::client;
use crate::console::{self, Table};
use crate::demo;
use crate::failure::{Failure, one_line};
use lowtide_engine::Defaults;
use lowtide_weights::{ComponentSummary, ModelFolder, ModelSummary};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The environment variable that names a folder of model folders.
const MODELS_VARIABLE: &str = "LOWTIDE_MODELS";

/// Runs a verb of `models`.
pub(crate) fn run(command: &ModelsCommand) -> Result<(), Failure> {
    match command {
        ModelsCommand::List { dir, json } => list(dir.as_deref(), *json),
        ModelsCommand::Show { model, json } => show(model, *json),
        ModelsCommand::Load { model, server } => client::order_model("load", Some(model), server),
        ModelsCommand::Offload { model, server } => {
            client::order_model("offload", model.as_deref(), server)
        }
        ModelsCommand::Release { model, server } => {
            client::order_model("release", model.as_deref(), server)
        }
    }
}

/// The model a user means by `name`: the demo, a folder, or a folder in `$LOWTIDE_MODELS`.
pub(crate) fn open(name: &str) -> Result<ModelFolder, Failure> {
    if name == demo::NAME {
        return Ok(ModelFolder::embedded(demo::NAME, demo::FILES)?);
    }
    let path = Path::new(name);
    if path.exists() {
        return Ok(ModelFolder::open(path)?);
    }
    if let Some(shelf) = shelf() {
        let on_shelf = shelf.join(name);
        if on_shelf.exists() {
            return Ok(ModelFolder::open(&on_shelf)?);
        }
        return Err(Failure::mistake(format!(
            "model '{name}': there is no such folder, here or in '{}'; 'lowtide models list' shows what there is",
            shelf.display()
        )));
    }
    Err(Failure::mistake(format!(
        "model '{name}': there is no such folder; name a folder in diffusers layout, or '{}'",
        demo::NAME
    )))
}

fn shelf() -> Option<PathBuf> {
    std::env::var_os(MODELS_VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// One line of the list: a model, or why a folder that looks like one is none.
struct Listed {
    name: String,
    place: String,
    summary: Result<ModelSummary, String>,
}

fn list(dir: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let demo = ModelFolder::embedded(demo::NAME, demo::FILES)?;
    let mut listed = vec![Listed {
        name: demo::NAME.to_owned(),
        place: "(comes with the program)".to_owned(),
        summary: Ok(demo.summary()?),
    }];
    if let Some(dir) = dir.map(Path::to_owned).or_else(shelf) {
        listed.extend(models_in(&dir)?);
    }
    let text = if as_json {
        let models: Vec<Value> = listed.iter().map(listed_json).collect();
        format!("{}\n", json!({ "models": models }))
    } else {
        list_text(&listed)
    };
    Ok(console::print(&text)?)
}

/// The model folders directly in `dir`, by name.
fn models_in(dir: &Path) -> Result<Vec<Listed>, Failure> {
    let entries = std::fs::read_dir(dir).map_err(|cause| {
        Failure::mistake(format!(
            "'{}' cannot be listed: {cause}; name a folder of model folders",
            dir.display()
        ))
    })?;
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("model_index.json").is_file())
        .collect();
    folders.sort();
    let listed = folders.into_iter().map(|path| {
        let summary = ModelFolder::open(&path).and_then(|folder| folder.summary());
        Listed {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            place: path.display().to_string(),
            summary: summary.map_err(|cause| one_line(&cause.to_string())),
        }
    });
    Ok(listed.collect())
}

fn list_text(listed: &[Listed]) -> String {
    let mut table = Table::new(&[2]);
    for model in listed {
        let (class, bytes) = match &model.summary {
            Ok(summary) => (summary.class_name.clone(), summary.bytes().to_string()),
            Err(_) => ("unusable".to_owned(), "-".to_owned()),
        };
        table.row([model.name.clone(), class, bytes, model.place.clone()]);
    }
    let mut text = table.text();
    for model in listed {
        if let Err(why) = &model.summary {
            text.push_str(&format!("\n  {}: {why}\n", model.name));
        }
    }
    text
}

fn listed_json(model: &Listed) -> Value {
    match &model.summary {
        Ok(summary) => json!({
            "name": model.name, "place": model.place,
            "class": summary.class_name, "bytes": summary.bytes().0, "parameters": summary.parameters(),
        }),
        Err(why) => json!({ "name": model.name, "place": model.place, "error": why }),
    }
}

fn show(name: &str, as_json: bool) -> Result<(), Failure> {
    let folder = open(name)?;
    let summary = folder.summary()?;
    let text = if as_json {
        let defaults = Defaults::of(&folder)?;
        let components: Vec<Value> = summary.components.iter().map(component_json).collect();
        let shown = json!({
            "name": summary.name,
            "class": summary.class_name,
            "bytes": summary.bytes().0,
            "parameters": summary.parameters(),
            "defaults": {
                "width": defaults.width, "height": defaults.height,
                "steps": defaults.steps, "guidance": defaults.guidance,
            },
            "components": components,
        });
        format!("{shown}\n")
    } else {
        summary.to_string()
    };
    Ok(console::print(&text)?)
}

fn component_json(component: &ComponentSummary) -> Value {
    let weights = component.weights.as_ref().map(|weights| {
        let blocks: Vec<Value> = weights
            .blocks
            .iter()
            .map(|block| {
                let dtypes: Vec<&str> = block.dtypes.iter().map(|dtype| dtype.name()).collect();
                json!({
                    "name": block.name, "tensors": block.tensors, "parameters": block.parameters,
                    "bytes": block.bytes.0, "dtypes": dtypes,
                })
            })
            .collect();
        let dtypes: Vec<Value> = weights
            .dtypes
            .iter()
            .map(|share| json!({ "dtype": share.dtype.name(), "tensors": share.tensors, "bytes": share.bytes.0 }))
            .collect();
        json!({
            "files": weights.files, "tensors": weights.tensors, "parameters": weights.parameters,
            "bytes": weights.bytes.0, "dtypes": dtypes, "blocks": blocks,
        })
    });
    json!({ "name": component.name, "library": component.library, "class": component.class, "weights": weights })
}
