//! `jobs`, `ps`, `models` and `explain` against a running server, and without one.

use serde_json::json;

use crate::{Place, Server};

#[test]
fn the_queue_is_listed_and_moved_by_hand() {
    let place = Place::new();
    let server = Server::start(&place, "");
    server.post("/v1/queue/hold", json!({}));
    let submit = |kind: &str, request| {
        let accepted = server.post("/v1/jobs", json!({ "kind": kind, "request": request }));
        accepted["id"].as_str().unwrap().to_owned()
    };
    let one = submit("no-op", json!({}));
    let two = submit("noise", json!({ "seed": 1 }));
    let listed = place.ok("jobs");
    assert!(listed.contains(&one) && listed.contains(&two), "{listed}");
    assert!(
        place
            .ok(&format!("jobs show {}", &two[20..]))
            .contains("request.seed")
    );
    assert!(
        place
            .ok(&format!("jobs priority {two} urgent"))
            .contains("queued")
    );
    assert!(
        place
            .ok("jobs --state queued --json")
            .contains("\"urgent\"")
    );
    assert!(place.ok(&format!("jobs pause {two}")).contains("paused"));
    assert!(place.ok(&format!("jobs resume {two}")).contains("queued"));
    assert!(
        place
            .ok(&format!("jobs cancel {one}"))
            .contains("cancelled")
    );
    place.refused(&format!("jobs cancel {one}"), 2, &["cancelled"]);
    place.refused("jobs show nothing", 2, &["no job 'nothing'"]);
    place.refused(
        &format!("jobs priority {two} soon"),
        2,
        &["urgent", "front"],
    );
    place.refused("jobs --state soon", 2, &["queued"]);
    server.post("/v1/queue/release", json!({}));
    assert_eq!(server.over(&two)["state"], "done");
    server.stop();
}

#[test]
fn models_are_shown_and_moved() {
    let place = Place::new();
    let server = Server::start(&place, "");
    // A worker that did a job has said which models it has.
    let accepted = server.post("/v1/jobs", json!({ "kind": "no-op", "request": {} }));
    server.over(accepted["id"].as_str().unwrap());
    place.ok("models load demo");
    let shown = place.ok("ps --once");
    assert!(shown.contains("🟢 demo"), "{shown}");
    place.ok("models release demo");
    let shown = place.ok("ps");
    assert!(shown.contains("⚪ demo"), "{shown}");
    place.refused("models load missing", 2, &["missing"]);
    assert!(place.ok("ps --json").contains("vram_allocated"));
    assert!(!place.ok("explain").is_empty());
    server.stop();
}

#[test]
fn without_a_server_the_way_to_one_is_said() {
    let place = Place::new();
    for line in [
        "jobs",
        "jobs show x",
        "ps",
        "explain",
        "models load demo",
        "models release",
    ] {
        place.refused(line, 2, &["no server", "lowtide serve"]);
    }
    assert!(!place.path("data").exists(), "asking leaves nothing behind");
}
