//! The models of a service by name: the one that comes with the program, and the folders in the configured places.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lowtide_weights::ModelFolder;

use crate::demo;
use crate::failure::one_line;

/// What a model folder has in it.
const INDEX: &str = "model_index.json";

/// The models that can be named. A name is only ever looked for among those found: no text of a client becomes a path.
#[derive(Clone, Debug)]
pub(crate) struct Catalog {
    dirs: Vec<PathBuf>,
}

impl Catalog {
    /// The folders in these places, and the demo.
    pub(crate) fn new(dirs: Vec<PathBuf>) -> Catalog {
        Catalog { dirs }
    }

    /// The places that are not there.
    pub(crate) fn missing(&self) -> Vec<String> {
        let missing = self.dirs.iter().filter(|dir| !dir.is_dir());
        missing.map(|dir| dir.display().to_string()).collect()
    }

    /// Folders by name; where two have the same, the place named first wins.
    fn folders(&self) -> BTreeMap<String, PathBuf> {
        let mut found = BTreeMap::new();
        for dir in &self.dirs {
            // A place itself may be a model.
            let inside = std::fs::read_dir(dir).into_iter().flatten();
            let inside = inside.filter_map(|entry| Some(entry.ok()?.path()));
            for path in std::iter::once(dir.clone()).chain(inside) {
                let name = path.file_name().and_then(|name| name.to_str());
                if let Some(name) = name.filter(|name| *name != demo::NAME)
                    && path.join(INDEX).is_file()
                {
                    found.entry(name.to_owned()).or_insert(path);
                }
            }
        }
        found
    }

    /// All names, as of now.
    pub(crate) fn names(&self) -> Vec<String> {
        let folders = self.folders();
        std::iter::once(demo::NAME.to_owned())
            .chain(folders.into_keys())
            .collect()
    }

    /// Opens the folder of one of these names.
    ///
    /// # Errors
    /// A sentence: there is no such name, or the folder is no model.
    pub(crate) fn open(&self, name: &str) -> Result<ModelFolder, String> {
        let opened = if name == demo::NAME {
            ModelFolder::embedded(demo::NAME, demo::FILES)
        } else {
            let folders = self.folders();
            let path = folders
                .get(name)
                .ok_or_else(|| format!("there is no model '{name}'"))?;
            ModelFolder::open(path)
        };
        opened.map_err(|cause| one_line(&cause.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_for_and_never_become_paths() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        for (dir, name) in [(&one, "mine"), (&two, "mine"), (&two, "other")] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
            std::fs::write(dir.join(name).join(INDEX), "{}").unwrap();
        }
        std::fs::create_dir(one.join("no-model")).unwrap();
        let catalog = Catalog::new(vec![one.clone(), two, folder.path().join("gone")]);
        assert_eq!(catalog.names(), ["demo", "mine", "other"]);
        assert_eq!(catalog.folders()["mine"], one.join("mine"));
        assert_eq!(catalog.missing().len(), 1);
        assert!(catalog.open("demo").is_ok());
        for name in ["../one/mine", "two/other", "/", ""] {
            let sentence = catalog.open(name).unwrap_err();
            assert!(sentence.contains("no model"), "{sentence}");
        }
        assert!(catalog.open("mine").unwrap_err().contains("_class_name"));
    }
}
