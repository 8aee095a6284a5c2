//! What pipelines, and networks that make pictures larger, compute on in this process, and how its memory is counted.
//!
//! A process has one ground: its processor, unless an [`Accelerator`] was put there before anything was opened. Networks that
//! find things in pictures compute on the processor in either case.

use std::any::Any;
use std::fmt::Debug;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lowtide_core::{Bytes, DeviceProfile};
use lowtide_kernels as kernels;
use lowtide_kernels::memory;
use lowtide_models::Precision;
use lowtide_models::device::{Device, Done, Place, Span};

use super::cpu;
use super::neighbours::{Neighbours, Others};

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

/// Gives bytes from one on.
pub type Fill<'a> = &'a mut dyn FnMut(usize, &mut [u8]) -> ControlFlow<()>;

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
    /// The most that this process can ever have in use.
    pub most: u64,
}

/// What the device is doing, where that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Thousandths of the last moment in which something ran.
    pub busy: Option<u32>,
    /// Milliwatts that it takes.
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
    /// What it is called on this machine, whichever process asks; `None`: processes do not share it.
    fn place_on_machine(&self) -> Option<String>;
    /// How its memory is; asked before every step.
    fn figures(&self) -> AcceleratorFigures;
    /// What it is doing; takes longer to ask.
    fn activity(&self) -> Activity;
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
    /// Brings `to.bytes` bytes that `fill` gives, a piece after the other: from which byte on, and where to. It begins once
    /// `after` is past, and returns before all has arrived, with the mark of that; `None` where `fill` broke off, and then
    /// nothing is on its way.
    ///
    /// # Errors
    /// When the device fails.
    fn feed(&self, to: Span, fill: Fill<'_>, after: Option<&Mark>) -> Done<Option<Mark>>;
    /// What is computed from here on waits for a mark.
    ///
    /// # Errors
    /// When the device fails.
    fn wait(&self, mark: &Mark) -> Done;
    /// From where computing may have to wait for what is brought: the moment at which all that was asked for before is done.
    ///
    /// # Errors
    /// When the device fails.
    fn wait_begins(&self) -> Done<Mark>;
    /// Up to where: what lies between both counts as [`Accelerator::waited`].
    ///
    /// # Errors
    /// When the device fails.
    fn wait_ends(&self, since: Mark) -> Done;
    /// How long computing stood still so far because of what was not there yet. Waits for what was asked for before.
    fn waited(&self) -> Duration;
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

static NEIGHBOURS: OnceLock<Neighbours> = OnceLock::new();

/// Makes pipelines of this process compute on `accelerator`; must come before anything is opened. Returns whether it is the
/// first.
pub fn put(accelerator: Arc<dyn Accelerator>) -> bool {
    let place = accelerator.place_on_machine();
    let first = ACCELERATOR.set(accelerator).is_ok();
    if let Some(folder) = place
        .filter(|_| first)
        .and_then(|at| Neighbours::folder_of(&at))
    {
        // Without them it is alone with the reserve.
        let _ = Neighbours::join(&folder).map(|joined| NEIGHBOURS.set(joined));
    }
    first
}

/// As [`put`], for one whose processes meet in `folder`.
///
/// # Errors
/// When the folder cannot be written to.
pub fn put_among(accelerator: Arc<dyn Accelerator>, folder: &Path) -> std::io::Result<bool> {
    let joined = Neighbours::join(folder)?;
    let first = ACCELERATOR.set(accelerator).is_ok();
    Ok(first && NEIGHBOURS.set(joined).is_ok())
}

fn others() -> Others {
    NEIGHBOURS.get().map(Neighbours::others).unwrap_or_default()
}

/// Says that this process waits for so many bytes beside those that it has, what is free among them.
pub(crate) fn want(bytes: Bytes) {
    if let Some(joined) = NEIGHBOURS.get() {
        joined.want(bytes);
    }
}

/// What a process among several of this program on one device may count on; `None` where it is alone.
pub(crate) fn share(reserve: Bytes) -> Option<Bytes> {
    let others = others();
    let figures = accelerator().filter(|_| others.count > 0)?.figures();
    Some(share_of(&figures, reserve, others))
}

/// The most that a process can have where it is alone on a device.
pub(crate) fn most(reserve: Bytes) -> Bytes {
    accelerator().map_or(Bytes::ZERO, |accelerator| {
        let figures = accelerator.figures();
        Bytes(figures.total.saturating_sub(reserve.0).min(figures.most))
    })
}

fn share_of(figures: &AcceleratorFigures, reserve: Bytes, others: Others) -> Bytes {
    let share = figures.total.saturating_sub(reserve.0) / (1 + others.count as u64);
    Bytes(share.min(figures.most))
}

/// What others on the device lack and this process can give, once it has `peak` bytes in use: of the reserve, where they took
/// more than was theirs, and of what they wait for, as long as its own share is left to it. Where it is `idle` it needs none.
pub fn lacking(reserve: Bytes, peak: Bytes, idle: bool) -> Bytes {
    accelerator().map_or(Bytes::ZERO, |accelerator| {
        lacks(&accelerator.figures(), others(), (reserve, peak, idle))
    })
}

/// Of the reserve, what others may take before anybody makes room: programs come and go by a few megabytes.
const RESERVE_SLACK_DIVISOR: u64 = 4;

fn lacks(
    figures: &AcceleratorFigures,
    others: Others,
    (reserve, peak, idle): (Bytes, Bytes, bool),
) -> Bytes {
    // What is free for everybody beside what this process holds, and what both are to have of it.
    let free = figures.free + figures.held;
    let due = reserve.0 + peak.0;
    let of_reserve = due.saturating_sub(free);
    let of_reserve = match of_reserve > reserve.0 / RESERVE_SLACK_DIVISOR || others.wanted.0 > 0 {
        true => of_reserve.min(peak.0),
        false => 0,
    };
    let wanted = others.wanted.0.saturating_sub(free.saturating_sub(due));
    let own = match idle {
        true => 0,
        false => share_of(figures, reserve, others).0,
    };
    let spare = (peak.0 - of_reserve).saturating_sub(own);
    Bytes(of_reserve + wanted.min(spare))
}

/// What pipelines compute on beside the processor.
pub fn accelerator() -> Option<&'static Arc<dyn Accelerator>> {
    ACCELERATOR.get()
}

