//! Modules and heads, by the names of the checkpoint. Maps are planes one after the other, so that what is joined is
//! written side by side in the first place, and a part of a map's channels is a part of its memory.

use lowtide_kernels as kernels;
use lowtide_kernels::memory::Buffer;
use lowtide_kernels::{Activation, ChannelAffine, Finish, MapRows, Matrix, Stored};

use super::{Config, Does, HEAD, Level, MODULES, Output, SEEN, STRIDES, Width};
use crate::Result;
use crate::layers::Conv2d;
use crate::tensor::{Compute, Tensor};
use crate::weights::Weights;

/// What batch norms add to the variance.
const NORM_EPS: f32 = 1e-3;

/// How far the maxima of the pooling module reach on each side.
const POOL_REACH: usize = 2;

/// Rows and columns.
type Size = (usize, usize);

/// A convolution, and where `active` the batch norm and SiLU behind it.
pub(super) struct Conv<'w> {
    layer: Conv2d<'w>,
    stride: usize,
    /// Scale and shift of each channel, of a norm that was not folded.
    norm: Option<(Vec<f32>, Vec<f32>)>,
    active: bool,
}

/// Loads convolutions of one scope.
struct Loader<'a, 'w> {
    weights: Weights<'w>,
    config: &'a Config,
}

impl<'w> Loader<'_, 'w> {
    fn pp(&self, name: &str) -> Loader<'_, 'w> {
        Loader {
            weights: self.weights.pp(name),
            config: self.config,
        }
    }

    /// `silu(norm(conv(x)))` of the scope `name`.
    fn conv(
        &self,
        (channels_in, channels_out): (usize, usize),
        kernel: usize,
        name: &str,
    ) -> Result<Conv<'w>> {
        let scope = match name {
            "" => self.weights.clone(),
            name => self.weights.pp(name),
        };
        if !self.config.normed {
            return Ok(Conv {
                layer: scope.conv2d(channels_in, channels_out, kernel, "conv")?,
                stride: 1,
                norm: None,
                active: true,
            });
        }
        let layer = scope.conv2d_no_bias(channels_in, channels_out, kernel, "conv")?;
        let norm = scope.pp("bn");
        let values = |name| norm.values(name, &[channels_out]);
        let (weight, bias) = (values("weight")?, values("bias")?);
        let (mean, variance) = (values("running_mean")?, values("running_var")?);
        let scales = weight.iter().zip(&variance);
        let scale: Vec<f32> = scales
            .map(|(weight, variance)| weight / (variance + NORM_EPS).sqrt())
            .collect();
        let shifts = bias.iter().zip(mean.iter().zip(&scale));
        let shift = shifts.map(|(bias, (mean, scale))| bias - mean * scale);
        Ok(Conv {
            layer,
            stride: 1,
            norm: Some((scale.clone(), shift.collect())),
            active: true,
        })
    }

    /// A bare convolution over single places.
    fn last(&self, channels_in: usize, channels_out: usize, name: &str) -> Result<Conv<'w>> {
        Ok(Conv {
            layer: self.weights.conv2d(channels_in, channels_out, 1, name)?,
            stride: 1,
            norm: None,
            active: false,
        })
    }
}

impl Conv<'_> {
    fn channels_out(&self) -> usize {
        self.layer.weight.rows()
    }

    fn size_out(&self, (height, width): Size) -> Size {
        (height.div_ceil(self.stride), width.div_ceil(self.stride))
    }

    /// Of the planes `x`, which are `size` each, into `out`.
    fn write(&self, compute: Compute, x: &[f32], size: Size, out: &mut [f32]) {
        self.write_with(compute, (x, size), None, out);
    }

    /// The same, and `add` is added.
    fn write_with(
        &self,
        compute: Compute,
        (x, size): (&[f32], Size),
        add: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let kernel = self.layer.kernel;
        let conv = kernels::Conv2d {
            weight: self.layer.weight.host(),
            bias: Some(self.layer.bias.values().host()),
            kernel,
            stride: self.stride,
            padding: kernel / 2,
            upsample: false,
            input: None,
        };
        let (height, _) = self.size_out(size);
        let act = Activation::Silu;
        let finish = match &self.norm {
            Some((scale, shift)) => Finish::Affine(ChannelAffine { scale, shift, act }),
            None if self.active => Finish::Silu,
            None => Finish::Plain,
        };
        kernels::conv2d_finished(
            &conv,
            finish,
            x,
            MapRows::whole(size.0),
            size.1,
            compute.precision,
            add,
            out,
            MapRows::whole(height),
        );
    }

    fn forward(&self, compute: Compute, x: &Tensor) -> Result<Tensor> {
        let (_, height, width) = x.dims3()?;
        let size = self.size_out((height, width));
        let mut out = Tensor::new(&[self.channels_out(), size.0, size.1])?;
        self.write(compute, x.data(), (height, width), out.data_mut());
        Ok(out)
    }
}

