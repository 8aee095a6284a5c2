//! Per-thread scratch: buffers that kernels reuse and that do not grow with the inputs.
//!
//! A thread's buffers lie one after the other in one region, which is a huge page where there are such: products go
//! through all of them all the time, and would look up an address a page otherwise. Each kernel begins with none and
//! takes what it needs from the front, so that they need no more together than the kernel that needs most. What does
//! not fit is memory of its own until the kernel is done, and the next finds more room.

use crate::memory::{HUGE_PAGE_BYTES, Region, count_down, count_up};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes of all threads' scratch.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

const LINE_BYTES: usize = 64;

/// Numbers of a cache line.
const LINE: usize = LINE_BYTES / 4;

/// What a thread keeps that only ever computes small things, as callers beside the pool's threads do.
const LITTLE_BYTES: usize = 64 << 10;

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
    /// Where they lie.
    ground: Option<Counted>,
}

impl Scratch {
    /// A region of at least so many bytes.
    fn make_room(&mut self, bytes: usize) {
        let there = self.ground.as_ref().map_or(0, |ground| ground.region.bytes);
        if there < bytes {
            self.ground = None;
            self.ground = Some(Counted::unused(bytes));
        }
    }

    /// Takes all buffers back, and has room for as much as the kernel before needed.
    fn begin(&mut self) {
        for buffer in [
            &mut self.panel,
            &mut self.weights,
            &mut self.sums,
            &mut self.stage,
            &mut self.small,
        ] {
            *buffer = Buffer::default();
        }
        let needed = match NEEDED.replace(0) {
            little if little <= LITTLE_BYTES => LITTLE_BYTES,
            much => much.next_multiple_of(HUGE_PAGE_BYTES),
        };
        let reserved = RESERVED.get();
        if reserved == 0 {
            self.make_room(needed);
        }
        let ground = self.ground.get_or_insert_with(|| Counted::unused(needed));
        ground.count(USED.get());
        let lines = ground.region.bytes / LINE_BYTES - reserved;
        FREE.set((ground.region.pointer.cast(), lines));
    }
}

/// Memory at the end of a thread's region that stays through several loans, until it is dropped.
pub(crate) struct Reserved {
    at: NonNull<f32>,
    count: usize,
}

/// Reserves `count` numbers, with whatever was left in them; one reservation a thread.
pub(crate) fn reserve(count: usize) -> Reserved {
    let lines = count.div_ceil(LINE);
    assert_eq!(RESERVED.get(), 0, "kernels never nest");
    SCRATCH.with(|scratch| {
        let mut scratch = scratch.borrow_mut();
        scratch.make_room((lines * LINE_BYTES).next_multiple_of(HUGE_PAGE_BYTES));
        let ground = scratch.ground.as_ref().expect("room was made");
        RESERVED.set(lines);
        let first = ground.region.bytes / 4 - lines * LINE;
        // SAFETY: the region is at least as long as what is reserved at its end.
        let at = unsafe { ground.region.pointer.cast::<f32>().add(first) };
        Reserved { at, count }
    })
}

impl Reserved {
    pub(crate) fn all(&self) -> &[f32] {
        // SAFETY: while it is reserved nobody else is given it, and the region is not replaced.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.count) }
    }

    pub(crate) fn all_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `all`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.count) }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        RESERVED.set(0);
    }
}

/// Aligned memory of f32, of one kernel.
pub(crate) struct Buffer {
    at: NonNull<f32>,
    lines: usize,
    /// What it lies in if there was no room beside the others.
    own: Option<Counted>,
}

impl Default for Buffer {
    fn default() -> Self {
        Self {
            at: NonNull::dangling(),
            lines: 0,
            own: None,
        }
    }
}

impl Buffer {
    /// At least `count` numbers, with whatever was left in them.
    pub(crate) fn take(&mut self, count: usize) -> &mut [f32] {
        let lines = count.div_ceil(LINE);
        if self.lines < lines {
            self.grow(lines);
        }
        // SAFETY: there are at least so many lines, initialised, in memory that belongs to this buffer alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), lines * LINE) }
    }

    fn grow(&mut self, lines: usize) {
        let needed = NEEDED.get() + lines * LINE_BYTES;
        NEEDED.set(needed);
        USED.set(USED.get().max(needed + RESERVED.get() * LINE_BYTES));
        let (at, free) = FREE.get();
        if lines <= free {
            self.at = at;
            self.own = None;
            // SAFETY: so many lines are free behind.
            FREE.set((unsafe { at.add(lines * LINE) }, free - lines));
        } else {
            let own = Counted::new(lines * LINE_BYTES);
            self.at = own.region.pointer.cast();
            self.own = Some(own);
        }
        self.lines = lines;
    }

    /// All that is there.
    pub(crate) fn all(&self) -> &[f32] {
        // SAFETY: as in `take`, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.lines * LINE) }
    }
}

/// A region that counts as scratch, as far as it was used.
struct Counted {
    region: Region,
    counted: usize,
}

impl Counted {
    /// Counts whole.
    fn new(bytes: usize) -> Self {
        let mut new = Self::unused(bytes);
        new.count(bytes);
        new
    }

    /// Counts nothing yet.
    fn unused(bytes: usize) -> Self {
        let Some(region) = Region::allocate(bytes) else {
            let layout = std::alloc::Layout::from_size_align(bytes, LINE_BYTES);
            std::alloc::handle_alloc_error(layout.expect("scratch is small"));
        };
        count_down(bytes);
        Self { region, counted: 0 }
    }

