//! (f) A worker that ends leaves nothing on the GPU, and its successor has the weights again from memory that its parent
//! kept. The parent has no context of its own here.

use crate::idle::until;
use crate::sizes::SPARE;
use crate::streaming::fill;
use crate::table::{Outcome, Table, mib};
use lowtide_cuda::telemetry::{Memory, Telemetry};
use lowtide_cuda::{
    Buffer, Error, Event, Gpu, Pages, Pinned, checksum, checksum_on_host, memory_file,
};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The argument that makes a child of this program.
pub(crate) const CHILD: &str = "child";
/// The first piece of the cache that is copied.
const FIRST: usize = 16 << 20;
/// What others on the device may do meanwhile.
const SLACK: u64 = 16 << 20;

fn host(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::Host {
        what,
        reason: error.to_string(),
    }
}

/// What a child said: milliseconds since it began, and the sum of what it copied.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    opened: f64,
    pinned: f64,
    first: f64,
    all: f64,
    sum: u64,
}

impl Said {
    fn line(&self) -> String {
        format!(
            "said {} {} {} {} {}",
            self.opened, self.pinned, self.first, self.all, self.sum
        )
    }

    fn parse(line: &str) -> Option<Said> {
        let mut words = line.strip_prefix("said ")?.split_whitespace();
        let mut time = || words.next()?.parse().ok();
        let (opened, pinned, first, all) = (time()?, time()?, time()?, time()?);
        Some(Said {
            opened,
            pinned,
            first,
            all,
            sum: words.next()?.parse().ok()?,
        })
    }
}

/// What a child is started with, after [`CHILD`].
struct Order {
    ordinal: usize,
    file: i32,
    bytes: usize,
}

impl Order {
    fn parse(words: &[String]) -> Option<Order> {
        let [ordinal, file, bytes] = words else {
            return None;
        };
        Some(Order {
            ordinal: ordinal.parse().ok()?,
            file: file.parse().ok()?,
            bytes: bytes.parse().ok()?,
        })
    }
}

/// The child: opens, pins what its parent kept, copies it, says when, and waits to be let go. What it says is returned
/// as a line for standard output.
pub(crate) fn child(words: &[String], say: &mut dyn Write) -> Result<(), Error> {
    let begin = Instant::now();
    let since = || begin.elapsed().as_secs_f64() * 1e3;
    let order = Order::parse(words).ok_or_else(|| Error::Host {
        what: "reading a child's order",
        reason: format!("{words:?}: a device, a file and bytes are expected"),
    })?;
    let gpu = Gpu::open(order.ordinal, order.bytes as u64 + SPARE)?;
    let opened = since();
    let file = inherited(order.file)?;
    // SAFETY: the parent does not write while a child runs, and children run one at a time.
    let pages = unsafe { Pages::shared(&file, order.bytes) }?;
    let cache = Pinned::register(gpu.context(), pages)?;
    let pinned = since();
    let mut there = Buffer::new(&gpu, order.bytes)?;
    let mut sum = Buffer::zeroed(&gpu, 8)?;
    gpu.synchronise()?;
    let event = Event::new(&gpu, false)?;
    let (head, rest) = cache.as_slice().split_at(FIRST.min(order.bytes));
    let (to_head, to_rest) = there.span_mut().split(head.len());
    // SAFETY: all of it outlives the waits below.
    unsafe { gpu.copies().start(to_head, head) }?;
    gpu.copies().record(&event)?;
    event.synchronise()?;
    let first = since();
    // SAFETY: as above.
    unsafe { gpu.copies().start(to_rest, rest) }?;
    gpu.copies().record(&event)?;
    event.synchronise()?;
    let all = since();
    checksum(&gpu, there.span(), sum.span_mut())?;
    let mut bytes = [0; 8];
    sum.span().download(&mut bytes)?;
    let said = Said {
        opened,
        pinned,
        first,
        all,
        sum: u64::from_le_bytes(bytes),
    };
    writeln!(say, "{}", said.line())
        .and_then(|()| say.flush())
        .map_err(host("speaking to the parent"))?;
    // Until the parent closes its end.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    Ok(())
}

#[cfg(unix)]
fn inherited(file: i32) -> Result<File, Error> {
    use std::os::fd::FromRawFd;
    if file <= 2 {
        return Err(Error::Host {
            what: "taking over shared memory",
            reason: format!("file {file} is not it"),
        });
    }
    // SAFETY: the parent opened it for this child, and nothing else here uses the number.
    Ok(unsafe { File::from_raw_fd(file) })
}

#[cfg(not(unix))]
fn inherited(_file: i32) -> Result<File, Error> {
    Err(Error::Host {
        what: "taking over shared memory",
        reason: "this system has none".to_owned(),
    })
}

#[cfg(unix)]
fn number(file: &File) -> i32 {
    use std::os::fd::AsRawFd;
    file.as_raw_fd()
}

#[cfg(not(unix))]
fn number(_file: &File) -> i32 {
    -1
}

/// What is on the device: all of it, and what the process with that number has, where it is listed.
#[derive(Clone, Copy, Debug)]
struct Seen {
    memory: Option<Memory>,
    listed: Option<u64>,
}

fn look(telemetry: Option<&Telemetry>, process: u32) -> Seen {
    let all = telemetry.and_then(|t| t.processes().ok());
    let own = all.and_then(|all| all.into_iter().find(|one| one.id == process));
    Seen {
        memory: telemetry.and_then(|t| t.memory().ok()),
        listed: own.map(|own| own.used.unwrap_or(0)),
    }
}

