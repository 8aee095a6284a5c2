//! Pickles, read without running them.
//!
//! A pickle is a program for a small stack machine that may call any function of Python's. This machine knows the
//! instructions and calls nothing: it builds plain values, asks a [`Host`] about the few functions that stand for a
//! tensor, and puts an inert [`Value::Object`] wherever a program would make anything else. What a training left in
//! a file (callbacks, optimisers, settings) is so passed over; it can neither stop the reading nor do anything.
//!
//! # Source
//! The instructions: <https://docs.python.org/3/library/pickletools.html>

mod stream;
mod value;

use std::collections::HashMap;

pub(crate) use stream::Stream;
pub(crate) use value::{Id, Known, RawTensor, Value, Values};

/// The most instructions: the largest checkpoints with their optimisers have about a million.
const INSTRUCTIONS_MAX: u64 = 1 << 24;
/// The most values on the stack.
const STACK_MAX: usize = 1 << 20;
/// The most open marks.
const MARKS_MAX: usize = 1 << 16;
/// What one entry of the memo costs, in bytes.
const MEMO_BYTES: u64 = 32;

/// What a pickle cannot be read for; the caller knows the file.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Where in the file.
    pub(crate) at: u64,
    /// What is wrong.
    pub(crate) why: String,
}

/// Who knows what names and storages mean.
pub(crate) trait Host {
    /// The value of a name such as `torch FloatStorage`.
    fn global(&mut self, module: &str, name: &str) -> Value;
    /// Calls what [`Host::global`] gave; `None` where it has no meaning here.
    fn call(
        &mut self,
        function: Id,
        arguments: Id,
        values: &mut Values,
    ) -> Result<Option<Id>, String>;
    /// The value of a persistent id: a storage.
    fn persistent(&mut self, id: Id, values: &mut Values) -> Result<Id, String>;
}

/// Runs one pickle from where `stream` stands; `stream` then stands behind it.
///
/// # Memory
/// Bounded by what [`Values`] accepts.
pub(crate) fn run(
    stream: &mut Stream<'_>,
    values: &mut Values,
    host: &mut dyn Host,
) -> crate::Result<Id> {
    let mut machine = Machine {
        stream,
        values,
        host,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        operand: 0,
    };
    machine.run()
}

struct Machine<'a, 's> {
    stream: &'a mut Stream<'s>,
    values: &'a mut Values,
    host: &'a mut dyn Host,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Where the instruction begins, for messages.
    operand: u64,
}

/// A fault without its place, or the file's own error.
enum Stop {
    Why(String),
    Read(crate::Error),
}

impl From<String> for Stop {
    fn from(why: String) -> Stop {
        Stop::Why(why)
    }
}

impl From<&str> for Stop {
    fn from(why: &str) -> Stop {
        Stop::Why(why.to_owned())
    }
}

impl From<crate::Error> for Stop {
    fn from(error: crate::Error) -> Stop {
        Stop::Read(error)
    }
}

type Step<T> = Result<T, Stop>;

impl Machine<'_, '_> {
    fn run(&mut self) -> crate::Result<Id> {
        for _ in 0..INSTRUCTIONS_MAX {
            self.operand = self.stream.at();
            match self.step() {
                Ok(None) => {}
                Ok(Some(result)) => return Ok(result),
                Err(Stop::Read(error)) => return Err(error),
                Err(Stop::Why(why)) => return Err(self.fault(why)),
            }
        }
        Err(self.fault(format!("more than {INSTRUCTIONS_MAX} instructions")))
    }

    fn fault(&self, why: String) -> crate::Error {
        self.stream.fault(Fault {
            at: self.operand,
            why,
        })
    }

