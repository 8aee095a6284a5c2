//! A request for repairs: the picture, what all passes have in common, and the passes.

use lowtide_media::{Mask, Picture};
use serde_json::{Map, Value, json};
use std::sync::Arc;

use super::pass::Pass;
use super::texts::prompt_of;
use crate::processors::text_to_image::request::{
    Against, INPUT_BYTES_MAX, Request as Drawing, check_strength,
};
use crate::request::Source;
use crate::{Error, ImageRequest, Result};

/// The most passes of a job.
pub(super) const PASSES_MAX: usize = 10;

/// Fields of a drawing that passes have for themselves, or that mean nothing here.
const NOT_HERE: [&str; 14] = [
    "count",
    "mask",
    "strength",
    "resize",
    "mask_blur",
    "inpaint_area",
    "inpaint_padding",
    "width",
    "height",
    "hires_scale",
    "hires_steps",
    "hires_strength",
    "hires_upscaler",
    "preset",
];

/// A request, read and complete.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// The input that holds the picture.
    pub(super) image: String,
    /// What passes have in common, as a drawing without a picture.
    pub(super) whole: Drawing,
    pub(super) passes: Vec<Pass>,
    /// The fields that `whole` was read from, with prompt and LoRAs as they were written.
    common: Map<String, Value>,
}

impl Request {
    /// Reads a request. `prompt` says what to draw where the request does not.
    ///
    /// # Errors
    /// [`Error::Request`] with the field's name.
    pub(super) fn read(
        request: &Value,
        against: Against<'_>,
        prompt: impl FnOnce(&str) -> Option<String>,
    ) -> Result<Request> {
        let fields = request.as_object();
        let fields = fields.ok_or_else(|| Error::request("request", "must be a JSON object"))?;
        let mut common = fields.clone();
        let given = |name: &&&str| fields.get(**name).is_some_and(|value| !value.is_null());
        if let Some(name) = NOT_HERE.iter().find(given) {
            let problem = "is not a field here; passes have their own";
            return Err(Error::request(*name, problem));
        }
        let image = match common.remove("image") {
            Some(Value::String(image)) if image.len() <= INPUT_BYTES_MAX => image,
            Some(Value::Null) | None => {
                return Err(Error::request("image", "is missing: give a picture"));
            }
            Some(_) => return Err(Error::request("image", "must be the name of a picture")),
        };
        let passes = read_passes(common.remove("passes"))?;
        if common.get("prompt").is_none_or(Value::is_null) {
            let prompt = prompt(&image).unwrap_or_default();
            common.insert("prompt".to_owned(), prompt.into());
        }
        let whole = Drawing::read(&Value::Object(common.clone()), against)?;
        let Value::Object(mut filled) = whole.json() else {
            unreachable!("a request is an object")
        };
        for name in NOT_HERE.iter().chain(&["image"]) {
            filled.remove(*name);
        }
        // Tags of the prompt belong to it: a pass with another prompt has others.
        for name in ["prompt", "loras"] {
            let written = common.get(name).cloned().unwrap_or(Value::Null);
            filled.insert(name.to_owned(), written);
        }
        let request = Request {
            image,
            whole,
            passes,
            common: filled,
        };
        for (at, pass) in request.passes.iter().enumerate() {
            let read = request.drawing(pass, 0, against).map(drop);
            read.map_err(|error| of_pass(at, error))?;
        }
        Ok(request)
    }

    /// The request with nothing left out.
    pub(super) fn json(&self) -> Value {
        let mut all = self.common.clone();
        all.insert("image".to_owned(), json!(self.image));
        let passes: Vec<Value> = self.passes.iter().map(Pass::json).collect();
        all.insert("passes".to_owned(), passes.into());
        Value::Object(all)
    }

