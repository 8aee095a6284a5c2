//! How far a pull is: a line on a terminal, a line a file elsewhere, or lines of JSON.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lowtide_core::Bytes;
use serde_json::{Value, json};

use crate::console;

/// A terminal is written to no more often than this.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// A program is told no more often than this.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// The speed is that of so long.
const WINDOW: Duration = Duration::from_secs(5);

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
    count: Mutex<Count>,
}

#[derive(Debug, Default)]
struct Count {
    total: u64,
    there: u64,
    /// Bytes that were here before, and so say nothing about the speed.
    local: u64,
    shown: Option<Instant>,
    /// Whether a line stands on the terminal that is not ended.
    open: bool,
    /// Bytes that came over the network, at times.
    samples: VecDeque<(Instant, u64)>,
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
            count: Mutex::default(),
        }
    }

    /// For programs, on standard output.
    pub(crate) fn json() -> Meter {
        Meter {
            kind: Kind::Json,
            count: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to come, and what of it is there.
    pub(crate) fn plan(&self, total: u64, there: u64) {
        let mut count = self.lock();
        count.total = total;
        count.there = there;
        count.local = there;
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
        self.lock().local += bytes;
        match self.kind {
            Kind::Json => say(&json!({ "event": "resumed", "path": path, "bytes": bytes })),
            Kind::Lines => console::note(&format!("{path} goes on after {}", Bytes(bytes))),
            Kind::Bar | Kind::Silent => {}
        }
    }

    /// So many more bytes are there.
    pub(crate) fn add(&self, bytes: u64) {
        let mut count = self.lock();
        count.there = count.there.saturating_add(bytes);
        self.show(&mut count);
    }

    /// So many are gone again.
    pub(crate) fn lose(&self, bytes: u64) {
        let mut count = self.lock();
        count.there = count.there.saturating_sub(bytes);
        count.samples.clear();
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
        let mut count = self.lock();
        if std::mem::take(&mut count.open) {
            // A terminal that went away is no reason to stop.
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }

    /// The end of it.
    pub(crate) fn finish(&self) {
        self.clear();
    }

    fn show(&self, count: &mut Count) {
        let every = match self.kind {
            Kind::Bar => SHOW_EVERY,
            Kind::Json => TELL_EVERY,
            Kind::Silent | Kind::Lines => return,
        };
        let now = Instant::now();
        if count.shown.is_some_and(|shown| now - shown < every) {
            return;
        }
        count.shown = Some(now);
        let per_second = count.speed(now);
        match self.kind {
            Kind::Json => say(&json!({
                "event": "progress", "bytes": count.there, "of": count.total,
                "bytes_per_s": per_second.map(|speed| speed as u64), "remaining_s": count.remaining(per_second),
            })),
            _ => {
                count.open = true;
                let mut stderr = std::io::stderr().lock();
                let _ = write!(stderr, "\r{}\x1b[K", count.line(per_second))
                    .and_then(|()| stderr.flush());
            }
        }
    }
}

impl Count {
    /// Bytes a second over the window; `None` until there is something to compare.
    fn speed(&mut self, now: Instant) -> Option<f64> {
        let came = self.there.saturating_sub(self.local);
        self.samples.push_back((now, came));
        while self.samples.len() > 2 && now - self.samples[0].0 > WINDOW {
            self.samples.pop_front();
        }
        let (then, before) = *self.samples.front()?;
        let seconds = (now - then).as_secs_f64();
        (seconds > 0.0 && came > before).then(|| (came - before) as f64 / seconds)
    }

    fn remaining(&self, per_second: Option<f64>) -> Option<u64> {
        let left = self.total.saturating_sub(self.there) as f64;
        per_second.map(|speed| (left / speed).ceil() as u64)
    }

    fn line(&self, per_second: Option<f64>) -> String {
        let percent = match self.total {
            0 => 0,
            total => (u128::from(self.there) * 100 / u128::from(total)).min(100),
        };
        let mut line = format!(
            "  {percent:>3} %  {} of {}",
            Bytes(self.there),
            Bytes(self.total)
        );
        if let Some(speed) = per_second {
            line.push_str(&format!("  {}/s", Bytes(speed as u64)));
        }
        if let Some(seconds) = self.remaining(per_second) {
            line.push_str(&match seconds {
                0..=99 => format!("  {seconds} s left"),
                100..=5_999 => format!("  {} min left", seconds.div_ceil(60)),
                _ => format!("  {} h left", seconds.div_ceil(3_600)),
            });
        }
        line
    }
}

/// One line for programs. A reader that has seen enough is no reason to stop fetching.
fn say(line: &Value) {
    let _ = console::print(&format!("{line}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_and_rest_leave_out_what_was_here() {
        let meter = Meter::on_terminal(false);
        meter.plan(1000 << 20, 100 << 20);
        meter.resumed("x", 50 << 20);
        let begun = Instant::now();
        let mut count = meter.lock();
        count.there += 50 << 20;
        assert_eq!(count.speed(begun), None);
        count.there += 80 << 20;
        let speed = count.speed(begun + Duration::from_secs(4));
        assert_eq!(speed, Some(f64::from(20 << 20)));
        let line = count.line(speed);
        assert_eq!(
            line,
            "   23 %  230.0 MiB of 1000.0 MiB  20.0 MiB/s  39 s left"
        );
    }
}
