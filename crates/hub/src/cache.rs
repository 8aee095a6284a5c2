//! The cache's folders, as `huggingface_hub` lays them out.
//!
//! ```text
//! <cache>/.locks/models--org--name/<etag>.lock
//! <cache>/models--org--name/refs/main                  the commit that `main` was when it was fetched
//!                           blobs/<etag>               the bytes, once
//!                           blobs/<etag>.incomplete    the beginning of them
//!                           snapshots/<commit>/…       the repository's tree, of links to blobs
//!                           .no_exist/<commit>/…       files that were asked for and are not there
//! ```

mod check;
mod installed;
mod remove;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::lock::FileLock;
use crate::name::is_commit;
use crate::path::RepoPath;
use crate::{Error, RepoName, Result, Revision, Settings, Wanted};

pub use check::Checked;
pub use installed::{Installed, InstalledRevision};
pub use remove::Removed;

/// A commit's file has forty characters.
const REF_BYTES_MAX: u64 = 128;
/// The most characters of a blob's name.
const ETAG_CHARS_MAX: usize = 128;
/// The text that tells backup programs to leave a cache out (bford.info/cachedir).
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of models, made again by fetching them.\n";

/// A cache of repositories.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    symlinks: bool,
}

/// A repository's tree at one commit, as far as it was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Forty hexadecimal digits.
    pub commit: String,
    /// The folder, laid out as the repository is.
    pub folder: PathBuf,
}

/// A file's places in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) blob: PathBuf,
    pub(crate) incomplete: PathBuf,
    pub(crate) lock: PathBuf,
}

impl Cache {
    /// The cache of these settings. Nothing is made yet.
    pub fn new(settings: &Settings) -> Cache {
        Cache {
            root: settings.cache.clone(),
            symlinks: settings.symlinks,
        }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a repository.
    pub fn repo_folder(&self, repo: &RepoName) -> PathBuf {
        self.root.join(repo.folder())
    }

    fn locks_folder(&self, repo: &RepoName) -> PathBuf {
        self.root.join(".locks").join(repo.folder())
    }

    pub(crate) fn snapshot_folder(&self, repo: &RepoName, commit: &str) -> PathBuf {
        self.repo_folder(repo).join("snapshots").join(commit)
    }

    pub(crate) fn places(&self, repo: &RepoName, etag: &str) -> Places {
        let blobs = self.repo_folder(repo).join("blobs");
        Places {
            blob: blobs.join(etag),
            incomplete: blobs.join(format!("{etag}.incomplete")),
            lock: self.locks_folder(repo).join(format!("{etag}.lock")),
        }
    }

    /// The commit a revision was when it was fetched last.
    fn commit_of(&self, repo: &RepoName, revision: &Revision) -> Option<String> {
        if revision.is_commit() {
            return Some(revision.as_str().to_owned());
        }
        let name = RepoPath::new(revision.as_str()).ok()?;
        let file = name.below(&self.repo_folder(repo).join("refs"));
        let short = file.metadata().ok()?.len() <= REF_BYTES_MAX;
        let text = short.then(|| fs::read_to_string(file).ok())??;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// The tree of what is wanted, if any of it was fetched.
    pub fn snapshot(&self, wanted: &Wanted) -> Option<Snapshot> {
        let commit = self.commit_of(&wanted.repo, &wanted.revision)?;
        let folder = self.snapshot_folder(&wanted.repo, &commit);
        folder.is_dir().then_some(Snapshot { commit, folder })
    }

    /// Makes the folders of a repository, and marks the cache as one.
    pub(crate) fn prepare(&self, repo: &RepoName) -> Result<()> {
        let blobs = self.repo_folder(repo).join("blobs");
        fs::create_dir_all(&blobs).map_err(Error::io(&blobs, "made"))?;
        let tag = self.root.join("CACHEDIR.TAG");
        if !tag.exists() {
            // Only a courtesy to backup programs.
            let _ = fs::write(tag, TAG);
        }
        Ok(())
    }

    /// Notes which commit a branch or tag is; readers see the old one or the new one.
    pub(crate) fn write_ref(
        &self,
        repo: &RepoName,
        revision: &Revision,
        commit: &str,
    ) -> Result<()> {
        if revision.is_commit() || self.commit_of(repo, revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let file = RepoPath::new(revision.as_str())
            .expect("a revision was checked as a path")
            .below(&self.repo_folder(repo).join("refs"));
        let folder = file.parent().expect("it lies below refs");
        fs::create_dir_all(folder).map_err(Error::io(folder, "made"))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let temporary = file.with_file_name(format!("{name}.{}.tmp", std::process::id()));
        fs::write(&temporary, commit)
            .and_then(|()| fs::rename(&temporary, &file))
            .map_err(Error::io(&file, "written"))
    }

    /// Notes that a file is not in a commit, so that no program asks again.
    pub(crate) fn note_missing(
        &self,
        repo: &RepoName,
        commit: &str,
        path: &RepoPath,
    ) -> Result<()> {
        let file = path.below(&self.repo_folder(repo).join(".no_exist").join(commit));
        let folder = file.parent().expect("it lies below its commit");
        fs::create_dir_all(folder).map_err(Error::io(folder, "made"))?;
        fs::write(&file, "").map_err(Error::io(&file, "written"))
    }

    /// Where a file stands in a snapshot.
    pub(crate) fn pointer(&self, repo: &RepoName, commit: &str, path: &RepoPath) -> PathBuf {
        path.below(&self.snapshot_folder(repo, commit))
    }

    /// Puts a whole blob into a snapshot: a relative link, or the file itself where links are impossible. `fresh`: the
    /// blob was fetched just now, so nothing else refers to it.
    pub(crate) fn place(
        &self,
        blob: &Path,
        pointer: &Path,
        depth: usize,
        fresh: bool,
    ) -> Result<()> {
        let folder = pointer.parent().expect("it lies below its commit");
        fs::create_dir_all(folder).map_err(Error::io(folder, "made"))?;
        match fs::remove_file(pointer) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(pointer, "replaced")(cause));
            }
            _ => {}
        }
        let name = blob.file_name().unwrap_or_default();
        let target = (0..=depth)
            .fold(PathBuf::new(), |path, _| path.join(".."))
            .join("blobs")
            .join(name);
        if self.symlinks {
            match symlink(&target, pointer) {
                Ok(()) => return Ok(()),
                // Another program was quicker; it points where it should, since a blob's name is its content.
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists && pointer.exists() => {
                    return Ok(());
                }
                Err(_) => {}
            }
        }
        match fresh {
            true => fs::rename(blob, pointer).map_err(Error::io(pointer, "written")),
            false => copied(blob, pointer).map_err(Error::io(pointer, "written")),
        }
    }

