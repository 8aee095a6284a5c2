//! The diffusers layout: `model_index.json`, and a folder a component. A single file is made to look like one.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::place::{Place, check_file_name, check_relative};
use crate::single_file;
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
/// The end of the class of components that may lack their weights.
const NEVER_RUN: &str = "SafetyChecker";
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
    /// Entries of `model_index.json` that are no components.
    settings: Map<String, Value>,
    place: Place,
    /// Where components are that are not in a folder of `place`.
    elsewhere: HashMap<String, Elsewhere>,
    /// Components that a model of its class has and this one lacks, being a file without them.
    missing: Vec<&'static str>,
}

/// Where a component is that is not in a folder of its model.
#[derive(Debug)]
enum Elsewhere {
    /// In another folder.
    Folder(Place),
    /// In a file, beside others.
    File(Checkpoint),
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
    /// Opens a model's folder, or a file that holds a whole model (Stable Diffusion 1, 2 or XL, `.safetensors` or
    /// `.ckpt`), which then looks like a folder. Reads its configurations and headers, no weights.
    ///
    /// A file has no tokenizer, and may lack a VAE or text encoders: [`ModelFolder::missing`] names those, and
    /// [`ModelFolder::with_component`] brings them from elsewhere.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotAModel`], [`Error::ComponentFolderMissing`], [`Error::UnknownCheckpoint`],
    /// those of JSON files, and for a file those of [`Checkpoint::open`].
    pub fn open(dir: &Path) -> Result<ModelFolder> {
        let shown = dir.display().to_string();
        if !dir
            .metadata()
            .map_err(|e| Error::io(&shown, "open", e))?
            .is_dir()
        {
            return ModelFolder::in_file(dir);
        }
        // `.` and `..` have no name of their own.
        let named = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let name = named
            .file_name()
            .map_or_else(|| shown.clone(), |n| n.to_string_lossy().into_owned());
        ModelFolder::at(name, Place::Disk(dir.to_owned()))
    }

    fn in_file(path: &Path) -> Result<ModelFolder> {
        let opened = single_file::open(path)?;
        let stem = path.file_stem().unwrap_or_default();
        let mut folder = ModelFolder {
            name: stem.to_string_lossy().into_owned(),
            class_name: opened.class_name.to_owned(),
            components: Vec::new(),
            settings: opened.settings,
            place: Place::File(path.to_owned()),
            elsewhere: HashMap::new(),
            missing: Vec::new(),
        };
        for (component, weights) in opened.components {
            if let Some(weights) = weights {
                let place = Elsewhere::File(weights);
                folder.elsewhere.insert(component.name.clone(), place);
            }
            folder.components.push(component);
        }
        let wanted = opened.wanted.iter().copied();
        folder.missing = wanted
            .filter(|name| folder.component(name).is_none())
            .collect();
        Ok(folder)
    }

    /// The same model with a component from elsewhere, which it lacks or which takes the place of its own: from a
    /// component's folder, another model's folder, a file that has the component alone, or a whole model's file.
    ///
    /// # Errors
    /// As [`ModelFolder::open`], and [`Error::UnknownCheckpoint`] where the file does not have it.
    pub fn with_component(mut self, name: &str, path: &Path) -> Result<ModelFolder> {
        check_file_name(name, &self.location())?;
        let shown = path.display().to_string();
        let metadata = path.metadata().map_err(|e| Error::io(&shown, "open", e))?;
        let own = self.components.iter().position(|c| c.name == name);
        let known = own.map_or(Value::Null, |at| self.components[at].config.clone());
        let (component, place) = if metadata.is_dir() {
            let folder = Place::Disk(path.to_owned());
            let is_model = path.join(INDEX_NAME).is_file();
            let place = if is_model {
                folder.folder(name)
            } else {
                folder
            };
            let found = own.map(|at| self.components[at].clone());
            let mut component = read_config(&place, name)?;
            if let Some(found) = found {
                component.library = found.library;
                if component.class.is_empty() {
                    component.class = found.class;
                }
            }
            (component, Elsewhere::Folder(place))
        } else {
            let (component, weights) = single_file::open_component(name, path, &known)?;
            let weights = weights.expect("a component out of a file has weights");
            (component, Elsewhere::File(weights))
        };
        self.elsewhere.insert(name.to_owned(), place);
        self.missing.retain(|missing| *missing != name);
        match own {
            Some(at) => self.components[at] = component,
            None => self.components.push(component),
        }
        Ok(self)
    }

