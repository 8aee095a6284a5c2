//! CLIP text encoders against transformers: both classes, old and new names, every way to find the pooled row.
//!
//! The fixtures hold what `tools/reference/clip.py` recorded.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

#[path = "clip/files.rs"]
mod files;

use lowtide_core::ComponentLayout;
use lowtide_models::clip_text::{
    Class, Config, Encoded, Encoder, Sequence, Wanted, encode, layout,
};
use lowtide_models::{Compute, Error, Precision, Tensor};
use lowtide_weights::Checkpoint;
use serde_json::json;

use files::{Known, Opened, fixture, off, values};

/// In standard deviations. The promise is 2e-3; this is what f32 gives.
const LIMIT: f64 = 1e-5;

const CASES: [&str; 5] = [
    "legacy-end",
    "plain-names",
    "projected",
    "projected-first-end",
    "tanh",
];

fn ids(file: &Checkpoint, sequence: usize) -> Vec<u32> {
    let entry = file.get("ids").unwrap();
    let mut bytes = vec![0; entry.bytes as usize];
    file.read(entry, &mut bytes).unwrap();
    let all = bytes
        .chunks_exact(8)
        .map(|id| u32::from_le_bytes(id[..4].try_into().unwrap()));
    let tokens = entry.shape[1];
    all.skip(sequence * tokens).take(tokens).collect()
}

/// Entry `index` of a batch (B, T, D).
fn entry(batch: &Tensor, index: usize) -> &[f32] {
    let size = batch.data().len() / batch.shape()[0];
    &batch.data()[index * size..][..size]
}

/// Rows `ids` of the token table.
fn rows(opened: &Opened, layout: &ComponentLayout, ids: &[u32]) -> Tensor {
    let table = values(&opened.file, &layout.tables[0].name);
    let mut rows = Tensor::new(&[ids.len(), opened.config.hidden]).unwrap();
    let targets = rows.data_mut().chunks_exact_mut(opened.config.hidden);
    for (&id, row) in ids.iter().zip(targets) {
        row.copy_from_slice(table.row(id as usize).host());
    }
    rows
}

fn all_states(skip: usize, norm: bool) -> Wanted {
    Wanted {
        skip,
        norm,
        pooled: true,
    }
}

fn sequences(opened: &Opened, expected: &Checkpoint, wanted: Wanted) -> Vec<Sequence> {
    let layout = opened.layout(all_states(0, true));
    let sequence = |index| {
        let ids = ids(expected, index);
        Sequence {
            rows: rows(opened, &layout, &ids),
            end: opened.config.end_of(&ids),
            wanted,
        }
    };
    [0, 1].map(sequence).into()
}

