//! Locks that hold between programs: the same files, locked the same way, as Python's `filelock` does.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::{Error, Result};

/// How often it is looked whether a lock came free.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A lock, held until it is dropped. The file stays: removing it would let two programs hold "the same" lock.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: Option<File>,
}

impl FileLock {
    /// Waits for the lock; `wait` is called between two looks and can end the waiting.
    pub(crate) fn take(path: &Path, mut wait: impl FnMut() -> Result<()>) -> Result<FileLock> {
        loop {
            match FileLock::try_take(path).map_err(Error::io(path, "locked"))? {
                Some(lock) => return Ok(lock),
                None => {
                    wait()?;
                    std::thread::sleep(LOOK_EVERY);
                }
            }
        }
    }

    /// The lock, if nobody holds it.
    pub(crate) fn try_take(path: &Path) -> io::Result<Option<FileLock>> {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) if is_still(&file, path) => Ok(Some(FileLock { _file: Some(file) })),
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            // A file system without locks. They only spare work: what is named was summed by whoever named it.
            Err(TryLockError::Error(cause)) if cause.kind() == io::ErrorKind::Unsupported => {
                Ok(Some(FileLock { _file: None }))
            }
            Err(TryLockError::Error(cause)) => Err(cause),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Users who share a cache wait for each other.
        options.mode(0o664);
    }
    options.open(path)
}

/// Whether the locked file is the one that has the name now: another program may have removed it in between.
#[cfg(unix)]
fn is_still(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), path.metadata()) {
        (Ok(held), Ok(named)) => identity(held) == identity(named),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_still(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.lock");
        let held = FileLock::try_take(&path).unwrap();
        assert!(held.is_some());
        assert!(FileLock::try_take(&path).unwrap().is_none());
        let stopped = FileLock::take(&path, || Err(Error::Stopped));
        assert!(matches!(stopped, Err(Error::Stopped)));
        drop(held);
        assert!(FileLock::take(&path, || Err(Error::Stopped)).is_ok());
    }
}
