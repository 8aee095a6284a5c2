//! What goes over the wire: commands out, replies in. Redis and Valkey speak the same.

use std::io::{self, BufRead, ErrorKind, Read};

/// Longest reply taken apart, bytes: a previewed picture or a request is at most a few MiB.
const REPLY_LEN_MAX: i64 = 512 << 20;

/// How deep replies nest: a list of lists of lists is the deepest that a script of ours makes.
const DEPTH_MAX: u32 = 8;

/// One command, as the server reads it.
#[derive(Clone, Debug, Default)]
pub(super) struct Command {
    parts: usize,
    body: Vec<u8>,
}

impl Command {
    /// A command of this name.
    pub(super) fn new(name: &str) -> Command {
        Command::default().arg(name)
    }

    /// With one more argument.
    #[must_use]
    pub(super) fn arg(mut self, value: impl AsRef<[u8]>) -> Command {
        self.push(value.as_ref());
        self
    }

    /// With one more number.
    #[must_use]
    pub(super) fn number(self, value: impl Into<i128>) -> Command {
        self.arg(value.into().to_string())
    }

    /// With one more number, or an empty text.
    #[must_use]
    pub(super) fn number_or_none(self, value: Option<impl Into<i128>>) -> Command {
        match value {
            Some(value) => self.number(value),
            None => self.arg(""),
        }
    }

    fn push(&mut self, value: &[u8]) {
        self.parts += 1;
        self.body
            .extend_from_slice(format!("${}\r\n", value.len()).as_bytes());
        self.body.extend_from_slice(value);
        self.body.extend_from_slice(b"\r\n");
    }

    /// Appends it to what is sent.
    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("*{}\r\n", self.parts).as_bytes());
        out.extend_from_slice(&self.body);
    }
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Nothing.
    Nil,
    /// A number.
    Int(i64),
    /// A text, perhaps of one line.
    Text(Vec<u8>),
    /// Several.
    List(Vec<Reply>),
    /// What the server complains about.
    Error(String),
}

impl Reply {
    /// Its text, or an empty one: what a hash lacks reads as empty.
    pub(super) fn text(&self) -> String {
        match self {
            Reply::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Reply::Int(number) => number.to_string(),
            Reply::Nil | Reply::List(_) | Reply::Error(_) => String::new(),
        }
    }

    /// Its text, where there is one that is not empty.
    pub(super) fn some(&self) -> Option<String> {
        Some(self.text()).filter(|text| !text.is_empty())
    }

    /// Its bytes, where it has some.
    pub(super) fn bytes(self) -> Option<Vec<u8>> {
        match self {
            Reply::Text(bytes) => Some(bytes),
            Reply::Nil | Reply::Int(_) | Reply::List(_) | Reply::Error(_) => None,
        }
    }

    /// Its number; 0 where it has none. Scores come as texts, and large ones with an exponent.
    pub(super) fn number(&self) -> u64 {
        match self {
            Reply::Int(number) => u64::try_from(*number).unwrap_or_default(),
            _ => number(&self.text()).unwrap_or_default(),
        }
    }

    /// Its number, where it has one.
    pub(super) fn some_number(&self) -> Option<u64> {
        match self {
            Reply::Int(number) => u64::try_from(*number).ok(),
            _ => number(&self.text()),
        }
    }

    /// What is in it; nothing where it is no list.
    pub(super) fn list(self) -> Vec<Reply> {
        match self {
            Reply::List(items) => items,
            Reply::Nil | Reply::Int(_) | Reply::Text(_) | Reply::Error(_) => Vec::new(),
        }
    }
}

fn number(text: &str) -> Option<u64> {
    let whole = text.parse().ok();
    // The cast saturates: what lies beyond is as good as never.
    whole.or_else(|| text.parse::<f64>().ok().map(|number| number as u64))
}

/// Reads one reply.
///
/// # Errors
/// Of the connection; `InvalidData` for what is no reply.
pub(super) fn read(from: &mut impl BufRead) -> io::Result<Reply> {
    read_at(from, DEPTH_MAX)
}

