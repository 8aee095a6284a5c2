//! A picture and the text that goes with it, to a file's bytes and back.

mod exif;

use crate::{Error, Format, Result};
use image::codecs::jpeg::{JpegDecoder, JpegEncoder};
use image::codecs::webp::{WebPDecoder, WebPEncoder};
use image::{ExtendedColorType, ImageDecoder, ImageEncoder, RgbImage};
use std::io::Cursor;

/// Where artefacts stop being visible at a normal distance; files are about a fifth of the PNG's size.
pub const JPEG_QUALITY: u8 = 95;

/// The PNG text chunk other programs look for.
const KEYWORD: &str = "parameters";

/// The pixels of a picture.
#[derive(Clone, Copy, Debug)]
pub struct Pixels<'a> {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Red, green, blue, row by row; 3 x width x height bytes.
    pub rgb: &'a [u8],
}

impl Pixels<'_> {
    fn check(&self) -> Result<()> {
        let expected = 3 * u64::from(self.width) * u64::from(self.height);
        if self.rgb.len() as u64 == expected {
            return Ok(());
        }
        Err(Error::Pixels {
            width: self.width,
            height: self.height,
            expected,
            found: self.rgb.len(),
        })
    }
}

/// The bytes of a file in `format` that holds the picture and `text`; an empty text leaves no trace.
///
/// # Errors
/// When there are more or fewer pixels than width and height say, or the text is longer than the format can hold.
pub fn encode(pixels: Pixels<'_>, format: Format, text: &str) -> Result<Vec<u8>> {
    pixels.check()?;
    let Pixels { width, height, rgb } = pixels;
    let mut file = Vec::new();
    match format {
        Format::Png => encode_png((width, height), PngKind::RGB8, rgb, text, &mut file)?,
        Format::Jpeg => {
            let mut encoder = JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY);
            set_text(&mut encoder, text)?;
            encoder.write_image(rgb, width, height, ExtendedColorType::Rgb8)?;
        }
        Format::Webp => {
            let mut encoder = WebPEncoder::new_lossless(&mut file);
            set_text(&mut encoder, text)?;
            encoder.write_image(rgb, width, height, ExtendedColorType::Rgb8)?;
        }
    }
    Ok(file)
}

pub(crate) fn set_text(encoder: &mut impl ImageEncoder, text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let block = exif::with_user_comment(text);
    if block.len() > exif::BLOCK_BYTES_MAX {
        return Err(Error::TextTooLong {
            bytes: block.len(),
            bytes_max: exif::BLOCK_BYTES_MAX,
        });
    }
    encoder
        .set_exif_metadata(block)
        .map_err(|cause| Error::Image(image::ImageError::Unsupported(cause)))
}

/// The picture with its larger side at most `side_max` pixels, its proportions kept: width, height and pixels. Each
/// pixel is the mean of those it stands for; one that is small already comes back as it is.
///
/// # Errors
/// As [`encode`].
pub fn shrunk(pixels: Pixels<'_>, side_max: u32) -> Result<(u32, u32, Vec<u8>)> {
    pixels.check()?;
    let Pixels { width, height, rgb } = pixels;
    let longer = width.max(height);
    if longer <= side_max {
        return Ok((width, height, rgb.to_vec()));
    }
    let side = |side: u32| {
        let scaled = u64::from(side) * u64::from(side_max) / u64::from(longer);
        u32::try_from(scaled).map_or(side_max, |scaled| scaled.max(1))
    };
    let picture = RgbImage::from_raw(width, height, rgb.to_vec()).expect("just checked");
    let small = image::imageops::thumbnail(&picture, side(width), side(height));
    Ok((small.width(), small.height(), small.into_raw()))
}

/// What the pixels of a PNG are.
#[derive(Clone, Copy)]
pub(crate) struct PngKind(png::ColorType, png::BitDepth);

impl PngKind {
    pub(crate) const RGB8: PngKind = PngKind(png::ColorType::Rgb, png::BitDepth::Eight);
    pub(crate) const RGBA8: PngKind = PngKind(png::ColorType::Rgba, png::BitDepth::Eight);
    pub(crate) const RGB16: PngKind = PngKind(png::ColorType::Rgb, png::BitDepth::Sixteen);
    pub(crate) const RGBA16: PngKind = PngKind(png::ColorType::Rgba, png::BitDepth::Sixteen);
}

