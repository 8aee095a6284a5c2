//! Promises of chains whose steps are of different kinds: the next step's weights are read while the one before works,
//! each byte once, and the result is that of the steps done one by one by hand.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::sync::{Arc, Mutex};

use lowtide_core::Bytes;
use lowtide_engine::processor::{File, Opened, Order, Product, Setup, Stepped};
use lowtide_engine::processors;
use lowtide_kernels::memory;
use lowtide_weights::ModelFolder;
use serde_json::{Value, json};

#[path = "chain/house.rs"]
mod house;
use house::{Files2, House, Sent, alone, done, models, number, read_of, run_one, start};

/// Kinds and models of the steps of [`request`].
const STEPS: [(&str, &str); 3] = [
    ("text-to-image", "demo"),
    ("detail", "other"),
    ("upscale", "dense"),
];

/// Drawn, repaired by another model in `things` places, made larger.
fn request(things: usize) -> Value {
    json!({ "steps": [
        { "kind": STEPS[0].0, "model": STEPS[0].1, "request": {
            "prompt": "a red heart", "width": 64, "height": 96, "steps": 3, "seed": 5 } },
        { "kind": STEPS[1].0, "model": STEPS[1].1, "request": {
            "steps": 3, "seed": 9, "prompt": "a blue star", "passes": [{
                "detector": "things", "confidence": 0.05, "size": 96, "mask_k": things, "width": 64, "height": 64,
                "strength": 0.8 }] } },
        { "kind": STEPS[2].0, "model": STEPS[2].1, "request": {} },
    ] })
}

/// The same as a person does it: one job after the other, each with its own model alone.
fn by_hand(files: &Files2, request: &Value) -> Vec<File> {
    let mut all = each_by_hand(files, request, None);
    all.pop().unwrap().files
}

/// What each step makes and tells by hand.
fn each_by_hand(files: &Files2, request: &Value, budget: Option<Bytes>) -> Vec<Product> {
    let sent = Arc::new(Sent(Mutex::default()));
    let mut made: Vec<Product> = Vec::new();
    for (step, (kind, model)) in request["steps"].as_array().unwrap().iter().zip(STEPS) {
        let all = processors::all();
        let processor = all.iter().find(|one| one.kind() == kind).unwrap();
        let setup = Setup {
            options: House::new(files, budget).options,
            files: sent.clone(),
        };
        let folder = ModelFolder::open(&files.models[model]).unwrap();
        let opened = processor.open(model, Some(folder), setup).unwrap();
        let mut one = step["request"].clone();
        if let Some(before) = made.last() {
            sent.put("sent", before.files[0].content.clone());
            one["image"] = "sent".into();
        }
        made.push(run_one(&*opened, one));
    }
    made
}

/// Bytes of weights of each model's kind that are in memory.
fn held(house: &House<'_>) -> Vec<u64> {
    let opened = house.opened.lock().unwrap();
    let all = STEPS.map(|(kind, model)| opened[&(kind.to_owned(), model.to_owned())].held().0);
    all.to_vec()
}

#[test]
fn each_byte_is_read_once_and_ahead_of_its_step_whatever_the_kind() {
    let _alone = alone();
    let files = models();
    for things in [1, 3] {
        let request = request(things);
        let house = House::new(&files, None);
        let chain = house.chain(&request).unwrap();
        let outlook = chain.outlook(None).unwrap();
        let ahead = outlook.chain.steps[0].ahead.iter().map(|ahead| ahead.step);
        assert_eq!(
            ahead.collect::<Vec<_>>(),
            [1, 2],
            "{:?}",
            outlook.sentences()
        );
        let product = done(&chain);
        assert_eq!(product.files, by_hand(&files, &request), "{things} things");
        let report = &product.report;
        let drawn = number(report, "/chain/steps/1/reports/0/drawn");
        assert_eq!(drawn, things as u64);
        for (step, held) in held(&house).into_iter().enumerate() {
            assert!(held > 0);
            assert_eq!(read_of(report, step), held, "step {step}, {things} things");
        }
        for step in [1, 2] {
            assert!(number(report, &format!("/chain/steps/{step}/bytes_ahead")) > 0);
        }
        // The last step has had time to arrive whole.
        assert_eq!(number(report, "/chain/steps/2/bytes_read"), 0);
        let again = done(&chain);
        assert_eq!(again.files, product.files);
        assert_eq!(again.report["bytes_read"], 0);
        assert_eq!(again.report["chain"]["seconds"]["waiting"], 0.0);
    }
}

