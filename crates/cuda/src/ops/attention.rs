//! Attention that never holds the matrix of scores.

use super::operands::{Memory, Rows, RowsMut};
use crate::error::Error;
use lowtide_kernels::Attention;

/// Where keys and values lie as the kernel reads them.
const SCRATCH_HEADS: usize = 1;

/// Heads are taken in groups whose keys and values take no more scratch than this, where more than one does: a group is still
/// more work than a GPU does at once.
const SCRATCH_BYTES: usize = 64 << 20;

/// `out = softmax(scale * q k^T + mask) v`, head by head; as [`lowtide_kernels::attention`]. Keys and values are laid out in
/// scratch first, in the precision of the products: some 2 to 4 bytes for each of their numbers.
///
/// # Shapes
/// `q` and `out` `[tq, heads * D]`, `k` and `v` `[tk, kv_heads * D]`.
///
/// # Panics
/// When the shapes do not fit, or a query would see no key.
pub fn attention(
    spec: &Attention,
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    out: RowsMut<'_>,
) -> Result<(), Error> {
    if q.rows == 0 {
        return Ok(());
    }
    let gpu = out.data.gpu();
    let rows = [q.at(), k.at(), v.at()];
    for heads in launches::groups(spec, k.rows, SCRATCH_BYTES) {
        let (spec, rows, out) = launches::group(spec, &heads, rows, out.at());
        let scratch = gpu.scratch(SCRATCH_HEADS, launches::scratch(&spec, k.rows))?;
        for launch in launches::attention(&spec, rows, out, scratch.at()) {
            // SAFETY: the description is of this operation, from spans whose lengths it checked.
            unsafe { launch.run(gpu) }?;
        }
    }
    Ok(())
}

/// What runs.
pub mod launches {
    use crate::ops::launch::Launch;
    use crate::ops::operands::{At, RowsIn};
    use lowtide_kernels::{Attention, Mask, Precision};
    use std::ops::Range;

    /// Threads of a warp, and the queries it takes.
    const LANES: usize = 32;
    const WARP_QUERIES: usize = 16;

    /// The tiles of a kernel.
    struct Tiles {
        kernel: &'static str,
        /// Numbers of a head at once, and how often that is.
        numbers: usize,
        parts: usize,
        keys: usize,
        warps: usize,
        /// Bytes of a number.
        bytes: usize,
    }

    /// The kernels of a type, by numbers of a head.
    macro_rules! kernels_of {
        ($of:literal, $($numbers:literal),*) => {
            &[$(($numbers, concat!("attend_", $of, "_", $numbers))),*]
        };
    }

    impl Tiles {
        /// By the head and the precision alone, since the order of sums depends on them.
        fn of(spec: &Attention) -> Tiles {
            let known: &[(usize, &'static str)] = match spec.precision {
                Precision::Bf16 => kernels_of!("bf16", 48, 64, 80, 128, 160),
                Precision::F16 => kernels_of!("f16", 48, 64, 80, 128, 160),
                Precision::Tf32 => kernels_of!("tf32", 64, 128, 160),
                Precision::F32 => kernels_of!("f32", 64, 128, 160),
            };
            let fits = |size: usize| known.iter().find(|(numbers, _)| *numbers >= size);
            // Larger heads are taken in parts of 128.
            let (numbers, kernel) = fits(spec.head_dim).or(fits(128)).unwrap_or(&known[0]);
            let (keys, warps, bytes) = match spec.precision {
                Precision::Bf16 | Precision::F16 => (64, 8, 2),
                Precision::Tf32 | Precision::F32 => (32, 4, 4),
            };
            Tiles {
                kernel,
                numbers: *numbers,
                parts: spec.head_dim.div_ceil(*numbers),
                keys,
                warps,
                bytes,
            }
        }

        fn queries(&self) -> usize {
            self.warps * WARP_QUERIES
        }

        /// Tokens up to whole tiles.
        fn rows(&self, tokens: usize) -> usize {
            tokens.next_multiple_of(self.keys)
        }

        /// Bytes of keys, or values, of so many heads and tokens.
        fn side(&self, heads: usize, tokens: usize) -> usize {
            heads * self.rows(tokens) * self.parts * self.numbers * self.bytes
        }

        /// Bytes of shared memory: queries, keys and values, each row with 16 bytes to spare.
        fn shared(&self) -> usize {
            (self.queries() + 2 * self.keys) * (self.numbers * self.bytes + 16)
        }
    }

