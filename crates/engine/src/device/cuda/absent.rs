//! A build without GPUs.

use std::sync::Arc;

use lowtide_core::Bytes;

use crate::device::ground::Accelerator;

const WHY: &str = "this build computes on the processor alone; scripts/build-cuda makes one that knows NVIDIA GPUs";

/// Why no GPU can be used; `None` where one can.
pub fn absent() -> Option<String> {
    Some(WHY.to_owned())
}

/// The numbers of the GPUs that can be used.
pub fn ordinals() -> Vec<usize> {
    Vec::new()
}

/// The memory of a GPU that can be used.
pub fn total(_ordinal: usize) -> Option<Bytes> {
    None
}

/// The GPUs that can be used, in words, or why there are none.
///
/// # Errors
/// Always, in words for the user.
pub fn shown() -> Result<String, String> {
    Err(WHY.to_owned())
}

/// Opens a GPU for pipelines.
///
/// # Errors
/// Always, in words for the user.
pub fn open(
    _ordinal: usize,
    _budget: Option<Bytes>,
    _reserve: Option<Bytes>,
) -> Result<Arc<dyn Accelerator>, String> {
    Err(WHY.to_owned())
}
