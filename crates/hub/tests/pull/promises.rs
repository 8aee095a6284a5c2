//! What a pull gives when all goes well.

use super::*;
use std::time::{Duration, Instant};

#[test]
fn a_model_lies_as_other_programs_look_for_it() {
    let place = Place::new();
    let pulled = place.pull().unwrap();
    place.assert_whole();
    assert_eq!(pulled.snapshot.folder, place.tree());
    assert_eq!((pulled.files, pulled.fetched), (NEEDED.len(), pulled.bytes));
    assert_eq!(place.told() as u64, pulled.bytes.0);
    let refs = std::fs::read_to_string(place.repo().join("refs/main")).unwrap();
    assert_eq!(refs, server::COMMIT);
    let link = std::fs::read_link(place.tree().join(WEIGHTS)).unwrap();
    let blob = place.blob(WEIGHTS);
    assert_eq!(
        link,
        Path::new("../../../blobs").join(blob.file_name().unwrap())
    );
    assert!(place.folder.path().join("hub/CACHEDIR.TAG").exists());
    let locks = place.folder.path().join("hub/.locks/models--org--name");
    assert_eq!(locks.read_dir().unwrap().count(), NEEDED.len());
    assert_eq!(
        place
            .cache()
            .check(&"org/name".parse::<Wanted>().unwrap().repo, |_| Ok(()))
            .unwrap()
            .good,
        4
    );
}

#[test]
fn only_what_is_needed_is_asked_for_and_the_token_goes_to_the_hub_alone() {
    let place = Place::new();
    place.pull().unwrap();
    let asked = place.hub.asked();
    for unneeded in ["README.md", "whole.safetensors", "fp16", ".bin"] {
        assert!(
            !asked.iter().any(|one| one.path.contains(unneeded)),
            "{unneeded}"
        );
    }
    let (storage, hub): (Vec<_>, Vec<_>) = asked.iter().partition(|one| one.storage);
    assert_eq!(storage.len(), 1);
    assert!(storage.iter().all(|one| one.token.is_none()));
    assert!(
        hub.iter()
            .all(|one| one.token.as_deref() == Some("Bearer hf_secret"))
    );
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let place = Place::new();
    place.pull().unwrap();
    place.hub.forget();
    let again = place.pull().unwrap();
    assert_eq!(again.fetched.0, 0);
    assert_eq!(place.hub.asked().len(), 1, "the description alone");
    // Bytes under another name in a new commit are the same bytes.
    std::fs::remove_dir_all(place.tree()).unwrap();
    let third = place
        .pull_as("org/name@refs/pr/1", Choice::default())
        .unwrap();
    assert_eq!(third.fetched.0, 0);
    place.assert_whole();
    assert!(place.repo().join("refs/refs/pr/1").exists());
}

#[test]
fn a_variant_and_single_files() {
    let place = Place::new();
    let half = Choice {
        variant: Some("fp16".to_owned()),
        include: Vec::new(),
    };
    place.pull_as("org/name", half).unwrap();
    assert!(
        place
            .tree()
            .join("unet/diffusion_pytorch_model.fp16.safetensors")
            .exists()
    );
    assert!(!place.tree().join(WEIGHTS).exists());
    let one = Choice {
        variant: None,
        include: vec!["whole.*".to_owned()],
    };
    let pulled = place.pull_as("org/name", one).unwrap();
    assert_eq!((pulled.files, pulled.bytes.0), (1, 1000));
    assert!(place.tree().join("whole.safetensors").exists());
}

#[test]
fn two_pulls_at_a_time_fetch_each_file_once() {
    let place = Place::new();
    let both: Vec<Pulled> = std::thread::scope(|scope| {
        let pulls = [0, 1].map(|_| scope.spawn(|| place.pull().unwrap()));
        pulls.map(|pull| pull.join().unwrap()).into()
    });
    place.assert_whole();
    let sent: usize = place
        .hub
        .asked()
        .iter()
        .filter(|one| one.storage)
        .map(|one| one.sent)
        .sum();
    assert_eq!(sent, WEIGHTS_BYTES);
    let large = |pulled: &Pulled| pulled.fetched.0 >= WEIGHTS_BYTES as u64;
    assert_eq!(both.iter().filter(|pulled| large(pulled)).count(), 1);
}

#[test]
fn without_links_the_files_themselves_stand_in_the_tree() {
    let mut place = Place::new();
    place.settings.symlinks = false;
    place.pull().unwrap();
    for path in NEEDED {
        let file = place.tree().join(path);
        assert!(!file.is_symlink());
        assert_eq!(std::fs::read(file).unwrap(), model()[path].bytes);
    }
    place.hub.forget();
    assert_eq!(place.pull().unwrap().fetched.0, 0);
    assert_eq!(place.hub.asked().len(), 1);
}

#[test]
fn who_stops_goes_on_later_with_what_came() {
    let place = Place::new();
    place.hub.fault(WEIGHTS, Fault::Gate(2_000_000));
    let stop = Stop::default();
    let asked = std::thread::scope(|scope| {
        let order = order("org/name", Choice::default());
        let (settings, stop) = (&place.settings, &stop);
        let pulling = scope.spawn(move || pull(settings, &order, stop, &|_| {}));
        wait_for(|| length(&place.incomplete(WEIGHTS)) >= 2_000_000);
        let asked = Instant::now();
        stop.ask();
        assert!(matches!(pulling.join().unwrap(), Err(Error::Stopped)));
        asked.elapsed()
    });
    // Far less than the pause a server is allowed.
    assert!(asked < Duration::from_secs(10), "{asked:?}");
    place.assert_no_model();
    place.hub.release();
    place.hub.forget();
    place.pull().unwrap();
    place.assert_whole();
    let asked = place.hub.asked();
    let ranged = asked
        .iter()
        .find(|one| one.storage && one.method == "GET")
        .unwrap();
    assert_eq!(ranged.range.as_deref(), Some("bytes=2000000-"));
    assert_eq!(ranged.sent, WEIGHTS_BYTES - 2_000_000);
}

pub(super) fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

/// Waits until something is so; it is, or the test fails.
#[track_caller]
pub(super) fn wait_for(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "it does not come to that"
        );
        std::thread::yield_now();
    }
}

#[test]
fn what_a_pull_would_fetch_is_known_before() {
    let place = Place::new();
    let order = order("org/name", Choice::default());
    let look = || lowtide_hub::look(&place.settings, &order, &Stop::default()).unwrap();
    let before = look();
    assert_eq!(before.files, NEEDED.len());
    assert!(before.missing <= before.bytes && before.missing.0 > 0);
    assert!(before.has_room() && before.free.is_some());
    assert!(!place.blob(WEIGHTS).exists(), "nothing large came");
    let pulled = place.pull().unwrap();
    let after = look();
    assert_eq!((after.bytes, after.missing.0), (pulled.bytes, 0));
    assert_eq!(after.commit, pulled.snapshot.commit);
}
