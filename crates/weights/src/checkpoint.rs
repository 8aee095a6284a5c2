//! All tensors of one component, whichever files they are in.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use lowtide_core::Bytes;

use crate::header::{self, PREFIX_BYTES};
use crate::index::{self, Found};
use crate::ncnn;
use crate::onnx;
use crate::place::Place;
use crate::summary::WeightsSummary;
use crate::torch::{self, Contents};
use crate::{Error, Result, Source, TensorEntry};

/// How many bytes of a file are read first: enough to recognise what is not safetensors.
const START_BYTES: u64 = 64;

/// All tensors of one component, across shards. Only headers are in memory; a clone reads from the same open files.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    name: String,
    sources: Arc<[Source]>,
    tensors: Vec<TensorEntry>,
    by_name: HashMap<String, usize>,
    metadata: Vec<(String, String)>,
    bytes: Bytes,
}

/// What a file was when it was opened, so that a cache can tell whether it still is. Never a hash of the content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was last written; `None` for built-in bytes and on systems that do not say.
    pub modified: Option<SystemTime>,
}

/// The identity of every file of a checkpoint, in the order of its sources.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub Vec<FileIdentity>);

impl Checkpoint {
    /// Opens a `.safetensors` file, a file of `torch.save`, an ONNX file, either file of an ncnn model (`.param` and
    /// `.bin` beside each other), an `.index.json`, or a folder that holds
    /// `model.safetensors`, `diffusion_pytorch_model.safetensors`, their `.fp16` or `.bf16` variants or their index,
    /// or the same as `.bin`.
    ///
    /// # Memory
    /// The headers, parsed: about 300 bytes a tensor.
    ///
    /// # Errors
    /// Any [`Error`] about files, indices and headers.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let shown = path.display().to_string();
        if path
            .metadata()
            .map_err(|e| Error::io(&shown, "open", e))?
            .is_dir()
        {
            return Checkpoint::at(&Place::Disk(path.to_owned()));
        }
        let file_name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if index::is_partial(file_name) {
            return Err(Error::HalfDownloaded { file: shown });
        }
        if file_name.ends_with(".json") && file_name.contains(".index.") {
            let folder = path
                .parent()
                .filter(|p| !p.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            return Checkpoint::sharded(&Place::Disk(folder.to_owned()), file_name);
        }
        if let Some((param, bin)) = ncnn::pair(path) {
            let (param, bin) = (Source::open(&param)?, Source::open(&bin)?);
            return Checkpoint::of_ncnn(param, bin);
        }
        Checkpoint::join(shown, vec![(Source::open(path)?, None)])
    }

    /// The two files of an ncnn model: what its layers are, and their numbers.
    fn of_ncnn(param: Source, bin: Source) -> Result<Checkpoint> {
        let contents = ncnn::read(&param, &bin)?;
        Checkpoint::of_parts(bin.name(), vec![(bin, contents, None)])
    }

    /// Reads an ncnn model that is in memory; `name` is what messages call both of its files.
    ///
    /// # Errors
    /// [`Error::Ncnn`], [`Error::Truncated`].
    pub fn from_ncnn_memory(
        name: &str,
        param: impl Into<Cow<'static, [u8]>>,
        bin: impl Into<Cow<'static, [u8]>>,
    ) -> Result<Checkpoint> {
        let source = |bytes| Source::Memory {
            name: name.to_owned(),
            bytes,
        };
        Checkpoint::of_ncnn(source(param.into()), source(bin.into()))
    }

