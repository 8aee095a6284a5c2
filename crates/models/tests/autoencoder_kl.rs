//! What AutoencoderKL promises, of its decoder here and of its encoder in `encode`: the reference's picture, the same bytes in strips, and the memory it names.

// The lint's exception for tests does not reach the functions that tests share.
#![allow(clippy::unwrap_used)]

#[path = "autoencoder_kl/encode.rs"]
mod encode;
#[path = "shadow/device.rs"]
mod shadow;
#[path = "autoencoder_kl/store.rs"]
mod store;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lowtide_core::{Mode, Vars};
use lowtide_kernels::memory;
use lowtide_models::autoencoder_kl::{Config, DecodeMode, decode, layout, modes};
use lowtide_models::{Compute, Error, Precision, Tensor};
use serde_json::json;

use store::{
    Store, bits, expected, fixtures, json_file, largest_difference, latents, random,
    renamed_as_before, small, stored, with,
};

#[global_allocator]
static ALLOCATOR: memory::CountingAllocator = memory::CountingAllocator;

const F32: Compute = Compute {
    precision: Precision::F32,
};
const BF16: Compute = Compute {
    precision: Precision::Bf16,
};

/// Where the process's memory is counted, nothing else may run.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A recorded decoder, its latents and its picture.
fn layer_case(case: &str) -> (Store, Tensor, Tensor) {
    let folder = fixtures().join("layers").join(case);
    let mut config = json_file(&folder.join("config.json"));
    config["up_block_types"] = json!(vec!["UpDecoderBlock2D"; 4]);
    config["scaling_factor"] = json!(1.0);
    let values = folder.join("expected.safetensors");
    let store = stored(&config, &folder.join("weights.safetensors"));
    (
        store,
        expected(&values, "latents"),
        expected(&values, "image"),
    )
}

#[test]
fn the_picture_is_the_references() {
    let _alone = alone();
    for case in ["vae-square", "vae-wide"] {
        let (mut store, latents, image) = layer_case(case);
        let difference =
            largest_difference(&store.decode(F32, &latents, DecodeMode::Whole), &image);
        assert!(difference < 1e-4, "{case}: {difference}");
        let rounded = largest_difference(&store.decode(BF16, &latents, DecodeMode::Whole), &image);
        assert!(
            rounded > difference && rounded < 0.1,
            "{case}: {rounded} with rounded factors"
        );
    }
}

#[test]
fn the_picture_of_a_whole_pipeline_is_the_references() {
    let _alone = alone();
    // Scaled and shifted latents, f16 and bf16 weights, one without attention, one with a convolution first.
    for case in [
        "plain-bf16",
        "causal-lm-f16",
        "narrow-no-norm",
        "truncated-guidance",
    ] {
        let folder = fixtures().join("z-image").join(case);
        let vae = folder.join("checkpoint/vae");
        let mut store = stored(
            &json_file(&vae.join("config.json")),
            &vae.join("diffusion_pytorch_model.safetensors"),
        );
        let latents = expected(&folder.join("expected.safetensors"), "latents");
        let image = expected(&folder.join("expected.safetensors"), "image");
        let mut decoded = store.decode(F32, &latents, DecodeMode::Whole);
        for value in decoded.data_mut() {
            *value = (*value / 2.0 + 0.5).clamp(0.0, 1.0);
        }
        // The reference decodes in the stored type where that is not f32; ours is always f32.
        let difference = largest_difference(&decoded, &image);
        assert!(difference <= 2.0 / 255.0, "{case}: {difference}");
    }
}

