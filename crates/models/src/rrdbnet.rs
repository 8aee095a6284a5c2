//! RRDBNet, the generator of ESRGAN, Real-ESRGAN and BSRGAN: dense blocks on the picture's own grid, then doublings.
//!
//! f features, g growth, h x w the grid (the picture's, or smaller where pixels are put beside each other as channels),
//! d doublings. Features grow within a dense block, so it has one map of f + 4 g channels, of which each convolution reads
//! a longer beginning and writes what follows; nothing is ever joined by copying.
//!
//! # Source
//! <https://github.com/XPixelGroup/BasicSR/blob/master/basicsr/archs/rrdbnet_arch.py>

use std::ops::Range;

use lowtide_core::{BlockLayout, ComponentLayout};
use lowtide_kernels::MapRows;
use serde_json::Value;

use crate::config::ConfigReader;
use crate::device::{Elementwise, Values};
use crate::layers::Conv2d;
use crate::ops::{self, After, MapSlice};
use crate::tensor::{Compute, Tensor};
use crate::weights::{Headers, record};
use crate::{Result, Weights};

/// What of a residual is added to what it was made of.
const RESIDUAL: f32 = 0.2;
/// What negative features are multiplied by.
const SLOPE: f32 = 0.2;
/// Dense blocks of a block.
const DENSE: usize = 3;
/// Convolutions of a dense block that add features.
const GROWING: usize = 4;

/// Shapes of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// f.
    pub features: usize,
    /// g.
    pub growth: usize,
    /// Residual in residual dense blocks.
    pub blocks: usize,
    /// d.
    pub doublings: usize,
    /// Pixels a side that are put beside each other as channels first: 1, 2 or 4.
    pub unshuffle: usize,
}

impl Config {
    /// Reads a configuration as the checkpoint's shapes gave it.
    ///
    /// # Errors
    /// [`crate::Error::Config`].
    pub fn read(value: &Value) -> Result<Config> {
        let reader = ConfigReader::new("upscaler", value);
        Ok(Config {
            features: reader.size("num_feat", None, 1..=1024)?,
            growth: reader.size("num_grow_ch", None, 1..=1024)?,
            blocks: reader.size("num_block", None, 1..=256)?,
            doublings: reader.size("doublings", None, 0..=3)?,
            unshuffle: reader.size("unshuffle", None, 1..=4)?,
        })
    }

    fn channels_in(&self) -> usize {
        3 * self.unshuffle * self.unshuffle
    }

    /// Channels of a dense block's map.
    fn wide(&self) -> usize {
        self.features + GROWING * self.growth
    }

    /// Cells around one of the grid that its results depend on: one a convolution, and two for those after the doublings.
    pub(crate) fn reach(&self) -> usize {
        let dense = DENSE * (GROWING + 1);
        let after: usize = (0..=self.doublings).map(|d| 1usize.div_ceil(1 << d)).sum();
        1 + self.blocks * dense + 1 + after + 1
    }

    /// Bytes of the maps that are there while the blocks compute, of an h x w grid.
    pub(crate) fn trunk_bytes(&self, (h, w): (usize, usize)) -> u64 {
        4 * ((2 * self.wide() + 2 * self.features) * h * w) as u64
    }

    /// Bytes of the strips that are there while `rows` rows of the grid are finished, the result's included.
    pub(crate) fn tail_bytes(&self, (h, w): (usize, usize), rows: usize) -> u64 {
        let wanted = self.wanted(h, 0..rows.min(h));
        let (mut before, mut worst) = (0, 0);
        for (level, range) in wanted.levels.iter().enumerate().skip(1) {
            let now = self.features * range.len() * (w << level);
            worst = worst.max(before + now);
            before = now;
        }
        let side = w << self.doublings;
        let hr = self.features * wanted.hr.len() * side;
        worst = worst.max(before + hr).max(hr + 3 * wanted.out.len() * side);
        4 * worst as u64
    }

    /// Operations for an h x w grid.
    pub(crate) fn flops(&self, (h, w): (usize, usize)) -> f64 {
        let conv = |from: usize, to: usize| 2.0 * 9.0 * from as f64 * to as f64;
        let (f, g) = (self.features, self.growth);
        let grown: f64 = (0..GROWING).map(|k| conv(f + k * g, g)).sum();
        let block = DENSE as f64 * (grown + conv(self.wide(), f));
        let mut cell = conv(self.channels_in(), f) + self.blocks as f64 * block + conv(f, f);
        for level in 1..=self.doublings {
            cell += conv(f, f) * 4f64.powi(level as i32);
        }
        cell += (conv(f, f) + conv(f, 3)) * 4f64.powi(self.doublings as i32);
        cell * (h * w) as f64
    }

