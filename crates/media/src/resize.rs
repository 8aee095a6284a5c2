//! Resizing as Pillow does it, to the bit: a filter as wide as what it stands for, along rows and along columns.
//!
//! # Source
//! The arithmetic of Pillow 13's `Image.resize` for 8-bit pictures: weights in fixed point, rounded to bytes between the two
//! passes. Crates that resize refuse the empty source boxes that [`crate::fit`] needs.

use std::ops::Range;

use crate::raster::Raster;

/// How a new value is made of old ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Three lobes of a windowed sinc: sharp; what pictures are resized with.
    Lanczos,
    /// Cubics with a slope of -1/2: Pillow's default.
    Bicubic,
}

/// Bits behind the point of a weight: 32, less 8 of a value and 2 of sums beyond its range.
pub(crate) const WEIGHT_BITS: u32 = 22;

impl Filter {
    /// How far it reaches, in values of the smaller grid.
    fn reach(self) -> f64 {
        match self {
            Filter::Lanczos => 3.0,
            Filter::Bicubic => 2.0,
        }
    }

    /// The weight at a distance.
    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| match x == 0.0 {
            true => 1.0,
            false => (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI),
        };
        let distance = x.abs();
        match self {
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Filter::Bicubic if distance < 2.0 => {
                -0.5 * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
            }
            _ => 0.0,
        }
    }
}

/// A stretch of a side that is brought to another length.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stretch {
    /// Where it begins.
    start: f64,
    /// Where it ends; a stretch may be empty.
    end: f64,
    /// How many values it becomes.
    length: u32,
    /// Which of these are wanted.
    wanted: Range<u32>,
}

impl Stretch {
    /// A whole side.
    pub(crate) fn whole(side: u32, length: u32) -> Stretch {
        Stretch {
            start: 0.0,
            end: f64::from(side),
            length,
            wanted: 0..length,
        }
    }

    /// A place between two values.
    pub(crate) fn place(at: u32, length: u32) -> Stretch {
        Stretch {
            start: f64::from(at),
            end: f64::from(at),
            length,
            wanted: 0..length,
        }
    }

    /// Only `count` of the new values, from `first` on: what is left out costs nothing.
    pub(crate) fn only(self, first: u32, count: u32) -> Stretch {
        Stretch {
            wanted: first..first + count,
            ..self
        }
    }

    fn is_identity(&self, side: u32) -> bool {
        *self == Stretch::whole(side, side)
    }

    /// For each new value the first old one, and the weights of it and of those that follow.
    pub(crate) fn taps(&self, side: u32, filter: Filter) -> Vec<(usize, Vec<i32>)> {
        let step = (self.end - self.start) / f64::from(self.length);
        let widened = step.max(1.0);
        let reach = filter.reach() * widened;
        let tap = |index: u32| {
            let centre = self.start + (f64::from(index) + 0.5) * step;
            let first = (centre - reach + 0.5).max(0.0) as usize;
            let end = ((centre + reach + 0.5) as usize).min(side as usize);
            let weights: Vec<f64> = (first..end)
                .map(|at| filter.weight((at as f64 - centre + 0.5) / widened))
                .collect();
            let sum: f64 = weights.iter().sum();
            let sum = if sum == 0.0 { 1.0 } else { sum };
            let fixed = weights
                .iter()
                .map(|weight| (weight / sum * f64::from(1 << WEIGHT_BITS)).round() as i32)
                .collect();
            (first, fixed)
        };
        self.wanted.clone().map(tap).collect()
    }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// Half of a byte's unit, so that sums are rounded.
const HALF: i32 = 1 << (WEIGHT_BITS - 1);

impl<const CHANNELS: usize> Raster<CHANNELS> {
    /// The whole of it, stretched to `width` x `height` (at least 1 each).
    pub fn resized(&self, width: u32, height: u32, filter: Filter) -> Raster<CHANNELS> {
        let columns = Stretch::whole(self.width(), width.max(1));
        let rows = Stretch::whole(self.height(), height.max(1));
        self.resized_box(columns, rows, filter)
    }

    /// A box of it, stretched.
    pub(crate) fn resized_box(
        &self,
        columns: Stretch,
        rows: Stretch,
        filter: Filter,
    ) -> Raster<CHANNELS> {
        let (width, height) = (self.width(), self.height());
        let across = |x: &Self| match columns.is_identity(width) {
            true => x.clone(),
            false => x.with_columns(&columns.taps(width, filter)),
        };
        let down = |x: &Self| match rows.is_identity(height) {
            true => x.clone(),
            false => x.with_rows(&rows.taps(height, filter)),
        };
        // Pillow's rule for what goes first, which shows in the last bits.
        let lost = |side: u32, stretch: &Stretch| i64::from(side) - i64::from(stretch.length);
        let (lost_rows, lost_columns) = (lost(height, &rows), lost(width, &columns));
        match lost_rows > 0 && lost_rows > 2 * lost_columns {
            true => across(&down(self)),
            false => down(&across(self)),
        }
    }

    fn with_columns(&self, taps: &[(usize, Vec<i32>)]) -> Raster<CHANNELS> {
        let mut out = Raster::filled(taps.len() as u32, self.height(), [0; CHANNELS]);
        let bytes = taps.len() * CHANNELS;
        for (y, line) in out.values_mut().chunks_exact_mut(bytes).enumerate() {
            let (pixels, _) = self.row(y).as_chunks::<CHANNELS>();
            for (target, (first, weights)) in
                line.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(taps)
            {
                let mut sums = [HALF; CHANNELS];
                for (pixel, weight) in pixels[*first..].iter().zip(weights) {
                    for (sum, value) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(*value) * weight;
                    }
                }
                *target = sums.map(to_byte);
            }
        }
        out
    }

    fn with_rows(&self, taps: &[(usize, Vec<i32>)]) -> Raster<CHANNELS> {
        let mut out = Raster::filled(self.width(), taps.len() as u32, [0; CHANNELS]);
        let bytes = self.width() as usize * CHANNELS;
        let mut sums = vec![0i32; bytes];
        for (line, (first, weights)) in out.values_mut().chunks_exact_mut(bytes).zip(taps) {
            sums.fill(HALF);
            for (k, weight) in weights.iter().enumerate() {
                for (sum, value) in sums.iter_mut().zip(self.row(first + k)) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (target, sum) in line.iter_mut().zip(&sums) {
                *target = to_byte(*sum);
            }
        }
        out
    }
}
