//! Chunks and weights of prompts, as users of web interfaces write them.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::Path;
use std::sync::OnceLock;

use lowtide_engine::Error;
use lowtide_engine::clip_prompt::{
    Chunk, Chunks, ClipTokenizer, Inversion, Mode, Pad, Token, chunks::tokens_max, chunks_max,
};
use lowtide_weights::Checkpoint;
use serde_json::{Value, json};

const START: u32 = 49_406;
const END: u32 = 49_407;
const COMMA: u32 = 267;

/// Made once: it takes a while.
fn built_in(pad: Pad) -> &'static ClipTokenizer {
    static MADE: [OnceLock<ClipTokenizer>; 2] = [OnceLock::new(), OnceLock::new()];
    let made = &MADE[usize::from(pad == Pad::Zero)];
    made.get_or_init(|| ClipTokenizer::built_in("test", pad).unwrap())
}

/// What stands between start and end, shown as ids; learned rows as `i.row`.
fn content(chunk: &Chunk) -> Vec<String> {
    let end = chunk
        .tokens
        .iter()
        .position(|token| *token == Token::Id(END))
        .unwrap();
    assert_eq!(chunk.tokens[0], Token::Id(START));
    let shown = |token: &Token| match token {
        Token::Id(id) => id.to_string(),
        Token::Learned { inversion, row } => format!("{inversion}.{row}"),
    };
    chunk.tokens[1..end].iter().map(shown).collect()
}

fn lengths(chunks: &Chunks) -> Vec<usize> {
    chunks
        .chunks
        .iter()
        .map(|chunk| content(chunk).len())
        .collect()
}

fn read(tokenizer: &ClipTokenizer, prompt: &str) -> Chunks {
    tokenizer.chunks(prompt, Mode::Weighted, &[]).unwrap()
}

#[test]
fn a_short_prompt_is_one_chunk_in_either_mode() {
    for (pad, id) in [(Pad::End, END), (Pad::Zero, 0)] {
        let tokenizer = built_in(pad);
        let weighted = read(tokenizer, "a photo of a cat");
        assert_eq!(
            weighted,
            tokenizer
                .chunks("a photo of a cat", Mode::Literal, &[])
                .unwrap()
        );
        let mut expected = [id; 77];
        expected[..7].copy_from_slice(&[START, 320, 1125, 539, 320, 2368, END]);
        assert_eq!(weighted.chunks[0].ids(), expected);
        assert_eq!(weighted.chunks[0].weights, [1.0; 77]);
        let empty = read(tokenizer, "");
        assert_eq!(lengths(&empty), [0]);
        assert_eq!(empty.chunks[0].ids()[..3], [START, END, id]);
    }
}

#[test]
fn brackets_weigh_the_tokens_inside() {
    let tokenizer = built_in(Pad::End);
    let chunks = read(tokenizer, "a (photo of:1.3) [a] \\(cat\\)");
    let chunk = &chunks.chunks[0];
    assert_eq!(content(chunk).len(), 7);
    let down = (1.0 / 1.1) as f32;
    assert_eq!(
        chunk.weights[..9],
        [1.0, 1.0, 1.3, 1.3, down, 1.0, 1.0, 1.0, 1.0]
    );
    let literal = tokenizer
        .chunks("a (photo of:1.3)", Mode::Literal, &[])
        .unwrap();
    assert_eq!(literal.chunks[0].weights, [1.0; 77]);
    assert_eq!(content(&literal.chunks[0]).len(), 9);
}

#[test]
fn long_prompts_take_several_chunks() {
    let tokenizer = built_in(Pad::End);
    for (words, expected) in [(75, vec![75]), (76, vec![75, 1]), (200, vec![75, 75, 50])] {
        let prompt = "cat ".repeat(words);
        assert_eq!(lengths(&read(tokenizer, &prompt)), expected);
        let literal = tokenizer.chunks(&prompt, Mode::Literal, &[]).unwrap();
        assert_eq!(
            (lengths(&literal), literal.cut),
            (vec![words.min(75)], words > 75)
        );
    }
}

