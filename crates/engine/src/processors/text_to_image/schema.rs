//! What the fields of a `text-to-image` request mean and may be, for a form and for a server's description of itself.

use lowtide_media::Fit;
use lowtide_models::samplers::{Method, Schedule};
use serde_json::{Value, json};

use super::loras;
use super::refiner;
use super::request::{
    AREAS, CLIP_SKIP_MAX, GUIDANCE_MAX, HIRES_SCALE_MAX, HIRES_STRENGTH_DEFAULT, INPUT_BYTES_MAX,
    LORAS_MAX, MASK_BLUR_DEFAULT, MASK_BLUR_MAX, NOISES, PADDING_DEFAULT, PADDING_MAX, READINGS,
    TEXT_BYTES_MAX,
};
use crate::request::{DEFAULT_STRENGTH, Upscaler};
use crate::{COUNT_MAX, SIDE_MAX, STEPS_MAX};

/// The whole schema.
pub(super) fn schema() -> Value {
    let mut properties = plain();
    let object = properties.as_object_mut().expect("made as one");
    for more in [sampling(), pictures()] {
        let more = more.as_object().expect("made as one").clone();
        object.extend(more);
    }
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["prompt"],
        "properties": properties,
    })
}

pub(in crate::processors) fn whole(title: &str, least: u64, most: usize, unit: &str) -> Value {
    let mut field =
        json!({ "type": ["integer", "null"], "minimum": least, "maximum": most, "title": title });
    if !unit.is_empty() {
        field["unit"] = unit.into();
    }
    field
}

pub(in crate::processors) fn text(title: &str, null: bool) -> Value {
    let kind = match null {
        true => json!(["string", "null"]),
        false => json!("string"),
    };
    json!({ "type": kind, "maxLength": TEXT_BYTES_MAX, "title": title, "format": "multiline" })
}

pub(in crate::processors) fn number(title: &str) -> Value {
    json!({ "type": ["number", "null"], "minimum": 0, "maximum": GUIDANCE_MAX, "title": title })
}

pub(in crate::processors) fn share(title: &str, otherwise: f32) -> Value {
    json!({ "type": ["number", "null"], "minimum": 0, "maximum": 1, "default": otherwise, "title": title })
}

pub(in crate::processors) fn word(title: &str, words: &[&str], otherwise: Option<&str>) -> Value {
    let mut all: Vec<Value> = words.iter().map(|&word| word.into()).collect();
    all.push(Value::Null);
    let mut field = json!({ "type": ["string", "null"], "enum": all, "title": title });
    if let Some(otherwise) = otherwise {
        field["default"] = otherwise.into();
    }
    field
}

pub(in crate::processors) fn input(title: &str) -> Value {
    json!({
        "type": ["string", "null"],
        "maxLength": INPUT_BYTES_MAX,
        "title": title,
        "format": "input-picture",
    })
}

pub(in crate::processors) fn side(title: &str) -> Value {
    let mut side = whole(title, 8, SIDE_MAX, "px");
    side["multipleOf"] = 8.into();
    side
}

/// What nearly every request says.
pub(in crate::processors) fn plain() -> Value {
    json!({
            "prompt": text("Prompt", false),
            "negative": text("Negative prompt", true),
            "width": side("Width"),
            "height": side("Height"),
            "steps": whole("Steps", 1, STEPS_MAX, ""),
            "guidance": number("Guidance; 0 is off"),
            "guidance_rescale": share("Guidance rescale; 0 is off", 0.0),
            "cfg_normalization": number("Guidance normalization; 0 is off"),
            "cfg_truncation": number("Guidance stops at this time, 0 noise to 1 picture"),
            "seed": { "type": ["integer", "null"], "minimum": 0, "title": "Seed; drawn when left out" },
            "count": whole("Pictures", 1, COUNT_MAX, ""),
            "quality": { "type": ["string", "null"], "enum": ["exact", "auto", null], "default": "exact",
                         "title": "Quality; auto allows approximations when memory is short, exact refuses smaller variants" },
            "output_format": { "type": ["string", "null"], "enum": ["png", "jpeg", "webp", null], "default": "png",
                               "title": "File format" },
    })
}

/// How it is drawn.
pub(in crate::processors) fn sampling() -> Value {
    let samplers = Method::ALL.map(Method::name);
    let schedules = Schedule::ALL.map(Schedule::name);
    json!({
            "sampler": word("Sampler; the model's own when left out", &samplers, None),
            "schedule": word("Noise schedule; the model's own when left out", &schedules, None),
            "eta": share("Fresh noise of DDIM", 0.0),
            "clip_skip": { "type": ["integer", "null"], "minimum": 0, "maximum": CLIP_SKIP_MAX, "default": 0,
                           "title": "CLIP layers left out at the end" },
            "prompt_reading": word("Brackets weigh words, or stand for themselves", &READINGS, Some(READINGS[0])),
            "noise": word("Whose noise a seed stands for", &NOISES, Some(NOISES[0])),
            "loras": loras::schema(LORAS_MAX),
    })
}

/// A picture to begin from, and a second pass.
fn pictures() -> Value {
    let upscalers = Upscaler::ALL.map(Upscaler::name);
    json!({
            "image": input("Picture to begin from"),
            "mask": input("Mask: bright is drawn anew"),
            "strength": share("How much of the picture changes", DEFAULT_STRENGTH),
            "resize": word("How the picture becomes as large as the result", &Fit::ALL.map(Fit::name), Some(Fit::default().name())),
            "mask_blur": { "type": ["number", "null"], "minimum": 0, "maximum": MASK_BLUR_MAX, "default": MASK_BLUR_DEFAULT,
                           "unit": "px", "title": "Blur of the mask's edge" },
            "inpaint_area": word("What is drawn: the whole picture, or what is masked", &AREAS, Some(AREAS[0])),
            "inpaint_padding": { "type": ["integer", "null"], "minimum": 0, "maximum": PADDING_MAX,
                                 "default": PADDING_DEFAULT, "unit": "px", "title": "Surroundings of what is masked" },
            "hires_scale": { "type": ["number", "null"], "minimum": 1, "maximum": HIRES_SCALE_MAX,
                             "title": "Second pass: factor" },
            "hires_steps": whole("Second pass: steps", 1, STEPS_MAX, ""),
            "hires_strength": share("Second pass: how much changes", HIRES_STRENGTH_DEFAULT),
            "refiner": { "type": ["string", "null"], "maxLength": refiner::NAME_BYTES_MAX, "title": "Model that goes the rest of the way" },
            "refiner_start": share("Where it takes over, 0 noise to 1 picture", refiner::START_DEFAULT),
            "hires_upscaler": word("Second pass: upscaler", &upscalers, Some(Upscaler::default().name())),
    })
}
