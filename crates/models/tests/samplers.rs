//! What samplers promise: the reference's trajectories, and a history that can be saved after any call.
//!
//! The network is one line of arithmetic that both sides compute; `tools/reference/samplers.py` recorded the rest.

// The lint's exception for tests does not reach the functions that tests share.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use lowtide_models::noise::Mt19937;
use lowtide_models::samplers::{
    Begin, BrownianPath, Choice, History, Method, Noise, Schedule, Scheduler, Track,
};
use lowtide_models::{Error, Tensor};
use serde_json::{Value, json};

const ELEMENTS: usize = 16;
const SEED: u64 = 11;

/// Of a sample's standard deviation; what the project promises is 2e-3.
const TOLERANCE: f32 = 2e-5;

/// Where a Brownian path is asked about a level that differs in its last bit, six decimals may round to other ones.
const BROWNIAN_TOLERANCE: f32 = 4e-4;

/// Where a sample begins with a standard deviation of 4096, its last bits are large beside what becomes of it.
const LARGE_SIGMA_TOLERANCE: f32 = 3e-4;

struct Case {
    text: String,
    method: Method,
    track: Track,
    img2img: bool,
    kept: Vec<usize>,
    values: Vec<f32>,
}

impl Case {
    fn tolerance(&self) -> f32 {
        match self.method {
            Method::DpmppSde => BROWNIAN_TOLERANCE,
            _ if self.track.init_noise_sigma() > 1000.0 => LARGE_SIGMA_TOLERANCE,
            _ => TOLERANCE,
        }
    }

    fn expected(&self, index: usize) -> &[f32] {
        let from = 1 + self.track.evaluations() + index * ELEMENTS;
        &self.values[from..from + ELEMENTS]
    }
}

fn choice(case: &Value) -> Choice {
    let word = |key: &str| case[key].as_str().unwrap();
    let method: Method = word("method").parse().unwrap();
    let schedule: Schedule = word("schedule").parse().unwrap();
    let mut choice = Choice::new(method, schedule, case["steps"].as_u64().unwrap() as usize);
    if let Some(begin) = case.get("begin") {
        choice.begin = match begin.get("strength") {
            Some(strength) => Begin::Strength(strength.as_f64().unwrap()),
            None => Begin::Part {
                start: begin.get("start").and_then(Value::as_f64),
                end: begin.get("end").and_then(Value::as_f64),
            },
        };
    }
    if let Some(eta) = case.get("eta") {
        choice.eta = eta.as_f64().unwrap() as f32;
    }
    if let Some(tokens) = case.get("tokens") {
        choice.image_tokens = tokens.as_u64().unwrap() as usize;
    }
    if let Some(Value::Array(sigmas)) = case.get("flow_sigmas") {
        choice.flow_sigmas = Some(sigmas.iter().map(|s| s.as_f64().unwrap()).collect());
    }
    choice
}

fn cases() -> Vec<Case> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let list = std::fs::read(fixtures.join("samplers.json")).unwrap();
    let list: Vec<Value> = serde_json::from_slice(&list).unwrap();
    let bytes = std::fs::read(fixtures.join("samplers.f32")).unwrap();
    let (values, _) = bytes.as_chunks::<4>();
    let values: Vec<f32> = values.iter().map(|&b| f32::from_le_bytes(b)).collect();
    let read = |case: &Value| {
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let kept = case["kept"].as_array().unwrap();
        let kept: Vec<usize> = kept.iter().map(|k| k.as_u64().unwrap() as usize).collect();
        let count = 1 + size("calls") + ELEMENTS * (kept.len() + 1);
        let scheduler = Scheduler::from_json(&case["config"]).unwrap();
        let track = scheduler.track(&choice(case)).unwrap();
        assert_eq!(track.evaluations(), size("calls"), "{case}");
        Case {
            text: case.to_string(),
            method: choice(case).method,
            track,
            img2img: case.get("begin").is_some(),
            kept,
            values: values[size("at")..size("at") + count].to_vec(),
        }
    };
    let cases: Vec<Case> = list.iter().map(read).collect();
    assert!(cases.len() > 900, "the fixtures have {} cases", cases.len());
    cases
}

/// The network both sides compute.
fn network(input: &[f32], timestep: f32) -> Vec<f32> {
    let next = input.iter().cycle().skip(1);
    let mixed = input.iter().zip(next);
    mixed
        .map(|(x, next)| (0.5 * x - 0.3 * next + 0.002 * timestep).sin())
        .collect()
}

