//! The files of a tokenizer's folder.

use std::collections::HashMap;

use lowtide_weights::ModelFolder;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::tokenizer::{END, Parts, START};
use crate::{Error, Result};

/// The most tokens added to a vocabulary: CLIP has two, textual inversions that were saved with a model a few more.
const ADDED_MAX: usize = 4096;

/// One folder and its complaints.
struct Folder<'a> {
    model: &'a ModelFolder,
    component: &'a str,
}

impl Folder<'_> {
    fn wrong(&self, file: &str, problem: impl std::fmt::Display) -> Error {
        Error::Tokenizer {
            model: self.model.name.clone(),
            problem: format!("{}/{file}: {problem}", self.component),
        }
    }

    fn text(&self, file: &str) -> Result<Option<String>> {
        Ok(self
            .model
            .read_text(&format!("{}/{file}", self.component))?)
    }

    /// A JSON object; `None` where there is no such file.
    fn object(&self, file: &str) -> Result<Option<Map<String, Value>>> {
        let Some(text) = self.text(file)? else {
            return Ok(None);
        };
        match serde_json::from_str(&text) {
            Ok(Value::Object(object)) => Ok(Some(object)),
            Ok(_) => Err(self.wrong(file, "is not an object")),
            Err(error) => Err(self.wrong(file, error)),
        }
    }
}

/// Reads everything a tokenizer is made of.
pub(super) fn read(model: &ModelFolder, component: &str) -> Result<Parts> {
    let folder = Folder { model, component };
    let (vocabulary, merges, listed) = match folder.object("tokenizer.json")? {
        Some(whole) => from_whole(&folder, &whole)?,
        None => {
            let (vocabulary, merges) = from_two_files(&folder)?;
            (vocabulary, merges, Vec::new())
        }
    };
    let config = folder.object("tokenizer_config.json")?.unwrap_or_default();
    // Newer files say everything in the configuration; older ones correct it in a file of its own.
    let map = match config.get("added_tokens_decoder") {
        Some(_) => Map::new(),
        None => folder
            .object("special_tokens_map.json")?
            .unwrap_or_default(),
    };
    let special = |key: &str, usual: &str| -> Result<AddedToken> {
        let value = [&map, &config].into_iter().find_map(|from| from.get(key));
        match value.filter(|value| !value.is_null()) {
            None => Ok(AddedToken::from(usual, true)),
            Some(value) => added(value).ok_or_else(|| {
                folder.wrong("tokenizer_config.json", format_args!("'{key}' is no token"))
            }),
        }
    };
    let named = [
        special("bos_token", START)?,
        special("eos_token", END)?,
        special("pad_token", END)?,
        special("unk_token", END)?,
    ];
    let [start, end, pad, unknown] = named.each_ref().map(|token| token.content.clone());
    let mut all = listed;
    if let Some(Value::Object(decoder)) = config.get("added_tokens_decoder") {
        for (id, value) in decoder {
            let token = added(value).zip(id.parse().ok()).ok_or_else(|| {
                folder.wrong(
                    "tokenizer_config.json",
                    format_args!("added token {id} is none"),
                )
            })?;
            all.push((token.0, Some(token.1)));
        }
    }
    if all.len() > ADDED_MAX {
        let problem = format_args!(
            "has {} added tokens, at most {ADDED_MAX} are read",
            all.len()
        );
        return Err(folder.wrong("tokenizer_config.json", problem));
    }
    // Ids of new tokens are given in turn.
    all.sort_by_key(|(_, id)| *id);
    all.extend(named.map(|token| (token, None)));
    Ok(Parts {
        vocabulary,
        merges,
        added: all,
        start,
        end,
        pad,
        unknown,
    })
}

