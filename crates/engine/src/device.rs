//! Devices that compute.

pub mod cpu;
