//! What somebody is promised who wants to be told.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lowtide_core::job::RetryPolicy;
use lowtide_jobs::Policy;
use lowtide_server::{NoticeSink, Options, Reach, WebhookHosts, WebhookOptions, WebhookSecret};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::pretend::Knobs;
use super::receiver::{Manner, Receiver, Told};
use super::server::{PATIENCE, World};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Calls anybody on this machine, and tries again soon.
fn options() -> Options {
    Options {
        webhooks: WebhookOptions {
            secret: Some(SECRET.parse::<WebhookSecret>().unwrap()),
            hosts: WebhookHosts {
                reach: Reach::Public,
                listed: ["127.0.0.1", "127.83.7.9"].map(str::to_owned).to_vec(),
            },
            timeout: Duration::from_millis(500),
            retry: RetryPolicy {
                failures_max: 50,
                losses_max: 50,
                backoff_first: Duration::from_millis(20),
                backoff_max: Duration::from_millis(100),
            },
            base: Some("https://studio.example/".to_owned()),
            notices: None,
        },
        ..Options::default()
    }
}

fn world() -> World {
    World::with(options(), Policy::default(), Some(Knobs::default()))
}

fn only_the_end(receiver: &Receiver) -> Value {
    json!({ "webhook": receiver.url(), "webhook_events_filter": ["completed"] })
}

/// Waits until telling the job's end is in this state.
fn until(world: &World, id: &str, state: &str) -> Value {
    let began = Instant::now();
    let mut seen = 0;
    loop {
        let job = world.get(&format!("/v1/jobs/{id}")).json();
        if job["webhook"]["delivery"]["state"] == state {
            return job;
        }
        assert!(began.elapsed() < PATIENCE, "never {state}: {job}");
        let wait = Duration::from_millis(20);
        seen = world.store.wait_change(seen, wait).unwrap();
    }
}

fn base64(text: &str) -> Vec<u8> {
    let signs = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<usize> = text
        .trim_end_matches('=')
        .chars()
        .map(|sign| signs.find(sign).unwrap())
        .collect();
    let all: Vec<bool> = bits
        .iter()
        .flat_map(|six| (0..6).rev().map(move |bit| six >> bit & 1 == 1))
        .collect();
    let bytes = all.chunks_exact(8);
    bytes
        .map(|byte| byte.iter().fold(0, |sum, &bit| sum << 1 | u8::from(bit)))
        .collect()
}

/// RFC 2104, by hand: what the server uses is not asked.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let pad = |with: u8| {
        let mut block = [with; 64];
        for (byte, key) in block.iter_mut().zip(key) {
            *byte ^= key;
        }
        block
    };
    let inner = Sha256::digest([&pad(0x36)[..], message].concat());
    Sha256::digest([&pad(0x5c)[..], &inner].concat()).to_vec()
}

/// Checks a message as a receiver would; its id.
fn verified(told: &Told) -> String {
    let header = |name| {
        told.header(name)
            .unwrap_or_else(|| panic!("{name}: {told:?}"))
    };
    let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
    let age = super::pretend::now().0 / 1000 - timestamp.parse::<u64>().unwrap();
    assert!(age < 300, "{age}");
    let signed = format!("{id}.{timestamp}.{}", told.body);
    let key = base64(SECRET.strip_prefix("whsec_").unwrap());
    let signature = header("webhook-signature").strip_prefix("v1,").unwrap();
    assert_eq!(base64(signature), hmac(&key, signed.as_bytes()), "{told:?}");
    id.to_owned()
}

/// Nothing that a client can ask for has the secret, or what may be one in the address.
fn hides_secrets(world: &World, id: &str) {
    for path in [
        format!("/v1/jobs/{id}"),
        "/v1/jobs".to_owned(),
        "/metrics".to_owned(),
        "/gpu/explain".to_owned(),
        "/openapi.json".to_owned(),
    ] {
        let text = world.get(&path).text();
        assert!(!text.contains("hidden"), "{path}: {text}");
        assert!(!text.contains(&SECRET[6..]), "{path}");
    }
}

