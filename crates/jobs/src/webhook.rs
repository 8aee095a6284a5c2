//! Whom to tell what becomes of a job, and how far that got.

use std::fmt;

use lowtide_core::Bytes;
use lowtide_core::job::{JobId, Moment};
use serde::{Deserialize, Serialize};

use crate::Job;

/// An address that is told of a job. Its path and its query may be secrets: they are shown nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// `http://` or `https://`.
    pub url: String,
    /// When a worker begins.
    #[serde(default)]
    pub start: bool,
    /// While it is worked on: how far it is.
    #[serde(default)]
    pub progress: bool,
    /// When it is over.
    #[serde(default)]
    pub completed: bool,
}

impl Webhook {
    /// Longest address: what clients and proxies take, and no more.
    pub const URL_LEN_MAX: Bytes = Bytes(2_048);

    /// The address without what may be secret of it.
    pub fn shown(&self) -> String {
        let (scheme, rest) = self.url.split_once("://").unwrap_or(("", &self.url));
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = host.rsplit('@').next().unwrap_or_default();
        format!("{scheme}://{host}/…")
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Webhook").field(&self.shown()).finish()
    }
}

/// That a job is over is still to be told to its webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The job.
    pub job: JobId,
    /// How often it was tried, this time included.
    pub tries: u32,
    /// Until then nobody else tries; names this try.
    pub until: Moment,
}

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It was told.
    Told,
    /// It is to be tried again.
    Again {
        /// Not before.
        due: Moment,
        /// Why it was not told, without what may be secret.
        problem: String,
    },
    /// It is not tried any more.
    GivenUp {
        /// Why it was not told, without what may be secret.
        problem: String,
    },
    /// There is nothing to tell: the job goes on.
    Void,
}

/// How far telling the end of a job got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// What came of the latest try.
    pub state: DeliveryState,
    /// How often it was tried.
    pub tries: u32,
    /// When the latest try ended.
    #[serde(with = "crate::words::moment")]
    pub at: Moment,
    /// When the next one is due.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::words::moment_option"
    )]
    pub due: Option<Moment>,
    /// Why it was not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What came of the latest try to tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It was told.
    Told,
    /// It is tried again.
    Waiting,
    /// It is not tried any more.
    GivenUp,
}

impl DeliveryState {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            DeliveryState::Told => "told",
            DeliveryState::Waiting => "waiting",
            DeliveryState::GivenUp => "given_up",
        }
    }
}

impl Job {
    /// Whether its end is to be told.
    pub(crate) fn calls(&self) -> bool {
        let wants = self
            .webhook
            .as_ref()
            .is_some_and(|webhook| webhook.completed);
        wants && self.state.is_final()
    }

    /// Notes what came of a try. Whoever asks for it has made sure that the try still counts.
    pub(crate) fn settle(&mut self, call: &Call, settled: &Settled, now: Moment) {
        let (state, due, problem) = match settled {
            Settled::Told => (DeliveryState::Told, None, None),
            Settled::Again { due, problem } => {
                (DeliveryState::Waiting, Some(*due), Some(problem.clone()))
            }
            Settled::GivenUp { problem } => (DeliveryState::GivenUp, None, Some(problem.clone())),
            Settled::Void => return,
        };
        self.delivery = Some(Delivery {
            state,
            tries: call.tries,
            at: now,
            due,
            problem,
        });
    }
}

impl Settled {
    /// When it is due again; `None` where nothing more is tried.
    pub(crate) fn due(&self) -> Option<Moment> {
        match self {
            Settled::Again { due, .. } => Some(*due),
            Settled::Told | Settled::GivenUp { .. } | Settled::Void => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_is_not_shown() {
        let webhook = Webhook {
            url: "https://me:secret@host.example:8/hook/secret?token=secret".to_owned(),
            start: false,
            progress: false,
            completed: true,
        };
        assert_eq!(webhook.shown(), "https://host.example:8/…");
        assert!(!format!("{webhook:?}").contains("secret"));
    }
}
