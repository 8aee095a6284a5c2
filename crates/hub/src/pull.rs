//! A whole model: what it has, what of it is needed, is there room, then all of it, several files at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lowtide_core::Bytes;
use serde_json::Value;

use crate::choose::{Choice, Chosen, choose};
use crate::client::{Client, Stop};
use crate::transfer::{Remote, Route, whole};
use crate::{Cache, Error, Listed, Listing, Result, Settings, Snapshot, Wanted};

/// The file that makes a folder a pipeline. It gets its place last, so that half a pipeline is none.
const INDEX: &str = "model_index.json";
/// The longest one that is read, in bytes.
const INDEX_BYTES_MAX: u64 = 16 << 20;
/// What a disk keeps free beside the files themselves: folders, links, and whoever else writes.
const ROOM_LEFT: Bytes = Bytes::mib(4);
/// How often it is looked whether somebody asked to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is to be pulled.
#[derive(Clone, Debug)]
pub struct Order {
    /// The repository and its revision.
    pub wanted: Wanted,
    /// What of it.
    pub choice: Choice,
    /// Files at a time, at least one.
    pub parallel: usize,
}

/// What happens meanwhile. It is told from several threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something that is not as asked for, in a sentence.
    Note(String),
    /// What is to come.
    Planned {
        /// The commit.
        commit: String,
        /// How many files, those that are there included.
        files: usize,
        /// Their bytes, those that are there included.
        bytes: u64,
        /// Bytes that are there already.
        there: u64,
    },
    /// A file goes on where an earlier pull ended.
    Resumed {
        /// The file.
        path: String,
        /// Bytes that were there.
        bytes: u64,
    },
    /// So many more bytes are there.
    Bytes(u64),
    /// So many bytes are gone again: a server without ranges, or a wrong sum.
    Lost(u64),
    /// A file is whole, and in its place.
    Done {
        /// The file.
        path: String,
        /// Its bytes.
        bytes: u64,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Where the model is now.
    pub snapshot: Snapshot,
    /// How many files of it were wanted.
    pub files: usize,
    /// Their bytes.
    pub bytes: Bytes,
    /// Bytes of files that came now.
    pub fetched: Bytes,
}

/// What a pull would fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The commit.
    pub commit: String,
    /// How many files, those that are there included.
    pub files: usize,
    /// Their bytes, those that are there included.
    pub bytes: Bytes,
    /// Bytes that are still to come.
    pub missing: Bytes,
    /// What is free where they go; `None` where that is not known.
    pub free: Option<Bytes>,
}

impl Offer {
    /// Whether there is room for what is still to come.
    pub fn has_room(&self) -> bool {
        has_room(self.missing, self.free)
    }
}

/// Pulls what is wanted into the cache. Whatever stops it, the same order goes on later.
///
/// # Errors
/// Any [`Error`]. What has a name in the cache then is whole and verified.
pub fn pull(
    settings: &Settings,
    order: &Order,
    stop: &Stop,
    tell: &(dyn Fn(Event) + Sync),
) -> Result<Pulled> {
    on_route(settings, order, (stop, tell), |route, listing| {
        all(route, listing, order)
    })
}

/// Looks what a pull would fetch. Of the files only the pipeline's index comes, which says what the others are.
///
/// # Errors
/// As [`pull`].
pub fn look(settings: &Settings, order: &Order, stop: &Stop) -> Result<Offer> {
    on_route(settings, order, (stop, &|_| {}), |route, listing| {
        let planned = planned(route, listing, order)?;
        Ok(Offer {
            commit: listing.commit.clone(),
            files: planned.there + planned.remotes.len(),
            bytes: Bytes(planned.bytes),
            missing: still_missing(route, &planned.remotes),
            free: crate::free_bytes(route.cache.root()),
        })
    })
}

/// Who listens to a pull: to its events, and for a wish to stop it.
type Ears<'a> = (&'a Stop, &'a (dyn Fn(Event) + Sync));

