//! Schedules and noise against recorded values of diffusers and PyTorch.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::{Path, PathBuf};

use lowtide_models::flow_match::FlowMatchEuler;
use lowtide_models::noise;
use lowtide_weights::Checkpoint;
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

fn scheduler(settings: &Value) -> lowtide_models::Result<FlowMatchEuler> {
    let mut config = settings.clone();
    config["_class_name"] = "FlowMatchEulerDiscreteScheduler".into();
    FlowMatchEuler::from_json(&config)
}

fn check_schedule(row: &Value, scheduler: &FlowMatchEuler) {
    let side = |key: &str| row[key].as_u64().unwrap() as usize / 16;
    let steps = row["steps"].as_u64().unwrap() as usize;
    let ours = scheduler.sigmas(steps, side("width") * side("height"));
    let theirs: Vec<f32> = row["sigmas"]
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap() as f32)
        .collect();
    assert_eq!(ours.len(), theirs.len(), "{row}");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!(
            (ours - theirs).abs() <= 2e-7,
            "{ours} is not {theirs}: {row}"
        );
    }
}

#[test]
fn usual_schedules_are_as_diffusers_makes_them() {
    let table = json("layers/sigmas.json");
    let rows = table["usual"].as_array().unwrap();
    assert!(rows.len() > 50);
    for row in rows {
        check_schedule(row, &scheduler(&row["settings"]).unwrap());
    }
}

#[test]
fn rare_schedules_are_right_or_refused_by_name() {
    let table = json("layers/sigmas.json");
    let (mut right, mut refused) = (0, 0);
    for row in table["rare"].as_array().unwrap() {
        match scheduler(&row["settings"]) {
            Ok(scheduler) => {
                check_schedule(row, &scheduler);
                right += 1;
            }
            Err(error) => {
                let text = error.to_string();
                let named = row["settings"]
                    .as_object()
                    .unwrap()
                    .keys()
                    .any(|key| text.contains(key));
                assert!(named, "{text}");
                refused += 1;
            }
        }
    }
    assert!(right > 0 && refused > 0, "{right} right, {refused} refused");
}

#[test]
fn noise_is_what_pytorch_draws_at_every_length() {
    let cases = json("noise/randn.json");
    let file = Checkpoint::open(&fixture("noise/randn.safetensors")).unwrap();
    let tolerance = 2e-6;
    let mut checked = 0;
    for case in cases["one_call"].as_array().unwrap() {
        let entry = file.get(case["tensor"].as_str().unwrap()).unwrap();
        let mut bytes = vec![0; entry.bytes as usize];
        file.read(entry, &mut bytes).unwrap();
        let theirs: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        let ours = noise::randn(case["seed"].as_u64().unwrap(), theirs.len());
        for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert!(
                (ours - theirs).abs() <= tolerance,
                "{case}, value {i}: {ours} is not {theirs}"
            );
        }
        checked += 1;
    }
    assert!(checked > 15);
}
