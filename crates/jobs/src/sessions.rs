//! Saved sessions that other machines may go on from.

use std::path::Path;

use crate::Result;

/// Keeps saved sessions, for workers that share no folder.
pub trait SessionStore: Send + Sync {
    /// Keeps this file under a name, in place of what had it.
    ///
    /// # Errors
    /// `Unreachable`, `Denied`, `Io`.
    fn keep(&self, name: &str, file: &Path) -> Result<()>;

    /// Writes what has this name to a file, which appears whole. `false`: nothing has it.
    ///
    /// # Errors
    /// `Unreachable`, `Denied`, `Io`, `NoRoom`.
    fn fetch(&self, name: &str, to: &Path) -> Result<bool>;

    /// Removes what has this name. Nothing is as good as removed.
    ///
    /// # Errors
    /// `Unreachable`, `Denied`.
    fn remove(&self, name: &str) -> Result<()>;

    /// All names.
    ///
    /// # Errors
    /// `Unreachable`, `Denied`.
    fn names(&self) -> Result<Vec<String>>;
}
