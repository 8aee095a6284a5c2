//! A convolution's input: the rows a block needs, and panels of them.

use super::{ChannelAffine, Conv2d, MapRows, Padding};
use crate::gemm::{PANEL, Panel, Source};
use crate::isa::{Isa, isa};
use crate::math::{self, Activation};
use crate::scratch::Buffer;
use crate::simd::{LANES, Vector, per_isa};
use crate::stored::Format;
use std::ops::Range;

/// How the pixels of a result are cut into panels.
///
/// A wide map is cut into strips of columns, and the panels of a strip follow each other down the
/// rows, so that neighbouring panels share most of the input they read. The rows of a narrow one
/// follow each other in a panel.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    rows: usize,
    width: usize,
    /// Columns of a strip, unless the map is narrow.
    strip: Option<usize>,
}

impl Panels {
    pub(super) fn new(rows: usize, width: usize) -> Self {
        let strip = width.div_ceil(width.div_ceil(PANEL).max(1));
        Self {
            rows,
            width,
            strip: (width >= PANEL).then_some(strip.next_multiple_of(LANES)),
        }
    }

    /// The same with panels that never have parts of two rows.
    pub(super) fn of_rows(rows: usize, width: usize) -> Self {
        let strip = width.div_ceil(width.div_ceil(PANEL).max(1));
        Self {
            rows,
            width,
            strip: Some(strip.next_multiple_of(LANES)),
        }
    }

    /// Strips of columns, and the columns of the widest.
    pub(super) fn strips(&self) -> (usize, usize) {
        let strip = self.strip.unwrap_or(self.width).max(1);
        (self.width.div_ceil(strip), strip)
    }

    /// The columns of a strip.
    pub(super) fn columns(&self, strip: usize) -> Range<usize> {
        let (_, columns) = self.strips();
        strip * columns..((strip + 1) * columns).min(self.width)
    }

    pub(super) fn count(&self) -> usize {
        match self.strip {
            Some(strip) => self.width.div_ceil(strip) * self.rows,
            None => (self.rows * self.width).div_ceil(PANEL),
        }
    }

    /// Panels of a strip.
    pub(super) fn run(&self) -> usize {
        match self.strip {
            Some(_) => self.rows.max(1),
            None => self.count().max(1),
        }
    }

    /// A panel's pixels, counted along the rows of the slice.
    pub(super) fn pixels(&self, panel: usize) -> Range<usize> {
        match self.strip {
            Some(strip) => {
                let (column, row) = (panel / self.rows * strip, panel % self.rows);
                let start = row * self.width + column;
                start..start + strip.min(self.width - column)
            }
            None => {
                let start = panel * PANEL;
                start..(start + PANEL).min(self.rows * self.width)
            }
        }
    }
}

/// Pixels of a result as the lanes of a product.
pub(super) struct MapSource<'a> {
    isa: Isa,
    format: Format,
    x: &'a [f32],
    x_rows: MapRows,
    width: usize,
    first_out: usize,
    panels: Panels,
    kernel: usize,
    stride: usize,
    padding: Padding,
    upsample: bool,
    input: Option<ChannelAffine<'a>>,
    /// Whether pixels of the result are pixels of the input, so that nothing needs a stage.
    direct: bool,
}

/// The part of the input staged for a block: `[channel][row][phase][column]`, where the columns
/// of one phase are `stride` apart in the input, so that neighbouring pixels of the result always
/// read neighbouring numbers.
struct Window {
    channels: Range<usize>,
    /// First row and column of the result.
    row: usize,
    column: usize,
    /// Input rows, padding included.
    rows: usize,
    /// Columns of one phase.
    columns: usize,
}

