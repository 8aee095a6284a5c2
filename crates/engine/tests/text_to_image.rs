//! Promises of the kind `text-to-image`, seen through the traits that every kind is seen through.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lowtide_core::{Budget, Bytes};
use lowtide_engine::processor::{Opened, Order, Product, Run, Stepped};
use lowtide_engine::{Blame, Options, PrecisionChoice, processors};
use lowtide_weights::ModelFolder;
use serde_json::{Value, json};

fn opened(budget: Option<Bytes>) -> Arc<dyn Opened> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo");
    let folder = ModelFolder::open(&folder).unwrap();
    let all = processors::all();
    let kind = all
        .iter()
        .find(|one| one.kind() == "text-to-image")
        .unwrap();
    assert!(kind.runs(&folder));
    let options = Options {
        precision: PrecisionChoice::F32,
        threads: Some(2),
        budget,
        keep_weights: true,
        ..Options::default()
    };
    kind.open("demo", Some(folder), options.into()).unwrap()
}

fn request(opened: &dyn Opened, prompt: &str, more: Value) -> Value {
    let mut request = json!({"prompt": prompt, "width": 64, "height": 96, "steps": 3, "seed": 3});
    for (key, value) in more.as_object().unwrap() {
        request[key] = value.clone();
    }
    opened.check(&request).unwrap()
}

fn start(opened: &dyn Opened, requests: &[&Value], resume: Option<&Path>) -> Box<dyn Run> {
    let order = |request: &&Value| Order {
        request: (*request).clone(),
        resume,
    };
    opened.start(requests.iter().map(order).collect()).unwrap()
}

fn finish(mut run: Box<dyn Run>) -> Vec<Option<Product>> {
    loop {
        if let Stepped::Finished(products) = run.step().unwrap() {
            return products;
        }
    }
}

fn one(run: Box<dyn Run>) -> Product {
    finish(run).remove(0).unwrap()
}

#[test]
fn a_checked_request_is_complete_and_stays_as_it_is() {
    let opened = opened(None);
    let checked = opened.check(&json!({"prompt": "a red heart"})).unwrap();
    assert_eq!(
        (&checked["width"], &checked["steps"], &checked["guidance"]),
        (&json!(128), &json!(20), &json!(4.0))
    );
    assert!(checked["seed"].is_u64());
    assert_eq!(opened.check(&checked).unwrap(), checked);
    let error = opened
        .check(&json!({"prompt": "x", "stepz": 3}))
        .unwrap_err();
    assert_eq!(error.blame(), Blame::User);
    assert!(
        error.to_string().starts_with("stepz is not a field"),
        "{error}"
    );
    let card = opened.card();
    let names: Vec<&str> = card.components.iter().map(|(name, ..)| &name[..]).collect();
    assert_eq!(names, ["text_encoder", "transformer", "vae"]);
    assert!(card.bytes > Bytes::mib(30));
}

#[test]
fn files_and_report_say_how_they_were_made() {
    let opened = opened(None);
    let asked = request(
        &*opened,
        "a red heart",
        json!({"count": 2, "output_format": "jpeg", "negative": "blue"}),
    );
    let product = one(start(&*opened, &[&asked], None));
    assert_eq!(product.files.len(), 2);
    for (k, file) in product.files.iter().enumerate() {
        assert_eq!(file.media_type, "image/jpeg");
        let text = lowtide_media::text_of(&file.content).unwrap().unwrap();
        let says = format!(
            "a red heart\nNegative prompt: blue\nSteps: 3, Sampler: Euler, CFG scale: 4, Seed: {}, Size: 64x96, Model: demo, \
             Precision: f32, Version",
            3 + k
        );
        assert!(text.starts_with(&says), "{text}");
    }
    let report = &product.report;
    assert_eq!(report["seeds"], json!([3, 4]));
    assert_eq!(report["quality"], "exact");
    assert_eq!(report["prompts"], json!({"needed": 2, "remembered": 0}));
    assert!(report["seconds"]["denoise"].as_f64().unwrap() > 0.0);
    assert!(
        report["memory"]["measured_peak"]["decode"]
            .as_u64()
            .unwrap()
            > 0
    );
    assert_eq!(report["reasons"].as_array().unwrap().len(), 4);
    assert!(opened.held() > Bytes::mib(30));
    assert_eq!(opened.prompt_cache().entries, 2);
    assert!(opened.forget() > Bytes::mib(30));
    assert_eq!(
        (opened.held(), opened.prompt_cache().entries),
        (Bytes::ZERO, 0)
    );
}

