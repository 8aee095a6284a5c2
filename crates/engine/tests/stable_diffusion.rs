//! Stable Diffusion against recorded results of diffusers: every family, sampler, schedule, img2img and inpainting; and
//! the promises that hold for all models.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_core::{Bytes, Quality, TensorLayout};
use lowtide_engine::processor::Files;
use lowtide_engine::{
    Engine, Hires, ImageRequest, LoraUse, NoiseOf, Options, Outcome, PrecisionChoice, Reading,
    Session, Source, Start, Step, Upscaler,
};
use lowtide_media::{Filter, Limits, Picture, decode};
use lowtide_weights::{Checkpoint, ModelFolder, SafetensorsWriter};
use serde_json::Value;

fn fixture(family: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stable-diffusion");
    fixtures.join(family)
}

fn engine(family: &str, budget: Option<Bytes>) -> Engine {
    let options = Options {
        precision: PrecisionChoice::F32,
        threads: Some(2),
        budget,
        prompt_cache: Some(Bytes::ZERO),
        ..Options::default()
    };
    let folder = ModelFolder::open(&fixture(family).join("checkpoint")).unwrap();
    Engine::with_files(folder, options, Arc::new(Beside(fixture(family)))).unwrap()
}

/// LoRAs beside the checkpoint.
struct Beside(PathBuf);

impl Files for Beside {
    fn input(&self, _: &str, _: u64) -> Result<Vec<u8>, String> {
        Err("none".to_owned())
    }

    fn lora(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.0.join(name);
        path.exists()
            .then_some(path)
            .ok_or_else(|| "there is no such file".to_owned())
    }

    fn embeddings(&self) -> Vec<(String, PathBuf)> {
        let names = ["thing.safetensors", "style-7.pt"].map(|name| self.0.join(name));
        let there = names.into_iter().filter(|path| path.exists());
        there
            .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path))
            .collect()
    }
}

fn loras(case: &Value) -> Vec<LoraUse> {
    let list = case["loras"].as_array().cloned().unwrap_or_default();
    let lora = |pair: &Value| {
        let strength = pair[1].as_f64().unwrap() as f32;
        LoraUse {
            name: pair[0].as_str().unwrap().to_owned(),
            strength,
            text_strength: strength,
        }
    };
    list.iter().map(lora).collect()
}

fn cases(family: &str) -> Vec<(String, Value)> {
    let text = std::fs::read_to_string(fixture(family).join("cases.json")).unwrap();
    let cases: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    cases.into_iter().collect()
}

fn picture(family: &str, name: &Value) -> Option<lowtide_media::Picture> {
    let file = std::fs::read(fixture(family).join(name.as_str()?)).unwrap();
    Some(decode(&file, &Limits::default()).unwrap().picture)
}

fn request(family: &str, case: &Value) -> ImageRequest {
    let whole = |key: &str| case[key].as_u64().map(|value| value as usize);
    let number = |key: &str| case[key].as_f64().map(|value| value as f32);
    let text = |key: &str| case[key].as_str();
    let source = picture(family, &case["image"]).map(|given| {
        let mask = picture(family, &case["mask"]).map(|mask| mask.luminance());
        Arc::new(Source {
            picture: given,
            mask,
        })
    });
    ImageRequest {
        prompt: text("prompt").unwrap().to_owned(),
        negative: text("negative").map(str::to_owned),
        width: whole("width").unwrap(),
        height: whole("height").unwrap(),
        steps: whole("steps").unwrap(),
        guidance: number("guidance").unwrap(),
        guidance_rescale: number("guidance_rescale").unwrap_or(0.0),
        sampler: text("sampler").map(|word| word.parse().unwrap()),
        schedule: text("schedule").map(|word| word.parse().unwrap()),
        eta: number("eta").unwrap_or(0.0),
        clip_skip: whole("clip_skip").unwrap_or(0),
        reading: Reading::Literal,
        seed: case["seed"].as_u64().unwrap(),
        count: whole("count").unwrap(),
        strength: number("strength").unwrap(),
        source,
        loras: loras(case),
        hires: hires(case),
        quality: Quality::Exact,
        ..ImageRequest::default()
    }
}