#[test]
fn strips_give_the_bytes_of_the_whole() {
    let _alone = alone();
    let cases = [
        (small(&[8], 1, 2), 12, 5),
        (small(&[8, 16], 2, 4), 7, 9),
        (small(&[4, 8, 8], 1, 1), 5, 11),
        (
            with(
                small(&[8, 12, 16, 16], 1, 4),
                "mid_block_add_attention",
                json!(false),
            ),
            6,
            3,
        ),
        (
            with(
                small(&[4, 8, 12, 16], 2, 4),
                "use_post_quant_conv",
                json!(false),
            ),
            3,
            4,
        ),
        (small(&[16, 48], 1, 8), 10, 17),
    ];
    for (config, height, width) in cases {
        let mut store = random(config.clone());
        let latents = latents(&store, height, width);
        for compute in [F32, BF16] {
            let whole = bits(&store.decode(compute, &latents, DecodeMode::Whole));
            for rows in [1, 3, 8, 13, 1000] {
                for mode in [
                    DecodeMode::ResnetStrips { rows },
                    DecodeMode::LastStageStrips { rows },
                    DecodeMode::Strips { rows },
                ] {
                    let strips = bits(&store.decode(compute, &latents, mode));
                    assert!(
                        strips == whole,
                        "{config} {height}x{width} {compute:?} {mode:?}"
                    );
                    assert!(
                        store.visits.is_sorted(),
                        "{mode:?} visits blocks out of order: {:?}",
                        store.visits
                    );
                    assert_eq!(store.visits.len(), store.layout.blocks.len(), "{mode:?}");
                }
            }
        }
    }
}

#[test]
fn one_tile_is_the_whole_and_many_are_close() {
    let _alone = alone();
    let mut store = random(small(&[8, 8, 16], 1, 2));
    let latents = latents(&store, 24, 40);
    let whole = store.decode(F32, &latents, DecodeMode::Whole);
    let one = store.decode(
        F32,
        &latents,
        DecodeMode::Tiles {
            size: 40,
            overlap: 10,
        },
    );
    // The second tile along a side lies in the first, and what is blended is nearly alike.
    let many = store.decode(F32, &latents, DecodeMode::tiles(16));
    let spread = whole
        .data()
        .iter()
        .fold(0.0f32, |largest, value| largest.max(value.abs()));
    let mean = |tiles: &Tensor| {
        let sum: f32 = tiles
            .data()
            .iter()
            .zip(whole.data())
            .map(|(a, b)| (a - b).abs())
            .sum();
        sum / whole.data().len() as f32
    };
    assert!(store.visits.len() > store.layout.blocks.len());
    assert!(mean(&one) < 0.02 * spread, "{} of {spread}", mean(&one));
    assert!(
        mean(&many) > 0.0 && mean(&many) < 0.15 * spread,
        "{} of {spread}",
        mean(&many)
    );
    let exactly_one = store.decode(
        F32,
        &latents,
        DecodeMode::Tiles {
            size: 64,
            overlap: 0,
        },
    );
    assert_eq!(bits(&exactly_one), bits(&whole));
}

#[test]
fn tiles_are_blended_as_in_the_reference() {
    let _alone = alone();
    let (mut store, latents, whole) = layer_case("vae-wide");
    let recorded =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiled-decode.safetensors");
    let tiles = store.decode(F32, &latents, DecodeMode::tiles(4));
    let difference = largest_difference(&tiles, &expected(&recorded, "image"));
    assert!(difference < 1e-4, "{difference}");
    assert!(largest_difference(&tiles, &whole) > 0.1);
}

/// Predicted and measured bytes of a mode with its variables set.
fn predicted_and_measured(
    store: &mut Store,
    latents: &Tensor,
    mode: &Mode,
    vars: &Vars,
) -> (u64, u64) {
    let decode_mode = DecodeMode::planned(&mode.name, vars).unwrap();
    let predicted = mode.activation.bytes(vars).unwrap().0;
    // Once before, so that threads have started and their scratch is there.
    store.decode(F32, latents, decode_mode);
    let before = memory::reset_peak();
    store.decode(F32, latents, decode_mode);
    (predicted, memory::peak() - before)
}

