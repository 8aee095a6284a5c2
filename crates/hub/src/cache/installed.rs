//! What is in a cache, and how large it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lowtide_core::Bytes;

use super::Cache;
use crate::name::is_commit;
use crate::{Error, RepoName, Result};

/// The most files of a folder that are looked at, and how deep: a folder beyond is not a repository's.
const FILES_MAX: usize = 100_000;
const DEPTH_MAX: usize = 32;

/// A repository in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its name.
    pub repo: RepoName,
    /// What it takes on the disk; a file that several revisions share counts once.
    pub bytes: Bytes,
    /// What of that are beginnings of files.
    pub partial: Bytes,
    /// By commit.
    pub revisions: Vec<InstalledRevision>,
}

/// One revision of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledRevision {
    /// Forty hexadecimal digits.
    pub commit: String,
    /// Branches and tags that were this commit when they were fetched.
    pub refs: Vec<String>,
    /// Its tree.
    pub folder: PathBuf,
    /// Bytes of its files, shared ones included.
    pub bytes: Bytes,
    /// How many files.
    pub files: usize,
    /// Files whose bytes are not there.
    pub broken: Vec<PathBuf>,
    /// The blobs it uses.
    pub(super) blobs: BTreeSet<PathBuf>,
}

impl Cache {
    /// Every repository that is there, by name. A cache that is not there is empty.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn installed(&self) -> Result<Vec<Installed>> {
        let mut repos = Vec::new();
        for (name, _) in entries(&self.root)? {
            if let Some(repo) = RepoName::of_folder(&name) {
                repos.extend(self.repo(&repo)?);
            }
        }
        repos.sort_by(|a, b| a.repo.cmp(&b.repo));
        Ok(repos)
    }

    /// One repository; `None` where nothing of it is there.
    ///
    /// # Errors
    /// When its folders cannot be listed.
    pub fn repo(&self, repo: &RepoName) -> Result<Option<Installed>> {
        let folder = self.repo_folder(repo);
        if !folder.is_dir() {
            return Ok(None);
        }
        let mut refs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in files(&folder.join("refs"))? {
            let name = file.strip_prefix(folder.join("refs")).unwrap_or(&file);
            let name = name.to_string_lossy().replace('\\', "/");
            if let Ok(commit) = fs::read_to_string(&file) {
                refs.entry(commit.trim().to_owned()).or_default().push(name);
            }
        }
        let mut revisions = Vec::new();
        for (commit, tree) in entries(&folder.join("snapshots"))? {
            if is_commit(&commit) && tree.is_dir() {
                let refs = refs.remove(&commit).unwrap_or_default();
                revisions.push(revision(&folder, commit, tree, refs)?);
            }
        }
        revisions.sort_by(|a, b| a.commit.cmp(&b.commit));
        let blobs = entries(&folder.join("blobs"))?;
        let size = |path: &Path| path.symlink_metadata().map_or(0, |metadata| metadata.len());
        let partial = blobs
            .iter()
            .filter(|(name, _)| name.ends_with(".incomplete"));
        let partial: u64 = partial.map(|(_, path)| size(path)).sum();
        let whole: u64 = blobs.iter().map(|(_, path)| size(path)).sum();
        // Where there are no links, the files themselves stand in the trees.
        let mut own = 0;
        for revision in &revisions {
            let plain = files(&revision.folder)?
                .into_iter()
                .filter(|file| !file.is_symlink());
            own += plain.map(|file| size(&file)).sum::<u64>();
        }
        Ok(Some(Installed {
            repo: repo.clone(),
            bytes: Bytes(whole + own),
            partial: Bytes(partial),
            revisions,
        }))
    }
}

fn revision(
    repo: &Path,
    commit: String,
    folder: PathBuf,
    mut refs: Vec<String>,
) -> Result<InstalledRevision> {
    refs.sort();
    let own_blobs = repo.join("blobs").canonicalize().ok();
    let mut found = InstalledRevision {
        commit,
        refs,
        bytes: Bytes::ZERO,
        files: 0,
        broken: Vec::new(),
        blobs: BTreeSet::new(),
        folder,
    };
    for file in files(&found.folder)? {
        match file.metadata() {
            Ok(metadata) => {
                found.files += 1;
                found.bytes += Bytes(metadata.len());
            }
            Err(_) => found.broken.push(file.clone()),
        }
        // One step only: a blob may itself be a link into a store that other repositories share.
        if let Ok(target) = fs::read_link(&file) {
            let near = file.parent().unwrap_or(Path::new("")).join(target);
            let home = near.parent().and_then(|folder| folder.canonicalize().ok());
            if home.is_some() && home == own_blobs {
                found.blobs.insert(
                    repo.join("blobs")
                        .join(near.file_name().unwrap_or_default()),
                );
            }
        }
    }
    Ok(found)
}

/// Names and paths of a folder's entries; none where it is not there.
pub(super) fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(Error::io(folder, "listed")(cause)),
    };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry.map_err(Error::io(folder, "listed"))?;
        // Nothing that a hub names is anything but UTF-8.
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

/// Every file and link below a folder; links to folders are not followed.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = open.pop() {
        for (_, path) in entries(&folder)? {
            let is_folder = path
                .symlink_metadata()
                .is_ok_and(|metadata| metadata.is_dir());
            match is_folder {
                true if depth < DEPTH_MAX => open.push((path, depth + 1)),
                true => {}
                false => found.push(path),
            }
            if found.len() + open.len() > FILES_MAX {
                return Err(Error::TooMuch {
                    repo: folder.display().to_string(),
                    what: "the number of files".to_owned(),
                    limit: FILES_MAX.to_string(),
                });
            }
        }
    }
    found.sort();
    Ok(found)
}
