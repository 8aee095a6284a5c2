//! Products of bf16 pairs by AMX tiles.
//!
//! A tile is sixteen rows of 64 bytes. Sixteen weight rows of sixteen pairs are one as they lie,
//! sixteen steps of sixteen lanes of a panel are the other operand, and sixteen outputs of sixteen
//! lanes are the sums: nothing is rearranged for the instruction. What sticks out of the shape goes
//! through a tile's worth of zeros on the stack.
//!
//! The order of an element's sum follows from k alone: tiles of 32 numbers of k in ascending
//! order, the instruction's order within. So a row has the same bits alone and among others.

use super::tile::{Operand, Product};
use crate::gemm::PANEL;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

/// Rows of a tile, and 32-bit columns.
const SIDE: usize = 16;

/// Bytes from one row of a tile on the stack to the next.
const ROW_BYTES: usize = SIDE * 4;

/// A tile's worth of memory.
type Square = [u32; SIDE * SIDE];

/// Eight tiles of 16 rows of 64 bytes: 0 to 3 for sums, 4 and 5 for weights, 6 and 7 for lanes.
///
/// # Safety of loads and stores
/// Sixteen rows of 64 bytes, `stride` bytes apart, must be there.
pub(crate) trait Tiles {
    /// Takes the tiles of this thread into use.
    ///
    /// # Safety
    /// The instructions must be there, and nobody else on this thread use tiles.
    unsafe fn configure() -> Self;
    fn zero<const TILE: usize>(&mut self);
    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize);
    unsafe fn store<const TILE: usize>(&self, to: *mut u8, stride: usize);
    /// Asks for a cache line long before its use. Any address will do.
    #[inline(always)]
    fn prefetch(_line: *const u8) {}
    /// `SUMS[m][n] += sum over k of W[m][k] * X[k][n]`, each of the sixteen k a pair of bf16.
    fn multiply<const SUMS: usize, const W: usize, const X: usize>(&mut self);
}

/// Weights that the next product will read, asked for while this one computes. Any address will do.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    data: *const u8,
    row_bytes: usize,
    rows: usize,
}

impl Ahead {
    pub(crate) const NOTHING: Self = Self {
        data: std::ptr::null(),
        row_bytes: 0,
        rows: 0,
    };

    /// All rows of an operand.
    pub(crate) fn of(weights: &Operand, rows: usize) -> Self {
        Self {
            data: weights.data,
            row_bytes: weights.row_bytes,
            rows,
        }
    }

    /// Part `index` of `parts`.
    #[inline(always)]
    pub(crate) fn part(&self, index: usize, parts: usize) -> Self {
        let first = self.rows * index / parts;
        Self {
            data: self.data.wrapping_add(first * self.row_bytes),
            row_bytes: self.row_bytes,
            rows: self.rows * (index + 1) / parts - first,
        }
    }
}

/// A product.
///
/// # Safety
/// The panel, the weights and the sums must be as large as said, and the instructions be there.
pub(crate) unsafe fn product<T: Tiles>(p: &Product) {
    // SAFETY: the caller's promise; kernels never nest.
    unsafe { product_on(&mut T::configure(), p, Ahead::NOTHING) }
}

/// The same on tiles that are in use already.
///
/// # Safety
/// The panel, the weights and the sums must be as large as said.
#[inline(always)]
pub(crate) unsafe fn product_on<T: Tiles>(tiles: &mut T, p: &Product, ahead: Ahead) {
    assert_eq!(p.weights.step_bytes, 4, "tiles want a row's pairs in a row");
    let blocks = p.outputs.div_ceil(2 * SIDE) * p.lanes.div_ceil(2 * SIDE);
    let mut index = 0;
    for output in (0..p.outputs).step_by(2 * SIDE) {
        for lane in (0..p.lanes).step_by(2 * SIDE) {
            let p = &p.at_output(output).at_lane(lane);
            let ahead = ahead.part(index, blocks);
            index += 1;
            // SAFETY: the caller's promise.
            unsafe {
                match (p.outputs > SIDE, p.lanes > SIDE) {
                    (true, true) => block::<T, true, true>(tiles, p, ahead),
                    (true, false) => block::<T, true, false>(tiles, p, ahead),
                    (false, true) => block::<T, false, true>(tiles, p, ahead),
                    (false, false) => block::<T, false, false>(tiles, p, ahead),
                }
            }
        }
    }
}

