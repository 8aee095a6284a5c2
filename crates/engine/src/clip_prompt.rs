//! From a prompt to what CLIP text encoders read: chunks of 77 tokens, a weight for each.
//!
//! Two ways to read a prompt. [`Mode::Weighted`] is what users of web interfaces write: brackets weigh, `BREAK` begins a
//! new chunk, and a prompt may be of any length. [`Mode::Literal`] is what diffusers does: every character is text, and
//! what does not fit into one chunk is cut off. Up to 75 tokens without brackets are the same in both.
//!
//! Read [`brackets`] for what the signs mean, then [`chunks`] for how tokens are dealt out, then [`tokenizer`].

pub mod brackets;
pub mod chunks;
mod emphasis;
mod files;
pub mod inversion;
mod rows;
pub mod tokenizer;
mod vocabulary;

pub use chunks::{CHUNK_TOKENS, CONTENT_TOKENS, Chunk, Chunks, Token, chunks_max};
pub use emphasis::emphasise;
pub use inversion::Inversion;
pub use rows::{position_rows, token_rows};
pub use tokenizer::{ClipTokenizer, Pad};

/// How a prompt is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Brackets weigh, `BREAK` breaks, long prompts take several chunks.
    #[default]
    Weighted,
    /// Every character is text; one chunk, the rest is cut off.
    Literal,
}
