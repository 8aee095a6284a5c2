//! Pictures from strangers: kept as their files have them, turned upright, bounded, and refused with a reason.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

use lowtide_media::{
    Depth, Error, Filter, Format, Limits, Original, Region, decode, decode_original, size_of,
};

/// A picture of this kind with something in every value.
fn drawn(width: u32, height: u32, depth: Depth, alpha: bool) -> Original {
    let mut picture = Original::blank(width, height, depth, alpha);
    let region = Region {
        left: 0,
        top: 0,
        width,
        height,
    };
    let count = width as usize * height as usize;
    for with in [false, true] {
        let step = if with { 7 } else { 3 };
        let planes: Vec<f32> = (0..3 * count)
            .map(|at| ((at % count * step + at / count * 91) % 997) as f32 / 996.0)
            .collect();
        picture.put(region, with, &planes, (width as usize, (0, 0)));
    }
    picture
}

#[test]
fn a_png_keeps_everything_and_others_what_they_can() {
    for depth in [Depth::Eight, Depth::Sixteen] {
        for alpha in [false, true] {
            let picture = drawn(31, 22, depth, alpha);
            assert_eq!((picture.depth(), picture.has_alpha()), (depth, alpha));
            let file = picture.encode(Format::Png, "said").unwrap();
            assert_eq!(
                lowtide_media::text_of(&file).unwrap().as_deref(),
                Some("said")
            );
            assert!(decode_original(&file, &Limits::default()).unwrap() == picture);
            let about = size_of(&file, &Limits::default()).unwrap();
            assert_eq!((about.width, about.height), (31, 22));
            assert_eq!((about.alpha, about.deep), (alpha, depth == Depth::Sixteen));
            // Without loss, in eight bits.
            let file = picture.encode(Format::Webp, "").unwrap();
            let read = decode_original(&file, &Limits::default()).unwrap();
            assert_eq!((read.depth(), read.has_alpha()), (Depth::Eight, alpha));
            if depth == Depth::Eight {
                assert!(read == picture);
            }
            let file = picture.encode(Format::Jpeg, "").unwrap();
            let read = decode_original(&file, &Limits::default()).unwrap();
            assert!(!read.has_alpha(), "over white");
            assert_eq!((read.width(), read.height()), (31, 22));
        }
    }
}

#[test]
fn what_is_flattened_is_what_decoding_gives() {
    for depth in [Depth::Eight, Depth::Sixteen] {
        let picture = drawn(17, 9, depth, true);
        let file = picture.encode(Format::Png, "").unwrap();
        let (ours, theirs) = (
            picture.flattened().unwrap(),
            decode(&file, &Limits::default()).unwrap(),
        );
        assert_eq!(ours.alpha.is_some(), theirs.alpha.is_some());
        let pairs = ours.picture.values().iter().zip(theirs.picture.values());
        // Sixteen bits may be rounded at another place.
        let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= u8::from(depth == Depth::Sixteen), "{worst}");
    }
}

#[test]
fn planes_are_shares_and_come_back_where_they_were() {
    let picture = drawn(12, 10, Depth::Eight, false);
    let region = Region {
        left: 3,
        top: 2,
        width: 11,
        height: 9,
    };
    let mut planes = vec![0.0; 3 * 11 * 9];
    picture.planes(region, false, &mut planes);
    assert!(planes.iter().all(|value| (0.0..=1.0).contains(value)));
    // Beyond the right edge it is mirrored: column 12 is column 10.
    assert_eq!(planes[9], planes[7]);
    assert_eq!(planes[8 * 11], planes[6 * 11], "beyond the lower edge, too");
    let mut copy = Original::blank(12, 10, Depth::Eight, false);
    let inside = Region {
        left: 4,
        top: 3,
        width: 5,
        height: 4,
    };
    copy.put(inside, false, &planes, (11, (1, 1)));
    let mut again = vec![0.0; 3 * 5 * 4];
    copy.planes(inside, false, &mut again);
    let mut expected = vec![0.0; 3 * 5 * 4];
    picture.planes(inside, false, &mut expected);
    assert_eq!(again, expected);
    let whole = picture.resized(12, 10, Filter::Lanczos).unwrap();
    assert!(whole == picture, "the same size is the same picture");
}

/// A TIFF block whose only entry is the orientation.
fn turned(orientation: u16) -> Vec<u8> {
    let mut block = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01".to_vec();
    block.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1]);
    block.extend(orientation.to_be_bytes());
    block.extend([0; 6]);
    block
}

