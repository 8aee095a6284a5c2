//! What the network is told beside text and samples: the time, and what joins it.

use lowtide_kernels::Activation;

use super::config::{AddedConfig, Config, Sinusoids};
use super::{Added, Condition};
use crate::device::Function;
use crate::layers::{Around, Conv2d, Linear, Strip};
use crate::tensor::{Compute, Tensor};
use crate::weights::Weights;
use crate::{Error, Result, ops};

/// The longest period of the sinusoids.
const PERIOD_MAX: f32 = 10_000.0;

/// What a guidance scale is multiplied by before it becomes sinusoids.
const GUIDANCE_SCALE: f32 = 1000.0;

/// Two linear layers with SiLU between.
struct Network<'w> {
    linear_1: Linear<'w>,
    linear_2: Linear<'w>,
}

impl<'w> Network<'w> {
    fn load(w: &Weights<'w>, dim_in: usize, dim_out: usize) -> Result<Network<'w>> {
        Ok(Network {
            linear_1: w.linear(dim_in, dim_out, "linear_1")?,
            linear_2: w.linear(dim_out, dim_out, "linear_2")?,
        })
    }

    fn forward(&self, compute: Compute, x: &Tensor) -> Result<Tensor> {
        let hidden = self
            .linear_1
            .forward_activated(compute, x, Activation::Silu)?;
        self.linear_2.forward(compute, &hidden)
    }
}

/// The layers before the first residual block.
pub(super) struct Embedders<'w> {
    conv_in: Conv2d<'w>,
    time: Network<'w>,
    guidance: Option<Linear<'w>>,
    added: Option<Network<'w>>,
}

impl<'w> Embedders<'w> {
    pub(super) fn load(w: &Weights<'w>, config: &Config) -> Result<Embedders<'w>> {
        let (channels, dim) = (config.channels(0), config.time_dim);
        let time = w.pp("time_embedding");
        let guidance = |width| time.linear_no_bias(width, channels, "cond_proj");
        let added =
            |added: AddedConfig| Network::load(&w.pp("add_embedding"), added.input_dim, dim);
        let (kernel, _) = config.kernels;
        Ok(Embedders {
            conv_in: w.conv2d(config.in_channels, channels, kernel, "conv_in")?,
            time: Network::load(&time, channels, dim)?,
            guidance: config.time_cond_proj_dim.map(guidance).transpose()?,
            added: config.added.map(added).transpose()?,
        })
    }

    pub(super) fn sample(&self, compute: Compute, x: &Strip) -> Result<Strip> {
        self.conv_in
            .forward(compute, x, Around::default(), 0..x.height, None)
    }

    /// SiLU of the embedding of `timestep` with what joins it, a row for each of `told`: (E, time_dim).
    pub(super) fn embeddings(
        &self,
        compute: Compute,
        config: &Config,
        timestep: f32,
        told: &[Told<'_>],
    ) -> Result<Tensor> {
        let channels = config.channels(0);
        let row = sinusoids(timestep, channels, config.sinusoids);
        let mut features = Tensor::from_slice(&[told.len(), channels], &row.repeat(told.len()))?;
        if let Some((layer, width)) = self.guidance.as_ref().zip(config.time_cond_proj_dim) {
            for (i, told) in told.iter().enumerate() {
                let Some(scale) = told.guidance else { continue };
                let scale = Tensor::from_slice(&[1, width], &guidance_features(scale, width))?;
                let projected = layer.forward(compute, &scale)?;
                features.part_mut(i..i + 1).add(projected.all())?;
            }
        }
        let mut embeddings = self.time.forward(compute, &features)?;
        if let Some((network, added)) = self.added.as_ref().zip(config.added) {
            let mut rows = vec![0.0; told.len() * added.input_dim];
            for (told, row) in told.iter().zip(rows.chunks_exact_mut(added.input_dim)) {
                told.features(added, config.sinusoids, row)?;
            }
            let rows = Tensor::from_slice(&[told.len(), added.input_dim], &rows)?;
            let joined = network.forward(compute, &rows)?;
            embeddings.all_mut().add(joined.all())?;
        }
        // Every use of it begins with this.
        ops::apply(Function::Act(Activation::Silu), embeddings.values_mut())?;
        Ok(embeddings)
    }
}

/// What one sequence's time embedding depends on beside the time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Told<'a> {
    added: Option<Added<'a>>,
    guidance: Option<f32>,
}

impl<'a> Told<'a> {
    pub(super) fn of(condition: &Condition<'a>) -> Told<'a> {
        Told {
            added: condition.added,
            guidance: condition.guidance,
        }
    }

    /// Pooled text, then the sinusoids of each size.
    fn features(&self, config: AddedConfig, how: Sinusoids, row: &mut [f32]) -> Result<()> {
        let (pooled, ids) = self
            .added
            .map_or((&[][..], &[][..]), |added| (added.pooled, added.time_ids));
        if pooled.len() + ids.len() * config.time_dim != row.len() {
            return Err(Error::Shape {
                what: "pooled text and sizes",
                expected: vec![row.len()],
                found: vec![pooled.len(), ids.len(), config.time_dim],
            });
        }
        let (text, sizes) = row.split_at_mut(pooled.len());
        text.copy_from_slice(pooled);
        for (id, to) in ids.iter().zip(sizes.chunks_exact_mut(config.time_dim)) {
            to.copy_from_slice(&sinusoids(*id, config.time_dim, how));
        }
        Ok(())
    }
}

/// Which of the distinct things told each sequence is told.
pub(super) fn distinct<'a>(
    sequences: impl Iterator<Item = Told<'a>>,
) -> (Vec<Told<'a>>, Vec<usize>) {
    let mut known: Vec<Told<'a>> = Vec::new();
    let mut which = Vec::new();
    for told in sequences {
        let at = known.iter().position(|other| *other == told);
        which.push(at.unwrap_or_else(|| {
            known.push(told);
            known.len() - 1
        }));
    }
    (known, which)
}

/// Sines and cosines of `value` at `width / 2` frequencies; angles are rounded to f32 as the reference rounds them.
fn sinusoids(value: f32, width: usize, how: Sinusoids) -> Vec<f32> {
    let half = width / 2;
    let log = -(f64::from(PERIOD_MAX).ln() as f32);
    let frequency = |i: usize| exp(log * i as f32 / (half as f32 - how.shift));
    angles(width, how.flip, |i| value * frequency(i))
}

/// What a distilled model is told of a guidance scale.
fn guidance_features(scale: f32, width: usize) -> Vec<f32> {
    let half = width / 2;
    let log = f64::from(PERIOD_MAX).ln() as f32 / (half as f32 - 1.0);
    let value = (scale - 1.0) * GUIDANCE_SCALE;
    angles(width, false, |i| value * exp(i as f32 * -log))
}

/// e^x, correctly rounded.
fn exp(x: f32) -> f32 {
    f64::from(x).exp() as f32
}

/// Sines then cosines, or the other way round; a zero where `width` is odd.
fn angles(width: usize, cosines_first: bool, angle: impl Fn(usize) -> f32) -> Vec<f32> {
    let half = width / 2;
    let mut row = vec![0.0; width];
    for i in 0..half {
        let (sin, cos) = f64::from(angle(i)).sin_cos();
        let (first, second) = if cosines_first {
            (cos, sin)
        } else {
            (sin, cos)
        };
        row[i] = first as f32;
        row[half + i] = second as f32;
    }
    row
}
