//! Feature maps: group norms in two halves, upsampling, and maps as tokens.

use super::launch::Launch;
use super::operands::{ChannelAffine, Rows, RowsMut};
use crate::error::Error;
use crate::memory::{Span, SpanMut};

/// Where the sums of rows lie between two kernels.
const SCRATCH_SUMS: usize = 2;

/// Queues what was described from spans whose lengths were checked.
fn run(launch: &Launch, on: &SpanMut<'_>) -> Result<(), Error> {
    // SAFETY: only called below, with the description of the operation that is asked for.
    unsafe { launch.run(on.gpu()) }
}

/// Adds the sum and the sum of squares of each group, row by row in ascending order; as [`lowtide_kernels::group_sums`].
///
/// # Shapes
/// `x` `[channels, rows, width]`; `sums` `[groups, 2]` f64.
///
/// # Panics
/// When the shapes do not fit, as for all operations.
pub fn group_sums(
    x: Span<'_>,
    [channels, rows, width]: [usize; 3],
    groups: usize,
    sums: SpanMut<'_>,
) -> Result<(), Error> {
    let scratch = sums.gpu().scratch(SCRATCH_SUMS, groups * rows * 16)?;
    let shape = [channels, rows, width];
    for launch in launches::group_sums(&x, shape, groups, &sums, &scratch) {
        run(&launch, &sums)?;
    }
    Ok(())
}

