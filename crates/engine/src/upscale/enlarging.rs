//! A picture on its way: window after window, step by step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lowtide_core::{Budget, Bytes, Plan};
use lowtide_kernels::memory;
use lowtide_media::{Filter, Original, Picture, Region, Size};
use lowtide_models::upscaler::State;
use lowtide_models::{BlockSource, Tensor};

use super::cut::Window;
use super::{Enlargement, Enlarger, PHASE, Planned};
use crate::device::ground;
use crate::device::limits::Seat;
use crate::pipeline::SMALL_THINGS_BYTES;
use crate::stream::{Failure, Stream, Traffic};
use crate::{Error, Progress, Result};

/// A step goes on until it took this long, so that small networks are not looked at a thousand times a second.
const STEP_TIME: Duration = Duration::from_millis(60);
/// A window on its way of more bytes than this is begun anew after a pause rather than kept.
const KEPT_BYTES_MAX: u64 = 64 << 20;

/// A picture in progress.
pub struct Enlarging {
    enlarger: Arc<Enlarger>,
    picture: Arc<Original>,
    size: Size,
    asked: Enlargement,
    pub(super) planned: Planned,
    seat: Seat,
    pub(super) windows: Vec<Window>,
    pub(super) at: At,
    /// The window that is on its way.
    state: Option<State>,
    stream: Option<Stream>,
    /// The block that the stream gives next, where it is not whole in memory.
    next_block: usize,
    pub(super) made: Original,
    pub(super) over: bool,
    report: EnlargingReport,
    predicted_s: f64,
    /// Bytes that others may take beside it.
    ceded: Bytes,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct At {
    /// 0 for the colours, 1 for what can be seen through.
    pub(super) pass: usize,
    pub(super) window: usize,
    /// 0 before a window was taken; then how many steps it went, and one.
    pub(super) step: usize,
    /// Rows of what is wanted of the window that are finished.
    pub(super) rows: usize,
}

/// What an enlargement did.
#[derive(Clone, Debug, PartialEq)]
pub struct EnlargingReport {
    /// How it ran.
    pub plan: Plan,
    /// How the picture was cut.
    pub cut: String,
    /// Whether the result is that of the whole picture.
    pub exact: bool,
    /// Seconds of computing, waiting included.
    pub seconds: f64,
    /// Seconds of them in which it waited for weights.
    pub waited: f64,
    /// Seconds in which weights were read, whoever waited.
    pub reading: f64,
    /// Measured peak, bytes.
    pub peak: Bytes,
    /// Bytes of weights read.
    pub bytes_read: u64,
    /// Rungs taken after memory was refused.
    pub rungs_taken: usize,
}

/// A finished enlargement.
#[derive(Clone, Debug, PartialEq)]
pub struct Enlarged {
    /// The picture.
    pub picture: Original,
    /// What it took.
    pub report: EnlargingReport,
}

/// What one step did.
#[derive(Debug)]
pub enum EnlargingStep {
    /// There is more to do.
    Progress(Progress),
    /// The result; the run is over.
    Finished(Box<Enlarged>),
}

impl Enlarging {
    pub(super) fn new(
        enlarger: Arc<Enlarger>,
        picture: Arc<Original>,
        (size, asked): (Size, Enlargement),
        planned: Planned,
    ) -> Enlarging {
        let seat = Seat::take_of_pipeline();
        seat.own(planned.plan.budget.total);
        let scale = enlarger.scale() as u32;
        let made = Original::blank(
            size.width * scale,
            size.height * scale,
            picture.depth(),
            size.alpha,
        );
        let report = EnlargingReport {
            cut: planned.cut.name(),
            exact: planned.plan.approximate.is_empty(),
            plan: planned.plan.clone(),
            seconds: 0.0,
            waited: 0.0,
            reading: 0.0,
            peak: Bytes::ZERO,
            bytes_read: 0,
            rungs_taken: 0,
        };
        let enlarging = Enlarging {
            windows: planned.cut.windows(),
            enlarger,
            picture,
            size,
            asked,
            planned,
            seat,
            at: At::default(),
            state: None,
            stream: None,
            next_block: 0,
            made,
            over: false,
            report,
            predicted_s: 0.0,
            ceded: Bytes::ZERO,
        };
        enlarging.set_limits();
        enlarging
    }

    /// The plan in force.
    pub fn plan(&self) -> &Plan {
        &self.planned.plan
    }

