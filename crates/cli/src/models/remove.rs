//! `lowtide models rm`: how a model goes.

use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use lowtide_core::Bytes;
use lowtide_hub::{Cache, Revision, Wanted};

use super::{Library, Place, hub_settings};
use crate::console;
use crate::failure::Failure;
use crate::service::{Surroundings, models_settings};

/// The deepest folder of a model: a component's.
const DEPTH_MAX: usize = 8;

/// Removes a model, after asking.
pub(super) fn run(name: &str, yes: bool, partial: bool) -> Result<(), Failure> {
    let around = Surroundings::of_process();
    let library = Library::new(&models_settings(&around)?, &around)?;
    let cache = Cache::new(&hub_settings(&around)?);
    let cached: Option<Wanted> = name
        .parse()
        .ok()
        .filter(|wanted: &Wanted| cache.repo(&wanted.repo).is_ok_and(|repo| repo.is_some()));
    match (library.find(name).map(|model| model.place), cached) {
        (Some(Place::Demo), _) => Err(Failure::mistake(
            "the demo is part of the program and takes no room of its own",
        )),
        (Some(Place::Own(_)), _) if partial => Err(not_cached(name)),
        (Some(Place::Own(path)), _) => own(&library, &path, yes),
        (Some(Place::Foreign(path)), _) => Err(Failure::mistake(format!(
            "'{}' belongs to another program; remove it there",
            path.display()
        ))),
        (_, Some(wanted)) if partial => {
            let bytes = cache.remove_partial(&wanted.repo)?;
            Ok(console::print(&format!("  {bytes} came back\n"))?)
        }
        (_, Some(wanted)) => from_cache(&cache, &wanted, name.contains('@'), yes),
        (None, None) | (Some(Place::Cached(..)), None) => Err(not_there(name)),
    }
}

fn not_cached(name: &str) -> Failure {
    Failure::mistake(format!(
        "--partial is for models in the cache; '{name}' is not there"
    ))
}

fn not_there(name: &str) -> Failure {
    Failure::mistake(match Path::new(name).exists() {
        true => format!(
            "'{name}' is in none of the folders that are known (models.dirs, the cache); remove it by hand"
        ),
        false => format!("there is no model '{name}'; 'lowtide models list' shows what there is"),
    })
}

fn from_cache(cache: &Cache, wanted: &Wanted, one: bool, yes: bool) -> Result<(), Failure> {
    let commit = match one {
        false => None,
        true => Some(commit_of(cache, wanted)?),
    };
    let going = cache.would_remove(&wanted.repo, commit.as_deref())?;
    let what = match &commit {
        Some(commit) if !going.whole => format!("revision {commit} of '{}'", wanted.repo),
        _ => format!("'{}' with all it has in the cache", wanted.repo),
    };
    confirm(&what, going.bytes, yes)?;
    let gone = cache.remove(&wanted.repo, commit.as_deref())?;
    Ok(console::print(&format!("  {} came back\n", gone.bytes))?)
}

fn commit_of(cache: &Cache, wanted: &Wanted) -> Result<String, Failure> {
    if wanted.revision.is_commit() {
        return Ok(wanted.revision.as_str().to_owned());
    }
    let snapshot = cache.snapshot(wanted).ok_or_else(|| {
        let repo = cache.repo(&wanted.repo).ok().flatten();
        let revisions = repo.into_iter().flat_map(|repo| repo.revisions);
        let names: Vec<String> = revisions.flat_map(|revision| revision.refs).collect();
        Failure::mistake(format!(
            "'{}' has no revision '{}' here; it has {}",
            wanted.repo,
            wanted.revision,
            names.join(", ")
        ))
    })?;
    // What the name leads to must be a commit, whatever the file said.
    Ok(Revision::new(&snapshot.commit)?.to_string())
}

/// Removes a folder or a file that lies directly in a configured folder.
fn own(library: &Library, path: &Path, yes: bool) -> Result<(), Failure> {
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    let known = library
        .dirs()
        .iter()
        .filter_map(|dir| dir.canonicalize().ok());
    if parent.is_none() || !known.into_iter().any(|dir| Some(dir) == parent) {
        return Err(Failure::mistake(format!(
            "'{}' does not lie in a configured folder but is one; remove it by hand",
            path.display()
        )));
    }
    let refused = |cause: std::io::Error| {
        Failure::mistake(format!("'{}' cannot be removed: {cause}", path.display()))
    };
    let link = path.symlink_metadata().map_err(refused)?;
    let bytes = match link.is_symlink() {
        true => Bytes::ZERO,
        false => size_of(path, DEPTH_MAX).map_err(refused)?,
    };
    confirm(&format!("'{}'", path.display()), bytes, yes)?;
    let gone = match link.is_dir() {
        true => std::fs::remove_dir_all(path),
        // Of a link nothing goes but the link.
        false => std::fs::remove_file(path),
    };
    gone.map_err(refused)?;
    Ok(console::print(&format!("  {bytes} came back\n"))?)
}

/// Bytes of a file, or of all files below a folder; links count nothing.
fn size_of(path: &Path, depth: usize) -> std::io::Result<Bytes> {
    let metadata = path.symlink_metadata()?;
    if metadata.is_file() {
        return Ok(Bytes(metadata.len()));
    }
    if !metadata.is_dir() || depth == 0 {
        return Ok(Bytes::ZERO);
    }
    let entries: Vec<PathBuf> = std::fs::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    entries.iter().try_fold(Bytes::ZERO, |sum, entry| {
        Ok(sum + size_of(entry, depth - 1)?)
    })
}

fn confirm(what: &str, bytes: Bytes, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::mistake(format!(
            "removing {what} would give {bytes} back; nobody is there to be asked: add --yes"
        )));
    }
    console::note(&format!("Remove {what}? {bytes} come back. [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::mistake("nothing was removed")),
    }
}