#[test]
fn a_full_chunk_ends_behind_a_comma_that_is_near() {
    let tokenizer = built_in(Pad::End);
    let prompt = |before: usize, after: usize| {
        format!("{}, {}", "cat ".repeat(before), "dog ".repeat(after))
    };
    // The comma is token number `before`; what follows it moves when it is no more than twenty from the end.
    assert_eq!(lengths(&read(tokenizer, &prompt(55, 30))), [56, 30]);
    assert_eq!(lengths(&read(tokenizer, &prompt(54, 30))), [75, 10]);
    assert_eq!(lengths(&read(tokenizer, &prompt(74, 3))), [75, 3]);
    assert_eq!(lengths(&read(tokenizer, &prompt(75, 3))), [75, 4]);
    assert_eq!(lengths(&read(tokenizer, &prompt(55, 19))), [75]);
    let chunks = read(tokenizer, &prompt(60, 80));
    assert_eq!(lengths(&chunks), [61, 75, 5]);
    assert_eq!(content(&chunks.chunks[0])[60], COMMA.to_string());
    assert_eq!(content(&chunks.chunks[1])[0], "1929");
    let literal = tokenizer
        .chunks(&prompt(60, 80), Mode::Literal, &[])
        .unwrap();
    assert_eq!(lengths(&literal), [75], "what is cut off is cut at the end");
    let weighed = read(
        tokenizer,
        &format!("{}, ({}:1.5)", "cat ".repeat(60), "dog ".repeat(20)),
    );
    assert_eq!(weighed.chunks[1].weights[1..21], [1.5; 20]);
    assert_eq!(weighed.chunks[1].weights[21], 1.0);
}

#[test]
fn a_break_begins_a_new_chunk() {
    let tokenizer = built_in(Pad::End);
    assert_eq!(
        lengths(&read(tokenizer, "a cat BREAK a dog, a hat BREAK")),
        [2, 5]
    );
    assert_eq!(lengths(&read(tokenizer, "BREAK a")), [0, 1]);
    assert_eq!(lengths(&read(tokenizer, "(a BREAK b c:1.2)")), [1, 2]);
    let literal = tokenizer.chunks("a BREAK b", Mode::Literal, &[]).unwrap();
    assert_eq!(lengths(&literal), [3]);
}

#[test]
fn prompts_are_padded_to_equally_many_chunks() {
    let tokenizer = built_in(Pad::Zero);
    let mut negative = read(tokenizer, "bad");
    negative.pad_to(3, tokenizer);
    assert_eq!(lengths(&negative), [1, 0, 0]);
    assert_eq!(negative.chunks[2], read(tokenizer, "").chunks[0]);
    negative.pad_to(1, tokenizer);
    assert_eq!(negative.chunks.len(), 3);
}

/// A safetensors file of zeros and ones with tensors of these shapes.
fn embedding(folder: &Path, tensors: &[(&str, &[usize])]) -> Checkpoint {
    let path = folder.join(format!(
        "{}.safetensors",
        tensors[0].0.replace(['/', '<', '>'], "_")
    ));
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        for i in 0..shape.iter().product::<usize>() {
            data.extend((i as f32).to_le_bytes());
        }
        let about = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).to_owned(), about);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path).unwrap()
}

