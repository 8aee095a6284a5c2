//! What brackets in a prompt mean.
//!
//! | written | means |
//! | --- | --- |
//! | `(text)` | weight 1.1 |
//! | `((text))` | 1.1 times 1.1, and so on inwards |
//! | `[text]` | 1 / 1.1 |
//! | `(text:1.3)` | 1.3; outer brackets multiply it |
//! | `\(`, `\)`, `\[`, `\]`, `\\` | the sign itself; any other backslash vanishes |
//! | `BREAK` | the rest goes on in a new chunk |
//!
//! Brackets that are never closed weigh all that follows; those that were never opened are text, and so is a `:1.3)`
//! that closes nothing.

/// What a pair of round brackets multiplies by.
const ROUND: f64 = 1.1;
/// What a pair of square brackets multiplies by.
const SQUARE: f64 = 1.0 / 1.1;
/// The largest weight, up or down from zero: far beyond what leaves a picture, far below what overflows.
pub const WEIGHT_MAX: f64 = 100.0;
/// The most brackets that are open at once. It bounds the work, and 49 of them alone are beyond [`WEIGHT_MAX`].
pub const DEPTH_MAX: usize = 64;
/// The word that begins a new chunk.
const BREAK: &str = "BREAK";

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Text of one weight.
    Text(String, f64),
    /// A new chunk begins.
    Break,
}

/// Why brackets were refused.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Problem {
    /// A weight is too large.
    #[error(
        "gives a part of it the weight {0}; weights go from -{WEIGHT_MAX} to {WEIGHT_MAX}, and every '(' multiplies by 1.1 (write \\( for the sign itself)"
    )]
    Heavy(f64),
    /// Too many brackets are open at once.
    #[error(
        "has more than {DEPTH_MAX} brackets open at once (write \\( or \\[ for the signs themselves)"
    )]
    Deep,
}

/// Reads a prompt. Neighbours of one weight are one part.
///
/// # Errors
/// [`Problem`].
pub fn read(prompt: &str) -> Result<Vec<Part>, Problem> {
    let mut reader = Reader::default();
    let mut rest = prompt;
    while let Some(sign) = rest.chars().next() {
        let length = reader.take(sign, rest)?;
        rest = &rest[length..];
    }
    reader.end()
}

#[derive(Default)]
struct Reader {
    parts: Vec<Part>,
    /// For each open round bracket, the part that follows it.
    round: Vec<usize>,
    /// The same for square ones.
    square: Vec<usize>,
}

impl Reader {
    /// Reads what `rest` begins with, whose first character is `sign`; returns its bytes.
    fn take(&mut self, sign: char, rest: &str) -> Result<usize, Problem> {
        match sign {
            '\\' => {
                let escaped = rest[1..].chars().next();
                let escaped = escaped.filter(|next| "()[]\\".contains(*next));
                if let Some(next) = escaped {
                    self.push(&next.to_string());
                    return Ok(2);
                }
            }
            '(' => self.round.push(self.parts.len()),
            '[' => self.square.push(self.parts.len()),
            ')' => match self.round.pop() {
                Some(start) => self.weigh(start, ROUND),
                None => self.push(")"),
            },
            ']' => match self.square.pop() {
                Some(start) => self.weigh(start, SQUARE),
                None => self.push("]"),
            },
            ':' => match closing_weight(rest) {
                Some((weight, length)) if !self.round.is_empty() => {
                    let start = self.round.pop().unwrap_or_default();
                    self.weigh(start, weight);
                    return Ok(length);
                }
                _ => self.push(":"),
            },
            _ => {
                let length = rest.find(['\\', '(', ')', '[', ']', ':']);
                let length = length.unwrap_or(rest.len());
                self.text(&rest[..length]);
                return Ok(length);
            }
        }
        if self.round.len() + self.square.len() > DEPTH_MAX {
            return Err(Problem::Deep);
        }
        Ok(1)
    }

    fn push(&mut self, text: &str) {
        self.parts.push(Part::Text(text.to_owned(), 1.0));
    }

