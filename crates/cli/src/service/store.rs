//! Where jobs and their files are kept: a file of this machine, or a server that many machines reach and a folder or a
//! bucket they share.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use lowtide_bucket::{Bucket, BucketKeys, BucketOptions};
use lowtide_core::job::RetryPolicy;
use lowtide_jobs::{
    ArtifactStore, Durability, FolderArtifacts, FolderInputs, InputStore, JobStore, Listen, Policy,
    RedisOptions, RedisStore, SessionStore, SqliteOptions, SqliteStore, StoreError, TlsFiles,
    redacted,
};

use super::folders::{Surroundings, tilde};
use super::settings::{BucketSettings, QueueSettings, Settings};
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

/// Whether there is a queue already, as far as that can be said without making one.
pub(crate) fn is_there(settings: &Settings) -> bool {
    match &settings.server.store {
        Place::File(path) => path.exists(),
        Place::Server { .. } => true,
    }
}

/// Makes the folder that the queue's file is to be in.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn make_folder(settings: &Settings) -> Result<(), Failure> {
    let Place::File(path) = &settings.server.store else {
        return Ok(());
    };
    match path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        Some(folder) => Ok(std::fs::create_dir_all(folder)
            .with_context(|| format!("the folder '{}' cannot be made", folder.display()))?),
        None => Ok(()),
    }
}

/// A store's trouble, where it is asked by hand.
pub(crate) fn failed(cause: StoreError) -> Failure {
    Failure::Other(anyhow::Error::new(cause))
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

/// Finished files, what jobs begin from, and saved sessions.
pub(crate) struct Files {
    pub(crate) artifacts: Arc<dyn ArtifactStore>,
    pub(crate) inputs: Arc<dyn InputStore>,
    /// Beside the workers' folder, where they do not share one.
    pub(crate) sessions: Option<Arc<dyn SessionStore>>,
    /// Where they are, for people.
    pub(crate) place: String,
}

/// The files.
///
/// # Errors
/// When the folder or the bucket cannot be used.
pub(crate) fn open_files(settings: &Settings, around: &Surroundings) -> Result<Files, Failure> {
    let inputs_max = settings.queue.inputs_bytes;
    if let Some(bucket) = &settings.server.files_bucket {
        let bucket = open_bucket(bucket, around)?;
        return Ok(Files {
            artifacts: Arc::new(bucket.artifacts()),
            inputs: Arc::new(bucket.inputs(inputs_max)),
            sessions: Some(Arc::new(bucket.sessions())),
            place: bucket.to_string(),
        });
    }
    let folder = |name: &str| settings.server.files_dir.join(name);
    let (artifacts, inputs) = (folder("artifacts"), folder("inputs"));
    let kept = FolderArtifacts::open(&artifacts).with_context(|| told("pictures", &artifacts))?;
    let sent = FolderInputs::open(&inputs, inputs_max).with_context(|| told("inputs", &inputs))?;
    Ok(Files {
        artifacts: Arc::new(kept),
        inputs: Arc::new(sent),
        sessions: None,
        place: artifacts.display().to_string(),
    })
}

fn open_bucket(bucket: &BucketSettings, around: &Surroundings) -> Result<Bucket, Failure> {
    let given = |name: &str| {
        let text = around.variables.get(name).map(|text| text.trim());
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let needed = |name: &str| {
        given(name).ok_or_else(|| {
            Failure::mistake(format!(
                "'{}' needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, and {name} is not set",
                bucket.url
            ))
        })
    };
    let keys = BucketKeys {
        id: needed("AWS_ACCESS_KEY_ID")?,
        secret: needed("AWS_SECRET_ACCESS_KEY")?,
        token: given("AWS_SESSION_TOKEN"),
    };
    let opened = Bucket::open(&BucketOptions {
        endpoint: bucket.endpoint.clone(),
        region: bucket.region.clone(),
        style: bucket.style,
        authority: bucket.authority.clone(),
        ..BucketOptions::new(&bucket.url, keys)
    });
    opened.map_err(|cause| match cause {
        StoreError::Denied { .. } | StoreError::Invalid { .. } => {
            Failure::Mistake(cause.to_string())
        }
        cause => Failure::Other(anyhow::Error::new(cause).context(format!(
            "the bucket '{}' cannot be used; --artifacts names another",
            bucket.url
        ))),
    })
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
