//! What clients of the Stable Diffusion web UI ask for beside pictures from text: larger ones, and faces drawn anew.

use std::sync::Arc;

use lowtide_jobs::Policy;
use lowtide_server::Options;
use serde_json::{Value, json};

use super::inputs::base64;
use super::pretend::{Knobs, PNG};
use super::server::World;
use super::studio::StudioDoor;

fn studio() -> World {
    let door = Arc::new(StudioDoor::default());
    World::with_door(
        Options::default(),
        Policy::default(),
        Some(Knobs::default()),
        door,
    )
}

/// The jobs there are, oldest first, with their requests.
fn jobs(world: &World) -> Vec<Value> {
    let list = world.get("/v1/jobs").json();
    let ids = list["jobs"].as_array().unwrap().iter().rev();
    ids.map(|job| {
        let id = job["id"].as_str().unwrap();
        world.get(&format!("/v1/jobs/{id}")).json()
    })
    .collect()
}

/// What a published client sends.
fn extra() -> Value {
    json!({
        "resize_mode": 0, "show_extras_results": true, "gfpgan_visibility": 0, "codeformer_visibility": 0,
        "codeformer_weight": 0, "upscaling_resize": 2, "upscaling_resize_w": 512, "upscaling_resize_h": 512,
        "upscaling_crop": true, "upscaler_1": "None", "upscaler_2": "None", "extras_upscaler_2_visibility": 0,
        "upscale_first": false, "image": base64(PNG),
    })
}

fn refused(world: &World, path: &str, body: &Value, field: &str) {
    let answer = world.post(path, body);
    assert_eq!(answer.status, 422, "{field}: {answer:?}");
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.starts_with(field), "{field}: {detail}");
}

