//! Promises about parts that several checkpoints have in common: they are in memory once, count once, go with the last
//! who holds them, and change no byte of any picture.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lowtide_core::Bytes;
use lowtide_engine::shared::Counted;
use lowtide_engine::{
    Engine, Error, ImageRequest, Options, Outcome, PrecisionChoice, Session, Step,
};
use lowtide_kernels::memory;
use lowtide_weights::ModelFolder;

/// Live bytes and what is shared belong to the process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stable-diffusion/sd15/checkpoint")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            // Written anew rather than copied: fixtures may be read-only.
            false => fs::write(target, fs::read(entry.path()).unwrap()).unwrap(),
        }
    }
}

/// A checkpoint like the fixture, every number of its U-Net a little off.
fn another(folder: &Path) -> PathBuf {
    let model = folder.join("another");
    copy(&fixture(), &model);
    let file = model.join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for number in bytes[8 + header..].chunks_exact_mut(2) {
        number[0] ^= 4;
    }
    fs::write(file, bytes).unwrap();
    model
}

fn engine(model: &Path, budget: Option<Bytes>) -> Engine {
    let options = Options {
        precision: PrecisionChoice::F32,
        threads: Some(2),
        budget,
        keep_weights: true,
        prompt_cache: Some(Bytes::ZERO),
        ..Options::default()
    };
    Engine::open(ModelFolder::open(model).unwrap(), options).unwrap()
}

fn request() -> ImageRequest {
    ImageRequest {
        prompt: "a red cat".to_owned(),
        negative: Some("a blue boat".to_owned()),
        width: 64,
        height: 64,
        steps: 3,
        guidance: 4.0,
        seed: 11,
        ..ImageRequest::default()
    }
}

fn finish(session: &mut Session) -> Outcome {
    loop {
        if let Step::Finished(outcome) = session.step().unwrap() {
            return *outcome;
        }
    }
}

fn run(engine: &Engine) -> Outcome {
    finish(&mut engine.start(request(), true).unwrap())
}

/// What the heap has handed out, freed buffers that are kept for reuse not among it.
fn live_bytes() -> u64 {
    memory::trim();
    memory::live()
}

/// What each gives alone: the fixture, and the other.
fn references(other: &Path) -> [Outcome; 2] {
    let [a, b] = [run(&engine(&fixture(), None)), run(&engine(other, None))];
    assert_ne!(a.latents, b.latents, "they are two models");
    [a, b]
}

#[track_caller]
fn same(ours: &Outcome, theirs: &Outcome) {
    assert_eq!(ours.latents, theirs.latents);
    assert_eq!(ours.images, theirs.images);
    assert_eq!(ours.report.rungs_taken, 0);
}

/// Bytes of both models' weights in memory, those that they share once.
fn once(a: &Engine, b: &Engine) -> Bytes {
    let mut counted = Counted::default();
    a.held_beside(&mut counted) + b.held_beside(&mut counted)
}

#[test]
fn text_encoder_and_vae_of_two_checkpoints_are_held_once_and_change_no_byte() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let other = another(folder.path());
    let [first, second] = references(&other);

    let (a, b) = (engine(&fixture(), None), engine(&other, None));
    let before = live_bytes();
    same(&run(&a), &first);
    let with_a = live_bytes();
    same(&run(&b), &second);
    let with_both = live_bytes();
    // Both say what is theirs; the sum counts what they share once, and so does the heap.
    assert_eq!(a.kept(), b.kept());
    let shared = a.kept() + b.kept() - once(&a, &b);
    assert!(shared > Bytes::ZERO && shared < a.kept(), "{shared}");
    assert!(with_a - before >= a.kept().0);
    let further = Bytes(with_both - with_a);
    assert!(further < b.kept() - shared + Bytes::kib(64), "{further}");

    // Used again without a read, by either.
    for (engine, reference) in [(&a, &first), (&b, &second)] {
        let again = run(engine);
        same(&again, reference);
        assert_eq!(again.report.bytes_read, 0);
    }

    // What A gives back is what only A had; B goes on with the rest.
    let live = live_bytes();
    let alone = a.kept() - shared;
    assert_eq!(a.forget_weights(), alone);
    assert!(live_bytes() + alone.0 <= live && live_bytes() + a.kept().0 + alone.0 <= live);
    assert_eq!((a.kept(), once(&a, &b)), (Bytes::ZERO, b.kept()));
    drop(a);
    let again = run(&b);
    same(&again, &second);
    assert_eq!(again.report.bytes_read, 0);
    let kept = b.kept();
    assert_eq!(b.forget_weights(), kept, "the last gives everything back");
}

