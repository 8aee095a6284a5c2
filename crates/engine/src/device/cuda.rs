//! NVIDIA GPUs, where this build knows them (feature `cuda`); else the words that say so.

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod there;

#[cfg(not(feature = "cuda"))]
pub use absent::{absent, open, ordinals, shown, total};
#[cfg(feature = "cuda")]
pub use there::{absent, open, ordinals, shown, total};
