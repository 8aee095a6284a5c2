//! How a picture is cut into windows.

use lowtide_core::{Formula, Mode, Quality};
use lowtide_models::upscaler::Network;

use super::Enlargement;

/// The smallest side of a tile, in pixels.
pub const TILE_MIN: usize = 32;
/// The largest side of a tile that can be asked for.
pub const TILE_MAX: usize = 4096;
/// Sides of tiles and rows of bands that are planned with.
const SIDES: [usize; 9] = [1024, 768, 512, 384, 256, 192, 128, 64, TILE_MIN];
/// Pixels by which tiles overlap on each side where they do not overlap as far as results depend on: a few times what
/// other programs take, since what lies further away has little weight. Such a cut is named as approximate.
const OVERLAP: usize = 32;
/// Exact tiles are not planned where they would take more than this many times the work.
const WORK_MAX: f64 = 4.0;

/// How a picture is cut.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cut {
    /// Width and height, rounded up to what the network needs.
    padded: (usize, usize),
    /// Sides of a tile without what it overlaps with.
    tile: (usize, usize),
    /// Pixels that are added on each side that is no edge.
    overlap: usize,
    /// Whether the result is that of the whole picture.
    exact: bool,
}

/// A part of a picture that goes through the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// First column and row of what goes in.
    pub(super) from: (usize, usize),
    /// Columns and rows of it.
    pub(super) size: (usize, usize),
    /// First column and row of what is wanted.
    pub(super) wanted: (usize, usize),
    /// Columns and rows of it.
    pub(super) wanted_size: (usize, usize),
}

/// All ways to cut a picture, best liked first.
pub(super) fn cuts(
    network: &Network,
    (width, height): (u32, u32),
    asked: &Enlargement,
) -> Vec<Cut> {
    let cell = network.multiple();
    let (width, height) = (width as usize, height as usize);
    let padded = (width.next_multiple_of(cell), height.next_multiple_of(cell));
    let whole = Cut {
        padded,
        tile: padded,
        overlap: 0,
        exact: true,
    };
    let cut = |tile: (usize, usize), overlap: usize| {
        let overlap = overlap.next_multiple_of(cell);
        Cut {
            padded,
            tile: (tile.0.min(padded.0), tile.1.min(padded.1)),
            overlap,
            exact: overlap >= network.reach(),
        }
    };
    let full_work = network.cost((padded.1, padded.0)).1;
    let cheap = |cut: &Cut| cut.flops(network) <= WORK_MAX * full_work;
    if let Some(side) = asked.tile {
        let side = side.next_multiple_of(cell);
        if side >= padded.0 && side >= padded.1 {
            return vec![whole];
        }
        let exact = cut((side, side), network.reach());
        return match asked.quality == Quality::Exact || cheap(&exact) {
            true => vec![exact],
            false => vec![cut((side, side), OVERLAP)],
        };
    }
    let mut all = vec![whole];
    let bands = SIDES.iter().filter(|&&side| side < padded.1);
    let bands = bands.map(|&side| (padded.0, side));
    let tiles = SIDES
        .iter()
        .filter(|&&side| side < padded.0.max(padded.1))
        .map(|&side| (side, side));
    let shapes: Vec<(usize, usize)> = bands.chain(tiles).collect();
    let exact = shapes.iter().map(|&tile| cut(tile, network.reach()));
    all.extend(exact.filter(cheap));
    if network.reach() > OVERLAP {
        all.extend(shapes.iter().map(|&tile| cut(tile, OVERLAP)));
    }
    all
}

impl Cut {
    /// The windows, row by row.
    pub(super) fn windows(&self) -> Vec<Window> {
        let side = |at: usize, tile: usize, side: usize| {
            let size = tile.min(side - at);
            let from = at.saturating_sub(self.overlap);
            let end = (at + size + self.overlap).min(side);
            (from, end - from, at, size)
        };
        let (width, height) = self.padded;
        let mut windows = Vec::new();
        for y in (0..height).step_by(self.tile.1) {
            let rows = side(y, self.tile.1, height);
            for x in (0..width).step_by(self.tile.0) {
                let columns = side(x, self.tile.0, width);
                windows.push(Window {
                    from: (columns.0, rows.0),
                    size: (columns.1, rows.1),
                    wanted: (columns.2, rows.2),
                    wanted_size: (columns.3, rows.3),
                });
            }
        }
        windows
    }

    /// Lengths of windows along a side, each with how many there are of it.
    fn lengths(&self, tile: usize, side: usize) -> Vec<(usize, usize)> {
        let mut lengths: Vec<(usize, usize)> = Vec::new();
        for at in (0..side).step_by(tile) {
            let from = at.saturating_sub(self.overlap);
            let length = (at + tile.min(side - at) + self.overlap).min(side) - from;
            match lengths.iter_mut().find(|(known, _)| *known == length) {
                Some((_, count)) => *count += 1,
                None => lengths.push((length, 1)),
            }
        }
        lengths
    }

