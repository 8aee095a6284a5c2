//! What a client is promised of its jobs.

use std::io::Write;
use std::sync::atomic::Ordering;

use super::pretend::Knobs;
use super::server::World;
use lowtide_jobs::Policy;
use lowtide_server::Options;
use serde_json::json;

fn stuck() -> World {
    let knobs = Knobs::default();
    knobs.stuck.store(true, Ordering::SeqCst);
    World::with(Options::default(), Policy::default(), Some(knobs))
}

fn let_go(world: &World) {
    world
        .worker
        .as_ref()
        .unwrap()
        .knobs
        .stuck
        .store(false, Ordering::SeqCst);
    world.store.nudge();
}

#[test]
fn a_job_is_accepted_told_of_and_gives_its_file() {
    let world = World::new();
    let answer = world.post(
        "/v1/jobs",
        &json!({ "request": { "prompt": "a red heart", "steps": 3 }, "priority": "urgent" }),
    );
    assert_eq!(answer.status, 202, "{answer:?}");
    let receipt = answer.json();
    let id = receipt["id"].as_str().unwrap();
    assert_eq!(
        answer.header("location"),
        Some(format!("/v1/jobs/{id}").as_str())
    );
    assert_eq!(
        (receipt["state"].as_str(), receipt["position"].as_u64()),
        (Some("queued"), Some(1))
    );
    assert!(receipt["seconds"].as_f64().unwrap() > 0.0 && receipt["peak_bytes"] == 4 << 20);

    let names: Vec<String> = world
        .events(&format!("/v1/jobs/{id}/events"), &[])
        .rest()
        .into_iter()
        .map(|event| event.name)
        .collect();
    let kept: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| *name != "position")
        .collect();
    assert_eq!(
        kept,
        [
            "submitted",
            "claimed",
            "progress",
            "progress",
            "progress",
            "done"
        ]
    );

    let job = world.get(&format!("/v1/jobs/{id}?wait_s=20")).json();
    assert_eq!(
        (job["state"].as_str(), job["priority"].as_str()),
        (Some("done"), Some("urgent"))
    );
    assert_eq!(job["request"]["seed"], 7, "what was filled in is there");
    assert_eq!(job["report"]["seed"], 7);
    let artifact = &job["artifacts"][0];
    let url = artifact["url"].as_str().unwrap();
    let file = world.get(url);
    assert_eq!(
        (file.status, file.body.as_slice()),
        (200, super::pretend::PNG)
    );
    let tag = file.header("etag").unwrap();
    assert_eq!(tag, format!("\"{}\"", artifact["sha256"].as_str().unwrap()));
    assert!(
        file.header("content-disposition")
            .unwrap()
            .starts_with("inline; filename=\"lowtide-")
    );
    assert_eq!(
        world
            .ask("GET", url, &[("if-none-match", tag)], None)
            .status,
        304
    );
}

#[test]
fn a_stream_goes_on_where_it_stopped() {
    let world = World::new();
    let id = world.submit(&json!({}));
    let path = format!("/v1/jobs/{id}/events");
    world.until(&id, "done");
    let all = world.events(&path, &[]).rest();
    let kept: Vec<_> = all.iter().filter(|event| event.id.is_some()).collect();
    let third = kept[2].id.unwrap().to_string();
    let rest = world.events(&path, &[("last-event-id", &third)]).rest();
    let rest: Vec<_> = rest.iter().filter_map(|event| event.id).collect();
    assert_eq!(
        rest,
        kept[3..]
            .iter()
            .filter_map(|event| event.id)
            .collect::<Vec<_>>()
    );
    let last = kept.last().unwrap().id.unwrap().to_string();
    assert_eq!(
        world
            .ask("GET", &path, &[("last-event-id", &last)], None)
            .status,
        204,
        "there is nothing more"
    );
    assert_eq!(
        world
            .ask("GET", &path, &[("last-event-id", "soon")], None)
            .status,
        400
    );
}

