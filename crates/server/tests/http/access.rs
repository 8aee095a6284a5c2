//! Keys: who may ask, for how much, and that nobody sees what is another's.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lowtide_core::job::{Moment, Priority};
use lowtide_jobs::{AccessKey, Limits, Policy, Token};
use lowtide_server::{AccessMode, AuditSink, Audited, Options};
use serde_json::{Value, json};

use super::pretend::{self, Knobs};
use super::server::{Answer, Event, PATIENCE, World};

/// A server with keys, and what was told of those who used it.
struct Guarded {
    world: World,
    told: Arc<Mutex<Vec<Audited>>>,
}

fn options(told: &Arc<Mutex<Vec<Audited>>>) -> Options {
    let lines = Arc::clone(told);
    Options {
        access: AccessMode::Auto,
        audit: Some(AuditSink::new(move |line| {
            lines.lock().unwrap().push(line.clone());
        })),
        ..Options::default()
    }
}

impl Guarded {
    fn new(worker: Option<Knobs>) -> Guarded {
        let told = Arc::default();
        let world = World::with(options(&told), Policy::default(), worker);
        // From its first look at the keys on it tells of each that is new.
        assert_eq!(world.get("/v1/jobs").status, 200);
        Guarded { world, told }
    }

    fn key(&self, name: &str, change: impl FnOnce(&mut AccessKey)) -> (AccessKey, Token) {
        let (mut key, token) = AccessKey::new(name, "test", pretend::now());
        change(&mut key);
        self.world.store.keep_key(&key).unwrap();
        if key.check(pretend::now()).is_ok() {
            // One request of its rate.
            until("the key", || {
                let usage = self.get(&token, "/v1/usage");
                usage.status == 200 && usage.json()["me"]["key"] == key.id.as_str()
            });
        }
        (key, token)
    }

    fn user(&self, name: &str) -> Token {
        self.key(name, |_| {}).1
    }

    fn admin(&self) -> Token {
        self.key("root", |key| key.admin = true).1
    }

    fn ask(&self, token: &Token, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let bearer = format!("Bearer {}", token.reveal());
        let body = body.map(Value::to_string);
        let headers = [("authorization", bearer.as_str())];
        self.world.ask(method, path, &headers, body.as_deref())
    }

    fn get(&self, token: &Token, path: &str) -> Answer {
        self.ask(token, "GET", path, None)
    }

    fn submit(&self, token: &Token) -> String {
        let body = json!({ "request": { "prompt": "a secret wish" } });
        let answer = self.ask(token, "POST", "/v1/jobs", Some(&body));
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    fn lines(&self) -> Vec<Audited> {
        self.told.lock().unwrap().clone()
    }
}

/// Waits for something that another thread does.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what} never came");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn without_keys_everybody_may_and_with_the_first_key_nobody_without() {
    let guarded = Guarded::new(None);
    assert_eq!(guarded.world.get("/v1/jobs").status, 200);
    let token = guarded.user("me");
    let refused = guarded.world.get("/v1/jobs");
    assert_eq!(refused.code(), "unauthorized");
    assert_eq!(
        refused.header("www-authenticate"),
        Some("Bearer realm=\"lowtide\"")
    );
    for path in [
        "/",
        "/panel/api.js",
        "/health",
        "/health/live",
        "/openapi.json",
    ] {
        let status = guarded.world.get(path).status;
        assert_ne!(status, 401, "{path}");
    }
    for path in [
        "/v1/models",
        "/metrics",
        "/gpu/stats",
        "/sdapi/v1/options",
        "/queue",
        "/nowhere",
    ] {
        assert_eq!(guarded.world.get(path).status, 401, "{path}");
    }
    assert_eq!(guarded.get(&token, "/v1/jobs").status, 200);
}

