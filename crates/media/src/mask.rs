//! Masks: what may be repainted.

use crate::raster::{Mask, Picture, Region, same_size};
use crate::{Fit, Result};

/// Box blurs that stand for one Gaussian.
const BOXES: usize = 3;

/// Bits behind the point of a box blur's weights.
const BLUR_BITS: u32 = 24;

/// The largest radius of a blur, in pixels.
pub const BLUR_RADIUS_MAX: f32 = 1000.0;

impl Mask {
    /// What was to stay is new, and the other way round.
    pub fn inverted(&self) -> Mask {
        let mut mask = self.clone();
        for value in mask.values_mut() {
            *value = u8::MAX - *value;
        }
        mask
    }

    /// Blurred by a Gaussian of so many pixels, as Pillow's `GaussianBlur` approximates it: three box blurs each way. More
    /// than [`BLUR_RADIUS_MAX`] is as much as that.
    pub fn blurred(&self, radius: f32) -> Mask {
        let Some(box_blur) = BoxBlur::new(radius) else {
            return self.clone();
        };
        let mut mask = self.clone();
        let (width, height) = (self.width() as usize, self.height() as usize);
        let mut line = Vec::new();
        for values in mask.values_mut().chunks_exact_mut(width) {
            box_blur.apply(values, &mut line);
        }
        let mut column = vec![0; height];
        let values = mask.values_mut();
        for x in 0..width {
            for (to, from) in column.iter_mut().zip(values[x..].iter().step_by(width)) {
                *to = *from;
            }
            box_blur.apply(&mut column, &mut line);
            for (to, from) in values[x..].iter_mut().step_by(width).zip(&column) {
                *to = *from;
            }
        }
        mask
    }

    /// 1 where it may be repainted, from a half on, else 0.
    pub fn binary(&self) -> impl Iterator<Item = f32> + '_ {
        self.values()
            .iter()
            .map(|&value| f32::from(u8::from(f32::from(value) / 255.0 >= 0.5)))
    }

    /// The binary mask at the resolution of latents: each takes the value of its first pixel.
    ///
    /// # Shapes
    /// (height, width), f32.
    ///
    /// # Source
    /// diffusers `prepare_mask_latents`: `interpolate` without a mode.
    pub fn latents(&self, width: u32, height: u32) -> Vec<f32> {
        let binary: Vec<f32> = self.binary().collect();
        // In f32, where the reference has its steps.
        let nearest = |to: u32, from: u32| {
            let step = from as f32 / to as f32;
            (0..to).map(move |at| ((at as f32 * step) as usize).min(from as usize - 1))
        };
        let row = |y: usize| {
            let binary = &binary;
            nearest(width, self.width()).map(move |x| binary[y * self.width() as usize + x])
        };
        nearest(height, self.height()).flat_map(row).collect()
    }

    /// The part of a picture to work on where only what is masked is to be: what holds all of the mask and `padding`
    /// pixels around it, enlarged to the proportions of `width` x `height` as far as the picture goes. `None` where
    /// nothing is masked.
    ///
    /// # Source
    /// diffusers `VaeImageProcessor.get_crop_region`, which the web UI has, too.
    pub fn region(&self, width: u32, height: u32, padding: u32) -> Option<Region> {
        let (columns, rows) = (self.width() as usize, self.height() as usize);
        let has_row = |&y: &usize| self.row(y).iter().any(|&value| value != 0);
        let has_column = |&x: &usize| {
            let mut column = self.values()[x..].iter().step_by(columns);
            column.any(|&value| value != 0)
        };
        let (first_row, last_row) = ((0..rows).find(has_row)?, (0..rows).rfind(has_row)?);
        let (first, last) = (
            (0..columns).find(has_column)?,
            (0..columns).rfind(has_column)?,
        );
        let side = |first: usize, last: usize, room: u32| Side {
            start: (first as i64 - i64::from(padding)).max(0),
            end: (last as i64 + 1 + i64::from(padding)).min(i64::from(room)),
            room: i64::from(room),
        };
        let mut x = side(first, last, self.width());
        let mut y = side(first_row, last_row, self.height());
        let asked = f64::from(width) / f64::from(height.max(1));
        if x.length() as f64 / y.length() as f64 > asked {
            y.widen((x.length() as f64 / asked) as i64);
        } else {
            x.widen((y.length() as f64 * asked) as i64);
        }
        let number = |number: i64| u32::try_from(number).expect("within the picture");
        Some(Region {
            left: number(x.start),
            top: number(y.start),
            width: number(x.length()),
            height: number(y.length()),
        })
    }
}

