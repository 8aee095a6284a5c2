//! Promises about memory that a model leaves to another: it is taken again rather than new memory, it is within the
//! budget, and what nobody takes goes back.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lowtide_core::Bytes;
use lowtide_engine::device::cpu;
use lowtide_engine::{Engine, ImageRequest, Options, Outcome, PrecisionChoice, Session, Step};
use lowtide_kernels::memory;
use lowtide_weights::ModelFolder;

/// Live bytes belong to the process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
            continue;
        }
        let mut bytes = fs::read(entry.path()).unwrap();
        if target.extension().is_some_and(|end| end == "safetensors") {
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            for number in bytes[8 + header..].chunks_exact_mut(2) {
                number[0] ^= 1;
            }
        }
        fs::write(target, bytes).unwrap();
    }
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

fn start(engine: &Engine) -> Session {
    let request = ImageRequest {
        prompt: "a red heart".to_owned(),
        width: 32,
        height: 32,
        steps: 2,
        seed: 3,
        ..ImageRequest::default()
    };
    engine.start(request, true).unwrap()
}

/// The outcome, and the least that was laid aside on the way.
fn finish(mut session: Session, budget: Option<Bytes>) -> (Outcome, u64) {
    let mut least = u64::MAX;
    loop {
        let step = session.step().unwrap();
        least = least.min(memory::spare());
        let taken = memory::live() + memory::spare();
        assert!(budget.is_none_or(|budget| taken <= budget.0), "{taken}");
        if let Step::Finished(outcome) = step {
            return (*outcome, least);
        }
    }
}

#[test]
fn a_model_that_makes_room_leaves_its_memory_to_the_next() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    copy(&demo(), &other);
    let (expected, _) = finish(start(&engine(&other, None)), None);

    let (a, b) = (engine(&demo(), None), engine(&other, None));
    finish(start(&a), None);
    let kept = a.kept();
    let before = memory::live();
    let guard = cpu::hand_over();
    assert_eq!(a.forget_weights(), kept);
    drop(guard);
    let left = memory::spare();
    // All but small blocks.
    assert!(left > kept.0 * 9 / 10, "{left} of {kept}");
    assert!(memory::live() <= before - left, "it is nobody's");

    let (ours, least) = finish(start(&b), None);
    assert_eq!(ours.latents, expected.latents);
    assert_eq!(ours.images, expected.images);
    assert!(least < left / 10, "{least} of {left} are left");
    assert_eq!(memory::spare(), 0, "the end of the job gives it back");
}

#[test]
fn what_is_left_to_others_keeps_within_the_budget_and_goes_before_a_refusal() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    copy(&demo(), &other);
    let free = finish(start(&engine(&other, None)), None).0;
    let peak = free.report.peak.values().max().unwrap().0;
    // What a second opened model holds without any weights.
    let before = memory::live();
    let opened = engine(&demo(), None);
    let beside = memory::live() - before;
    drop(opened);
    for share in [13, 11] {
        let budget = Some(Bytes(peak * share / 10 + beside));
        let (a, b) = (engine(&demo(), budget), engine(&other, budget));
        finish(start(&a), budget);
        let guard = cpu::hand_over();
        a.forget_weights();
        drop(guard);
        assert!(memory::spare() > 0);
        let (ours, _) = finish(start(&b), budget);
        assert_eq!(ours.latents, free.latents, "{budget:?}");
        assert_eq!(ours.report.rungs_taken, 0, "{budget:?}");
        for peak in ours.report.peak.values() {
            assert!(Some(*peak) <= budget, "{peak} of {budget:?}");
        }
        b.forget_weights();
    }
}

#[test]
fn what_nobody_takes_is_given_back() {
    let _alone = alone();
    let a = engine(&demo(), None);
    finish(start(&a), None);
    let guard = cpu::hand_over();
    a.forget_weights();
    cpu::give_back();
    assert!(memory::spare() > 0, "it is being handed over");
    drop(guard);
    cpu::give_back();
    assert_eq!(memory::spare(), 0);
    // Without the guard nothing is laid aside.
    finish(start(&a), None);
    a.forget_weights();
    assert_eq!(memory::spare(), 0);
}