fn on_route<T>(
    settings: &Settings,
    order: &Order,
    (stop, tell): Ears<'_>,
    work: impl FnOnce(&Route<'_>, &Listing) -> Result<T>,
) -> Result<T> {
    if settings.offline {
        return Err(Error::Offline {
            repo: order.wanted.to_string(),
        });
    }
    let client = Client::new(settings, stop.clone())?;
    let listing = Listing::fetch(&client, &order.wanted)?;
    let cache = Cache::new(settings);
    let route = Route {
        client: &client,
        cache: &cache,
        repo: &order.wanted.repo,
        commit: &listing.commit,
        tell,
    };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A thread that waits for a server notices a wish to stop when the line goes dead.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if stop.is_asked() {
                    client.hang_up();
                    break;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        let done = work(&route, &listing);
        over.store(true, Ordering::Relaxed);
        // A connection that was hung up on is no fault of the server's.
        done.map_err(|error| match stop.is_asked() {
            true => Error::Stopped,
            false => error,
        })
    })
}

/// What a pull consists of.
struct Planned {
    /// How many files are there.
    there: usize,
    there_bytes: u64,
    /// Those that are not.
    remotes: Vec<Remote>,
    /// Bytes of all.
    bytes: u64,
    /// Bytes that came to find that out.
    early: u64,
}

fn planned(route: &Route<'_>, listing: &Listing, order: &Order) -> Result<Planned> {
    let (chosen, early) = chosen(route, listing, order)?;
    let (there, missing): (Vec<Listed>, Vec<Listed>) = chosen
        .files
        .into_iter()
        .partition(|file| is_placed(route, file));
    let remotes = in_parallel(order.parallel, &missing, |file| route.look(file))?;
    let there_bytes: u64 = there.iter().filter_map(|file| file.size).sum();
    let bytes = remotes
        .iter()
        .fold(there_bytes, |sum, remote| sum.saturating_add(remote.size));
    Ok(Planned {
        there: there.len(),
        there_bytes,
        remotes,
        bytes,
        early,
    })
}

fn all(route: &Route<'_>, listing: &Listing, order: &Order) -> Result<Pulled> {
    let Planned {
        there,
        there_bytes,
        remotes,
        bytes,
        early,
    } = planned(route, listing, order)?;
    route.cache.prepare(route.repo)?;
    check_room(route, &remotes)?;
    let files = there + remotes.len();
    (route.tell)(Event::Planned {
        commit: listing.commit.clone(),
        files,
        bytes,
        there: there_bytes,
    });
    let fetched = fetch_all(route, remotes, order.parallel)?;
    route
        .cache
        .write_ref(route.repo, &order.wanted.revision, &listing.commit)?;
    Ok(Pulled {
        snapshot: Snapshot {
            commit: listing.commit.clone(),
            folder: route.cache.snapshot_folder(route.repo, &listing.commit),
        },
        files,
        bytes: Bytes(bytes),
        fetched: Bytes(early.saturating_add(fetched)),
    })
}

/// Reads `model_index.json`, where there is one, and picks the files; with the bytes that came for it.
fn chosen(route: &Route<'_>, listing: &Listing, order: &Order) -> Result<(Chosen, u64)> {
    let nothing = |problem| Error::NothingToFetch {
        repo: order.wanted.to_string(),
        problem,
    };
    let file = listing
        .file(INDEX)
        .filter(|_| order.choice.include.is_empty());
    let (index, early) = match file {
        None => (None, 0),
        Some(file) => {
            let (index, early) = index(route, file)?;
            (Some(index), early)
        }
    };
    let chosen = choose(listing, index.as_ref(), &order.choice).map_err(nothing)?;
    for note in &chosen.notes {
        (route.tell)(Event::Note(note.clone()));
    }
    Ok((chosen, early))
}

fn index(route: &Route<'_>, file: &Listed) -> Result<(Value, u64)> {
    let placed = route.cache.pointer(route.repo, route.commit, &file.path);
    let (path, early) = match is_placed(route, file) {
        true => (placed, 0),
        false => {
            route.cache.prepare(route.repo)?;
            let remote = route.look(file)?;
            if remote.size > INDEX_BYTES_MAX {
                return Err(Error::TooMuch {
                    repo: route.repo.to_string(),
                    what: format!("the size of '{INDEX}'"),
                    limit: Bytes(INDEX_BYTES_MAX).to_string(),
                });
            }
            check_room(route, std::slice::from_ref(&remote))?;
            // Its bytes are told of when it gets its place.
            let quiet = Route {
                tell: &|_| {},
                ..*route
            };
            let (path, fresh) = quiet.fetch(&remote)?;
            (path, if fresh { remote.size } else { 0 })
        }
    };
    let text = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
    let index = serde_json::from_slice(&text).map_err(|cause| Error::NothingToFetch {
        repo: route.repo.to_string(),
        problem: format!("its {INDEX} is no JSON: {cause}"),
    })?;
    Ok((index, early))
}

