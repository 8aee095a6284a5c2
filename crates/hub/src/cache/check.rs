//! Whether what is in the cache is what was fetched.

use std::path::PathBuf;

use lowtide_core::Bytes;

use super::Cache;
use super::installed::{InstalledRevision, entries};
use crate::{Checksum, Error, Hasher, RepoName, Result};

/// What came of checking a repository's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Files whose sum is right.
    pub good: usize,
    /// Their bytes.
    pub bytes: Bytes,
    /// Blobs whose bytes are not what their name says.
    pub damaged: Vec<PathBuf>,
    /// Files in trees whose bytes are not there.
    pub broken: Vec<PathBuf>,
    /// Files whose name is no sum, so that nothing can be said: fetched from a mirror, or where there are no links.
    pub unknown: Vec<PathBuf>,
}

impl Cache {
    /// Reads every blob of a repository and compares its sum with its name. `look` is told of bytes read, and can stop.
    ///
    /// # Errors
    /// [`Error::NotInstalled`], [`Error::Stopped`], and where a file cannot be read.
    pub fn check(
        &self,
        repo: &RepoName,
        mut look: impl FnMut(u64) -> Result<()>,
    ) -> Result<Checked> {
        let installed = self.repo(repo)?.ok_or_else(|| Error::NotInstalled {
            repo: repo.to_string(),
            cache: self.root().to_owned(),
        })?;
        let mut checked = Checked::default();
        for (name, blob) in entries(&self.repo_folder(repo).join("blobs"))? {
            if name.ends_with(".incomplete") {
                continue;
            }
            let Some(sum) = Checksum::from_hex(&name) else {
                checked.unknown.push(blob);
                continue;
            };
            let mut file = std::fs::File::open(&blob).map_err(Error::io(&blob, "read"))?;
            let size = file.metadata().map_err(Error::io(&blob, "read"))?.len();
            let mut hasher = Hasher::new(&sum, size);
            let mut stopped = None;
            let read = hasher.read(&mut file, |count| {
                look(count as u64).map_err(|stop| {
                    stopped = Some(stop);
                    std::io::Error::other("stopped")
                })
            });
            if let Some(stop) = stopped {
                return Err(stop);
            }
            read.map_err(Error::io(&blob, "read"))?;
            match hasher.finish() == sum {
                true => {
                    checked.good += 1;
                    checked.bytes += Bytes(size);
                }
                false => checked.damaged.push(blob),
            }
        }
        for revision in &installed.revisions {
            checked.broken.extend(revision.broken.iter().cloned());
            checked.unknown.extend(plain_files(revision)?);
        }
        Ok(checked)
    }
}

/// Files that stand in a tree themselves.
fn plain_files(revision: &InstalledRevision) -> Result<Vec<PathBuf>> {
    let files = super::installed::files(&revision.folder)?;
    Ok(files
        .into_iter()
        .filter(|file| !file.is_symlink())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::super::tests::cache;
    use crate::RepoName;

    #[test]
    fn a_changed_blob_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), true);
        let repo = RepoName::new("org/name").unwrap();
        cache.prepare(&repo).unwrap();
        let good = "ce013625030ba8dba906f756967f9e9ca394464a";
        let other = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        std::fs::write(cache.places(&repo, good).blob, "hello\n").unwrap();
        std::fs::write(cache.places(&repo, other).blob, "hello!").unwrap();
        std::fs::write(cache.places(&repo, "etag-7").blob, "hello!").unwrap();
        let checked = cache.check(&repo, |_| Ok(())).unwrap();
        assert_eq!(checked.good, 1);
        assert_eq!(checked.damaged, [cache.places(&repo, other).blob]);
        assert_eq!(checked.unknown.len(), 1);
        let stopped = cache.check(&repo, |_| Err(crate::Error::Stopped));
        assert!(matches!(stopped, Err(crate::Error::Stopped)));
    }
}
