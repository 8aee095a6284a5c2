//! Files in a bucket of a real S3 server: `s3s-fs`, or the program that `LOWTIDE_S3` names, called alike.

// What stands outside a test function may unwrap as tests may.
#![allow(clippy::unwrap_used)]

mod inputs;
#[allow(dead_code, reason = "the tests of whole machines use the rest")]
mod proxy;
mod server;
mod trouble;

use lowtide_bucket::{Bucket, BucketOptions};
use lowtide_core::job::Moment;
use lowtide_jobs::{ArtifactStore, SessionStore, StoreError};

use proxy::Proxy;
use server::S3;

/// Bytes that are not alike.
fn bytes(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(next).collect()
}

#[test]
fn a_file_is_read_as_it_was_written_or_not_at_all() {
    let Some(s3) = S3::start("a_file_is_read_as_it_was_written_or_not_at_all") else {
        return;
    };
    let artifacts = Bucket::open(&s3.options("a/b")).unwrap().artifacts();
    let content = bytes(300_000);
    let whole = artifacts.put("image/png", &content, Moment(5)).unwrap();
    let empty = artifacts.put("text/plain", b"", Moment(5)).unwrap();
    // Another process sees the same.
    let again = Bucket::open(&s3.options("a/b/")).unwrap().artifacts();
    assert_eq!(again.read(&whole).unwrap(), content);
    assert_eq!(again.read(&empty).unwrap(), b"");
    // Another folder does not.
    let elsewhere = Bucket::open(&s3.options("a")).unwrap().artifacts();
    let missing = StoreError::ArtifactMissing { artifact: whole.id };
    assert_eq!(elsewhere.read(&whole), Err(missing.clone()));

    let file = s3.file(&whole.id.to_string(), whole.bytes);
    let damage = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut changed = content.clone();
        change(&mut changed);
        std::fs::write(&file, changed).unwrap();
        let mut read = Vec::new();
        let error = artifacts.copy(&whole, &mut read).unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::ArtifactDamaged { .. } | StoreError::Unreachable { .. }
            ),
            "{error}"
        );
        assert!(
            read.len() < content.len(),
            "a whole wrong file was passed on"
        );
    };
    damage(&|content| content[150_000] ^= 1);
    std::fs::write(&file, &content).unwrap();
    assert_eq!(artifacts.read(&whole).unwrap(), content);

    artifacts.remove(whole.id).unwrap();
    artifacts.remove(whole.id).unwrap();
    assert_eq!(artifacts.read(&whole), Err(missing));
}

#[test]
fn files_are_found_by_their_age() {
    let Some(s3) = S3::start("files_are_found_by_their_age") else {
        return;
    };
    let artifacts = Bucket::open(&s3.options("")).unwrap().artifacts();
    let mut ids = Vec::new();
    for moment in 1..=5 {
        let artifact = artifacts.put("image/png", b"abc", Moment(moment));
        ids.push(artifact.unwrap().id);
    }
    assert_eq!(artifacts.finished_before(Moment(1)).unwrap(), []);
    assert_eq!(artifacts.finished_before(Moment(4)).unwrap(), ids[..3]);
    assert_eq!(artifacts.finished_before(Moment(9)).unwrap(), ids);
    artifacts.remove(ids[1]).unwrap();
    let left = artifacts.finished_before(Moment(4)).unwrap();
    assert_eq!(left, [ids[0], ids[2]]);
}

#[test]
fn lists_go_on_past_a_page() {
    let Some(s3) = S3::start("lists_go_on_past_a_page") else {
        return;
    };
    let bucket = Bucket::open(&s3.options("many")).unwrap();
    let artifacts = bucket.artifacts();
    // A page has a thousand names.
    let count = 1_050;
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let artifacts = &artifacts;
            scope.spawn(move || {
                for moment in (thread..count).step_by(8) {
                    artifacts.put("text/plain", b"", Moment(moment)).unwrap();
                }
            });
        }
    });
    let all = artifacts.finished_before(Moment(count)).unwrap();
    let moments: Vec<u64> = all.iter().map(|id| id.made_at().0).collect();
    assert_eq!(moments, (0..count).collect::<Vec<_>>());
    let some = artifacts.finished_before(Moment(1_020)).unwrap();
    assert_eq!(some.len(), 1_020);
}

#[test]
fn a_large_file_is_sent_in_parts_and_appears_whole() {
    let Some(s3) = S3::start("a_large_file_is_sent_in_parts_and_appears_whole") else {
        return;
    };
    let options = BucketOptions {
        part_bytes: 5 << 20,
        ..s3.options("parts")
    };
    let artifacts = Bucket::open(&options).unwrap().artifacts();
    let content = bytes((12 << 20) + 77);
    let whole = artifacts.put("video/mp4", &content, Moment(5)).unwrap();
    assert!(artifacts.read(&whole).unwrap() == content);
    assert_eq!(artifacts.finished_before(Moment(6)).unwrap(), [whole.id]);
}

#[test]
fn a_download_goes_on_where_the_connection_broke() {
    let Some(s3) = S3::start("a_download_goes_on_where_the_connection_broke") else {
        return;
    };
    let proxy = Proxy::to(s3.port);
    let options = BucketOptions {
        endpoint: Some(format!("http://127.0.0.1:{}", proxy.port)),
        ..s3.options("broken")
    };
    let artifacts = Bucket::open(&options).unwrap().artifacts();
    let content = bytes(3 << 20);
    let whole = artifacts.put("image/png", &content, Moment(5)).unwrap();
    proxy.break_answers_after(1 << 20);
    assert!(artifacts.read(&whole).unwrap() == content);
    assert!(proxy.broken() >= 2, "{} answers broke off", proxy.broken());
}

#[test]
fn a_saved_session_is_kept_for_others() {
    let Some(s3) = S3::start("a_saved_session_is_kept_for_others") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let sessions = Bucket::open(&s3.options("s")).unwrap().sessions();
    let (here, there) = (folder.path().join("a.session"), folder.path().join("b"));
    assert_eq!(sessions.fetch("a.session", &there), Ok(false));
    std::fs::write(&here, "first").unwrap();
    sessions.keep("a.session", &here).unwrap();
    std::fs::write(&here, bytes(100_000)).unwrap();
    sessions.keep("a.session", &here).unwrap();
    assert_eq!(sessions.names().unwrap(), ["a.session"]);
    assert_eq!(sessions.fetch("a.session", &there), Ok(true));
    assert_eq!(std::fs::read(&there).unwrap(), bytes(100_000));
    sessions.remove("a.session").unwrap();
    sessions.remove("a.session").unwrap();
    assert_eq!(sessions.names().unwrap(), Vec::<String>::new());
    let files = std::fs::read_dir(folder.path()).unwrap();
    assert_eq!(files.count(), 2, "nothing half is left");
}
