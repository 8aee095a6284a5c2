//! `lowtide keys`, and a service that needs them.

use serde_json::{Value, json};

use crate::{Place, Server, expect_refusal};

/// A line of the service's log that has this in it.
fn said(server: &mut Server, part: &str) -> String {
    server.process.after(part);
    server.process.told.last().unwrap().clone()
}

#[test]
fn a_key_is_shown_once_kept_without_its_secret_and_revoked() {
    let place = Place::new();
    assert!(place.ok("keys list").contains("no keys"));
    assert!(!place.path("data").exists(), "asking leaves nothing behind");
    place.refused("keys create --name a/b", 2, &["a/b"]);
    place.refused("keys create --name a --ends soon", 2, &["--ends", "soon"]);
    place.refused("keys create --name a --priority soon", 2, &["urgent"]);
    place.refused("keys revoke ci", 2, &["no key 'ci'"]);
    let token = place.ok("keys create --name ci --per-minute 90 --waiting 5 --running 2 --priority normal --ends 90d");
    let token = token.trim().to_owned();
    assert!(token.starts_with("lt_") && token.len() == 80, "{token}");
    let listed = place.ok("keys list");
    for part in [
        "ci",
        "open",
        "90 requests a minute",
        "5 waiting",
        "2 running",
        "up to normal",
        "until 2",
    ] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    let secret = token.rsplit('_').next().unwrap().to_owned();
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(place.path("data").join("lowtide")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            kept.extend(std::fs::read(path).unwrap());
        }
    }
    let holds = |what: &str| kept.windows(what.len()).any(|part| part == what.as_bytes());
    assert!(holds("made_by") && !holds(&secret));
    let json: Value =
        serde_json::from_str(&place.ok("keys create --name ci --admin --json")).unwrap();
    assert!(json["token"].as_str().unwrap().starts_with("lt_"));
    let all: Value = serde_json::from_str(&place.ok("keys list --json")).unwrap();
    assert_eq!(all["keys"].as_array().unwrap().len(), 2);
    assert!(all.to_string().find("token").is_none());
    let one = json["key"].as_str().unwrap();
    assert!(place.ok(&format!("keys revoke {one}")).contains(one));
    assert!(place.ok("keys revoke ci").contains("revoked"));
    place.refused("keys revoke ci", 2, &["before"]);
    assert!(!place.ok("keys list").contains("open"));
}

#[test]
fn the_service_needs_keys_and_tells_who_did_what() {
    let place = Place::new();
    let admin = place
        .ok("keys create --name anna --admin")
        .trim()
        .to_owned();
    let mut server = Server::start(&place, "");
    place.refused("jobs", 2, &["a key is needed", "LOWTIDE_KEY"]);
    let with = |key: &str, line: &str| {
        let mut command = place.command(line);
        command.env("LOWTIDE_KEY", key).output().unwrap()
    };
    let ok = |key: &str, line: &str| {
        let output = with(key, line);
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    expect_refusal("jobs", &with("lt_nothing", "jobs"), 2, &["not known"]);
    assert!(ok(&admin, "ps --once").contains("demo"));
    // A key made while the service runs is known to it.
    let user = place.ok("keys create --name ben").trim().to_owned();
    let submit = |key: &str| -> Value {
        let bearer = format!("Bearer {key}");
        let mut answer = ureq::post(format!("{}/v1/jobs", server.url))
            .header("Authorization", &bearer)
            .send_json(json!({ "kind": "no-op", "request": {} }))
            .unwrap();
        answer.body_mut().read_json().unwrap()
    };
    let job = submit(&user)["id"].as_str().unwrap().to_owned();
    assert!(ok(&user, "jobs").contains(&job));
    assert!(ok(&admin, "jobs").contains(&job));
    expect_refusal(
        "models release",
        &with(&user, "models release"),
        2,
        &["admin"],
    );
    let line = said(&mut server, "POST /v1/jobs, job");
    for part in ["audit", "ben from 127.0.0.1", &job, "202"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    place.ok("keys revoke ben");
    said(&mut server, "key revoked of ben");
    expect_refusal("jobs", &with(&user, "jobs"), 2, &["revoked"]);
    let used = place.ok("keys usage");
    assert!(used.contains("anna") && used.contains("ben"), "{used}");
    for line in &server.process.told {
        for key in [&admin, &user] {
            let secret = key.rsplit('_').next().unwrap();
            assert!(!line.contains(secret), "{line}");
        }
    }
}