    fn flops(&self, network: &Network) -> f64 {
        let columns = self.lengths(self.tile.0, self.padded.0);
        let rows = self.lengths(self.tile.1, self.padded.1);
        let mut flops = 0.0;
        for &(height, down) in &rows {
            for &(width, across) in &columns {
                flops += (down * across) as f64 * network.cost((height, width)).1;
            }
        }
        flops
    }

    fn bytes(&self, network: &Network) -> u64 {
        let longest = |lengths: Vec<(usize, usize)>| lengths.iter().map(|&(l, _)| l).max();
        let width = longest(self.lengths(self.tile.0, self.padded.0)).unwrap_or(0);
        let height = longest(self.lengths(self.tile.1, self.padded.1)).unwrap_or(0);
        network.cost((height, width)).0
    }

    /// What plans call it.
    pub(super) fn name(&self) -> String {
        let (width, height) = self.tile;
        let around = if self.exact { "exact" } else { "cut short" };
        match () {
            () if self.tile == self.padded => "whole".to_owned(),
            () if width == self.padded.0 => {
                format!("bands of {height} rows, {} around, {around}", self.overlap)
            }
            () => format!("tiles of {width} pixels, {} around, {around}", self.overlap),
        }
    }

    /// It as a rung of the plan.
    pub(super) fn mode(&self, network: &Network, blocks: usize) -> Mode {
        let mut ends = vec![0, network.last_block()];
        ends.dedup();
        Mode {
            name: self.name(),
            exact: self.exact,
            activation: Formula::constant(self.bytes(network) as f64),
            flops: Formula::constant(self.flops(network)),
            ladders: Vec::new(),
            // Several windows go through all blocks, from the first on; of one the ends are used more than once.
            resident_blocks: match self.is_whole() {
                true => ends,
                false => (0..blocks).collect(),
            },
        }
    }

    /// Whether one window after the other goes through all blocks.
    pub(super) fn is_whole(&self) -> bool {
        self.tile == self.padded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowtide_models::{rrdbnet, srvgg_net_compact};

    const COMPACT: Network = Network::Compact(srvgg_net_compact::Config {
        features: 64,
        convs: 16,
        scale: 4,
        act: srvgg_net_compact::Act::Prelu,
    });
    const DENSE: Network = Network::Dense(rrdbnet::Config {
        features: 64,
        growth: 32,
        blocks: 23,
        doublings: 2,
        unshuffle: 2,
    });

    fn asked(tile: Option<usize>, quality: Quality) -> Enlargement {
        Enlargement {
            scale: None,
            tile,
            quality,
        }
    }

    #[test]
    fn windows_cover_every_pixel_once_and_see_enough_around_it() {
        for network in [COMPACT, DENSE] {
            for (width, height) in [(300u32, 200u32), (1, 1), (33, 1500), (1025, 63)] {
                for cut in cuts(&network, (width, height), &asked(None, Quality::Auto)) {
                    let (w, h) = cut.padded;
                    let mut seen = vec![0u8; w * h];
                    for window in cut.windows() {
                        let (x, y) = window.wanted;
                        for row in y..y + window.wanted_size.1 {
                            for column in x..x + window.wanted_size.0 {
                                seen[row * w + column] += 1;
                            }
                        }
                        let sides = [
                            (window.from.0, x, window.size.0, window.wanted_size.0, w),
                            (window.from.1, y, window.size.1, window.wanted_size.1, h),
                        ];
                        for (from, at, size, wanted, side) in sides {
                            assert!(at - from >= cut.overlap.min(at), "{cut:?} {window:?}");
                            let after = from + size - at - wanted;
                            assert!(after >= cut.overlap.min(side - at - wanted), "{cut:?}");
                            let cell = network.multiple();
                            assert_eq!((from % cell, size % cell), (0, 0), "{cut:?}");
                        }
                    }
                    assert!(seen.iter().all(|&count| count == 1), "{cut:?}");
                }
            }
        }
    }

    #[test]
    fn shallow_networks_are_always_exact_and_deep_ones_say_when_they_are_not() {
        let exact = |cuts: &[Cut]| cuts.iter().filter(|cut| cut.exact).count();
        let compact = cuts(&COMPACT, (2000, 1500), &asked(None, Quality::Auto));
        assert_eq!(exact(&compact), compact.len());
        let dense = cuts(&DENSE, (6000, 6000), &asked(None, Quality::Auto));
        let count = exact(&dense);
        assert!(
            count > 1 && count < dense.len(),
            "{count} of {}",
            dense.len()
        );
        // Who asks for tiles and for exactness gets both.
        let both = cuts(&DENSE, (900, 900), &asked(Some(128), Quality::Exact));
        assert_eq!((both.len(), exact(&both)), (1, 1));
        let short = cuts(&DENSE, (2000, 2000), &asked(Some(128), Quality::Auto));
        assert_eq!((short.len(), exact(&short)), (1, 0));
        assert!(short[0].name().contains("cut short"), "{}", short[0].name());
    }
}
