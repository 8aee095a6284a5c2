//! `serve` and `worker`: starting, ending, and what happens when one of them dies.

use std::io::Write;
use std::process::Stdio;
use std::time::Instant;

use lowtide_core::job::{JobState, Moment};
use lowtide_jobs::{JobStore, SqliteOptions, SqliteStore, Submission, random_job_id};
use serde_json::json;

use crate::{LONG, Place, Process, Server, signal};

#[test]
fn a_server_starts_answers_and_ends() {
    let place = Place::new();
    let server = Server::start(&place, "");
    let told = std::fs::read_to_string(place.path("data/lowtide/server.json")).unwrap();
    assert!(told.contains(&server.url), "{told}");
    assert!(server.get("/v1/kinds").to_string().contains("no-op"));
    let accepted = server.post(
        "/v1/jobs",
        json!({ "kind": "noise", "request": { "seed": 1 } }),
    );
    let job = server.over(accepted["id"].as_str().unwrap());
    assert_eq!(job["state"], "done", "{job}");
    server.stop();
    assert!(!place.path("data/lowtide/server.json").exists());
}

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    let place = Place::new();
    let server = Server::start(&place, "");
    place.refused("serve --port 0", 2, &[&server.url, "--data-dir"]);
    let port = server.url.rsplit(':').next().unwrap();
    let other = format!("serve --data-dir other --port {port}");
    place.refused(&other, 2, &[port, "--port chooses another"]);
    server.stop();
    // The folder is free again.
    Server::start(&place, "").stop();
}

#[test]
fn a_worker_that_is_killed_is_started_again() {
    let place = Place::new();
    let mut server = Server::start(&place, "");
    signal("KILL", server.worker);
    server.process.after("was killed by signal 9");
    let next = server.process.after("worker  started, process ");
    assert_ne!(next, server.worker.to_string());
    let accepted = server.post("/v1/jobs", json!({ "kind": "no-op", "request": {} }));
    assert_eq!(
        server.over(accepted["id"].as_str().unwrap())["state"],
        "done"
    );
    server.stop();
}

#[test]
fn jobs_go_on_after_the_server_was_stopped() {
    let place = Place::new();
    let server = Server::start(&place, "");
    let slow = json!({ "kind": "noise", "request": { "seed": 1, "strips": 100, "step_ms": 20 } });
    let id = server.post("/v1/jobs", slow)["id"]
        .as_str()
        .unwrap()
        .to_owned();
    server.stop();
    let server = Server::start(&place, "");
    let job = server.over(&id);
    assert_eq!(job["state"], "done", "{job}");
    server.stop();
}

/// A slow job in a queue of its own, without a server.
fn queue(place: &Place) -> (SqliteStore, lowtide_core::job::JobId) {
    std::fs::create_dir_all(place.path("q")).unwrap();
    let store = SqliteStore::open(&place.path("q/lowtide.db"), SqliteOptions::default()).unwrap();
    let now = now();
    let id = random_job_id(now);
    let request = json!({ "width": 64, "height": 64, "seed": 1, "strips": 64, "step_ms": 200 });
    let submission = Submission::new(id, "noise", "noise", &request.to_string());
    store.submit(submission, now).unwrap();
    (store, id)
}

fn now() -> Moment {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Moment(since.unwrap().as_millis() as u64)
}

fn wait_for(store: &SqliteStore, id: lowtide_core::job::JobId, state: JobState) {
    let deadline = Instant::now() + LONG;
    let mut seen = 0;
    while store.job(id).unwrap().state != state {
        assert!(Instant::now() < deadline, "{:?}", store.job(id));
        seen = store
            .wait_change(seen, std::time::Duration::from_millis(200))
            .unwrap();
    }
}

#[test]
fn a_worker_whose_parent_is_gone_saves_what_it_does_and_ends() {
    let place = Place::new();
    let (store, id) = queue(&place);
    let mut command = place.command("worker --supervised");
    command.stdin(Stdio::piped());
    let mut worker = Process::spawn(command);
    let settings = json!({
        "server": { "data_dir": place.path("q"), "store": place.path("q/lowtide.db") },
        "kinds": { "enabled": ["noise"] },
    });
    let mut parent = worker.child.stdin.take().unwrap();
    writeln!(parent, "{settings}").unwrap();
    wait_for(&store, id, JobState::Running);
    drop(parent);
    let status = worker.end();
    assert_eq!(status.code(), Some(0), "{:#?}", worker.told);
    let job = store.job(id).unwrap();
    assert_eq!(job.state, JobState::Queued);
    assert_eq!(
        job.setbacks,
        lowtide_core::job::Setbacks::default(),
        "giving back costs nothing"
    );
}

#[test]
fn a_worker_alone_works_on_a_queue_until_ctrl_c() {
    let place = Place::new();
    let (store, id) = queue(&place);
    let line = "worker --data-dir q --id mine --set kinds.enabled=noise";
    let mut worker = Process::spawn(place.command(line));
    wait_for(&store, id, JobState::Running);
    assert_eq!(
        store.job(id).unwrap().holder.unwrap().worker.as_str(),
        "mine"
    );
    worker.signal("INT");
    let status = worker.end();
    assert_eq!(status.code(), Some(0), "{:#?}", worker.told);
    assert_eq!(store.job(id).unwrap().state, JobState::Queued);
}

#[test]
fn lines_are_for_people_or_programs() {
    let place = Place::new();
    let line = "serve --port 0 --log json --set kinds.enabled=no-op";
    let mut process = Process::spawn(place.command(line));
    process.after("\"url\":\"http://127.0.0.1:");
    process.signal("TERM");
    assert_eq!(process.end().code(), Some(0));
    for line in &process.told {
        let told: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(told["at"].is_string() && told["text"].is_string(), "{line}");
    }
}
