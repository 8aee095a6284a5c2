//! The promises, one a test.

use std::sync::atomic::Ordering;
use std::time::Duration;

use lowtide_core::job::{JobState, Priority};
use lowtide_core::lifecycle::{AfterJob, KeepAlive};
use lowtide_engine::{Options, PrecisionChoice};
use lowtide_jobs::report::Status;
use lowtide_jobs::{Order, Wishes};
use lowtide_worker::WorkerOptions;
use serde_json::json;

use crate::processor::WEIGHTS;
use crate::rig::{Rig, now, until};

#[test]
fn a_job_is_done_with_its_file_and_its_report() {
    let mut rig = Rig::new();
    rig.start();
    let job = rig.act("a", 3);
    let done = rig.wait_state(job, JobState::Done);
    assert_eq!(rig.text(&done), "a 3");
    assert_eq!(done.attempt, 1);
    let report = done.outcome.unwrap().report.unwrap();
    assert_eq!(report, r#"{"resumed_at":0}"#);
}

#[test]
fn jobs_that_agree_share_a_batch_and_each_has_its_own_result() {
    let mut rig = Rig::new();
    let jobs: Vec<_> = (0..5)
        .map(|k| rig.submit(rig.submission(json!({ "name": format!("b{k}") }))))
        .collect();
    rig.start();
    for (k, &job) in jobs.iter().enumerate() {
        let done = rig.wait_state(job, JobState::Done);
        assert_eq!(rig.text(&done), format!("b{k} 3"));
    }
    assert_eq!(*rig.stage.batches.lock().unwrap(), [5]);
}

#[test]
fn jobs_that_cannot_share_a_batch_run_one_by_one() {
    let mut rig = Rig::new();
    let jobs: Vec<_> = (0..3)
        .map(|k| {
            let request = json!({ "name": format!("b{k}"), "alone": true });
            rig.submit(rig.submission(request))
        })
        .collect();
    rig.start();
    for job in jobs {
        rig.wait_state(job, JobState::Done);
    }
    assert_eq!(*rig.stage.batches.lock().unwrap(), [1, 1, 1]);
}

#[test]
fn a_member_of_a_batch_can_be_cancelled_alone() {
    let mut rig = Rig::new();
    rig.stage.bar("b0");
    let jobs: Vec<_> = (0..3)
        .map(|k| rig.submit(rig.submission(json!({ "name": format!("b{k}") }))))
        .collect();
    rig.start();
    rig.stage.wait_for_steps("b0", 1);
    rig.store.cancel(jobs[1], now()).unwrap();
    rig.stage.let_go("b0");
    rig.wait_state(jobs[0], JobState::Done);
    rig.wait_state(jobs[2], JobState::Done);
    // It may have been finished before the worker looked, or stopped.
    let state = until("an end of the cancelled", || {
        let state = rig.job(jobs[1]).state;
        state.is_final().then_some(state)
    });
    assert!(
        matches!(state, JobState::Cancelled | JobState::Done),
        "{state}"
    );
}

#[test]
fn the_first_of_a_batch_can_be_paused_and_go_on_by_itself() {
    let mut rig = Rig::new();
    rig.stage.bar("b0");
    let jobs: Vec<_> = (0..2)
        .map(|k| {
            let request = json!({ "name": format!("b{k}"), "steps": 40 });
            rig.submit(rig.submission(request))
        })
        .collect();
    rig.start();
    rig.stage.wait_for_steps("b0", 1);
    rig.store.pause(jobs[0], now()).unwrap();
    let worker = rig.worker().parse().unwrap();
    let expires = now() + Duration::from_secs(60);
    let order = Order::Pause { job: Some(jobs[0]) };
    rig.store.send(&worker, order, expires, now()).unwrap();
    // It is let go only once the order lies there, for one step: the batch goes on without its first.
    rig.stage.let_go("b0");
    rig.wait_state(jobs[0], JobState::Paused);
    rig.store.resume(jobs[0], now()).unwrap();
    let urgent = Some(Priority::Urgent);
    let mut other = rig.submission(json!({ "name": "u", "steps": 2 }));
    other.priority = urgent;
    let other = rig.submit(other);
    for job in [other, jobs[0], jobs[1]] {
        rig.wait_state(job, JobState::Done);
    }
    assert_eq!(rig.text(&rig.job(jobs[0])), "b0 40");
    assert_eq!(rig.text(&rig.job(jobs[1])), "b1 40");
}

#[test]
fn one_bad_member_of_a_batch_does_not_take_the_others_along() {
    let mut rig = Rig::new();
    let mut jobs = vec![rig.submit(rig.submission(json!({ "name": "bad", "fails": "request" })))];
    jobs.extend((0..3).map(|k| rig.submit(rig.submission(json!({ "name": format!("g{k}") })))));
    rig.start();
    for &job in &jobs[1..] {
        rig.wait_state(job, JobState::Done);
    }
    let bad = rig.wait_state(jobs[0], JobState::Failed);
    assert_eq!(bad.error.as_deref(), Some("name is wrong"));
    assert_eq!(*rig.stage.batches.lock().unwrap(), [4, 1, 1, 1, 1]);
}

#[test]
fn a_cancelled_job_stops_at_the_next_step() {
    let mut rig = Rig::new();
    rig.stage.bar("c");
    rig.start();
    let job = rig.act("c", 1_000_000);
    rig.stage.wait_for_steps("c", 1);
    rig.store.cancel(job, now()).unwrap();
    let worker = rig.worker().parse().unwrap();
    let expires = now() + Duration::from_secs(60);
    rig.store
        .send(&worker, Order::Cancel { job }, expires, now())
        .unwrap();
    rig.stage.let_go("c");
    rig.wait_state(job, JobState::Cancelled);
    let after = rig.act("d", 2);
    rig.wait_state(after, JobState::Done);
}

#[test]
fn a_paused_job_gives_its_place_back_and_goes_on_where_it_was() {
    let mut rig = Rig::new();
    rig.stage.bar("p");
    rig.start();
    let job = rig.act("p", 50);
    rig.stage.wait_for_steps("p", 1);
    rig.store.pause(job, now()).unwrap();
    let worker = rig.worker().parse().unwrap();
    let expires = now() + Duration::from_secs(60);
    let order = Order::Pause { job: Some(job) };
    rig.store.send(&worker, order, expires, now()).unwrap();
    rig.stage.let_go("p");
    let paused = rig.wait_state(job, JobState::Paused);
    let reached = paused.session.unwrap().progress.step;
    assert!(paused.holder.is_none());
    until("no open session", || {
        rig.status()?.sessions.is_empty().then_some(())
    });
    rig.store.resume(job, now()).unwrap();
    let done = rig.wait_state(job, JobState::Done);
    let report: serde_json::Value =
        serde_json::from_str(&done.outcome.clone().unwrap().report.unwrap()).unwrap();
    assert_eq!(report["resumed_at"], json!(reached));
    assert_eq!(rig.text(&done), "p 50");
    // They go after the result is there, so whoever sees the result first waits a moment.
    until("files of sessions to go", || {
        let left = std::fs::read_dir(rig.sessions()).unwrap().count();
        (left == 0).then_some(())
    });
}

#[test]
fn an_urgent_job_parks_the_running_one_which_goes_on_afterwards() {
    let mut rig = Rig::new();
    rig.stage.bar("long");
    rig.start();
    let long = rig.act("long", 20);
    rig.stage.wait_for_steps("long", 1);
    let mut urgent = rig.submission(json!({ "name": "urgent", "steps": 2 }));
    urgent.priority = Some(Priority::Urgent);
    urgent.model = "two".to_owned();
    let urgent = rig.submit(urgent);
    rig.stage.let_go("long");
    rig.wait_state(urgent, JobState::Done);
    let second = rig.wait_state(long, JobState::Done);
    // Results are published side by side, so the store's times may stand in either order; the steps may not.
    let order = rig.stage.order();
    assert_eq!(order.last().map(String::as_str), Some("long"), "{order:?}");
    assert_eq!(rig.stage.parked.load(Ordering::SeqCst), 1);
    assert_eq!(rig.text(&second), "long 20");
    assert_eq!(second.attempt, 1, "parking is no new attempt");
    assert_eq!(
        rig.stage.computed.load(Ordering::SeqCst),
        22,
        "no step twice"
    );
}

#[test]
fn what_runs_when_a_worker_ends_goes_on_in_the_next() {
    let mut rig = Rig::new();
    rig.stage.bar("s");
    rig.start();
    let job = rig.act("s", 30);
    rig.stage.wait_for_steps("s", 1);
    rig.ask_to_stop();
    rig.stage.let_go("s");
    rig.join();
    let given_back = rig.job(job);
    assert_eq!(given_back.state, JobState::Queued);
    assert!(rig.store.workers().unwrap().is_empty(), "it said goodbye");
    let reached = given_back.session.unwrap().progress.step;
    assert!(reached >= 1);
    rig.start();
    let done = rig.wait_state(job, JobState::Done);
    assert_eq!(rig.text(&done), "s 30");
    assert_eq!(
        rig.stage.computed.load(Ordering::SeqCst),
        30,
        "no step twice"
    );
}

#[test]
fn a_wrong_request_fails_at_once_and_others_are_tried_again() {
    let mut rig = Rig::new();
    rig.start();
    let wrong = rig.submit(rig.submission(json!({ "name": "w", "fails": "request" })));
    let failed = rig.wait_state(wrong, JobState::Failed);
    assert_eq!(failed.attempt, 1);
    assert_eq!(failed.error.as_deref(), Some("name is wrong"));
    let later = rig.submit(rig.submission(json!({ "name": "l", "fails": "later" })));
    let failed = rig.wait_state(later, JobState::Failed);
    assert_eq!(failed.attempt, 2, "as often as the policy says");
    assert_eq!(failed.history.len(), 2);
}

#[test]
fn a_panic_is_a_failed_job_and_the_worker_goes_on() {
    let mut rig = Rig::new();
    rig.start();
    let panics = rig.submit(rig.submission(json!({ "name": "x", "fails": "panics" })));
    let failed = rig.wait_state(panics, JobState::Failed);
    assert!(failed.error.unwrap().contains("as it was told"));
    let job = rig.act("after", 2);
    rig.wait_state(job, JobState::Done);
}

#[test]
fn a_model_stays_for_the_next_job_and_leaves_by_the_timer() {
    let mut rig = Rig::with(WorkerOptions {
        idle: Some(Duration::from_millis(150)),
        ..WorkerOptions::default()
    });
    rig.start();
    let job = rig.act("a", 1);
    rig.wait_state(job, JobState::Done);
    let kept = rig.wait_model("weights kept", |model| model.device_bytes == WEIGHTS.0);
    assert_eq!((kept.hits, kept.misses), (0, 1));
    rig.wait_model("host memory", |model| model.moves.offloads.count == 1);
    let gone = rig.wait_model("out", |model| model.residency == "unloaded");
    assert_eq!(gone.device_bytes, 0);
    assert_eq!(gone.moves.releases.count, 1);
}

#[test]
fn a_request_can_release_its_model_at_once() {
    let mut rig = Rig::new();
    rig.start();
    for wishes in [
        Wishes {
            trace: None,
            after_job: Some(AfterJob::Release),
            keep_alive: None,
        },
        Wishes {
            trace: None,
            after_job: None,
            keep_alive: Some(KeepAlive::For(Duration::ZERO)),
        },
    ] {
        let mut submission = rig.submission(json!({ "name": "r" }));
        submission.wishes = wishes;
        let job = rig.submit(submission);
        rig.wait_state(job, JobState::Done);
        rig.wait_model("release", |model| {
            model.residency == "unloaded" && model.moves.releases.count > 0
        });
    }
    rig.wait_model("two releases", |model| model.moves.releases.count == 2);
}

#[test]
fn hands_load_offload_and_release() {
    let mut rig = Rig::new();
    rig.start();
    let model = || Some("one".to_owned());
    let (ok, message) = rig.order(Order::Load {
        model: "one".to_owned(),
    });
    assert!(ok, "{message}");
    rig.wait_model("device", |model| {
        model.residency == "device" && model.device_bytes > 0
    });
    let (ok, message) = rig.order(Order::Offload { model: model() });
    assert!(ok, "{message}");
    rig.wait_model("host", |model| {
        model.residency == "host" && model.device_bytes == 0
    });
    assert!(rig.order(Order::Release { model: None }).0);
    rig.wait_model("out", |model| model.residency == "unloaded");
    let (ok, message) = rig.order(Order::Load {
        model: "three".to_owned(),
    });
    assert!(!ok && message.contains("there are one, two"), "{message}");
}

#[test]
fn a_model_in_use_is_not_taken_away_under_its_job() {
    let mut rig = Rig::new();
    rig.stage.bar("u");
    rig.start();
    let job = rig.act("u", 5);
    rig.stage.wait_for_steps("u", 1);
    let worker = rig.worker().parse().unwrap();
    let order = Order::Release {
        model: Some("one".to_owned()),
    };
    let expires = now() + Duration::from_secs(60);
    let command = rig.store.send(&worker, order, expires, now()).unwrap();
    rig.stage.let_go("u");
    let done = rig.wait_state(job, JobState::Done);
    assert_eq!(rig.text(&done), "u 5");
    until("the answer", || {
        rig.store.command(command).unwrap().acknowledged
    });
    rig.wait_model("release afterwards", |model| model.residency == "unloaded");
}

#[test]
fn a_paused_worker_parks_what_runs_and_begins_nothing() {
    let mut rig = Rig::new();
    rig.stage.bar("q");
    rig.start();
    let job = rig.act("q", 5);
    rig.stage.wait_for_steps("q", 1);
    let worker = rig.worker().parse().unwrap();
    let expires = now() + Duration::from_secs(60);
    let command = rig
        .store
        .send(&worker, Order::Pause { job: None }, expires, now())
        .unwrap();
    rig.stage.let_go("q");
    until("the answer", || {
        rig.store.command(command).unwrap().acknowledged
    });
    let state = until("parked or done", || {
        let state = rig.job(job).state;
        matches!(state, JobState::Parked | JobState::Done).then_some(state)
    });
    let waiting = rig.act("z", 1);
    assert!(rig.order(Order::Resume).0);
    rig.wait_state(waiting, JobState::Done);
    rig.wait_state(job, JobState::Done);
    assert!(state == JobState::Parked || rig.stage.parked.load(Ordering::SeqCst) == 0);
}

#[test]
fn a_worker_says_how_it_is() {
    let mut rig = Rig::new();
    rig.stage.bar("e");
    rig.start();
    let job = rig.act("e", 4);
    rig.stage.wait_for_steps("e", 1);
    let status = until("a busy worker", || {
        rig.status().filter(|status| !status.sessions.is_empty())
    });
    assert_eq!(status.sessions[0].jobs, [job.to_string()]);
    assert_eq!(status.sessions[0].state, "active");
    assert!(status.memory.allocated > 0 && status.memory.budget > status.memory.allocated);
    assert_eq!(status.explanations[0].code, "running");
    rig.stage.let_go("e");
    rig.wait_state(job, JobState::Done);
    let idle = until("an idle worker", || {
        let done =
            |status: &Status| status.explanations[0].code == "idle" && status.counts.done == 1;
        rig.status().filter(done)
    });
    assert!(idle.explanations.iter().any(|one| one.code == "kept"));
}

#[test]
fn leftovers_of_jobs_that_are_over_are_removed_at_the_start() {
    let mut rig = Rig::new();
    rig.start();
    let job = rig.act("a", 1);
    rig.wait_state(job, JobState::Done);
    rig.stop();
    let over = rig.sessions().join(format!("{job}-1.session"));
    let foreign = rig.sessions().join("notes.txt");
    std::fs::write(&over, "1").unwrap();
    std::fs::write(&foreign, "mine").unwrap();
    rig.start();
    until("the leftover gone", || (!over.exists()).then_some(()));
    assert!(foreign.exists(), "what is not ours stays");
}

#[test]
fn a_worker_on_a_processor_refuses_what_only_gpus_multiply_in() {
    let rig = Rig::new();
    let device = Options {
        precision: PrecisionChoice::F16,
        ..Options::default()
    };
    let refused = rig.open(device).err().unwrap().to_string();
    assert_eq!(
        refused,
        "device.precision f16 is for GPUs, and this computes on the processor: say f32, bf16 or auto"
    );
}
