//! The inner loops: a panel of activations against rows of broadcast weights.

use super::amx;
use crate::gemm::PANEL;
use crate::isa::Isa;
use crate::simd::{LANES, Vector, per_isa};
use crate::stored::Format;
use std::marker::PhantomData;

/// Weights as 32-bit steps: f32, or pairs of bf16.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub(crate) data: *const u8,
    /// From one output to the next.
    pub(crate) row_bytes: usize,
    /// From one step to the next.
    pub(crate) step_bytes: usize,
}

impl Operand {
    pub(crate) const EMPTY: Self = Self {
        data: std::ptr::null(),
        row_bytes: 0,
        step_bytes: 0,
    };
}

/// `sums[output][lane] (+)= sum over steps of weights[output][step] * panel[step][lane]`.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// `[steps][width]`.
    pub(crate) panel: *const f32,
    /// From one step of the panel to the next.
    pub(crate) width: usize,
    /// Lanes to compute, a multiple of sixteen, at most `width` and [`PANEL`].
    pub(crate) lanes: usize,
    /// Lanes that anybody looks at, at most `lanes`.
    pub(crate) used: usize,
    pub(crate) steps: usize,
    pub(crate) weights: Operand,
    pub(crate) outputs: usize,
    /// `[outputs][PANEL]`.
    pub(crate) sums: *mut f32,
    /// Whether to add to what `sums` holds.
    pub(crate) add: bool,
}

impl Product {
    /// Computes it.
    ///
    /// # Safety
    /// The panel, the weights and the sums must be as large as said, and `format` one that `isa` has.
    pub(crate) unsafe fn run(&self, isa: Isa, format: Format) {
        // SAFETY: the caller's promise.
        unsafe {
            if format != Format::Pairs {
                return product_f32(isa, self);
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Bf16 => super::avx512bf16::product(self),
                #[cfg(target_arch = "x86_64")]
                Isa::Amx => amx::product::<amx::Instructions>(self),
                Isa::AmxEmulated => amx::product::<amx::Emulated>(self),
                _ => panic!("bf16 pairs need their instruction, {isa} has none"),
            }
        }
    }

    /// The same for the outputs from `output`.
    #[inline(always)]
    pub(super) fn at_output(&self, output: usize) -> Self {
        let mut rest = *self;
        rest.weights.data = self
            .weights
            .data
            .wrapping_add(output * self.weights.row_bytes);
        rest.sums = self.sums.wrapping_add(output * PANEL);
        rest.outputs = self.outputs - output;
        rest
    }

    /// The same for the lanes from `lane`.
    #[inline(always)]
    pub(super) fn at_lane(&self, lane: usize) -> Self {
        let mut rest = *self;
        rest.panel = self.panel.wrapping_add(lane);
        rest.sums = self.sums.wrapping_add(lane);
        rest.lanes = self.lanes - lane;
        rest
    }
}

/// Computes products one after the other.
pub(crate) trait Multiplier {
    /// One of them.
    ///
    /// # Safety
    /// As [`Product::run`].
    unsafe fn run(&mut self, product: &Product);
}

/// By an instruction set's own products of a format, which it must have.
pub(crate) struct Plain(pub(crate) Isa, pub(crate) Format);

impl Multiplier for Plain {
    #[inline(always)]
    unsafe fn run(&mut self, product: &Product) {
        // SAFETY: the caller's promise.
        unsafe { product.run(self.0, self.1) }
    }
}

/// By tiles that stay in use between products.
pub(crate) struct OnTiles<T>(T);

impl<T: amx::Tiles> OnTiles<T> {
    /// # Safety
    /// As [`amx::Tiles::configure`].
    pub(crate) unsafe fn configure() -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { T::configure() })
    }
}

impl<T: amx::Tiles> Multiplier for OnTiles<T> {
    #[inline(always)]
    unsafe fn run(&mut self, product: &Product) {
        // SAFETY: the caller's promise.
        unsafe { amx::product_on(&mut self.0, product, amx::Ahead::NOTHING) }
    }
}

/// How a step multiplies.
pub(crate) trait Multiply {
    /// Sums.
    type Sum: Vector;
    /// Sixteen lanes of a step.
    type Step: Copy;

