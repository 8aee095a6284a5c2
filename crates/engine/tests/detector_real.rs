//! A published detector, NudeNet's YOLOv8n, on photographs: the boxes that onnxruntime finds, within a pixel.
//!
//! `astronaut.png` is a part of NASA's portrait of Eileen Collins (public domain), `camera.png` one of Lav Varshney's
//! photographs (CC0), made smaller; scikit-image carries both. What onnxruntime found was recorded by
//! `tools/reference/yolov8.py real`. The weights are not ours to ship: they are fetched.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::Path;

use lowtide_engine::Options;
use lowtide_engine::detector::{Detector, Search};
use lowtide_media::{Limits, decode};
use serde_json::Value;

#[path = "cached/package.rs"]
mod cached;

#[test]
fn faces_in_photographs_are_where_onnxruntime_finds_them() {
    let name = "nudenet-3.4.2";
    let test = "detector_real faces_in_photographs_are_where_onnxruntime_finds_them";
    let Some(package) = cached::package(test, name) else {
        return;
    };
    let detector = Detector::open(&package.join("nudenet/320n.onnx")).unwrap();
    assert_eq!(detector.architecture(), "YOLOv8n");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/yolov8/real");
    let expected = std::fs::read(fixtures.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let mut faces = 0;
    for case in expected.as_array().unwrap() {
        let file = std::fs::read(fixtures.join(case["picture"].as_str().unwrap())).unwrap();
        let picture = decode(&file, &Limits::default()).unwrap().picture;
        let search = Search {
            confidence: 0.25,
            side: case["side"].as_u64().unwrap() as usize,
            ..Search::default()
        };
        let found = detector.find(&picture, &search, &Options::default());
        let found = found.unwrap().things;
        let theirs = case["things"].as_array().unwrap();
        assert_eq!(found.len(), theirs.len(), "{case}: {found:?}");
        for (ours, theirs) in found.iter().zip(theirs) {
            let number = |value: &Value| value.as_f64().unwrap() as f32;
            assert_eq!(ours.class as u64, theirs["class"].as_u64().unwrap());
            assert_eq!(ours.label, theirs["label"].as_str().unwrap());
            assert!((ours.score - number(&theirs["score"])).abs() < 0.01);
            for (edge, their) in ours.edges.iter().zip(theirs["box"].as_array().unwrap()) {
                assert!((edge - number(their)).abs() <= 1.0, "{ours:?}, {theirs}");
            }
            faces += usize::from(ours.label.starts_with("FACE"));
        }
    }
    assert!(faces >= 4, "{faces}");
}
