//! Checksums as the hub has them: SHA-256 of large files, git's own sum of small ones.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Bytes read at a time when a file is summed.
const READ_BYTES: usize = 1 << 20;

/// What a file's bytes must add up to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Checksum {
    /// Of a file in large file storage.
    Sha256([u8; 32]),
    /// Of a file in git: SHA-1 over a head with its length, then the bytes.
    Git([u8; 20]),
}

impl Checksum {
    /// Reads hexadecimal digits; their number tells which kind it is.
    pub fn from_hex(text: &str) -> Option<Checksum> {
        if !text.is_ascii() {
            return None;
        }
        let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
        let bytes = bytes.filter(|_| text.bytes().all(|c| c.is_ascii_hexdigit()))?;
        match text.len() {
            64 => Some(Checksum::Sha256(bytes.try_into().ok()?)),
            40 => Some(Checksum::Git(bytes.try_into().ok()?)),
            _ => None,
        }
    }

    /// The sum of a whole file of the same kind as `self`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_file(&self, path: &Path) -> io::Result<Checksum> {
        let mut file = File::open(path)?;
        let mut hasher = Hasher::new(self, file.metadata()?.len());
        hasher.read(&mut file, |_| Ok(()))?;
        Ok(hasher.finish())
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: &[u8] = match self {
            Checksum::Sha256(bytes) => bytes,
            Checksum::Git(bytes) => bytes,
        };
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A sum in the making.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// Of a file in large file storage.
    Sha256(Sha256),
    /// Of a file in git.
    Git(Sha1),
}

impl Hasher {
    /// Begins a sum of the kind of `like` over a file of `size` bytes.
    pub fn new(like: &Checksum, size: u64) -> Hasher {
        match like {
            Checksum::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Checksum::Git(_) => {
                let mut sum = Sha1::new();
                sum.update(format!("blob {size}\0"));
                Hasher::Git(sum)
            }
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(sum) => sum.update(bytes),
            Hasher::Git(sum) => sum.update(bytes),
        }
    }

    /// Adds everything that comes; `look` is called with the number of bytes now and then, and can stop it.
    ///
    /// # Errors
    /// The reader's, and what `look` gives.
    pub fn read(
        &mut self,
        from: &mut impl Read,
        mut look: impl FnMut(usize) -> io::Result<()>,
    ) -> io::Result<u64> {
        let mut buffer = vec![0; READ_BYTES];
        let mut total = 0;
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok(total),
                Ok(count) => {
                    self.update(&buffer[..count]);
                    total += count as u64;
                    look(count)?;
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
    }

    /// The sum.
    pub fn finish(self) -> Checksum {
        match self {
            Hasher::Sha256(sum) => Checksum::Sha256(sum.finalize().into()),
            Hasher::Git(sum) => Checksum::Git(sum.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_git_and_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hello");
        std::fs::write(&file, "hello\n").unwrap();
        for sum in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            let sum = Checksum::from_hex(sum).unwrap();
            assert_eq!(sum.of_file(&file).unwrap(), sum);
        }
        for wrong in ["", "ce01", "zz", &"+1".repeat(20), &"g".repeat(64)] {
            assert_eq!(Checksum::from_hex(wrong), None);
        }
    }
}
