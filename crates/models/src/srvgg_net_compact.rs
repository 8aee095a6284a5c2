//! SRVGGNetCompact, the small networks of Real-ESRGAN: a plain stack of convolutions on the picture's own grid, whose
//! result is added to the picture enlarged by its nearest pixels.
//!
//! f features, n convolutions between the first and the last, s the factor.
//!
//! # Source
//! <https://github.com/xinntao/Real-ESRGAN/blob/master/realesrgan/archs/srvgg_arch.py>

use std::ops::Range;

use lowtide_core::ComponentLayout;
use lowtide_kernels::MapRows;
use serde_json::Value;

use crate::config::ConfigReader;
use crate::device::{Place, Vector};
use crate::layers::Conv2d;
use crate::ops::{After, MapSlice};
use crate::tensor::{Compute, Tensor};
use crate::weights::{Headers, record};
use crate::{Result, Weights};

/// The slope of the leaky kind.
const SLOPE: f32 = 0.1;

/// What becomes of negative features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// They are multiplied by a learned slope, one a channel.
    Prelu,
    /// They are multiplied by a tenth.
    Leaky,
    /// They are zero.
    Relu,
}

/// Shapes of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// f.
    pub features: usize,
    /// n.
    pub convs: usize,
    /// s.
    pub scale: usize,
    /// After all but the last.
    pub act: Act,
}

impl Config {
    /// Reads a configuration as the checkpoint's shapes gave it.
    ///
    /// # Errors
    /// [`crate::Error::Config`].
    pub fn read(value: &Value) -> Result<Config> {
        let reader = ConfigReader::new("upscaler", value);
        let act = match reader.get("act_type").and_then(Value::as_str) {
            Some("prelu") => Act::Prelu,
            Some("leakyrelu") => Act::Leaky,
            Some("relu") => Act::Relu,
            _ => return Err(reader.error("act_type", "is not prelu, leakyrelu or relu")),
        };
        Ok(Config {
            features: reader.size("num_feat", None, 1..=1024)?,
            convs: reader.size("num_conv", None, 1..=256)?,
            scale: reader.size("upscale", None, 1..=8)?,
            act,
        })
    }

    fn channels_out(&self) -> usize {
        3 * self.scale * self.scale
    }

    /// Pixels around one that its results depend on: one a convolution.
    pub(crate) fn reach(&self) -> usize {
        self.convs + 2
    }

    /// Bytes of the maps that are there while the window goes through, of h x w pixels.
    pub(crate) fn trunk_bytes(&self, (h, w): (usize, usize)) -> u64 {
        4 * ((2 * self.features + 3) * h * w) as u64
    }

    /// Bytes that finishing `rows` rows takes: what the last convolution gives, and the same put where it belongs.
    pub(crate) fn tail_bytes(&self, (h, w): (usize, usize), rows: usize) -> u64 {
        4 * (2 * self.channels_out() * rows.min(h) * w) as u64
    }

    /// Operations for h x w pixels.
    pub(crate) fn flops(&self, (h, w): (usize, usize)) -> f64 {
        let f = self.features;
        let weights = 9 * (3 * f + self.convs * f * f + f * self.channels_out());
        2.0 * weights as f64 * (h * w) as f64
    }

    /// One block: it is small.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape or type.
    pub(crate) fn layout(&self, headers: &dyn Headers, name: &str) -> Result<ComponentLayout> {
        let all = record(headers, "body", |w| {
            for index in 0..=self.convs {
                self.conv(w, index)?;
                self.slopes(w, index)?;
            }
            self.conv(w, self.convs + 1).map(drop)
        })?;
        Ok(ComponentLayout {
            name: name.to_owned(),
            tables: Vec::new(),
            blocks: vec![all],
        })
    }

    fn conv<'w>(&self, weights: &Weights<'w>, index: usize) -> Result<Conv2d<'w>> {
        let from = if index == 0 { 3 } else { self.features };
        let to = if index == self.convs + 1 {
            self.channels_out()
        } else {
            self.features
        };
        weights
            .pp("body")
            .conv2d(from, to, 3, &(2 * index).to_string())
    }

    /// The learned slopes after a convolution; none where they are not learned.
    fn slopes(&self, weights: &Weights<'_>, index: usize) -> Result<Vector> {
        match self.act {
            Act::Prelu => {
                let scope = weights.pp("body").pp(2 * index + 1);
                scope.vector("weight", &[self.features])
            }
            Act::Leaky | Act::Relu => Ok(Vector::from(Vec::new())),
        }
    }
}

