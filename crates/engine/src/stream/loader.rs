//! The thread that loads: from files, and to a device with memory of its own through memory of the host.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

use lowtide_core::PhasePlan;
use lowtide_kernels::memory::Buffer;
use lowtide_models::device::{self, Allocation, Memory};

use super::{Blocks, Failure};
use crate::device::ground::{HostBytes, Mark};
use crate::shared::Claim;

/// A block that was read.
pub(super) enum Weight {
    /// It stays.
    Stays(Arc<Claim>),
    /// It passes through.
    Passes(Memory),
}

/// A block, and the moment from which it may be used.
pub(super) type Loaded = std::result::Result<(usize, Weight, Option<Mark>), Failure>;

/// Memory that a block passes through, and the moment from which it may be written.
pub(super) type Slot = (Memory, Option<Mark>);

impl Blocks {
    /// The slots of a plan.
    pub(super) fn slots(&self, plan: &PhasePlan) -> std::result::Result<Vec<Slot>, Failure> {
        let slots = plan.slots.iter().map(|bytes| bytes.as_usize());
        let Some(accelerator) = &self.accelerator else {
            return slots
                .map(|bytes| Ok((Buffer::new(bytes)?.into(), None)))
                .collect();
        };
        let device = Arc::clone(accelerator).as_device();
        let slots: Vec<Memory> = slots
            .map(|bytes| Ok(Memory::Device(Allocation::new(&device, bytes)?)))
            .collect::<std::result::Result<_, device::Failure>>()?;
        let begin = accelerator.mark()?;
        Ok(slots
            .into_iter()
            .map(|slot| (slot, Some(begin.clone())))
            .collect())
    }

    /// Memory for `block` where it is computed with, and the moment from which it may be written.
    pub(super) fn room(
        &self,
        block: usize,
    ) -> std::result::Result<(Memory, Option<Mark>), Failure> {
        let bytes = self.bytes[block];
        let Some(accelerator) = &self.accelerator else {
            return Ok((Buffer::new(bytes)?.into(), None));
        };
        let device = Arc::clone(accelerator).as_device();
        let memory = Memory::Device(Allocation::new(&device, bytes)?);
        Ok((memory, Some(accelerator.mark()?)))
    }

    /// Reads `block` into `memory`, or begins to bring it there; then it may be used once the mark is past.
    pub(super) fn fill(
        &self,
        block: usize,
        memory: &mut Memory,
        after: Option<&Mark>,
    ) -> std::result::Result<Option<Mark>, Failure> {
        let allocation = match memory {
            Memory::Host(buffer) => {
                self.read(block, buffer.bytes_mut())?;
                return Ok(None);
            }
            Memory::Device(allocation) => allocation,
        };
        let accelerator = self.accelerator.as_ref().ok_or(Failure::Stopped)?;
        let to = allocation.span().bytes_at(0..self.bytes[block]);
        let known = self.on_host()[block].clone();
        if let Some(known) = known {
            return Ok(Some(accelerator.load(to, &*known, after)?));
        }
        if let Some(mut bytes) = accelerator.host_bytes(self.bytes[block]) {
            self.read(block, bytes.bytes_mut())?;
            let bytes: Arc<dyn HostBytes> = Arc::from(bytes);
            let mark = accelerator.load(to, &*bytes, after)?;
            // It stays as long as these blocks, and those settle what was begun before they go.
            self.on_host()[block] = Some(bytes);
            return Ok(Some(mark));
        }
        let mut unread = None;
        let mut fill = |from: usize, to: &mut [u8]| match self.read_from(block, from, to) {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                unread = Some(failure);
                ControlFlow::Break(())
            }
        };
        let mark = accelerator.feed(to, &mut fill, after)?;
        match unread {
            Some(failure) => Err(failure),
            None => Ok(Some(mark.ok_or(Failure::Stopped)?)),
        }
    }

    /// Reads what lies from byte `from` of `block` on. What lies between tensors is zero.
    fn read_from(
        &self,
        block: usize,
        from: usize,
        to: &mut [u8],
    ) -> std::result::Result<(), Failure> {
        to.fill(0);
        let end = from + to.len();
        for (entry, at) in &self.reads[block] {
            let (first, last) = ((*at).max(from), (*at + entry.bytes as usize).min(end));
            if first < last {
                let part = &mut to[first - from..last - from];
                let offset = (first - *at) as u64;
                self.checkpoint.read_range(entry, offset, part)?;
            }
        }
        Ok(())
    }
}

/// What the loader thread owns.
pub(super) struct Work {
    pub(super) blocks: Arc<Blocks>,
    pub(super) stays: Vec<bool>,
    /// Blocks that were on the shelf.
    pub(super) have: Vec<bool>,
    pub(super) visits: u64,
    pub(super) slots: Vec<Slot>,
    pub(super) stop: Arc<AtomicBool>,
    /// Nanoseconds of reading so far.
    pub(super) reading: Arc<AtomicU64>,
}

impl Work {
    pub(super) fn run(mut self, ready: &SyncSender<Loaded>, free: &Receiver<Slot>) {
        self.slots.reverse();
        'visits: for visit in 0..self.visits {
            for block in 0..self.stays.len() {
                if self.stays[block] && (visit > 0 || self.have[block]) {
                    continue;
                }
                if self.stop.load(Ordering::Relaxed) {
                    break 'visits;
                }
                let slot = if self.stays[block] {
                    self.blocks.room(block)
                } else {
                    // Fresh slots first, in the plan's order; then each comes back as its block is done, which keeps
                    // that order. A closed channel means that nobody waits any more.
                    match self.slots.pop().map_or_else(|| free.recv(), Ok) {
                        Ok(slot) => Ok(slot),
                        Err(_) => break 'visits,
                    }
                };
                let loaded = slot.and_then(|slot| self.load(block, slot));
                let failed = loaded.is_err();
                if ready.send(loaded).is_err() || failed {
                    break 'visits;
                }
            }
        }
    }

    fn load(&self, block: usize, (mut memory, after): Slot) -> Loaded {
        let start = Instant::now();
        let mark = self.blocks.fill(block, &mut memory, after.as_ref())?;
        let weight = match self.stays[block] {
            true => Weight::Stays(self.blocks.claim(block, memory)),
            false => Weight::Passes(memory),
        };
        let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.reading.fetch_add(took, Ordering::Relaxed);
        Ok((block, weight, mark))
    }
}