#[test]
fn everything_that_happens_comes_once_and_in_order() {
    let world = World::new();
    let mut events = world.events("/v1/events?previews=1", &[]);
    let ids: Vec<String> = (0..20).map(|_| world.submit(&json!({}))).collect();
    let (mut last, mut done, mut previews) = (0, Vec::new(), 0);
    while done.len() < ids.len() {
        let event = events.next().unwrap();
        if let Some(id) = event.id {
            assert!(id > last, "{id} after {last}");
            last = id;
        }
        match event.name.as_str() {
            "done" => done.push(event.data["job"].as_str().unwrap().to_owned()),
            "preview" => {
                assert!(
                    event.data["url"]
                        .as_str()
                        .unwrap()
                        .starts_with("data:image/png;base64,iVBORw0KGgo")
                );
                previews += 1;
            }
            _ => {}
        }
    }
    assert_eq!(done, ids, "in order of arrival");
    assert!(previews > 0);
}

#[test]
fn the_same_key_is_the_same_job() {
    let world = World::idle();
    let body = json!({ "request": { "prompt": "a" } }).to_string();
    let submit = |key: &str, body: &str| {
        world.ask("POST", "/v1/jobs", &[("idempotency-key", key)], Some(body))
    };
    let (first, second) = (submit("k", &body), submit("k", &body));
    assert_eq!((first.status, second.status), (202, 200));
    assert_eq!(first.json()["id"], second.json()["id"]);
    let other = json!({ "request": { "prompt": "b" } }).to_string();
    let clash = submit("k", &other);
    assert_eq!((clash.status, clash.code().as_str()), (409, "conflict"));
    assert_eq!(clash.json()["error"]["existing"], first.json()["id"]);
    let list =
        json!({ "jobs": [{ "request": { "prompt": "a" } }, { "request": { "prompt": "b" } }] })
            .to_string();
    let (first, second) = (submit("list", &list), submit("list", &list));
    assert_eq!((first.status, second.status), (202, 200));
    assert_eq!(
        first.json()["jobs"][1]["id"],
        second.json()["jobs"][1]["id"]
    );
}

#[test]
fn of_a_list_all_are_accepted_or_none() {
    let world = World::idle();
    let good = json!({ "request": { "prompt": "a" } });
    let bad = json!({ "request": { "prompt": "a", "width": 7 } });
    let answer = world.post("/v1/jobs", &json!({ "jobs": [good, bad] }));
    assert_eq!(
        (answer.status, answer.json()["error"]["field"].as_str()),
        (422, Some("jobs[1].width"))
    );
    assert_eq!(world.get("/v1/jobs").json()["jobs"], json!([]));
    let answer = world.post("/v1/jobs", &json!({ "jobs": [good, good, good] }));
    assert_eq!(answer.status, 202);
    assert_eq!(answer.json()["jobs"][2]["position"], 3);
}

#[test]
fn cancelling_works_once() {
    let world = stuck();
    let running = world.submit(&json!({}));
    world.until(&running, "running");
    let waiting = world.submit(&json!({}));
    let answer = world.delete(&format!("/v1/jobs/{waiting}"));
    assert_eq!(
        (answer.status, answer.json()["state"].as_str()),
        (200, Some("cancelled"))
    );
    let again = world.delete(&format!("/v1/jobs/{waiting}"));
    assert_eq!((again.status, again.code().as_str()), (409, "conflict"));
    let answer = world.delete(&format!("/v1/jobs/{running}"));
    assert_eq!(
        (answer.status, answer.json()["cancel_requested"].as_bool()),
        (202, Some(true))
    );
    world.until(&running, "cancelled");
    assert_eq!(world.delete(&format!("/v1/jobs/{running}")).status, 409);
}