#[test]
fn a_picture_becomes_larger_by_a_network() {
    let world = studio();
    let path = "/sdapi/v1/extra-single-image";
    let mut body = extra();
    let same = world.post(path, &body).json();
    assert_eq!(same["image"], base64(PNG), "None leaves it as it is");
    assert!(jobs(&world).is_empty());
    for (name, model) in [
        ("RealESRGAN_x4plus", "RealESRGAN_x4plus"),
        ("R-ESRGAN 4x+", "RealESRGAN_x4plus"),
        ("2x-sharp", "mine/2x-sharp.pth"),
    ] {
        body["upscaler_1"] = json!(name);
        let answer = world.post(path, &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["image"], base64(PNG));
        let job = jobs(&world).pop().unwrap();
        assert_eq!(
            (&job["kind"], &job["model"]),
            (&json!("upscale"), &json!(model))
        );
        assert_eq!(job["request"]["scale"], 2.0);
        assert!(
            job["request"]["image"]
                .as_str()
                .unwrap()
                .starts_with("sha256:")
        );
    }
    // The pictures of this door are 100 by 50.
    body["resize_mode"] = json!(1);
    refused(&world, path, &body, "upscaling_crop");
    for (width, height, crop, scale) in [
        (250, 125, true, 2.5),
        (0, 125, true, 2.5),
        (333, 0, true, 3.33),
        (512, 512, false, 10.24),
    ] {
        body["upscaling_resize_w"] = json!(width);
        body["upscaling_resize_h"] = json!(height);
        body["upscaling_crop"] = json!(crop);
        let answer = world.post(path, &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(jobs(&world).pop().unwrap()["request"]["scale"], scale);
    }
    body["show_extras_results"] = json!(false);
    assert_eq!(world.post(path, &body).json()["image"], "");
    body["upscaling_resize_w"] = json!(20);
    body["upscaling_resize_h"] = json!(0);
    refused(&world, path, &body, "upscaling_resize_w");
}

#[test]
fn several_pictures_are_a_job_each_and_come_back_in_order() {
    let world = studio();
    let path = "/sdapi/v1/extra-batch-images";
    let mut body = extra();
    let fields = body.as_object_mut().unwrap();
    fields.remove("image");
    fields.insert("upscaler_1".to_owned(), json!("RealESRGAN_x4plus"));
    let second = [PNG, b"second"].concat();
    fields.insert(
        "imageList".to_owned(),
        json!([
            { "data": base64(PNG), "name": "a.png" },
            { "data": format!("data:image/png;base64,{}", base64(&second)), "name": "b.png" },
        ]),
    );
    let answer = world.post(path, &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!(
        (&answer["images"], &answer["html_info"]),
        (&json!([base64(PNG), base64(PNG)]), &json!(""))
    );
    let inputs: Vec<Value> = jobs(&world)
        .iter()
        .map(|job| job["request"]["image"].clone())
        .collect();
    let named = [PNG, &second].map(|file| json!(lowtide_jobs::InputId::of(file).to_string()));
    assert_eq!(inputs, named);
    body["imageList"][1]["data"] = json!("");
    refused(&world, path, &body, "imageList[1].data");
    body["imageList"] = json!([]);
    refused(&world, path, &body, "imageList");
    assert_eq!(jobs(&world).len(), 2, "what is refused makes no jobs");
}

#[test]
fn what_extras_have_no_meaning_here_are_refused_by_name() {
    let world = studio();
    for (field, value) in [
        ("gfpgan_visibility", json!(0.5)),
        ("codeformer_visibility", json!(1)),
        ("extras_upscaler_2_visibility", json!(0.5)),
        ("upscaler_1", json!("Lanczos")),
        ("upscaling_resize", json!(17)),
        ("resize_mode", json!(2)),
        ("image", json!("")),
        ("imag", json!("")),
    ] {
        let mut body = extra();
        body[field] = value;
        refused(&world, "/sdapi/v1/extra-single-image", &body, field);
    }
    let bare = World::new();
    let mut body = extra();
    body["upscaler_1"] = json!("RealESRGAN_x4plus");
    refused(&bare, "/sdapi/v1/extra-single-image", &body, "upscaler_1");
}

#[test]
fn networks_are_listed_and_draw_second_passes() {
    let world = studio();
    let list = world.get("/sdapi/v1/upscalers").json();
    let names: Vec<&str> = (0..3)
        .map(|at| list[at]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["None", "RealESRGAN_x4plus", "mine/2x-sharp.pth"]);
    assert_eq!(list[2]["scale"], 2);
    let mut body = json!({
        "prompt": "a red heart", "negative_prompt": "blue", "steps": 3, "width": 128, "height": 64, "seed": 5,
        "enable_hr": true, "hr_scale": 1.5, "hr_upscaler": "R-ESRGAN 4x+", "denoising_strength": 0.4,
        "hr_second_pass_steps": 7, "sampler_name": "Euler", "override_settings": { "samples_format": "png" },
    });
    let answer = world.post("/sdapi/v1/txt2img", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let info: Value = serde_json::from_str(answer.json()["info"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&info["seed"], &info["prompt"], &info["sd_model_name"]),
        (&json!(5), &json!("a red heart"), &json!("demo"))
    );
    let job = jobs(&world).pop().unwrap();
    assert_eq!(job["kind"], "chain");
    let steps = &job["request"]["steps"];
    assert_eq!(steps.as_array().unwrap().len(), 3);
    assert_eq!(
        steps[1],
        json!({ "kind": "upscale", "model": "RealESRGAN_x4plus", "request": { "scale": 1.5 } })
    );
    assert!(steps[0]["request"].get("hires_scale").is_none());
    let again = json!({
        "steps": 7, "sampler": "Euler", "seed": 5, "width": 192, "height": 96, "strength": 0.4, "output_format": "png",
    });
    assert_eq!(
        (&steps[2]["kind"], &steps[2]["request"]),
        (&json!("text-to-image"), &again)
    );
    body["denoising_strength"] = json!(0);
    assert_eq!(world.post("/sdapi/v1/txt2img", &body).status, 200);
    let job = jobs(&world).pop().unwrap();
    assert_eq!(
        job["request"]["steps"].as_array().unwrap().len(),
        2,
        "nothing is drawn again"
    );
    body["hr_upscaler"] = json!("SwinIR 4x");
    refused(&world, "/sdapi/v1/txt2img", &body, "hr_upscaler");
}

/// What the extension's own clients send, defaults and all.
fn adetailer() -> Value {
    let text = r#"{
        "ad_model": "face_yolov8n.pt", "ad_model_classes": "", "ad_tap_enable": true, "ad_prompt": "a face",
        "ad_negative_prompt": "", "ad_confidence": 0.4, "ad_mask_k_largest": 2, "ad_mask_min_ratio": 0.0,
        "ad_mask_max_ratio": 1.0, "ad_dilate_erode": 8, "ad_x_offset": 0, "ad_y_offset": 0,
        "ad_mask_merge_invert": "Merge and Invert", "ad_mask_filter_method": "Area", "ad_mask_blur": 5,
        "ad_denoising_strength": 0.3, "ad_inpaint_only_masked": true, "ad_inpaint_only_masked_padding": 16,
        "ad_use_inpaint_width_height": false, "ad_inpaint_width": 512, "ad_inpaint_height": 512, "ad_use_steps": true,
        "ad_steps": 9, "ad_use_cfg_scale": false, "ad_cfg_scale": 7.0, "ad_use_checkpoint": false,
        "ad_checkpoint": "Use same checkpoint", "ad_use_vae": true, "ad_vae": "Use same VAE", "ad_use_sampler": true,
        "ad_sampler": "DPM++ 2M Karras", "ad_scheduler": "Use same scheduler", "ad_use_noise_multiplier": false,
        "ad_noise_multiplier": 1.0, "ad_use_clip_skip": true, "ad_clip_skip": 2, "ad_restore_face": false,
        "ad_controlnet_model": "None", "ad_controlnet_module": "None", "ad_controlnet_weight": 1.0,
        "ad_controlnet_guidance_start": 0.0, "ad_controlnet_guidance_end": 1.0, "is_api": []
    }"#;
    serde_json::from_str(text).unwrap()
}

#[test]
fn adetailers_settings_are_a_step_that_repairs() {
    let world = studio();
    // Clients look whether it is there before they name it.
    let scripts = world.get("/sdapi/v1/scripts").json();
    assert_eq!(scripts["txt2img"], json!(["adetailer"]));
    let mut body =
        json!({ "prompt": "a crowd", "steps": 3, "width": 128, "height": 64, "seed": 5 });
    let mut hand = adetailer();
    hand["ad_model"] = json!("hand_yolov8n.pt");
    hand["ad_use_inpaint_width_height"] = json!(true);
    hand["ad_use_cfg_scale"] = json!(true);
    hand["ad_cfg_scale"] = json!(1);
    let off = json!({ "ad_model": "None" });
    let untapped = json!({ "ad_model": "person", "ad_tap_enable": false });
    let tabbed = json!({ "ad_model": "person", "ad_tab_enable": false });
    body["alwayson_scripts"] =
        json!({ "ADetailer": { "args": [true, false, adetailer(), off, hand, untapped, tabbed] } });
    let answer = world.post("/sdapi/v1/txt2img", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["images"], json!([base64(PNG)]));
    let job = jobs(&world).pop().unwrap();
    let steps = job["request"]["steps"].as_array().unwrap();
    assert_eq!((steps.len(), &steps[1]["kind"]), (2, &json!("detail")));
    let request = &steps[1]["request"];
    assert_eq!(
        (&request["steps"], &request["seed"]),
        (&json!(3), &json!(5))
    );
    let face = json!({
        "detector": "face_yolov8n.pt", "prompt": "a face", "mask_filter": "area", "mask_merge": "merge-and-invert",
        "confidence": 0.4, "mask_k": 2, "mask_min_ratio": 0.0, "mask_max_ratio": 1.0, "dilate_erode": 8,
        "x_offset": 0, "y_offset": 0, "mask_blur": 5, "strength": 0.3, "inpaint_padding": 16,
        "inpaint_area": "masked", "width": 128, "height": 64, "steps": 9, "sampler": "DPM++ 2M",
        "schedule": "karras", "clip_skip": 1,
    });
    assert_eq!(request["passes"][0], face);
    let hand = &request["passes"][1];
    assert_eq!(
        (&hand["detector"], &hand["width"]),
        (&json!("hand_yolov8n.pt"), &json!(512))
    );
    assert_eq!(hand["guidance"], 0.0, "1 is no guidance");
    assert_eq!(request["passes"].as_array().unwrap().len(), 2);
    for nothing in [
        json!([false, false, adetailer()]),
        json!([]),
        json!([{}]),
        json!([{ "ad_model": "None" }]),
    ] {
        body["alwayson_scripts"]["ADetailer"]["args"] = nothing;
        assert_eq!(world.post("/sdapi/v1/txt2img", &body).status, 200, "{body}");
        assert_eq!(jobs(&world).pop().unwrap()["kind"], "text-to-image");
    }
    // Another checkpoint is another step, and a picture to begin from is no hindrance.
    let mut own = adetailer();
    own["ad_use_checkpoint"] = json!(true);
    own["ad_checkpoint"] = json!("dall-e-3 [0123abcd]");
    body["alwayson_scripts"]["ADetailer"]["args"] = json!([adetailer(), own]);
    body["init_images"] = json!([base64(PNG)]);
    let answer = world.post("/sdapi/v1/img2img", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let job = jobs(&world).pop().unwrap();
    let steps = job["request"]["steps"].as_array().unwrap();
    assert_eq!((steps.len(), &steps[2]["model"]), (3, &json!("demo")));
    assert!(
        steps[0]["request"]["image"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    assert!(steps[1]["request"].get("strength").is_none());
}

#[test]
fn what_adetailer_has_and_this_service_has_not_is_refused_by_name() {
    let world = studio();
    for (field, value) in [
        ("ad_restore_face", json!(true)),
        ("ad_controlnet_model", json!("control_v11p_sd15_inpaint")),
        ("ad_vae", json!("other.safetensors")),
        ("ad_modle", json!("face")),
        ("ad_clip_skip", json!(13)),
    ] {
        let mut unit = adetailer();
        unit[field] = value;
        let body =
            json!({ "prompt": "x", "alwayson_scripts": { "ADetailer": { "args": [unit] } } });
        let field = format!("alwayson_scripts.ADetailer.args[0].{field}");
        refused(&world, "/sdapi/v1/txt2img", &body, &field);
    }
    for args in [json!([true, true, adetailer()]), json!("face"), json!([3])] {
        let body = json!({ "prompt": "x", "alwayson_scripts": { "ADetailer": { "args": args } } });
        refused(
            &world,
            "/sdapi/v1/txt2img",
            &body,
            "alwayson_scripts.ADetailer.args",
        );
    }
    let bare = World::new();
    let body =
        json!({ "prompt": "x", "alwayson_scripts": { "ADetailer": { "args": [adetailer()] } } });
    refused(&bare, "/sdapi/v1/txt2img", &body, "alwayson_scripts");
}
