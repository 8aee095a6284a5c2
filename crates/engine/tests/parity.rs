//! The whole pipeline against diffusers, on tiny random checkpoints of several shapes, in f32.
//!
//! The fixtures hold what `tools/reference/make_fixtures.py` recorded.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::{Path, PathBuf};

use lowtide_core::Quality;
use lowtide_engine::{Engine, ImageRequest, Options, Outcome, PrecisionChoice, Step};
use lowtide_weights::{Checkpoint, ModelFolder};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/z-image")
        .join(name)
}

fn values(expected: &Checkpoint, name: &str) -> Vec<f32> {
    let entry = expected
        .get(name)
        .unwrap_or_else(|| panic!("the fixture has {name}"));
    let mut bytes = vec![0; entry.bytes as usize];
    expected.read(entry, &mut bytes).unwrap();
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn request(case: &Value, noise: Option<Vec<f32>>) -> ImageRequest {
    let asked = &case["request"];
    let number = |key: &str| asked[key].as_f64().unwrap();
    let size = |key: &str| asked[key].as_u64().unwrap() as usize;
    ImageRequest {
        prompt: asked["prompt"].as_str().unwrap().to_owned(),
        negative: asked["negative"].as_str().map(str::to_owned),
        width: size("width"),
        height: size("height"),
        steps: size("steps"),
        guidance: number("guidance") as f32,
        cfg_normalization: Some(number("cfg_normalization") as f32),
        cfg_truncation: number("cfg_truncation") as f32,
        seed: asked["seed"].as_u64().unwrap(),
        count: size("count"),
        noise,
        quality: Quality::Exact,
        ..ImageRequest::default()
    }
}

fn run(engine: &Engine, request: ImageRequest) -> Outcome {
    let mut session = engine.start(request, true).unwrap();
    loop {
        if let Step::Finished(outcome) = session.step().unwrap() {
            return *outcome;
        }
    }
}

fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter()
        .zip(theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn deviation(values: &[f32]) -> f32 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (values
        .iter()
        .map(|&x| (f64::from(x) - mean).powi(2))
        .sum::<f64>()
        / n)
        .sqrt() as f32
}

/// Latents within 2e-3 of their standard deviation, the picture within 2/255; noise drawn from the seed.
fn check(name: &str) {
    let folder = fixture(name);
    let case: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("case.json")).unwrap()).unwrap();
    let expected = Checkpoint::open(&folder.join("expected.safetensors")).unwrap();
    let options = Options {
        precision: PrecisionChoice::F32,
        ..Options::default()
    };
    let engine = Engine::open(
        ModelFolder::open(&folder.join("checkpoint")).unwrap(),
        options,
    )
    .unwrap();

    for noise in [Some(values(&expected, "noise")), None] {
        let drawn = noise.is_none();
        let outcome = run(&engine, request(&case, noise));
        let latents = values(&expected, "latents");
        let limit =
            case["tolerance"]["latents_of_std"].as_f64().unwrap() as f32 * deviation(&latents);
        let off = difference(&outcome.latents, &latents);
        assert!(
            off <= limit,
            "{name}: latents differ by {off}, allowed {limit} (noise drawn: {drawn})"
        );
        let of_deviation = off / deviation(&latents);
        let off = difference(&outcome.values, &values(&expected, "image"));
        eprintln!(
            "{name}: latents within {of_deviation:.1e} of their deviation, the picture within {:.1e}/255",
            off * 255.0
        );
        let limit = case["tolerance"]["image"].as_f64().unwrap() as f32;
        assert!(
            off <= limit,
            "{name}: the picture differs by {off}, allowed {limit} (noise drawn: {drawn})"
        );
    }
}

#[test]
fn plain_bf16_weights_with_guidance_are_as_diffusers_computes_them() {
    check("plain-bf16");
}

#[test]
fn a_causal_lm_checkpoint_in_f16_is_as_diffusers_computes_it() {
    check("causal-lm-f16");
}

#[test]
fn a_long_prompt_is_as_diffusers_computes_it() {
    check("long-prompt");
}

#[test]
fn a_network_without_query_norms_is_as_diffusers_computes_it() {
    check("narrow-no-norm");
}

#[test]
fn sharded_f32_weights_are_as_diffusers_computes_them() {
    check("sharded-f32");
}

#[test]
fn truncated_guidance_is_as_diffusers_computes_it() {
    check("truncated-guidance");
}
