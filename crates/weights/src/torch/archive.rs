//! Today's form: a zip archive whose entries are stored as they are, so that a storage is a range of bytes of the
//! file. Compressed entries are refused, and with them every archive that would grow when unpacked.
//!
//! # Source
//! The archive: <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>

use std::collections::HashMap;

use super::rebuild::Rebuild;
use crate::pickle::{self, Id, Stream, Values};
use crate::{Error, Result, Source};

/// Bytes of the record at the end of an archive, without its comment.
const END_BYTES: usize = 22;
/// The longest comment after it, in bytes.
const COMMENT_BYTES_MAX: usize = 0xffff;
/// Bytes of the record that says where the large form of it is.
const LOCATOR_BYTES: usize = 20;
/// Bytes of the large form.
const END64_BYTES: usize = 56;
/// Bytes of an entry of the directory, without its texts.
const ENTRY_BYTES: usize = 46;
/// Bytes of the record before an entry's data, without its texts.
const LOCAL_BYTES: usize = 30;
/// The longest directory that is read, in bytes: 100,000 storages need about 10 MB.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
/// The entry that has the pickle.
const PICKLE_NAME: &str = "data.pkl";

/// One entry of the directory.
#[derive(Clone, Copy)]
struct Entry {
    /// 0 is stored as it is.
    method: u16,
    encrypted: bool,
    packed: u64,
    bytes: u64,
    /// Where its own record begins.
    header: u64,
}

/// Reads an archive's pickle and finds the storages it names.
pub(super) fn read(source: &Source, values: &mut Values, rebuild: &mut Rebuild) -> Result<Id> {
    let archive = Archive::open(source)?;
    let prefix = archive.prefix()?;
    let (at, bytes) = archive.place(&format!("{prefix}{PICKLE_NAME}"))?;
    if archive.entries.contains_key(&format!("{prefix}byteorder")) {
        archive.check_byte_order(&format!("{prefix}byteorder"))?;
    }
    let root = pickle::run(&mut Stream::new(source, at, at + bytes), values, rebuild)?;
    for storage in &mut rebuild.storages {
        let name = format!("{prefix}data/{}", storage.key);
        (storage.offset, storage.bytes) = archive.place(&name)?;
        let needed = storage.dtype.map_or(Some(storage.elements), |dtype| {
            storage.elements.checked_mul(dtype.size())
        });
        if needed != Some(storage.bytes) {
            return Err(archive.refuse(format!(
                "entry '{name}' has {} bytes, the pickle says {} elements",
                storage.bytes, storage.elements
            )));
        }
    }
    Ok(root)
}

struct Archive<'a> {
    source: &'a Source,
    entries: HashMap<String, Entry>,
}

