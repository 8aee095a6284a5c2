//! Promises of the kinds `detect` and `detail`, seen through the traits that every kind is seen through.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowtide_core::{Budget, Bytes};
use lowtide_engine::processor::{Files, Opened, Order, Product, Run, Setup, Stepped};
use lowtide_engine::{Blame, Error, Options, PrecisionChoice, processors};
use lowtide_kernels::memory;
use lowtide_media::{Format, Limits, Picture, decode, encode, text_of};
use lowtide_weights::{Checkpoint, ModelFolder};
use serde_json::{Value, json};

/// Where the process' memory is limited and counted, nothing else may run.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A picture of noise, in which the recorded detectors find things, with `text` in its file.
fn picture_file(case: &str, text: &str) -> Vec<u8> {
    let path = fixtures().join("yolov8").join(case);
    let expected = Checkpoint::open(&path.join("expected.safetensors")).unwrap();
    let entry = expected.get("picture").unwrap();
    let mut values = vec![0; entry.bytes as usize];
    expected.read(entry, &mut values).unwrap();
    let picture = Picture::new(entry.shape[1] as u32, entry.shape[0] as u32, values).unwrap();
    encode(picture.pixels(), Format::Png, text).unwrap()
}

/// A picture with nothing in it.
fn grey_file() -> Vec<u8> {
    let picture = Picture::new(96, 64, vec![114; 3 * 96 * 64]).unwrap();
    encode(picture.pixels(), Format::Png, "").unwrap()
}

/// Pictures by name, and the recorded detectors: `things` without outlines, `face_yolov8n` with them.
struct Beside;

impl Files for Beside {
    fn input(&self, name: &str, _: u64) -> Result<Vec<u8>, String> {
        match name {
            "noise" => Ok(picture_file("detect", "")),
            "told" => Ok(picture_file(
                "detect",
                "a red heart\nSteps: 4, Sampler: Euler",
            )),
            "other" => Ok(picture_file("segment", "")),
            "grey" => Ok(grey_file()),
            _ => Err("there is none".to_owned()),
        }
    }

    fn lora(&self, _: &str) -> Result<PathBuf, String> {
        Err("none".to_owned())
    }

    fn embeddings(&self) -> Vec<(String, PathBuf)> {
        Vec::new()
    }

    fn detector(&self, name: &str) -> Result<PathBuf, String> {
        let case = match name {
            "things" => "detect",
            "face_yolov8n" => "segment",
            "broken" => return Ok(fixtures().join("yolov8/detect/expected.safetensors")),
            _ => return Err("there is no such detector".to_owned()),
        };
        Ok(fixtures()
            .join("yolov8")
            .join(case)
            .join("model.safetensors"))
    }
}

fn opened_with(options: Options) -> Arc<dyn Opened> {
    let all = processors::all();
    let kind = all.iter().find(|one| one.kind() == "detail").unwrap();
    let folder = ModelFolder::open(&fixtures().join("z-image/plain-bf16/checkpoint")).unwrap();
    assert!(kind.runs(&folder));
    let files = Arc::new(Beside);
    kind.open("tiny", Some(folder), Setup { options, files })
        .unwrap()
}

fn opened() -> Arc<dyn Opened> {
    opened_with(Options {
        precision: PrecisionChoice::F32,
        ..Options::default()
    })
}

/// Small and quick: three steps of a picture of 64 x 64.
fn request(more: Value) -> Value {
    let mut pass = json!({
        "detector": "things", "confidence": 0.6, "size": 96, "mask_k": 2, "width": 64, "height": 64,
        "strength": 0.8,
    });
    for (name, value) in more.as_object().unwrap() {
        pass[name] = value.clone();
    }
    json!({ "image": "noise", "prompt": "a cat", "seed": 7, "steps": 3, "passes": [pass] })
}

fn start(opened: &dyn Opened, request: &Value, resume: Option<&Path>) -> Box<dyn Run> {
    let request = opened.check(request).unwrap();
    opened.start(vec![Order { request, resume }]).unwrap()
}

fn finish(mut run: Box<dyn Run>) -> Product {
    loop {
        if let Stepped::Finished(mut products) = run.step().unwrap() {
            assert_eq!(products.len(), 1);
            return products.remove(0).unwrap();
        }
    }
}

fn made(request: &Value) -> Product {
    finish(start(&*opened(), request, None))
}

fn pixels(file: &[u8]) -> Picture {
    decode(file, &Limits::default()).unwrap().picture
}

