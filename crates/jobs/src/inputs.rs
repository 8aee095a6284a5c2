//! Files that requests begin from, such as a picture to change. Each is stored once, under the sum of its content, so that
//! the same upload twice is one file and a name cannot come to mean another content.

use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use lowtide_core::Bytes;
use lowtide_core::job::Moment;
use sha2::{Digest, Sha256};

use crate::artifacts::hex;
use crate::{Result, StoreError};

/// What the name of an input begins with.
const SCHEME: &str = "sha256:";

/// Ending of files that are being written.
const PARTIAL: &str = "partial";

/// An input's name: the SHA-256 of its content. As text `sha256:` and 64 lower-case hexadecimal digits; only these digits
/// are ever part of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InputId([u8; 32]);

/// Text that names no input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an input's name: sha256: and 64 digits of 0-9 a-f are needed")]
pub struct NotAnInputId;

impl InputId {
    /// The name of this content.
    pub fn of(content: &[u8]) -> InputId {
        InputId(Sha256::digest(content).into())
    }

    /// The sum, 64 hexadecimal digits.
    pub fn digits(&self) -> String {
        hex(&self.0)
    }

    /// The sum's bytes.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The name with these 64 lower-case hexadecimal digits; `None` for any other text.
    pub fn of_digits(text: &str) -> Option<InputId> {
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let digits = text.as_bytes();
        let mut sum = [0; 32];
        if digits.len() != 2 * sum.len() {
            return None;
        }
        for (byte, pair) in sum.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Some(InputId(sum))
    }
}

impl fmt::Display for InputId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(SCHEME)?;
        formatter.write_str(&self.digits())
    }
}

impl FromStr for InputId {
    type Err = NotAnInputId;

    fn from_str(text: &str) -> std::result::Result<InputId, NotAnInputId> {
        let digits = text.strip_prefix(SCHEME).ok_or(NotAnInputId)?;
        InputId::of_digits(digits).ok_or(NotAnInputId)
    }
}

/// Keeps inputs. Which of them jobs name is known to a [`JobStore`](crate::JobStore).
pub trait InputStore: Send + Sync {
    /// Stores a file, unless it is there; its time begins anew. When this returns it survives a power cut.
    ///
    /// # Errors
    /// `Io`, `NoRoom`, `InputsFull`; then there is no such file unless there was one.
    fn put(&self, content: &[u8], now: Moment) -> Result<InputId>;

    /// Lets its time begin anew, since somebody is about to name it. `false`: there is none.
    ///
    /// # Errors
    /// `Io`.
    fn touch(&self, input: InputId, now: Moment) -> Result<bool>;

    /// The whole file, of at most so many bytes, checked against its name.
    ///
    /// # Errors
    /// `InputMissing`, `InputDamaged`, `TooLarge`, `Io`.
    fn read(&self, input: InputId, bytes_max: u64) -> Result<Vec<u8>>;

    /// Inputs whose time began before this; leftovers of interrupted writes before it are removed on the way.
    ///
    /// # Errors
    /// `Io`.
    fn idle_since(&self, before: Moment) -> Result<Vec<InputId>>;

    /// Removes an input, unless its time began at or after this moment; returns whether it is gone.
    ///
    /// # Errors
    /// `Io`.
    fn remove_idle(&self, input: InputId, before: Moment) -> Result<bool>;
}

/// Inputs in a folder. Several processes may read it; one of them writes and removes.
#[derive(Debug)]
pub struct FolderInputs {
    folder: PathBuf,
    bytes_max: Bytes,
    /// Bytes in the folder, counted at the first write. Held while files come, go or are looked at for removal, so that
    /// what was just uploaded or named is never removed.
    total: Mutex<Option<u64>>,
}

impl FolderInputs {
    /// Those in this folder, which is made where it is missing; together of at most `bytes_max`.
    ///
    /// # Errors
    /// `Io`, where it cannot be made or is no folder.
    pub fn open(folder: &Path, bytes_max: Bytes) -> Result<FolderInputs> {
        fs::create_dir_all(folder).map_err(|error| StoreError::io("create", folder, &error))?;
        Ok(FolderInputs {
            folder: folder.to_owned(),
            bytes_max,
            total: Mutex::new(None),
        })
    }

    fn path(&self, input: InputId) -> PathBuf {
        self.folder.join(input.digits())
    }

    fn lock(&self) -> MutexGuard<'_, Option<u64>> {
        self.total.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Files that bear one of our names: path, name, whether it is whole, what the system knows of it.
    fn files(&self) -> Result<Vec<(PathBuf, InputId, bool, fs::Metadata)>> {
        let io = |error| StoreError::io("list", &self.folder, &error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let path = entry.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            // What does not bear one of our names is not ours to touch.
            let Some(input) = stem.and_then(InputId::of_digits) else {
                continue;
            };
            let whole = match path.extension() {
                None => true,
                Some(ending) if ending == PARTIAL => false,
                Some(_) => continue,
            };
            // A file that went meanwhile is none.
            if let Ok(about) = entry.metadata()
                && about.is_file()
            {
                found.push((path, input, whole, about));
            }
        }
        Ok(found)
    }

    fn counted(&self, total: &mut Option<u64>) -> Result<u64> {
        if let Some(total) = total {
            return Ok(*total);
        }
        let bytes = self.files()?.iter().map(|(.., about)| about.len()).sum();
        *total = Some(bytes);
        Ok(bytes)
    }

