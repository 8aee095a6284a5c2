//! Full disks, damaged files, folders that are none: errors that name the file, and nothing lost besides.

// What stands outside a test function may unwrap as tests may.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use lowtide_core::Bytes;
use lowtide_core::job::{JobId, JobState, Moment};
use lowtide_jobs::{
    Artifact, ArtifactStore, FolderArtifacts, JobStore, Policy, Retention, SqliteOptions,
    SqliteStore, StoreError, Submission, random_job_id,
};

fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, SqliteOptions::default())
}

fn submit(store: &SqliteStore, request: &str) -> Result<JobId, StoreError> {
    let id = random_job_id(Moment(1));
    let submission = Submission::new(id, "kind", "demo", request);
    store
        .submit(submission, Moment(1))
        .map(|accepted| accepted.job)
}

#[test]
fn a_full_disk_refuses_keeps_what_it_has_and_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.sqlite");
    let options = SqliteOptions {
        size_max: Some(Bytes::kib(512)),
        policy: Policy {
            waiting_max: 1_000_000,
            ..Policy::default()
        },
        ..SqliteOptions::default()
    };
    let store = SqliteStore::open(&path, options).unwrap();
    let request = format!("\"{}\"", "a".repeat(20_000));
    let mut accepted = Vec::new();
    let error = loop {
        match submit(&store, &request) {
            Ok(id) => accepted.push(id),
            Err(error) => break error,
        }
    };
    assert!(accepted.len() > 5, "{}", accepted.len());
    assert!(
        matches!(&error, StoreError::NoRoom { path: named } if *named == path),
        "{error}"
    );
    assert!(error.is_retryable());
    for id in &accepted {
        assert_eq!(store.job(*id).unwrap().request, request);
    }
    store.check().unwrap();
    store.cancel(accepted[0], Moment(2)).unwrap();
    let all = Retention {
        jobs_max: Some(0),
        ..Retention::default()
    };
    assert_eq!(store.retain(&all, Moment(3)).unwrap().jobs, 1);
    submit(&store, "{}").unwrap();
}

#[test]
fn a_damaged_database_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none.sqlite");
    std::fs::write(&none, "this is a letter, and not a short one ".repeat(200)).unwrap();
    let error = open(&none).err().unwrap();
    assert!(
        matches!(&error, StoreError::Corrupt { path, .. } if *path == none),
        "{error}"
    );
    assert!(
        error.to_string().contains("none.sqlite is damaged"),
        "{error}"
    );

    let path = folder.path().join("jobs.sqlite");
    let store = open(&path).unwrap();
    let ids: Vec<JobId> = (0..200).map(|_| submit(&store, "{}").unwrap()).collect();
    drop(store);
    assert!(
        !folder.path().join("jobs.sqlite-wal").exists(),
        "closed, the log is in the file"
    );
    let mut content = std::fs::read(&path).unwrap();
    // Everything but the first page, which holds the schema's beginning.
    content[4096..].fill(0xa5);
    std::fs::write(&path, content).unwrap();
    let store = open(&path);
    let error = store
        .and_then(|store| store.check().and_then(|()| store.job(ids[100]).map(|_| ())))
        .unwrap_err();
    assert!(
        matches!(&error, StoreError::Corrupt { path: named, .. } if *named == path),
        "{error}"
    );
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for place in [
        file.join("jobs.sqlite"),
        folder.path().join("no/such/jobs.sqlite"),
    ] {
        let error = open(&place).err().unwrap();
        assert!(matches!(error, StoreError::Io { .. }), "{error}");
        assert!(error.to_string().contains("jobs.sqlite"), "{error}");
    }
    let error = FolderArtifacts::open(&file.join("artifacts")).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    // A folder that went away.
    let place = folder.path().join("artifacts");
    let artifacts = FolderArtifacts::open(&place).unwrap();
    std::fs::remove_dir(&place).unwrap();
    let error = artifacts.put("image/png", b"abc", Moment(1)).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
}

#[test]
fn an_artifact_is_read_as_it_was_written_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = FolderArtifacts::open(folder.path()).unwrap();
    let content: Vec<u8> = (0..200_000u32).map(|number| number as u8).collect();
    let whole = artifacts.put("image/png", &content, Moment(5)).unwrap();
    let empty = artifacts.put("text/plain", b"", Moment(5)).unwrap();
    assert_eq!(artifacts.read(&whole).unwrap(), content);
    assert_eq!(artifacts.read(&empty).unwrap(), b"");
    assert_eq!(
        empty.sha256,
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    assert_eq!(artifacts.finished_before(Moment(5)).unwrap(), []);
    assert_eq!(artifacts.finished_before(Moment(6)).unwrap().len(), 2);

    let damage = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut changed = content.clone();
        change(&mut changed);
        std::fs::write(artifacts.path(whole.id), changed).unwrap();
        let mut read = Vec::new();
        let error = artifacts.copy(&whole, &mut read).unwrap_err();
        assert!(
            matches!(error, StoreError::ArtifactDamaged { .. }),
            "{error}"
        );
        assert!(
            read.len() < content.len(),
            "a whole wrong file was passed on"
        );
    };
    damage(&|content| content[150_000] ^= 1);
    damage(&|content| content.truncate(199_999));
    damage(&|content| content.push(0));
    artifacts.remove(whole.id).unwrap();
    artifacts.remove(whole.id).unwrap();
    let missing = StoreError::ArtifactMissing { artifact: whole.id };
    assert_eq!(artifacts.read(&whole), Err(missing));
    // Leftovers go, strangers stay.
    std::fs::write(artifacts.path(whole.id).with_extension("partial"), "half").unwrap();
    std::fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    let known: Vec<_> = artifacts.finished_before(Moment(6)).unwrap();
    assert_eq!(known, [empty.id]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    let Artifact { bytes, .. } = empty;
    assert_eq!(bytes, 0);
}

#[test]
fn a_backup_is_the_store_at_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("jobs.sqlite")).unwrap();
    let copy = folder.path().join("copy.sqlite");
    let before = submit(&store, "{\"a\":1}").unwrap();
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            for _ in 0..50 {
                submit(&store, "{}").unwrap();
            }
        });
        store.backup(&copy).unwrap();
        busy.join().unwrap();
    });
    let after = submit(&store, "{}").unwrap();
    let restored = open(&copy).unwrap();
    restored.check().unwrap();
    assert_eq!(restored.job(before).unwrap(), store.job(before).unwrap());
    assert_eq!(
        restored.job(after),
        Err(StoreError::NotFound { job: after })
    );
    let queued = restored
        .stats(Moment(1))
        .unwrap()
        .in_state(JobState::Queued);
    assert!((1..=51).contains(&queued), "{queued}");
    let again = store.backup(&copy).unwrap_err();
    assert!(
        matches!(again, StoreError::Io { verb: "create", .. }),
        "{again}"
    );
}
