//! The candidates of one phase (every mode, every rung, every split) and the questions asked of them.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::pipeline::{DeviceProfile, Mode, Offload, PhaseLayout};
use crate::plan::PlanError;
use crate::residency::{Split, family};
use crate::timeline::{Course, Sums};
use crate::{Bytes, Vars};

/// Candidates whose seconds differ by less than this share are equally fast, and the smaller peak wins.
const TIE: f64 = 1e-3;

/// The same where residency wins ties: only rounding is forgiven, so that more budget is never slower.
const TIE_ROUNDING: f64 = 1e-9;

/// Rungs of one phase beyond this are a mistake in its ladders.
const RUNGS_MAX: usize = 1 << 16;

/// A mode with its variables set.
#[derive(Clone, Debug)]
pub(crate) struct Rung {
    pub(crate) mode_index: usize,
    pub(crate) exact: bool,
    pub(crate) vars: Vars,
    pub(crate) visits: u64,
    pub(crate) activation: Bytes,
    pub(crate) held: Bytes,
    /// Seconds of computing, by block.
    compute_s: Vec<f64>,
    /// Their sum.
    compute_sum_s: f64,
    /// Which of the families its splits come from.
    family: usize,
}

impl Rung {
    /// What it needs beside weights.
    pub(crate) fn beside(&self) -> Bytes {
        self.activation + self.held
    }
}

/// A rung with a split, and how long it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) rung: usize,
    pub(crate) split: usize,
    /// Without what was in use before.
    pub(crate) peak: Bytes,
    pub(crate) seconds: f64,
}

/// All candidates of a phase on a device.
pub(crate) struct Search<'a> {
    pub(crate) phase: &'a PhaseLayout,
    pub(crate) rungs: Vec<Rung>,
    families: Vec<Vec<Split>>,
    /// Bytes of blocks that are in use already, whatever the split.
    pub(crate) shared: Bytes,
    overlap: f64,
    cold_s: Vec<f64>,
    warm_s: Vec<f64>,
    link_bytes_per_s: f64,
    /// Seconds of candidates already timed, by rung and split.
    timed: RefCell<HashMap<(u32, u32), f64>>,
}

