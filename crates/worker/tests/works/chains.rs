//! Promises about jobs of several steps.

use std::time::Duration;

use lowtide_core::job::{JobId, JobState, Priority};
use lowtide_jobs::report::{Hints, ModelStatus, StepHints};
use lowtide_jobs::{Order, Submission, random_job_id};
use serde_json::{Value, json};

use crate::processor::WEIGHTS;
use crate::rig::{Rig, now, until};

/// Two steps: `NAME-1` on model one, `NAME-2` on model two, each of so many steps of its own.
fn submission(name: &str, steps: [u32; 2]) -> Submission {
    let step = |k: usize, model: &str| {
        let request = json!({ "name": format!("{name}-{}", k + 1), "steps": steps[k] });
        json!({ "kind": "act", "model": model, "request": request })
    };
    let request = json!({ "steps": [step(0, "one"), step(1, "two")] });
    let mut submission =
        Submission::new(random_job_id(now()), "chain", "one", &request.to_string());
    let hint = |model: &str| StepHints {
        kind: "act".to_owned(),
        model: model.to_owned(),
    };
    let hints = Hints {
        seconds: 2.0,
        peak: WEIGHTS.0,
        batch: None,
        steps: vec![hint("one"), hint("two")],
    };
    submission.hints = Some(hints.to_json());
    submission
}

fn model(rig: &Rig, name: &str, what: &str, is: impl Fn(&ModelStatus) -> bool) -> ModelStatus {
    until(what, || {
        let models = rig.status()?.models;
        models
            .into_iter()
            .find(|model| model.name == name && is(model))
    })
}

fn report(rig: &Rig, job: JobId) -> Value {
    let done = rig.wait_state(job, JobState::Done);
    serde_json::from_str(&done.outcome.unwrap().report.unwrap()).unwrap()
}

