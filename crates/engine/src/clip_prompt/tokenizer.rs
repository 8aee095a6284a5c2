//! CLIP's tokenizer: lower case, words with their end marked, byte pairs joined by rank.

use std::collections::{HashMap, HashSet};

use lowtide_weights::ModelFolder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as Splits;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
};

use super::files;
use super::vocabulary;
use crate::{Error, Result};

/// Marks the end of a word in the vocabulary.
pub(super) const END_OF_WORD: &str = "</w>";
/// What begins a chunk, unless files say otherwise.
pub(super) const START: &str = "<|startoftext|>";
/// What ends a chunk, and stands for what is unknown.
pub(super) const END: &str = "<|endoftext|>";
/// Words: those two signs, English endings, letters, single digits, runs of anything else.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// What fills a chunk behind its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pad {
    /// The end token: Stable Diffusion 1, the first encoder of SDXL.
    End,
    /// Token 0, `!`: Stable Diffusion 2, the second encoder of SDXL.
    Zero,
}

/// Turns text into token ids of one text encoder.
pub struct ClipTokenizer {
    model: String,
    tokenizer: Tokenizer,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) pad: u32,
    pub(super) comma: Option<u32>,
}

/// What a tokenizer is made of.
pub(super) struct Parts {
    /// Ids by token.
    pub(super) vocabulary: HashMap<String, u32>,
    /// Which tokens are joined, the first to be joined first.
    pub(super) merges: Vec<(String, String)>,
    /// Tokens that are found in a text as they stand, with the ids they must have where files say so.
    pub(super) added: Vec<(AddedToken, Option<u32>)>,
    /// What begins a chunk.
    pub(super) start: String,
    /// What ends it.
    pub(super) end: String,
    /// What fills it.
    pub(super) pad: String,
    /// What stands for bytes that the vocabulary lacks.
    pub(super) unknown: String,
}

impl ClipTokenizer {
    /// Reads the tokenizer in the folder of `component` (`tokenizer`, `tokenizer_2`): `tokenizer.json`, or `vocab.json`
    /// and `merges.txt`.
    ///
    /// # Errors
    /// [`Error::Incomplete`] or [`Error::Tokenizer`].
    pub fn open(folder: &ModelFolder, component: &str) -> Result<ClipTokenizer> {
        let parts = files::read(folder, component)?;
        ClipTokenizer::new(&folder.name, parts).map_err(|problem| Error::Tokenizer {
            model: folder.name.clone(),
            problem: format!("{component}: {problem}"),
        })
    }

    /// The vocabulary all CLIP encoders were trained with, for checkpoints that come without one.
    ///
    /// # Errors
    /// [`Error::Tokenizer`], which would be a bug.
    pub fn built_in(model: &str, pad: Pad) -> Result<ClipTokenizer> {
        let parts = vocabulary::parts(pad);
        ClipTokenizer::new(model, parts).map_err(|problem| Error::Tokenizer {
            model: model.to_owned(),
            problem,
        })
    }

    fn new(model: &str, parts: Parts) -> std::result::Result<ClipTokenizer, String> {
        check(&parts)?;
        let said = |e: tokenizers::Error| e.to_string();
        let vocabulary: Vocab = parts.vocabulary.into_iter().collect();
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary, parts.merges)
            .end_of_word_suffix(END_OF_WORD.to_owned())
            .unk_token(parts.unknown)
            .build()
            .map_err(said)?;
        let mut tokenizer = Tokenizer::new(bpe);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ").map_err(said)?;
        let normalizers: Vec<NormalizerWrapper> = vec![NFC.into(), spaces.into(), Lowercase.into()];
        tokenizer
            .with_normalizer(Some(Sequence::new(normalizers)))
            .map_err(said)?;
        let words = SplitPattern::Regex(WORDS.to_owned());
        let words = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(said)?;
        let splits: Vec<PreTokenizerWrapper> =
            vec![words.into(), ByteLevel::new(false, true, true).into()];
        tokenizer.with_pre_tokenizer(Some(Splits::new(splits)));
        for (token, id) in parts.added {
            let content = token.content.clone();
            tokenizer.add_special_tokens([token]).map_err(said)?;
            let given = tokenizer.token_to_id(&content);
            if id.is_some_and(|id| given != Some(id)) {
                return Err(format!(
                    "the files give token '{content}' an id that is not free"
                ));
            }
        }
        let id = |token: &str| {
            let missing = || format!("'{token}' is not in the vocabulary");
            tokenizer.token_to_id(token).ok_or_else(missing)
        };
        Ok(ClipTokenizer {
            model: model.to_owned(),
            start: id(&parts.start)?,
            end: id(&parts.end)?,
            pad: id(&parts.pad)?,
            comma: tokenizer.token_to_id(&format!(",{END_OF_WORD}")),
            tokenizer,
        })
    }

    /// The ids of a text, without start, end or padding.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|e| Error::Tokenizer {
            model: self.model.clone(),
            problem: e.to_string(),
        })?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// What the library takes for granted: what is joined, and what comes of it, are tokens; no two have one id.
fn check(parts: &Parts) -> std::result::Result<(), String> {
    let vocabulary = &parts.vocabulary;
    let mut joined = String::new();
    for (a, b) in &parts.merges {
        joined.clear();
        joined.push_str(a);
        joined.push_str(b);
        for token in [a, b, &joined] {
            if !vocabulary.contains_key(token) {
                return Err(format!(
                    "the merge of '{a}' and '{b}' needs '{token}', which is no token"
                ));
            }
        }
    }
    let ids: HashSet<u32> = vocabulary.values().copied().collect();
    if ids.len() != vocabulary.len() {
        return Err("two tokens of the vocabulary have one id".to_owned());
    }
    if !vocabulary.contains_key(&parts.unknown) {
        return Err(format!("'{}' is not in the vocabulary", parts.unknown));
    }
    Ok(())
}