#[test]
fn keys_may_be_needed_from_the_beginning_or_never() {
    let with = |access| {
        let options = Options {
            access,
            ..Options::default()
        };
        World::with(options, Policy::default(), None)
    };
    assert_eq!(with(AccessMode::Keys).get("/v1/jobs").status, 401);
    let open = with(AccessMode::Open);
    let (key, _) = AccessKey::new("me", "test", pretend::now());
    open.store.keep_key(&key).unwrap();
    assert_eq!(open.get("/v1/jobs").status, 200);
}

#[test]
fn a_key_is_a_bearer_or_a_password_and_opens_until_it_is_revoked() {
    let guarded = Guarded::new(None);
    let (mut key, token) = guarded.key("me", |_| {});
    let ask = |authorization: &str| {
        let headers = [("authorization", authorization)];
        guarded.world.ask("GET", "/v1/jobs", &headers, None).status
    };
    until("the key", || {
        ask(&format!("Bearer {}", token.reveal())) == 200
    });
    // As `set_auth` of the web UI's clients and `curl -u` send it.
    let encoded = base64(format!("anybody:{}", token.reveal()).as_bytes());
    assert_eq!(ask(&format!("Basic {encoded}")), 200);
    let wrong = format!("{}f", &token.reveal()[..token.reveal().len() - 1]);
    let swapped = token.reveal().replace('a', "b").replace('0', "1");
    for bad in [
        "Bearer x",
        "Bearer ",
        "Basic x",
        "Token x",
        &format!("Bearer {swapped}"),
    ] {
        assert_eq!(ask(bad), 401, "{bad}");
    }
    if wrong != token.reveal() {
        assert_eq!(ask(&format!("Bearer {wrong}")), 401);
    }
    assert_eq!(
        ask(&format!("Bearer {}", key.sum)),
        401,
        "the sum opens nothing"
    );
    key.revoked = Some(pretend::now());
    key.revoked_by = Some("test".to_owned());
    guarded.world.store.keep_key(&key).unwrap();
    until("the end of the key", || {
        ask(&format!("Bearer {}", token.reveal())) == 401
    });
    let (_, ended) = guarded.key("me", |key| key.ends = Some(Moment(1)));
    assert_eq!(ask(&format!("Bearer {}", ended.reveal())), 401);
    let told: Vec<String> = guarded.lines().iter().map(ToString::to_string).collect();
    for what in [
        "test: key created of me",
        "test: key revoked of me",
        "nobody known from 127.0.0.1",
    ] {
        assert!(
            told.iter().any(|line| line.starts_with(what)),
            "{what}: {told:?}"
        );
    }
}