/// A module with weights.
pub(super) enum Loaded<'w> {
    Halve(Box<Conv<'w>>),
    Split(Box<Split<'w>>),
    Pool(Box<[Conv<'w>; 2]>),
}

/// `cv1` into two paths; the second goes through the bottlenecks, each of whose results is kept; `cv2` joins all.
pub(super) struct Split<'w> {
    cv1: Conv<'w>,
    bottlenecks: Vec<[Conv<'w>; 2]>,
    cv2: Conv<'w>,
    add: bool,
}

impl<'w> Loaded<'w> {
    /// Module number `at` of the list.
    pub(super) fn load(root: &Weights<'w>, config: &Config, at: usize) -> Result<Loaded<'w>> {
        let module = MODULES[at];
        let weights = root.pp(format!("{}model.{}", config.prefix, module.index));
        let loader = Loader { weights, config };
        let Width {
            out,
            hidden,
            repeats,
        } = config.widths[at];
        let channels_in = config.channels_in(at);
        Ok(match module.does {
            Does::Split { add } => {
                let bottleneck = |k: usize| {
                    let scope = loader.pp(&format!("m.{k}"));
                    Ok([
                        scope.conv((hidden, hidden), 3, "cv1")?,
                        scope.conv((hidden, hidden), 3, "cv2")?,
                    ])
                };
                Loaded::Split(Box::new(Split {
                    cv1: loader.conv((channels_in, 2 * hidden), 1, "cv1")?,
                    bottlenecks: (0..repeats).map(bottleneck).collect::<Result<_>>()?,
                    cv2: loader.conv(((2 + repeats) * hidden, out), 1, "cv2")?,
                    add,
                }))
            }
            Does::Pool => Loaded::Pool(Box::new([
                loader.conv((channels_in, hidden), 1, "cv1")?,
                loader.conv((4 * hidden, out), 1, "cv2")?,
            ])),
            Does::Halve | Does::Double { .. } | Does::Join { .. } => {
                let conv = loader.conv((channels_in, out), 3, "")?;
                Loaded::Halve(Box::new(Conv { stride: 2, ..conv }))
            }
        })
    }

    pub(super) fn forward(&self, compute: Compute, x: &Tensor) -> Result<Tensor> {
        match self {
            Loaded::Halve(conv) => conv.forward(compute, x),
            Loaded::Split(split) => split.forward(compute, x),
            Loaded::Pool(convs) => {
                let [cv1, cv2] = &**convs;
                let (_, height, width) = x.dims3()?;
                let channels = cv1.channels_out();
                let mut all = Tensor::new(&[4 * channels, height, width])?;
                let part = channels * height * width;
                cv1.write(
                    compute,
                    x.data(),
                    (height, width),
                    &mut all.data_mut()[..part],
                );
                for k in 1..4 {
                    let (before, after) = all.data_mut().split_at_mut(k * part);
                    let from = &before[(k - 1) * part..];
                    max_pool(from, &mut after[..part], (height, width));
                }
                cv2.forward(compute, &all)
            }
        }
    }
}

impl Split<'_> {
    fn forward(&self, compute: Compute, x: &Tensor) -> Result<Tensor> {
        let (_, height, width) = x.dims3()?;
        let hidden = self.cv1.channels_out() / 2;
        let paths = 2 + self.bottlenecks.len();
        let mut all = Tensor::new(&[paths * hidden, height, width])?;
        let part = hidden * height * width;
        let size = (height, width);
        self.cv1
            .write(compute, x.data(), size, &mut all.data_mut()[..2 * part]);
        {
            let mut between = Tensor::new(&[hidden, height, width])?;
            for (k, [cv1, cv2]) in self.bottlenecks.iter().enumerate() {
                let (before, after) = all.data_mut().split_at_mut((2 + k) * part);
                let (from, to) = (&before[(1 + k) * part..], &mut after[..part]);
                cv1.write(compute, from, size, between.data_mut());
                let add = self.add.then_some(from);
                cv2.write_with(compute, (between.data(), size), add, to);
            }
        }
        self.cv2.forward(compute, &all)
    }
}

/// The largest value within [`POOL_REACH`] places on all sides.
fn max_pool(from: &[f32], to: &mut [f32], (height, width): Size) {
    let mut line = vec![0.0f32; height * width];
    for (from, to) in from
        .chunks_exact(height * width)
        .zip(to.chunks_exact_mut(height * width))
    {
        for y in 0..height {
            let row = &from[y * width..][..width];
            for (x, value) in line[y * width..][..width].iter_mut().enumerate() {
                let near = x.saturating_sub(POOL_REACH)..(x + POOL_REACH + 1).min(width);
                *value = row[near].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            }
        }
        for y in 0..height {
            let near = y.saturating_sub(POOL_REACH)..(y + POOL_REACH + 1).min(height);
            let row = &mut to[y * width..][..width];
            row.fill(f32::NEG_INFINITY);
            for near in near {
                for (value, &other) in row.iter_mut().zip(&line[near * width..][..width]) {
                    *value = value.max(other);
                }
            }
        }
    }
}

/// The three heads, and the prototypes of outlines.
pub(super) struct Heads<'w> {
    levels: Vec<LevelHeads<'w>>,
    prototypes: Option<Prototypes<'w>>,
}

/// Two convolutions and a last one.
type Branch<'w> = [Conv<'w>; 3];

struct LevelHeads<'w> {
    edges: Branch<'w>,
    classes: Branch<'w>,
    outlines: Option<Branch<'w>>,
}