impl<'a> Search<'a> {
    /// Enumerates the rungs of `phase` and prices them.
    pub(crate) fn new(
        phase: &'a PhaseLayout,
        request: &Vars,
        device: &DeviceProfile,
    ) -> Result<Search<'a>, PlanError> {
        let wrong = |what| PlanError::Layout {
            phase: phase.name.clone(),
            what,
        };
        if phase.modes.is_empty() {
            return Err(wrong("it has no modes"));
        }
        if !(phase.correction.is_finite() && phase.correction > 0.0) {
            return Err(wrong("its correction is not a positive number"));
        }
        let sizes: Vec<Bytes> = phase
            .component
            .blocks
            .iter()
            .map(|block| block.bytes())
            .collect();
        let shares = work_shares(phase);
        let mut families = Families {
            sizes: &sizes,
            offload: phase.offload,
            known: Vec::new(),
        };
        let mut rungs = Vec::new();
        for (mode_index, mode) in phase.modes.iter().enumerate() {
            let required = required_blocks(phase, mode, sizes.len())
                .ok_or_else(|| wrong("a block that is required or shared does not exist"))?;
            for values in rung_values(mode) {
                if rungs.len() == RUNGS_MAX {
                    return Err(wrong("its ladders have too many rungs"));
                }
                let mut rung =
                    price(phase, mode, &values, request, device, &shares).map_err(|source| {
                        PlanError::Formula {
                            phase: phase.name.clone(),
                            source,
                        }
                    })?;
                if !(rung.compute_sum_s.is_finite() && rung.compute_s.iter().all(|&s| s >= 0.0)) {
                    return Err(wrong("the work of a mode is not a number or is negative"));
                }
                rung.mode_index = mode_index;
                rung.family = families.index(&required, rung.visits > 1);
                add_undominated(&mut rungs, rung);
            }
        }
        Ok(Search {
            phase,
            rungs,
            families: families
                .known
                .into_iter()
                .map(|family| family.splits)
                .collect(),
            overlap: device.overlap,
            shared: phase.shared.iter().map(|&block| sizes[block]).sum(),
            cold_s: first_reads_s(phase, &sizes, device),
            warm_s: sizes
                .iter()
                .map(|size| size.as_f64() / device.link_bytes_per_s)
                .collect(),
            link_bytes_per_s: device.link_bytes_per_s,
            timed: RefCell::default(),
        })
    }

    /// What a rung needs with a split. Blocks that are in use already are part of every split.
    fn peak(&self, rung: &Rung, split: &Split) -> Bytes {
        rung.beside() + (split.weights() - self.shared)
    }

    /// The candidate's split.
    pub(crate) fn split(&self, candidate: &Candidate) -> &Split {
        &self.families[self.rungs[candidate.rung].family][candidate.split]
    }

    /// The smallest peak of any candidate of this exactness, or `None` when there are no such modes.
    pub(crate) fn smallest_peak(&self, exact: bool) -> Option<Bytes> {
        // Families are in ascending order of bytes.
        let smallest = |rung: &Rung| self.peak(rung, &self.families[rung.family][0]);
        self.rungs
            .iter()
            .filter(|rung| rung.exact == exact)
            .map(smallest)
            .min()
    }

    /// The best candidate of this exactness that fits into `available`: the fastest; of equally fast ones the one with
    /// the smaller peak, or with more resident bytes where the weights will be used again.
    pub(crate) fn best(&self, exact: bool, available: Bytes) -> Option<Candidate> {
        let fastest = self.fastest(exact, available)?;
        if self.phase.reuse {
            return Some(self.most_resident(exact, available, fastest));
        }
        self.smallest_within(exact, available, fastest.seconds * (1.0 + TIE))
            .or(Some(fastest))
    }

    /// The candidate with the smallest peak of those within `limit_s` seconds.
    pub(crate) fn smallest_within(
        &self,
        exact: bool,
        available: Bytes,
        limit_s: f64,
    ) -> Option<Candidate> {
        let mut best: Option<Candidate> = None;
        for (index, rung) in self.fitting(exact, available) {
            for (split_index, split) in self.families[rung.family].iter().enumerate() {
                let peak = self.peak(rung, split);
                if peak > available || best.is_some_and(|best| peak >= best.peak) {
                    break;
                }
                if self.seconds_min(rung, split) <= limit_s {
                    let seconds = self.seconds(index, split_index);
                    if seconds <= limit_s {
                        best = Some(Candidate {
                            rung: index,
                            split: split_index,
                            peak,
                            seconds,
                        });
                        break;
                    }
                }
            }
        }
        best
    }

    /// A candidate no other beats by more than rounding.
    fn fastest(&self, exact: bool, available: Bytes) -> Option<Candidate> {
        let mut best: Option<Candidate> = None;
        // The cheapest computing first: good times early leave little to look at.
        let mut rungs: Vec<(usize, &Rung)> = self.fitting(exact, available).collect();
        rungs.sort_by(|(_, a), (_, b)| {
            let total = |rung: &Rung| rung.compute_sum_s * rung.visits as f64;
            total(a)
                .total_cmp(&total(b))
                .then(a.beside().cmp(&b.beside()))
        });
        for (index, rung) in rungs {
            // The largest that fit first, for the same reason.
            for (split_index, split) in self.families[rung.family].iter().enumerate().rev() {
                let peak = self.peak(rung, split);
                if peak > available {
                    continue;
                }
                if best.is_some_and(|best| self.seconds_min(rung, split) >= best.seconds) {
                    continue;
                }
                let seconds = self.seconds(index, split_index);
                if best.is_none_or(|best| seconds < best.seconds) {
                    best = Some(Candidate {
                        rung: index,
                        split: split_index,
                        peak,
                        seconds,
                    });
                }
            }
        }
        best
    }

    /// Of the candidates as fast as `fastest` but for rounding, the one with the most resident bytes, then the smallest
    /// peak.
    fn most_resident(&self, exact: bool, available: Bytes, fastest: Candidate) -> Candidate {
        let limit_s = fastest.seconds * (1.0 + TIE_ROUNDING);
        let mut best = fastest;
        let mut best_resident = self.split(&fastest).resident_bytes;
        for (index, rung) in self.fitting(exact, available) {
            for (split_index, split) in self.families[rung.family].iter().enumerate() {
                let peak = self.peak(rung, split);
                let better = split.resident_bytes > best_resident
                    || (split.resident_bytes == best_resident && peak < best.peak);
                if peak > available || !better || self.seconds_min(rung, split) > limit_s {
                    continue;
                }
                let seconds = self.seconds(index, split_index);
                if seconds <= limit_s {
                    best = Candidate {
                        rung: index,
                        split: split_index,
                        peak,
                        seconds,
                    };
                    best_resident = split.resident_bytes;
                }
            }
        }
        best
    }

    fn fitting(&self, exact: bool, available: Bytes) -> impl Iterator<Item = (usize, &Rung)> {
        self.rungs
            .iter()
            .enumerate()
            .filter(move |(_, rung)| rung.exact == exact && rung.beside() <= available)
    }

    /// The course of a candidate.
    fn course<'s>(&'s self, rung: &'s Rung, split: &'s Split) -> Course<'s> {
        Course {
            resident: &split.resident,
            streamed: &split.streamed,
            slots: split.slots.len(),
            cold_s: &self.cold_s,
            warm_s: &self.warm_s,
            compute_s: &rung.compute_s,
            visits: rung.visits,
            overlap: self.overlap,
        }
    }

    fn seconds(&self, rung: usize, split: usize) -> f64 {
        *self
            .timed
            .borrow_mut()
            .entry((rung as u32, split as u32))
            .or_insert_with(|| {
                let rung = &self.rungs[rung];
                self.course(rung, &self.families[rung.family][split])
                    .seconds()
            })
    }

    fn seconds_min(&self, rung: &Rung, split: &Split) -> f64 {
        let sums = Sums {
            compute_s: rung.compute_sum_s,
            cold_s: self.cold_s.iter().sum(),
            streamed_warm_s: split.streamed_bytes.as_f64() / self.link_bytes_per_s,
        };
        // Sums in another order round differently; a bound must not be above the truth for that.
        self.course(rung, split).seconds_min(&sums) * (1.0 - 1e-12)
    }

    /// Seconds of a candidate in which nothing is computed at full speed.
    pub(crate) fn stall_seconds(&self, candidate: &Candidate) -> f64 {
        let rung = &self.rungs[candidate.rung];
        (candidate.seconds - rung.compute_sum_s * rung.visits as f64).max(0.0)
    }
}

