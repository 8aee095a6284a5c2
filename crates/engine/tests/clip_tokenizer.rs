//! CLIP's tokenizer: the tokens that transformers gives, from what the program carries and from files.
//!
//! The fixtures hold what `tools/reference/clip.py` recorded.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::Path;

use lowtide_engine::Error;
use lowtide_engine::clip_prompt::{ClipTokenizer, Mode, Pad};
use lowtide_weights::ModelFolder;
use serde_json::Value;

fn recorded_rows() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip/tokens.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn recorded(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn the_built_in_vocabulary_gives_the_references_tokens() {
    let rows = recorded_rows();
    assert!(rows.len() > 300);
    let made = |pad| ClipTokenizer::built_in("test", pad).unwrap();
    let (end, zero) = (made(Pad::End), made(Pad::Zero));
    for row in &rows {
        let text = row["text"].as_str().unwrap();
        assert_eq!(end.ids(text).unwrap(), recorded(&row["ids"]), "{text:?}");
        let expected = row.get("ids_padded_with_zero").unwrap_or(&row["ids"]);
        assert_eq!(
            zero.ids(text).unwrap(),
            recorded(expected),
            "{text:?}, padded with 0"
        );
    }
}

/// A folder with one tokenizer, of these files.
fn tokenizer_folder(files: &[(&str, &str)]) -> (tempfile::TempDir, ModelFolder) {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("tokenizer");
    std::fs::create_dir(&inside).unwrap();
    let index = r#"{"_class_name": "StableDiffusionPipeline", "tokenizer": ["transformers", "CLIPTokenizer"]}"#;
    std::fs::write(folder.path().join("model_index.json"), index).unwrap();
    for (name, text) in files {
        std::fs::write(inside.join(name), text).unwrap();
    }
    let model = ModelFolder::open(folder.path()).unwrap();
    (folder, model)
}

const VOCABULARY: &str = r#"{"a": 0, "b": 1, "b</w>": 2, "ab</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5, "!": 6}"#;

#[test]
fn special_tokens_come_from_where_the_files_say() {
    let merges = ("merges.txt", "#version: 0.2\na b</w>\n");
    let vocabulary = ("vocab.json", VOCABULARY);
    let pad = |files: &[(&str, &str)]| {
        let (_kept, folder) = tokenizer_folder(&[&[vocabulary, merges], files].concat());
        let tokenizer = ClipTokenizer::open(&folder, "tokenizer").unwrap();
        let ids = tokenizer.chunks("ab", Mode::Literal, &[]).unwrap().chunks[0].ids();
        assert_eq!(ids[..3], [4, 3, 5]);
        ids[3]
    };
    let map = (
        "special_tokens_map.json",
        r#"{"pad_token": {"content": "!"}}"#,
    );
    assert_eq!(pad(&[]), 5);
    assert_eq!(pad(&[map]), 6);
    assert_eq!(
        pad(&[
            ("tokenizer_config.json", r#"{"pad_token": "<|endoftext|>"}"#),
            map
        ]),
        6
    );
    let newer = r#"{"pad_token": "<|endoftext|>", "added_tokens_decoder": {"5": {"content": "<|endoftext|>"}}}"#;
    assert_eq!(pad(&[("tokenizer_config.json", newer), map]), 5);
    assert_eq!(
        pad(&[("tokenizer_config.json", r#"{"pad_token": "!"}"#)]),
        6
    );
}

#[test]
fn tokenizers_that_are_broken_are_refused_by_file() {
    let vocabulary = ("vocab.json", VOCABULARY);
    let merges = ("merges.txt", "#version: 0.2\na b</w>\n");
    let cases: [(&[(&str, &str)], &str); 12] = [
        (
            &[("tokenizer_config.json", "{}")],
            "tokenizer/vocab.json is missing",
        ),
        (&[vocabulary], "tokenizer/merges.txt is missing"),
        (
            &[("vocab.json", "[]"), merges],
            "tokenizer/vocab.json: is not an object",
        ),
        (
            &[("vocab.json", "{\"a\": -1}"), merges],
            "token 'a' has the id -1",
        ),
        (
            &[vocabulary, ("merges.txt", "a b</w>\nab\n")],
            "line 2 is not two tokens",
        ),
        (
            &[vocabulary, ("merges.txt", "a a\n")],
            "needs 'aa', which is no token",
        ),
        (
            &[
                ("vocab.json", r#"{"a": 0, "b": 0, "<|endoftext|>": 1}"#),
                ("merges.txt", ""),
            ],
            "have one id",
        ),
        (
            &[("vocab.json", r#"{"a": 0}"#), ("merges.txt", "")],
            "'<|endoftext|>' is not in the vocabulary",
        ),
        (
            &[
                vocabulary,
                merges,
                ("special_tokens_map.json", r#"{"pad_token": 3}"#),
            ],
            "'pad_token' is no token",
        ),
        (
            &[
                vocabulary,
                merges,
                (
                    "tokenizer_config.json",
                    r#"{"added_tokens_decoder": {"9": {"content": "<x>"}}}"#,
                ),
            ],
            "the files give token '<x>' an id that is not free",
        ),
        (
            &[(
                "tokenizer.json",
                r#"{"model": {"vocab": {}, "merges": []}}"#,
            )],
            "is not CLIP's",
        ),
        (
            &[(
                "tokenizer.json",
                r#"{"model": {"end_of_word_suffix": "</w>", "vocab": {}, "merges": ["ab"]}}"#,
            )],
            "has a merge that is not two tokens",
        ),
    ];
    for (files, complaint) in cases {
        let (_kept, folder) = tokenizer_folder(files);
        let Err(refused) = ClipTokenizer::open(&folder, "tokenizer") else {
            panic!("accepted: {complaint}");
        };
        let message = refused.to_string();
        assert!(message.contains(complaint), "{message}");
        assert!(matches!(
            refused,
            Error::Tokenizer { .. } | Error::Incomplete { .. }
        ));
    }
}
