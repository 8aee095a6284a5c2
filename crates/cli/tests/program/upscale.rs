//! `lowtide upscale`: a picture made larger by a network in a file.

use std::path::{Path, PathBuf};

use crate::Place;

/// Small networks with the names and forms of real ones, and a picture of 17 x 13 pixels.
fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures/upscale")
}

fn place() -> Place {
    let place = Place::new();
    for file in ["picture.png", "compact-4.pth", "dense-2.pth"] {
        std::fs::copy(fixtures().join(file), place.path(file)).unwrap();
    }
    place
}

fn size(place: &Place, name: &str) -> (u32, u32) {
    image::open(place.path(name))
        .unwrap()
        .to_rgb8()
        .dimensions()
}

#[test]
fn a_picture_is_made_larger() {
    let place = place();
    let told = place
        .line("upscale picture.png -o large.png --model compact-4.pth")
        .ok();
    assert_eq!(told, "large.png\n");
    assert_eq!(size(&place, "large.png"), (68, 52));
    let told = place.line("png-info large.png").ok();
    assert!(told.contains("Upscaled by compact-4"), "{told}");
    let line = "upscale picture.png -o half.png --model compact-4.pth --precision f16";
    let error = place.line(line).error(2);
    assert!(error.contains("--precision f16 is for GPUs"), "{error}");
    assert!(!place.path("half.png").exists());
    // Any factor, any format, and a name of its own.
    let line = "upscale picture.png --model dense-2.pth --scale 1.5 --tile 32 --json";
    let report = place.line(line).json();
    assert_eq!(
        (&report["width"], &report["height"]),
        (&25.into(), &19.into())
    );
    assert_eq!(report["quality"], "exact");
    let written = report["outputs"][0].as_str().unwrap();
    assert_eq!(size(&place, written), (25, 19));
    place
        .line("upscale picture.png -o large.jpg --model compact-4.pth --quiet")
        .ok();
    assert_eq!(size(&place, "large.jpg"), (68, 52));
}

#[test]
fn a_network_is_found_by_its_name_where_other_programs_keep_it() {
    let place = place();
    let line = "upscale picture.png -o large.png";
    let error = place.line(line).error(2);
    assert!(error.contains("--model"), "{error}");
    let keep = |folder: &str, file: &str| {
        let folder = place.path(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(fixtures().join(file), folder.join(file)).unwrap();
    };
    keep("ComfyUI/models/upscale_models", "compact-4.pth");
    place.line(line).ok();
    assert_eq!(size(&place, "large.png"), (68, 52));
    let listed = place.line("models list").ok();
    assert!(
        listed.contains("SRVGGNetCompact") && listed.contains("at 512x512"),
        "{listed}"
    );
    keep("stable-diffusion-webui/models/ESRGAN", "dense-2.pth");
    let error = place.line(line).error(2);
    assert!(error.contains("compact-4, dense-2"), "{error}");
    place.line(&format!("{line} --model dense-2")).ok();
    assert_eq!(size(&place, "large.png"), (34, 26));
}

#[test]
fn what_is_wrong_is_said_before_anything_is_written() {
    let place = place();
    place.write("text.png", "this is no picture");
    place.write("animated.png", "GIF89a");
    let model = "--model compact-4.pth";
    for (line, code, says) in [
        (
            "upscale missing.png --model compact-4.pth",
            2,
            "missing.png",
        ),
        (
            "upscale text.png --model compact-4.pth",
            2,
            "no PNG, JPEG or WebP",
        ),
        ("upscale picture.png --model demo", 2, "ZImagePipeline"),
        ("upscale picture.png --model picture.png", 2, "picture.png"),
        (
            "upscale picture.png -o picture.png --model compact-4.pth",
            2,
            "the picture itself",
        ),
        (
            "upscale picture.png -o large.gif --model compact-4.pth",
            2,
            ".gif",
        ),
        (
            "upscale picture.png -o no/large.png --model compact-4.pth",
            2,
            "does not exist",
        ),
        (
            "upscale picture.png --scale 99 --model compact-4.pth",
            2,
            "--scale",
        ),
        (
            "upscale picture.png --tile 3 --model compact-4.pth",
            2,
            "--tile",
        ),
        (
            "upscale picture.png --budget 1MiB --model compact-4.pth",
            3,
            "--budget",
        ),
    ] {
        let before = place.names();
        let error = place.line(line).error(code);
        assert!(error.contains(says), "{line}: {error}");
        assert_eq!(place.names(), before, "{line}");
    }
    // What it says would do does.
    let error = place
        .line(&format!("upscale picture.png {model} --budget 1MiB"))
        .error(3);
    let budget = error
        .rsplit("--budget ")
        .next()
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    place
        .line(&format!(
            "upscale picture.png {model} --budget {budget} -o small.png"
        ))
        .ok();
}
