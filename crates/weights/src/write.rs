//! The way back: safetensors files that appear whole or not at all.

mod sharded;

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use lowtide_core::TensorLayout;
use serde_json::{Map, Value, json};

use crate::header::{HEADER_BYTES_MAX, NAME_BYTES_MAX, PREFIX_BYTES, RANK_MAX, TENSORS_MAX};
use crate::{Error, Result};

pub use sharded::ShardedWriter;

/// Where the header is padded to, so that the data begins aligned for every element type.
const HEADER_ALIGNMENT: usize = 8;

/// Writes one safetensors file: the header first, then the tensors' bytes in the order of `layouts`. The file has a
/// temporary name in the same folder until [`SafetensorsWriter::finish`]; a writer that is dropped before that removes it.
#[derive(Debug)]
pub struct SafetensorsWriter {
    output: WholeFile,
    layouts: Vec<TensorLayout>,
    /// The tensor whose turn it is.
    turn: usize,
    /// How many of its bytes are written.
    done: u64,
}

impl SafetensorsWriter {
    /// Begins a file at `path`, replacing what is there only when it is finished.
    ///
    /// # Errors
    /// [`Error::Io`]; for layouts no reader would take, the reader's own error.
    pub fn create(path: &Path, layouts: &[TensorLayout]) -> Result<SafetensorsWriter> {
        SafetensorsWriter::with_metadata(path, layouts, &[])
    }

    /// The same with free text under `__metadata__`.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::create`].
    pub fn with_metadata(
        path: &Path,
        layouts: &[TensorLayout],
        metadata: &[(&str, &str)],
    ) -> Result<SafetensorsWriter> {
        let header = render_header(layouts, metadata, &path.display().to_string())?;
        let mut output = WholeFile::create(path)?;
        output.write(&header)?;
        let mut writer = SafetensorsWriter {
            output,
            layouts: layouts.to_vec(),
            turn: 0,
            done: 0,
        };
        writer.next_turn();
        Ok(writer)
    }

    /// Appends bytes of the tensor whose turn it is, as stored, little endian; all of it or a part.
    ///
    /// # Errors
    /// [`Error::OutOfTurn`] for another tensor or more bytes than it has, [`Error::Io`].
    pub fn write(&mut self, tensor: &str, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            // All there is of a tensor without elements, which never has a turn.
            return Ok(());
        }
        let length = bytes.len() as u64;
        let expected = match self.layouts.get(self.turn) {
            None => "nothing more belongs into the file".to_owned(),
            Some(layout) if layout.name != tensor => format!("'{}' is next", layout.name),
            Some(layout) if length > layout.bytes().0 - self.done => {
                format!("it lacks {} bytes", layout.bytes().0 - self.done)
            }
            Some(_) => {
                self.output.write(bytes)?;
                self.done += length;
                self.next_turn();
                return Ok(());
            }
        };
        Err(Error::OutOfTurn {
            file: self.output.shown(),
            tensor: tensor.to_owned(),
            length,
            expected,
        })
    }

    /// Passes over tensors that are complete, also those without any bytes.
    fn next_turn(&mut self) {
        while self
            .layouts
            .get(self.turn)
            .is_some_and(|layout| layout.bytes().0 == self.done)
        {
            self.turn += 1;
            self.done = 0;
        }
    }

    /// Gives the file its name, after its bytes have reached the disk.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when a tensor is not complete, [`Error::Io`]. Nothing is left behind then.
    pub fn finish(self) -> Result<()> {
        match self.layouts.get(self.turn) {
            None => self.output.finish(),
            Some(layout) => Err(Error::Incomplete {
                file: self.output.shown(),
                tensor: layout.name.clone(),
                missing: layout.bytes().0 - self.done,
            }),
        }
    }
}

