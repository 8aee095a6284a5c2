//! What a bad request gets: a status of the 4xx with a reason, and a service that goes on.

use std::collections::BTreeSet;
use std::io::{BufReader, Write};
use std::time::Duration;

use super::pretend::Knobs;
use super::server::{World, read_answer};
use lowtide_core::Bytes;
use lowtide_jobs::Policy;
use lowtide_server::Options;
use serde_json::{Value, json};

#[test]
fn bad_requests_get_a_reason() {
    let world = World::idle();
    let deep = format!(
        "{{\"request\":{}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let request = |request: Value| json!({ "request": request }).to_string();
    let cases: Vec<(&str, String, u16, &str, Option<&str>)> = vec![
        (
            "huge sides",
            request(json!({ "prompt": "a", "width": 1_000_000 })),
            422,
            "invalid_request",
            Some("width"),
        ),
        (
            "a text for a number",
            request(json!({ "prompt": "a", "steps": "9" })),
            422,
            "invalid_request",
            Some("steps"),
        ),
        (
            "a number for a text",
            request(json!({ "prompt": 9 })),
            422,
            "invalid_request",
            Some("prompt"),
        ),
        (
            "negative",
            request(json!({ "prompt": "a", "count": -1 })),
            422,
            "invalid_request",
            Some("count"),
        ),
        (
            "no prompt",
            request(json!({})),
            422,
            "invalid_request",
            Some("prompt"),
        ),
        (
            "a stranger",
            request(json!({ "prompt": "a", "promt": "b" })),
            422,
            "invalid_request",
            Some("promt"),
        ),
        (
            "no request",
            json!({}).to_string(),
            422,
            "invalid_request",
            Some("request"),
        ),
        (
            "a list as request",
            json!({ "request": [] }).to_string(),
            422,
            "invalid_request",
            Some("request"),
        ),
        (
            "misspelt",
            json!({ "request": { "prompt": "a" }, "priorty": "urgent" }).to_string(),
            422,
            "invalid_request",
            Some("priorty"),
        ),
        (
            "no such class",
            json!({ "request": { "prompt": "a" }, "priority": "asap" }).to_string(),
            422,
            "invalid_request",
            Some("priority"),
        ),
        (
            "before now",
            json!({ "request": { "prompt": "a" }, "deadline_s": -1 }).to_string(),
            422,
            "invalid_request",
            Some("deadline_s"),
        ),
        (
            "for how long?",
            json!({ "request": { "prompt": "a" }, "keep_alive": "long" }).to_string(),
            422,
            "invalid_request",
            Some("keep_alive"),
        ),
        (
            "unknown kind",
            json!({ "kind": "poem", "request": {} }).to_string(),
            404,
            "not_found",
            None,
        ),
        (
            "unknown model",
            json!({ "model": "../../etc/passwd", "request": { "prompt": "a" } }).to_string(),
            404,
            "not_found",
            None,
        ),
        (
            "no jobs",
            json!({ "jobs": [] }).to_string(),
            422,
            "invalid_request",
            Some("jobs"),
        ),
        (
            "not an object",
            "7".to_owned(),
            422,
            "invalid_request",
            None,
        ),
        ("not JSON", "{".to_owned(), 400, "invalid_request", None),
        ("nothing", String::new(), 400, "invalid_request", None),
        ("deep", deep, 400, "invalid_request", None),
        (
            "not text",
            "{\"request\": \"\u{0}\"}".to_owned(),
            400,
            "invalid_request",
            None,
        ),
    ];
    for (name, body, status, code, field) in cases {
        let answer = world.ask("POST", "/v1/jobs", &[], Some(&body));
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{name}: {answer:?}"
        );
        assert_eq!(answer.json()["error"]["field"].as_str(), field, "{name}");
    }
    let known = world
        .post(
            "/v1/jobs",
            &json!({ "model": "none", "request": { "prompt": "a" } }),
        )
        .json();
    assert_eq!(
        known["error"]["known"],
        json!(["demo"]),
        "what there is is said"
    );
    assert_eq!(
        world.get("/v1/jobs").json()["jobs"],
        json!([]),
        "none of them became a job"
    );
}

