//! A folder: on a disk, or built into the program.

use std::path::PathBuf;

use crate::{Error, Result, Source};

/// One file of a built-in model: its path inside the model's folder, with `/`, and its bytes.
pub type EmbeddedFile = (&'static str, &'static [u8]);

/// Where a model's or a component's files are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Disk(PathBuf),
    /// A single file instead of a folder: nothing beside it belongs to the model.
    File(PathBuf),
    Embedded {
        /// What messages call the folder.
        name: String,
        /// The part of the files' paths before this folder's own, empty or ending in `/`.
        prefix: String,
        files: &'static [EmbeddedFile],
    },
}

impl Place {
    /// What messages call the folder.
    pub(crate) fn describe(&self) -> String {
        match self {
            Place::Disk(path) | Place::File(path) => path.display().to_string(),
            Place::Embedded { name, prefix, .. } => {
                format!("{name}/{prefix}").trim_end_matches('/').to_owned()
            }
        }
    }

    /// What messages call a file in it.
    pub(crate) fn describe_file(&self, relative: &str) -> String {
        match self {
            Place::Disk(path) | Place::File(path) => path.join(relative).display().to_string(),
            Place::Embedded { name, prefix, .. } => format!("{name}/{prefix}{relative}"),
        }
    }

    /// A folder in it. `name` must be one plain part of a path.
    pub(crate) fn folder(&self, name: &str) -> Place {
        match self {
            Place::Disk(path) => Place::Disk(path.join(name)),
            Place::File(path) => Place::File(path.join(name)),
            Place::Embedded {
                name: model,
                prefix,
                files,
            } => Place::Embedded {
                name: model.clone(),
                prefix: format!("{prefix}{name}/"),
                files,
            },
        }
    }

    /// Whether the folder is there.
    pub(crate) fn exists(&self) -> bool {
        match self {
            Place::Disk(path) => path.is_dir(),
            Place::File(_) => false,
            Place::Embedded { prefix, files, .. } => files
                .iter()
                .any(|(path, _)| path.starts_with(prefix.as_str())),
        }
    }

    /// The names in the folder, sorted. Names that are not UTF-8 cannot be asked for and are left out.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Place::Disk(path) => {
                let failed = |e| Error::io(self.describe(), "list", e);
                let mut names = Vec::new();
                for entry in path.read_dir().map_err(failed)? {
                    names.extend(entry.map_err(failed)?.file_name().into_string());
                }
                names
            }
            Place::File(_) => Vec::new(),
            Place::Embedded { prefix, files, .. } => files
                .iter()
                .filter_map(|(path, _)| path.strip_prefix(prefix.as_str()))
                .map(|rest| rest.split('/').next().unwrap_or(rest).to_owned())
                .collect(),
        };
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Opens a file in it, `None` where there is none.
    pub(crate) fn source(&self, relative: &str) -> Result<Option<Source>> {
        check_relative(relative, &self.describe())?;
        match self {
            Place::Disk(path) => match Source::open(&path.join(relative)) {
                Ok(source) => Ok(Some(source)),
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            },
            Place::File(_) => Ok(None),
            Place::Embedded { prefix, files, .. } => {
                let wanted = format!("{prefix}{relative}");
                let found = files.iter().find(|(path, _)| *path == wanted);
                Ok(found.map(|(_, bytes)| Source::Memory {
                    name: self.describe_file(relative),
                    bytes: (*bytes).into(),
                }))
            }
        }
    }

    /// Reads a text file of at most `limit` bytes, `None` where there is none.
    pub(crate) fn text(&self, relative: &str, limit: u64) -> Result<Option<String>> {
        let Some(source) = self.source(relative)? else {
            return Ok(None);
        };
        let (file, found) = (source.name(), source.byte_len());
        if found > limit {
            return Err(Error::TooLarge { file, found, limit });
        }
        let mut bytes = vec![0; found as usize];
        source.read_at(0, &mut bytes)?;
        crate::json::text(bytes, &file).map(Some)
    }
}

/// Refuses a path that could lead out of its folder on any of the systems we run on.
pub(crate) fn check_relative(path: &str, file: &str) -> Result<()> {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && !part.contains(['\\', ':'])
            && !part.chars().any(char::is_control)
    };
    if path.split('/').all(plain) {
        Ok(())
    } else {
        Err(Error::UnsafePath {
            file: file.to_owned(),
            path: path.to_owned(),
        })
    }
}

/// Refuses a name that is more than one plain part of a path.
pub(crate) fn check_file_name(name: &str, file: &str) -> Result<()> {
    check_relative(name, file)?;
    if name.contains('/') {
        return Err(Error::UnsafePath {
            file: file.to_owned(),
            path: name.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for path in ["a", "a/b.json", "tokenizer/tokenizer.json", "..a", "a..b/c"] {
            assert!(check_relative(path, "here").is_ok(), "{path}");
        }
        for path in [
            "",
            ".",
            "..",
            "../a",
            "a/../b",
            "/etc/passwd",
            "a//b",
            "a/",
            "C:/x",
            "a\\b",
            "a\0b",
            "a/./b",
            "a:b",
            "a\nb",
        ] {
            let error = check_relative(path, "here").unwrap_err();
            assert!(matches!(error, Error::UnsafePath { .. }), "{path}");
            assert!(
                error.to_string().starts_with("here: refuses the path '"),
                "{error}"
            );
        }
        assert!(check_file_name("a/b", "here").is_err());
    }
}
