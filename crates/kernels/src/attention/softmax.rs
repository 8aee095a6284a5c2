//! Scores of a tile of keys become weights, down the columns.

use crate::gemm::PANEL;
use crate::math;
use crate::simd::{LANES, Vector, per_isa};
use crate::stored::Format;

/// How a tile of scores becomes a panel of weights.
pub(super) struct Softmax<'a> {
    pub(super) format: Format,
    pub(super) keys: usize,
    /// Steps of the second product.
    pub(super) steps: usize,
    pub(super) lanes: usize,
    /// Of the scores, times log2(e).
    pub(super) scale: f32,
    /// Whether nothing came before.
    pub(super) first: bool,
    /// Keys of the tile that each lane sees, if not all see all.
    pub(super) visible: Option<&'a [f32]>,
}

/// Replaces scores by their exponentials relative to the running maximum, in the format of the
/// second product, and brings the running sums to that maximum.
#[inline(always)]
unsafe fn softmax_tile_generic<V: Vector>(
    spec: &Softmax<'_>,
    scores: &mut [f32],
    maximum: &mut [f32],
    total: &mut [f32],
    sums: &mut [f32],
) {
    let keys = spec.keys;
    let scores = scores.as_mut_ptr();
    for lane in (0..spec.lanes).step_by(LANES) {
        // SAFETY: the buffers have room for `keys` (made even) rows of PANEL lanes.
        unsafe {
            let at = |key: usize| scores.add(key * PANEL + lane);
            let scale = V::splat(spec.scale);
            let hidden = V::splat(f32::NEG_INFINITY);
            if let Some(visible) = spec.visible {
                let visible = V::load(visible.as_ptr().add(lane));
                for key in 0..keys {
                    let below = V::splat(key as f32);
                    let seen = below.where_below(visible, V::load(at(key)), hidden);
                    seen.store(at(key));
                }
            }
            let old = V::load(maximum.as_ptr().add(lane));
            // Four maxima, so that they need not wait for each other.
            let mut most = [if spec.first { hidden } else { old }; 4];
            for key in 0..keys {
                most[key % 4] = V::load(at(key)).max(most[key % 4]);
            }
            let mut new = most[0].max(most[1]).max(most[2].max(most[3]));
            let mut sum = V::splat(0.0);
            if spec.format == Format::Pairs {
                if !spec.first {
                    let grown = new.sub(old).mul(scale);
                    new = grown.where_below(V::splat(GROWTH), old, new);
                }
                sum = weigh_pairs(spec, scores.add(lane), new);
            } else {
                for key in 0..keys {
                    let mut weight = weigh(V::load(at(key)), new, scale);
                    sum = sum.add(weight);
                    if spec.format == Format::Rounded {
                        weight = weight.to_bf16();
                    }
                    weight.store(at(key));
                }
            }
            if !spec.first {
                // Exactly one where the maximum stays: a tile that a lane sees nothing of must not
                // change it.
                let factor = weigh(old, new, scale);
                sum = V::load(total.as_ptr().add(lane)).fma(factor, sum);
                if !factor.all_ones() {
                    for line in sums.chunks_exact_mut(PANEL) {
                        let to = line.as_mut_ptr().add(lane);
                        V::load(to).mul(factor).store(to);
                    }
                }
            }
            sum.store(total.as_mut_ptr().add(lane));
            new.store(maximum.as_mut_ptr().add(lane));
        }
    }
}

/// How far, as a power of two, a score may lie above what counts as its lane's maximum before that
/// is moved, and with it all sums so far. Far from any limit of f32 or bf16; numbers of any size
/// are as exact as those up to one.
const GROWTH: f32 = 8.0;

/// Replaces scores by their exponentials as pairs of bf16, zeros up to whole steps; returns their
/// sums.
#[inline(always)]
unsafe fn weigh_pairs<V: Vector>(spec: &Softmax<'_>, scores: *mut f32, maximum: V) -> V {
    // SAFETY: the caller promises `keys` (made even) rows, and `steps`, of PANEL lanes.
    unsafe {
        let scale = V::splat(spec.scale);
        let offset = V::splat(0.0).sub(maximum.mul(scale));
        let mut sums = [V::splat(0.0); 2];
        let pairs = spec.keys / 2;
        for pair in 0..pairs {
            let first = scores.add(2 * pair * PANEL);
            let low = weigh_for_bf16(V::load(first), scale, offset);
            let high = weigh_for_bf16(V::load(first.add(PANEL)), scale, offset);
            sums = [sums[0].add(low), sums[1].add(high)];
            low.store_bf16_pairs(high, scores.add(pair * PANEL).cast());
        }
        let mut steps = pairs;
        if spec.keys % 2 == 1 {
            let last = V::load(scores.add((spec.keys - 1) * PANEL));
            let last = weigh_for_bf16(last, scale, offset);
            sums[0] = sums[0].add(last);
            last.store_bf16_pairs(V::splat(0.0), scores.add(pairs * PANEL).cast());
            steps += 1;
        }
        for step in steps..spec.steps {
            V::splat(0.0).store(scores.add(step * PANEL));
        }
        sums[0].add(sums[1])
    }
}

/// The exponential of a score scaled, relative to the maximum scaled.
#[inline(always)]
fn weigh_for_bf16<V: Vector>(score: V, scale: V, minus_maximum: V) -> V {
    math::exp2_for_bf16(score.fma(scale, minus_maximum))
}

/// The exponential of a score relative to the maximum.
#[inline(always)]
fn weigh<V: Vector>(score: V, maximum: V, scale: V) -> V {
    math::exp2_below_one(score.sub(maximum).mul(scale))
}

#[inline(always)]
unsafe fn divide_generic<V: Vector>(sums: &mut [f32], total: &[f32]) {
    for line in sums.chunks_exact_mut(PANEL) {
        for (sum, total) in line.chunks_exact_mut(LANES).zip(total.chunks_exact(LANES)) {
            // SAFETY: both chunks have sixteen numbers.
            unsafe {
                let quotient = V::load(sum.as_ptr()).div(V::load(total.as_ptr()));
                quotient.store(sum.as_mut_ptr());
            }
        }
    }
}

per_isa! {
    /// The softmax of a tile.
    ///
    /// # Safety
    /// Each buffer must have its rows of PANEL lanes.
    pub(super) fn softmax_tile(spec: &Softmax<'_>, scores: &mut [f32], maximum: &mut [f32], total: &mut [f32], sums: &mut [f32]) = softmax_tile_generic;
    /// Divides sums by their lanes' totals.
    ///
    /// # Safety
    /// None beyond the instruction set.
    pub(super) fn divide(sums: &mut [f32], total: &[f32]) = divide_generic;
}
