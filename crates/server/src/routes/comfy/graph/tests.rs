use super::*;

fn plain() -> Value {
    json!({
        "3": { "class_type": "KSampler", "inputs": {
            "seed": 5, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        }},
        "4": { "class_type": "CheckpointLoaderSimple", "inputs": { "ckpt_name": "demo" } },
        "5": { "class_type": "EmptyLatentImage", "inputs": { "width": 64, "height": 32, "batch_size": 2 } },
        "6": { "class_type": "CLIPTextEncode", "inputs": { "text": "a cat", "clip": ["4", 1] } },
        "7": { "class_type": "CLIPTextEncode", "inputs": { "text": "", "clip": ["4", 1] } },
        "8": { "class_type": "VAEDecode", "inputs": { "samples": ["3", 0], "vae": ["4", 2] } },
        "9": { "class_type": "SaveImage", "inputs": { "filename_prefix": "x", "images": ["8", 0] } },
    })
}

#[test]
fn the_graph_everybody_begins_with() {
    let drawing = read(&plain()).unwrap();
    assert_eq!(drawing.model, "demo");
    assert_eq!(drawing.outputs, ["9"]);
    assert_eq!(drawing.sampler, "3");
    let request = Value::Object(drawing.request);
    let expected = json!({
        "prompt": "a cat", "seed": 5, "sampler": "euler", "schedule": "normal", "guidance": 8.0, "noise": "cpu",
        "width": 64, "height": 32, "steps": 20, "count": 2,
    });
    assert_eq!(request, expected);
}

#[test]
fn from_a_picture_with_a_lora_and_a_mask() {
    let mut graph = plain();
    graph["10"] = json!({ "class_type": "LoadImage", "inputs": { "image": "cat.png" } });
    graph["11"] =
        json!({ "class_type": "VAEEncode", "inputs": { "pixels": ["10", 0], "vae": ["4", 2] } });
    graph["12"] = json!({ "class_type": "SetLatentNoiseMask", "inputs": { "samples": ["11", 0], "mask": ["13", 0] } });
    graph["13"] = json!({ "class_type": "InvertMask", "inputs": { "mask": ["10", 1] } });
    graph["14"] = json!({ "class_type": "LoraLoader", "inputs": {
        "lora_name": "ink.safetensors", "strength_model": 0.5, "strength_clip": 1.0, "model": ["4", 0], "clip": ["4", 1],
    }});
    graph["3"]["inputs"]["latent_image"] = json!(["12", 0]);
    graph["3"]["inputs"]["denoise"] = json!(0.4);
    graph["3"]["inputs"]["model"] = json!(["14", 0]);
    let drawing = read(&graph).unwrap();
    assert_eq!(drawing.image.as_deref(), Some("cat.png"));
    let mask = drawing.mask.unwrap();
    assert!(mask.of_alpha && mask.inverted);
    assert_eq!(drawing.request["steps"], 50, "20 of 50 are done");
    assert_eq!(drawing.request["strength"], 0.4);
    let lora = json!([{ "name": "ink", "strength": 0.5, "text_strength": 1.0 }]);
    assert_eq!(drawing.request["loras"], lora);
}

#[test]
fn a_second_pass_on_a_larger_latent() {
    let mut graph = plain();
    let mut second = graph["3"].clone();
    second["inputs"]["latent_image"] = json!(["20", 0]);
    second["inputs"]["denoise"] = json!(0.5);
    second["inputs"]["steps"] = json!(10);
    graph["21"] = second;
    graph["20"] = json!({ "class_type": "LatentUpscaleBy", "inputs": {
        "samples": ["3", 0], "upscale_method": "nearest-exact", "scale_by": 1.5,
    }});
    graph["8"]["inputs"]["samples"] = json!(["21", 0]);
    let drawing = read(&graph).unwrap();
    assert_eq!(drawing.request["hires_scale"], 1.5);
    assert_eq!(drawing.request["hires_steps"], 20);
    assert_eq!(drawing.request["hires_strength"], 0.5);
    graph["21"]["inputs"]["cfg"] = json!(3);
    assert!(read(&graph).unwrap_err().message.contains("guidance"));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let mut graph = plain();
    graph["8"]["class_type"] = json!("ImageSharpen");
    let error = read(&graph).unwrap_err();
    assert_eq!(error.node.as_deref(), Some("8"));
    assert!(error.message.contains("'ImageSharpen'"), "{error:?}");
    let mut circle = plain();
    circle["14"] = json!({ "class_type": "LoraLoaderModelOnly", "inputs": {
        "lora_name": "a", "strength_model": 1, "model": ["14", 0],
    }});
    circle["3"]["inputs"]["model"] = json!(["14", 0]);
    assert!(read(&circle).unwrap_err().message.contains("circle"));
    let mut broken = plain();
    broken["3"]["inputs"]["latent_image"] = json!(["99", 0]);
    assert!(read(&broken).unwrap_err().message.contains("not there"));
    assert_eq!(read(&json!({})).unwrap_err().kind, "no_prompt");
    let mut none = plain();
    none.as_object_mut().unwrap().remove("9");
    assert_eq!(read(&none).unwrap_err().kind, "prompt_no_outputs");
}

#[test]
fn as_many_steps_are_done_as_were_asked_for() {
    for steps in 1..60 {
        for percent in 1..=100 {
            let denoise = f64::from(percent) / 100.0;
            let (total, strength) = whole_way(steps, denoise);
            assert_eq!(
                (total as f64 * strength) as u64,
                steps,
                "{steps} at {denoise}"
            );
        }
    }
}