    fn write(&self, path: &Path, content: &[u8], now: Moment) -> Result<()> {
        let partial = path.with_extension(PARTIAL);
        let io = |verb, path| move |error| StoreError::io(verb, path, &error);
        let write = || -> Result<()> {
            let mut file = File::create(&partial).map_err(io("create", &partial))?;
            file.write_all(content).map_err(io("write", &partial))?;
            file.set_modified(system_time(now))
                .map_err(io("date", &partial))?;
            file.sync_all().map_err(io("sync", &partial))?;
            fs::rename(&partial, path).map_err(io("rename", path))?;
            crate::artifacts::sync_folder(&self.folder)
        };
        write().inspect_err(|_| {
            // As much as can be done; what stays is found by `idle_since`.
            let _ = fs::remove_file(&partial);
        })
    }

    /// Whether the file is there and whole, as far as its length tells; then its time begins anew.
    fn refreshed(&self, path: &Path, bytes: Option<u64>, now: Moment) -> Result<bool> {
        let io = |verb| move |error| StoreError::io(verb, path, &error);
        // Its time can only be changed through a handle that may write.
        let file = match File::options().write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(io("open"))?,
        };
        let found = file.metadata().map_err(io("look at"))?;
        if !found.is_file() || bytes.is_some_and(|bytes| bytes != found.len()) {
            return Ok(false);
        }
        // Time only goes on: a clock that was set back must not make it look forgotten.
        if began(&found) < now {
            file.set_modified(system_time(now)).map_err(io("date"))?;
        }
        Ok(true)
    }
}

impl InputStore for FolderInputs {
    fn put(&self, content: &[u8], now: Moment) -> Result<InputId> {
        let input = InputId::of(content);
        let (path, bytes) = (self.path(input), content.len() as u64);
        let mut total = self.lock();
        if self.refreshed(&path, Some(bytes), now)? {
            return Ok(input);
        }
        let held = self.counted(&mut total)?;
        if held.saturating_add(bytes) > self.bytes_max.0 {
            return Err(StoreError::InputsFull {
                held,
                limit: self.bytes_max.0,
            });
        }
        self.write(&path, content, now)?;
        *total = Some(held + bytes);
        Ok(input)
    }

    fn touch(&self, input: InputId, now: Moment) -> Result<bool> {
        let _held = self.lock();
        self.refreshed(&self.path(input), None, now)
    }

    fn read(&self, input: InputId, bytes_max: u64) -> Result<Vec<u8>> {
        let path = self.path(input);
        let io = |verb| {
            let path = path.clone();
            move |error| StoreError::io(verb, &path, &error)
        };
        let file = File::open(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => StoreError::InputMissing { input },
            _ => StoreError::io("open", &path, &error),
        })?;
        let bytes = file.metadata().map_err(io("look at"))?.len();
        let too_large = |bytes| StoreError::TooLarge {
            field: "input",
            bytes,
            limit: bytes_max,
        };
        if bytes > bytes_max {
            return Err(too_large(bytes));
        }
        let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        // It may have grown since it was looked at.
        let more = bytes_max.saturating_add(1);
        file.take(more)
            .read_to_end(&mut content)
            .map_err(io("read"))?;
        if content.len() as u64 > bytes_max {
            return Err(too_large(content.len() as u64));
        }
        let found = InputId::of(&content);
        match found == input {
            true => Ok(content),
            false => Err(StoreError::InputDamaged { input, found }),
        }
    }

    fn idle_since(&self, before: Moment) -> Result<Vec<InputId>> {
        let mut total = self.lock();
        let mut idle = Vec::new();
        for (path, input, whole, about) in self.files()? {
            match (began(&about) < before, whole) {
                (false, _) => {}
                (true, true) => idle.push(input),
                (true, false) => {
                    fs::remove_file(&path)
                        .map_err(|error| StoreError::io("remove", &path, &error))?;
                    *total = total.map(|total| total.saturating_sub(about.len()));
                }
            }
        }
        Ok(idle)
    }

    fn remove_idle(&self, input: InputId, before: Moment) -> Result<bool> {
        let path = self.path(input);
        let mut total = self.lock();
        let about = match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            about => about.map_err(|error| StoreError::io("look at", &path, &error))?,
        };
        if began(&about) >= before {
            return Ok(false);
        }
        fs::remove_file(&path).map_err(|error| StoreError::io("remove", &path, &error))?;
        *total = total.map(|total| total.saturating_sub(about.len()));
        Ok(true)
    }
}

fn system_time(moment: Moment) -> std::time::SystemTime {
    UNIX_EPOCH + Duration::from_millis(moment.0)
}

/// When an input's time began, as its file says; a time that cannot be read never ends.
fn began(about: &fs::Metadata) -> Moment {
    let Ok(modified) = about.modified() else {
        return Moment(u64::MAX);
    };
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Up, since some systems keep coarser times than milliseconds.
    Moment(u64::try_from(since.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_text_that_is_no_path() {
        let id = InputId::of(b"abc");
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(id.to_string(), text);
        assert_eq!(text.parse(), Ok(id));
        let digits = &text[7..];
        for wrong in [
            "",
            "sha256:",
            digits,
            &text.to_uppercase(),
            &format!("sha256:{}", digits.to_uppercase()),
            &format!("sha512:{digits}"),
            &format!(" {text}"),
            &format!("{text}0"),
            &text[..text.len() - 1],
            "sha256:../../../../../../etc/passwd/../../../../../../../../../../../../etc",
            "sha256:é816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ] {
            assert_eq!(wrong.parse::<InputId>(), Err(NotAnInputId), "{wrong}");
        }
    }
}
