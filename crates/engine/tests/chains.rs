//! Promises of chains: the bytes of the steps done one by one by hand, whatever the budget; weights read once where the
//! budget holds them; going on in any step; refusals that name the step.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::fs;
use std::sync::{Arc, Mutex};

use lowtide_core::{Budget, Bytes};
use lowtide_engine::processor::{File, Files, Setup, Stepped};
use lowtide_engine::{Error, processors};
use lowtide_kernels::memory;
use lowtide_weights::ModelFolder;
use serde_json::{Value, json};

#[path = "chain/house.rs"]
mod house;
use house::{Files2, House, Sent, alone, done, finish, models, number, read_of, run_one, start};

/// Two steps with two models: drawn, then drawn over.
fn two_steps(count: usize) -> Value {
    json!({ "steps": [
        { "kind": "text-to-image", "model": "demo", "request": {
            "prompt": "a red heart", "width": 64, "height": 96, "steps": 3, "seed": 5, "count": count } },
        { "kind": "text-to-image", "model": "other", "request": {
            "steps": 4, "strength": 0.5, "seed": 9 } },
    ] })
}

/// The steps of [`two_steps`] as a person does them: one job after the other, each with its own model alone.
fn by_hand(files: &Files2, count: usize) -> Vec<File> {
    let sent = Arc::new(Sent(Mutex::default()));
    let open = |model: &str| {
        let all = processors::all();
        let kind = all
            .iter()
            .find(|one| one.kind() == "text-to-image")
            .unwrap();
        let folder = ModelFolder::open(&files.models[model]).unwrap();
        let setup = Setup {
            options: House::new(files, None).options,
            files: sent.clone(),
        };
        kind.open(model, Some(folder), setup).unwrap()
    };
    let first = json!({
        "prompt": "a red heart", "width": 64, "height": 96, "steps": 3, "seed": 5, "count": count });
    let first = run_one(&*open("demo"), first);
    let second = open("other");
    let over = first.files.into_iter().enumerate().flat_map(|(k, file)| {
        sent.0.lock().unwrap().insert(format!("sent-{k}"), file.content);
        let request = json!({
            "prompt": "a red heart", "image": format!("sent-{k}"), "steps": 4, "strength": 0.5, "seed": 9 + k });
        run_one(&*second, request).files
    });
    over.collect()
}

#[test]
fn a_chain_gives_the_bytes_of_its_steps_done_by_hand_whatever_the_budget() {
    let _alone = alone();
    let files = models();
    let hand = by_hand(&files, 2);
    let request = two_steps(2);
    let ample = House::new(&files, None);
    let chain = ample.chain(&request).unwrap();
    let outlook = chain.outlook(None).unwrap();
    assert_eq!(done(&chain).files, hand);
    let peak = outlook.forecast.peak.0;
    let before = memory::live();
    for share in [90, 60, 45] {
        let budget = Bytes(before + peak * share / 100);
        let house = House::new(&files, Some(budget));
        let chain = house.chain(&request).unwrap();
        let product = done(&chain);
        assert_eq!(product.files, hand, "{share} %");
        let peaks = product.report["memory"]["measured_peak"]
            .as_object()
            .unwrap()
            .clone();
        assert_eq!(
            peaks.keys().filter(|phase| phase.starts_with("2 ")).count(),
            5,
            "{peaks:?}"
        );
        let most = peaks.values().filter_map(Value::as_u64).max().unwrap();
        assert!(most <= budget.0, "{share} %: {} of {budget}", Bytes(most));
        assert_eq!(product.report["rungs_taken"], 0, "{share} %");
    }
}

#[test]
fn where_the_budget_holds_both_models_each_byte_is_read_once_for_all_chains() {
    let _alone = alone();
    let files = models();
    let house = House::new(&files, None);
    let chain = house.chain(&two_steps(1)).unwrap();
    let first = done(&chain);
    let [a, b] = ["demo", "other"].map(|model| house.opened(model).held().0);
    assert!(a > 30 << 20 && b > 30 << 20, "both stay: {a} {b}");
    assert_eq!(read_of(&first.report, 0), a);
    assert_eq!(read_of(&first.report, 1), b);
    assert!(
        number(&first.report, "/chain/steps/1/bytes_ahead") > 0,
        "the second model arrives while the first works"
    );
    let again = done(&chain);
    assert_eq!(again.files, first.files);
    assert_eq!(again.report["bytes_read"], 0);
    assert_eq!(again.report["chain"]["seconds"]["waiting"], 0.0);
    // The other way round with the same models: still there.
    let mut turned = two_steps(1);
    turned["steps"][0]["model"] = "other".into();
    turned["steps"][1]["model"] = "demo".into();
    let chain = house.chain(&turned).unwrap();
    let turned = done(&chain);
    // All that the first model did not need before, drawing from nothing, is the encoder of its pictures.
    assert!(
        number(&turned.report, "/bytes_read") < a / 8,
        "{}",
        turned.report["bytes_read"]
    );
    assert_eq!(done(&chain).report["bytes_read"], 0);
    assert_ne!(turned.files, first.files);
}

