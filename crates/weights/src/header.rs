//! One safetensors header: eight bytes of length, JSON, and the promise that the tensors fill the rest of the file.
//!
//! # Source
//! The format: <https://github.com/huggingface/safetensors#format>

mod raw;

use std::collections::HashMap;

use lowtide_core::Dtype;

use crate::{Error, Result, TensorEntry};
use raw::RawTensor;

/// Bytes before the header: its length, little endian.
pub const PREFIX_BYTES: u64 = 8;
/// The longest header that is read, in bytes: the format's own limit.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;
/// The most tensors of one file: the largest models published have about 100,000 in all their shards.
pub const TENSORS_MAX: usize = 1 << 18;
/// The longest tensor name in bytes: real ones stay below 200.
pub const NAME_BYTES_MAX: usize = 1024;
/// The most dimensions: a video convolution has 5.
pub const RANK_MAX: usize = 8;

/// What a header says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the tensors begin, in bytes from the start of the file.
    pub data_start: u64,
    /// In the order in which they lie in the file; `source` is 0.
    pub tensors: Vec<TensorEntry>,
    /// The free text under `__metadata__`, in the file's order.
    pub metadata: Vec<(String, String)>,
}

/// How many bytes the header has, by the first bytes of a file; checked against the file and the limit.
///
/// # Errors
/// [`Error::Truncated`], [`Error::HeaderBeyondFile`], [`Error::HeaderTooLarge`], and [`Error::GitLfsPointer`] or
/// [`Error::OtherFormat`] where the bytes are recognisably something else.
pub fn header_bytes(start: &[u8], file_len: u64, name: &str) -> Result<u64> {
    let Some(prefix) = start.first_chunk::<{ PREFIX_BYTES as usize }>() else {
        let found = file_len.min(start.len() as u64);
        return Err(Error::Truncated {
            file: name.to_owned(),
            needed: PREFIX_BYTES,
            found,
        });
    };
    let length = u64::from_le_bytes(*prefix);
    // Text and archives read as a length are astronomical, so only a length that fails needs this look.
    let available = file_len.saturating_sub(PREFIX_BYTES);
    if length > available || length > HEADER_BYTES_MAX {
        recognise(start, name)?;
    }
    if length > available {
        return Err(Error::HeaderBeyondFile {
            file: name.to_owned(),
            header: length,
            found: file_len,
        });
    }
    if length > HEADER_BYTES_MAX {
        return Err(Error::HeaderTooLarge {
            file: name.to_owned(),
            header: length,
            limit: HEADER_BYTES_MAX,
        });
    }
    Ok(length)
}

/// Reads the header at the start of a safetensors file. `bytes` begins with the file's first byte and must reach to
/// the header's end; what follows is not looked at. `file_len` is the length of the whole file in bytes, `name` what
/// messages call it.
///
/// # Errors
/// Every way in which a header can lie has its own variant of [`Error`]; none panics, and none allocates more than a
/// small multiple of the header.
pub fn parse_header(bytes: &[u8], file_len: u64, name: &str) -> Result<Header> {
    let length = header_bytes(bytes, file_len, name)?;
    let data_start = PREFIX_BYTES + length;
    let text = usize::try_from(data_start)
        .ok()
        .and_then(|end| bytes.get(PREFIX_BYTES as usize..end))
        .ok_or_else(|| Error::Truncated {
            file: name.to_owned(),
            needed: data_start,
            found: bytes.len() as u64,
        })?;
    match text.first() {
        Some(b'{') => {}
        Some(&byte) => {
            return Err(Error::HeaderStart {
                file: name.to_owned(),
                byte,
            });
        }
        None => {
            return Err(Error::Truncated {
                file: name.to_owned(),
                needed: data_start + 2,
                found: file_len,
            });
        }
    }
    let text = std::str::from_utf8(text).map_err(|e| Error::NotUtf8 {
        file: name.to_owned(),
        offset: PREFIX_BYTES + e.valid_up_to() as u64,
    })?;
    let raw = raw::parse(text, name)?;
    let available = file_len - data_start;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for tensor in raw.tensors {
        tensors.push(check_tensor(tensor, data_start, available, name)?);
    }
    tensors.sort_by_key(|t| (t.offset, t.bytes));
    check_names(&tensors, name)?;
    check_cover(&tensors, data_start, file_len, name)?;
    Ok(Header {
        data_start,
        tensors,
        metadata: raw.metadata,
    })
}