#[test]
fn models_of_a_chain_come_when_their_step_does_and_the_result_is_the_last_steps() {
    let mut rig = Rig::new();
    for name in ["c-1", "c-2"] {
        rig.stage.bar(name);
    }
    rig.start();
    let job = rig.submit(submission("c", [3, 4]));
    rig.stage.wait_for_steps("c-1", 1);
    // What is said is said between steps.
    rig.stage.let_go("c-1");
    rig.stage.wait_for_steps("c-2", 1);
    rig.stage.let_go("c-2");
    let done = rig.wait_state(job, JobState::Done);
    assert_eq!(rig.text(&done), "c-2 4");
    assert_eq!(
        rig.stage.order(),
        ["c-1", "c-1", "c-1", "c-2", "c-2", "c-2", "c-2"]
    );
    let report = report(&rig, job);
    let steps = report["chain"]["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 2);
    for (step, model) in steps.iter().zip(["one", "two"]) {
        assert_eq!(step["model"], model);
        assert!(step["seconds"]["total"].as_f64().unwrap() > 0.0);
    }
    // Both were used, and nobody uses them any more.
    for name in ["one", "two"] {
        let status = model(&rig, name, "a model at rest", |model| {
            model.in_flight == 0 && model.residency == "device"
        });
        assert_eq!(status.misses, 1, "{name}");
        assert_eq!(status.moves.loads.count, 1, "{name}");
    }
}

#[test]
fn only_the_model_of_the_present_step_is_in_use() {
    let mut rig = Rig::new();
    rig.stage.bar("c-1");
    rig.start();
    let job = rig.submit(submission("c", [1_000_000, 1_000_000]));
    rig.stage.wait_for_steps("c-1", 1);
    let one = model(&rig, "one", "the first model in use", |model| {
        model.in_flight == 1
    });
    assert_eq!(one.residency, "device");
    let two = model(&rig, "two", "the second model", |_| true);
    assert_eq!((two.in_flight, two.residency.as_str()), (0, "unloaded"));
    rig.store.cancel(job, now()).unwrap();
    let order = Order::Cancel { job };
    let expires = now() + Duration::from_secs(60);
    let worker = rig.worker().parse().unwrap();
    rig.store.send(&worker, order, expires, now()).unwrap();
    rig.stage.let_go("c-1");
    rig.wait_state(job, JobState::Cancelled);
    model(&rig, "one", "the first model at rest", |model| {
        model.in_flight == 0
    });
    // Nothing is left that would keep either from leaving.
    let (ok, message) = rig.order(Order::Release { model: None });
    assert!(ok, "{message}");
    model(&rig, "one", "the first model gone", |model| {
        model.residency == "unloaded"
    });
}

#[test]
fn a_chain_paused_in_its_second_step_goes_on_there() {
    let mut rig = Rig::new();
    rig.stage.bar("p-2");
    rig.start();
    let job = rig.submit(submission("p", [2, 50]));
    rig.stage.wait_for_steps("p-2", 1);
    rig.store.pause(job, now()).unwrap();
    let worker = rig.worker().parse().unwrap();
    let expires = now() + Duration::from_secs(60);
    let order = Order::Pause { job: Some(job) };
    rig.store.send(&worker, order, expires, now()).unwrap();
    rig.stage.let_go("p-2");
    let paused = rig.wait_state(job, JobState::Paused);
    let progress = paused.session.unwrap().progress;
    assert_eq!(progress.phase, "2/2 act");
    rig.stop();
    rig.start();
    rig.store.resume(job, now()).unwrap();
    let report = report(&rig, job);
    assert_eq!(
        report["chain"]["steps"][1]["reports"][0]["resumed_at"],
        json!(progress.step)
    );
    assert_eq!(rig.text(&rig.job(job)), "p-2 50");
    let first = rig
        .stage
        .order()
        .iter()
        .filter(|name| *name == "p-1")
        .count();
    assert_eq!(first, 2, "the first step is done once");
    until("files of sessions to go", || {
        let left = std::fs::read_dir(rig.sessions()).unwrap().count();
        (left == 0).then_some(())
    });
}

#[test]
fn an_urgent_job_parks_a_chain_which_goes_on_afterwards() {
    let mut rig = Rig::new();
    rig.stage.bar("c-2");
    rig.start();
    let chain = rig.submit(submission("c", [2, 10]));
    rig.stage.wait_for_steps("c-2", 1);
    let mut urgent = rig.submission(json!({ "name": "urgent", "steps": 2 }));
    urgent.priority = Some(Priority::Urgent);
    let urgent = rig.submit(urgent);
    rig.stage.let_go("c-2");
    rig.wait_state(urgent, JobState::Done);
    let done = rig.wait_state(chain, JobState::Done);
    assert_eq!(rig.text(&done), "c-2 10");
    assert_eq!(done.attempt, 1, "parking is no new attempt");
    assert_eq!(rig.stage.order().len(), 2 + 10 + 2, "no step twice");
    for name in ["one", "two"] {
        model(&rig, name, "a model at rest", |model| model.in_flight == 0);
    }
}

#[test]
fn a_step_that_fails_ends_the_chain_and_frees_its_models() {
    let mut rig = Rig::new();
    let mut bad = submission("f", [1, 1]);
    bad.request = bad
        .request
        .replace("\"name\":\"f-2\"", "\"fails\":\"request\",\"name\":\"f-2\"");
    assert!(bad.request.contains("fails"), "{}", bad.request);
    rig.start();
    let job = rig.submit(bad);
    let failed = until("the end", || {
        let job = rig.job(job);
        (job.state == JobState::Failed).then_some(job)
    });
    assert_eq!(
        failed.error.as_deref(),
        Some("steps[1].request.name is wrong")
    );
    for name in ["one", "two"] {
        model(&rig, name, "a model at rest", |model| model.in_flight == 0);
    }
    let after = rig.act("d", 2);
    rig.wait_state(after, JobState::Done);
}
