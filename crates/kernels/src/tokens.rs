//! Maps turned into tokens, and tokens added back to maps.

use crate::isa::isa;
use crate::rows::{Rows, RowsMut, Shared};
use crate::simd::{LANES, Vector, per_isa};
use crate::threads::{GRAIN, parallel};

/// `out[t, c] = x[c, first + t] * scale[c] + shift[c]`: tokens of a map from `first` on, each channel scaled and shifted.
///
/// # Shapes
/// `x` `[C, plane]`, `scale` and `shift` `[C]`, `out` `[T, C]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn map_to_tokens(
    x: &[f32],
    [scale, shift]: [&[f32]; 2],
    plane: usize,
    first: usize,
    out: RowsMut<'_>,
) {
    out.check();
    let (tokens, channels) = (out.rows, out.cols);
    assert!(
        x.len() == channels * plane && first + tokens <= plane,
        "tokens {first}..{} of a map [{channels}, {plane}] of {} numbers",
        first + tokens,
        x.len()
    );
    assert!(
        scale.len() == channels && shift.len() == channels,
        "scale and shift of another length than {channels} channels"
    );
    let isa = isa();
    let to = Shared(out.data.as_mut_ptr());
    let stride = out.stride;
    let group = (GRAIN / channels.max(1)).next_multiple_of(LANES);
    parallel(tokens.div_ceil(group), |task| {
        let start = task * group;
        let part = Turn {
            from: x.as_ptr().wrapping_add(first + start),
            from_stride: plane,
            columns: group.min(tokens - start),
            rows: channels,
            to: to.at(start * stride),
            to_stride: stride,
        };
        // SAFETY: tasks have disjoint tokens; all of them, and all channels, were checked to be there.
        unsafe { turn_scaled(isa, &part, scale.as_ptr(), shift.as_ptr()) };
    });
}

/// `map[c, first + t] += tokens[t, c]`.
///
/// # Shapes
/// `tokens` `[T, C]`, `map` `[C, plane]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn add_tokens_to_map(tokens: Rows<'_>, map: &mut [f32], plane: usize, first: usize) {
    tokens.check();
    let (count, channels) = (tokens.rows, tokens.cols);
    assert!(
        map.len() == channels * plane && first + count <= plane,
        "tokens {first}..{} to a map [{channels}, {plane}] of {} numbers",
        first + count,
        map.len()
    );
    let isa = isa();
    let to = Shared(map.as_mut_ptr());
    let group = (GRAIN / count.max(1)).next_multiple_of(LANES);
    parallel(channels.div_ceil(group), |task| {
        let start = task * group;
        let part = Turn {
            from: tokens.data.as_ptr().wrapping_add(start),
            from_stride: tokens.stride,
            columns: group.min(channels - start),
            rows: count,
            to: to.at(start * plane + first),
            to_stride: plane,
        };
        // SAFETY: tasks have disjoint channels; all of them, and all tokens, were checked to be there.
        unsafe { turn_added(isa, &part) };
    });
}

/// A rectangle to be turned: row r, column c of the source is row c, column r of the target.
struct Turn {
    from: *const f32,
    from_stride: usize,
    rows: usize,
    columns: usize,
    to: *mut f32,
    to_stride: usize,
}

/// Calls `$line(row, rows, vector, target)` for what up to sixteen rows of a column become.
///
/// Squares that are not whole are read by way of an array that is.
macro_rules! in_squares {
    ($turn:ident, $v:ident, $line:expr) => {
        let mut edge = [0f32; LANES * LANES];
        for row in (0..$turn.rows).step_by(LANES) {
            let rows = ($turn.rows - row).min(LANES);
            for column in (0..$turn.columns).step_by(LANES) {
                let columns = ($turn.columns - column).min(LANES);
                let from = $turn.from.add(row * $turn.from_stride + column);
                let square = if rows == LANES && columns == LANES {
                    $v::transposed(from, $turn.from_stride)
                } else {
                    for r in 0..rows {
                        let to = edge.as_mut_ptr().add(r * LANES);
                        std::ptr::copy_nonoverlapping(from.add(r * $turn.from_stride), to, columns);
                    }
                    $v::transposed(edge.as_ptr(), LANES)
                };
                for (c, line) in square.into_iter().take(columns).enumerate() {
                    let to = $turn.to.add((column + c) * $turn.to_stride + row);
                    $line(row, rows, line, to);
                }
            }
        }
    };
}

#[inline(always)]
unsafe fn turn_scaled_generic<V: Vector>(turn: &Turn, scale: *const f32, shift: *const f32) {
    // SAFETY: the caller promises both rectangles, and as many scales and shifts as rows.
    unsafe {
        in_squares!(turn, V, |row: usize, rows: usize, line: V, to: *mut f32| {
            let (scale, shift) = (scale.add(row), shift.add(row));
            if rows == LANES {
                line.mul(V::load(scale)).add(V::load(shift)).store(to);
            } else {
                let (scale, shift) = (V::load_part(scale, rows), V::load_part(shift, rows));
                line.mul(scale).add(shift).store_part(to, rows);
            }
        });
    }
}

#[inline(always)]
unsafe fn turn_added_generic<V: Vector>(turn: &Turn) {
    // SAFETY: the caller promises both rectangles.
    unsafe {
        in_squares!(turn, V, |_: usize, rows: usize, line: V, to: *mut f32| {
            if rows == LANES {
                V::load(to).add(line).store(to);
            } else {
                V::load_part(to, rows).add(line).store_part(to, rows);
            }
        });
    }
}

per_isa! {
    /// Turns a rectangle, each of its rows scaled and shifted.
    ///
    /// # Safety
    /// Source and target must be good for the rectangle, scale and shift for a number each row.
    fn turn_scaled(turn: &Turn, scale: *const f32, shift: *const f32) = turn_scaled_generic;
    /// Adds a rectangle, turned.
    ///
    /// # Safety
    /// Source and target must be good for the rectangle.
    fn turn_added(turn: &Turn) = turn_added_generic;
}
