//! Redis as the files start it, and what autoscalers read there.

use std::process::Command;
use std::time::{Duration, SystemTime};

use lowtide_core::job::{Moment, Priority};
use lowtide_jobs::{JobStore, RedisOptions, RedisStore, Submission, random_job_id};

use crate::redis::{DURABLE, Server, skip};
use crate::{manifests, yaml};

fn now() -> Moment {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Moment(since.unwrap().as_millis() as u64)
}

fn open(server: &Server) -> RedisStore {
    RedisStore::open(RedisOptions::new(&server.url())).unwrap()
}

/// Arguments of `redis-server` as lines of its configuration.
fn settings(arguments: &serde_json::Value) -> String {
    let arguments = arguments.as_array().unwrap();
    assert_eq!(arguments[0], "redis-server");
    let mut lines = String::new();
    for pair in arguments[1..].chunks(2) {
        let (name, value) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        let name = name.strip_prefix("--").unwrap();
        if name != "requirepass" {
            lines += &format!("{name} \"{value}\"\n");
        }
    }
    lines
}

#[test]
fn a_redis_that_the_files_start_promises_what_is_needed() {
    let compose = &yaml("compose.yaml")[0]["services"]["redis"]["command"];
    let all = manifests();
    let set = all.iter().find(|(_, one)| one["kind"] == "StatefulSet");
    let pod = &set.unwrap().1["spec"]["template"]["spec"]["containers"][0]["args"];
    for arguments in [compose, pod] {
        let test = "a_redis_that_the_files_start_promises_what_is_needed";
        let Some(server) = Server::start(test, &settings(arguments)) else {
            return;
        };
        // It is refused where it may forget.
        open(&server);
    }
}

#[test]
fn autoscalers_read_how_much_waits_and_runs() {
    let Some(server) = Server::start("autoscalers_read_how_much_waits_and_runs", DURABLE) else {
        return;
    };
    let store = open(&server);
    let all = manifests();
    let scaled = all.iter().find(|(_, one)| one["kind"] == "ScaledObject");
    let triggers = scaled.unwrap().1["spec"]["triggers"].clone();
    let keys: Vec<&str> = triggers
        .as_array()
        .unwrap()
        .iter()
        .map(|trigger| trigger["metadata"]["listName"].as_str().unwrap())
        .collect();
    let size = |key: &str| server.ask(&format!("ZCARD {key}")).unwrap();
    let mut first = None;
    for (count, priority) in [
        (1, Priority::Urgent),
        (2, Priority::Normal),
        (3, Priority::Batch),
    ] {
        for _ in 0..count {
            let submission = Submission {
                priority: Some(priority),
                ..Submission::new(random_job_id(now()), "no-op", "no-op", "{}")
            };
            let accepted = store.submit(submission, now()).unwrap();
            first.get_or_insert(accepted.job);
        }
    }
    let sizes: Vec<String> = keys.iter().map(|key| size(key)).collect();
    assert_eq!(sizes, [":1", ":2", ":3", ":0"], "{keys:?}");
    let worker = "w".parse().unwrap();
    store
        .claim(first.unwrap(), &worker, Duration::from_secs(60), now())
        .unwrap();
    let sizes: Vec<String> = keys.iter().map(|key| size(key)).collect();
    assert_eq!(sizes, [":0", ":2", ":3", ":1"], "{keys:?}");
}

/// The commands of docs/operations.md, one after the other.
#[test]
fn a_queue_in_redis_is_brought_back_from_a_copy() {
    let test = "a_queue_in_redis_is_brought_back_from_a_copy";
    let Some(server) = Server::start(test, DURABLE) else {
        return;
    };
    let there = Command::new("redis-cli").arg("--version").output();
    if !there.is_ok_and(|output| output.status.success()) {
        return skip(test, "redis-cli is not installed");
    }
    let store = open(&server);
    let submit = || {
        let submission = Submission::new(random_job_id(now()), "no-op", "no-op", "{}");
        store.submit(submission, now()).unwrap().job
    };
    let jobs: Vec<_> = (0..20).map(|_| submit()).collect();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("monday.rdb");
    let cli = |port: u16, arguments: &[&str]| {
        let output = Command::new("redis-cli")
            .args(["-p", &port.to_string()])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    cli(server.port, &["--rdb", &copy.display().to_string()]);
    let later = submit();

    let empty = "appendonly no\n";
    let mut restored = Server::start(test, empty).unwrap();
    restored.kill();
    std::fs::copy(&copy, restored.folder().join("dump.rdb")).unwrap();
    assert!(restored.restart());
    cli(restored.port, &["config", "set", "appendonly", "yes"]);
    cli(restored.port, &["config", "set", "appendfsync", "always"]);
    let began = std::time::Instant::now();
    while !cli(restored.port, &["info", "persistence"]).contains("aof_rewrite_in_progress:0") {
        assert!(began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    // From now on with the usual configuration.
    restored.kill();
    let file = restored.folder().join("redis.conf");
    let usual = std::fs::read_to_string(&file)
        .unwrap()
        .replace(empty, DURABLE);
    std::fs::write(&file, usual).unwrap();
    assert!(restored.restart());
    let there = open(&restored);
    for job in jobs {
        assert_eq!(there.job(job).unwrap(), store.job(job).unwrap());
    }
    assert!(there.job(later).is_err(), "it came after the copy");
    there
        .submit(
            Submission::new(random_job_id(now()), "no-op", "no-op", "{}"),
            now(),
        )
        .unwrap();
}