fn hires(case: &Value) -> Option<Hires> {
    let hires = case.get("hires")?;
    let whole = |key: &str| hires[key].as_u64().unwrap() as usize;
    let name = hires["upscaler"].as_str().unwrap();
    Some(Hires {
        width: whole("width"),
        height: whole("height"),
        steps: whole("steps"),
        strength: hires["strength"].as_f64().unwrap() as f32,
        upscaler: Upscaler::ALL
            .into_iter()
            .find(|one| one.name() == name)
            .unwrap(),
    })
}

fn finish(mut session: Session) -> Outcome {
    loop {
        if let Step::Finished(outcome) = session.step().unwrap() {
            return *outcome;
        }
    }
}

fn values(checkpoint: &Checkpoint, name: &str) -> Option<Vec<f32>> {
    let entry = checkpoint.get(name)?;
    let mut bytes = vec![0; entry.bytes as usize];
    checkpoint.read(entry, &mut bytes).unwrap();
    let number = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
    Some(bytes.chunks_exact(4).map(number).collect())
}

fn deviation(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    let square = values.iter().map(|x| (x - mean).powi(2)).sum::<f32>();
    (square / values.len() as f32).sqrt()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Latents within 2e-3 of their standard deviation, pictures within 2/255.
fn parity(family: &str) {
    let expected = Checkpoint::open(&fixture(family).join("expected.safetensors")).unwrap();
    let engine = engine(family, None);
    let (mut wrong, mut worst, mut worst_picture) = (Vec::new(), 0.0f32, 0.0f32);
    for (name, case) in cases(family) {
        let outcome = finish(engine.start(request(family, &case), true).unwrap());
        let latents = values(&expected, &format!("{name}.latents")).unwrap();
        let off = difference(&outcome.latents, &latents) / deviation(&latents);
        worst = worst.max(off);
        if off.is_nan() || off > 2e-3 {
            wrong.push(format!(
                "{name}: latents differ by {off} of their deviation"
            ));
        }
        if let Some(image) = values(&expected, &format!("{name}.image")) {
            let off = difference(&outcome.values, &image) * 255.0;
            worst_picture = worst_picture.max(off);
            if off.is_nan() || off > 2.0 {
                wrong.push(format!("{name}: the picture differs by {off}/255"));
            }
        }
    }
    eprintln!(
        "{family}: latents within {worst:.1e} of their deviation, pictures within {worst_picture:.1e}/255"
    );
    assert!(wrong.is_empty(), "{family}:\n{}", wrong.join("\n"));
}

#[test]
fn stable_diffusion_1_is_as_diffusers_computes_it() {
    parity("sd15");
}

#[test]
fn stable_diffusion_1_inpainting_is_as_diffusers_computes_it() {
    parity("sd15-inpaint");
}

#[test]
fn stable_diffusion_2_is_as_diffusers_computes_it() {
    parity("sd21");
}

#[test]
fn stable_diffusion_xl_is_as_diffusers_computes_it() {
    parity("sdxl");
}

#[test]
fn stable_diffusion_xl_inpainting_is_as_diffusers_computes_it() {
    parity("sdxl-inpaint");
}

#[test]
fn the_refiner_is_as_diffusers_computes_it() {
    parity("sdxl-refiner");
}

fn case_of<'c>(cases: &'c [(String, Value)], name: &str) -> &'c Value {
    &cases.iter().find(|(found, _)| found == name).unwrap().1
}

/// Requests of a family that use as much as possible of it.
fn telling(family: &str) -> Vec<ImageRequest> {
    let cases = cases(family);
    let all = cases.iter().map(|(_, case)| request(family, case));
    let mut telling: Vec<ImageRequest> = all
        .filter(|request| request.guidance > 1.0 && request.steps < 10)
        .step_by(3)
        .collect();
    for request in &mut telling {
        request.count = 2;
        request.reading = Reading::Weighted;
        request.prompt = "a (red cat:1.3), BREAK on a [blue] boat".to_owned();
    }
    telling.truncate(4);
    if family == "sd15" {
        let one = cases
            .iter()
            .map(|(name, case)| (name, request(family, case)));
        // Every way of a second pass, and learned words.
        let more = one.filter(|(name, _)| name.starts_with("hires") || *name == "embeddings");
        telling.extend(more.map(|(_, request)| request));
        telling.push(ImageRequest {
            noise_of: NoiseOf::Gpu,
            ..request(family, case_of(&cases, "embedding Euler a"))
        });
    }
    telling
}