/// Seconds of one visit of each block of `phase` under the variables a rung has set: what a mode's work costs on a
/// device.
pub(crate) fn compute_seconds(
    phase: &PhaseLayout,
    mode: &Mode,
    vars: &Vars,
    device: &DeviceProfile,
) -> Result<Vec<f64>, crate::UnknownVariable> {
    compute_shared(phase, mode, vars, device, &work_shares(phase))
}

fn compute_shared(
    phase: &PhaseLayout,
    mode: &Mode,
    vars: &Vars,
    device: &DeviceProfile,
    shares: &[f64],
) -> Result<Vec<f64>, crate::UnknownVariable> {
    let work_s = mode.flops.eval(vars)? / device.flops_per_s;
    let rounds_var = phase.rounds_over.as_ref().map(|(var, _)| var);
    let pieces: f64 = mode
        .ladders
        .iter()
        .filter(|ladder| Some(&ladder.var) != rounds_var)
        .filter_map(|ladder| Some(ladder.pieces(vars.get(&ladder.var)?) as f64))
        .product();
    let overhead_s = device.block_overhead_s * pieces;
    Ok(shares
        .iter()
        .map(|share| work_s * share + overhead_s)
        .collect())
}

/// Seconds of each block's first read; none where it is there already.
fn first_reads_s(phase: &PhaseLayout, sizes: &[Bytes], device: &DeviceProfile) -> Vec<f64> {
    let mut seconds: Vec<f64> = sizes
        .iter()
        .map(|size| size.as_f64() / device.cold_bytes_per_s)
        .collect();
    for &block in &phase.shared {
        seconds[block] = 0.0;
    }
    seconds
}

