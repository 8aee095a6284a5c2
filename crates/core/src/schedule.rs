//! What a worker does next, decided from what it knows, with the reason.
//!
//! [`decide`] is asked whenever a worker is free and between the steps of a running session. It knows the queued jobs,
//! the open sessions, where every model is and the ledger, and answers with one [`Action`].
//!
//! Order is a number of seconds, as if a job had waited so long: its true wait, plus a head start for its class, less a
//! multiple of the time its model takes to load, all of it limited, so that everything is made up for by waiting. Jobs
//! whose deadline comes near go ahead of their own class and the one above, the nearest first. Besides, of every
//! [`Policy::turn`] starts of a free worker one goes to the job submitted first, whatever its class. Hence two promises
//! that do not depend on how much urgent work arrives:
//!
//! * a job is passed over at a start only in favour of jobs submitted within [`Policy::head_start_max_s`] of it, or of
//!   jobs with a deadline;
//! * a job that fits, of which `older` others were submitted before it, starts after at most
//!   [`Policy::starts_max`]`(older, workers)` starts.
//!
//! A running session is parked only for a job of a higher class, or, when that one is at most half as long as what is
//! left, after a quantum: [`Policy::quantum_ratio`] times the cost of switching, and no less time than the other takes.

mod choose;
mod estimate;
mod peers;
mod policy;
mod reason;
mod room;
mod takeover;

use crate::job::{JobId, Moment, Priority};
use crate::lifecycle::Residency;
use crate::{Bytes, Ledger};

pub use estimate::{Estimate, WorkerView, estimate, retry_after_s};
pub use peers::{Left, Peer, left_to_peers};
pub use policy::Policy;
pub use reason::{SetAside, Stay, Why};
pub use room::{Eviction, NoRoom};

use choose::Choosing;

/// A queued job, as far as deciding needs to know it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The job.
    pub id: JobId,
    /// What kind of job it is, such as `image`.
    pub kind: String,
    /// The model it runs on.
    pub model: String,
    /// Its class.
    pub priority: Priority,
    /// When it was submitted: a retry does not change that.
    pub submitted: Moment,
    /// Before which it may not start, as after a failed attempt.
    pub not_before: Option<Moment>,
    /// When it should be finished.
    pub deadline: Option<Moment>,
    /// Predicted seconds with the model on the device.
    pub seconds: f64,
    /// Predicted peak on the device, the model's weights included.
    pub peak: Bytes,
    /// What it can share a batch with, where batching is possible.
    pub batch: Option<Batch>,
}

/// How a job shares a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Jobs with the same key can.
    pub key: BatchKey,
    /// What each further job adds to the peak.
    pub more: Bytes,
    /// What each further job adds to the predicted seconds.
    pub more_seconds: f64,
}

/// What has to agree for jobs to be one batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchKey {
    /// The model.
    pub model: String,
    /// The size of the result, such as width and height.
    pub size: [u32; 2],
    /// A digest of every other setting that has to be the same.
    pub settings: u64,
}

/// What an open session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// It is the one that steps.
    Active {
        /// Since when, or since it last was resumed.
        since: Moment,
    },
    /// It waits for its next turn.
    Parked,
    /// A hand stopped it. It is not resumed, and once parked does not count as open.
    Held,
}

/// An open session.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Its job; of a batch, the first.
    pub id: JobId,
    /// The model it runs on.
    pub model: String,
    /// Its class.
    pub priority: Priority,
    /// When it was submitted.
    pub submitted: Moment,
    /// When it should be finished.
    pub deadline: Option<Moment>,
    /// Predicted seconds still to go, with the model on the device.
    pub remaining_s: f64,
    /// Predicted peak of what is to come, the model's weights included.
    pub peak: Bytes,
    /// Bytes it holds on the device now, the model's weights not included.
    pub holds: Bytes,
    /// Bytes of these that it keeps while parked.
    pub keeps: Bytes,
    /// What it does.
    pub state: SessionState,
}

