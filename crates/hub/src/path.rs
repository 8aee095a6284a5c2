//! Paths that servers name: only those that stay in their folder on every system.

use std::fmt;
use std::path::{Path, PathBuf};

/// The most bytes of a path.
const BYTES_MAX: usize = 1024;
/// The most bytes of one part: what file systems allow.
const PART_BYTES_MAX: usize = 255;
/// The most parts.
const PARTS_MAX: usize = 32;
/// Names that mean devices on Windows, whatever follows after a dot.
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];

/// A path within a repository: parts joined by `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoPath(String);

impl RepoPath {
    /// Checks a path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<RepoPath, &'static str> {
        if text.len() > BYTES_MAX {
            return Err("it has more than 1024 bytes");
        }
        if text.chars().any(|c| c.is_control()) {
            return Err("it has control characters in it");
        }
        if text.contains(['\\', ':', '<', '>', '"', '|', '?', '*']) {
            return Err("it has characters in it that some systems read as more than a name");
        }
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() > PARTS_MAX {
            return Err("it has more than 32 parts");
        }
        for part in parts {
            part_problem(part)?;
        }
        Ok(RepoPath(text.to_owned()))
    }

    /// The text, parts joined by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// What comes before the last part; empty at the root.
    pub fn folder(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// How many parts.
    pub fn depth(&self) -> usize {
        self.0.split('/').count()
    }

    /// The path within a folder of this system.
    pub fn below(&self, folder: &Path) -> PathBuf {
        self.0
            .split('/')
            .fold(folder.to_owned(), |path, part| path.join(part))
    }

    /// What two paths share that some system cannot tell apart.
    pub(crate) fn folded(&self) -> String {
        self.0.to_lowercase()
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn part_problem(part: &str) -> Result<(), &'static str> {
    if part.is_empty() {
        return Err("it is not relative, or has an empty part");
    }
    if part == "." || part == ".." {
        return Err("it leads out of its folder");
    }
    if part.len() > PART_BYTES_MAX {
        return Err("a part of it has more than 255 bytes");
    }
    if part.ends_with(['.', ' ']) {
        return Err("a part of it ends with a dot or a blank, which some systems leave out");
    }
    let stem = part.split('.').next().unwrap_or(part).trim_end();
    let stem = stem.to_lowercase();
    let numbered = ["com", "lpt"]
        .iter()
        .filter_map(|device| stem.strip_prefix(device))
        .any(|rest| rest.chars().count() == 1 && rest.chars().all(|c| "0123456789¹²³".contains(c)));
    match numbered || DEVICES.contains(&stem.as_str()) {
        true => Err("it names a device on Windows"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_in_its_folder() {
        for text in [
            "model_index.json",
            "vae/config.json",
            ".gitattributes",
            "a/b.c/d e",
            "console.txt",
            "com10",
        ] {
            assert_eq!(
                RepoPath::new(text).map(|path| path.to_string()),
                Ok(text.to_owned())
            );
        }
        let path = RepoPath::new("a/b/c.json").unwrap();
        assert_eq!(
            (path.name(), path.folder(), path.depth()),
            ("c.json", "a/b", 3)
        );
        assert_eq!(path.below(Path::new("x")), Path::new("x/a/b/c.json"));
    }

    #[test]
    fn what_does_not() {
        for text in [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../../x",
            "a/./b",
            "a//b",
            "a/",
            "C:/x",
            "C:x",
            "a\\..\\b",
            "\\\\host\\x",
            "a\0b",
            "a\nb",
            "\u{1b}[2J",
            "nul",
            "NUL.txt",
            "a/Con.safetensors",
            "com1",
            "lpt¹.x",
            "x.",
            "x ",
            "a:b",
            "a*b",
        ] {
            assert!(RepoPath::new(text).is_err(), "{text:?}");
        }
        assert!(RepoPath::new(&"a".repeat(256)).is_err());
        assert!(RepoPath::new(&"a/".repeat(40)).is_err());
        assert!(RepoPath::new(&vec!["abcdefgh"; 200].join("/")).is_err());
    }
}