#[test]
fn preloaded_parts_are_shared_too_and_a_model_shares_with_itself() {
    let _alone = alone();
    let (a, b) = (engine(&fixture(), None), engine(&fixture(), None));
    let whole = a.preload().unwrap();
    let live = live_bytes();
    assert_eq!(b.preload().unwrap(), whole);
    assert!(live_bytes() < live + (64 << 10), "nothing new is held");
    assert_eq!(once(&a, &b), whole);
    assert_eq!(b.forget_weights(), Bytes::ZERO);
    assert_eq!(a.forget_weights(), whole);
}

#[test]
fn a_budget_counts_shared_blocks_as_used_by_others_and_plans_need_no_room_for_them() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let other = another(folder.path());
    let (a, b) = (engine(&fixture(), None), engine(&other, None));
    run(&a);
    let own = a.budget().in_use;
    let plan_alone = a.plan(&request()).unwrap();
    b.preload().unwrap();
    let shared = a.kept() + b.kept() - once(&a, &b);
    let now = a.budget().in_use;
    // B holds all of its own, and what it shares with A is not A's to give back any more.
    let slack = Bytes::kib(64);
    assert!(
        now >= own + b.kept() && now <= own + b.kept() + slack,
        "{now} {own}"
    );
    let plan = a.plan(&request()).unwrap();
    let mut spared = Bytes::ZERO;
    for (before, after) in plan_alone.phases.iter().zip(&plan.phases) {
        let weights = before.weights - after.weights;
        spared += weights;
        let needs = |plan: &lowtide_core::Plan, peak: Bytes| peak - plan.budget.in_use;
        assert_eq!(
            needs(&plan_alone, before.peak) - weights,
            needs(&plan, after.peak),
            "{}",
            after.name
        );
    }
    // The encoder's phase and the decoder's: everything that is shared, once.
    assert_eq!(spared, shared);
    // B goes, and everything is as it was.
    b.forget_weights();
    let back = a.budget().in_use;
    assert!(back <= own + slack, "{back} {own}");
    assert_eq!(
        a.plan(&request()).unwrap().phases[0].weights,
        plan_alone.phases[0].weights
    );
}

#[test]
fn budgets_hold_while_models_share_forget_and_take_turns() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let other = another(folder.path());
    let [first, second] = references(&other);
    let beside = engine(&other, None);
    let refusal = engine(&fixture(), Some(Bytes(1))).plan(&request());
    drop(beside);
    let Err(Error::DoesNotFit(numbers)) = refusal else {
        panic!("{refusal:?}")
    };
    // From what hardly holds one of them to what holds both.
    for more_kib in [96, 160, 320, 640, 1280, 2560] {
        let budget = numbers.smallest + Bytes::kib(more_kib);
        let (a, b) = (
            engine(&fixture(), Some(budget)),
            engine(&other, Some(budget)),
        );
        let check = |outcome: &Outcome, reference: &Outcome| {
            same(outcome, reference);
            for (phase, peak) in &outcome.report.peak {
                assert!(*peak <= budget, "{phase} took {peak} of {budget}");
            }
        };
        // As a worker does: what has no room asks the idle model to leave.
        let start = |engine: &Engine, idle: &Engine| match engine.start(request(), true) {
            Ok(session) => session,
            Err(_) => {
                assert!(idle.forget_weights() > Bytes::ZERO);
                engine.start(request(), true).unwrap()
            }
        };
        for _ in 0..2 {
            check(&finish(&mut start(&a, &b)), &first);
            check(&finish(&mut start(&b, &a)), &second);
        }
        // B forgets while A's job is at every one of its steps, and while it is parked.
        for step in 0..6 {
            drop(b.preload());
            let mut session = start(&a, &b);
            for _ in 0..step {
                session.step().unwrap();
            }
            if step % 2 == 1 {
                session.park();
            }
            b.forget_weights();
            check(&finish(&mut session), &first);
        }
        // B's job runs while A's is parked, whose weights stay kept as far as there is room.
        for step in 1..6 {
            let mut parked = start(&a, &b);
            for _ in 0..step {
                parked.step().unwrap();
            }
            parked.park();
            check(&finish(&mut start(&b, &a)), &second);
            b.forget_weights();
            let outcome = finish(&mut parked);
            assert_eq!(outcome.images, first.images);
        }
    }
}
