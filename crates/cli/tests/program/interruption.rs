//! Ctrl-C: the job stops between steps and leaves nothing behind.
#![cfg(unix)]

use crate::Place;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

/// Sends a signal once the job is under way, and expects the clean end.
fn interrupt(signal: &str) {
    let place = Place::new();
    place.write("kept.png", "an older picture");
    let mut child = place
        .command()
        .args([
            "generate",
            "--local",
            "heart",
            "--steps",
            "1000",
            "-o",
            "kept.png",
            "--dump",
            "dump.safetensors",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    // A line is told when a phase ends; the thousand steps of the next but one are still to come.
    let mut first = String::new();
    stderr.read_line(&mut first).unwrap();
    assert!(first.starts_with("encode"), "{first}");
    let kill = format!("kill -{signal} {}", child.id());
    assert!(
        Command::new("sh")
            .args(["-c", &kill])
            .status()
            .unwrap()
            .success()
    );
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert_eq!(
        rest.lines().last(),
        Some("error: interrupted; nothing was written"),
        "{rest}"
    );
    assert_eq!(place.names().into_iter().collect::<Vec<_>>(), ["kept.png"]);
    assert_eq!(
        std::fs::read_to_string(place.path("kept.png")).unwrap(),
        "an older picture"
    );
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    interrupt("INT");
}

#[test]
fn a_polite_request_to_end_is_the_same() {
    interrupt("TERM");
}