    /// Text without signs, which may hold the word for a new chunk.
    fn text(&mut self, text: &str) {
        let mut rest = text;
        while let Some(at) = find_break(rest) {
            self.push(rest[..at].trim_end());
            self.parts.push(Part::Break);
            rest = rest[at + BREAK.len()..].trim_start();
        }
        self.push(rest);
    }

    fn weigh(&mut self, start: usize, by: f64) {
        for part in &mut self.parts[start..] {
            if let Part::Text(_, weight) = part {
                *weight *= by;
            }
        }
    }

    fn end(mut self) -> Result<Vec<Part>, Problem> {
        for start in std::mem::take(&mut self.round) {
            self.weigh(start, ROUND);
        }
        for start in std::mem::take(&mut self.square) {
            self.weigh(start, SQUARE);
        }
        let mut merged: Vec<Part> = Vec::new();
        for part in self.parts {
            match (&part, merged.last_mut()) {
                (Part::Text(_, weight), _) if !weight.is_finite() || weight.abs() > WEIGHT_MAX => {
                    return Err(Problem::Heavy(*weight));
                }
                (Part::Text(text, weight), Some(Part::Text(before, same))) if weight == same => {
                    before.push_str(text);
                }
                _ => merged.push(part),
            }
        }
        Ok(merged)
    }
}

/// The weight and the bytes of what `rest`, which begins with a colon, begins with: `:1.3)`, with spaces or without.
fn closing_weight(rest: &str) -> Option<(f64, usize)> {
    let from_number = rest[1..].trim_start();
    let signed = usize::from(from_number.starts_with(['+', '-']));
    let digits = from_number[signed..].find(|c: char| c != '.' && !c.is_ascii_digit())?;
    let (number, after) = from_number.split_at(signed + digits);
    let after = after.trim_start().strip_prefix(')')?;
    Some((number.parse().ok()?, rest.len() - after.len()))
}