fn picture() -> Vec<f32> {
    (0..ELEMENTS).map(|j| (0.7 * j as f32).cos()).collect()
}

/// A run under way.
struct Run<'a> {
    track: &'a Track,
    generator: Mt19937,
    noise: Vec<f32>,
    sample: Vec<f32>,
    history: History,
}

impl<'a> Run<'a> {
    fn new(track: &'a Track, img2img: bool) -> Run<'a> {
        let mut generator = Mt19937::new(SEED);
        let noise = generator.randn(ELEMENTS);
        let sample = if img2img {
            let mut sample = picture();
            track.add_noise(&mut sample, &noise).unwrap();
            sample
        } else {
            let sigma = track.init_noise_sigma();
            noise.iter().map(|n| n * sigma).collect()
        };
        Run {
            track,
            generator,
            noise,
            sample,
            history: History::new(),
        }
    }

    fn output(&self, call: usize) -> Vec<f32> {
        let scale = self.track.scale_input(call);
        let input: Vec<f32> = self.sample.iter().map(|x| x * scale).collect();
        network(&input, self.track.timestep(call))
    }

    fn draw(&mut self, call: usize) -> Option<Vec<f32>> {
        match self.track.noise(call) {
            Noise::None => None,
            Noise::Normal => Some(self.generator.randn(ELEMENTS)),
            Noise::Brownian { from, to } => {
                // Files that fix no seed leave it to the job.
                let seed = self.track.brownian_seed().unwrap_or(SEED);
                let path = BrownianPath::new(seed, self.track.brownian_ends());
                let noise = path.normal(from, to, ELEMENTS).unwrap();
                Some(noise.data().to_vec())
            }
        }
    }

    fn step(&mut self, call: usize) {
        let output = self.output(call);
        let noise = self.draw(call);
        self.track
            .step(
                call,
                &mut self.history,
                &mut self.sample,
                &output,
                noise.as_deref(),
            )
            .unwrap();
        assert!(self.history.tensors().len() <= self.track.tensors_max());
    }
}

fn deviation(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    let squares = values.iter().map(|v| (v - mean).powi(2));
    (squares.sum::<f32>() / values.len() as f32).sqrt()
}

/// The largest difference, in standard deviations of what was expected.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let pairs = found.iter().zip(expected);
    let largest = pairs.map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
    let all = found.iter().all(|f| f.is_finite());
    if all {
        largest / deviation(expected)
    } else {
        f32::INFINITY
    }
}

/// Complaints about one case; none where it is the reference's.
fn compare(case: &Case) -> Vec<String> {
    let track = &case.track;
    let mut wrong = Vec::new();
    let mut close = |what: String, found: f32, expected: f32, tolerance: f32| {
        if (found - expected).abs() > tolerance * expected.abs().max(1.0) {
            wrong.push(format!("{what} is {found}, not {expected}"));
        }
    };
    close(
        "initial sigma".to_owned(),
        track.init_noise_sigma(),
        case.values[0],
        1e-6,
    );
    for call in 0..track.evaluations() {
        let expected = case.values[1 + call];
        close(
            format!("timestep {call}"),
            track.timestep(call),
            expected,
            1e-5,
        );
    }
    let mut run = Run::new(track, case.img2img);
    let mut inpainted = picture();
    for call in 0..track.evaluations() {
        run.step(call);
        if let Ok(index) = case.kept.binary_search(&call) {
            let off = difference(&run.sample, case.expected(index));
            if off > case.tolerance() {
                wrong.push(format!("after call {call} the sample is off by {off}"));
            }
        }
        if call == 0 {
            let into = &mut inpainted;
            track.noise_at(call, &picture(), &run.noise, into).unwrap();
        }
    }
    let off = difference(&inpainted, case.expected(case.kept.len()));
    if off > case.tolerance() {
        wrong.push(format!("the noisy original is off by {off}"));
    }
    wrong
}

#[test]
fn trajectories_are_the_references() {
    let cases = cases();
    let failed: Vec<String> = cases
        .iter()
        .map(|case| (compare(case), case))
        .filter(|(wrong, _)| !wrong.is_empty())
        .map(|(wrong, case)| format!("{}\n    {}", case.text, wrong.join("\n    ")))
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {} cases:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
}