impl<'a> MapSource<'a> {
    pub(super) fn new(
        conv: &Conv2d<'a>,
        padding: Padding,
        (x, x_rows, width): (&'a [f32], MapRows, usize),
        (out_rows, width_out): (MapRows, usize),
    ) -> Self {
        let direct = conv.kernel == 1
            && conv.stride == 1
            && !conv.upsample
            && conv.input.is_none()
            && padding == Padding::all(0)
            && x_rows == out_rows;
        let source = Self {
            isa: isa(),
            format: Format::F32,
            x,
            x_rows,
            width,
            first_out: out_rows.first,
            panels: Panels::new(out_rows.count, width_out),
            kernel: conv.kernel,
            stride: conv.stride,
            padding,
            upsample: conv.upsample,
            input: conv.input,
            direct,
        };
        source.check_rows(out_rows);
        source
    }

    pub(super) fn with_format(self, isa: Isa, format: Format) -> Self {
        Self {
            isa,
            format,
            ..self
        }
    }

    /// Panics unless the slice has all rows that the result needs.
    fn check_rows(&self, out_rows: MapRows) {
        if out_rows.count == 0 {
            return;
        }
        let doubled = usize::from(self.upsample);
        let end = (out_rows.first + out_rows.count - 1) * self.stride + self.kernel;
        let first = (out_rows.first * self.stride).saturating_sub(self.padding.top) >> doubled;
        let last = end
            .saturating_sub(self.padding.top)
            .min(self.x_rows.total << doubled);
        if last == 0 {
            return;
        }
        let last = (last - 1) >> doubled;
        let (have, until) = (self.x_rows.first, self.x_rows.first + self.x_rows.count);
        assert!(
            first > last || (first >= have && last < until),
            "output rows {}..{} need input rows {first}..={last}, the slice has {have}..{until}",
            out_rows.first,
            out_rows.first + out_rows.count,
        );
    }

    /// What the panels of a block, all of one run, read of a stretch of k.
    fn window(&self, panels: &Range<usize>, k: &Range<usize>) -> Window {
        let taps = self.kernel * self.kernel;
        let width = self.panels.width;
        let (first, last) = (
            self.panels.pixels(panels.start),
            self.panels.pixels(panels.end - 1),
        );
        let (row, last_row) = (first.start / width, (last.end - 1) / width);
        let (column, end) = match self.panels.strip {
            Some(_) => (first.start % width, first.start % width + first.len()),
            None => (0, width),
        };
        Window {
            channels: k.start / taps..k.end.div_ceil(taps),
            row,
            column,
            rows: (last_row - row) * self.stride + self.kernel,
            columns: end - column + (self.kernel - 1) / self.stride,
        }
    }

    /// A row of a channel as [`MapSource::line`] sees it, and the first column in it, where nothing is done to numbers as
    /// they are read. `None` inside: it is not in the map.
    pub(super) fn plain_line(
        &self,
        channel: usize,
        at: (usize, usize),
    ) -> Option<Option<(&[f32], isize)>> {
        let plain = !self.upsample && self.input.is_none();
        plain.then(|| self.row(channel, at))
    }

    /// A row of a channel, and its first column.
    fn row(&self, channel: usize, (row, column): (usize, usize)) -> Option<(&[f32], isize)> {
        let doubled = usize::from(self.upsample);
        let row = (self.first_out + row) as isize - self.padding.top as isize;
        if row < 0 || row >= (self.x_rows.total << doubled) as isize {
            return None;
        }
        let real = (row as usize >> doubled) - self.x_rows.first;
        let plane = self.x_rows.count * self.width;
        let line = &self.x[channel * plane + real * self.width..][..self.width];
        let left = column as isize - self.padding.left as isize;
        // The same row of the next pair is far away: nothing foresees it.
        let next = line.as_ptr().wrapping_add(2 * plane).wrapping_offset(left);
        // SAFETY: nothing is read through a prefetch.
        unsafe { ask_for(self.isa, next, PANEL >> doubled) };
        Some((line, left))
    }

    /// Reads a row of a channel from a row and a column of the slice of the result on, as a kernel of a stride of one
    /// sees it: its first row and column. Whether it is in the map; nothing is written where it is not.
    pub(super) fn line(&self, channel: usize, at: (usize, usize), to: &mut [f32]) -> bool {
        let Some((line, left)) = self.row(channel, at) else {
            return false;
        };
        self.stage_row(line, left, channel, to);
        true
    }

    /// Fills one staged row of one phase from an input row.
    fn stage_row(&self, line: &[f32], first: isize, channel: usize, to: &mut [f32]) {
        let doubled = usize::from(self.upsample);
        let virtual_width = (self.width << doubled) as isize;
        let stride = self.stride as isize;
        // Column `first + i * stride` lies in the map for i in low..high.
        let low = ((-first).max(0) as usize)
            .div_ceil(self.stride)
            .min(to.len());
        let inside = (virtual_width - first).max(0) as usize;
        let high = inside.div_ceil(self.stride).clamp(low, to.len());
        to[..low].fill(0.0);
        to[high..].fill(0.0);
        let middle = &mut to[low..high];
        let start = (first + low as isize * stride) as usize;
        if self.stride == 1 && !self.upsample {
            middle.copy_from_slice(&line[start..start + middle.len()]);
        } else if self.stride == 2 && !self.upsample {
            let from = &line[start.min(self.width)..];
            assert!(middle.is_empty() || 2 * (middle.len() - 1) < from.len());
            // SAFETY: just checked.
            unsafe { every_second(self.isa, from, middle) };
        } else if self.stride == 1 {
            // Doubled: each number twice, but for halves at the ends.
            let (odd, even) = middle.split_at_mut(middle.len().min(start % 2));
            odd.fill(line[(start / 2).min(self.width - 1)]);
            let from = &line[start.div_ceil(2).min(self.width)..];
            for (two, v) in even.chunks_mut(2).zip(from) {
                two.fill(*v);
            }
        } else {
            for (i, to) in middle.iter_mut().enumerate() {
                *to = line[(start + i * self.stride) >> doubled];
            }
        }
        if let Some(affine) = &self.input {
            let (scale, shift) = (affine.scale[channel], affine.shift[channel]);
            // SAFETY: the pointer and the length are one slice's.
            unsafe {
                affine_in_place(
                    self.isa,
                    middle.as_mut_ptr(),
                    middle.len(),
                    scale,
                    shift,
                    affine.act,
                );
            }
        }
    }
}

/// What a stage holds.
pub(super) struct Staged {
    window: Window,
    /// Where each number of k is, for the window's first pixel.
    taps: [usize; LONGEST],
}

impl Source for MapSource<'_> {
    type Staged = Staged;

