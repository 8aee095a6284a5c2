//! Files that requests name: inputs, LoRAs, textual inversions. A name is only ever looked for among those found: no text of
//! a client becomes a path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_engine::processor::Files;
use lowtide_jobs::{InputId, InputStore};
use lowtide_weights::ModelFolder;
use lowtide_worker::Folders;

/// Names folders of LoRAs, in the environment.
pub(crate) const LORAS_VARIABLE: &str = "LOWTIDE_LORAS";

/// Names folders of textual inversions, in the environment.
pub(crate) const EMBEDDINGS_VARIABLE: &str = "LOWTIDE_EMBEDDINGS";

/// Names folders of detectors, in the environment.
pub(crate) const DETECTORS_VARIABLE: &str = "LOWTIDE_DETECTORS";

/// Endings of LoRAs.
const LORA_ENDINGS: [&str; 4] = ["safetensors", "pt", "ckpt", "bin"];

/// Endings of textual inversions.
const EMBEDDING_ENDINGS: [&str; 3] = ["safetensors", "pt", "bin"];

/// Endings of detectors.
const DETECTOR_ENDINGS: [&str; 4] = ["safetensors", "pt", "pth", "onnx"];

/// Where other programs keep detectors, below their folder: ComfyUI, web UIs, Stability Matrix.
const DETECTOR_SHELVES: [&str; 5] = [
    "models/ultralytics/bbox",
    "models/ultralytics/segm",
    "models/ultralytics",
    "models/adetailer",
    "Models/ADetailer",
];

/// Folders within folders that are looked into.
const DEPTH_MAX: usize = 6;

/// Files that are looked at.
const FILES_MAX: usize = 20_000;

/// Names that an error lists.
const SHOWN_MAX: usize = 20;

/// Where files that requests name are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// Folders of LoRAs.
    pub(crate) loras: Vec<PathBuf>,
    /// Folders of textual inversions.
    pub(crate) embeddings: Vec<PathBuf>,
    /// Folders of detectors.
    pub(crate) detectors: Vec<PathBuf>,
    /// Folders where other programs may have detectors.
    pub(crate) others_detectors: Vec<PathBuf>,
}

/// Where these programs keep detectors.
pub(crate) fn detectors_of(programs: &[PathBuf]) -> Vec<PathBuf> {
    let shelves = |program: &PathBuf| DETECTOR_SHELVES.map(|shelf| program.join(shelf));
    programs.iter().flat_map(shelves).collect()
}

/// Inputs by name.
pub(crate) trait Inputs: Send + Sync {
    /// As [`Files::input`].
    fn input(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, String>;
}

/// What was sent to the service.
pub(crate) struct Sent(pub(crate) Arc<dyn InputStore>);

impl Inputs for Sent {
    fn input(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
        let input: InputId = name
            .parse()
            .map_err(|error: lowtide_jobs::NotAnInputId| error.to_string())?;
        self.0
            .read(input, bytes_max)
            .map_err(|error| error.to_string())
    }
}

/// A file that can be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its path within its folder, with `/` and without its ending.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its bytes.
    pub(crate) bytes: u64,
}

impl Found {
    /// The last part of its name.
    fn word(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }
}

/// All files that requests can name.
pub(crate) struct NamedFiles {
    places: Places,
    inputs: Box<dyn Inputs>,
    models: Arc<dyn Folders>,
}

impl NamedFiles {
    /// These.
    pub(crate) fn new(
        places: Places,
        inputs: Box<dyn Inputs>,
        models: Arc<dyn Folders>,
    ) -> NamedFiles {
        NamedFiles {
            places,
            inputs,
            models,
        }
    }
}

impl Places {
    /// The folders that are not there.
    pub(crate) fn missing(&self) -> Vec<String> {
        let all = self.loras.iter().chain(&self.embeddings);
        let all = all.chain(&self.detectors);
        let missing = all.filter(|dir| !dir.is_dir());
        missing.map(|dir| dir.display().to_string()).collect()
    }

    /// LoRAs by name, as of now.
    pub(crate) fn loras(&self) -> Vec<Found> {
        listed(&self.loras, &LORA_ENDINGS)
    }

    /// Textual inversions by name, as of now.
    pub(crate) fn embeddings(&self) -> Vec<Found> {
        let mut words = BTreeMap::new();
        for found in listed(&self.embeddings, &EMBEDDING_ENDINGS) {
            // A prompt has only room for the last part; the folder named first wins.
            let name = found.word().to_owned();
            words.entry(name.clone()).or_insert(Found { name, ..found });
        }
        words.into_values().collect()
    }

