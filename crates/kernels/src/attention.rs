//! Attention that never holds the matrix of scores.
//!
//! The lanes are queries. For a tile of keys, a product gives scores `[key][query]`, whose
//! softmax then runs down columns without crossing lanes, and whose exponentials are the panel
//! of the second product with the values. Running maxima and sums join the tiles, which have a
//! fixed size, so a query's bits depend neither on the other queries nor on threads.

mod softmax;

use crate::gemm::PANEL;
use crate::gemm::amx;
use crate::gemm::tile::{Multiplier, OnTiles, Operand, Plain, Product};
use crate::isa::{Isa, isa};
use crate::linear::{To, load_up_to, pack_rows, store_rows};
use crate::math::Activation;
use crate::rows::{Rows, RowsMut, Shared};
use crate::scratch::{self, Scratch};
use crate::simd::{LANES, Vector, per_isa};
use crate::stored::{Format, Precision, Stored, round_to_bf16, to_bf16_pairs};
use crate::threads::{parallel, threads};
use softmax::{Softmax, divide, softmax_tile};
use std::ops::Range;

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// All.
    None,
    /// Query `i` sees keys `0..=i + (tk - tq)`. Values and keys that a query does not see must be
    /// finite.
    Causal,
}

/// The shape of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values; query head `h` reads head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Numbers of a head, D.
    pub head_dim: usize,
    /// Multiplies the scores; positive.
    pub scale: f32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// What products are multiplied in. The softmax is always f32.
    pub precision: Precision,
}

/// Numbers of a tile of keys: at most 256 KiB in f32.
const TILE_NUMBERS: usize = 64 * 1024;

/// Numbers of the queries of a task, D times its queries.
const TASK_NUMBERS: usize = 64 * 512;

/// The same where tiles multiply: what is packed of keys and values has to serve more of them.
const TILED_TASK_NUMBERS: usize = 64 * 2048;

/// Most panels of a task; where tiles multiply.
const TASK_PANELS: usize = 4;
const TILED_TASK_PANELS: usize = 8;

impl Attention {
    /// Keys of a tile; by D alone, since the order of sums depends on it.
    fn tile(&self) -> usize {
        (TILE_NUMBERS / self.head_dim / 16 * 16).clamp(16, 128)
    }

    fn check(&self, q: &Rows<'_>, k: &Rows<'_>, v: &Rows<'_>, out: &RowsMut<'_>) {
        q.check();
        k.check();
        v.check();
        out.check();
        self.check_shapes(
            [(q.rows, q.cols), (k.rows, k.cols), (v.rows, v.cols)],
            (out.rows, out.cols),
        );
    }

    /// Panics unless rows and columns of queries, keys, values and output fit.
    pub fn check_shapes(&self, [q, k, v]: [(usize, usize); 3], out: (usize, usize)) {
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "{} heads cannot share {} heads of keys",
            self.heads,
            self.kv_heads
        );
        assert!(
            self.head_dim > 0 && self.head_dim <= 1024,
            "a head of {} numbers",
            self.head_dim
        );
        assert!(
            self.scale > 0.0 && self.scale.is_finite(),
            "attention scaled by {}",
            self.scale
        );
        let (cols, kv_cols) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        assert_eq!(
            (q.1, out.1, k.1, v.1),
            (cols, cols, kv_cols, kv_cols),
            "columns of queries, output, keys and values"
        );
        assert_eq!(
            (out.0, v.0),
            (q.0, k.0),
            "rows of output and queries, of values and keys"
        );
        assert!(
            k.0 > 0 && (self.mask == Mask::None || k.0 >= q.0),
            "{} queries on {} keys leave queries that see nothing",
            q.0,
            k.0
        );
    }
}

