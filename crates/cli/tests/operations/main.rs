//! Files for those who run the service: whatever they name exists in the program, and what they promise is so.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a failed test may panic, and it shares files with other tests"
)]

mod files;
mod names;
#[path = "../../../jobs/tests/redis/server.rs"]
mod redis;
mod store;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

/// The repository.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|cause| panic!("{path}: {cause}"))
}

/// All YAML documents of a file.
fn yaml(path: &str) -> Vec<Value> {
    let text = text(path);
    let document = |one: &str| {
        let mut document: serde_yaml_ng::Value = serde_yaml_ng::from_str(one)?;
        document.apply_merge()?;
        serde_yaml_ng::from_value(document)
    };
    let documents = text.split("\n---\n");
    documents
        .map(|one| document(one).unwrap_or_else(|why| panic!("{path}: {why}")))
        .collect()
}

/// The manifests, those that are listed.
fn manifests() -> Vec<(String, Value)> {
    let list = &yaml("deploy/kubernetes/kustomization.yaml")[0];
    let names = list["resources"].as_array().unwrap().iter();
    let names = names.map(|name| format!("deploy/kubernetes/{}", name.as_str().unwrap()));
    names
        .flat_map(|name| {
            let documents = yaml(&name).into_iter();
            documents.map(move |document| (name.clone(), document))
        })
        .collect()
}

fn program(folder: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowtide"));
    command
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null());
    command
}

/// What a running service says of itself.
struct Told {
    metrics: String,
    routes: Vec<String>,
}

/// Asked once, after a job was done.
fn told() -> &'static Told {
    static TOLD: OnceLock<Told> = OnceLock::new();
    TOLD.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["serve", "--port", "0", "--data-dir", "data"];
        let mut server = Running(
            program(folder.path(), &arguments)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let lines = BufReader::new(server.0.stderr.take().unwrap());
        let mut lines = lines.lines().map_while(Result::ok);
        let listens = |line: String| Some(line.split_once("listens on ")?.1.to_owned());
        let url = lines.find_map(listens).expect("it listens");
        // Somebody has to read on, or the process waits.
        std::thread::spawn(move || lines.for_each(drop));
        let mut job: Value = ureq::post(format!("{url}/v1/jobs"))
            .send_json(json!({ "kind": "noise", "request": {} }))
            .unwrap()
            .body_mut()
            .read_json()
            .unwrap();
        let id = job["id"].as_str().unwrap().to_owned();
        for _ in 0..20 {
            if job["state"] == "done" {
                break;
            }
            let mut answer = ureq::get(format!("{url}/v1/jobs/{id}?wait_s=3"))
                .call()
                .unwrap();
            job = answer.body_mut().read_json().unwrap();
        }
        assert_eq!(job["state"], "done", "{job}");
        let ask = |path: &str| {
            let mut answer = ureq::get(format!("{url}{path}")).call().unwrap();
            answer.body_mut().read_to_string().unwrap()
        };
        let document: Value = serde_json::from_str(&ask("/openapi.json")).unwrap();
        let routes = document["paths"].as_object().unwrap().keys().cloned();
        Told {
            routes: routes.collect(),
            metrics: ask("/metrics"),
        }
    })
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has nothing that is wanted afterwards; its worker ends with it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
