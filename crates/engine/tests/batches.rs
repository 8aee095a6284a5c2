//! Promises about jobs that share a session: each gives the bytes it gives alone, whatever the others are, whoever is
//! dropped, and wherever it goes on.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::Path;

use lowtide_core::{Bytes, Quality};
use lowtide_engine::{
    Engine, Image, ImageRequest, Options, Outcome, PrecisionChoice, Session, Start, Step,
};
use lowtide_kernels::memory;
use lowtide_weights::ModelFolder;

fn engine_with(precision: PrecisionChoice, budget: Option<Bytes>, prompt_cache: Bytes) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo");
    let options = Options {
        precision,
        budget,
        threads: Some(2),
        prompt_cache: Some(prompt_cache),
        ..Options::default()
    };
    Engine::open(ModelFolder::open(&folder).unwrap(), options).unwrap()
}

fn engine(precision: PrecisionChoice) -> Engine {
    engine_with(precision, None, Bytes::ZERO)
}

/// Three jobs whose texts have different numbers of tokens; two have the same negative prompt.
fn requests() -> Vec<ImageRequest> {
    let long = "a green star in front of a blue cat face ".repeat(6);
    let texts = [
        ("a red heart", None),
        (&long[..], Some("yellow")),
        ("a blue cat face and a large red heart", None),
    ];
    let request = |(i, (prompt, negative)): (usize, (&str, Option<&str>))| ImageRequest {
        prompt: prompt.to_owned(),
        negative: negative.map(str::to_owned),
        width: 96,
        height: 64,
        steps: 3,
        guidance: 4.0,
        cfg_normalization: Some(1.0),
        cfg_truncation: 0.8,
        seed: 5 + i as u64,
        count: 2,
        noise: None,
        quality: Quality::Exact,
        ..ImageRequest::default()
    };
    texts.into_iter().enumerate().map(request).collect()
}

fn start(engine: &Engine, requests: &[ImageRequest], resume: Option<&Path>) -> Session {
    let start = |request: &ImageRequest| Start {
        request: request.clone(),
        resume,
    };
    engine
        .start_all(requests.iter().map(start).collect(), true)
        .unwrap()
}

fn finish(mut session: Session) -> Outcome {
    loop {
        if let Step::Finished(outcome) = session.step().unwrap() {
            return *outcome;
        }
    }
}

fn alone(precision: PrecisionChoice) -> Vec<Vec<Image>> {
    let engine = engine(precision);
    let one =
        |request: &ImageRequest| finish(start(&engine, std::slice::from_ref(request), None)).images;
    requests().iter().map(one).collect()
}

fn members(outcome: &Outcome) -> Vec<Option<&[Image]>> {
    let images = |range: &Option<std::ops::Range<usize>>| Some(&outcome.images[range.clone()?]);
    outcome.members.iter().map(images).collect()
}

#[test]
fn each_job_of_a_batch_gives_the_bytes_it_gives_alone() {
    for precision in [PrecisionChoice::F32, PrecisionChoice::Bf16] {
        let alone = alone(precision);
        let outcome = finish(start(&engine(precision), &requests(), None));
        let expected: Vec<_> = alone.iter().map(|images| Some(&images[..])).collect();
        assert!(members(&outcome) == expected, "{precision:?}");
        assert_eq!(outcome.report.rungs_taken, 0);
        // The prompts, the negative prompt, and the empty one that two have.
        assert_eq!(outcome.report.prompts, 5);
    }
}

#[test]
fn a_batch_stays_within_a_small_budget() {
    let alone = alone(PrecisionChoice::F32);
    let budget = Bytes::mib(20);
    let outcome = finish(start(
        &engine_with(PrecisionChoice::F32, Some(budget), Bytes::ZERO),
        &requests(),
        None,
    ));
    for (images, alone) in members(&outcome).iter().zip(&alone) {
        assert!(images.unwrap() == alone);
    }
    for (phase, peak) in &outcome.report.peak {
        assert!(*peak <= budget, "{phase} took {peak} of {budget}");
    }
}

#[test]
fn a_dropped_member_leaves_the_others_as_they_are() {
    let alone = alone(PrecisionChoice::F32);
    // Dropped before anything, while encoded, within denoising, within decoding.
    for after in [0, 1, 3, 6] {
        let mut session = start(&engine(PrecisionChoice::F32), &requests(), None);
        for _ in 0..after {
            assert!(matches!(session.step().unwrap(), Step::Progress(_)));
        }
        let held = session.holds();
        session.drop_member(1);
        assert!(session.holds() < held || after == 0);
        assert!(session.sketch(1).is_none());
        let outcome = finish(session);
        let members = members(&outcome);
        assert!(members[0].unwrap() == alone[0], "dropped after {after}");
        assert!(members[1].is_none());
        assert!(members[2].unwrap() == alone[2], "dropped after {after}");
    }
    let mut session = start(&engine(PrecisionChoice::F32), &requests(), None);
    session.step().unwrap();
    (0..3).for_each(|member| session.drop_member(member));
    let outcome = finish(session);
    assert!(outcome.images.is_empty() && outcome.members == [None, None, None]);
}

