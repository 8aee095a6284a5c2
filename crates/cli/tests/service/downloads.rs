//! Models that a running server fetches: for jobs that wait for them, and because somebody asked.

#[allow(
    dead_code,
    reason = "the server is shared with the tests of the crate that pulls"
)]
#[path = "../../../hub/tests/pull/server.rs"]
mod hub_server;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use crate::*;
use hub_server::{Fault, Hub, Served};

/// The largest file of the demo.
const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";
/// So much of it comes before the hub waits.
const GATE: usize = 512 << 10;
/// From here on a file is in large file storage.
const LARGE: usize = 1 << 20;
/// Settings of a server that fetches.
const FETCHES: &str = "--set models.download=true";

/// The demo model as a repository.
fn hub() -> Hub {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let mut files = BTreeMap::new();
    let mut open = vec![demo.clone()];
    while let Some(folder) = open.pop() {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let name = path.strip_prefix(&demo).unwrap().to_string_lossy();
            let large = bytes.len() >= LARGE;
            files.insert(name.replace('\\', "/"), Served { bytes, large });
        }
    }
    Hub::serve(files)
}

fn server(place: &Place, hub: &Hub, more: &str) -> Server {
    let with = [
        ("HF_ENDPOINT", hub.url()),
        ("HF_HOME", place.path("hf").display().to_string()),
    ];
    Server::start_with(place, &format!("{FETCHES} {more}"), &with)
}

fn submit(server: &Server) -> String {
    let job =
        json!({ "model": "org/name", "request": { "prompt": "a heart", "steps": 1, "seed": 5 } });
    let accepted = server.post("/v1/jobs", job);
    accepted["id"].as_str().unwrap().to_owned()
}

/// What is told of the one download.
fn download(server: &Server) -> Value {
    server.get("/v1/models")["downloads"]["data"][0].clone()
}