/// The sums of a tile of outputs by a tile of lanes; of two tiles `DOWN` the outputs and `ALONG`
/// the lanes, so that what was loaded is multiplied twice.
#[inline(always)]
unsafe fn block<T: Tiles, const DOWN: bool, const ALONG: bool>(
    tiles: &mut T,
    p: &Product,
    mut ahead: Ahead,
) {
    // SAFETY: the caller's promise; a second tile is touched only where there is one.
    unsafe {
        begin::<T, 0>(tiles, p, 0, 0);
        if ALONG {
            begin::<T, 1>(tiles, p, 0, SIDE);
        }
        if DOWN {
            begin::<T, 2>(tiles, p, SIDE, 0);
        }
        if DOWN && ALONG {
            begin::<T, 3>(tiles, p, SIDE, SIDE);
        }
        for step in (0..p.steps).step_by(SIDE) {
            load_weights::<T, 4>(tiles, p, 0, step);
            load_lanes::<T, 6>(tiles, p, 0, step);
            tiles.multiply::<0, 4, 6>();
            if ALONG {
                load_lanes::<T, 7>(tiles, p, SIDE, step);
                tiles.multiply::<1, 4, 7>();
            }
            if DOWN {
                load_weights::<T, 5>(tiles, p, SIDE, step);
                tiles.multiply::<2, 5, 6>();
            }
            if DOWN && ALONG {
                tiles.multiply::<3, 5, 7>();
            }
            for row in 0..ahead.rows {
                T::prefetch(ahead.data.wrapping_add(row * ahead.row_bytes));
            }
            ahead.data = ahead.data.wrapping_add(ROW_BYTES);
        }
        end::<T, 0>(tiles, p, 0, 0);
        if ALONG {
            end::<T, 1>(tiles, p, 0, SIDE);
        }
        if DOWN {
            end::<T, 2>(tiles, p, SIDE, 0);
        }
        if DOWN && ALONG {
            end::<T, 3>(tiles, p, SIDE, SIDE);
        }
    }
}

/// Zeros, or what the sums hold already.
#[inline(always)]
unsafe fn begin<T: Tiles, const TILE: usize>(
    tiles: &mut T,
    p: &Product,
    output: usize,
    lane: usize,
) {
    if !p.add {
        return tiles.zero::<TILE>();
    }
    let from = p.sums.wrapping_add(output * PANEL + lane).cast::<u8>();
    let rows = p.outputs - output;
    // SAFETY: the caller promises `rows` rows of sums; the square is a whole tile.
    unsafe {
        if rows >= SIDE {
            tiles.load::<TILE>(from, PANEL * 4);
        } else {
            let square = gather(from, PANEL * 4, rows, SIDE);
            tiles.load::<TILE>(square.as_ptr().cast(), ROW_BYTES);
        }
    }
}

/// Stores sums.
#[inline(always)]
unsafe fn end<T: Tiles, const TILE: usize>(tiles: &T, p: &Product, output: usize, lane: usize) {
    let to = p.sums.wrapping_add(output * PANEL + lane);
    let rows = p.outputs - output;
    // SAFETY: the caller promises `rows` rows of sums; the square is a whole tile.
    unsafe {
        if rows >= SIDE {
            tiles.store::<TILE>(to.cast(), PANEL * 4);
        } else {
            let mut square: Square = [0; SIDE * SIDE];
            tiles.store::<TILE>(square.as_mut_ptr().cast(), ROW_BYTES);
            for (row, line) in square.chunks_exact(SIDE).take(rows).enumerate() {
                std::ptr::copy_nonoverlapping(line.as_ptr().cast(), to.add(row * PANEL), SIDE);
            }
        }
    }
}

/// A tile of weights, where they lie unless it sticks out of them.
#[inline(always)]
unsafe fn load_weights<T: Tiles, const TILE: usize>(
    tiles: &mut T,
    p: &Product,
    output: usize,
    step: usize,
) {
    let at = output * p.weights.row_bytes + step * 4;
    let from = p.weights.data.wrapping_add(at);
    let (rows, steps) = (p.outputs - output, p.steps - step);
    // SAFETY: the caller promises the weights; the square is a whole tile.
    unsafe {
        if rows >= SIDE && steps >= SIDE {
            tiles.load::<TILE>(from, p.weights.row_bytes);
        } else {
            let square = gather(from, p.weights.row_bytes, rows, steps);
            tiles.load::<TILE>(square.as_ptr().cast(), ROW_BYTES);
        }
    }
}

