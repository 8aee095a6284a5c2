//! Pictures from strangers: a file's bytes to pixels, bounded before anything is unpacked.

use std::io::Cursor;

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder};

use crate::original::Original;
use crate::raster::{Mask, Picture};
use crate::{Error, Format, Result};

/// How large a picture may be that is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pixels of the longer side.
    pub side_max: u32,
    /// Pixels in all. Unpacking takes up to [`BYTES_PER_PIXEL_MAX`] bytes for each.
    pub pixels_max: u64,
}

/// Bytes that unpacking takes at most for each pixel, beside the file: four values of 16 bits, those brought to 8 bits,
/// and their copy turned upright.
pub const BYTES_PER_PIXEL_MAX: u64 = 16;

impl Default for Limits {
    /// 16,384 pixels a side and 64 million in all: what cameras make.
    fn default() -> Limits {
        Limits {
            side_max: 16_384,
            pixels_max: 64_000_000,
        }
    }
}

/// A picture out of a file, upright.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The picture; over white where it can be seen through.
    pub picture: Picture,
    /// How solid each pixel is, 255 entirely; `None` where all are.
    pub alpha: Option<Mask>,
}

/// The format of a file, by its first bytes.
pub fn format_of(file: &[u8]) -> Option<Format> {
    match image::guess_format(file).ok()? {
        image::ImageFormat::Png => Some(Format::Png),
        image::ImageFormat::Jpeg => Some(Format::Jpeg),
        image::ImageFormat::WebP => Some(Format::Webp),
        _ => None,
    }
}

/// The picture in `file`, turned as its EXIF says, in 8 bits of red, green and blue.
///
/// # Errors
/// When the file is no picture in one of the formats, a damaged one, animated, or larger than `limits`; sizes are looked
/// at before pixels are.
pub fn decode(file: &[u8], limits: &Limits) -> Result<Decoded> {
    let image = unpack(file, limits, false)?;
    let (width, height) = (image.width(), image.height());
    if !image.color().has_alpha() {
        return Ok(Decoded {
            picture: Picture::new(width, height, image.into_rgb8().into_raw())?,
            alpha: None,
        });
    }
    let (rgb, alpha) = over_white(&image.into_rgba8().into_raw());
    let transparent = alpha.iter().any(|&alpha| alpha != u8::MAX);
    Ok(Decoded {
        picture: Picture::new(width, height, rgb)?,
        alpha: match transparent {
            true => Some(Mask::new(width, height, alpha)?),
            false => None,
        },
    })
}

/// The picture in `file` as it is there, but upright: with 16 bits where the file has them, and its colours over nothing.
///
/// # Errors
/// As [`decode`].
pub fn decode_original(file: &[u8], limits: &Limits) -> Result<Original> {
    Original::of(unpack(file, limits, true)?)
}

/// Width and height of the picture in `file` as it will come out of [`decode`], without unpacking it.
///
/// # Errors
/// As [`decode`], but for damage to the pixels.
pub fn size_of(file: &[u8], limits: &Limits) -> Result<Size> {
    fn look(mut decoder: impl ImageDecoder, limits: &Limits) -> Result<Size> {
        check_size(decoder.dimensions(), limits)?;
        let turned = matches!(
            decoder.orientation().unwrap_or(Orientation::NoTransforms),
            Orientation::Rotate90
                | Orientation::Rotate270
                | Orientation::Rotate90FlipH
                | Orientation::Rotate270FlipH
        );
        let (width, height) = decoder.dimensions();
        let colour = decoder.color_type();
        Ok(Size {
            width: if turned { height } else { width },
            height: if turned { width } else { height },
            alpha: colour.has_alpha(),
            deep: is_deep(colour),
        })
    }
    let input = Cursor::new(file);
    match still_format_of(file)? {
        Format::Png => look(PngDecoder::new(input)?, limits),
        Format::Jpeg => look(JpegDecoder::new(input)?, limits),
        Format::Webp => look(WebPDecoder::new(input)?, limits),
    }
}

/// What a file says of its picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pixels, once it is upright.
    pub width: u32,
    /// Pixels, once it is upright.
    pub height: u32,
    /// Whether it may be seen through.
    pub alpha: bool,
    /// Whether it has 16 bits a value.
    pub deep: bool,
}

