//! Promises about weights in few bits with scales beside them: whoever wrote them, and whatever the scales are called and
//! are for, a model draws what the same weights multiplied out draw, to the byte, in any budget.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::fs;
use std::path::{Path, PathBuf};

use lowtide_core::{Bytes, Dtype, Quality, TensorLayout};
use lowtide_engine::{
    Engine, Error, ImageRequest, Options, Outcome, PrecisionChoice, Session, Step,
};
use lowtide_weights::quantise::{self, Q8_BLOCK};
use lowtide_weights::{Checkpoint, ModelFolder, SafetensorsWriter};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stable-diffusion/sd15/checkpoint")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            // Written anew rather than copied: fixtures may be read-only.
            false => fs::write(target, fs::read(entry.path()).unwrap()).unwrap(),
        }
    }
}

/// A tensor to write: name, type, shape, bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// How matrices are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// One scale a matrix, called so.
    Fp8(&'static str),
    /// One a row, with a dimension more.
    Fp8Rows,
    /// Whole numbers, one a row.
    Int8Rows,
    /// Whole numbers, one for every 32 of a row.
    Q8,
}

const FORMS: [Form; 5] = [
    Form::Fp8("weight_scale"),
    Form::Fp8("scale_weight"),
    Form::Fp8Rows,
    Form::Int8Rows,
    Form::Q8,
];