/// Waits until what is told of the one download is so.
#[track_caller]
fn told(server: &Server, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + LONG;
    loop {
        let now = download(server);
        if is(&now) {
            return now;
        }
        assert!(Instant::now() < deadline, "{what}: {now}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the hub holds the download back, and everything else is there; the last of what came may still lie
/// unread in some buffer.
fn held(server: &Server) -> Value {
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let weights = weights.join(WEIGHTS).metadata().unwrap().len();
    told(server, "it comes that far", |now| {
        let all = now["bytes"].as_u64();
        all.is_some_and(|all| now["there"].as_u64() >= Some(all - weights + GATE as u64 / 2))
    })
}

/// Waits until somebody else listens to a job's events, and it was said of the download that a job waits for it.
fn listened(server: &Server, events: &mut impl BufRead) {
    let deadline = Instant::now() + LONG;
    let listens = || {
        let mut answer = ureq::get(format!("{}/metrics", server.url)).call().unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        text.contains("\nlowtide_event_streams 2\n")
    };
    while !listens() {
        assert!(Instant::now() < deadline, "nobody listens");
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = events
        .lines()
        .map_while(Result::ok)
        .any(|line| line.contains("\"event\":\"download\"") && !line.contains("\"jobs\":[]"));
    assert!(said, "nothing was said of the download");
}

/// A stream of events.
fn events(server: &Server, path: &str) -> impl BufRead + use<> {
    let answer = ureq::get(format!("{}{path}", server.url)).call().unwrap();
    BufReader::new(answer.into_body().into_reader())
}

/// An answer of any status.
fn ask(method: &str, url: String) -> (u16, Value) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into();
    let answer = match method {
        "GET" => agent.get(url).call(),
        "DELETE" => agent.delete(url).call(),
        _ => agent.post(url).send_json(json!({})),
    };
    let mut answer = answer.unwrap();
    let body = answer.body_mut().read_json().unwrap_or_default();
    (answer.status().as_u16(), body)
}

#[test]
fn a_job_waits_for_its_model_and_then_runs() {
    let (place, hub) = (Place::new(), hub());
    hub.fault(WEIGHTS, Fault::Gate(GATE));
    let server = server(&place, &hub, "");
    let id = submit(&server);
    let now = held(&server);
    assert_eq!(now["jobs"], json!([id]));
    assert!(now["bytes"].as_u64() > now["there"].as_u64(), "{now}");
    let job = server.get(&format!("/v1/jobs/{id}"));
    assert_eq!(
        (&job["state"], &job["attempt"]),
        (&json!("queued"), &json!(0))
    );
    assert_eq!(job["download"]["state"], "fetching");
    let mut events = events(&server, &format!("/v1/jobs/{id}/events"));
    hub.release();
    let done = server.over(&id);
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!(done["artifacts"].as_array().unwrap().len(), 1);
    assert_eq!(done["report"]["model"], "org/name");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut events, &mut said).unwrap();
    assert!(said.contains("event: download"), "{said}");
    let listed = server.get("/v1/models");
    let ids = listed["data"].as_array().unwrap().iter();
    assert!(
        ids.into_iter().any(|model| model["id"] == "org/name"),
        "{listed}"
    );
    assert_eq!(download(&server)["state"], "done");
    server.stop();
}

#[test]
fn after_a_kill_the_job_is_there_and_the_download_goes_on() {
    let (place, hub) = (Place::new(), hub());
    hub.fault(WEIGHTS, Fault::Gate(GATE));
    let mut first = server(&place, &hub, "");
    let id = submit(&first);
    held(&first);
    first.process.signal("KILL");
    first.process.end();
    hub.release();
    hub.forget();
    let second = server(&place, &hub, "");
    assert_eq!(second.over(&id)["state"], "done");
    let went_on = hub.asked().into_iter().any(|one| one.range.is_some());
    assert!(went_on, "{:?}", hub.asked());
    second.stop();
}

#[test]
fn a_download_that_fails_fails_the_job_with_the_reason() {
    let (place, hub) = (Place::new(), hub());
    hub.fault(WEIGHTS, Fault::Wrong);
    let server = server(&place, &hub, "");
    let id = submit(&server);
    let job = server.over(&id);
    let error = job["error"].as_str().unwrap_or_default();
    assert_eq!(job["state"], "failed", "{job}");
    assert!(
        error.contains("could not be fetched") && error.contains("promised"),
        "{error}"
    );
    assert!(
        error.contains(&format!("lowtide jobs requeue {id}")),
        "{error}"
    );
    assert_eq!(download(&server)["state"], "failed");
    hub.heal();
    server.post(&format!("/v1/jobs/{id}/requeue"), json!({}));
    assert_eq!(server.over(&id)["state"], "done");
    server.stop();
}

#[test]
fn a_download_can_be_stopped_and_ends_when_nobody_waits() {
    let (place, hub) = (Place::new(), hub());
    hub.fault(WEIGHTS, Fault::Gate(GATE));
    let server = server(&place, &hub, "");
    let path = format!("{}/v1/models/org%2Fname/pull", server.url);
    let id = submit(&server);
    held(&server);
    assert_eq!(ask("DELETE", path.clone()).1["state"], "stopped");
    let job = server.over(&id);
    assert_eq!(job["state"], "failed");
    assert!(
        job["error"].as_str().unwrap().contains("was stopped"),
        "{job}"
    );
    assert_eq!(ask("DELETE", path.clone()).0, 404);
    // The next job goes on with it, until it is cancelled.
    let next = submit(&server);
    held(&server);
    ask("DELETE", format!("{}/v1/jobs/{next}", server.url));
    told(&server, "it ends", |now| now["state"] == "stopped");
    // One that a person asked for needs no job.
    let (status, offer) = ask("GET", path.clone());
    assert_eq!(status, 200, "{offer}");
    assert!(
        offer["missing_bytes"].as_u64() < offer["bytes"].as_u64(),
        "{offer}"
    );
    assert!(offer["has_room"].as_bool().unwrap() && offer["free_bytes"].is_u64());
    assert_eq!(ask("POST", path).0, 202);
    hub.release();
    told(&server, "it comes", |now| now["state"] == "done");
    server.stop();
}

#[test]
fn what_cannot_be_is_said_at_once() {
    let (place, hub) = (Place::new(), hub());
    let server = server(&place, &hub, "");
    for (model, request, field) in [
        ("org/name", json!({ "prompt": "x", "width": 100 }), "width"),
        ("org/name", json!({ "prompt": "x", "hight": 64 }), "hight"),
        (
            "org/name",
            json!({ "prompt": "x", "resize": "crop" }),
            "resize",
        ),
    ] {
        let body = json!({ "model": model, "request": request });
        let mut answer = ureq::post(format!("{}/v1/jobs", server.url))
            .config()
            .http_status_as_error(false)
            .build()
            .send_json(body)
            .unwrap();
        let refused: Value = answer.body_mut().read_json().unwrap();
        assert_eq!(refused["error"]["field"], field, "{refused}");
    }
    for (name, status, says) in [
        ("org%2Fother", 404, "HF_TOKEN"),
        ("demo", 422, "org/name"),
        ("a%2Fb%2Fc", 422, "org/name"),
        ("org%2Fname@v9", 404, "no revision"),
    ] {
        let (found, body) = ask("GET", format!("{}/v1/models/{name}/pull", server.url));
        assert_eq!(found, status, "{name}: {body}");
        assert!(body.to_string().contains(says), "{name}: {body}");
    }
    server.stop();
}

#[test]
fn what_is_not_allowed_is_said_with_the_way_to_it() {
    let (place, hub) = (Place::new(), hub());
    let pull = "/v1/models/org%2Fname/pull";
    let job = json!({ "model": "org/name", "request": { "prompt": "x" } });
    let refused = |server: &Server, says: &str| {
        let (status, body) = ask("POST", format!("{}{pull}", server.url));
        assert!(status == 403 && body.to_string().contains(says), "{body}");
        let mut answer = ureq::post(format!("{}/v1/jobs", server.url))
            .config()
            .http_status_as_error(false)
            .build()
            .send_json(job.clone())
            .unwrap();
        assert_eq!(answer.status().as_u16(), 404);
        let body: Value = answer.body_mut().read_json().unwrap();
        assert!(body.to_string().contains(says), "{body}");
        assert_eq!(server.get("/v1/models")["downloads"]["allowed"], false);
    };
    let plain = Server::start(&place, "");
    refused(&plain, "models.download");
    plain.stop();
    let offline = Server::start_with(&place, FETCHES, &[("HF_HUB_OFFLINE", "1".to_owned())]);
    refused(&offline, "HF_HUB_OFFLINE");
    offline.stop();
    assert_eq!(hub.asked().len(), 0);
}

#[test]
fn the_command_line_hands_both_over() {
    let (place, hub) = (Place::new(), hub());
    hub.fault(WEIGHTS, Fault::Gate(GATE));
    let server = server(&place, &hub, "");
    let mut events = events(&server, "/v1/events");
    let said = std::thread::scope(|scope| {
        let said = scope.spawn(|| {
            place.run("generate heart --model org/name --steps 1 --seed 5 -o coming.png")
        });
        held(&server);
        listened(&server, &mut events);
        hub.release();
        said.join().unwrap()
    });
    let stderr = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{stderr}");
    assert!(
        stderr.contains("handed over") && stderr.contains("download"),
        "{stderr}"
    );
    assert!(place.path("coming.png").exists());
    std::fs::remove_dir_all(place.path("hf/hub/models--org--name")).unwrap();
    let lines = place.ok(&format!("pull org/name --json --server {}", server.url));
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["event"], &last["model"]),
        (&json!("pulled"), &json!("org/name"))
    );
    assert!(place.path("hf/hub/models--org--name/refs/main").exists());
    server.stop();
}
