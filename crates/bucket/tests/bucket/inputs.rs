//! Inputs: stored once, read as they were sent or not at all, removed when nobody can name them any more; by several
//! servers at once.

use std::sync::atomic::{AtomicBool, Ordering};

use lowtide_bucket::{Bucket, BucketInputs};
use lowtide_core::Bytes;
use lowtide_core::job::Moment;
use lowtide_jobs::{InputId, InputStore, StoreError};

use crate::server::S3;

const AT: Moment = Moment(1_700_000_000_000);

fn later(ms: u64) -> Moment {
    Moment(AT.0 + ms)
}

/// What another server of the same bucket has.
fn inputs(s3: &S3, most: Bytes) -> BucketInputs {
    Bucket::open(&s3.options("i")).unwrap().inputs(most)
}

#[test]
fn the_same_content_is_one_input_of_one_name() {
    let Some(s3) = S3::start("the_same_content_is_one_input_of_one_name") else {
        return;
    };
    let (one, other) = (inputs(&s3, Bytes::mib(1)), inputs(&s3, Bytes::mib(1)));
    let input = one.put(b"abc", AT).unwrap();
    assert_eq!(input, InputId::of(b"abc"));
    assert_eq!(other.put(b"abc", later(1)), Ok(input));
    assert_eq!(other.read(input, 3).unwrap(), b"abc");
    assert_eq!(
        other.read(input, 2),
        Err(StoreError::TooLarge {
            field: "input",
            bytes: 3,
            limit: 2
        })
    );
    let missing = InputId::of(b"never sent");
    assert_eq!(
        one.read(missing, 10),
        Err(StoreError::InputMissing { input: missing })
    );
    assert_eq!(one.touch(missing, AT), Ok(false));
    // Changed behind our back: the next upload of another length mends it.
    let file = s3.file(&input.digits(), 3);
    std::fs::write(&file, "abd").unwrap();
    let found = InputId::of(b"abd");
    assert_eq!(
        one.read(input, 10),
        Err(StoreError::InputDamaged { input, found })
    );
}

#[test]
fn what_nobody_named_goes_after_a_while_and_not_when_somebody_just_asked_for_it() {
    let Some(s3) = S3::start("what_nobody_named_goes_after_a_while") else {
        return;
    };
    let (one, other) = (inputs(&s3, Bytes::mib(1)), inputs(&s3, Bytes::mib(1)));
    let old = one.put(b"old", AT).unwrap();
    let fresh = one.put(b"fresh", later(5_000)).unwrap();
    assert_eq!(other.idle_since(AT), Ok(vec![]));
    assert_eq!(other.idle_since(later(5_000)), Ok(vec![old]));
    let mut expected = vec![old, fresh];
    expected.sort();
    assert_eq!(other.idle_since(later(5_001)).unwrap(), expected);
    // Somebody is about to name it between the look and the removal.
    assert_eq!(one.touch(old, later(6_000)), Ok(true));
    assert_eq!(other.remove_idle(old, later(5_001)), Ok(false));
    assert_eq!(other.remove_idle(fresh, later(5_001)), Ok(true));
    assert_eq!(other.remove_idle(fresh, later(5_001)), Ok(true));
    assert_eq!(one.touch(fresh, later(7_000)), Ok(false));
    // An upload of what is there counts as a word about it, one with an older clock does not.
    one.put(b"old", later(8_000)).unwrap();
    other.put(b"old", later(1)).unwrap();
    assert_eq!(one.idle_since(later(8_000)), Ok(vec![]));
    assert_eq!(one.idle_since(later(8_001)), Ok(vec![old]));
    assert_eq!(one.read(old, 3).unwrap(), b"old");
}

#[test]
fn whoever_was_told_that_an_input_is_there_finds_it() {
    let Some(s3) = S3::start("whoever_was_told_that_an_input_is_there_finds_it") else {
        return;
    };
    let (one, other) = (inputs(&s3, Bytes::mib(1)), inputs(&s3, Bytes::mib(1)));
    let input = one.put(b"wanted", AT).unwrap();
    let over = AtomicBool::new(false);
    let (mut told, mut gone) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut before = 1;
            while !over.load(Ordering::SeqCst) {
                before += 1;
                // All that was said until now is old.
                other.remove_idle(input, later(before)).unwrap();
            }
        });
        for moment in 0..60 {
            // What somebody says is always newer than what the other one thinks old.
            match one.touch(input, later(1_000_000 + moment)).unwrap() {
                true => {
                    told += 1;
                    let read = crate::inputs::patient(&one, input);
                    assert_eq!(read, b"wanted");
                }
                false => {
                    gone += 1;
                    one.put(b"wanted", later(moment)).unwrap();
                }
            }
        }
        over.store(true, Ordering::SeqCst);
    });
    assert!(told > 0, "it was never there; {gone} times gone");
}

/// What was put back a moment later counts as having been there.
fn patient(inputs: &dyn InputStore, input: InputId) -> Vec<u8> {
    for _ in 0..100 {
        match inputs.read(input, 10) {
            Err(StoreError::InputMissing { .. }) => std::thread::yield_now(),
            read => return read.unwrap(),
        }
    }
    panic!("{input} does not come back");
}

#[test]
fn together_they_have_a_bound_that_removal_frees() {
    let Some(s3) = S3::start("together_they_have_a_bound_that_removal_frees") else {
        return;
    };
    let open = || inputs(&s3, Bytes(10));
    let input = open().put(&[1; 6], AT).unwrap();
    // Counted again by the next process.
    let inputs = open();
    assert_eq!(
        inputs.put(&[2; 5], AT),
        Err(StoreError::InputsFull { held: 6, limit: 10 })
    );
    assert_eq!(inputs.put(&[1; 6], AT), Ok(input), "it is there already");
    inputs.put(&[2; 4], AT).unwrap();
    assert!(inputs.put(&[3; 1], AT).is_err());
    assert_eq!(inputs.remove_idle(input, later(1)), Ok(true));
    inputs.put(&[3; 6], AT).unwrap();
}
