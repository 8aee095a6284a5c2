//! How a run ends when it does not end well: an exit code and one line.

use lowtide_core::{Bytes, DoesNotFit};
use lowtide_engine::Blame;
use std::fmt;

/// Why the program ends without having done what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was asked cannot be done as asked; the sentence says what was wrong, where, and what to do. Exit code 2.
    Mistake(String),
    /// No plan keeps the job within its budget; the sentence has the numbers. Exit code 3.
    DoesNotFit(String),
    /// Ctrl-C, or a polite request to end. Exit code 130.
    Interrupted,
    /// The same, where something is kept; the sentence says what. Exit code 130.
    Paused(String),
    /// Everything else. Exit code 1.
    Other(anyhow::Error),
}

impl Failure {
    /// A user's mistake.
    pub(crate) fn mistake(sentence: impl Into<String>) -> Failure {
        Failure::Mistake(sentence.into())
    }

    /// The number the process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Mistake(_) => 2,
            Failure::DoesNotFit(_) => 3,
            Failure::Interrupted | Failure::Paused(_) => 130,
            Failure::Other(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    /// One line, whatever the cause says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentence = match self {
            Failure::Mistake(sentence) => sentence.clone(),
            Failure::DoesNotFit(sentence) | Failure::Paused(sentence) => sentence.clone(),
            Failure::Interrupted => "interrupted; nothing was written".to_owned(),
            Failure::Other(cause) => format!("{cause:#}"),
        };
        f.write_str(&one_line(&sentence))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(cause: anyhow::Error) -> Failure {
        Failure::Other(cause)
    }
}

impl From<std::io::Error> for Failure {
    fn from(cause: std::io::Error) -> Failure {
        Failure::Other(cause.into())
    }
}

impl From<lowtide_weights::Error> for Failure {
    /// What is wrong with a model's files is for the user to mend; what the system refuses may not be.
    fn from(cause: lowtide_weights::Error) -> Failure {
        match cause {
            lowtide_weights::Error::Io { .. } => Failure::Other(cause.into()),
            _ => Failure::Mistake(cause.to_string()),
        }
    }
}

impl From<lowtide_hub::Error> for Failure {
    /// What was asked for can be asked differently; what the world refuses cannot.
    fn from(cause: lowtide_hub::Error) -> Failure {
        use lowtide_hub::Error;
        match cause {
            Error::Stopped => Failure::Paused(cause.to_string()),
            Error::Setting { .. }
            | Error::BadName { .. }
            | Error::Offline { .. }
            | Error::Unauthorised { .. }
            | Error::Gated { .. }
            | Error::NoSuchRepo { .. }
            | Error::NoSuchRevision { .. }
            | Error::NoSuchFile { .. }
            | Error::NothingToFetch { .. }
            | Error::NotInstalled { .. } => Failure::Mistake(cause.to_string()),
            Error::Unreachable { .. }
            | Error::Refused { .. }
            | Error::Busy { .. }
            | Error::NotAHub { .. }
            | Error::TooMuch { .. }
            | Error::NoChecksum { .. }
            | Error::Damaged { .. }
            | Error::CutShort { .. }
            | Error::DiskFull { .. }
            | Error::InUse { .. }
            | Error::Io { .. } => Failure::Other(cause.into()),
        }
    }
}

impl From<lowtide_engine::Error> for Failure {
    fn from(cause: lowtide_engine::Error) -> Failure {
        match (cause.blame(), cause) {
            (_, lowtide_engine::Error::Weights(cause)) => cause.into(),
            (_, lowtide_engine::Error::DoesNotFit(numbers)) => {
                Failure::DoesNotFit(refusal(&numbers))
            }
            (Blame::User, cause) => Failure::Mistake(cause.to_string()),
            (Blame::Fit, cause) => Failure::DoesNotFit(cause.to_string()),
            (Blame::Program, cause) => Failure::Other(cause.into()),
        }
    }
}

/// The planner's sentence, and what to type.
fn refusal(numbers: &DoesNotFit) -> String {
    let least = numbers.smallest_approximate.unwrap_or(numbers.smallest);
    let quality = if numbers.exact_only && numbers.smallest_approximate.is_some() {
        " --quality auto"
    } else {
        ""
    };
    format!("{numbers}: --budget {}{quality}", as_argument(least))
}

/// What a process holds before it plans differs by a little from run to run, and counts towards its budget.
const RUN_TO_RUN: Bytes = Bytes::kib(256);

/// The size as a value of `--budget`, rounded up so that it suffices the next time, too.
fn as_argument(bytes: Bytes) -> String {
    format!("{}MiB", (bytes + RUN_TO_RUN).0.div_ceil(1 << 20))
}

/// Line breaks and runs of blanks become one blank each.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_with_its_code() {
        let failure = Failure::mistake("first\n  second");
        assert_eq!(failure.to_string(), "first second");
        assert_eq!(failure.exit_code(), 2);
        assert_eq!(Failure::Other(anyhow::anyhow!("a\nb")).to_string(), "a b");
    }

    #[test]
    fn a_refusal_names_a_budget_that_suffices() {
        let numbers = DoesNotFit {
            phase: "denoise".to_owned(),
            needed: Bytes((30 << 20) + 1),
            budget: Bytes::mib(1),
            in_use: Bytes::ZERO,
            smallest: Bytes((30 << 20) + 1),
            exact_only: true,
            smallest_approximate: None,
        };
        let refusal = Failure::DoesNotFit(refusal(&numbers));
        assert_eq!(refusal.exit_code(), 3);
        assert!(
            refusal.to_string().ends_with(": --budget 31MiB"),
            "{refusal}"
        );
    }
}