    /// Rungs taken after memory was refused.
    pub fn rungs_taken(&self) -> usize {
        self.report.rungs_taken
    }

    /// Does some of the work: about a sixteenth of a second, or what cannot be divided.
    ///
    /// # Errors
    /// After an error it is over. A refusal of memory is not one before the last rung was tried.
    pub fn step(&mut self) -> Result<EnlargingStep> {
        if self.over {
            return Err(Error::request("session", "is over"));
        }
        if !self.seat.owns() {
            self.seat.own(self.planned.plan.budget.total);
            self.set_limits();
        }
        let start = Instant::now();
        let before = self.counted();
        while !self.is_done() && start.elapsed() < STEP_TIME {
            match self.unit() {
                Ok(()) => {}
                Err(Error::Model {
                    source: lowtide_models::Error::OutOfMemory(refused),
                    ..
                }) => self.take_rung(refused)?,
                Err(error) => {
                    self.over = true;
                    return Err(error);
                }
            }
        }
        let elapsed = start.elapsed();
        let (done, total) = self.counted();
        let share = done.saturating_sub(before.0) as f64 / total.max(1) as f64;
        self.predicted_s += share * self.planned.plan.seconds;
        self.report.seconds += elapsed.as_secs_f64();
        self.report.peak = self.report.peak.max(Bytes(ground::peak()));
        if self.is_done() {
            return self.finish().map(EnlargingStep::Finished);
        }
        Ok(EnlargingStep::Progress(Progress {
            phase: PHASE,
            done,
            total,
            elapsed,
            memory: Bytes(ground::live()),
        }))
    }

    /// Freed buffers may be kept up to the predicted peak, and the peak is measured from here.
    fn set_limits(&self) {
        ground::trim();
        self.bound();
        ground::reset_peak();
    }

    fn bound(&self) {
        let small = SMALL_THINGS_BYTES as u64;
        let most = self.planned.plan.peak.0.saturating_sub(small);
        ground::set_cache_limit(Some(most + self.ceded.0));
    }

    /// Others want to take up to `wanted` bytes beside it until its end. Returns how many they may take, which is never
    /// less than the last time.
    pub fn cede(&mut self, wanted: Bytes) -> Bytes {
        let plan = &self.planned.plan;
        let ceded = wanted.min(plan.budget.total.saturating_sub(plan.peak));
        if ceded > self.ceded {
            self.ceded = ceded;
            if self.seat.owns() {
                self.bound();
            }
        }
        self.ceded
    }

    pub(super) fn passes(&self) -> usize {
        if self.size.alpha { 2 } else { 1 }
    }

    fn is_done(&self) -> bool {
        self.at.pass == self.passes()
    }

    /// Steps of a window: it is taken, goes through, and is finished.
    fn steps(&self) -> usize {
        self.enlarger.network.steps() + 2
    }

    fn counted(&self) -> (usize, usize) {
        let windows = self.windows.len();
        let done = (self.at.pass * windows + self.at.window) * self.steps() + self.at.step;
        (done, self.passes() * windows * self.steps())
    }

    /// The smallest piece of work.
    fn unit(&mut self) -> Result<()> {
        let network = self.enlarger.network;
        let window = self.windows[self.at.window];
        let last = network.steps() + 1;
        match self.at.step {
            0 => self.begin(window)?,
            step if step < last => {
                let block = network.block_of(step - 1);
                let compute = self.enlarger.compute;
                let enlarger = self.enlarger.clone();
                self.reach(block)?;
                let (stream, state) = (&mut self.stream, &mut self.state);
                let (Some(stream), Some(state)) = (stream.as_mut(), state.as_mut()) else {
                    return Err(Error::LoaderStopped);
                };
                let weights = stream.block(block).map_err(|e| enlarger.wrap(e))?;
                network
                    .advance(compute, &weights, step - 1, state)
                    .map_err(|e| enlarger.wrap(e))?;
                self.next_block = self.next_block.max(block + 1);
            }
            _ => return self.rows(window),
        }
        self.at.step += 1;
        Ok(())
    }