#[test]
fn a_history_saved_after_any_call_goes_on_to_the_same_bits() {
    for case in cases().iter().step_by(7) {
        let track = &case.track;
        let mut run = Run::new(track, case.img2img);
        for call in 0..track.evaluations() {
            run.step(call);
            // Written down and read back, in another order.
            let saved = run.history.tensors().into_iter().rev();
            let saved = saved.map(|(name, tensor)| {
                let values = tensor.data().to_vec();
                (name, Tensor::from_slice(&[values.len()], &values).unwrap())
            });
            run.history = History::restore(saved.collect::<Vec<_>>()).unwrap();
        }
        let mut straight = Run::new(track, case.img2img);
        for call in 0..track.evaluations() {
            straight.step(call);
        }
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&run.sample), bits(&straight.sample), "{}", case.text);
    }
}

#[test]
fn a_history_of_another_run_is_refused() {
    let tensor = || Tensor::zeros(&[ELEMENTS]).unwrap();
    for names in [
        &["output.1"][..],
        &["output.9"],
        &["smaple"],
        &["sample", "sample"],
    ] {
        let saved = names.iter().map(|name| ((*name).to_owned(), tensor()));
        assert!(History::restore(saved).is_err(), "{names:?}");
    }
    let scheduler = stable("PNDMScheduler", json!({}));
    let choice = Choice::new(Method::Pndm, Schedule::Normal, 5);
    let track = scheduler.track(&choice).unwrap();
    let values = [0.0; ELEMENTS];
    let step = |history: &mut History, call: usize| {
        track.step(call, history, &mut values.clone(), &values, None)
    };
    // The second call looks back on the first.
    assert!(matches!(
        step(&mut History::new(), 1),
        Err(Error::Shape { .. })
    ));
    let small = vec![("output.0".to_owned(), Tensor::zeros(&[4]).unwrap())];
    let mut small = History::restore(small).unwrap();
    assert!(matches!(step(&mut small, 0), Err(Error::Shape { .. })));
}

fn stable(class: &str, extra: Value) -> Scheduler {
    Scheduler::from_json(&config(class, extra)).unwrap()
}