    /// How thing number `index` of a pass is drawn, its picture still to be added; `None` where it stays as it is.
    ///
    /// # Errors
    /// [`Error::Request`] with the field's name.
    pub(super) fn drawing(
        &self,
        pass: &Pass,
        index: usize,
        against: Against<'_>,
    ) -> Result<Option<ImageRequest>> {
        let text = |name: &str| self.common.get(name).and_then(Value::as_str);
        let whole = text("prompt").unwrap_or_default();
        let Some(prompt) = prompt_of(&pass.prompt, whole, index) else {
            return Ok(None);
        };
        let whole = text("negative").unwrap_or_default();
        let negative = prompt_of(&pass.negative, whole, index).unwrap_or_default();
        let defaults = against.defaults;
        let mut fields = self.common.clone();
        let mut set = |name: &str, value: Value| {
            fields.insert(name.to_owned(), value);
        };
        set("prompt", prompt.into());
        let negative = (!negative.is_empty()).then_some(negative);
        set("negative", json!(negative));
        set("width", pass.width.unwrap_or(defaults.width).into());
        set("height", pass.height.unwrap_or(defaults.height).into());
        let seed = pass.seed.unwrap_or(self.whole.engine.seed);
        set("seed", seed.wrapping_add(index as u64).into());
        for (name, value) in [
            ("steps", json!(pass.steps)),
            ("guidance", json!(pass.guidance)),
            ("sampler", json!(pass.sampler)),
            ("schedule", json!(pass.schedule)),
            ("clip_skip", json!(pass.clip_skip)),
        ] {
            if !value.is_null() {
                set(name, value);
            }
        }
        let mut drawing = Drawing::read(&Value::Object(fields), against)?.engine;
        // Beside a picture that a request does not name, it would mean nothing there.
        drawing.strength = pass.strength;
        check_strength(&drawing, true)?;
        Ok(Some(drawing))
    }

    /// The same with an empty picture: what decides about the cost.
    ///
    /// # Errors
    /// As [`Request::drawing`].
    pub(super) fn blank(&self, pass: &Pass, against: Against<'_>) -> Result<ImageRequest> {
        let plain = Pass {
            prompt: pass.prompt.replace("[SKIP]", ""),
            ..pass.clone()
        };
        let drawing = self.drawing(&plain, 0, against)?;
        let mut drawing = drawing.expect("nothing is skipped any more");
        // The longest prompt counts.
        let longest = (1..pass.prompt.matches("[SEP]").count() + 1)
            .filter_map(|index| self.drawing(&plain, index, against).ok().flatten())
            .map(|other| other.prompt)
            .max_by_key(String::len);
        if let Some(longest) = longest.filter(|other| other.len() > drawing.prompt.len()) {
            drawing.prompt = longest;
        }
        let (width, height) = (drawing.width, drawing.height);
        let empty = |channels: usize| vec![0; channels * width * height];
        let (width, height) = (width as u32, height as u32);
        drawing.source = Some(Arc::new(Source {
            picture: Picture::new(width, height, empty(3))?,
            mask: Some(Mask::new(width, height, empty(1))?),
        }));
        Ok(drawing)
    }
}

fn read_passes(passes: Option<Value>) -> Result<Vec<Pass>> {
    let passes = match passes {
        // Nothing said is what most people want.
        None | Some(Value::Null) => return Ok(vec![Pass::of("face")]),
        Some(Value::Array(passes)) if (1..=PASSES_MAX).contains(&passes.len()) => passes,
        Some(_) => {
            let problem = format!("must be a list of 1 to {PASSES_MAX}");
            return Err(Error::request("passes", problem));
        }
    };
    let read = |(at, pass): (usize, &Value)| Pass::read(pass).map_err(|error| of_pass(at, error));
    passes.iter().enumerate().map(read).collect()
}

/// The same error, saying in which pass.
pub(super) fn of_pass(at: usize, error: Error) -> Error {
    match error {
        Error::Request { what, problem } => Error::Request {
            what: "passes".to_owned(),
            problem: format!("{}: {what} {problem}", at + 1),
        },
        other => other,
    }
}