/// Where the word for a new chunk stands alone.
fn find_break(text: &str) -> Option<usize> {
    let of_a_word = |next: Option<char>| next.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let alone = |at: &usize| {
        !of_a_word(text[..*at].chars().next_back())
            && !of_a_word(text[at + BREAK.len()..].chars().next())
    };
    text.match_indices(BREAK).map(|(at, _)| at).find(alone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(prompt: &str, expected: &[(&str, f64)]) {
        let parts = read(prompt).unwrap_or_else(|problem| panic!("{prompt}: {problem}"));
        let found: Vec<(&str, f64)> = parts
            .iter()
            .map(|part| match part {
                Part::Text(text, weight) => (text.as_str(), *weight),
                Part::Break => ("|", 0.0),
            })
            .collect();
        let same = found.len() == expected.len()
            && found.iter().zip(expected).all(|(found, expected)| {
                found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-9
            });
        assert!(same, "{prompt}: {found:?} instead of {expected:?}");
    }

    #[test]
    fn brackets_weigh() {
        let down = 1.0 / 1.1;
        check("", &[]);
        check("plain, text", &[("plain, text", 1.0)]);
        check("a (b) c", &[("a ", 1.0), ("b", 1.1), (" c", 1.0)]);
        check("((b))", &[("b", 1.21)]);
        check("(((b)))", &[("b", 1.331)]);
        check("[b] [[c]]", &[("b", down), (" ", 1.0), ("c", down * down)]);
        check("(b:1.3)", &[("b", 1.3)]);
        check("(b:0)", &[("b", 0.0)]);
        check("(b:-.5)(c:+2)", &[("b", -0.5), ("c", 2.0)]);
        check("(b : 1.3 )", &[("b ", 1.3)]);
        check("(a [b])", &[("a ", 1.1), ("b", 1.1 * down)]);
        check("([b:1.3])", &[("b:1.3", 1.1 * down)]);
        check(
            "(one (two:1.5) three:0.5)",
            &[("one ", 0.5), ("two", 0.75), (" three", 0.5)],
        );
        check("(same)(weight)", &[("sameweight", 1.1)]);
        check("(a:b:1.2)", &[("a:b", 1.2)]);
        check(
            "a (((castle:1.3)) [by] a (lake:0.5), dawn, (((mist))).",
            &[
                ("a ", 1.0),
                ("castle", 1.3 * 1.21),
                (" ", 1.1),
                ("by", 1.1 * down),
                (" a ", 1.1),
                ("lake", 0.55),
                (", dawn, ", 1.1),
                ("mist", 1.4641),
                (".", 1.1),
            ],
        );
    }

    #[test]
    fn what_is_not_balanced_does_no_harm() {
        let down = 1.0 / 1.1;
        check("(a b", &[("a b", 1.1)]);
        check("a [b", &[("a ", 1.0), ("b", down)]);
        check("a) b]", &[("a) b]", 1.0)]);
        check("a:1.3) b", &[("a:1.3) b", 1.0)]);
        check("(a] b)", &[("a] b", 1.1)]);
        check("((a) b", &[("a", 1.21), (" b", 1.1)]);
        check("()[](:1.5)", &[]);
        check("(a:1.2.3)", &[("a:1.2.3", 1.1)]);
        check(
            "(a:) (b:x) (c:.)",
            &[
                ("a:", 1.1),
                (" ", 1.0),
                ("b:x", 1.1),
                (" ", 1.0),
                ("c:.", 1.1),
            ],
        );
        check(
            "(a:inf) (b:1e3)",
            &[("a:inf", 1.1), (" ", 1.0), ("b:1e3", 1.1)],
        );
        check("16:9 :-)", &[("16:9 :-)", 1.0)]);
    }

    #[test]
    fn a_backslash_makes_a_bracket_text() {
        check(r"\(a\] \[b\)", &[("(a] [b)", 1.0)]);
        check(r"smile \:\) (b\)c)", &[("smile :) ", 1.0), ("b)c", 1.1)]);
        check(r"a\\b c\d \", &[(r"a\b cd ", 1.0)]);
        check(r"(a\:1.3)", &[("a", 1.3)]);
    }

    #[test]
    fn a_word_of_its_own_begins_a_new_chunk() {
        check("a BREAK b", &[("a", 1.0), ("|", 0.0), ("b", 1.0)]);
        check(
            "a\n BREAK \n BREAK b",
            &[("a", 1.0), ("|", 0.0), ("", 1.0), ("|", 0.0), ("b", 1.0)],
        );
        check("BREAK", &[("", 1.0), ("|", 0.0), ("", 1.0)]);
        check("a,BREAK,b", &[("a,", 1.0), ("|", 0.0), (",b", 1.0)]);
        check(
            "BREAKFAST aBREAK BREAK_ break éBREAK",
            &[("BREAKFAST aBREAK BREAK_ break éBREAK", 1.0)],
        );
        check("(a BREAK b:1.4)", &[("a", 1.4), ("|", 0.0), ("b", 1.4)]);
    }

    #[test]
    fn senseless_weights_are_refused() {
        assert_eq!(read("(a:101)"), Err(Problem::Heavy(101.0)));
        assert!(matches!(
            read(&format!("(a:{})", "9".repeat(400))),
            Err(Problem::Heavy(_))
        ));
        assert!(matches!(read(&"(a".repeat(50)), Err(Problem::Heavy(_))));
        assert_eq!(read(&"(".repeat(65)), Err(Problem::Deep));
        assert_eq!(read(&"([".repeat(40)), Err(Problem::Deep));
        check(&"()".repeat(1000), &[]);
        check("(a:100)", &[("a", 100.0)]);
    }

    #[test]
    fn long_prompts_take_no_time() {
        let start = std::time::Instant::now();
        for unit in [
            "(a", "a)", "[(a)b]", ":", "(:1)", "\\", "BREAK ", "(BREAK)", "a:1.1) ",
        ] {
            let _ = read(&unit.repeat((64 << 10) / unit.len()));
        }
        assert!(start.elapsed().as_secs() < 5);
    }
}