#[test]
fn what_is_one_keys_is_not_there_for_another() {
    let guarded = Guarded::new(Some(Knobs::default()));
    let (mine, yours, admin) = (guarded.user("me"), guarded.user("you"), guarded.admin());
    let job = guarded.submit(&mine);
    until("the picture", || {
        guarded.get(&mine, &format!("/v1/jobs/{job}")).json()["state"] == "done"
    });
    let seen = guarded.get(&mine, &format!("/v1/jobs/{job}")).json();
    assert_eq!(seen["owner"], "me");
    let file = seen["artifacts"][0]["url"].as_str().unwrap().to_owned();
    let artifact = format!("artifact:{}", seen["artifacts"][0]["id"].as_str().unwrap());
    for path in ["", "/events", "/preview"] {
        let there = guarded.get(&yours, &format!("/v1/jobs/{job}{path}"));
        let nowhere = guarded.get(
            &yours,
            &format!("/v1/jobs/00000000000000000000000000{path}"),
        );
        assert_eq!(
            (there.status, nowhere.status),
            (404, 404),
            "{path}: {there:?}"
        );
        assert_eq!(there.code(), nowhere.code());
    }
    for (method, path) in [
        ("DELETE", ""),
        ("POST", "/pause"),
        ("POST", "/requeue"),
        ("POST", "/priority"),
    ] {
        let body = (method == "POST").then(|| json!({ "priority": "batch" }));
        let answer = guarded.ask(
            &yours,
            method,
            &format!("/v1/jobs/{job}{path}"),
            body.as_ref(),
        );
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
    }
    assert_eq!(guarded.get(&yours, &file).status, 404);
    assert_eq!(guarded.get(&mine, &file).status, 200);
    assert_eq!(guarded.get(&admin, &file).status, 200);
    let begun = json!({ "request": { "prompt": "x", "image": artifact } });
    assert_eq!(
        guarded.ask(&yours, "POST", "/v1/jobs", Some(&begun)).status,
        422
    );
    assert_eq!(
        guarded.ask(&mine, "POST", "/v1/jobs", Some(&begun)).status,
        202
    );
    let listed = |token: &Token, query: &str| {
        let jobs = guarded.get(token, &format!("/v1/jobs{query}")).json();
        jobs["jobs"].as_array().unwrap().len()
    };
    assert_eq!(
        (listed(&mine, ""), listed(&yours, ""), listed(&admin, "")),
        (2, 0, 2)
    );
    assert_eq!(
        (listed(&yours, "?owner=me"), listed(&mine, "?owner=you")),
        (0, 0)
    );
    let foreign = json!({ "request": { "prompt": "x" }, "owner": "you" });
    assert_eq!(
        guarded
            .ask(&mine, "POST", "/v1/jobs", Some(&foreign))
            .status,
        403
    );
    assert_eq!(
        guarded
            .ask(&admin, "POST", "/v1/jobs", Some(&foreign))
            .status,
        202
    );
    assert_eq!(listed(&yours, ""), 1);
}

#[test]
fn events_are_those_of_ones_own_jobs() {
    let guarded = Guarded::new(Some(Knobs::default()));
    let (mine, yours) = (guarded.user("me"), guarded.user("you"));
    let bearer = format!("Bearer {}", yours.reveal());
    until("the key", || guarded.get(&yours, "/v1/jobs").status == 200);
    let headers = [("authorization", bearer.as_str())];
    let mut stream = guarded.world.events("/v1/events", &headers);
    let theirs = guarded.submit(&mine);
    let own = guarded.submit(&yours);
    let mut seen: Vec<Event> = Vec::new();
    while seen.last().is_none_or(|event| event.name != "done") {
        seen.push(stream.next().unwrap());
    }
    assert!(
        seen.iter().all(|event| event.data["job"] == own.as_str()),
        "{theirs}: {seen:?}"
    );
}

#[test]
fn a_stream_ends_with_its_key() {
    let guarded = Guarded::new(None);
    let (mut key, token) = guarded.key("me", |_| {});
    let admin = guarded.admin();
    let bearer = format!("Bearer {}", token.reveal());
    let headers = [("authorization", bearer.as_str())];
    let mut stream = guarded.world.events("/v1/events", &headers);
    guarded.submit(&token);
    assert_eq!(stream.until("submitted").name, "submitted");
    key.revoked = Some(pretend::now());
    guarded.world.store.keep_key(&key).unwrap();
    until("the end of the key", || {
        guarded.get(&token, "/v1/jobs").status == 401
    });
    let foreign = json!({ "request": { "prompt": "x" }, "owner": "me" });
    let sent = guarded.ask(&admin, "POST", "/v1/jobs", Some(&foreign));
    assert_eq!(sent.status, 202, "{sent:?}");
    let late = sent.json()["id"].clone();
    let rest = stream.rest();
    assert!(
        rest.iter().all(|event| event.data["job"] != late),
        "{rest:?}"
    );
}

