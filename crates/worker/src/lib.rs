//! Works: joins the queue, the schedule, the lives of models and the engine on one device.
//!
//! A [`Worker`] is one thread that decides, moves models and steps sessions, with two kinds of threads beside it: a
//! keeper, which renews leases and says how things are whatever the first one is busy with, and publishers, which write
//! finished files, so that no computing waits for a disk.
//!
//! It decides nothing itself: what runs next is [`lowtide_core::schedule`]'s business, when a model comes and goes
//! [`lowtide_core::lifecycle`]'s, whether a job fits the planner's. The worker carries out, and says why.

#![forbid(unsafe_code)]

mod chain;
mod depot;
mod error;
mod explain;
mod keeper;
mod log;
mod meter;
mod publisher;
mod queue;
mod session;
mod setup;
mod shelf;
mod status;
mod stop;
mod stopwatch;
mod worker;

pub use error::{Error, Result};
pub use log::{Level, Line, Log};
pub use setup::{Folders, ModelOptions, NoFolders, Setup, WorkerOptions};
pub use stop::Stop;
pub use worker::Worker;
