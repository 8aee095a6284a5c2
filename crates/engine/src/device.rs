//! Devices that compute.

pub mod cpu;
pub mod figures;
pub mod memory;
