//! What a worker promises, seen through the queue alone: nothing here looks inside it.

mod processor;
mod promises;
mod rig;
