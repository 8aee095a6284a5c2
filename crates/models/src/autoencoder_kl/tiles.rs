//! Tiles that overlap, each decoded or encoded by itself and blended into its neighbours.
//!
//! # Source
//! diffusers `AutoencoderKL.tiled_decode` and `_tiled_encode`: a tile is blended linearly with the blended tile above it, then with the one
//! on its left, and contributes what the next tile does not.

use std::ops::Range;

use super::map::{Machine, Map};
use crate::Result;
use crate::device::Place;

/// Where tiles lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiling {
    /// Latent rows and columns of a tile.
    size: usize,
    /// Latents from one tile to the next.
    step: usize,
    /// Values of the result for a latent, in each direction: 1 where latents are the result.
    scale: usize,
}

impl Tiling {
    pub(super) fn new(size: usize, overlap: usize, scale: usize) -> Tiling {
        let size = size.max(1);
        Tiling {
            size,
            step: size - overlap.min(size - 1),
            scale,
        }
    }

    /// Values over which two tiles are blended.
    fn blend(&self) -> usize {
        (self.size - self.step) * self.scale
    }

    /// First latents of the tiles along a side.
    fn starts(&self, side: usize) -> impl Iterator<Item = usize> {
        (0..side).step_by(self.step)
    }
}

/// A map of `channels` for latents of `size`, from what `tile` makes of the latents in some rows and some columns.
///
/// # Memory
/// Beside the result and one tile at work, what came of two rows of tiles.
pub(super) fn stitched(
    machine: &Machine,
    channels: usize,
    size: (usize, usize),
    tiling: Tiling,
    mut tile: impl FnMut(Range<usize>, Range<usize>) -> Result<Map>,
) -> Result<Map> {
    let (height, width) = (size.0 * tiling.scale, size.1 * tiling.scale);
    // Tiles are blended on the host, wherever they were made.
    let host = Place::Host.enter();
    let mut whole = machine.empty(channels, height, width, 0..height)?;
    drop(host);
    let mut above: Vec<Map> = Vec::new();
    for top in tiling.starts(size.0) {
        let mut row: Vec<Map> = Vec::new();
        for left in tiling.starts(size.1) {
            let rows = top..(top + tiling.size).min(size.0);
            let columns = left..(left + tiling.size).min(size.1);
            let mut tile = tile(rows, columns)?.into_host()?;
            if let Some(above) = above.get(row.len()) {
                blend(&mut tile, above, tiling.blend(), Side::Above);
            }
            if let Some(left) = row.last() {
                blend(&mut tile, left, tiling.blend(), Side::Left);
            }
            let limit = tiling.step * tiling.scale;
            let at = (top * tiling.scale, left * tiling.scale);
            place(&mut whole, &tile, at, limit);
            row.push(tile);
        }
        above = row;
    }
    Ok(whole)
}

/// Where the neighbour lies that a tile is blended with.
#[derive(Clone, Copy, Debug)]
enum Side {
    Above,
    Left,
}

/// Fades from the end of `neighbour` into the start of `tile`, over `extent` values.
fn blend(tile: &mut Map, neighbour: &Map, extent: usize, side: Side) {
    let (Some(to), Some(from)) = (tile.values_mut(), neighbour.values()) else {
        return;
    };
    let (channels, height, width) = (to.channels, to.height, to.width);
    let extent = match side {
        Side::Above => extent.min(from.height).min(height),
        Side::Left => extent.min(from.width).min(width),
    };
    let (rows, columns) = match side {
        Side::Above => (extent, width.min(from.width)),
        Side::Left => (height.min(from.height), extent),
    };
    for channel in 0..channels {
        for y in 0..rows {
            for x in 0..columns {
                let (place, from_y, from_x) = match side {
                    Side::Above => (y, from.height - extent + y, x),
                    Side::Left => (x, y, from.width - extent + x),
                };
                let share = place as f32 / extent as f32;
                let old = from.data[(channel * from.height + from_y) * from.width + from_x];
                let new = &mut to.data[(channel * height + y) * width + x];
                *new = old * (1.0 - share) + *new * share;
            }
        }
    }
}

/// Puts the first `limit` rows and columns of `tile` into `whole` at row and column `at`.
fn place(whole: &mut Map, tile: &Map, at: (usize, usize), limit: usize) {
    let (Some(to), Some(from)) = (whole.values_mut(), tile.values()) else {
        return;
    };
    let (rows, columns) = (limit.min(from.height), limit.min(from.width));
    for channel in 0..to.channels {
        for y in 0..rows {
            let source = (channel * from.height + y) * from.width;
            let target = (channel * to.height + at.0 + y) * to.width + at.1;
            to.data[target..target + columns].copy_from_slice(&from.data[source..source + columns]);
        }
    }
}