fn floats(numbers: impl IntoIterator<Item = f32>) -> Vec<u8> {
    numbers.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// A matrix in few bits with its scales, and the same multiplied out.
fn written(form: Form, name: &str, shape: &[usize], values: &[f32]) -> (Vec<Tensor>, Tensor) {
    let cols: usize = shape[1..].iter().product();
    let scale_name = |of: &str| name.replace(".weight", &format!(".{of}"));
    let (mut numbers, mut scales, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    let (dtype, scale) = match form {
        Form::Fp8(called) => {
            let scale = quantise::fp8_scale(quantise::largest(values));
            quantise::fp8(values, scale, &mut numbers);
            scales.extend(floats([scale]));
            plain.extend(numbers.iter().map(|&code| e4m3(code) * scale));
            let shape = if called == "scale_weight" {
                vec![]
            } else {
                vec![1]
            };
            (Dtype::F8E4M3, (scale_name(called), Dtype::F32, shape))
        }
        Form::Fp8Rows | Form::Int8Rows => {
            for row in values.chunks(cols) {
                let largest = quantise::largest(row);
                let scale = match form {
                    Form::Fp8Rows => quantise::fp8_scale(largest),
                    _ => largest / 127.0,
                };
                let start = numbers.len();
                match form {
                    Form::Fp8Rows => quantise::fp8(row, scale, &mut numbers),
                    _ => numbers.extend(row.iter().map(|x| (x / scale).round() as i8 as u8)),
                }
                scales.extend(floats([scale]));
                let back = |&code: &u8| match form {
                    Form::Fp8Rows => e4m3(code),
                    _ => f32::from(code as i8),
                };
                plain.extend(numbers[start..].iter().map(|code| back(code) * scale));
            }
            let dtype = match form {
                Form::Fp8Rows => Dtype::F8E4M3,
                _ => Dtype::I8,
            };
            let scale = (scale_name("weight_scale"), Dtype::F32, vec![shape[0], 1]);
            (dtype, scale)
        }
        Form::Q8 => {
            quantise::q8_0(values, &mut numbers, &mut scales);
            let halves = scales.as_chunks::<2>().0;
            plain.extend(numbers.iter().enumerate().map(|(at, &code)| {
                let mut scale = Vec::new();
                assert!(quantise::widen(
                    Dtype::F16,
                    &halves[at / Q8_BLOCK],
                    &mut scale
                ));
                f32::from(code as i8) * scale[0]
            }));
            let scale = (
                scale_name("weight_scale"),
                Dtype::F16,
                vec![shape[0], cols / Q8_BLOCK],
            );
            (Dtype::I8, scale)
        }
    };
    let (scale_name, scale_dtype, scale_shape) = scale;
    (
        vec![
            (name.to_owned(), dtype, shape.to_vec(), numbers),
            (scale_name, scale_dtype, scale_shape, scales),
        ],
        (name.to_owned(), Dtype::F32, shape.to_vec(), floats(plain)),
    )
}

/// What a code of E4M3 means.
fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match exponent {
        0 => fraction / 512.0,
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 != 0 { -size } else { size }
}

fn write(path: &Path, tensors: &[Tensor]) {
    let layout = |(name, dtype, shape, _): &Tensor| TensorLayout {
        name: name.clone(),
        dtype: *dtype,
        shape: shape.clone(),
    };
    let layouts: Vec<TensorLayout> = tensors.iter().map(layout).collect();
    let mut writer = SafetensorsWriter::create(path, &layouts).unwrap();
    for (name, _, _, bytes) in tensors {
        writer.write(name, bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// Two checkpoints like the fixture, the matrices of U-Net and text encoder in few bits, and the same multiplied out.
/// Returns how many matrices that were.
fn checkpoints(form: Form, small: &Path, plain: &Path) -> usize {
    let mut count = 0;
    for to in [small, plain] {
        copy(&fixture(), to);
    }
    for file in [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ] {
        let read = Checkpoint::open(&fixture().join(file)).unwrap();
        let (mut few, mut all) = (Vec::new(), Vec::new());
        for entry in read.tensors() {
            let mut bytes = vec![0; entry.bytes as usize];
            read.read(entry, &mut bytes).unwrap();
            let cols: usize = entry.shape.iter().skip(1).product();
            let matrix = matches!(entry.shape.len(), 2 | 4)
                && entry.name.ends_with(".weight")
                && !entry.name.contains("embeddings")
                && cols.is_multiple_of(Q8_BLOCK);
            if !matrix {
                let as_it_is = (entry.name.clone(), entry.dtype, entry.shape.clone(), bytes);
                few.push(as_it_is.clone());
                all.push(as_it_is);
                continue;
            }
            let mut values = Vec::new();
            assert!(quantise::widen(entry.dtype, &bytes, &mut values));
            let (small, plain) = written(form, &entry.name, &entry.shape, &values);
            few.extend(small);
            all.push(plain);
            count += 1;
        }
        write(&small.join(file), &few);
        write(&plain.join(file), &all);
    }
    count
}

fn engine(model: &Path, precision: PrecisionChoice, budget: Option<Bytes>) -> Engine {
    let options = Options {
        precision,
        threads: Some(2),
        budget,
        prompt_cache: Some(Bytes::ZERO),
        ..Options::default()
    };
    Engine::open(ModelFolder::open(model).unwrap(), options).unwrap()
}

fn request(quality: Quality) -> ImageRequest {
    ImageRequest {
        prompt: "a red cat, on a blue boat".to_owned(),
        negative: Some("dark".to_owned()),
        width: 64,
        height: 48,
        steps: 3,
        guidance: 4.0,
        seed: 11,
        quality,
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

fn draw(engine: &Engine, quality: Quality) -> Outcome {
    finish(engine.start(request(quality), true).unwrap())
}

#[test]
fn every_form_draws_what_the_weights_multiplied_out_draw() {
    let folder = tempfile::tempdir().unwrap();
    for form in FORMS {
        let [small, plain] = ["small", "plain"].map(|name| folder.path().join(name));
        let count = checkpoints(form, &small, &plain);
        assert!(count > 40, "{count} matrices");
        for precision in [PrecisionChoice::F32, PrecisionChoice::Bf16] {
            // Exact relative to its own file: nobody rounded anything here.
            let expected = draw(&engine(&plain, precision, None), Quality::Exact);
            let ours = draw(&engine(&small, precision, None), Quality::Exact);
            assert_eq!(ours.latents, expected.latents, "{form:?} {precision:?}");
            assert_eq!(ours.images, expected.images, "{form:?} {precision:?}");
            assert!(ours.report.plan.approximate.is_empty());
            assert!(ours.report.plan.peak <= expected.report.plan.peak);
            let peak = ours.report.peak.values().max().unwrap().0;
            for share in [8, 6] {
                let budget = Some(Bytes(peak * share / 10));
                let small = engine(&small, precision, budget);
                let Ok(session) = small.start(request(Quality::Exact), true) else {
                    break;
                };
                let streamed = finish(session);
                assert_eq!(streamed.latents, expected.latents, "{form:?} in {budget:?}");
            }
        }
        for folder in [small, plain] {
            fs::remove_dir_all(folder).unwrap();
        }
    }
}

#[test]
fn a_variant_is_approximate_and_exact_refuses_it() {
    let folder = tempfile::tempdir().unwrap();
    let [small, plain] = ["small", "plain"].map(|name| folder.path().join(name));
    checkpoints(Form::Q8, &small, &plain);
    let variant = r#"{"variant": {"type": "q8_0", "of": "sea"}}"#;
    fs::write(small.join("lowtide.json"), variant).unwrap();
    let variant = engine(&small, PrecisionChoice::F32, None);
    assert_eq!(variant.quality(), Quality::Auto);
    let refused = variant.start(request(Quality::Exact), true).err().unwrap();
    assert!(matches!(refused, Error::Request { .. }));
    let text = refused.to_string();
    assert!(
        text.contains("q8_0 variant of sea") && text.contains("quality auto"),
        "{text}"
    );
    let outcome = draw(&variant, Quality::Auto);
    assert_eq!(outcome.report.plan.approximate, ["q8_0 variant"]);
    assert_eq!(
        engine(&plain, PrecisionChoice::F32, None).quality(),
        Quality::Exact
    );
}

#[test]
fn scales_that_are_not_known_are_refused_rather_than_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let [small, plain] = ["small", "plain"].map(|name| folder.path().join(name));
    checkpoints(Form::Fp8("weight_scale"), &small, &plain);
    let file = small.join("unet/diffusion_pytorch_model.safetensors");
    let read = Checkpoint::open(&file).unwrap();
    let tensors: Vec<Tensor> = read
        .tensors()
        .map(|entry| {
            let mut bytes = vec![0; entry.bytes as usize];
            read.read(entry, &mut bytes).unwrap();
            (entry.name.clone(), entry.dtype, entry.shape.clone(), bytes)
        })
        .collect();
    let scale = tensors
        .iter()
        .position(|one| one.0.ends_with("to_q.weight_scale"))
        .unwrap();
    let open = |tensors: &[Tensor]| {
        write(&file, tensors);
        let folder = ModelFolder::open(&small).unwrap();
        let opened = Engine::open(folder, Options::default());
        opened.err().map(|refused| refused.to_string())
    };
    assert_eq!(open(&tensors), None);
    let mut renamed = tensors.clone();
    renamed[scale].0.push_str("_inv");
    let text = open(&renamed).unwrap();
    assert!(text.contains("to_q.weight_scale_inv"), "{text}");
    let mut reshaped = tensors.clone();
    reshaped[scale].2 = vec![2];
    reshaped[scale].3 = vec![0; 8];
    let text = open(&reshaped).unwrap();
    assert!(
        text.contains("to_q.weight_scale") && text.contains("[2]"),
        "{text}"
    );
    // Whole numbers without a scale mean nothing.
    let mut bare = tensors;
    bare.remove(scale);
    bare[scale - 1].1 = Dtype::I8;
    let text = open(&bare).unwrap();
    assert!(
        text.contains("to_q.weight") && text.contains("I8"),
        "{text}"
    );
}