#[test]
fn paths_and_queries_mean_one_thing_or_nothing() {
    let world = World::idle();
    let id = world.submit(&json!({}));
    for (path, status) in [
        ("/v1/jobs/1".to_owned(), 404),
        (format!("/v1/jobs/{}", id.to_uppercase()), 404),
        ("/v1/jobs/00000000000000000000000000".to_owned(), 404),
        ("/v1/artifacts/..%2f..%2fetc%2fpasswd".to_owned(), 404),
        ("/v1/artifacts/../../etc/passwd".to_owned(), 404),
        ("/v1/artifacts/%2e%2e".to_owned(), 404),
        ("/v1/artifacts/%00".to_owned(), 404),
        ("/v1/artifacts/%ff".to_owned(), 404),
        (
            "/v1/artifacts/01m7ynfnz0awjzrfpkfb51qyp6.partial".to_owned(),
            404,
        ),
        ("/panel/../Cargo.toml".to_owned(), 404),
        ("/panel/%2e%2e/Cargo.toml".to_owned(), 404),
        ("/v1/nothing".to_owned(), 404),
        ("/v1/jobs?limit=0".to_owned(), 400),
        ("/v1/jobs?limit=ten".to_owned(), 400),
        ("/v1/jobs?limit=1&limit=2".to_owned(), 400),
        ("/v1/jobs?state=gone".to_owned(), 400),
        ("/v1/jobs?stat=done".to_owned(), 400),
        (format!("/v1/jobs/{id}?wait_s=999"), 400),
        ("/gpu/explain?more=lots".to_owned(), 400),
    ] {
        let answer = world.get(&path);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        answer.code();
    }
    let other = world.ask("PUT", "/v1/jobs", &[], None);
    assert_eq!(
        (other.status, other.code().as_str()),
        (405, "method_not_allowed")
    );
    let allowed: BTreeSet<&str> = other
        .header("allow")
        .unwrap()
        .split(',')
        .map(str::trim)
        .collect();
    assert_eq!(allowed, BTreeSet::from(["GET", "HEAD", "POST"]));
    let plain = world.ask(
        "POST",
        "/v1/jobs",
        &[("content-type", "text/plain")],
        Some("{}"),
    );
    assert_eq!(
        (plain.status, plain.code().as_str()),
        (415, "unsupported_media_type")
    );
    assert_eq!(world.post("/v1/models/none/load", &json!({})).status, 404);
    assert_eq!(
        world.post("/v1/workers/nobody/drain", &json!({})).status,
        404
    );
    assert_eq!(
        world.post("/v1/models/demo/load", &json!({})).status,
        503,
        "no worker is there"
    );
}

#[test]
fn foreign_hosts_and_origins_are_refused() {
    let options = Options {
        origins: vec!["https://studio.example".to_owned()],
        ..Options::default()
    };
    let world = World::with(options, Policy::default(), None);
    let own = format!("http://{}", world.address);
    let foreign = [("origin", "https://evil.example")];
    for path in ["/", "/v1/jobs", "/health", "/panel/panel.js", "/v1/nothing"] {
        let answer = world.ask("GET", path, &[("host", "evil.example")], None);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, "forbidden"),
            "{path}"
        );
        assert_eq!(world.ask("GET", path, &foreign, None).status, 403, "{path}");
    }
    assert_eq!(
        world.ask("POST", "/v1/jobs", &foreign, Some("{}")).status,
        403
    );
    assert_eq!(
        world
            .ask("POST", "/v1/jobs", &[("origin", "null")], Some("{}"))
            .status,
        403
    );
    assert_eq!(
        world
            .ask("GET", "/v1/jobs", &[("origin", &own)], None)
            .status,
        200
    );
    assert_eq!(
        world
            .raw(b"GET /v1/jobs HTTP/1.1\r\nconnection: close\r\n\r\n")
            .status,
        400,
        "no Host"
    );
    let studio = world.ask(
        "GET",
        "/v1/jobs",
        &[("origin", "https://studio.example")],
        None,
    );
    assert_eq!(
        studio.header("access-control-allow-origin"),
        Some("https://studio.example")
    );
    let ask = [
        ("origin", "https://studio.example"),
        ("access-control-request-method", "POST"),
    ];
    assert_eq!(world.ask("OPTIONS", "/v1/jobs", &ask, None).status, 204);
    assert_eq!(studio.header("x-content-type-options"), Some("nosniff"));
    assert!(
        world
            .get("/")
            .header("content-security-policy")
            .unwrap()
            .contains("frame-ancestors 'none'")
    );
}

