//! How tokens are dealt out to chunks.

use lowtide_models::clip_text;

use super::Mode;
use super::brackets::{self, Part};
use super::inversion::{Inversion, Span, spans};
use super::tokenizer::ClipTokenizer;
use crate::{Error, Result};

/// Tokens of a chunk: what the encoders were trained on.
pub const CHUNK_TOKENS: usize = 77;
/// Tokens of a chunk between its start and its end.
pub const CONTENT_TOKENS: usize = CHUNK_TOKENS - 2;
/// A chunk that is full ends behind its last comma instead, when no more than this many tokens follow it.
const COMMA_TOKENS: usize = 20;

/// One position of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A token of the vocabulary: a row of the encoder's table.
    Id(u32),
    /// A row that a textual inversion brings.
    Learned {
        /// Which of the inversions that the prompt was read with.
        inversion: usize,
        /// Which of its rows.
        row: usize,
    },
}

/// 77 tokens: start, content, end, padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// The tokens.
    pub tokens: [Token; CHUNK_TOKENS],
    /// The weight of each, 1 outside brackets.
    pub weights: [f32; CHUNK_TOKENS],
}

impl Chunk {
    /// Ids, with 0 for learned rows: where the end is can be found in them.
    pub fn ids(&self) -> [u32; CHUNK_TOKENS] {
        self.tokens.map(|token| match token {
            Token::Id(id) => id,
            Token::Learned { .. } => 0,
        })
    }

    /// The row whose state is pooled.
    pub fn end(&self, config: &clip_text::Config) -> usize {
        config.end_of(&self.ids())
    }

    fn new(tokenizer: &ClipTokenizer, content: &[(Token, f32)]) -> Chunk {
        let mut tokens = [Token::Id(tokenizer.pad); CHUNK_TOKENS];
        let mut weights = [1.0; CHUNK_TOKENS];
        tokens[0] = Token::Id(tokenizer.start);
        for (i, &(token, weight)) in content.iter().enumerate() {
            (tokens[i + 1], weights[i + 1]) = (token, weight);
        }
        tokens[content.len() + 1] = Token::Id(tokenizer.end);
        Chunk { tokens, weights }
    }
}

/// A prompt for one text encoder: a chunk or more.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunks {
    /// In order. What is pooled is pooled of the first.
    pub chunks: Vec<Chunk>,
    /// Whether tokens were cut off, which happens to literal prompts only.
    pub cut: bool,
}

impl Chunks {
    /// Appends empty chunks up to `count`: prompt and negative prompt must have equally many.
    pub fn pad_to(&mut self, count: usize, tokenizer: &ClipTokenizer) {
        while self.chunks.len() < count {
            self.chunks.push(Chunk::new(tokenizer, &[]));
        }
    }
}

impl ClipTokenizer {
    /// Reads a prompt; words that name one of `inversions` become its rows.
    ///
    /// # Errors
    /// [`Error::Request`] for brackets that cannot be meant and broken files of inversions, [`Error::Tokenizer`].
    pub fn chunks(&self, prompt: &str, mode: Mode, inversions: &[Inversion]) -> Result<Chunks> {
        let mut dealer = Dealer::new(self, mode);
        for part in parts(prompt, mode)? {
            let Part::Text(text, weight) = part else {
                dealer.close();
                continue;
            };
            for span in spans(&text, inversions) {
                match span {
                    Span::Text(text) => {
                        for id in self.ids(text)? {
                            dealer.id(id, weight as f32);
                        }
                    }
                    Span::Learned(inversion) => {
                        let rows = inversions[inversion].rows()?;
                        dealer.learned(inversion, rows, weight as f32);
                    }
                }
                if mode == Mode::Literal && dealer.chunks.len() > 1 {
                    break;
                }
            }
        }
        Ok(dealer.end())
    }
}

fn parts(prompt: &str, mode: Mode) -> Result<Vec<Part>> {
    match mode {
        Mode::Literal => Ok(vec![Part::Text(prompt.to_owned(), 1.0)]),
        Mode::Weighted => {
            brackets::read(prompt).map_err(|problem| Error::request("prompt", problem.to_string()))
        }
    }
}

