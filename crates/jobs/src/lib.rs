//! Remembers: jobs, events, commands, workers and artifacts, durably.
//!
//! A client's [`Submission`] becomes a [`Job`] with a [`JobState`](lowtide_core::job::JobState); a worker that claims it gets a [`Lease`], whose attempt
//! number every later write carries, so that a worker which stalled past its lease can no longer change anything. The
//! rules of a life are arithmetic on the record alone; a [`JobStore`] keeps records and applies those rules
//! within transactions. [`SqliteStore`] is the embedded one, [`RedisStore`] the one for many machines. [`FolderArtifacts`] keeps the finished files,
//! [`FolderInputs`] those that jobs begin from.
//!
//! Time is passed in. Which job runs next is not decided here: a store lists [`Candidates`], in order, and somebody
//! else chooses.

#![forbid(unsafe_code)]

mod accept;
mod access;
mod artifacts;
mod command;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod event;
mod id;
mod inputs;
mod lifecycle;
mod numbers;
mod record;
mod redis;
pub mod report;
mod sessions;
mod sqlite;
mod store;
mod trace;
mod turns;
mod webhook;
mod words;

pub use access::{AccessKey, Limits, NoAccess, Token, Usage, recognise};
pub use artifacts::{ArtifactStore, FolderArtifacts, checked_copy};
pub use command::{Acknowledgement, Command, CommandId, Heartbeat, Order, WorkerStatus};
pub use error::{Clash, Lost, Result, StoreError, Unclaimable};
pub use event::{Event, EventId, Events, Happening};
pub use id::{ArtifactId, NotAWorkerId, WorkerId};
pub use inputs::{FolderInputs, InputId, InputStore, NotAnInputId};
pub use lifecycle::Passed;
pub use record::{
    Artifact, Attempt, AttemptEnd, Candidate, Holder, Job, Lease, Outcome, Preview, Progress,
    Quota, SavedSession, Submission, Wishes,
};
pub use redis::{Listen, RedisOptions, RedisStore, TlsFiles, redacted};
pub use sessions::SessionStore;
pub use sqlite::{Durability, SqliteOptions, SqliteStore};
pub use store::{
    Accepted, Candidates, Claimed, Directive, JobStore, Listing, Minute, Move, Policy, Removed,
    Retention, Stats, Swept,
};
pub use trace::{NotATraceParent, Span, TraceParent, Tracer};
pub use webhook::{Call, Delivery, DeliveryState, Settled, Webhook};
pub use words::random_job_id;
