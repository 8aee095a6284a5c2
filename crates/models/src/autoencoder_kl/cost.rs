//! What the modes take, from rehearsals.

use std::rc::Rc;

use lowtide_core::{Formula, Ladder, Mode, Term, Vars};

use super::Config;
use super::map::{Ledger, Machine};
use crate::Result;

/// The variable with the rows of a strip.
pub(super) const STRIP_ROWS: &str = "strip_rows";

/// The variable with the latent rows and columns of a tile.
pub(super) const TILE: &str = "tile";

/// Strips are not made lower than this: the rows they need beyond their own would outgrow them.
const STRIP_ROWS_MIN: usize = 16;

/// Strips are a multiple of this many rows high.
const STRIP_ROWS_STEP: usize = 8;

/// Latents of the smallest tile: below, its norms are those of another picture.
const TILE_MIN: usize = 32;

/// Tiles are a multiple of this many latents wide, so that the overlap is exactly a quarter.
const TILE_STEP: usize = 4;

/// How many times the bytes of a rung its formula may name.
const EXCESS_MAX: f64 = 1.08;

/// What one way through a network takes.
#[derive(Clone, Copy, Debug)]
struct Cost {
    bytes: f64,
    flops: f64,
}

/// The ways through a network, in one direction or the other.
pub(super) struct Ways<'c, M> {
    pub(super) config: &'c Config,
    /// Rows and columns of the latents.
    pub(super) latent: (usize, usize),
    pub(super) whole: M,
    /// Strips of so many rows, from what takes the most memory to what takes the least.
    pub(super) strips: Vec<fn(usize) -> M>,
    /// Tiles of so many latents.
    pub(super) tiles: fn(usize) -> M,
    pub(super) name: fn(&M) -> &'static str,
    /// How many blocks there are.
    pub(super) blocks: usize,
    /// Goes through, with shapes alone.
    pub(super) rehearse: fn(Machine, &Config, (usize, usize), &M) -> Result<()>,
}

impl<M> Ways<'_, M> {
    /// They as modes of a phase, best liked first.
    pub(super) fn modes(&self) -> Vec<Mode> {
        let (height, width) = self.latent;
        let mut modes = vec![self.fixed(&self.whole)];
        let rows = height * self.config.scale();
        if rows >= 2 * STRIP_ROWS_MIN {
            let full = (rows / 2).next_multiple_of(STRIP_ROWS_STEP);
            modes.extend(self.strips.iter().map(|&strips| {
                let (min, step) = (STRIP_ROWS_MIN as u64, STRIP_ROWS_STEP as u64);
                self.laddered(Ladder::new(STRIP_ROWS, full as u64, min, step), strips)
            }));
        }
        let side = height.max(width);
        if side > TILE_MIN {
            let full = (side / 2).next_multiple_of(TILE_STEP).max(TILE_MIN);
            let ladder = Ladder::new(TILE, full as u64, TILE_MIN as u64, TILE_STEP as u64);
            modes.push(Mode {
                exact: false,
                // Every tile visits all blocks, from the first on.
                resident_blocks: (0..self.blocks).collect(),
                ..self.laddered(ladder, self.tiles)
            });
        }
        modes
    }

    fn cost(&self, mode: &M) -> Cost {
        let ledger = Rc::new(Ledger::default());
        let machine = Machine::Rehearsal(Rc::clone(&ledger));
        (self.rehearse)(machine, self.config, self.latent, mode)
            .expect("a rehearsal asks for neither memory nor weights");
        Cost {
            bytes: ledger.peak() as f64,
            flops: ledger.flops(),
        }
    }

    /// A mode without variables.
    fn fixed(&self, mode: &M) -> Mode {
        let cost = self.cost(mode);
        Mode {
            name: (self.name)(mode).to_owned(),
            exact: true,
            activation: Formula::constant(cost.bytes),
            flops: Formula::constant(cost.flops),
            ladders: Vec::new(),
            resident_blocks: Vec::new(),
        }
    }

    /// A mode with one variable: rehearsed for each of its values.
    ///
    /// Strips that touch an edge have no halo there, so that the largest ones need less than their rows promise. Such
    /// values are left out where the formula would else say too much of the small ones.
    fn laddered(&self, mut ladder: Ladder, mode: fn(usize) -> M) -> Mode {
        let mut rehearsed: Vec<(u64, Cost)> = ladder
            .values()
            .into_iter()
            .map(|value| (value, self.cost(&mode(value as usize))))
            .collect();
        loop {
            let through = |part: fn(&Cost) -> f64| {
                let points = rehearsed.iter();
                through(
                    &points
                        .map(|(x, y)| (*x as f64, part(y)))
                        .collect::<Vec<_>>(),
                    &ladder.var,
                )
            };
            let activation = through(|cost| cost.bytes);
            let exact = rehearsed.iter().all(|&(value, cost)| {
                let vars: Vars = [(ladder.var.clone(), value)].into_iter().collect();
                let bytes = activation.eval(&vars).expect("the only variable is set");
                bytes <= EXCESS_MAX * cost.bytes
            });
            if exact || rehearsed.len() == 1 {
                return Mode {
                    name: (self.name)(&mode(1)).to_owned(),
                    exact: true,
                    activation,
                    flops: through(|cost| cost.flops),
                    resident_blocks: Vec::new(),
                    ladders: vec![ladder],
                };
            }
            rehearsed.remove(0);
            ladder.full = rehearsed[0].0;
        }
    }
}

/// The largest of the lines that join neighbouring points: exact in the points of a convex curve, and nowhere below any
/// point.
///
/// Bytes (the largest of lines) and operations (what strips share, and halos, of which there are as many as strips) are
/// such curves, as good as exactly.
fn through(points: &[(f64, f64)], var: &lowtide_core::VarName) -> Formula {
    if let [(_, only)] = points {
        return Formula::constant(*only);
    }
    let line = |pair: &[(f64, f64)]| {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        let slope = (y1 - y0) / (x1 - x0);
        vec![
            Term::new(slope, std::slice::from_ref(var)),
            Term::new::<lowtide_core::VarName>(y0 - slope * x0, &[]),
        ]
    };
    Formula {
        alternatives: points.windows(2).map(line).collect(),
    }
}
