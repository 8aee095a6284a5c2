//! What a worker is told to do, and what it tells of itself.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use lowtide_core::job::{JobId, Moment};

use crate::WorkerId;

/// A command's number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct CommandId(pub u64);

impl fmt::Display for CommandId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Something to do. Doing it twice does no harm: a worker that dies before it acknowledges is told again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "command")]
pub enum Order {
    /// Bring a model to the device.
    Load {
        /// Which.
        model: String,
    },
    /// Take a model off the device, keep it in host memory.
    Offload {
        /// Which; `None` for all.
        model: Option<String>,
    },
    /// Take a model out of both.
    Release {
        /// Which; `None` for all.
        model: Option<String>,
    },
    /// Look at once whether this job was cancelled.
    Cancel {
        /// Which.
        #[serde(with = "crate::words::text")]
        job: JobId,
    },
    /// Look at once whether this job was paused; without one, begin no new ones.
    Pause {
        /// Which; `None` for the worker.
        #[serde(with = "crate::words::job_id_option")]
        job: Option<JobId>,
    },
    /// Begin jobs again.
    Resume,
    /// Park what runs, claim nothing, exit.
    Drain,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// When.
    #[serde(with = "crate::words::moment")]
    pub at: Moment,
    /// Whether it was carried out.
    pub ok: bool,
    /// A sentence for people.
    pub message: String,
}

/// An order to one worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Its number.
    pub id: CommandId,
    /// Who should do it.
    pub worker: WorkerId,
    /// What to do.
    pub order: Order,
    /// When it was given.
    #[serde(with = "crate::words::moment")]
    pub sent: Moment,
    /// From then on it need not be done any more.
    #[serde(with = "crate::words::moment")]
    pub expires: Moment,
    /// How it ended.
    pub acknowledged: Option<Acknowledgement>,
}

/// What a worker says of itself, from time to time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who.
    pub worker: WorkerId,
    /// After so long it counts as gone unless it says something again.
    pub ttl: Duration,
    /// Its model cards and device profile, JSON; `None` leaves what it said before.
    pub cards: Option<String>,
    /// Residency, memory, what runs: JSON.
    pub status: String,
}

/// What is known of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Who.
    pub worker: WorkerId,
    /// When it was first heard of.
    #[serde(with = "crate::words::moment")]
    pub first_seen: Moment,
    /// When it was last heard of.
    #[serde(with = "crate::words::moment")]
    pub seen: Moment,
    /// When it counts as gone.
    #[serde(with = "crate::words::moment")]
    pub expires: Moment,
    /// Its model cards and device profile, JSON.
    pub cards: Option<String>,
    /// Residency, memory, what runs: JSON.
    pub status: String,
}

impl WorkerStatus {
    /// Whether it still counts as there.
    pub fn is_alive(&self, now: Moment) -> bool {
        now < self.expires
    }
}