#[test]
fn the_dialects_keep_their_clients_apart() {
    let guarded = Guarded::new(None);
    let (mine, yours) = (guarded.user("me"), guarded.user("you"));
    until("the keys", || guarded.get(&yours, "/queue").status == 200);
    let graph = super::comfy::graph();
    let sent = guarded.ask(&mine, "POST", "/prompt", Some(&json!({ "prompt": graph })));
    assert_eq!(sent.status, 200, "{sent:?}");
    let pending = |token: &Token| {
        let queue = guarded.get(token, "/queue").json();
        queue["queue_pending"].as_array().unwrap().len()
    };
    assert_eq!((pending(&mine), pending(&yours)), (1, 0));
    let clear = guarded.ask(&yours, "POST", "/queue", Some(&json!({ "clear": true })));
    assert_eq!((clear.status, pending(&mine)), (200, 1));
    let format = json!({ "samples_format": "webp" });
    assert_eq!(
        guarded
            .ask(&mine, "POST", "/sdapi/v1/options", Some(&format))
            .status,
        200
    );
    let chosen =
        |token: &Token| guarded.get(token, "/sdapi/v1/options").json()["samples_format"].clone();
    assert_eq!(
        (chosen(&mine), chosen(&yours)),
        (json!("webp"), json!("png"))
    );
    for path in ["/free", "/api/free", "/sdapi/v1/unload-checkpoint"] {
        let answer = guarded.ask(&mine, "POST", path, Some(&json!({})));
        assert_eq!(answer.status, 403, "{path}: {answer:?}");
    }
}

#[test]
fn what_concerns_everybody_needs_an_admin() {
    let guarded = Guarded::new(Some(Knobs::default()));
    let (mine, admin) = (guarded.user("me"), guarded.admin());
    until("the keys", || guarded.get(&mine, "/v1/jobs").status == 200);
    for (method, path) in [
        ("POST", "/v1/models/release"),
        ("POST", "/v1/models/demo/load"),
        ("POST", "/v1/queue/hold"),
        ("POST", "/v1/workers/w/drain"),
        ("GET", "/metrics"),
    ] {
        let body = (method == "POST").then(|| json!({}));
        let refused = guarded.ask(&mine, method, path, body.as_ref());
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (403, "forbidden"),
            "{path}"
        );
    }
    let held = guarded.ask(&admin, "POST", "/v1/queue/hold", Some(&json!({})));
    assert_eq!(held.status, 200);
    let waits = guarded.submit(&mine);
    let front = guarded.ask(
        &mine,
        "POST",
        &format!("/v1/jobs/{waits}/priority"),
        Some(&json!({ "front": true })),
    );
    assert_eq!(
        front.status, 403,
        "before all others is before others' jobs"
    );
    let told = guarded.lines();
    let hold = told
        .iter()
        .find(|line| line.what == "POST /v1/queue/hold" && line.status == Some(200));
    assert_eq!(
        hold.and_then(|line| line.who.clone()).as_deref(),
        Some("root")
    );
    let made = told
        .iter()
        .find(|line| line.what == "POST /v1/jobs")
        .unwrap();
    assert_eq!((made.who.as_deref(), made.status), (Some("me"), Some(202)));
    assert_eq!(
        made.jobs
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        [waits]
    );
    let release = told
        .iter()
        .find(|line| line.what == "POST /v1/models/{name}/load")
        .unwrap();
    assert_eq!(
        (release.subject.as_deref(), release.status),
        (Some("demo"), Some(403))
    );
}

