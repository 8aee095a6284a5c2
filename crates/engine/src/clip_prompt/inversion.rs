//! Textual inversions: names in a prompt that stand for rows learned elsewhere.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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

/// Learned rows under the names that a prompt may call them by. One that was [found](Inversion::found) is read when a
/// prompt names it, so that a broken file disturbs nobody who does not.
#[derive(Debug)]
pub struct Inversion {
    names: Vec<String>,
    /// Where it lies, unless it was read from an opened file.
    path: Option<PathBuf>,
    /// One for each width, (N, D), all with the same N.
    tables: OnceLock<Vec<Tensor>>,
}

impl Inversion {
    /// Reads an opened file; `name` is what the prompt calls it, usually the file's own. Where the file names its token
    /// as well, that works too.
    ///
    /// # Errors
    /// [`Error::Request`] when it is no textual inversion or larger than any is, and those of reading.
    pub fn load(name: &str, file: &Checkpoint) -> Result<Inversion> {
        let wrong = |problem: &str| wrong(name, file.name(), problem);
        let mut names = vec![name.to_owned()];
        names.extend(own_name(file));
        if names.iter().any(|name| !fits(name)) {
            return Err(wrong("has a name that is empty or longer than 256 bytes"));
        }
        Ok(Inversion {
            names,
            path: None,
            tables: OnceLock::from(tables(file, &wrong)?),
        })
    }

    /// A file that prompts may name. Only its header is looked at, for the token that it names itself; a file without one
    /// that can be read is known by `name` alone, and what is wrong with it is said to whoever names it.
    pub fn found(name: &str, path: &Path) -> Inversion {
        let mut names = vec![name.to_owned()];
        let own = Checkpoint::open(path).ok().and_then(|file| own_name(&file));
        names.extend(own);
        names.retain(|name| fits(name));
        Inversion {
            names,
            path: Some(path.to_owned()),
            tables: OnceLock::new(),
        }
    }

    /// Its rows; a file that could not be read is tried again each time, since somebody may have mended it.
    fn tables(&self) -> Result<&[Tensor]> {
        if let Some(tables) = self.tables.get() {
            return Ok(tables);
        }
        let path = self.path.as_deref().expect("one without a path was read");
        let file = path.file_name().unwrap_or_default().display().to_string();
        let name = self.names.first().map_or("", |name| &name[..]);
        let wrong = |problem: &str| wrong(name, &file, problem);
        let broken = |problem: lowtide_weights::Error| {
            let problem = format!("cannot be read: {problem}; mend the file or leave the word out");
            wrong(&problem)
        };
        let opened = Checkpoint::open(path).map_err(broken)?;
        let tables = tables(&opened, &wrong)?;
        Ok(self.tables.get_or_init(|| tables))
    }

    /// What a prompt may call it.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many tokens it stands for.
    ///
    /// # Errors
    /// [`Error::Request`] when its file is broken, as for all that follow.
    pub fn rows(&self) -> Result<usize> {
        Ok(self.tables()?[0].shape()[0])
    }

    /// Its row for an encoder of `width`; `None` where it was not made for such a one.
    ///
    /// # Errors
    /// When its file is broken.
    pub fn row(&self, row: usize, width: usize) -> Result<Option<&[f32]>> {
        let mut tables = self.tables()?.iter();
        let table = tables.find(|table| table.shape()[1] == width);
        let table = table.filter(|table| row < table.shape()[0]);
        Ok(table.map(|table| table.row(row).host()))
    }

    /// The widths of encoders it was made for.
    ///
    /// # Errors
    /// When its file is broken.
    pub fn widths(&self) -> Result<Vec<usize>> {
        let tables = self.tables()?.iter();
        Ok(tables.map(|table| table.shape()[1]).collect())
    }
}

fn wrong(name: &str, file: &str, problem: &str) -> Error {
    Error::request(format!("embedding '{name}'"), format!("({file}) {problem}"))
}

fn fits(name: &str) -> bool {
    !name.trim().is_empty() && name.len() <= NAME_BYTES_MAX
}

/// The tensors that hold rows: one, or one for each of two encoders.
fn entries(file: &Checkpoint) -> Option<Vec<&TensorEntry>> {
    let web = WEB_NAMES.iter().find_map(|name| file.get(name));
    let pair = PAIR.map(|name| file.get(name));
    match (web, pair) {
        (Some(entry), _) => Some(vec![entry]),
        (None, [Some(first), Some(second)]) => Some(vec![first, second]),
        _ => {
            let mut tensors = file.tensors();
            let only = tensors.next()?;
            tensors.next().is_none().then(|| vec![only])
        }
    }
}

/// The token that a file names itself.
fn own_name(file: &Checkpoint) -> Option<String> {
    let entries = entries(file)?;
    let [only] = &entries[..] else {
        return None;
    };
    let own = !WEB_NAMES.contains(&&only.name[..]);
    own.then(|| only.name.clone())
}

fn tables(file: &Checkpoint, wrong: &dyn Fn(&str) -> Error) -> Result<Vec<Tensor>> {
    let entries = entries(file).ok_or_else(|| {
        wrong(
            "is no textual inversion: it should hold 'emb_params', one tensor named as its token, or 'clip_l' and \
             'clip_g'",
        )
    })?;
    let tables = entries.into_iter().map(|entry| read(file, entry, wrong));
    let tables: Vec<Tensor> = tables.collect::<Result<_>>()?;
    match same_rows(&tables) {
        true => Ok(tables),
        false => Err(wrong("has another number of rows for each text encoder")),
    }
}

fn same_rows(tables: &[Tensor]) -> bool {
    let mut pairs = tables.windows(2);
    pairs.all(|two| two[0].shape()[0] == two[1].shape()[0])
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
            path: None,
            tables: OnceLock::from(Vec::new()),
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
        assert!(!fits(" ") && !fits(&"a".repeat(257)) && fits("a"));
        assert!(!same_rows(&[table(1), table(2)]));
        assert!(same_rows(&[table(2), table(2)]));
    }
}
