//! Moves in one sentence with numbers.

use std::fmt;
use std::time::Duration;

use super::keep::Because;
use super::{AfterJob, Effect, Order, Residency};
use crate::explain::seconds;

/// Why a model moves, as data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MoveWhy {
    /// A job needs it.
    Job,
    /// A hand asked for it.
    Hand,
    /// It is to be there before the first job.
    Preload,
    /// Another model needs its room.
    MakeRoom,
    /// No job uses it.
    Rest {
        /// Since how long.
        idle: Duration,
        /// What decided that this is long enough.
        because: Because,
    },
}

impl fmt::Display for MoveWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MoveWhy::Job => f.write_str("a job needs it"),
            MoveWhy::Hand => f.write_str("asked for by hand"),
            MoveWhy::Preload => f.write_str("wanted before the first job"),
            MoveWhy::MakeRoom => f.write_str("another model needs the room"),
            MoveWhy::Rest { idle, because } => {
                write!(f, "idle {}, {because}", seconds(idle.as_secs_f64()))
            }
        }
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Because::Timer(idle) => write!(f, "the idle timer is {}", seconds(idle.as_secs_f64())),
            Because::After(AfterJob::Keep) => f.write_str("it is kept after a job"),
            Because::After(AfterJob::Offload) => f.write_str("it is offloaded after a job"),
            Because::After(AfterJob::Release) => f.write_str("it is released after a job"),
            Because::Asked(time) => write!(f, "keep-alive is {}", seconds(time.as_secs_f64())),
            Because::Rate {
                gap_s: Some(gap_s),
                reload_s,
            } => write!(
                f,
                "asked for every {} while loading takes {}",
                seconds(*gap_s),
                seconds(*reload_s)
            ),
            Because::Rate {
                gap_s: None,
                reload_s,
            } => write!(
                f,
                "asked for once while loading takes {}",
                seconds(*reload_s)
            ),
            Because::Forever => f.write_str("it is kept for ever"),
        }
    }
}

impl fmt::Display for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Order::Load => "load",
            Order::Offload => "offload",
            Order::Release => "release",
        })
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::Move { from, to, why } => write!(f, "moves from {from} to {to}: {why}"),
            Effect::Ready => f.write_str("ready on the device"),
            Effect::Already(residency) => write!(f, "is {residency} already"),
            Effect::Deferred {
                order,
                in_flight,
                moving,
            } => {
                write!(f, "{order} follows later: ")?;
                write_busy(f, *in_flight, *moving)
            }
            Effect::Refused { in_flight, moving } => {
                f.write_str("cannot make room: ")?;
                write_busy(f, *in_flight, *moving)
            }
            Effect::WakeAt(moment) => write!(f, "looks again at {:.3} s", moment.as_secs_f64()),
        }
    }
}

fn write_busy(f: &mut fmt::Formatter<'_>, in_flight: u32, moving: bool) -> fmt::Result {
    match in_flight {
        0 => {}
        1 => f.write_str("1 job uses it")?,
        n => write!(f, "{n} jobs use it")?,
    }
    if moving {
        f.write_str(if in_flight > 0 {
            ", it is moving"
        } else {
            "it is moving"
        })?;
    }
    Ok(())
}
