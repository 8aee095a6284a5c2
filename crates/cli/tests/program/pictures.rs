//! What is written, and what is told about it.

use crate::Place;
use lowtide_core::{Dtype, TensorLayout};
use lowtide_weights::{Checkpoint, SafetensorsWriter};
use std::path::Path;

/// Few steps: these tests are about files, not about beauty.
const QUICK: &str = "--steps 2 --seed 5";

#[test]
fn one_command_draws_a_picture() {
    let place = Place::new();
    let stdout = place
        .run(["generate", "a red heart", "--seed", "1", "-o", "heart.png"])
        .ok();
    assert_eq!(stdout, "heart.png\n");
    assert_eq!(place.names().into_iter().collect::<Vec<_>>(), ["heart.png"]);
    let picture = image::open(place.path("heart.png")).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (128, 128));
    // Red in the middle, white in the corners: that is recognisable without eyes.
    let [r, g, b] = picture.get_pixel(64, 64).0;
    assert!(r > 180 && g < 110 && b < 140, "the middle is {r} {g} {b}");
    for (x, y) in [(2, 2), (125, 2), (2, 125), (125, 125)] {
        let corner = picture.get_pixel(x, y).0;
        assert!(
            corner.iter().all(|&c| c > 215),
            "the corner {x} {y} is {corner:?}"
        );
    }
}

#[test]
fn every_format_tells_how_it_was_made() {
    let place = Place::new();
    for name in ["a.png", "a.jpg", "a.webp"] {
        place
            .run([
                "generate",
                "ein rotes Herz, 赤",
                "-n",
                "blue",
                "--steps",
                "2",
                "--seed",
                "5",
                "-o",
                name,
            ])
            .ok();
        let told = place.run(["png-info", name]).ok();
        let start = "ein rotes Herz, 赤\nNegative prompt: blue\n\
                     Steps: 2, Sampler: Euler, CFG scale: 4, Seed: 5, Size: 128x128, Model: demo, ";
        assert!(told.starts_with(start), "{name}: {told}");
        assert!(
            told.ends_with(&format!("Version: lowtide {}\n", env!("CARGO_PKG_VERSION"))),
            "{name}: {told}"
        );
    }
    assert_eq!(
        place.pixels("a.png"),
        place.pixels("a.webp"),
        "both are lossless"
    );
}

#[test]
fn several_pictures_are_those_of_their_seeds() {
    let place = Place::new();
    let stdout = place
        .line(&format!("generate heart {QUICK} --count 2 -o heart.png"))
        .ok();
    assert_eq!(stdout, "heart-1.png\nheart-2.png\n");
    place
        .line("generate heart --steps 2 --seed 6 -o alone.png")
        .ok();
    assert_eq!(place.pixels("heart-2.png"), place.pixels("alone.png"));
    assert_ne!(place.pixels("heart-1.png"), place.pixels("heart-2.png"));
    assert!(
        place
            .run(["png-info", "heart-2.png"])
            .ok()
            .contains("Seed: 6,")
    );
}

#[test]
fn size_is_width_times_height() {
    let place = Place::new();
    place
        .line(&format!("generate heart {QUICK} --size 64x96 -o heart.png"))
        .ok();
    assert_eq!(
        image::image_dimensions(place.path("heart.png")).unwrap(),
        (64, 96)
    );
}

#[test]
fn a_picture_without_a_name_is_named_for_its_prompt_and_seed() {
    let place = Place::new();
    let stdout = place
        .run(["generate", "A red heart!", "--steps", "1", "--seed", "5"])
        .ok();
    assert_eq!(stdout, "a-red-heart-5.png\n");
    assert!(place.path("a-red-heart-5.png").exists());
}

#[test]
fn a_drawn_seed_is_told_and_draws_the_same_again() {
    let place = Place::new();
    let told = place
        .line("generate heart --steps 1 -o drawn.png --json")
        .json();
    let seed = told["seed"].as_u64().unwrap();
    place
        .line(&format!(
            "generate heart --steps 1 -o again.png --seed {seed}"
        ))
        .ok();
    assert_eq!(place.pixels("drawn.png"), place.pixels("again.png"));
}

#[test]
fn the_budget_never_shows() {
    let place = Place::new();
    let mut files = Vec::new();
    for (name, budget) in [
        ("a.png", ""),
        ("b.png", "--budget 24MiB"),
        ("c.png", "--budget 16MiB"),
    ] {
        let told = place
            .line(&format!(
                "generate heart {QUICK} --quality exact --json -o {name} {budget}"
            ))
            .json();
        assert_eq!(told["quality"], "exact");
        let budget = told["memory"]["budget"].as_u64().unwrap();
        for (phase, peak) in told["memory"]["measured_peak"].as_object().unwrap() {
            assert!(
                peak.as_u64().unwrap() <= budget,
                "{phase} used {peak} of {budget}"
            );
        }
        files.push(std::fs::read(place.path(name)).unwrap());
    }
    assert_eq!(files[0], files[1]);
    assert_eq!(files[0], files[2]);
}

