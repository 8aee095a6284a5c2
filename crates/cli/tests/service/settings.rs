//! Settings: which place wins, and what is said of a wrong one.

use crate::{Place, expect_refusal};

#[test]
fn file_then_environment_then_arguments() {
    let place = Place::new();
    let text = "[server]\nport = 1\n[worker]\nidle_timeout = \"5m\"\nbatch_max = 2\n[presets.fast]\nsteps = 8";
    std::fs::write(place.path("lowtide.toml"), text).unwrap();
    let mut command = place.command("config --json --port 3");
    let output = command
        .env("LOWTIDE_SERVER_PORT", "2")
        .env("GPU_IDLE_TIMEOUT", "60")
        .env("GPU_VRAM_LIMIT", "6144")
        .output()
        .unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |setting: &str| {
        let all = told["settings"].as_array().unwrap();
        let found = all.iter().find(|one| one["setting"] == setting).unwrap();
        (
            found["value"].clone(),
            found["origin"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(of("server.port"), (3.into(), "--port".to_owned()));
    assert_eq!(
        of("worker.idle_timeout"),
        (60.0.into(), "GPU_IDLE_TIMEOUT".to_owned())
    );
    assert_eq!(
        of("device.budget"),
        ((6_u64 << 30).into(), "GPU_VRAM_LIMIT".to_owned())
    );
    assert_eq!(
        of("worker.batch_max"),
        (2.into(), "lowtide.toml".to_owned())
    );
    assert_eq!(
        of("presets.fast.steps"),
        (8.into(), "lowtide.toml".to_owned())
    );
    assert_eq!(
        of("presets.standard.steps"),
        (30.into(), "default".to_owned())
    );
    assert!(place.ok("config").contains("lowtide.toml"));
}

#[test]
fn a_mistake_names_its_place() {
    let place = Place::new();
    std::fs::write(place.path("typo.toml"), "[sever]\nport = 1").unwrap();
    std::fs::write(place.path("wrong.yaml"), "device:\n  budget: much").unwrap();
    for verb in ["serve", "config", "worker"] {
        place.refused(
            &format!("{verb} --config typo.toml"),
            2,
            &["typo.toml", "sever", "'server'"],
        );
    }
    place.refused(
        "config --config wrong.yaml",
        2,
        &["wrong.yaml", "device.budget", "600MiB"],
    );
    place.refused(
        "config --config none.toml",
        2,
        &["none.toml", "no such file"],
    );
    place.refused("serve --port http", 2, &["--port", "whole number"]);
    place.refused("serve --budget much", 2, &["--budget", "600MiB"]);
    place.refused("serve --offload sometimes", 2, &["--offload", "components"]);
    place.refused("serve --precision f64", 2, &["--precision", "tf32", "f16"]);
    for verb in ["serve", "worker"] {
        for precision in ["tf32", "f16"] {
            let line = format!("{verb} --device cpu --precision {precision}");
            let says = format!("device.precision {precision} is for GPUs");
            place.refused(&line, 2, &[&says, "say f32, bf16 or auto"]);
        }
    }
    place.refused("serve --set worker.lese=1s", 2, &["worker.lease"]);
    place.refused(
        "serve --set nonsense",
        2,
        &["--set", "worker.idle_timeout=10m"],
    );
    place.refused("serve --store mysql://box", 2, &["'mysql'", "redis://host"]);
    place.refused(
        "serve --store redis://me:secret@127.0.0.1:1",
        1,
        &["redis://me:***@127.0.0.1:1", "unreachable"],
    );
    place.refused("serve --host nowhere.invalid", 2, &["nowhere.invalid"]);
    place.refused(
        "serve --port 0 --set kinds.enabled=video",
        2,
        &["'video'", "noise"],
    );
    place.refused(
        "serve --port 0 --preload missing",
        2,
        &["'missing'", "demo"],
    );
    place.refused("worker --id a/b", 2, &["--id", "a/b"]);
    let mut command = place.command("config");
    let output = command.env("LOWTIDE_WORKER_LEESE", "1s").output().unwrap();
    expect_refusal(
        "environment",
        &output,
        2,
        &["LOWTIDE_WORKER_LEESE", "LOWTIDE_WORKER_LEASE"],
    );
}
