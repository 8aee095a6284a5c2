//! Memory comes back to the system, not only to the allocator: seen from outside, over many cycles.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::Path;

use lowtide_engine::processor::{Opened, Order, Stepped};
use lowtide_engine::{Options, PrecisionChoice, processors};
use lowtide_weights::ModelFolder;
use serde_json::json;
use std::sync::Arc;

const CYCLES: usize = 100;

/// Resident bytes may be this far above what they were after the first cycle.
const SLACK_BYTES: u64 = 5 << 20;

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn open() -> Arc<dyn Opened> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo");
    let options = Options {
        precision: PrecisionChoice::F32,
        threads: Some(2),
        keep_weights: true,
        ..Options::default()
    };
    let all = processors::all();
    let kind = all
        .iter()
        .find(|kind| kind.kind() == "text-to-image")
        .unwrap();
    kind.open(
        "demo",
        Some(ModelFolder::open(&folder).unwrap()),
        options.into(),
    )
    .unwrap()
}

fn run(opened: &dyn Opened, seed: usize) {
    let request = json!({"prompt": format!("a red heart {seed}"), "width": 32, "height": 32, "steps": 1, "seed": seed});
    let request = opened.check(&request).unwrap();
    let mut run = opened
        .start(vec![Order {
            request,
            resume: None,
        }])
        .unwrap();
    while matches!(run.step().unwrap(), Stepped::Progress(_)) {}
}

#[test]
fn a_hundred_cycles_leave_nothing_behind() {
    // Forgotten, and opened again every tenth time.
    let mut opened = open();
    let mut after_first = None;
    let mut most = 0;
    for cycle in 0..CYCLES {
        run(&*opened, cycle);
        most = most.max(resident_bytes());
        opened.forget();
        if cycle % 10 == 9 {
            opened = open();
        }
        let resident = resident_bytes();
        let first = *after_first.get_or_insert(resident);
        assert!(
            resident <= first + SLACK_BYTES,
            "{resident} bytes after cycle {cycle}, {first} after the first"
        );
    }
    let first = after_first.unwrap();
    eprintln!(
        "{} KiB after the first, {} KiB after the last, {} KiB at most",
        first >> 10,
        resident_bytes() >> 10,
        most >> 10
    );
    // The weights were there, or this shows nothing.
    assert!(
        most > first + (20 << 20),
        "{most} at most, {first} after the first cycle"
    );
}
