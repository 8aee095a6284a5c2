//! Rows of a chain of stages from the rows they need, so that maps between stages never exist as a whole.
//!
//! A group norm needs the sums of its whole map before a single row can go on. So the chain is gone through once a norm,
//! strip by strip from the top, up to that norm, and once more for the result. The sums are added row by row whatever
//! the strips, and a convolution's result does not depend on which rows were asked for: the bytes are those of the
//! whole map.

use std::ops::{Deref, Range};

use super::map::{Finished, Machine, Map, Sums};
use super::network::{Conv, Norm, Resnet, Scale, Stage};
use crate::Result;

/// Rows a residual block needs beyond those asked for: one a convolution.
const RESNET_HALO: usize = 2;

/// Which maps of a block in strips are kept whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// What every resnet leaves, and every halving.
    Resnets,
    /// As [`Kept::Resnets`] before the last enlargement; from there on none.
    BeforeLastStage,
    /// None up to the first halving; behind it as [`Kept::Resnets`].
    BehindFirstStage,
    /// None.
    Nothing,
}

/// How stages are gone through.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// Map after map.
    Whole,
    /// Strips of so many rows.
    Strips { rows: usize, kept: Kept },
}

/// Applies `stages` one after the other.
pub(super) fn apply(machine: &Machine, stages: &[Stage<'_>], x: Map, pace: Pace) -> Result<Map> {
    match pace {
        Pace::Whole => stages
            .iter()
            .try_fold(x, |x, stage| whole(machine, stage, x)),
        Pace::Strips { rows, kept } => segments(stages, kept)
            .into_iter()
            .try_fold(x, |x, segment| in_strips(machine, segment, x, rows)),
    }
}

/// Cuts `stages` behind every stage whose map is kept.
fn segments<'m, 'w>(stages: &'m [Stage<'w>], kept: Kept) -> Vec<&'m [Stage<'w>]> {
    let scales = |scale: Scale| move |stage: &Stage<'_>| matches!(stage, Stage::Conv(conv) if conv.scale == scale);
    let cut = match kept {
        Kept::Resnets => 0..stages.len(),
        Kept::BeforeLastStage => 0..stages.iter().rposition(scales(Scale::Double)).unwrap_or(0),
        Kept::BehindFirstStage => {
            let halving = stages.iter().position(scales(Scale::Halve));
            halving.map_or(0, |at| at + 1)..stages.len()
        }
        Kept::Nothing => 0..0,
    };
    let keeps =
        |stage: &Stage<'_>| matches!(stage, Stage::Resnet(_)) || scales(Scale::Halve)(stage);
    let mut segments = vec![&stages[..cut.start]];
    segments.extend(stages[cut.clone()].split_inclusive(keeps));
    segments.push(&stages[cut.end..]);
    segments.retain(|segment| !segment.is_empty());
    segments
}

/// One stage over a whole map.
fn whole(machine: &Machine, stage: &Stage<'_>, x: Map) -> Result<Map> {
    match stage {
        Stage::Conv(conv) => machine.conv(conv, &x, None, 0..conv.size_out(x.height), None),
        Stage::Resnet(resnet) => whole_resnet(machine, resnet, x),
        Stage::Out { norm, conv } => {
            let norm = machine.norm(norm, &x)?;
            machine.conv(conv, &x, Some(&norm), 0..x.height, None)
        }
    }
}

/// A residual block over a whole map.
///
/// # Memory
/// Three maps: x, what lies between the convolutions, and the shortcut or the result.
fn whole_resnet(machine: &Machine, resnet: &Resnet<'_>, x: Map) -> Result<Map> {
    let rows = 0..x.height;
    let norm1 = machine.norm(&resnet.norm1, &x)?;
    let hidden = machine.conv(&resnet.conv1, &x, Some(&norm1), rows.clone(), None)?;
    let residual = match &resnet.conv_shortcut {
        Some(shortcut) => {
            let residual = machine.conv(shortcut, &x, None, rows.clone(), None)?;
            drop(x);
            residual
        }
        None => x,
    };
    let norm2 = machine.norm(&resnet.norm2, &hidden)?;
    machine.conv(&resnet.conv2, &hidden, Some(&norm2), rows, Some(&residual))
}

