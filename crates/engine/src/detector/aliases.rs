//! Words for what people mean, and the files that find it: `face` is the first of these files that is there.

use std::sync::Arc;

use super::{Detector, Detectors};
use crate::processor::Files;
use crate::{Error, Result};

/// A file that is good for a word, and its classes that count; all where there are none.
struct Candidate {
    file: &'static str,
    classes: &'static [&'static str],
}

const fn whole(file: &'static str) -> Candidate {
    Candidate { file, classes: &[] }
}

const fn person(file: &'static str) -> Candidate {
    Candidate {
        file,
        classes: &["person"],
    }
}

const fn faces(file: &'static str) -> Candidate {
    Candidate {
        file,
        classes: &["FACE_FEMALE", "FACE_MALE"],
    }
}

/// Words, and files in the order of preference: those that ADetailer's users have, then general ones.
const ALIASES: [(&str, &[Candidate]); 3] = [
    (
        "face",
        &[
            whole("face_yolov8n"),
            whole("face_yolov8n_v2"),
            whole("face_yolov8s"),
            whole("face_yolov8m"),
            faces("640m"),
            faces("320n"),
        ],
    ),
    ("hand", &[whole("hand_yolov8n"), whole("hand_yolov8s")]),
    (
        "person",
        &[
            whole("person_yolov8n-seg"),
            whole("person_yolov8s-seg"),
            whole("person_yolov8m-seg"),
            person("yolov8n-seg"),
            person("yolov8s-seg"),
            person("yolov8m-seg"),
            person("yolov8n"),
            person("yolov8s"),
            person("yolov8m"),
        ],
    ),
];

/// The words.
fn words() -> impl Iterator<Item = &'static str> {
    ALIASES.iter().map(|(word, _)| *word)
}

/// A detector, and the classes that its word stands for.
pub(crate) type Meant = (Arc<Detector>, Vec<String>);

/// The detector that a word or a file's name means.
///
/// # Errors
/// [`Error::Request`] where there is none; when its file is none.
pub(crate) fn meant(detectors: &Detectors, files: &dyn Files, name: &str) -> Result<Meant> {
    let alias = ALIASES
        .iter()
        .find(|(word, _)| word.eq_ignore_ascii_case(name));
    let Some((word, candidates)) = alias else {
        let shown: String = name.chars().take(80).collect();
        let path = files.detector(name);
        let path = path.map_err(|why| {
            let words: Vec<&str> = words().collect();
            let problem = format!("'{shown}': {why}; {} are words for files", words.join(", "));
            Error::request("detector", problem)
        })?;
        return Ok((detectors.open(&path)?, Vec::new()));
    };
    for Candidate { file, classes } in *candidates {
        if let Ok(path) = files.detector(file) {
            let classes = classes.iter().map(|&class| class.to_owned()).collect();
            return Ok((detectors.open(&path)?, classes));
        }
    }
    let files: Vec<&str> = candidates.iter().map(|one| one.file).collect();
    let problem = format!(
        "'{word}': no file that finds it is there; put one of {} (.pt, .onnx or .safetensors) into a folder of \
         LOWTIDE_DETECTORS, or name another file",
        files.join(", ")
    );
    Err(Error::request("detector", problem))
}