#[test]
fn predicted_bytes_are_those_measured() {
    let _alone = alone();
    memory::set_cache_limit(Some(0));
    let shapes = [
        (small(&[16, 32, 32, 32], 1, 8), 16, 10),
        (small(&[8, 16], 1, 4), 34, 24),
        (small(&[16], 2, 4), 36, 20),
    ];
    for (config, height, width) in shapes {
        let mut store = random(config);
        let latents = latents(&store, height, width);
        let modes = modes(&store.config, height, width);
        let mut smallest = HashMap::new();
        for mode in &modes {
            let values = mode
                .ladders
                .first()
                .map_or(vec![0], |ladder| ladder.values());
            for &value in [values.first(), values.last()].into_iter().flatten() {
                let vars = mode
                    .ladders
                    .iter()
                    .map(|ladder| (ladder.var.clone(), value))
                    .collect();
                let (predicted, measured) =
                    predicted_and_measured(&mut store, &latents, mode, &vars);
                let slack = (measured / 10).max(16 << 10);
                let name = &mode.name;
                assert!(
                    predicted.abs_diff(measured) <= slack,
                    "{name} {value}: {predicted} but {measured} measured"
                );
                smallest.insert(name.clone(), measured);
            }
        }
        // With one or two resolutions, the attention in the middle is the worst moment of every mode.
        if store.config.scale() > 2 {
            assert!(smallest["strips"] < smallest["last-stage strips"]);
            assert!(smallest["last-stage strips"] < smallest["resnet strips"]);
            assert!(smallest["resnet strips"] < smallest["whole"]);
        }
    }
    memory::set_cache_limit(None);
}

#[test]
fn formulas_name_what_a_real_decoder_takes() {
    let _alone = alone();
    let config = json!({
        "block_out_channels": [128, 256, 512, 512], "up_block_types": vec!["UpDecoderBlock2D"; 4],
        "layers_per_block": 2, "norm_num_groups": 32, "latent_channels": 16, "use_post_quant_conv": false,
    });
    let modes = modes(&Config::from_json(&config).unwrap(), 128, 128);
    let names: Vec<&str> = modes.iter().map(|mode| mode.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "whole",
            "resnet strips",
            "last-stage strips",
            "strips",
            "tiles"
        ]
    );
    let cost = |index: usize, value: u64| {
        let mode: &Mode = &modes[index];
        let vars: Vars = mode
            .ladders
            .iter()
            .map(|ladder| (ladder.var.clone(), value))
            .collect();
        (
            mode.activation.eval(&vars).unwrap(),
            mode.flops.eval(&vars).unwrap(),
        )
    };
    let (whole_bytes, whole_flops) = cost(0, 0);
    // 256 channels enter the last stage, 128 lie between its convolutions, and 128 are the shortcut: 512 a pixel.
    assert_eq!(whole_bytes, 512.0 * 4.0 * 1024.0 * 1024.0);
    // By hand, 4.63 M multiplications a pixel in the convolutions at half resolution and above, 0.88 M and 0.35 M at a
    // quarter and an eighth, and 0.27 M of attention.
    assert!((1.0e13..1.1e13).contains(&whole_flops), "{whole_flops:e}");
    for rows in [512, 128, 64, 16] {
        for index in 1..3 {
            let (less, more) = (cost(index + 1, rows), cost(index, rows));
            assert!(
                less.0 < more.0 && less.1 > more.1,
                "{index} {rows}: {less:?} {more:?}"
            );
        }
        assert!(cost(1, rows).1 > whole_flops);
    }
    assert!(cost(3, 16).0 < whole_bytes / 8.0, "{:?}", cost(3, 16));
    for mode in &modes[..4] {
        assert!(
            mode.exact && mode.resident_blocks.is_empty(),
            "{}",
            mode.name
        );
    }
    assert!(!modes[4].exact && modes[4].resident_blocks.len() == 3 + 2 * 3 + 1);
}

