//! Where things are: the user's folders and the configuration file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// What the process was started with: passed in, so that a test can have its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// The environment, as far as it is text.
    pub(crate) variables: BTreeMap<String, String>,
    /// The folder it was started in.
    pub(crate) folder: PathBuf,
}

/// Names of the configuration file, in a folder.
const FILES: [&str; 3] = ["lowtide.toml", "lowtide.yaml", "lowtide.yml"];

impl Surroundings {
    /// This process's.
    pub(crate) fn of_process() -> Surroundings {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Surroundings {
            variables: std::env::vars_os().filter_map(text).collect(),
            folder: PathBuf::new(),
        }
    }

    /// The folder a variable names, if it is set.
    pub(crate) fn variable(&self, name: &str) -> Option<PathBuf> {
        let value = self.variables.get(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    }

    /// The user's folder.
    pub(crate) fn home(&self) -> Option<PathBuf> {
        self.variable("HOME")
            .or_else(|| self.variable("USERPROFILE"))
    }

    /// Where the program keeps jobs and pictures unless told otherwise.
    ///
    /// # Errors
    /// When the user has no folder.
    pub(crate) fn data_folder(&self) -> Result<PathBuf, Failure> {
        let folder = if cfg!(windows) {
            self.variable("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            self.home()
                .map(|home| home.join("Library/Application Support"))
        } else {
            self.variable("XDG_DATA_HOME")
                .or_else(|| self.home().map(|home| home.join(".local/share")))
        };
        folder.map(|folder| folder.join("lowtide")).ok_or_else(|| {
            Failure::mistake(
                "there is no folder of yours to keep jobs in; name one with --data-dir",
            )
        })
    }

    /// Where the user's configuration is, if anywhere.
    fn settings_folder(&self) -> Option<PathBuf> {
        let folder = if cfg!(windows) {
            self.variable("APPDATA")
        } else if cfg!(target_os = "macos") {
            self.home()
                .map(|home| home.join("Library/Application Support"))
        } else {
            self.variable("XDG_CONFIG_HOME")
                .or_else(|| self.home().map(|home| home.join(".config")))
        };
        folder.map(|folder| folder.join("lowtide"))
    }

    /// The configuration file: the one asked for, else the one here, else the user's.
    ///
    /// # Errors
    /// When the one asked for is not there, or a folder has two.
    pub(crate) fn settings_file(&self, asked: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
        if let Some(path) = asked {
            return match path.is_file() {
                true => Ok(Some(path.to_owned())),
                false => Err(Failure::mistake(format!(
                    "--config '{}': there is no such file",
                    path.display()
                ))),
            };
        }
        let folders = [Some(self.folder.clone()), self.settings_folder()];
        for folder in folders.into_iter().flatten() {
            let paths = FILES.map(|name| folder.join(name));
            let mut there = paths.into_iter().filter(|path| path.is_file());
            let (first, second) = (there.next(), there.next());
            if let (Some(first), Some(second)) = (&first, &second) {
                return Err(Failure::mistake(format!(
                    "'{}' and '{}' are both there; remove one, or name one with --config",
                    first.display(),
                    second.display()
                )));
            }
            if first.is_some() {
                return Ok(first);
            }
        }
        Ok(None)
    }
}

/// A path with the user's folder for a leading `~/`.
pub(crate) fn tilde(text: &str) -> PathBuf {
    let home = std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE"));
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings(folder: &Path) -> Surroundings {
        let variables = [
            ("XDG_CONFIG_HOME", folder.join("config")),
            ("XDG_DATA_HOME", folder.join("data")),
            ("LOCALAPPDATA", folder.join("data")),
        ];
        Surroundings {
            variables: variables
                .map(|(name, path)| (name.to_owned(), path.to_string_lossy().into_owned()))
                .into(),
            folder: folder.join("here"),
        }
    }

    #[test]
    fn the_file_asked_for_then_the_one_here_then_the_users() {
        let folder = tempfile::tempdir().unwrap();
        let place = surroundings(folder.path());
        assert_eq!(place.settings_file(None).unwrap(), None);
        if cfg!(not(any(windows, target_os = "macos"))) {
            let users = folder.path().join("config/lowtide/lowtide.yml");
            std::fs::create_dir_all(users.parent().unwrap()).unwrap();
            std::fs::write(&users, "").unwrap();
            assert_eq!(place.settings_file(None).unwrap(), Some(users));
        }
        std::fs::create_dir(folder.path().join("here")).unwrap();
        let here = folder.path().join("here/lowtide.toml");
        std::fs::write(&here, "").unwrap();
        assert_eq!(place.settings_file(None).unwrap(), Some(here.clone()));
        std::fs::write(here.with_extension("yaml"), "").unwrap();
        let both = place.settings_file(None).unwrap_err().to_string();
        assert!(
            both.contains("lowtide.toml") && both.contains("lowtide.yaml"),
            "{both}"
        );
        let other = folder.path().join("other.toml");
        assert!(place.settings_file(Some(&other)).is_err());
        std::fs::write(&other, "").unwrap();
        assert_eq!(place.settings_file(Some(&other)).unwrap(), Some(other));
    }

    #[test]
    fn jobs_are_kept_in_the_users_folder() {
        let folder = Path::new("x");
        if cfg!(not(target_os = "macos")) {
            let kept = surroundings(folder).data_folder().unwrap();
            assert_eq!(kept, Path::new("x/data/lowtide"));
        }
        assert!(Surroundings::default().data_folder().is_err());
    }
}