#[test]
fn learned_rows_stand_where_their_name_is() {
    let folder = tempfile::tempdir().unwrap();
    let files = [
        embedding(folder.path(), &[("emb_params", &[3, 8])]),
        embedding(folder.path(), &[("<cat-toy>", &[8])]),
        embedding(folder.path(), &[("clip_l", &[40, 8]), ("clip_g", &[40, 6])]),
    ];
    let names = ["EasyNegative", "toy", "wide one"];
    let inversions: Vec<Inversion> = std::iter::zip(names, &files)
        .map(|(name, file)| Inversion::load(name, file).unwrap())
        .collect();
    assert_eq!(inversions[1].names(), ["toy", "<cat-toy>"]);
    assert_eq!(inversions[2].widths().unwrap(), [8, 6]);
    assert_eq!(
        inversions[0].row(1, 8).unwrap().unwrap(),
        [8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
    );
    assert_eq!(
        (
            inversions[0].row(1, 6).unwrap(),
            inversions[0].row(3, 8).unwrap()
        ),
        (None, None)
    );

    let tokenizer = built_in(Pad::End);
    let read = |prompt: &str| {
        tokenizer
            .chunks(prompt, Mode::Weighted, &inversions)
            .unwrap()
    };
    let chunks = read("a (easynegative, <Cat-Toy>toy:1.2) toys");
    let shown = content(&chunks.chunks[0]);
    assert_eq!(
        shown[..7],
        ["320", "0.0", "0.1", "0.2", "267", "1.0", "1.0"]
    );
    assert_eq!(chunks.chunks[0].weights[2..8], [1.2; 6]);
    assert_eq!(chunks.chunks[0].ids()[2..5], [0; 3]);

    // Rows of one name stay together, and commas move what is behind them with them.
    assert_eq!(
        lengths(&read(&format!("{} wide one", "cat ".repeat(36)))),
        [36, 40]
    );
    assert_eq!(
        lengths(&read(&format!("{} wide one", "cat ".repeat(35)))),
        [75]
    );
    assert_eq!(lengths(&read("wide one wide one wide one")), [40, 40, 40]);
    let literal = tokenizer
        .chunks("wide one wide one", Mode::Literal, &inversions)
        .unwrap();
    assert_eq!((lengths(&literal), literal.cut), (vec![75], true));
}

#[test]
fn the_web_uis_pickles_are_read_without_running_them() {
    let path = "../weights/tests/fixtures/torch/embedding.pt";
    let file = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let inversion = Inversion::load("style", &file).unwrap();
    assert_eq!(inversion.names(), ["style"]);
    let (rows, width) = (inversion.rows().unwrap(), inversion.widths().unwrap()[0]);
    assert!(
        inversion
            .row(rows - 1, width)
            .unwrap()
            .unwrap()
            .iter()
            .any(|value| *value != 0.0)
    );
}

#[test]
fn files_that_are_no_textual_inversion_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (tensors, complaint) in [
        (
            &[("emb_params", &[76usize, 8][..])][..],
            "has 76 rows of 8 values; 1 to 75 rows",
        ),
        (&[("emb_params", &[0, 8])], "0 rows of 8"),
        (&[("emb_params", &[1, 70_000])], "1 rows of 70000"),
        (&[("emb_params", &[1, 1, 8])], "not a list of rows"),
        (&[("a", &[1, 8]), ("b", &[1, 8])], "is no textual inversion"),
        (
            &[("clip_l", &[1, 8]), ("clip_g", &[2, 8])],
            "another number of rows",
        ),
        (&[("", &[1, 8])], "name that is empty"),
    ] {
        let refused = Inversion::load("x", &embedding(folder.path(), tensors)).unwrap_err();
        assert!(refused.to_string().contains(complaint), "{refused}");
        assert!(
            refused.to_string().starts_with("embedding 'x' ("),
            "{refused}"
        );
    }
}

#[test]
fn a_broken_file_is_said_to_whoever_names_it_and_to_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    embedding(folder.path(), &[("<toy>", &[2, 8])]);
    let whole = folder.path().join("_toy_.safetensors");
    let broken = folder.path().join("broken.safetensors");
    std::fs::write(&broken, b"a web page, not an embedding").unwrap();
    let gone = folder.path().join("gone.pt");
    let inversions = [
        Inversion::found("toy", &whole),
        Inversion::found("broken", &broken),
        Inversion::found("gone", &gone),
    ];
    assert_eq!(inversions[0].names(), ["toy", "<toy>"]);
    let tokenizer = built_in(Pad::End);
    let read = |prompt: &str| tokenizer.chunks(prompt, Mode::Weighted, &inversions);
    assert_eq!(
        content(&read("toy <toy>").unwrap().chunks[0])[..4],
        ["0.0", "0.1", "0.0", "0.1"]
    );
    for name in ["broken", "gone"] {
        let prompt = format!("a {name} toy");
        let refused = read(&prompt).unwrap_err().to_string();
        assert!(
            refused.starts_with(&format!("embedding '{name}' ({name}.")),
            "{refused}"
        );
        assert!(refused.contains("cannot be read"), "{refused}");
        let bound = chunks_max(&prompt, Mode::Weighted, &inversions).unwrap_err();
        assert_eq!(bound.to_string(), refused);
    }
    // Once it is mended, the next prompt has it.
    std::fs::copy(&whole, &broken).unwrap();
    assert_eq!(
        content(&read("broken").unwrap().chunks[0])[..2],
        ["1.0", "1.1"]
    );
}

