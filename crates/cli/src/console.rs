//! The two standard streams: results on one, everything else on the other.

use std::io::{self, ErrorKind, Write};

/// Writes results to standard output. A reader that has seen enough (`| head`) is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(cause) if cause.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes a line to standard error. Where nobody listens there, nobody is told.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A table of text: columns as wide as their widest cell, two blanks between them, every line indented by two.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    right: &'static [usize],
}

impl Table {
    /// A table whose columns in `right` are aligned to the right.
    pub(crate) fn new(right: &'static [usize]) -> Table {
        Table {
            rows: Vec::new(),
            right,
        }
    }

    /// Adds a line.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The finished text, each line with its end.
    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let padded = if self.right.contains(&column) {
                    format!("  {cell:>width$}")
                } else {
                    format!("  {cell:<width$}")
                };
                line.push_str(&padded);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[1]);
        table.row(["vae", "7.5 MiB"]);
        table.row(["transformer", "25 MiB"]);
        assert_eq!(
            table.text(),
            "  vae          7.5 MiB\n  transformer   25 MiB\n"
        );
    }
}