/// Places (x, y) that differ.
fn changed(a: &Picture, b: &Picture) -> Vec<(usize, usize)> {
    let width = a.width() as usize;
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let pairs = a.values().chunks(3).zip(b.values().chunks(3)).enumerate();
    pairs
        .filter(|(_, (a, b))| a != b)
        .map(|(at, _)| (at % width, at / width))
        .collect()
}

#[test]
fn a_checked_request_is_complete_and_stays_as_it_is() {
    let _alone = alone();
    let opened = opened();
    for given in [
        request(json!({})),
        json!({"image": "noise", "passes": ["face", {"ad_model": "things", "ad_confidence": 0.5}]}),
        json!({"image": "told"}),
    ] {
        let checked = opened.check(&given).unwrap();
        assert!(
            checked["seed"].is_u64() && checked["steps"].is_u64(),
            "{checked}"
        );
        assert_eq!(opened.check(&checked).unwrap(), checked);
    }
    let told = opened.check(&json!({"image": "told"})).unwrap();
    assert_eq!(told["prompt"], "a red heart", "what the picture says");
    assert_eq!(told["passes"][0]["detector"], "face");
}

#[test]
fn mistakes_name_the_field() {
    let _alone = alone();
    let opened = opened();
    for (given, field, says) in [
        (json!({}), "image", "missing"),
        (
            json!({"image": "noise", "width": 64}),
            "width",
            "passes have their own",
        ),
        (
            json!({"image": "noise", "stepps": 4}),
            "stepps",
            "not a field",
        ),
        (json!({"image": "noise", "passes": []}), "passes", "1 to 10"),
        (
            request(json!({"detector": "nose"})),
            "passes",
            "1: detector 'nose'",
        ),
        (
            request(json!({"detector": "hand"})),
            "passes",
            "hand_yolov8n",
        ),
        (
            request(json!({"classes": "tree"})),
            "passes",
            "thing 0, thing 1",
        ),
        (request(json!({"width": 65})), "passes", "1: width is 65"),
        (
            request(json!({"strength": 0.1})),
            "passes",
            "1: strength is 0.1",
        ),
        (request(json!({"sampler": "best"})), "passes", "1: sampler"),
    ] {
        match opened.check(&given).unwrap_err() {
            Error::Request { what, problem } => {
                assert_eq!(what, field, "{problem}");
                assert!(problem.contains(says), "{problem}");
            }
            other => panic!("{other}"),
        }
    }
    let broken = opened.check(&request(json!({"detector": "broken"})));
    assert_eq!(broken.unwrap_err().blame(), Blame::User);
}

