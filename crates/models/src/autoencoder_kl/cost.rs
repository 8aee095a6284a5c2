//! What the modes take, from rehearsals.

use std::rc::Rc;

use lowtide_core::{Formula, Ladder, Mode, Term};

use super::map::{Ledger, Machine};
use super::network::Block;
use super::{Blocks, Config, DecodeMode, Decoder, Latents};

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

/// What one way to decode takes.
#[derive(Clone, Copy, Debug)]
struct Cost {
    bytes: f64,
    flops: f64,
}

/// Decodes shapes.
fn rehearse(config: &Config, height: usize, width: usize, mode: &DecodeMode) -> Cost {
    let ledger = Rc::new(Ledger::default());
    let decoder = Decoder {
        machine: Machine::Rehearsal(Rc::clone(&ledger)),
        config,
    };
    let latents = Latents {
        height,
        width,
        values: None,
    };
    let decoded = decoder.decode(&mut Blocks::Shapes, &latents, mode);
    decoded.expect("a rehearsal asks for neither memory nor weights");
    Cost {
        bytes: ledger.peak() as f64,
        flops: ledger.flops(),
    }
}

/// The modes for latents of `height` x `width`, best liked first.
pub(super) fn modes(config: &Config, height: usize, width: usize) -> Vec<Mode> {
    let whole = rehearse(config, height, width, &DecodeMode::Whole);
    let mut modes = vec![Mode {
        name: DecodeMode::Whole.name().to_owned(),
        exact: true,
        activation: Formula::constant(whole.bytes),
        flops: Formula::constant(whole.flops),
        ladders: Vec::new(),
        resident_blocks: Vec::new(),
    }];
    let rows = height * config.scale();
    if rows >= 2 * STRIP_ROWS_MIN {
        let ladder = || {
            let full = (rows / 2).next_multiple_of(STRIP_ROWS_STEP);
            Ladder::new(
                STRIP_ROWS,
                full as u64,
                STRIP_ROWS_MIN as u64,
                STRIP_ROWS_STEP as u64,
            )
        };
        let rehearse = |mode: &DecodeMode| rehearse(config, height, width, mode);
        modes.push(laddered(ladder(), rehearse, |rows| {
            DecodeMode::ResnetStrips { rows }
        }));
        if config.block_out_channels.len() > 1 {
            modes.push(laddered(ladder(), rehearse, |rows| {
                DecodeMode::LastStageStrips { rows }
            }));
        }
        modes.push(laddered(ladder(), rehearse, |rows| DecodeMode::Strips {
            rows,
        }));
    }
    let side = height.max(width);
    if side > TILE_MIN {
        let full = (side / 2).next_multiple_of(TILE_STEP).max(TILE_MIN);
        let ladder = Ladder::new(TILE, full as u64, TILE_MIN as u64, TILE_STEP as u64);
        let tiles = laddered(
            ladder,
            |mode| rehearse(config, height, width, mode),
            DecodeMode::tiles,
        );
        // Every tile visits all blocks, from the first on.
        let resident_blocks = (0..Block::all(config).len()).collect();
        modes.push(Mode {
            exact: false,
            resident_blocks,
            ..tiles
        });
    }
    modes
}

/// A mode with one variable: rehearsed for each of its values.
fn laddered(
    ladder: Ladder,
    rehearse: impl Fn(&DecodeMode) -> Cost,
    mode: impl Fn(usize) -> DecodeMode,
) -> Mode {
    let rehearsed: Vec<(u64, Cost)> = ladder
        .values()
        .into_iter()
        .map(|value| (value, rehearse(&mode(value as usize))))
        .collect();
    let through = |part: fn(&Cost) -> f64| {
        let points: Vec<(f64, f64)> = rehearsed
            .iter()
            .map(|(value, cost)| (*value as f64, part(cost)))
            .collect();
        through(&points, &ladder.var)
    };
    Mode {
        name: mode(1).name().to_owned(),
        exact: true,
        activation: through(|cost| cost.bytes),
        flops: through(|cost| cost.flops),
        resident_blocks: Vec::new(),
        ladders: vec![ladder],
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
