//! What happened, in order.

use serde::{Deserialize, Serialize};

use lowtide_core::job::{JobId, Moment, Priority};

use crate::{Progress, WorkerId};

/// An event's number: larger ones happened later. Also its id in a stream of server-sent events.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct EventId(pub u64);

/// What happened to a job, or to the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Happening {
    /// It was accepted.
    Submitted {
        /// How much it matters.
        #[serde(with = "crate::words::text")]
        priority: Priority,
    },
    /// A worker has it.
    Claimed {
        /// Which.
        worker: WorkerId,
        /// The attempt's number.
        attempt: u32,
    },
    /// It moved on.
    Progress(Progress),
    /// Its worker steps another one meanwhile.
    Parked,
    /// Its worker steps it again.
    Unparked,
    /// It waits for a person, or will at the worker's next look.
    Paused {
        /// Whether a worker still has it.
        held: bool,
    },
    /// A person let it go on.
    Resumed,
    /// The worker gave it back.
    GivenBack,
    /// An attempt failed, or its worker vanished; another one follows.
    Delayed {
        /// Why.
        reason: String,
        /// Not before this time.
        #[serde(with = "crate::words::moment")]
        until: Moment,
    },
    /// It has its result.
    Done,
    /// It was given up: it failed for good, or as often as it may.
    Failed {
        /// Why the last attempt did.
        reason: String,
    },
    /// Somebody no longer wants it; the worker stops at its next look.
    CancelRequested,
    /// It was cancelled.
    Cancelled,
    /// It has another turn.
    Moved {
        /// How much it matters now.
        #[serde(with = "crate::words::text")]
        priority: Priority,
    },
    /// A person sent it through the queue again.
    Requeued,
    /// The whole queue was held or let go.
    QueueHeld {
        /// Whether it is held now.
        held: bool,
    },
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number.
    pub id: EventId,
    /// When it happened.
    #[serde(with = "crate::words::moment")]
    pub at: Moment,
    /// To which job; `None` for the queue as a whole.
    #[serde(with = "crate::words::job_id_option")]
    pub job: Option<JobId>,
    /// What happened.
    #[serde(flatten)]
    pub what: Happening,
}

/// A piece of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// The events, oldest first.
    pub events: Vec<Event>,
    /// Whether some after the one asked for were already thrown away, so that the reader should look at the whole
    /// state again.
    pub gap: bool,
}
