//! Whose turn it is to write, among processes.
//!
//! SQLite lets one process write at a time and has the others ask again after growing pauses, so that one that writes
//! without end keeps the others out by chance. Two locks make it fair: who wants to write takes the first, waits for the
//! second, and only then lets go of the first. Whoever wrote last has to get in line again.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::fault::BUSY_WAIT_MAX;
use crate::{Result, StoreError};

/// Pause before a lock is tried again, while another process has it. A transaction takes about as long.
const PAUSE: Duration = Duration::from_micros(300);

/// The two locks, as empty files beside the database. The system frees them when a process ends, however it ends.
#[derive(Debug)]
pub(super) struct Turnstile {
    next: File,
    writing: File,
    path: PathBuf,
}

/// The right to write, until dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a File);

impl Turnstile {
    /// The one of the database at `path`.
    pub(super) fn open(path: &Path) -> Result<Turnstile> {
        let open = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            let lock = PathBuf::from(name);
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&lock)
                .map_err(|error| StoreError::io("open", &lock, &error))
        };
        Ok(Turnstile {
            next: open("-next")?,
            writing: open("-writing")?,
            path: path.to_owned(),
        })
    }

    /// Waits for the turn.
    ///
    /// # Errors
    /// `Busy` where another process, perhaps a stopped one, keeps it for too long.
    pub(super) fn take(&self) -> Result<Turn<'_>> {
        let began = Instant::now();
        self.lock(&self.next, began)?;
        let turn = self
            .lock(&self.writing, began)
            .map(|()| Turn(&self.writing));
        // Freed with the file where this fails, and there is nobody to tell.
        let _ = self.next.unlock();
        turn
    }

    fn lock(&self, file: &File, began: Instant) -> Result<()> {
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if began.elapsed() < BUSY_WAIT_MAX => {
                    std::thread::sleep(PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(StoreError::Busy {
                        path: self.path.clone(),
                        waited_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                    });
                }
                Err(TryLockError::Error(error)) => {
                    return Err(StoreError::io("lock", &self.path, &error));
                }
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}