fn read_at(from: &mut impl BufRead, depth: u32) -> io::Result<Reply> {
    let line = line(from)?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| strange(&line))?;
    let length = || match rest.parse::<i64>() {
        Ok(length) if (-1..=REPLY_LEN_MAX).contains(&length) => Ok(length),
        _ => Err(strange(&line)),
    };
    Ok(match kind {
        "+" => Reply::Text(rest.as_bytes().to_vec()),
        "-" => Reply::Error(rest.to_owned()),
        ":" => Reply::Int(rest.parse().map_err(|_| strange(&line))?),
        "$" => match usize::try_from(length()?) {
            Err(_) => Reply::Nil,
            Ok(len) => {
                let mut text = Vec::new();
                from.take(len as u64 + 2).read_to_end(&mut text)?;
                if text.len() != len + 2 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                text.truncate(len);
                Reply::Text(text)
            }
        },
        "*" if depth > 0 => match usize::try_from(length()?) {
            Err(_) => Reply::Nil,
            Ok(len) => {
                let mut items = Vec::new();
                for _ in 0..len {
                    items.push(read_at(from, depth - 1)?);
                }
                Reply::List(items)
            }
        },
        _ => return Err(strange(&line)),
    })
}

/// Longest line, bytes: an error's text.
const LINE_LEN_MAX: u64 = 64 << 10;

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    from.take(LINE_LEN_MAX).read_until(b'\n', &mut line)?;
    match line.strip_suffix(b"\r\n") {
        Some(text) => Ok(String::from_utf8_lossy(text).into_owned()),
        None if line.is_empty() => Err(ErrorKind::UnexpectedEof.into()),
        None => Err(strange(&String::from_utf8_lossy(&line))),
    }
}

fn strange(line: &str) -> io::Error {
    let start: String = line.chars().take(40).collect();
    io::Error::new(
        ErrorKind::InvalidData,
        format!("'{start}' is nothing that Redis says; is something else listening there?"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_written_with_the_lengths_of_its_parts() {
        let mut out = Vec::new();
        let command = Command::new("SET").arg("a\r\n").number(7u32);
        command.number_or_none(None::<u32>).write_to(&mut out);
        assert_eq!(
            out,
            b"*4\r\n$3\r\nSET\r\n$3\r\na\r\n\r\n$1\r\n7\r\n$0\r\n\r\n"
        );
    }

    #[test]
    fn replies_are_read_one_after_the_other() {
        let mut wire: &[u8] =
            b"+OK\r\n:-3\r\n$3\r\na\r\n\r\n$-1\r\n*2\r\n$1\r\nb\r\n*-1\r\n-NO way\r\n";
        let mut next = || read(&mut wire).unwrap();
        assert_eq!(next(), Reply::Text(b"OK".to_vec()));
        assert_eq!(next(), Reply::Int(-3));
        assert_eq!(next(), Reply::Text(b"a\r\n".to_vec()));
        assert_eq!(next(), Reply::Nil);
        assert_eq!(
            next(),
            Reply::List(vec![Reply::Text(b"b".to_vec()), Reply::Nil])
        );
        assert_eq!(next(), Reply::Error("NO way".to_owned()));
    }

    #[test]
    fn what_is_no_reply_is_an_error_and_no_panic() {
        let deep = "*1\r\n".repeat(100);
        let texts: [&[u8]; 8] = [
            b"",
            b"HTTP/1.1 400 Bad Request\r\n",
            b"$5\r\nab\r\n",
            b"$99999999999999\r\n",
            b"*-7\r\n",
            b"\r\n",
            b":x\r\n",
            deep.as_bytes(),
        ];
        for text in texts {
            assert!(read(&mut &*text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn scores_are_numbers() {
        for (text, expected) in [("1700000000000", 1_700_000_000_000), ("1.5e3", 1_500)] {
            let reply = Reply::Text(text.as_bytes().to_vec());
            assert_eq!(reply.some_number(), Some(expected));
        }
        assert_eq!(Reply::Nil.some_number(), None);
    }
}
