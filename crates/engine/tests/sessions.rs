//! Promises about jobs in progress: weights kept for the next job, parking, and sessions that go on from a file.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::Path;

use lowtide_core::{Bytes, Quality};
use lowtide_engine::{
    Blame, Engine, ImageRequest, Options, Outcome, PrecisionChoice, Session, Step,
};
use lowtide_kernels::memory;
use lowtide_weights::ModelFolder;

fn engine(budget: Option<Bytes>, keep_weights: bool) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo");
    let precision = PrecisionChoice::F32;
    let options = Options {
        budget,
        precision,
        threads: Some(2),
        keep_weights,
        prompt_cache: Some(Bytes::ZERO),
        ..Options::default()
    };
    Engine::open(ModelFolder::open(&folder).unwrap(), options).unwrap()
}

fn request() -> ImageRequest {
    ImageRequest {
        prompt: "a blue cat face".to_owned(),
        negative: Some("red".to_owned()),
        width: 96,
        height: 64,
        steps: 3,
        guidance: 4.0,
        cfg_normalization: None,
        cfg_truncation: 1.0,
        seed: 5,
        count: 2,
        noise: None,
        quality: Quality::Exact,
        ..ImageRequest::default()
    }
}

fn finish(mut session: Session) -> Outcome {
    loop {
        if let Step::Finished(outcome) = session.step().unwrap() {
            return *outcome;
        }
    }
}

/// Steps of the whole job: encode, refine, 3 steps of both pictures at once, 2 pictures.
const STEPS: usize = 7;

#[test]
fn kept_weights_are_not_read_again() {
    let engine = engine(None, true);
    let first = finish(engine.start(request(), true).unwrap());
    assert!(first.report.bytes_read > 0);
    let kept = engine.kept();
    assert!(kept > Bytes::mib(30), "{kept}");
    let second = finish(engine.start(request(), true).unwrap());
    assert_eq!(second.report.bytes_read, 0);
    assert_eq!(
        (&second.images, &second.latents),
        (&first.images, &first.latents)
    );

    let before = memory::live();
    assert_eq!(engine.forget_weights(), kept);
    assert!(memory::live() + kept.0 <= before);
    assert_eq!(engine.kept(), Bytes::ZERO);
    let third = finish(engine.start(request(), true).unwrap());
    assert_eq!(third.report.bytes_read, first.report.bytes_read);
    assert_eq!(third.images, first.images);
}

#[test]
fn kept_weights_make_room_within_the_budget() {
    let reference = finish(engine(None, false).start(request(), true).unwrap());
    for mib in [14, 18, 24, 32, 40] {
        let budget = Bytes::mib(mib);
        let engine = engine(Some(budget), true);
        for job in 0..3 {
            let outcome = finish(engine.start(request(), true).unwrap());
            assert_eq!(outcome.images, reference.images, "job {job} at {budget}");
            assert_eq!(outcome.report.rungs_taken, 0, "job {job} at {budget}");
            for (phase, peak) in &outcome.report.peak {
                assert!(
                    *peak <= budget,
                    "job {job}: {phase} took {peak} of {budget}"
                );
            }
        }
        assert!(engine.kept() <= budget);
    }
}

#[test]
fn preloaded_weights_are_there_at_the_first_job() {
    let engine = engine(None, true);
    let loaded = engine.preload().unwrap();
    assert!(loaded > Bytes::mib(30), "{loaded}");
    assert_eq!(
        finish(engine.start(request(), false).unwrap())
            .report
            .bytes_read,
        0
    );
}

#[test]
fn a_parked_session_goes_on_to_the_same_bytes() {
    let engine = engine(None, false);
    let reference = finish(engine.start(request(), true).unwrap());
    let before = memory::live();
    let mut session = engine.start(request(), true).unwrap();
    for step in 1..=STEPS {
        if let Step::Finished(outcome) = session.step().unwrap() {
            assert_eq!(step, STEPS);
            assert_eq!(
                (&outcome.images, &outcome.latents),
                (&reference.images, &reference.latents)
            );
            return;
        }
        session.park();
        let held = memory::live().saturating_sub(before);
        assert!(
            held < 4 << 20,
            "parked after step {step} it holds {held} bytes"
        );
    }
    panic!("not finished after {STEPS} steps");
}

#[test]
fn a_saved_session_goes_on_elsewhere_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.session");
    let reference = finish(engine(None, false).start(request(), true).unwrap());
    for saved_after in 0..STEPS {
        let mut session = engine(None, false).start(request(), true).unwrap();
        for _ in 0..saved_after {
            assert!(matches!(session.step().unwrap(), Step::Progress(_)));
        }
        assert_eq!(session.save(0, &file).unwrap(), saved_after > 0);
        drop(session);
        if saved_after == 0 {
            assert!(!file.exists(), "there was nothing to save");
            continue;
        }
        // Another engine, with less memory.
        let elsewhere = engine(Some(Bytes::mib(20)), false);
        let outcome = finish(elsewhere.resume(&file).unwrap());
        assert_eq!(
            outcome.images, reference.images,
            "saved after step {saved_after}"
        );
        assert_eq!(
            outcome.latents, reference.latents,
            "saved after step {saved_after}"
        );
        assert_eq!(
            outcome.values, reference.values,
            "saved after step {saved_after}"
        );
    }
}

#[test]
fn a_session_of_another_kind_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.session");
    let mut session = engine(None, false).start(request(), false).unwrap();
    for _ in 0..3 {
        session.step().unwrap();
    }
    session.save(0, &file).unwrap();
    drop(session);

    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/z-image/plain-bf16/checkpoint");
    let options = Options {
        precision: PrecisionChoice::F32,
        threads: Some(2),
        ..Options::default()
    };
    let other = Engine::open(ModelFolder::open(&model).unwrap(), options).unwrap();
    let Err(error) = other.resume(&file) else {
        panic!("another model's session was taken")
    };
    assert!(
        error.to_string().contains("belongs to the model"),
        "{error}"
    );

    let weights = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../cli/demo/vae/diffusion_pytorch_model.safetensors");
    let Err(error) = other.resume(&weights) else {
        panic!("weights were taken for a session")
    };
    assert!(error.to_string().contains("not a saved session"), "{error}");

    // Cut in the middle: the header says more than there is.
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
    let Err(error) = engine(None, false).resume(&file) else {
        panic!("half a session was taken")
    };
    assert_eq!(error.blame(), Blame::User);
}

#[test]
fn weights_in_use_are_counted_as_the_models() {
    for keep_weights in [false, true] {
        let engine = engine(None, keep_weights);
        let mut session = engine.start(request(), false).unwrap();
        let mut most = Bytes::ZERO;
        while let Step::Progress(_) = session.step().unwrap() {
            most = most.max(engine.held());
        }
        assert!(most > Bytes::ZERO, "a step uses weights");
        session.park();
        assert_eq!(engine.held(), engine.kept(), "nothing is in use any more");
        drop(session);
        assert_eq!(engine.kept() > Bytes::ZERO, keep_weights);
        engine.forget_weights();
        assert_eq!(engine.held(), Bytes::ZERO);
    }
}
