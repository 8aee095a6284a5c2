//! A base model and a refiner in one job: as diffusers' ensemble of experts computes it, and as one job that is stopped,
//! saved, shared and gone on with like any other.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_core::Bytes;
use lowtide_engine::processor::{Files, Opened, Order, Product, Run, Setup, Stepped};
use lowtide_engine::processors::{self, Prepared};
use lowtide_engine::{Defaults, Engine, Options, Outcome, PrecisionChoice, Session, Step};
use lowtide_media::{Limits, decode};
use lowtide_weights::{Checkpoint, ModelFolder};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stable-diffusion")
}

fn folder(name: &str) -> Result<ModelFolder, String> {
    let path = fixtures().join(name).join("checkpoint");
    ModelFolder::open(&path).map_err(|error| error.to_string())
}

/// The fixtures are the models that requests can name.
struct Models;

impl Files for Models {
    fn input(&self, _: &str, _: u64) -> Result<Vec<u8>, String> {
        Err("none".to_owned())
    }

    fn lora(&self, _: &str) -> Result<PathBuf, String> {
        Err("none".to_owned())
    }

    fn embeddings(&self) -> Vec<(String, PathBuf)> {
        Vec::new()
    }

    fn model(&self, name: &str) -> Result<ModelFolder, String> {
        folder(name)
    }
}

fn options(budget: Option<Bytes>) -> Options {
    Options {
        precision: PrecisionChoice::F32,
        threads: Some(2),
        budget,
        keep_weights: true,
        prompt_cache: Some(Bytes::ZERO),
        ..Options::default()
    }
}

fn opened(budget: Option<Bytes>) -> Arc<dyn Opened> {
    let all = processors::all();
    let kind = all
        .iter()
        .find(|one| one.kind() == "text-to-image")
        .unwrap();
    let setup = Setup {
        options: options(budget),
        files: Arc::new(Models),
    };
    kind.open("sdxl", Some(folder("sdxl").unwrap()), setup)
        .unwrap()
}

fn request(case: &Value) -> Value {
    let mut request = json!({ "refiner": "sdxl-refiner", "prompt_reading": "literal" });
    for (key, value) in case.as_object().unwrap() {
        // What these cases share with others and does not belong to them.
        if key != "strength" {
            request[key] = value.clone();
        }
    }
    request
}

fn cases() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(fixtures().join("refiner.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn drawn(mut session: Session) -> Outcome {
    loop {
        if let Step::Finished(outcome) = session.step().unwrap() {
            return *outcome;
        }
    }
}

fn off(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let mean = expected.iter().sum::<f32>() / expected.len() as f32;
    let square: f32 = expected.iter().map(|x| (x - mean).powi(2)).sum();
    let pairs = found.iter().zip(expected);
    let most = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    most / (square / expected.len() as f32).sqrt()
}

#[test]
fn both_parts_are_as_diffusers_computes_them() {
    let expected = Checkpoint::open(&fixtures().join("refiner.safetensors")).unwrap();
    let values = |name: String| -> Vec<f32> {
        let entry = expected.get(&name).unwrap();
        let mut bytes = vec![0; entry.bytes as usize];
        expected.read(entry, &mut bytes).unwrap();
        let number = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
        bytes.chunks_exact(4).map(number).collect()
    };
    let base = folder("sdxl").unwrap();
    let defaults = Defaults::of(&base).unwrap();
    let engine = Engine::with_files(base, options(None), Arc::new(Models)).unwrap();
    for (name, case) in cases() {
        let asked = Prepared::read(&engine, &defaults, &Models, &request(&case)).unwrap();
        let first = drawn(engine.start(asked.request.clone(), true).unwrap());
        assert!(
            first.images.is_empty(),
            "{name}: what goes on is no picture"
        );
        let between = off(&first.latents, &values(format!("{name}.between")));
        let refiner = asked.refiner.unwrap();
        let begun = (&engine, std::slice::from_ref(&asked.request));
        let second = drawn(refiner.go_on(begun, &first, true).unwrap());
        let latents = off(&second.latents, &values(format!("{name}.latents")));
        let image = values(format!("{name}.image"));
        let pairs = second.values.iter().zip(&image);
        let picture = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) * 255.0;
        eprintln!(
            "{name}: {between:.1e}, {latents:.1e} of the latents' deviation, {picture:.1e}/255"
        );
        assert!(between < 2e-3 && latents < 2e-3 && picture < 2.0, "{name}");
    }
}

fn finish(run: &mut dyn Run) -> Vec<Option<Product>> {
    loop {
        if let Stepped::Finished(products) = run.step().unwrap() {
            return products;
        }
    }
}

