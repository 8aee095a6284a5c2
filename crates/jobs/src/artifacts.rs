//! Finished files. They appear whole or not at all, and are read as they were written or not at all.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use lowtide_core::job::Moment;
use sha2::{Digest, Sha256};

use crate::{Artifact, ArtifactId, Result, StoreError};

/// Bytes copied at a time.
const CHUNK_LEN: usize = 64 << 10;

/// Ending of files that are being written.
const PARTIAL: &str = "partial";

/// Keeps finished files.
pub trait ArtifactStore: Send + Sync {
    /// Writes a file under a new name. When this returns it survives a power cut; before that nobody can read it.
    ///
    /// # Errors
    /// `Io`, `NoRoom`; then there is no such file.
    fn put(&self, media_type: &str, content: &[u8], now: Moment) -> Result<Artifact>;

    /// Copies a file to `to`, a piece at a time; the last piece is only passed on after the whole was checked.
    ///
    /// # Errors
    /// `ArtifactMissing`, `ArtifactDamaged`, `Io`.
    fn copy(&self, artifact: &Artifact, to: &mut dyn Write) -> Result<()>;

    /// The whole file.
    ///
    /// # Errors
    /// As [`ArtifactStore::copy`].
    fn read(&self, artifact: &Artifact) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.copy(artifact, &mut content)?;
        Ok(content)
    }

    /// Removes a file. One that is not there is as good as removed.
    ///
    /// # Errors
    /// `Io`.
    fn remove(&self, artifact: ArtifactId) -> Result<()>;

    /// Every file that was finished before this time, for finding those that no job knows; leftovers of interrupted
    /// writes before it are removed on the way.
    ///
    /// # Errors
    /// `Io`.
    fn finished_before(&self, before: Moment) -> Result<Vec<ArtifactId>>;
}

/// Files in a folder, each named by its id alone. Nothing a client wrote is part of a path.
#[derive(Clone, Debug)]
pub struct FolderArtifacts {
    folder: PathBuf,
}

impl FolderArtifacts {
    /// Those in this folder, which is made where it is missing.
    ///
    /// # Errors
    /// `Io`, where it cannot be made or is no folder.
    pub fn open(folder: &Path) -> Result<FolderArtifacts> {
        fs::create_dir_all(folder).map_err(|error| StoreError::io("create", folder, &error))?;
        Ok(FolderArtifacts {
            folder: folder.to_owned(),
        })
    }

    /// Where a file is. For reading in other ways than [`ArtifactStore::copy`]; then nothing was checked.
    pub fn path(&self, artifact: ArtifactId) -> PathBuf {
        self.folder.join(artifact.to_string())
    }

    fn write(&self, partial: &Path, content: &[u8]) -> Result<()> {
        let io = |verb, path| move |error| StoreError::io(verb, path, &error);
        let mut file = File::create_new(partial).map_err(io("create", partial))?;
        file.write_all(content).map_err(io("write", partial))?;
        file.sync_all().map_err(io("sync", partial))
    }

    fn publish(&self, partial: &Path, artifact: ArtifactId) -> Result<()> {
        let path = self.path(artifact);
        fs::rename(partial, &path).map_err(|error| StoreError::io("rename", &path, &error))?;
        sync_folder(&self.folder)
    }
}

/// A new name is only on the disk when its folder is. Windows knows no such call and does it with the rename.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| StoreError::io("sync", folder, &error))
}

impl ArtifactStore for FolderArtifacts {
    fn put(&self, media_type: &str, content: &[u8], now: Moment) -> Result<Artifact> {
        let id = ArtifactId::random(now);
        let partial = self.path(id).with_extension(PARTIAL);
        let written = self
            .write(&partial, content)
            .and_then(|()| self.publish(&partial, id));
        if let Err(error) = written {
            // As much as can be done; what stays is found by `finished_before`.
            let _ = fs::remove_file(&partial);
            let _ = fs::remove_file(self.path(id));
            return Err(error);
        }
        Ok(Artifact {
            id,
            media_type: media_type.to_owned(),
            bytes: content.len() as u64,
            sha256: hex(&Sha256::digest(content)),
        })
    }

    fn copy(&self, artifact: &Artifact, to: &mut dyn Write) -> Result<()> {
        let path = self.path(artifact.id);
        let io = |verb| {
            let path = path.clone();
            move |error| StoreError::io(verb, &path, &error)
        };
        let mut file = File::open(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => StoreError::ArtifactMissing {
                artifact: artifact.id,
            },
            _ => StoreError::io("open", &path, &error),
        })?;
        let found = file.metadata().map_err(io("look at"))?.len();
        let failed = |error| StoreError::io("copy", &path, &error);
        let mut read = |chunk: &mut [u8]| file.read(chunk).map_err(io("read"));
        checked_copy(artifact, found, &mut read, to, &failed)
    }

    fn remove(&self, artifact: ArtifactId) -> Result<()> {
        let path = self.path(artifact);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }

    fn finished_before(&self, before: Moment) -> Result<Vec<ArtifactId>> {
        let io = |error| StoreError::io("list", &self.folder, &error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            // What does not bear one of our names is not ours to touch.
            let Some(Ok(id)) = stem.map(str::parse::<ArtifactId>) else {
                continue;
            };
            if id.made_at() >= before {
                continue;
            }
            match path.extension() {
                None => found.push(id),
                Some(ending) if ending == PARTIAL => {
                    fs::remove_file(&path)
                        .map_err(|error| StoreError::io("remove", &path, &error))?;
                }
                Some(_) => {}
            }
        }
        Ok(found)
    }
}

/// Passes a file on that has `found` bytes, a piece at a time; the last piece only when the whole is what was written.
///
/// # Errors
/// `ArtifactDamaged`; what `read` and `failed` make of trouble on either side.
pub fn checked_copy(
    artifact: &Artifact,
    found: u64,
    read: &mut dyn FnMut(&mut [u8]) -> Result<usize>,
    to: &mut dyn Write,
    failed: &dyn Fn(std::io::Error) -> StoreError,
) -> Result<()> {
    let damaged = |reason| StoreError::ArtifactDamaged {
        artifact: artifact.id,
        reason,
    };
    if found != artifact.bytes {
        return Err(damaged(format!(
            "it has {found} bytes, {} were written",
            artifact.bytes
        )));
    }
    let mut sum = Sha256::new();
    let mut pending = Vec::new();
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        let len = read(&mut chunk)?;
        if len == 0 {
            break;
        }
        sum.update(&chunk[..len]);
        to.write_all(&pending).map_err(failed)?;
        pending.clear();
        pending.extend_from_slice(&chunk[..len]);
    }
    let sum = hex(&sum.finalize());
    if sum != artifact.sha256 {
        return Err(damaged(format!(
            "its sum is {sum}, {} was written",
            artifact.sha256
        )));
    }
    to.write_all(&pending).map_err(failed)
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes what it is given");
    }
    text
}
