//! Files of `torch.save`: `.ckpt`, `.pt`, `.pth`, `.bin`.
//!
//! Both forms are a pickle that describes tensors, and raw numbers beside it: today's is a zip archive with an entry
//! for each storage, stored as it is; the one before version 1.6 is several pickles and then the storages. Either way
//! a tensor is a range of bytes of the file, read like one of safetensors. The pickle is read and never run
//! ([`crate::pickle`]).

mod archive;
mod legacy;
mod rebuild;
mod state_dict;

use lowtide_core::Dtype;

use crate::entry::{is_dense, ordered};
use crate::header::{NAME_BYTES_MAX, RANK_MAX, TENSORS_MAX};
use crate::pickle::{RawTensor, Values};
use crate::{Error, Result, Source, TensorEntry};
use rebuild::Rebuild;

/// How an archive begins.
const ZIP_START: &[u8] = b"PK\x03\x04";

/// What a weight file says about its tensors, whatever its format.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// In the order in which they lie in the file; `source` is 0, or 1 for those in `decoded`.
    pub(crate) tensors: Vec<TensorEntry>,
    /// Free text.
    pub(crate) metadata: Vec<(String, String)>,
    /// Numbers that are not a range of the file as they are; nearly always none.
    pub(crate) decoded: Vec<u8>,
}

/// Where a storage's bytes are, and of what type they are.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// What the pickle calls it.
    key: String,
    /// `None` for bytes whose type each tensor tells.
    dtype: Option<Dtype>,
    /// By the pickle, in elements.
    elements: u64,
    /// First byte, from the start of the file.
    offset: u64,
    /// Bytes that are really there.
    bytes: u64,
}

/// Whether these first bytes of a file are of either form.
pub(crate) fn is_torch(start: &[u8]) -> bool {
    // Where the header of a safetensors file begins, whatever its length happens to look like.
    let is_header = start.get(crate::PREFIX_BYTES as usize) == Some(&b'{');
    !is_header && (start.starts_with(ZIP_START) || is_pickle(start))
}

fn is_pickle(start: &[u8]) -> bool {
    matches!(start, [0x80, 2..=5, ..])
}

/// Reads what is in the file, without its numbers.
pub(crate) fn read(source: &Source) -> Result<Contents> {
    let mut start = [0; 4];
    source.read_at(0, &mut start)?;
    let mut values = Values::default();
    let mut rebuild = Rebuild::default();
    let root = if start.starts_with(ZIP_START) {
        archive::read(source, &mut values, &mut rebuild)?
    } else {
        legacy::read(source, &mut values, &mut rebuild)?
    };
    let found = state_dict::find(&values, root).map_err(|why| Error::NoTensors {
        file: source.name(),
        why,
    })?;
    let mut tensors = Vec::with_capacity(found.tensors.len());
    for (name, raw) in found.tensors {
        tensors.push(check(source, name, raw, &rebuild.storages)?);
    }
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    Ok(Contents {
        tensors,
        metadata: found.numbers,
        decoded: Vec::new(),
    })
}

/// Checks one tensor against the storage it is in.
fn check(source: &Source, tensor: String, raw: &RawTensor, all: &[Storage]) -> Result<TensorEntry> {
    let file = source.name();
    if tensor.len() > NAME_BYTES_MAX {
        let (bytes, limit) = (tensor.len(), NAME_BYTES_MAX);
        return Err(Error::NameTooLong {
            file,
            tensor,
            bytes,
            limit,
        });
    }
    let (dimensions, limit) = (raw.shape.len(), RANK_MAX);
    if dimensions > limit {
        return Err(Error::TooManyDimensions {
            file,
            tensor,
            dimensions,
            limit,
        });
    }
    let storage = all
        .get(raw.storage)
        .expect("only storages that were described have a number");
    match lay_out(&tensor, raw, storage) {
        Ok(Some(entry)) => Ok(entry),
        Ok(None) => Err(Error::Overflow {
            file,
            tensor,
            shape: raw.shape.clone(),
        }),
        Err(why) => Err(Error::TorchTensor { file, tensor, why }),
    }
}

/// The tensor as a range of the file; `None` where its bytes cannot be counted.
fn lay_out(
    name: &str,
    raw: &RawTensor,
    storage: &Storage,
) -> std::result::Result<Option<TensorEntry>, String> {
    let dtype = raw.dtype.or(storage.dtype);
    let dtype = dtype.ok_or("nothing tells its element type")?;
    let mut dims = raw.shape.iter();
    let shape: Option<Vec<usize>> = dims.clone().map(|&d| usize::try_from(d).ok()).collect();
    let bytes = dims.try_fold(dtype.size(), |n, &dim| n.checked_mul(dim));
    let (Some(shape), Some(bytes)) = (shape, bytes) else {
        return Ok(None);
    };
    if raw.strides.len() != shape.len() {
        return Err("shape and strides differ in length".to_owned());
    }
    let strides = ordered(&shape, raw.strides.clone().into());
    if strides.is_some() && !is_dense(&shape, &raw.strides) {
        return Err(format!(
            "its strides {:?} for shape {shape:?} leave gaps or repeat elements; make it contiguous and save it again",
            raw.strides
        ));
    }
    let begin = raw.offset.checked_mul(dtype.size());
    let end = begin.and_then(|begin| begin.checked_add(bytes));
    let offset = match (bytes, begin, end) {
        (0, ..) => storage.offset,
        (_, Some(begin), Some(end)) if end <= storage.bytes => storage.offset + begin,
        _ => {
            return Err(format!(
                "it needs {bytes} bytes from element {} on, but its storage '{}' has {}",
                raw.offset, storage.key, storage.bytes
            ));
        }
    };
    Ok(Some(TensorEntry {
        name: name.to_owned(),
        dtype,
        shape,
        source: 0,
        offset,
        bytes,
        strides,
    }))
}

/// Refuses more storages or tensors than any honest file has.
fn check_count(count: usize) -> std::result::Result<(), String> {
    if count > TENSORS_MAX {
        return Err(format!("more than {TENSORS_MAX} storages"));
    }
    Ok(())
}
