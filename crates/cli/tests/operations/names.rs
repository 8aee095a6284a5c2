//! Settings, arguments, routes, metrics.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{program, root, text, told};

/// Files that name things of ours.
const FILES: [&str; 14] = [
    "Dockerfile",
    "compose.yaml",
    "deploy/kubernetes/kustomization.yaml",
    "deploy/kubernetes/models.yaml",
    "deploy/kubernetes/namespace.yaml",
    "deploy/kubernetes/redis.yaml",
    "deploy/kubernetes/scaling.yaml",
    "deploy/kubernetes/server.yaml",
    "deploy/kubernetes/worker.yaml",
    "deploy/systemd/lowtide.service",
    "deploy/systemd/lowtide-worker@.service",
    "deploy/grafana/lowtide.json",
    "docs/operations.md",
    "docs/many-machines.md",
];

/// Words of a text that begin so.
fn words<'a>(text: &'a str, start: &str, plain: fn(char) -> bool) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices(start) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|sign| plain(sign) || sign == '-') {
            continue;
        }
        let rest = &text[at..];
        let end = rest
            .char_indices()
            .find(|(place, sign)| *place >= start.len() && !plain(*sign));
        found.insert(&rest[..end.map_or(rest.len(), |(place, _)| place)]);
    }
    found
}

fn settings() -> (BTreeSet<String>, Value) {
    let folder = tempfile::tempdir().unwrap();
    let output = program(folder.path(), &["config", "--json"])
        .output()
        .unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = told["settings"].as_array().unwrap().iter();
    let names = all.map(|one| one["setting"].as_str().unwrap().to_owned());
    (names.collect(), told)
}

#[test]
fn every_file_is_looked_at() {
    let mut found = BTreeSet::new();
    let mut folders = vec![root().join("deploy")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let path = path.strip_prefix(root()).unwrap();
                found.insert(path.display().to_string());
            }
        }
    }
    let known = FILES.iter().filter(|name| name.starts_with("deploy/"));
    assert_eq!(found, known.map(|name| (*name).to_owned()).collect());
}

#[test]
fn every_variable_is_a_setting() {
    let (settings, _) = settings();
    let variables: BTreeSet<String> = settings
        .iter()
        .map(|place| format!("LOWTIDE_{}", place.replace('.', "_").to_uppercase()))
        .collect();
    let mut count = 0;
    for file in FILES {
        let text = text(file);
        let plain = |sign: char| sign.is_ascii_uppercase() || sign == '_';
        for name in words(&text, "LOWTIDE_", plain) {
            // What stands for any of them.
            if name == "LOWTIDE_" {
                continue;
            }
            assert!(variables.contains(name), "{file} names {name}");
            count += 1;
        }
    }
    assert!(count >= 10, "{count}");
}

#[test]
fn every_setting_named_in_words_is_one() {
    let (settings, _) = settings();
    let mut count = 0;
    for file in FILES.iter().filter(|file| file.ends_with(".md")) {
        let text = text(file);
        let plain = |sign: char| sign.is_ascii_lowercase() || sign == '_' || sign == '.';
        for section in ["server.", "worker.", "queue.", "device.", "models."] {
            for name in words(&text, section, plain) {
                let name = name.trim_end_matches('.');
                // The end of a sentence, or a file.
                if !name.contains('.') || name.ends_with(".yaml") {
                    continue;
                }
                assert!(settings.contains(name), "{file} names {name}");
                count += 1;
            }
        }
    }
    assert!(count >= 10, "{count}");
}

#[test]
fn every_argument_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for file in FILES.iter().filter(|file| file.ends_with(".md")) {
        for line in text(file).lines() {
            let Some(command) = line.trim_start().strip_prefix("lowtide ") else {
                continue;
            };
            let command = command.split('#').next().unwrap();
            let mut parts = command.split_whitespace();
            let verb = parts.next().unwrap();
            let output = program(folder.path(), &[verb, "--help"]).output().unwrap();
            assert!(output.status.success(), "{file} names {verb}");
            let help = String::from_utf8_lossy(&output.stdout).into_owned();
            for flag in parts.filter(|part| part.starts_with("--")) {
                let flag = flag.split('=').next().unwrap();
                assert!(help.contains(&format!("{flag} ")), "{file}: {verb} {flag}");
                count += 1;
            }
        }
    }
    assert!(count >= 5, "{count}");
}

#[test]
fn every_route_is_served() {
    let routes = &told().routes;
    let mut count = 0;
    for file in FILES {
        let text = text(file);
        let plain = |sign: char| sign.is_ascii_alphanumeric() || "_/-".contains(sign);
        for start in ["/health", "/metrics", "/v1/"] {
            for route in words(&text, start, plain) {
                assert!(routes.iter().any(|known| known == route), "{file}: {route}");
                count += 1;
            }
        }
    }
    assert!(count >= 8, "{count}");
}

#[test]
fn every_metric_and_label_is_told() {
    let metrics = &told().metrics;
    let names: BTreeSet<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let mut count = 0;
    for file in ["deploy/grafana/lowtide.json", "docs/operations.md"] {
        // In JSON quotes are escaped.
        let text = text(file).replace("\\\"", "\"");
        let plain = |sign: char| sign.is_ascii_lowercase() || sign == '_';
        for name in words(&text, "lowtide_", plain) {
            assert!(names.contains(name), "{file} names {name}");
            count += 1;
        }
        for label in ["state", "priority", "what", "result"] {
            for (at, _) in text.match_indices(&format!("{label}=\"")) {
                let pair = &text[at..];
                let end = pair.match_indices('"').nth(1).unwrap().0;
                assert!(metrics.contains(&pair[..=end]), "{file}: {}", &pair[..=end]);
            }
        }
    }
    assert!(count >= 20, "{count}");
}

#[test]
fn the_port_is_the_one_it_listens_on() {
    let (_, told) = settings();
    let all = told["settings"].as_array().unwrap();
    let port = all.iter().find(|one| one["setting"] == "server.port");
    let port = port.unwrap()["value"].to_string();
    for (file, line) in [
        ("Dockerfile", format!("EXPOSE {port}\n")),
        ("Dockerfile", format!("http://127.0.0.1:{port}\"")),
        ("compose.yaml", format!("127.0.0.1:{port}:{port}")),
        (
            "deploy/kubernetes/server.yaml",
            format!("containerPort: {port}"),
        ),
        (
            "deploy/kubernetes/server.yaml",
            format!("prometheus.io/port: \"{port}\""),
        ),
        ("docs/operations.md", format!("on port {port} of")),
    ] {
        assert!(text(file).contains(&line), "{file}: {line}");
    }
}
