//! Where models are, and how a name becomes one: the program's own, the configured folders, the hub's cache, the folders
//! of other programs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lowtide_engine::upscale::Enlarger;
use lowtide_hub::{Cache, Revision, Settings as HubSettings, Snapshot, Wanted};
use lowtide_weights::{Error, ModelFolder};

use crate::demo;
use crate::service::{ModelsSettings, Surroundings};

/// What a model folder has in it.
const INDEX: &str = "model_index.json";
/// Endings of files that may hold a whole model.
const SINGLE: [&str; 4] = ["safetensors", "ckpt", "pth", "param"];
/// Where other programs keep whole models, below their folder, and how deep.
const SHELVES: [(&str, usize); 11] = [
    // ComfyUI
    ("models/checkpoints", 3),
    ("models/diffusers", 1),
    // The web UI of Stable Diffusion, and Forge
    ("models/Stable-diffusion", 3),
    // Stability Matrix
    ("Models/StableDiffusion", 3),
    // InvokeAI, by kind of model and by key
    ("models/sd-1", 3),
    ("models/sdxl", 3),
    // Networks that make pictures larger: ComfyUI, web UIs, Stability Matrix
    ("models/upscale_models", 2),
    ("models/ESRGAN", 2),
    ("models/RealESRGAN", 2),
    ("Models/ESRGAN", 2),
    ("Models/RealESRGAN", 2),
];
/// Which of the shelves have such networks.
const ENLARGERS: [&str; 3] = ["upscale_models", "ESRGAN", "RealESRGAN"];
/// Folders of other programs below the user's.
const PROGRAMS: [&str; 12] = [
    "ComfyUI",
    "comfyui",
    "Documents/ComfyUI",
    "stable-diffusion-webui",
    "stable-diffusion-webui-forge",
    "sd-webui-forge-classic",
    "forge",
    "automatic",
    "invokeai",
    ".invokeai",
    "StabilityMatrix/Data",
    ".local/share/StabilityMatrix/Data",
];
/// The most entries of one shelf that are looked at.
const ENTRIES_MAX: usize = 10_000;

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the program.
    Demo,
    /// A folder or a file of the user's.
    Own(PathBuf),
    /// A tree in the hub's cache.
    Cached(Wanted, Snapshot),
    /// A folder or a file of another program.
    Foreign(PathBuf),
}

/// A model that can be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    /// What it is called.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) place: Place,
}

impl Model {
    /// The folder or file; `None` for what is in the program.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Demo => None,
            Place::Own(path) | Place::Foreign(path) => Some(path),
            Place::Cached(_, snapshot) => Some(&snapshot.folder),
        }
    }

    /// Opens it, under its name.
    ///
    /// # Errors
    /// When its files are no model.
    pub(crate) fn open(&self) -> Result<ModelFolder, Error> {
        let mut folder = match &self.place {
            Place::Demo => ModelFolder::embedded(demo::NAME, demo::FILES)?,
            Place::Own(path) | Place::Foreign(path) => ModelFolder::open(path)?,
            Place::Cached(_, snapshot) => ModelFolder::open(&content(&snapshot.folder))?,
        };
        if matches!(self.place, Place::Cached(..)) {
            folder.name.clone_from(&self.name);
        }
        Ok(folder)
    }
}

/// A repository's one file where it is no pipeline but that.
fn content(tree: &Path) -> PathBuf {
    if tree.join(INDEX).exists() {
        return tree.to_owned();
    }
    let mut files = entries(tree).into_iter().filter(|path| is_single(path));
    match (files.next(), files.next()) {
        (Some(one), None) => one,
        _ => tree.to_owned(),
    }
}

/// Everywhere models are looked for.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    dirs: Vec<PathBuf>,
    cache: Option<Cache>,
    programs: Vec<PathBuf>,
}

impl Library {
    /// By the settings; the user's folder comes from `around`.
    ///
    /// # Errors
    /// When the hub's variables are wrong.
    pub(crate) fn new(
        settings: &ModelsSettings,
        around: &Surroundings,
    ) -> Result<Library, lowtide_hub::Error> {
        let mut programs = settings.programs.clone();
        if settings.elsewhere {
            programs.extend(programs_of(around));
        }
        let cache = match settings.elsewhere {
            true => cache(around)?,
            false => None,
        };
        Ok(Library {
            dirs: settings.dirs.clone(),
            cache,
            programs,
        })
    }

    /// The folders alone that are named.
    pub(crate) fn of_dirs(dirs: Vec<PathBuf>) -> Library {
        Library {
            dirs,
            cache: None,
            programs: Vec::new(),
        }
    }

    /// The configured folders that are not there.
    pub(crate) fn missing(&self) -> Vec<String> {
        let missing = self.dirs.iter().filter(|dir| !dir.is_dir());
        missing.map(|dir| dir.display().to_string()).collect()
    }

