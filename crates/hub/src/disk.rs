//! How much room there is.

use std::path::Path;

use lowtide_core::Bytes;

/// Bytes that may still be written below `path`, or below the nearest folder above it that is there; `None` where the
/// system does not say.
pub fn free_bytes(path: &Path) -> Option<Bytes> {
    let there = path.ancestors().find(|folder| folder.exists());
    free(
        there
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new(".")),
    )
}

#[cfg(unix)]
fn free(folder: &Path) -> Option<Bytes> {
    let room = rustix::fs::statvfs(folder).ok()?;
    Some(Bytes(room.f_bavail.saturating_mul(room.f_frsize)))
}

#[cfg(not(unix))]
fn free(_: &Path) -> Option<Bytes> {
    None
}
