//! Inputs in a folder: stored once, read as they were sent or not at all, removed when nobody can name them any more.

// What stands outside a test function may unwrap as tests may.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use lowtide_core::Bytes;
use lowtide_core::job::Moment;
use lowtide_jobs::{FolderInputs, InputId, InputStore, StoreError};

const AT: Moment = Moment(1_700_000_000_000);

fn later(ms: u64) -> Moment {
    Moment(AT.0 + ms)
}

fn open(folder: &Path) -> FolderInputs {
    FolderInputs::open(&folder.join("inputs"), Bytes::mib(1)).unwrap()
}

fn file(folder: &Path, input: InputId) -> std::path::PathBuf {
    folder.join("inputs").join(input.digits())
}

#[test]
fn the_same_content_is_one_file_of_one_name() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = open(folder.path());
    let input = inputs.put(b"abc", AT).unwrap();
    assert_eq!(input, InputId::of(b"abc"));
    assert_eq!(inputs.put(b"abc", later(1)), Ok(input));
    let other = inputs.put(b"", AT).unwrap();
    assert_eq!(
        std::fs::read_dir(folder.path().join("inputs"))
            .unwrap()
            .count(),
        2
    );
    let again = open(folder.path());
    assert_eq!(again.read(input, 3).unwrap(), b"abc");
    assert_eq!(again.read(other, 0).unwrap(), b"");
}

#[test]
fn what_is_missing_too_large_or_changed_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = open(folder.path());
    let missing = InputId::of(b"never sent");
    assert_eq!(
        inputs.read(missing, 10),
        Err(StoreError::InputMissing { input: missing })
    );
    assert_eq!(inputs.touch(missing, AT), Ok(false));
    let input = inputs.put(b"abc", AT).unwrap();
    assert_eq!(
        inputs.read(input, 2),
        Err(StoreError::TooLarge {
            field: "input",
            bytes: 3,
            limit: 2
        })
    );
    for wrong in ["ab", "abd", "abcd"] {
        std::fs::write(file(folder.path(), input), wrong).unwrap();
        assert_eq!(
            inputs.read(input, 10),
            Err(StoreError::InputDamaged {
                input,
                found: InputId::of(wrong.as_bytes())
            })
        );
    }
    // Truncated on the disk: the next upload mends it.
    std::fs::write(file(folder.path(), input), "a").unwrap();
    assert_eq!(inputs.put(b"abc", AT), Ok(input));
    assert_eq!(inputs.read(input, 10).unwrap(), b"abc");
}

#[test]
fn what_nobody_named_goes_after_a_while_and_not_when_somebody_just_asked_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = open(folder.path());
    let old = inputs.put(b"old", AT).unwrap();
    let fresh = inputs.put(b"fresh", later(5_000)).unwrap();
    assert_eq!(inputs.idle_since(AT), Ok(vec![]));
    assert_eq!(inputs.idle_since(later(5_000)), Ok(vec![old]));
    let mut both = inputs.idle_since(later(5_001)).unwrap();
    both.sort();
    let mut expected = vec![old, fresh];
    expected.sort();
    assert_eq!(both, expected);
    // Somebody is about to name it between the look and the removal.
    assert_eq!(inputs.touch(old, later(6_000)), Ok(true));
    assert_eq!(inputs.remove_idle(old, later(5_001)), Ok(false));
    assert_eq!(inputs.remove_idle(fresh, later(5_001)), Ok(true));
    assert_eq!(inputs.remove_idle(fresh, later(5_001)), Ok(true));
    assert_eq!(inputs.touch(fresh, later(7_000)), Ok(false));
    // An upload of what is there counts as a word about it, one with an older clock does not.
    inputs.put(b"old", later(8_000)).unwrap();
    inputs.put(b"old", later(1)).unwrap();
    assert_eq!(inputs.idle_since(later(8_000)), Ok(vec![]));
    assert_eq!(inputs.idle_since(later(8_001)), Ok(vec![old]));
}

#[test]
fn together_they_have_a_bound_that_removal_frees() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("inputs");
    let first = FolderInputs::open(&place, Bytes(10)).unwrap();
    let input = first.put(&[1; 6], AT).unwrap();
    // Counted again by the next process.
    let inputs = FolderInputs::open(&place, Bytes(10)).unwrap();
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

#[test]
fn strangers_files_stay_and_interrupted_writes_go() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = open(folder.path());
    let place = folder.path().join("inputs");
    let digits = InputId::of(b"abc").digits();
    let names = [
        "README".to_owned(),
        "0123.partial".to_owned(),
        format!("{digits}.png"),
        format!("{digits}.partial"),
    ];
    for name in &names {
        let file = std::fs::File::create(place.join(name)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    std::fs::create_dir(place.join(InputId::of(b"folder").digits())).unwrap();
    assert_eq!(inputs.idle_since(AT), Ok(vec![]));
    assert_eq!(
        names.map(|name| place.join(name).exists()),
        [true, true, true, false]
    );
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = FolderInputs::open(&file.join("inputs"), Bytes::mib(1)).unwrap_err();
    assert!(
        matches!(error, StoreError::Io { verb: "create", .. }),
        "{error}"
    );
}
