//! Bytes one after the other, out of a part of a file.

use crate::pickle::Fault;
use crate::{Error, Result, Source};

/// How much is read at a time, in bytes.
const WINDOW_BYTES: u64 = 64 << 10;
/// The longest text that is kept, in bytes: names, never documents.
const TEXT_BYTES_MAX: u64 = 4096;

/// A position in a part of a file.
pub(crate) struct Stream<'a> {
    source: &'a Source,
    /// The window's first byte in the file.
    start: u64,
    window: Vec<u8>,
    /// The next byte, in the window.
    next: usize,
    /// Where the part ends.
    end: u64,
}

impl<'a> Stream<'a> {
    /// Stands at `at`; nothing from `end` on is read.
    pub(crate) fn new(source: &'a Source, at: u64, end: u64) -> Stream<'a> {
        let end = end.min(source.byte_len());
        Stream {
            source,
            start: at.min(end),
            window: Vec::new(),
            next: 0,
            end,
        }
    }

    /// The next byte's offset in the file.
    pub(crate) fn at(&self) -> u64 {
        self.start + self.next as u64
    }

    /// The file's error for what is wrong with it.
    pub(crate) fn fault(&self, fault: Fault) -> Error {
        Error::Pickle {
            file: self.source.name(),
            offset: fault.at,
            why: fault.why,
        }
    }

    fn ended(&self) -> Error {
        self.fault(Fault {
            at: self.at(),
            why: "it ends in the middle".to_owned(),
        })
    }

    pub(crate) fn byte(&mut self) -> Result<u8> {
        if self.next == self.window.len() {
            let at = self.at();
            let length = (self.end - at).min(WINDOW_BYTES);
            if length == 0 {
                return Err(self.ended());
            }
            self.window.resize(length as usize, 0);
            (self.start, self.next) = (at, 0);
            if let Err(error) = self.source.read_at(at, &mut self.window) {
                self.window.clear();
                return Err(error);
            }
        }
        self.next += 1;
        Ok(self.window[self.next - 1])
    }

    /// A little-endian number of up to 8 bytes.
    pub(crate) fn int(&mut self, bytes: usize) -> Result<u64> {
        let mut value = 0;
        for index in 0..bytes.min(8) {
            value |= u64::from(self.byte()?) << (8 * index);
        }
        Ok(value)
    }

    /// Passes over so many bytes.
    pub(crate) fn skip(&mut self, bytes: u64) -> Result<()> {
        if bytes > self.end - self.at() {
            return Err(self.ended());
        }
        let at = self.at() + bytes;
        if bytes <= (self.window.len() - self.next) as u64 {
            self.next += bytes as usize;
        } else {
            self.window.clear();
            (self.start, self.next) = (at, 0);
        }
        Ok(())
    }

    /// A text of so many bytes; `None`, and passed over, where it is too long for a name or not UTF-8.
    pub(crate) fn text(&mut self, length: u64) -> Result<Option<String>> {
        if length > TEXT_BYTES_MAX {
            return self.skip(length).map(|()| None);
        }
        let mut text = Vec::with_capacity(length as usize);
        for _ in 0..length {
            text.push(self.byte()?);
        }
        Ok(String::from_utf8(text).ok())
    }

    /// A text up to the end of its line.
    pub(crate) fn line(&mut self) -> Result<String> {
        let at = self.at();
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                byte if (line.len() as u64) < TEXT_BYTES_MAX => line.push(byte),
                _ => {
                    let why = format!("a line of more than {TEXT_BYTES_MAX} bytes");
                    return Err(self.fault(Fault { at, why }));
                }
            }
        }
        let why = "a line that is not UTF-8".to_owned();
        String::from_utf8(line).map_err(|_| self.fault(Fault { at, why }))
    }
}