/// Fills chunks.
struct Dealer<'a> {
    tokenizer: &'a ClipTokenizer,
    mode: Mode,
    chunks: Vec<Chunk>,
    content: Vec<(Token, f32)>,
    /// Where in the content the last comma is.
    comma: Option<usize>,
}

impl<'a> Dealer<'a> {
    fn new(tokenizer: &'a ClipTokenizer, mode: Mode) -> Dealer<'a> {
        Dealer {
            tokenizer,
            mode,
            chunks: Vec::new(),
            content: Vec::new(),
            comma: None,
        }
    }

    fn close(&mut self) {
        self.chunks.push(Chunk::new(self.tokenizer, &self.content));
        self.content.clear();
        self.comma = None;
    }

    /// Makes room for one token, if need be by ending the chunk behind its last comma.
    fn make_room(&mut self) {
        if self.content.len() < CONTENT_TOKENS {
            return;
        }
        let near = self
            .comma
            .filter(|comma| CONTENT_TOKENS - comma <= COMMA_TOKENS);
        let moved = near.map(|comma| self.content.split_off(comma + 1));
        self.close();
        self.content.extend(moved.unwrap_or_default());
    }

    fn id(&mut self, id: u32, weight: f32) {
        if self.mode == Mode::Weighted && Some(id) == self.tokenizer.comma {
            // A comma itself never moves what is before it.
            if self.content.len() == CONTENT_TOKENS {
                self.close();
            } else {
                self.comma = Some(self.content.len());
            }
        }
        self.make_room();
        self.content.push((Token::Id(id), weight));
    }

    /// All rows of an inversion go into one chunk, unless what does not fit is to be cut off.
    fn learned(&mut self, inversion: usize, rows: usize, weight: f32) {
        self.make_room();
        if self.mode == Mode::Weighted && self.content.len() + rows > CONTENT_TOKENS {
            self.close();
        }
        for row in 0..rows {
            self.make_room();
            self.content
                .push((Token::Learned { inversion, row }, weight));
        }
    }

    fn end(mut self) -> Chunks {
        if !self.content.is_empty() || self.chunks.is_empty() {
            self.close();
        }
        let mut cut = false;
        if self.mode == Mode::Literal {
            cut = self.chunks.len() > 1;
            self.chunks.truncate(1);
        }
        Chunks {
            chunks: self.chunks,
            cut,
        }
    }
}

/// The most chunks that a prompt can give, without a tokenizer and in next to no time: what a plan is made for before
/// the prompt is read. Every token is at least a byte.
///
/// # Errors
/// [`Error::Request`] for brackets that cannot be meant and broken files of inversions.
pub fn chunks_max(prompt: &str, mode: Mode, inversions: &[Inversion]) -> Result<usize> {
    if mode == Mode::Literal {
        return Ok(1);
    }
    // A chunk that is closed because it is full holds at least so many tokens.
    const FILLED: usize = CONTENT_TOKENS - COMMA_TOKENS + 1;
    let (mut chunks, mut tokens, mut learned) = (1, 0, 0);
    for part in
        brackets::read(prompt).map_err(|problem| Error::request("prompt", problem.to_string()))?
    {
        let Part::Text(text, _) = part else {
            chunks += 1;
            continue;
        };
        for span in spans(&text, inversions) {
            match span {
                Span::Text(text) => tokens += tokens_max(text),
                Span::Learned(inversion) => {
                    tokens += inversions[inversion].rows()?;
                    learned += 1;
                }
            }
        }
    }
    // Nothing is full when everything fits.
    if tokens > CONTENT_TOKENS {
        chunks += tokens / FILLED + learned;
    }
    Ok(chunks)
}

/// The most tokens that a text can give: bytes, of which composing and lower case may make more. Spaces give none.
pub fn tokens_max(text: &str) -> usize {
    // Composing can make three bytes of one, lower case three of two.
    const ELSEWHERE: usize = 5;
    let bytes = |c: char| match c {
        _ if c.is_whitespace() => 0,
        '\0'..='\x7f' => 1,
        // Signs and scripts of East Asia, and pictures: nothing there grows.
        '\u{3000}'..='\u{d7a3}' | '\u{1f300}'..='\u{1faff}' => c.len_utf8(),
        _ => ELSEWHERE * c.len_utf8(),
    };
    text.chars().map(bytes).sum()
}
