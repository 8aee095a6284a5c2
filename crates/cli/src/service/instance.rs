//! One server a data folder: the lock that says so, and the file that tells others where it listens.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::failure::Failure;

const LOCK: &str = "server.lock";
const TOLD: &str = "server.json";
/// A lock that is held so often, this far apart, is a server's.
const LOOKS: usize = 5;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The right to be the server of a data folder; given back at the end of the process, whatever ends it.
#[derive(Debug)]
pub(crate) struct Instance {
    folder: PathBuf,
    _lock: File,
}

/// What a running server tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    /// Such as `http://127.0.0.1:7860`.
    pub(crate) url: String,
    /// Its process.
    pub(crate) pid: u32,
}

impl Instance {
    /// Takes the folder, which is made where it is missing.
    ///
    /// # Errors
    /// When another server has it, or it cannot be written.
    pub(crate) fn take(folder: &Path) -> Result<Instance, Failure> {
        std::fs::create_dir_all(folder).map_err(|cause| unusable(folder, &cause))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(LOCK))
            .map_err(|cause| unusable(folder, &cause))?;
        for _ in 0..LOOKS {
            match lock.try_lock() {
                Ok(()) => {
                    return Ok(Instance {
                        folder: folder.to_owned(),
                        _lock: lock,
                    });
                }
                // Somebody who only looks has it for a moment.
                Err(TryLockError::WouldBlock) => std::thread::park_timeout(LOOK_AGAIN),
                Err(TryLockError::Error(cause)) => return Err(unusable(folder, &cause)),
            }
        }
        Err(taken(folder))
    }

    /// Tells others where it listens.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn tell(&self, url: &str) -> Result<(), Failure> {
        let told =
            json!({ "url": url, "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION") });
        let path = self.folder.join(TOLD);
        let partial = path.with_extension("json.part");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&partial)?;
            file.write_all(format!("{told}\n").as_bytes())?;
            std::fs::rename(&partial, &path)
        };
        Ok(write().with_context(|| format!("'{}' could not be written", path.display()))?)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // An error has nobody to go to; a file that stays is seen to be old by its lock.
        let _ = std::fs::remove_file(self.folder.join(TOLD));
    }
}

/// The server that has this folder now, if any.
pub(crate) fn running(folder: &Path) -> Option<Running> {
    let lock = File::options().write(true).open(folder.join(LOCK)).ok()?;
    match lock.try_lock_shared() {
        // Nobody holds it: whatever the file says is old.
        Ok(()) => None,
        Err(_) => told(folder),
    }
}

fn told(folder: &Path) -> Option<Running> {
    let text = std::fs::read_to_string(folder.join(TOLD)).ok()?;
    let told: Value = serde_json::from_str(&text).ok()?;
    Some(Running {
        url: told["url"].as_str()?.to_owned(),
        pid: u32::try_from(told["pid"].as_u64()?).ok()?,
    })
}

fn taken(folder: &Path) -> Failure {
    let by = told(folder).map_or_else(
        || "another server".to_owned(),
        |Running { url, pid }| format!("the server at {url} (process {pid})"),
    );
    Failure::mistake(format!(
        "{by} already uses the data folder '{}'; stop it, or name another folder with --data-dir",
        folder.display()
    ))
}

fn unusable(folder: &Path, cause: &std::io::Error) -> Failure {
    let what = match cause.kind() {
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => "is no folder".to_owned(),
        _ => format!("cannot be used: {cause}"),
    };
    Failure::mistake(format!(
        "the data folder '{}' {what}; name another with --data-dir",
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_server_that_tells_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("deep/data");
        assert_eq!(running(&data), None);
        let instance = Instance::take(&data).unwrap();
        instance.tell("http://127.0.0.1:1").unwrap();
        let pid = std::process::id();
        let url = "http://127.0.0.1:1".to_owned();
        assert_eq!(running(&data), Some(Running { url, pid }));
        let second = Instance::take(&data).unwrap_err().to_string();
        assert!(
            second.contains("http://127.0.0.1:1") && second.contains("--data-dir"),
            "{second}"
        );
        drop(instance);
        assert_eq!(running(&data), None);
        Instance::take(&data).unwrap();
    }

    #[test]
    fn what_a_killed_server_left_is_old() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(LOCK), "").unwrap();
        std::fs::write(folder.path().join(TOLD), r#"{"url":"http://x","pid":1}"#).unwrap();
        assert_eq!(running(folder.path()), None);
    }

    #[test]
    fn a_file_is_no_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let failure = Instance::take(file.path()).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert!(failure.to_string().contains("--data-dir"), "{failure}");
    }
}
