//! Speaks: HTTP, events, metrics, the panel.
//!
//! The server knows jobs by their records in a [`JobStore`](lowtide_jobs::JobStore) and workers by what they say of
//! themselves there. What a kind of job means is behind a [`Door`], which whoever wires the program opens.

#![forbid(unsafe_code)]

mod door;

pub use door::{Checked, Door, Kind, ModelEntry, Planned, Refused};