#[test]
fn only_what_was_found_is_drawn_anew() {
    let _alone = alone();
    let product = made(&request(json!({})));
    let report = &product.report;
    let [file] = &product.files[..] else {
        panic!("one file")
    };
    let before = pixels(&Beside.input("noise", 0).unwrap());
    let after = pixels(&file.content);
    let places = changed(&before, &after);
    assert!(!places.is_empty());
    assert_eq!(
        (&report["drawn"], &report["unchanged"]),
        (&json!(2), &json!(false))
    );
    assert_eq!(
        report["seeds"],
        json!([7, 8]),
        "each thing has a seed of its own"
    );
    let pass = &report["passes"][0];
    let things = pass["things"].as_array().unwrap();
    assert!(
        pass["found"].as_u64().unwrap() > 2 && things.len() == 2,
        "{pass}"
    );
    // Beyond boxes, growth and blur nothing changes.
    let reach = 4.0 + 12.0;
    let near = |&(x, y): &(usize, usize)| {
        things.iter().any(|thing| {
            let edge = |side: usize| thing["box"][side].as_f64().unwrap();
            let (x, y) = (x as f64, y as f64);
            (edge(0) - reach..=edge(2) + reach).contains(&x)
                && (edge(1) - reach..=edge(3) + reach).contains(&y)
        })
    };
    assert!(places.iter().all(near));
    let text = text_of(&file.content).unwrap().unwrap();
    assert!(text.starts_with("a cat\n"), "{text}");
    assert!(
        text.contains("ADetailer model: model.safetensors, ADetailer confidence: 0.6"),
        "{text}"
    );
    assert!(!report["memory"]["measured_peak"]["detect"].is_null());
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_does_not() {
    let _alone = alone();
    let content = |request: &Value| made(request).files[0].content.clone();
    let one = content(&request(json!({})));
    assert_eq!(one, content(&request(json!({}))));
    assert_ne!(one, content(&request(json!({"seed": 8}))));
    let told = request(json!({"seed": 7}));
    assert_eq!(
        one,
        content(&told),
        "a pass' seed is the job's unless it is said"
    );
}

#[test]
fn nothing_found_leaves_the_picture_and_says_so() {
    let _alone = alone();
    let mut nothing = request(json!({"confidence": 1.0}));
    nothing["image"] = json!("grey");
    let product = made(&nothing);
    assert_eq!(pixels(&product.files[0].content), pixels(&grey_file()));
    assert_eq!(product.report["unchanged"], json!(true));
    let notes = product.report["notes"].to_string();
    assert!(
        notes.contains("found nothing") && notes.contains("as it was"),
        "{notes}"
    );
    // The same where things are of a size that does not count.
    let product = made(&request(json!({"mask_max_ratio": 0.0})));
    assert_eq!(product.report["unchanged"], json!(true));
    assert!(
        product.report["notes"]
            .to_string()
            .contains("none of a size")
    );
}

#[test]
fn things_have_prompts_of_their_own_or_stay() {
    let _alone = alone();
    let after = |prompt: &str| {
        let product = made(&request(json!({ "prompt": prompt })));
        (pixels(&product.files[0].content), product.report)
    };
    let (same, _) = after("");
    let (whole, _) = after("[PROMPT]");
    assert_eq!(same, whole);
    let (first, report) = after("a dog[SEP][SKIP]");
    assert_eq!(
        (&report["drawn"], &report["passes"][0]["skipped"]),
        (&json!(1), &json!(1))
    );
    assert_ne!(first, same);
    let (none, report) = after("[SKIP]");
    assert_eq!(report["drawn"], json!(0));
    assert_eq!(none, pixels(&Beside.input("noise", 0).unwrap()));
}

#[test]
fn several_passes_go_on_from_each_other() {
    let _alone = alone();
    let mut both = request(json!({"mask_k": 1}));
    let second = json!({
        "detector": "face", "confidence": 0.0, "mask_k": 1, "mask_filter": "confidence", "width": 64, "height": 64, "strength": 0.8,
        "mask_merge": "merge-and-invert", "inpaint_area": "whole",
    });
    both["passes"].as_array_mut().unwrap().push(second);
    let product = made(&both);
    let passes = product.report["passes"].as_array().unwrap();
    assert_eq!(passes.len(), 2);
    assert!(
        passes.iter().all(|pass| pass["drawn"] == json!(1)),
        "{passes:?}"
    );
    let text = text_of(&product.files[0].content).unwrap().unwrap();
    assert!(text.contains("ADetailer model 2nd: "), "{text}");
}

#[test]
fn parked_or_saved_anywhere_it_goes_on_to_the_same_bytes() {
    let _alone = alone();
    let opened = opened();
    let asked = request(json!({}));
    let reference = finish(start(&*opened, &asked, None));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("detail.session");
    let mut after = 0;
    loop {
        let mut run = start(&*opened, &asked, None);
        for _ in 0..after {
            assert!(matches!(run.step().unwrap(), Stepped::Progress(_)));
        }
        run.park();
        let saved = run.save(0, &file).unwrap();
        assert_eq!(saved, after > 0);
        let parked = finish(run);
        assert_eq!(parked.files, reference.files, "parked after {after} steps");
        let resumed = finish(start(&*opened, &asked, saved.then_some(&*file)));
        assert_eq!(resumed.files, reference.files, "saved after {after} steps");
        assert_eq!(resumed.report["seeds"], reference.report["seeds"]);
        assert_eq!(resumed.report["drawn"], reference.report["drawn"]);
        after += 4;
        let mut run = start(&*opened, &asked, None);
        let over = (0..after).any(|_| matches!(run.step().unwrap(), Stepped::Finished(_)));
        if over {
            break;
        }
    }
    assert!(after > 8, "{after} steps are not enough to try");
    // Another request's file is refused.
    let other = opened.check(&request(json!({"seed": 8}))).unwrap();
    let resume = Some(&*file);
    let refused = opened.start(vec![Order {
        request: other,
        resume,
    }]);
    assert!(
        refused
            .err()
            .unwrap()
            .to_string()
            .contains("another request")
    );
}

#[test]
fn a_run_that_nobody_waits_for_ends() {
    let _alone = alone();
    let mut run = start(&*opened(), &request(json!({})), None);
    assert!(matches!(run.step().unwrap(), Stepped::Progress(_)));
    run.drop_member(0);
    let Stepped::Finished(products) = run.step().unwrap() else {
        panic!("nobody waits")
    };
    assert!(matches!(products[..], [None]));
}

#[test]
fn the_budget_holds_and_changes_nothing() {
    let _alone = alone();
    let request = request(json!({}));
    let within = |budget: Bytes| {
        opened_with(Options {
            budget: Some(budget),
            precision: PrecisionChoice::F32,
            ..Options::default()
        })
    };
    let reference = made(&request);
    let checked = opened().check(&request).unwrap();
    let in_use = Bytes(memory::live());
    let none = Budget {
        total: Bytes::ZERO,
        in_use,
    };
    let refused = opened().forecast(&checked, Some(none)).unwrap_err();
    assert_eq!(refused.blame(), Blame::Fit);
    let forecast = opened().forecast(&checked, None).unwrap();
    assert_eq!(forecast.plan.as_ref().unwrap().phases[0].name, "detect");
    let budget = in_use + forecast.peak + Bytes::mib(1);
    let product = finish(start(&*within(budget), &request, None));
    assert_eq!(product.files, reference.files);
    let peaks = product.report["memory"]["measured_peak"]
        .as_object()
        .unwrap();
    for (phase, peak) in peaks {
        assert!(
            peak.as_u64().unwrap() <= budget.0,
            "{phase}: {peak} of {budget}"
        );
    }
    let tight = start_refused(&*within(Bytes::mib(1)), &request);
    assert_eq!(tight.blame(), Blame::Fit, "{tight}");
}

fn start_refused(opened: &dyn Opened, request: &Value) -> Error {
    let request = opened.check(request).unwrap();
    let resume = None;
    opened.start(vec![Order { request, resume }]).err().unwrap()
}

fn finder() -> Arc<dyn Opened> {
    let all = processors::all();
    let kind = all.iter().find(|one| one.kind() == "detect").unwrap();
    let model = kind.own_models()[0];
    let setup = Setup {
        options: Options::default(),
        files: Arc::new(Beside),
    };
    kind.open(model, None, setup).unwrap()
}

#[test]
fn a_look_gives_a_mask_and_a_list() {
    let _alone = alone();
    let finder = finder();
    let asked = json!({"image": "other", "confidence": 0.6, "overlap": 0.5, "size": 96});
    let checked = finder.check(&asked).unwrap();
    assert_eq!(checked["detector"], "face");
    assert_eq!(finder.check(&checked).unwrap(), checked);
    let product = finish(start(&*finder, &asked, None));
    let [mask, list] = &product.files[..] else {
        panic!("a mask and a list")
    };
    assert_eq!(
        (&mask.media_type[..], &list.media_type[..]),
        ("image/png", "application/json")
    );
    let list: Value = serde_json::from_slice(&list.content).unwrap();
    let things = list["detections"].as_array().unwrap();
    assert_eq!(
        things.len() as u64,
        product.report["found"].as_u64().unwrap()
    );
    assert!(!things.is_empty());
    // What the list says is masked is what the mask shows.
    let (width, height) = (
        list["width"].as_u64().unwrap(),
        list["height"].as_u64().unwrap(),
    );
    let mut told = vec![false; (width * height) as usize];
    for thing in things {
        let (mut place, mut masked) = (0, false);
        for count in thing["mask"]["counts"].as_array().unwrap() {
            for _ in 0..count.as_u64().unwrap() {
                let at = place % height * width + place / height;
                told[at as usize] |= masked;
                place += 1;
            }
            masked = !masked;
        }
        assert_eq!(place, width * height);
    }
    let shown = pixels(&mask.content);
    let shown: Vec<bool> = shown.values().chunks(3).map(|pixel| pixel[0] > 0).collect();
    assert_eq!(shown, told);
    assert!(told.contains(&true) && told.contains(&false));
    for (given, field) in [
        (json!({}), "image"),
        (json!({"image": "noise", "detector": "nose"}), "detector"),
        (json!({"image": "noise", "classes": "tree"}), "classes"),
        (json!({"image": "noise", "size": 7}), "size"),
    ] {
        match finder.check(&given).unwrap_err() {
            Error::Request { what, .. } => assert_eq!(what, field),
            other => panic!("{other}"),
        }
    }
}
