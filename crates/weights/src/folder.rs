//! The diffusers layout: `model_index.json`, and a folder a component.

use std::path::Path;

use serde_json::Value;

use crate::place::{Place, check_file_name};
use crate::summary::{ComponentSummary, ModelSummary};
use crate::{Checkpoint, Error, Result};

pub use crate::place::EmbeddedFile;

/// The file that makes a folder a model.
const INDEX_NAME: &str = "model_index.json";
/// The longest configuration that is read, in bytes: real ones have a few thousand.
const CONFIG_BYTES_MAX: u64 = 16 << 20;
/// The longest text that [`ModelFolder::read_text`] reads, in bytes: large tokenizers have about 20 MB.
const TEXT_BYTES_MAX: u64 = 64 << 20;
/// The most components: real pipelines have at most about ten.
const COMPONENTS_MAX: usize = 64;
/// Files whose presence says that a component computes nothing and has no weights.
const WEIGHTLESS: [&str; 7] = [
    "scheduler_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "spiece.model",
    "preprocessor_config.json",
    "processor_config.json",
];

/// A model: components by name, each with a configuration and perhaps weights.
#[derive(Debug)]
pub struct ModelFolder {
    /// What a user calls it: the folder's name.
    pub name: String,
    /// `_class_name` of the model: `ZImagePipeline`.
    pub class_name: String,
    /// In the order of `model_index.json`.
    pub components: Vec<Component>,
    place: Place,
}

/// One part of a model.
#[derive(Clone, Debug)]
pub struct Component {
    /// The folder's name: `transformer`.
    pub name: String,
    /// The library that defines it: `diffusers`, `transformers`.
    pub library: String,
    /// Its class there: `ZImageTransformer2DModel`.
    pub class: String,
    /// `config.json` or `scheduler_config.json`; `Null` when it has neither.
    pub config: Value,
    /// Whether it is a network, with weights; otherwise a tokenizer, a scheduler, a processor.
    pub has_weights: bool,
}

impl ModelFolder {
    /// Opens a model's folder. Reads its configurations, no weights.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotAModel`], [`Error::ComponentFolderMissing`], and those of JSON files.
    pub fn open(dir: &Path) -> Result<ModelFolder> {
        let shown = dir.display().to_string();
        if !dir
            .metadata()
            .map_err(|e| Error::io(&shown, "open", e))?
            .is_dir()
        {
            return Err(Error::NotAModel {
                folder: shown,
                why: "but a file".to_owned(),
            });
        }
        // `.` and `..` have no name of their own.
        let named = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let name = named
            .file_name()
            .map_or_else(|| shown.clone(), |n| n.to_string_lossy().into_owned());
        ModelFolder::at(name, Place::Disk(dir.to_owned()))
    }

    /// Opens a model that is part of the program. Paths are relative to the model's folder and use `/`.
    ///
    /// # Errors
    /// As [`ModelFolder::open`].
    pub fn embedded(name: &str, files: &'static [EmbeddedFile]) -> Result<ModelFolder> {
        let place = Place::Embedded {
            name: name.to_owned(),
            prefix: String::new(),
            files,
        };
        ModelFolder::at(name.to_owned(), place)
    }