/// The format of a file that holds one picture.
fn still_format_of(file: &[u8]) -> Result<Format> {
    let input = Cursor::new(file);
    let format = format_of(file).ok_or_else(|| match other_kind(file) {
        Some(kind) => Error::OtherKind(kind),
        None => Error::NotAPicture,
    })?;
    let animated = match format {
        Format::Png => PngDecoder::new(input)?.is_apng()?,
        Format::Webp => WebPDecoder::new(input)?.has_animation(),
        Format::Jpeg => false,
    };
    match animated {
        true => Err(Error::Animated(format.name())),
        false => Ok(format),
    }
}

/// Formats that people take for readable, by their first bytes.
fn other_kind(file: &[u8]) -> Option<&'static str> {
    use image::ImageFormat;
    match file.get(4..12) {
        Some(b"ftypheic" | b"ftypheix" | b"ftypmif1" | b"ftypmsf1") => return Some("HEIC"),
        Some(b"ftypavif" | b"ftypavis") => return Some("AVIF"),
        _ => {}
    }
    match image::guess_format(file).ok()? {
        ImageFormat::Gif => Some("GIF"),
        ImageFormat::Bmp => Some("BMP"),
        ImageFormat::Tiff => Some("TIFF"),
        ImageFormat::Ico => Some("icon"),
        ImageFormat::Pnm => Some("PNM"),
        _ => None,
    }
}

/// Whether a JPEG's last scan is followed by the mark of its end. Decoders fill up what is missing with grey.
fn has_end(file: &[u8]) -> bool {
    // Within a scan 0xff is followed by 0 or by the mark of a restart, so neither of these occurs there.
    let last = |mark: u8| file.windows(2).rposition(|pair| pair == [0xff, mark]);
    last(0xd9) > last(0xda)
}

fn check_size((width, height): (u32, u32), limits: &Limits) -> Result<u64> {
    let pixels = u64::from(width) * u64::from(height);
    if width.max(height) > limits.side_max || pixels > limits.pixels_max || pixels == 0 {
        return Err(Error::Size {
            width,
            height,
            side_max: limits.side_max,
            pixels_max: limits.pixels_max,
        });
    }
    Ok(pixels)
}

fn is_deep(colour: image::ColorType) -> bool {
    usize::from(colour.bytes_per_pixel()) > usize::from(colour.channel_count())
}

/// The pixels of a file, upright: RGB or RGBA, of 8 bits, or of 16 where `deep` wants them and the file has them.
fn unpack(file: &[u8], limits: &Limits, deep: bool) -> Result<DynamicImage> {
    fn turned(mut decoder: impl ImageDecoder, limits: &Limits, deep: bool) -> Result<DynamicImage> {
        let pixels = check_size(decoder.dimensions(), limits)?;
        let mut bound = image::Limits::no_limits();
        bound.max_image_width = Some(limits.side_max);
        bound.max_image_height = Some(limits.side_max);
        // Beside the pixels a decoder keeps rows and tables.
        bound.max_alloc = Some(pixels * BYTES_PER_PIXEL_MAX + (16 << 20));
        decoder.set_limits(bound)?;
        // A damaged EXIF block is no reason to refuse a picture.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let colour = decoder.color_type();
        let image = DynamicImage::from_decoder(decoder)?;
        let mut image = match (colour.has_alpha(), deep && is_deep(colour)) {
            (false, false) => DynamicImage::ImageRgb8(image.into_rgb8()),
            (true, false) => DynamicImage::ImageRgba8(image.into_rgba8()),
            (false, true) => DynamicImage::ImageRgb16(image.into_rgb16()),
            (true, true) => DynamicImage::ImageRgba16(image.into_rgba16()),
        };
        image.apply_orientation(orientation);
        Ok(image)
    }
    let input = Cursor::new(file);
    match still_format_of(file)? {
        Format::Png => turned(PngDecoder::new(input)?, limits, deep),
        Format::Jpeg => {
            let image = turned(JpegDecoder::new(input)?, limits, deep)?;
            match has_end(file) {
                true => Ok(image),
                false => Err(Error::NoEnd),
            }
        }
        Format::Webp => turned(WebPDecoder::new(input)?, limits, deep),
    }
}

/// Colours before a white wall, and how solid they were.
fn over_white(rgba: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (pixels, _) = rgba.as_chunks::<4>();
    let mut rgb = Vec::with_capacity(pixels.len() * 3);
    for &[red, green, blue, alpha] in pixels {
        rgb.extend([red, green, blue].map(|value| over(value, alpha)));
    }
    (rgb, pixels.iter().map(|pixel| pixel[3]).collect())
}

/// A value before a white wall.
pub(crate) fn over(value: u8, alpha: u8) -> u8 {
    let white = 255 * (255 - u32::from(alpha));
    ((u32::from(value) * u32::from(alpha) + white + 127) / 255) as u8
}
