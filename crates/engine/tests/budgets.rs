//! Promises about memory: a job stays within its budget, gives the same bytes whatever the budget, and the prediction
//! is near the truth.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::Path;

use lowtide_core::{Bytes, Quality};
use lowtide_engine::{Blame, Engine, ImageRequest, Options, Outcome, PrecisionChoice, Step};
use lowtide_kernels::memory;
use lowtide_weights::ModelFolder;

/// How far a prediction may be off: the larger of a tenth and this.
const PREDICTION_SLACK: Bytes = Bytes::mib(4);

fn engine(budget: Option<Bytes>) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo");
    let options = Options {
        budget,
        precision: PrecisionChoice::F32,
        threads: Some(2),
        ..Options::default()
    };
    Engine::open(ModelFolder::open(&folder).unwrap(), options).unwrap()
}

fn request(count: usize) -> ImageRequest {
    ImageRequest {
        prompt: "a red heart".to_owned(),
        negative: None,
        width: 256,
        height: 192,
        steps: 2,
        guidance: 4.0,
        cfg_normalization: None,
        cfg_truncation: 1.0,
        seed: 1,
        count,
        noise: None,
        quality: Quality::Exact,
        ..ImageRequest::default()
    }
}

fn run(budget: Option<Bytes>, count: usize) -> Outcome {
    let mut session = engine(budget).start(request(count), true).unwrap();
    loop {
        if let Step::Finished(outcome) = session.step().unwrap() {
            return *outcome;
        }
    }
}

/// The smallest budget that would do, as a refusal names it.
fn smallest(count: usize) -> Bytes {
    let refused = engine(Some(Bytes::mib(1))).start(request(count), true);
    let Err(error) = refused else {
        panic!("a MiB is enough?")
    };
    assert_eq!(error.blame(), Blame::Fit);
    match error {
        lowtide_engine::Error::DoesNotFit(numbers) => numbers.smallest,
        other => panic!("{other}"),
    }
}

#[test]
fn ten_budgets_give_the_same_bytes_within_each_budget() {
    let free = run(None, 2);
    let most = free.report.plan.peak;
    // The budget also covers what this test itself holds, so the smallest is found at run time, with some slack for
    // the reference picture kept here.
    let least = smallest(2) + Bytes::kib(64);
    assert!(least < most, "{least} is not less than {most}");
    let mut before = None;
    for i in 0..10 {
        let budget = Bytes(least.0 + (most.0 - least.0) * i / 9);
        let outcome = run(Some(budget), 2);
        assert_eq!(outcome.latents, free.latents, "latents at {budget}");
        assert_eq!(outcome.images, free.images, "pictures at {budget}");
        let report = &outcome.report;
        assert_eq!(report.rungs_taken, 0, "at {budget}");
        eprintln!("scratch {}", lowtide_kernels::scratch_allocated());
        for phase in &report.plan.phases {
            let measured = report.peak[phase.name.as_str()];
            eprintln!(
                "{} {} at {budget}: predicted {}, measured {measured}; weights {} activation {} held {}",
                phase.name, phase.mode, phase.peak, phase.weights, phase.activation, phase.held
            );
            assert!(measured <= budget, "{}: {measured} of {budget}", phase.name);
            let slack = Bytes(phase.peak.0 / 10).max(PREDICTION_SLACK);
            let off = Bytes(phase.peak.0.abs_diff(measured.0));
            assert!(
                off <= slack,
                "{} at {budget}: predicted {}, measured {measured}",
                phase.name,
                phase.peak
            );
        }
        let moved: u64 = report.bytes_read;
        if let Some(before) = before {
            assert!(
                moved <= before,
                "more budget read more: {moved} after {before} at {budget}"
            );
        }
        before = Some(moved);
    }
}

#[test]
fn a_refused_budget_names_the_smallest_that_would_do() {
    let smallest = smallest(1) + Bytes::kib(64);
    run(Some(smallest), 1);
    assert!(
        engine(Some(Bytes(smallest.0 / 2)))
            .plan(&request(1))
            .is_err()
    );
}

#[test]
fn memory_comes_back_when_a_session_ends() {
    let engine = engine(None);
    engine.plan(&request(1)).unwrap();
    let before = memory::live();
    let mut session = engine.start(request(1), false).unwrap();
    for _ in 0..3 {
        session.step().unwrap();
    }
    assert!(memory::live() > before + (10 << 20));
    drop(session);
    let after = memory::live();
    // Threads keep their scratch, and the pool its queues.
    let scratch = lowtide_kernels::scratch_bytes(2) as u64 + (64 << 10);
    assert!(
        after <= before + scratch,
        "{after} bytes after, {before} before"
    );
}

#[test]
fn an_unexpected_refusal_takes_a_rung_and_gives_the_same_picture() {
    let reference = run(None, 1);
    let engine = engine(None);
    let mut session = engine.start(request(1), true).unwrap();
    // Someone else takes memory after the plan was made: every buffer beyond this is refused.
    let squeezed = session.plan().phases[2].peak.0 - (6 << 20);
    let outcome = loop {
        memory::set_budget(Some(squeezed));
        if let Step::Finished(outcome) = session.step().unwrap() {
            break outcome;
        }
    };
    assert!(outcome.report.rungs_taken > 0);
    assert_eq!(outcome.images, reference.images);
}