#[test]
fn where_it_does_not_each_byte_is_still_read_once_and_what_is_done_with_makes_way() {
    let _alone = alone();
    let files = models();
    let request = two_steps(1);
    let used = {
        let house = House::new(&files, None);
        let report = done(&house.chain(&request).unwrap()).report;
        [read_of(&report, 0), read_of(&report, 1)]
    };
    memory::trim();
    let before = memory::live();
    // Room for one model and what it computes, and a part of the other.
    let house = House::new(&files, None);
    let alone = house
        .chain(&json!({ "steps": [two_steps(1)["steps"][0]] }))
        .unwrap();
    let one = alone.outlook(None).unwrap().forecast.peak.0;
    let budget = Bytes(before + one + (10 << 20));
    assert!(
        one + (10 << 20) < used[0] + used[1],
        "the budget does not hold both"
    );
    let house = House::new(&files, Some(budget));
    let chain = house.chain(&request).unwrap();
    let outlook = chain.outlook(None).unwrap();
    assert!(
        !outlook.chain.steps[0].ahead.is_empty(),
        "{:?}",
        outlook.sentences()
    );
    let report = done(&chain).report;
    assert_eq!([read_of(&report, 0), read_of(&report, 1)], used);
    assert!(number(&report, "/chain/steps/1/bytes_ahead") > 0);
    assert!(
        number(&report, "/bytes_read") <= outlook.chain.reads.0,
        "no more than was planned"
    );
    // Of the first model only what fits beside the second stays.
    let [a, b] = ["demo", "other"].map(|model| house.opened(model).held().0);
    assert!(a < used[0] && a + b <= one + (10 << 20), "{a} {b}");
}

