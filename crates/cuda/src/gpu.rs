//! A GPU that was opened: its budget, its streams, its kernels.

use crate::driver::{self, Context, DeviceInfo};
use crate::error::Error;
use crate::memory::Span;
use crate::module::{Function, Modules};
use crate::pinned::{HostMemory, Pinned};
use crate::pool::{Pool, PoolFigures};
use crate::stream::{Copies, Event, Stream, Turns};
use cudarc::driver::sys::{self, CUdeviceptr, CUresult, CUstream};
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_void};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

/// How many purposes [`Gpu::scratch`] knows.
pub const SCRATCH_PURPOSES: usize = 4;

/// Uploads up to this size go through page-locked memory of our own and wait for nothing.
const SMALL_BYTES: usize = 64 << 10;
/// How many of them may be under way.
const SMALL_COUNT: usize = 16;

/// A device with its pool and its two streams. Cheap to clone. It stays with the thread that opened it; host memory may
/// be filled and pinned by others.
#[derive(Clone)]
pub struct Gpu(Rc<Inner>);

// What is in it is dropped from the top: everything else before the context that it lives in.
struct Inner {
    small: RefCell<Small>,
    scratch: [Cell<(CUdeviceptr, usize)>; SCRATCH_PURPOSES],
    modules: Modules,
    copies: Copies,
    compute: Stream,
    pool: Pool,
    info: DeviceInfo,
    /// The first error that loses the context, or that had nobody to go to.
    kept: RefCell<Option<Error>>,
    context: Arc<Context>,
}

/// Where small uploads pass through.
enum Small {
    NotYet,
    Ready(Box<Staging>),
    /// Nothing can be pinned here.
    Never,
}

struct Staging {
    memory: Pinned,
    left: Vec<Event>,
    turns: Turns,
}

impl Gpu {
    /// Opens a device. No more than `budget` bytes of it, nor than it has, will be in buffers; what the driver itself
    /// keeps for a context and its kernels comes on top.
    pub fn open(ordinal: usize, budget: u64) -> Result<Gpu, Error> {
        let device = driver::device(ordinal)?;
        let mut info = driver::describe(ordinal, device)?;
        driver::fit(&info, device)?;
        // Who waits for the GPU sleeps. Refused where another part of the process made the context already.
        let sleep = sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as u32;
        // SAFETY: the device is the driver's own.
        let _ = unsafe { sys::cuDevicePrimaryCtxSetFlags_v2(device, sleep) };
        let context = Context::retain(device)?;
        info.free = context.memory()?.0;
        Ok(Gpu(Rc::new(Inner {
            small: RefCell::new(Small::NotYet),
            scratch: Default::default(),
            modules: Modules::new(&context, &info.name),
            copies: Copies::new(&context)?,
            compute: Stream::new(&context)?,
            pool: Pool::new(&context, device, budget.min(info.total))?,
            info,
            kept: RefCell::new(None),
            context,
        })))
    }

    /// The most bytes that may be in buffers.
    pub fn budget(&self) -> u64 {
        self.0.pool.ledger.budget()
    }

    /// Bytes in buffers and scratch, each rounded up to 512.
    pub fn used(&self) -> u64 {
        self.0.pool.ledger.used()
    }

    /// The most that [`Gpu::used`] was since [`Gpu::reset_peak`].
    pub fn peak(&self) -> u64 {
        self.0.pool.ledger.peak()
    }

    /// Lets the peak begin anew, here and in the driver.
    pub fn reset_peak(&self) {
        self.0.pool.ledger.reset_peak();
        if let Err(error) = self.0.pool.reset_marks() {
            self.keep(error);
        }
    }

    /// Bytes that the pool holds from the driver, in buffers or for the next ones; 0 where the driver does not answer.
    pub fn reserved(&self) -> u64 {
        self.pool().map_or(0, |figures| figures.reserved)
    }

    /// What the driver says of the pool.
    pub fn pool(&self) -> Result<PoolFigures, Error> {
        self.0.pool.figures()
    }

    /// Bytes of the device that the driver has left, for anybody; 0 where it does not answer.
    pub fn free(&self) -> u64 {
        self.0.context.memory().map_or(0, |(free, _)| free)
    }

    /// Waits for all work, then gives every byte that is in no buffer back to the driver.
    pub fn trim(&self) -> Result<(), Error> {
        self.synchronise()?;
        self.noted(self.0.pool.trim())
    }

    /// Waits for both streams.
    pub fn synchronise(&self) -> Result<(), Error> {
        self.synchronise_compute()?;
        self.noted(self.0.copies.synchronise())
    }

    /// Waits for the compute stream.
    pub fn synchronise_compute(&self) -> Result<(), Error> {
        self.noted(self.0.compute.synchronise())
    }