const FAMILIES: [&str; 6] = [
    "sd15",
    "sd15-inpaint",
    "sd21",
    "sdxl",
    "sdxl-inpaint",
    "sdxl-refiner",
];

#[test]
fn budgets_change_no_byte_and_are_kept() {
    for family in FAMILIES {
        for request in telling(family) {
            let free = finish(engine(family, None).start(request.clone(), true).unwrap());
            let peak = free.report.peak.values().max().copied().unwrap();
            for share in [10, 8, 7, 6] {
                let budget = Bytes(peak.0 * share / 10);
                let small = engine(family, Some(budget));
                let Ok(session) = small.start(request.clone(), true) else {
                    // The refusal names what would do; other tests look at that.
                    break;
                };
                let outcome = finish(session);
                assert_eq!(outcome.latents, free.latents, "{family} in {budget}");
                assert_eq!(outcome.images, free.images, "{family} in {budget}");
                assert_eq!(outcome.report.rungs_taken, 0, "{family} in {budget}");
                for (phase, peak) in &outcome.report.peak {
                    assert!(*peak <= budget, "{family}: {phase} took {peak} of {budget}");
                }
            }
        }
    }
}

#[test]
fn a_saved_session_goes_on_elsewhere_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("session");
    for family in FAMILIES {
        for request in telling(family) {
            let whole = finish(engine(family, None).start(request.clone(), true).unwrap());
            for stop in 1.. {
                let mut session = engine(family, None).start(request.clone(), true).unwrap();
                let mut over = false;
                for _ in 0..stop {
                    over |= matches!(session.step().unwrap(), Step::Finished(_));
                    if over {
                        break;
                    }
                }
                if over {
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
                let outcome = finish(engine(family, None).start_all(vec![start], true).unwrap());
                assert_eq!(outcome.latents, whole.latents, "{family} after step {stop}");
                assert_eq!(outcome.images, whole.images, "{family} after step {stop}");
            }
        }
    }
}

#[test]
fn loras_come_and_go_between_jobs_without_a_trace() {
    let cases = cases("sd15");
    let case = |name: &str| {
        let (_, case) = cases.iter().find(|(found, _)| found == name).unwrap();
        request("sd15", case)
    };
    let engine = engine("sd15", None);
    let run = |request: &ImageRequest| finish(engine.start(request.clone(), true).unwrap()).latents;
    let (plain, with) = (case("plain"), case("lora kohya"));
    let first = run(&plain);
    let added = run(&with);
    assert_ne!(first[..added.len()], added);
    assert_eq!(run(&plain), first);
    assert_eq!(run(&with), added);
    let mut none = with.clone();
    none.loras[0] = LoraUse {
        strength: 0.0,
        text_strength: 0.0,
        ..none.loras[0].clone()
    };
    assert_eq!(run(&none), first[..added.len()]);
}

#[test]
fn a_lora_that_is_not_there_is_named() {
    let cases = cases("sd15");
    let mut request = request("sd15", &cases[0].1);
    request.loras = vec![LoraUse {
        name: "missing".to_owned(),
        strength: 1.0,
        text_strength: 1.0,
    }];
    let Err(error) = engine("sd15", None).start(request, false) else {
        panic!("started");
    };
    assert_eq!(error.to_string(), "loras 'missing': there is no such file");
}

