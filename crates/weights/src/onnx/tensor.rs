//! One initialiser: name, type, shape, and where its numbers are, of the several ways to store them.

use lowtide_core::Dtype;

use super::wire::{Field, Part, Wire};
use crate::header::{NAME_BYTES_MAX, RANK_MAX};
use crate::{Error, Result, TensorEntry};

/// The most bytes of numbers that are spelt out one by one and so have to be put together in memory, of one file.
const DECODED_BYTES_MAX: usize = 64 << 20;
/// The most parts that the numbers of one tensor may come in; writers make one.
const PARTS_MAX: usize = 1 << 16;
/// Which of a checkpoint's sources: the file, and the numbers that had to be put together.
const IN_FILE: usize = 0;
const DECODED: usize = 1;

/// Numbers that are not a range of the file as they are.
#[derive(Debug, Default)]
pub(super) struct Decoded(pub(super) Vec<u8>);

/// A tensor's fields as they come, in any order.
#[derive(Default)]
struct Raw {
    name: Option<String>,
    dims: Vec<u64>,
    code: u64,
    /// `raw_data`.
    raw: Option<Part>,
    /// Packed floats, of `float_data` and `double_data`.
    packed: Vec<Part>,
    /// Floats one by one.
    single: Vec<u8>,
    /// `int32_data`, `int64_data`, `uint64_data`.
    ints: Vec<u64>,
    elsewhere: bool,
}

/// Reads a `TensorProto`; `None` for what is never a weight, such as texts. `name` goes before the tensor's own.
pub(super) fn read(
    wire: &mut Wire,
    part: Part,
    name: Option<&str>,
    decoded: &mut Decoded,
) -> Result<Option<TensorEntry>> {
    let mut raw = Raw::default();
    let mut rest = part;
    while let Some((number, field)) = wire.field(&mut rest)? {
        raw.take(wire, part.at, number, field)?;
    }
    let own = raw.name.take();
    let tensor = name.map(str::to_owned).or(own).unwrap_or_default();
    if tensor.is_empty() {
        return Ok(None);
    }
    raw.entry(wire, part.at, tensor, decoded)
}

impl Raw {
    fn take(&mut self, wire: &mut Wire, at: u64, number: u64, field: Field) -> Result<()> {
        match (number, field) {
            (1, Field::Int(dim)) => self.dims.push(dim),
            (1, Field::Part(mut packed)) => {
                while packed.bytes() > 0 && self.dims.len() <= RANK_MAX {
                    self.dims.push(wire.int(&mut packed)?);
                }
            }
            (2, Field::Int(code)) => self.code = code,
            (3, Field::Part(_)) => {
                return Err(wire.fault(at, "a tensor in segments, which no exporter writes"));
            }
            (4 | 10, Field::Part(part)) => {
                if self.packed.len() == PARTS_MAX {
                    return Err(wire.fault(at, too_many()));
                }
                self.packed.push(part);
            }
            (4, Field::Four(bytes)) => self.single.extend(bytes),
            (10, Field::Eight(bytes)) => self.single.extend(bytes),
            (5 | 7 | 11, Field::Int(value)) => self.ints.push(value),
            (5 | 7 | 11, Field::Part(mut packed)) => {
                while packed.bytes() > 0 {
                    if self.ints.len() >= DECODED_BYTES_MAX / 8 {
                        return Err(wire.fault(at, too_many()));
                    }
                    self.ints.push(wire.int(&mut packed)?);
                }
            }
            (8, Field::Part(part)) => {
                self.name = wire.text(part, NAME_BYTES_MAX as u64)?;
                if self.name.is_none() {
                    let why = format!(
                        "a tensor's name of {} bytes, or one that is not UTF-8; the limit is {NAME_BYTES_MAX}",
                        part.bytes()
                    );
                    return Err(wire.fault(part.at, why));
                }
            }
            (9, Field::Part(part)) => self.raw = Some(part),
            (13, Field::Part(_)) => self.elsewhere = true,
            (14, Field::Int(location)) => self.elsewhere |= location != 0,
            _ => {}
        }
        if self.dims.len() > RANK_MAX {
            let why = format!("a tensor of more than {RANK_MAX} dimensions");
            return Err(wire.fault(at, why));
        }
        Ok(())
    }