#[test]
fn long_bodies_slow_clients_and_many_connections_have_an_end() {
    let options = Options {
        body_max: Bytes::kib(64),
        input_max: Bytes::kib(16),
        head_timeout: Duration::from_millis(200),
        body_timeout: Duration::from_millis(200),
        connections_max: 4,
        ..Options::default()
    };
    let world = World::with(options, Policy::default(), None);
    let long = format!("{{\"request\":{{\"prompt\":\"{}\"}}}}", "a".repeat(200_000));
    let answer = world.ask("POST", "/v1/jobs", &[], Some(&long));
    assert_eq!((answer.status, answer.code().as_str()), (413, "too_large"));
    assert_eq!(answer.header("connection"), Some("close"));
    let endless = world.raw(
        format!("POST /v1/jobs HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 99999999999\r\n\r\n", world.address).as_bytes(),
    );
    assert_eq!(endless.status, 413);
    let head = world.raw(b"GET /v1/jobs HTTP/1.1\r\nhost: loc");
    assert_eq!((head.status, head.code().as_str()), (408, "too_slow"));
    let body = world.raw(
        format!("POST /v1/jobs HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{{", world.address).as_bytes(),
    );
    assert_eq!((body.status, body.code().as_str()), (408, "too_slow"));
    let garbage = world.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n");
    assert!(matches!(garbage.status, 0 | 400), "{garbage:?}");
    let streams: Vec<_> = (0..4).map(|_| world.events("/v1/events", &[])).collect();
    let many = read_answer(&mut BufReader::new(world.connect()));
    assert_eq!(
        (many.status, many.code().as_str()),
        (503, "too_many_connections")
    );
    drop(streams);
    let mut patience = 200;
    while world.connect().write_all(b"").is_err() || world.get("/health/live").status != 200 {
        patience -= 1;
        assert!(patience > 0, "connections come back");
    }
}

#[test]
fn health_says_whether_anybody_works() {
    let world = World::idle();
    assert_eq!(world.get("/health/live").status, 200);
    let answer = world.get("/health");
    assert_eq!(
        (answer.status, &answer.json()["ready"]),
        (503, &json!(false))
    );
    assert_eq!(
        world.get("/gpu/explain").json()["explanations"][0]["code"],
        "no_worker"
    );
    drop(world);
    let world = World::new();
    let answer = world.get("/health/ready");
    assert_eq!(
        (answer.status, &answer.json()["workers"][0]["worker"]),
        (200, &json!("pretend-1"))
    );
    assert_eq!(
        world.post("/v1/workers/pretend-1/pause", &json!({})).json()["ok"],
        true
    );
    assert_eq!(world.get("/health").status, 503);
    assert_eq!(
        world
            .post("/v1/workers/pretend-1/resume", &json!({}))
            .json()["ok"],
        true
    );
    assert_eq!(world.get("/health").status, 200);
}

#[test]
fn memory_models_and_plans_are_told() {
    let world = World::new();
    let id = world.submit(&json!({}));
    world.until(&id, "done");
    let stats = world.get("/gpu/stats").json();
    assert_eq!(
        stats,
        json!({ "vram_allocated": 5.0, "vram_reserved": 6.0, "vram_total": 268.435 })
    );
    assert_eq!(
        world.get("/gpu/stats?detail=1").json()["detail"]["workers"][0]["device"]["name"],
        "pretend"
    );
    for (verb, residency) in [
        ("offload", "host"),
        ("release", "unloaded"),
        ("load", "device"),
    ] {
        let answer = world.post(&format!("/v1/models/dall-e-3/{verb}"), &json!({}));
        assert_eq!(
            (answer.status, &answer.json()["ok"]),
            (200, &json!(true)),
            "{verb}"
        );
        assert_eq!(
            world.get("/v1/models").json()["data"][0]["lowtide"]["residency"],
            residency
        );
    }
    assert_eq!(
        world.post("/v1/models/offload?wait_s=5", &json!({})).status,
        200
    );
    let plan = world
        .post(
            "/v1/plan",
            &json!({ "request": { "prompt": "a" }, "budget": "32MiB" }),
        )
        .json();
    assert_eq!(
        (&plan["budget_bytes"], &plan["peak_bytes"]),
        (&json!(32 << 20), &json!(4 << 20))
    );
    let small = world.post(
        "/v1/plan",
        &json!({ "request": { "prompt": "a" }, "budget": 1000 }),
    );
    assert_eq!((small.status, small.code().as_str()), (422, "does_not_fit"));
    assert_eq!(small.json()["error"]["smallest_bytes"], 4 << 20);
    let explained = world.get("/gpu/explain?more=64MiB").json();
    assert_eq!(
        explained["summary"],
        "Everything is on the device: 3.0 MiB."
    );
    assert!(
        explained["what_if"][0]["saves_s"].as_f64().unwrap() > 0.0,
        "{explained}"
    );
    let history = world.get("/gpu/history?minutes=1").json();
    assert!(history["budget"] == 64 << 20 && history["samples"].is_array());
}

