//! What later steps of a job have of its first one.

use serde_json::{Map, Value};

use crate::app::Inner;

/// What means the same for every drawing of a request. Prompts are carried by the chain itself.
const CARRIED: [&str; 10] = [
    "steps",
    "guidance",
    "guidance_rescale",
    "sampler",
    "schedule",
    "eta",
    "clip_skip",
    "noise",
    "seed",
    "loras",
];

/// Those fields of the first step that a later one of this kind has as well.
pub(super) fn carried(app: &Inner, kind: &str, first: &Map<String, Value>) -> Map<String, Value> {
    let known = app.kinds.iter().find(|one| one.name == kind);
    let knows =
        |name: &str| known.is_some_and(|kind| kind.schema["properties"].get(name).is_some());
    let fields = CARRIED.iter().filter(|name| knows(name));
    let fields = fields.filter_map(|&name| Some((name.to_owned(), first.get(name)?.clone())));
    fields.collect()
}

/// The format of the files is that of the last step.
pub(super) fn end_in(app: &Inner, steps: &mut [Value], first: &Map<String, Value>) {
    let (Some(last), Some(format)) = (steps.last_mut(), first.get("output_format")) else {
        return;
    };
    let kind = last["kind"].as_str().unwrap_or_default();
    let known = app.kinds.iter().find(|one| one.name == kind);
    if known.is_some_and(|kind| kind.schema["properties"].get("output_format").is_some()) {
        last["request"]["output_format"] = format.clone();
    }
}
