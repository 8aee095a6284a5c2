//! What the proofs say, as one table.

use lowtide_cuda::Error;
use std::fmt::Write;

/// How a proof ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It holds.
    Passed,
    /// It does not.
    Failed,
    /// A figure without a demand.
    Measured,
    /// It could not be tried; the figures say why.
    Skipped,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
            Outcome::Measured => "measured",
            Outcome::Skipped => "skipped",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The proof's letter.
    pub(crate) proof: char,
    pub(crate) what: String,
    pub(crate) outcome: Outcome,
    pub(crate) figures: String,
}

/// All lines.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn add(
        &mut self,
        proof: char,
        what: impl Into<String>,
        outcome: Outcome,
        figures: impl Into<String>,
    ) {
        self.rows.push(Row {
            proof,
            what: what.into(),
            outcome,
            figures: figures.into(),
        });
    }

    /// A demand and whether it is met.
    pub(crate) fn demand(
        &mut self,
        proof: char,
        what: impl Into<String>,
        met: bool,
        figures: impl Into<String>,
    ) {
        let outcome = if met {
            Outcome::Passed
        } else {
            Outcome::Failed
        };
        self.add(proof, what, outcome, figures);
    }

    /// Runs a proof; that it ends in an error is a line as well. One that lacks a GPU or host memory is skipped.
    pub(crate) fn run(
        &mut self,
        proof: char,
        what: &str,
        body: impl FnOnce(&mut Table) -> Result<(), Error>,
    ) {
        match body(self) {
            Ok(()) => {}
            Err(error) if error.is_absent() || matches!(error, Error::PinLimit { .. }) => {
                self.add(proof, what, Outcome::Skipped, error.to_string());
            }
            Err(error) => self.add(proof, what, Outcome::Failed, error.to_string()),
        }
    }

    pub(crate) fn failed(&self) -> bool {
        self.rows.iter().any(|row| row.outcome == Outcome::Failed)
    }

    /// How many ended so.
    pub(crate) fn count(&self, outcome: Outcome) -> usize {
        self.rows
            .iter()
            .filter(|row| row.outcome == outcome)
            .count()
    }

    /// The lines, by letter, in columns.
    pub(crate) fn text(&self) -> String {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| row.proof);
        let width = rows
            .iter()
            .map(|row| row.what.chars().count())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for row in rows {
            // A reason may be long and have lines of its own; the table keeps one line for each.
            let figures: Vec<&str> = row.figures.split_whitespace().collect();
            let _ = writeln!(
                text,
                "({}) {:width$}  {:8}  {}",
                row.proof,
                row.what,
                row.outcome.word(),
                figures.join(" ")
            );
        }
        let _ = writeln!(
            text,
            "{} passed, {} failed, {} measured, {} skipped",
            self.count(Outcome::Passed),
            self.count(Outcome::Failed),
            self.count(Outcome::Measured),
            self.count(Outcome::Skipped)
        );
        text
    }
}

/// Bytes as people read them.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A rate as links are sold, in powers of ten.
pub(crate) fn rate(bytes_a_second: f64) -> String {
    format!("{:.1} GB/s", bytes_a_second / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_aligned_and_counted() {
        let mut table = Table::default();
        table.demand('b', "copies are hidden", true, "95 %");
        table.demand('a', "the budget holds", false, "no:\nit does\n not");
        table.add('a', "x", Outcome::Measured, "1");
        table.add('c', "y", Outcome::Skipped, "nothing here");
        let text = table.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "(a) the budget holds   FAILED    no: it does not",
                "(a) x                  measured  1",
                "(b) copies are hidden  passed    95 %",
                "(c) y                  skipped   nothing here",
                "1 passed, 1 failed, 1 measured, 1 skipped",
            ]
        );
        assert!(table.failed());
    }

    #[test]
    fn absence_is_skipped_and_errors_fail() {
        let mut table = Table::default();
        table.run('a', "one", |_| {
            Err(Error::NoDriver {
                reason: "none".to_owned(),
            })
        });
        assert!(!table.failed());
        assert!(table.text().contains("skipped   there is no NVIDIA driver"));
        table.run('b', "two", |_| {
            Err(Error::SelfTest {
                device: "x".to_owned(),
                reason: "y".to_owned(),
            })
        });
        assert!(table.failed());
        table.run('c', "three", |_| Ok(()));
        assert_eq!(table.count(Outcome::Passed), 0);
    }

    #[test]
    fn numbers_have_units() {
        assert_eq!(mib(3 << 19), "1.5 MiB");
        assert_eq!(rate(25.04e9), "25.0 GB/s");
    }
}