    /// Where the word of each textual inversion lies.
    pub(crate) fn words(&self) -> Vec<(String, PathBuf)> {
        let all = self.embeddings().into_iter();
        all.map(|found| (found.name, found.path)).collect()
    }

    /// The LoRA of this name: its path within its folder, with or without its ending, or the last part of it.
    ///
    /// # Errors
    /// A sentence: there is none, and which there are.
    pub(crate) fn lora(&self, name: &str) -> Result<PathBuf, String> {
        if self.loras.is_empty() {
            return Err(
                "there are no LoRAs: name their folder in LOWTIDE_LORAS or the setting models.loras"
                    .to_owned(),
            );
        }
        named(&self.loras(), name, &LORA_ENDINGS, "LoRA")
    }

    /// Detectors by name, as of now.
    pub(crate) fn detectors(&self) -> Vec<Found> {
        let folders = self.detectors.iter().chain(&self.others_detectors);
        let folders: Vec<PathBuf> = folders.cloned().collect();
        listed(&folders, &DETECTOR_ENDINGS)
    }

    /// The detector of this name, as [`Places::lora`] has it.
    ///
    /// # Errors
    /// A sentence: there is none, and which there are.
    pub(crate) fn detector(&self, name: &str) -> Result<PathBuf, String> {
        named(&self.detectors(), name, &DETECTOR_ENDINGS, "detector")
    }
}

/// The file of this name: its path within its folder, with or without its ending, or the last part of it.
fn named(all: &[Found], name: &str, endings: &[&str], what: &str) -> Result<PathBuf, String> {
    let plain = endings
        .iter()
        .find_map(|ending| name.strip_suffix(ending)?.strip_suffix('.'));
    let wanted = [Some(name), plain];
    let is = |text: &str| wanted.contains(&Some(text));
    if let Some(found) = all.iter().find(|found| is(&found.name)) {
        return Ok(found.path.clone());
    }
    let same: Vec<&Found> = all.iter().filter(|found| is(found.word())).collect();
    match same.as_slice() {
        [found] => Ok(found.path.clone()),
        [] => Err(format!("there is no such {what}; {}", there(all, what))),
        several => {
            let names: Vec<&str> = several.iter().map(|found| &found.name[..]).collect();
            Err(format!("it could be {}: name one", names.join(" or ")))
        }
    }
}

/// What there is, in words.
fn there(all: &[Found], what: &str) -> String {
    let names: Vec<&str> = all
        .iter()
        .take(SHOWN_MAX)
        .map(|one| &one.name[..])
        .collect();
    match all.len() {
        0 => format!("the folders of {what}s are empty"),
        len if len > SHOWN_MAX => {
            format!("there is {} and {} more", names.join(", "), len - SHOWN_MAX)
        }
        _ => format!("there is {}", names.join(", ")),
    }
}

impl Files for NamedFiles {
    fn input(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
        self.inputs.input(name, bytes_max)
    }

    fn lora(&self, name: &str) -> Result<PathBuf, String> {
        self.places.lora(name)
    }

    fn embeddings(&self) -> Vec<(String, PathBuf)> {
        self.places.words()
    }

    fn model(&self, name: &str) -> Result<ModelFolder, String> {
        self.models.open(name)
    }

    fn detector(&self, name: &str) -> Result<PathBuf, String> {
        self.places.detector(name)
    }
}

/// Files with one of these endings, by name; where two have the same, the folder named first wins.
fn listed(folders: &[PathBuf], endings: &[&str]) -> Vec<Found> {
    let mut found = BTreeMap::new();
    let mut looked = 0;
    for folder in folders {
        look(folder, &mut Vec::new(), &mut looked, &mut |parts, path| {
            let ending = path.extension()?.to_str()?.to_ascii_lowercase();
            let stem = path.file_stem()?.to_str()?;
            // A stranger's file must not change what a line of text says.
            let shown = !stem.chars().any(char::is_control);
            if shown && endings.contains(&ending.as_str()) {
                let parts = parts.iter().map(String::as_str).chain([stem]);
                let name = parts.collect::<Vec<_>>().join("/");
                let bytes = path.metadata().ok()?.len();
                found.entry(name).or_insert((path.to_owned(), bytes));
            }
            Some(())
        });
    }
    let found = found.into_iter();
    found
        .map(|(name, (path, bytes))| Found { name, path, bytes })
        .collect()
}

