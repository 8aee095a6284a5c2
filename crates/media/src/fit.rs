//! Bringing a picture to the size it is worked on, where its proportions are others.

use crate::raster::Raster;
use crate::resize::{Filter, Stretch};

/// What to do about other proportions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fit {
    /// Stretch.
    #[default]
    Resize,
    /// Keep the proportions and cut off what is too much on two sides.
    Crop,
    /// Keep the proportions and fill what is missing on two sides from the picture's edges.
    Fill,
}

impl Fit {
    /// All of them, the usual one first.
    pub const ALL: [Fit; 3] = [Fit::Resize, Fit::Crop, Fit::Fill];

    /// The name in requests: `resize`, `crop`, `fill`.
    pub fn name(self) -> &'static str {
        match self {
            Fit::Resize => "resize",
            Fit::Crop => "crop",
            Fit::Fill => "fill",
        }
    }

    /// The one of a name.
    pub fn named(name: &str) -> Option<Fit> {
        Fit::ALL.into_iter().find(|fit| fit.name() == name)
    }
}

impl<const CHANNELS: usize> Raster<CHANNELS> {
    /// It in `width` x `height` (at least 1 each), by Lanczos' filter.
    ///
    /// # Source
    /// diffusers `VaeImageProcessor.resize` with `default`, `crop` and `fill`; the web UI's first three resize modes.
    pub fn fitted(&self, width: u32, height: u32, fit: Fit) -> Raster<CHANNELS> {
        let (width, height) = (width.max(1), height.max(1));
        // Wider than what it is to become, by the ratio of its sides.
        let asked = f64::from(width) / f64::from(height);
        let ours = f64::from(self.width()) / f64::from(self.height());
        let (by_width, by_height) = match fit {
            Fit::Resize => return self.resized(width, height, Filter::Lanczos),
            Fit::Crop => (asked > ours, asked <= ours),
            Fit::Fill => (asked < ours, asked >= ours),
        };
        let scaled = |side: u32, to: u32, of: u32| {
            let scaled = u64::from(side) * u64::from(to) / u64::from(of);
            u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
        };
        let inner_width = match by_width {
            true => width,
            false => scaled(self.width(), height, self.height()),
        };
        let inner_height = match by_height {
            true => height,
            false => scaled(self.height(), width, self.width()),
        };
        // Where the middles meet; what lies beyond an edge is never computed.
        let placed = |inner: u32, outer: u32| {
            let cut = (inner / 2).saturating_sub(outer / 2);
            let at = (outer / 2).saturating_sub(inner / 2);
            (cut, at, (inner - cut).min(outer - at))
        };
        let (cut_x, left, columns) = placed(inner_width, width);
        let (cut_y, top, rows) = placed(inner_height, height);
        let inner = self.resized_box(
            Stretch::whole(self.width(), inner_width).only(cut_x, columns),
            Stretch::whole(self.height(), inner_height).only(cut_y, rows),
            Filter::Lanczos,
        );
        if fit == Fit::Crop && columns == width && rows == height {
            return inner;
        }
        let mut out = Raster::filled(width, height, [0; CHANNELS]);
        out.paste(&inner, i64::from(left), i64::from(top));
        if fit == Fit::Fill {
            fill_around(&mut out, &inner, left, top);
        }
        out
    }
}

/// Fills `out` above, below, left and right of `inner`, which lies at (`left`, `top`), with what a cubic through its edge
/// gives.
fn fill_around<const CHANNELS: usize>(
    out: &mut Raster<CHANNELS>,
    inner: &Raster<CHANNELS>,
    left: u32,
    top: u32,
) {
    let (width, height) = (inner.width(), inner.height());
    let (right, below) = (left + width, top + height);
    let columns = || Stretch::whole(width, width);
    let rows = || Stretch::whole(height, height);
    let (missing_right, missing_below) = (out.width() - right, out.height() - below);
    let mut fill = |columns: Stretch, rows: Stretch, x: u32, y: u32| {
        let strip = inner.resized_box(columns, rows, Filter::Bicubic);
        out.paste(&strip, i64::from(x), i64::from(y));
    };
    if top > 0 {
        fill(columns(), Stretch::place(0, top), left, 0);
    }
    if missing_below > 0 {
        fill(
            columns(),
            Stretch::place(height, missing_below),
            left,
            below,
        );
    }
    if left > 0 {
        fill(Stretch::place(0, left), rows(), 0, top);
    }
    if missing_right > 0 {
        fill(Stretch::place(width, missing_right), rows(), right, top);
    }
}