/// By block of `count`: whether it cannot stream, for `mode` or because it is there anyway. `None` where a block is named
/// that does not exist.
fn required_blocks(phase: &PhaseLayout, mode: &Mode, count: usize) -> Option<Vec<bool>> {
    let mut required = vec![false; count];
    for &block in mode.resident_blocks.iter().chain(&phase.shared) {
        *required.get_mut(block)? = true;
    }
    Some(required)
}

/// How a pass's work is divided among the blocks: by their number of weights.
fn work_shares(phase: &PhaseLayout) -> Vec<f64> {
    let elements: Vec<f64> = phase
        .component
        .blocks
        .iter()
        .map(|block| block.elements() as f64)
        .collect();
    let sum: f64 = elements.iter().sum();
    let even = 1.0 / elements.len().max(1) as f64;
    elements
        .into_iter()
        .map(|count| if sum > 0.0 { count / sum } else { even })
        .collect()
}

/// Every combination of the ladders' values, the largest first.
fn rung_values(mode: &Mode) -> Vec<Vec<u64>> {
    mode.ladders
        .iter()
        .fold(vec![Vec::new()], |combinations, ladder| {
            let values = ladder.values();
            let extend = |combination: Vec<u64>| {
                values
                    .iter()
                    .map(move |&value| combination.iter().copied().chain([value]).collect())
                    .collect::<Vec<_>>()
            };
            combinations
                .into_iter()
                .flat_map(extend)
                .take(RUNGS_MAX + 1)
                .collect()
        })
}

fn price(
    phase: &PhaseLayout,
    mode: &Mode,
    values: &[u64],
    request: &Vars,
    device: &DeviceProfile,
    shares: &[f64],
) -> Result<Rung, crate::UnknownVariable> {
    let mut vars = request.clone();
    for (ladder, &value) in mode.ladders.iter().zip(values) {
        vars.set(ladder.var.clone(), value);
    }
    let rounds = match &phase.rounds_over {
        None => 1,
        Some((var, total)) => {
            let value = vars
                .get(var)
                .ok_or_else(|| crate::UnknownVariable(var.to_string()))?;
            total.div_ceil(value.max(1))
        }
    };
    let compute_s = compute_shared(phase, mode, &vars, device, shares)?;
    Ok(Rung {
        mode_index: 0,
        exact: mode.exact,
        visits: phase.passes.saturating_mul(rounds),
        activation: mode.activation.corrected_bytes(&vars, phase.correction)?,
        held: phase.held.bytes(&vars)? + phase.beside,
        compute_sum_s: compute_s.iter().sum(),
        compute_s,
        family: 0,
        vars,
    })
}

/// Adds `rung`, unless another takes the same time in less or as much memory; it replaces one that takes more memory.
/// Halving two ladders in either order costs the same, so there are many such pairs.
fn add_undominated(rungs: &mut Vec<Rung>, rung: Rung) {
    let same_time = |other: &&mut Rung| {
        other.exact == rung.exact
            && other.visits == rung.visits
            && other.family == rung.family
            && other.compute_s == rung.compute_s
    };
    match rungs.iter_mut().rev().find(same_time) {
        Some(other) if rung.beside() < other.beside() => *other = rung,
        Some(_) => {}
        None => rungs.push(rung),
    }
}

/// The families of splits made so far.
struct Families<'a> {
    sizes: &'a [Bytes],
    offload: Offload,
    known: Vec<Family>,
}

/// A family and what it depends on beside the blocks' sizes.
struct Family {
    required: Vec<bool>,
    cyclic: bool,
    splits: Vec<Split>,
}

impl Families<'_> {
    fn index(&mut self, required: &[bool], cyclic: bool) -> usize {
        let is_it = |known: &Family| known.required == required && known.cyclic == cyclic;
        self.known.iter().position(is_it).unwrap_or_else(|| {
            let splits = match self.offload {
                Offload::Auto => family(self.sizes, required, cyclic),
                Offload::Never | Offload::Components => {
                    family(self.sizes, &vec![true; required.len()], cyclic)
                }
                // In ascending order of bytes: the first needs the least.
                Offload::Stream => {
                    let mut splits = family(self.sizes, required, cyclic);
                    splits.truncate(1);
                    splits
                }
            };
            self.known.push(Family {
                required: required.to_vec(),
                cyclic,
                splits,
            });
            self.known.len() - 1
        })
    }
}
