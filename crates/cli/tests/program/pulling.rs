//! `pull`, and what becomes of models that were pulled: found, checked, removed, made smaller.

#[allow(
    dead_code,
    reason = "the server is shared with the tests of the crate that pulls"
)]
#[path = "../../../hub/tests/pull/server.rs"]
mod server;

use crate::{Ended, Place, demo_folder};
use server::{COMMIT, Fault, Hub, Served};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The largest file of the demo.
const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";
/// From here on a file is in large file storage.
const LARGE: usize = 1 << 20;

/// The demo model as a repository, with a file nobody needs.
fn hub() -> Hub {
    let mut files = BTreeMap::new();
    let mut open = vec![demo_folder()];
    while let Some(folder) = open.pop() {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let name = path.strip_prefix(demo_folder()).unwrap();
            let large = bytes.len() >= LARGE;
            files.insert(
                name.to_string_lossy().replace('\\', "/"),
                Served { bytes, large },
            );
        }
    }
    Hub::serve(files)
}

fn command(place: &Place, hub: &Hub, line: &str) -> Command {
    let mut command = place.command();
    command
        .env("HF_ENDPOINT", hub.url())
        .env("HF_HOME", place.path("hf"))
        .args(line.split_whitespace());
    command
}

fn run(place: &Place, hub: &Hub, line: &str) -> Ended {
    Ended::of(command(place, hub, line).output().unwrap())
}

fn repo(place: &Place) -> PathBuf {
    place.path("hf/hub/models--org--name")
}

fn tree(place: &Place) -> PathBuf {
    repo(place).join("snapshots").join(COMMIT)
}

/// Bytes of the largest file that came, while it is not whole.
fn incomplete(place: &Place) -> u64 {
    let bytes = std::fs::read(demo_folder().join(WEIGHTS)).unwrap();
    let name = format!("blobs/{}.incomplete", server::sum(&bytes, true));
    let part = repo(place).join(name).metadata();
    part.map_or(0, |metadata| metadata.len())
}