/// A tile of the panel.
#[inline(always)]
unsafe fn load_lanes<T: Tiles, const TILE: usize>(
    tiles: &mut T,
    p: &Product,
    lane: usize,
    step: usize,
) {
    let from = p.panel.wrapping_add(step * p.width + lane).cast::<u8>();
    let steps = p.steps - step;
    // SAFETY: the caller promises the panel; the square is a whole tile.
    unsafe {
        if steps >= SIDE {
            tiles.load::<TILE>(from, p.width * 4);
        } else {
            let square = gather(from, p.width * 4, steps, SIDE);
            tiles.load::<TILE>(square.as_ptr().cast(), ROW_BYTES);
        }
    }
}

/// Up to sixteen rows and columns, zeros around them: a product with them adds nothing.
#[inline(never)]
unsafe fn gather(from: *const u8, stride: usize, rows: usize, columns: usize) -> Square {
    let mut square = [0; SIDE * SIDE];
    for row in 0..rows.min(SIDE) {
        let to = square[row * SIDE..][..SIDE].as_mut_ptr().cast::<u8>();
        // SAFETY: the caller promises rows and columns; a row of the square has sixteen.
        unsafe {
            std::ptr::copy_nonoverlapping(from.add(row * stride), to, columns.min(SIDE) * 4);
        }
    }
    square
}

/// The instructions.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Instructions(());

/// What `ldtilecfg` reads.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

#[cfg(target_arch = "x86_64")]
static WHOLE_TILES: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

// The compiler's own functions for these are not stable yet; it never uses a tile by itself, so
// nothing here has tiles to save.
#[cfg(target_arch = "x86_64")]
impl Tiles for Instructions {
    #[inline(always)]
    unsafe fn configure() -> Self {
        // SAFETY: the caller promises the instruction; the memory is a valid configuration.
        unsafe {
            std::arch::asm!(
                "ldtilecfg [{}]",
                in(reg) &raw const WHOLE_TILES,
                options(nostack, preserves_flags, readonly)
            );
        }
        Self(())
    }

    #[inline(always)]
    fn zero<const TILE: usize>(&mut self) {
        // SAFETY: `configure` has made the tiles usable.
        unsafe {
            std::arch::asm!(
                "tilezero tmm{tile}",
                tile = const TILE,
                options(nostack, preserves_flags, nomem)
            );
        }
    }