    /// Heads of keys and values in groups that take `most` bytes of scratch at most, or one head each.
    pub fn groups(spec: &Attention, tokens: usize, most: usize) -> Vec<Range<usize>> {
        let each = 2 * Tiles::of(spec).side(1, tokens);
        let together = (most / each.max(1)).max(1);
        let firsts = (0..spec.kv_heads).step_by(together);
        firsts
            .map(|first| first..(first + together).min(spec.kv_heads))
            .collect()
    }

    /// What those heads of keys and values have of operands, queries and results of all heads that read them.
    pub fn group(
        spec: &Attention,
        heads: &Range<usize>,
        [q, k, v]: [RowsIn<At>; 3],
        out: RowsIn<At>,
    ) -> (Attention, [RowsIn<At>; 3], RowsIn<At>) {
        let per = spec.heads / spec.kv_heads;
        let keys = heads.start * spec.head_dim..heads.end * spec.head_dim;
        let queries = keys.start * per..keys.end * per;
        let part = Attention {
            heads: heads.len() * per,
            kv_heads: heads.len(),
            ..*spec
        };
        let rows = [
            q.columns(queries.clone()),
            k.columns(keys.clone()),
            v.columns(keys),
        ];
        (part, rows, out.columns(queries))
    }

    /// Bytes of scratch for so many keys.
    pub fn scratch(spec: &Attention, tokens: usize) -> usize {
        2 * Tiles::of(spec).side(spec.kv_heads, tokens)
    }

    fn check(spec: &Attention, operands: &[RowsIn<At>; 3], out: &RowsIn<At>) {
        let shape = |rows: &RowsIn<At>| (rows.rows, rows.cols);
        spec.check_shapes([0, 1, 2].map(|i| shape(&operands[i])), shape(out));
    }

    /// As the operation of that name, with the scratch that [`scratch`] says.
    pub fn attention(
        spec: &Attention,
        rows: [RowsIn<At>; 3],
        out: RowsIn<At>,
        scratch: At,
    ) -> [Launch; 3] {
        check(spec, &rows, &out);
        let [q, k, v] = rows;
        let tiles = Tiles::of(spec);
        let side = tiles.side(spec.kv_heads, k.rows);
        assert!(
            scratch.bytes >= 2 * side && scratch.address.is_multiple_of(16),
            "{} bytes of scratch at {:#x} for {}",
            scratch.bytes,
            scratch.address,
            2 * side
        );
        let sides = [0, side].map(|start| At {
            address: scratch.address + start as u64,
            bytes: side,
        });
        let [keys, values] = [(k, sides[0]), (v, sides[1])].map(|(rows, to)| {
            let kernel = match spec.precision {
                Precision::Bf16 => "lay_out_bf16",
                Precision::F16 => "lay_out_f16",
                Precision::Tf32 => "lay_out_tf32",
                Precision::F32 => "lay_out_f32",
            };
            Launch::along(kernel, side / 16)
                .at(rows.data)
                .long(rows.stride)
                .int(rows.rows)
                .int(spec.kv_heads)
                .int(spec.head_dim)
                .int(tiles.rows(rows.rows))
                .int(tiles.parts * tiles.numbers)
                .at(to)
        });
        let grid = [q.rows.div_ceil(tiles.queries()), spec.heads, tiles.parts];
        let attend = Launch::new(tiles.kernel, grid, (tiles.warps * LANES) as u32)
            .shared(tiles.shared())
            .at(q.data)
            .long(q.stride)
            .at(sides[0])
            .at(sides[1])
            .at(out.data)
            .long(out.stride)
            .int(q.rows)
            .int(k.rows)
            .int(tiles.rows(k.rows))
            .int(spec.heads / spec.kv_heads)
            .int(spec.head_dim)
            .int(tiles.parts)
            .float(spec.scale * std::f32::consts::LOG2_E)
            .int(usize::from(spec.mask == Mask::Causal));
        [keys, values, attend]
    }
}
