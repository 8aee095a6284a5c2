//! What clients of the Stable Diffusion web UI send and are answered.

use serde_json::{Value, json};

use super::{object, text, whole};

/// What clients of the Stable Diffusion web UI send: they send everything they know, so that only the most important is
/// described.
pub(super) fn sdapi() -> Vec<(&'static str, Value)> {
    let drawing = |more: &[(&str, Value)]| {
        let mut properties = json!({
            "prompt": { "type": "string" },
            "negative_prompt": text(),
            "seed": { "type": "integer", "minimum": -1 },
            "steps": { "type": "integer", "minimum": 1 },
            "cfg_scale": { "type": "number", "minimum": 0, "description": "1 and less is no guidance" },
            "width": { "type": "integer", "minimum": 8 },
            "height": { "type": "integer", "minimum": 8 },
            "sampler_name": text(),
            "scheduler": text(),
            "batch_size": whole(1, 256),
            "n_iter": whole(1, 256),
            "override_settings": { "type": "object" },
        });
        for (name, schema) in more {
            properties[*name] = schema.clone();
        }
        json!({ "type": "object", "properties": properties })
    };
    let settings = json!({
        "type": "object",
        "properties": {
            "sd_model_checkpoint": text(),
            "CLIP_stop_at_last_layers": whole(1, 12),
            "randn_source": { "type": "string", "enum": ["GPU", "NV", "CPU"] },
            "samples_format": { "type": "string", "enum": ["png", "jpg", "webp"] },
        },
    });
    let picture = json!({ "type": "string", "description": "Base64, with or without the head of a data URL" });
    let share = json!({ "type": "number", "minimum": 0, "maximum": 1 });
    let from_picture = [
        (
            "init_images",
            json!({ "type": "array", "items": picture, "minItems": 1, "maxItems": 1 }),
        ),
        ("mask", picture.clone()),
        ("denoising_strength", share.clone()),
    ];
    let second_pass = [
        ("enable_hr", json!({ "type": "boolean" })),
        ("hr_scale", json!({ "type": "number", "minimum": 1 })),
        ("denoising_strength", share),
    ];
    vec![
        (
            "SdError",
            object(json!({ "error": text(), "detail": text(), "body": text(), "errors": text() })),
        ),
        ("SdFromText", drawing(&second_pass)),
        ("SdFromPicture", drawing(&from_picture)),
        ("SdOptions", settings),
        (
            "SdPicture",
            json!({ "type": "object", "required": ["image"], "properties": { "image": picture } }),
        ),
        ("SdExtra", extra(&[("image", picture)])),
        (
            "SdExtras",
            extra(&[(
                "imageList",
                json!({
                    "type": "array", "minItems": 1, "maxItems": 64,
                    "items": { "type": "object", "required": ["data"], "properties": { "data": text(), "name": text() } },
                }),
            )]),
        ),
    ]
}

/// What is said to make pictures larger; they are in this field.
fn extra(pictures: &[(&str, Value)]) -> Value {
    let mut properties = json!({
        "resize_mode": { "type": "integer", "enum": [0, 1], "description": "0: by a factor; 1: to a size" },
        "upscaling_resize": { "type": "number", "minimum": 1, "maximum": 16 },
        "upscaling_resize_w": { "type": "integer", "minimum": 0 },
        "upscaling_resize_h": { "type": "integer", "minimum": 0 },
        "upscaling_crop": { "type": "boolean" },
        "upscaler_1": { "type": "string", "description": "A network of /sdapi/v1/upscalers; None changes nothing" },
        "show_extras_results": { "type": "boolean" },
    });
    for (name, schema) in pictures {
        properties[*name] = schema.clone();
    }
    let required: Vec<&str> = pictures.iter().map(|(name, _)| *name).collect();
    json!({ "type": "object", "required": required, "properties": properties })
}