    fn entry(
        self,
        wire: &mut Wire,
        at: u64,
        name: String,
        decoded: &mut Decoded,
    ) -> Result<Option<TensorEntry>> {
        let Some(dtype) = dtype(self.code) else {
            return match self.code {
                // Texts and complex numbers.
                8 | 14 | 15 => Ok(None),
                code => Err(wire.fault(at, format!("tensor '{name}' of the unknown type {code}"))),
            };
        };
        if self.elsewhere {
            let why = format!(
                "the numbers of tensor '{name}' are in another file, which is not read; export the model into one file"
            );
            return Err(wire.fault(at, why));
        }
        let shape: Option<Vec<usize>> =
            self.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let mut dims = self.dims.iter();
        let bytes = dims.try_fold(dtype.size(), |n, &dim| n.checked_mul(dim));
        let (Some(shape), Some(bytes)) = (shape, bytes) else {
            return Err(Error::Overflow {
                file: wire.file(),
                tensor: name,
                shape: self.dims,
            });
        };
        let (source, offset, found) = self.place(wire, at, dtype, decoded)?;
        if found != bytes {
            let why = format!(
                "tensor '{name}' of shape {shape:?} and type {dtype} needs {bytes} bytes and has {found}"
            );
            return Err(wire.fault(at, why));
        }
        Ok(Some(TensorEntry {
            name,
            dtype,
            shape,
            source,
            offset,
            bytes,
            strides: None,
        }))
    }

    /// Source, first byte and length of the numbers.
    fn place(
        &self,
        wire: &mut Wire,
        at: u64,
        dtype: Dtype,
        decoded: &mut Decoded,
    ) -> Result<(usize, u64, u64)> {
        if let Some(raw) = self.raw {
            return Ok((IN_FILE, raw.at, raw.bytes()));
        }
        if let ([packed], true) = (self.packed.as_slice(), self.single.is_empty()) {
            return Ok((IN_FILE, packed.at, packed.bytes()));
        }
        let begin = decoded.0.len();
        let more = self.packed.iter().map(|part| part.bytes()).sum::<u64>()
            + self.single.len() as u64
            + self.ints.len() as u64 * dtype.size();
        if more == 0 {
            // Nothing to put together, and so perhaps no source for it.
            return Ok((IN_FILE, at, 0));
        }
        if begin as u64 + more > DECODED_BYTES_MAX as u64 {
            return Err(wire.fault(at, too_many()));
        }
        for &part in &self.packed {
            wire.copy(part, &mut decoded.0)?;
        }
        decoded.0.extend(&self.single);
        for value in &self.ints {
            let bytes = value.to_le_bytes();
            decoded.0.extend(&bytes[..dtype.size() as usize]);
        }
        let length = decoded.0.len() - begin;
        Ok((DECODED, begin as u64, length as u64))
    }
}

fn too_many() -> String {
    format!(
        "more than {} MiB of numbers that are spelt out one by one; save it with raw data",
        DECODED_BYTES_MAX >> 20
    )
}

/// `TensorProto.DataType`.
fn dtype(code: u64) -> Option<Dtype> {
    Some(match code {
        1 => Dtype::F32,
        2 => Dtype::U8,
        3 => Dtype::I8,
        4 => Dtype::U16,
        5 => Dtype::I16,
        6 => Dtype::I32,
        7 => Dtype::I64,
        9 => Dtype::Bool,
        10 => Dtype::F16,
        11 => Dtype::F64,
        12 => Dtype::U32,
        13 => Dtype::U64,
        16 => Dtype::Bf16,
        17 => Dtype::F8E4M3,
        19 => Dtype::F8E5M2,
        _ => return None,
    })
}
