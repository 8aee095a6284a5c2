//! `lowtide models show`: what a model consists of.

use lowtide_engine::Defaults;
use lowtide_weights::ComponentSummary;
use serde_json::{Value, json};

use crate::console;
use crate::failure::Failure;

/// Prints it.
pub(super) fn run(name: &str, as_json: bool) -> Result<(), Failure> {
    let folder = super::open(name)?;
    let summary = folder.summary()?;
    let text = if as_json {
        let defaults = Defaults::of(&folder)?;
        let components: Vec<Value> = summary.components.iter().map(component_json).collect();
        let shown = json!({
            "name": summary.name,
            "class": summary.class_name,
            "place": folder.location(),
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