    /// Reads a weight file that is in memory, such as one that is part of the program.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_memory(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Checkpoint> {
        let source = Source::Memory {
            name: name.to_owned(),
            bytes: bytes.into(),
        };
        Checkpoint::join(name.to_owned(), vec![(source, None)])
    }

    /// The weights of the component whose folder this is.
    pub(crate) fn at(place: &Place) -> Result<Checkpoint> {
        match index::locate(place)? {
            Found::Index(name) => Checkpoint::sharded(place, &name),
            Found::Single(name) => {
                let file = place.describe_file(&name);
                // The name is listed: a link whose target a download has not written yet.
                let source = place.source(&name)?.ok_or(Error::HalfDownloaded { file })?;
                Checkpoint::join(source.name(), vec![(source, None)])
            }
        }
    }

    /// The shards of an index, each with the tensors the index puts into it.
    fn sharded(place: &Place, index_name: &str) -> Result<Checkpoint> {
        let index = place.describe_file(index_name);
        let mut sources = Vec::new();
        for (shard, promised) in index::read(place, index_name)? {
            let Some(source) = place.source(&shard)? else {
                let tensor = promised.into_iter().next().unwrap_or_default();
                return Err(Error::ShardMissing {
                    index,
                    shard,
                    tensor,
                });
            };
            sources.push((
                source,
                Some(Promise {
                    index: index.clone(),
                    shard,
                    tensors: promised,
                }),
            ));
        }
        Checkpoint::join(index, sources)
    }

    /// Reads the headers and makes one list of them.
    fn join(name: String, parts: Vec<(Source, Option<Promise>)>) -> Result<Checkpoint> {
        let read = |(source, promise): (Source, Option<Promise>)| {
            let contents = read_contents(&source)?;
            Ok((source, contents, promise))
        };
        Checkpoint::of_parts(name, parts.into_iter().map(read).collect::<Result<_>>()?)
    }

    /// One list of what files hold.
    fn of_parts(
        name: String,
        parts: Vec<(Source, Contents, Option<Promise>)>,
    ) -> Result<Checkpoint> {
        let mut sources: Vec<Source> = Vec::with_capacity(parts.len());
        let mut tensors: Vec<TensorEntry> = Vec::new();
        let mut by_name: HashMap<String, usize> = HashMap::new();
        let mut promises = Vec::new();
        let mut metadata = Vec::new();
        let mut bytes = Bytes::ZERO;
        for (source, contents, promise) in parts {
            let number = sources.len();
            metadata.extend(contents.metadata);
            for mut entry in contents.tensors {
                entry.source += number;
                if let Some(&first) = by_name.get(&entry.name) {
                    let first = sources.get(tensors[first].source).unwrap_or(&source).name();
                    return Err(Error::TensorInTwoShards {
                        first,
                        second: source.name(),
                        tensor: entry.name,
                    });
                }
                bytes = bytes
                    .checked_add(Bytes(entry.bytes))
                    .ok_or_else(|| Error::Overflow {
                        file: source.name(),
                        tensor: entry.name.clone(),
                        shape: entry.shape.iter().map(|&dim| dim as u64).collect(),
                    })?;
                by_name.insert(entry.name.clone(), tensors.len());
                tensors.push(entry);
            }
            promises.extend(promise.map(|promise| (number, promise)));
            let decoded = (!contents.decoded.is_empty()).then(|| Source::Memory {
                name: source.name(),
                bytes: contents.decoded.into(),
            });
            sources.push(source);
            sources.extend(decoded);
        }
        for (number, promise) in promises {
            let is_there = |tensor: &str| {
                let at = by_name.get(tensor);
                at.is_some_and(|&at| tensors[at].source == number)
            };
            promise.check(is_there)?;
        }
        Ok(Checkpoint {
            name,
            sources: sources.into(),
            tensors,
            by_name,
            metadata,
            bytes,
        })
    }

    /// The same files with other tensors: parts of its own, under other names, each once.
    pub(crate) fn view(&self, name: String, tensors: Vec<TensorEntry>) -> Checkpoint {
        let by_name = tensors.iter().enumerate();
        Checkpoint {
            name,
            sources: self.sources.clone(),
            by_name: by_name.map(|(at, t)| (t.name.clone(), at)).collect(),
            bytes: tensors.iter().map(|t| Bytes(t.bytes)).sum(),
            tensors,
            metadata: self.metadata.clone(),
        }
    }

    /// The free text under `__metadata__`, or the whole number beside a pickle's weights, that is called `key`, from the first shard that has it.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let found = self.metadata.iter().find(|(name, _)| name == key);
        found.map(|(_, text)| text.as_str())
    }

    /// What messages call it: the file, or the index.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorEntry> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    /// The tensor of that name, of that shape, in a type a network can compute with.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`], [`Error::WrongDtype`].
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<&TensorEntry> {
        let tensor = name.to_owned();
        let Some(entry) = self.get(name) else {
            return Err(Error::MissingTensor {
                file: self.name.clone(),
                tensor,
                near: self.near(name),
            });
        };
        let file = self.sources[entry.source].name();
        if entry.shape != shape {
            return Err(Error::WrongShape {
                file,
                tensor,
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        if !entry.dtype.is_float() {
            return Err(Error::WrongDtype {
                file,
                tensor,
                found: entry.dtype,
            });
        }
        Ok(entry)
    }

    /// A tensor whose name differs by a leading part such as `model.`, the usual reason for a missing one.
    fn near(&self, name: &str) -> Option<String> {
        let is_tail = |long: &str, short: &str| {
            long.len() > short.len()
                && long.ends_with(short)
                && long.as_bytes()[long.len() - short.len() - 1] == b'.'
        };
        let near = self
            .tensors
            .iter()
            .find(|t| is_tail(&t.name, name) || is_tail(name, &t.name));
        near.map(|t| t.name.clone())
    }

    /// Every tensor, file after file, in the order in which they lie in the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorEntry> {
        self.tensors.iter()
    }

    /// The files, in the order that [`TensorEntry::source`] counts.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Reads a whole tensor, as stored, little endian. `out` has exactly the tensor's length.
    ///
    /// # Errors
    /// [`Error::BadRead`], and as [`Source::read_at`].
    pub fn read(&self, entry: &TensorEntry, out: &mut [u8]) -> Result<()> {
        if out.len() as u64 != entry.bytes {
            return Err(self.bad_read(entry, 0, out.len()));
        }
        self.read_range(entry, 0, out)
    }

    /// Reads a part of a tensor from its byte `offset` on, such as some rows of an embedding table.
    ///
    /// # Errors
    /// [`Error::BadRead`] where the part is not inside the tensor, and as [`Source::read_at`].
    pub fn read_range(&self, entry: &TensorEntry, offset: u64, out: &mut [u8]) -> Result<()> {
        let inside = offset
            .checked_add(out.len() as u64)
            .is_some_and(|end| end <= entry.bytes);
        let source = self.sources.get(entry.source).filter(|_| inside);
        let source = source.ok_or_else(|| self.bad_read(entry, offset, out.len()))?;
        entry.read_from(source, offset, out)
    }

    fn bad_read(&self, entry: &TensorEntry, offset: u64, length: usize) -> Error {
        Error::BadRead {
            file: self
                .sources
                .get(entry.source)
                .map_or_else(|| self.name.clone(), Source::name),
            tensor: entry.name.clone(),
            bytes: entry.bytes,
            offset,
            length: length as u64,
        }
    }

    /// The weights' bytes, as stored.
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// Which files these are: path, length and time of the last change.
    ///
    /// # Errors
    /// [`Error::Io`] where the system does not tell.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        let identity = |source: &Source| match source {
            Source::File { path, file, .. } => {
                let metadata = file
                    .metadata()
                    .map_err(|e| Error::io(source.name(), "inspect", e))?;
                let (bytes, modified) = (metadata.len(), metadata.modified().ok());
                Ok(FileIdentity {
                    path: path.clone(),
                    bytes,
                    modified,
                })
            }
            Source::Memory { name, bytes } => Ok(FileIdentity {
                path: PathBuf::from(name),
                bytes: bytes.len() as u64,
                modified: None,
            }),
        };
        self.sources
            .iter()
            .map(identity)
            .collect::<Result<_>>()
            .map(Fingerprint)
    }

    /// Tensors, bytes by type and blocks, from the headers.
    pub fn summary(&self) -> WeightsSummary {
        WeightsSummary::of(self.sources.len(), &self.tensors)
    }
}

