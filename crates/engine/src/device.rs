//! Devices that compute.

pub mod cpu;
pub mod figures;
pub(crate) mod limits;
pub mod memory;
