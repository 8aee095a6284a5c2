//! What the fields of a `detail` request mean and may be.

use serde_json::{Value, json};

use super::pass::{
    AREAS, GROW_DEFAULT, GROW_MAX, JOINED, KEPT_BY, OFFSET_MAX, SORTED, STRENGTH_DEFAULT,
    THINGS_MAX,
};
use super::request::PASSES_MAX;
use crate::STEPS_MAX;
use crate::detector::{SIDE_DEFAULT, SIDES};
use crate::processors::detect::{CLASSES_BYTES_MAX, CONFIDENCE_DEFAULT, DETECTOR_BYTES_MAX};
use crate::processors::text_to_image::request::{
    CLIP_SKIP_MAX, INPUT_BYTES_MAX, MASK_BLUR_DEFAULT, MASK_BLUR_MAX, PADDING_DEFAULT, PADDING_MAX,
    WORD_BYTES_MAX,
};
use crate::processors::text_to_image::schema::{
    number, plain, sampling, share, side, text, whole, word,
};

/// Fields of a drawing that a pass has for itself, or that mean nothing here.
const NOT_HERE: [&str; 3] = ["width", "height", "count"];

/// The whole schema.
pub(super) fn schema() -> Value {
    let mut properties = plain();
    let object = properties.as_object_mut().expect("made as one");
    object.extend(sampling().as_object().expect("made as one").clone());
    for name in NOT_HERE {
        object.remove(name);
    }
    object.insert(
        "prompt".to_owned(),
        text("Prompt; the picture's own when left out", true),
    );
    object.insert(
        "image".to_owned(),
        json!({ "type": "string", "maxLength": INPUT_BYTES_MAX, "title": "Picture", "format": "input-picture" }),
    );
    let named = json!({ "type": "string", "minLength": 1, "maxLength": DETECTOR_BYTES_MAX });
    object.insert(
        "passes".to_owned(),
        json!({
            "type": ["array", "null"],
            "title": "Passes: what is found and how it is drawn; faces when left out",
            "minItems": 1,
            "maxItems": PASSES_MAX,
            "items": { "anyOf": [named, pass()] },
        }),
    );
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["image"],
        "properties": properties,
    })
}

fn pass() -> Value {
    let pixels = |title: &str, most: i64, otherwise: i32| {
        json!({ "type": ["integer", "null"], "minimum": -most, "maximum": most, "default": otherwise,
                "unit": "px", "title": title })
    };
    let named = |title: &str, most: usize| json!({ "type": ["string", "null"], "maxLength": most, "title": title });
    json!({
        "type": "object",
        "properties": {
            "detector": { "type": "string", "maxLength": DETECTOR_BYTES_MAX, "title": "Detector: face, hand, person, or a file" },
            "prompt": text("Prompt of the things, [SEP] between them, [SKIP] for none", true),
            "negative": text("Negative prompt of the things", true),
            "confidence": share("Least score", CONFIDENCE_DEFAULT),
            "size": { "type": ["integer", "null"], "minimum": SIDES.start(), "maximum": SIDES.end(), "default": SIDE_DEFAULT,
                      "unit": "px", "title": "Longer side that the detector sees" },
            "classes": named("Classes with commas", CLASSES_BYTES_MAX),
            "mask_filter": word("Which things are kept", &KEPT_BY, Some(KEPT_BY[0])),
            "mask_k": { "type": ["integer", "null"], "minimum": 0, "maximum": THINGS_MAX, "default": 0,
                        "title": "Most things; 0 is all" },
            "mask_min_ratio": share("Least share of the picture", 0.0),
            "mask_max_ratio": share("Largest share of the picture", 1.0),
            "sort": word("Order of things", &SORTED, Some(SORTED[0])),
            "dilate_erode": pixels("Mask grows; below 0: shrinks", GROW_MAX, GROW_DEFAULT),
            "x_offset": pixels("Mask to the right", OFFSET_MAX, 0),
            "y_offset": pixels("Mask up", OFFSET_MAX, 0),
            "mask_merge": word("Things are drawn together", &JOINED, Some(JOINED[0])),
            "mask_blur": { "type": ["number", "null"], "minimum": 0, "maximum": MASK_BLUR_MAX, "default": MASK_BLUR_DEFAULT,
                           "unit": "px", "title": "Blur of the mask's edge" },
            "strength": share("How much changes", STRENGTH_DEFAULT),
            "inpaint_area": word("What is drawn: the thing and its surroundings, or the whole picture", &AREAS, Some(AREAS[0])),
            "inpaint_padding": { "type": ["integer", "null"], "minimum": 0, "maximum": PADDING_MAX, "default": PADDING_DEFAULT,
                                 "unit": "px", "title": "Surroundings" },
            "width": side("Width of what is drawn; the model's own when left out"),
            "height": side("Height of what is drawn; the model's own when left out"),
            "steps": whole("Steps", 1, STEPS_MAX, ""),
            "guidance": number("Guidance; 0 is off"),
            "sampler": named("Sampler", WORD_BYTES_MAX),
            "schedule": named("Noise schedule", WORD_BYTES_MAX),
            "clip_skip": { "type": ["integer", "null"], "minimum": 0, "maximum": CLIP_SKIP_MAX, "title": "CLIP layers left out" },
            "seed": { "type": ["integer", "null"], "minimum": 0, "title": "Seed; the job's when left out" },
        },
    })
}
