//! Decisions in one sentence with numbers.

use std::fmt;

use super::room::{Eviction, NoRoom};
use super::{Action, Decision, Switch};
use crate::Bytes;
use crate::explain::seconds;
use crate::job::{JobId, Priority};
use crate::lifecycle::Residency;

/// Why a worker does what it does, as data.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// It counts as having waited longest.
    Best {
        /// Its class.
        priority: Priority,
        /// Seconds it waited.
        waited_s: f64,
        /// Seconds it counts as having waited, less than 0 for one that stands far behind.
        as_if_s: f64,
        /// Among so many that could run.
        of: usize,
    },
    /// It was submitted first, and it is that one's turn.
    Oldest {
        /// Seconds it waited.
        waited_s: f64,
        /// Starts of others since the last such turn.
        starts: u32,
    },
    /// Its deadline is near.
    Deadline {
        /// Seconds it could still be put off.
        slack_s: f64,
        /// Seconds it waited.
        waited_s: f64,
    },
    /// It is the oldest's turn, which has no room as long as parked sessions hold it: they go on.
    MakesRoom(NoRoom),
    /// It is of a higher class, or in more of a hurry, than the session that ran.
    Higher {
        /// Its class.
        priority: Priority,
        /// The class of the session that ran.
        parked: Priority,
        /// Where its deadline is near: seconds it could still be put off.
        slack_s: Option<f64>,
        /// Predicted seconds left of the session that ran.
        remaining_s: f64,
        /// Predicted cost of going there and back.
        switch_s: f64,
    },
    /// It is much shorter than what is left of the session that ran, and that one had its share.
    Quantum {
        /// Predicted seconds of it.
        seconds: f64,
        /// Predicted seconds left of the session that ran.
        remaining_s: f64,
        /// Seconds that one ran.
        ran_s: f64,
        /// Predicted cost of going there and back.
        switch_s: f64,
        /// Whether both models are on the device.
        both_resident: bool,
    },
    /// The session that ran goes on.
    Stays {
        /// Predicted seconds left.
        remaining_s: f64,
        /// Why nothing takes its place.
        stay: Stay,
    },
    /// There is no room for any job.
    NoRoom(NoRoom),
    /// Every job waits for its next attempt.
    Later {
        /// Seconds until the first may be tried.
        wait_s: f64,
    },
    /// There is nothing to do.
    Idle {
        /// Jobs that wait but cannot run here.
        unfit: usize,
    },
    /// The worker is paused, or about to end.
    Paused,
}

/// Why nothing takes a running session's place.
#[derive(Clone, Debug, PartialEq)]
pub enum Stay {
    /// Nothing waits.
    Alone,
    /// Nothing that waits is of a higher class or much shorter.
    NoneBetter {
        /// So many jobs wait.
        waiting: usize,
    },
    /// As many sessions are open as may be.
    Full {
        /// Open sessions.
        open: usize,
        /// How many may be.
        open_max: usize,
    },
    /// So many were started before the oldest that nothing but that one may start.
    OldestNext {
        /// Starts since the oldest's turn.
        starts: u32,
    },
    /// Switching takes longer than what is left.
    NearlyDone {
        /// Predicted cost of switching.
        switch_s: f64,
    },
    /// It has not had its share yet.
    Quantum {
        /// Seconds it ran.
        ran_s: f64,
        /// Seconds it may run before a shorter one takes its place.
        quantum_s: f64,
    },
    /// What should take its place has no room.
    NoRoom(NoRoom),
}

/// A queued job that is not considered, or cannot be what was asked of it.
#[derive(Clone, Debug, PartialEq)]
pub enum SetAside {
    /// Its deadline cannot be met any more, even if it began now. It keeps its place in the queue.
    Hopeless {
        /// The job.
        job: JobId,
        /// Predicted seconds.
        seconds: f64,
        /// Predicted seconds to load its model.
        load_s: f64,
        /// By how much it is missed.
        late_s: f64,
    },
    /// It needs more than this device can have, whatever is moved away.
    TooLarge {
        /// The job.
        job: JobId,
        /// Its peak.
        peak: Bytes,
        /// What the device could have for it.
        within_reach: Bytes,
        /// The budget.
        budget: Bytes,
    },
    /// This worker does not have its model.
    UnknownModel {
        /// The job.
        job: JobId,
        /// The model.
        model: String,
    },
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NoRoom {
            needed,
            reachable,
            models,
            sessions,
        } = self;
        write!(
            f,
            "{} are needed but only {reachable} can be free: {models} belong to models in use, {sessions} to open \
             sessions",
            needed.to_string_up()
        )
    }
}