struct Prototypes<'w> {
    cv1: Conv<'w>,
    /// Four times as many results, those of a place's four new ones one after the other; f32.
    doubling: Buffer,
    doubling_bias: Vec<f32>,
    cv2: Conv<'w>,
    cv3: Conv<'w>,
}

impl<'w> Heads<'w> {
    pub(super) fn load(root: &Weights<'w>, config: &Config) -> Result<Heads<'w>> {
        let weights = root.pp(format!("{}model.{HEAD}", config.prefix));
        let loader = Loader { weights, config };
        let mut levels = Vec::with_capacity(STRIDES.len());
        for (k, index) in SEEN.into_iter().enumerate() {
            let seen = config.width(index).out;
            let branch = |name: &str, hidden: usize, results: usize| -> Result<Branch<'w>> {
                let scope = loader.pp(&format!("{name}.{k}"));
                Ok([
                    scope.conv((seen, hidden), 3, "0")?,
                    scope.conv((hidden, hidden), 3, "1")?,
                    scope.last(hidden, results, "2")?,
                ])
            };
            let outlines = config
                .outlines
                .map(|outlines| branch("cv4", outlines.hidden, outlines.count));
            levels.push(LevelHeads {
                edges: branch("cv2", config.box_hidden, 4 * config.bins)?,
                classes: branch("cv3", config.class_hidden, config.classes)?,
                outlines: outlines.transpose()?,
            });
        }
        let prototypes = config.outlines.map(|outlines| -> Result<Prototypes<'w>> {
            let hidden = outlines.prototypes_hidden;
            let scope = loader.pp("proto");
            let upsample = scope.weights.pp("upsample");
            let doubling = upsample.values("weight", &[hidden, hidden, 2, 2])?;
            let bias = upsample.values("bias", &[hidden])?;
            Ok(Prototypes {
                cv1: scope.conv((config.width(SEEN[0]).out, hidden), 3, "cv1")?,
                doubling: turned(&doubling, hidden)?,
                doubling_bias: bias.iter().flat_map(|&bias| [bias; 4]).collect(),
                cv2: scope.conv((hidden, hidden), 3, "cv2")?,
                cv3: scope.conv((hidden, outlines.count), 1, "cv3")?,
            })
        });
        Ok(Heads {
            levels,
            prototypes: prototypes.transpose()?,
        })
    }

    /// Of the three maps, the finest first.
    pub(super) fn forward(&self, compute: Compute, seen: [&Tensor; 3]) -> Result<Output> {
        let prototypes = self.prototypes.as_ref();
        let prototypes = prototypes.map(|all| all.forward(compute, seen[0]));
        let prototypes = prototypes.transpose()?;
        let mut levels = Vec::with_capacity(seen.len());
        for ((heads, x), stride) in self.levels.iter().zip(seen).zip(STRIDES) {
            let outlines = heads.outlines.as_ref();
            levels.push(Level {
                stride,
                edges: through(compute, &heads.edges, x)?,
                classes: through(compute, &heads.classes, x)?,
                outlines: outlines.map(|all| through(compute, all, x)).transpose()?,
            });
        }
        Ok(Output { levels, prototypes })
    }
}