/// `out = softmax(scale * q k^T + mask) v`, head by head.
///
/// # Shapes
/// `q` and `out` `[tq, heads * D]`, `k` and `v` `[tk, kv_heads * D]`.
///
/// # Panics
/// When the shapes do not fit, or a query would see no key.
pub fn attention(spec: &Attention, q: Rows<'_>, k: Rows<'_>, v: Rows<'_>, out: RowsMut<'_>) {
    if q.rows == 0 {
        return;
    }
    spec.check(&q, &k, &v, &out);
    let isa = isa();
    let format = Format::of(spec.precision, isa);
    let tiled = isa.has_tiles() && format == Format::Pairs;
    let group = spec.heads / spec.kv_heads;
    // The panels of a head of keys: its query heads, each cut into panels of queries.
    let panels = group * q.rows.div_ceil(PANEL);
    let (numbers, panels_max) = if tiled {
        (TILED_TASK_NUMBERS, TILED_TASK_PANELS)
    } else {
        (TASK_NUMBERS, TASK_PANELS)
    };
    let most = (numbers / (PANEL * spec.head_dim)).clamp(1, panels_max);
    let wanted = (4 * threads()).div_ceil(spec.kv_heads);
    let chunks = panels.div_ceil(most).max(wanted.min(panels));
    let chunk = panels.div_ceil(chunks);
    let chunks = panels.div_ceil(chunk);
    let job = Job {
        spec,
        isa,
        format,
        tiled,
        q,
        k,
        v,
        out: Shared(out.data.as_mut_ptr()),
        out_stride: out.stride,
    };
    parallel(spec.kv_heads * chunks, |task| {
        let first = task % chunks * chunk;
        let here = first..(first + chunk).min(panels);
        scratch::with(|scratch| job.run(task / chunks, here, scratch));
    });
}

struct Job<'a> {
    spec: &'a Attention,
    isa: Isa,
    format: Format,
    /// Whether tiles multiply. Then all that is packed is made whole tiles by zeros.
    tiled: bool,
    q: Rows<'a>,
    k: Rows<'a>,
    v: Rows<'a>,
    out: Shared<f32>,
    out_stride: usize,
}

/// Queries of one head: at most a panel.
#[derive(Clone, Copy)]
struct Queries {
    head: usize,
    first: usize,
    count: usize,
}

/// The buffers of a task. Steps, and D as a number of outputs, are [`Job::steps`] and [`Job::outputs`] of them.
struct Buffers<'a> {
    /// `[panel][steps of D][PANEL]`.
    queries: &'a mut [f32],
    /// `[keys][steps of D]`.
    keys: &'a mut [f32],
    /// `[steps of keys][D]`; for tiles `[D][steps of a tile of keys]`.
    values: &'a mut [f32],
    /// `[keys][PANEL]`.
    scores: &'a mut [f32],
    /// `[panel][D][PANEL]`.
    sums: &'a mut [f32],
    /// `[panel][maximum, sum, visible][PANEL]`.
    state: &'a mut [f32],
}

