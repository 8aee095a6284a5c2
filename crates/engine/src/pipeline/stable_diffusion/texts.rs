//! Prompts of models with CLIP text encoders: chunks of tokens, their states, and what is made of them together.

use lowtide_models::clip_text::{self, Encoded, Sequence};
use lowtide_models::{Result as ModelResult, Tensor};

use super::{Encoder, Kind, StableDiffusion, wanted};
use crate::Result;
use crate::clip_prompt::{
    Chunk, Chunks, ClipTokenizer, Inversion, Mode, Pad, Token, chunks_max, emphasise,
    position_rows, token_rows,
};
use crate::pipeline::Running;
use crate::request::{ImageRequest, Reading};
use crate::session::work::{Text, TextKey};

/// Tokens of a chunk.
pub(super) const CHUNK: usize = crate::clip_prompt::CHUNK_TOKENS;

/// Marks a learned row in a key: which inversion, which of its rows.
const LEARNED: u32 = 1 << 31;
const INVERSION_BITS: u32 = 15;
const ROW_BITS: u32 = 16;

fn key_of(token: Token) -> u32 {
    match token {
        Token::Id(id) => id,
        Token::Learned { inversion, row } => {
            LEARNED | (inversion as u32) << ROW_BITS | (row as u32 & ((1 << ROW_BITS) - 1))
        }
    }
}

fn token_of(key: u32) -> Token {
    if key & LEARNED == 0 {
        return Token::Id(key);
    }
    Token::Learned {
        inversion: (key >> ROW_BITS & ((1 << INVERSION_BITS) - 1)) as usize,
        row: (key & ((1 << ROW_BITS) - 1)) as usize,
    }
}

/// How a request's prompts are read.
fn mode(request: &ImageRequest) -> Mode {
    match request.reading {
        Reading::Weighted => Mode::Weighted,
        Reading::Literal => Mode::Literal,
    }
}

