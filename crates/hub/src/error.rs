//! Why something could not be fetched.

use std::io;
use std::path::{Path, PathBuf};

use lowtide_core::Bytes;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be fetched, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that cannot be.
    #[error("{name}: {problem}")]
    Setting {
        /// The variable's name.
        name: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A name that no repository can have.
    #[error("'{}' is no name of a model: {problem}", shown(.name))]
    BadName {
        /// What was given.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nothing may be asked of the network.
    #[error(
        "'{repo}' is not all there, and HF_HUB_OFFLINE forbids asking for it; unset it and run 'lowtide pull {repo}'"
    )]
    Offline {
        /// What was wanted.
        repo: String,
    },
    /// The hub does not answer.
    #[error("{host} cannot be reached: {why}; is there a network? what was fetched so far is kept")]
    Unreachable {
        /// The server.
        host: String,
        /// The last attempt's reason.
        why: String,
    },
    /// The hub wants a token, or another one. It also says so of repositories that are not there.
    #[error(
        "'{repo}': the hub says 401, {}; {}", shown(.says),
        match .token { true => "the token is not valid, or has no access to it: make another in the hub's settings",
            false => "the name is wrong or the model is not public: put a token of the hub into HF_TOKEN" }
    )]
    Unauthorised {
        /// What was wanted.
        repo: String,
        /// The server's own words.
        says: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// Its owner wants to be asked first.
    #[error(
        "'{repo}' is gated: ask for access on its page ({page}){}", 
        match .token { true => "; the token that was sent has none yet", false => ", then put a token of the hub into HF_TOKEN" }
    )]
    Gated {
        /// What was wanted.
        repo: String,
        /// Where to ask.
        page: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The hub refuses, for another reason.
    #[error("'{repo}': the hub refuses with {status}: {}", shown(.says))]
    Refused {
        /// What was wanted.
        repo: String,
        /// The status.
        status: u16,
        /// The server's own words.
        says: String,
    },
    /// There is no such repository.
    #[error(
        "there is no model '{repo}' at {host}; is the name right? (a private one needs a token in HF_TOKEN)"
    )]
    NoSuchRepo {
        /// What was wanted.
        repo: String,
        /// The server.
        host: String,
    },
    /// There is no such branch, tag or commit.
    #[error("'{repo}' has no revision '{}'; leave @{} out for the newest", shown(.revision), shown(.revision))]
    NoSuchRevision {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
    },
    /// A file is not there.
    #[error("'{repo}' has no file '{}'", shown(.file))]
    NoSuchFile {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
    },
    /// Nothing in the repository is what was asked for.
    #[error("'{repo}': {problem}")]
    NothingToFetch {
        /// The repository.
        repo: String,
        /// Why, and what to do.
        problem: String,
    },
    /// Too many requests, or a server in trouble, for longer than we wait.
    #[error("{host} says {status} again and again{}; try later: what was fetched so far is kept", later(.retry_after_s))]
    Busy {
        /// The server.
        host: String,
        /// The status.
        status: u16,
        /// Seconds after which it wants to be asked again.
        retry_after_s: Option<u64>,
    },
    /// The server does not speak as a hub does.
    #[error("{host} does not answer as a hub does: {problem}; is HF_ENDPOINT right?")]
    NotAHub {
        /// The server.
        host: String,
        /// What is wrong.
        problem: String,
    },
    /// More of something than any honest repository has.
    #[error("'{repo}': {what} is beyond the limit of {limit}")]
    TooMuch {
        /// The repository.
        repo: String,
        /// What there is too much of.
        what: String,
        /// The limit.
        limit: String,
    },
    /// A file without anything to check it by.
    #[error("'{repo}': the hub gives no checksum for '{}', so it cannot be verified and is not fetched", shown(.file))]
    NoChecksum {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
    },
    /// The bytes are not those that were promised. They were discarded.
    #[error("'{}' of '{repo}' is not what the hub promised: {problem}; what was fetched of it is discarded. Pull again; if it stays so, the server or something between is at fault", shown(.file))]
    Damaged {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// Which sums or sizes differ.
        problem: String,
    },
    /// The transfer ended too early, more often than we try.
    #[error("'{}' of '{repo}' stops after {done} of {size} each time; what came is kept: pull again to go on", shown(.file))]
    CutShort {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What is there.
        done: Bytes,
        /// What there should be.
        size: Bytes,
    },
    /// The disk has no room.
    #[error("the disk of '{}' is full: {needed} more are needed and {free} are free; make room and pull again to go on",
        .folder.display())]
    DiskFull {
        /// Where.
        folder: PathBuf,
        /// What is still to come.
        needed: Bytes,
        /// What is free.
        free: Bytes,
    },
    /// Another program is fetching or using it.
    #[error("'{repo}' is being fetched by another program right now; wait for it, or end it")]
    InUse {
        /// The repository.
        repo: String,
    },
    /// It is not in the cache.
    #[error("'{repo}' is not in the cache '{}'; 'lowtide models list' shows what is", .cache.display())]
    NotInstalled {
        /// The repository, with its revision if one was named.
        repo: String,
        /// The cache's folder.
        cache: PathBuf,
    },
    /// Somebody asked to stop.
    #[error("interrupted; what was fetched so far is kept, and the same command goes on with it")]
    Stopped,
    /// The system refuses.
    #[error("'{}' cannot be {action}: {cause}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "read", "written".
        action: &'static str,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
}

impl Error {
    /// From the system's error about `path`.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |cause| Error::Io {
            path: path.to_owned(),
            action,
            cause,
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Busy { .. } | Error::CutShort { .. } => true,
            Error::Setting { .. }
            | Error::BadName { .. }
            | Error::Offline { .. }
            | Error::Unauthorised { .. }
            | Error::Gated { .. }
            | Error::Refused { .. }
            | Error::NoSuchRepo { .. }
            | Error::NoSuchRevision { .. }
            | Error::NoSuchFile { .. }
            | Error::NothingToFetch { .. }
            | Error::NotAHub { .. }
            | Error::TooMuch { .. }
            | Error::NoChecksum { .. }
            | Error::Damaged { .. }
            | Error::DiskFull { .. }
            | Error::InUse { .. }
            | Error::NotInstalled { .. }
            | Error::Stopped
            | Error::Io { .. } => false,
        }
    }
}

/// The most characters of a foreign text that a message repeats.
const SHOWN_CHARS: usize = 200;

/// A server's text, made harmless for a terminal and a log.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == SHOWN_CHARS {
            out.push('…');
            break;
        }
        match c {
            '\'' | '"' => out.push(c),
            _ => out.extend(c.escape_debug()),
        }
    }
    out
}

fn later(seconds: &Option<u64>) -> String {
    seconds.map_or_else(String::new, |seconds| {
        format!(" and wants {seconds} s of rest")
    })
}
