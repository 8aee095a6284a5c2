//! Promises about the words on offload: the same bytes under each, and memory as the word says.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::Path;

use lowtide_core::{Bytes, Offload, Quality};
use lowtide_engine::{Blame, Engine, ImageRequest, Options, Outcome, PrecisionChoice, Step};
use lowtide_weights::ModelFolder;

fn engine(offload: Offload, budget: Option<Bytes>, keep_weights: bool) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo");
    let options = Options {
        offload,
        budget,
        keep_weights,
        precision: PrecisionChoice::F32,
        threads: Some(2),
        ..Options::default()
    };
    Engine::open(ModelFolder::open(&folder).unwrap(), options).unwrap()
}

fn request() -> ImageRequest {
    ImageRequest {
        prompt: "a red heart".to_owned(),
        negative: None,
        width: 64,
        height: 64,
        steps: 2,
        guidance: 4.0,
        cfg_normalization: None,
        cfg_truncation: 1.0,
        seed: 1,
        count: 1,
        noise: None,
        quality: Quality::Exact,
        ..ImageRequest::default()
    }
}

fn run(engine: &Engine) -> Outcome {
    let mut session = engine.start(request(), true).unwrap();
    loop {
        if let Step::Finished(outcome) = session.step().unwrap() {
            return *outcome;
        }
    }
}

#[test]
fn every_word_gives_the_same_bytes_and_its_own_peak() {
    let mut peaks = Vec::new();
    let mut pictures: Option<Outcome> = None;
    for offload in [
        Offload::Stream,
        Offload::Components,
        Offload::Auto,
        Offload::Never,
    ] {
        let outcome = run(&engine(offload, None, false));
        assert_eq!(outcome.report.rungs_taken, 0, "{offload:?}");
        peaks.push(*outcome.report.peak.values().max().unwrap());
        let first = pictures.get_or_insert_with(|| outcome.clone());
        assert!(
            first.images == outcome.images && first.latents == outcome.latents,
            "{offload:?}"
        );
    }
    let [stream, components, auto, never] = peaks[..] else {
        panic!("four words")
    };
    assert!(stream < components && components < never, "{peaks:?}");
    assert!(auto <= never, "{peaks:?}");
}

#[test]
fn a_word_holds_from_job_to_job() {
    for (offload, keeps) in [
        (Offload::Stream, false),
        (Offload::Components, false),
        (Offload::Never, true),
    ] {
        let engine = engine(offload, None, true);
        let first = run(&engine);
        assert_eq!(engine.kept() > Bytes::mib(30), keeps, "{offload:?}");
        assert_eq!(engine.preload().unwrap() > Bytes::mib(30), keeps);
        let second = run(&engine);
        assert_eq!(second.report.bytes_read == 0, keeps, "{offload:?}");
        assert!(first.images == second.images);
    }
}

#[test]
fn a_word_that_cannot_be_kept_is_refused_with_the_budget_that_would_do() {
    let budget = Bytes::mib(24);
    run(&engine(Offload::Stream, Some(budget), false));
    let error = engine(Offload::Never, Some(budget), false)
        .plan(&request())
        .unwrap_err();
    assert_eq!(error.blame(), Blame::Fit);
    let lowtide_engine::Error::DoesNotFit(numbers) = error else {
        panic!("{error}")
    };
    assert!(numbers.smallest > Bytes::mib(36), "{}", numbers.smallest);
    let enough = run(&engine(
        Offload::Never,
        Some(numbers.smallest + Bytes::kib(64)),
        false,
    ));
    for (phase, peak) in &enough.report.peak {
        assert!(
            *peak <= numbers.smallest + Bytes::kib(64),
            "{phase}: {peak}"
        );
    }
}
