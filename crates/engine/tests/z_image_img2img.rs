//! Z-Image from pictures and masks, against recorded results of diffusers, on the checkpoints of `parity.rs`.
//!
//! The fixtures hold what `tools/reference/z_image_img2img.py` recorded.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_core::{Bytes, Quality};
use lowtide_engine::{
    Engine, Hires, ImageRequest, Options, Outcome, PrecisionChoice, Session, Source, Start, Step,
    Upscaler,
};
use lowtide_media::{Limits, Picture, decode};
use lowtide_weights::{Checkpoint, ModelFolder};
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn engine(checkpoint: &str, budget: Option<Bytes>) -> Engine {
    let folder = fixtures()
        .join("z-image")
        .join(checkpoint)
        .join("checkpoint");
    let options = Options {
        precision: PrecisionChoice::F32,
        threads: Some(2),
        budget,
        prompt_cache: Some(Bytes::ZERO),
        ..Options::default()
    };
    Engine::open(ModelFolder::open(&folder).unwrap(), options).unwrap()
}

fn cases() -> Vec<(String, Value)> {
    let text = std::fs::read_to_string(fixtures().join("z-image-img2img/cases.json")).unwrap();
    let cases: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    cases.into_iter().collect()
}

fn picture(name: &str, (width, height): (usize, usize)) -> Picture {
    let file = format!("z-image-img2img/{name}-{width}x{height}.png");
    let file = std::fs::read(fixtures().join(file)).unwrap();
    decode(&file, &Limits::default()).unwrap().picture
}

fn request(case: &Value) -> ImageRequest {
    let number = |key: &str| case[key].as_f64();
    let whole = |key: &str| case[key].as_u64().unwrap() as usize;
    let size = (whole("width"), whole("height"));
    let masked = case["masked"].as_bool().unwrap();
    let source = Source {
        picture: picture("picture", size),
        mask: masked.then(|| picture("mask", size).luminance()),
    };
    ImageRequest {
        prompt: case["prompt"].as_str().unwrap().to_owned(),
        negative: case["negative"].as_str().map(str::to_owned),
        width: size.0,
        height: size.1,
        steps: whole("steps"),
        guidance: number("guidance").unwrap() as f32,
        cfg_normalization: number("cfg_normalization").map(|norm| norm as f32),
        cfg_truncation: number("cfg_truncation").map_or(1.0, |at| at as f32),
        seed: case["seed"].as_u64().unwrap(),
        count: whole("count"),
        strength: number("strength").unwrap() as f32,
        source: Some(Arc::new(source)),
        quality: Quality::Exact,
        ..ImageRequest::default()
    }
}

fn finish(mut session: Session) -> Outcome {
    loop {
        if let Step::Finished(outcome) = session.step().unwrap() {
            return *outcome;
        }
    }
}

fn values(file: &Checkpoint, name: &str) -> Vec<f32> {
    let entry = file.get(name).unwrap();
    let mut bytes = vec![0; entry.bytes as usize];
    file.read(entry, &mut bytes).unwrap();
    let number = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
    bytes.chunks_exact(4).map(number).collect()
}

fn deviation(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    let square = values.iter().map(|x| (x - mean).powi(2)).sum::<f32>();
    (square / values.len() as f32).sqrt()
}