fn config(class: &str, extra: Value) -> Value {
    let mut config = json!({
        "_class_name": class,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "skip_prk_steps": true,
        "steps_offset": 1,
    });
    for (key, value) in extra.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn the_last_preview_is_the_picture() {
    for method in [Method::Ddim, Method::Euler, Method::Dpmpp2M, Method::UniPc] {
        let scheduler = stable(
            "DDIMScheduler",
            json!({"set_alpha_to_one": true, "clip_sample": false}),
        );
        let track = scheduler
            .track(&Choice::new(method, Schedule::Normal, 8))
            .unwrap();
        let mut run = Run::new(&track, false);
        let last = track.evaluations() - 1;
        for call in 0..last {
            run.step(call);
        }
        let mut preview = vec![0.0; ELEMENTS];
        let output = run.output(last);
        track
            .denoised(last, &run.sample, &output, &mut preview)
            .unwrap();
        run.step(last);
        let off = difference(&preview, &run.sample);
        assert!(off < 1e-4, "{method}: {off}");
    }
}

#[test]
fn what_is_not_built_is_refused_by_its_key() {
    for (class, extra, key) in [
        (
            "DDIMScheduler",
            json!({"thresholding": true}),
            "thresholding",
        ),
        (
            "DDIMScheduler",
            json!({"beta_schedule": "sigmoid"}),
            "beta_schedule",
        ),
        (
            "DDIMScheduler",
            json!({"prediction_type": "flow"}),
            "prediction_type",
        ),
        (
            "DDIMScheduler",
            json!({"timestep_spacing": "even"}),
            "timestep_spacing",
        ),
        (
            "DDIMScheduler",
            json!({"num_train_timesteps": 0}),
            "num_train_timesteps",
        ),
        ("DDIMScheduler", json!({"beta_end": 1.5}), "beta_end"),
        (
            "DDIMScheduler",
            json!({"trained_betas": [0.1, 0.2]}),
            "trained_betas",
        ),
        (
            "PNDMScheduler",
            json!({"skip_prk_steps": false}),
            "skip_prk_steps",
        ),
        (
            "PNDMScheduler",
            json!({"prediction_type": "sample"}),
            "prediction_type",
        ),
        (
            "EulerDiscreteScheduler",
            json!({"timestep_type": "continuous"}),
            "timestep_type",
        ),
        (
            "EulerDiscreteScheduler",
            json!({"sigma_min": -1.0}),
            "sigma_min",
        ),
        (
            "DPMSolverMultistepScheduler",
            json!({"algorithm_type": "dpmsolver"}),
            "algorithm_type",
        ),
        (
            "DPMSolverMultistepScheduler",
            json!({"use_lu_lambdas": true}),
            "use_lu_lambdas",
        ),
        (
            "DPMSolverMultistepScheduler",
            json!({"solver_order": 4}),
            "solver_order",
        ),
        (
            "UniPCMultistepScheduler",
            json!({"predict_x0": false}),
            "predict_x0",
        ),
        (
            "FlowMatchEulerDiscreteScheduler",
            json!({"invert_sigmas": true}),
            "invert_sigmas",
        ),
        (
            "FlowMatchEulerDiscreteScheduler",
            json!({"shift": 0.0}),
            "shift",
        ),
        ("Euler", json!({}), "_class_name"),
    ] {
        let error = Scheduler::from_json(&config(class, extra)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("scheduler") && text.contains(key), "{text}");
    }
}

#[test]
fn a_choice_that_makes_no_sense_is_refused() {
    let ddim = stable("DDIMScheduler", json!({}));
    let good = Choice::new(Method::Ddim, Schedule::Normal, 20);
    assert!(ddim.track(&good).is_ok());
    let karras = Choice {
        schedule: Schedule::Karras,
        ..good.clone()
    };
    let flow = Choice {
        method: Method::FlowMatchEuler,
        ..good.clone()
    };
    let none = Choice {
        begin: Begin::Strength(0.01),
        ..good.clone()
    };
    let outside = Choice {
        begin: Begin::Strength(1.5),
        ..good.clone()
    };
    let part = Choice {
        begin: Begin::Part {
            start: Some(0.7),
            end: Some(0.4),
        },
        ..good.clone()
    };
    let eta = Choice {
        eta: 2.0,
        ..good.clone()
    };
    for (choice, word) in [
        (karras, "DDIM"),
        (flow, "Flow Euler"),
        (none, "steps"),
        (outside, "strength"),
        (part, "steps"),
        (eta, "eta"),
    ] {
        let text = ddim.track(&choice).unwrap_err().to_string();
        assert!(text.contains(word), "{choice:?}: {text}");
    }
    for steps in [0, 1001] {
        let beyond = Choice {
            steps,
            ..good.clone()
        };
        assert!(matches!(
            ddim.track(&beyond),
            Err(Error::BeyondModel { .. })
        ));
    }
    // Nothing is left of the picture at the first timestep, and the model predicts noise.
    let blind = stable(
        "DDIMScheduler",
        json!({"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"}),
    );
    let text = blind.track(&good).unwrap_err().to_string();
    assert!(text.contains("rescale_betas_zero_snr"), "{text}");
}

#[test]
fn a_file_whose_own_steps_are_missing_can_still_be_run_by_name() {
    let scheduler = stable("LMSDiscreteScheduler", json!({}));
    assert!(scheduler.method().unwrap_err().to_string().contains("LMS"));
    let choice = Choice::new(Method::Euler, Schedule::Karras, 10);
    assert_eq!(scheduler.track(&choice).unwrap().evaluations(), 10);
    // Whether or not the file knows of the Runge-Kutta steps that PLMS leaves out.
    let bare = Scheduler::from_json(&json!({"_class_name": "DDIMScheduler"})).unwrap();
    let choice = Choice::new(Method::Pndm, Schedule::Normal, 10);
    assert_eq!(bare.track(&choice).unwrap().evaluations(), 11);
}

#[test]
fn a_file_knows_its_own_method_and_schedule() {
    for (class, extra, method, schedule) in [
        ("PNDMScheduler", json!({}), Method::Pndm, Schedule::Normal),
        (
            "DPMSolverMultistepScheduler",
            json!({"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": true}),
            Method::Dpmpp2MSde,
            Schedule::Karras,
        ),
        (
            "HeunDiscreteScheduler",
            json!({"use_beta_sigmas": true}),
            Method::Heun,
            Schedule::Beta,
        ),
    ] {
        let scheduler = stable(class, extra);
        assert_eq!(scheduler.method().unwrap(), method);
        assert_eq!(scheduler.schedule(method).unwrap(), schedule);
    }
}