/// One segment from a whole map to a whole map.
fn in_strips(machine: &Machine, segment: &[Stage<'_>], x: Map, rows: usize) -> Result<Map> {
    match segment {
        [Stage::Resnet(resnet)] if resnet.conv_shortcut.is_none() => {
            // Strips hold three times their rows, and the halos; from two thirds of the map on they save nothing.
            if 3 * (rows + RESNET_HALO) >= 2 * x.height {
                return whole_resnet(machine, resnet, x);
            }
            in_place(machine, segment, x, rows)
        }
        [stage @ Stage::Conv(_)] => whole(machine, stage, x),
        _ => {
            let mut chain = Chain::new(machine, segment);
            chain.gather(&x, rows)?;
            chain.emit(&x, rows)
        }
    }
}

/// A residual block without a shortcut: its result takes the place of its input, strip by strip.
///
/// # Memory
/// One map, and strips; the old rows above the next strip are kept aside.
fn in_place(machine: &Machine, resnet: &[Stage<'_>], mut x: Map, rows: usize) -> Result<Map> {
    let mut chain = Chain::new(machine, resnet);
    chain.gather(&x, rows)?;
    let mut above: Option<Map> = None;
    for strip in strips(x.height, rows) {
        let mut window = machine.crop(&x, widen(&strip, RESNET_HALO, x.height))?;
        if let Some(above) = above.take() {
            machine.copy_rows(&mut window, &above)?;
        }
        let next_above = strip.end.saturating_sub(RESNET_HALO)..strip.end;
        above = Some(machine.crop(&window, next_above)?);
        let done = chain.rows(Source::Owned(window), 1, strip)?;
        machine.copy_rows(&mut x, &done)?;
    }
    Ok(x)
}

/// A map that is at hand, or rows made for the purpose.
enum Source<'m> {
    Kept(&'m Map),
    Owned(Map),
}

impl Deref for Source<'_> {
    type Target = Map;

    fn deref(&self) -> &Map {
        match self {
            Source::Kept(map) => map,
            Source::Owned(map) => map,
        }
    }
}

/// Stages of which rows are computed when asked for.
struct Chain<'m, 'w> {
    machine: &'m Machine,
    stages: &'m [Stage<'w>],
    /// The norms of each stage, as far as they are known.
    norms: Vec<Vec<Finished>>,
}

