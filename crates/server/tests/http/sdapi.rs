//! Pictures as clients of the Stable Diffusion web UI ask for them.

use std::sync::atomic::Ordering;
use std::time::Instant;

use lowtide_jobs::Policy;
use lowtide_server::Options;
use serde_json::{Value, json};

use super::inputs::base64;
use super::pretend::{Knobs, PNG};
use super::server::{PATIENCE, World};

/// What a published client sends, defaults and all.
fn whole_payload() -> Value {
    let text = r#"{
        "enable_hr": false, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0,
        "hr_resize_y": 0, "hr_checkpoint_name": null, "hr_sampler_name": null, "hr_scheduler": null, "hr_prompt": "",
        "hr_negative_prompt": "", "denoising_strength": 0.7, "firstphase_width": 0, "firstphase_height": 0,
        "prompt": "a red heart", "styles": [], "seed": 5, "subseed": -1, "subseed_strength": 0.0,
        "seed_resize_from_h": 0, "seed_resize_from_w": 0, "batch_size": 2, "n_iter": 2, "steps": 3, "cfg_scale": 7.0,
        "width": 128, "height": 64, "restore_faces": false, "tiling": false, "do_not_save_samples": false,
        "do_not_save_grid": false, "negative_prompt": "blue", "eta": 1.0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0,
        "s_noise": 1, "override_settings": {}, "override_settings_restore_afterwards": true, "script_name": null,
        "script_args": [], "send_images": true, "save_images": false, "alwayson_scripts": { "ADetailer": { "args": [false] } }
    }"#;
    serde_json::from_str(text).unwrap()
}

fn request_of(world: &World, info: &Value) -> Value {
    let id = info["lowtide"]["job"].as_str().unwrap();
    world.get(&format!("/v1/jobs/{id}")).json()["request"].clone()
}

#[test]
fn a_published_client_s_whole_payload_is_a_job() {
    let world = World::new();
    let answer = world.post("/sdapi/v1/txt2img", &whole_payload());
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    let images = answer["images"].as_array().unwrap();
    assert_eq!(images.len(), 4);
    assert_eq!(images[0], base64(PNG));
    assert_eq!(answer["parameters"]["prompt"], "a red heart");
    let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    assert_eq!(info["all_seeds"], json!([5, 6, 7, 8]));
    assert_eq!(info["sd_model_name"], "demo");
    let request = request_of(&world, &info);
    for (name, value) in [
        ("negative", json!("blue")),
        ("steps", json!(3)),
        ("guidance", json!(7.0)),
        ("count", json!(4)),
        ("height", json!(64)),
    ] {
        assert_eq!(request[name], value, "{name}");
    }
    let after = world.get("/sdapi/v1/progress").json();
    assert_eq!(after["state"]["job_count"], 0);
    assert_eq!(after["progress"], 0.0);
}

#[test]
fn what_has_no_meaning_here_is_refused_by_name() {
    let world = World::new();
    for (field, value) in [
        ("restore_faces", json!(true)),
        ("tiling", json!(true)),
        ("styles", json!(["oil"])),
        ("script_name", json!("x/y/z plot")),
        ("subseed_strength", json!(0.4)),
        (
            "alwayson_scripts",
            json!({ "ControlNet": { "args": [{ "enabled": true }] } }),
        ),
        ("n_iter", json!(0)),
        ("seed", json!(-2)),
        ("promt", json!("x")),
        ("override_settings", json!({ "randn_source": "dice" })),
    ] {
        let mut body = whole_payload();
        body[field] = value;
        let answer = world.post("/sdapi/v1/txt2img", &body);
        assert_eq!(answer.status, 422, "{field}: {answer:?}");
        let told = answer.json();
        let detail = told["detail"].as_str().unwrap();
        let named = if field == "override_settings" {
            "randn_source"
        } else {
            field
        };
        assert!(detail.starts_with(named), "{detail}");
        assert_eq!(told["errors"], told["detail"]);
    }
    let answer = world.post(
        "/sdapi/v1/img2img",
        &json!({ "prompt": "x", "init_images": [] }),
    );
    assert_eq!(answer.status, 422, "{answer:?}");
}

