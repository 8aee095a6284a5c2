//! `lowtide backup` and `lowtide restore`: the queue of one machine with all its files, as they are at one moment, while it
//! is in use; and back into an empty place.
//!
//! Files are copied, then the queue, then the files that came meanwhile. So whatever a job of the copy names is in the copy,
//! unless it was thrown away before the copy of the queue was made, and then the job is not in it either. Afterwards every
//! file that a job names is read in the copy and compared with its sum.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lowtide_jobs::{
    ArtifactStore, FolderArtifacts, Job, JobStore, Listing, SqliteOptions, SqliteStore, StoreError,
};
use serde_json::json;

use super::folders::Surroundings;
use super::instance::{self, Instance};
use super::log::now;
use super::settings::Settings;
use super::store::Place;
use crate::args::{BackupArgs, RestoreArgs};
use crate::console;
use crate::failure::Failure;

/// Folders with files, below `server.files_dir` and below the copy.
const FOLDERS: [&str; 3] = ["artifacts", "inputs", "sessions"];
/// The queue's copy.
const QUEUE: &str = "lowtide.db";
/// Written last: a folder without it is no whole copy.
const MARK: &str = "backup.json";
/// What is being copied.
const PARTIAL: &str = "partial";
/// Jobs looked up at once.
const PAGE: usize = 500;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Copied {
    files: u64,
    bytes: u64,
}

/// Makes a copy.
///
/// # Errors
/// When the queue is on a server, the folder is there already, something cannot be copied, or the copy lacks something.
pub(crate) fn backup(args: &BackupArgs) -> Result<(), Failure> {
    let settings = read(&args.settings)?;
    let source = file_of(&settings, "backed up")?;
    if !source.is_file() {
        return Err(Failure::mistake(format!(
            "there is no queue '{}' to back up; --data-dir or --store names another",
            source.display()
        )));
    }
    let to = &args.folder;
    fs::create_dir(to).map_err(|cause| match cause.kind() {
        ErrorKind::AlreadyExists => Failure::mistake(format!(
            "'{}' is there already; name a folder that is not",
            to.display()
        )),
        _ => Failure::mistake(format!("'{}' cannot be made: {cause}", to.display())),
    })?;
    let copied = copy_out(&settings, source, to)?;
    let jobs = verify(to, to, settings.server.files_bucket.is_some())?;
    let mark = json!({
        "lowtide": env!("CARGO_PKG_VERSION"),
        "made_ms": now().0,
        "jobs": jobs,
        "files": copied.files,
        "bytes": copied.bytes,
        "files_in": settings.server.files_bucket.as_ref().map(|bucket| bucket.url.clone()),
    });
    write_whole(&to.join(MARK), format!("{mark}\n").as_bytes())?;
    console::note(&match &settings.server.files_bucket {
        None => format!(
            "{jobs} jobs and {} files, {}, are in '{}'",
            copied.files,
            lowtide_core::Bytes(copied.bytes),
            to.display()
        ),
        Some(bucket) => format!(
            "{jobs} jobs are in '{}'; their files stay in {}: keep its versions, or copy it",
            to.display(),
            bucket.url
        ),
    });
    Ok(())
}

/// Brings a copy back.
///
/// # Errors
/// When it is no whole copy, a server runs there, or the place is not empty.
pub(crate) fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let settings = read(&args.settings)?;
    let target = file_of(&settings, "restored")?;
    let from = &args.folder;
    if !from.join(MARK).is_file() {
        return Err(Failure::mistake(format!(
            "'{}' is no whole backup: it has no {MARK}, which is written last",
            from.display()
        )));
    }
    if let Some(running) = instance::running(&settings.server.data_dir) {
        return Err(Failure::mistake(format!(
            "the server at {} uses '{}': stop it, or name another folder with --data-dir",
            running.url,
            settings.server.data_dir.display()
        )));
    }
    // From here on no server can start there.
    let _instance = Instance::take(&settings.server.data_dir)?;
    let files = &settings.server.files_dir;
    let folders = FOLDERS.map(|name| files.join(name));
    let full = |folder: &&PathBuf| fs::read_dir(folder).is_ok_and(|mut list| list.next().is_some());
    let occupied = std::iter::once(target).filter(|path| path.exists());
    if let Some(path) = occupied
        .chain(folders.iter().find(full).map(PathBuf::as_path))
        .next()
    {
        return Err(Failure::mistake(format!(
            "'{}' is there already, and nothing is written over: restore into an empty place with --data-dir",
            path.display()
        )));
    }
    let in_bucket = settings.server.files_bucket.is_some();
    let jobs = verify(from, &settings.server.data_dir, in_bucket)?;
    for name in FOLDERS.iter().filter(|_| !in_bucket) {
        copy_folder(&from.join(name), &files.join(name), &mut Copied::default())?;
    }
    // The queue comes last: without it nothing is there, and the same can be done again.
    copy_whole(&from.join(QUEUE), target)?;
    console::note(&format!(
        "{jobs} jobs are back in '{}'; what ran or waited goes on when a server starts there",
        target.display()
    ));
    Ok(())
}

fn read(args: &crate::args::SettingArgs) -> Result<Settings, Failure> {
    Settings::read(args, args.given(), &Surroundings::of_process())
}

