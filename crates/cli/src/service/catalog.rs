//! The models of a service by name: whatever the library has.

use lowtide_weights::ModelFolder;

use super::folders::Surroundings;
use super::settings::ModelsSettings;
use crate::failure::one_line;
use crate::models::{Library, Model, variants_of};

/// The models that can be named. A name is only ever looked for among those found: no text of a client becomes a path.
#[derive(Clone, Debug)]
pub(crate) struct Catalog {
    library: Library,
}

impl Catalog {
    /// The models where these settings say, and the demo.
    ///
    /// # Errors
    /// When what the environment says of the hub is wrong.
    pub(crate) fn new(
        settings: &ModelsSettings,
        around: &Surroundings,
    ) -> Result<Catalog, lowtide_hub::Error> {
        let library = Library::new(settings, around)?;
        Ok(Catalog { library })
    }

    /// The places that are not there.
    pub(crate) fn missing(&self) -> Vec<String> {
        self.library.missing()
    }

    /// All models, as of now.
    pub(crate) fn models(&self) -> Vec<Model> {
        self.library.all()
    }

    /// All names, as of now.
    pub(crate) fn names(&self) -> Vec<String> {
        let models = self.library.all().into_iter();
        models.map(|model| model.name).collect()
    }

    /// The names of the smaller variants of a model.
    pub(crate) fn variants_of(&self, name: &str) -> Vec<String> {
        let variants = variants_of(&self.library, name).into_iter();
        variants.map(|model| model.name).collect()
    }

    /// Opens the model of one of these names.
    ///
    /// # Errors
    /// A sentence: there is no such name, or its files are no model.
    pub(crate) fn open(&self, name: &str) -> Result<ModelFolder, String> {
        let model = self.library.find(name);
        let model = model.ok_or_else(|| match name.contains('/') {
            true => format!("there is no model '{name}'; 'lowtide pull {name}' may fetch it"),
            false => format!("there is no model '{name}'"),
        })?;
        model.open().map_err(|cause| one_line(&cause.to_string()))
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
            std::fs::write(dir.join(name).join("model_index.json"), "{}").unwrap();
        }
        std::fs::create_dir(one.join("no-model")).unwrap();
        let settings = ModelsSettings {
            dirs: vec![one.clone(), two, folder.path().join("gone")],
            ..ModelsSettings::default()
        };
        let catalog = Catalog::new(&settings, &Surroundings::default()).unwrap();
        assert_eq!(catalog.names(), ["demo", "mine", "other"]);
        let mine = catalog.library.find("mine").unwrap();
        assert_eq!(mine.path(), Some(&*one.join("mine")));
        assert_eq!(catalog.missing().len(), 1);
        assert!(catalog.open("demo").is_ok());
        for name in ["../one/mine", "two/other", "/", ""] {
            let sentence = catalog.open(name).unwrap_err();
            assert!(sentence.contains("no model"), "{sentence}");
        }
        assert!(catalog.open("mine").unwrap_err().contains("_class_name"));
    }
}