/// Shows every file in a folder and the folders in it, with the names of those folders. What cannot be read is left out.
fn look(
    folder: &Path,
    parts: &mut Vec<String>,
    looked: &mut usize,
    show: &mut impl FnMut(&[String], &Path) -> Option<()>,
) {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .take(FILES_MAX)
        .collect();
    paths.sort();
    for path in paths {
        *looked += 1;
        if *looked > FILES_MAX {
            return;
        }
        if path.is_file() {
            show(parts, &path);
        } else if path.is_dir()
            && parts.len() < DEPTH_MAX
            && let Some(name) = path.file_name().and_then(|name| name.to_str())
            && !name.starts_with('.')
        {
            parts.push(name.to_owned());
            look(&path, parts, looked, show);
            parts.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(files: &[&str]) -> (tempfile::TempDir, Places) {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join("loras").join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        std::fs::write(folder.path().join("secret.safetensors"), "").unwrap();
        let loras = vec![folder.path().join("loras")];
        let embeddings = loras.clone();
        let places = Places {
            loras,
            embeddings,
            ..Places::default()
        };
        (folder, places)
    }

    #[test]
    fn a_lora_is_named_by_its_path_or_the_last_part_of_it() {
        let (_folder, places) = places(&[
            "ink.safetensors",
            "styles/oil.safetensors",
            "styles/v1.5.safetensors",
            "people/oil.pt",
            "people/ink.safetensors",
            "notes.txt",
        ]);
        let ends = |name: &str, end: &str| {
            let path = places.lora(name).unwrap();
            assert!(path.ends_with(end), "{name} is {}", path.display());
        };
        ends("ink", "loras/ink.safetensors");
        ends("ink.safetensors", "loras/ink.safetensors");
        ends("people/ink", "people/ink.safetensors");
        ends("styles/oil.safetensors", "styles/oil.safetensors");
        ends("v1.5", "styles/v1.5.safetensors");
        let error = places.lora("oil").unwrap_err();
        assert!(error.contains("people/oil or styles/oil"), "{error}");
        let error = places.lora("inc").unwrap_err();
        assert!(error.contains("there is ink, people/ink"), "{error}");
        assert!(!error.contains("notes"), "{error}");
    }

    #[test]
    fn no_name_leads_out_of_the_folders() {
        let (folder, places) = places(&["ink.safetensors"]);
        let outside = folder.path().join("secret.safetensors");
        for name in [
            "",
            ".",
            "..",
            "../secret",
            "../secret.safetensors",
            "x/../../secret",
            "/etc/passwd",
            "\\secret",
            "ink\0",
            "./ink",
            outside.to_str().unwrap(),
        ] {
            assert!(places.lora(name).is_err(), "{name:?}");
        }
        let error = Places::default().lora("ink").unwrap_err();
        assert!(error.contains("LOWTIDE_LORAS"), "{error}");
    }

    #[test]
    fn detectors_are_found_where_other_programs_keep_them() {
        let (folder, places) = places(&["mine.pt"]);
        let program = folder.path().join("ComfyUI");
        for file in [
            "models/ultralytics/bbox/face_yolov8n.pt",
            "models/ultralytics/segm/person_yolov8n-seg.pt",
            "models/adetailer/hand_yolov8n.onnx",
            "models/adetailer/notes.txt",
        ] {
            let path = program.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let places = Places {
            detectors: places.loras,
            others_detectors: detectors_of(&[program]),
            ..Places::default()
        };
        for name in [
            "mine",
            "face_yolov8n",
            "face_yolov8n.pt",
            "person_yolov8n-seg",
            "hand_yolov8n",
        ] {
            assert!(places.detector(name).is_ok(), "{name}");
        }
        for name in ["face", "notes", "../secret", "/etc/passwd", ""] {
            let error = places.detector(name).unwrap_err();
            assert!(
                error.contains("face_yolov8n, hand_yolov8n"),
                "{name}: {error}"
            );
        }
        let error = Places::default().detector("face").unwrap_err();
        assert!(error.contains("folders of detectors are empty"), "{error}");
    }

    #[test]
    fn embeddings_are_words() {
        let (_folder, places) = places(&["a.pt", "deep/er/b.safetensors", "c.md"]);
        let words: Vec<String> = places.embeddings().into_iter().map(|e| e.name).collect();
        assert_eq!(words, ["a", "b"]);
    }
}