impl Job<'_> {
    fn queries(&self, kv_head: usize, panel: usize) -> Queries {
        let panels_of_head = self.q.rows.div_ceil(PANEL);
        let group = self.spec.heads / self.spec.kv_heads;
        let first = panel % panels_of_head * PANEL;
        Queries {
            head: kv_head * group + panel / panels_of_head,
            first,
            count: (self.q.rows - first).min(PANEL),
        }
    }

    /// Keys that a query sees.
    fn visible(&self, query: usize) -> usize {
        match self.spec.mask {
            Mask::None => self.k.rows,
            Mask::Causal => query + 1 + self.k.rows - self.q.rows,
        }
    }

    /// Steps of a product along `numbers`.
    fn steps(&self, numbers: usize) -> usize {
        let steps = self.format.steps(numbers);
        if self.tiled {
            steps.next_multiple_of(LANES)
        } else {
            steps
        }
    }

    /// Outputs that a product computes where `count` are wanted.
    fn outputs(&self, count: usize) -> usize {
        if self.tiled {
            count.next_multiple_of(LANES)
        } else {
            count
        }
    }

    fn run(&self, kv_head: usize, panels: Range<usize>, scratch: &mut Scratch) {
        match (self.isa, self.tiled) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, true) => {
                // SAFETY: an `Isa` is only ever one that this processor has; kernels never nest.
                let tiles = unsafe { OnTiles::<amx::Instructions>::configure() };
                self.run_with(tiles, kv_head, panels, scratch);
            }
            (_, true) => {
                // SAFETY: the emulation needs no instruction.
                let tiles = unsafe { OnTiles::<amx::Emulated>::configure() };
                self.run_with(tiles, kv_head, panels, scratch);
            }
            (isa, false) => self.run_with(Plain(isa, self.format), kv_head, panels, scratch),
        }
    }

    fn run_with(
        &self,
        mut multiplier: impl Multiplier,
        kv_head: usize,
        panels: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let d = self.outputs(self.spec.head_dim);
        let tile = self.spec.tile();
        let steps = self.steps(self.spec.head_dim);
        let count = panels.len();
        let (keys, values) = scratch
            .weights
            .take(tile * steps + self.steps(tile) * d)
            .split_at_mut(tile * steps);
        let mut buffers = Buffers {
            queries: scratch.panel.take(count * steps * PANEL),
            keys,
            values,
            scores: scratch.stage.take(tile * PANEL),
            sums: scratch.sums.take(count * d * PANEL),
            state: scratch.small.take(count * 3 * PANEL),
        };
        let mut longest = 0;
        for (i, panel) in panels.clone().enumerate() {
            let queries = self.queries(kv_head, panel);
            longest = longest.max(self.visible(queries.first + queries.count - 1));
            self.pack_queries(queries, &mut buffers.queries[i * steps * PANEL..]);
        }
        for first_key in (0..longest).step_by(tile) {
            let keys = tile.min(self.k.rows - first_key);
            self.pack_keys(kv_head, first_key, keys, &mut buffers);
            for (i, panel) in panels.clone().enumerate() {
                let queries = self.queries(kv_head, panel);
                if first_key < self.visible(queries.first + queries.count - 1) {
                    self.tile(
                        &mut multiplier,
                        (i, queries),
                        (first_key, keys),
                        &mut buffers,
                    );
                }
            }
        }
        for (i, panel) in panels.enumerate() {
            let queries = self.queries(kv_head, panel);
            let sums = &mut buffers.sums[i * d * PANEL..][..d * PANEL];
            let total = &buffers.state[(i * 3 + 1) * PANEL..][..PANEL];
            let out = self
                .out
                .at(queries.first * self.out_stride + queries.head * self.spec.head_dim);
            // SAFETY: tasks have disjoint queries or heads, and the output was checked.
            unsafe {
                divide(self.isa, sums, total);
                let none = Activation::None;
                let stride = self.out_stride;
                store_rows(
                    self.isa,
                    sums,
                    queries.count,
                    self.spec.head_dim,
                    None,
                    None,
                    none,
                    To::near(out, stride),
                );
            }
        }
    }

    fn pack_queries(&self, queries: Queries, panel: &mut [f32]) {
        let d = self.spec.head_dim;
        let from = &self.q.data[queries.first * self.q.stride + queries.head * d..];
        assert!(from.len() >= (queries.count - 1) * self.q.stride + d);
        let packed = self.format.steps(d) * PANEL;
        panel[packed..self.steps(d) * PANEL].fill(0.0);
        // SAFETY: just checked.
        unsafe {
            pack_rows(
                self.isa,
                self.format,
                from.as_ptr(),
                self.q.stride,
                queries.count,
                d,
                panel.as_mut_ptr(),
                PANEL,
            );
        }
    }

    /// Copies a tile of keys and values, in the format of the products.
    fn pack_keys(&self, kv_head: usize, first: usize, keys: usize, buffers: &mut Buffers<'_>) {
        let d = self.spec.head_dim;
        let steps = self.steps(d);
        for i in 0..keys {
            let key = &self.k.row(first + i)[kv_head * d..][..d];
            let (to, beyond) =
                buffers.keys[i * steps..][..steps].split_at_mut(self.format.steps(d));
            beyond.fill(0.0);
            if self.format == Format::Pairs {
                let (from, to) = (key.as_ptr().cast(), to.as_mut_ptr().cast());
                // SAFETY: both have D numbers, `to` as pairs.
                unsafe { to_bf16_pairs(self.isa, Stored::F32, from, to, d) };
            } else {
                to.copy_from_slice(key);
            }
        }
        if self.tiled {
            buffers.keys[keys * steps..self.outputs(keys) * steps].fill(0.0);
            let from = &self.v.data[first * self.v.stride + kv_head * d..];
            assert!(from.len() >= (keys - 1) * self.v.stride + d);
            let steps = self.steps(self.spec.tile());
            let outputs = self.outputs(d);
            assert!(buffers.values.len() >= outputs * steps && keys <= 2 * steps);
            if self.steps(keys) > keys / 2 {
                // What is beyond the last pair must be zeros where a tile reaches there.
                for line in buffers.values.chunks_exact_mut(steps).take(d) {
                    line[keys / 2..self.steps(keys)].fill(0.0);
                }
            }
            buffers.values[d * steps..outputs * steps].fill(0.0);
            let rows = (from.as_ptr(), self.v.stride);
            // SAFETY: just checked.
            unsafe { turn_values(self.isa, rows, keys, d, buffers.values, steps) };
            return;
        }
        let value = |i: usize| &self.v.row(first + i)[kv_head * d..][..d];
        if self.format == Format::Pairs {
            for i in (0..keys).step_by(2) {
                let to = &mut buffers.values[i / 2 * d..][..d];
                let high = (i + 1 < keys).then(|| value(i + 1));
                // SAFETY: nothing beyond the slices is touched.
                unsafe { pair_values(self.isa, value(i), high, to) };
            }
        } else {
            for i in 0..keys {
                buffers.values[i * d..][..d].copy_from_slice(value(i));
            }
        }
        if self.format == Format::Rounded {
            // SAFETY: the pointers and lengths are slices'.
            unsafe {
                round_to_bf16(self.isa, buffers.keys.as_mut_ptr(), keys * steps);
                round_to_bf16(self.isa, buffers.values.as_mut_ptr(), keys * d);
            }
        }
    }

    /// Packed values as the weights of the second product.
    fn values(&self, values: &[f32]) -> Operand {
        let (row_bytes, step_bytes) = if self.tiled {
            (self.steps(self.spec.tile()) * 4, 4)
        } else {
            (4, self.spec.head_dim * 4)
        };
        Operand {
            data: values.as_ptr().cast(),
            row_bytes,
            step_bytes,
        }
    }

    /// One tile of keys against one panel of queries.
    fn tile(
        &self,
        multiplier: &mut impl Multiplier,
        (index, queries): (usize, Queries),
        (first_key, keys): (usize, usize),
        buffers: &mut Buffers<'_>,
    ) {
        let d = self.outputs(self.spec.head_dim);
        let steps = self.steps(self.spec.head_dim);
        let lanes = queries.count.next_multiple_of(LANES);
        let scores = Product {
            panel: buffers.queries[index * steps * PANEL..][..steps * PANEL].as_ptr(),
            width: PANEL,
            lanes,
            used: queries.count,
            steps,
            weights: Operand {
                data: buffers.keys.as_ptr().cast(),
                row_bytes: steps * 4,
                step_bytes: 4,
            },
            outputs: self.outputs(keys),
            sums: buffers.scores.as_mut_ptr(),
            add: false,
        };
        let sums = &mut buffers.sums[index * d * PANEL..][..d * PANEL];
        let (maximum, rest) = buffers.state[index * 3 * PANEL..].split_at_mut(PANEL);
        let (total, rest) = rest.split_at_mut(PANEL);
        let visible = &mut rest[..PANEL];
        let mut masked = false;
        for (lane, visible) in visible.iter_mut().enumerate() {
            let query = queries.first + lane.min(queries.count - 1);
            let seen = self.visible(query).saturating_sub(first_key).min(keys);
            masked |= seen < keys;
            *visible = seen as f32;
        }
        let softmax = Softmax {
            format: self.format,
            keys,
            steps: self.steps(keys),
            lanes,
            scale: self.spec.scale * std::f32::consts::LOG2_E,
            first: first_key == 0,
            visible: masked.then_some(&*visible),
        };
        let weighted = Product {
            panel: buffers.scores.as_ptr(),
            width: PANEL,
            lanes,
            used: queries.count,
            steps: self.steps(keys),
            weights: self.values(buffers.values),
            outputs: d,
            sums: sums.as_mut_ptr(),
            add: first_key > 0,
        };
        // SAFETY: all buffers were taken with room for a whole tile and `count` panels.
        unsafe {
            multiplier.run(&scores);
            softmax_tile(self.isa, &softmax, buffers.scores, maximum, total, sums);
            multiplier.run(&weighted);
        }
    }
}