    /// The files of a model that is part of the program; none for a folder on a disk.
    pub fn embedded_files(&self) -> &'static [EmbeddedFile] {
        match &self.place {
            Place::Embedded { files, .. } => files,
            Place::Disk(_) => &[],
        }
    }

    fn at(name: String, place: Place) -> Result<ModelFolder> {
        let not_a_model = |why: &str| Error::NotAModel {
            folder: place.describe(),
            why: why.to_owned(),
        };
        let index = place
            .text(INDEX_NAME, CONFIG_BYTES_MAX)?
            .ok_or_else(|| not_a_model("it has no model_index.json"))?;
        let file = place.describe_file(INDEX_NAME);
        let Value::Object(index) = crate::json::parse(&index, &file)? else {
            return Err(not_a_model("its model_index.json is not an object"));
        };
        let class_name = index
            .get("_class_name")
            .and_then(Value::as_str)
            .ok_or_else(|| not_a_model("its model_index.json has no _class_name"))?
            .to_owned();
        let mut components = Vec::new();
        for (key, value) in index.iter().filter(|(key, _)| !key.starts_with('_')) {
            // Anything but a pair of names is a setting; a pair of nulls is an optional part that is not there.
            let Some([Value::String(library), Value::String(class)]) =
                value.as_array().map(Vec::as_slice)
            else {
                continue;
            };
            check_file_name(key, &file)?;
            if components.len() == COMPONENTS_MAX {
                return Err(not_a_model(
                    "its model_index.json names more than 64 components",
                ));
            }
            components.push(read_component(&place, key, (library, class))?);
        }
        if components.is_empty() {
            return Err(not_a_model("its model_index.json names no components"));
        }
        Ok(ModelFolder {
            name,
            class_name,
            components,
            place,
        })
    }

    /// The component of that name.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|c| c.name == name)
    }

    /// Opens the weights of a component.
    ///
    /// # Errors
    /// [`Error::NoSuchComponent`], and as [`Checkpoint::open`].
    pub fn checkpoint(&self, component: &str) -> Result<Checkpoint> {
        if self.component(component).is_none() {
            let has = self.components.iter().map(|c| c.name.clone()).collect();
            let (folder, component) = (self.place.describe(), component.to_owned());
            return Err(Error::NoSuchComponent {
                folder,
                component,
                has,
            });
        }
        Checkpoint::at(&self.place.folder(component))
    }

    /// Reads a text file of the model, such as `tokenizer/tokenizer.json`; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::UnsafePath`], [`Error::TooLarge`] above 64 MiB, [`Error::NotUtf8`], [`Error::GitLfsPointer`].
    pub fn read_text(&self, relative: &str) -> Result<Option<String>> {
        self.place.text(relative, TEXT_BYTES_MAX)
    }

    /// What messages call the folder: its path, or the built-in model's name.
    pub fn location(&self) -> String {
        self.place.describe()
    }

    /// Components, blocks, bytes and types, from the headers alone.
    ///
    /// # Errors
    /// As [`ModelFolder::checkpoint`].
    pub fn summary(&self) -> Result<ModelSummary> {
        let mut components = Vec::with_capacity(self.components.len());
        for component in &self.components {
            let weights = match component.has_weights {
                true => Some(self.checkpoint(&component.name)?.summary()),
                false => None,
            };
            components.push(ComponentSummary {
                name: component.name.clone(),
                library: component.library.clone(),
                class: component.class.clone(),
                weights,
            });
        }
        Ok(ModelSummary {
            name: self.name.clone(),
            class_name: self.class_name.clone(),
            components,
        })
    }
}

/// Reads what is known of one component without its weights.
fn read_component(model: &Place, name: &str, (library, class): (&str, &str)) -> Result<Component> {
    let place = model.folder(name);
    if !place.exists() {
        let (folder, component) = (model.describe(), name.to_owned());
        return Err(Error::ComponentFolderMissing { folder, component });
    }
    let mut config = Value::Null;
    for file in ["config.json", "scheduler_config.json"] {
        if let Some(text) = place.text(file, CONFIG_BYTES_MAX)? {
            config = crate::json::parse(&text, &place.describe_file(file))?;
            break;
        }
    }
    let names = place.names()?;
    let any = |wanted: &dyn Fn(&str) -> bool| names.iter().any(|name| wanted(name));
    // Without a sign of either it is taken for a network, so that missing weights are an error and not a blank.
    let has_weights =
        any(&|name| name.contains(".safetensors")) || !any(&|name| WEIGHTLESS.contains(&name));
    let (name, library, class) = (name.to_owned(), library.to_owned(), class.to_owned());
    Ok(Component {
        name,
        library,
        class,
        config,
        has_weights,
    })
}
