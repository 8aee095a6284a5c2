//! Promises of the kind `noise`, seen through the traits that every kind is seen through.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::Path;
use std::sync::Arc;

use lowtide_core::{Budget, Bytes};
use lowtide_engine::processor::{Opened, Order, Product, Run, Stepped};
use lowtide_engine::{Blame, Error, Options, processors};
use lowtide_kernels::memory;
use serde_json::{Value, json};

fn opened() -> Arc<dyn Opened> {
    let all = processors::all();
    let noise = all.iter().find(|one| one.kind() == "noise").unwrap();
    assert_eq!(noise.own_models(), ["noise"]);
    noise
        .open("noise", None, Options::default().into())
        .unwrap()
}

fn start(request: &Value, resume: Option<&Path>) -> Box<dyn Run> {
    let order = Order {
        request: request.clone(),
        resume,
    };
    opened().start(vec![order]).unwrap()
}

fn finish(mut run: Box<dyn Run>) -> Product {
    loop {
        if let Stepped::Finished(mut products) = run.step().unwrap() {
            assert_eq!(products.len(), 1);
            return products.remove(0).unwrap();
        }
    }
}

fn request() -> Value {
    opened()
        .check(&json!({"width": 40, "height": 33, "seed": 7, "strips": 4}))
        .unwrap()
}

#[test]
fn a_checked_request_is_complete_and_stays_as_it_is() {
    let checked = opened().check(&json!({})).unwrap();
    assert!(checked["seed"].is_u64(), "{checked}");
    assert_eq!(opened().check(&checked).unwrap(), checked);
    for (field, value) in opened().card().defaults.as_object().unwrap() {
        assert_eq!(checked[field], *value);
    }
}

#[test]
fn mistakes_name_the_field() {
    for (request, field) in [
        (json!({"hight": 5}), "hight"),
        (json!({"width": 0}), "width"),
        (json!({"height": 4096}), "height"),
        (json!({"seed": -1}), "seed"),
        (json!({"strips": "many"}), "strips"),
        (json!({"step_ms": 1e9}), "step_ms"),
        (json!("noise"), "request"),
    ] {
        match opened().check(&request).unwrap_err() {
            Error::Request { what, .. } => assert_eq!(what, field),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn the_picture_is_pytorchs_noise_and_says_how_it_was_made() {
    let product = finish(start(&request(), None));
    let [file] = &product.files[..] else {
        panic!("one file")
    };
    assert_eq!(file.media_type, "image/png");
    let text = lowtide_media::text_of(&file.content).unwrap().unwrap();
    assert!(
        text.contains("Seed: 7, Size: 40x33, Model: noise"),
        "{text}"
    );
    assert_eq!(product.report["seeds"], json!([7]));
    // The mean of 7's first strip, as models draw it.
    let values = lowtide_models::noise::randn(7, 3 * 40 * 8);
    let last = values[3 * 40 * 8 - 1];
    let mut run = start(
        &opened()
            .check(&json!({"width": 40, "height": 8, "seed": 7, "strips": 1}))
            .unwrap(),
        None,
    );
    let Stepped::Finished(products) = run.step().unwrap() else {
        panic!("one strip")
    };
    let png = &products[0].as_ref().unwrap().files[0].content;
    let mut reader = png::Decoder::new(std::io::Cursor::new(png))
        .read_info()
        .unwrap();
    let mut rgb = vec![0; 3 * 40 * 8];
    reader.next_frame(&mut rgb).unwrap();
    let expected = (127.5 + last * 42.5).round_ties_even().clamp(0.0, 255.0) as u8;
    assert_eq!(rgb[3 * 40 * 8 - 1], expected);
}

#[test]
fn parked_or_saved_anywhere_it_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("noise.session");
    let reference = finish(start(&request(), None));
    for after in 0..4 {
        let mut run = start(&request(), None);
        for _ in 0..after {
            assert!(matches!(run.step().unwrap(), Stepped::Progress(_)));
        }
        run.park();
        let saved = run.save(0, &file).unwrap();
        assert_eq!(saved, after > 0);
        assert_eq!(run.preview(0).is_some(), after > 0);
        assert_eq!(finish(run), reference);
        if saved {
            assert_eq!(
                finish(start(&request(), Some(&file))),
                reference,
                "saved after {after}"
            );
        }
    }
}

#[test]
fn a_dropped_member_ends_the_run_without_a_picture() {
    let mut run = start(&request(), None);
    run.step().unwrap();
    run.drop_member(0);
    let Stepped::Finished(products) = run.step().unwrap() else {
        panic!("nobody wants more")
    };
    assert_eq!(products, [None]);
}

#[test]
fn another_requests_session_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("noise.session");
    let mut run = start(&request(), None);
    run.step().unwrap();
    run.save(0, &file).unwrap();
    let mut other = request();
    other["seed"] = 8.into();
    let Err(error) = opened().start(vec![Order {
        request: other,
        resume: Some(&file),
    }]) else {
        panic!("another seed's rows were taken")
    };
    assert!(error.to_string().contains("another request"), "{error}");
}

#[test]
fn the_forecast_holds() {
    let request = opened()
        .check(&json!({"width": 1024, "height": 1024, "seed": 1}))
        .unwrap();
    let forecast = opened().forecast(&request, None).unwrap();
    let before = memory::reset_peak();
    let run = start(&request, None);
    assert!(run.remaining_s() > 0.0);
    finish(run);
    let measured = Bytes(memory::peak() - before);
    assert!(measured <= forecast.peak, "{measured} of {}", forecast.peak);
    assert!(
        forecast.peak.0 < 2 * measured.0,
        "{measured} of {}",
        forecast.peak
    );

    let enough = Budget {
        total: forecast.peak + Bytes::mib(1),
        in_use: Bytes::mib(1),
    };
    assert!(opened().forecast(&request, Some(enough)).is_ok());
    let short = Budget {
        in_use: Bytes::mib(2),
        ..enough
    };
    let error = opened().forecast(&request, Some(short)).unwrap_err();
    assert_eq!(error.blame(), Blame::Fit);
}
