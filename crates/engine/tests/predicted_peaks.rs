//! The plan's promise: no phase takes more than was predicted, and the prediction is near the truth, whatever a job does.
//!
//! Sizes, masks, LoRAs, second passes and samplers with a long memory, on the tiny checkpoints of `stable_diffusion.rs`
//! and `parity.rs`.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_core::{Bytes, Quality};
use lowtide_engine::processor::Files;
use lowtide_engine::{
    Engine, Hires, ImageRequest, LoraUse, Options, Outcome, PrecisionChoice, Source, Step, Upscaler,
};
use lowtide_media::{Mask, Picture};
use lowtide_weights::ModelFolder;

/// How far above the truth a prediction may be, beside 15 parts in a hundred and the scratch of the kernels' threads,
/// which tiny products never fill: a MiB, and the half that every phase reckons for stacks, channels and names.
const SLACK: Bytes = Bytes::kib(1536);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// LoRAs beside the checkpoint.
struct Beside(PathBuf);

impl Files for Beside {
    fn input(&self, _: &str, _: u64) -> Result<Vec<u8>, String> {
        Err("none".to_owned())
    }

    fn lora(&self, name: &str) -> Result<PathBuf, String> {
        Ok(self.0.join(name))
    }

    fn embeddings(&self) -> Vec<(String, PathBuf)> {
        Vec::new()
    }
}

fn engine(model: &str) -> Engine {
    let options = Options {
        precision: PrecisionChoice::F32,
        threads: Some(2),
        prompt_cache: Some(Bytes::ZERO),
        ..Options::default()
    };
    let folder = fixtures().join(model);
    let model = ModelFolder::open(&folder.join("checkpoint")).unwrap();
    Engine::with_files(model, options, Arc::new(Beside(folder))).unwrap()
}

fn plain((width, height): (usize, usize)) -> ImageRequest {
    ImageRequest {
        prompt: "a red cat, on a blue boat".to_owned(),
        negative: Some("dark".to_owned()),
        width,
        height,
        steps: 4,
        guidance: 5.0,
        seed: 3,
        quality: Quality::Exact,
        ..ImageRequest::default()
    }
}

fn source((width, height): (usize, usize), masked: bool) -> Option<Arc<Source>> {
    let (w, h) = (width as u32, height as u32);
    let values = (0..3 * width * height).map(|k| (k % 251) as u8).collect();
    let half = (0..width * height).map(|k| if k % width < width / 2 { 255 } else { 0 });
    let mask = Mask::new(w, h, half.collect()).unwrap();
    Some(Arc::new(Source {
        picture: Picture::new(w, h, values).unwrap(),
        mask: masked.then_some(mask),
    }))
}

fn run(engine: &Engine, request: ImageRequest) -> Outcome {
    let mut session = engine.start(request, false).unwrap();
    loop {
        if let Step::Finished(outcome) = session.step().unwrap() {
            return *outcome;
        }
    }
}

/// What is wrong with the predictions for a request.
fn check(engine: &Engine, what: &str, request: ImageRequest) -> Vec<String> {
    let outcome = run(engine, request);
    let report = &outcome.report;
    assert_eq!(report.rungs_taken, 0, "{what}");
    let mut wrong = Vec::new();
    for phase in &report.plan.phases {
        let measured = report.peak[&phase.name[..]];
        let scratch = Bytes(lowtide_kernels::scratch_bytes(lowtide_kernels::threads()) as u64);
        let most = Bytes(measured.0 * 115 / 100) + scratch + SLACK;
        if measured > phase.peak || phase.peak > most {
            let name = &phase.name;
            wrong.push(format!(
                "{what}: {name} was predicted {} and took {measured} (held {}, activation {}, weights {})",
                phase.peak, phase.held, phase.activation, phase.weights
            ));
        }
    }
    wrong
}

const SIZES: [(usize, usize); 3] = [(64, 64), (320, 448), (512, 512)];

#[track_caller]
fn all_right(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn texts_alone() {
    let mut wrong = Vec::new();
    for model in ["stable-diffusion/sd15", "stable-diffusion/sdxl"] {
        let engine = engine(model);
        for size in SIZES {
            for (sampler, count) in [("UniPC", 3), ("PLMS", 1), ("DPM++ SDE", 1)] {
                let what = format!("{model} {size:?} x {count} by {sampler}");
                let request = ImageRequest {
                    sampler: Some(sampler.parse().unwrap()),
                    count,
                    ..plain(size)
                };
                wrong.extend(check(&engine, &what, request));
            }
        }
    }
    all_right(wrong);
}

#[test]
fn pictures_and_masks() {
    let mut wrong = Vec::new();
    for model in [
        "stable-diffusion/sd15",
        "stable-diffusion/sd15-inpaint",
        "stable-diffusion/sdxl-refiner",
        "z-image/plain-bf16",
        "z-image/sharded-f32",
    ] {
        let engine = engine(model);
        for size in SIZES {
            for (masked, count) in [(false, 1), (true, 1), (true, 3)] {
                if !masked && model.ends_with("inpaint") {
                    continue;
                }
                let what = format!("{model} {size:?} x {count} from a picture, masked: {masked}");
                let request = ImageRequest {
                    source: source(size, masked),
                    count,
                    ..plain(size)
                };
                wrong.extend(check(&engine, &what, request));
            }
        }
    }
    all_right(wrong);
}

#[test]
fn second_passes() {
    let mut wrong = Vec::new();
    for model in [
        "stable-diffusion/sd15",
        "stable-diffusion/sdxl",
        "z-image/sharded-f32",
    ] {
        let engine = engine(model);
        for (width, height) in [(64, 64), (256, 192)] {
            for upscaler in Upscaler::ALL {
                for count in [1, 3] {
                    let what = format!("{model} {width} x {height} x {count}, then {upscaler:?}");
                    let hires = Hires {
                        width: 2 * width,
                        height: 2 * height,
                        steps: 4,
                        strength: 0.5,
                        upscaler,
                    };
                    let request = ImageRequest {
                        hires: Some(hires),
                        count,
                        ..plain((width, height))
                    };
                    wrong.extend(check(&engine, &what, request));
                }
            }
        }
    }
    all_right(wrong);
}

#[test]
fn loras() {
    let mut wrong = Vec::new();
    for model in ["stable-diffusion/sd15", "stable-diffusion/sdxl"] {
        let engine = engine(model);
        for size in SIZES {
            let what = format!("{model} {size:?} with LoRAs");
            let lora = |name: &str| LoraUse {
                name: name.to_owned(),
                strength: 0.5,
                text_strength: 0.5,
            };
            let request = ImageRequest {
                loras: vec![lora("kohya.safetensors"), lora("peft.safetensors")],
                ..plain(size)
            };
            wrong.extend(check(&engine, &what, request));
        }
    }
    all_right(wrong);
}
