//! Devices that compute.

pub mod cpu;
pub mod cuda;
pub mod figures;
pub mod ground;
pub(crate) mod limits;
pub mod memory;
pub mod neighbours;