#[test]
fn a_life_is_told_signed_and_as_cogs_clients_read_it() {
    let knobs = Knobs::default();
    knobs.stuck.store(true, Ordering::SeqCst);
    let world = World::with(options(), Policy::default(), Some(knobs));
    let receiver = Receiver::new([]);
    let id = world.submit(&json!({ "webhook": receiver.url() }));
    let start = receiver.next();
    assert!(
        start
            .head
            .starts_with("POST /hook/hidden-path?token=hidden-token ")
    );
    assert_eq!(start.header("content-type"), Some("application/json"));
    assert!(start.header("user-agent").unwrap().starts_with("lowtide/"));
    let first = verified(&start);
    let body = start.json();
    assert_eq!(
        (&body["event"], &body["status"]),
        (&json!("start"), &json!("starting"))
    );
    assert_eq!(
        (&body["output"], &body["completed_at"]),
        (&Value::Null, &Value::Null)
    );
    let knobs = &world.worker.as_ref().unwrap().knobs;
    knobs.stuck.store(false, Ordering::SeqCst);
    world.store.nudge();
    let mut ids = vec![first];
    let end = loop {
        let told = receiver.next();
        ids.push(verified(&told));
        let body = told.json();
        if body["event"] == "completed" {
            break body;
        }
        assert_eq!(
            (&body["event"], &body["status"]),
            (&json!("progress"), &json!("processing"))
        );
        assert!(
            body["logs"].as_str().unwrap().starts_with("denoise: "),
            "{body}"
        );
    };
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all, "each message has a name of its own");
    let job = until(&world, &id, "told");
    for (name, value) in job.as_object().unwrap() {
        if !["webhook", "preview_url"].contains(&name.as_str()) {
            assert_eq!(&end[name], value, "{name} is as the job is shown");
        }
    }
    assert_eq!(
        (&end["id"], &end["status"]),
        (&json!(id), &json!("succeeded"))
    );
    assert_eq!(
        (&end["input"], &end["error"]),
        (&job["request"], &Value::Null)
    );
    let file = format!(
        "https://studio.example/v1/artifacts/{}",
        job["artifacts"][0]["id"].as_str().unwrap()
    );
    assert_eq!(end["output"], json!([file]));
    assert!(
        end["metrics"]["predict_time"].as_f64().unwrap() > 0.0,
        "{end}"
    );
    for time in ["created_at", "started_at", "completed_at"] {
        let text = end[time].as_str().unwrap();
        assert!(
            text.starts_with("20") && text.ends_with('Z') && text.len() == 24,
            "{text}"
        );
    }
    assert_eq!(
        job["webhook"]["events"],
        json!(["start", "progress", "completed"])
    );
    assert_eq!(
        job["webhook"]["url"],
        format!("http://{}/…", receiver.address)
    );
    let metrics = world.get("/metrics").text();
    let line = "lowtide_webhook_calls_total{event=\"completed\",result=\"told\"} 1\n";
    assert!(metrics.contains(line), "{metrics}");
    hides_secrets(&world, &id);
}