#[test]
fn the_bound_without_a_tokenizer_holds() {
    let tokenizer = built_in(Pad::End);
    let folder = tempfile::tempdir().unwrap();
    let file = embedding(folder.path(), &[("emb_params", &[60, 8])]);
    let inversions = [Inversion::load("wide", &file).unwrap()];
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip/tokens.json");
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |row: &Value| row["text"].as_str().unwrap().to_owned();
    let mut prompts: Vec<String> = rows.iter().map(text).collect();
    let comma = format!("{},", "x".repeat(55));
    for unit in [
        "cat ",
        "😀",
        "a,",
        "cat, dog ",
        "wide ",
        "wide, a ",
        "BREAK ",
        "(a BREAK:1.1) ",
        comma.as_str(),
    ] {
        prompts.extend([1, 30, 75, 76, 300].map(|count| unit.repeat(count)));
    }
    // Each token a character, the comma as far back as it moves anything.
    let worst: String = ["! a ".repeat(27), "! , ".to_owned()].concat();
    prompts.push(worst.repeat(9));
    for prompt in &prompts {
        let Ok(max) = chunks_max(prompt, Mode::Weighted, &inversions) else {
            continue;
        };
        let found = tokenizer
            .chunks(prompt, Mode::Weighted, &inversions)
            .unwrap();
        assert!(
            found.chunks.len() <= max,
            "{} > {max}: {prompt:?}",
            found.chunks.len()
        );
        assert_eq!(chunks_max(prompt, Mode::Literal, &inversions).unwrap(), 1);
    }
    assert_eq!(
        chunks_max("a photo of a cat, 8k", Mode::Weighted, &[]).unwrap(),
        1
    );
}

#[test]
fn no_character_gives_more_tokens_than_the_bound() {
    let tokenizer = built_in(Pad::End);
    let all: Vec<char> = ('\0'..=char::MAX)
        .filter(|c| c.is_alphanumeric() || (*c as u32) < 0x30000)
        .collect();
    // A sum that holds for a block and not for a character in it is no matter; every block of 16 is looked at.
    for block in all.chunks(16) {
        let text: String = block.iter().flat_map(|c| [*c, ' ']).collect();
        let found = tokenizer.ids(&text).unwrap().len();
        let max = tokens_max(&text);
        assert!(found <= max, "{found} > {max}: {:x}", block[0] as u32);
    }
}

#[test]
fn planning_takes_no_time() {
    let prompt = "(masterpiece:1.2), best quality, [blurry], ".repeat(20);
    let start = std::time::Instant::now();
    for _ in 0..100 {
        assert!(chunks_max(&prompt, Mode::Weighted, &[]).unwrap() > 1);
    }
    assert!(start.elapsed().as_millis() < 200, "{:?}", start.elapsed());
}

#[test]
fn brackets_that_cannot_be_meant_are_the_requests_mistake() {
    let tokenizer = built_in(Pad::End);
    for prompt in ["(a:1000)".to_owned(), "(".repeat(100)] {
        let refused = tokenizer.chunks(&prompt, Mode::Weighted, &[]).unwrap_err();
        assert!(
            matches!(&refused, Error::Request { what, .. } if what == "prompt"),
            "{refused}"
        );
        assert!(tokenizer.chunks(&prompt, Mode::Literal, &[]).is_ok());
    }
}