    /// Every lock of a repository, so that nobody fetches into it meanwhile.
    fn lock_all(&self, repo: &RepoName) -> Result<Vec<FileLock>> {
        let folder = self.locks_folder(repo);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(cause) => return Err(Error::io(&folder, "listed")(cause)),
        };
        let mut held = Vec::new();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            match FileLock::try_take(&path).map_err(Error::io(&path, "locked"))? {
                Some(lock) => held.push(lock),
                None => {
                    let repo = repo.to_string();
                    return Err(Error::InUse { repo });
                }
            }
        }
        Ok(held)
    }
}

/// A copy that appears whole or not at all.
fn copied(from: &Path, to: &Path) -> io::Result<()> {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let temporary = to.with_file_name(format!("{name}.{}.tmp", std::process::id()));
    let done = fs::copy(from, &temporary).and_then(|_| fs::rename(&temporary, to));
    if done.is_err() {
        // What is left of it would only take room.
        let _ = fs::remove_file(&temporary);
    }
    done
}

/// Whether a server's name for a blob can be a file's name.
pub(crate) fn is_etag(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let usable = RepoPath::new(text).is_ok() && !text.starts_with('.');
    usable
        && text.len() <= ETAG_CHARS_MAX
        && text.chars().all(plain)
        && !text.ends_with(".incomplete")
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn cache(root: &Path, symlinks: bool) -> Cache {
        Cache {
            root: root.to_owned(),
            symlinks,
        }
    }

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_revision_leads_to_its_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), true);
        let wanted: Wanted = "org/name@refs/pr/1".parse().unwrap();
        assert_eq!(cache.snapshot(&wanted), None);
        cache
            .write_ref(&wanted.repo, &wanted.revision, COMMIT)
            .unwrap();
        assert_eq!(cache.snapshot(&wanted), None, "a ref without a tree");
        let tree = folder
            .path()
            .join("models--org--name/snapshots")
            .join(COMMIT);
        fs::create_dir_all(&tree).unwrap();
        assert_eq!(cache.snapshot(&wanted).unwrap().folder, tree);
        let exact = format!("org/name@{COMMIT}").parse().unwrap();
        assert_eq!(cache.snapshot(&exact).unwrap().commit, COMMIT);
        assert_eq!(cache.snapshot(&"org/name".parse().unwrap()), None);
        fs::write(folder.path().join("models--org--name/refs/main"), "../../x").unwrap();
        assert_eq!(cache.snapshot(&"org/name".parse().unwrap()), None);
    }

    #[test]
    fn links_are_relative_and_without_them_files_move_or_are_copied() {
        for symlinks in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let cache = cache(folder.path(), symlinks);
            let repo = RepoName::new("org/name").unwrap();
            cache.prepare(&repo).unwrap();
            let blob = cache.places(&repo, "e1").blob;
            fs::write(&blob, "bytes").unwrap();
            for (path, fresh) in [("a/b/c.json", false), ("d.json", true)] {
                let path = RepoPath::new(path).unwrap();
                let pointer = cache.pointer(&repo, COMMIT, &path);
                cache.place(&blob, &pointer, path.depth(), fresh).unwrap();
                assert_eq!(fs::read_to_string(&pointer).unwrap(), "bytes");
                assert_eq!(pointer.is_symlink(), symlinks);
                if symlinks {
                    assert!(fs::read_link(&pointer).unwrap().starts_with("../.."));
                }
            }
            assert_eq!(blob.exists(), symlinks);
        }
    }

    #[test]
    fn names_of_blobs() {
        for good in [COMMIT, "d41d8cd98f00-3", "abc.def"] {
            assert!(is_etag(good), "{good}");
        }
        for wrong in [
            "",
            ".",
            "..",
            "a/b",
            ".hidden",
            "nul",
            "a b",
            "x.incomplete",
            &"a".repeat(129),
        ] {
            assert!(!is_etag(wrong), "{wrong}");
        }
    }
}
