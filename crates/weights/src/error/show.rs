//! Names and lists out of foreign files, as messages show them.

use std::fmt;

/// The most characters of a foreign name that a message repeats.
const SHOWN_CHARS: usize = 240;

/// A name out of a file, made harmless for a terminal and a log: no control characters, bounded length.
pub(super) fn shown(text: &str) -> String {
    let mut out: String = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == SHOWN_CHARS {
            out.push('…');
            break;
        }
        match c {
            '\'' | '"' => out.push(c),
            _ => out.extend(c.escape_debug()),
        }
    }
    out
}

pub(super) fn in_tensor(tensor: &Option<String>) -> String {
    tensor
        .as_deref()
        .map(|t| format!(", in the entry of tensor '{}'", shown(t)))
        .unwrap_or_default()
}

pub(super) fn after(tensor: &Option<String>) -> String {
    tensor
        .as_deref()
        .map(|t| format!(" '{}'", shown(t)))
        .unwrap_or_default()
}

pub(super) fn near_hint(near: &Option<String>) -> String {
    near.as_deref()
        .map(|n| format!(" (there is '{}')", shown(n)))
        .unwrap_or_default()
}

pub(super) fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    names
        .iter()
        .map(|n| shown(n))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Dimensions as people write them: `[288, 256]`, cut short where a hostile file has thousands.
pub(super) struct Dims<'a, T>(pub(super) &'a [T]);

impl<T: fmt::Display> fmt::Display for Dims<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, dim) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{dim}")?;
        }
        f.write_str("]")
    }
}
