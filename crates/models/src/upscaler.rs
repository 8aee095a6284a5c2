//! Networks that enlarge pictures, a window at a time: a whole picture is one window, or it is cut into several that
//! overlap.
//!
//! A window goes through in steps, each of which needs one block of weights: [`Network::begin`], [`Network::advance`] for
//! each of [`Network::steps`], and [`Network::finish`] for rows of the result, as many at a time as there is room for.
//! Every result depends on [`Network::reach`] pixels around its own, so windows that overlap by as much give the bytes of
//! the whole picture.

use std::ops::Range;

use lowtide_core::ComponentLayout;
use serde_json::Value;

use crate::device::Place;
use crate::tensor::{Compute, Tensor};
use crate::weights::Headers;
use crate::{Error, Result, Weights, rrdbnet, srvgg_net_compact};

/// What the strips of a result are meant to fit into, in bytes: caches that threads share.
const STRIP_BYTES: usize = 16 << 20;
/// The fewest rows of a strip: each needs some beside its own.
const STRIP_ROWS_MIN: usize = 4;

/// A network and its shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// RRDBNet.
    Dense(rrdbnet::Config),
    /// SRVGGNetCompact.
    Compact(srvgg_net_compact::Config),
}

/// A window on its way.
pub struct State(Way);

enum Way {
    Dense(rrdbnet::State),
    Compact(srvgg_net_compact::State),
}

impl Network {
    /// The classes there are.
    pub const CLASSES: [&str; 2] = ["RRDBNet", "SRVGGNetCompact"];