#[test]
fn orders_that_share_a_session_get_what_they_get_alone() {
    let opened = opened(None);
    let first = request(&*opened, "a red heart", json!({}));
    let second = request(
        &*opened,
        "a blue cat face, large",
        json!({"seed": 8, "output_format": "webp"}),
    );
    let key = |request: &Value| opened.forecast(request, None).unwrap().batch.unwrap().key;
    assert_eq!(key(&first), key(&second));
    let alone = [&first, &second].map(|request| one(start(&*opened, &[request], None)).files);
    let together = finish(start(&*opened, &[&first, &second], None));
    for (product, alone) in together.iter().zip(&alone) {
        assert!(product.as_ref().unwrap().files == *alone);
    }
    let mut run = start(&*opened, &[&first, &second], None);
    run.step().unwrap();
    run.drop_member(0);
    let products = finish(run);
    assert!(products[0].is_none() && products[1].as_ref().unwrap().files == alone[1]);
}

#[test]
fn a_saved_run_goes_on_to_the_same_file_and_no_other_request_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run");
    let opened = opened(None);
    let asked = request(&*opened, "a red heart", json!({}));
    let reference = one(start(&*opened, &[&asked], None)).files;
    let mut run = start(&*opened, &[&asked], None);
    assert!(run.preview(0).is_none());
    for _ in 0..2 {
        run.step().unwrap();
    }
    let preview = run.preview(0).unwrap();
    assert_eq!(preview.media_type, "image/png");
    assert!(run.save(0, &file).unwrap());
    drop(run);
    assert!(one(start(&*opened, &[&asked], Some(&file))).files == reference);
    let other = request(&*opened, "a red heart", json!({"seed": 4}));
    let order = Order {
        request: other,
        resume: Some(&file),
    };
    let Err(error) = opened.start(vec![order]) else {
        panic!("another request took it")
    };
    assert!(error.to_string().contains("another request"), "{error}");
}

#[test]
fn a_forecast_bounds_what_is_measured_and_takes_no_time() {
    let opened = opened(None);
    for prompt in ["a red heart".to_owned(), "赤いハート, größer ".repeat(20)] {
        let asked = request(&*opened, &prompt, json!({"width": 128, "height": 128}));
        let budget = Budget {
            total: Bytes::mib(64),
            in_use: Bytes::mib(4),
        };
        let forecast = opened.forecast(&asked, Some(budget)).unwrap();
        assert!(forecast.peak <= budget.available() && forecast.seconds > 0.0);
        let run = start(&*opened, &[&asked], None);
        let tokens = |plan: &lowtide_core::Plan| plan.phases[0].vars.get("prompt_tokens").unwrap();
        let (bound, true_one) = (
            tokens(forecast.plan.as_ref().unwrap()),
            tokens(run.plan().unwrap()),
        );
        assert!(
            bound >= true_one,
            "{bound} tokens at most, {true_one} in truth"
        );
        let batch = forecast.batch.unwrap();
        assert!(batch.more > Bytes::ZERO && batch.more < forecast.peak && batch.more_seconds > 0.0);
    }
    let asked = request(&*opened, "a red heart", json!({}));
    let budget = Budget::of(Bytes::mib(32));
    let mut times: Vec<f64> = (0..20)
        .map(|_| {
            let start = Instant::now();
            opened.forecast(&asked, Some(budget)).unwrap();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    eprintln!("a forecast takes {:.0} us", times[10] * 1e6);
    assert!(times[10] < 10e-3, "{} s", times[10]);
    let error = opened
        .forecast(&asked, Some(Budget::of(Bytes::mib(4))))
        .unwrap_err();
    assert_eq!(error.blame(), Blame::Fit);
}

#[test]
fn what_one_more_job_adds_is_enough_for_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo");
    let options = Options {
        precision: PrecisionChoice::F32,
        threads: Some(2),
        ..Options::default()
    };
    let engine =
        lowtide_engine::Engine::open(ModelFolder::open(&folder).unwrap(), options).unwrap();
    let asked = lowtide_engine::ImageRequest {
        prompt: "a red heart".to_owned(),
        negative: None,
        width: 256,
        height: 192,
        steps: 4,
        guidance: 4.0,
        cfg_normalization: None,
        cfg_truncation: 1.0,
        seed: 1,
        count: 1,
        noise: None,
        quality: lowtide_core::Quality::Exact,
        ..lowtide_engine::ImageRequest::default()
    };
    for mib in [20, 32, 64, 256] {
        let one = engine
            .forecast(&asked, 1, Some(Budget::of(Bytes::mib(mib))))
            .unwrap();
        let (more, _) = engine.one_more(&asked, &one).unwrap();
        assert!(more > Bytes::ZERO);
        for members in 2..=4 {
            let room = one.peak + Bytes(more.0 * (members as u64 - 1));
            let many = engine
                .forecast(&asked, members, Some(Budget::of(room)))
                .unwrap();
            assert!(many.peak <= room);
            let batch = many.phases[2].vars.get("batch");
            assert_eq!(batch, Some(members as u64), "{members} in {room}");
        }
    }
}
