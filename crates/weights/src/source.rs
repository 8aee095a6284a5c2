//! Where bytes come from: a file read with `pread`, or bytes built into the program.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// One weight file. Reads never move a shared cursor, so any number of threads may read at once.
#[derive(Debug)]
pub enum Source {
    /// A file, kept open: replacing it under its name does not change what is read.
    File {
        /// Where it was opened.
        path: PathBuf,
        /// The open file.
        file: File,
        /// Its bytes when it was opened.
        len: u64,
    },
    /// Bytes that are part of the program, or that somebody has in memory.
    Memory {
        /// What messages call it.
        name: String,
        /// All of it.
        bytes: Cow<'static, [u8]>,
    },
}

impl Source {
    /// Opens a regular file.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotAFile`] for folders, pipes and devices, [`Error::Io`].
    pub fn open(path: &Path) -> Result<Source> {
        let shown = path.display().to_string();
        // Asked before opening, because opening a pipe waits for a writer that may never come.
        let metadata = path.metadata().map_err(|e| Error::io(&shown, "open", e))?;
        if !metadata.is_file() {
            return Err(Error::NotAFile { file: shown });
        }
        let file = File::open(path).map_err(|e| Error::io(&shown, "open", e))?;
        let len = file
            .metadata()
            .map_err(|e| Error::io(&shown, "inspect", e))?
            .len();
        Ok(Source::File {
            path: path.to_owned(),
            file,
            len,
        })
    }

    /// What messages call it.
    pub fn name(&self) -> String {
        match self {
            Source::File { path, .. } => path.display().to_string(),
            Source::Memory { name, .. } => name.clone(),
        }
    }

    /// Its bytes when it was opened.
    pub fn byte_len(&self) -> u64 {
        match self {
            Source::File { len, .. } => *len,
            Source::Memory { bytes, .. } => bytes.len() as u64,
        }
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::Truncated`] where the file ends before that (also one that shrank after it was opened), [`Error::Io`].
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        match self {
            Source::File { file, .. } => fill(out, offset, |part, at| {
                positioned::read_at(file, part, at)
            })
            .map_err(|stop| match stop {
                Stop::End(found) => self.truncated(offset, out.len(), found),
                Stop::Io(cause) => Error::io(self.name(), "read", cause),
            }),
            Source::Memory { bytes, .. } => {
                let part = usize::try_from(offset)
                    .ok()
                    .and_then(|begin| bytes.get(begin..begin.checked_add(out.len())?))
                    .ok_or_else(|| self.truncated(offset, out.len(), bytes.len() as u64))?;
                out.copy_from_slice(part);
                Ok(())
            }
        }
    }

    fn truncated(&self, offset: u64, length: usize, found: u64) -> Error {
        let needed = offset.saturating_add(length as u64);
        Error::Truncated {
            file: self.name(),
            needed,
            found,
        }
    }
}

/// Why a buffer could not be filled.
#[derive(Debug)]
enum Stop {
    /// The file ended, at this offset.
    End(u64),
    Io(io::Error),
}

/// Calls `read` until `out` is full: a system may return less than was asked for, or nothing but `EINTR`.
fn fill(
    out: &mut [u8],
    offset: u64,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> std::result::Result<(), Stop> {
    let mut done = 0;
    while done < out.len() {
        let at = offset.saturating_add(done as u64);
        match read(&mut out[done..], at) {
            Ok(0) => return Err(Stop::End(at)),
            Ok(count) => done += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Stop::Io(e)),
        }
    }
    Ok(())
}

#[cfg(unix)]
mod positioned {
    pub(super) fn read_at(file: &std::fs::File, out: &mut [u8], at: u64) -> std::io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(file, out, at)
    }
}

#[cfg(windows)]
mod positioned {
    pub(super) fn read_at(file: &std::fs::File, out: &mut [u8], at: u64) -> std::io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(file, out, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_reads_and_interruptions_are_invisible() {
        let data: Vec<u8> = (0..100).collect();
        let mut calls = 0;
        let mut out = [0; 50];
        let read = |part: &mut [u8], at: u64| {
            calls += 1;
            if calls % 2 == 0 {
                return Err(io::Error::from(io::ErrorKind::Interrupted));
            }
            let count = part.len().min(7);
            part[..count].copy_from_slice(&data[at as usize..at as usize + count]);
            Ok(count)
        };
        fill(&mut out, 20, read).expect("all bytes are there");
        assert_eq!(out[..], data[20..70]);
        assert_eq!(
            calls, 15,
            "8 reads of at most 7 bytes, and 7 interruptions between them"
        );
    }

    #[test]
    fn the_end_of_a_file_is_told_with_its_place() {
        let mut out = [0; 50];
        let read =
            |part: &mut [u8], at: u64| Ok(part.len().min(60usize.saturating_sub(at as usize)));
        assert!(matches!(fill(&mut out, 20, read), Err(Stop::End(60))));
    }

    #[test]
    fn a_file_that_shrank_after_opening_is_truncated_not_a_signal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shrinks.safetensors");
        std::fs::write(&path, [7; 100]).unwrap();
        let source = Source::open(&path).unwrap();
        let mut out = [0; 10];
        source.read_at(90, &mut out).unwrap();
        assert_eq!(out, [7; 10]);
        std::fs::write(&path, [7; 95]).unwrap();
        let error = source.read_at(90, &mut out).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Truncated {
                    needed: 100,
                    found: 95,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("shrinks.safetensors"), "{error}");
    }

    #[test]
    fn memory_is_bounded_too() {
        let source = Source::Memory {
            name: "built in".to_owned(),
            bytes: b"0123456789".into(),
        };
        let mut out = [0; 4];
        source.read_at(6, &mut out).unwrap();
        assert_eq!(&out, b"6789");
        for offset in [7, 10, u64::MAX - 1] {
            let error = source.read_at(offset, &mut out).unwrap_err();
            assert!(
                matches!(error, Error::Truncated { found: 10, .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn folders_are_not_files() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            Source::open(folder.path()),
            Err(Error::NotAFile { .. })
        ));
        let missing = folder.path().join("nothing");
        assert!(matches!(
            Source::open(&missing),
            Err(Error::NotFound { .. })
        ));
    }
}
