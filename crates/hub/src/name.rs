//! What is asked for: a repository, and one of its revisions.

use std::fmt;
use std::str::FromStr;

use crate::path::RepoPath;
use crate::{Error, Result};

/// The revision where none is named.
pub const MAIN: &str = "main";
/// The most characters of a name, as the hub has it.
const NAME_CHARS_MAX: usize = 96;
/// The most bytes of a branch's or tag's name.
const REVISION_BYTES_MAX: usize = 200;
/// Characters of a commit.
const COMMIT_CHARS: usize = 40;
/// What a cache's folders of models begin with.
const PREFIX: &str = "models--";

/// `org/name`, or `name` alone, as very old repositories are called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoName(String);

impl RepoName {
    /// Reads a name.
    ///
    /// # Errors
    /// [`Error::BadName`].
    pub fn new(text: &str) -> Result<RepoName> {
        match problem(text) {
            None => Ok(RepoName(text.to_owned())),
            Some(problem) => Err(Error::BadName {
                name: text.to_owned(),
                problem,
            }),
        }
    }

    /// The name of a cache's folder, such as `models--org--name`.
    pub fn folder(&self) -> String {
        format!("{PREFIX}{}", self.0.replace('/', "--"))
    }

    /// The repository whose folder has that name.
    pub fn of_folder(folder: &str) -> Option<RepoName> {
        RepoName::new(&folder.strip_prefix(PREFIX)?.replace("--", "/")).ok()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn problem(text: &str) -> Option<&'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edges = |part: &str| part.starts_with(['-', '.']) || part.ends_with(['-', '.']);
    let parts: Vec<&str> = text.split('/').collect();
    if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
        Some("write org/name")
    } else if text.len() > NAME_CHARS_MAX {
        Some("it has more than 96 characters")
    } else if parts.iter().any(|part| !part.chars().all(plain)) {
        Some("only letters, digits, '-', '_' and '.' can be in it")
    } else if text.contains("--") || text.contains("..") {
        Some("'--' and '..' cannot be in it")
    } else if parts.iter().any(|part| edges(part)) || text.ends_with(".git") {
        Some("a part cannot begin or end with '-' or '.', or end with '.git'")
    } else {
        None
    }
}

/// A branch, a tag, or a commit's forty hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(String);

impl Revision {
    /// Reads a revision. It becomes a path in the cache, so it must be one that stays there.
    ///
    /// # Errors
    /// [`Error::BadName`].
    pub fn new(text: &str) -> Result<Revision> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+".contains(c);
        let stays = RepoPath::new(text).is_ok() && !text.starts_with('-');
        match stays && text.len() <= REVISION_BYTES_MAX && text.chars().all(plain) {
            true => Ok(Revision(text.to_owned())),
            false => Err(Error::BadName {
                name: text.to_owned(),
                problem: "after @ comes a branch, a tag or a commit",
            }),
        }
    }

    /// Whether it is a whole commit, which never changes.
    pub fn is_commit(&self) -> bool {
        is_commit(&self.0)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Revision {
    fn default() -> Revision {
        Revision(MAIN.to_owned())
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether this is a whole commit.
pub(crate) fn is_commit(text: &str) -> bool {
    let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    text.len() == COMMIT_CHARS && text.bytes().all(digit)
}

/// `org/name` or `org/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wanted {
    /// The repository.
    pub repo: RepoName,
    /// Its revision; `main` where none is named.
    pub revision: Revision,
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Wanted> {
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Revision::new(revision)?),
            None => (text, Revision::default()),
        };
        Ok(Wanted {
            repo: RepoName::new(repo)?,
            revision,
        })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            MAIN => write!(f, "{}", self.repo),
            revision => write!(f, "{}@{revision}", self.repo),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_folders() {
        let wanted: Wanted = "Tongyi-MAI/Z-Image.v1@refs/pr/3".parse().unwrap();
        assert_eq!(wanted.repo.folder(), "models--Tongyi-MAI--Z-Image.v1");
        assert_eq!(
            RepoName::of_folder(&wanted.repo.folder()),
            Some(wanted.repo.clone())
        );
        assert_eq!(wanted.to_string(), "Tongyi-MAI/Z-Image.v1@refs/pr/3");
        assert_eq!("gpt2".parse::<Wanted>().unwrap().revision.as_str(), MAIN);
        assert_eq!(RepoName::of_folder("datasets--a--b"), None);
        assert_eq!(RepoName::of_folder("models--a--..--b"), None);
    }

    #[test]
    fn what_no_repository_is_called() {
        for wrong in [
            "", "a/b/c", "/a", "a/", "a b/c", "a/b--c", "a/..", "-a/b", "a/b.", "a/b.git", "ä/b",
            "a/b@", "a/b@../x", "a/b@/x", "a/b@x//y", "a/b@-x", "a/b@x y", "a/b@nul", "a/b@x\\y",
        ] {
            assert!(wrong.parse::<Wanted>().is_err(), "{wrong}");
        }
        assert!(RepoName::new(&"x".repeat(97)).is_err());
        assert!(Revision::new(&"0a".repeat(20)).unwrap().is_commit());
        assert!(!Revision::new(&"0A".repeat(20)).unwrap().is_commit());
    }
}