    /// Sixteen lanes of a panel.
    ///
    /// # Safety
    /// Sixteen 32-bit numbers must be there, and the instruction set.
    unsafe fn load(from: *const f32) -> Self::Step;
    /// One step of a weight row on all lanes.
    ///
    /// # Safety
    /// Four bytes must be there, and the instruction set.
    unsafe fn broadcast(from: *const u8) -> Self::Step;
    /// Sixteen 32-bit steps by their bits.
    fn bits(v: Self::Sum) -> Self::Step;
    /// `sum + x * w`.
    fn step(sum: Self::Sum, x: Self::Step, w: Self::Step) -> Self::Sum;
}

/// Products of f32.
struct Single<V>(PhantomData<V>);

impl<V: Vector> Multiply for Single<V> {
    type Sum = V;
    type Step = V;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::splat(from.cast::<f32>().read_unaligned()) }
    }

    #[inline(always)]
    fn bits(v: V) -> V {
        v
    }

    #[inline(always)]
    fn step(sum: V, x: V, w: V) -> V {
        x.fma(w, sum)
    }
}

/// Steps of a row in a cache line.
const LINE_STEPS: usize = 16;

/// `W` vectors of lanes by `N` outputs, all sums in registers.
#[inline(always)]
unsafe fn tile<M: Multiply, const W: usize, const N: usize>(p: &Product) {
    // SAFETY: the caller promises `W * LANES` lanes and `N` outputs of panel, weights and sums.
    unsafe {
        let zero = M::Sum::splat(0.0);
        let mut sums = [[zero; W]; N];
        let mut rows = [p.weights.data; N];
        for (n, row) in rows.iter_mut().enumerate() {
            *row = p.weights.data.wrapping_add(n * p.weights.row_bytes);
        }
        let mut panel = p.panel;
        let mut offset = 0;
        for step in (0..p.steps).step_by(LINE_STEPS) {
            if p.weights.step_bytes == 4 {
                // The outputs that come next: their rows are no stream a processor foresees.
                for row in rows {
                    let ahead = row.wrapping_add(N * p.weights.row_bytes + offset);
                    M::Sum::prefetch::<false>(ahead.cast());
                }
            }
            for _ in 0..(p.steps - step).min(LINE_STEPS) {
                let x: [M::Step; W] = std::array::from_fn(|v| M::load(panel.add(v * LANES)));
                for n in 0..N {
                    let w = M::broadcast(rows[n].add(offset));
                    for v in 0..W {
                        sums[n][v] = M::step(sums[n][v], x[v], w);
                    }
                }
                panel = panel.wrapping_add(p.width);
                offset += p.weights.step_bytes;
            }
        }
        for (n, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let to = p.sums.add(n * PANEL + v * LANES);
                if p.add {
                    M::Sum::load(to).add(*sum).store(to);
                } else {
                    sum.store(to);
                }
            }
        }
    }
}

/// All outputs for `W` vectors of lanes, `N` at a time.
#[inline(always)]
unsafe fn columns<M: Multiply, const W: usize, const N: usize>(p: &Product) {
    let mut output = 0;
    // SAFETY: the caller's promise; no tile goes beyond `outputs`.
    unsafe {
        while output + N <= p.outputs {
            tile::<M, W, N>(&p.at_output(output));
            output += N;
        }
        while output < p.outputs {
            let rest = p.at_output(output);
            output += match rest.outputs {
                8.. if N > 8 => {
                    tile::<M, W, 8>(&rest);
                    8
                }
                4.. => {
                    tile::<M, W, 4>(&rest);
                    4
                }
                2.. => {
                    tile::<M, W, 2>(&rest);
                    2
                }
                _ => {
                    tile::<M, W, 1>(&rest);
                    1
                }
            };
        }
    }
}

/// Lanes up to which it pays to turn the weights round.
pub(crate) const FEW: usize = 4;

/// Outputs that are turned together.
pub(crate) const TURNED: usize = GROUPS * LANES;

/// Groups of sixteen outputs.
const GROUPS: usize = 2;

