//! Brings blocks from where they lie to where they are used.
//!
//! A loader thread reads the blocks of a phase in order of use: those that stay go into memory of their own, once; the
//! others into the slots of a ring, again at every visit, one ahead of the computation. A slot is handed back when its
//! block has been used.
//!
//! Blocks that stayed can outlive their phase: they go to a shelf, from which the next phase that uses them takes them
//! without a load, and from which they are forgotten in no time, since there is nothing to write back. A block that
//! stays and is equal to one that another model has in memory is that one ([`crate::shared`]).
//!
//! On a device with memory of its own ([`ground::Accelerator`]) the loader keeps what it read in memory of the host that the
//! device can read, as long as there is room, and brings it from there at every visit, beside the computation; the rest
//! comes from the file each time, in pieces. A slot is written once what was computed with it is past, and used once it is
//! written. Nobody waits for either but the device.

mod loader;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lowtide_core::{Bytes, ComponentLayout, PhasePlan, Placement};
use lowtide_kernels::memory::OutOfMemory;
use lowtide_models::device::{self, Memory, Place};
use lowtide_models::weights::BlockIndex;
use lowtide_models::{Adapters, BlockSource, Weights};
use lowtide_weights::{Checkpoint, Fingerprint, TensorEntry};

use crate::device::ground::{self, Accelerator, HostBytes};
use crate::shared::{Claim, Counted, Form, Ours};
use crate::{Error, Result};
use loader::{Loaded, Slot, Weight, Work};

/// The loader only reads files; it needs next to no stack.
const LOADER_STACK_BYTES: usize = 256 << 10;

/// One component's blocks, and where each of their tensors lies in the files.
pub struct Blocks {
    checkpoint: Arc<Checkpoint>,
    indexes: Vec<BlockIndex>,
    /// By block: each tensor and its offset in the slot.
    reads: Vec<Vec<(TensorEntry, usize)>>,
    bytes: Vec<usize>,
    /// By block: where its tensors lie in its slot.
    forms: Vec<Form>,
    /// By block: its weights, kept from an earlier phase.
    shelf: Mutex<Shelf>,
    /// By block: its weights if they stay, on the shelf or in a stream.
    claims: Mutex<Vec<Weak<Claim>>>,
    /// Bytes of the slots of streams that run.
    slots: AtomicU64,
    /// What brings it to another device than the host.
    accelerator: Option<Arc<dyn Accelerator>>,
    /// By block: its weights in memory of the host that the device can read.
    on_host: Mutex<Vec<Option<Arc<dyn HostBytes>>>>,
}

type Shelf = Vec<Option<Arc<Claim>>>;

impl Blocks {
    /// The blocks of `layout` in `checkpoint`, whose headers the layout was made from, for the processor.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when a tensor of the layout is not there.
    pub fn new(
        model: &str,
        checkpoint: Arc<Checkpoint>,
        layout: &ComponentLayout,
    ) -> Result<Arc<Blocks>> {
        Blocks::on(None, model, checkpoint, layout)
    }

    /// The same for what pipelines compute on.
    ///
    /// # Errors
    /// As [`Blocks::new`].
    pub(crate) fn of_pipeline(
        model: &str,
        checkpoint: Arc<Checkpoint>,
        layout: &ComponentLayout,
    ) -> Result<Arc<Blocks>> {
        let accelerator = ground::accelerator().cloned();
        Blocks::on(accelerator, model, checkpoint, layout)
    }