#[test]
fn a_picture_is_upright_whatever_the_camera_held() {
    let picture = drawn(40, 24, Depth::Eight, false);
    let file = picture.encode(Format::Jpeg, "").unwrap();
    let straight = decode_original(&file, &Limits::default()).unwrap();
    for orientation in 1..=8 {
        let block = turned(orientation);
        let mut held = file[..2].to_vec();
        held.extend([0xff, 0xe1]);
        held.extend((block.len() as u16 + 2).to_be_bytes());
        held.extend(&block);
        held.extend(&file[2..]);
        let upright = decode_original(&held, &Limits::default()).unwrap();
        let about = size_of(&held, &Limits::default()).unwrap();
        assert_eq!(
            (about.width, about.height),
            (upright.width(), upright.height())
        );
        let expected = if orientation < 5 { (40, 24) } else { (24, 40) };
        assert_eq!(
            (upright.width(), upright.height()),
            expected,
            "{orientation}"
        );
        assert_eq!(upright == straight, orientation == 1, "{orientation}");
    }
}

/// A PNG with an animation's control chunk after its head.
fn animated_png() -> Vec<u8> {
    let file = drawn(8, 8, Depth::Eight, false)
        .encode(Format::Png, "")
        .unwrap();
    let head = 8 + 4 + 4 + 13 + 4;
    // `acTL`, two frames, for ever, with its checksum.
    let mut chunk = b"acTL\0\0\0\x02\0\0\0\0".to_vec();
    let mut crc = u32::MAX;
    for byte in &chunk {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    chunk.extend((!crc).to_be_bytes());
    [&file[..head], &8u32.to_be_bytes(), &chunk, &file[head..]].concat()
}

#[test]
fn animations_and_other_formats_are_refused_by_name() {
    let refused = |file: &[u8]| {
        let error = decode(file, &Limits::default()).unwrap_err();
        assert_eq!(
            decode_original(file, &Limits::default())
                .unwrap_err()
                .to_string(),
            error.to_string()
        );
        assert_eq!(
            size_of(file, &Limits::default()).unwrap_err().to_string(),
            error.to_string()
        );
        error
    };
    let error = refused(&animated_png());
    assert!(matches!(error, Error::Animated("png")), "{error}");
    assert!(
        error.to_string().contains("the frame that is meant"),
        "{error}"
    );
    // A WebP of the extended kind whose flags say that it is animated.
    let mut webp = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x07\0\0\x07\0\0".to_vec();
    webp.extend(b"ANIM\x06\0\0\0\0\0\0\0\0\0");
    webp.extend(b"ANMF\x18\0\0\0");
    webp.extend([0; 24]);
    let length = (webp.len() - 8) as u32;
    webp[4..8].copy_from_slice(&length.to_le_bytes());
    let error = refused(&webp);
    assert!(
        matches!(error, Error::Animated("webp") | Error::Image(_)),
        "{error}"
    );
    for (file, kind) in [
        (&b"GIF89a\x01\0\x01\0\0\0\0;"[..], "GIF"),
        (b"BM\0\0\0\0\0\0\0\0", "BMP"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
    ] {
        let text = refused(file).to_string();
        assert!(
            text.contains(kind) && text.contains("PNG, JPEG and WebP"),
            "{text}"
        );
    }
    assert!(matches!(refused(b"hello"), Error::NotAPicture));
}

#[test]
fn large_pictures_are_refused_before_they_are_unpacked() {
    let file = drawn(64, 32, Depth::Sixteen, true)
        .encode(Format::Png, "")
        .unwrap();
    for limits in [
        Limits {
            side_max: 63,
            pixels_max: 1 << 20,
        },
        Limits {
            side_max: 100,
            pixels_max: 64 * 32 - 1,
        },
    ] {
        for error in [
            decode_original(&file, &limits).unwrap_err(),
            size_of(&file, &limits).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Size { .. }), "{error}");
        }
    }
    // A head that claims the largest picture there can be, and little behind it.
    let mut bomb = file.clone();
    bomb[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
    assert!(decode_original(&bomb, &Limits::default()).is_err());
    assert!(size_of(&bomb, &Limits::default()).is_err());
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    for (depth, alpha) in [(Depth::Eight, false), (Depth::Sixteen, true)] {
        let whole = drawn(9, 7, depth, alpha);
        for format in [Format::Png, Format::Webp, Format::Jpeg] {
            let file = whole.encode(format, "text").unwrap();
            for at in 0..file.len() {
                let mut wrong = file.clone();
                wrong[at] ^= 0x55;
                let _ = decode_original(&wrong, &Limits::default());
                let _ = size_of(&wrong, &Limits::default());
                let _ = decode_original(&file[..at], &Limits::default());
            }
        }
    }
}
