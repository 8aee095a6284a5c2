//! The kind `upscale` of a server: pictures that are sent, and results that go on.

use std::path::Path;

use serde_json::json;

use crate::{Place, Server};

#[test]
fn pictures_and_results_are_made_larger() {
    let place = Place::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures/upscale");
    std::fs::create_dir(place.path("networks")).unwrap();
    for (file, to) in [
        ("compact-4.pth", "networks/compact-4.pth"),
        ("picture.png", "picture.png"),
    ] {
        std::fs::copy(fixtures.join(file), place.path(to)).unwrap();
    }
    let server = Server::start(
        &place,
        "--models networks --set kinds.enabled=upscale,noise,no-op",
    );
    // Through the server and here it is the same file.
    place.ok("upscale picture.png -o there.png");
    place.ok("upscale picture.png -o here.png --local --model networks/compact-4.pth");
    let read = |name: &str| std::fs::read(place.path(name)).unwrap();
    assert_eq!(read("there.png"), read("here.png"));
    // A result goes on.
    let noise = json!({ "kind": "noise", "request": { "width": 24, "height": 20, "seed": 3 } });
    let accepted = server.post("/v1/jobs", noise);
    let drawn = server.over(accepted["id"].as_str().unwrap());
    let artifact = drawn["artifacts"][0]["id"].as_str().unwrap();
    let request = json!({ "image": format!("artifact:{artifact}"), "scale": 3 });
    let asked = json!({ "kind": "upscale", "model": "compact-4", "request": request });
    let planned = server.post("/v1/plan", asked.clone());
    assert_eq!(planned["plan"]["phases"][0]["mode"], "whole", "{planned}");
    let accepted = server.post("/v1/jobs", asked);
    let job = server.over(accepted["id"].as_str().unwrap());
    assert_eq!(job["state"], "done", "{job}");
    let report = &job["report"];
    assert_eq!(
        (&report["width"], &report["height"]),
        (&json!(72), &json!(60))
    );
    assert_eq!(job["artifacts"].as_array().unwrap().len(), 1);
    // The weights came once, and stay for the next one.
    let accepted = server.post(
        "/v1/jobs",
        json!({ "kind": "upscale", "model": "compact-4", "request": request }),
    );
    let again = server.over(accepted["id"].as_str().unwrap());
    assert_eq!(again["report"]["bytes_read"], 0, "{again}");
    let shown = place.ok("ps --once");
    assert!(shown.contains("compact-4"), "{shown}");
    server.stop();
}
