//! Models on their way here: what the server asks of whoever fetches them, and how that looks from outside.

use lowtide_core::Bytes;
use lowtide_core::job::JobId;
use serde_json::{Value, json};

use crate::refusal::Refusal;

/// Fetches models by name, in the background. Calls may come from many threads.
pub trait Downloads: Send + Sync {
    /// Why nothing is fetched; `None` where it is allowed.
    fn forbidden(&self) -> Option<String>;

    /// Those under way, and those that ended lately, the oldest first. Called often: it only copies.
    fn all(&self) -> Vec<Download>;

    /// What fetching a model would take. Asks the hub, which may take seconds.
    ///
    /// # Errors
    /// Why it cannot be fetched.
    fn offer(&self, model: &str) -> Result<Offer, NotFetched>;

    /// Has a model fetched; one that is under way goes on.
    ///
    /// # Errors
    /// Why it cannot be fetched, as far as that is known at once.
    fn begin(&self, model: &str) -> Result<Download, NotFetched>;

    /// Stops one. What came is kept; jobs that wait for the model fail.
    ///
    /// # Errors
    /// `NotFound` where none is under way.
    fn stop(&self, model: &str) -> Result<Download, NotFetched>;
}

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownloadState {
    /// Others come first.
    Waiting,
    /// What there is to fetch is being found out.
    Looking,
    /// Files come.
    Fetching,
    /// The model is here.
    Done,
    /// It is not, for a reason.
    Failed,
    /// Somebody stopped it, or nobody waited for it any more.
    Stopped,
}

impl DownloadState {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            DownloadState::Waiting => "waiting",
            DownloadState::Looking => "looking",
            DownloadState::Fetching => "fetching",
            DownloadState::Done => "done",
            DownloadState::Failed => "failed",
            DownloadState::Stopped => "stopped",
        }
    }

    /// Whether nothing more happens to it.
    pub fn is_over(self) -> bool {
        match self {
            DownloadState::Waiting | DownloadState::Looking | DownloadState::Fetching => false,
            DownloadState::Done | DownloadState::Failed | DownloadState::Stopped => true,
        }
    }
}

/// A model on its way here.
#[derive(Clone, Debug, PartialEq)]
pub struct Download {
    /// Its name.
    pub model: String,
    /// How far it is.
    pub state: DownloadState,
    /// How many files; `None` until that is known, as for the bytes.
    pub files: Option<usize>,
    /// Bytes of all of them.
    pub bytes: Option<Bytes>,
    /// Bytes that are there.
    pub there: Bytes,
    /// Bytes that come in a second.
    pub per_second: Option<Bytes>,
    /// Seconds until it is here.
    pub remaining_s: Option<u64>,
    /// Why it failed.
    pub problem: Option<String>,
    /// Jobs that wait for it.
    pub jobs: Vec<JobId>,
}

/// What fetching a model would take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its name.
    pub model: String,
    /// The commit.
    pub commit: String,
    /// How many files.
    pub files: usize,
    /// Bytes of all of them.
    pub bytes: Bytes,
    /// Bytes that are still to come.
    pub missing: Bytes,
    /// What is free on the disk; `None` where that is not known.
    pub free: Option<Bytes>,
    /// Whether that is enough.
    pub has_room: bool,
}

/// Why a model is not fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotFetched {
    /// It is not allowed, here or by the hub: 403.
    Forbidden(String),
    /// The name cannot be one: 422.
    BadName(String),
    /// There is no such thing: 404.
    NotFound(String),
    /// The hub or the disk is in the way just now: 503.
    Unavailable(String),
}

impl From<NotFetched> for Refusal {
    fn from(not: NotFetched) -> Refusal {
        match not {
            NotFetched::Forbidden(problem) => Refusal::Forbidden { problem },
            NotFetched::BadName(problem) => Refusal::invalid("name", problem),
            NotFetched::NotFound(problem) => Refusal::not_found(problem),
            NotFetched::Unavailable(problem) => Refusal::Unavailable { problem },
        }
    }
}

impl Download {
    /// As JSON.
    pub(crate) fn view(&self) -> Value {
        let jobs: Vec<String> = self.jobs.iter().map(JobId::to_string).collect();
        json!({
            "model": self.model, "state": self.state.name(), "files": self.files,
            "bytes": self.bytes.map(|bytes| bytes.0), "there": self.there.0,
            "bytes_per_s": self.per_second.map(|bytes| bytes.0), "remaining_s": self.remaining_s,
            "error": self.problem, "jobs": jobs,
        })
    }

    /// What is told of it in a job that waits for it.
    pub(crate) fn of_job(all: &[Download], job: JobId) -> Option<Value> {
        let of = |one: &&Download| !one.state.is_over() && one.jobs.contains(&job);
        let mut view = all.iter().find(of)?.view();
        if let Value::Object(fields) = &mut view {
            fields.shift_remove("jobs");
        }
        Some(view)
    }
}
