//! One file: what it is, its bytes from where an earlier transfer ended, its sum, its name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use lowtide_core::Bytes;

use crate::cache::{Cache, Places, is_etag};
use crate::client::{Answer, Client, Patience, Subject, Trouble, escaped};
use crate::listing::FILE_BYTES_MAX;
use crate::lock::FileLock;
use crate::{Checksum, Error, Event, Hasher, Listed, RepoName, Result};

/// Bytes read from a connection at a time.
const READ_BYTES: usize = 256 << 10;
/// A transfer that stops is taken for one that gets somewhere when it brought this much.
const PROGRESS_BYTES: u64 = 1 << 20;

/// Where files come from and go to.
pub(crate) struct Route<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a Cache,
    pub(crate) repo: &'a RepoName,
    pub(crate) commit: &'a str,
    pub(crate) tell: &'a (dyn Fn(Event) + Sync),
}

/// A file as the hub describes it.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) file: Listed,
    pub(crate) etag: String,
    pub(crate) size: u64,
    checksum: Checksum,
}

impl Route<'_> {
    fn url(&self, file: &Listed) -> String {
        format!(
            "{}/{}/resolve/{}/{}",
            self.client.endpoint(),
            self.repo,
            self.commit,
            escaped(file.path.as_str(), false)
        )
    }

    fn subject<'a>(&'a self, file: &'a Listed) -> Subject<'a> {
        Subject {
            repo: self.repo.as_str(),
            revision: self.commit,
            file: Some(file.path.as_str()),
        }
    }

    pub(crate) fn places(&self, remote: &Remote) -> Places {
        self.cache.places(self.repo, &remote.etag)
    }

    /// Asks the hub what a file is.
    pub(crate) fn look(&self, file: &Listed) -> Result<Remote> {
        let answer = match self.client.facts(&self.url(file), self.subject(file)) {
            Err(error @ Error::NoSuchFile { .. }) => {
                self.cache
                    .note_missing(self.repo, self.commit, &file.path)?;
                return Err(error);
            }
            other => other?,
        };
        let (etag, size) = self.described(file, &answer)?;
        if size > FILE_BYTES_MAX {
            return Err(Error::TooMuch {
                repo: self.repo.to_string(),
                what: format!("the size of '{}'", file.path),
                limit: Bytes(FILE_BYTES_MAX).to_string(),
            });
        }
        if let Some(listed) = file.size.filter(|listed| *listed != size) {
            return Err(self.damaged(
                file,
                format!("the hub lists {listed} bytes and then has {size}"),
            ));
        }
        let named = Checksum::from_hex(&etag);
        let checksum = match (file.checksum, named) {
            (Some(listed), Some(named)) if listed != named => {
                return Err(self.damaged(
                    file,
                    format!("the hub lists the sum {listed} and then has {named}"),
                ));
            }
            (listed, named) => listed.or(named).ok_or_else(|| Error::NoChecksum {
                repo: self.repo.to_string(),
                file: file.path.to_string(),
            })?,
        };
        Ok(Remote {
            file: file.clone(),
            etag,
            size,
            checksum,
        })
    }

    /// The name of its blob, and its bytes.
    fn described(&self, file: &Listed, answer: &Answer) -> Result<(String, u64)> {
        let not_a_hub = |problem: String| Error::NotAHub {
            host: self.client.endpoint().to_owned(),
            problem: format!("'{}': {problem}", file.path),
        };
        if let Some(commit) = answer
            .header("x-repo-commit")
            .filter(|commit| *commit != self.commit)
        {
            let commit = crate::error::shown(commit);
            return Err(not_a_hub(format!(
                "it was asked for {} and gives {commit}",
                self.commit
            )));
        }
        let etag = answer
            .header("x-linked-etag")
            .or_else(|| answer.header("etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let etag = etag.ok_or_else(|| not_a_hub("it names no etag".to_owned()))?;
        if !is_etag(etag) {
            return Err(not_a_hub(format!(
                "its etag '{}' cannot be a name",
                crate::error::shown(etag)
            )));
        }
        let number = |name: &str| {
            answer
                .header(name)
                .and_then(|text| text.trim().parse::<u64>().ok())
        };
        let redirected = (300..400).contains(&answer.status);
        let size = number("x-linked-size")
            .or_else(|| number("content-length").filter(|_| !redirected))
            .or(file.size)
            .ok_or_else(|| not_a_hub("it does not say how large it is".to_owned()))?;
        Ok((etag.to_owned(), size))
    }

    fn damaged(&self, file: &Listed, problem: String) -> Error {
        Error::Damaged {
            repo: self.repo.to_string(),
            file: file.path.to_string(),
            problem,
        }
    }

    /// Fetches a file's bytes, unless they are there, and gives them their name; returns where they are and whether
    /// they came now.
    pub(crate) fn fetch(&self, remote: &Remote) -> Result<(PathBuf, bool)> {
        let places = self.places(remote);
        let stop = self.client.stop();
        let _lock = FileLock::take(&places.lock, || stop.check())?;
        if whole(&places.blob, remote.size) {
            (self.tell)(Event::Bytes(remote.size));
            return Ok((places.blob, false));
        }
        let mut part = Part::open(&places.incomplete, remote)?;
        let resumed = self.resume(&mut part)?;
        loop {
            self.transfer(&mut part)?;
            let sum = part.hasher.clone().finish();
            if sum == remote.checksum {
                break;
            }
            part.discard()?;
            (self.tell)(Event::Lost(remote.size));
            let problem = format!("its sum is {sum} instead of {}", remote.checksum);
            if !resumed || part.again {
                part.remove();
                return Err(self.damaged(&remote.file, problem));
            }
            // The beginning was another program's, or older: it may be what is wrong.
            part.again = true;
            let path = &remote.file.path;
            let text = format!(
                "{path}: {problem}; the part that was there is discarded, and all of it fetched again"
            );
            (self.tell)(Event::Note(text));
        }
        part.file.sync_all().map_err(|cause| part.failed(cause))?;
        drop(part.file);
        std::fs::rename(&places.incomplete, &places.blob)
            .map_err(Error::io(&places.blob, "written"))?;
        Ok((places.blob, true))
    }

    /// Sums what is there already.
    fn resume(&self, part: &mut Part<'_>) -> Result<bool> {
        let there = part
            .file
            .metadata()
            .map_err(|cause| part.failed(cause))?
            .len();
        if there > part.remote.size {
            part.discard()?;
            return Ok(false);
        }
        let stop = self.client.stop();
        let mut stopped = false;
        let mut file = &part.file;
        let read = part.hasher.read(&mut file, |count| {
            (self.tell)(Event::Bytes(count as u64));
            stopped = stop.is_asked();
            match stopped {
                true => Err(io::Error::other("stopped")),
                false => Ok(()),
            }
        });
        if stopped {
            return Err(Error::Stopped);
        }
        part.done = read.map_err(|cause| part.failed(cause))?;
        if part.done > 0 {
            (self.tell)(Event::Resumed {
                path: part.remote.file.path.to_string(),
                bytes: part.done,
            });
        }
        Ok(part.done > 0)
    }

    /// Brings the part to its full length.
    fn transfer(&self, part: &mut Part<'_>) -> Result<()> {
        let mut patience = Patience::default();
        let mut best = part.done;
        while part.done < part.remote.size {
            let Err(trouble) = self.once(part) else {
                continue;
            };
            // A server without ranges begins anew each time: only what was never reached before counts.
            if part.done >= best.saturating_add(PROGRESS_BYTES) {
                best = part.done;
                patience.restore();
            }
            let cut = matches!(
                trouble,
                Trouble::Passing {
                    error: Error::CutShort { .. },
                    ..
                }
            );
            let error = match patience.bear(trouble, self.client.stop()) {
                Ok(()) => continue,
                Err(error) => error,
            };
            return Err(match cut {
                true => self.cut_short(part),
                false => error,
            });
        }
        Ok(())
    }

    fn cut_short(&self, part: &Part<'_>) -> Error {
        Error::CutShort {
            repo: self.repo.to_string(),
            file: part.remote.file.path.to_string(),
            done: Bytes(part.done),
            size: Bytes(part.remote.size),
        }
    }

    /// One request, as far as it goes.
    fn once(&self, part: &mut Part<'_>) -> Result<(), Trouble> {
        let remote = part.remote;
        let url = self.url(&remote.file);
        let answer = match self
            .client
            .bytes(&url, part.done, self.subject(&remote.file))
        {
            Err(Trouble::Final(Error::Refused { status: 416, .. })) if part.done > 0 => {
                self.restart(part)?;
                let error = self.cut_short(part);
                return Err(Trouble::Passing { error, after: None });
            }
            other => other?,
        };
        if let Some(encoding) = answer
            .header("content-encoding")
            .filter(|word| *word != "identity")
        {
            let encoding = crate::error::shown(encoding);
            return Err(self.client.not_a_hub(&format!(
                "it sends files as '{encoding}' though asked not to"
            )));
        }
        match (answer.status, part.done) {
            (206, from) => match answer.header("content-range").and_then(range_start) {
                Some(start) if start == from => {}
                _ => {
                    return Err(self
                        .client
                        .not_a_hub("it gives another range than it was asked for"));
                }
            },
            (_, 0) => {}
            // It knows no ranges: all of it comes again.
            _ => self.restart(part)?,
        }
        let mut body = answer.body.into_reader();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            self.client.stop().check().map_err(Trouble::Final)?;
            let count = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            if count as u64 > remote.size - part.done {
                part.discard().map_err(Trouble::Final)?;
                part.remove();
                let problem = format!(
                    "more than the {} bytes that were promised came",
                    remote.size
                );
                return Err(Trouble::Final(self.damaged(&remote.file, problem)));
            }
            part.append(&buffer[..count]).map_err(Trouble::Final)?;
            (self.tell)(Event::Bytes(count as u64));
        }
        self.client.stop().check().map_err(Trouble::Final)?;
        match part.done == remote.size {
            true => Ok(()),
            false => Err(Trouble::Passing {
                error: self.cut_short(part),
                after: None,
            }),
        }
    }

    fn restart(&self, part: &mut Part<'_>) -> Result<(), Trouble> {
        (self.tell)(Event::Lost(part.done));
        part.discard().map_err(Trouble::Final)
    }
}

