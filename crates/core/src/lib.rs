//! Decides: bytes, layouts, plans, the ledger and the simulated device. No I/O, clocks or threads.

#![forbid(unsafe_code)]

mod bytes;
mod dtype;
mod layout;

pub use bytes::{Bytes, NotASize};
pub use dtype::Dtype;
pub use layout::{BlockLayout, ComponentLayout, TensorLayout, WEIGHT_ALIGNMENT};