#[test]
fn each_member_goes_on_alone_or_together_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let alone = alone(PrecisionChoice::F32);
    for after in [1, 2, 4, 7] {
        let mut session = start(&engine(PrecisionChoice::F32), &requests(), None);
        for _ in 0..after {
            assert!(matches!(session.step().unwrap(), Step::Progress(_)));
        }
        let files: Vec<_> = (0..3)
            .map(|i| folder.path().join(format!("{after}-{i}")))
            .collect();
        for (member, file) in files.iter().enumerate() {
            assert!(
                session.save(member, file).unwrap(),
                "member {member} after {after}"
            );
        }
        drop(session);
        let engine = engine(PrecisionChoice::F32);
        for (i, request) in requests().iter().enumerate() {
            let outcome = finish(start(
                &engine,
                std::slice::from_ref(request),
                Some(&files[i]),
            ));
            assert!(outcome.images == alone[i], "member {i} saved after {after}");
        }
        // One goes on, one begins anew, one goes on: together.
        let starts = requests().into_iter().zip(&files).enumerate();
        let starts = starts.map(|(i, (request, file))| Start {
            request,
            resume: (i != 1).then_some(file.as_path()),
        });
        let outcome = finish(engine.start_all(starts.collect(), true).unwrap());
        for (images, alone) in members(&outcome).iter().zip(&alone) {
            assert!(images.unwrap() == alone, "together, saved after {after}");
        }
    }
}

#[test]
fn jobs_that_differ_in_more_than_texts_share_no_batch() {
    let mut requests = requests();
    requests[1].steps = 4;
    let starts = requests.into_iter().map(|request| Start {
        request,
        resume: None,
    });
    assert!(
        engine(PrecisionChoice::F32)
            .start_all(starts.collect(), false)
            .is_err()
    );
}

#[test]
fn what_was_made_of_a_prompt_is_not_made_again() {
    let engine = engine_with(PrecisionChoice::F32, None, Bytes::mib(8));
    let first = finish(start(&engine, &requests(), None));
    assert_eq!((first.report.prompts, first.report.prompts_cached), (5, 0));
    let figures = engine.prompt_cache();
    assert_eq!((figures.entries, figures.hits, figures.misses), (5, 0, 5));
    let second = finish(start(&engine, &requests(), None));
    assert_eq!(second.report.prompts_cached, 5);
    assert!(
        !second.report.seconds.contains_key("encode")
            && !second.report.seconds.contains_key("refine")
    );
    assert!(second.report.bytes_read < first.report.bytes_read);
    assert!(second.images == first.images && second.latents == first.latents);
    // One known text and one new one.
    let mut changed = requests()[..1].to_vec();
    changed[0].prompt = "a green star".to_owned();
    let third = finish(start(&engine, &changed, None));
    assert_eq!((third.report.prompts, third.report.prompts_cached), (2, 1));
    let plain = finish(start(
        &engine_with(PrecisionChoice::F32, None, Bytes::ZERO),
        &changed,
        None,
    ));
    assert!(third.images == plain.images);

    assert!(engine.forget_weights() >= figures.bytes);
    assert_eq!(engine.prompt_cache().entries, 0);
}

#[test]
fn sessions_of_several_models_take_turns_within_the_budget() {
    let expected = alone(PrecisionChoice::F32);
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/z-image/plain-bf16/checkpoint");
    let budget = Bytes::mib(48);
    let options = Options {
        precision: PrecisionChoice::F32,
        budget: Some(budget),
        threads: Some(2),
        ..Options::default()
    };
    let demo = engine_with(PrecisionChoice::F32, Some(budget), Bytes::ZERO);
    let other = Engine::open(ModelFolder::open(&fixture).unwrap(), options).unwrap();
    let small = ImageRequest {
        prompt: "x".to_owned(),
        negative: None,
        ..requests().remove(0)
    };
    let reference = finish(other.start(small.clone(), true).unwrap()).images;

    let mut first = start(&demo, &requests()[..1], None);
    for _ in 0..3 {
        first.step().unwrap();
    }
    first.park();
    let mut second = other.start(small.clone(), true).unwrap();
    second.step().unwrap();
    second.park();
    let third = start(&demo, &requests()[1..2], None);
    // A parked session that goes away leaves the limit of the others in place.
    drop(third);
    first.step().unwrap();
    assert!(memory::budget() == Some(budget.0));
    first.park();
    assert!(finish(second).images == reference);
    assert!(memory::budget() == Some(budget.0));
    let outcome = finish(first);
    assert!(outcome.images == expected[0]);
    assert_eq!(outcome.report.rungs_taken, 0);
    for (phase, peak) in &outcome.report.peak {
        assert!(*peak <= budget, "{phase} took {peak} of {budget}");
    }
    assert_eq!(memory::budget(), None);
}