#[test]
fn a_chain_saved_anywhere_goes_on_in_another_process_to_the_same_bytes() {
    let _alone = alone();
    let files = models();
    let mut request = two_steps(2);
    // Small, since it is done many times.
    request["steps"][0]["request"]["width"] = 32.into();
    request["steps"][0]["request"]["height"] = 32.into();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job-1.session");
    let house = House::new(&files, None);
    let reference = done(&house.chain(&request).unwrap());
    let mut saved_in = [0; 2];
    for steps in 0.. {
        let house = House::new(&files, None);
        let chain = house.chain(&request).unwrap();
        let mut run = start(&chain, None).unwrap();
        let over = (0..steps).any(|_| matches!(run.step().unwrap(), Stepped::Finished(_)));
        if over {
            break;
        }
        let at = run.stage().unwrap().step;
        if !run.save(0, &file).unwrap() {
            assert!(at == 1 && steps <= 1, "nothing to save after {steps} steps");
            continue;
        }
        saved_in[at - 1] += 1;
        // The one that was saved can go on as well.
        if steps % 4 == 1 {
            run.park();
            assert_eq!(finish(&mut *run).files, reference.files, "{steps} steps");
        }
        drop(run);
        let other = House::new(&files, None);
        let chain = other.chain(&chain.request()).unwrap();
        let mut run = start(&chain, Some(&file)).unwrap();
        assert_eq!(run.stage().unwrap().step, at);
        let product = finish(&mut *run);
        assert_eq!(product.files, reference.files, "{steps} steps");
        if at == 2 {
            assert_eq!(read_of(&product.report, 0), read_of(&reference.report, 0));
        }
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
    assert!(saved_in[0] > 2 && saved_in[1] > 2, "{saved_in:?}");
    // Of another chain it is refused.
    let other = house.chain(&two_steps(1)).unwrap();
    let error = start(&other, Some(&file)).err().unwrap().to_string();
    assert!(error.contains("belongs to another request"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_before_it_starts_by_the_step_and_the_smallest_budget() {
    let _alone = alone();
    let files = models();
    let mut request = two_steps(1);
    // The second step's pictures are larger.
    request["steps"][1]["request"]["width"] = 256.into();
    request["steps"][1]["request"]["height"] = 256.into();
    let house = House::new(&files, None);
    let chain = house.chain(&request).unwrap();
    let small = Budget {
        total: Bytes::mib(8),
        in_use: Bytes::ZERO,
    };
    let Err(Error::DoesNotFit(numbers)) = chain.outlook(Some(small)) else {
        panic!("8 MiB are too little");
    };
    let text = numbers.to_string();
    assert!(
        text.starts_with("does not fit: step 2 (text-to-image with other), "),
        "{text}"
    );
    let enough = Budget {
        total: numbers.smallest,
        ..small
    };
    let outlook = chain.outlook(Some(enough)).unwrap();
    assert!(outlook.forecast.peak <= enough.total);
    let plan = outlook.forecast.plan.as_ref().unwrap();
    assert!(plan.phases.iter().any(|phase| phase.name == "2 denoise"));
    let sentences = outlook.sentences();
    assert!(
        sentences[1].starts_with("step 2, text-to-image with other: "),
        "{sentences:?}"
    );
}

#[test]
fn a_step_that_is_wrong_is_named_with_its_field() {
    let _alone = alone();
    let files = models();
    let house = House::new(&files, None);
    let with = |step: usize, field: &str, value: Value| {
        let mut request = two_steps(1);
        match field.split_once('.') {
            Some((outer, inner)) => request["steps"][step][outer][inner] = value,
            None => request["steps"][step][field] = value,
        }
        let error = house.chain(&request).err().unwrap();
        assert_eq!(error.blame(), lowtide_engine::Blame::User);
        error.to_string()
    };
    for (step, field, value, says) in [
        (
            1,
            "request.width",
            json!(100),
            "steps[1].request.width is 100, not a multiple of",
        ),
        (
            0,
            "request.stepz",
            json!(1),
            "steps[0].request.stepz is not a field here",
        ),
        (
            1,
            "request.image",
            json!("x"),
            "steps[1].request.image is what the step before makes",
        ),
        (1, "model", json!("none"), "steps[1].model is not there"),
        (
            1,
            "kind",
            json!("chain"),
            "steps[1].kind cannot be another chain",
        ),
        (
            1,
            "kind",
            json!("dance"),
            "steps[1].kind 'dance' is no kind of job here",
        ),
        (
            1,
            "kind",
            json!("noise"),
            "steps[1].kind 'noise' takes no picture",
        ),
        (
            0,
            "request.count",
            json!(257),
            "steps[0].request.count is 257",
        ),
        (1, "more", json!(1), "steps[1].more is not a field here"),
    ] {
        let text = with(step, field, value);
        assert!(text.starts_with(says), "{text}");
    }
}

#[test]
fn what_is_no_list_of_steps_is_told_what_one_is() {
    let _alone = alone();
    let files = models();
    let house = House::new(&files, None);
    for (request, says) in [
        (json!([]), "request must be a JSON object"),
        (json!({}), "steps must be a list of 1 to 8 steps"),
        (
            json!({ "steps": [] }),
            "steps must be a list of 1 to 8 steps",
        ),
        (json!({ "steps": [7] }), "steps[0] must be an object"),
        (json!({ "steps": [{}] }), "steps[0].kind is missing"),
    ] {
        let text = house.chain(&request).err().unwrap().to_string();
        assert!(text.starts_with(says), "{text}");
    }
}

#[test]
fn a_checked_chain_is_complete_and_stays_as_it_is() {
    let _alone = alone();
    let files = models();
    let house = House::new(&files, None);
    let mut request = two_steps(1);
    request["steps"][0]["request"]["output_format"] = "jpeg".into();
    request["steps"][1]["request"]["output_format"] = "webp".into();
    let checked = house.chain(&request).unwrap().request();
    let (first, second) = (
        &checked["steps"][0]["request"],
        &checked["steps"][1]["request"],
    );
    // What passes between steps loses nothing; the size of a step is that of what it is given.
    assert_eq!(
        (&first["output_format"], &second["output_format"]),
        (&json!("png"), &json!("webp"))
    );
    assert_eq!(
        (&second["width"], &second["height"]),
        (&json!(64), &json!(96))
    );
    assert_eq!(second["prompt"], "a red heart");
    assert_eq!(second.get("image"), None);
    assert_eq!(house.chain(&checked).unwrap().request(), checked);
    let chain = house.chain(&checked).unwrap();
    assert_eq!(
        (chain.model(), chain.models()),
        ("demo", &["demo".to_owned(), "other".to_owned()][..])
    );
}

#[test]
fn a_dropped_chain_does_no_more_work_and_its_pictures_are_gone() {
    let _alone = alone();
    let files = models();
    let house = House::new(&files, None);
    let chain = house.chain(&two_steps(1)).unwrap();
    let mut run = start(&chain, None).unwrap();
    while run.stage().unwrap().step == 1 {
        run.step().unwrap();
    }
    run.step().unwrap();
    assert!(run.holds() > Bytes::ZERO && run.peak() > Bytes::mib(1));
    assert_eq!(run.stage().unwrap().using, ["other"]);
    run.drop_member(0);
    assert!(matches!(&run.step().unwrap(), Stepped::Finished(products) if products[0].is_none()));
    drop(run);
    for number in 0..10 {
        assert!(
            house
                .handed
                .input(&format!("step:{number}"), 1 << 20)
                .is_err()
        );
    }
}