#[test]
fn what_failed_is_sent_again_as_the_same_message() {
    let world = world();
    let receiver = Receiver::new([Manner::Status(500), Manner::Status(500)]);
    let id = world.submit(&only_the_end(&receiver));
    let told: Vec<Told> = (0..3).map(|_| receiver.next()).collect();
    let ids: Vec<String> = told.iter().map(verified).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let job = until(&world, &id, "told");
    assert_eq!(job["webhook"]["delivery"]["tries"], 3);
    assert!(
        receiver.is_quiet_for(Duration::from_millis(300)),
        "told is told"
    );
    let metrics = world.get("/metrics").text();
    let line = "lowtide_webhook_calls_total{event=\"completed\",result=\"failed\"} 2\n";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn who_hangs_is_tried_again_and_keeps_nobody_waiting() {
    let world = world();
    let hanging = Receiver::new([Manner::Hang, Manner::Babble, Manner::Hang]);
    let other = Receiver::new([]);
    let first = world.submit(&only_the_end(&hanging));
    verified(&hanging.next());
    let second = world.submit(&only_the_end(&other));
    assert_eq!(other.next().json()["id"], second);
    for _ in 0..3 {
        verified(&hanging.next());
    }
    let job = until(&world, &first, "told");
    assert_eq!(job["webhook"]["delivery"]["tries"], 4);
    until(&world, &second, "told");
}

#[test]
fn an_end_waits_for_a_receiver_that_is_gone_even_through_a_restart() {
    let mut world = world();
    // Where an address of its own can be had, no other test takes its port while it is gone.
    let own = if cfg!(target_os = "linux") {
        [127, 83, 7, 9]
    } else {
        [127, 0, 0, 1]
    };
    let gone = Receiver::at((own, 0).into(), []);
    let (address, more) = (gone.address, only_the_end(&gone));
    drop(gone);
    let id = world.submit(&more);
    let job = until(&world, &id, "waiting");
    assert_eq!(job["state"], "done");
    let began = Instant::now();
    let problem = loop {
        let job = world.get(&format!("/v1/jobs/{id}")).json();
        let problem = job["webhook"]["delivery"]["problem"].clone();
        if !problem.is_null() {
            break problem;
        }
        assert!(began.elapsed() < PATIENCE, "{job}");
    };
    assert_eq!(problem, "nobody listens there");
    world.end();
    let back = Receiver::at(address, []);
    assert!(
        back.is_quiet_for(Duration::from_millis(200)),
        "nobody serves"
    );
    world.start(options());
    let told = back.next();
    verified(&told);
    assert_eq!(told.json()["id"], id);
    until(&world, &id, "told");
    assert!(back.is_quiet_for(Duration::from_millis(300)));
}

#[test]
fn what_is_given_up_is_told_to_who_watches_and_to_who_asks() {
    let said = Arc::new(Mutex::new(Vec::new()));
    let mut options = options();
    options.webhooks.retry.failures_max = 2;
    options.webhooks.notices = Some(NoticeSink::new({
        let said = Arc::clone(&said);
        move |line| said.lock().unwrap().push(line.to_owned())
    }));
    let world = World::with(options, Policy::default(), Some(Knobs::default()));
    let receiver = Receiver::new(vec![Manner::Status(503); 9]);
    let id = world.submit(&only_the_end(&receiver));
    let job = until(&world, &id, "given_up");
    let delivery = &job["webhook"]["delivery"];
    assert_eq!(
        (&delivery["tries"], &delivery["problem"]),
        (&json!(2), &json!("it answered 503"))
    );
    assert_eq!(delivery["next_ms"], Value::Null);
    let gone = Receiver::new([Manner::Status(410)]);
    let at_once = world.submit(&only_the_end(&gone));
    assert_eq!(
        until(&world, &at_once, "given_up")["webhook"]["delivery"]["tries"],
        1
    );
    let began = Instant::now();
    while said.lock().unwrap().len() < 2 {
        assert!(began.elapsed() < PATIENCE, "nothing was said");
        std::thread::yield_now();
    }
    let said = said.lock().unwrap().join("\n");
    assert!(
        said.contains(&id) && said.contains("it answered 503"),
        "{said}"
    );
    assert!(
        !said.contains("hidden") && !said.contains(&SECRET[6..]),
        "{said}"
    );
    let metrics = world.get("/metrics").text();
    assert!(
        metrics.contains("lowtide_webhooks_given_up_total 2\n"),
        "{metrics}"
    );
    hides_secrets(&world, &id);
}

#[test]
fn nobody_is_called_who_may_not_be() {
    let mut strict = options();
    strict.webhooks.hosts.listed.clear();
    let world = World::with(strict, Policy::default(), Some(Knobs::default()));
    let inside = Receiver::new([]);
    let port = inside.address.port();
    for host in [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "10.1.2.3",
        "169.254.169.254",
        "[fd00::1]",
    ] {
        let body =
            json!({ "request": { "prompt": "a" }, "webhook": format!("http://{host}:{port}/") });
        let answer = world.post("/v1/jobs", &body);
        assert_eq!(
            (answer.status, answer.json()["error"]["field"].as_str()),
            (422, Some("webhook")),
            "{host}"
        );
    }
    // A name says nothing; this one stands for this machine only once it is looked up.
    let id = world.submit(&json!({ "webhook": format!("http://127.1:{port}/") }));
    let job = until(&world, &id, "given_up");
    let problem = job["webhook"]["delivery"]["problem"].as_str().unwrap();
    assert!(
        problem.contains("127.0.0.1 is not a public address"),
        "{problem}"
    );
    assert!(inside.is_quiet_for(Duration::from_millis(100)));
    drop(world);
    // Nor is anybody led somewhere else.
    let world = self::world();
    let leading = Receiver::new([Manner::Redirect(inside.url())]);
    let id = world.submit(&only_the_end(&leading));
    verified(&leading.next());
    verified(&leading.next());
    until(&world, &id, "told");
    assert!(inside.is_quiet_for(Duration::from_millis(100)));
    let mut closed = options();
    closed.webhooks.hosts.reach = Reach::Nobody;
    let world = World::with(closed, Policy::default(), None);
    let answer = world.post(
        "/v1/jobs",
        &json!({ "request": { "prompt": "a" }, "webhook": leading.url() }),
    );
    assert_eq!(answer.status, 422);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let world = World::idle();
    let url = "https://example.org/hook";
    for (more, field) in [
        (json!({ "webhook": "example.org" }), "webhook"),
        (json!({ "webhook": 3 }), "webhook"),
        (
            json!({ "webhook": "https://me:secret@example.org/" }),
            "webhook",
        ),
        (
            json!({ "webhook": format!("https://example.org/{}", "a".repeat(2048)) }),
            "webhook",
        ),
        (
            json!({ "webhook_events_filter": ["start"] }),
            "webhook_events_filter",
        ),
        (
            json!({ "webhook": url, "webhook_events_filter": [] }),
            "webhook_events_filter",
        ),
        (
            json!({ "webhook": url, "webhook_events_filter": "start" }),
            "webhook_events_filter",
        ),
        (
            json!({ "webhook": url, "webhook_events_filter": ["end"] }),
            "webhook_events_filter",
        ),
    ] {
        let mut body = json!({ "request": { "prompt": "a" } });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let answer = world.post("/v1/jobs", &body);
        let found = answer.json()["error"]["field"].as_str().map(str::to_owned);
        assert_eq!(
            (answer.status, found.as_deref()),
            (422, Some(field)),
            "{body}"
        );
        let list = world.post("/v1/jobs", &json!({ "jobs": [body] }));
        assert_eq!(list.json()["error"]["field"], format!("jobs[0].{field}"));
    }
    assert!(
        world.get("/v1/jobs").json()["jobs"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn jobs_of_a_list_tell_each_and_however_they_end() {
    let world = world();
    let receiver = Receiver::new([]);
    let knobs = &world.worker.as_ref().unwrap().knobs;
    knobs.fails.store(true, Ordering::SeqCst);
    let mut one = only_the_end(&receiver);
    one["request"] = json!({ "prompt": "a" });
    one["idempotency_key"] = json!("once");
    let mut other = json!({ "webhook": receiver.url(), "webhook_events_filter": ["output"] });
    other["request"] = json!({ "prompt": "b" });
    let list = json!({ "jobs": [one, other, { "request": { "prompt": "c" } }] });
    let answer = world.post("/v1/jobs", &list);
    assert_eq!(answer.status, 202, "{answer:?}");
    let jobs = answer.json();
    let mut ids: Vec<&str> = (0..2)
        .map(|at| jobs["jobs"][at]["id"].as_str().unwrap())
        .collect();
    let told: Vec<Value> = (0..2).map(|_| receiver.next().json()).collect();
    let mut named: Vec<&str> = told
        .iter()
        .map(|body| body["id"].as_str().unwrap())
        .collect();
    named.sort_unstable();
    ids.sort_unstable();
    assert_eq!(named, ids);
    for body in &told {
        assert_eq!(
            (&body["status"], &body["output"]),
            (&json!("failed"), &Value::Null)
        );
        assert_eq!(body["error"], "it was told to fail");
    }
    // The same again is the same job, which was told already; with another address it is another one.
    let again = world.post("/v1/jobs", &one);
    assert_eq!(again.status, 200, "{again:?}");
    one["webhook"] = json!("https://example.org/");
    assert_eq!(world.post("/v1/jobs", &one).status, 409);
    assert!(receiver.is_quiet_for(Duration::from_millis(300)));
    knobs.fails.store(false, Ordering::SeqCst);
    knobs.stuck.store(true, Ordering::SeqCst);
    let id = world.submit(&only_the_end(&receiver));
    world.until(&id, "running");
    assert_eq!(world.delete(&format!("/v1/jobs/{id}")).status, 202);
    let body = receiver.next().json();
    assert_eq!(
        (&body["id"], &body["status"]),
        (&json!(id), &json!("canceled"))
    );
}