/// A scale and a shift for each channel from finished sums over `count` numbers a group; as
/// [`lowtide_kernels::group_affine`].
///
/// # Shapes
/// `sums` `[groups, 2]` f64; `weight`, `bias` and both results `[channels]`.
pub fn group_affine(
    sums: Span<'_>,
    count: u64,
    eps: f32,
    [weight, bias]: [Span<'_>; 2],
    [scale, shift]: [SpanMut<'_>; 2],
) -> Result<(), Error> {
    let out = [&scale, &shift];
    run(
        &launches::group_affine(&sums, count, eps, [&weight, &bias], out),
        &scale,
    )
}

/// `out = act(x * scale[c] + shift[c])`; as [`lowtide_kernels::channel_affine`].
///
/// # Shapes
/// `x` and `out` `[channels, plane]`.
pub fn channel_affine(
    x: Span<'_>,
    channels: usize,
    plane: usize,
    affine: &ChannelAffine<'_>,
    out: SpanMut<'_>,
) -> Result<(), Error> {
    run(
        &launches::channel_affine(&x, channels, plane, affine, &out),
        &out,
    )
}

/// [`channel_affine`] in place.
pub fn channel_affine_in_place(
    x: SpanMut<'_>,
    channels: usize,
    plane: usize,
    affine: &ChannelAffine<'_>,
) -> Result<(), Error> {
    run(
        &launches::channel_affine(&x, channels, plane, affine, &x),
        &x,
    )
}

/// Doubles rows and columns by nearest neighbour; as [`lowtide_kernels::upsample_nearest_2x`].
///
/// # Shapes
/// `x` `[channels, rows, width]`, `out` `[channels, 2 rows, 2 width]`.
pub fn upsample_nearest_2x(
    x: Span<'_>,
    channels: usize,
    rows: usize,
    width: usize,
    out: SpanMut<'_>,
) -> Result<(), Error> {
    run(
        &launches::upsample_nearest_2x(&x, [channels, rows, width], &out),
        &out,
    )
}

/// `out[t, c] = x[c, first + t] * scale[c] + shift[c]`; as [`lowtide_kernels::map_to_tokens`].
pub fn map_to_tokens(
    x: Span<'_>,
    [scale, shift]: [Span<'_>; 2],
    plane: usize,
    first: usize,
    out: RowsMut<'_>,
) -> Result<(), Error> {
    let launch = launches::map_to_tokens(&x, [&scale, &shift], plane, first, &out);
    run(&launch, &out.data)
}

/// `map[c, first + t] += tokens[t, c]`; as [`lowtide_kernels::add_tokens_to_map`].
pub fn add_tokens_to_map(
    tokens: Rows<'_>,
    map: SpanMut<'_>,
    plane: usize,
    first: usize,
) -> Result<(), Error> {
    run(
        &launches::add_tokens_to_map(&tokens, &map, plane, first),
        &map,
    )
}

/// Patches of 2 x 2 of a map `[channels, height, width]`, row by row, each a row of `[2, 2, channels]`.
pub fn patchify(map: Span<'_>, shape: [usize; 3], patches: SpanMut<'_>) -> Result<(), Error> {
    run(&launches::patches(&map, shape, false, &patches), &patches)
}

/// The inverse of [`patchify`].
pub fn unpatchify(patches: Span<'_>, shape: [usize; 3], map: SpanMut<'_>) -> Result<(), Error> {
    run(&launches::patches(&patches, shape, true, &map), &map)
}

/// What runs.
pub mod launches {
    use crate::ops::launch::{Launch, THREADS};
    use crate::ops::operands::{ChannelAffineIn, Memory, RowsIn, numbers};

    /// As the operation of that name, with room for two f64 a row and group.
    pub fn group_sums(
        x: &impl Memory,
        [channels, rows, width]: [usize; 3],
        groups: usize,
        sums: &impl Memory,
        scratch: &impl Memory,
    ) -> [Launch; 2] {
        let (sums, scratch) = (sums.at(), scratch.at());
        assert!(
            groups > 0 && channels.is_multiple_of(groups) && sums.bytes == groups * 16,
            "{channels} channels in {groups} groups with {} bytes of sums",
            sums.bytes
        );
        assert!(
            sums.address.is_multiple_of(8) && scratch.bytes >= groups * rows * 16,
            "sums at {:#x}, {} bytes of scratch",
            sums.address,
            scratch.bytes
        );
        let by_row = Launch::new("sum_group_rows", [groups * rows, 1, 1], THREADS)
            .at(numbers("a map", x, channels * rows * width))
            .int(channels / groups)
            .int(rows)
            .int(width)
            .at(scratch);
        let by_group = Launch::new("add_group_rows", [groups, 1, 1], 32)
            .at(scratch)
            .int(rows)
            .at(sums);
        [by_row, by_group]
    }

    /// As the operation of that name.
    pub fn group_affine<M: Memory, O: Memory>(
        sums: &M,
        count: u64,
        eps: f32,
        [weight, bias]: [&M; 2],
        [scale, shift]: [&O; 2],
    ) -> Launch {
        let sums = sums.at();
        let (groups, channels) = (sums.bytes / 16, weight.at().f32s());
        assert!(
            groups > 0 && channels.is_multiple_of(groups) && sums.address.is_multiple_of(8),
            "{channels} channels for {groups} groups, sums at {:#x}",
            sums.address
        );
        Launch::along("finish_groups", channels)
            .at(sums)
            .double(count as f64)
            .float(eps)
            .at(weight.at())
            .at(numbers("biases", bias, channels))
            .int(channels)
            .int(channels / groups)
            .at(numbers("room for scales", scale, channels))
            .at(numbers("room for shifts", shift, channels))
    }

    /// As the operation of that name.
    pub fn channel_affine(
        x: &impl Memory,
        channels: usize,
        plane: usize,
        affine: &ChannelAffineIn<impl Memory>,
        out: &impl Memory,
    ) -> Launch {
        let count = channels * plane;
        let affine = affine.at(channels);
        Launch::along("affine_channels", count)
            .at(numbers("a map", x, count))
            .long(plane)
            .long(count)
            .at(affine.scale)
            .at(affine.shift)
            .act(affine.act)
            .at(numbers("room for a map", out, count))
    }

    /// As the operation of that name.
    pub fn upsample_nearest_2x(
        x: &impl Memory,
        [channels, rows, width]: [usize; 3],
        out: &impl Memory,
    ) -> Launch {
        let count = channels * rows * width;
        Launch::along("upsample_2x", count)
            .at(numbers("a map", x, count))
            .long(width)
            .long(count)
            .at(numbers("room for its double", out, 4 * count))
    }

    /// Squares of tokens and channels.
    fn squares(tokens: usize, channels: usize) -> [usize; 3] {
        [tokens.div_ceil(32) * channels.div_ceil(32), 1, 1]
    }

    /// As the operation of that name.
    pub fn map_to_tokens<M: Memory>(
        x: &M,
        [scale, shift]: [&M; 2],
        plane: usize,
        first: usize,
        out: &RowsIn<impl Memory>,
    ) -> Launch {
        let out = out.at();
        let (tokens, channels) = (out.rows, out.cols);
        assert!(
            first + tokens <= plane,
            "tokens {first}..{} of a plane of {plane}",
            first + tokens
        );
        let x = numbers("a map", x, channels * plane);
        let first = if channels == 0 { x } else { x.after(first) };
        Launch::new("turn_map", squares(tokens, channels), THREADS)
            .at(first)
            .at(numbers("scales", scale, channels))
            .at(numbers("shifts", shift, channels))
            .long(plane)
            .long(tokens)
            .int(channels)
            .at(out.data)
            .long(out.stride)
    }

    /// As the operation of that name.
    pub fn add_tokens_to_map(
        tokens: &RowsIn<impl Memory>,
        map: &impl Memory,
        plane: usize,
        first: usize,
    ) -> Launch {
        let tokens = tokens.at();
        let (count, channels) = (tokens.rows, tokens.cols);
        assert!(
            first + count <= plane,
            "tokens {first}..{} to a plane of {plane}",
            first + count
        );
        let map = numbers("a map", map, channels * plane);
        let first = if channels == 0 { map } else { map.after(first) };
        Launch::new("add_turned", squares(count, channels), THREADS)
            .at(tokens.data)
            .long(tokens.stride)
            .long(count)
            .int(channels)
            .at(first)
            .long(plane)
    }

    /// Patches of a map, or back.
    pub fn patches(
        from: &impl Memory,
        [channels, height, width]: [usize; 3],
        back: bool,
        to: &impl Memory,
    ) -> Launch {
        assert!(
            height.is_multiple_of(2) && width.is_multiple_of(2),
            "a map of {height} x {width} has no whole patches"
        );
        let count = channels * height * width;
        Launch::along("move_patches", count)
            .at(numbers("a map or patches", from, count))
            .int(channels)
            .int(height)
            .int(width)
            .int(usize::from(back))
            .at(numbers("room for patches or a map", to, count))
    }
}