/// A token that stands alone: its text, or an object about it.
fn added(value: &Value) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return Some(AddedToken::from(text, true));
    }
    let flag = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
    let content = value.get("content")?.as_str()?;
    Some(
        AddedToken::from(content, true)
            .single_word(flag("single_word"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"))
            .normalized(flag("normalized")),
    )
}

type Vocabulary = HashMap<String, u32>;
type Merges = Vec<(String, String)>;
type Listed = Vec<(AddedToken, Option<u32>)>;

/// `tokenizer.json`: its vocabulary, merges and added tokens. What it says of normalising and splitting is CLIP's own, or
/// it is no tokenizer of CLIP.
fn from_whole(
    folder: &Folder<'_>,
    whole: &Map<String, Value>,
) -> Result<(Vocabulary, Merges, Listed)> {
    let file = "tokenizer.json";
    let wrong = |problem: &str| folder.wrong(file, problem);
    let model = whole.get("model").ok_or_else(|| wrong("has no 'model'"))?;
    if model.get("end_of_word_suffix").and_then(Value::as_str)
        != Some(super::tokenizer::END_OF_WORD)
    {
        return Err(wrong("is not CLIP's: its words do not end in '</w>'"));
    }
    let table = model.get("vocab").and_then(Value::as_object);
    let table = table.ok_or_else(|| wrong("has no 'model.vocab'"))?;
    let list = model.get("merges").and_then(Value::as_array);
    let list = list.ok_or_else(|| wrong("has no 'model.merges'"))?;
    let merge = |value: &Value| -> Option<(String, String)> {
        match value {
            Value::String(line) => pair(line),
            Value::Array(two) => match &two[..] {
                [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
                _ => None,
            },
            _ => None,
        }
    };
    let merges = list.iter().map(merge).collect::<Option<_>>();
    let merges = merges.ok_or_else(|| wrong("has a merge that is not two tokens"))?;
    let mut listed = Vec::new();
    for value in whole
        .get("added_tokens")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let id = value.get("id").and_then(id_of);
        let token = added(value).zip(id);
        let (token, id) = token.ok_or_else(|| wrong("has an added token without text or id"))?;
        listed.push((token, Some(id)));
    }
    Ok((ids(folder, file, table)?, merges, listed))
}

/// `vocab.json` and `merges.txt`.
fn from_two_files(folder: &Folder<'_>) -> Result<(Vocabulary, Merges)> {
    let missing = |file: &str| Error::Incomplete {
        model: folder.model.name.clone(),
        what: format!(
            "{}/{file} is missing; fetch the model again",
            folder.component
        ),
    };
    let table = folder
        .object("vocab.json")?
        .ok_or_else(|| missing("vocab.json"))?;
    let text = folder
        .text("merges.txt")?
        .ok_or_else(|| missing("merges.txt"))?;
    let lines = text.lines().map(str::trim_end).enumerate();
    let lines = lines.filter(|(number, line)| {
        !(line.is_empty() || *number == 0 && line.starts_with("#version"))
    });
    let merge = |(number, line): (usize, &str)| {
        let problem = || {
            folder.wrong(
                "merges.txt",
                format_args!("line {} is not two tokens", number + 1),
            )
        };
        pair(line).ok_or_else(problem)
    };
    let merges = lines.map(merge).collect::<Result<_>>()?;
    Ok((ids(folder, "vocab.json", &table)?, merges))
}

fn pair(line: &str) -> Option<(String, String)> {
    let (a, b) = line.split_once(' ')?;
    (!a.is_empty() && !b.is_empty() && !b.contains(' ')).then(|| (a.to_owned(), b.to_owned()))
}

fn id_of(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn ids(folder: &Folder<'_>, file: &str, table: &Map<String, Value>) -> Result<Vocabulary> {
    let id = |(token, id): (&String, &Value)| {
        let problem = || folder.wrong(file, format_args!("token '{token}' has the id {id}"));
        id_of(id).map(|id| (token.clone(), id)).ok_or_else(problem)
    };
    table.iter().map(id).collect()
}
