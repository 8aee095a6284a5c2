//! What is wrong is said in one line, with the right exit code, and leaves nothing behind.

use crate::Place;
use std::fs::{self, OpenOptions};

/// Runs `generate` with the words of `line` and expects a mistake that is explained by all of `says`.
#[track_caller]
fn mistake(place: &Place, line: &str, says: &[&str]) {
    let before = place.names();
    let error = place.line(&format!("generate heart {line}")).error(2);
    for part in says {
        assert!(error.contains(part), "{line}: {error}");
    }
    assert_eq!(place.names(), before, "{line} left something behind");
}

#[test]
fn numbers_that_cannot_be() {
    let place = Place::new();
    mistake(
        &place,
        "--size 100x128",
        &["100x128", "divisible by 8", "96x128"],
    );
    mistake(&place, "--size 0x0", &["0x0"]);
    mistake(&place, "--size large", &["'large'", "512x768"]);
    mistake(&place, "--steps 0", &["--steps 0", "from 1 to 1000"]);
    mistake(&place, "--steps many", &["'many'", "--steps"]);
    mistake(&place, "--count 0", &["--count 0"]);
    mistake(&place, "--seed -1", &["'-1'", "leave --seed out"]);
    mistake(&place, "--guidance -1", &["--guidance -1", "0 or more"]);
    mistake(&place, "--threads 0", &["--threads 0"]);
    mistake(&place, "--budget lots", &["'lots'", "600MiB"]);
    mistake(&place, "--precision f64", &["'f64'", "bf16", "tf32"]);
    for more in ["", " --upscale 2"] {
        for precision in ["tf32", "f16"] {
            let line = format!("--device cpu --precision {precision}{more}");
            let says = format!("--precision {precision} is for GPUs");
            mistake(&place, &line, &[&says, "say f32, bf16 or auto"]);
        }
    }
    mistake(
        &place,
        "--budget 1GiB --reserve 1GiB",
        &["--budget", "--reserve"],
    );
    mistake(&place, "--sise 128x128", &["--sise", "--size"]);
}

#[test]
fn what_a_picture_is_drawn_with() {
    let place = Place::new();
    std::fs::write(place.path("notes.txt"), "no picture").unwrap();
    std::fs::write(place.path("broken.png"), b"\x89PNG\r\n\x1a\nbroken").unwrap();
    for (line, says) in [
        (
            "--image nowhere.png",
            &["--image 'nowhere.png'", "cannot be read"][..],
        ),
        ("--image .", &["--image '.'", "is no file"]),
        (
            "--image notes.txt",
            &["'notes.txt'", "no PNG, JPEG or WebP"],
        ),
        ("--image broken.png", &["--image"]),
        ("--image artifact:1", &["artifact:1", "cannot be read"]),
        ("--mask broken.png", &["--image"]),
        ("--strength 0.5", &["--image"]),
        ("--sampler fastest", &["--sampler", "fastest", "Euler"]),
        ("--schedule steep", &["--schedule", "steep"]),
        ("--eta 2", &["--eta", "2"]),
        ("--noise-of tpu", &["--noise-of", "tpu", "gpu"]),
        ("--prompt-reading aloud", &["--prompt-reading", "aloud"]),
        ("--hires-steps 3", &["--hires-scale"]),
        ("--hires-scale 99", &["--hires-scale", "99"]),
        ("--lora ink:much", &["ink:0.8"]),
        ("--lora ink", &["ink", "LOWTIDE_LORAS"]),
    ] {
        mistake(&place, &format!("{line} --local"), says);
    }
}

#[test]
fn a_missing_folder() {
    mistake(
        &Place::new(),
        "--model nowhere/at-all",
        &["'nowhere/at-all'", "no such folder", "demo"],
    );
}

#[test]
fn a_folder_that_is_not_a_model() {
    let place = Place::new();
    fs::create_dir(place.path("empty")).unwrap();
    mistake(
        &place,
        "--model empty",
        &["empty", "not a model folder", "model_index.json"],
    );
    place.write("file.txt", "not a model");
    mistake(&place, "--model file.txt", &["file.txt", "not safetensors"]);
    place.write("broken/model_index.json", "{ \"_class_name\": ");
    mistake(&place, "--model broken", &["broken", "model_index.json"]);
}

#[test]
fn a_model_of_a_kind_that_is_not_known() {
    let place = Place::new();
    let folder = place.copy_demo("other");
    let index = fs::read_to_string(folder.join("model_index.json")).unwrap();
    fs::write(
        folder.join("model_index.json"),
        index.replace("ZImagePipeline", "OtherPipeline"),
    )
    .unwrap();
    mistake(
        &place,
        "--model other",
        &["other", "OtherPipeline", "ZImagePipeline"],
    );
}

