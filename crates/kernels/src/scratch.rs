//! Per-thread scratch: buffers that kernels reuse and that do not grow with the inputs.
//!
//! A thread's buffers lie side by side in one region, which is a huge page or two where there are such: products go
//! through all of them all the time, and would look up an address a page otherwise. A buffer that grows gets memory of
//! its own until the kernel is done, since the others are in use beside it.

use crate::isa::isa;
use crate::memory::{HUGE_PAGE_BYTES, Region};
use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes of all threads' scratch.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

const LINE_BYTES: usize = 64;

/// Numbers of a cache line.
const LINE: usize = LINE_BYTES / 4;

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
    fn buffers(&mut self) -> [&mut Buffer; 5] {
        let Self {
            panel,
            weights,
            sums,
            stage,
            small,
            ..
        } = self;
        [panel, weights, sums, stage, small]
    }

    /// Puts buffers that grew beside the others. What was in them is lost.
    fn settle(&mut self) {
        if self.buffers().iter().all(|buffer| buffer.own.is_none()) {
            return;
        }
        let bytes: usize = self.buffers().iter().map(|b| b.lines * LINE_BYTES).sum();
        let whole = bytes.next_multiple_of(HUGE_PAGE_BYTES);
        // Where little is used a huge page would be waste.
        let bytes = if bytes < whole / 2 { bytes } else { whole };
        for buffer in self.buffers() {
            buffer.own = None;
            buffer.at = NonNull::dangling();
        }
        self.ground = None;
        let ground = Counted::new(bytes);
        let mut at = ground.0.pointer.cast::<f32>();
        for buffer in self.buffers() {
            buffer.at = at;
            // SAFETY: the region is as long as all buffers together.
            at = unsafe { at.add(buffer.lines * LINE) };
        }
        self.ground = Some(ground);
    }
}

/// Aligned memory of f32, grown on demand and kept.
pub(crate) struct Buffer {
    at: NonNull<f32>,
    lines: usize,
    /// What it lies in since it grew.
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
            let own = Counted::new(lines * LINE_BYTES);
            self.at = own.0.pointer.cast();
            self.lines = lines;
            self.own = Some(own);
        }
        // SAFETY: there are at least so many lines, initialised, in memory that belongs to this buffer alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), lines * LINE) }
    }

    /// All that is there.
    pub(crate) fn all(&self) -> &[f32] {
        // SAFETY: as in `take`, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.lines * LINE) }
    }
}

/// A region that counts as scratch.
struct Counted(Region);

impl Counted {
    fn new(bytes: usize) -> Self {
        let Some(region) = Region::allocate(bytes) else {
            let layout = std::alloc::Layout::from_size_align(bytes, LINE_BYTES);
            std::alloc::handle_alloc_error(layout.expect("scratch is small"));
        };
        ALLOCATED.fetch_add(bytes, Relaxed);
        Self(region)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ALLOCATED.fetch_sub(self.0.bytes, Relaxed);
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Lends this thread's scratch. Kernels never nest, so it is always free.
pub(crate) fn with<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with(|scratch| {
        let mut scratch = scratch.borrow_mut();
        scratch.settle();
        f(&mut scratch)
    })
}

/// An upper bound, in bytes, of the scratch that `threads` threads keep.
pub fn scratch_bytes(threads: usize) -> usize {
    threads * HUGE_PAGE_BYTES * if isa().has_tiles() { 2 } else { 1 }
}

/// Bytes of scratch that all threads keep now.
pub fn scratch_allocated() -> usize {
    ALLOCATED.load(Relaxed)
}

#[cfg(test)]
mod tests {
    use crate::*;

    fn kept_bytes() -> usize {
        super::with(|s| s.ground.as_ref().map_or(0, |ground| ground.0.bytes))
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
        }
        let kept = kept_bytes();
        assert!(
            kept > 0 && kept <= scratch_bytes(1),
            "a thread keeps {kept} bytes"
        );
    }

    /// Kernels of all kinds, of shapes that need much.
    fn run_all(outputs: usize) {
        let bytes = vec![0; outputs * 600 * 4];
        for (m, n, stored) in [
            (1, outputs, Stored::Bf16),
            (64, outputs, Stored::F32),
            (700, 90, Stored::Bf16),
        ] {
            let w = Matrix {
                stored,
                bytes: &bytes[..n * 600 * stored.size()],
                rows: n,
                cols: 600,
                scales: None,
            };
            let x = vec![0.0; m * 600];
            let mut out = vec![0.0; m * n];
            for precision in [Precision::F32, Precision::Bf16] {
                let view = Rows::new(&x, m, 600);
                linear_swiglu(view, &w, &w, precision, RowsMut::new(&mut out, m, n));
                let none = Activation::None;
                linear(
                    view,
                    &w,
                    None,
                    none,
                    precision,
                    RowsMut::new(&mut out, m, n),
                );
            }
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