#[test]
fn every_state_is_the_references() {
    for case in CASES {
        let folder = fixture("encoders").join(case);
        let opened = Opened::new(&folder);
        let expected = Checkpoint::open(&folder.join("expected.safetensors")).unwrap();
        for (norm, skips) in [(false, &[0, 1, 2, 3, 4][..]), (true, &[0, 1, 4])] {
            for &skip in skips {
                for pooled in [false, true] {
                    let wanted = Wanted { skip, norm, pooled };
                    let layout = opened.layout(wanted);
                    let given = sequences(&opened, &expected, wanted);
                    let (encoded, visits) = opened.encode(&layout, given);
                    assert_eq!(visits, Vec::from_iter(0..layout.blocks.len()));
                    let kind = if norm { "normed" } else { "hidden" };
                    let states = values(&expected, &format!("{kind}_{skip}"));
                    let pools = values(&expected, "pooled");
                    for (i, one) in encoded.iter().enumerate() {
                        let far = off(one.hidden.data(), entry(&states, i));
                        assert!(far < LIMIT, "{case} {wanted:?}, sequence {i}: {far:.1e}");
                        assert_eq!(one.pooled.is_some(), pooled);
                        let Some(pool) = &one.pooled else { continue };
                        let far = off(pool.data(), entry(&pools, i));
                        assert!(
                            far < LIMIT,
                            "{case} pooled {wanted:?}, sequence {i}: {far:.1e}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn chunks_that_want_different_things_share_a_visit() {
    let folder = fixture("encoders/projected");
    let opened = Opened::new(&folder);
    let expected = Checkpoint::open(&folder.join("expected.safetensors")).unwrap();
    let layout = opened.layout(all_states(0, true));
    let alone = |wanted, index| {
        let one = sequences(&opened, &expected, wanted).swap_remove(index);
        opened.encode(&layout, vec![one]).0.remove(0)
    };
    let (first, second) = (Wanted::penultimate(1, true), Wanted::normed(0));
    let mixed = [first, second]
        .into_iter()
        .enumerate()
        .map(|(index, wanted)| sequences(&opened, &expected, wanted).swap_remove(index));
    let (mixed, visits) = opened.encode(&layout, mixed.collect());
    assert_eq!(visits, [0, 1, 2, 3, 4]);
    for (index, wanted) in [first, second].into_iter().enumerate() {
        let alone = alone(wanted, index);
        assert_eq!(alone.hidden.data(), mixed[index].hidden.data());
        let pooled = |one: &Encoded| one.pooled.as_ref().map(|pooled| pooled.data().to_vec());
        assert_eq!(pooled(&alone), pooled(&mixed[index]));
    }
}

#[test]
fn layers_that_nothing_wants_are_not_computed() {
    let folder = fixture("encoders/legacy-end");
    let opened = Opened::new(&folder);
    let expected = Checkpoint::open(&folder.join("expected.safetensors")).unwrap();
    let whole = opened.layout(all_states(0, true));
    assert_eq!(whole.blocks.len(), 5);
    let names = |wanted| -> Vec<String> {
        let blocks = opened.layout(wanted).blocks;
        blocks.into_iter().map(|block| block.name).collect()
    };
    assert_eq!(
        names(Wanted::penultimate(0, false)),
        ["layers.0", "layers.1", "layers.2"]
    );
    assert_eq!(names(Wanted::normed(3)), ["layers.0", "final"]);

    let wanted = Wanted::penultimate(1, false);
    let (short, visits) = opened.encode(&whole, sequences(&opened, &expected, wanted));
    assert_eq!(
        visits,
        [0, 1],
        "the layers after the last one wanted are not asked for"
    );
    let (own, _) = opened.encode(
        &opened.layout(wanted),
        sequences(&opened, &expected, wanted),
    );
    assert_eq!(short[0].hidden.data(), own[0].hidden.data());
}

#[test]
fn the_memory_of_a_layer_is_what_is_promised() {
    let opened = Opened::new(&fixture("encoders/legacy-end"));
    // D = 32, F = 80: the norm's output beside the inner values is more than q, k, v and the result.
    assert_eq!(opened.config.layer_bytes_per_token(), 4 * 128);
    assert_eq!(
        opened.config.flops_per_token(2),
        2 * 2 * (4 * 32 * 32 + 2 * 32 * 80)
    );
    assert_eq!(opened.config.attention_flops(2), 4.0 * 2.0 * 32.0);
}

#[test]
fn skipping_more_layers_than_there_are_is_refused() {
    let opened = Opened::new(&fixture("encoders/legacy-end"));
    let wanted = Wanted::penultimate(4, false);
    let refused = layout(
        &Known(&opened.file),
        "text_encoder",
        &opened.config,
        &wanted,
    );
    let message = refused.unwrap_err().to_string();
    assert_eq!(message, "clip_skip is 5, but this model goes up to 4");
    assert!(
        layout(
            &Known(&opened.file),
            "x",
            &opened.config,
            &Wanted::normed(4)
        )
        .is_ok()
    );
    let endless = Wanted::penultimate(usize::MAX, false);
    assert!(layout(&Known(&opened.file), "x", &opened.config, &endless).is_err());
}

#[test]
fn a_chunk_longer_than_the_positions_is_refused() {
    let opened = Opened::new(&fixture("encoders/legacy-end"));
    let layout = opened.layout(Wanted::normed(0));
    let positions = values(&opened.file, &layout.tables[1].name);
    let encoder = Encoder {
        compute: Compute {
            precision: Precision::F32,
        },
        config: &opened.config,
        layout: &layout,
        positions: &positions,
    };
    let one = Sequence {
        rows: Tensor::zeros(&[78, 32]).unwrap(),
        end: 0,
        wanted: Wanted::normed(0),
    };
    let mut source = files::InMemory::new(&opened.file, &layout);
    let refused = encode(&mut source, &encoder, vec![one]);
    let refused = refused.unwrap_err();
    assert!(
        matches!(
            refused,
            Error::BeyondModel {
                asked: 78,
                limit: 77,
                ..
            }
        ),
        "{refused}"
    );
}

#[test]
fn a_checkpoint_that_is_not_what_its_configuration_says_is_refused() {
    let opened = Opened::new(&fixture("encoders/legacy-end"));
    let with = |key: &str, value: serde_json::Value| {
        let mut config = files::json(&fixture("encoders/legacy-end/config.json"));
        config[key] = value;
        Config::from_json("text_encoder", Class::Plain, &config)
    };
    for (key, value, complaint) in [
        ("hidden_act", json!("relu"), "'hidden_act' is 'relu'"),
        (
            "num_attention_heads",
            json!(5),
            "no divisor of the width 32",
        ),
        ("model_type", json!("bert"), "only 'clip_text_model'"),
        ("use_attention_mask", json!(true), "not supported"),
        ("hidden_size", json!(1u64 << 40), "whole number"),
        ("eos_token_id", json!([1, 2]), "whole number"),
    ] {
        let message = with(key, value).unwrap_err().to_string();
        assert!(message.contains(complaint), "{message}");
    }
    for (key, value, complaint) in [
        (
            "num_hidden_layers",
            json!(5),
            "'text_model.encoder.layers.4.layer_norm1.weight' is missing",
        ),
        (
            "vocab_size",
            json!(61),
            "token_embedding.weight' has shape [60, 32]",
        ),
        (
            "max_position_embeddings",
            json!(78),
            "position_embedding.weight' has shape [77, 32]",
        ),
        ("intermediate_size", json!(81), "calls for [81, 32]"),
    ] {
        let config = with(key, value).unwrap();
        let refused = layout(
            &Known(&opened.file),
            "text_encoder",
            &config,
            &Wanted::normed(0),
        );
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(complaint), "{message}");
    }
}

#[test]
fn the_pooled_row_is_the_first_end_token_or_the_highest_id() {
    let config = |end: u32| {
        let value = json!({"eos_token_id": end, "vocab_size": 100});
        Config::from_json("text_encoder", Class::Plain, &value).unwrap()
    };
    assert_eq!(config(2).end_of(&[5, 9, 2, 9]), 1);
    assert_eq!(config(9).end_of(&[5, 11, 9, 9]), 2);
    assert_eq!(config(9).end_of(&[5, 11]), 0);
    assert_eq!(config(2).end_of(&[]), 0);
}