/// What so many bytes of pictures, which the host always holds, take of the memory that is counted here.
pub(crate) fn of_host(bytes: Bytes) -> Bytes {
    match accelerator() {
        None => bytes,
        Some(_) => Bytes::ZERO,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A device of 24 GiB, of which this process holds `held` and others `taken`.
    fn device(held: u64, taken: u64) -> AcceleratorFigures {
        AcceleratorFigures {
            live: held * GIB,
            peak: held * GIB,
            held: held * GIB,
            total: 24 * GIB,
            free: (24 - held - taken) * GIB,
            most: 23 * GIB,
        }
    }

    fn lack(figures: AcceleratorFigures, others: (usize, u64), peak: u64, idle: bool) -> u64 {
        let others = Others {
            count: others.0,
            wanted: Bytes::gib(others.1),
        };
        let lacks = lacks(&figures, others, (Bytes::gib(2), Bytes::gib(peak), idle));
        assert_eq!(lacks.0 % GIB, 0);
        lacks.0 / GIB
    }

    #[test]
    fn who_is_alone_gives_nothing() {
        assert_eq!(lack(device(22, 0), (0, 0), 22, false), 0);
        assert_eq!(lack(device(10, 0), (0, 0), 22, false), 0);
        assert_eq!(lack(device(0, 0), (3, 0), 0, true), 0);
    }

    #[test]
    fn what_others_took_of_the_reserve_is_given_back_whole() {
        // 24 - 20 - 3: one is left of two.
        assert_eq!(lack(device(20, 3), (0, 0), 20, false), 1);
        // It has 12 now, and would have 20.
        assert_eq!(lack(device(12, 6), (0, 0), 20, false), 4);
        // More than there is cannot be given.
        assert_eq!(lack(device(1, 23), (0, 0), 1, false), 1);
    }

    #[test]
    fn what_others_wait_for_is_given_down_to_ones_share() {
        // Shares of 11.
        assert_eq!(lack(device(20, 1), (1, 5), 20, false), 4);
        assert_eq!(lack(device(20, 1), (1, 50), 20, false), 9);
        assert_eq!(lack(device(11, 1), (1, 50), 11, false), 0);
        assert_eq!(lack(device(11, 1), (1, 50), 11, true), 11, "idle");
        // Shares of 5 and a half; what is free beyond the reserve they can have without us.
        assert_eq!(lack(device(9, 11), (3, 3), 9, false), 1);
    }
}