#[test]
fn the_last_line_of_json_tells_everything() {
    let place = Place::new();
    let ended = place.line(&format!(
        "generate heart {QUICK} --budget 20MiB -o heart.png --json"
    ));
    assert_eq!(ended.stderr, "", "nothing but the line");
    assert_eq!(ended.stdout.lines().count(), 1);
    let told = ended.json();
    assert_eq!(told["seed"], 5);
    assert_eq!(told["outputs"], serde_json::json!(["heart.png"]));
    assert_eq!(told["memory"]["budget"], 20 << 20);
    assert_eq!(told["approximate"], serde_json::json!([]));
    assert!(told["bytes_read"].as_u64().unwrap() > 0);
    let phases: Vec<&str> = told["plan"]["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|phase| phase["name"].as_str().unwrap())
        .collect();
    assert!(
        phases.contains(&"encode") && phases.contains(&"denoise") && phases.contains(&"decode"),
        "{phases:?}"
    );
    assert_eq!(told["reasons"].as_array().unwrap().len(), phases.len());
    let seconds = &told["seconds"];
    let total = seconds["total"].as_f64().unwrap();
    let mut sum = seconds["load"].as_f64().unwrap() + seconds["write"].as_f64().unwrap();
    for phase in phases {
        for figures in ["predicted_peak", "measured_peak"] {
            assert!(
                told["memory"][figures][phase].as_u64().unwrap() > 0,
                "{figures} of {phase}"
            );
        }
        sum += seconds[phase].as_f64().unwrap();
    }
    assert!(
        sum <= total && sum > total / 2.0,
        "the parts sum to {sum} of {total}"
    );
}

#[test]
fn the_plan_is_the_one_that_is_run() {
    let place = Place::new();
    let arguments = format!("heart {QUICK} --budget 20MiB --json");
    let planned = place.line(&format!("plan {arguments}")).json();
    let run = place
        .line(&format!("generate {arguments} -o heart.png"))
        .json();
    for (planned, run) in planned["plan"]["phases"]
        .as_array()
        .unwrap()
        .iter()
        .zip(run["plan"]["phases"].as_array().unwrap())
    {
        for field in [
            "name",
            "mode",
            "resident_blocks",
            "blocks",
            "slots",
            "visits",
            "weights",
            "activations",
        ] {
            assert_eq!(planned[field], run[field], "{field} of {}", run["name"]);
        }
    }
    let text = place
        .line(&format!("plan heart {QUICK} --budget 20MiB"))
        .ok();
    assert!(
        text.contains("budget 20.0 MiB") && text.contains("denoise: "),
        "{text}"
    );
    assert!(
        !place.path("heart-5.png").exists(),
        "planning draws nothing"
    );
}

#[test]
fn noise_replaces_the_seed_and_the_dump_is_the_picture() {
    let place = Place::new();
    let noise: Vec<f32> = (0..16 * 16 * 16)
        .map(|k| ((k * 37 % 101) as f32 - 50.0) / 29.0)
        .collect();
    write_noise(&place.path("noise.safetensors"), &noise);
    for (seed, name) in [(1, "a"), (2, "b")] {
        let files = format!("--noise noise.safetensors --dump {name}.safetensors -o {name}.png");
        place
            .line(&format!("generate heart --steps 2 --seed {seed} {files}"))
            .ok();
    }
    assert_eq!(place.pixels("a.png"), place.pixels("b.png"));
    let dump = Checkpoint::open(&place.path("a.safetensors")).unwrap();
    assert_eq!(
        dump.require("latents", &[1, 16, 16, 16]).unwrap().dtype,
        Dtype::F32
    );
    let image = dump.require("image", &[1, 3, 128, 128]).unwrap();
    let mut bytes = vec![0; image.bytes as usize];
    dump.read(image, &mut bytes).unwrap();
    let values: Vec<f32> = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|four| f32::from_le_bytes(*four))
        .collect();
    let plane = 128 * 128;
    for (at, pixel) in place.pixels("a.png").as_chunks::<3>().0.iter().enumerate() {
        for (channel, &value) in pixel.iter().enumerate() {
            let exact = values[channel * plane + at] * 255.0;
            assert!(
                (exact - f32::from(value)).abs() <= 0.5,
                "pixel {at}, channel {channel}: {exact} as {value}"
            );
        }
    }
}

#[test]
fn noise_may_be_that_of_several_pictures() {
    let place = Place::new();
    let one: Vec<f32> = (0..16 * 16 * 16)
        .map(|k| ((k * 37 % 101) as f32 - 50.0) / 29.0)
        .collect();
    let other: Vec<f32> = one.iter().map(|value| -value).collect();
    write_noise(&place.path("one.safetensors"), &one);
    write_noise(&place.path("both.safetensors"), &[other, one].concat());
    place
        .line("generate heart --steps 2 --noise one.safetensors -o one.png")
        .ok();
    place
        .line("generate heart --steps 2 --noise both.safetensors --count 2 -o both.png")
        .ok();
    assert_eq!(place.pixels("both-2.png"), place.pixels("one.png"));
    assert_ne!(place.pixels("both-1.png"), place.pixels("one.png"));
    let error = place
        .line("generate heart --noise both.safetensors")
        .error(2);
    assert!(error.contains("needs F32 [1, C, 16, 16]"), "{error}");
}

/// Noise for as many pictures of 128 x 128 as there are values for.
fn write_noise(path: &Path, values: &[f32]) {
    let layout = TensorLayout {
        name: "noise".to_owned(),
        dtype: Dtype::F32,
        shape: vec![values.len() / (16 * 16 * 16), 16, 16, 16],
    };
    let mut writer = SafetensorsWriter::create(path, &[layout]).unwrap();
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    writer.write("noise", &bytes).unwrap();
    writer.finish().unwrap();
}