/// Whether a file is in the tree, at the length the hub says.
fn is_placed(route: &Route<'_>, file: &Listed) -> bool {
    let pointer = route.cache.pointer(route.repo, route.commit, &file.path);
    match file.size {
        Some(size) => whole(&pointer, size),
        None => pointer.is_file(),
    }
}

/// Bytes that are not there, of files that are not in their place.
fn still_missing(route: &Route<'_>, remotes: &[Remote]) -> Bytes {
    let length = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    // By name, since two files of the same bytes come once.
    let missing: BTreeMap<&str, u64> = remotes
        .iter()
        .map(|remote| {
            let places = route.places(remote);
            let there = match whole(&places.blob, remote.size) {
                true => remote.size,
                false => length(&places.incomplete),
            };
            (remote.etag.as_str(), remote.size.saturating_sub(there))
        })
        .collect();
    let sum = |sum: u64, bytes: &u64| sum.saturating_add(*bytes);
    Bytes(missing.values().fold(0, sum))
}

fn has_room(missing: Bytes, free: Option<Bytes>) -> bool {
    let needed = Bytes(missing.0.saturating_add(ROOM_LEFT.0));
    missing == Bytes::ZERO || free.is_none_or(|free| needed <= free)
}

/// Whether the disk has room for what is still to come.
fn check_room(route: &Route<'_>, remotes: &[Remote]) -> Result<()> {
    let needed = still_missing(route, remotes);
    let folder = route.cache.root();
    let free = crate::free_bytes(folder);
    match (free, has_room(needed, free)) {
        (Some(free), false) => Err(Error::DiskFull {
            folder: folder.to_owned(),
            needed,
            free,
        }),
        _ => Ok(()),
    }
}

/// Fetches files, the largest first, and gives each its place in the tree; the pipeline's index last.
fn fetch_all(route: &Route<'_>, mut remotes: Vec<Remote>, parallel: usize) -> Result<u64> {
    remotes.sort_by_key(|remote| std::cmp::Reverse(remote.size));
    let (index, others): (Vec<Remote>, Vec<Remote>) = remotes
        .into_iter()
        .partition(|remote| remote.file.path.as_str() == INDEX);
    let one = |remote: &Remote| -> Result<u64> {
        let (blob, fresh) = route.fetch(remote)?;
        place(route, remote, blob, fresh)?;
        Ok(if fresh { remote.size } else { 0 })
    };
    let fetched = in_parallel(parallel, &others, one)?;
    let last = in_parallel(1, &index, one)?;
    Ok(fetched.into_iter().chain(last).sum())
}

fn place(route: &Route<'_>, remote: &Remote, blob: PathBuf, fresh: bool) -> Result<()> {
    let path = &remote.file.path;
    let pointer = route.cache.pointer(route.repo, route.commit, path);
    route.cache.place(&blob, &pointer, path.depth(), fresh)?;
    (route.tell)(Event::Done {
        path: path.to_string(),
        bytes: remote.size,
    });
    Ok(())
}

/// Does something with each of `items`, several at a time, in order; the first error ends it.
fn in_parallel<I: Sync, O: Send>(
    threads: usize,
    items: &[I],
    work: impl Fn(&I) -> Result<O> + Sync,
) -> Result<Vec<O>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<O>>> = Mutex::new(items.iter().map(|_| None).collect());
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let is_failed = || {
        failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    };
    let run = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at).filter(|_| !is_failed()) else {
                return;
            };
            match work(item) {
                Ok(output) => {
                    done.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(output);
                }
                Err(error) => {
                    failed
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.len().max(1)) {
            scope.spawn(run);
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => {
            let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
            Ok(done.into_iter().flatten().collect())
        }
    }
}
