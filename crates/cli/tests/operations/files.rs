//! What the files say together.

use std::process::Command;

use serde_json::Value;

use crate::{manifests, program, redis, root, text, yaml};

#[test]
fn every_manifest_is_listed_and_says_what_it_is() {
    let listed = manifests();
    let mut kinds: Vec<String> = Vec::new();
    for (file, document) in &listed {
        for field in ["apiVersion", "kind"] {
            assert!(document[field].is_string(), "{file}: {field}");
        }
        kinds.push(document["kind"].as_str().unwrap().to_owned());
    }
    for kind in [
        "Namespace",
        "StatefulSet",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "ScaledObject",
        "NetworkPolicy",
    ] {
        assert!(kinds.iter().any(|one| one == kind), "no {kind}");
    }
    let files = std::fs::read_dir(root().join("deploy/kubernetes")).unwrap();
    let named: std::collections::BTreeSet<&str> =
        listed.iter().map(|(file, _)| &file[..]).collect();
    assert_eq!(
        files.count(),
        named.len() + 1,
        "kustomization.yaml and those it lists"
    );
}

/// Pods of ours: nothing of Kubernetes' among the variables, and arguments that the program takes.
#[test]
fn pods_start_the_program_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut verbs = Vec::new();
    for (file, document) in manifests() {
        let pod = &document["spec"]["template"]["spec"];
        if document["kind"] != "Deployment" {
            continue;
        }
        assert_eq!(pod["enableServiceLinks"], false, "{file}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{file}");
        let container = &pod["containers"][0];
        let verb = container["args"][0].as_str().unwrap();
        let help = program(folder.path(), &[verb, "--help"]).output().unwrap();
        assert!(help.status.success(), "{file}: {verb}");
        verbs.push(verb.to_owned());
        // Longer than what a supervisor gives a worker to park and save.
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(grace >= 30, "{file}: {grace}");
        let selector = &document["spec"]["selector"]["matchLabels"];
        let labels = &document["spec"]["template"]["metadata"]["labels"];
        for (name, value) in selector.as_object().unwrap() {
            assert_eq!(&labels[name], value, "{file}");
        }
    }
    assert_eq!(verbs, ["serve", "worker"]);
    let compose = &yaml("compose.yaml")[0];
    for (service, verb) in [
        ("server", "serve"),
        ("worker", "worker"),
        ("worker-gpu", "worker"),
    ] {
        assert_eq!(compose["services"][service]["command"][0], verb);
    }
}

/// What scales, and whose disruption is bounded, is what there is.
#[test]
fn names_that_point_at_others_find_them() {
    let all = manifests();
    let find = |kind: &str, name: &Value| {
        let found = all
            .iter()
            .any(|(_, one)| one["kind"] == kind && one["metadata"]["name"] == *name);
        assert!(found, "there is no {kind} {name}");
    };
    let scaled = all.iter().find(|(_, one)| one["kind"] == "ScaledObject");
    let spec = &scaled.unwrap().1["spec"];
    find("Deployment", &spec["scaleTargetRef"]["name"]);
    for trigger in spec["triggers"].as_array().unwrap() {
        find(
            "TriggerAuthentication",
            &trigger["authenticationRef"]["name"],
        );
    }
    for (file, document) in &all {
        let volumes = &document["spec"]["template"]["spec"]["volumes"];
        for volume in volumes.as_array().into_iter().flatten() {
            let claim = &volume["persistentVolumeClaim"]["claimName"];
            if claim.is_string() {
                find("PersistentVolumeClaim", claim);
            }
        }
        let containers = &document["spec"]["template"]["spec"]["containers"];
        for container in containers.as_array().into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array().unwrap();
            for mount in mounts {
                let volumes = volumes.as_array().into_iter().flatten();
                let claims = &document["spec"]["volumeClaimTemplates"];
                let claims = claims.as_array().into_iter().flatten();
                let mut names = volumes
                    .map(|volume| &volume["name"])
                    .chain(claims.map(|claim| &claim["metadata"]["name"]));
                assert!(names.any(|name| *name == mount["name"]), "{file}: {mount}");
            }
        }
    }
}

#[test]
fn the_image_is_built_with_the_compiler_of_the_repository() {
    let channel = text("rust-toolchain.toml");
    let channel = channel
        .lines()
        .find_map(|line| line.strip_prefix("channel = \""));
    let channel = channel.unwrap().trim_end_matches('"').to_owned();
    let image = text("Dockerfile");
    assert!(
        image.contains(&format!("FROM rust:{channel}-")),
        "{channel}"
    );
    // The same Debian builds and runs it: the C library is the same.
    assert!(image.contains("-bookworm AS build") && image.contains("debian12:nonroot"));
    let version = env!("CARGO_PKG_VERSION");
    let compose = &yaml("compose.yaml")[0];
    let name = format!("lowtide:{version}");
    assert_eq!(compose["services"]["server"]["image"], name);
    let list = &yaml("deploy/kubernetes/kustomization.yaml")[0];
    assert_eq!(list["images"][0]["newTag"], version);
    // What goes to the builder is all that a build reads.
    for name in ["Cargo.toml", "Cargo.lock", "crates"] {
        assert!(text(".dockerignore").contains(&format!("\n!{name}\n")));
    }
}

#[test]
fn the_units_are_ones_of_systemd() {
    let there = Command::new("systemd-analyze").arg("--version").output();
    if !there.is_ok_and(|output| output.status.success()) {
        return redis::skip(
            "the_units_are_ones_of_systemd",
            "systemd-analyze is not installed",
        );
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["lowtide.service", "lowtide-worker@.service"] {
        let unit = text(&format!("deploy/systemd/{name}"));
        // It looks whether the program is there.
        let unit = unit.replace("/usr/local/bin/lowtide", env!("CARGO_BIN_EXE_lowtide"));
        let path = folder.path().join(name);
        std::fs::write(&path, unit).unwrap();
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let ours = said.lines().filter(|line| line.contains("lowtide"));
        assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new());
    }
}
