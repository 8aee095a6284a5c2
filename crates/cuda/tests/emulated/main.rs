//! The kernels' arithmetic, without a GPU: compiled by this machine's C++ compiler, by way of kernels/emulate.h, they run what
//! the operations describe, and are compared with the CPU's kernels.
//!
//! Order on a GPU (threads of different warps between barriers), its speed, and the rounding inside of its tensor cores are not
//! seen here. Where there is no C++ compiler, the tests say that they were skipped. With `LOWTIDE_TEST_GPU=1` and the feature
//! `kernels`, the same tests run on the first GPU instead, in memory that both sides see.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

mod attention;
mod conv;
mod gpu;
mod linear;
mod machine;
mod maps;
mod memory;
mod numbers;
mod rows;
