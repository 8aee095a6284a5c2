//! What the scheduler and the lives of models promise: sentences by table, rules by property, and a simulated service
//! with planned faults.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

mod lives;
mod promises;
mod rules;
mod sentences;
mod service;