    /// Blocks in order: what makes features, the dense ones, and the rest.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape or type.
    pub(crate) fn layout(&self, headers: &dyn Headers, name: &str) -> Result<ComponentLayout> {
        let mut blocks: Vec<BlockLayout> = Vec::with_capacity(self.blocks + 2);
        blocks.push(record(headers, "conv_first", |w| self.first(w).map(drop))?);
        for index in 0..self.blocks {
            let name = format!("body.{index}");
            blocks.push(record(headers, name, |w| self.block(w, index).map(drop))?);
        }
        blocks.push(record(headers, "tail", |w| self.tail(w).map(drop))?);
        Ok(ComponentLayout {
            name: name.to_owned(),
            tables: Vec::new(),
            blocks,
        })
    }

    fn first<'w>(&self, weights: &Weights<'w>) -> Result<Conv2d<'w>> {
        weights.conv2d(self.channels_in(), self.features, 3, "conv_first")
    }

    fn block<'w>(&self, weights: &Weights<'w>, index: usize) -> Result<Vec<[Conv2d<'w>; 5]>> {
        let (f, g) = (self.features, self.growth);
        let scope = weights.pp("body").pp(index);
        let dense = |d: usize| -> Result<[Conv2d<'w>; 5]> {
            let scope = scope.pp(format_args!("rdb{}", d + 1));
            let grow = |k: usize| scope.conv2d(f + k * g, g, 3, &format!("conv{}", k + 1));
            let last = scope.conv2d(self.wide(), f, 3, "conv5");
            Ok([grow(0)?, grow(1)?, grow(2)?, grow(3)?, last?])
        };
        (0..DENSE).map(dense).collect()
    }

    fn tail<'w>(&self, weights: &Weights<'w>) -> Result<Tail<'w>> {
        let f = self.features;
        let body = weights.conv2d(f, f, 3, "conv_body")?;
        let up = |k: usize| weights.conv2d(f, f, 3, &format!("conv_up{}", k + 1));
        Ok(Tail {
            body,
            ups: (0..self.doublings).map(up).collect::<Result<_>>()?,
            hr: weights.conv2d(f, f, 3, "conv_hr")?,
            last: weights.conv2d(f, 3, 3, "conv_last")?,
        })
    }

    /// Which rows of each map are needed for `rows` rows of the grid.
    fn wanted(&self, height: usize, rows: Range<usize>) -> Wanted {
        let d = self.doublings;
        let out = rows.start << d..rows.end << d;
        let hr = widened(&out, height << d);
        let mut levels = vec![widened(&hr, height << d)];
        for level in (1..=d).rev() {
            let read = widened(&levels[0], height << level);
            levels.insert(0, read.start / 2..read.end.div_ceil(2));
        }
        Wanted { levels, hr, out }
    }
}

/// Rows of maps.
struct Wanted {
    /// By level: of the grid, of the first doubling, and so on; those of the last are what `hr` reads.
    levels: Vec<Range<usize>>,
    hr: Range<usize>,
    out: Range<usize>,
}

/// A row more on either side, where there is one.
fn widened(rows: &Range<usize>, height: usize) -> Range<usize> {
    rows.start.saturating_sub(1)..(rows.end + 1).min(height)
}

/// What comes after the dense blocks.
struct Tail<'w> {
    body: Conv2d<'w>,
    ups: Vec<Conv2d<'w>>,
    hr: Conv2d<'w>,
    last: Conv2d<'w>,
}

/// A window on its way through the network.
pub(crate) struct State {
    grid: (usize, usize),
    /// Two maps of a dense block, (f + 4 g, h, w).
    maps: [Tensor; 2],
    /// What the present block began with (f, h, w).
    skip: Tensor,
    /// What all blocks began with (f, h, w).
    first: Tensor,
}

impl Config {
    /// The features of a window (3 unshuffle^2, h, w).
    ///
    /// # Errors
    /// When memory is refused.
    pub(crate) fn begin(
        &self,
        compute: Compute,
        weights: &Weights<'_>,
        window: &Tensor,
    ) -> Result<State> {
        let (_, h, w) = window.dims3()?;
        let map = || Tensor::new(&[self.wide(), h, w]);
        let features = || Tensor::new(&[self.features, h, w]);
        let mut state = State {
            grid: (h, w),
            maps: [map()?, map()?],
            skip: features()?,
            first: features()?,
        };
        let conv = self.first(weights)?;
        let rows = MapRows::whole(h);
        let from = MapSlice::whole(window.values(), h, w);
        let to = (state.first.values_mut(), rows);
        conv.apply(compute, (from, false), After::Plain, None, to)?;
        let mut map = state.maps[0].values_mut();
        let head = map.part(0..self.features * h * w);
        ops::elementwise(Elementwise::Copy, head, state.first.values())?;
        Ok(state)
    }