    fn lanes(&self, panel: usize) -> usize {
        self.panels.pixels(panel).len()
    }

    fn stage(&self, panels: &Range<usize>, k: &Range<usize>, stage: &mut Buffer) -> Staged {
        let window = self.window(panels, k);
        let mut taps = [0; LONGEST];
        if self.direct {
            let plane = self.x_rows.count * self.width;
            for (tap, channel) in taps.iter_mut().zip(k.clone()) {
                *tap = channel * plane;
            }
        } else {
            self.taps(&window, k, &mut taps);
            self.fill(&window, stage);
        }
        Staged { window, taps }
    }

    fn pack(&self, panel: usize, k: &Range<usize>, from: (&Staged, &[f32]), to: Panel<'_>) {
        let (Staged { window, taps }, stage) = from;
        let range = self.panels.pixels(panel);
        let mut pixels = [0usize; PANEL];
        let from = if self.direct {
            for (pixel, place) in pixels.iter_mut().zip(range.clone()) {
                *pixel = place;
            }
            self.x
        } else {
            let width = self.panels.width;
            let (mut row, mut column) = (range.start / width - window.row, range.start % width);
            for pixel in &mut pixels[..range.len()] {
                *pixel = row * self.stride * self.stride * window.columns + column - window.column;
                column += 1;
                if column == width {
                    (row, column) = (row + 1, 0);
                }
            }
            stage
        };
        let (taps, pixels) = (&taps[..k.len()], &pixels[..range.len()]);
        let last_tap = taps.iter().max().copied().unwrap_or(0);
        let last_pixel = pixels.iter().max().copied().unwrap_or(0);
        assert!(last_tap + last_pixel < from.len());
        assert!(to.data.len() >= self.format.steps(k.len()) * to.width);
        // SAFETY: just checked.
        unsafe { pack_pixels(self.isa, self.format, from.as_ptr(), pixels, taps, to) };
    }
}

/// The longest stretch of k.
const LONGEST: usize = 288;

impl MapSource<'_> {
    /// Reads a window.
    fn fill(&self, window: &Window, stage: &mut Buffer) {
        let row_length = self.stride * window.columns;
        let stage = stage.take(window.channels.len() * window.rows * row_length);
        let doubled = usize::from(self.upsample);
        let virtual_rows = (self.x_rows.total << doubled) as isize;
        let top =
            ((self.first_out + window.row) * self.stride) as isize - self.padding.top as isize;
        let left = (window.column * self.stride) as isize - self.padding.left as isize;
        let plane = self.x_rows.count * self.width;
        for (c, channel) in window.channels.clone().enumerate() {
            for row in 0..window.rows {
                let at = (c * window.rows + row) * row_length;
                let to = &mut stage[at..][..row_length];
                let virtual_row = top + row as isize;
                if virtual_row < 0 || virtual_row >= virtual_rows {
                    to.fill(0.0);
                    continue;
                }
                let real = (virtual_row as usize >> doubled) - self.x_rows.first;
                let line = &self.x[channel * plane + real * self.width..][..self.width];
                // The same row of the next channel is far away: nothing foresees it.
                let next = line.as_ptr().wrapping_add(plane).wrapping_offset(left);
                // SAFETY: nothing is read through a prefetch.
                unsafe { ask_for(self.isa, next, row_length) };
                for phase in 0..self.stride {
                    let to = &mut to[phase * window.columns..][..window.columns];
                    self.stage_row(line, left + phase as isize, channel, to);
                }
            }
        }
    }

    /// Where in the stage each number of k is, for the window's first pixel.
    fn taps(&self, window: &Window, k: &Range<usize>, taps: &mut [usize; LONGEST]) {
        let size = self.kernel * self.kernel;
        let row_length = self.stride * window.columns;
        let mut channel = k.start / size;
        let (mut y, mut x) = (k.start % size / self.kernel, k.start % self.kernel);
        for tap in &mut taps[..k.len()] {
            let row = (channel - window.channels.start) * window.rows + y;
            *tap = row * row_length + x % self.stride * window.columns + x / self.stride;
            x += 1;
            if x == self.kernel {
                (x, y) = (0, y + 1);
            }
            if y == self.kernel {
                (y, channel) = (0, channel + 1);
            }
        }
    }
}