    #[inline(always)]
    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: `configure` has made the tiles usable; the memory is the caller's promise.
        unsafe {
            std::arch::asm!(
                "tileloadd tmm{tile}, [{from} + {stride}]",
                tile = const TILE,
                from = in(reg) from,
                stride = in(reg) stride,
                options(nostack, preserves_flags, readonly)
            );
        }
    }

    #[inline(always)]
    unsafe fn store<const TILE: usize>(&self, to: *mut u8, stride: usize) {
        // SAFETY: `configure` has made the tiles usable; the memory is the caller's promise.
        unsafe {
            std::arch::asm!(
                "tilestored [{to} + {stride}], tmm{tile}",
                tile = const TILE,
                to = in(reg) to,
                stride = in(reg) stride,
                options(nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    fn prefetch(line: *const u8) {
        // SAFETY: nothing is read through a prefetch.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }

    #[inline(always)]
    fn multiply<const SUMS: usize, const W: usize, const X: usize>(&mut self) {
        // SAFETY: `configure` has made the tiles usable.
        unsafe {
            std::arch::asm!(
                "tdpbf16ps tmm{sums}, tmm{w}, tmm{x}",
                sums = const SUMS,
                w = const W,
                x = const X,
                options(nostack, preserves_flags, nomem)
            );
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Instructions {
    fn drop(&mut self) {
        // SAFETY: `configure` took the tiles, so the instruction is there. Released, they need not
        // be saved when threads change.
        unsafe { std::arch::asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// The same by plain arithmetic, to test with what surrounds the instructions where there are none.
pub(crate) struct Emulated([Square; 8]);

impl Tiles for Emulated {
    unsafe fn configure() -> Self {
        // As full of leftovers as a thread's tiles may be.
        Self([[0x7fc0_7fc0; SIDE * SIDE]; 8])
    }

    fn zero<const TILE: usize>(&mut self) {
        self.0[TILE] = [0; SIDE * SIDE];
    }

    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
        for (row, to) in self.0[TILE].chunks_exact_mut(SIDE).enumerate() {
            // SAFETY: the caller promises sixteen rows of 64 bytes.
            unsafe {
                let to = to.as_mut_ptr().cast::<u8>();
                std::ptr::copy_nonoverlapping(from.add(row * stride), to, ROW_BYTES);
            }
        }
    }

    unsafe fn store<const TILE: usize>(&self, to: *mut u8, stride: usize) {
        for (row, from) in self.0[TILE].chunks_exact(SIDE).enumerate() {
            // SAFETY: the caller promises sixteen rows of 64 bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(from.as_ptr().cast(), to.add(row * stride), ROW_BYTES)
            };
        }
    }

    /// # Source
    /// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, `TDPBF16PS`: the
    /// even and the odd numbers of k are summed apart, each product and addition rounded once, the
    /// two sums are added, then what was there. Subnormal numbers count as zero everywhere.
    fn multiply<const SUMS: usize, const W: usize, const X: usize>(&mut self) {
        for m in 0..SIDE {
            let mut sums = [[0f32; 2]; SIDE];
            for k in 0..SIDE {
                let w = halves(self.0[W][m * SIDE + k]);
                for (n, sums) in sums.iter_mut().enumerate() {
                    let x = halves(self.0[X][k * SIDE + n]);
                    for ((sum, w), x) in sums.iter_mut().zip(w).zip(x) {
                        *sum = fused(w, x, *sum);
                    }
                }
            }
            for (n, [even, odd]) in sums.into_iter().enumerate() {
                let to = &mut self.0[SUMS][m * SIDE + n];
                let old = without_subnormals(f32::from_bits(*to));
                let new = without_subnormals(without_subnormals(even + odd) + old);
                *to = new.to_bits();
            }
        }
    }
}

/// The low and the high number of a pair.
fn halves(pair: u32) -> [f32; 2] {
    [pair << 16, pair & 0xffff_0000].map(|bits| without_subnormals(f32::from_bits(bits)))
}

/// `w * x + sum`, rounded once.
fn fused(w: f32, x: f32, sum: f32) -> f32 {
    let product = w * x;
    // Sixteen bits hold the product of two bf16 unless its exponent leaves the range.
    if product.is_normal() || w == 0.0 || x == 0.0 {
        without_subnormals(product + sum)
    } else {
        without_subnormals(w.mul_add(x, sum))
    }
}

fn without_subnormals(v: f32) -> f32 {
    if v.is_subnormal() {
        0f32.copysign(v)
    } else {
        v
    }
}

/// Whether tiles multiply as they should here, on a product whose numbers are small integers, so
/// that any order of adding gives the same.
///
/// # Safety
/// `T`'s instructions must be there.
pub(crate) unsafe fn multiplies<T: Tiles>() -> bool {
    const OUTPUTS: usize = 37;
    const STEPS: usize = 29;
    let number = |i: usize| (i * 7919 % 13) as f32 - 6.0;
    let pair = |i: usize| {
        let bits = |v: f32| v.to_bits() >> 16;
        bits(number(2 * i)) | bits(number(2 * i + 1)) << 16
    };
    let weights: Vec<u32> = (0..OUTPUTS * STEPS).map(pair).collect();
    let panel: Vec<u32> = (0..STEPS * PANEL).map(|i| pair(i + 5)).collect();
    let mut sums = vec![1.0; OUTPUTS * PANEL];
    let problem = Product {
        panel: panel.as_ptr().cast(),
        width: PANEL,
        lanes: PANEL,
        used: PANEL,
        steps: STEPS,
        weights: Operand {
            data: weights.as_ptr().cast(),
            row_bytes: STEPS * 4,
            step_bytes: 4,
        },
        outputs: OUTPUTS,
        sums: sums.as_mut_ptr(),
        add: true,
    };
    // SAFETY: the buffers were made as large as the product says; the rest is the caller's promise.
    unsafe { product::<T>(&problem) };
    let expected = |output: usize, lane: usize| {
        let products = (0..STEPS).map(|step| {
            let (w, x) = (output * STEPS + step, step * PANEL + lane + 5);
            number(2 * w) * number(2 * x) + number(2 * w + 1) * number(2 * x + 1)
        });
        1.0 + products.sum::<f32>()
    };
    (0..OUTPUTS * PANEL).all(|i| sums[i] == expected(i / PANEL, i % PANEL))
}

#[cfg(test)]
mod tests;
