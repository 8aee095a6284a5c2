//! What a repository has, as the hub says.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::client::{Client, Subject, escaped};
use crate::name::is_commit;
use crate::path::RepoPath;
use crate::{Checksum, Error, Result, Wanted};

/// The longest description that is read, in bytes: ten thousand files need about 3 MB.
const BYTES_MAX: u64 = 32 << 20;
/// The most files of a repository.
const FILES_MAX: usize = 50_000;
/// The largest file, in bytes.
pub(crate) const FILE_BYTES_MAX: u64 = 2 << 40;

/// A repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Forty hexadecimal digits.
    pub commit: String,
    /// Its files.
    pub files: Vec<Listed>,
    /// Paths that may not be, and why; nobody is harmed by those that nobody wants.
    pub refused: Vec<(String, &'static str)>,
}

/// One of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where it is.
    pub path: RepoPath,
    /// Its bytes, where the hub says.
    pub size: Option<u64>,
    /// Their sum, where the hub says.
    pub checksum: Option<Checksum>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    oid: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Asks the hub.
    pub(crate) fn fetch(client: &Client, wanted: &Wanted) -> Result<Listing> {
        let url = format!(
            "{}/api/models/{}/revision/{}?blobs=true",
            client.endpoint(),
            wanted.repo,
            escaped(wanted.revision.as_str(), true)
        );
        let repo = wanted.repo.as_str();
        let subject = Subject {
            repo,
            revision: wanted.revision.as_str(),
            file: None,
        };
        let bytes = client.document(&url, subject, BYTES_MAX)?;
        let listing = Listing::read(&bytes, repo).map_err(|problem| match problem {
            Problem::NotOne(problem) => Error::NotAHub {
                host: client.endpoint().to_owned(),
                problem,
            },
            Problem::TooMuch(what, limit) => Error::TooMuch {
                repo: repo.to_owned(),
                what,
                limit,
            },
        })?;
        match wanted.revision.is_commit() && listing.commit != wanted.revision.as_str() {
            true => Err(Error::NotAHub {
                host: client.endpoint().to_owned(),
                problem: "it was asked for a commit and gives another".to_owned(),
            }),
            false => Ok(listing),
        }
    }

    fn read(bytes: &[u8], repo: &str) -> Result<Listing, Problem> {
        let not_one = |why: String| {
            Problem::NotOne(format!(
                "what it says about '{repo}' is no description: {why}"
            ))
        };
        let info: Info =
            serde_json::from_slice(bytes).map_err(|cause| not_one(cause.to_string()))?;
        if !is_commit(&info.sha) {
            return Err(not_one("it names no commit".to_owned()));
        }
        if info.siblings.len() > FILES_MAX {
            return Err(Problem::TooMuch(
                "the number of files".to_owned(),
                FILES_MAX.to_string(),
            ));
        }
        let mut listing = Listing {
            commit: info.sha,
            files: Vec::with_capacity(info.siblings.len()),
            refused: Vec::new(),
        };
        let mut seen = BTreeSet::new();
        for sibling in info.siblings {
            let path = match RepoPath::new(&sibling.rfilename) {
                Ok(path) => path,
                Err(why) => {
                    listing.refused.push((sibling.rfilename, why));
                    continue;
                }
            };
            // Two that some system cannot tell apart would overwrite each other there.
            if !seen.insert(path.folded()) {
                let why = "another differs from it in case alone";
                listing.refused.push((sibling.rfilename, why));
                continue;
            }
            let lfs = sibling.lfs.as_ref();
            let size = lfs.and_then(|lfs| lfs.size).or(sibling.size);
            if size.is_some_and(|size| size > FILE_BYTES_MAX) {
                let limit = lowtide_core::Bytes(FILE_BYTES_MAX).to_string();
                return Err(Problem::TooMuch(format!("the size of '{path}'"), limit));
            }
            let sum = match lfs {
                Some(lfs) => lfs.sha256.as_deref().or(lfs.oid.as_deref()),
                None => sibling.blob_id.as_deref(),
            };
            listing.files.push(Listed {
                path,
                size,
                checksum: sum.and_then(Checksum::from_hex),
            });
        }
        Ok(listing)
    }

    /// The file at a path.
    pub fn file(&self, path: &str) -> Option<&Listed> {
        self.files.iter().find(|file| file.path.as_str() == path)
    }
}

/// Why a description is refused.
#[derive(Debug)]
enum Problem {
    NotOne(String),
    TooMuch(String, String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_hub_says() {
        let text = format!(
            r#"{{"sha": "{}", "gated": false, "siblings": [
                {{"rfilename": "a.json", "size": 6, "blobId": "ce013625030ba8dba906f756967f9e9ca394464a"}},
                {{"rfilename": "b.safetensors", "size": 130, "blobId": "ce013625030ba8dba906f756967f9e9ca394464a",
                  "lfs": {{"sha256": "{}", "size": 7000000000, "pointerSize": 130}}}},
                {{"rfilename": "../evil"}}, {{"rfilename": "A.JSON"}}, {{"rfilename": "plain"}}]}}"#,
            "a".repeat(40),
            "b".repeat(64)
        );
        let listing = Listing::read(text.as_bytes(), "org/name").unwrap();
        assert_eq!(listing.files.len(), 3);
        assert!(matches!(listing.files[0].checksum, Some(Checksum::Git(_))));
        let large = listing.file("b.safetensors").unwrap();
        assert_eq!(large.size, Some(7_000_000_000));
        assert!(matches!(large.checksum, Some(Checksum::Sha256(_))));
        let refused: Vec<&str> = listing
            .refused
            .iter()
            .map(|(path, _)| path.as_str())
            .collect();
        assert_eq!(refused, ["../evil", "A.JSON"]);
    }

    #[test]
    fn what_is_no_description() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"sha": "main"}"#,
            r#"{"sha": 1}"#,
            "<html>",
        ] {
            assert!(
                Listing::read(text.as_bytes(), "org/name").is_err(),
                "{text}"
            );
        }
        let huge = format!(
            r#"{{"sha": "{}", "siblings": [{{"rfilename": "x", "size": {}}}]}}"#,
            "a".repeat(40),
            u64::MAX
        );
        assert!(Listing::read(huge.as_bytes(), "org/name").is_err());
    }
}
