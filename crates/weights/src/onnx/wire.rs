//! Protocol buffers on the wire: fields by number, out of a part of a file, without a copy of what is passed over.
//!
//! # Source
//! <https://protobuf.dev/programming-guides/encoding/>

use crate::{Error, Result, Source};

/// How much is read at a time, in bytes.
const WINDOW_BYTES: u64 = 64 << 10;
/// The most fields of one file: the largest graphs have some 100,000 nodes of a dozen fields each.
const FIELDS_MAX: u64 = 1 << 24;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// Any whole number.
    Int(u64),
    /// Four bytes, little endian.
    Four([u8; 4]),
    /// Eight bytes, little endian.
    Eight([u8; 8]),
    /// Text, packed numbers or a message: so many bytes from here on in the file.
    Part(Part),
}

/// A range of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) at: u64,
    pub(super) end: u64,
}

impl Part {
    pub(super) fn bytes(self) -> u64 {
        self.end - self.at
    }
}

/// A reader of fields. Where it stands is told by the caller's [`Part`], so that messages nest without a stack of its
/// own.
pub(super) struct Wire<'a> {
    source: &'a Source,
    /// The window's first byte in the file.
    start: u64,
    window: Vec<u8>,
    fields: u64,
}

impl<'a> Wire<'a> {
    pub(super) fn new(source: &'a Source) -> Wire<'a> {
        Wire {
            source,
            start: 0,
            window: Vec::new(),
            fields: 0,
        }
    }

    /// The whole file as one message.
    pub(super) fn whole(&self) -> Part {
        Part {
            at: 0,
            end: self.source.byte_len(),
        }
    }

    /// What messages call the file.
    pub(super) fn file(&self) -> String {
        self.source.name()
    }

    /// The file's error for what is wrong with it at a place.
    pub(super) fn fault(&self, at: u64, why: impl Into<String>) -> Error {
        Error::Onnx {
            file: self.source.name(),
            offset: at,
            why: why.into(),
        }
    }

    /// The next field of a message, of which `rest` is what has not been read; `None` at its end.
    pub(super) fn field(&mut self, rest: &mut Part) -> Result<Option<(u64, Field)>> {
        if rest.at == rest.end {
            return Ok(None);
        }
        let at = rest.at;
        self.fields += 1;
        if self.fields > FIELDS_MAX {
            return Err(self.fault(at, format!("more than {FIELDS_MAX} fields")));
        }
        let tag = self.int(rest)?;
        let number = tag >> 3;
        if number == 0 {
            return Err(self.fault(at, "a field without a number: damaged or not ONNX"));
        }
        let field = match tag & 7 {
            0 => Field::Int(self.int(rest)?),
            1 => Field::Eight(self.array(rest)?),
            2 => {
                let length = self.int(rest)?;
                if length > rest.bytes() {
                    let why = format!(
                        "a part of {length} bytes where {} are left: half a download or damaged",
                        rest.bytes()
                    );
                    return Err(self.fault(at, why));
                }
                let part = Part {
                    at: rest.at,
                    end: rest.at + length,
                };
                rest.at = part.end;
                Field::Part(part)
            }
            5 => Field::Four(self.array(rest)?),
            kind => {
                let why = format!("a field of kind {kind}, which ONNX does not use");
                return Err(self.fault(at, why));
            }
        };
        Ok(Some((number, field)))
    }

    /// A number of up to ten bytes, seven bits each.
    pub(super) fn int(&mut self, rest: &mut Part) -> Result<u64> {
        let at = rest.at;
        let mut value = 0;
        for index in 0..10 {
            let byte = self.byte(rest)?;
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.fault(at, "a number of more than ten bytes"))
    }

    /// A text; `None` where it is longer than `limit` bytes or not UTF-8.
    pub(super) fn text(&mut self, part: Part, limit: u64) -> Result<Option<String>> {
        if part.bytes() > limit {
            return Ok(None);
        }
        let mut text = vec![0; part.bytes() as usize];
        self.source.read_at(part.at, &mut text)?;
        Ok(String::from_utf8(text).ok())
    }

    /// Appends the bytes of a part.
    pub(super) fn copy(&mut self, part: Part, out: &mut Vec<u8>) -> Result<()> {
        let begin = out.len();
        out.resize(begin + part.bytes() as usize, 0);
        self.source.read_at(part.at, &mut out[begin..])
    }

    fn array<const N: usize>(&mut self, rest: &mut Part) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.byte(rest)?;
        }
        Ok(bytes)
    }

    fn byte(&mut self, rest: &mut Part) -> Result<u8> {
        if rest.at == rest.end {
            return Err(self.fault(rest.at, "it ends in the middle: half a download or damaged"));
        }
        let inside = rest.at >= self.start && rest.at - self.start < self.window.len() as u64;
        if !inside {
            let length = (self.source.byte_len() - rest.at).min(WINDOW_BYTES);
            self.window.resize(length as usize, 0);
            self.start = rest.at;
            if let Err(error) = self.source.read_at(rest.at, &mut self.window) {
                self.window.clear();
                return Err(error);
            }
        }
        let byte = self.window[(rest.at - self.start) as usize];
        rest.at += 1;
        Ok(byte)
    }
}