    fn on(
        accelerator: Option<Arc<dyn Accelerator>>,
        model: &str,
        checkpoint: Arc<Checkpoint>,
        layout: &ComponentLayout,
    ) -> Result<Arc<Blocks>> {
        let mut reads = Vec::with_capacity(layout.blocks.len());
        for block in &layout.blocks {
            let mut tensors = Vec::with_capacity(block.tensors.len());
            for (tensor, at) in block.offsets() {
                let entry = checkpoint
                    .get(&tensor.name)
                    .ok_or_else(|| Error::Incomplete {
                        model: model.to_owned(),
                        what: format!("tensor {} is not in the checkpoint", tensor.name),
                    })?;
                tensors.push((entry.clone(), at));
            }
            reads.push(tensors);
        }
        let form = |reads: &Vec<(TensorEntry, usize)>| -> Form {
            let range = |(entry, at): &(TensorEntry, usize)| *at..*at + entry.bytes as usize;
            reads.iter().map(range).collect()
        };
        let forms = reads.iter().map(form).collect();
        let indexes = layout.blocks.iter().map(BlockIndex::new).collect();
        let bytes = layout
            .blocks
            .iter()
            .map(|block| block.bytes().as_usize())
            .collect();
        let shelf = Mutex::new(vec![None; layout.blocks.len()]);
        Ok(Arc::new(Blocks {
            checkpoint,
            indexes,
            reads,
            bytes,
            forms,
            shelf,
            claims: Mutex::new(layout.blocks.iter().map(|_| Weak::new()).collect()),
            slots: AtomicU64::new(0),
            accelerator,
            on_host: Mutex::new(layout.blocks.iter().map(|_| None).collect()),
        }))
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // Every change of the shelf is one assignment, so a panic elsewhere leaves it valid.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claims(&self) -> MutexGuard<'_, Vec<Weak<Claim>>> {
        // As above.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds what was read as `block`, as long as anybody of this component needs it.
    fn claim(&self, block: usize, read: Memory) -> Arc<Claim> {
        let claim = Claim::new(&self.forms[block], read);
        let mut claims = self.claims();
        let before = claims[block].upgrade();
        if let Some(before) = before.filter(|before| before.is_of(&claim)) {
            return before;
        }
        let claim = Arc::new(claim);
        claims[block] = Arc::downgrade(&claim);
        claim
    }

    /// Bytes of the blocks on the shelf.
    pub fn kept(&self) -> Bytes {
        self.shelf().iter().flatten().map(|block| block.len()).sum()
    }

    /// Bytes of all its weights in memory: on the shelf, and in streams that run.
    pub fn held(&self) -> Bytes {
        self.held_beside(&mut Counted::default())
    }

    /// The same, but for blocks that were `counted`; those that were not are from now on.
    pub fn held_beside(&self, counted: &mut Counted) -> Bytes {
        let claims: Vec<_> = self.claims().iter().filter_map(Weak::upgrade).collect();
        let stay: Bytes = claims.iter().map(|claim| counted.add(claim)).sum();
        stay + Bytes(self.slots.load(Ordering::Relaxed))
    }

    /// The blocks on the shelf.
    fn on_shelf(&self) -> Vec<Arc<Claim>> {
        self.shelf().iter().flatten().cloned().collect()
    }

    /// By block: whether it is on the shelf and somebody beside `ours` holds it, too.
    pub(crate) fn shared(&self, ours: &Ours) -> Vec<bool> {
        let shelf = self.shelf();
        let shared = shelf.iter().map(|kept| kept.as_ref());
        shared
            .map(|kept| kept.is_some_and(|kept| ours.is_shared(kept)))
            .collect()
    }

    /// Forgets every block on the shelf that `stays` does not name.
    pub fn forget_unless(&self, stays: impl Fn(usize) -> bool) {
        for (block, kept) in self.shelf().iter_mut().enumerate() {
            if !stays(block) {
                *kept = None;
            }
        }
    }

    /// Reads every block and puts it on the shelf.
    ///
    /// # Errors
    /// When a file cannot be read or the budget refuses a block; those read before stay.
    pub fn preload(&self) -> std::result::Result<(), Failure> {
        for block in 0..self.bytes.len() {
            self.bring(block)?;
        }
        Ok(())
    }

    /// What the files were that it reads from.
    pub(crate) fn fingerprint(&self) -> lowtide_weights::Result<Fingerprint> {
        self.checkpoint.fingerprint()
    }

    /// Whether `block` is on the shelf.
    pub(crate) fn is_kept(&self, block: usize) -> bool {
        self.shelf()[block].is_some()
    }

    /// Bytes of `block`.
    pub(crate) fn bytes_of(&self, block: usize) -> Bytes {
        Bytes::from(self.bytes[block])
    }

    /// Reads `block` and puts it on the shelf, unless it is there. No stream of this component may run.
    ///
    /// # Errors
    /// As [`Blocks::preload`].
    pub(crate) fn bring(&self, block: usize) -> std::result::Result<(), Failure> {
        if self.is_kept(block) {
            return Ok(());
        }
        let (mut memory, after) = self.room(block)?;
        let mark = self.fill(block, &mut memory, after.as_ref())?;
        if let Some((accelerator, mark)) = self.accelerator.as_ref().zip(mark) {
            accelerator.wait(&mark)?;
        }
        let claim = self.claim(block, memory);
        self.shelf()[block] = Some(claim);
        Ok(())
    }

    fn on_host(&self) -> MutexGuard<'_, Vec<Option<Arc<dyn HostBytes>>>> {
        // Every change is one assignment, so a panic elsewhere leaves it valid.
        self.on_host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is kept in memory of the host. No stream of this component may run.
    fn forget_on_host(&self) {
        if let Some(accelerator) = &self.accelerator
            && let Ok(mark) = accelerator.mark()
        {
            // What was computed waited for what was brought; a device that fails reads nothing any more.
            let _ = accelerator.settle(&mark);
        }
        self.on_host().iter_mut().for_each(|kept| *kept = None);
    }

    /// Where its blocks are computed with.
    fn place(&self) -> Place {
        match &self.accelerator {
            None => Place::Host,
            Some(accelerator) => Place::Device(Arc::clone(accelerator).as_device()),
        }
    }

    /// Forgets blocks on the shelf, the last first, until `bytes` came back or none is left that gives any back: those
    /// that others hold as well do not. Returns what came back.
    pub(crate) fn forget_some(&self, bytes: Bytes, ours: &Ours) -> Bytes {
        let mut back = Bytes::ZERO;
        for kept in self.shelf().iter_mut().rev() {
            if back >= bytes {
                break;
            }
            if kept.as_ref().is_some_and(|claim| !ours.is_shared(claim)) {
                back += kept.take().map_or(Bytes::ZERO, |claim| claim.len());
            }
        }
        back
    }

    fn read(&self, block: usize, slot: &mut [u8]) -> std::result::Result<(), Failure> {
        for (entry, at) in &self.reads[block] {
            let range = *at..*at + entry.bytes as usize;
            self.checkpoint.read(entry, &mut slot[range])?;
        }
        Ok(())
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.forget_on_host();
    }
}

/// Why a load failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The file.
    #[error(transparent)]
    File(#[from] lowtide_weights::Error),
    /// The budget.
    #[error("out of memory: {0}")]
    Memory(#[from] OutOfMemory),
    /// What computes failed.
    #[error("{0}")]
    Device(#[source] device::Failure),
    /// The loader thread is gone.
    #[error("the loader stopped (this is a bug)")]
    Stopped,
    /// Blocks were asked for in another order than the plan's.
    #[error("block {asked} was asked for where block {planned} was planned (this is a bug)")]
    OutOfOrder {
        /// The block asked for.
        asked: usize,
        /// The block whose turn it was.
        planned: usize,
    },
}

impl From<device::Failure> for Failure {
    fn from(failure: device::Failure) -> Failure {
        match lowtide_models::Error::from(failure) {
            lowtide_models::Error::OutOfMemory(refused) => Failure::Memory(refused),
            lowtide_models::Error::Device(other) => Failure::Device(other),
            _ => Failure::Stopped,
        }
    }
}

/// What of `all` components' blocks on their shelves nobody else holds.
pub(crate) fn ours<'b>(all: impl IntoIterator<Item = &'b Arc<Blocks>>) -> Ours {
    let claims: Vec<_> = all.into_iter().flat_map(|one| one.on_shelf()).collect();
    Ours::of(&claims)
}

/// What a stream did, for reports and for the planner.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Time the computation waited for weights.
    pub waited: Duration,
    /// Time the loader read, whoever waited meanwhile.
    pub reading: Duration,
}

/// The blocks of one phase, in the order and for the visits that the plan names.
pub struct Stream {
    blocks: Arc<Blocks>,
    kept: Shelf,
    /// Bytes of its slots: what it added to [`Blocks::held`] beside blocks that stay.
    counted: u64,
    in_use: Option<Memory>,
    loaded: Option<Receiver<Loaded>>,
    returned: Option<SyncSender<Slot>>,
    /// Told to the loader when nobody waits any more.
    stop: Arc<AtomicBool>,
    loader: Option<JoinHandle<()>>,
    traffic: Traffic,
    /// How long the device had waited before.
    waited_before: Duration,
    /// Nanoseconds the loader read so far.
    reading: Arc<AtomicU64>,
    adapters: Option<Arc<Adapters>>,
}

impl Stream {
    /// Begins to load, for `visits` visits. Slots are allocated here, so that a refusal comes before any work. Blocks
    /// that stay are taken from the shelf where they are; the others there are forgotten.
    ///
    /// # Errors
    /// [`OutOfMemory`] for the slots; failures of loads come from [`BlockSource::block`].
    pub fn start(
        blocks: Arc<Blocks>,
        plan: &PhasePlan,
        visits: u64,
    ) -> std::result::Result<Stream, Failure> {
        let waited_before = blocks.accelerator.as_ref().map(|it| it.waited());
        let waited_before = waited_before.unwrap_or_default();
        let count = blocks.bytes.len();
        let stays: Vec<bool> = (0..count)
            .map(|block| plan.placement.is_resident(block))
            .collect();
        debug_assert!(plan.placement != Placement::Host);
        blocks.forget_unless(|block| stays[block]);
        let kept: Shelf = blocks.shelf().clone();
        let slots = blocks.slots(plan)?;
        let counted: u64 = slots.iter().map(|(slot, _)| slot.len() as u64).sum();
        let (returned, free) = sync_channel(slots.len().max(1));
        let (ready, loaded) = sync_channel(slots.len().max(1));
        let have = kept.iter().map(Option::is_some).collect();
        let reading = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let work = Work {
            stop: stop.clone(),
            reading: reading.clone(),
            blocks: blocks.clone(),
            stays,
            have,
            visits,
            slots,
        };
        let loader = std::thread::Builder::new()
            .name("lowtide-loader".to_owned())
            .stack_size(LOADER_STACK_BYTES)
            .spawn(move || work.run(&ready, &free))
            .map_err(|_| Failure::Stopped)?;
        blocks.slots.fetch_add(counted, Ordering::Relaxed);
        let (loaded, returned, loader) = (Some(loaded), Some(returned), Some(loader));
        Ok(Stream {
            blocks,
            kept,
            in_use: None,
            loaded,
            returned,
            stop,
            loader,
            traffic: Traffic::default(),
            waited_before,
            reading,
            counted,
            adapters: None,
        })
    }