#[test]
fn a_checkpoint_is_chosen_for_all_that_follow() {
    let world = World::new();
    assert_eq!(
        world.get("/sdapi/v1/options").json()["sd_model_checkpoint"],
        "demo"
    );
    let set = |name: &str| world.post("/sdapi/v1/options", &json!({ "sd_model_checkpoint": name }));
    assert_eq!(set("dall-e-3 [0123abcd]").status, 200);
    assert_eq!(
        world.get("/sdapi/v1/options").json()["sd_model_checkpoint"],
        "demo"
    );
    assert_eq!(set("models/demo.safetensors").status, 200);
    let unknown = set("nothing");
    assert_eq!(unknown.status, 404, "{unknown:?}");
    let answer = world
        .post("/sdapi/v1/options", &json!({ "jpeg_quality": 80 }))
        .json();
    assert_eq!(answer["without_effect"], json!(["jpeg_quality"]));
}

#[test]
fn a_picture_with_a_mask_begins_a_job() {
    let world = World::new();
    let answer = world.post(
        "/sdapi/v1/img2img",
        &json!({
            "prompt": "x", "init_images": [base64(PNG)], "mask": format!("data:image/png;base64,{}", base64(PNG)),
            "inpainting_mask_invert": 1, "inpainting_fill": 0, "inpaint_full_res": 0, "denoising_strength": 0.4,
            "resize_mode": 0, "image_cfg_scale": 1.5, "seed": -1,
        }),
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!(
        answer["parameters"]["init_images"],
        Value::Null,
        "pictures are not sent back"
    );
    let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    let notes = info["lowtide"]["notes"].to_string();
    assert!(notes.contains("inpainting_fill"), "{notes}");
    let request = request_of(&world, &info);
    assert_eq!(request["strength"], 0.4);
    let turned = lowtide_jobs::InputId::of(&[PNG, b" turned"].concat());
    assert_eq!(request["mask"], turned.to_string());
}

#[test]
fn whoever_interrupts_gets_what_there_is() {
    let knobs = Knobs::default();
    knobs.stuck.store(true, Ordering::SeqCst);
    let world = World::with(Options::default(), Policy::default(), Some(knobs));
    std::thread::scope(|scope| {
        let drawing = scope.spawn(|| world.post("/sdapi/v1/txt2img", &whole_payload()));
        let began = Instant::now();
        let running = || {
            let told = world
                .get("/sdapi/v1/progress?skip_current_image=true")
                .json();
            let id = told["state"]["job"].as_str().unwrap_or_default().to_owned();
            !id.is_empty() && world.get(&format!("/v1/jobs/{id}")).json()["state"] == "running"
        };
        while !running() {
            assert!(began.elapsed() < PATIENCE, "it never ran");
            std::thread::yield_now();
        }
        assert_eq!(
            world.ask("POST", "/sdapi/v1/interrupt", &[], None).status,
            200
        );
        let answer = drawing.join().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["images"], json!([]));
    });
}

#[test]
fn what_a_picture_says_of_itself() {
    let world = World::idle();
    let ask = |picture: &[u8]| {
        world
            .post("/sdapi/v1/png-info", &json!({ "image": base64(picture) }))
            .json()
    };
    let told = ask(b"\x89PNG\r\n\x1a\nwith words");
    assert!(told["info"].as_str().unwrap().starts_with("a red heart\n"));
    assert_eq!(told["parameters"]["Negative prompt"], "blue");
    assert_eq!(ask(PNG)["info"], "");
}

#[test]
fn lists_are_as_its_clients_read_them() {
    let world = World::new();
    assert_eq!(world.get("/sdapi/v1/sd-models").json()[0]["title"], "demo");
    assert_eq!(world.get("/sdapi/v1/loras").json()[0]["name"], "styles/ink");
    assert_eq!(world.get("/sdapi/v1/upscalers").json()[0]["name"], "None");
    assert_eq!(world.get("/sdapi/v1/scripts").json()["txt2img"], json!([]));
    assert_eq!(
        world
            .ask("POST", "/sdapi/v1/refresh-checkpoints", &[], None)
            .json(),
        Value::Null
    );
    assert!(
        world.get("/sdapi/v1/memory").json()["ram"]["total"]
            .as_u64()
            .unwrap()
            > 0
    );
    assert_eq!(
        world
            .ask("POST", "/sdapi/v1/unload-checkpoint", &[], None)
            .json(),
        json!({})
    );
    let off = World::with(
        Options {
            sdapi: false,
            ..Options::default()
        },
        Policy::default(),
        None,
    );
    assert_eq!(off.get("/sdapi/v1/options").status, 404);
}
