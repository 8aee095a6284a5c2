//! What pipelines compute on in this process, and how its memory is counted.
//!
//! A process has one ground: its processor, unless an [`Accelerator`] was put there before anything was opened. Networks that
//! make pictures larger or find things in them compute on the processor in either case.

use std::any::Any;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use lowtide_core::{Bytes, DeviceProfile};
use lowtide_kernels as kernels;
use lowtide_kernels::memory;
use lowtide_models::Precision;
use lowtide_models::device::{Device, Done, Place, Span};

use super::cpu;

/// A moment in what a device does; what it is made of is the device's business.
#[derive(Clone)]
pub struct Mark(pub Arc<dyn Any + Send + Sync>);

impl Debug for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mark")
    }
}

/// Memory of the host that a device can read by itself.
pub trait HostBytes: Send + Sync {
    /// Its bytes.
    fn bytes(&self) -> &[u8];
    /// Its bytes, to be written.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// How the device's memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceleratorFigures {
    /// Bytes in use by this process, as it counts them.
    pub live: u64,
    /// The most of them since they were last asked to be counted anew.
    pub peak: u64,
    /// Bytes this process holds, those in use among them.
    pub held: u64,
    /// Built in.
    pub total: u64,
    /// What the driver says is free.
    pub free: u64,
    /// Thousandths of the time it was busy, where that is known.
    pub busy: Option<u32>,
    /// Milliwatts, where they are known.
    pub milliwatts: Option<u64>,
}

/// A device with memory of its own, which brings weights there beside what it computes.
///
/// Two things go on at once: what [`Device`] asks for, in order, and loads, in order. Marks tie them together: a load can wait
/// for what was computed with the memory before, and computing for a load.
pub trait Accelerator: Debug + Send + Sync {
    /// What it is called.
    fn name(&self) -> String;
    /// The rates plans are made with.
    fn profile(&self, precision: Precision) -> DeviceProfile;
    /// How its memory is.
    fn figures(&self) -> AcceleratorFigures;
    /// Bytes in use.
    fn live(&self) -> u64;
    /// The most of them since [`Accelerator::reset_peak`].
    fn peak(&self) -> u64;
    /// Counts the peak anew.
    fn reset_peak(&self);
    /// The most bytes that may be in use; `None` is all that it was opened with.
    fn set_budget(&self, budget: Option<u64>);
    /// Gives what is held and not in use back to the driver.
    fn trim(&self);
    /// The most bytes its operations take beside what they are given.
    fn scratch_bytes(&self) -> u64;
    /// Bytes of that which it has now.
    fn scratch_allocated(&self) -> u64;
    /// After all computing that was asked for so far.
    ///
    /// # Errors
    /// When the device fails.
    fn mark(&self) -> Done<Mark>;
    /// Begins to bring `from` to `to`, once `after` is past. `from` must live and stay as it is until [`Accelerator::settle`]
    /// was told of the mark.
    ///
    /// # Errors
    /// When the device fails.
    fn load(&self, to: Span, from: &dyn HostBytes, after: Option<&Mark>) -> Done<Mark>;
    /// What is computed from here on waits for a mark.
    ///
    /// # Errors
    /// When the device fails.
    fn wait(&self, mark: &Mark) -> Done;
    /// Waits here until a mark is past.
    ///
    /// # Errors
    /// When the device fails.
    fn settle(&self, mark: &Mark) -> Done;
    /// Memory of the host that loads go quickly from; `None` where no more of it may be had.
    fn host_bytes(&self, bytes: usize) -> Option<Box<dyn HostBytes>>;
    /// The same seen as a device.
    fn as_device(self: Arc<Self>) -> Arc<dyn Device>;
}

static ACCELERATOR: OnceLock<Arc<dyn Accelerator>> = OnceLock::new();

/// Makes pipelines of this process compute on `accelerator`; must come before anything is opened. Returns whether it is the
/// first.
pub fn put(accelerator: Arc<dyn Accelerator>) -> bool {
    ACCELERATOR.set(accelerator).is_ok()
}

/// What pipelines compute on beside the processor.
pub fn accelerator() -> Option<&'static Arc<dyn Accelerator>> {
    ACCELERATOR.get()
}

/// Where pipelines compute.
pub(crate) fn place() -> Place {
    match accelerator() {
        None => Place::Host,
        Some(accelerator) => Place::Device(Arc::clone(accelerator).as_device()),
    }
}

/// What pipelines compute on, as a word.
pub fn name() -> String {
    accelerator().map_or_else(cpu::name, |accelerator| accelerator.name())
}

/// The rates that plans of pipelines are made with.
pub fn profile(precision: Precision) -> DeviceProfile {
    match accelerator() {
        None => cpu::profile(precision),
        Some(accelerator) => accelerator.profile(precision),
    }
}

/// Bytes in use there.
pub(crate) fn live() -> u64 {
    accelerator().map_or_else(memory::live, |it| it.live())
}

/// The most of them since [`reset_peak`].
pub(crate) fn peak() -> u64 {
    accelerator().map_or_else(memory::peak, |it| it.peak())
}

/// Counts the peak anew.
pub(crate) fn reset_peak() {
    match accelerator() {
        None => {
            memory::reset_peak();
        }
        Some(accelerator) => accelerator.reset_peak(),
    }
}

/// Gives back what is kept and not in use.
pub(crate) fn trim() {
    memory::trim();
    if let Some(accelerator) = accelerator() {
        accelerator.trim();
    }
}

/// The most bytes that may be in use there.
pub(crate) fn set_budget(budget: Option<u64>) {
    match accelerator() {
        None => memory::set_budget(budget),
        Some(accelerator) => accelerator.set_budget(budget),
    }
}

/// How many bytes freed buffers may fill; an accelerator keeps what it holds until it is asked to [`trim`].
pub(crate) fn set_cache_limit(limit: Option<u64>) {
    if accelerator().is_none() {
        memory::set_cache_limit(limit);
    }
}

/// The most bytes that operations take beside what they are given.
pub(crate) fn scratch_bytes() -> u64 {
    accelerator().map_or_else(
        || kernels::scratch_bytes(kernels::threads()) as u64,
        |it| it.scratch_bytes(),
    )
}

/// Bytes of that which are there now.
pub(crate) fn scratch_allocated() -> u64 {
    accelerator().map_or_else(
        || kernels::scratch_allocated() as u64,
        |it| it.scratch_allocated(),
    )
}

/// What is free there for everybody, and what is kept for reuse.
pub(crate) fn free() -> Option<Bytes> {
    accelerator().map(|it| {
        let figures = it.figures();
        Bytes(figures.free + figures.held.saturating_sub(figures.live))
    })
}