    /// Dense block `index`, or what joins them where it is the last step.
    ///
    /// # Errors
    /// As [`Config::begin`].
    pub(crate) fn advance(
        &self,
        compute: Compute,
        weights: &Weights<'_>,
        index: usize,
        state: &mut State,
    ) -> Result<()> {
        let (h, w) = state.grid;
        let (rows, head) = (MapRows::whole(h), self.features * h * w);
        let [a, b] = &mut state.maps;
        if index == self.blocks {
            let body = self.tail(weights)?.body;
            let from = MapSlice::whole(a.values().part(0..head), h, w);
            let mut to = b.values_mut();
            let to = (to.part(0..head), rows);
            let add = Some(state.first.values());
            return body.apply(compute, (from, false), After::Plain, add, to);
        }
        let block = self.block(weights, index)?;
        let from = a.values().part(0..head);
        ops::elementwise(Elementwise::Copy, state.skip.values_mut(), from)?;
        let (mut from, mut to) = (a, b);
        for dense in &block {
            let [growing @ .., last] = dense;
            for (k, conv) in growing.iter().enumerate() {
                let at = (self.features + k * self.growth) * h * w;
                let (read, mut rest) = from.values_mut().split_at(at);
                let read = (MapSlice::whole(read, h, w), false);
                let write = (rest.part(0..self.growth * h * w), rows);
                conv.apply(compute, read, After::Leaky(SLOPE), None, write)?;
            }
            let whole = (MapSlice::whole(from.values(), h, w), false);
            let add = Some(from.values().part(0..head));
            let mut write = to.values_mut();
            let write = (write.part(0..head), rows);
            last.apply(compute, whole, After::Scaled(RESIDUAL), add, write)?;
            std::mem::swap(&mut from, &mut to);
        }
        // Three dense blocks end in the second map.
        let [a, b] = &mut state.maps;
        let mut to = a.values_mut();
        ops::elementwise(Elementwise::Copy, to.part(0..head), state.skip.values())?;
        let more = b.values().part(0..head);
        ops::elementwise(Elementwise::AddScaled(RESIDUAL), to.part(0..head), more)
    }

    /// `rows` of the grid of a window that went through all blocks, enlarged.
    ///
    /// # Shapes
    /// (3, rows 2^d, w 2^d).
    ///
    /// # Errors
    /// As [`Config::begin`].
    pub(crate) fn finish(
        &self,
        compute: Compute,
        weights: &Weights<'_>,
        state: &State,
        rows: Range<usize>,
    ) -> Result<Tensor> {
        let (h, w) = state.grid;
        let tail = self.tail(weights)?;
        let wanted = self.wanted(h, rows);
        let leaky = After::Leaky(SLOPE);
        let head = state.maps[1].values().part(0..self.features * h * w);
        let mut strip: Option<Tensor> = None;
        for (level, up) in tail.ups.iter().enumerate() {
            let from = level_slice(head, strip.as_ref(), &wanted, (h, w), level);
            let next = level + 1;
            let out_rows = part(&wanted.levels[next], h << next);
            let mut out = Tensor::new(&[self.features, out_rows.count, w << next])?;
            let to = (out.values_mut(), out_rows);
            up.apply(compute, (from, true), leaky, None, to)?;
            strip = Some(out);
        }
        let d = self.doublings;
        let from = level_slice(head, strip.as_ref(), &wanted, (h, w), d);
        let hr_rows = part(&wanted.hr, h << d);
        let mut hr = Tensor::new(&[self.features, hr_rows.count, w << d])?;
        let to = (hr.values_mut(), hr_rows);
        tail.hr.apply(compute, (from, false), leaky, None, to)?;
        drop(strip);
        let out_rows = part(&wanted.out, h << d);
        let mut out = Tensor::new(&[3, out_rows.count, w << d])?;
        let from = MapSlice {
            data: hr.values(),
            rows: hr_rows,
            width: w << d,
        };
        let to = (out.values_mut(), out_rows);
        tail.last
            .apply(compute, (from, false), After::Plain, None, to)?;
        out.into_host()
    }
}

fn part(rows: &Range<usize>, total: usize) -> MapRows {
    MapRows {
        total,
        first: rows.start,
        count: rows.len(),
    }
}

/// What a level gives to read: the whole grid, or the strip of a doubling.
fn level_slice<'a>(
    grid: Values<'a>,
    strip: Option<&'a Tensor>,
    wanted: &Wanted,
    (h, w): (usize, usize),
    level: usize,
) -> MapSlice<'a> {
    match strip {
        None => MapSlice::whole(grid, h, w),
        Some(strip) => MapSlice {
            data: strip.values(),
            rows: part(&wanted.levels[level], h << level),
            width: w << level,
        },
    }
}