fn through(compute: Compute, [first, second, last]: &Branch<'_>, x: &Tensor) -> Result<Tensor> {
    let x = first.forward(compute, x)?;
    let x = second.forward(compute, &x)?;
    last.forward(compute, &x)
}

/// A transposed convolution's weight (C, C, 2, 2) by input and output channel, as that of a convolution over single places
/// with four results a channel.
fn turned(weight: &[f32], channels: usize) -> Result<Buffer> {
    let mut out = Buffer::new(size_of_val(weight))?;
    // Nothing is there while it is recorded.
    for (at, value) in out.f32_mut().iter_mut().enumerate() {
        let (result, input) = (at / channels, at % channels);
        *value = weight[input * 4 * channels + result];
    }
    Ok(out)
}

impl Prototypes<'_> {
    fn forward(&self, compute: Compute, x: &Tensor) -> Result<Tensor> {
        let (_, height, width) = x.dims3()?;
        let hidden = self.cv1.channels_out();
        let mut large = Tensor::new(&[hidden, 2 * height, 2 * width])?;
        {
            let small = self.cv1.forward(compute, x)?;
            let weight = Matrix {
                stored: Stored::F32,
                bytes: self.doubling.bytes(),
                rows: 4 * hidden,
                cols: hidden,
                scales: None,
            };
            let conv = kernels::Conv2d {
                weight,
                bias: Some(&self.doubling_bias),
                kernel: 1,
                stride: 1,
                padding: 0,
                upsample: false,
                input: None,
            };
            let mut four = Tensor::new(&[4 * hidden, height, width])?;
            let (rows, precision) = (MapRows::whole(height), compute.precision);
            let to = four.data_mut();
            kernels::conv2d(&conv, small.data(), rows, width, precision, None, to, rows);
            drop(small);
            spread(four.data(), large.data_mut(), (height, width));
        }
        let large = self.cv2.forward(compute, &large)?;
        self.cv3.forward(compute, &large)
    }
}

/// Four planes a channel to one of twice as many rows and columns.
fn spread(four: &[f32], out: &mut [f32], (height, width): Size) {
    let plane = height * width;
    for (from, to) in four
        .chunks_exact(4 * plane)
        .zip(out.chunks_exact_mut(4 * plane))
    {
        for (y, row) in to.chunks_exact_mut(2 * width).enumerate() {
            let from = &from[(y % 2) * 2 * plane..][..2 * plane];
            let line = (y / 2) * width;
            let (left, right) = (&from[line..][..width], &from[plane + line..][..width]);
            for ((pair, &left), &right) in row.chunks_exact_mut(2).zip(left).zip(right) {
                pair.copy_from_slice(&[left, right]);
            }
        }
    }
}