    /// The configured folders.
    pub(crate) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Every model, each name once: what is named first wins.
    pub(crate) fn all(&self) -> Vec<Model> {
        let own = Model {
            name: demo::NAME.to_owned(),
            place: Place::Demo,
        };
        let mut names = BTreeSet::new();
        std::iter::once(own)
            .chain(self.own())
            .chain(self.cached())
            .chain(self.foreign())
            .filter(|model| names.insert(model.name.clone()))
            .collect()
    }

    /// The model of that name. It is looked for among those there are: no text becomes a path.
    pub(crate) fn find(&self, name: &str) -> Option<Model> {
        let is_it = |model: &Model| model.name == name;
        if name == demo::NAME {
            let place = Place::Demo;
            return Some(Model {
                name: name.to_owned(),
                place,
            });
        }
        self.own()
            .find(is_it)
            .or_else(|| self.in_cache(name))
            .or_else(|| self.foreign().find(is_it))
    }

    /// Networks that make pictures larger. Files of other programs are opened only where such networks are kept.
    pub(crate) fn enlargers(&self) -> Vec<Model> {
        let likely = |model: &Model| match &model.place {
            Place::Own(path) => path.is_file(),
            Place::Foreign(path) => {
                let mut above = path.ancestors().filter_map(|folder| folder.file_name());
                path.is_file() && above.any(|name| ENLARGERS.iter().any(|known| name == *known))
            }
            Place::Demo | Place::Cached(..) => false,
        };
        let all = self.all().into_iter().filter(likely);
        all.filter(|model| model.open().is_ok_and(|folder| Enlarger::runs(&folder)))
            .collect()
    }

    /// Models in the configured folders; such a folder may itself be one.
    fn own(&self) -> impl Iterator<Item = Model> {
        let paths = self.dirs.iter().flat_map(|dir| {
            let mut inside = entries(dir);
            inside.sort();
            std::iter::once(dir.clone()).chain(inside)
        });
        paths.filter_map(|path| model_at(path, Place::Own))
    }

    /// Trees in the cache that are pipelines or single files: by branch or tag, else by commit.
    fn cached(&self) -> Vec<Model> {
        let installed = self.cache.as_ref().and_then(|cache| cache.installed().ok());
        let mut models = Vec::new();
        for repo in installed.into_iter().flatten() {
            for revision in repo.revisions {
                let tree = content(&revision.folder);
                if !tree.join(INDEX).exists() && !is_single(&tree) {
                    continue;
                }
                let names = match revision.refs.is_empty() {
                    true => vec![revision.commit.clone()],
                    false => revision.refs,
                };
                for name in names.iter().filter_map(|name| Revision::new(name).ok()) {
                    let wanted = Wanted {
                        repo: repo.repo.clone(),
                        revision: name,
                    };
                    let snapshot = Snapshot {
                        commit: revision.commit.clone(),
                        folder: revision.folder.clone(),
                    };
                    models.push(Model {
                        name: wanted.to_string(),
                        place: Place::Cached(wanted, snapshot),
                    });
                }
            }
        }
        models
    }

    /// `org/name`, with or without a revision, without looking through all of the cache.
    fn in_cache(&self, name: &str) -> Option<Model> {
        let wanted: Wanted = name.parse().ok()?;
        let snapshot = self.cache.as_ref()?.snapshot(&wanted)?;
        Some(Model {
            name: wanted.to_string(),
            place: Place::Cached(wanted, snapshot),
        })
    }

    fn foreign(&self) -> impl Iterator<Item = Model> {
        let shelves = self.programs.iter().flat_map(|program| {
            let below = SHELVES.map(|(shelf, depth)| (program.join(shelf), depth));
            // A folder that is named may be the shelf itself.
            std::iter::once((program.clone(), 1)).chain(below)
        });
        shelves
            .flat_map(|(shelf, depth)| shelved(&shelf, depth))
            .filter_map(|path| model_at(path, Place::Foreign))
    }
}

/// Where other programs may be: what the environment names, and below the user's folder.
pub(crate) fn programs_of(around: &Surroundings) -> Vec<PathBuf> {
    let named = around.variable("INVOKEAI_ROOT").into_iter();
    let home = around.home().into_iter();
    let below = home.flat_map(|home| PROGRAMS.map(|name| home.join(name)));
    named.chain(below).collect()
}

/// The cache that the environment names; `None` where the user has no folder for one.
///
/// # Errors
/// When the hub's variables are wrong.
fn cache(around: &Surroundings) -> Result<Option<Cache>, lowtide_hub::Error> {
    let has_place = [
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HOME",
        "XDG_CACHE_HOME",
    ]
    .iter()
    .any(|name| around.variable(name).is_some());
    match has_place || around.home().is_some() {
        true => Ok(Some(Cache::new(&hub_settings(around)?))),
        false => Ok(None),
    }
}

