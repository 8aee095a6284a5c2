//! Why a worker cannot work.

use lowtide_jobs::StoreError;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What ends a worker. Whatever goes wrong with a job ends that job's attempt only.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The queue cannot be read or written.
    #[error("the queue: {0}")]
    Store(#[from] StoreError),
    /// The folder for saved sessions cannot be used.
    #[error("the folder for parked sessions, {}: {cause}", folder.display())]
    Sessions {
        /// Which.
        folder: std::path::PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// Products are wanted in what the device does not have.
    #[error("device.{0}")]
    Precision(Box<lowtide_engine::Error>),
    /// A thread could not be started.
    #[error("no thread could be started: {0}")]
    Thread(std::io::Error),
    /// What it computes on is lost to this process.
    #[error("{reason}; its job goes back to the queue, and another worker takes its place")]
    DeviceLost {
        /// What the device's driver says.
        reason: String,
    },
    /// Something is to be preloaded that is not there.
    #[error("'{model}' is to be preloaded, but there is no such model; there are {known}")]
    NoSuchModel {
        /// What was named.
        model: String,
        /// What there is.
        known: String,
    },
}