/// Up to sixteen times `G` outputs for the first `L` lanes of a panel, the lanes of a vector being
/// outputs: few lanes would leave most of a vector of activations empty. The sums of an element
/// run over the same products in the same order as in a [`tile`], so that several groups of
/// outputs are needed for one addition not to wait for another.
#[inline(always)]
unsafe fn turned<M: Multiply, const G: usize, const L: usize>(p: &Product) {
    // SAFETY: the caller promises the outputs and `L` lanes of panel, weights and sums.
    unsafe {
        let mut sums = [[M::Sum::splat(0.0); L]; G];
        for step in (0..p.steps).step_by(LANES) {
            let here = (p.steps - step).min(LANES);
            let x = p.panel.add(step * L);
            for (g, sums) in sums.iter_mut().enumerate() {
                let first = g * LANES * p.weights.row_bytes + step * 4;
                let rows = p.outputs.saturating_sub(g * LANES).min(LANES);
                let turned = turn::<M::Sum>(&p.weights, first, (rows, here));
                if here == LANES {
                    for (s, w) in turned.iter().enumerate() {
                        for (l, sum) in sums.iter_mut().enumerate() {
                            let x = M::broadcast(x.add(s * L + l).cast());
                            *sum = M::step(*sum, x, M::bits(*w));
                        }
                    }
                    continue;
                }
                for (s, w) in turned.iter().take(here).enumerate() {
                    for (l, sum) in sums.iter_mut().enumerate() {
                        let x = M::broadcast(x.add(s * L + l).cast());
                        *sum = M::step(*sum, x, M::bits(*w));
                    }
                }
            }
        }
        for (g, sums) in sums.iter().enumerate() {
            for (lane, sum) in sums.iter().enumerate() {
                let mut numbers = [0f32; LANES];
                sum.store(numbers.as_mut_ptr());
                let rows = p.outputs.saturating_sub(g * LANES);
                for (n, number) in numbers.iter().take(rows).enumerate() {
                    let to = p.sums.add((g * LANES + n) * PANEL + lane);
                    to.write(if p.add { *to + number } else { *number });
                }
            }
        }
    }
}

/// `here` steps of `rows` rows of weights, both at most sixteen, transposed.
#[inline(always)]
unsafe fn turn<V: Vector>(
    weights: &Operand,
    first: usize,
    (rows, here): (usize, usize),
) -> [V; LANES] {
    let mut row = weights.data.wrapping_add(first);
    // SAFETY: the caller promises the weights; nothing is read through a prefetch.
    unsafe {
        if here == LANES && rows == LANES && weights.row_bytes.is_multiple_of(4) {
            let turned = V::transposed(row.cast(), weights.row_bytes / 4);
            for _ in 0..LANES {
                V::prefetch::<false>(row.wrapping_add(AHEAD_BYTES).cast());
                V::prefetch_far(row.wrapping_add(TURNED * weights.row_bytes).cast());
                row = row.wrapping_add(weights.row_bytes);
            }
            return turned;
        }
        let mut square = [0f32; LANES * LANES];
        for n in 0..rows {
            for s in 0..here {
                square[n * LANES + s] = row.cast::<f32>().add(s).read_unaligned();
            }
            row = row.wrapping_add(weights.row_bytes);
        }
        V::transposed(square.as_ptr(), LANES)
    }
}

/// How far ahead weights are asked for that are read once, in many rows at a time.
const AHEAD_BYTES: usize = 128;

/// Outputs of a few lanes, at most [`TURNED`].
#[inline(always)]
unsafe fn product_of_few<M: Multiply>(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe {
        match p.used {
            1 => turned::<M, GROUPS, 1>(p),
            2 => turned::<M, GROUPS, 2>(p),
            3 => turned::<M, GROUPS, 3>(p),
            _ => turned::<M, GROUPS, FEW>(p),
        }
    }
}

/// A whole product, by tiles that fit 32 wide registers or 16 narrower ones.
#[inline(always)]
pub(crate) unsafe fn product<M: Multiply>(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe {
        if p.width <= FEW {
            debug_assert!(p.used <= FEW && p.outputs <= TURNED && p.weights.step_bytes == 4);
            return product_of_few::<M>(p);
        }
        if M::Sum::WIDE {
            match p.lanes / LANES {
                4 => columns::<M, 4, 6>(p),
                3 => columns::<M, 3, 8>(p),
                2 => columns::<M, 2, 12>(p),
                1 => columns::<M, 1, 14>(p),
                _ => debug_assert_eq!(p.lanes, 0, "a panel has at most four vectors"),
            }
        } else {
            for lane in (0..p.lanes).step_by(LANES) {
                columns::<M, 1, 6>(&p.at_lane(lane));
            }
        }
    }
}

#[inline(always)]
unsafe fn product_single<V: Vector>(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe { product::<Single<V>>(p) }
}

per_isa! {
    /// A product of f32.
    ///
    /// # Safety
    /// The panel, the weights and the sums must be as large as said.
    fn product_f32(p: &Product) = product_single;
}