#[test]
fn blocks_come_in_order_of_use_and_hold_only_the_decoder() {
    let _alone = alone();
    let store = random(small(&[8, 8, 16, 16], 1, 4));
    let names: Vec<&str> = store
        .layout
        .blocks
        .iter()
        .map(|block| block.name.as_str())
        .collect();
    let up = [
        "up_blocks.0.resnets.0",
        "up_blocks.0.resnets.1",
        "up_blocks.1.resnets.0",
        "up_blocks.1.resnets.1",
    ];
    assert_eq!(
        names[..3],
        ["conv_in", "mid_block.attentions.0", "mid_block.resnets.1"]
    );
    assert_eq!(names[3..7], up);
    assert_eq!(names[7..], ["tail"]);
    let tail: Vec<&str> = store.layout.blocks[7]
        .tensors
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    assert!(
        tail[0].starts_with("decoder.up_blocks.1.upsamplers.0.conv"),
        "{}",
        tail[0]
    );
    assert!(tail.contains(&"decoder.up_blocks.2.resnets.0.conv_shortcut.weight"));
    assert!(
        store
            .layout
            .blocks
            .iter()
            .flat_map(|block| &block.tensors)
            .all(|tensor| {
                tensor.name.starts_with("decoder.") || tensor.name.starts_with("post_quant_conv.")
            })
    );
}

#[test]
fn old_names_of_the_attention_are_understood() {
    let _alone = alone();
    let mut new = random(small(&[8, 16], 1, 4));
    let mut old = renamed_as_before(&new, layout);
    let latents = latents(&new, 4, 6);
    let picture = bits(&new.decode(F32, &latents, DecodeMode::Whole));
    assert_eq!(bits(&old.decode(F32, &latents, DecodeMode::Whole)), picture);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let _alone = alone();
    let good = small(&[8, 16], 1, 4);
    Config::from_json(&good).unwrap();
    for (key, value) in [
        ("_class_name", json!("AutoencoderTiny")),
        ("act_fn", json!("gelu")),
        ("latents_mean", json!([0.0])),
        ("latents_std", json!([1.0])),
        (
            "up_block_types",
            json!(["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]),
        ),
        ("up_block_types", json!(["UpDecoderBlock2D"])),
        (
            "down_block_types",
            json!(["AttnDownEncoderBlock2D", "DownEncoderBlock2D"]),
        ),
        ("down_block_types", json!(["DownEncoderBlock2D"])),
        ("in_channels", json!(0)),
        ("norm_num_groups", json!(3)),
        ("norm_num_groups", json!(0)),
        ("scaling_factor", json!(0)),
        ("scaling_factor", json!(1e-60)),
        ("layers_per_block", json!(1_000_000)),
        ("block_out_channels", json!([])),
        ("latent_channels", json!(-4)),
        ("shift_factor", json!("none")),
    ] {
        let text = Config::from_json(&with(good.clone(), key, value.clone()))
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("vae") && text.contains(key),
            "{value}: {text}"
        );
    }
    let defaults = Config::from_json(&json!({"shift_factor": null})).unwrap();
    assert_eq!(
        (
            defaults.shift_factor,
            defaults.scaling_factor,
            defaults.scale()
        ),
        (0.0, 0.18215, 1)
    );
    assert!(defaults.use_post_quant_conv && defaults.mid_block_add_attention);
}

#[test]
fn latents_of_another_shape_are_refused() {
    let _alone = alone();
    let mut store = random(small(&[8], 1, 2));
    for shape in [[3, 4, 4], [4, 0, 4]] {
        let config = store.config.clone();
        let latents = Tensor::zeros(&shape).unwrap();
        let error = decode(&mut store, F32, &config, &latents, &DecodeMode::Whole).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Shape {
                    what: "latents",
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn a_device_gives_the_picture_of_the_host() {
    let _alone = alone();
    for (config, height, width) in [
        (small(&[8, 16], 2, 4), 7, 9),
        (small(&[4, 8, 8], 1, 1), 5, 11),
    ] {
        let mut store = random(config.clone());
        let latents = latents(&store, height, width);
        for mode in [
            DecodeMode::Whole,
            DecodeMode::ResnetStrips { rows: 3 },
            DecodeMode::LastStageStrips { rows: 5 },
            DecodeMode::Strips { rows: 4 },
            DecodeMode::tiles(4),
        ] {
            store.there = None;
            let host = bits(&store.decode(BF16, &latents, mode));
            store.bring();
            let there = bits(&store.decode(BF16, &latents, mode));
            assert!(there == host, "{config} {mode:?}");
            let calls = store.there.as_ref().map(|there| there.shadow.calls());
            assert!(calls > Some(20), "{mode:?} was computed elsewhere");
        }
    }
}
