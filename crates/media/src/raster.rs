//! Pictures and masks in memory: bytes, row by row.

use crate::picture::Pixels;
use crate::{Error, Result};

/// Values of `CHANNELS` bytes each, row by row from the top left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raster<const CHANNELS: usize> {
    width: u32,
    height: u32,
    values: Vec<u8>,
}

/// Red, green, blue.
pub type Picture = Raster<3>;

/// How far a place may be repainted: 0 it stays, 255 it is new.
pub type Mask = Raster<1>;

impl<const CHANNELS: usize> Raster<CHANNELS> {
    /// A raster of the given bytes.
    ///
    /// # Errors
    /// [`Error::Pixels`] when there are more or fewer than width and height say, or none.
    pub fn new(width: u32, height: u32, values: Vec<u8>) -> Result<Raster<CHANNELS>> {
        let expected = CHANNELS as u64 * u64::from(width) * u64::from(height);
        if values.len() as u64 != expected || expected == 0 {
            return Err(Error::Pixels {
                width,
                height,
                expected,
                found: values.len(),
            });
        }
        Ok(Raster {
            width,
            height,
            values,
        })
    }

    /// A raster of one value; no side may be 0.
    pub(crate) fn filled(width: u32, height: u32, value: [u8; CHANNELS]) -> Raster<CHANNELS> {
        debug_assert!(width > 0 && height > 0, "{width} x {height}");
        Raster {
            width,
            height,
            values: value.repeat(width as usize * height as usize),
        }
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The bytes, `CHANNELS` a pixel.
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    /// The bytes alone.
    pub fn into_values(self) -> Vec<u8> {
        self.values
    }

    /// The bytes, to be written.
    pub(crate) fn values_mut(&mut self) -> &mut [u8] {
        &mut self.values
    }

    /// Row `y`.
    pub(crate) fn row(&self, y: usize) -> &[u8] {
        let bytes = self.width as usize * CHANNELS;
        &self.values[y * bytes..(y + 1) * bytes]
    }

    /// The part of it that `region` names, as far as there is one; beyond its edges there is black.
    pub fn cropped(&self, region: Region) -> Raster<CHANNELS> {
        let mut part = Raster::filled(region.width.max(1), region.height.max(1), [0; CHANNELS]);
        part.paste(self, -i64::from(region.left), -i64::from(region.top));
        part
    }

    /// Puts `other` over it, its top left pixel at (`left`, `top`); what lies beyond an edge is left out.
    pub(crate) fn paste(&mut self, other: &Raster<CHANNELS>, left: i64, top: i64) {
        let span = |at: i64, length: u32, room: u32| {
            let start = at.clamp(0, i64::from(room));
            let end = (at + i64::from(length)).clamp(start, i64::from(room));
            (
                start as usize,
                (start - at) as usize,
                (end - start) as usize,
            )
        };
        let (x, from_x, columns) = span(left, other.width, self.width);
        let (y, from_y, rows) = span(top, other.height, self.height);
        if columns == 0 {
            return;
        }
        let stride = self.width as usize * CHANNELS;
        for row in 0..rows {
            let source = &other.row(from_y + row)[from_x * CHANNELS..][..columns * CHANNELS];
            let target = (y + row) * stride + x * CHANNELS;
            self.values[target..target + source.len()].copy_from_slice(source);
        }
    }
}

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Columns left of it.
    pub left: u32,
    /// Rows above it.
    pub top: u32,
    /// Its columns.
    pub width: u32,
    /// Its rows.
    pub height: u32,
}

impl Picture {
    /// It, to be written into a file.
    pub fn pixels(&self) -> Pixels<'_> {
        Pixels {
            width: self.width,
            height: self.height,
            rgb: &self.values,
        }
    }

    /// What networks take: planes of red, green and blue, -1 to 1.
    ///
    /// # Shapes
    /// (3, height, width), f32.
    pub fn planes(&self) -> Vec<f32> {
        let count = self.values.len() / 3;
        let mut planes = vec![0.0; 3 * count];
        for (channel, plane) in planes.chunks_exact_mut(count).enumerate() {
            for (value, pixel) in plane.iter_mut().zip(self.values.as_chunks::<3>().0) {
                *value = 2.0 * (f32::from(pixel[channel]) / 255.0) - 1.0;
            }
        }
        planes
    }

    /// [`Picture::planes`] with what `mask` lets be repainted set to 0, a middle grey: what inpainting models see.
    ///
    /// # Errors
    /// [`Error::Sizes`] when the mask has another size.
    pub fn planes_masked(&self, mask: &Mask) -> Result<Vec<f32>> {
        same_size(mask, self)?;
        let mut planes = self.planes();
        for plane in planes.chunks_exact_mut(mask.values.len()) {
            for (value, masked) in plane.iter_mut().zip(mask.binary()) {
                *value *= 1.0 - masked;
            }
        }
        Ok(planes)
    }

    /// One channel of it, as bright as it looks.
    pub fn luminance(&self) -> Mask {
        // Rec. 601 in 16 bits of fixed point, as Pillow converts to "L".
        let luminance = |[red, green, blue]: &[u8; 3]| {
            let sum =
                19_595 * u32::from(*red) + 38_470 * u32::from(*green) + 7_471 * u32::from(*blue);
            ((sum + 0x8000) >> 16) as u8
        };
        Raster {
            width: self.width,
            height: self.height,
            values: self
                .values
                .as_chunks::<3>()
                .0
                .iter()
                .map(luminance)
                .collect(),
        }
    }
}

/// That a mask goes with a picture.
pub(crate) fn same_size(mask: &Mask, picture: &Picture) -> Result<()> {
    let sizes = [(mask.width, mask.height), (picture.width, picture.height)];
    match sizes[0] == sizes[1] {
        true => Ok(()),
        false => Err(Error::Sizes {
            mask: sizes[0],
            picture: sizes[1],
        }),
    }
}
