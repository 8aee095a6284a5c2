//! A chain on a disk: the step it is in, the pictures that step was given, what it made so far, and the session of the
//! run in progress, in one file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lowtide_core::{Dtype, TensorLayout};
use lowtide_weights::{Checkpoint, SafetensorsWriter};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::report::Tally;
use crate::processor::{File, Run};
use crate::{Error, Result};

/// Key of the state in the file's free text.
const STATE_KEY: &str = "lowtide_chain";

/// Changes when older files cannot be read any more.
const VERSION: u32 = 1;

/// Everything that is no file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    request: Value,
    /// The step it is in.
    pub(super) at: usize,
    /// Pictures of that step that are done, of those it was given.
    pub(super) done: usize,
    /// Pictures that the run in progress works on.
    pub(super) group: usize,
    /// By step that began.
    pub(super) tallies: Vec<Tally>,
    given: usize,
    /// Media types of what the step made.
    made: Vec<String>,
    /// Members of the run in progress that were saved.
    runs: usize,
}

/// A chain as it was saved.
pub(super) struct Saved {
    pub(super) state: State,
    /// What the step was given.
    pub(super) given: Vec<Vec<u8>>,
    /// What it made.
    pub(super) made: Vec<File>,
    /// Files of the run in progress, by member; removed when this is dropped.
    pub(super) runs: Files,
}

/// Files that are removed when nobody needs them any more.
#[derive(Default)]
pub(super) struct Files(pub(super) Vec<PathBuf>);

impl Drop for Files {
    fn drop(&mut self) {
        for file in &self.0 {
            // What is left is removed with the saved sessions of jobs that are over.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// What is saved of a chain in progress.
pub(super) struct Reached<'a> {
    pub(super) request: &'a Value,
    pub(super) at: usize,
    pub(super) done: usize,
    pub(super) tallies: &'a [Tally],
    pub(super) given: Vec<&'a [u8]>,
    pub(super) made: &'a [File],
    /// The run in progress, and how many members it has.
    pub(super) run: Option<(&'a dyn Run, usize)>,
}

/// A name for the file of a run within a saved chain, beside it.
fn beside(file: &Path, what: &str, member: usize) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(format!(".{what}-{member}"));
    name.into()
}

impl Reached<'_> {
    /// Writes it, whole or not at all; `false` where there is nothing to go on from.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn save(&self, file: &Path) -> Result<bool> {
        let runs = self.save_runs(file)?;
        if self.at == 0 && self.made.is_empty() && runs.is_empty() {
            return Ok(false);
        }
        let state = State {
            version: VERSION,
            request: self.request.clone(),
            at: self.at,
            done: self.done,
            group: self.run.map_or(0, |(_, members)| members),
            tallies: self.tallies.to_vec(),
            given: self.given.len(),
            made: self
                .made
                .iter()
                .map(|file| file.media_type.clone())
                .collect(),
            runs: runs.len(),
        };
        let given = self.given.iter().enumerate();
        let given = given.map(|(k, bytes)| (format!("given.{k}"), *bytes));
        let made = self.made.iter().enumerate();
        let made = made.map(|(k, file)| (format!("made.{k}"), &file.content[..]));
        let runs = runs.iter().enumerate();
        let runs = runs.map(|(k, bytes)| (format!("run.{k}"), &bytes[..]));
        write(file, &state, given.chain(made).chain(runs).collect())?;
        Ok(true)
    }

    /// The sessions of the run in progress; none unless each member has one.
    fn save_runs(&self, file: &Path) -> Result<Vec<Vec<u8>>> {
        let Some((run, members)) = self.run else {
            return Ok(Vec::new());
        };
        let mut saved = Vec::with_capacity(members);
        for member in 0..members {
            let path = beside(file, "step", member);
            let files = Files(vec![path.clone()]);
            if !run.save(member, &path)? {
                return Ok(Vec::new());
            }
            saved.push(std::fs::read(&path).map_err(|cause| unreadable(&path, cause))?);
            drop(files);
        }
        Ok(saved)
    }
}

fn unreadable(path: &Path, cause: std::io::Error) -> Error {
    Error::Weights(lowtide_weights::Error::Io {
        file: path.display().to_string(),
        action: "read or write",
        cause,
    })
}

fn write(file: &Path, state: &State, blobs: Vec<(String, &[u8])>) -> Result<()> {
    let text = serde_json::to_string(state).expect("a state has only plain fields");
    let layout = |(name, bytes): &(String, &[u8])| TensorLayout {
        name: name.clone(),
        dtype: Dtype::U8,
        shape: vec![bytes.len()],
    };
    let layouts: Vec<TensorLayout> = blobs.iter().map(layout).collect();
    let mut writer = SafetensorsWriter::with_metadata(file, &layouts, &[(STATE_KEY, &text)])?;
    for (name, bytes) in &blobs {
        writer.write(name, bytes)?;
    }
    Ok(writer.finish()?)
}

impl Saved {
    /// Opens what was saved of this request.
    ///
    /// # Errors
    /// When the file is no such thing.
    pub(super) fn open(path: &Path, request: &Value, steps: usize) -> Result<Saved> {
        let file = Checkpoint::open(path)?;
        let wrong =
            |problem: &str| Error::request("session", format!("{}: {problem}", path.display()));
        let text = file.metadata(STATE_KEY);
        let text = text.ok_or_else(|| wrong("is not a saved chain"))?;
        let state: State = serde_json::from_str(text).map_err(|_| wrong("its state is damaged"))?;
        if state.version != VERSION {
            return Err(wrong("is of another version of this program"));
        }
        if state.request != *request {
            return Err(wrong("belongs to another request"));
        }
        let counts = [
            state.given,
            state.made.len(),
            state.runs,
            state.group,
            state.done,
        ];
        let most = crate::COUNT_MAX;
        if state.at >= steps
            || counts.into_iter().any(|count| count > most)
            || state.tallies.len() > steps
        {
            return Err(wrong("its state is damaged: counts that do not agree"));
        }
        let blob = |name: String| -> Result<Vec<u8>> {
            let entry = file.get(&name).ok_or_else(|| wrong("lacks a part"))?;
            let mut bytes = vec![0; entry.bytes as usize];
            file.read(entry, &mut bytes)?;
            Ok(bytes)
        };
        let given = (0..state.given).map(|k| blob(format!("given.{k}")));
        let made = state.made.iter().enumerate().map(|(k, media_type)| {
            Ok(File {
                media_type: media_type.clone(),
                content: blob(format!("made.{k}"))?,
            })
        });
        let (given, made) = (given.collect::<Result<_>>()?, made.collect::<Result<_>>()?);
        let mut runs = Files::default();
        for member in 0..state.runs {
            let bytes = blob(format!("run.{member}"))?;
            let path = beside(path, "go", member);
            runs.0.push(path.clone());
            std::fs::write(&path, bytes).map_err(|cause| unreadable(&path, cause))?;
        }
        Ok(Saved {
            state,
            given,
            made,
            runs,
        })
    }
}
