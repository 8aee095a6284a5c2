//! Everything that can be wrong with weights on a disk, said so that a person can act on it.

mod show;

use std::io;

use lowtide_core::{Bytes, Dtype};

use show::{Dims, after, in_tensor, listed, near_hint, shown};

/// What this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why weights could not be read or written. `file` is always the path (or the name of embedded bytes) at fault,
/// `tensor` the name as it stands in that file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{file}: cannot {action}: {cause}")]
    Io {
        /// The path at fault.
        file: String,
        /// What was tried, as an infinitive: `read`, `create`.
        action: &'static str,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
    /// Nothing has that name.
    #[error("{file}: there is no such file or folder; check the path")]
    NotFound {
        /// The path at fault.
        file: String,
    },
    /// A folder, a pipe or a device stands where a file should.
    #[error("{file}: not a regular file; give a .safetensors file or the folder that holds it")]
    NotAFile {
        /// The path at fault.
        file: String,
    },
    /// A folder without `model_index.json`, or a file where a folder should be.
    #[error(
        "{folder}: not a model folder, {why}; give a folder in diffusers layout \
         (a model_index.json beside transformer/, vae/ and so on)"
    )]
    NotAModel {
        /// The path at fault.
        folder: String,
        /// What gave it away.
        why: String,
    },
    /// `model_index.json` names a component whose folder is not there.
    #[error(
        "{folder}: half a download? model_index.json names component '{}', but there is no such \
         folder; fetch the model again", shown(.component)
    )]
    ComponentFolderMissing {
        /// The model's folder.
        folder: String,
        /// The component's name.
        component: String,
    },
    /// The model has no component of that name.
    #[error("{folder}: the model has no component '{}'; it has {}", shown(.component), listed(.has))]
    NoSuchComponent {
        /// The model's folder.
        folder: String,
        /// The name asked for.
        component: String,
        /// The names there are.
        has: Vec<String>,
    },
    /// A single file without one of the parts that its kind of model needs.
    #[error(
        "{file}: the file has no {component}; name one besides: a folder or a file that has it, \
         or another model of its kind", component = shown(.component)
    )]
    ComponentNotInFile {
        /// The model's file.
        file: String,
        /// The component's name.
        component: String,
    },
    /// A file of tensors that is no model, or not one that is known here.
    #[error("{file}: not a model in one file: {}", shown(.why))]
    UnknownCheckpoint {
        /// The file.
        file: String,
        /// What it is, or what does not fit.
        why: String,
    },
    /// A LoRA of a kind that is not applied, or whose matrices do not go together.
    #[error("{file}: '{}': {}", shown(.module), shown(.why))]
    Lora {
        /// The file.
        file: String,
        /// The layer, as the file calls it.
        module: String,
        /// What is wrong.
        why: String,
    },
    /// No weight file in a component's folder.
    #[error(
        "{folder}: no weights: looked for model.safetensors, diffusion_pytorch_model.safetensors, \
         their .fp16/.bf16 variants, their .index.json, and the same as .bin; found {}",
        listed(.found)
    )]
    NoWeights {
        /// The folder that was searched.
        folder: String,
        /// The files that are there (the first few).
        found: Vec<String>,
    },
    /// A download that stopped half-way.
    #[error("{file}: half a download: the weights are not complete; finish or repeat the download")]
    HalfDownloaded {
        /// The partial file.
        file: String,
    },
    /// The index names a shard that is not there.
    #[error(
        "{index}: half a download? the index puts tensor '{}' into '{}', and that file is missing; \
         fetch it again", shown(.tensor), shown(.shard)
    )]
    ShardMissing {
        /// The index file.
        index: String,
        /// The file it names.
        shard: String,
        /// The first tensor that should be in it.
        tensor: String,
    },
    /// The index puts a tensor into a shard that does not have it.
    #[error(
        "{index}: the index puts tensor '{}' into '{}', but that file does not have it; index and \
         shards belong to different versions: fetch both again", shown(.tensor), shown(.shard)
    )]
    NotInShard {
        /// The index file.
        index: String,
        /// The file it names.
        shard: String,
        /// The tensor that is not there.
        tensor: String,
    },
    /// Two shards hold a tensor of the same name.
    #[error(
        "{second}: tensor '{}' is also in {first}; which one is meant cannot be known: \
         fetch the model again", shown(.tensor)
    )]
    TensorInTwoShards {
        /// The shard it was seen in first.
        first: String,
        /// The shard it was seen in again.
        second: String,
        /// The tensor.
        tensor: String,
    },
    /// An index that names no tensors, has no `weight_map`, or too many shards.
    #[error("{index}: not a usable shard index: {why}; fetch it again")]
    BadIndex {
        /// The index file.
        index: String,
        /// What is wrong with it.
        why: String,
    },
    /// A relative path that would leave the folder.
    #[error(
        "{file}: refuses the path '{}': it may only lead to files inside the folder", shown(.path)
    )]
    UnsafePath {
        /// The file that names it, or the folder it was asked of.
        file: String,
        /// The path.
        path: String,
    },
    /// A text pointer that git-lfs would have replaced by the real file.
    #[error("{file}: a git-lfs pointer, not the file itself; run 'git lfs pull' in its repository")]
    GitLfsPointer {
        /// The pointer file.
        file: String,
    },
    /// The file is recognisably something else.
    #[error("{file}: not safetensors but {found}; {advice}")]
    OtherFormat {
        /// The file.
        file: String,
        /// What its first bytes say.
        found: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A pickle that is damaged, too large, or of a kind that is not read.
    #[error("{file}: cannot read the pickle, at byte {offset}: {}", shown(.why))]
    Pickle {
        /// The file.
        file: String,
        /// Where in the file.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
    /// An ONNX file that is damaged, too large, or of a kind that is not read.
    #[error("{file}: cannot read the ONNX file, at byte {offset}: {}", shown(.why))]
    Onnx {
        /// The file.
        file: String,
        /// Where in the file.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
    /// An ncnn model whose files are damaged, do not belong together, or have layers that are not known.
    #[error("{file}: cannot read the ncnn model, in line {line}: {}", shown(.why))]
    Ncnn {
        /// The file of layers.
        file: String,
        /// Which line of it, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A zip archive that is damaged or not one of torch's.
    #[error("{file}: cannot read the archive: {}", shown(.why))]
    Archive {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of torch's in which no weights are found.
    #[error("{file}: no weights found: {}", shown(.why))]
    NoTensors {
        /// The file.
        file: String,
        /// What is there instead.
        why: String,
    },
    /// A tensor in a file of torch's that its storage cannot hold, or that lies in an unusual way.
    #[error("{file}: tensor '{}': {}", shown(.tensor), shown(.why))]
    TorchTensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file ends before what it announces.
    #[error("{file}: {}; fetch it again", too_short(*.needed, *.found))]
    Truncated {
        /// The file.
        file: String,
        /// Bytes it should have at least.
        needed: u64,
        /// Bytes it has.
        found: u64,
    },
    /// The length prefix points past the end of the file.
    #[error(
        "{file}: the header says it has {header} bytes, but the file has {found} in all; \
         damaged, half a download, or not safetensors: fetch it again"
    )]
    HeaderBeyondFile {
        /// The file.
        file: String,
        /// The announced length of the header in bytes.
        header: u64,
        /// The length of the file in bytes.
        found: u64,
    },
    /// A header longer than any honest one.
    #[error(
        "{file}: a header of {header} bytes; the format allows {limit}: damaged or not safetensors"
    )]
    HeaderTooLarge {
        /// The file.
        file: String,
        /// The announced length in bytes.
        header: u64,
        /// The most that is read.
        limit: u64,
    },
    /// A text file beyond its limit.
    #[error("{file}: {} is more than the {} read of such a file; is it what its name says?", Bytes(*.found), Bytes(*.limit))]
    TooLarge {
        /// The file.
        file: String,
        /// Its bytes.
        found: u64,
        /// The most that is read.
        limit: u64,
    },
    /// Text that is not UTF-8.
    #[error("{file}: not UTF-8 from byte {offset} on; damaged: fetch it again")]
    NotUtf8 {
        /// The file.
        file: String,
        /// The first bad byte's offset in the file.
        offset: u64,
    },
    /// The header does not begin with `{`.
    #[error(
        "{file}: the header begins with byte 0x{byte:02x} instead of '{{'; damaged or not safetensors"
    )]
    HeaderStart {
        /// The file.
        file: String,
        /// Its first byte.
        byte: u8,
    },
    /// JSON that cannot be read, or is not of the form the format asks for.
    #[error(
        "{file}: broken JSON at line {line}, column {column}{}: {}; damaged: fetch it again",
        in_tensor(.tensor), shown(.why)
    )]
    Json {
        /// The file.
        file: String,
        /// The tensor whose entry it is, where that is known.
        tensor: Option<String>,
        /// From 1, within the JSON text.
        line: usize,
        /// From 1, in bytes.
        column: usize,
        /// The parser's reason.
        why: String,
    },
    /// The same key twice in one JSON object.
    #[error("{file}: '{}' stands there twice; which one is meant cannot be known: fetch it again", shown(.key))]
    DuplicateKey {
        /// The file.
        file: String,
        /// The key.
        key: String,
    },
    /// Two tensors of the same name in one header.
    #[error("{file}: tensor '{}' stands in the header twice; damaged: fetch it again", shown(.tensor))]
    DuplicateTensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// More tensors than any honest file.
    #[error("{file}: more than {limit} tensors, from tensor '{}' on; damaged or hostile", shown(.tensor))]
    TooManyTensors {
        /// The file.
        file: String,
        /// The first one too many.
        tensor: String,
        /// The limit.
        limit: usize,
    },
    /// A name longer than any honest one.
    #[error("{file}: tensor '{}' has a name of {bytes} bytes; the limit is {limit}", shown(.tensor))]
    NameTooLong {
        /// The file.
        file: String,
        /// The name.
        tensor: String,
        /// Its length in bytes.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// More dimensions than any honest tensor.
    #[error("{file}: tensor '{}' has {dimensions} dimensions; the limit is {limit}", shown(.tensor))]
    TooManyDimensions {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// How many it has.
        dimensions: usize,
        /// The limit.
        limit: usize,
    },
    /// An element type this program does not know.
    #[error(
        "{file}: tensor '{}' has the unknown element type '{}'; convert the file to \
         F32, BF16, F16, F8_E4M3 or F8_E5M2", shown(.tensor), shown(.dtype)
    )]
    UnknownDtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The name in the header.
        dtype: String,
    },
    /// A shape whose bytes do not fit 64 bits.
    #[error("{file}: tensor '{}' of shape {} has more bytes than 64 bits can count; damaged or hostile", shown(.tensor), Dims(.shape))]
    Overflow {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its dimensions as in the header.
        shape: Vec<u64>,
    },
    /// Shape times element size is not the byte range.
    #[error(
        "{file}: tensor '{}' of shape {} and type {dtype} needs {needed} bytes, but its offsets \
         {begin}..{end} hold {}; damaged: fetch it again", shown(.tensor), Dims(.shape), .end.wrapping_sub(*.begin)
    )]
    WrongByteRange {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        shape: Vec<u64>,
        /// Its element type.
        dtype: Dtype,
        /// Bytes by shape and type.
        needed: u64,
        /// First byte, from the start of the data.
        begin: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Offsets that run backwards.
    #[error("{file}: tensor '{}' begins at {begin} and ends before that, at {end}; damaged: fetch it again", shown(.tensor))]
    ReversedOffsets {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// First byte, from the start of the data.
        begin: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Offsets past the end of the file.
    #[error(
        "{file}: tensor '{}' ends at byte {end} of the data, but the file holds {available}; \
         truncated or half a download: fetch it again", shown(.tensor)
    )]
    OutOfRange {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// One past its last byte, from the start of the data.
        end: u64,
        /// Bytes of data in the file.
        available: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "{file}: tensor '{}' begins at byte {begin}, inside tensor '{}' which ends at {end}; \
         damaged or hostile", shown(.tensor), shown(.other)
    )]
    Overlap {
        /// The file.
        file: String,
        /// The later tensor.
        tensor: String,
        /// The one it runs into.
        other: String,
        /// Where `tensor` begins.
        begin: u64,
        /// Where `other` ends.
        end: u64,
    },
    /// Bytes that belong to no tensor, which the format forbids.
    #[error(
        "{file}: bytes {begin}..{end} of the data, before tensor '{}', belong to no tensor; \
         the format forbids holes: fetch it again", shown(.tensor)
    )]
    Hole {
        /// The file.
        file: String,
        /// The tensor after the hole.
        tensor: String,
        /// The hole's first byte, from the start of the data.
        begin: u64,
        /// One past its last.
        end: u64,
    },
    /// Bytes after the last tensor.
    #[error(
        "{file}: {extra} bytes after the last tensor{} belong to nothing; \
         damaged, or two files in one: fetch it again", after(.tensor)
    )]
    TrailingBytes {
        /// The file.
        file: String,
        /// The last tensor; `None` in a file without any.
        tensor: Option<String>,
        /// How many.
        extra: u64,
    },
    /// A tensor that the model needs is not there.
    #[error("{file}: tensor '{}' is missing{}; is it a checkpoint of this architecture?", shown(.tensor), near_hint(.near))]
    MissingTensor {
        /// The file or folder.
        file: String,
        /// The tensor looked for.
        tensor: String,
        /// A tensor whose name is much alike.
        near: Option<String>,
    },
    /// A tensor has another shape than the model needs.
    #[error("{file}: tensor '{}' has shape {}, the configuration asks for {}; config.json and weights do not belong together", shown(.tensor), Dims(.found), Dims(.expected))]
    WrongShape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// As in the file.
        found: Vec<usize>,
        /// As the model needs it.
        expected: Vec<usize>,
    },
    /// A tensor is stored in a type a network cannot compute with.
    #[error("{file}: tensor '{}' is stored as {found}; weights must be F32, BF16, F16, F64 or fp8", shown(.tensor))]
    WrongDtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// As in the file.
        found: Dtype,
    },
    /// A read whose buffer or range does not match the tensor: the caller's mistake.
    #[error("{file}: tensor '{}' has {bytes} bytes, but {length} were asked for from byte {offset}: this is a bug", shown(.tensor))]
    BadRead {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The tensor's bytes.
        bytes: u64,
        /// First byte asked for.
        offset: u64,
        /// How many were asked for.
        length: u64,
    },
    /// A writer was given another tensor than the one whose turn it was, or too many bytes: the caller's mistake.
    #[error("{file}: got {length} bytes of tensor '{}' where {expected}: this is a bug", shown(.tensor))]
    OutOfTurn {
        /// The file being written.
        file: String,
        /// The tensor offered.
        tensor: String,
        /// How many bytes were offered.
        length: u64,
        /// What was expected instead.
        expected: String,
    },
    /// A writer was finished before every tensor was complete: the caller's mistake.
    #[error("{file}: tensor '{}' still lacks {missing} bytes, so nothing was written: this is a bug", shown(.tensor))]
    Incomplete {
        /// The file being written.
        file: String,
        /// The first tensor that is not complete.
        tensor: String,
        /// The bytes it lacks.
        missing: u64,
    },
}

impl Error {
    /// From the system's error about `file`.
    pub(crate) fn io(file: impl Into<String>, action: &'static str, cause: io::Error) -> Error {
        let file = file.into();
        match cause.kind() {
            io::ErrorKind::NotFound => Error::NotFound { file },
            _ => Error::Io {
                file,
                action,
                cause,
            },
        }
    }
}

/// What is wrong with a file that ends too early, or was only given its length.
fn too_short(needed: u64, found: u64) -> String {
    match found < needed {
        true => {
            format!("truncated: it should have {needed} bytes and has {found}; half a download?")
        }
        false => format!(
            "its header is empty, though it has {found} bytes; a download that never began?"
        ),
    }
}
