//! Textual inversions: names in a prompt that stand for rows learned elsewhere.

use lowtide_models::Tensor;
use lowtide_models::weights::stored;
use lowtide_weights::{Checkpoint, TensorEntry};

use super::chunks::CONTENT_TOKENS;
use crate::{Error, Result};

/// The widest row: no encoder is wider.
const WIDTH_MAX: usize = 65_536;
/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// What the web UI calls the rows: in safetensors, and in the `string_to_param` of its pickles, where every file has the
/// same token.
const WEB_NAMES: [&str; 2] = ["emb_params", "*"];
/// What SDXL's two encoders call theirs.
const PAIR: [&str; 2] = ["clip_l", "clip_g"];

/// Learned rows under the names that a prompt may call them by.
#[derive(Debug)]
pub struct Inversion {
    names: Vec<String>,
    /// One for each width, (N, D), all with the same N.
    tables: Vec<Tensor>,
}

impl Inversion {
    /// Reads an opened file; `name` is what the prompt calls it, usually the file's own. Where the file names its token
    /// as well, that works too.
    ///
    /// # Errors
    /// [`Error::Request`] when it is no textual inversion or larger than any is, and those of reading.
    pub fn load(name: &str, file: &Checkpoint) -> Result<Inversion> {
        let wrong = |problem: &str| {
            Error::request(
                format!("embedding '{name}'"),
                format!("({}) {problem}", file.name()),
            )
        };
        let mut names = vec![name.to_owned()];
        let web = WEB_NAMES.iter().find_map(|name| file.get(name));
        let pair = PAIR.map(|name| file.get(name));
        let entries = match (web, pair) {
            (Some(entry), _) => vec![entry],
            (None, [Some(first), Some(second)]) => vec![first, second],
            _ => {
                let mut tensors = file.tensors();
                let (Some(only), None) = (tensors.next(), tensors.next()) else {
                    return Err(wrong(
                        "is no textual inversion: it should hold 'emb_params', one tensor named as its token, or \
                         'clip_l' and 'clip_g'",
                    ));
                };
                names.push(only.name.clone());
                vec![only]
            }
        };
        let tables = entries.into_iter().map(|entry| read(file, entry, &wrong));
        let tables: Vec<Tensor> = tables.collect::<Result<_>>()?;
        Inversion::new(names, tables).map_err(wrong)
    }

    fn new(
        names: Vec<String>,
        tables: Vec<Tensor>,
    ) -> std::result::Result<Inversion, &'static str> {
        if names
            .iter()
            .any(|name| name.trim().is_empty() || name.len() > NAME_BYTES_MAX)
        {
            return Err("has a name that is empty or longer than 256 bytes");
        }
        if tables
            .windows(2)
            .any(|two| two[0].shape()[0] != two[1].shape()[0])
        {
            return Err("has another number of rows for each text encoder");
        }
        Ok(Inversion { names, tables })
    }

    /// What a prompt may call it.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many tokens it stands for.
    pub fn rows(&self) -> usize {
        self.tables[0].shape()[0]
    }

    /// Its row for an encoder of `width`; `None` where it was not made for such a one.
    pub fn row(&self, row: usize, width: usize) -> Option<&[f32]> {
        let table = self.tables.iter().find(|table| table.shape()[1] == width)?;
        (row < self.rows()).then(|| table.row(row))
    }

    /// The widths of encoders it was made for.
    pub fn widths(&self) -> Vec<usize> {
        self.tables.iter().map(|table| table.shape()[1]).collect()
    }
}

fn read(file: &Checkpoint, entry: &TensorEntry, wrong: &dyn Fn(&str) -> Error) -> Result<Tensor> {
    let (rows, width) = match entry.shape[..] {
        [width] => (1, width),
        [rows, width] => (rows, width),
        _ => {
            return Err(wrong(
                "is no textual inversion: its tensor is not a list of rows",
            ));
        }
    };
    if !(1..=CONTENT_TOKENS).contains(&rows) || !(1..=WIDTH_MAX).contains(&width) {
        let problem = format!(
            "has {rows} rows of {width} values; 1 to {CONTENT_TOKENS} rows go into a prompt"
        );
        return Err(wrong(&problem));
    }
    let stored = stored(entry.dtype, || entry.name.clone()).map_err(|e| wrong(&e.to_string()))?;
    let mut bytes = vec![0; rows * width * stored.size()];
    file.read(entry, &mut bytes)?;
    let mut table = Tensor::new(&[rows, width]).map_err(|e| wrong(&e.to_string()))?;
    lowtide_kernels::to_f32(stored, &bytes, table.data_mut());
    if table.data().iter().any(|value| !value.is_finite()) {
        return Err(wrong("holds numbers that are not finite"));
    }
    Ok(table)
}