/// A stretch of one side of a picture.
struct Side {
    start: i64,
    end: i64,
    /// The side's length.
    room: i64,
}

impl Side {
    fn length(&self) -> i64 {
        self.end - self.start
    }

    /// Widens it to `length` on both ends, by more on the other end where a picture ends.
    fn widen(&mut self, length: i64) {
        let more = length - self.length();
        self.start -= more.div_euclid(2);
        self.end += more - more.div_euclid(2);
        let beyond = (self.end - self.room).max(0);
        self.start -= beyond;
        self.end -= beyond;
        let before = (-self.start).max(0);
        self.start += before;
        self.end = (self.end + before).min(self.room);
    }
}

/// `new` over `original` as far as `mask` says; where a region is named, `new` is a picture of that region alone, brought
/// to its size.
///
/// # Source
/// diffusers `VaeImageProcessor.apply_overlay`, without its intermediate roundings.
///
/// # Errors
/// [`crate::Error::Sizes`] when mask or, without a region, `new` are of another size than `original`.
pub fn overlay(
    original: &Picture,
    mask: &Mask,
    new: &Picture,
    region: Option<Region>,
) -> Result<Picture> {
    same_size(mask, original)?;
    let mut painted = match region {
        None => {
            same_size(mask, new)?;
            new.clone()
        }
        Some(region) => {
            let mut painted = original.clone();
            let part = new.fitted(region.width, region.height, Fit::Crop);
            painted.paste(&part, i64::from(region.left), i64::from(region.top));
            painted
        }
    };
    let old = original.values().as_chunks::<3>().0;
    let pixels = painted.values_mut().as_chunks_mut::<3>().0;
    for ((pixel, old), &share) in pixels.iter_mut().zip(old).zip(mask.values()) {
        for (value, old) in pixel.iter_mut().zip(old) {
            let (share, stays) = (u32::from(share), 255 - u32::from(share));
            *value = ((u32::from(*value) * share + u32::from(*old) * stays + 127) / 255) as u8;
        }
    }
    Ok(painted)
}

/// A box blur whose radius need not be whole: the values at both ends count in part.
struct BoxBlur {
    /// Whole values on each side.
    whole: usize,
    /// Weight of a value, of [`BLUR_BITS`] bits.
    weight: u64,
    /// Weight of the two values beyond.
    end_weight: u64,
}

impl BoxBlur {
    /// The box of which three blur like a Gaussian; `None` where that changes nothing.
    ///
    /// # Source
    /// P. Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering" (2011).
    fn new(radius: f32) -> Option<BoxBlur> {
        // In f32 where Pillow has it: a weight has as many bits as an f32, so its last one shows.
        let variance = radius.min(BLUR_RADIUS_MAX).powi(2) / BOXES as f32;
        if radius.is_nan() || radius <= 0.0 {
            return None;
        }
        let width = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let whole = ((width - 1.0) / 2.0).floor();
        let part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
            / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)));
        let one = 1u64 << BLUR_BITS;
        let weight = (one as f32 / ((whole + part) * 2.0 + 1.0)) as u64;
        let whole = whole as usize;
        Some(BoxBlur {
            whole,
            weight,
            end_weight: one.saturating_sub((2 * whole as u64 + 1) * weight) / 2,
        })
    }

    /// Blurs a line three times; beyond its ends it goes on as it ends.
    fn apply(&self, line: &mut [u8], before: &mut Vec<u8>) {
        for _ in 0..BOXES {
            before.clear();
            before.extend_from_slice(line);
            let last = line.len() as isize - 1;
            let at = |index: isize| u64::from(before[index.clamp(0, last) as usize]);
            let reach = self.whole as isize;
            let mut sum: u64 = (-reach..=reach).map(at).sum();
            for (x, value) in line.iter_mut().enumerate() {
                let x = x as isize;
                let ends = at(x - reach - 1) + at(x + reach + 1);
                let blurred = sum * self.weight + ends * self.end_weight;
                *value = ((blurred + (1 << (BLUR_BITS - 1))) >> BLUR_BITS) as u8;
                sum = sum + at(x + reach + 1) - at(x - reach);
            }
        }
    }
}