/// Whether a file is there at its full length.
pub(crate) fn whole(path: &Path, size: u64) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

/// The first byte of `bytes 10-19/20`.
fn range_start(text: &str) -> Option<u64> {
    text.trim()
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}

/// The beginning of a file: always exactly the first `done` bytes, so that whoever finds it can go on.
struct Part<'a> {
    remote: &'a Remote,
    path: &'a Path,
    file: File,
    hasher: Hasher,
    done: u64,
    /// Whether it was begun anew after a wrong sum.
    again: bool,
}

impl<'a> Part<'a> {
    fn open(path: &'a Path, remote: &'a Remote) -> Result<Part<'a>> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        Ok(Part {
            remote,
            path,
            file: file.map_err(Error::io(path, "written"))?,
            hasher: Hasher::new(&remote.checksum, remote.size),
            done: 0,
            again: false,
        })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|cause| self.failed(cause))?;
        self.hasher.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    /// Forgets all of it.
    fn discard(&mut self) -> Result<()> {
        let emptied = self.file.set_len(0);
        emptied
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(|cause| self.failed(cause))?;
        self.hasher = Hasher::new(&self.remote.checksum, self.remote.size);
        self.done = 0;
        Ok(())
    }

    fn remove(&self) {
        // It is empty: one that cannot be removed is only untidy.
        let _ = std::fs::remove_file(self.path);
    }

    fn failed(&self, cause: io::Error) -> Error {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        let folder = self.path.parent().unwrap_or(self.path);
        match full.contains(&cause.kind()) {
            true => Error::DiskFull {
                folder: folder.to_owned(),
                needed: Bytes(self.remote.size - self.done),
                free: crate::free_bytes(folder).unwrap_or_default(),
            },
            false => Error::io(self.path, "written")(cause),
        }
    }
}