/// A stretch of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span<'a> {
    Text(&'a str),
    /// The name of the inversion of that index.
    Learned(usize),
}

/// Splits a text at names of inversions. Case does not matter, the longest name wins, and a name that begins or ends with
/// a letter or a digit is not found inside a word.
pub(super) fn spans<'a>(text: &'a str, inversions: &[Inversion]) -> Vec<Span<'a>> {
    let mut names: Vec<(Vec<char>, usize)> = Vec::new();
    for (index, inversion) in inversions.iter().enumerate() {
        names.extend(inversion.names.iter().map(|name| (lower(name), index)));
    }
    names.sort_by_key(|(name, index)| (std::cmp::Reverse(name.len()), *index));
    let mut spans = Vec::new();
    let (mut start, mut at) = (0, 0);
    let mut before = None;
    while let Some(c) = text[at..].chars().next() {
        let found = names.iter().find_map(|(name, index)| {
            let length = begins(&text[at..], name)?;
            let after = text[at + length..].chars().next();
            let whole =
                !joins(before, name.first().copied()) && !joins(name.last().copied(), after);
            whole.then_some((length, *index))
        });
        let Some((length, index)) = found else {
            at += c.len_utf8();
            before = Some(c);
            continue;
        };
        spans.push(Span::Text(&text[start..at]));
        spans.push(Span::Learned(index));
        at += length;
        start = at;
        before = text[..at].chars().next_back();
    }
    spans.push(Span::Text(&text[start..]));
    spans.retain(|span| *span != Span::Text(""));
    spans
}

/// Whether two neighbours are of one word.
fn joins(a: Option<char>, b: Option<char>) -> bool {
    [a, b].iter().all(|c| c.is_some_and(char::is_alphanumeric))
}

fn lower(text: &str) -> Vec<char> {
    text.chars().flat_map(char::to_lowercase).collect()
}

/// The bytes of `text` that are `name`, if it begins so in whatever case.
fn begins(text: &str, name: &[char]) -> Option<usize> {
    let mut left = name.iter();
    for (at, c) in text.char_indices() {
        if left.as_slice().is_empty() {
            return Some(at);
        }
        for lower in c.to_lowercase() {
            if left.next() != Some(&lower) {
                return None;
            }
        }
    }
    left.as_slice().is_empty().then_some(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Vec<Inversion> {
        let inversion = |name: &&str| Inversion {
            names: vec![(*name).to_owned()],
            tables: Vec::new(),
        };
        names.iter().map(inversion).collect()
    }

    #[track_caller]
    fn check(text: &str, names: &[&str], expected: &str) {
        let spans = spans(text, &named(names));
        let shown = spans.iter().map(|span| match span {
            Span::Text(text) => format!("'{text}'"),
            Span::Learned(index) => index.to_string(),
        });
        assert_eq!(shown.collect::<Vec<_>>().join(" "), expected, "{text}");
    }

    #[test]
    fn names_are_found_as_words() {
        check("a <cat>, b", &["<cat>"], "'a ' 0 ', b'");
        check("x<cat><CAT>y", &["<cat>"], "'x' 0 0 'y'");
        check("cat cats Cat-cat", &["cat"], "0 ' cats ' 0 '-' 0");
        check("style-7 style-77", &["style-7"], "0 ' style-77'");
        check(
            "bad hands, bad hands 5",
            &["bad hands", "bad hands 5"],
            "0 ', ' 1",
        );
        check("ÉTÉ été étés", &["été"], "0 ' ' 0 ' étés'");
        check("İi i\u{307}", &["i\u{307}"], "0 'i ' 0");
        check("", &["a"], "");
        check("plain", &[], "'plain'");
        check("日本語", &["日本"], "'日本語'");
    }

    #[test]
    fn a_name_may_not_be_empty_nor_rows_differ() {
        let table = |rows| Tensor::zeros(&[rows, 4]).expect("a few values");
        assert!(Inversion::new(vec![" ".to_owned()], vec![table(1)]).is_err());
        assert!(Inversion::new(vec!["a".repeat(257)], vec![table(1)]).is_err());
        assert!(Inversion::new(vec!["a".to_owned()], vec![table(1), table(2)]).is_err());
        assert!(Inversion::new(vec!["a".to_owned()], vec![table(2), table(2)]).is_ok());
    }
}
