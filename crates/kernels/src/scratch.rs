//! Per-thread scratch: buffers that kernels reuse and that do not grow with the inputs.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes of all threads' scratch.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

/// The buffers of one thread. Each kernel says which it uses for what.
#[derive(Default)]
pub(crate) struct Scratch {
    /// A packed panel of activations.
    pub(crate) panel: Buffer,
    /// Weights, widened or paired, of one block.
    pub(crate) weights: Buffer,
    /// Sums of one block.
    pub(crate) sums: Buffer,
    /// A convolution's input of one block; an attention's scores.
    pub(crate) stage: Buffer,
    /// Small per-lane values.
    pub(crate) small: Buffer,
}

/// Aligned memory of f32, grown on demand and kept.
#[derive(Default)]
pub(crate) struct Buffer(Vec<Line>);

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Buffer {
    /// At least `count` numbers, with whatever was left in them.
    pub(crate) fn take(&mut self, count: usize) -> &mut [f32] {
        let lines = count.div_ceil(16);
        if self.0.len() < lines {
            ALLOCATED.fetch_add((lines - self.0.len()) * size_of::<Line>(), Relaxed);
            self.0.reserve_exact(lines - self.0.len());
            self.0.resize(lines, Line([0.0; 16]));
        }
        // SAFETY: a `Line` is sixteen f32 without padding, and there are at least `lines` of them.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), lines * 16) }
    }

    /// All that is there.
    pub(crate) fn all(&self) -> &[f32] {
        // SAFETY: a `Line` is sixteen f32 without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Lends this thread's scratch. Kernels never nest, so it is always free.
pub(crate) fn with<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with(|scratch| f(&mut scratch.borrow_mut()))
}

/// An upper bound, in bytes, of the scratch that `threads` threads keep.
pub fn scratch_bytes(threads: usize) -> usize {
    threads * (2 << 20)
}

/// Bytes of scratch that all threads keep now.
pub fn scratch_allocated() -> usize {
    ALLOCATED.load(Relaxed)
}