    /// One instruction; the result of the program where it is the last.
    fn step(&mut self) -> Step<Option<Id>> {
        let code = self.stream.byte()?;
        match code {
            b'.' => return self.pop().map(Some),
            // PROTO and FRAME: nothing to do, everything is bounded anyway.
            0x80 => drop(self.stream.byte()?),
            0x95 => drop(self.stream.int(8)?),
            b'(' => self.mark()?,
            b'0' => self.drop_top()?,
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }
            b'N' => self.make(Value::None)?,
            0x88 => self.make(Value::Bool(true))?,
            0x89 => self.make(Value::Bool(false))?,
            b'I' | b'L' | b'K' | b'M' | b'J' | 0x8a | 0x8b => self.integer(code)?,
            b'F' => {
                self.stream.line()?;
                self.make(Value::Float)?;
            }
            b'G' => {
                self.stream.skip(8)?;
                self.make(Value::Float)?;
            }
            b'U' | b'T' | b'X' | 0x8c | 0x8d => self.text(code)?,
            b'S' | b'V' => self.quoted(code)?,
            b'C' | b'B' | 0x8e | 0x96 => self.bytes(code)?,
            b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j' => self.memo(code)?,
            b')' | b't' | 0x85..=0x87 => self.tuple(code)?,
            b']' | b'l' | 0x8f | 0x90 | 0x91 | b'a' | b'e' => self.list(code)?,
            b'}' | b'd' | b's' | b'u' => self.dict(code)?,
            b'c' | 0x93 => self.global(code)?,
            b'R' | 0x81 | 0x92 | b'b' | b'i' | b'o' | 0x82..=0x84 => self.object(code)?,
            b'Q' => {
                let id = self.pop()?;
                let value = self.host.persistent(id, self.values)?;
                self.push(value)?;
            }
            0x97 | 0x98 => return Err("buffers outside the pickle are not known here".into()),
            other => return Err(format!("0x{other:02x} is no instruction of a pickle").into()),
        }
        Ok(None)
    }

    fn push(&mut self, id: Id) -> Step<()> {
        if self.stack.len() == STACK_MAX {
            return Err(format!("more than {STACK_MAX} values on the stack").into());
        }
        self.stack.push(id);
        Ok(())
    }

    fn make(&mut self, value: Value) -> Step<()> {
        let id = self.values.add(value)?;
        self.push(id)
    }

    fn pop(&mut self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(id) if self.stack.len() >= floor => Ok(id),
            _ => Err("it takes a value that is not there".into()),
        }
    }

    fn top(&self) -> Step<Id> {
        let last = self.stack.last().copied();
        last.ok_or_else(|| "it uses a value that is not there".into())
    }

    /// POP also removes a mark that is on top.
    fn drop_top(&mut self) -> Step<()> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn mark(&mut self) -> Step<()> {
        if self.marks.len() == MARKS_MAX {
            return Err(format!("more than {MARKS_MAX} open marks").into());
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// The values above the last mark, which goes.
    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("it uses a mark that is not there")?;
        Ok(self.stack.split_off(mark))
    }

    fn integer(&mut self, code: u8) -> Step<()> {
        let value = match code {
            b'K' => Value::Int(self.stream.int(1)? as i64),
            b'M' => Value::Int(self.stream.int(2)? as i64),
            b'J' => Value::Int(i64::from(self.stream.int(4)? as u32 as i32)),
            0x8a | 0x8b => {
                let length = self.stream.int(if code == 0x8a { 1 } else { 4 })?;
                if length > 8 {
                    self.stream.skip(length)?;
                    // Larger than any count; nothing of a tensor is so large.
                    Value::object("int", None)
                } else {
                    let bits = self.stream.int(length as usize)?;
                    let unused = 64 - 8 * length as u32;
                    // Two's complement of so many bytes.
                    Value::Int(match unused {
                        64 => 0,
                        unused => ((bits << unused) as i64) >> unused,
                    })
                }
            }
            _ => match self.stream.line()?.trim_end_matches('L') {
                "00" if code == b'I' => Value::Bool(false),
                "01" if code == b'I' => Value::Bool(true),
                digits => digits
                    .parse()
                    .map_or_else(|_| Value::object("int", None), Value::Int),
            },
        };
        self.make(value)
    }

    fn text(&mut self, code: u8) -> Step<()> {
        let length = match code {
            b'U' | 0x8c => self.stream.int(1)?,
            b'T' | b'X' => self.stream.int(4)?,
            _ => self.stream.int(8)?,
        };
        let value = match self.stream.text(length)? {
            Some(text) => Value::Text(text.into()),
            None => Value::object("str", None),
        };
        self.make(value)
    }

    /// Texts of protocol 0, as Python would print them. Names have nothing to escape; anything else is inert.
    fn quoted(&mut self, code: u8) -> Step<()> {
        let line = self.stream.line()?;
        let inside = match code {
            b'V' => Some(line.as_str()),
            _ => ['\'', '"']
                .into_iter()
                .find_map(|quote| line.strip_prefix(quote)?.strip_suffix(quote)),
        };
        let value = match inside {
            Some(text) if !text.contains('\\') => Value::Text(text.into()),
            _ => Value::object("str", None),
        };
        self.make(value)
    }

    fn bytes(&mut self, code: u8) -> Step<()> {
        let length = match code {
            b'C' => self.stream.int(1)?,
            b'B' => self.stream.int(4)?,
            _ => self.stream.int(8)?,
        };
        self.stream.skip(length)?;
        self.make(Value::object("bytes", None))
    }

    fn memo(&mut self, code: u8) -> Step<()> {
        let key = match code {
            b'p' | b'g' => {
                let line = self.stream.line()?;
                let key = line.parse();
                key.map_err(|_| format!("'{line}' is no place in the memo"))?
            }
            b'q' | b'h' => self.stream.int(1)? as u32,
            b'r' | b'j' => self.stream.int(4)? as u32,
            _ => self.memo.len() as u32,
        };
        if matches!(code, b'g' | b'h' | b'j') {
            let found = self.memo.get(&key).copied();
            let id = found.ok_or_else(|| format!("it takes value {key}, which was not kept"))?;
            return self.push(id);
        }
        let top = self.top()?;
        if self.memo.insert(key, top).is_none() {
            self.values.spend(MEMO_BYTES)?;
        }
        Ok(())
    }

    fn tuple(&mut self, code: u8) -> Step<()> {
        let items = match code {
            b')' => Vec::new(),
            b't' => self.pop_mark()?,
            _ => {
                let mut items = Vec::with_capacity(3);
                for _ in 0..=(code - 0x85) {
                    items.push(self.pop()?);
                }
                items.reverse();
                items
            }
        };
        self.values.spend(4 * items.len() as u64)?;
        self.make(Value::Tuple(items.into()))
    }

    /// Lists and sets, which are the same to us.
    fn list(&mut self, code: u8) -> Step<()> {
        let items = match code {
            b']' | 0x8f => return self.make(Value::List(Vec::new())),
            b'a' => vec![self.pop()?],
            _ => self.pop_mark()?,
        };
        self.values.spend(8 * items.len() as u64)?;
        if matches!(code, b'l' | 0x91) {
            return self.make(Value::List(items));
        }
        let list = self.top()?;
        // Anything else that is appended to is a list of its own making.
        if let Value::List(list) = self.values.get_mut(list) {
            list.extend(items);
        }
        Ok(())
    }

    fn dict(&mut self, code: u8) -> Step<()> {
        let items = match code {
            b'}' => return self.make(Value::Dict(Vec::new())),
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        if items.len() % 2 == 1 {
            return Err("a key without a value".into());
        }
        self.values.spend(8 * items.len() as u64)?;
        let pairs = items.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        if code == b'd' {
            return self.make(Value::Dict(pairs.collect()));
        }
        let dict = self.top()?;
        if let Value::Dict(dict) = self.values.get_mut(dict) {
            dict.extend(pairs);
        }
        Ok(())
    }

    fn global(&mut self, code: u8) -> Step<()> {
        let value = if code == b'c' {
            let module = self.stream.line()?;
            let name = self.stream.line()?;
            self.host.global(&module, &name)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (self.values.get(module), self.values.get(name)) {
                (Value::Text(module), Value::Text(name)) => self.host.global(module, name),
                _ => return Err("a global whose name is not text".into()),
            }
        };
        self.make(value)
    }

    fn object(&mut self, code: u8) -> Step<()> {
        match code {
            b'b' => {
                let state = self.pop()?;
                let object = self.top()?;
                if let Value::Object { state: place, .. } = self.values.get_mut(object) {
                    *place = Some(state);
                }
                Ok(())
            }
            b'i' => {
                let (module, name) = (self.stream.line()?, self.stream.line()?);
                self.pop_mark()?;
                self.make(Value::object(&format!("{module}.{name}"), None))
            }
            b'o' => {
                self.pop_mark()?;
                self.make(Value::object("object", None))
            }
            0x82..=0x84 => {
                self.stream.int(1 << (code - 0x82))?;
                self.make(Value::object("extension", None))
            }
            _ => {
                if code == 0x92 {
                    // Arguments by name belong to nothing we know.
                    self.pop()?;
                }
                let (arguments, function) = (self.pop()?, self.pop()?);
                let known = match code {
                    b'R' | 0x81 => self.host.call(function, arguments, self.values)?,
                    _ => None,
                };
                match known {
                    Some(id) => self.push(id),
                    None => {
                        let class = self.values.class_of(function).to_owned();
                        self.make(Value::object(&class, None))
                    }
                }
            }
        }
    }
}