fn pixels(product: &Option<Product>) -> Vec<Vec<u8>> {
    let files = product.as_ref().unwrap().files.iter();
    files
        .map(|file| {
            let decoded = decode(&file.content, &Limits::default()).unwrap();
            decoded.picture.values().to_vec()
        })
        .collect()
}

fn order(request: &Value) -> Order<'_> {
    Order {
        request: request.clone(),
        resume: None,
    }
}

/// The one with two pictures, in few steps.
fn asked() -> Value {
    let mut asked = request(&cases()["own"]);
    asked["count"] = 2.into();
    asked["steps"] = 5.into();
    asked["refiner_start"] = 0.6.into();
    asked
}

#[test]
fn it_is_one_job_that_goes_on_from_any_step() {
    let asked = asked();
    let whole = opened(None);
    let checked = whole.check(&asked).unwrap();
    assert_eq!(whole.check(&checked).unwrap(), checked);
    let forecast = whole.forecast(&checked, None).unwrap();
    let phases: Vec<String> = forecast
        .plan
        .unwrap()
        .phases
        .into_iter()
        .map(|phase| phase.name)
        .collect();
    assert_eq!(
        phases,
        [
            "encode",
            "encode_2",
            "denoise",
            "refiner encode",
            "refiner denoise",
            "decode"
        ]
    );
    let mut run = whole.start(vec![order(&checked)]).unwrap();
    let products = finish(&mut *run);
    let expected = pixels(&products[0]);
    let report = &products[0].as_ref().unwrap().report;
    assert_eq!(report["refiner"], "sdxl-refiner");
    assert!(
        report["seconds"]["refiner denoise"].as_f64() > Some(0.0),
        "{report}"
    );
    assert!(
        report["seconds"]["denoise"].as_f64() > Some(0.0),
        "{report}"
    );
    let text =
        String::from_utf8_lossy(&products[0].as_ref().unwrap().files[0].content).into_owned();
    assert!(text.contains("Refiner: sdxl-refiner") && text.contains("Refiner switch at: 0.6"));
    assert!(whole.held() > Bytes::ZERO && whole.forget() > Bytes::ZERO);
    assert_eq!(whole.held(), Bytes::ZERO);

    let place = tempfile::tempdir().unwrap();
    let mut run = whole.start(vec![order(&checked)]).unwrap();
    let mut resumed = 0;
    while let Stepped::Progress(_) = run.step().unwrap() {
        let file = place.path().join("session");
        if !run.save(0, &file).unwrap() {
            continue;
        }
        let other = opened(None);
        let order = Order {
            request: checked.clone(),
            resume: Some(&file),
        };
        let mut again = other.start(vec![order]).unwrap();
        assert_eq!(
            pixels(&finish(&mut *again)[0]),
            expected,
            "after {resumed} resumed steps"
        );
        resumed += 1;
    }
    assert!(resumed > 6, "{resumed}");
}

#[test]
fn jobs_share_both_parts_and_any_can_be_dropped() {
    let mut requests = [asked(), asked(), asked()];
    requests[1]["prompt"] = "a boat".into();
    requests[2]["seed"] = 99.into();
    let opened = opened(None);
    let alone: Vec<_> = requests
        .iter()
        .map(|request| pixels(&finish(&mut *opened.start(vec![order(request)]).unwrap())[0]))
        .collect();
    // Dropped in the first part, and in the second.
    for steps in [3, 7] {
        let orders = requests.iter().map(order).collect();
        let mut run = opened.start(orders).unwrap();
        for _ in 0..steps {
            assert!(matches!(run.step().unwrap(), Stepped::Progress(_)));
        }
        run.drop_member(1);
        let products = finish(&mut *run);
        assert!(products[1].is_none());
        assert_eq!(pixels(&products[0]), alone[0]);
        assert_eq!(pixels(&products[2]), alone[2]);
    }
}

#[test]
fn what_cannot_go_on_is_refused_by_name() {
    let opened = opened(None);
    for (more, says) in [
        (json!({ "refiner": "nobody" }), "refiner 'nobody': "),
        (
            json!({ "refiner": "sd15" }),
            "a refiner is of the same family",
        ),
        (
            json!({ "refiner": "sdxl-inpaint" }),
            "a refiner is of the same family",
        ),
        (
            json!({ "refiner_start": 0.999 }),
            "leaves none; use more of either",
        ),
        (json!({ "refiner_start": 0 }), "must be above 0"),
    ] {
        let mut asked = asked();
        let more = more.as_object().unwrap().clone();
        asked.as_object_mut().unwrap().extend(more);
        let refused = opened
            .check(&asked)
            .and_then(|checked| opened.forecast(&checked, None))
            .unwrap_err()
            .to_string();
        assert!(refused.contains(says), "{says}: {refused}");
    }
}
