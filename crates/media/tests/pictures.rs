//! Pictures from strangers, and what is made of them, against what Pillow and diffusers recorded
//! (`tools/reference/pictures.py`).

// The lint's exception for tests does not reach the functions that tests share.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use lowtide_media::{
    Error, Filter, Fit, Format, Limits, Mask, Picture, Raster, Region, decode, format_of, overlay,
};
use serde_json::Value;

fn recorded() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures/cases.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let pairs = hex.as_str().unwrap().as_bytes().as_chunks::<2>().0;
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.iter().map(byte).collect()
}

fn raster<const CHANNELS: usize>(value: &Value) -> Raster<CHANNELS> {
    let side = |key: &str| value[key].as_u64().unwrap() as u32;
    Raster::new(side("width"), side("height"), bytes(&value["bytes"])).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().unwrap().iter();
    list.map(|number| number.as_f64().unwrap()).collect()
}

fn size(value: &Value) -> (u32, u32) {
    let list = numbers(value);
    (list[0] as u32, list[1] as u32)
}

/// The script's `drawn`.
fn drawn(width: u32, height: u32) -> Picture {
    let mut values = Vec::new();
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        for c in 0..3u32 {
            let mixed = x
                .wrapping_mul(2_654_435_761)
                .wrapping_add(y * 40_503 + c * 97);
            let stripes = if (x + 2 * y) % 11 < 4 { 120 } else { 0 };
            let value = (x * 3 + y * 5 * (c + 1)) % 128 + stripes + (mixed >> 7) % 64;
            values.push((value % 256) as u8);
        }
    }
    Picture::new(width, height, values).unwrap()
}

/// The script's `shape_mask`.
fn shape_mask(width: u32, height: u32) -> Mask {
    let (wide, high) = (i64::from(width), i64::from(height));
    let mut values = Vec::new();
    for (y, x) in (0..high).flat_map(|y| (0..wide).map(move |x| (y, x))) {
        let disc = (x - wide / 3).pow(2) + (y - high / 2).pow(2) < (wide.min(high) / 5).pow(2);
        let square =
            (wide / 2 + 1..wide / 2 + 9).contains(&x) && (high / 4 + 1..high / 4 + 6).contains(&y);
        values.push(if disc {
            255
        } else if square {
            90
        } else {
            0
        });
    }
    Mask::new(width, height, values).unwrap()
}

