//! What a worker promises, seen through the queue alone: nothing here looks inside it.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod chains;
mod processor;
mod promises;
mod rig;