    fn begin(&mut self, window: Window) -> Result<()> {
        let enlarger = self.enlarger.clone();
        let wrap = |error| enlarger.wrap(error);
        // Blocks that pass through come again from the first on.
        self.reach(0)?;
        let mut planes = Tensor::new(&[3, window.size.1, window.size.0]).map_err(wrap)?;
        let region = Region {
            left: window.from.0 as u32,
            top: window.from.1 as u32,
            width: window.size.0 as u32,
            height: window.size.1 as u32,
        };
        self.picture
            .planes(region, self.at.pass == 1, planes.data_mut());
        let Some(stream) = &mut self.stream else {
            return Err(Error::LoaderStopped);
        };
        let weights = stream.block(0).map_err(wrap)?;
        let state = enlarger.network.begin(enlarger.compute, &weights, planes);
        self.state = Some(state.map_err(wrap)?);
        self.next_block = 1;
        Ok(())
    }

    /// Some rows of what is wanted of a window.
    fn rows(&mut self, window: Window) -> Result<()> {
        let enlarger = self.enlarger.clone();
        let wrap = |error| enlarger.wrap(error);
        let network = enlarger.network;
        let block = network.last_block();
        self.reach(block)?;
        let first = window.wanted.1 - window.from.1 + self.at.rows;
        let count = network
            .strip_rows(window.size.0)
            .min(window.wanted_size.1 - self.at.rows);
        let (Some(stream), Some(state)) = (&mut self.stream, &self.state) else {
            return Err(Error::LoaderStopped);
        };
        let weights = stream.block(block).map_err(wrap)?;
        let rows = first..first + count;
        let strip = network
            .finish(enlarger.compute, &weights, state, rows)
            .map_err(wrap)?;
        self.next_block = self.next_block.max(block + 1);
        self.put(window, count, &strip);
        self.at.rows += count;
        if self.at.rows >= window.wanted_size.1 {
            self.state = None;
            self.at.step = 0;
            self.at.rows = 0;
            self.at.window += 1;
            if self.at.window == self.windows.len() {
                self.at.window = 0;
                self.at.pass += 1;
            }
        }
        Ok(())
    }

    /// Puts finished rows where they belong; what was added to the picture is left out.
    fn put(&mut self, window: Window, rows: usize, strip: &Tensor) {
        let scale = self.enlarger.scale();
        let (width, height) = (self.size.width as usize, self.size.height as usize);
        let (left, top) = (window.wanted.0, window.wanted.1 + self.at.rows);
        let columns = window.wanted_size.0.min(width.saturating_sub(left));
        let rows = rows.min(height.saturating_sub(top));
        let region = Region {
            left: (left * scale) as u32,
            top: (top * scale) as u32,
            width: (columns * scale) as u32,
            height: (rows * scale) as u32,
        };
        let from = ((window.wanted.0 - window.from.0) * scale, 0);
        let stride = window.size.0 * scale;
        self.made
            .put(region, self.at.pass == 1, strip.data(), (stride, from));
    }

    /// Makes the stream stand before `block`: it may have to be begun, or to pass over blocks after a pause.
    fn reach(&mut self, block: usize) -> Result<()> {
        let enlarger = self.enlarger.clone();
        let phase = &self.planned.plan.phases[0];
        if self.stream.is_none() {
            let left = self.passes() * self.windows.len()
                - (self.at.pass * self.windows.len() + self.at.window);
            let visits = if self.planned.cut.is_whole() { left } else { 1 };
            let blocks = enlarger.part.blocks.clone();
            let started = Stream::start(blocks, phase, visits as u64);
            let started = started.map_err(|failure| match failure {
                Failure::Memory(refused) => lowtide_models::Error::OutOfMemory(refused),
                other => lowtide_models::Error::Source(Box::new(other)),
            });
            self.stream = Some(started.map_err(|e| enlarger.wrap(e))?);
            self.next_block = 0;
        }
        let Some(stream) = &mut self.stream else {
            return Err(Error::LoaderStopped);
        };
        for passed in self.next_block..block {
            stream.block(passed).map_err(|e| enlarger.wrap(e))?;
        }
        Ok(())
    }

    /// After a refusal that the plan did not foresee: the next rung below the one that failed.
    fn take_rung(&mut self, refused: memory::OutOfMemory) -> Result<()> {
        self.leave();
        ground::trim();
        let failed = self.planned.plan.peak;
        let budget = Budget {
            total: Bytes(failed.0.saturating_sub(1)),
            ..self.planned.plan.budget
        };
        let shared = self.enlarger.shared();
        match self
            .enlarger
            .planned(&self.size, &self.asked, (budget, shared))
        {
            Ok(planned) => {
                self.report.rungs_taken += 1;
                self.windows = planned.cut.windows();
                self.planned = planned;
                // What was put already is put again; the second pass does not touch the first.
                self.at = At {
                    pass: self.at.pass,
                    ..At::default()
                };
                self.set_limits();
                Ok(())
            }
            Err(error) => {
                self.over = true;
                Err(match error {
                    Error::DoesNotFit(_) => Error::OutOfMemory {
                        phase: PHASE,
                        source: refused,
                    },
                    other => other,
                })
            }
        }
    }