#[test]
fn a_second_pass_by_lanczos_is_image_to_image_of_the_enlarged_picture() {
    let cases = cases("sd15");
    let engine = engine("sd15", None);
    for name in ["hires lanczos", "hires Euler a"] {
        let whole = request("sd15", case_of(&cases, name));
        let hires = whole.hires.unwrap();
        let first = ImageRequest {
            hires: None,
            ..whole.clone()
        };
        let drawn = finish(engine.start(first.clone(), true).unwrap()).images;
        let both = finish(engine.start(whole, true).unwrap()).images;
        assert_eq!(both.len(), drawn.len());
        for (both, drawn) in both.iter().zip(&drawn) {
            let (width, height) = (drawn.width as u32, drawn.height as u32);
            let picture = Picture::new(width, height, drawn.rgb.clone()).unwrap();
            let (width, height) = (hires.width as u32, hires.height as u32);
            let source = Source {
                picture: picture.resized(width, height, Filter::Lanczos),
                mask: None,
            };
            let second = ImageRequest {
                width: hires.width,
                height: hires.height,
                steps: hires.steps,
                strength: hires.strength,
                source: Some(Arc::new(source)),
                seed: drawn.seed,
                count: 1,
                ..first.clone()
            };
            let alone = finish(engine.start(second, true).unwrap()).images;
            assert!(alone[0] == *both, "{name}, seed {}", drawn.seed);
        }
    }
}

#[test]
fn jobs_that_share_a_session_give_what_they_give_alone() {
    for family in ["sd15", "sdxl"] {
        for request in telling(family) {
            let engine = engine(family, None);
            let other = ImageRequest {
                seed: 99,
                prompt: "another (thing:0.7)".to_owned(),
                ..request.clone()
            };
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
            assert!(together.images == alone, "{family}");
        }
    }
}

#[test]
fn brackets_weigh_and_a_weight_of_one_is_none() {
    let cases = cases("sd15");
    let engine = engine("sd15", None);
    let draw = |prompt: &str, noise_of: NoiseOf| {
        let request = ImageRequest {
            prompt: prompt.to_owned(),
            reading: Reading::Weighted,
            noise_of,
            ..request("sd15", case_of(&cases, "embedding Euler a"))
        };
        finish(engine.start(request, true).unwrap()).latents
    };
    let plain = draw("a thing, on a boat", NoiseOf::Cpu);
    assert_eq!(draw("a (thing:1.0), on a boat", NoiseOf::Cpu), plain);
    assert_ne!(draw("a (thing:1.2), on a boat", NoiseOf::Cpu), plain);
    assert_ne!(draw("a [thing], on a boat", NoiseOf::Cpu), plain);
    assert_ne!(draw("a thinj, on a boat", NoiseOf::Cpu), plain);
    assert_ne!(draw("a thing, on a boat", NoiseOf::Gpu), plain);
}

#[test]
fn layers_of_a_lora_that_the_model_does_not_have_are_told() {
    let file = Checkpoint::open(&fixture("sd15").join("kohya.safetensors")).unwrap();
    let mut tensors: Vec<(TensorLayout, Vec<u8>)> = Vec::new();
    for entry in file.tensors() {
        let mut bytes = vec![0; entry.bytes as usize];
        file.read(entry, &mut bytes).unwrap();
        tensors.push((entry.layout(), bytes.clone()));
        if entry.name.starts_with("lora_unet_mid_block") && entry.name.contains("_to_q.") {
            let mut layout = entry.layout();
            layout.name = layout.name.replace("mid_block", "nowhere");
            tensors.push((layout, bytes));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("more.safetensors");
    let layouts: Vec<TensorLayout> = tensors.iter().map(|(layout, _)| layout.clone()).collect();
    let mut writer = SafetensorsWriter::with_metadata(&path, &layouts, &[]).unwrap();
    for (layout, bytes) in &tensors {
        writer.write(&layout.name, bytes).unwrap();
    }
    writer.finish().unwrap();

    let cases = cases("sd15");
    let known = request("sd15", case_of(&cases, "lora kohya"));
    let mut more = known.clone();
    more.loras[0].name = path.to_str().unwrap().to_owned();
    let engine = engine("sd15", None);
    let known = finish(engine.start(known, true).unwrap());
    let more = finish(engine.start(more, true).unwrap());
    assert!(known.report.notes.is_empty(), "{:?}", known.report.notes);
    assert_eq!(more.latents, known.latents);
    let [note] = &more.report.notes[..] else {
        panic!("{:?}", more.report.notes);
    };
    assert!(
        note.contains("more.safetensors") && note.contains("lora_unet_nowhere"),
        "{note}"
    );
}