/// A window on its way through the network.
pub(crate) struct State {
    size: (usize, usize),
    /// (3, h, w).
    window: Tensor,
    /// The features so far, and room for the next (f, h, w).
    maps: [Tensor; 2],
}

impl Config {
    /// The first features of a window (3, h, w).
    ///
    /// # Errors
    /// When memory is refused.
    pub(crate) fn begin(
        &self,
        compute: Compute,
        weights: &Weights<'_>,
        window: Tensor,
    ) -> Result<State> {
        let (_, h, w) = window.dims3()?;
        let map = || Tensor::new(&[self.features, h, w]);
        let mut state = State {
            size: (h, w),
            maps: [map()?, map()?],
            window,
        };
        // The window itself stays on the host, where the result is put together.
        let window = state.window.here()?;
        let from = MapSlice::whole(window.values(), h, w);
        self.layer(compute, weights, 0, from, &mut state.maps[0])?;
        drop(window);
        Ok(state)
    }

    /// Convolution `index` of those between the first and the last, from 0.
    ///
    /// # Errors
    /// As [`Config::begin`].
    pub(crate) fn advance(
        &self,
        compute: Compute,
        weights: &Weights<'_>,
        index: usize,
        state: &mut State,
    ) -> Result<()> {
        let (h, w) = state.size;
        let [now, next] = &mut state.maps;
        let from = MapSlice::whole(now.values(), h, w);
        self.layer(compute, weights, index + 1, from, next)?;
        state.maps.swap(0, 1);
        Ok(())
    }

    fn layer(
        &self,
        compute: Compute,
        weights: &Weights<'_>,
        index: usize,
        from: MapSlice<'_>,
        to: &mut Tensor,
    ) -> Result<()> {
        let slopes = self.slopes(weights, index)?;
        let finish = match self.act {
            Act::Prelu => After::Slopes(slopes.values()),
            Act::Leaky => After::Leaky(SLOPE),
            Act::Relu => After::Leaky(0.0),
        };
        let rows = from.rows;
        let conv = self.conv(weights, index)?;
        let to = (to.values_mut(), rows);
        conv.apply(compute, (from, false), finish, None, to)
    }

    /// `rows` of a window that went through all convolutions but the last, enlarged.
    ///
    /// # Shapes
    /// (3, rows s, w s).
    ///
    /// # Errors
    /// As [`Config::begin`].
    pub(crate) fn finish(
        &self,
        compute: Compute,
        weights: &Weights<'_>,
        state: &State,
        rows: Range<usize>,
    ) -> Result<Tensor> {
        let (h, w) = state.size;
        let conv = self.conv(weights, self.convs + 1)?;
        let mut small = Tensor::new(&[self.channels_out(), rows.len(), w])?;
        let part = MapRows {
            total: h,
            first: rows.start,
            count: rows.len(),
        };
        let from = MapSlice::whole(state.maps[0].values(), h, w);
        let to = (small.values_mut(), part);
        conv.apply(compute, (from, false), After::Plain, None, to)?;
        let small = small.into_host()?;
        let _host = Place::Host.enter();
        let s = self.scale;
        let mut out = Tensor::new(&[3, rows.len() * s, w * s])?;
        let (small, window) = (small.data(), state.window.data());
        let plane = rows.len() * w;
        for (line, to) in out.data_mut().chunks_exact_mut(w * s).enumerate() {
            let (channel, y) = (line / (rows.len() * s), line % (rows.len() * s));
            let base = &window[channel * h * w + (rows.start + y / s) * w..][..w];
            for dx in 0..s {
                let at = ((channel * s + y % s) * s + dx) * plane + (y / s) * w;
                let values = small[at..at + w].iter().zip(base);
                for (to, (value, base)) in to[dx..].iter_mut().step_by(s).zip(values) {
                    *to = value + base;
                }
            }
        }
        Ok(out)
    }
}
