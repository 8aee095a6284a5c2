//! Decides: bytes, layouts, plans, the ledger and the simulated device. No I/O, clocks or threads.
//!
//! Planning reads top to bottom: a [`PipelineLayout`] says what the phases of a model consist of and which rungs each
//! can be run on, a [`DeviceProfile`] how fast things are, a [`Budget`] how much memory there is; [`plan`] answers with
//! a [`Plan`] that explains itself, or with [`DoesNotFit`] and the numbers. The plan runs on a device or on a
//! [`SimDevice`], which share the rules of time and, through the [`Ledger`], of memory.
//!
//! Serving begins with the words of [`job`]; [`schedule`] decides what a worker does next, and [`lifecycle`] when a
//! model comes to the device and when it leaves.

#![forbid(unsafe_code)]

mod bytes;
mod calendar;
mod chain;
mod dtype;
mod explain;
mod formula;
pub mod job;
mod layout;
mod ledger;
pub mod lifecycle;
mod pipeline;
mod plan;
mod planner;
mod residency;
pub mod schedule;
mod search;
mod sim;
mod timeline;

pub use bytes::{Bytes, NotASize};
pub use chain::{
    Ahead, ChainPlan, ChainRoom, PhaseBlocks, Share, StepCost, StepPlan, plan_chain, refuse_chain,
    worth_reading,
};
pub use dtype::Dtype;
pub use explain::{Cause, MoreMemory, Reason, Rung};
pub use formula::{Formula, Term, UnknownVariable, VarName, Vars};
pub use layout::{BlockLayout, ComponentLayout, TensorLayout, WEIGHT_ALIGNMENT};
pub use ledger::{Holding, Kind, Ledger, LedgerError, Snapshot};
pub use pipeline::{
    Budget, DeviceProfile, Ladder, Mode, Offload, PhaseLayout, PipelineLayout, Quality,
};
pub use plan::{DoesNotFit, PhasePlan, Placement, Plan, PlanError};
pub use planner::plan;
pub use residency::RING_SLOTS;
pub use sim::{Fault, SimDevice, SimError, SimRun};