    /// The network of a class.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn read(class: &str, config: &Value) -> Result<Network> {
        match class {
            "RRDBNet" => Ok(Network::Dense(rrdbnet::Config::read(config)?)),
            "SRVGGNetCompact" => Ok(Network::Compact(srvgg_net_compact::Config::read(config)?)),
            other => Err(Error::config(
                "upscaler",
                "_class_name",
                format!("is {other}, not one of {}", Network::CLASSES.join(", ")),
            )),
        }
    }

    /// Pixels a side of the result for each of the picture.
    pub fn scale(&self) -> usize {
        match self {
            Network::Dense(config) => (1 << config.doublings) / config.unshuffle,
            Network::Compact(config) => config.scale,
        }
    }

    /// What the sides of a window must be divisible by.
    pub fn multiple(&self) -> usize {
        match self {
            Network::Dense(config) => config.unshuffle,
            Network::Compact(_) => 1,
        }
    }

    /// Pixels around one that its results depend on; a multiple of [`Network::multiple`].
    pub fn reach(&self) -> usize {
        match self {
            Network::Dense(config) => config.reach() * config.unshuffle,
            Network::Compact(config) => config.reach(),
        }
    }

    /// The blocks of its weights.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape or type.
    pub fn layout(&self, headers: &dyn Headers, name: &str) -> Result<ComponentLayout> {
        match self {
            Network::Dense(config) => config.layout(headers, name),
            Network::Compact(config) => config.layout(headers, name),
        }
    }

    /// How often [`Network::advance`] is called.
    pub fn steps(&self) -> usize {
        match self {
            Network::Dense(config) => config.blocks + 1,
            Network::Compact(config) => config.convs,
        }
    }

    /// The block that [`Network::advance`] needs for this step.
    pub fn block_of(&self, step: usize) -> usize {
        match self {
            Network::Dense(_) => step + 1,
            Network::Compact(_) => 0,
        }
    }

    /// The block that [`Network::finish`] needs.
    pub fn last_block(&self) -> usize {
        match self {
            Network::Dense(config) => config.blocks + 1,
            Network::Compact(_) => 0,
        }
    }

    /// Height and width of the grid for a window.
    fn grid(&self, (height, width): (usize, usize)) -> (usize, usize) {
        let cell = self.multiple();
        (height / cell, width / cell)
    }

    /// How many rows of a window of this width are best finished at a time; a multiple of [`Network::multiple`].
    pub fn strip_rows(&self, width: usize) -> usize {
        let cells = width / self.multiple();
        let row = match self {
            Network::Dense(config) => config.tail_bytes((usize::MAX >> 8, cells), 1) as usize / 2,
            Network::Compact(config) => config.tail_bytes((1, cells), 1) as usize,
        };
        (STRIP_BYTES / row.max(1)).max(STRIP_ROWS_MIN) * self.multiple()
    }

    /// Bytes beside the weights at the worst moment of a window of this height and width, and its operations.
    pub fn cost(&self, window: (usize, usize)) -> (u64, f64) {
        let grid = self.grid(window);
        let rows = self.strip_rows(window.1) / self.multiple();
        let input = 4 * 3 * (window.0 * window.1) as u64;
        let (trunk, tail, flops) = match self {
            Network::Dense(config) => (
                config.trunk_bytes(grid),
                config.tail_bytes(grid, rows),
                config.flops(grid),
            ),
            Network::Compact(config) => (
                config.trunk_bytes(grid),
                config.tail_bytes(grid, rows),
                config.flops(grid),
            ),
        };
        // The window itself, and where it is turned, its copy.
        let input = input * if self.multiple() > 1 { 2 } else { 1 };
        (trunk + tail.max(input), flops)
    }

    /// Takes a window of the host; `weights` are those of block 0, and what computes it is what they lie on.
    ///
    /// # Shapes
    /// (3, height, width), 0 to 1; both sides multiples of [`Network::multiple`].
    ///
    /// # Errors
    /// When memory is refused or the window has another shape.
    pub fn begin(&self, compute: Compute, weights: &Weights<'_>, window: Tensor) -> Result<State> {
        let (channels, height, width) = window.dims3()?;
        let cell = self.multiple();
        if channels != 3 || height % cell + width % cell > 0 || height * width == 0 {
            return Err(Error::Shape {
                what: "a window of colours",
                expected: vec![3, cell, cell],
                found: window.shape().to_vec(),
            });
        }
        let _there = weights.place().enter();
        Ok(State(match self {
            Network::Dense(config) => {
                let window = match cell {
                    1 => window,
                    cell => unshuffled(&window, cell)?,
                }
                .brought_here()?;
                Way::Dense(config.begin(compute, weights, &window)?)
            }
            Network::Compact(config) => Way::Compact(config.begin(compute, weights, window)?),
        }))
    }

    /// One step; `weights` are those of [`Network::block_of`].
    ///
    /// # Errors
    /// When memory is refused. The window may then be half changed and is to be begun anew.
    pub fn advance(
        &self,
        compute: Compute,
        weights: &Weights<'_>,
        step: usize,
        state: &mut State,
    ) -> Result<()> {
        let _there = weights.place().enter();
        match (self, &mut state.0) {
            (Network::Dense(config), Way::Dense(state)) => {
                config.advance(compute, weights, step, state)
            }
            (Network::Compact(config), Way::Compact(state)) => {
                config.advance(compute, weights, step, state)
            }
            _ => Err(another()),
        }
    }

    /// `rows` of the window, enlarged, on the host; `weights` are those of [`Network::last_block`].
    ///
    /// # Shapes
    /// (3, rows * scale, width * scale); about 0 to 1. `rows` begin and end at multiples of [`Network::multiple`].
    ///
    /// # Errors
    /// When memory is refused.
    pub fn finish(
        &self,
        compute: Compute,
        weights: &Weights<'_>,
        state: &State,
        rows: Range<usize>,
    ) -> Result<Tensor> {
        let _there = weights.place().enter();
        match (self, &state.0) {
            (Network::Dense(config), Way::Dense(state)) => {
                let cell = self.multiple();
                let rows = rows.start / cell..rows.end / cell;
                config.finish(compute, weights, state, rows)
            }
            (Network::Compact(config), Way::Compact(state)) => {
                config.finish(compute, weights, state, rows)
            }
            _ => Err(another()),
        }
    }
}

fn another() -> Error {
    Error::Shape {
        what: "a window of this network",
        expected: Vec::new(),
        found: Vec::new(),
    }
}

/// Pixels put beside each other as channels: (3, h c, w c) to (3 c c, h, w).
fn unshuffled(window: &Tensor, cell: usize) -> Result<Tensor> {
    let (channels, height, width) = window.dims3()?;
    let (h, w) = (height / cell, width / cell);
    let _host = Place::Host.enter();
    let mut out = Tensor::new(&[channels * cell * cell, h, w])?;
    let from = window.data();
    for (line, to) in out.data_mut().chunks_exact_mut(w).enumerate() {
        let (channel, y) = (line / h, line % h);
        let (colour, dy, dx) = (
            channel / (cell * cell),
            channel / cell % cell,
            channel % cell,
        );
        let row = &from[(colour * height + y * cell + dy) * width..][..width];
        for (to, &value) in to.iter_mut().zip(row[dx..].iter().step_by(cell)) {
            *to = value;
        }
    }
    Ok(out)
}
