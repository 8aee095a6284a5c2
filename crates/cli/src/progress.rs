//! How far a job is, on standard error: a bar on a terminal, a line a phase elsewhere.

use crate::console;
use lowtide_core::Bytes;
use std::io::{IsTerminal, Write};

/// Characters of the bar.
const BAR_WIDTH: usize = 24;

/// One look at a running job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look<'a> {
    /// `encode`, `denoise`, `decode`.
    pub(crate) phase: &'a str,
    /// Steps of the phase that are done.
    pub(crate) done: usize,
    /// Steps of the phase.
    pub(crate) total: usize,
    /// Seconds the last step took.
    pub(crate) seconds: f64,
    /// Bytes in use now, and bytes that may be; `None` where another process has them.
    pub(crate) memory: Option<(Bytes, Bytes)>,
}

/// Where progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Silent,
    Lines,
    Bar,
}

/// Shows progress.
#[derive(Debug)]
pub(crate) struct Progress {
    kind: Kind,
    /// Seconds of the present phase's steps.
    phase_seconds: f64,
}

impl Progress {
    /// Shows nothing.
    pub(crate) fn silent() -> Progress {
        Progress {
            kind: Kind::Silent,
            phase_seconds: 0.0,
        }
    }

    /// Shows what standard error can show.
    pub(crate) fn on_stderr() -> Progress {
        let kind = if std::io::stderr().is_terminal() {
            Kind::Bar
        } else {
            Kind::Lines
        };
        Progress {
            kind,
            phase_seconds: 0.0,
        }
    }

    /// A step is done.
    pub(crate) fn show(&mut self, look: Look<'_>) {
        self.phase_seconds += look.seconds;
        let finished = look.done >= look.total;
        match self.kind {
            Kind::Silent => {}
            Kind::Lines if finished => console::note(&line(look, self.phase_seconds)),
            Kind::Lines => {}
            Kind::Bar => {
                let text = if finished {
                    line(look, self.phase_seconds)
                } else {
                    bar(look)
                };
                let end = if finished { "\n" } else { "" };
                let mut stderr = std::io::stderr().lock();
                // A terminal that went away is no reason to stop the job.
                let _ = write!(stderr, "\r{text}\x1b[K{end}").and_then(|()| stderr.flush());
            }
        }
        if finished {
            self.phase_seconds = 0.0;
        }
    }

    /// Seconds of the present phase's steps so far.
    pub(crate) fn phase_seconds(&self) -> f64 {
        self.phase_seconds
    }

    /// The job stops before it is done: what follows begins on a line of its own.
    pub(crate) fn abandon(&self) {
        if self.kind == Kind::Bar && self.phase_seconds > 0.0 {
            console::note("");
        }
    }
}

fn bar(look: Look<'_>) -> String {
    let filled = BAR_WIDTH * look.done / look.total.max(1);
    let memory = look.memory.map_or_else(String::new, |(used, budget)| {
        format!("  {used} of {budget}")
    });
    format!(
        "{:<8} {}{} {:>3}/{}  {:.2} s/step{memory}",
        look.phase,
        "█".repeat(filled),
        "░".repeat(BAR_WIDTH - filled),
        look.done,
        look.total,
        look.seconds,
    )
}

fn line(look: Look<'_>, seconds: f64) -> String {
    let steps = if look.total == 1 {
        "1 step".to_owned()
    } else {
        format!("{} steps", look.total)
    };
    format!("{:<8} {steps} in {seconds:.2} s", look.phase)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Look<'static> = Look {
        phase: "denoise",
        done: 10,
        total: 20,
        seconds: 0.0412,
        memory: Some((Bytes::mib(70), Bytes::mib(600))),
    };

    #[test]
    fn a_bar_fits_a_narrow_terminal() {
        let text = bar(LOOK);
        assert!(
            text.contains("10/20  0.04 s/step  70.0 MiB of 600.0 MiB"),
            "{text}"
        );
        assert_eq!(text.matches('█').count(), BAR_WIDTH / 2);
        assert!(text.chars().count() < 80, "{text}");
    }

    #[test]
    fn a_phase_is_summed_up() {
        let look = Look { done: 20, ..LOOK };
        assert_eq!(line(look, 0.9), "denoise  20 steps in 0.90 s");
    }
}