impl<'a> Archive<'a> {
    fn open(source: &'a Source) -> Result<Archive<'a>> {
        let mut archive = Archive {
            source,
            entries: HashMap::new(),
        };
        let (at, bytes, count) = archive.directory()?;
        if bytes > DIRECTORY_BYTES_MAX {
            return Err(archive.refuse(format!("a directory of {bytes} bytes")));
        }
        let mut directory = vec![0; bytes as usize];
        source.read_at(at, &mut directory)?;
        let mut rest = directory.as_slice();
        for _ in 0..count {
            let (name, entry, after) = parse_entry(rest)
                .ok_or_else(|| archive.refuse("its directory is cut off or damaged".to_owned()))?;
            rest = after;
            if archive.entries.insert(name.clone(), entry).is_some() {
                return Err(archive.refuse(format!("entry '{name}' is there twice")));
            }
        }
        Ok(archive)
    }

    fn refuse(&self, why: String) -> Error {
        Error::Archive {
            file: self.source.name(),
            why,
        }
    }

    /// Where the directory is, its bytes, and how many entries it has.
    fn directory(&self) -> Result<(u64, u64, u64)> {
        let len = self.source.byte_len();
        let mut tail = vec![0; len.min((END_BYTES + COMMENT_BYTES_MAX) as u64) as usize];
        let start = len - tail.len() as u64;
        self.source.read_at(start, &mut tail)?;
        let is_end = |&at: &usize| {
            let record = &tail[at..];
            record.starts_with(b"PK\x05\x06")
                && int(record, 20, 2)
                    .is_some_and(|comment| END_BYTES as u64 + comment == record.len() as u64)
        };
        let last = tail.len().saturating_sub(END_BYTES - 1);
        let Some(end) = (0..last).rev().find(is_end) else {
            return Err(self.refuse(
                "the directory at its end is missing; half a download? fetch it again".to_owned(),
            ));
        };
        let damaged = || self.refuse("the record at its end is damaged".to_owned());
        let record = &tail[end..];
        let field = |at, bytes| int(record, at, bytes).ok_or_else(damaged);
        let (mut count, mut bytes, mut at) = (field(10, 2)?, field(12, 4)?, field(16, 4)?);
        if count == 0xffff || bytes == 0xffff_ffff || at == 0xffff_ffff {
            let locator = end.checked_sub(LOCATOR_BYTES).map(|at| &tail[at..end]);
            let locator = locator.filter(|l| l.starts_with(b"PK\x06\x07"));
            let place = locator.and_then(|l| int(l, 8, 8)).ok_or_else(damaged)?;
            let mut record = [0; END64_BYTES];
            self.read(place, &mut record)?;
            if !record.starts_with(b"PK\x06\x06") {
                return Err(damaged());
            }
            let field = |at| int(&record, at, 8).ok_or_else(damaged);
            (count, bytes, at) = (field(32)?, field(40)?, field(48)?);
        }
        if at.checked_add(bytes).is_none_or(|end| end > len) {
            return Err(self.refuse(
                "its directory should lie beyond its end; half a download? fetch it again"
                    .to_owned(),
            ));
        }
        Ok((at, bytes, count))
    }

    /// What comes before `data.pkl`: the archive's own name.
    fn prefix(&self) -> Result<String> {
        let has = |name: &str| {
            self.entries
                .keys()
                .any(|key| key.rsplit('/').next() == Some(name))
        };
        let mut found = self.entries.keys().filter_map(|name| {
            let prefix = name.strip_suffix(PICKLE_NAME)?;
            let plain = prefix.is_empty() || prefix.find('/') == Some(prefix.len() - 1);
            plain.then(|| prefix.to_owned())
        });
        match (found.next(), found.next()) {
            (Some(_), None) if has("constants.pkl") => Err(self.refuse(
                "a TorchScript program, which is code; save its state_dict instead".to_owned(),
            )),
            (Some(prefix), None) => Ok(prefix),
            (Some(_), Some(_)) => Err(self.refuse("it has several data.pkl".to_owned())),
            (None, _) => Err(self.refuse(
                "no data.pkl in it: not a file of torch.save; unpack it if weights are inside"
                    .to_owned(),
            )),
        }
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        self.source.read_at(at, out)
    }

    /// Where an entry's data is.
    fn place(&self, name: &str) -> Result<(u64, u64)> {
        let Some(entry) = self.entries.get(name) else {
            return Err(self.refuse(format!(
                "entry '{name}' is missing; damaged: fetch it again"
            )));
        };
        if entry.encrypted {
            return Err(self.refuse(format!("entry '{name}' is encrypted")));
        }
        if entry.method != 0 || entry.packed != entry.bytes {
            return Err(self.refuse(format!(
                "entry '{name}' is compressed (method {}), which torch.save never does; load and save it with torch",
                entry.method
            )));
        }
        let mut local = [0; LOCAL_BYTES];
        self.read(entry.header, &mut local)?;
        let damaged = || self.refuse(format!("entry '{name}' is not where the directory says"));
        if !local.starts_with(super::ZIP_START) {
            return Err(damaged());
        }
        let texts = int(&local, 26, 2).zip(int(&local, 28, 2));
        let at = texts
            .and_then(|(name, extra)| entry.header.checked_add(LOCAL_BYTES as u64 + name + extra));
        let end = at.and_then(|at| at.checked_add(entry.bytes));
        match (at, end) {
            (Some(at), Some(end)) if end <= self.source.byte_len() => Ok((at, entry.bytes)),
            _ => Err(self.refuse(format!("entry '{name}' ends beyond the file"))),
        }
    }

    fn check_byte_order(&self, name: &str) -> Result<()> {
        let (at, bytes) = self.place(name)?;
        let mut order = vec![0; bytes.min(16) as usize];
        self.read(at, &mut order)?;
        if order == b"little" {
            return Ok(());
        }
        Err(self.refuse("its numbers are big endian, which is not read here".to_owned()))
    }
}

/// A little-endian number of up to 8 bytes at `at`.
fn int(bytes: &[u8], at: usize, count: usize) -> Option<u64> {
    let part = bytes.get(at..at + count)?;
    Some(
        part.iter()
            .rev()
            .fold(0, |value, &byte| (value << 8) | u64::from(byte)),
    )
}

/// The first entry of a directory, and what follows it.
fn parse_entry(bytes: &[u8]) -> Option<(String, Entry, &[u8])> {
    if !bytes.starts_with(b"PK\x01\x02") || bytes.len() < ENTRY_BYTES {
        return None;
    }
    let field = |at, count| int(bytes, at, count);
    let (name, extra, comment) = (
        field(28, 2)? as usize,
        field(30, 2)? as usize,
        field(32, 2)? as usize,
    );
    let rest = bytes.get(ENTRY_BYTES..)?;
    let (name, rest) = rest.split_at_checked(name)?;
    let (mut extra, rest) = rest.split_at_checked(extra)?;
    let (_, rest) = rest.split_at_checked(comment)?;
    let mut sizes = [field(24, 4)?, field(20, 4)?, field(42, 4)?];
    // Numbers that need more than four bytes stand in a field of their own, in this order.
    while extra.len() >= 4 {
        let (kind, length) = (int(extra, 0, 2)?, int(extra, 2, 2)? as usize);
        let (content, after) = extra[4..].split_at_checked(length)?;
        extra = after;
        if kind == 1 {
            let mut at = 0;
            for size in sizes.iter_mut().filter(|size| **size == 0xffff_ffff) {
                *size = int(content, at, 8)?;
                at += 8;
            }
        }
    }
    let entry = Entry {
        method: field(10, 2)? as u16,
        encrypted: field(8, 2)? & 1 == 1,
        bytes: sizes[0],
        packed: sizes[1],
        header: sizes[2],
    };
    let name = std::str::from_utf8(name).ok()?;
    Some((name.to_owned(), entry, rest))
}
