//! How a repository, or one of its revisions, goes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lowtide_core::Bytes;

use super::installed::{entries, files};
use super::{Cache, InstalledRevision};
use crate::{Error, RepoName, Result};

/// What would go, or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Bytes that come back.
    pub bytes: Bytes,
    /// Commits whose trees go.
    pub commits: Vec<String>,
    /// Whether nothing of the repository is left.
    pub whole: bool,
}

/// What goes, by path.
struct Doomed {
    told: Removed,
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Cache {
    /// What [`Cache::remove`] would give back.
    ///
    /// # Errors
    /// As [`Cache::remove`].
    pub fn would_remove(&self, repo: &RepoName, commit: Option<&str>) -> Result<Removed> {
        Ok(self.doomed(repo, commit)?.told)
    }

    /// Removes a revision with the blobs no other revision uses, or the whole repository: where no commit is named, and
    /// where the last revision goes.
    ///
    /// # Errors
    /// [`Error::NotInstalled`], [`Error::InUse`] while a program fetches into it.
    pub fn remove(&self, repo: &RepoName, commit: Option<&str>) -> Result<Removed> {
        let locks = self.lock_all(repo)?;
        let doomed = self.doomed(repo, commit)?;
        // Trees go first: a tree without its bytes would look like a model.
        for folder in &doomed.folders {
            gone(fs::remove_dir_all(folder), folder)?;
        }
        for file in &doomed.files {
            gone(fs::remove_file(file), file)?;
        }
        drop(locks);
        if doomed.told.whole {
            let folder = self.locks_folder(repo);
            gone(fs::remove_dir_all(&folder), &folder)?;
        }
        Ok(doomed.told)
    }

    fn doomed(&self, repo: &RepoName, commit: Option<&str>) -> Result<Doomed> {
        let not_there = || Error::NotInstalled {
            repo: commit.map_or_else(|| repo.to_string(), |commit| format!("{repo}@{commit}")),
            cache: self.root.clone(),
        };
        let installed = self.repo(repo)?.ok_or_else(not_there)?;
        let goes = |revision: &&InstalledRevision| commit.is_none_or(|one| revision.commit == one);
        let (doomed, kept): (Vec<_>, Vec<_>) = installed.revisions.iter().partition(goes);
        if doomed.is_empty() && commit.is_some() {
            return Err(not_there());
        }
        let commits = doomed
            .iter()
            .map(|revision| revision.commit.clone())
            .collect();
        let folder = self.repo_folder(repo);
        if kept.is_empty() {
            let told = Removed {
                bytes: installed.bytes,
                commits,
                whole: true,
            };
            let folders = ["snapshots", "refs"].map(|part| folder.join(part));
            let folders = folders.into_iter().chain([folder]).collect();
            return Ok(Doomed {
                told,
                folders,
                files: Vec::new(),
            });
        }
        let used: BTreeSet<&PathBuf> = kept.iter().flat_map(|revision| &revision.blobs).collect();
        let unused = doomed.iter().flat_map(|revision| &revision.blobs);
        let mut unused: BTreeSet<PathBuf> = unused
            .filter(|blob| !used.contains(blob))
            .cloned()
            .collect();
        let mut bytes: u64 = unused.iter().map(|blob| length(blob)).sum();
        let mut folders = Vec::new();
        for revision in &doomed {
            let plain = files(&revision.folder)?
                .into_iter()
                .filter(|file| !file.is_symlink());
            bytes += plain.map(|file| length(&file)).sum::<u64>();
            folders.push(revision.folder.clone());
            folders.push(folder.join(".no_exist").join(&revision.commit));
            unused.extend(
                revision
                    .refs
                    .iter()
                    .map(|name| folder.join("refs").join(name)),
            );
            unused.insert(
                folder
                    .join("trees")
                    .join(format!("{}.json", revision.commit)),
            );
        }
        let told = Removed {
            bytes: Bytes(bytes),
            commits,
            whole: false,
        };
        Ok(Doomed {
            told,
            folders,
            files: unused.into_iter().collect(),
        })
    }

    /// Removes these files of a repository's, which are damaged, so that the next pull fetches them again.
    ///
    /// # Errors
    /// [`Error::InUse`] while a program fetches into it, and where one cannot be removed.
    pub fn discard(&self, repo: &RepoName, blobs: &[PathBuf]) -> Result<()> {
        let _locks = self.lock_all(repo)?;
        let own = self.repo_folder(repo).join("blobs");
        for blob in blobs.iter().filter(|blob| blob.parent() == Some(&own)) {
            gone(fs::remove_file(blob), blob)?;
        }
        Ok(())
    }

    /// Removes the beginnings of files, which a pull would go on with; returns their bytes.
    ///
    /// # Errors
    /// As [`Cache::remove`].
    pub fn remove_partial(&self, repo: &RepoName) -> Result<Bytes> {
        let locks = self.lock_all(repo)?;
        let mut bytes = 0;
        for (name, path) in entries(&self.repo_folder(repo).join("blobs"))? {
            if name.ends_with(".incomplete") {
                bytes += length(&path);
                gone(fs::remove_file(&path), &path)?;
            }
        }
        drop(locks);
        Ok(Bytes(bytes))
    }
}

/// Bytes of the file itself, none for a link.
fn length(path: &Path) -> u64 {
    let metadata = path.symlink_metadata().ok();
    metadata
        .filter(|metadata| metadata.is_file())
        .map_or(0, |metadata| metadata.len())
}

/// What is not there any more is gone, too.
fn gone(done: io::Result<()>, path: &Path) -> Result<()> {
    match done {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(path, "removed")(cause))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::cache;
    use crate::path::RepoPath;
    use crate::{RepoName, Revision};
    use lowtide_core::Bytes;

    #[test]
    fn a_revision_takes_only_what_no_other_uses() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), true);
        let repo = RepoName::new("org/name").unwrap();
        cache.prepare(&repo).unwrap();
        let (old, new) = ("a".repeat(40), "b".repeat(40));
        for (commit, files) in [
            (&old, [("x.bin", "shared", 10), ("y.bin", "old", 100)]),
            (&new, [("x.bin", "shared", 10), ("y.bin", "new", 1000)]),
        ] {
            for (path, etag, size) in files {
                let blob = cache.places(&repo, etag).blob;
                std::fs::write(&blob, vec![0; size]).unwrap();
                let path = RepoPath::new(path).unwrap();
                let pointer = cache.pointer(&repo, commit, &path);
                cache.place(&blob, &pointer, 1, false).unwrap();
            }
        }
        cache
            .write_ref(&repo, &Revision::new("v1").unwrap(), &old)
            .unwrap();
        cache.write_ref(&repo, &Revision::default(), &new).unwrap();
        std::fs::write(cache.places(&repo, "half").incomplete, [0; 5]).unwrap();

        let installed = cache.repo(&repo).unwrap().unwrap();
        assert_eq!(
            (installed.bytes, installed.partial),
            (Bytes(1115), Bytes(5))
        );
        let sizes: Vec<_> = installed.revisions.iter().map(|one| one.bytes).collect();
        assert_eq!(sizes, [Bytes(110), Bytes(1010)]);
        assert_eq!(installed.revisions[0].refs, ["v1"]);

        assert_eq!(
            cache.would_remove(&repo, Some(&old)).unwrap().bytes,
            Bytes(100)
        );
        let removed = cache.remove(&repo, Some(&old)).unwrap();
        assert_eq!((removed.bytes, removed.whole), (Bytes(100), false));
        assert!(cache.remove(&repo, Some(&old)).is_err());
        let left = cache.repo(&repo).unwrap().unwrap();
        assert_eq!(left.revisions.len(), 1);
        assert!(left.revisions[0].broken.is_empty());
        assert!(!cache.repo_folder(&repo).join("refs/v1").exists());
        assert_eq!(cache.remove_partial(&repo).unwrap(), Bytes(5));

        let removed = cache.remove(&repo, None).unwrap();
        assert_eq!((removed.bytes, removed.whole), (Bytes(1010), true));
        assert_eq!(cache.repo(&repo).unwrap(), None);
        assert!(cache.remove(&repo, None).is_err());
    }

    #[test]
    fn nothing_is_removed_while_somebody_fetches() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), true);
        let repo = RepoName::new("org/name").unwrap();
        cache.prepare(&repo).unwrap();
        let lock = crate::lock::FileLock::try_take(&cache.places(&repo, "e").lock).unwrap();
        let refused = cache.remove(&repo, None).unwrap_err().to_string();
        assert!(refused.contains("by another program"), "{refused}");
        drop(lock);
        assert!(cache.remove(&repo, None).is_ok());
    }
}