/// One life of a child.
struct Life {
    said: Said,
    /// Milliseconds from the start of the program to its first copied bytes, as the parent sees it.
    heard: f64,
    during: Seen,
    after: Seen,
    gone: bool,
    gone_ms: f64,
}

fn live(
    order: &Order,
    telemetry: Option<&Telemetry>,
    kill: bool,
    before: Option<Memory>,
) -> Result<Life, Error> {
    let program = std::env::current_exe().map_err(host("finding this program"))?;
    let begin = Instant::now();
    let mut child = Command::new(program)
        .args([
            CHILD.to_owned(),
            order.ordinal.to_string(),
            order.file.to_string(),
            order.bytes.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(host("starting a child"))?;
    let said = hear(&mut child);
    let heard = begin.elapsed().as_secs_f64() * 1e3;
    let during = look(telemetry, child.id());
    let begin = Instant::now();
    if kill || said.is_err() {
        let _ = child.kill();
    }
    drop(child.stdin.take());
    let process = child.id();
    child.wait().map_err(host("waiting for a child"))?;
    let said = said?;
    let gone = until(Duration::from_secs(3), || {
        let seen = look(telemetry, process);
        seen.listed.is_none() && returned(before, seen.memory)
    });
    Ok(Life {
        said,
        heard,
        during,
        after: look(telemetry, process),
        gone,
        gone_ms: begin.elapsed().as_secs_f64() * 1e3,
    })
}

fn returned(before: Option<Memory>, now: Option<Memory>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => now.used <= before.used + SLACK,
        _ => true,
    }
}

fn hear(child: &mut Child) -> Result<Said, Error> {
    let silent = || Error::Host {
        what: "listening to a child",
        reason: "it ended without a word; what it wrote stands above".to_owned(),
    };
    let output = child.stdout.take().ok_or_else(silent)?;
    let mut line = String::new();
    BufReader::new(output)
        .read_line(&mut line)
        .map_err(host("listening to a child"))?;
    Said::parse(line.trim()).ok_or_else(silent)
}

/// (f)
pub(crate) fn prove(
    table: &mut Table,
    ordinal: usize,
    pci: &str,
    bytes: usize,
) -> Result<(), Error> {
    let file = memory_file(bytes as u64)?;
    // SAFETY: no child runs yet.
    let mut pages = unsafe { Pages::shared(&file, bytes) }?;
    fill(pages.as_mut_slice(), 13);
    let expected = checksum_on_host(pages.as_slice());
    let telemetry = Telemetry::open(pci).ok();
    let before = telemetry.as_ref().and_then(|t| t.memory().ok());
    let order = Order {
        ordinal,
        file: number(&file),
        bytes,
    };
    for (name, kill) in [("killed", true), ("let go", false)] {
        let life = live(&order, telemetry.as_ref(), kill, before)?;
        report(table, name, &life, expected, before, bytes);
    }
    Ok(())
}

fn report(
    table: &mut Table,
    name: &str,
    life: &Life,
    expected: u64,
    before: Option<Memory>,
    bytes: usize,
) {
    let said = &life.said;
    table.demand(
        'f',
        format!("a cache of the parent's reaches a worker ({name} after)"),
        said.sum == expected,
        format!(
            "{}: context after {:.0} ms, pinned after {:.0}, first bytes there after {:.0}, all after {:.0}; the parent hears of it after {:.0}",
            mib(bytes as u64), said.opened, said.pinned, said.first, said.all, life.heard
        ),
    );
    let what = format!("a worker that was {name} leaves 0 MiB");
    let (Some(before), Some(during), Some(after)) = (before, life.during.memory, life.after.memory)
    else {
        table.add(
            'f',
            what,
            Outcome::Skipped,
            "there is no management library here to ask",
        );
        return;
    };
    let listed = life.during.listed.map_or(
        "not listed by its number (another count of processes?)".to_owned(),
        |bytes| format!("listed with {}", mib(bytes)),
    );
    table.demand(
        'f',
        what,
        life.gone && during.used > before.used,
        format!(
            "{listed}; the device had {} used before, {} with it, {} after, {:.0} ms after its end was asked for",
            mib(before.used), mib(during.used), mib(after.used), life.gone_ms
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_childs_word_is_read_back() {
        let said = Said {
            opened: 120.5,
            pinned: 900.25,
            first: 901.0,
            all: 950.0,
            sum: u64::MAX,
        };
        assert_eq!(Said::parse(&said.line()), Some(said));
        assert_eq!(Said::parse("said 1 2"), None);
        assert_eq!(Said::parse("thread panicked"), None);
    }

    #[test]
    fn orders_are_whole_or_none() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let order = Order::parse(&words(&["1", "7", "4096"])).unwrap();
        assert_eq!((order.ordinal, order.file, order.bytes), (1, 7, 4096));
        assert!(Order::parse(&words(&["1", "7"])).is_none());
        assert!(Order::parse(&words(&["1", "x", "2"])).is_none());
    }

    #[test]
    fn memory_is_back_when_no_more_is_used_than_before() {
        let memory = |used| {
            Some(Memory {
                total: 100 << 30,
                free: 0,
                used,
            })
        };
        assert!(returned(memory(5 << 30), memory(5 << 30)));
        assert!(!returned(memory(5 << 30), memory(6 << 30)));
        assert!(returned(None, memory(1)));
    }
}
