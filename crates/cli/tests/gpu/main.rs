//! The program on GPUs, run on those of the simulated driver (`scripts/simulated-gpu`): a GPU that is lost costs an attempt and
//! no job, each GPU has a worker, and two services on one card give way to each other.
#![cfg(all(unix, feature = "cuda"))]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failed test may panic, and says why it is skipped"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

const CONTEXT: u64 = 64 << 20;

/// Whether there is a GPU, and it is no real one: what is counted here is its memory to the byte.
fn is_simulated(test: &str) -> bool {
    use std::io::Write;
    let shown = lowtide_engine::device::cuda::shown();
    if shown.is_ok_and(|shown| shown.contains("simulated")) {
        return true;
    }
    let reason = "needs scripts/simulated-gpu";
    eprintln!("skipped: {test}: {reason}");
    if let Some(skips) = std::env::var_os("LOWTIDE_TEST_SKIPS") {
        let file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(skips);
        writeln!(file.unwrap(), "gpu::{test}: {reason}").unwrap();
    }
    false
}

/// A folder with a small model in it, and a card that its services share.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        let model = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../engine/tests/fixtures/z-image/plain-bf16/checkpoint");
        copy(&model, &place.path("models/tiny"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

struct Service {
    folder: PathBuf,
    child: Child,
    agent: ureq::Agent,
}

impl Service {
    /// A service of this name; its workers have all ended their start.
    fn start(place: &Place, name: &str, memory: u64, arguments: &[&str]) -> Service {
        let folder = place.path(name);
        std::fs::create_dir_all(&folder).unwrap();
        let log = std::fs::File::create(folder.join("log.txt")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_lowtide"))
            .args(["serve", "--port", "0", "-v", "--data-dir"])
            .arg(&folder)
            .arg("--models")
            .arg(place.path("models"))
            .args(arguments)
            .env("HOME", place.path("home"))
            // Where processes on a card hear of each other.
            .env("XDG_RUNTIME_DIR", place.0.path())
            .env("LOWTIDE_SIMULATED_CARD", place.path("card"))
            .env("LOWTIDE_SIMULATED_MEMORY", memory.to_string())
            .env("LOWTIDE_SIMULATED_DEVICES", "2")
            .env("LOWTIDE_SIMULATED_LOSE", folder.join("lose"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .build();
        let service = Service {
            folder,
            child,
            agent: agent.into(),
        };
        service.wait("workers", |service| service.health()["ready"] == true);
        service
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log.txt")).unwrap_or_default()
    }

    fn wait(&self, what: &str, is_there: impl Fn(&Service) -> bool) {
        let start = Instant::now();
        while !is_there(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn url(&self, path: &str) -> Option<String> {
        let told = std::fs::read_to_string(self.folder.join("server.json")).ok()?;
        let told: Value = serde_json::from_str(&told).ok()?;
        Some(format!("{}{path}", told["url"].as_str()?))
    }

    fn health(&self) -> Value {
        let answer = self.url("/health").map(|url| self.agent.get(url).call());
        let body = answer.and_then(|answer| answer.ok()?.body_mut().read_json().ok());
        body.unwrap_or_default()
    }

    /// A picture, as the answer has it.
    fn picture(&self, seed: u32) -> String {
        let body = json!({ "model": "tiny", "prompt": "a red heart", "size": "64x64", "steps": 2, "seed": seed });
        let url = self.url("/v1/images/generations").unwrap();
        let answer = self.agent.post(url).send_json(&body);
        let mut answer = answer.unwrap_or_else(|why| panic!("{why}: {}", self.log()));
        let answer: Value = answer.body_mut().read_json().unwrap();
        answer["data"][0]["b64_json"].as_str().unwrap().to_owned()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        // One that is gone already has nothing to end.
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.child.wait();
    }
}

#[test]
fn a_lost_gpu_costs_an_attempt_and_no_job() {
    if !is_simulated("a_lost_gpu_costs_an_attempt_and_no_job") {
        return;
    }
    let place = Place::new();
    let service = Service::start(&place, "one", 8 << 30, &["--device", "cuda:0"]);
    let before = service.picture(1);
    std::fs::write(service.folder.join("lose"), "").unwrap();
    assert_eq!(service.picture(1), before, "the same job, the same picture");
    let log = service.log();
    assert!(log.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{log}");
    assert!(log.contains("another worker takes its place"), "{log}");
    assert_eq!(log.matches("worker  started").count(), 2, "{log}");
}

#[test]
fn each_gpu_has_a_worker() {
    if !is_simulated("each_gpu_has_a_worker") {
        return;
    }
    let place = Place::new();
    let service = Service::start(&place, "one", 8 << 30, &[]);
    service.wait("a worker for each", |service| {
        let health = service.health();
        let workers = health["workers"].as_array().map_or(0, Vec::len);
        workers == 2
    });
    let pictures = std::thread::scope(|scope| {
        let service = &service;
        let asked = [1, 2, 1, 2].map(|seed| scope.spawn(move || service.picture(seed)));
        asked.map(|asked| asked.join().unwrap())
    });
    assert_eq!(pictures[0], pictures[2]);
    assert_eq!(pictures[1], pictures[3]);
    assert_ne!(pictures[0], pictures[1]);
}

/// What a job of the small model needs, as a refusal says it.
fn need(place: &Place) -> u64 {
    let model = place.path("models/tiny");
    let answer = Command::new(env!("CARGO_BIN_EXE_lowtide"))
        .args([
            "generate",
            "a red heart",
            "--local",
            "--json",
            "--size",
            "64x64",
        ])
        .args(["--steps", "2", "--device", "cuda:0", "--model"])
        .arg(model)
        .arg("-o")
        .arg(place.path("picture.png"))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&answer.stdout).into_owned();
    let last = told.lines().last().unwrap_or_default();
    let told: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("{answer:?}"));
    let peaks = told["memory"]["predicted_peak"].as_object().unwrap();
    peaks.values().filter_map(Value::as_u64).max().unwrap()
}

#[test]
fn an_idle_service_leaves_a_card_to_another_that_has_a_job() {
    if !is_simulated("an_idle_service_leaves_a_card_to_another_that_has_a_job") {
        return;
    }
    let place = Place::new();
    // Both contexts, the reserve, one job, and less than the weights that a service keeps.
    let memory = 2 * CONTEXT + need(&place) + (2 << 20);
    let arguments = [
        "--device",
        "cuda:0",
        "--reserve",
        "1MiB",
        "--keep-alive",
        "forever",
    ];
    let one = Service::start(&place, "one", memory, &arguments);
    let two = Service::start(&place, "two", memory, &arguments);
    let pictures = [one.picture(1), two.picture(1), one.picture(1)];
    assert!(pictures.iter().all(|picture| *picture == pictures[0]));
    for service in [&one, &two] {
        let log = service.log();
        assert!(!log.contains("does not fit"), "{log}");
    }
    assert!(
        one.log().contains("others on the device lack"),
        "{}",
        one.log()
    );
    assert!(
        two.log().contains("others on the device lack"),
        "{}",
        two.log()
    );
}