impl<'m, 'w> Chain<'m, 'w> {
    fn new(machine: &'m Machine, stages: &'m [Stage<'w>]) -> Chain<'m, 'w> {
        Chain {
            machine,
            stages,
            norms: stages.iter().map(|_| Vec::new()).collect(),
        }
    }

    /// Finds the norms of all stages, in their order.
    fn gather(&mut self, base: &Map, rows: usize) -> Result<()> {
        for (index, stage) in self.stages.iter().enumerate() {
            match stage {
                Stage::Conv(_) => {}
                Stage::Resnet(resnet) => {
                    let norm1 = self.input_norm(base, index, &resnet.norm1, rows)?;
                    self.norms[index].push(norm1);
                    let (height, width) = self.size_after(base, index);
                    let mut sums = self.machine.sums(&resnet.norm2)?;
                    for strip in self.strips_after(base, index, rows) {
                        let x = self.source(Source::Kept(base), index, widen(&strip, 1, height))?;
                        let hidden = self.machine.conv(
                            &resnet.conv1,
                            &x,
                            self.norms[index].first(),
                            strip,
                            None,
                        )?;
                        self.machine.add_rows(&resnet.norm2, &hidden, &mut sums)?;
                    }
                    let norm2 = self.machine.finish(&resnet.norm2, &sums, height * width)?;
                    self.norms[index].push(norm2);
                }
                Stage::Out { norm, .. } => {
                    let norm = self.input_norm(base, index, norm, rows)?;
                    self.norms[index].push(norm);
                }
            }
        }
        Ok(())
    }

    /// The norm of what enters stage `index`.
    fn input_norm(&self, base: &Map, index: usize, norm: &Norm, rows: usize) -> Result<Finished> {
        if index == 0 {
            return self.machine.norm(norm, base);
        }
        let (height, width) = self.size_after(base, index);
        let mut sums: Sums = self.machine.sums(norm)?;
        for strip in self.strips_after(base, index, rows) {
            let x = self.rows(Source::Kept(base), index, strip)?;
            self.machine.add_rows(norm, &x, &mut sums)?;
        }
        self.machine.finish(norm, &sums, height * width)
    }

    /// The whole result, strip by strip.
    fn emit(&self, base: &Map, rows: usize) -> Result<Map> {
        let (height, width) = self.size_after(base, self.stages.len());
        let mut out = self
            .machine
            .empty(self.channels_out(base), height, width, 0..height)?;
        for strip in self.strips_after(base, self.stages.len(), rows) {
            let done = self.rows(Source::Kept(base), self.stages.len(), strip)?;
            self.machine.copy_rows(&mut out, &done)?;
        }
        Ok(out)
    }

    /// At least the rows `wanted` of what the first `count` stages make of `base`.
    fn source<'b>(
        &self,
        base: Source<'b>,
        count: usize,
        wanted: Range<usize>,
    ) -> Result<Source<'b>> {
        if count == 0 {
            Ok(base)
        } else {
            Ok(Source::Owned(self.rows(base, count, wanted)?))
        }
    }

    /// The rows `wanted` of what the first `count` stages make of `base`.
    fn rows(&self, base: Source<'_>, count: usize, wanted: Range<usize>) -> Result<Map> {
        let Some(index) = count.checked_sub(1) else {
            return self.machine.crop(&base, wanted);
        };
        let (height, _) = self.size_after(&base, index);
        let norms = &self.norms[index];
        match &self.stages[index] {
            Stage::Conv(conv) => {
                let x = self.source(base, index, conv.rows_in(&wanted, height))?;
                self.machine.conv(conv, &x, None, wanted, None)
            }
            Stage::Out { conv, .. } => {
                let x = self.source(base, index, conv.rows_in(&wanted, height))?;
                self.machine.conv(conv, &x, norms.first(), wanted, None)
            }
            Stage::Resnet(resnet) => {
                let x = self.source(base, index, widen(&wanted, RESNET_HALO, height))?;
                let hidden = self.machine.conv(
                    &resnet.conv1,
                    &x,
                    norms.first(),
                    widen(&wanted, 1, height),
                    None,
                )?;
                let residual = match &resnet.conv_shortcut {
                    Some(shortcut) => {
                        self.machine
                            .conv(shortcut, &x, None, wanted.clone(), None)?
                    }
                    None => self.machine.crop(&x, wanted.clone())?,
                };
                drop(x);
                self.machine.conv(
                    &resnet.conv2,
                    &hidden,
                    norms.get(1),
                    wanted,
                    Some(&residual),
                )
            }
        }
    }

    /// Height and width after the first `count` stages.
    fn size_after(&self, base: &Map, count: usize) -> (usize, usize) {
        let size = (base.height, base.width);
        self.convs(count).fold(size, |(height, width), conv| {
            (conv.size_out(height), conv.size_out(width))
        })
    }

    /// The bare convolutions among the first `count` stages.
    fn convs(&self, count: usize) -> impl Iterator<Item = &'m Conv<'w>> {
        self.stages[..count].iter().filter_map(|stage| match stage {
            Stage::Conv(conv) => Some(conv),
            Stage::Resnet(_) | Stage::Out { .. } => None,
        })
    }

    /// The strips of what the first `count` stages make: `rows` high, or what that is where the map has been halved.
    fn strips_after(
        &self,
        base: &Map,
        count: usize,
        rows: usize,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let halvings = self
            .convs(count)
            .filter(|conv| conv.scale == Scale::Halve)
            .count();
        strips(self.size_after(base, count).0, rows >> halvings)
    }

    fn channels_out(&self, base: &Map) -> usize {
        match self.stages.last() {
            None => base.channels,
            Some(Stage::Conv(conv) | Stage::Out { conv, .. }) => conv.channels_out,
            Some(Stage::Resnet(resnet)) => resnet.conv2.channels_out,
        }
    }
}

/// All rows from the top, `rows` at a time.
fn strips(height: usize, rows: usize) -> impl Iterator<Item = Range<usize>> {
    let rows = rows.max(1);
    (0..height)
        .step_by(rows)
        .map(move |start| start..(start + rows).min(height))
}

/// `by` more rows above and below, as far as the map goes.
fn widen(rows: &Range<usize>, by: usize, height: usize) -> Range<usize> {
    rows.start.saturating_sub(by)..(rows.end + by).min(height)
}
