//! Where jobs and their files are kept: a file of this machine, or a server that many machines reach and a folder they
//! share.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use lowtide_core::job::RetryPolicy;
use lowtide_jobs::{
    Durability, FolderArtifacts, FolderInputs, JobStore, Listen, Policy, RedisOptions, RedisStore,
    SqliteOptions, SqliteStore, StoreError, TlsFiles, redacted,
};

use super::folders::tilde;
use super::settings::{QueueSettings, Settings};
use crate::failure::Failure;

/// Where the queue is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file, which SQLite keeps.
    File(PathBuf),
    /// A Redis or Valkey server.
    Server {
        /// With its password.
        url: String,
        /// The queue's name there.
        queue: String,
        tls: TlsFiles,
    },
}

impl Place {
    /// From a path or a URL.
    ///
    /// # Errors
    /// What is wrong with it; a password in it is not repeated.
    pub(crate) fn of(text: &str, queue: &str, tls: TlsFiles) -> Result<Place, Failure> {
        let shown = redacted(text);
        if let Some(path) = text.strip_prefix("sqlite://") {
            return match path.is_empty() {
                true => Err(Failure::mistake(format!(
                    "--store '{shown}': a file is missing after sqlite://"
                ))),
                false => Ok(Place::File(tilde(path))),
            };
        }
        let server = ["redis", "rediss", "valkey", "valkeys", "redis+unix", "unix"];
        match text.split_once("://") {
            Some((scheme, _)) if server.contains(&scheme) => Ok(Place::Server {
                url: text.to_owned(),
                queue: queue.to_owned(),
                tls,
            }),
            Some((scheme, _)) => Err(Failure::mistake(format!(
                "--store '{shown}': '{scheme}' is not known; give a path, sqlite:// and a path, or redis://host"
            ))),
            None => Ok(Place::File(tilde(text))),
        }
    }
}

impl fmt::Display for Place {
    /// For people: without a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(path) => path.display().fmt(f),
            Place::Server { url, queue, .. } => write!(f, "{queue} of {}", redacted(url)),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The queue.
///
/// # Errors
/// When the file or the server cannot be used.
pub(crate) fn open(settings: &Settings, listen: Listen) -> Result<Arc<dyn JobStore>, Failure> {
    let place = &settings.server.store;
    let policy = policy(&settings.queue);
    let durability = match settings.queue.durable {
        true => Durability::Full,
        false => Durability::Relaxed,
    };
    let opened: Result<Arc<dyn JobStore>, StoreError> = match place {
        Place::File(path) => {
            let options = SqliteOptions {
                policy,
                durability,
                size_max: None,
            };
            SqliteStore::open(path, options).map(|store| Arc::new(store) as _)
        }
        Place::Server { url, queue, tls } => {
            let options = RedisOptions {
                queue: queue.clone(),
                policy,
                durability,
                tls: tls.clone(),
                listen,
                ..RedisOptions::new(url)
            };
            RedisStore::open(options).map(|store| Arc::new(store) as _)
        }
    };
    opened.map_err(|cause| unusable(place, cause))
}

fn policy(queue: &QueueSettings) -> Policy {
    Policy {
        waiting_max: queue.waiting_max,
        retry: RetryPolicy {
            failures_max: queue.retries.saturating_add(1),
            ..RetryPolicy::default()
        },
        priority_by_kind: queue.priority.clone(),
        ..Policy::default()
    }
}

fn unusable(place: &Place, cause: StoreError) -> Failure {
    match cause {
        // What is wrong with a server's settings or our own is for the user to mend.
        StoreError::Denied { .. } | StoreError::Invalid { .. } => {
            Failure::Mistake(cause.to_string())
        }
        cause => Failure::Other(anyhow::Error::new(cause).context(format!(
            "the queue '{place}' cannot be used; --store names another"
        ))),
    }
}

/// The finished files.
///
/// # Errors
/// When the folder cannot be used.
pub(crate) fn open_artifacts(settings: &Settings) -> Result<FolderArtifacts, Failure> {
    let folder = settings.server.files_dir.join("artifacts");
    let opened = FolderArtifacts::open(&folder);
    Ok(opened.with_context(|| told("pictures", &folder))?)
}

/// What jobs begin from.
///
/// # Errors
/// When the folder cannot be used.
pub(crate) fn open_inputs(settings: &Settings) -> Result<FolderInputs, Failure> {
    let folder = settings.server.files_dir.join("inputs");
    let opened = FolderInputs::open(&folder, settings.queue.inputs_bytes);
    Ok(opened.with_context(|| told("inputs", &folder))?)
}

fn told(of: &str, folder: &Path) -> String {
    format!("the folder for {of} '{}'", folder.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Result<Place, Failure> {
        Place::of(text, "main", TlsFiles::default())
    }

    #[test]
    fn a_store_is_a_file_or_a_server() {
        for (text, file) in [("a/b.db", "a/b.db"), ("sqlite:///a/b.db", "/a/b.db")] {
            assert_eq!(place(text).unwrap(), Place::File(PathBuf::from(file)));
        }
        let server = place("redis://me:secret@host/2").unwrap();
        assert_eq!(format!("{server:?}"), "main of redis://me:***@host:6379/2");
        for (text, says) in [
            ("postgres://me:secret@host", "'postgres' is not known"),
            ("sqlite://", "a file is missing"),
        ] {
            let failure = place(text).unwrap_err().to_string();
            assert!(
                failure.contains(says) && !failure.contains("secret"),
                "{failure}"
            );
        }
    }
}
