//! What works on maps: residual blocks, samplers, the last convolution.

use std::rc::Rc;

use lowtide_kernels::Activation;

use super::config::Config;
use super::network::ResnetShape;
use crate::device::{Elementwise, Place, Values};
use crate::layers::{Affine, Around, Conv2d, GroupNorm, Linear, Padding, Strip};
use crate::tensor::{Compute, Tensor};
use crate::weights::Weights;
use crate::{Error, Result, ops};

/// A whole map.
///
/// # Errors
/// [`Error::Shape`] when it is none.
pub(super) fn whole(rows: Tensor) -> Result<Strip> {
    let (_, height, _) = rows.dims3()?;
    Ok(Strip {
        rows,
        first: 0,
        height,
    })
}

/// A norm reduced to channels, for the map it was made of.
pub(super) fn affine(norm: &GroupNorm, x: &Strip) -> Result<Affine> {
    let (_, height, width) = x.rows.dims3()?;
    let mut sums = norm.sums()?;
    norm.add_rows(&x.rows, &mut sums)?;
    norm.affine(&sums, height * width)
}

/// `conv2(silu(norm2(conv1(silu(norm1(x))) + time))) + x`, x brought to the new number of channels by a shortcut.
pub(super) struct Resnet<'w> {
    norm1: GroupNorm,
    conv1: Conv2d<'w>,
    time: Linear<'w>,
    norm2: GroupNorm,
    conv2: Conv2d<'w>,
    shortcut: Option<Conv2d<'w>>,
}

impl<'w> Resnet<'w> {
    pub(super) fn load(
        w: &Weights<'w>,
        config: &Config,
        shape: &ResnetShape,
    ) -> Result<Resnet<'w>> {
        let (from, to) = (shape.channels_in + shape.channels_skip, shape.channels_out);
        let norm = |channels, name| w.group_norm(config.groups, channels, config.norm_eps, name);
        Ok(Resnet {
            norm1: norm(from, "norm1")?,
            conv1: w.conv2d(from, to, 3, "conv1")?,
            time: w.linear(config.time_dim, to, "time_emb_proj")?,
            norm2: norm(to, "norm2")?,
            conv2: w.conv2d(to, to, 3, "conv2")?,
            shortcut: match from == to {
                true => None,
                false => Some(w.conv2d(from, to, 1, "conv_shortcut")?),
            },
        })
    }

    /// What each embedding (E, time_dim) adds to the channels: (E, channels_out).
    pub(super) fn shifts(&self, compute: Compute, embeddings: &Tensor) -> Result<Tensor> {
        self.time.forward(compute, embeddings)
    }

    /// # Memory
    /// Beside x two maps of the result's size; one, where there is no shortcut and nobody else holds x.
    pub(super) fn forward(
        &self,
        compute: Compute,
        x: Rc<Strip>,
        shift: Values<'_>,
    ) -> Result<Strip> {
        let rows = 0..x.height;
        let norm1 = affine(&self.norm1, &x)?;
        let around = Around {
            input: Some(norm1.then(Activation::Silu)),
            shift: Some(shift),
            ..Around::default()
        };
        let hidden = self
            .conv1
            .forward(compute, &x, around, rows.clone(), None)?;
        let residual = match &self.shortcut {
            None => Rc::try_unwrap(x),
            Some(conv) => {
                let around = Around::default();
                let short = conv.forward(compute, &x, around, rows.clone(), None)?;
                drop(x);
                Ok(short)
            }
        };
        let norm2 = affine(&self.norm2, &hidden)?;
        let input = Some(norm2.then(Activation::Silu));
        match residual {
            Ok(mut result) => {
                self.conv2.add_to(compute, &hidden, input, &mut result)?;
                Ok(result)
            }
            Err(kept) => {
                let around = Around {
                    input,
                    ..Around::default()
                };
                let add = Some(&kept.rows);
                self.conv2.forward(compute, &hidden, around, rows, add)
            }
        }
    }
}