/// Starts a pull that stops after half a megabyte of the largest file, and waits until it is there.
fn half_a_pull(place: &Place, hub: &Hub) -> Child {
    hub.fault(WEIGHTS, Fault::Gate(512 << 10));
    let child = command(place, hub, "pull org/name")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while incomplete(place) < 512 << 10 {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the pull does not get that far"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

/// The ranges the storage was asked for the largest file with.
fn ranges(hub: &Hub) -> Vec<Option<String>> {
    let asked = hub.asked().into_iter();
    let gets =
        asked.filter(|one| one.storage && one.method == "GET" && one.path.ends_with(WEIGHTS));
    gets.map(|one| one.range).collect()
}

#[test]
fn a_pulled_model_draws_what_it_draws() {
    let (place, hub) = (Place::new(), hub());
    let folder = run(&place, &hub, "pull org/name").ok();
    assert_eq!(Path::new(folder.trim()), tree(&place));
    run(
        &place,
        &hub,
        "generate heart --model org/name --steps 1 --seed 5 -o pulled.png --local",
    )
    .ok();
    place
        .line("generate heart --steps 1 --seed 5 -o demo.png --local")
        .ok();
    assert_eq!(place.pixels("pulled.png"), place.pixels("demo.png"));
    let info = place.line("png-info pulled.png").ok();
    assert!(info.contains("org/name"), "{info}");
    let listed = run(&place, &hub, "models list --json").json();
    let models = listed["models"].as_array().unwrap();
    let pulled = models
        .iter()
        .find(|model| model["name"] == "org/name")
        .unwrap();
    assert_eq!(pulled["bytes"], models[0]["bytes"]);
    let least = pulled["smallest_budget"].as_u64().unwrap();
    let at_least =
        |bytes: u64| format!("plan heart --model org/name --quality exact --budget {bytes}");
    // The list's process and the plan's hold a little before they plan, and not quite the same.
    run(&place, &hub, &at_least(least + (1 << 20))).ok();
    run(&place, &hub, &at_least(least / 2)).error(3);
}

#[test]
fn a_pull_that_was_killed_goes_on() {
    let (place, hub) = (Place::new(), hub());
    let mut child = half_a_pull(&place, &hub);
    // SIGKILL, on every system that has it.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!tree(&place).join("model_index.json").exists());
    let error = run(&place, &hub, "generate heart --model org/name --local").error(2);
    assert!(error.contains("lowtide pull org/name"), "{error}");
    let came = incomplete(&place);
    hub.heal();
    hub.release();
    hub.forget();
    let told = run(&place, &hub, "pull org/name --json").ok();
    assert_eq!(ranges(&hub), [Some(format!("bytes={came}-"))]);
    let lines: Vec<serde_json::Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let events: Vec<&str> = lines
        .iter()
        .map(|line| line["event"].as_str().unwrap())
        .collect();
    assert_eq!(events[0], "planned");
    assert!(events.contains(&"resumed") && events.contains(&"file"));
    assert_eq!(events.last(), Some(&"pulled"));
    run(&place, &hub, "models verify org/name").ok();
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_came() {
    let (place, hub) = (Place::new(), hub());
    let child = half_a_pull(&place, &hub);
    let asked = Instant::now();
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let ended = Ended::of(child.wait_with_output().unwrap());
    assert!(asked.elapsed() < Duration::from_secs(10));
    let error = ended.error(130);
    assert!(error.contains("goes on with it"), "{error}");
    hub.heal();
    hub.release();
    hub.forget();
    run(&place, &hub, "pull org/name").ok();
    assert!(ranges(&hub)[0].is_some());
}

#[test]
fn a_model_is_fetched_at_first_use_where_that_is_allowed() {
    let (place, hub) = (Place::new(), hub());
    let line = "plan heart --model org/name";
    let error = run(&place, &hub, line).error(2);
    assert!(
        error.contains("'lowtide pull org/name'") && error.contains("--download"),
        "{error}"
    );
    assert!(
        hub.asked().is_empty(),
        "nobody is asked who was not allowed to be"
    );
    let mut offline = command(&place, &hub, "plan heart --model org/name --download");
    let error = Ended::of(offline.env("HF_HUB_OFFLINE", "1").output().unwrap()).error(2);
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    run(&place, &hub, "plan heart --model org/name --download").ok();
    run(&place, &hub, line).ok();

    let place = Place::new();
    place.write(
        "lowtide.toml",
        "[models]\ndownload = true\naliases = { mine = \"org/name\" }",
    );
    run(&place, &hub, "plan heart --model mine").ok();
    assert!(tree(&place).exists());
}

#[test]
fn what_a_hub_refuses_is_said_in_a_line() {
    let (place, hub) = (Place::new(), hub());
    let mistake = run(&place, &hub, "pull org/other").error(2);
    assert!(
        mistake.contains("there is no model 'org/other'"),
        "{mistake}"
    );
    for wrong in ["pull a/b/c", "pull ../x", "pull org/name@../x"] {
        run(&place, &hub, wrong).error(2);
    }
    let mut broken = command(&place, &hub, "pull org/name");
    let error = Ended::of(broken.env("HF_ENDPOINT", "nowhere").output().unwrap()).error(2);
    assert!(error.contains("HF_ENDPOINT"), "{error}");
    hub.fault(WEIGHTS, Fault::Wrong);
    let error = run(&place, &hub, "pull org/name").error(1);
    assert!(
        error.contains("is discarded") && error.contains(WEIGHTS),
        "{error}"
    );
    assert!(!tree(&place).join("model_index.json").exists());
}

#[test]
fn damage_is_found_discarded_and_fetched_again() {
    let (place, hub) = (Place::new(), hub());
    run(&place, &hub, "pull org/name").ok();
    assert!(
        run(&place, &hub, "models verify org/name")
            .ok()
            .contains("sums")
    );
    let blob = tree(&place).join(WEIGHTS).canonicalize().unwrap();
    let mut bytes = std::fs::read(&blob).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    let error = run(&place, &hub, "models verify org/name").error(2);
    assert!(
        error.contains("--discard") && error.contains("lowtide pull"),
        "{error}"
    );
    run(&place, &hub, "models verify org/name --discard").error(2);
    assert!(!blob.exists());
    run(&place, &hub, "pull org/name").ok();
    run(&place, &hub, "models verify org/name --json").ok();
    // A folder has no sums, but headers that say what must be there.
    let copy = place.copy_demo("copy");
    place.line("models verify copy").ok();
    std::fs::write(copy.join(WEIGHTS), &bytes[..last]).unwrap();
    let error = place.line("models verify copy").error(2);
    assert!(error.contains("truncated"), "{error}");
}

#[test]
fn models_go_when_they_are_told_to_and_others_stay() {
    let (place, hub) = (Place::new(), hub());
    run(&place, &hub, "pull org/name").ok();
    place.copy_demo("shelf/mine");
    place.copy_demo("elsewhere");
    place.copy_demo("ComfyUI/models/diffusers/theirs");
    let rm = |line: &str| {
        let mut command = command(&place, &hub, &format!("models rm {line}"));
        command
            .env("LOWTIDE_MODELS", place.path("shelf"))
            .stdin(Stdio::null());
        Ended::of(command.output().unwrap())
    };
    let error = rm("org/name").error(2);
    assert!(error.contains("MiB") && error.contains("--yes"), "{error}");
    assert!(rm("demo --yes").error(2).contains("part of the program"));
    assert!(rm("theirs --yes").error(2).contains("another program"));
    assert!(rm("elsewhere --yes").error(2).contains("by hand"));
    for wrong in [
        "../elsewhere --yes",
        "shelf --yes",
        "org/other --yes",
        "org/name@v9 --yes",
    ] {
        rm(wrong).error(2);
    }
    assert!(rm("mine --yes").ok().contains("came back"));
    assert!(!place.path("shelf/mine").exists() && place.path("elsewhere").exists());
    assert!(rm("org/name --yes").ok().contains("came back"));
    assert!(!repo(&place).exists());
    assert!(place.path("ComfyUI/models/diffusers/theirs").exists());
}

#[test]
fn a_smaller_variant_is_a_model_of_its_own_and_says_so() {
    let place = Place::new();
    place.line("models convert --to fp8 demo small").ok();
    let bytes = |model: &str| {
        place.line(&format!("models show {model} --json")).json()["bytes"]
            .as_u64()
            .unwrap()
    };
    let (demo, small) = (bytes("demo"), bytes("small"));
    assert!(small * 10 < demo * 8, "{small} of {demo}");
    let shown = place.line("models show small --json").json();
    let part = |name: &str| {
        let components = shown["components"].as_array().unwrap();
        components.iter().find(|one| one["name"] == name).unwrap()["weights"].to_string()
    };
    assert!(part("transformer").contains("F8_E4M3") && part("transformer").contains("BF16"));
    assert!(!part("vae").contains("F8_E4M3"));
    assert_eq!(
        shown["defaults"],
        place.line("models show demo --json").json()["defaults"]
    );
    let own = std::fs::read_to_string(place.path("small/lowtide.json")).unwrap();
    assert!(own.contains("\"fp8\""), "{own}");
    let line = "generate heart --model small --steps 2 --seed 1 -o small.png --local --json";
    let told = place.line(line).json();
    assert_eq!(told["approximate"], serde_json::json!(["fp8 variant"]));
    let info = place.line("png-info small.png").ok();
    assert!(info.contains("fp8 variant"), "{info}");
    place
        .line("generate heart --steps 2 --seed 1 -o demo.png --local")
        .ok();
    let (small, demo) = (place.pixels("small.png"), place.pixels("demo.png"));
    let apart: f64 = small
        .iter()
        .zip(&demo)
        .map(|(a, b)| f64::from(a.abs_diff(*b)))
        .sum();
    let apart = apart / small.len() as f64;
    assert!(
        apart > 0.0 && apart < 25.0,
        "mean difference {apart} of 255"
    );
    let exact = "generate heart --model small --steps 2 --seed 1 -o no.png --local --quality exact";
    let error = place.line(exact).error(2);
    assert!(
        error.contains("fp8 variant of demo") && error.contains("quality auto"),
        "{error}"
    );
    for (line, says) in [
        ("models convert --to fp8 demo small", "already there"),
        (
            "models convert --to bf16 demo other",
            "nothing to make smaller",
        ),
        ("models convert --to fp8 nowhere other", "no such folder"),
        (
            "models convert --to fp8 demo no/such/place",
            "cannot be made",
        ),
    ] {
        let error = place.line(line).error(2);
        assert!(error.contains(says), "{line}: {error}");
    }
    let left: Vec<String> = place
        .names()
        .into_iter()
        .filter(|name| name.contains(".part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn q8_0_is_nearer_to_the_original_than_fp8_and_half_as_large() {
    let place = Place::new();
    let generate = |model: &str, more: &str| {
        let line = format!(
            "generate heart --model {model} --steps 2 --seed 1 -o {model}.png --local --json {more}"
        );
        let told = place.line(&line).json();
        (told, place.pixels(&format!("{model}.png")))
    };
    let (_, demo) = generate("demo", "");
    let apart = |pixels: &[u8]| -> f64 {
        let both = pixels.iter().zip(&demo);
        let sum: f64 = both.map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        sum / demo.len() as f64
    };
    let mut distances = Vec::new();
    for (to, dtype) in [("q8_0", "I8"), ("fp8", "F8_E4M3")] {
        place
            .line(&format!("models convert --to {to} demo {to}"))
            .ok();
        let (told, pixels) = generate(to, "");
        assert_eq!(
            told["approximate"],
            serde_json::json!([format!("{to} variant")])
        );
        let shown = place.line(&format!("models show {to} --json")).json();
        let transformer = shown["components"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["name"] == "transformer")
            .unwrap()["weights"]
            .to_string();
        assert!(transformer.contains(dtype), "{transformer}");
        distances.push(apart(&pixels));
        // Streamed through a small budget, to the same bytes.
        let peaks = told["memory"]["measured_peak"].as_object().unwrap();
        let peak = peaks
            .values()
            .map(|peak| peak.as_u64().unwrap())
            .max()
            .unwrap();
        let (less, again) = generate(to, &format!("--budget {}", peak * 9 / 10));
        assert!(
            less["bytes_read"].as_u64() > told["bytes_read"].as_u64(),
            "{less}"
        );
        assert_eq!(again, pixels, "{less}");
    }
    assert!(
        distances[0] > 0.0 && distances[0] * 1.5 < distances[1],
        "q8_0 and fp8 are {distances:?} of 255 away"
    );
}

#[test]
fn auto_takes_the_variant_where_the_model_fits_in_no_way() {
    let place = Place::new();
    std::fs::create_dir(place.path("shelf")).unwrap();
    place.line("models convert --to q8_0 demo shelf/small").ok();
    let run = |line: &str| {
        let mut command = place.command();
        command.env("LOWTIDE_MODELS", place.path("shelf"));
        Ended::of(command.args(line.split_whitespace()).output().unwrap())
    };
    // The smallest budget each runs in.
    let smallest = |model: &str| {
        let fits = |kib: u64| {
            let line = format!(
                "plan heart --model {model} --quality {} --quiet --budget {kib}KiB",
                match model {
                    "demo" => "exact",
                    _ => "auto",
                }
            );
            run(&line).code == Some(0)
        };
        let (mut too_little, mut enough) = (0, 1 << 20);
        while enough - too_little > 64 {
            let middle = (too_little + enough) / 2;
            match fits(middle) {
                true => enough = middle,
                false => too_little = middle,
            }
        }
        enough
    };
    let (original, variant) = (smallest("demo"), smallest("small"));
    assert!(variant + 256 < original, "{variant} KiB and {original} KiB");
    let line = format!(
        "generate heart --steps 1 --seed 1 -o heart.png --local --budget {}KiB",
        (original + variant) / 2
    );
    let told = run(&format!("{line} --json")).json();
    assert_eq!(told["approximate"], serde_json::json!(["q8_0 variant"]));
    run(&format!("{line} --quality exact")).error(3);
}
