//! Products of a convolution's taps by AMX tiles: the same planes, read from another place for each tap.

use super::PANEL;
use super::amx::Tiles;
use super::tile::Operand;

/// Rows of a tile, and lanes of one.
const SIDE: usize = 16;

/// `sums[output][lane] = sum over groups, of each over taps, of each over sixteen pairs of
/// weights[output][group][tap][pair] * planes[group][pair][place of the tap + lane]`.
pub(crate) struct TapProduct<'a> {
    /// Planes of bf16 pairs, sixteen a group.
    pub(crate) planes: *const f32,
    /// From one plane to the next.
    pub(crate) plane: usize,
    /// By tap: where its first lane lies in a plane.
    pub(crate) places: &'a [usize],
    pub(crate) groups: usize,
    /// A multiple of sixteen, at most [`PANEL`].
    pub(crate) lanes: usize,
    pub(crate) weights: Operand,
    /// A multiple of sixteen.
    pub(crate) outputs: usize,
    /// `[outputs][PANEL]`.
    pub(crate) sums: *mut f32,
}

impl TapProduct<'_> {
    /// Computes it.
    ///
    /// # Safety
    /// Planes, weights and sums must be as large as said.
    pub(crate) unsafe fn run<T: Tiles>(&self, tiles: &mut T) {
        debug_assert!(self.outputs.is_multiple_of(SIDE) && self.lanes.is_multiple_of(SIDE));
        for output in (0..self.outputs).step_by(2 * SIDE) {
            for lane in (0..self.lanes).step_by(2 * SIDE) {
                let two = (self.outputs - output > SIDE, self.lanes - lane > SIDE);
                let at = (output, lane);
                // SAFETY: the caller's promise; a second tile is touched only where there is one.
                unsafe {
                    match two {
                        (true, true) => self.block::<T, true, true>(tiles, at),
                        (true, false) => self.block::<T, true, false>(tiles, at),
                        (false, true) => self.block::<T, false, true>(tiles, at),
                        (false, false) => self.block::<T, false, false>(tiles, at),
                    }
                }
            }
        }
    }

    /// A tile of outputs by a tile of lanes; two tiles `DOWN` the outputs and `ALONG` the lanes.
    #[inline(always)]
    unsafe fn block<T: Tiles, const DOWN: bool, const ALONG: bool>(
        &self,
        tiles: &mut T,
        (output, lane): (usize, usize),
    ) {
        let row_bytes = self.weights.row_bytes;
        let mut weights = self.weights.data.wrapping_add(output * row_bytes);
        let stride = self.plane * 4;
        tiles.zero::<0>();
        tiles.zero::<1>();
        tiles.zero::<2>();
        tiles.zero::<3>();
        // SAFETY: the caller's promise.
        unsafe {
            for group in 0..self.groups {
                let planes = self.planes.wrapping_add(group * SIDE * self.plane + lane);
                for place in self.places {
                    let lanes = planes.wrapping_add(*place);
                    tiles.load::<4>(weights, row_bytes);
                    tiles.load::<6>(lanes.cast(), stride);
                    tiles.multiply::<0, 4, 6>();
                    if ALONG {
                        tiles.load::<7>(lanes.wrapping_add(SIDE).cast(), stride);
                        tiles.multiply::<1, 4, 7>();
                    }
                    if DOWN {
                        tiles.load::<5>(weights.wrapping_add(SIDE * row_bytes), row_bytes);
                        tiles.multiply::<2, 5, 6>();
                    }
                    if DOWN && ALONG {
                        tiles.multiply::<3, 5, 7>();
                    }
                    weights = weights.wrapping_add(SIDE * 4);
                }
            }
            let sums = self.sums.wrapping_add(output * PANEL + lane);
            tiles.store::<0>(sums.cast(), PANEL * 4);
            if ALONG {
                tiles.store::<1>(sums.wrapping_add(SIDE).cast(), PANEL * 4);
            }
            let sums = sums.wrapping_add(SIDE * PANEL);
            if DOWN {
                tiles.store::<2>(sums.cast(), PANEL * 4);
            }
            if DOWN && ALONG {
                tiles.store::<3>(sums.wrapping_add(SIDE).cast(), PANEL * 4);
            }
        }
    }
}