#[test]
fn waiting_jobs_are_moved_paused_and_sent_again() {
    let world = stuck();
    let running = world.submit(&json!({}));
    world.until(&running, "running");
    let (first, second) = (
        world.submit(&json!({})),
        world.submit(&json!({ "owner": "me" })),
    );
    let path = |id: &str, verb: &str| format!("/v1/jobs/{id}/{verb}");
    assert_eq!(
        world
            .post(&path(&second, "priority"), &json!({ "front": true }))
            .json()["position"],
        1
    );
    assert_eq!(
        world
            .post(&path(&first, "priority"), &json!({ "priority": "urgent" }))
            .json()["position"],
        1
    );
    assert_eq!(
        world.post(&path(&first, "priority"), &json!({})).status,
        422
    );
    assert_eq!(
        world.post(&path(&first, "pause"), &json!({})).json()["state"],
        "paused"
    );
    assert_eq!(
        world.ask("POST", &path(&first, "resume"), &[], None).json()["state"],
        "queued"
    );
    assert_eq!(
        world.post(&path(&first, "requeue"), &json!({})).status,
        409,
        "it did not fail"
    );
    let mine = world.get("/v1/jobs?owner=me&state=queued,running").json();
    assert_eq!(
        (
            mine["jobs"].as_array().unwrap().len(),
            mine["jobs"][0]["id"].as_str()
        ),
        (1, Some(second.as_str()))
    );
    let page = world.get("/v1/jobs?limit=2").json();
    let next = world
        .get(&format!("/v1/jobs?limit=2&before={}", page["next"]))
        .json();
    assert_eq!(next["jobs"][0]["id"], json!(running));
    world
        .worker
        .as_ref()
        .unwrap()
        .knobs
        .fails
        .store(true, Ordering::SeqCst);
    let_go(&world);
    let failed = world.until(&second, "failed");
    assert_eq!(failed["error"], "it was told to fail");
    world
        .worker
        .as_ref()
        .unwrap()
        .knobs
        .fails
        .store(false, Ordering::SeqCst);
    assert_eq!(
        world.post(&path(&second, "requeue"), &json!({})).status,
        200
    );
    world.until(&second, "done");
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let policy = Policy {
        waiting_max: 2,
        ..Policy::default()
    };
    let world = World::with(Options::default(), policy, None);
    world.submit(&json!({}));
    world.submit(&json!({}));
    let answer = world.post("/v1/jobs", &json!({ "request": { "prompt": "a" } }));
    assert_eq!((answer.status, answer.code().as_str()), (429, "queue_full"));
    assert!(
        answer
            .header("retry-after")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >= 1
    );
    assert_eq!(
        (
            answer.json()["error"]["waiting"].as_u64(),
            answer.json()["error"]["limit"].as_u64()
        ),
        (Some(2), Some(2))
    );
}

