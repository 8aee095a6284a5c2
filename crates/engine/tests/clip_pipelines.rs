//! Prompts through tokenizer, tables and encoder: the states that diffusers' pipelines encode them to.
//!
//! The fixtures hold what `tools/reference/clip.py` recorded.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

#[path = "clip/files.rs"]
mod files;

use lowtide_engine::clip_prompt::{ClipTokenizer, Inversion, Mode, position_rows, token_rows};
use lowtide_models::Tensor;
use lowtide_models::clip_text::{Encoded, Sequence, Wanted};
use lowtide_weights::{Checkpoint, ModelFolder};
use serde_json::Value;

use files::{Opened, fixture, off, values};

/// A model's prompts through tokenizer, tables and encoder.
struct Model {
    folder: ModelFolder,
    parts: Vec<(ClipTokenizer, Opened)>,
}

impl Model {
    fn open(name: &str, suffixes: &[&str]) -> Model {
        let path = fixture(name);
        let folder = ModelFolder::open(&path).unwrap();
        let part = |suffix: &&str| {
            let tokenizer = ClipTokenizer::open(&folder, &format!("tokenizer{suffix}")).unwrap();
            (
                tokenizer,
                Opened::new(&path.join(format!("text_encoder{suffix}"))),
            )
        };
        let parts = suffixes.iter().map(part).collect();
        Model { folder, parts }
    }

    fn encode(&self, part: usize, prompt: &str, wanted: Wanted, learned: &[Inversion]) -> Encoded {
        let (tokenizer, encoder) = &self.parts[part];
        let chunks = tokenizer.chunks(prompt, Mode::Literal, learned).unwrap();
        let layout = encoder.layout(wanted);
        let about = (self.folder.name.as_str(), &encoder.file);
        let chunk = &chunks.chunks[0];
        let rows = token_rows(about, &layout.tables[0], chunk, learned).unwrap();
        let positions = position_rows(about, &layout.tables[1]).unwrap();
        assert_eq!(
            positions.data(),
            values(&encoder.file, &layout.tables[1].name).data()
        );
        let sequence = Sequence {
            rows,
            end: chunk.end(&encoder.config),
            wanted,
        };
        encoder.encode(&layout, vec![sequence]).0.remove(0)
    }
}

fn cases(name: &str) -> (Vec<Value>, Checkpoint) {
    let folder = fixture(name);
    let requests = files::json(&folder.join("requests.json"));
    let expected = Checkpoint::open(&folder.join("expected.safetensors")).unwrap();
    (requests.as_array().unwrap().clone(), expected)
}

#[track_caller]
fn check(ours: &Tensor, theirs: &Tensor, what: &str) {
    let far = off(ours.data(), theirs.data());
    assert!(far < 1e-5, "{what}: {far:.1e} of a standard deviation");
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap()
}

#[test]
fn stable_diffusions_prompts_are_as_diffusers_encodes_them() {
    let model = Model::open("sd", &[""]);
    let load = |name: &str, file: &str| {
        let file = Checkpoint::open(&fixture("sd").join(file)).unwrap();
        Inversion::load(name, &file).unwrap()
    };
    let learned = [
        load("thing", "thing.safetensors"),
        load("style-7", "style.safetensors"),
    ];
    let (cases, expected) = cases("sd");
    assert_eq!(cases.len(), 5);
    for (i, case) in cases.iter().enumerate() {
        let skip = case["clip_skip"].as_u64().unwrap_or(0) as usize;
        // diffusers skips layers for the prompt alone.
        for (key, wanted) in [
            ("prompt", Wanted::normed(skip)),
            ("negative", Wanted::normed(0)),
        ] {
            let ours = model.encode(0, text(case, key), wanted, &learned);
            check(
                &ours.hidden,
                &values(&expected, &format!("{i}.{key}")),
                &format!("{key} of {case}"),
            );
        }
    }
}

#[test]
fn sdxls_prompts_are_as_diffusers_encodes_them() {
    let model = Model::open("sdxl", &["", "_2"]);
    let file = Checkpoint::open(&fixture("sdxl").join("pair.safetensors")).unwrap();
    let learned = [Inversion::load("pair", &file).unwrap()];
    let (cases, expected) = cases("sdxl");
    assert_eq!(cases.len(), 4);
    for (i, case) in cases.iter().enumerate() {
        let skip = case["clip_skip"].as_u64().unwrap_or(0) as usize;
        for (key, pooled, skip) in [
            ("prompt", "pooled", skip),
            ("negative", "negative_pooled", 0),
        ] {
            let first = model.encode(
                0,
                text(case, key),
                Wanted::penultimate(skip, false),
                &learned,
            );
            let second = model.encode(
                1,
                text(case, key),
                Wanted::penultimate(skip, true),
                &learned,
            );
            // The two encoders' states stand beside each other.
            let mut both = Tensor::new(&[77, 36]).unwrap();
            let rows = both.data_mut().chunks_exact_mut(36).enumerate();
            for (token, row) in rows {
                row[..16].copy_from_slice(first.hidden.row(token).host());
                row[16..].copy_from_slice(second.hidden.row(token).host());
            }
            check(
                &both,
                &values(&expected, &format!("{i}.{key}")),
                &format!("{key} of {case}"),
            );
            let theirs = values(&expected, &format!("{i}.{pooled}"));
            check(
                &second.pooled.unwrap(),
                &theirs,
                &format!("{pooled} of {case}"),
            );
        }
    }
}

#[test]
fn an_inversion_for_another_family_is_refused() {
    let model = Model::open("sdxl", &["", "_2"]);
    let file = Checkpoint::open(&fixture("sd").join("thing.safetensors")).unwrap();
    let learned = [Inversion::load("thing", &file).unwrap()];
    let (tokenizer, encoder) = &model.parts[1];
    let chunks = tokenizer
        .chunks("a thing", Mode::Weighted, &learned)
        .unwrap();
    let layout = encoder.layout(Wanted::normed(0));
    let about = ("sdxl", &encoder.file);
    let refused = token_rows(about, &layout.tables[0], &chunks.chunks[0], &learned).unwrap_err();
    let message = refused.to_string();
    assert!(
        message
            .starts_with("embedding 'thing' has rows of [16] values, but this model's are 20 wide"),
        "{message}"
    );
}
