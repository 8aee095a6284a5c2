//! A rolling upgrade: a worker is told to end while it works, and another machine goes on where it stopped.

use std::time::Duration;

use lowtide_core::job::{JobId, JobState};
use lowtide_jobs::JobStore;
use serde_json::json;

use crate::machines::{Files, Machines};
use crate::ordeal::wait;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn what_a_worker_parks_when_it_ends_goes_on_elsewhere() {
    hand_over(
        "what_a_worker_parks_when_it_ends_goes_on_elsewhere",
        Files::Folder,
    );
}

#[test]
fn what_a_worker_parks_in_a_bucket_goes_on_elsewhere() {
    hand_over(
        "what_a_worker_parks_in_a_bucket_goes_on_elsewhere",
        Files::Bucket,
    );
}

/// The bytes are those of a job that nobody interrupted.
fn hand_over(test: &str, files: Files) {
    let Some(machines) = Machines::new(test, files) else {
        return;
    };
    machines.start_server_alone();
    machines.start_worker(0);
    let slow = |step_ms: u64| {
        json!({ "kind": "noise", "model": "noise", "request": {
            "width": 64, "height": 64, "seed": 7, "strips": 40, "step_ms": step_ms } })
    };
    let submit = |body, key| -> JobId {
        let job = wait("a job to be accepted", SOON, || {
            machines.post("/v1/jobs", &body, Some(key))
        });
        job["id"].as_str().unwrap().parse().unwrap()
    };
    let job = submit(slow(100), "slow");
    let store = machines.store();
    let half = || {
        let now = store.job(job).ok()?;
        let far = now.progress.is_some_and(|progress| progress.step >= 8);
        (now.state == JobState::Running && far).then_some(())
    };
    wait("the job to be under way", SOON, half);
    machines.end_worker(0);
    let parked = store.job(job).unwrap();
    assert_eq!(parked.state, JobState::Queued, "{parked:#?}");
    assert!(parked.session.is_some(), "it was saved: {parked:#?}");
    machines.start_worker(1);
    let done = wait("the job to be done", SOON, || {
        store.job(job).ok().filter(|job| job.state.is_final())
    });
    assert_eq!(done.state, JobState::Done, "{done:#?}");
    assert_eq!(machines.resumed(), 1, "it went on from where it was saved");
    let undisturbed = submit(slow(0), "undisturbed");
    let other = wait("the other one to be done", SOON, || {
        store
            .job(undisturbed)
            .ok()
            .filter(|job| job.state.is_final())
    });
    let artifacts = machines.artifacts();
    let content = |job: &lowtide_jobs::Job| {
        let outcome = job.outcome.as_ref().unwrap();
        artifacts.read(&outcome.artifacts[0]).unwrap()
    };
    assert!(content(&done) == content(&other), "the same bytes");
    machines.stop();
}