pub(crate) fn encode_png(
    (width, height): (u32, u32),
    PngKind(colour, depth): PngKind,
    pixels: &[u8],
    text: &str,
    file: &mut Vec<u8>,
) -> Result<()> {
    let mut encoder = png::Encoder::new(file, width, height);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    // tEXt holds Latin-1 only; what it cannot hold goes into iTXt, as other programs do it.
    if text.is_empty() {
        // Nothing to say.
    } else if text.chars().all(|c| u32::from(c) < 256) {
        encoder.add_text_chunk(KEYWORD.to_owned(), text.to_owned())?;
    } else {
        encoder.add_itxt_chunk(KEYWORD.to_owned(), text.to_owned())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(())
}

/// The text a picture file carries, or `None` where it carries none.
///
/// # Errors
/// When the file is no picture in one of the formats, or a damaged one.
pub fn text_of(file: &[u8]) -> Result<Option<String>> {
    let kind = image::guess_format(file).ok();
    match kind {
        Some(image::ImageFormat::Png) => text_of_png(file),
        Some(image::ImageFormat::Jpeg) => {
            let exif = JpegDecoder::new(Cursor::new(file))?.exif_metadata()?;
            Ok(exif.and_then(|exif| exif::user_comment(&exif)))
        }
        Some(image::ImageFormat::WebP) => {
            let exif = WebPDecoder::new(Cursor::new(file))?.exif_metadata()?;
            Ok(exif.and_then(|exif| exif::user_comment(&exif)))
        }
        _ => Err(Error::NotAPicture),
    }
}

fn text_of_png(file: &[u8]) -> Result<Option<String>> {
    let mut reader = png::Decoder::new(Cursor::new(file)).read_info()?;
    // Text may also stand behind the pixels.
    reader.finish().map_err(Error::CutShort)?;
    let info = reader.info();
    if let Some(chunk) = info
        .uncompressed_latin1_text
        .iter()
        .find(|chunk| chunk.keyword == KEYWORD)
    {
        return Ok(Some(chunk.text.clone()));
    }
    if let Some(chunk) = info
        .compressed_latin1_text
        .iter()
        .find(|chunk| chunk.keyword == KEYWORD)
    {
        return Ok(Some(chunk.get_text()?));
    }
    let chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == KEYWORD);
    Ok(chunk
        .map(png::text_metadata::ITXtChunk::get_text)
        .transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_carries_any_text() {
        let rgb: Vec<u8> = (0..16 * 16 * 3).map(|k| (k % 251) as u8).collect();
        let pixels = Pixels {
            width: 16,
            height: 16,
            rgb: &rgb,
        };
        for text in ["plain", "Latin-1: ü, ÿ", "日本語 and more\nSteps: 4"] {
            for format in Format::ALL {
                let file = encode(pixels, format, text).unwrap();
                assert_eq!(text_of(&file).unwrap().as_deref(), Some(text), "{format:?}");
            }
        }
    }

    #[test]
    fn lossless_formats_return_the_pixels() {
        let rgb: Vec<u8> = (0..32 * 16 * 3).map(|k| (k * 7 % 256) as u8).collect();
        let pixels = Pixels {
            width: 32,
            height: 16,
            rgb: &rgb,
        };
        for format in [Format::Png, Format::Webp] {
            let file = encode(pixels, format, "").unwrap();
            assert_eq!(
                image::load_from_memory(&file).unwrap().to_rgb8().into_raw(),
                rgb,
                "{format:?}"
            );
        }
    }

    #[test]
    fn a_text_no_format_has_room_for_is_refused() {
        let pixels = Pixels {
            width: 1,
            height: 1,
            rgb: &[0; 3],
        };
        let longest = "x".repeat((exif::BLOCK_BYTES_MAX - exif::with_user_comment("").len()) / 2);
        let file = encode(pixels, Format::Jpeg, &longest).unwrap();
        assert_eq!(text_of(&file).unwrap().as_deref(), Some(&longest[..]));
        let longer = format!("{longest}x");
        let refused = encode(pixels, Format::Jpeg, &longer);
        assert!(matches!(refused, Err(Error::TextTooLong { .. })));
        assert!(encode(pixels, Format::Png, &longer).is_ok());
    }

    #[test]
    fn a_shrunk_picture_keeps_its_proportions_and_its_mean() {
        let rgb: Vec<u8> = (0..64 * 16)
            .flat_map(|k| [(k % 2 * 100) as u8, 7, 200])
            .collect();
        let pixels = Pixels {
            width: 64,
            height: 16,
            rgb: &rgb,
        };
        let (width, height, small) = shrunk(pixels, 32).unwrap();
        assert_eq!((width, height), (32, 8));
        assert!(small.chunks_exact(3).all(|pixel| pixel == [50, 7, 200]));
        assert_eq!(shrunk(pixels, 64).unwrap(), (64, 16, rgb.clone()));
        assert_eq!(shrunk(pixels, 2).unwrap().1, 1);
    }

    #[test]
    fn wrong_numbers_of_pixels_are_refused() {
        let pixels = Pixels {
            width: 2,
            height: 1,
            rgb: &[0; 3],
        };
        for format in Format::ALL {
            assert!(matches!(
                encode(pixels, format, ""),
                Err(Error::Pixels {
                    expected: 6,
                    found: 3,
                    ..
                })
            ));
        }
    }

    #[test]
    fn other_files_are_refused() {
        assert!(text_of(b"not a picture").is_err());
        assert!(text_of(b"").is_err());
    }
}