#[test]
fn a_held_queue_begins_nothing() {
    let world = World::new();
    assert_eq!(
        world.post("/v1/queue/hold", &json!({})).json()["held"],
        true
    );
    let id = world.submit(&json!({}));
    assert_eq!(world.get("/v1/queue").json()["waiting"]["normal"], 1);
    let codes: Vec<String> = world.get("/gpu/explain").json()["explanations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["code"].as_str().unwrap().to_owned())
        .collect();
    assert!(codes.contains(&"queue_held".to_owned()), "{codes:?}");
    assert_eq!(
        world.ask("POST", "/v1/queue/release", &[], None).json()["held"],
        false
    );
    world.until(&id, "done");
}

#[test]
fn a_queued_job_hears_of_its_place() {
    let world = stuck();
    let running = world.submit(&json!({}));
    world.until(&running, "running");
    let (_, second) = (world.submit(&json!({})), world.submit(&json!({})));
    let mut events = world.events(&format!("/v1/jobs/{second}/events"), &[]);
    while events.until("position").data["position"] != 2 {}
    let_go(&world);
    events.until("done");
}

#[test]
fn pictures_as_openai_has_them() {
    let world = World::new();
    let ask = |body| world.post("/v1/images/generations", &body);
    let both = ask(
        json!({ "model": "dall-e-3", "prompt": "a", "n": 2, "size": "64x64", "user": "u", "style": "vivid" }),
    );
    assert_eq!(both.status, 200, "{both:?}");
    let data = both.json()["data"].as_array().unwrap().clone();
    assert_eq!(data.len(), 2);
    assert!(
        data[0]["b64_json"]
            .as_str()
            .unwrap()
            .starts_with("iVBORw0KGgo")
    );
    let url = data[0]["url"].as_str().unwrap();
    let path = url
        .strip_prefix(&format!("http://{}", world.address))
        .unwrap();
    assert_eq!(world.get(path).body, super::pretend::PNG);
    let one = ask(json!({ "prompt": "a", "response_format": "url", "seed": 3, "steps": 2, "negative_prompt": "b" })).json();
    assert!(one["data"][0]["url"].is_string() && one["data"][0]["b64_json"].is_null());
    for (body, status, param, code) in [
        (
            json!({ "prompt": "a", "size": "7x" }),
            400,
            json!("size"),
            "invalid_request",
        ),
        (
            json!({ "prompt": "a", "size": "7x7" }),
            400,
            json!("width"),
            "invalid_request",
        ),
        (
            json!({ "prompt": "a", "n": 0 }),
            400,
            json!("n"),
            "invalid_request",
        ),
        (
            json!({ "prompt": 3 }),
            400,
            json!("prompt"),
            "invalid_request",
        ),
        (json!({}), 400, json!("prompt"), "invalid_request"),
        (
            json!({ "prompt": "a", "stepps": 3 }),
            400,
            json!("stepps"),
            "invalid_request",
        ),
        (
            json!({ "prompt": "a", "model": "none" }),
            404,
            json!(null),
            "model_not_found",
        ),
    ] {
        let answer = ask(body.clone());
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["param"], &error["code"]),
            (status, &param, &json!(code)),
            "{body}"
        );
        assert!(error["message"].is_string() && error["type"].is_string());
    }
    world
        .worker
        .as_ref()
        .unwrap()
        .knobs
        .fails
        .store(true, Ordering::SeqCst);
    let failed = ask(json!({ "prompt": "a" }));
    assert_eq!(
        (failed.status, failed.header("x-should-retry")),
        (500, Some("false"))
    );
}

#[test]
fn who_goes_away_wants_no_picture() {
    let world = stuck();
    let body = json!({ "prompt": "a" }).to_string();
    let mut stream = world.connect();
    stream
        .write_all(
            world
                .request("POST", "/v1/images/generations", &[], Some(&body))
                .as_bytes(),
        )
        .unwrap();
    let mut seen = 0;
    let id = loop {
        let jobs = world.get("/v1/jobs?state=running").json();
        if let Some(id) = jobs["jobs"][0]["id"].as_str() {
            break id.to_owned();
        }
        seen = world
            .store
            .wait_change(seen, super::server::PATIENCE)
            .unwrap();
    };
    drop(stream);
    world.until(&id, "cancelled");
}

#[test]
fn a_server_that_ends_cancels_nothing() {
    let mut world = stuck();
    let body = json!({ "prompt": "a" }).to_string();
    let mut waits = world.connect();
    waits
        .write_all(
            world
                .request("POST", "/v1/images/generations", &[], Some(&body))
                .as_bytes(),
        )
        .unwrap();
    let mut events = world.events("/v1/events", &[("last-event-id", "0")]);
    let id = events.until("claimed").data["job"]
        .as_str()
        .unwrap()
        .to_owned();
    world.end();
    assert!(
        events.rest().iter().all(|event| event.name != "cancelled"),
        "the stream ends"
    );
    let answer = super::server::read_answer(&mut std::io::BufReader::new(waits));
    assert_eq!(answer.status, 503, "{answer:?}");
    let job = world.store.job(id.parse().unwrap()).unwrap();
    assert!(!job.cancel_requested && job.state.is_leased());
}