/// A model, as far as deciding needs to know it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelView {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub residency: Residency,
    /// Bytes it holds on the device.
    pub device: Bytes,
    /// Bytes it holds in host memory.
    pub host: Bytes,
    /// Bytes it would hold in host memory if it were moved there.
    pub host_full: Bytes,
    /// How many use it at this moment: the active session, a transition that is under way, a hand.
    pub in_flight: u32,
    /// When it was used last.
    pub last_used: Moment,
    /// Predicted seconds from host memory to the device.
    pub from_host_s: f64,
    /// Predicted seconds from its files to the device.
    pub from_file_s: f64,
}

impl ModelView {
    /// Predicted seconds until a job can run on it.
    pub fn load_s(&self) -> f64 {
        match self.residency {
            Residency::Device => 0.0,
            Residency::Host => self.from_host_s,
            Residency::Unloaded => self.from_file_s,
        }
    }
}

/// The worker and its device, as they are now.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// Who holds which byte.
    pub ledger: &'a Ledger,
    /// Host memory that may still be used for models.
    pub host_free: Bytes,
    /// Every model this worker can run, loaded or not.
    pub models: &'a [ModelView],
    /// The open sessions, at most one of them active.
    pub sessions: &'a [Session],
    /// How many sessions may be open: `max_concurrent_jobs`.
    pub open_max: usize,
    /// A hand paused the worker, or it is about to end: what runs is parked, nothing starts.
    pub paused: bool,
    /// Starts since one was the turn of the oldest: [`Decision::starts_since_oldest`] of the last decision carried out.
    pub starts_since_oldest: u32,
}

/// What to do before a job's first or next step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Switch {
    /// The active session to park first.
    pub park: Option<JobId>,
    /// The models to move away then, in this order.
    pub evict: Vec<Eviction>,
    /// Loading of the job's model; none when it is on the device.
    pub load: Option<Load>,
}

/// A load before a job's step.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Where the model is.
    pub from: Residency,
    /// Predicted seconds until it is on the device.
    pub seconds: f64,
}

/// What a worker does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The active session does another step.
    Continue {
        /// The session.
        job: JobId,
    },
    /// Queued jobs are claimed and become one session.
    Start {
        /// The job.
        job: JobId,
        /// What kind of job it is.
        kind: String,
        /// Its model.
        model: String,
        /// Jobs that share its batch.
        mates: Vec<JobId>,
        /// What has to happen first.
        switch: Switch,
    },
    /// A parked session goes on.
    Resume {
        /// The session.
        job: JobId,
        /// Its model.
        model: String,
        /// What has to happen first.
        switch: Switch,
    },
    /// The active session is parked, and nothing takes its place yet.
    Park {
        /// The session.
        job: JobId,
    },
    /// Nothing can be done before a moment, unless something changes.
    Wait {
        /// When a job may be tried again.
        until: Moment,
    },
    /// Nothing can be done unless something changes.
    Nothing,
}

/// An action, why it is taken, and what was found on the way. Its `Display` is the sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Why.
    pub why: Why,
    /// Jobs that could not be considered, or whose deadline cannot be met any more.
    pub set_aside: Vec<SetAside>,
    /// What [`Device::starts_since_oldest`] is once this is carried out.
    pub starts_since_oldest: u32,
}

/// Decides what a worker does next.
///
/// # Panics
/// When more than one session is active: that is a bug in the worker.
pub fn decide(
    candidates: &[Candidate],
    device: &Device<'_>,
    policy: &Policy,
    now: Moment,
) -> Decision {
    let mut active = None;
    for session in device.sessions {
        if let SessionState::Active { since } = session.state {
            assert!(active.is_none(), "two active sessions: this is a bug");
            active = Some((session, since));
        }
    }
    let mut choosing = Choosing {
        candidates,
        device,
        policy,
        now,
        set_aside: Vec::new(),
    };
    let (action, why, starts) = match active {
        Some((session, _)) if device.paused => {
            (Action::Park { job: session.id }, Why::Paused, None)
        }
        None if device.paused => (Action::Nothing, Why::Paused, None),
        Some((session, since)) => choosing.between_steps(session, since),
        None => choosing.when_free(),
    };
    Decision {
        action,
        why,
        set_aside: choosing.set_aside,
        starts_since_oldest: starts.unwrap_or(device.starts_since_oldest),
    }
}