    /// Counts at least so many of its bytes.
    fn count(&mut self, bytes: usize) {
        let more = bytes.min(self.region.bytes).saturating_sub(self.counted);
        if more > 0 {
            self.counted += more;
            ALLOCATED.fetch_add(more, Relaxed);
            count_up(more);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ALLOCATED.fetch_sub(self.counted, Relaxed);
        count_down(self.counted);
        // The region counts itself down.
        count_up(self.region.bytes);
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// What is free of this thread's region: where, and how many lines.
    static FREE: Cell<(NonNull<f32>, usize)> = const { Cell::new((NonNull::dangling(), 0)) };
    /// Lines at the end of this thread's region that are not free.
    static RESERVED: Cell<usize> = const { Cell::new(0) };
    /// The most bytes that a kernel of this thread has taken.
    static USED: Cell<usize> = const { Cell::new(0) };
    /// Bytes that this thread's present kernel has taken.
    static NEEDED: Cell<usize> = const { Cell::new(0) };
}

/// Lends this thread's scratch. Kernels never nest, so it is always free.
pub(crate) fn with<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with(|scratch| {
        let mut scratch = scratch.borrow_mut();
        scratch.begin();
        let result = f(&mut scratch);
        // What it grew by is settled and counted now, not when the next begins.
        scratch.begin();
        result
    })
}

/// An upper bound, in bytes, of the scratch that `threads` threads keep.
pub fn scratch_bytes(threads: usize) -> usize {
    threads * HUGE_PAGE_BYTES
}

/// Bytes of scratch that all threads keep now.
pub fn scratch_allocated() -> usize {
    ALLOCATED.load(Relaxed)
}

#[cfg(test)]
mod tests {
    use crate::*;

    fn kept_bytes() -> usize {
        super::with(|s| s.ground.as_ref().map_or(0, |ground| ground.region.bytes))
    }

    /// Runs a convolution of zeros.
    fn convolve(cin: usize, cout: usize, rows: usize, width: usize, kernel: usize, stride: usize) {
        let bytes = vec![0; cout * cin * kernel * kernel * 2];
        let (scale, shift) = (vec![1.0; cin], vec![0.0; cin]);
        let conv = Conv2d {
            weight: Matrix {
                stored: Stored::Bf16,
                bytes: &bytes,
                rows: cout,
                cols: cin * kernel * kernel,
                scales: None,
            },
            bias: None,
            kernel,
            stride,
            padding: kernel / 2,
            upsample: false,
            input: Some(ChannelAffine {
                scale: &scale,
                shift: &shift,
                act: Activation::None,
            }),
        };
        let out = |size: usize| (size + kernel / 2 * 2 - kernel) / stride + 1;
        let mut result = vec![0.0; cout * out(rows) * out(width)];
        for precision in [Precision::F32, Precision::Bf16] {
            conv2d(
                &conv,
                &vec![0.0; cin * rows * width],
                MapRows::whole(rows),
                width,
                precision,
                None,
                &mut result,
                MapRows::whole(out(rows)),
            );
        }
    }

    #[test]
    fn a_thread_keeps_no_more_than_is_said() {
        // An emulation takes its time; more outputs than a block has are enough.
        for (isa, outputs) in [(isa(), 5000), (Isa::AmxEmulated, 1100)] {
            force_isa(isa).expect("it is here");
            run_all(outputs);
            if isa != Isa::AmxEmulated {
                // So deep that sums wait for the rest of k, where tiles multiply.
                let (k, rows, outputs) = (6000, 600, 1000);
                multiply([rows, k, outputs], Stored::Bf16, &vec![0; outputs * k * 2]);
            }
        }
        let kept = kept_bytes();
        assert!(
            kept > 0 && kept <= scratch_bytes(1),
            "a thread keeps {kept} bytes"
        );
        assert!(scratch_allocated() >= kept, "what is kept is counted");
    }

    /// Both products of rows, in both precisions.
    fn multiply([m, k, n]: [usize; 3], stored: Stored, bytes: &[u8]) {
        let w = Matrix {
            stored,
            bytes: &bytes[..n * k * stored.size()],
            rows: n,
            cols: k,
            scales: None,
        };
        let x = vec![0.0; m * k];
        let mut out = vec![0.0; m * n];
        for precision in [Precision::F32, Precision::Bf16] {
            let view = Rows::new(&x, m, k);
            linear_swiglu(view, &w, &w, precision, RowsMut::new(&mut out, m, n));
            let none = Activation::None;
            let into = RowsMut::new(&mut out, m, n);
            linear(view, &w, None, none, precision, into);
        }
    }

    /// Kernels of all kinds, of shapes that need much.
    fn run_all(outputs: usize) {
        let bytes = vec![0; outputs * 600 * 4];
        for (m, n, stored) in [
            (1, outputs, Stored::Bf16),
            (64, outputs, Stored::F32),
            (700, 90, Stored::Bf16),
        ] {
            multiply([m, 600, n], stored, &bytes);
        }
        for (kernel, stride) in [(1, 1), (3, 1), (3, 2), (1, 2)] {
            convolve(300, 8, 40, 128, kernel, stride);
            convolve(300, 130, 20, 20, kernel, stride);
        }
        for d in [16, 64, 128, 512, 1024] {
            let qkv = vec![0.0; 300 * d];
            let mut out = qkv.clone();
            for precision in [Precision::F32, Precision::Bf16] {
                let spec = Attention {
                    heads: 1,
                    kv_heads: 1,
                    head_dim: d,
                    scale: 1.0,
                    mask: Mask::None,
                    precision,
                };
                let view = || Rows::new(&qkv, 300, d);
                let into = RowsMut::new(&mut out, 300, d);
                attention(&spec, view(), view(), view(), into);
            }
        }
    }
}
