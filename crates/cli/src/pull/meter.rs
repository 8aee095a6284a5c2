//! How far a pull is: a line on a terminal, a line a file elsewhere, or lines of JSON.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lowtide_core::Bytes;
use serde_json::{Value, json};

use super::Count;
use crate::console;

/// A terminal is written to no more often than this.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// A program is told no more often than this.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Where it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Silent,
    Lines,
    Bar,
    Json,
}

/// Counts bytes and shows them. It is told from several threads.
#[derive(Debug)]
pub(crate) struct Meter {
    kind: Kind,
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    count: Count,
    at: Option<Instant>,
    /// Whether a line stands on the terminal that is not ended.
    open: bool,
}

impl Meter {
    /// For people, on standard error; for nobody where `shown` is false.
    pub(crate) fn on_terminal(shown: bool) -> Meter {
        let kind = match (shown, std::io::stderr().is_terminal()) {
            (false, _) => Kind::Silent,
            (true, true) => Kind::Bar,
            (true, false) => Kind::Lines,
        };
        Meter {
            kind,
            shown: Mutex::default(),
        }
    }

    /// For programs, on standard output.
    pub(crate) fn json() -> Meter {
        Meter {
            kind: Kind::Json,
            shown: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to come, and what of it is there.
    pub(crate) fn plan(&self, total: u64, there: u64) {
        self.lock().count.plan(total, there);
    }

    /// The same of a pull.
    pub(crate) fn begin(&self, commit: &str, files: usize, bytes: u64, there: u64) {
        self.plan(bytes, there);
        match self.kind {
            Kind::Json => say(&json!({
                "event": "planned", "commit": commit, "files": files, "bytes": bytes, "there": there,
            })),
            Kind::Lines => {
                let (bytes, there) = (Bytes(bytes), Bytes(there));
                console::note(&format!("{files} files, {bytes}; {there} of them are here"));
            }
            Kind::Bar | Kind::Silent => {}
        }
    }

    /// Something worth saying.
    pub(crate) fn note(&self, text: &str) {
        if self.kind == Kind::Json {
            say(&json!({ "event": "note", "text": text }));
        }
    }

    /// A file goes on.
    pub(crate) fn resumed(&self, path: &str, bytes: u64) {
        self.lock().count.resumed(bytes);
        match self.kind {
            Kind::Json => say(&json!({ "event": "resumed", "path": path, "bytes": bytes })),
            Kind::Lines => console::note(&format!("{path} goes on after {}", Bytes(bytes))),
            Kind::Bar | Kind::Silent => {}
        }
    }

    /// So many more bytes are there.
    pub(crate) fn add(&self, bytes: u64) {
        let mut shown = self.lock();
        shown.count.add(bytes);
        self.show(&mut shown);
    }

    /// So many are gone again.
    pub(crate) fn lose(&self, bytes: u64) {
        self.lock().count.lose(bytes);
    }

    /// A file is there.
    pub(crate) fn done(&self, path: &str, bytes: u64) {
        match self.kind {
            Kind::Json => say(&json!({ "event": "file", "path": path, "bytes": bytes })),
            Kind::Lines => console::note(&format!("{path} ({})", Bytes(bytes))),
            Kind::Bar | Kind::Silent => {}
        }
    }

    /// Takes the line off the terminal, for another text.
    pub(crate) fn clear(&self) {
        let mut shown = self.lock();
        if std::mem::take(&mut shown.open) {
            // A terminal that went away is no reason to stop.
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }

    /// The end of it.
    pub(crate) fn finish(&self) {
        self.clear();
    }

    fn show(&self, shown: &mut Shown) {
        let every = match self.kind {
            Kind::Bar => SHOW_EVERY,
            Kind::Json => TELL_EVERY,
            Kind::Silent | Kind::Lines => return,
        };
        let now = Instant::now();
        if shown.at.is_some_and(|at| now - at < every) {
            return;
        }
        shown.at = Some(now);
        let count = &mut shown.count;
        let per_second = count.speed(now);
        match self.kind {
            Kind::Json => say(&json!({
                "event": "progress", "bytes": count.there(), "of": count.total(),
                "bytes_per_s": per_second.map(|speed| speed as u64), "remaining_s": count.remaining(per_second),
            })),
            _ => {
                let line = count.line(per_second);
                shown.open = true;
                let mut stderr = std::io::stderr().lock();
                let _ = write!(stderr, "\r{line}\x1b[K").and_then(|()| stderr.flush());
            }
        }
    }
}

/// One line for programs. A reader that has seen enough is no reason to stop fetching.
fn say(line: &Value) {
    let _ = console::print(&format!("{line}\n"));
}
