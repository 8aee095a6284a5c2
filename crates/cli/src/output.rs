//! Files that appear whole or not at all.

use crate::failure::Failure;
use lowtide_media::Format;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The format a file's ending means, or a sentence that names the ones there are.
pub(crate) fn format_of(path: &Path) -> Result<Format, Failure> {
    let Some(ending) = path.extension().and_then(|ending| ending.to_str()) else {
        return Err(Failure::mistake(format!(
            "'{}' has no ending that tells the picture format; use .png, .jpg or .webp",
            path.display()
        )));
    };
    Format::named(ending).ok_or_else(|| {
        Failure::mistake(format!(
            "'{}': no picture format ends in '.{}'; use .png, .jpg or .webp",
            path.display(),
            ending.to_ascii_lowercase()
        ))
    })
}

/// The paths of `count` pictures: the path itself for one, `name-1.png`, `name-2.png` and so on for several.
pub(crate) fn numbered(path: &Path, count: usize) -> Vec<PathBuf> {
    if count == 1 {
        return vec![path.to_owned()];
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    (1..=count)
        .map(|k| path.with_file_name(format!("{stem}-{k}.{ending}")))
        .collect()
}

/// Finds out, before any work, whether a file can be written there: makes its temporary neighbour and removes it.
pub(crate) fn check_writable(path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        return Err(Failure::mistake(format!(
            "'{}' is a folder; name a file in it",
            path.display()
        )));
    }
    let folder = folder_of(path);
    if !folder.exists() {
        return Err(Failure::mistake(format!(
            "'{}': the folder '{}' does not exist; make it first, or name another with -o",
            path.display(),
            folder.display()
        )));
    }
    let refused = |cause: io::Error| {
        Failure::mistake(format!(
            "'{}' cannot be written: {cause} in '{}'; name another place with -o",
            path.display(),
            folder.display()
        ))
    };
    Staged::begin(path).map(drop).map_err(refused)
}

/// A file that is complete but not yet in its place. Dropped without [`Staged::publish`], it vanishes.
#[derive(Debug)]
pub(crate) struct Staged {
    temporary: PathBuf,
    target: PathBuf,
    file: Option<File>,
}

impl Staged {
    /// Writes `bytes` beside `target` and waits until they are on the disk.
    pub(crate) fn write(target: &Path, bytes: &[u8]) -> io::Result<Staged> {
        let mut staged = Staged::begin(target)?;
        let file = staged.file.as_mut().expect("begin opens the file");
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(staged)
    }

    /// An empty file beside `target`, so that the later rename stays within one file system.
    fn begin(target: &Path) -> io::Result<Staged> {
        let name = target
            .file_name()
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let temporary = target.with_file_name(format!(
            ".{}.{}.part",
            name.to_string_lossy(),
            std::process::id()
        ));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)?;
        Ok(Staged {
            temporary,
            target: target.to_owned(),
            file: Some(file),
        })
    }

    /// Puts the file in its place, replacing what was there.
    pub(crate) fn publish(mut self) -> io::Result<()> {
        // Windows does not rename a file that is open.
        self.file = None;
        fs::rename(&self.temporary, &self.target)?;
        sync_folder(folder_of(&self.target))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.file = None;
        // After `publish` there is nothing left to remove, and an error here has nobody to go to.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// The folder a path lies in; the current one for a bare name.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the new name itself durable.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Windows has no such call; its renames are journalled.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staged_file_is_invisible_until_published() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.png");
        let staged = Staged::write(&target, b"whole").unwrap();
        assert!(!target.exists());
        staged.publish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_dropped_file_leaves_nothing_and_keeps_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.png");
        fs::write(&target, b"old").unwrap();
        drop(Staged::write(&target, b"new").unwrap());
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn several_pictures_are_numbered_before_the_ending() {
        assert_eq!(
            numbered(Path::new("x/a.b.png"), 1),
            [Path::new("x/a.b.png")]
        );
        assert_eq!(
            numbered(Path::new("x/a.b.png"), 2),
            [Path::new("x/a.b-1.png"), Path::new("x/a.b-2.png")]
        );
    }

    #[test]
    fn the_ending_tells_the_format() {
        assert_eq!(format_of(Path::new("a.JPG")).unwrap(), Format::Jpeg);
        assert_eq!(format_of(Path::new("a.webp")).unwrap(), Format::Webp);
        for wrong in ["a", "a.gif", ".png"] {
            assert_eq!(
                format_of(Path::new(wrong)).unwrap_err().exit_code(),
                2,
                "{wrong}"
            );
        }
    }
}