    /// The same, every block with what `adapters` add to its layers.
    pub fn with_adapters(mut self, adapters: Option<Arc<Adapters>>) -> Stream {
        self.adapters = adapters.filter(|adapters| !adapters.is_empty());
        self
    }

    /// Puts the blocks that stayed on the shelf, for the next phase that uses them.
    pub fn shelve(mut self) {
        let kept = std::mem::take(&mut self.kept);
        for (place, kept) in self.blocks.shelf().iter_mut().zip(kept) {
            *place = kept;
        }
    }

    /// What it did so far.
    pub fn traffic(&self) -> Traffic {
        // Another device works on while this thread waits; what counts is when that stood still.
        let waited = match &self.blocks.accelerator {
            Some(accelerator) => accelerator.waited().saturating_sub(self.waited_before),
            None => self.traffic.waited,
        };
        Traffic {
            reading: Duration::from_nanos(self.reading.load(Ordering::Relaxed)),
            waited,
            ..self.traffic
        }
    }

    /// Makes `block` available: kept, or in use.
    fn fetch(&mut self, block: usize) -> std::result::Result<(), Failure> {
        if let Some(used) = self.in_use.take()
            && let Some(returned) = &self.returned
        {
            let after = match &self.blocks.accelerator {
                Some(accelerator) => Some(accelerator.mark()?),
                None => None,
            };
            // The loader may have finished its work and be gone; then nobody needs the slot.
            let _ = returned.send((used, after));
        }
        if self.kept[block].is_some() {
            return Ok(());
        }
        let accelerator = self.blocks.accelerator.clone();
        let begins = match &accelerator {
            Some(accelerator) => Some(accelerator.wait_begins()?),
            None => None,
        };
        let start = Instant::now();
        let next = self
            .loaded
            .as_ref()
            .ok_or(Failure::Stopped)?
            .recv()
            .map_err(|_| Failure::Stopped)?;
        self.traffic.waited += start.elapsed();
        let (planned, weight, mark) = next?;
        if let Some(accelerator) = &accelerator {
            if let Some(mark) = mark {
                accelerator.wait(&mark)?;
            }
            if let Some(begins) = begins {
                accelerator.wait_ends(begins)?;
            }
        }
        if planned != block {
            return Err(Failure::OutOfOrder {
                asked: block,
                planned,
            });
        }
        self.traffic.bytes_read += self.blocks.bytes[block] as u64;
        match weight {
            Weight::Stays(claim) => self.kept[block] = Some(claim),
            Weight::Passes(slot) => self.in_use = Some(slot),
        }
        Ok(())
    }
}

impl BlockSource for Stream {
    fn block(&mut self, index: usize) -> lowtide_models::Result<Weights<'_>> {
        self.fetch(index).map_err(|failure| match failure {
            Failure::Memory(refused) => lowtide_models::Error::OutOfMemory(refused),
            other => lowtide_models::Error::Source(Box::new(other)),
        })?;
        let bytes = self.kept[index]
            .as_deref()
            .map(Claim::bytes)
            .or(self.in_use.as_ref().map(Memory::bytes))
            .expect("`fetch` made it available");
        let weights = Weights::live(&self.blocks.indexes[index], bytes);
        Ok(weights.with_adapters(self.adapters.as_deref()))
    }

    fn place(&self) -> Place {
        self.blocks.place()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A loader that waits for a slot then ends, and one that reads does after the block.
        self.stop.store(true, Ordering::Relaxed);
        self.returned = None;
        if let Some(loaded) = self.loaded.take() {
            // What is on its way must have arrived before its memory goes: what is computed next waits for it.
            while let Some(accelerator) = &self.blocks.accelerator
                && let Ok(last) = loaded.recv()
            {
                if let Ok((_, _, Some(mark))) = &last {
                    // A device that fails here says so at the next call that can.
                    let _ = accelerator.wait(mark);
                }
            }
        }
        if let Some(loader) = self.loader.take() {
            // A panic of the loader was already seen as `Stopped`.
            let _ = loader.join();
        }
        let slots = &self.blocks.slots;
        slots.fetch_sub(self.counted, Ordering::Relaxed);
    }
}
