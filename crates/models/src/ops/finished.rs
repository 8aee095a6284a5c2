//! Convolutions whose sums become something else before they are written.

use lowtide_kernels as kernels;
use lowtide_kernels::{MapRows, Precision};

use super::{Convolution, MapSlice};
use crate::Result;
use crate::device::{self, Conv2d, Residual, Slice, Values, ValuesMut};

/// What becomes of sums, before anything is added to them; as [`kernels::Finish`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum After<'a> {
    Plain,
    Scaled(f32),
    Leaky(f32),
    /// A slope a channel.
    Slopes(Values<'a>),
}

impl<'a> After<'a> {
    fn host(&self) -> kernels::Finish<'a> {
        match *self {
            After::Plain => kernels::Finish::Plain,
            After::Scaled(factor) => kernels::Finish::Scaled(factor),
            After::Leaky(slope) => kernels::Finish::Leaky(slope),
            After::Slopes(slopes) => kernels::Finish::Slopes(slopes.host()),
        }
    }

    fn there(&self) -> device::After {
        match *self {
            After::Plain => device::After::Plain,
            After::Scaled(factor) => device::After::Scaled(factor),
            After::Leaky(slope) => device::After::Leaky(slope),
            After::Slopes(slopes) => device::After::Slopes(slopes.span()),
        }
    }
}

/// `out = after(conv(x)) + add`, with the padding of `kernel / 2`.
pub(crate) fn conv2d_finished(
    conv: &Convolution<'_>,
    after: After<'_>,
    (x, precision): (MapSlice<'_>, Precision),
    add: Option<Values<'_>>,
    (out, rows): (ValuesMut<'_>, MapRows),
) -> Result<()> {
    let out = match out {
        ValuesMut::Host(out) => out,
        ValuesMut::Device(on) => {
            let residual = add.map_or(Residual::Nothing, |add| Residual::Other(add.span()));
            let slice = |data, rows, width| Slice { data, rows, width };
            let width = x.width << usize::from(conv.upsample);
            let there = Conv2d {
                after: after.there(),
                ..conv.there()
            };
            let x = slice(x.data.span(), x.rows, x.width);
            let out = slice(on.span, rows, width);
            on.device.conv2d(there, x, precision, residual, out)?;
            return Ok(());
        }
    };
    kernels::conv2d_finished(
        &conv.host(),
        after.host(),
        x.data.host(),
        x.rows,
        x.width,
        precision,
        add.map(|add| add.host()),
        out,
        rows,
    );
    Ok(())
}