#[test]
fn an_order_that_takes_longer_is_told_as_such() {
    let knobs = Knobs::default();
    let world = World::with(Options::default(), Policy::default(), Some(knobs));
    let worker = "sleeper".parse().unwrap();
    let heartbeat = lowtide_jobs::Heartbeat {
        worker,
        ttl: Duration::from_secs(60),
        cards: None,
        status: json!({ "models": [{ "name": "demo" }] }).to_string(),
    };
    world
        .store
        .heartbeat(heartbeat, super::pretend::now())
        .unwrap();
    let answer = world.post("/v1/models/demo/load?wait_s=1", &json!({}));
    assert_eq!(
        (answer.status, &answer.json()["ok"]),
        (202, &json!(null)),
        "one of two has answered"
    );
}

#[test]
fn metrics_can_be_read() {
    let world = World::new();
    let id = world.submit(&json!({}));
    world.until(&id, "done");
    let answer = world.get("/metrics");
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("text/plain; version=0.0.4; charset=utf-8"))
    );
    let text = answer.text();
    let mut typed = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(matches!(kind, "counter" | "gauge"), "{line}");
            assert!(typed.insert(name.to_owned()), "{name} comes twice");
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert!(
                typed.contains(name) && name.starts_with("lowtide_"),
                "{line}"
            );
            assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
        }
    }
    for line in [
        "lowtide_jobs{state=\"done\",priority=\"normal\"} 1",
        "lowtide_jobs_submitted_total 1",
        "lowtide_memory_bytes{worker=\"pretend-1\",what=\"allocated\"} 5000000",
        "lowtide_model_residency{worker=\"pretend-1\",model=\"demo\"} 2",
        "lowtide_http_requests_total{route=\"/v1/jobs\",status=\"202\"} 1",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is missing in\n{text}"
        );
    }
}

#[test]
fn every_route_is_described_and_every_description_is_a_route() {
    let world = World::new();
    let document = world.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 30, "{} paths", paths.len());
    for (path, operations) in paths {
        let concrete = path
            .replace("{id}", "00000000000000000000000000")
            .replace("{name}", "demo");
        let allowed = world.ask("PATCH", &concrete, &[], None);
        assert_eq!(allowed.status, 405, "{path} is a route");
        let allowed: BTreeSet<String> = allowed
            .header("allow")
            .unwrap()
            .split(',')
            .map(|one| one.trim().to_lowercase())
            .filter(|one| one != "head")
            .collect();
        let described: BTreeSet<String> = operations.as_object().unwrap().keys().cloned().collect();
        assert_eq!(described, allowed, "{path}");
    }
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(
            document["components"]["schemas"][name].is_object(),
            "{name} is there"
        );
    }
    assert_eq!(
        document["components"]["schemas"]["Request-text-to-image"]["required"],
        json!(["prompt"])
    );
}

#[test]
fn what_is_not_enabled_is_not_there() {
    let options = Options {
        panel: false,
        openai: false,
        ..Options::default()
    };
    let world = World::with(options, Policy::default(), None);
    assert_eq!(world.get("/").status, 404);
    assert_eq!(
        world
            .post("/v1/images/generations", &json!({ "prompt": "a" }))
            .status,
        404
    );
    assert!(world.get("/openapi.json").json()["paths"]["/v1/images/generations"].is_null());
}
