//! Computes on an NVIDIA GPU, and owns its memory: the sibling of `lowtide_kernels`.
//!
//! Nothing here needs CUDA to build or to start: the driver is looked for when a [`Gpu`] is opened, and that it is missing
//! is a value ([`Error::NoDriver`]).
//!
//! # What can be relied on
//!
//! - **A budget holds.** Every byte that a [`Buffer`] or scratch takes comes from one pool, which refuses what goes over
//!   it: by our count to the byte, and by the driver's own maximum. A refusal is a value, and leaves everything as it was.
//! - **Order is explicit.** Kernels, small copies and frees happen in order of one stream, weights arrive in another, and
//!   the two meet at [`Event`]s alone.
//! - **A lost context is told from a refusal** ([`Error::is_poisoned`]): after the former only a new process helps.
//!
//! # How it is made
//!
//! A [`Gpu`] belongs to the thread that opened it. Other threads see its [`Context`], with which they pin host memory
//! ([`Pinned`]) and fill it; what cannot stay pinned passes through a [`Ring`].

mod blas;
mod check;
mod driver;
mod error;
mod gpu;
mod memory;
mod module;
pub mod ops;
mod pinned;
mod pool;
mod rates;
mod ring;
mod stream;
pub mod telemetry;

pub use check::{PROOF_KERNELS, busy, busy_on_host, checksum, checksum_on_host, self_test};
pub use cudarc::driver::sys::{CUfunction, CUstream};
pub use driver::{Context, DeviceInfo, devices, driver_version};
pub use error::Error;
pub use gpu::{Gpu, SCRATCH_PURPOSES};
pub use memory::{BUFFER_ALIGNMENT, Buffer, Span, SpanMut};
pub use module::{Function, has_kernels};
pub use pinned::{HostMemory, Pages, Pinned, Room, memory_file, pinned_bytes};
pub use pool::PoolFigures;
pub use rates::Rates;
pub use ring::Ring;
pub use stream::{CHUNK_BYTES, Copies, Event};