    /// The device, as it was when it was opened.
    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// The context, with which other threads pin memory.
    pub fn context(&self) -> &Arc<Context> {
        &self.0.context
    }

    /// A kernel that was built in or installed. Looked up once.
    pub fn function(&self, name: &'static str) -> Result<Function, Error> {
        self.noted(self.0.modules.function(name))
    }

    /// Adds kernels written in PTX to those that are built in.
    pub fn install(&self, ptx: &'static CStr) -> Result<(), Error> {
        self.noted(self.0.modules.install(ptx))
    }

    /// Queues a kernel in the compute stream. A grid of nothing is nothing to do.
    ///
    /// # Safety
    /// The arguments are pointers to values of the kernel's parameters, in their order; what the kernel does with them
    /// stays within memory that is there until it has run.
    pub unsafe fn launch(
        &self,
        name: &'static str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<(), Error> {
        if grid.contains(&0) {
            return Ok(());
        }
        self.bind()?;
        let function = self.noted(self.0.modules.ready(name, shared))?;
        // SAFETY: function and stream live as long as `self`; the rest is the caller's promise.
        let answer = unsafe {
            sys::cuLaunchKernel(
                function.raw(),
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                shared,
                self.compute(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.done(name, answer)
    }

    /// The compute stream's handle, for libraries that queue work there.
    pub fn compute(&self) -> CUstream {
        self.0.compute.raw()
    }

    /// The copy stream.
    pub fn copies(&self) -> &Copies {
        &self.0.copies
    }

    /// Puts the event behind everything queued in the compute stream so far.
    pub fn record(&self, event: &Event) -> Result<(), Error> {
        self.noted(self.0.compute.record(event))
    }

    /// What is queued in the compute stream from now on waits for the event's last place.
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        self.noted(self.0.compute.wait(event))
    }

    /// Scratch for kernels of the compute stream: at least `bytes`, with anything in them, until the next call for the
    /// same purpose. Counted like buffers and kept until [`Gpu::forget_scratch`]. Panics at an unknown purpose.
    pub fn scratch(&self, purpose: usize, bytes: usize) -> Result<Span<'_>, Error> {
        let place = &self.0.scratch[purpose];
        if place.get().1 < bytes {
            self.drop_scratch(place);
            place.set((self.allocate(bytes)?, bytes));
        }
        let (address, _) = place.get();
        // SAFETY: so many bytes are there; they are freed in order of the compute stream, for which alone they are.
        Ok(unsafe { Span::from_raw(self, address, bytes) })
    }

    /// Bytes that scratch takes now, of those in [`Gpu::used`].
    pub fn scratch_bytes(&self) -> u64 {
        let places = self.0.scratch.iter();
        places.map(|place| place.get().1 as u64).sum()
    }

    /// Gives scratch back to the pool.
    pub fn forget_scratch(&self) {
        for place in &self.0.scratch {
            self.drop_scratch(place);
        }
    }

    fn drop_scratch(&self, place: &Cell<(CUdeviceptr, usize)>) {
        let (address, bytes) = place.take();
        self.release(address, bytes);
    }

    /// Whether everything is well, at the edges of a job: an error that nobody heard of, and one that lost the context.
    /// The latter is said every time.
    pub fn check(&self) -> Result<(), Error> {
        let kept = self.0.kept.take();
        if let Some(error) = kept {
            if error.is_poisoned() {
                self.keep(error.clone());
            }
            return Err(error);
        }
        self.noted(self.0.compute.query())?;
        self.noted(self.0.copies.query())
    }

    /// Asks the driver's pool for so many bytes, past our own count, and gives them back at once: what the driver itself
    /// says of the budget.
    pub fn probe(&self, bytes: u64) -> Result<(), Error> {
        self.bind()?;
        match self.0.pool.ask(bytes, self.compute()) {
            Ok(address) => {
                self.free_in_order(address);
                Ok(())
            }
            Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                Err(self.0.pool.ledger.refused("a probe", bytes, self.free()))
            }
            Err(answer) => self.done("a probe", answer),
        }
    }

    pub(crate) fn bind(&self) -> Result<(), Error> {
        self.0.context.bind()
    }

