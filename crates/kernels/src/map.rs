//! Group norm of feature maps in two halves, sums and channels, and upsampling.

use crate::conv::{ChannelAffine, affine_in_place};
use crate::isa::isa;
use crate::rows::Shared;
use crate::simd::{LANES, Vector, per_isa};
use crate::threads::{GRAIN, parallel};

/// Adds the sum and the sum of squares of each group to `sums[group]`, row by row in ascending
/// order, so that any split of a map into slices gives the same bits.
///
/// # Shapes
/// `x` `[channels, rows, width]`, `sums` `[groups]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn group_sums(
    x: &[f32],
    channels: usize,
    rows: usize,
    width: usize,
    groups: usize,
    sums: &mut [[f64; 2]],
) {
    assert!(
        groups > 0 && channels.is_multiple_of(groups) && sums.len() == groups,
        "{channels} channels in {groups} groups with {} sums",
        sums.len()
    );
    assert_eq!(
        x.len(),
        channels * rows * width,
        "a map [{channels}, {rows}, {width}]"
    );
    let isa = isa();
    let size = channels / groups * rows * width;
    let shared = Shared(sums.as_mut_ptr());
    let one = |group: usize| {
        let map = &x[group * size..][..size];
        // SAFETY: each group is visited once, and there are `groups` sums.
        let sum = unsafe { &mut *shared.at(group) };
        // SAFETY: the map has whole rows.
        unsafe { sum_rows(isa, map, rows, width, sum) };
    };
    if x.len() < 4 * GRAIN {
        (0..groups).for_each(one);
    } else {
        parallel(groups, one);
    }
}

/// A scale and a shift for each channel, from finished sums of a group norm.
///
/// `count` is the number of elements of a group over the whole map.
///
/// # Panics
/// When the channels are no whole groups.
pub fn group_affine(
    sums: &[[f64; 2]],
    count: u64,
    eps: f32,
    weight: &[f32],
    bias: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    assert!(
        weight.len() == bias.len() && weight.len().is_multiple_of(sums.len()),
        "{} weights and {} biases for {} groups",
        weight.len(),
        bias.len(),
        sums.len()
    );
    let size = weight.len() / sums.len();
    let channel = |c: usize| {
        let [sum, square] = sums[c / size];
        let mean = sum / count as f64;
        // Rounding may leave a constant group a little below zero; `max` would swallow a NaN.
        let variance = square / count as f64 - mean * mean;
        let variance = if variance < 0.0 { 0.0 } else { variance };
        let scale = f64::from(weight[c]) / (variance + f64::from(eps)).sqrt();
        (scale as f32, (f64::from(bias[c]) - mean * scale) as f32)
    };
    (0..weight.len()).map(channel).unzip()
}

/// `out = act(x * scale[c] + shift[c])`.
///
/// # Shapes
/// `x` and `out` `[channels, plane]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn channel_affine(
    x: &[f32],
    channels: usize,
    plane: usize,
    affine: &ChannelAffine<'_>,
    out: &mut [f32],
) {
    assert_eq!(x.len(), out.len(), "input and output differ in shape");
    out.copy_from_slice(x);
    channel_affine_in_place(out, channels, plane, affine);
}

/// [`channel_affine`] in place.
///
/// # Panics
/// When the shapes do not fit.
pub fn channel_affine_in_place(
    x: &mut [f32],
    channels: usize,
    plane: usize,
    affine: &ChannelAffine<'_>,
) {
    assert_eq!(x.len(), channels * plane, "a map [{channels}, {plane}]");
    assert!(
        affine.scale.len() == channels && affine.shift.len() == channels,
        "scale and shift of another length than {channels} channels"
    );
    let isa = isa();
    let group = (GRAIN / plane.max(1)).max(1);
    let shared = Shared(x.as_mut_ptr());
    parallel(channels.div_ceil(group), |task| {
        for c in task * group..((task + 1) * group).min(channels) {
            let (scale, shift) = (affine.scale[c], affine.shift[c]);
            // SAFETY: each channel is visited once and has `plane` numbers.
            unsafe { affine_in_place(isa, shared.at(c * plane), plane, scale, shift, affine.act) };
        }
    });
}

/// Doubles rows and columns by nearest neighbour.
///
/// # Shapes
/// `x` `[channels, rows, width]`, `out` `[channels, 2 rows, 2 width]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn upsample_nearest_2x(x: &[f32], channels: usize, rows: usize, width: usize, out: &mut [f32]) {
    assert_eq!(
        (x.len(), out.len()),
        (channels * rows * width, 4 * channels * rows * width),
        "a map [{channels}, {rows}, {width}] and its double"
    );
    if x.is_empty() {
        return;
    }
    let shared = Shared(out.as_mut_ptr());
    let group = (GRAIN / (4 * width)).max(1);
    let lines = channels * rows;
    parallel(lines.div_ceil(group), |task| {
        for line in task * group..((task + 1) * group).min(lines) {
            // SAFETY: each input row owns two rows of the output.
            let out =
                unsafe { std::slice::from_raw_parts_mut(shared.at(line * 4 * width), 4 * width) };
            let (first, second) = out.split_at_mut(2 * width);
            for (pair, v) in first.chunks_exact_mut(2).zip(&x[line * width..][..width]) {
                pair.fill(*v);
            }
            second.copy_from_slice(first);
        }
    });
}

/// Adds a group's sums, each row summed over sixteen lanes of f64 first.
#[inline(always)]
unsafe fn sum_rows_generic<V: Vector>(map: &[f32], rows: usize, width: usize, sums: &mut [f64; 2]) {
    let channels = map.len() / (rows * width).max(1);
    for row in 0..rows {
        let (mut sum, mut square) = ([0f64; LANES], [0f64; LANES]);
        for channel in 0..channels {
            let line = &map[(channel * rows + row) * width..][..width];
            let mut chunks = line.chunks_exact(LANES);
            for chunk in &mut chunks {
                for lane in 0..LANES {
                    let v = f64::from(chunk[lane]);
                    sum[lane] += v;
                    // Exact: a square of an f32 fits an f64.
                    square[lane] += v * v;
                }
            }
            for (lane, v) in chunks.remainder().iter().enumerate() {
                let v = f64::from(*v);
                sum[lane] += v;
                square[lane] += v * v;
            }
        }
        sums[0] += sum.iter().sum::<f64>();
        sums[1] += square.iter().sum::<f64>();
    }
}

per_isa! {
    /// Adds the sums of a group's rows.
    ///
    /// # Safety
    /// None beyond the instruction set.
    fn sum_rows(map: &[f32], rows: usize, width: usize, sums: &mut [f64; 2]) = sum_rows_generic;
}