/// Up to sixteen numbers of a row, zeros behind them, or where there is no row.
#[inline(always)]
unsafe fn load_row<V: Vector>(from: *const f32, exists: bool, count: usize) -> V {
    // SAFETY: the caller promises `count` numbers of a row that exists.
    unsafe {
        if exists {
            load_up_to(from, count)
        } else {
            V::splat(0.0)
        }
    }
}

#[inline(always)]
unsafe fn pair_values_generic<V: Vector>(low: &[f32], high: Option<&[f32]>, out: &mut [f32]) {
    for i in (0..out.len()).step_by(LANES) {
        let here = (out.len() - i).min(LANES);
        let mut pairs = [0u32; LANES];
        // SAFETY: all slices have the output's length, of which `here` numbers are left.
        unsafe {
            let high = match high {
                Some(high) => load_up_to(high[i..][..here].as_ptr(), here),
                None => V::splat(0.0),
            };
            let low = load_up_to::<V>(low[i..][..here].as_ptr(), here);
            low.store_bf16_pairs(high, pairs.as_mut_ptr());
            let to = out.as_mut_ptr().add(i).cast();
            std::ptr::copy_nonoverlapping(pairs.as_ptr(), to, here);
        }
    }
}

/// Pairs of neighbouring rows' numbers, `[number][pair]`.
#[inline(always)]
unsafe fn turn_values_generic<V: Vector>(
    (from, stride): (*const f32, usize),
    rows: usize,
    numbers: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    let pairs = rows.div_ceil(2);
    for number in (0..numbers).step_by(LANES) {
        let count = (numbers - number).min(LANES);
        for pair in (0..pairs).step_by(LANES) {
            let mut square = [0f32; LANES * LANES];
            let mut turned = [0f32; LANES * LANES];
            // SAFETY: the caller promises rows and numbers; the squares are whole blocks.
            unsafe {
                for i in 0..(pairs - pair).min(LANES) {
                    let row = 2 * (pair + i);
                    let first = from.wrapping_add(row * stride + number);
                    let low = load_row::<V>(first, row < rows, count);
                    let high = load_row(first.wrapping_add(stride), row + 1 < rows, count);
                    low.store_bf16_pairs(high, square.as_mut_ptr().add(i * LANES).cast());
                }
                V::transpose(square.as_ptr(), LANES, turned.as_mut_ptr(), LANES);
            }
            for (i, line) in turned.chunks_exact(LANES).take(count).enumerate() {
                let here = (pairs - pair).min(LANES);
                out[(number + i) * out_stride + pair..][..here].copy_from_slice(&line[..here]);
            }
        }
    }
}

per_isa! {
    /// Interleaves neighbouring rows as bf16 and transposes them.
    ///
    /// # Safety
    /// `rows` rows of `numbers` numbers must be there.
    fn turn_values(from: (*const f32, usize), rows: usize, numbers: usize, out: &mut [f32], out_stride: usize) = turn_values_generic;
    /// Interleaves two keys' values as bf16.
    ///
    /// # Safety
    /// None beyond the instruction set.
    fn pair_values(low: &[f32], high: Option<&[f32]>, out: &mut [f32]) = pair_values_generic;
}