    /// Remembers an error that loses the context, and passes everything on.
    pub(crate) fn noted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && error.is_poisoned()
        {
            self.keep(error.clone());
        }
        result
    }

    /// A driver's answer as a value.
    pub(crate) fn done(&self, what: &'static str, answer: CUresult) -> Result<(), Error> {
        self.noted(driver::done(what, answer))
    }

    /// Keeps an error for [`Gpu::check`]: the first one, unless a worse one comes.
    fn keep(&self, error: Error) {
        let mut kept = self.0.kept.borrow_mut();
        let worse = kept.as_ref().is_none_or(|known| !known.is_poisoned());
        if kept.is_none() || (worse && error.is_poisoned()) {
            *kept = Some(error);
        }
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<CUdeviceptr, Error> {
        if bytes == 0 {
            return Ok(0);
        }
        let asked = bytes as u64;
        let pool = &self.0.pool;
        pool.ledger.admit(asked)?;
        self.bind()?;
        let mut answer = pool.ask(asked, self.compute());
        if answer == Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY) {
            // What lies in pieces between buffers is given back, and may come again in one.
            self.trim()?;
            answer = pool.ask(asked, self.compute());
        }
        match answer {
            Ok(address) => {
                pool.ledger.take(asked);
                Ok(address)
            }
            Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                Err(pool.ledger.refused("a buffer", asked, self.free()))
            }
            Err(answer) => {
                let error = Error::of_driver("a buffer", answer);
                self.noted(Err(error))
            }
        }
    }

    /// Frees in order of the compute stream.
    pub(crate) fn release(&self, address: CUdeviceptr, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.0.pool.ledger.give(bytes as u64);
        self.free_in_order(address);
    }

    fn free_in_order(&self, address: CUdeviceptr) {
        let freed = self.bind().and_then(|()| {
            // SAFETY: it came from the pool and is freed once; work that uses it was queued in this stream before.
            let answer = unsafe { sys::cuMemFreeAsync(address, self.compute()) };
            driver::done("freeing memory", answer)
        });
        if let Err(error) = freed {
            self.keep(error);
        }
    }

    /// Copies host bytes to an address in order of the compute stream; they may be forgotten when this returns.
    pub(crate) fn upload(&self, address: CUdeviceptr, from: &[u8]) -> Result<(), Error> {
        if from.is_empty() {
            return Ok(());
        }
        let mut small = self.0.small.borrow_mut();
        if from.len() <= SMALL_BYTES
            && let Some(staging) = self.staging(&mut small)
        {
            let queued = staging.upload(&self.0.compute, address, from);
            return self.noted(queued);
        }
        // SAFETY: `from` outlives the copy, which is waited for, and the caller owns what is at the address.
        let queued = unsafe { self.0.compute.upload(address, from, usize::MAX) };
        // Also after a refusal: a part may be under way.
        let waited = self.synchronise_compute();
        self.noted(queued).and(waited)
    }

    fn staging<'a>(&self, small: &'a mut Small) -> Option<&'a mut Staging> {
        if let Small::NotYet = small {
            *small = Staging::new(&self.0.context)
                .map_or(Small::Never, |staging| Small::Ready(Box::new(staging)));
        }
        match small {
            Small::Ready(staging) => Some(staging),
            Small::NotYet | Small::Never => None,
        }
    }
}

impl Staging {
    fn new(context: &Arc<Context>) -> Result<Staging, Error> {
        let room = HostMemory::read();
        let memory = Pinned::within(context, SMALL_BYTES * SMALL_COUNT, &room)?;
        let left = (0..SMALL_COUNT)
            .map(|_| Event::of(context, false))
            .collect::<Result<_, _>>()?;
        Ok(Staging {
            memory,
            left,
            turns: Turns::new(SMALL_COUNT),
        })
    }

    fn upload(&mut self, stream: &Stream, address: CUdeviceptr, from: &[u8]) -> Result<(), Error> {
        let (place, again) = self.turns.next();
        if again {
            self.left[place].synchronise()?;
        }
        let begin = place * SMALL_BYTES;
        let part = &mut self.memory.as_mut_slice()[begin..begin + from.len()];
        part.copy_from_slice(from);
        // SAFETY: the place is not written again before its event is past; the caller owns what is at the address.
        unsafe { stream.upload(address, part, usize::MAX) }?;
        stream.record(&self.left[place])
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nothing may still read pinned memory, or write where the pool was. Errors have nobody to go to.
        let _ = self.compute.synchronise();
        let _ = self.copies.synchronise();
        for place in &self.scratch {
            let (address, bytes) = place.take();
            if bytes > 0 {
                // SAFETY: it came from the pool, is freed once, and nothing uses it any more.
                let _ = unsafe { sys::cuMemFreeAsync(address, self.compute.raw()) };
            }
        }
        let _ = self.compute.synchronise();
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu")
            .field("device", &self.0.info.name)
            .field("budget", &self.budget())
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_without_a_driver_says_so() {
        match Gpu::open(0, 64 << 20) {
            Ok(gpu) => {
                assert_eq!(gpu.budget(), 64 << 20);
                assert_eq!(gpu.check(), Ok(()));
            }
            Err(error) => assert!(error.is_absent(), "{error}"),
        }
    }
}
