//! What detectors promise: the reference's things, in their places, within the predicted memory, whatever is streamed.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lowtide_core::Bytes;
use lowtide_engine::detector::{Detector, Search};
use lowtide_engine::{Blame, Options};
use lowtide_kernels::memory;
use lowtide_media::Picture;
use lowtide_weights::Checkpoint;

/// Where the process' memory is limited and counted, nothing else may run.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fixture(case: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/yolov8")
        .join(case)
        .join(file)
}

fn detector(case: &str) -> Detector {
    Detector::open(&fixture(case, "model.safetensors")).unwrap()
}

/// What was recorded.
struct Expected(Checkpoint);

impl Expected {
    fn of(case: &str) -> Expected {
        Expected(Checkpoint::open(&fixture(case, "expected.safetensors")).unwrap())
    }

    fn bytes(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let entry = self.0.get(name).unwrap();
        let mut bytes = vec![0; entry.bytes as usize];
        self.0.read(entry, &mut bytes).unwrap();
        (entry.shape.clone(), bytes)
    }

    fn picture(&self) -> Picture {
        let (shape, bytes) = self.bytes("picture");
        Picture::new(shape[1] as u32, shape[0] as u32, bytes).unwrap()
    }

    /// Corners, score, class.
    fn rows(&self) -> Vec<[f32; 6]> {
        let (_, bytes) = self.bytes("rows");
        let values: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|value| f32::from_le_bytes(value.try_into().unwrap()))
            .collect();
        values.as_chunks::<6>().0.to_vec()
    }
}

/// As the script sifted.
fn search(picture: &Picture) -> Search {
    Search {
        confidence: 0.6,
        overlap: 0.5,
        side: picture.width().max(picture.height()) as usize,
        classes: Vec::new(),
    }
}

#[test]
fn things_are_where_the_reference_finds_them() {
    let _alone = alone();
    for (case, classes) in [("detect", 3), ("segment", 2)] {
        let expected = Expected::of(case);
        let picture = expected.picture();
        let detector = detector(case);
        assert_eq!(detector.labels().len(), classes);
        assert_eq!(detector.labels()[1], "thing 1");
        assert_eq!(detector.has_outlines(), case == "segment");
        let looked = detector
            .find(&picture, &search(&picture), &Options::default())
            .unwrap();
        let rows = expected.rows();
        assert_eq!(looked.things.len(), rows.len(), "{case}");
        let (width, height) = (picture.width() as f32, picture.height() as f32);
        for (thing, row) in looked.things.iter().zip(&rows) {
            for (side, (edge, expected)) in thing.edges.iter().zip(row).enumerate() {
                let room = if side % 2 == 0 { width } else { height };
                let expected = expected.clamp(0.0, room);
                assert!((edge - expected).abs() < 1e-2, "{case}: {thing:?}, {row:?}");
            }
            assert!(
                (thing.score - row[4]).abs() < 1e-4,
                "{case}: {thing:?}, {row:?}"
            );
            assert_eq!(thing.class, row[5] as usize);
            assert_eq!(thing.label, format!("thing {}", thing.class));
        }
        assert_eq!(looked.traffic.bytes_read, detector.bytes().0);
    }
}

#[test]
fn outlines_are_those_of_the_reference() {
    let _alone = alone();
    let expected = Expected::of("segment");
    let picture = expected.picture();
    let looked = detector("segment")
        .find(&picture, &search(&picture), &Options::default())
        .unwrap();
    let (shape, masks) = expected.bytes("masks");
    assert_eq!(shape[0], looked.things.len());
    let plane = shape[1] * shape[2];
    let mut covered = 0;
    for (thing, mask) in looked.things.iter().zip(masks.chunks_exact(plane)) {
        let outline = thing.outline.as_ref().unwrap();
        let ours = outline.values().iter().map(|&value| value / 255);
        let others = ours.zip(mask).filter(|(ours, theirs)| ours != *theirs);
        // A value within a rounding of 0 may fall on either side.
        let others = others.count();
        assert!(others <= 2, "{others} pixels differ");
        covered += outline.count();
    }
    assert!(covered > 100, "{covered} pixels covered");
}

#[test]
fn classes_are_named_or_numbered() {
    let _alone = alone();
    let expected = Expected::of("detect");
    let picture = expected.picture();
    let detector = detector("detect");
    let of = |classes: &[&str]| {
        let classes = classes.iter().map(|&class| class.to_owned()).collect();
        let search = Search {
            classes,
            ..search(&picture)
        };
        detector.find(&picture, &search, &Options::default())
    };
    let all = of(&[]).unwrap().things;
    for names in [&["thing 1"][..], &["1"], &["Thing 1"]] {
        let some = of(names).unwrap().things;
        assert!(!some.is_empty() && some.len() < all.len());
        assert!(some.iter().all(|thing| thing.class == 1));
    }
    assert_eq!(of(&["0", "thing 1", "2"]).unwrap().things, all);
    let error = of(&["nose"]).unwrap_err();
    assert_eq!(error.blame(), Blame::User);
    assert!(
        error.to_string().contains("thing 0, thing 1, thing 2"),
        "{error}"
    );
}

#[test]
fn a_picture_of_any_shape_is_looked_at() {
    let _alone = alone();
    let detector = detector("detect");
    for (width, height) in [(1, 1), (3, 200), (97, 31)] {
        let values = (0..3 * width * height).map(|k| (k * 31 % 251) as u8);
        let picture = Picture::new(width, height, values.collect()).unwrap();
        let search = Search {
            side: 64,
            confidence: 0.0,
            ..Search::default()
        };
        let looked = detector.find(&picture, &search, &Options::default());
        for thing in looked.unwrap().things {
            let [left, top, right, bottom] = thing.edges;
            assert!(0.0 <= left && right <= width as f32 && 0.0 <= top && bottom <= height as f32);
        }
    }
}

#[test]
fn the_budget_holds_and_changes_nothing() {
    let _alone = alone();
    let expected = Expected::of("segment");
    let picture = expected.picture();
    let search = Search {
        side: 320,
        ..search(&picture)
    };
    let look = |budget: Bytes| {
        let options = Options {
            budget: Some(budget),
            ..Options::default()
        };
        let detector = detector("segment");
        detector.find(&picture, &search, &options)
    };
    let all = look(Bytes::mib(512)).unwrap();
    let refused = look(Bytes(1)).unwrap_err();
    let lowtide_engine::Error::DoesNotFit(numbers) = &refused else {
        panic!("{refused}")
    };
    assert_eq!(refused.blame(), Blame::Fit);
    // The refusal names a budget that works, in which weights pass through.
    let least = look(numbers.smallest + Bytes::kib(64)).unwrap();
    assert!(
        least.peak <= numbers.smallest + Bytes::kib(64),
        "{}",
        least.peak
    );
    assert_eq!(least.things, all.things);
    // What is predicted is not far above what is used: scratch is counted whole.
    let scratch = lowtide_kernels::scratch_bytes(lowtide_kernels::threads()) as u64;
    let slack = Bytes(scratch) + Bytes::mib(2);
    assert!(
        numbers.smallest <= least.peak + slack,
        "{} for {}",
        numbers.smallest,
        least.peak
    );
    assert!(memory::live() > 0);
}

#[test]
fn other_files_are_no_detectors() {
    let _alone = alone();
    let error = Detector::open(&fixture("detect", "expected.safetensors"))
        .err()
        .unwrap();
    assert!(error.to_string().contains("YOLOv8"), "{error}");
    assert_eq!(error.blame(), Blame::User);
}