#[test]
fn the_bytes_are_those_of_the_steps_by_hand_whatever_the_budget() {
    let _alone = alone();
    let files = models();
    let request = request(2);
    let hand = by_hand(&files, &request);
    let peak = {
        let ample = House::new(&files, None);
        ample
            .chain(&request)
            .unwrap()
            .outlook(None)
            .unwrap()
            .forecast
            .peak
            .0
    };
    memory::trim();
    let before = memory::live();
    for share in [115, 90, 60, 45] {
        let budget = Bytes(before + peak * share / 100);
        let house = House::new(&files, Some(budget));
        let chain = house.chain(&request).unwrap();
        let product = done(&chain);
        assert_eq!(product.files, hand, "{share} %");
        let peaks = product.report["memory"]["measured_peak"]
            .as_object()
            .unwrap();
        let most = peaks.values().filter_map(Value::as_u64).max().unwrap();
        assert!(most <= budget.0, "{share} %: {} of {budget}", Bytes(most));
        assert_eq!(product.report["rungs_taken"], 0, "{share} %");
        if share < 100 {
            continue;
        }
        // What others may take beside a step is never what it would have kept.
        let alone = each_by_hand(&files, &request, Some(budget));
        for (step, alone) in alone.iter().enumerate() {
            let (read, alone) = (
                read_of(&product.report, step),
                number(&alone.report, "/bytes_read"),
            );
            assert!(
                read <= alone,
                "{share} %, step {step}: {read} where alone {alone}"
            );
        }
    }
}

#[test]
fn what_is_ceded_beside_a_step_never_shrinks_and_is_beside_what_it_needs() {
    let _alone = alone();
    let files = models();
    let house = House::new(&files, Some(Bytes(memory::live()) + Bytes::gib(1)));
    let request = request(2);
    let chain = house.chain(&json!({ "steps": request["steps"] })).unwrap();
    let before = by_hand(&files, &json!({ "steps": [request["steps"][0]] }));
    house.sent.put("drawn", before[0].content.clone());
    for (kind, model) in &STEPS[1..] {
        let opened =
            house.opened.lock().unwrap()[&((*kind).to_owned(), (*model).to_owned())].clone();
        let step = STEPS.iter().position(|step| step.0 == *kind).unwrap();
        let mut one = chain.request()["steps"][step]["request"].clone();
        one["image"] = "drawn".into();
        let order = Order {
            request: one,
            resume: None,
        };
        let mut run = opened.start(vec![order]).unwrap();
        let budget = run.plan().unwrap().budget;
        let (mut last, mut most) = (Bytes::ZERO, Bytes::ZERO);
        loop {
            let ceded = run.cede(Bytes::gib(2));
            assert!(
                ceded >= last && ceded < budget.available(),
                "{kind}: {ceded} after {last}"
            );
            last = ceded;
            most = most.max(ceded);
            if let Stepped::Finished(_) = run.step().unwrap() {
                break;
            }
        }
        assert!(most > Bytes::mib(500), "{kind}: {most}");
    }
    drop(start(&chain, None).unwrap());
}

#[test]
fn weights_are_brought_no_further_than_allowed_and_go_as_far_as_asked() {
    let _alone = alone();
    let files = models();
    let house = House::new(&files, None);
    let request = request(1);
    let chain = house.chain(&request).unwrap();
    let outlook = chain.outlook(None).unwrap();
    assert_eq!(held(&house), [0, 0, 0], "nothing is read by looking");
    let drawn = by_hand(&files, &json!({ "steps": [request["steps"][0]] }));
    house.sent.put("drawn", drawn[0].content.clone());
    for (at, (kind, model)) in STEPS.into_iter().enumerate().skip(1) {
        let opened: Arc<dyn Opened> =
            house.opened.lock().unwrap()[&(kind.to_owned(), model.to_owned())].clone();
        let mut one = chain.request()["steps"][at]["request"].clone();
        one["image"] = "drawn".into();
        let forecast = opened.forecast(&one, None).unwrap();
        let stays = opened.stays(&one, &forecast).unwrap();
        assert!(
            stays > Bytes::ZERO && stays <= opened.card().bytes + Bytes::mib(1),
            "{kind}: {stays}"
        );
        let left = std::cell::Cell::new(stays.0 / 2);
        let more = |bytes: Bytes| {
            let enough = bytes.0 > left.get();
            left.set(left.get().saturating_sub(if enough { 0 } else { bytes.0 }));
            !enough
        };
        let half = opened.bring(&one, &forecast, &more).unwrap().bytes;
        assert!(
            half.0 <= stays.0 / 2 && half == opened.held(),
            "{kind}: {half}"
        );
        let rest = opened.bring(&one, &forecast, &|_| true).unwrap().bytes;
        assert_eq!(half + rest, stays, "{kind}");
        let back = opened.shrink(half);
        assert!(
            opened.held() <= half && back + opened.held() == stays,
            "{kind}: {back}"
        );
        opened.shrink(Bytes::ZERO);
        assert_eq!(opened.held(), Bytes::ZERO);
    }
    assert!(outlook.chain.reads > Bytes::ZERO);
}