/// Asks for the cache lines of some numbers. Any address will do.
#[inline(always)]
unsafe fn ask_for_generic<V: Vector>(from: *const f32, count: usize) {
    for i in (0..count).step_by(LANES) {
        V::prefetch::<false>(from.wrapping_add(i));
    }
}

/// Sixteen pixels of one tap.
#[inline(always)]
unsafe fn gather<V: Vector>(from: *const f32, pixels: &[usize], in_a_row: bool) -> V {
    // SAFETY: the caller promises that all pixels can be read.
    unsafe {
        if in_a_row {
            return V::load(from.add(pixels[0]));
        }
        let mut lanes = [0f32; LANES];
        for (lane, pixel) in lanes.iter_mut().zip(pixels) {
            *lane = *from.add(*pixel);
        }
        V::load(lanes.as_ptr())
    }
}

/// Packs `panel[tap][lane] = from[pixels[lane] + taps[tap]]`.
#[inline(always)]
unsafe fn pack_pixels_generic<V: Vector>(
    format: Format,
    from: *const f32,
    pixels: &[usize],
    taps: &[usize],
    panel: Panel<'_>,
) {
    for (group, pixels) in pixels.chunks(LANES).enumerate() {
        let in_a_row = pixels.len() == LANES && pixels.windows(2).all(|two| two[0] + 1 == two[1]);
        let mut to = panel.data.as_mut_ptr().wrapping_add(group * LANES);
        // SAFETY: the caller promises the panel and that every tap of every pixel can be read.
        unsafe {
            match format {
                Format::F32 => {
                    for tap in taps {
                        gather::<V>(from.add(*tap), pixels, in_a_row).store(to);
                        to = to.wrapping_add(panel.width);
                    }
                }
                Format::Rounded => {
                    for tap in taps {
                        gather::<V>(from.add(*tap), pixels, in_a_row)
                            .to_bf16()
                            .store(to);
                        to = to.wrapping_add(panel.width);
                    }
                }
                Format::Pairs => {
                    for pair in taps.chunks(2) {
                        let high = match pair {
                            [_, high] => gather::<V>(from.add(*high), pixels, in_a_row),
                            _ => V::splat(0.0),
                        };
                        gather::<V>(from.add(pair[0]), pixels, in_a_row)
                            .store_bf16_pairs(high, to.cast());
                        to = to.wrapping_add(panel.width);
                    }
                }
            }
        }
    }
}

/// `to[i] = from[2 i]`.
#[inline(always)]
unsafe fn every_second_generic<V: Vector>(from: &[f32], to: &mut [f32]) {
    let mut done = 0;
    while done + LANES <= to.len() && 2 * (done + LANES) <= from.len() {
        // SAFETY: just checked.
        unsafe {
            let v = V::load_every_second(from.as_ptr().add(2 * done));
            v.store(to.as_mut_ptr().add(done));
        }
        done += LANES;
    }
    for (i, to) in to.iter_mut().enumerate().skip(done) {
        *to = from[2 * i];
    }
}

#[inline(always)]
unsafe fn affine_generic<V: Vector>(
    data: *mut f32,
    count: usize,
    scale: f32,
    shift: f32,
    act: Activation,
) {
    // SAFETY: the caller promises `count` numbers.
    unsafe {
        let (scale, shift) = (V::splat(scale), V::splat(shift));
        let whole = count / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            let v = V::load(data.add(i)).fma(scale, shift);
            math::activate(act, v).store(data.add(i));
        }
        if whole < count {
            let v = V::load_part(data.add(whole), count - whole).fma(scale, shift);
            math::activate(act, v).store_part(data.add(whole), count - whole);
        }
    }
}

per_isa! {
    /// Asks for numbers ahead of their use.
    ///
    /// # Safety
    /// None beyond the instruction set.
    fn ask_for(from: *const f32, count: usize) = ask_for_generic;
    /// Copies every second number.
    ///
    /// # Safety
    /// None beyond the instruction set.
    fn every_second(from: &[f32], to: &mut [f32]) = every_second_generic;
    /// Packs pixels as a panel.
    ///
    /// # Safety
    /// Every sum of a pixel and a tap must be a place in `from`, and the panel hold all steps.
    fn pack_pixels(format: Format, from: *const f32, pixels: &[usize], taps: &[usize], panel: Panel<'_>) = pack_pixels_generic;
    /// `x -> act(x * scale + shift)`.
    ///
    /// # Safety
    /// `data` must be good for `count` numbers.
    pub(crate) fn affine_in_place(data: *mut f32, count: usize, scale: f32, shift: f32, act: Activation) = affine_generic;
}