/// Says what a file is that is not safetensors, by its first bytes.
fn recognise(start: &[u8], name: &str) -> Result<()> {
    let file = || name.to_owned();
    let other = |found, advice| {
        Err(Error::OtherFormat {
            file: file(),
            found,
            advice,
        })
    };
    let lower = start.get(..16).unwrap_or(start).to_ascii_lowercase();
    if is_git_lfs_pointer(start) {
        Err(Error::GitLfsPointer { file: file() })
    } else if lower.starts_with(b"<!doctype") || lower.starts_with(b"<html") {
        other(
            "a web page",
            "the download was answered by a page: fetch it again, logged in if need be",
        )
    } else if start.starts_with(b"PK\x03\x04") {
        other(
            "a zip archive",
            "a file of torch.save is read when it is opened by its path",
        )
    } else if start.starts_with(b"GGUF") {
        other("a GGUF file", "this version reads safetensors only")
    } else if start.starts_with(b"{") {
        other(
            "JSON text",
            "give the weights, or the folder that holds them and their index",
        )
    } else {
        Ok(())
    }
}

/// Whether this is the text that git-lfs leaves in place of a file.
pub(crate) fn is_git_lfs_pointer(start: &[u8]) -> bool {
    start.starts_with(b"version https://git-lfs")
}

/// Checks one tensor by itself; its place among the others comes later.
fn check_tensor(
    raw: RawTensor,
    data_start: u64,
    available: u64,
    name: &str,
) -> Result<TensorEntry> {
    let RawTensor {
        name: tensor,
        dtype,
        dims,
        rank,
        begin,
        end,
    } = raw;
    let file = name.to_owned();
    if rank > RANK_MAX {
        return Err(Error::TooManyDimensions {
            file,
            tensor,
            dimensions: rank,
            limit: RANK_MAX,
        });
    }
    let dims = &dims[..rank];
    let Some(dtype) = Dtype::from_name(&dtype) else {
        return Err(Error::UnknownDtype {
            file,
            tensor,
            dtype,
        });
    };
    let product = dims
        .iter()
        .try_fold(dtype.size(), |total, &dim| total.checked_mul(dim));
    let shape: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let (Some(needed), Some(shape)) = (product, shape) else {
        return Err(Error::Overflow {
            file,
            tensor,
            shape: dims.to_vec(),
        });
    };
    if begin > end {
        return Err(Error::ReversedOffsets {
            file,
            tensor,
            begin,
            end,
        });
    }
    if end - begin != needed {
        return Err(Error::WrongByteRange {
            file,
            tensor,
            shape: dims.to_vec(),
            dtype,
            needed,
            begin,
            end,
        });
    }
    if end > available {
        return Err(Error::OutOfRange {
            file,
            tensor,
            end,
            available,
        });
    }
    Ok(TensorEntry {
        name: tensor,
        dtype,
        shape,
        source: 0,
        offset: data_start + begin,
        bytes: needed,
        strides: None,
    })
}

/// Refuses two tensors of one name.
fn check_names(tensors: &[TensorEntry], name: &str) -> Result<()> {
    let mut seen = HashMap::with_capacity(tensors.len());
    for tensor in tensors {
        if seen.insert(tensor.name.as_str(), ()).is_some() {
            return Err(Error::DuplicateTensor {
                file: name.to_owned(),
                tensor: tensor.name.clone(),
            });
        }
    }
    Ok(())
}

/// Refuses overlaps, holes and leftovers: the tensors, in order of offset, must tile the data.
fn check_cover(tensors: &[TensorEntry], data_start: u64, file_len: u64, name: &str) -> Result<()> {
    let file = || name.to_owned();
    let mut at = data_start;
    let mut before: Option<&TensorEntry> = None;
    for tensor in tensors {
        let (begin, end) = (tensor.offset - data_start, at - data_start);
        if tensor.offset < at {
            let other = before.map(|t| t.name.clone()).unwrap_or_default();
            return Err(Error::Overlap {
                file: file(),
                tensor: tensor.name.clone(),
                other,
                begin,
                end,
            });
        }
        if tensor.offset > at {
            return Err(Error::Hole {
                file: file(),
                tensor: tensor.name.clone(),
                begin: end,
                end: begin,
            });
        }
        at += tensor.bytes;
        before = Some(tensor);
    }
    match file_len - at {
        0 => Ok(()),
        extra => Err(Error::TrailingBytes {
            file: file(),
            tensor: before.map(|t| t.name.clone()),
            extra,
        }),
    }
}