/// What an index says about one shard.
struct Promise {
    index: String,
    shard: String,
    tensors: Vec<String>,
}

impl Promise {
    /// Refuses a shard that lacks one of its tensors.
    fn check(self, is_there: impl Fn(&str) -> bool) -> Result<()> {
        match self.tensors.into_iter().find(|tensor| !is_there(tensor)) {
            None => Ok(()),
            Some(tensor) => Err(Error::NotInShard {
                index: self.index,
                shard: self.shard,
                tensor,
            }),
        }
    }
}

/// Reads and checks what one file says about its tensors.
fn read_contents(source: &Source) -> Result<Contents> {
    let (name, len) = (source.name(), source.byte_len());
    let mut bytes = vec![0; len.min(START_BYTES) as usize];
    source.read_at(0, &mut bytes)?;
    if torch::is_torch(&bytes) {
        return torch::read(source);
    }
    if onnx::is_onnx(&bytes) {
        return onnx::read(source);
    }
    let end = PREFIX_BYTES + header::header_bytes(&bytes, len, &name)?;
    let start = bytes.len();
    bytes.resize(end as usize, 0);
    if bytes.len() > start {
        source.read_at(start as u64, &mut bytes[start..])?;
    }
    let header = header::parse_header(&bytes, len, &name)?;
    Ok(Contents {
        tensors: header.tensors,
        metadata: header.metadata,
        decoded: Vec::new(),
    })
}