/// What the environment says about the hub.
///
/// # Errors
/// When it says what cannot be.
pub(crate) fn hub_settings(around: &Surroundings) -> Result<HubSettings, lowtide_hub::Error> {
    HubSettings::from_variables(|name| around.variables.get(name).cloned())
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(dir).into_iter().flatten();
    listed
        .filter_map(|entry| Some(entry.ok()?.path()))
        .take(ENTRIES_MAX)
        .collect()
}

fn is_single(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    let whole = ending != Some("param") || path.with_extension("bin").is_file();
    ending.is_some_and(|ending| SINGLE.contains(&ending)) && whole && path.is_file()
}

fn is_folder(path: &Path) -> bool {
    path.join(INDEX).is_file()
}

/// The model at a path, if it looks like one: a folder by its name, a file by its name without the ending.
fn model_at(path: PathBuf, place: impl Fn(PathBuf) -> Place) -> Option<Model> {
    let name = match (is_folder(&path), is_single(&path)) {
        (true, _) => path.file_name()?,
        (false, true) => path.file_stem()?,
        (false, false) => return None,
    };
    let name = name.to_str().filter(|name| *name != demo::NAME)?.to_owned();
    let place = place(path);
    Some(Model { name, place })
}

/// What may be models on a shelf of another program, in its folders too.
fn shelved(shelf: &Path, depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![(shelf.to_owned(), depth)];
    while let Some((folder, depth)) = open.pop() {
        let mut inside = entries(&folder);
        inside.sort();
        for path in inside {
            if is_folder(&path) || is_single(&path) {
                found.push(path);
            } else if depth > 1 && path.is_dir() {
                open.push((path, depth - 1));
            }
        }
        if found.len() + open.len() > ENTRIES_MAX {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "{}").unwrap();
    }

    fn library(folder: &Path, dirs: &[&str]) -> Library {
        let settings = ModelsSettings {
            dirs: dirs.iter().map(|dir| folder.join(dir)).collect(),
            programs: vec![folder.join("drive")],
            elsewhere: true,
            ..ModelsSettings::default()
        };
        let home = folder.join("home").to_string_lossy().into_owned();
        let around = Surroundings {
            variables: [("HOME".to_owned(), home)].into(),
            folder: PathBuf::new(),
        };
        Library::new(&settings, &around).unwrap()
    }

    fn names(library: &Library) -> Vec<String> {
        library.all().into_iter().map(|model| model.name).collect()
    }

    #[test]
    fn models_are_found_where_people_have_them() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        for path in [
            "mine/z/model_index.json",
            "mine/single.safetensors",
            "mine/notes.txt",
            "home/ComfyUI/models/checkpoints/xl/Deep.safetensors",
            "home/ComfyUI/models/checkpoints/single.safetensors",
            "home/ComfyUI/models/loras/style.safetensors",
            "home/stable-diffusion-webui/models/Stable-diffusion/old.ckpt",
            "home/ComfyUI/models/upscale_models/4x.pth",
            "home/stable-diffusion-webui/models/ESRGAN/video.param",
            "home/stable-diffusion-webui/models/ESRGAN/video.bin",
            "home/stable-diffusion-webui/models/ESRGAN/half.param",
            "drive/models/diffusers/d/model_index.json",
            "drive/models/diffusers/d/unet/diffusion_pytorch_model.safetensors",
        ] {
            put(&at(path));
        }
        let commit = "a".repeat(40);
        let repo = "home/.cache/huggingface/hub/models--org--name";
        put(&at(&format!("{repo}/snapshots/{commit}/model_index.json")));
        std::fs::create_dir_all(at(&format!("{repo}/refs"))).unwrap();
        std::fs::write(at(&format!("{repo}/refs/main")), &commit).unwrap();
        let library = library(folder.path(), &["mine", "gone"]);
        assert_eq!(
            names(&library),
            [
                "demo", "single", "z", "org/name", "d", "Deep", "4x", "old", "video"
            ]
        );
        assert!(library.enlargers().is_empty(), "none of these is a network");
        assert_eq!(library.missing().len(), 1);
        let single = library.find("single").unwrap();
        assert_eq!(single.place, Place::Own(at("mine/single.safetensors")));
        let exact = library.find(&format!("org/name@{commit}")).unwrap();
        assert!(matches!(exact.place, Place::Cached(..)));
        for name in [
            "../mine/z",
            "mine/z",
            "",
            "/",
            "style",
            "org/other",
            "notes",
        ] {
            assert_eq!(library.find(name), None, "{name}");
        }
    }

    #[test]
    fn nothing_is_looked_through_that_is_switched_off() {
        let folder = tempfile::tempdir().unwrap();
        put(&folder
            .path()
            .join("home/ComfyUI/models/checkpoints/x.safetensors"));
        let around = Surroundings {
            variables: [(
                "HOME".to_owned(),
                folder.path().join("home").display().to_string(),
            )]
            .into(),
            folder: PathBuf::new(),
        };
        let off = Library::new(&ModelsSettings::default(), &around).unwrap();
        assert_eq!(names(&off), ["demo"]);
        assert!(off.cache.is_none());
    }
}