#[test]
fn limits_are_kept_and_told() {
    let guarded = Guarded::new(None);
    let (_, token) = guarded.key("me", |key| {
        key.limits = Limits {
            per_minute: Some(9),
            waiting: Some(2),
            running: None,
            priority: Some(Priority::Normal),
        };
    });
    let submit = |priority: &str| {
        let body = json!({ "request": { "prompt": "x" }, "priority": priority });
        guarded.ask(&token, "POST", "/v1/jobs", Some(&body))
    };
    until("the key", || guarded.world.get("/v1/jobs").status == 401);
    let first = submit("normal");
    assert_eq!(
        (first.status, first.header("x-ratelimit-limit")),
        (202, Some("9"))
    );
    assert_eq!(first.header("x-ratelimit-remaining"), Some("7"));
    assert_eq!(submit("urgent").code(), "forbidden");
    assert_eq!(submit("batch").status, 202);
    let full = submit("normal");
    assert_eq!((full.status, full.code().as_str()), (429, "quota_reached"));
    assert!(full.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(full.json()["error"]["waiting"], 2);
    for _ in 0..4 {
        guarded.get(&token, "/v1/models");
    }
    let often = guarded.get(&token, "/v1/models");
    assert_eq!((often.status, often.code().as_str()), (429, "rate_limited"));
    assert_eq!(often.header("x-ratelimit-remaining"), Some("0"));
    let again: u64 = often.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=7).contains(&again), "a request in 6.7 s: {again}");
    let other = guarded.user("you");
    assert_eq!(
        guarded.get(&other, "/v1/models").status,
        200,
        "another key's rate is its own"
    );
}

#[test]
fn usage_is_told_by_name_and_secrets_are_told_nowhere() {
    let guarded = Guarded::new(Some(Knobs::default()));
    let (key, mine) = guarded.key("me", |_| {});
    let (yours, admin) = (guarded.user("you"), guarded.admin());
    let job = guarded.submit(&mine);
    until("the picture", || {
        guarded.get(&mine, &format!("/v1/jobs/{job}")).json()["state"] == "done"
    });
    let usage = |token: &Token| guarded.get(token, "/v1/usage").json();
    let own = usage(&mine);
    assert_eq!(own["me"]["name"], "me");
    assert_eq!(own["names"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&own["names"][0]["done"], &own["names"][0]["files"]),
        (&json!(1), &json!(1))
    );
    assert!(own["names"][0]["work_s"].as_f64().unwrap() > 0.0, "{own}");
    assert_eq!(usage(&yours)["names"][0]["submitted"], 0);
    assert_eq!(usage(&admin)["names"].as_array().unwrap().len(), 3);
    let metrics = guarded.get(&admin, "/metrics").text();
    assert!(
        metrics.contains("lowtide_key_jobs_done_total{key=\"me\"} 1"),
        "{metrics}"
    );
    let wrong = format!("{}0", mine.reveal());
    let headers = [("authorization", wrong.as_str())];
    let refused = guarded.world.ask("GET", "/v1/jobs", &headers, None);
    let bearer = format!("Bearer {wrong}");
    let unknown = guarded.world.ask(
        "POST",
        "/v1/jobs",
        &[("authorization", &bearer)],
        Some("{}"),
    );
    let broken = guarded.ask(&mine, "POST", "/v1/jobs", Some(&json!({ "request": 3 })));
    let told: Vec<String> = guarded
        .lines()
        .iter()
        .map(|line| format!("{line:?} {line}"))
        .collect();
    let shown = [
        metrics,
        told.join("\n"),
        format!("{}{}{}", refused.text(), unknown.text(), broken.text()),
        format!("{own}{}", usage(&admin)),
        guarded.get(&admin, "/v1/jobs").text(),
        guarded.get(&mine, &format!("/v1/jobs/{job}")).text(),
    ];
    assert_eq!(
        (refused.status, unknown.status, broken.status),
        (401, 401, 422)
    );
    let secret = mine.reveal().rsplit('_').next().unwrap();
    for text in shown {
        assert!(!text.contains(secret) && !text.contains(&key.sum), "{text}");
    }
    let lines = told.join("\n");
    assert!(
        !lines.contains("a secret wish"),
        "what is drawn is nobody's business: {lines}"
    );
}

fn base64(bytes: &[u8]) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let at = |place: usize| u32::from(group.get(place).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for sign in 0..4 {
            let digit = SIGNS[(bits >> (18 - 6 * sign) & 63) as usize];
            text.push(if sign <= group.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}
