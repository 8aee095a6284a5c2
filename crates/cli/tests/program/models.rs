//! `models` and `doctor`.

use crate::{Ended, Place};

#[test]
fn the_demo_is_shown_from_any_folder() {
    let shown = Place::new().line("models show demo").ok();
    for part in [
        "ZImagePipeline",
        "text_encoder",
        "transformer",
        "layers.0..7",
        "vae",
        "BF16",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn the_parts_of_a_model_add_up() {
    let shown = Place::new().line("models show demo --json").json();
    let mut bytes = 0;
    for component in shown["components"].as_array().unwrap() {
        let weights = &component["weights"];
        if weights.is_null() {
            continue;
        }
        let sum = |list: &str| -> u64 {
            weights[list]
                .as_array()
                .unwrap()
                .iter()
                .map(|part| part["bytes"].as_u64().unwrap())
                .sum()
        };
        assert_eq!(
            sum("blocks"),
            weights["bytes"].as_u64().unwrap(),
            "{}",
            component["name"]
        );
        assert_eq!(
            sum("dtypes"),
            weights["bytes"].as_u64().unwrap(),
            "{}",
            component["name"]
        );
        bytes += weights["bytes"].as_u64().unwrap();
    }
    assert_eq!(shown["bytes"], bytes);
    assert_eq!(
        shown["defaults"],
        serde_json::json!({ "width": 128, "height": 128, "steps": 20, "guidance": 4.0 })
    );
}

#[test]
fn the_list_names_models_and_what_is_wrong_with_others() {
    let place = Place::new();
    place.copy_demo("shelf/mine");
    place.write("shelf/broken/model_index.json", "{}");
    place.write("shelf/no-model/readme.txt", "");
    let listed = place.line("models list shelf").ok();
    assert!(
        listed.contains("demo") && listed.contains("mine"),
        "{listed}"
    );
    assert!(
        listed.contains("broken") && listed.contains("no _class_name"),
        "{listed}"
    );
    assert!(!listed.contains("no-model"), "{listed}");
}

#[test]
fn a_model_on_the_shelf_is_found_by_name() {
    let place = Place::new();
    place.copy_demo("shelf/mine");
    let run = |line: &str| {
        let mut command = place.command();
        command
            .env("LOWTIDE_MODELS", place.path("shelf"))
            .args(line.split_whitespace());
        Ended::of(command.output().unwrap())
    };
    run("generate heart --model mine --steps 1 --seed 5 -o mine.png").ok();
    place
        .line("generate heart --steps 1 --seed 5 -o demo.png")
        .ok();
    assert_eq!(place.pixels("mine.png"), place.pixels("demo.png"));
    assert!(run("models list").ok().contains("mine"));
    let error = run("generate heart --model other").error(2);
    assert!(
        error.contains("'other'") && error.contains("models list"),
        "{error}"
    );
}

#[test]
fn a_safety_checker_may_lack_its_weights_and_others_may_not() {
    let place = Place::new();
    let folder = place.copy_demo("mine");
    let index = folder.join("model_index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    place.write("mine/checker/config.json", "{}");
    for (class, code) in [("StableDiffusionSafetyChecker", 0), ("CLIPTextModel", 2)] {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["checker"] = serde_json::json!(["transformers", class]);
        std::fs::write(&index, json.to_string()).unwrap();
        assert_eq!(place.line("models show mine").code, Some(code), "{class}");
    }
}

#[test]
fn a_model_without_defaults_takes_those_of_its_pipeline() {
    let place = Place::new();
    let folder = place.copy_demo("plain");
    std::fs::remove_file(folder.join("lowtide.json")).unwrap();
    let shown = place.line("models show plain --json").json();
    assert_eq!(
        shown["defaults"],
        serde_json::json!({ "width": 1024, "height": 1024, "steps": 50, "guidance": 5.0 })
    );
}

#[test]
fn the_doctor_knows_the_machine() {
    let place = Place::new();
    let told = place.line("doctor --json").json();
    let device = &told["devices"][0];
    let chosen = &device["instruction_set"];
    assert!(
        device["instruction_sets"]
            .as_array()
            .unwrap()
            .contains(chosen),
        "{device}"
    );
    assert!(device["threads"].as_u64().unwrap() >= 1);
    for capability in told["capabilities"].as_array().unwrap() {
        assert!(
            !capability["why"].as_str().unwrap().is_empty(),
            "{capability}"
        );
    }
    if cfg!(target_os = "linux") {
        assert!(told["memory"]["usable"].as_u64().unwrap() > 0);
        assert!(told["memory"]["usable"].as_u64() <= told["memory"]["total"].as_u64());
    }
    let text = place.line("doctor").ok();
    assert!(
        text.contains(chosen.as_str().unwrap()) && text.contains("NVIDIA GPUs"),
        "{text}"
    );
}