/// The queue's file.
fn file_of<'a>(settings: &'a Settings, done: &str) -> Result<&'a Path, Failure> {
    match &settings.server.store {
        Place::File(path) => Ok(path),
        Place::Server { .. } => Err(Failure::mistake(format!(
            "a queue on a server is {done} by the server's own means: {} names them",
            "docs/operations.md"
        ))),
    }
}

fn copy_out(settings: &Settings, queue: &Path, to: &Path) -> Result<Copied, Failure> {
    let mut copied = Copied::default();
    let files = &settings.server.files_dir;
    let in_bucket = settings.server.files_bucket.is_some();
    let mut copy_files = || -> Result<(), Failure> {
        for name in FOLDERS.iter().filter(|_| !in_bucket) {
            copy_folder(&files.join(name), &to.join(name), &mut copied)?;
        }
        Ok(())
    };
    copy_files()?;
    let store = SqliteStore::open(queue, SqliteOptions::default())
        .with_context(|| format!("the queue '{}' cannot be read", queue.display()))?;
    store
        .backup(&to.join(QUEUE))
        .context("the queue could not be copied")?;
    copy_files()?;
    Ok(copied)
}

/// Copies files that are not there yet. One that vanishes meanwhile was thrown away.
fn copy_folder(from: &Path, to: &Path, copied: &mut Copied) -> Result<(), Failure> {
    let entries = match fs::read_dir(from) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("'{}' cannot be read", from.display()))?,
    };
    fs::create_dir_all(to).with_context(|| format!("'{}' cannot be made", to.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("'{}' cannot be read", from.display()))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let unfinished = path.extension().is_some_and(|ending| ending == PARTIAL);
        // Sessions are written anew under their names; of the other files a name stands for one content.
        let known = target.is_file() && !from.ends_with("sessions");
        if unfinished || known || !path.is_file() {
            continue;
        }
        match copy_whole(&path, &target) {
            Ok(bytes) => {
                copied.files += 1;
                copied.bytes += bytes;
            }
            Err(_) if !path.exists() => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// Copies a file that appears whole, with the time it was changed: that of an input says when it was last spoken of.
fn copy_whole(from: &Path, to: &Path) -> Result<u64, Failure> {
    let partial = to.with_extension(PARTIAL);
    let copy = || -> std::io::Result<u64> {
        let bytes = fs::copy(from, &partial)?;
        let file = fs::File::options().write(true).open(&partial)?;
        file.set_modified(fs::metadata(from)?.modified()?)?;
        file.sync_all()?;
        fs::rename(&partial, to)?;
        Ok(bytes)
    };
    let copied = copy();
    if copied.is_err() {
        // As much as can be done.
        let _ = fs::remove_file(&partial);
    }
    Ok(copied.with_context(|| {
        format!(
            "'{}' could not be copied to '{}'",
            from.display(),
            to.display()
        )
    })?)
}

fn write_whole(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let partial = path.with_extension(PARTIAL);
    let write = || -> std::io::Result<()> {
        fs::write(&partial, content)?;
        fs::File::open(&partial)?.sync_all()?;
        fs::rename(&partial, path)
    };
    Ok(write().with_context(|| format!("'{}' could not be written", path.display()))?)
}

/// Reads all of a copy, and counts its jobs; what has to be written for it is written in `room`.
///
/// # Errors
/// When the queue is damaged, or a file is not what a job says.
fn verify(folder: &Path, room: &Path, in_bucket: bool) -> Result<u64, Failure> {
    // A store that is opened is written to: it is a copy of the copy.
    let look = look_in(room)?;
    let queue = look.0.join(QUEUE);
    copy_whole(&folder.join(QUEUE), &queue)?;
    let store = SqliteStore::open(&queue, SqliteOptions::default())
        .context("the copy of the queue cannot be read")?;
    store.check().context("the copy of the queue is damaged")?;
    let artifacts = FolderArtifacts::open(&folder.join("artifacts")).map_err(anyhow::Error::new)?;
    let mut jobs = 0;
    let mut before = None;
    loop {
        let page = store
            .list(&Listing {
                before,
                limit: PAGE,
                ..Listing::default()
            })
            .context("the copy of the queue cannot be read")?;
        let Some(last) = page.last() else {
            return Ok(jobs);
        };
        before = Some(last.seq);
        jobs += page.len() as u64;
        for job in page.iter().filter(|_| !in_bucket) {
            files_are_there(job, &artifacts)?;
        }
    }
}

fn files_are_there(job: &Job, artifacts: &FolderArtifacts) -> Result<(), Failure> {
    let named = job.outcome.iter().flat_map(|outcome| &outcome.artifacts);
    for artifact in named {
        artifacts
            .copy(artifact, &mut std::io::sink())
            .map_err(|cause: StoreError| {
                Failure::Other(
                    anyhow::Error::new(cause)
                        .context(format!("the copy lacks a file of job {}", job.id)),
                )
            })?;
    }
    Ok(())
}

/// A folder that vanishes.
struct Look(PathBuf);

impl Drop for Look {
    fn drop(&mut self) {
        // What stays is seen to be none of the copy's by its name.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn look_in(folder: &Path) -> Result<Look, Failure> {
    let look = folder.join(format!(".look-{}", std::process::id()));
    fs::create_dir(&look).with_context(|| format!("'{}' cannot be made", look.display()))?;
    Ok(Look(look))
}