#[test]
fn what_others_took_meanwhile_is_planned_around() {
    let alone = alone(PrecisionChoice::F32);
    let one = &requests()[..1];
    let free = start(&engine(PrecisionChoice::F32), one, None).plan().peak;
    let budget = free + Bytes::kib(256);
    let engine = engine_with(PrecisionChoice::F32, Some(budget), Bytes::ZERO);
    let mut session = start(&engine, one, None);
    let before = session.plan().clone();
    session.step().unwrap();
    session.park();
    drop(start(&engine, one, None));
    // Nothing was taken: the plan stays.
    session.step().unwrap();
    assert_eq!(*session.plan(), before);
    session.park();
    let others = memory::Buffer::new(8 << 20).unwrap();
    drop(start(&engine, one, None));
    let outcome = finish(session);
    assert!(outcome.images == alone[0]);
    let report = &outcome.report;
    assert_eq!(report.rungs_taken, 0);
    assert!(report.plan.budget.in_use >= Bytes::mib(8));
    assert!(report.plan.peak <= budget && report.plan.phases[2] != before.phases[2]);
    for (phase, peak) in &report.peak {
        assert!(*peak <= budget, "{phase} took {peak} of {budget}");
    }
    drop(others);
}

#[test]
fn a_session_says_what_it_holds_and_what_is_to_come() {
    let mut session = start(&engine(PrecisionChoice::F32), &requests()[..1], None);
    let mut before = f64::INFINITY;
    assert!(session.sketch(0).is_none());
    let mut sketches = Vec::new();
    loop {
        let remaining = session.remaining_s();
        assert!(remaining > 0.0 && remaining.is_finite());
        before = before.min(remaining);
        match session.step().unwrap() {
            Step::Finished(_) => break,
            Step::Progress(progress) => {
                assert!(session.peak() > Bytes::ZERO);
                session.park();
                assert!(session.holds() < Bytes::mib(1), "{}", session.holds());
                if let Some(sketch) = session.sketch(0) {
                    assert_eq!(sketch.rgb.len(), 3 * sketch.width * sketch.height);
                    sketches.push((progress.phase, sketch.width));
                }
            }
        }
    }
    assert_eq!(session.remaining_s(), 0.0);
    // Three steps of both pictures, the size of the latent; then the first picture itself.
    assert_eq!(
        sketches,
        [
            ("denoise", 12),
            ("denoise", 12),
            ("denoise", 12),
            ("decode", 96)
        ]
    );
}

#[test]
fn the_last_sketch_looks_like_the_picture() {
    let request = ImageRequest {
        width: 128,
        height: 128,
        steps: 8,
        count: 1,
        cfg_normalization: None,
        cfg_truncation: 1.0,
        prompt: "a red heart on a yellow background".to_owned(),
        ..requests().remove(0)
    };
    let mut session = start(&engine(PrecisionChoice::F32), &[request], None);
    let mut last = Vec::new();
    let image = loop {
        if let Step::Finished(outcome) = session.step().unwrap() {
            break outcome.images[0].clone();
        }
        if let Some(sketch) = session.sketch(0).filter(|sketch| sketch.width == 16) {
            last = sketch.rgb.to_vec();
        }
    };
    let pixels = lowtide_media::Pixels {
        width: 128,
        height: 128,
        rgb: &image.rgb,
    };
    let (_, _, small) = lowtide_media::shrunk(pixels, 16).unwrap();
    let difference = |other: &[u8]| {
        let sum: u32 = small
            .iter()
            .zip(other)
            .map(|(&a, &b)| u32::from(a.abs_diff(b)))
            .sum();
        f64::from(sum) / small.len() as f64
    };
    let off = difference(&last);
    assert!(off < 10.0, "a colour is off by {off} of 255 on average");
    // A picture of one colour would not pass.
    assert!(difference(&vec![128; small.len()]) > 40.0);
}