/// The channels of both maps in one.
pub(super) fn concatenated(a: Rc<Strip>, b: Rc<Strip>) -> Result<Strip> {
    let (channels, height, width) = a.rows.dims3()?;
    let (more, ..) = b.rows.dims3()?;
    let mut both = Tensor::new(&[channels + more, height, width])?;
    let (first, all) = (a.rows.elements(), both.elements());
    if all - first != b.rows.elements() {
        return Err(Error::Shape {
            what: "maps side by side",
            expected: vec![more, height, width],
            found: b.rows.shape().to_vec(),
        });
    }
    let copy = Elementwise::Copy;
    ops::elementwise(copy, both.values_mut().part(0..first), a.rows.values())?;
    ops::elementwise(copy, both.values_mut().part(first..all), b.rows.values())?;
    whole(both)
}

/// The convolution that goes with a change of resolution.
pub(super) struct Sampler<'w> {
    conv: Conv2d<'w>,
}

impl<'w> Sampler<'w> {
    pub(super) fn load(w: &Weights<'w>, channels: usize) -> Result<Sampler<'w>> {
        Ok(Sampler {
            conv: w.conv2d(channels, channels, 3, "conv")?,
        })
    }

    /// Half as many rows and columns, rounded up.
    pub(super) fn down(&self, compute: Compute, x: &Strip) -> Result<Strip> {
        let around = Around {
            halve: Some(Padding::all(1)),
            ..Around::default()
        };
        let rows = 0..x.height.div_ceil(2);
        self.conv.forward(compute, x, around, rows, None)
    }

    /// Twice as many rows and columns, or one less of either where `size` says so.
    ///
    /// # Memory
    /// The result; with one less, a map as large, too.
    pub(super) fn up(&self, compute: Compute, x: Rc<Strip>, size: (usize, usize)) -> Result<Strip> {
        let (_, height, width) = x.rows.dims3()?;
        let (rows, columns) = size;
        if size == (2 * height, 2 * width) {
            let around = Around {
                upsample: true,
                ..Around::default()
            };
            return self.conv.forward(compute, &x, around, 0..rows, None);
        }
        let enlarged = enlarged(&x, size)?;
        drop(x);
        let around = Around::default();
        debug_assert_eq!(enlarged.rows.shape()[2], columns);
        self.conv.forward(compute, &enlarged, around, 0..rows, None)
    }
}

/// `size` rows and columns, each value taken from half its place.
fn enlarged(x: &Strip, (rows, columns): (usize, usize)) -> Result<Strip> {
    let (channels, height, width) = x.rows.dims3()?;
    if rows.div_ceil(2) != height || columns.div_ceil(2) != width {
        return Err(Error::Shape {
            what: "a map to be enlarged",
            expected: vec![channels, rows.div_ceil(2), columns.div_ceil(2)],
            found: x.rows.shape().to_vec(),
        });
    }
    // Rare (odd sizes) and small, so that the host does it for all.
    let source = x.rows.duplicate()?.into_host()?;
    let host = Place::Host.enter();
    let mut out = Tensor::new(&[channels, rows, columns])?;
    for (line, to) in out.data_mut().chunks_exact_mut(columns).enumerate() {
        let (channel, row) = (line / rows, line % rows);
        let from = &source.data()[(channel * height + row / 2) * width..][..width];
        for (column, value) in to.iter_mut().enumerate() {
            *value = from[column / 2];
        }
    }
    drop(host);
    whole(out.brought_here()?)
}

/// The last norm and convolution.
pub(super) struct Output<'w> {
    norm: GroupNorm,
    conv: Conv2d<'w>,
}

impl<'w> Output<'w> {
    pub(super) fn load(w: &Weights<'w>, config: &Config) -> Result<Output<'w>> {
        let channels = config.channels(0);
        let (_, kernel) = config.kernels;
        Ok(Output {
            norm: w.group_norm(config.groups, channels, config.norm_eps, "conv_norm_out")?,
            conv: w.conv2d(channels, config.out_channels, kernel, "conv_out")?,
        })
    }

    pub(super) fn forward(&self, compute: Compute, x: &Strip) -> Result<Tensor> {
        let norm = affine(&self.norm, x)?;
        let around = Around {
            input: Some(norm.then(Activation::Silu)),
            ..Around::default()
        };
        let out = self.conv.forward(compute, x, around, 0..x.height, None)?;
        Ok(out.rows)
    }
}
