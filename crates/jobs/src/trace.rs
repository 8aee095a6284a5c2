//! Where a job belongs among what others trace, and what in its life takes time.
//!
//! A client's `traceparent` (W3C Trace Context) comes with the submission, is kept with the job, and is what the spans of
//! whoever works on it hang from, on whatever machine and at whatever attempt.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use lowtide_core::job::JobId;
use serde::{Deserialize, Serialize};

use crate::words;

/// A span by its names, as text `00-TRACE-SPAN-FLAGS`: 32, 16 and 2 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceParent {
    trace: NonZeroU128,
    span: NonZeroU64,
    /// Whether somebody records it.
    sampled: bool,
}

/// Text that names no span.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent: 00- and 32, 16 and 2 digits of 0-9 a-f, joined by -, are needed")]
pub struct NotATraceParent;

impl TraceParent {
    /// The first span of a trace of its own.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    pub fn random() -> TraceParent {
        TraceParent {
            trace: NonZeroU128::new(words::random()).unwrap_or(NonZeroU128::MIN),
            span: random_span(),
            sampled: true,
        }
    }

    /// Another span of the same trace.
    ///
    /// # Panics
    /// As [`TraceParent::random`].
    #[must_use]
    pub fn another(self) -> TraceParent {
        TraceParent {
            span: random_span(),
            ..self
        }
    }

    /// The trace's name, 32 digits.
    pub fn trace(self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The span's name, 16 digits.
    pub fn span(self) -> String {
        format!("{:016x}", self.span)
    }

    /// Whether somebody records it; where not, nothing of it is told.
    pub fn is_sampled(self) -> bool {
        self.sampled
    }
}

fn random_span() -> NonZeroU64 {
    NonZeroU64::new(words::random() as u64).unwrap_or(NonZeroU64::MIN)
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{:032x}-{:016x}-{flags:02x}", self.trace, self.span)
    }
}

impl FromStr for TraceParent {
    type Err = NotATraceParent;

    fn from_str(text: &str) -> Result<TraceParent, NotATraceParent> {
        let digits = |part: &str, len: usize| {
            let plain = |sign: u8| sign.is_ascii_digit() || (b'a'..=b'f').contains(&sign);
            (part.len() == len && part.bytes().all(plain)).then_some(())
        };
        let parsed = || {
            let mut parts = text.split('-');
            let mut next = |len| {
                let part = parts.next()?;
                digits(part, len)?;
                u128::from_str_radix(part, 16).ok()
            };
            let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
            // Later versions may say more; the first one does not, and the last one there can be is none.
            if version == 0xff || (version == 0 && parts.next().is_some()) {
                return None;
            }
            Some(TraceParent {
                trace: NonZeroU128::new(trace)?,
                span: NonZeroU64::new(u64::try_from(span).ok()?)?,
                sampled: flags & 1 == 1,
            })
        };
        parsed().ok_or(NotATraceParent)
    }
}

impl TryFrom<String> for TraceParent {
    type Error = NotATraceParent;

    fn try_from(text: String) -> Result<TraceParent, NotATraceParent> {
        text.parse()
    }
}

impl From<TraceParent> for String {
    fn from(parent: TraceParent) -> String {
        parent.to_string()
    }
}

/// Something of a job's life that took time.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its names.
    pub at: TraceParent,
    /// What it is a part of.
    pub parent: Option<TraceParent>,
    /// What it was: `submit`, `claim`, `load`, `step`, `publish`.
    pub name: &'static str,
    /// Of which job.
    pub job: JobId,
    /// When it began.
    pub began: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// What else is worth knowing, by name.
    pub about: Vec<(&'static str, String)>,
    /// Why it came to nothing.
    pub error: Option<String>,
}

/// Hears what took time. It never makes anybody wait.
pub trait Tracer: fmt::Debug + Send + Sync {
    /// Takes note of a span that is over.
    fn note(&self, span: Span);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_its_standard_says() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent: TraceParent = text.parse().unwrap();
        assert_eq!(parent.to_string(), text);
        assert_eq!(parent.trace(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.span(), "00f067aa0ba902b7");
        assert!(parent.is_sampled());
        let unsampled: TraceParent = text.replace("-01", "-00").parse().unwrap();
        assert!(!unsampled.is_sampled());
        // Of a later version, with more in it.
        let later = format!("cc{}-what", &text[2..]);
        assert_eq!(later.parse::<TraceParent>(), Ok(parent));
        for wrong in [
            "",
            "00",
            &text.to_uppercase(),
            &text[..54],
            &format!("{text}-more"),
            &format!("ff{}", &text[2..]),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(
                wrong.parse::<TraceParent>(),
                Err(NotATraceParent),
                "{wrong}"
            );
        }
    }

    #[test]
    fn spans_of_a_trace_differ() {
        let first = TraceParent::random();
        let second = first.another();
        assert_eq!(first.trace(), second.trace());
        assert_ne!(first.span(), second.span());
        assert_eq!(first.to_string().parse(), Ok(first));
    }
}