/// FNV-1a: the same in every process and version.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |digest, &byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl StableDiffusion {
    /// The embeddings that prompts can call by name; looked for when the first prompt is read.
    fn inversions(&self) -> &[Inversion] {
        self.inversions.get_or_init(|| {
            let found = self.files.embeddings().into_iter();
            found
                .map(|(name, path)| Inversion::found(&name, &path))
                .collect()
        })
    }

    /// The texts of each request.
    pub(super) fn tokenize(&self, requests: &[&ImageRequest]) -> Result<Vec<Vec<TextKey>>> {
        let open = |encoder: &Encoder| self.tokenizer(encoder);
        let tokenizers = self.encoders.iter().map(open).collect::<Result<Vec<_>>>()?;
        let inversions = self.inversions();
        let texts = |request: &&ImageRequest| self.keys(request, &tokenizers, inversions);
        requests.iter().map(texts).collect()
    }

    /// An encoder's own tokenizer; models in one file have none, and then it is the one all of these were trained with.
    fn tokenizer(&self, encoder: &Encoder) -> Result<ClipTokenizer> {
        if self.folder.component(encoder.tokenizer).is_some() {
            return ClipTokenizer::open(&self.folder, encoder.tokenizer);
        }
        // Those of OpenCLIP fill chunks with token 0, those of OpenAI with the end token.
        let config = self.folder.component(encoder.component);
        let activation = config.and_then(|component| component.config["hidden_act"].as_str());
        let pad = match activation {
            Some("gelu") => Pad::Zero,
            _ => Pad::End,
        };
        ClipTokenizer::built_in(&self.folder.name, pad)
    }

    /// Whether this can be a text of this model.
    pub(super) fn is_text(&self, text: &TextKey) -> bool {
        let inversions = self.inversions();
        let tokens = text.tokens();
        let known = |&key: &u32| match token_of(key) {
            Token::Id(_) => true,
            Token::Learned { inversion, row } => {
                let inversion = inversions.get(inversion);
                let rows = inversion.and_then(|inversion| inversion.rows().ok());
                rows.is_some_and(|rows| row < rows)
            }
        };
        let same = |lists: &[Vec<u32>]| {
            lists.len() == self.encoders.len() && lists.iter().all(|list| list.len() == tokens)
        };
        tokens > 0
            && tokens.is_multiple_of(CHUNK)
            && same(&text.ids)
            && (text.weights.is_empty() || same(&text.weights))
            && text.ids.iter().flatten().all(known)
    }

    fn keys(
        &self,
        request: &ImageRequest,
        tokenizers: &[ClipTokenizer],
        inversions: &[Inversion],
    ) -> Result<Vec<TextKey>> {
        let read = |text: &str| -> Result<Vec<Chunks>> {
            let chunks =
                |tokenizer: &ClipTokenizer| tokenizer.chunks(text, mode(request), inversions);
            tokenizers.iter().map(chunks).collect()
        };
        let mut texts = vec![read(&request.prompt)?];
        let guided = crate::pipeline::Pipeline::guided(self, request);
        if guided {
            texts.push(read(request.negative.as_deref().unwrap_or(""))?);
        }
        let longest = texts.iter().flatten().map(|text| text.chunks.len()).max();
        for text in &mut texts {
            for (chunks, tokenizer) in text.iter_mut().zip(tokenizers) {
                chunks.pad_to(longest.unwrap_or(1), tokenizer);
            }
        }
        let zeros = |k: usize| k == 1 && self.zeros_for_empty && request.negative.is_none();
        let keys = texts.iter().enumerate();
        // diffusers skips no layer for the negative prompt, web UIs do.
        let skip = |k: usize| match (k, request.reading) {
            (1, Reading::Literal) => 0,
            _ => request.clip_skip,
        };
        Ok(keys
            .map(|(k, text)| TextKey {
                zeros: zeros(k),
                clip_skip: skip(k),
                ..self.key(text, inversions)
            })
            .collect())
    }

    fn key(&self, text: &[Chunks], inversions: &[Inversion]) -> TextKey {
        let flat = |of: &dyn Fn(&Chunk) -> Vec<u32>| -> Vec<Vec<u32>> {
            let chunks = text.iter().map(|chunks| chunks.chunks.iter().flat_map(of));
            chunks.map(Iterator::collect).collect()
        };
        let ids = flat(&|chunk| chunk.tokens.map(key_of).to_vec());
        let weights = flat(&|chunk| chunk.weights.map(f32::to_bits).to_vec());
        let plain = weights
            .iter()
            .flatten()
            .all(|&bits| bits == 1.0_f32.to_bits());
        // Indexes of learned rows mean something only beside the names of all inversions.
        let learned = ids.iter().flatten().any(|id| id & LEARNED != 0);
        let names = inversions.iter().filter(|_| learned);
        let names: Vec<u8> = names
            .flat_map(|inversion| inversion.names().concat().into_bytes())
            .collect();
        TextKey {
            ids,
            weights: if plain { Vec::new() } else { weights },
            clip_skip: 0,
            settings: if names.is_empty() { 0 } else { digest(&names) },
            zeros: false,
            adapters: None,
        }
    }

    /// Upper bounds of the token counts of a request's texts.
    pub(super) fn tokens_bound(&self, request: &ImageRequest) -> Result<Vec<usize>> {
        let inversions = self.inversions();
        let mut texts = vec![&request.prompt[..]];
        if crate::pipeline::Pipeline::guided(self, request) {
            texts.push(request.negative.as_deref().unwrap_or(""));
        }
        let chunks = texts
            .iter()
            .map(|text| chunks_max(text, mode(request), inversions))
            .collect::<Result<Vec<_>>>()?;
        let longest = chunks.into_iter().max().unwrap_or(1);
        Ok(vec![longest * CHUNK; texts.len()])
    }

    /// Shapes of what is made of a text after so many encoders.
    pub(super) fn made_shapes(&self, text: &TextKey, stages: usize) -> Vec<Vec<usize>> {
        let tokens = text.tokens();
        let states = self.encoders[..stages]
            .iter()
            .map(|encoder| encoder.config.hidden);
        if stages == 0 {
            return Vec::new();
        }
        let mut shapes = vec![vec![tokens, states.sum()]];
        if stages == self.encoders.len() && self.kind == Kind::Pooled {
            shapes.push(vec![1, self.encoders[stages - 1].config.pooled()]);
        }
        shapes
    }

    /// Runs one text encoder over all texts.
    pub(super) fn run_encoder(
        &self,
        stage: usize,
        running: Running<'_>,
        texts: &mut [&mut Text],
    ) -> Result<()> {
        let encoder = &self.encoders[stage];
        let last = stage + 1 == self.encoders.len();
        let about = (&self.folder.name[..], &*encoder.checkpoint);
        let tables = &encoder.part.layout.tables;
        let inversions = self.inversions();
        let chunks: Vec<Vec<Chunk>> = texts
            .iter()
            .map(|text| chunks_of(&text.key, stage))
            .collect();
        let mut sequences = Vec::new();
        for (chunks, text) in chunks.iter().zip(&*texts) {
            let wanted = wanted(self.kind, text.key.clip_skip, last);
            for chunk in chunks.iter().filter(|_| !text.key.zeros) {
                sequences.push(Sequence {
                    rows: token_rows(about, &tables[0], chunk, inversions)?,
                    end: chunk.end(&encoder.config),
                    wanted,
                });
            }
        }
        let positions = position_rows(about, &tables[1])?;
        let ready = clip_text::Encoder {
            compute: running.compute,
            config: &encoder.config,
            layout: &encoder.part.layout,
            positions: &positions,
        };
        let wrap = self.error(encoder.component);
        let encoded = clip_text::encode(running.source, &ready, sequences).map_err(&wrap)?;
        let mut encoded = encoded.into_iter();
        let mut made = Vec::with_capacity(texts.len());
        for (text, chunks) in texts.iter().zip(&chunks) {
            let of_text: Vec<Encoded> = match text.key.zeros {
                true => Vec::new(),
                false => encoded.by_ref().take(chunks.len()).collect(),
            };
            let joined = self.join((stage, last), text, chunks, of_text);
            made.push(joined.map_err(&wrap)?);
        }
        for (text, made) in texts.iter_mut().zip(made) {
            text.made = made;
        }
        Ok(())
    }

    /// The states of all chunks one below the other, beside those of the encoders before; and what is pooled.
    fn join(
        &self,
        (stage, last): (usize, bool),
        text: &Text,
        chunks: &[Chunk],
        encoded: Vec<Encoded>,
    ) -> ModelResult<Vec<Tensor>> {
        let config = &self.encoders[stage].config;
        let (tokens, width) = (text.key.tokens(), config.hidden);
        let before = text.made.first();
        let left = before.map_or(0, |states| states.shape()[1]);
        let mut states = Tensor::zeros(&[tokens, left + width])?;
        let pooled = encoded.first().and_then(|first| first.pooled.as_ref());
        let pooled = pooled.map(Tensor::duplicate).transpose()?;
        let mut rows = states.data_mut().chunks_exact_mut(left + width);
        for (chunk, mut one) in chunks.iter().zip(encoded) {
            if chunk.weights.iter().any(|&weight| weight != 1.0) {
                emphasise(&mut one.hidden, &chunk.weights);
            }
            for (from, to) in one.hidden.data().chunks_exact(width).zip(&mut rows) {
                to[left..].copy_from_slice(from);
            }
        }
        if let Some(before) = before {
            let to = states.data_mut().chunks_exact_mut(left + width);
            for (from, to) in before.data().chunks_exact(left).zip(to) {
                to[..left].copy_from_slice(from);
            }
        }
        let mut made = vec![states];
        if last && self.kind == Kind::Pooled {
            made.push(match pooled {
                Some(pooled) => pooled,
                None => Tensor::zeros(&[1, config.pooled()])?,
            });
        }
        Ok(made)
    }
}

/// A key's chunks for one encoder.
fn chunks_of(key: &TextKey, stage: usize) -> Vec<Chunk> {
    let weight = |k: usize| {
        let bits = key.weights.get(stage).and_then(|weights| weights.get(k));
        bits.map_or(1.0, |&bits| f32::from_bits(bits))
    };
    let ids = key.ids[stage].chunks_exact(CHUNK);
    ids.enumerate()
        .map(|(at, ids)| Chunk {
            tokens: std::array::from_fn(|k| token_of(ids[k])),
            weights: std::array::from_fn(|k| weight(at * CHUNK + k)),
        })
        .collect()
}