/// The length prefix and the JSON of a header for tensors that follow each other in this order, padded with spaces.
///
/// # Errors
/// The error a reader would give: a name twice, too long, too many tensors or dimensions, sizes that overflow.
pub fn render_header(
    layouts: &[TensorLayout],
    metadata: &[(&str, &str)],
    file: &str,
) -> Result<Vec<u8>> {
    let owned = || file.to_owned();
    let mut header = Map::with_capacity(layouts.len() + 1);
    if !metadata.is_empty() {
        let pairs = metadata
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Value::from(*value)))
            .collect();
        header.insert("__metadata__".to_owned(), Value::Object(pairs));
    }
    let mut seen = HashSet::from(["__metadata__"]);
    let mut begin = 0u64;
    for layout in layouts {
        let TensorLayout { name, dtype, shape } = layout;
        let tensor = || name.clone();
        if !seen.insert(name) {
            return Err(Error::DuplicateTensor {
                file: owned(),
                tensor: tensor(),
            });
        }
        if name.len() > NAME_BYTES_MAX {
            let (bytes, limit) = (name.len(), NAME_BYTES_MAX);
            return Err(Error::NameTooLong {
                file: owned(),
                tensor: tensor(),
                bytes,
                limit,
            });
        }
        if shape.len() > RANK_MAX {
            let (dimensions, limit) = (shape.len(), RANK_MAX);
            return Err(Error::TooManyDimensions {
                file: owned(),
                tensor: tensor(),
                dimensions,
                limit,
            });
        }
        let bytes = shape
            .iter()
            .try_fold(dtype.size(), |total, &dim| total.checked_mul(dim as u64));
        let Some(end) = bytes.and_then(|bytes| begin.checked_add(bytes)) else {
            let shape = shape.iter().map(|&dim| dim as u64).collect();
            return Err(Error::Overflow {
                file: owned(),
                tensor: tensor(),
                shape,
            });
        };
        if header.len() > TENSORS_MAX {
            return Err(Error::TooManyTensors {
                file: owned(),
                tensor: tensor(),
                limit: TENSORS_MAX,
            });
        }
        let entry = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [begin, end] });
        header.insert(name.clone(), entry);
        begin = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
    let length = text.len() as u64;
    if length > HEADER_BYTES_MAX {
        return Err(Error::HeaderTooLarge {
            file: owned(),
            header: length,
            limit: HEADER_BYTES_MAX,
        });
    }
    let mut bytes = Vec::with_capacity(PREFIX_BYTES as usize + text.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&text);
    Ok(bytes)
}

/// A file that has a temporary name until it is finished and vanishes if it never is.
#[derive(Debug)]
struct WholeFile {
    /// `None` once it is finished.
    file: Option<File>,
    temporary: PathBuf,
    path: PathBuf,
}

impl WholeFile {
    fn create(path: &Path) -> Result<WholeFile> {
        /// Tells apart two writers of one file in one process.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let failed = |e| Error::Io {
            file: path.display().to_string(),
            action: "create",
            cause: e,
        };
        if path.is_dir() {
            return Err(failed(std::io::Error::from(
                std::io::ErrorKind::IsADirectory,
            )));
        }
        let name = path
            .file_name()
            .ok_or_else(|| failed(std::io::Error::from(std::io::ErrorKind::InvalidFilename)))?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let hidden = format!(
            ".{}.{}-{number}.part",
            name.to_string_lossy(),
            std::process::id()
        );
        let temporary = path.with_file_name(hidden);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(failed)?;
        Ok(WholeFile {
            file: Some(file),
            temporary,
            path: path.to_owned(),
        })
    }

    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    fn failed(&self, cause: std::io::Error) -> Error {
        Error::Io {
            file: self.shown(),
            action: "write",
            cause,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let file = self
            .file
            .as_mut()
            .expect("only finish takes the file, and it consumes the writer");
        file.write_all(bytes).map_err(|e| self.failed(e))
    }

    fn finish(mut self) -> Result<()> {
        let file = self
            .file
            .take()
            .expect("only finish takes the file, and it consumes the writer");
        let moved = file.sync_all().and_then(|()| {
            // Windows does not rename an open file.
            drop(file);
            std::fs::rename(&self.temporary, &self.path)
        });
        if let Err(cause) = moved {
            // The name is ours alone; a failure to remove it has no better place to be told than the first failure.
            let _ = std::fs::remove_file(&self.temporary);
            return Err(self.failed(cause));
        }
        Ok(())
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            drop(file);
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
