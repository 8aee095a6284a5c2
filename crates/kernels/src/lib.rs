//! Computes on a CPU: GEMM, convolution, attention, norms, by instruction set.

pub mod memory;