#[test]
fn half_a_download() {
    let weights = "transformer/diffusion_pytorch_model.safetensors";
    let place = Place::new();
    let folder = place.copy_demo("half");
    let file = OpenOptions::new()
        .write(true)
        .open(folder.join(weights))
        .unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    mistake(
        &place,
        "--model half",
        &["diffusion_pytorch_model.safetensors", "half a download"],
    );
    fs::remove_file(folder.join(weights)).unwrap();
    mistake(&place, "--model half", &["transformer"]);
    fs::remove_dir_all(folder.join("transformer")).unwrap();
    mistake(&place, "--model half", &["transformer", "half a download"]);
}

#[test]
fn an_output_that_cannot_be_written() {
    let place = Place::new();
    place.write("file.txt", "");
    fs::create_dir(place.path("folder.png")).unwrap();
    mistake(
        &place,
        "-o missing/heart.png",
        &["missing", "does not exist"],
    );
    mistake(&place, "-o file.txt/heart.png", &["file.txt"]);
    mistake(&place, "-o folder.png", &["folder.png", "is a folder"]);
    mistake(
        &place,
        "-o heart.png --dump missing/dump.safetensors",
        &["missing", "does not exist"],
    );
    mistake(
        &place,
        "-o heart.png --dump heart.png",
        &["--dump", "another file"],
    );
    if cfg!(target_os = "linux") {
        mistake(
            &place,
            "-o /proc/heart.png",
            &["/proc/heart.png", "cannot be written"],
        );
    }
}

#[test]
fn an_output_of_unknown_format() {
    let place = Place::new();
    mistake(
        &place,
        "-o heart.gif",
        &["heart.gif", ".png, .jpg or .webp"],
    );
    mistake(&place, "-o heart", &["heart", ".png, .jpg or .webp"]);
}

#[test]
fn what_is_wrong_is_said_before_the_model_is_looked_at() {
    let place = Place::new();
    mistake(
        &place,
        "--model nowhere --size 100x128",
        &["divisible by 8"],
    );
    mistake(&place, "--model nowhere -o heart.gif", &["heart.gif"]);
}

#[test]
fn a_budget_of_one_mebibyte_is_refused_with_the_one_that_would_do() {
    let place = Place::new();
    let error = place
        .line("generate heart --steps 2 --budget 1MiB -o heart.png")
        .error(3);
    assert!(
        error.contains("budget is 1.0 MiB") && error.contains("smallest"),
        "{error}"
    );
    assert!(place.names().is_empty());
    // The advice is good: with it the same request runs, and draws what it draws without a budget.
    let advice = error
        .split("--budget ")
        .nth(1)
        .expect("an argument to type")
        .to_owned();
    let line = format!("generate heart --steps 2 --seed 1 -o small.png --budget {advice}");
    place.line(&line).ok();
    place
        .line("generate heart --steps 2 --seed 1 -o large.png")
        .ok();
    assert_eq!(place.pixels("small.png"), place.pixels("large.png"));
}

#[test]
fn a_plan_is_refused_like_the_run() {
    let place = Place::new();
    // What the process itself holds differs by a few bytes between the two, so not the whole sentence is compared.
    let phase = |error: String| error.split(" needs ").next().map(str::to_owned);
    let run = place
        .line("generate heart --steps 2 --budget 1MiB -o heart.png")
        .error(3);
    let plan = place.line("plan heart --steps 2 --budget 1MiB").error(3);
    assert_eq!(phase(plan), phase(run));
}

#[test]
fn noise_of_the_wrong_shape() {
    let place = Place::new();
    place.write("noise.safetensors", "not safetensors at all");
    mistake(&place, "--noise noise.safetensors", &["noise.safetensors"]);
    mistake(
        &place,
        "--noise missing.safetensors",
        &["missing.safetensors"],
    );
}

#[test]
fn a_wrong_word_in_the_environment() {
    let place = Place::new();
    let output = place
        .command()
        .args(["generate", "heart"])
        .env("LOWTIDE_ISA", "mmx")
        .output()
        .unwrap();
    let error = crate::Ended::of(output).error(2);
    assert!(
        error.contains("LOWTIDE_ISA") && error.contains("portable"),
        "{error}"
    );
}

#[test]
fn files_that_are_no_pictures() {
    let place = Place::new();
    place.write("text.png", "not a picture");
    for (file, says) in [
        ("text.png", "PNG, JPEG or WebP"),
        ("missing.png", "cannot be read"),
    ] {
        let error = place.run(["png-info", file]).error(2);
        assert!(error.contains(file) && error.contains(says), "{error}");
    }
}