fn largest_difference<const C: usize>(a: &Raster<C>, b: &Raster<C>) -> u8 {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let pairs = a.values().iter().zip(b.values());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn files_of_all_kinds_are_read_as_pillow_reads_them() {
    for case in recorded()["files"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let tolerance = case["tolerance"].as_u64().unwrap() as u8;
        let decoded = decode(&bytes(&case["file"]), &Limits::default()).unwrap();
        let difference = largest_difference(&decoded.picture, &raster(&case["rgb"]));
        assert!(difference <= tolerance, "{name}: {difference}");
        match (&decoded.alpha, &case["alpha"]) {
            (None, Value::Null) => {}
            (Some(alpha), expected) => {
                assert_eq!(largest_difference(alpha, &raster(expected)), 0, "{name}");
            }
            (None, _) => panic!("{name} has lost what can be seen through"),
        }
    }
}

#[test]
fn files_cut_anywhere_are_refused_and_never_more() {
    for case in recorded()["files"].as_array().unwrap() {
        let (name, file) = (case["name"].as_str().unwrap(), bytes(&case["file"]));
        for cut in 0..file.len() {
            let read = decode(&file[..cut], &Limits::default());
            // A PNG may lack its last chunk, which says nothing.
            let whole = name.ends_with(".png") && cut + 12 >= file.len();
            assert!(read.is_err() || whole, "{name} of {cut} bytes");
        }
        // Every byte wrong once: any answer will do, but it must be one.
        for at in 0..file.len() {
            let mut wrong = file.clone();
            wrong[at] ^= 0x55;
            let _ = decode(&wrong, &Limits::default());
        }
    }
}

#[test]
fn sizes_are_refused_before_pixels_are_unpacked() {
    let side = |pixels_max: u64, side_max: u32| Limits {
        pixels_max,
        side_max,
    };
    for case in recorded()["files"].as_array().unwrap() {
        let file = bytes(&case["file"]);
        for limits in [side(23 * 17 - 1, 100), side(1000, 22)] {
            let refused = decode(&file, &limits).unwrap_err();
            assert!(matches!(refused, Error::Size { .. }), "{refused}");
            let text = refused.to_string();
            assert!(text.contains("17") && text.contains("23"), "{text}");
        }
        decode(&file, &side(23 * 17, 23)).unwrap();
    }
    // A PNG that claims 4 billion pixels a side and holds none.
    let files = recorded();
    let mut huge = bytes(&files["files"][0]["file"]);
    huge[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
    assert!(decode(&huge, &Limits::default()).is_err());
}

#[test]
fn other_files_are_no_pictures() {
    for file in [&b""[..], b"%PDF-1.7", b"<svg/>"] {
        let refused = decode(file, &Limits::default()).unwrap_err();
        assert!(matches!(refused, Error::NotAPicture), "{refused}");
        assert_eq!(format_of(file), None);
    }
    assert_eq!(format_of(&[0xff, 0xd8, 0xff, 0xe0]), Some(Format::Jpeg));
}

#[test]
fn pictures_are_fitted_as_diffusers_does() {
    let cases = recorded();
    let (mut filled, mut painted) = (0, 0);
    for case in cases["resizes"].as_array().unwrap() {
        let (width, height) = size(&case["from"]);
        let name = case["fit"].as_str().unwrap();
        let expected: Picture = raster(&case["rgb"]);
        let ours = drawn(width, height).fitted(
            expected.width(),
            expected.height(),
            Fit::named(name).unwrap(),
        );
        // Lines that the reference leaves black are filled here.
        let black = |key: &str| numbers(&case[key]);
        let (rows, columns) = (black("black_rows"), black("black_columns"));
        filled += rows.len() + columns.len();
        assert_eq!(
            (ours.width(), ours.height()),
            (expected.width(), expected.height())
        );
        let pixels = ours.values().chunks(3).zip(expected.values().chunks(3));
        for (index, (ours, theirs)) in pixels.enumerate() {
            let (x, y) = (
                index as u32 % expected.width(),
                index as u32 / expected.width(),
            );
            let left_black = rows.contains(&f64::from(y)) || columns.contains(&f64::from(x));
            assert!(
                ours == theirs || left_black,
                "{width}x{height} {name} at {x}, {y}: {ours:?}, not {theirs:?}"
            );
            painted += usize::from(left_black && ours != [0; 3]);
        }
    }
    assert!(
        filled > 0 && painted > filled,
        "{painted} pixels in {filled} lines"
    );
}

#[test]
fn extreme_proportions_cost_no_more_than_their_result() {
    // By its proportions the first would be 8 million pixels wide before it is cut.
    let flat = Picture::new(16_384, 1, [10, 20, 30].repeat(16_384)).unwrap();
    let tall = Picture::new(1, 16_384, [10, 20, 30].repeat(16_384)).unwrap();
    for picture in [flat, tall] {
        for fit in Fit::ALL {
            let fitted = picture.fitted(512, 256, fit);
            assert_eq!((fitted.width(), fitted.height()), (512, 256));
            let plain = fitted.values().chunks(3).all(|pixel| pixel == [10, 20, 30]);
            assert!(plain, "{fit:?}");
        }
    }
}

#[test]
fn masks_are_blurred_as_pillow_does() {
    for case in recorded()["blurs"].as_array().unwrap() {
        let expected: Mask = raster(&case["mask"]);
        let radius = case["radius"].as_f64().unwrap() as f32;
        let blurred = shape_mask(expected.width(), expected.height()).blurred(radius);
        let difference = largest_difference(&blurred, &expected);
        assert_eq!(difference, 0, "radius {radius}");
    }
    let mask = shape_mask(40, 30);
    assert_eq!(mask.blurred(f32::NAN), mask);
    assert_eq!(mask.blurred(-1.0), mask);
    assert_eq!(mask.blurred(f32::INFINITY), mask.blurred(1000.0));
}

#[test]
fn masks_of_latents_are_the_references() {
    let cases = recorded();
    for case in cases["latents"].as_array().unwrap() {
        let ((width, height), (to_width, to_height)) = (size(&case["size"]), size(&case["to"]));
        let ours = shape_mask(width, height).latents(to_width, to_height);
        let ours: Vec<f64> = ours.into_iter().map(f64::from).collect();
        assert_eq!(ours, numbers(&case["values"]), "{width}x{height}");
    }
    let luminance = drawn(23, 17).luminance();
    assert_eq!(luminance, raster(&cases["luminance"]));
    let binary: Vec<f32> = Mask::new(4, 1, vec![0, 127, 128, 255])
        .unwrap()
        .binary()
        .collect();
    assert_eq!(binary, [0.0, 0.0, 1.0, 1.0]);
    let inverted = Mask::new(2, 1, vec![0, 200]).unwrap().inverted();
    assert_eq!(inverted.values(), [255, 55]);
}

#[test]
fn regions_are_the_references() {
    let cases = recorded();
    for case in cases["regions"].as_array().unwrap() {
        let ((width, height), (to_width, to_height)) = (size(&case["size"]), size(&case["to"]));
        let padding = case["padding"].as_u64().unwrap() as u32;
        let region = shape_mask(width, height)
            .region(to_width, to_height, padding)
            .unwrap();
        let corners = [
            region.left,
            region.top,
            region.left + region.width,
            region.top + region.height,
        ];
        assert_eq!(
            corners.map(f64::from)[..],
            numbers(&case["corners"])[..],
            "{width}x{height} for {to_width}x{to_height}, {padding} around"
        );
    }
    let blank = Mask::new(8, 8, vec![0; 64]).unwrap();
    assert_eq!(blank.region(64, 64, 32), None);
    let corner = |at: usize| {
        let mut values = vec![0; 64];
        values[at] = 1;
        Mask::new(8, 8, values).unwrap().region(8, 8, u32::MAX)
    };
    let everything = Region {
        left: 0,
        top: 0,
        width: 8,
        height: 8,
    };
    for at in [0, 7, 56, 63] {
        assert_eq!(corner(at), Some(everything));
    }
}

#[test]
fn what_was_painted_is_put_back_as_in_the_reference() {
    let cases = recorded();
    for case in cases["overlays"].as_array().unwrap() {
        let (width, height) = size(&case["size"]);
        let original = drawn(width, height);
        let mask: Mask = raster(&case["mask"]);
        let new: Picture = raster(&case["new"]);
        let region = case["corners"].as_array().map(|_| {
            let corners = numbers(&case["corners"]);
            let [left, top, right, bottom] = [0, 1, 2, 3].map(|k| corners[k] as u32);
            Region {
                left,
                top,
                width: right - left,
                height: bottom - top,
            }
        });
        let ours = overlay(&original, &mask, &new, region).unwrap();
        let expected: Picture = raster(&case["rgb"]);
        // Outside of the region the reference paints black where the mask is not quite 0; here the original stays.
        let inside = |x: u32, y: u32| {
            region.is_none_or(|r| {
                (r.left..r.left + r.width).contains(&x) && (r.top..r.top + r.height).contains(&y)
            })
        };
        let pixels = ours.values().chunks(3).zip(expected.values().chunks(3));
        for (index, (ours, theirs)) in pixels.enumerate() {
            let (x, y) = (index as u32 % width, index as u32 / width);
            let near = ours.iter().zip(theirs).all(|(a, b)| a.abs_diff(*b) <= 1);
            assert!(near || !inside(x, y), "{x}, {y}: {ours:?}, not {theirs:?}");
            let stays = mask.values()[index] == 0 || !inside(x, y);
            assert!(!stays || ours == &original.values()[index * 3..index * 3 + 3]);
        }
    }
    let refused = overlay(&drawn(8, 8), &shape_mask(9, 8), &drawn(8, 8), None);
    assert!(matches!(refused, Err(Error::Sizes { .. })));
}

#[test]
fn planes_are_what_networks_are_given() {
    let case = &recorded()["planes"];
    let ((width, height), (to_width, to_height)) = (size(&case["size"]), size(&case["to"]));
    let picture = drawn(width, height).resized(to_width, to_height, Filter::Lanczos);
    let planes = picture.planes();
    let expected = numbers(&case["values"]);
    assert_eq!(planes.len(), expected.len());
    for (ours, theirs) in planes.iter().zip(&expected) {
        assert!((f64::from(*ours) - theirs).abs() < 1e-6);
    }
    let mut values = vec![0; (to_width * to_height) as usize];
    values[5] = 255;
    let mask = Mask::new(to_width, to_height, values).unwrap();
    let masked = picture.planes_masked(&mask).unwrap();
    let plane = (to_width * to_height) as usize;
    for (index, (masked, value)) in masked.iter().zip(&planes).enumerate() {
        let expected = if index % plane == 5 { 0.0 } else { *value };
        assert_eq!(*masked, expected);
    }
    assert!(drawn(3, 3).planes_masked(&mask).is_err());
}