#[test]
fn pictures_and_masks_are_as_diffusers_computes_them() {
    let expected = fixtures().join("z-image-img2img/expected.safetensors");
    let expected = Checkpoint::open(&expected).unwrap();
    let mut wrong = Vec::new();
    for (name, case) in cases() {
        let engine = engine(case["checkpoint"].as_str().unwrap(), None);
        let ours = finish(engine.start(request(&case), true).unwrap()).latents;
        let theirs = values(&expected, &name);
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
        let off = off.fold(0.0, f32::max) / deviation(&theirs);
        if off.is_nan() || off > 2e-3 {
            wrong.push(format!("{name}: off by {off} of their deviation"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One request with a picture, one with a mask, and each way of a second pass.
fn telling() -> Vec<(String, ImageRequest)> {
    let cases = cases();
    let of = |masked: bool, checkpoint: &str| {
        let fits = |(_, case): &&(String, Value)| {
            case["masked"] == masked && case["checkpoint"] == checkpoint
        };
        let (_, case) = cases.iter().find(fits).unwrap();
        let request = ImageRequest {
            count: 2,
            ..request(case)
        };
        (checkpoint.to_owned(), request)
    };
    let mut telling = vec![of(true, "plain-bf16"), of(false, "truncated-guidance")];
    for upscaler in Upscaler::ALL {
        let (checkpoint, request) = of(false, "sharded-f32");
        let hires = Hires {
            width: request.width + 16,
            height: request.height + 32,
            steps: 4,
            strength: 0.6,
            upscaler,
        };
        let (steps, hires) = (2, Some(hires));
        let request = ImageRequest {
            source: None,
            steps,
            hires,
            ..request
        };
        telling.push((checkpoint, request));
    }
    telling
}

#[test]
fn budgets_change_no_byte_and_are_kept() {
    for (checkpoint, request) in telling() {
        let free = finish(
            engine(&checkpoint, None)
                .start(request.clone(), true)
                .unwrap(),
        );
        // The budget also covers what this test itself holds.
        let least = smallest(&checkpoint, &request) + Bytes::kib(64);
        let most = free.report.plan.peak.max(least);
        for share in 0..4 {
            let budget = Bytes(least.0 + (most.0 - least.0) * share / 3);
            let outcome = finish(
                engine(&checkpoint, Some(budget))
                    .start(request.clone(), true)
                    .unwrap(),
            );
            assert_eq!(outcome.latents, free.latents, "{checkpoint} in {budget}");
            assert_eq!(outcome.images, free.images, "{checkpoint} in {budget}");
            assert_eq!(outcome.report.rungs_taken, 0, "{checkpoint} in {budget}");
            for (phase, peak) in &outcome.report.peak {
                assert!(
                    *peak <= budget,
                    "{checkpoint}: {phase} took {peak} of {budget}"
                );
            }
        }
    }
}

/// The smallest budget that would do, as a refusal names it.
fn smallest(checkpoint: &str, request: &ImageRequest) -> Bytes {
    match engine(checkpoint, Some(Bytes::kib(64))).start(request.clone(), true) {
        Err(lowtide_engine::Error::DoesNotFit(numbers)) => numbers.smallest,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("64 KiB are enough?"),
    }
}

#[test]
fn a_saved_session_goes_on_elsewhere_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("session");
    for (checkpoint, request) in telling() {
        let engine = engine(&checkpoint, None);
        let whole = finish(engine.start(request.clone(), true).unwrap());
        for stop in 1.. {
            let mut session = engine.start(request.clone(), true).unwrap();
            let over = (0..stop).any(|_| matches!(session.step().unwrap(), Step::Finished(_)));
            if over {
                assert!(stop > 4, "{checkpoint} has only {stop} steps");
                break;
            }
            if !session.save(0, &file).unwrap() {
                continue;
            }
            drop(session);
            let start = Start {
                request: request.clone(),
                resume: Some(&file),
            };
            let outcome = finish(engine.start_all(vec![start], true).unwrap());
            assert_eq!(outcome.latents, whole.latents, "{checkpoint} after {stop}");
            assert_eq!(outcome.images, whole.images, "{checkpoint} after {stop}");
        }
    }
}

#[test]
fn jobs_that_share_a_session_give_what_they_give_alone() {
    for (checkpoint, request) in telling() {
        let engine = engine(&checkpoint, None);
        let mut other = ImageRequest {
            seed: 99,
            prompt: "a green star".to_owned(),
            ..request.clone()
        };
        if let Some(source) = &request.source {
            // Another picture, the same mask.
            let values = source.picture.values().iter().map(|value| 255 - value);
            let (width, height) = (source.picture.width(), source.picture.height());
            other.source = Some(Arc::new(Source {
                picture: Picture::new(width, height, values.collect()).unwrap(),
                mask: source.mask.clone(),
            }));
        }
        let both = [request, other];
        let alone = both
            .iter()
            .flat_map(|request| finish(engine.start(request.clone(), false).unwrap()).images);
        let alone: Vec<_> = alone.collect();
        let starts = both.into_iter().map(|request| Start {
            request,
            resume: None,
        });
        let together = finish(engine.start_all(starts.collect(), false).unwrap());
        assert!(together.images == alone, "{checkpoint}");
    }
}
