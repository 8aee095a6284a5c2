//! Pictures from strangers: a file's bytes to pixels, bounded before anything is unpacked.

use std::io::Cursor;

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder};

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

/// The picture in `file`: its first frame, turned as its EXIF says, in 8 bits of red, green and blue.
///
/// # Errors
/// When the file is no picture in one of the formats, a damaged one, or larger than `limits`; sizes are looked at before
/// pixels are.
pub fn decode(file: &[u8], limits: &Limits) -> Result<Decoded> {
    let input = Cursor::new(file);
    match format_of(file).ok_or(Error::NotAPicture)? {
        Format::Png => unpack(PngDecoder::new(input)?, limits),
        Format::Jpeg => {
            let decoded = unpack(JpegDecoder::new(input)?, limits)?;
            match has_end(file) {
                true => Ok(decoded),
                false => Err(Error::NoEnd),
            }
        }
        Format::Webp => unpack(WebPDecoder::new(input)?, limits),
    }
}

/// Whether a JPEG's last scan is followed by the mark of its end. Decoders fill up what is missing with grey.
fn has_end(file: &[u8]) -> bool {
    // Within a scan 0xff is followed by 0 or by the mark of a restart, so neither of these occurs there.
    let last = |mark: u8| file.windows(2).rposition(|pair| pair == [0xff, mark]);
    last(0xd9) > last(0xda)
}

fn unpack(mut decoder: impl ImageDecoder, limits: &Limits) -> Result<Decoded> {
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if width.max(height) > limits.side_max || pixels > limits.pixels_max || pixels == 0 {
        return Err(Error::Size {
            width,
            height,
            side_max: limits.side_max,
            pixels_max: limits.pixels_max,
        });
    }
    let mut bound = image::Limits::no_limits();
    bound.max_image_width = Some(limits.side_max);
    bound.max_image_height = Some(limits.side_max);
    // Beside the pixels a decoder keeps rows and tables.
    bound.max_alloc = Some(pixels * BYTES_PER_PIXEL_MAX + (16 << 20));
    decoder.set_limits(bound)?;
    // A damaged EXIF block is no reason to refuse a picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let solid = !decoder.color_type().has_alpha();
    let mut image = DynamicImage::from_decoder(decoder)?;
    image = match solid {
        true => DynamicImage::ImageRgb8(image.into_rgb8()),
        false => DynamicImage::ImageRgba8(image.into_rgba8()),
    };
    image.apply_orientation(orientation);
    let (width, height) = (image.width(), image.height());
    if solid {
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

/// Colours before a white wall, and how solid they were.
fn over_white(rgba: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (pixels, _) = rgba.as_chunks::<4>();
    let mut rgb = Vec::with_capacity(pixels.len() * 3);
    for &[red, green, blue, alpha] in pixels {
        let over = |value: u8| {
            let white = 255 * (255 - u32::from(alpha));
            ((u32::from(value) * u32::from(alpha) + white + 127) / 255) as u8
        };
        rgb.extend([red, green, blue].map(over));
    }
    (rgb, pixels.iter().map(|pixel| pixel[3]).collect())
}