    /// The same model with another value in a component's configuration, such as `prediction_type` of `scheduler`,
    /// which no single file tells.
    ///
    /// # Errors
    /// [`Error::NoSuchComponent`].
    pub fn with_setting(
        mut self,
        component: &str,
        key: &str,
        value: impl Into<Value>,
    ) -> Result<ModelFolder> {
        let missing = self.no_such(component);
        let found = self.components.iter_mut().find(|c| c.name == component);
        let found = found.ok_or(missing)?;
        if !found.config.is_object() {
            found.config = Value::Object(Map::new());
        }
        found.config[key] = value.into();
        Ok(self)
    }

    /// An entry of `model_index.json` that is no component, such as `requires_aesthetics_score`.
    pub fn setting(&self, key: &str) -> Option<&Value> {
        self.settings.get(key)
    }

    /// The components that a model of its class needs and this one, being a single file, does not have.
    pub fn missing(&self) -> &[&'static str] {
        &self.missing
    }

    /// Refuses a single file that lacks a component.
    ///
    /// # Errors
    /// [`Error::ComponentNotInFile`].
    pub fn check_complete(&self) -> Result<()> {
        match self.missing.first() {
            None => Ok(()),
            Some(component) => Err(Error::ComponentNotInFile {
                file: self.location(),
                component: (*component).to_owned(),
            }),
        }
    }

    fn no_such(&self, component: &str) -> Error {
        if self.missing.contains(&component) {
            return Error::ComponentNotInFile {
                file: self.location(),
                component: component.to_owned(),
            };
        }
        Error::NoSuchComponent {
            folder: self.location(),
            component: component.to_owned(),
            has: self.components.iter().map(|c| c.name.clone()).collect(),
        }
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
            Place::Disk(_) | Place::File(_) => &[],
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
        let mut settings = Map::new();
        for (key, value) in index.iter().filter(|(key, _)| !key.starts_with('_')) {
            // Anything but a pair of names is a setting; a pair of nulls is an optional part that is not there.
            let Some([Value::String(library), Value::String(class)]) =
                value.as_array().map(Vec::as_slice)
            else {
                settings.insert(key.clone(), value.clone());
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
            settings,
            place,
            elsewhere: HashMap::new(),
            missing: Vec::new(),
        })
    }

    /// The component of that name.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|c| c.name == name)
    }

    /// Opens the weights of a component.
    ///
    /// # Errors
    /// [`Error::NoSuchComponent`], [`Error::ComponentNotInFile`], and as [`Checkpoint::open`].
    pub fn checkpoint(&self, component: &str) -> Result<Checkpoint> {
        if self.component(component).is_none() {
            return Err(self.no_such(component));
        }
        match self.elsewhere.get(component) {
            Some(Elsewhere::File(weights)) => Ok(weights.clone()),
            Some(Elsewhere::Folder(place)) => Checkpoint::at(place),
            None => Checkpoint::at(&self.place.folder(component)),
        }
    }

    /// Reads a text file of the model, such as `tokenizer/tokenizer.json`; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::UnsafePath`], [`Error::TooLarge`] above 64 MiB, [`Error::NotUtf8`], [`Error::GitLfsPointer`].
    pub fn read_text(&self, relative: &str) -> Result<Option<String>> {
        check_relative(relative, &self.location())?;
        if let Some((component, rest)) = relative.split_once('/')
            && let Some(Elsewhere::Folder(place)) = self.elsewhere.get(component)
        {
            return place.text(rest, TEXT_BYTES_MAX);
        }
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
    let mut component = Component {
        library: library.to_owned(),
        class: class.to_owned(),
        ..read_config(&place, name)?
    };
    // Who leaves its weights out leaves nothing out that is ever run.
    if class.ends_with(NEVER_RUN) && matches!(Checkpoint::at(&place), Err(Error::NoWeights { .. }))
    {
        component.has_weights = false;
    }
    Ok(component)
}

/// The component in a folder of its own; library and class as far as its configuration tells.
fn read_config(place: &Place, name: &str) -> Result<Component> {
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
    Ok(single_file::component(name, config, has_weights))
}
