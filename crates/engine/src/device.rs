//! Devices that compute.

pub mod cpu;
pub mod memory;
