//! Other processes of this program on the same device, and what they lack.
//!
//! A driver tells how much of a device is free, not who waits for more of it. So each process leaves a file, in a folder that
//! belongs to its user, with the bytes it waits for; a lock on another beside it ends with the process, however that ends.
//! Containers that see different folders do not hear of each other: between them the reserve alone counts, as it does
//! between this program and others.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use lowtide_core::Bytes;

/// Ending of the files that are locked.
const LOCK: &str = "lock";

/// What the others are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// How many.
    pub count: usize,
    /// Bytes that they wait for beside those they have, together.
    pub wanted: Bytes,
}

/// This process among those on a device.
#[derive(Debug)]
pub struct Neighbours {
    folder: PathBuf,
    /// What it is called there.
    name: String,
    /// Its lock, which the system lets go at its end.
    _lock: File,
}

impl Neighbours {
    /// The folder for a device that the user's processes share; `None` where there is none that belongs to the user alone.
    pub fn folder_of(device: &str) -> Option<PathBuf> {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let device: String = device.chars().map(plain).collect();
        let own = own_folder()?;
        Some(own.join(device))
    }

    /// Joins those in `folder`, which is made.
    ///
    /// # Errors
    /// When it cannot be written to.
    pub fn join(folder: &Path) -> io::Result<Neighbours> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(folder)?;
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", std::process::id());
        // It has its lock before others can see it, who would take it for left behind.
        let new = folder.join(format!("{name}.new"));
        let lock = File::create(&new)?;
        lock.lock()?;
        fs::write(folder.join(&name), "0")?;
        fs::rename(&new, folder.join(&name).with_extension(LOCK))?;
        Ok(Neighbours {
            folder: folder.to_owned(),
            name,
            _lock: lock,
        })
    }

    /// Says that this process waits for so many bytes beside those that it has, what is free among them.
    pub fn want(&self, bytes: Bytes) {
        // Nobody reads half of it: it is put there whole. A folder that vanished has nobody in it who could give.
        let new = self.folder.join(format!("{}.want", self.name));
        let written = fs::write(&new, bytes.0.to_string());
        let _ = written.and_then(|()| fs::rename(&new, self.folder.join(&self.name)));
    }

    /// The others as they are now. What is left of processes that ended is removed.
    pub fn others(&self) -> Others {
        let mut others = Others::default();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let own = path.file_stem().is_some_and(|stem| *stem == *self.name);
            if own || path.extension().is_none_or(|ending| ending != LOCK) {
                continue;
            }
            let Ok(file) = File::open(&path) else {
                continue;
            };
            let told = path.with_extension("");
            match file.try_lock_shared() {
                Err(fs::TryLockError::WouldBlock) => {
                    let bytes = fs::read_to_string(told).ok();
                    let bytes = bytes.and_then(|text| text.trim().parse().ok());
                    others.count += 1;
                    others.wanted = Bytes(others.wanted.0.saturating_add(bytes.unwrap_or(0)));
                }
                Ok(()) => {
                    // Another may have removed it first.
                    let _ = fs::remove_file(told);
                    let _ = fs::remove_file(path);
                }
                Err(fs::TryLockError::Error(_)) => {}
            }
        }
        others
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        let told = self.folder.join(&self.name);
        let _ = fs::remove_file(&told);
        let _ = fs::remove_file(told.with_extension(LOCK));
    }
}

/// A folder for what processes of this user tell each other, which nobody else can write to.
#[cfg(unix)]
fn own_folder() -> Option<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let user = fs::metadata("/proc/self").ok()?.uid();
    let folder = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if Path::new(&folder).is_dir() => PathBuf::from(folder).join("lowtide"),
        _ => std::env::temp_dir().join(format!("lowtide-{user}")),
    };
    // It is there already, or cannot be made: what counts is whose it is.
    let _ = fs::DirBuilder::new().mode(0o700).create(&folder);
    let found = fs::symlink_metadata(&folder).ok()?;
    let safe = found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0;
    safe.then_some(folder)
}

/// As above: temporary files are the user's own there.
#[cfg(not(unix))]
fn own_folder() -> Option<PathBuf> {
    Some(std::env::temp_dir().join("lowtide"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_hear_what_others_lack_and_when_they_end() {
        let folder = tempfile::tempdir().unwrap();
        let one = Neighbours::join(folder.path()).unwrap();
        assert_eq!(one.others(), Others::default());
        let two = Neighbours::join(folder.path()).unwrap();
        two.want(Bytes::gib(3));
        let three = Neighbours::join(folder.path()).unwrap();
        let others = |count, wanted| Others { count, wanted };
        assert_eq!(one.others(), others(2, Bytes::gib(3)));
        assert_eq!(
            two.others(),
            others(2, Bytes::ZERO),
            "one's own does not count"
        );
        two.want(Bytes::ZERO);
        assert_eq!(three.others(), others(2, Bytes::ZERO));
        drop(two);
        assert_eq!(one.others(), others(1, Bytes::ZERO));
    }

    #[test]
    fn what_a_killed_process_leaves_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("7-0"), "1000").unwrap();
        fs::write(folder.path().join("7-0.lock"), "").unwrap();
        let own = Neighbours::join(folder.path()).unwrap();
        assert_eq!(own.others(), Others::default());
        assert!(!folder.path().join("7-0.lock").exists());
        assert!(!folder.path().join("7-0").exists());
    }

    #[test]
    fn rubbish_is_no_want() {
        let folder = tempfile::tempdir().unwrap();
        let own = Neighbours::join(folder.path()).unwrap();
        let other = Neighbours::join(folder.path()).unwrap();
        fs::write(folder.path().join(&other.name), "all of it").unwrap();
        let expected = Others {
            count: 1,
            wanted: Bytes::ZERO,
        };
        assert_eq!(own.others(), expected);
    }

    #[test]
    fn names_of_devices_are_no_paths() {
        if let Some(folder) = Neighbours::folder_of("../0000:01:00.0") {
            assert_eq!(folder.file_name().unwrap(), "---0000-01-00-0");
        }
    }
}
