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

#[cfg(test)]
mod tests {
    use crate::*;

    fn kept_bytes() -> usize {
        super::with(|s| {
            let buffers = [&s.panel, &s.weights, &s.sums, &s.stage, &s.small];
            buffers.iter().map(|b| b.0.capacity() * 64).sum()
        })
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
