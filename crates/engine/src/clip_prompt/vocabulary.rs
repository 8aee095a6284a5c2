//! The vocabulary that comes with the program.
//!
//! CLIP's authors made it; its licence is in `LICENSE` beside this file. `merges.bin` holds, for each merge, the ids of
//! the two tokens it joins; `tools/reference/clip_vocabulary.py` wrote it.

use std::collections::HashMap;

use tokenizers::AddedToken;

use super::tokenizer::{END, END_OF_WORD, Pad, Parts, START};

static MERGES: &[u8] = include_bytes!("merges.bin");

/// The letter that stands for each byte, in the order of their ids: bytes that can be printed stand for themselves and
/// come first.
fn byte_letters() -> Vec<char> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let (shown, hidden): (Vec<u8>, Vec<u8>) = (0..=u8::MAX).partition(printable);
    let stand_ins = (256..)
        .zip(hidden)
        .filter_map(|(code, _)| char::from_u32(code));
    shown.into_iter().map(char::from).chain(stand_ins).collect()
}

/// The vocabulary and its merges.
pub(super) fn parts(pad: Pad) -> Parts {
    let letters = byte_letters();
    let mut tokens: Vec<String> = letters.iter().map(char::to_string).collect();
    tokens.extend(
        letters
            .iter()
            .map(|letter| format!("{letter}{END_OF_WORD}")),
    );
    let mut merges = Vec::with_capacity(MERGES.len() / 4);
    for pair in MERGES.chunks_exact(4) {
        let token = |at: usize| &tokens[usize::from(u16::from_le_bytes([pair[at], pair[at + 1]]))];
        let (a, b) = (token(0).clone(), token(2).clone());
        tokens.push(format!("{a}{b}"));
        merges.push((a, b));
    }
    let pad = match pad {
        Pad::End => END.to_owned(),
        Pad::Zero => tokens[0].clone(),
    };
    tokens.extend([START.to_owned(), END.to_owned()]);
    let special = [START, END, &pad];
    let added = special.map(|token| (AddedToken::from(token, true), None));
    let vocabulary: HashMap<String, u32> = tokens.into_iter().zip(0..).collect();
    Parts {
        vocabulary,
        merges,
        added: added.into(),
        start: START.to_owned(),
        end: END.to_owned(),
        pad,
        unknown: END.to_owned(),
    }
}