impl Why {
    /// Why a running session is parked for another.
    fn write_takeover(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Higher {
                priority,
                parked,
                slack_s,
                remaining_s,
                switch_s,
            } => {
                match slack_s {
                    Some(slack_s) => {
                        write!(f, "its deadline leaves {}", seconds(*slack_s))?;
                    }
                    None => write!(f, "{priority} before {parked}")?,
                }
                write!(
                    f,
                    ", with {} left of the other and {} to switch",
                    seconds(*remaining_s),
                    seconds(*switch_s)
                )
            }
            Why::Quantum {
                seconds: short_s,
                remaining_s,
                ran_s,
                switch_s,
                both_resident,
            } => write!(
                f,
                "takes {} where {} are left of the other, which ran {}; {}switching costs {}",
                seconds(*short_s),
                seconds(*remaining_s),
                seconds(*ran_s),
                if *both_resident {
                    "both models stay and "
                } else {
                    ""
                },
                seconds(*switch_s)
            ),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Best {
                priority,
                waited_s,
                as_if_s: _,
                of: 1,
            } => write!(f, "{priority}, waited {}, the only one", seconds(*waited_s)),
            Why::Best {
                priority,
                waited_s,
                as_if_s,
                of,
            } => {
                let sign = if *as_if_s < 0.0 { "-" } else { "" };
                write!(
                    f,
                    "{priority}, waited {}, first of {of} counting as {sign}{}",
                    seconds(*waited_s),
                    seconds(as_if_s.abs())
                )
            }
            Why::Oldest { waited_s, starts } => write!(
                f,
                "the oldest, waited {}: its turn after {starts} others",
                seconds(*waited_s)
            ),
            Why::Deadline { slack_s, waited_s } => write!(
                f,
                "its deadline leaves {}, waited {}",
                seconds(*slack_s),
                seconds(*waited_s)
            ),
            Why::MakesRoom(no_room) => {
                write!(
                    f,
                    "ends sooner to make room for the oldest, where {no_room}"
                )
            }
            Why::Higher { .. } | Why::Quantum { .. } => self.write_takeover(f),
            Why::Stays { remaining_s, stay } => {
                write!(f, "{} left, {stay}", seconds(*remaining_s))
            }
            Why::NoRoom(no_room) => no_room.fmt(f),
            Why::Later { wait_s } => {
                write!(f, "the next attempt may begin in {}", seconds(*wait_s))
            }
            Why::Idle { unfit: 0 } => f.write_str("no job waits"),
            Why::Idle { unfit: 1 } => f.write_str("the one waiting job cannot run here"),
            Why::Idle { unfit } => write!(f, "none of {unfit} waiting jobs can run here"),
            Why::Paused => f.write_str("the worker is paused"),
        }
    }
}

impl fmt::Display for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stay::Alone => f.write_str("nothing waits"),
            Stay::NoneBetter { waiting } => write!(
                f,
                "none of {waiting} waiting is of a higher class or much shorter"
            ),
            Stay::Full { open, open_max } => {
                write!(f, "{open} of {open_max} sessions are open")
            }
            Stay::OldestNext { starts } => {
                write!(f, "after {starts} others the oldest is next to start")
            }
            Stay::NearlyDone { switch_s } => {
                write!(f, "switching would take {}", seconds(*switch_s))
            }
            Stay::Quantum { ran_s, quantum_s } => write!(
                f,
                "ran {} of the {} it may before a shorter one",
                seconds(*ran_s),
                seconds(*quantum_s)
            ),
            Stay::NoRoom(no_room) => no_room.fmt(f),
        }
    }
}

impl fmt::Display for SetAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetAside::Hopeless {
                job,
                seconds: run_s,
                load_s,
                late_s,
            } => write!(
                f,
                "{job} misses its deadline by {}: it takes {} and its model {} to load",
                seconds(*late_s),
                seconds(*run_s),
                seconds(*load_s)
            ),
            SetAside::TooLarge {
                job,
                peak,
                within_reach,
                budget,
            } => write!(
                f,
                "{job} needs {} but at most {within_reach} of the budget of {budget} can be had",
                peak.to_string_up()
            ),
            SetAside::UnknownModel { job, model } => {
                write!(f, "{job} needs the model '{model}', which is not here")
            }
        }
    }
}

impl fmt::Display for Eviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.to {
            Residency::Host => "to host memory",
            Residency::Unloaded | Residency::Device => "out",
        };
        write!(
            f,
            "moves '{}' ({}, idle {}) {place}",
            self.model,
            self.bytes,
            seconds(self.idle_s)
        )
    }
}

impl fmt::Display for Switch {
    /// Empty when nothing has to happen, else each thing after a semicolon.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(park) = self.park {
            write!(f, "; parks {park}")?;
        }
        for eviction in &self.evict {
            write!(f, "; {eviction}")?;
        }
        if let Some(load) = &self.load {
            let place = match load.from {
                Residency::Unloaded => "its files",
                Residency::Host => "host memory",
                Residency::Device => "the device",
            };
            write!(f, "; loads from {place} in {}", seconds(load.seconds))?;
        }
        Ok(())
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = &self.why;
        match &self.action {
            Action::Continue { job } => write!(f, "{job} goes on: {why}"),
            Action::Start {
                job,
                kind,
                model,
                mates,
                switch,
            } => {
                write!(f, "{job} starts ({kind} on '{model}'): {why}{switch}")?;
                match mates.len() {
                    0 => Ok(()),
                    more => write!(f, "; {more} more in its batch"),
                }
            }
            Action::Resume { job, model, switch } => {
                write!(f, "{job} is resumed (on '{model}'): {why}{switch}")
            }
            Action::Park { job } => write!(f, "{job} is parked: {why}"),
            Action::Wait { until: _ } | Action::Nothing => write!(f, "waits: {why}"),
        }
    }
}