    /// Gives the weights back, and what was reached of a window where that is large.
    pub fn park(&mut self) {
        self.close();
        if self.state_bytes() > KEPT_BYTES_MAX {
            self.state = None;
            self.at.step = 0;
            self.at.rows = 0;
        }
        ground::trim();
    }

    /// Ends the stream, and begins the window anew.
    fn leave(&mut self) {
        self.close();
        self.state = None;
        self.at.step = 0;
        self.at.rows = 0;
    }

    /// Ends the stream, and keeps or forgets what it held.
    fn close(&mut self) {
        let Some(stream) = self.stream.take() else {
            return;
        };
        let Traffic {
            bytes_read,
            waited,
            reading,
        } = stream.traffic();
        self.report.bytes_read += bytes_read;
        self.report.waited += waited.as_secs_f64();
        self.report.reading += reading.as_secs_f64();
        if self.enlarger.habits().keeps() {
            stream.shelve();
        } else {
            drop(stream);
            self.enlarger.part.blocks.forget_unless(|_| false);
        }
    }

    fn state_bytes(&self) -> u64 {
        match (&self.state, self.windows.get(self.at.window)) {
            (Some(_), Some(window)) => {
                let size = (window.size.1, window.size.0);
                self.enlarger.network.cost(size).0
            }
            _ => 0,
        }
    }

    /// Bytes of the pictures, where they lie in the memory that is planned with.
    fn pictures(&self) -> Bytes {
        ground::of_host(Bytes::from(self.picture.bytes() + self.made.bytes()))
    }

    /// Bytes it holds between two steps, weights not included.
    pub fn holds(&self) -> Bytes {
        self.pictures() + Bytes(self.state_bytes())
    }

    /// Bytes of these that it keeps while parked.
    pub fn keeps(&self) -> Bytes {
        let state = Some(self.state_bytes()).filter(|&bytes| bytes <= KEPT_BYTES_MAX);
        self.pictures() + Bytes(state.unwrap_or(0))
    }

    /// Predicted seconds that remain, corrected by what the steps so far took.
    pub fn remaining_s(&self) -> f64 {
        let (done, total) = self.counted();
        let left = self.planned.plan.seconds * (1.0 - done as f64 / total.max(1) as f64);
        let speed = match self.predicted_s > 0.0 {
            true => self.report.seconds / self.predicted_s,
            false => 1.0,
        };
        left * speed.clamp(0.05, 20.0)
    }

    /// Predicted peak above what others use, weights included.
    pub fn peak(&self) -> Bytes {
        let plan = self.plan();
        plan.peak.saturating_sub(plan.budget.in_use)
    }

    /// What it looks like so far, small: rows that are not finished are the given picture's.
    pub fn glance(&self, side_max: u32) -> Picture {
        let windows = self.windows.len().max(1);
        let share = match self.at.pass {
            0 => self.at.window as f64 / windows as f64,
            _ => 1.0,
        };
        let done = (share * f64::from(self.made.height())) as u32;
        self.made.glance(&self.picture, done, side_max)
    }

    fn finish(&mut self) -> Result<Box<Enlarged>> {
        self.leave();
        self.over = true;
        let start = Instant::now();
        let blank = Original::blank(1, 1, self.picture.depth(), false);
        let mut picture = std::mem::replace(&mut self.made, blank);
        let wanted = self.enlarger.result_size(&self.size, &self.asked)?;
        if wanted != (picture.width(), picture.height()) {
            picture = picture.resized(wanted.0, wanted.1, Filter::Lanczos)?;
        }
        self.report.seconds += start.elapsed().as_secs_f64();
        self.report.peak = self.report.peak.max(Bytes(ground::peak()));
        self.report.plan = self.planned.plan.clone();
        self.report.cut = self.planned.cut.name();
        self.report.exact = self.planned.plan.approximate.is_empty();
        let report = self.report.clone();
        Ok(Box::new(Enlarged { picture, report }))
    }
}

impl Drop for Enlarging {
    fn drop(&mut self) {
        self.close();
    }
}
