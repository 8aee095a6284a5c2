//! What runs: a kernel's name, its grid and its arguments.

use super::operands::{At, MatrixIn};
use crate::error::Error;
use crate::gpu::Gpu;
use lowtide_kernels::{Activation, Per, Precision, Stored};
use std::ffi::c_void;

/// Threads of a block in kernels that go along numbers.
pub(crate) const THREADS: u32 = 256;

/// Blocks at most in those; each goes on until all numbers are done.
const BLOCKS: usize = 1 << 18;

/// A kernel, its grid and its arguments.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Its name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of shared memory beyond what the kernel declares.
    pub shared: u32,
    /// Each argument in the low bytes of eight, as the machine reads them.
    pub arguments: Vec<u64>,
}

impl Launch {
    pub(crate) fn new(kernel: &'static str, grid: [usize; 3], threads: u32) -> Launch {
        let fits = grid[0] <= i32::MAX as usize && grid[1] <= 65535 && grid[2] <= 65535;
        assert!(fits, "a grid of {grid:?} blocks for {kernel}");
        Launch {
            kernel,
            grid: grid.map(|blocks| blocks as u32),
            block: [threads, 1, 1],
            shared: 0,
            arguments: Vec::with_capacity(32),
        }
    }

    /// One whose threads go along `count` things.
    pub(crate) fn along(kernel: &'static str, count: usize) -> Launch {
        let blocks = count.div_ceil(THREADS as usize).min(BLOCKS);
        Launch::new(kernel, [blocks, 1, 1], THREADS)
    }

    pub(crate) fn shared(self, bytes: usize) -> Launch {
        Launch {
            shared: bytes as u32,
            ..self
        }
    }

    /// A pointer.
    pub(crate) fn at(self, at: At) -> Launch {
        self.bits(at.address)
    }

    /// A pointer that may be null.
    pub(crate) fn at_if(self, at: Option<At>) -> Launch {
        self.bits(at.map_or(0, |at| at.address))
    }

    /// An `int`.
    pub(crate) fn int(self, number: usize) -> Launch {
        let number = i32::try_from(number);
        let number = number.unwrap_or_else(|_| panic!("more than 2^31 - 1 of something"));
        self.bits(number as u64)
    }

    /// A `long long`.
    pub(crate) fn long(self, number: usize) -> Launch {
        self.bits(number as u64)
    }

    /// A `float`.
    pub(crate) fn float(self, number: f32) -> Launch {
        self.bits(u64::from(number.to_bits()))
    }

    /// A `double`.
    pub(crate) fn double(self, number: f64) -> Launch {
        self.bits(number.to_bits())
    }

    pub(crate) fn act(self, act: Activation) -> Launch {
        self.int(act_code(act))
    }

    /// A matrix: its numbers, its scales, and what is known of both.
    pub(crate) fn matrix(self, matrix: &MatrixIn<At>) -> Launch {
        self.at(matrix.data)
            .at_if(matrix.scales.map(|scales| scales.data))
            .int(kind(matrix))
    }

    fn bits(mut self, bits: u64) -> Launch {
        self.arguments.push(bits);
        self
    }

    /// Queues it.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and its addresses of the GPU's, with as much there as it touches.
    pub(crate) unsafe fn run(&self, gpu: &Gpu) -> Result<(), Error> {
        let pointer = |argument: &u64| std::ptr::from_ref(argument).cast_mut().cast::<c_void>();
        let mut arguments: Vec<*mut c_void> = self.arguments.iter().map(pointer).collect();
        // SAFETY: the driver reads of each as many bytes as the parameter has, which lie first; the rest is the caller's
        // promise.
        unsafe {
            gpu.launch(
                self.kernel,
                self.grid,
                self.block,
                self.shared,
                &mut arguments,
            )
        }
    }
}

/// The number of an activation in kernels/numbers.cuh.
pub(crate) fn act_code(act: Activation) -> usize {
    match act {
        Activation::None => 0,
        Activation::Silu => 1,
        Activation::Gelu => 2,
        Activation::GeluTanh => 3,
        Activation::QuickGelu => 4,
    }
}

fn stored_code(stored: Stored) -> usize {
    match stored {
        Stored::F32 => 0,
        Stored::F16 => 1,
        Stored::Bf16 => 2,
        Stored::F8E4M3 => 3,
        Stored::F8E5M2 => 4,
        Stored::I8 => 5,
    }
}

/// Whether all rows of a matrix begin at multiples of sixteen bytes.
pub(crate) fn is_wide(matrix: &MatrixIn<At>) -> bool {
    matrix.data.address.is_multiple_of(16)
        && (matrix.cols * matrix.stored.size()).is_multiple_of(16)
}

/// Whether a matrix lies as products multiply it, so that nothing is left to be widened, scaled or rounded.
pub(crate) fn is_as_multiplied(matrix: &MatrixIn<At>, precision: Precision) -> bool {
    let stored = match precision {
        // cuBLASLt takes numbers of f32 as tf32, too.
        Precision::F32 | Precision::Tf32 => Stored::F32,
        Precision::Bf16 => Stored::Bf16,
        Precision::F16 => Stored::F16,
    };
    matrix.stored == stored && matrix.scales.is_none() && is_wide(matrix)
}

/// What kernels/numbers.cuh takes apart: stored, stored of scales, per, wide.
fn kind(matrix: &MatrixIn<At>) -> usize {
    let (scales, per) = match matrix.scales {
        None => (0, 0),
        Some(scales) => {
            let per = match scales.per {
                Per::Matrix => 1,
                Per::Row => 2,
                Per::Block => 3,
            };
            (stored_code(scales.stored), per)
        }
    };
    stored_code(matrix.stored) | scales << 4 | per << 8 | usize::from(is_wide(matrix)) << 12
}
