//! What the AutoencoderKL encoder promises.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lowtide_core::{Mode, Vars};
use lowtide_kernels::memory;
use lowtide_models::autoencoder_kl::{
    Config, EncodeMode, Moments, encode, encode_modes, encoder_layout,
};
use lowtide_models::{Compute, Error, Tensor};
use serde_json::{Value, json};

use super::store::{
    Store, expected, json_file, largest_difference, picture, random_encoder, renamed_as_before,
    small, stored_encoder, with,
};
use super::{BF16, F32, alone};

const CASES: [&str; 4] = ["square", "wide", "flat", "large-f16"];

fn folder(case: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encode");
    fixtures.join(case)
}

/// A recorded encoder.
fn recorded(case: &str) -> Store {
    let folder = folder(case);
    stored_encoder(
        &json_file(&folder.join("config.json")),
        &folder.join("weights.safetensors"),
    )
}

/// What was recorded with it.
fn value(case: &str, name: &str) -> Tensor {
    expected(&folder(case).join("expected.safetensors"), name)
}

fn tensor(values: &[f32], shape: [usize; 3]) -> Tensor {
    Tensor::from_slice(&shape, values).unwrap()
}

fn mean(moments: &Moments) -> Tensor {
    tensor(moments.mean(), moments.shape())
}

/// The bits of means and deviations.
fn bits(moments: &Moments) -> Vec<u32> {
    let values = moments.mean().iter().chain(moments.std());
    values.map(|value| value.to_bits()).collect()
}

#[test]
fn the_latents_are_the_references() {
    let _alone = alone();
    for case in CASES {
        let mut store = recorded(case);
        let picture = value(case, "picture");
        let moments = store.encode(F32, &picture, EncodeMode::Whole);
        let std = tensor(moments.std(), moments.shape());
        for (name, ours) in [
            ("mean", mean(&moments)),
            ("std", std),
            ("latents", moments.sample(&value(case, "noise")).unwrap()),
        ] {
            let difference = largest_difference(&ours, &value(case, name));
            assert!(difference < 2e-5, "{case} {name}: {difference}");
        }
        // Without noise: what is drawn, less the noise's share.
        let config = store.config.clone();
        let likeliest = moments.likeliest().unwrap();
        for (latent, mean) in likeliest.data().iter().zip(moments.mean()) {
            let by_hand = (f64::from(*mean) - config.shift_factor) * config.scaling_factor;
            assert!((f64::from(*latent) - by_hand).abs() < 1e-6, "{case}");
        }
        let rounded = store.encode(BF16, &picture, EncodeMode::Whole);
        let difference = largest_difference(&mean(&rounded), &value(case, "mean"));
        assert!(
            difference > 2e-5 && difference < 0.1,
            "{case}: {difference} with rounded factors"
        );
    }
}

#[test]
fn maps_beyond_the_range_of_f16_go_through() {
    let _alone = alone();
    // The recorded encoder has maps of up to 166,000 from weights that are stored as f16.
    let mut store = recorded("large-f16");
    let stored = store.layout.blocks.iter().flat_map(|block| &block.tensors);
    assert!(stored.clone().count() > 0);
    for tensor in stored {
        assert_eq!(tensor.dtype, lowtide_core::Dtype::F16, "{}", tensor.name);
    }
    let picture = value("large-f16", "picture");
    for compute in [F32, BF16] {
        let moments = store.encode(compute, &picture, EncodeMode::Whole);
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        assert!(finite(moments.mean()) && finite(moments.std()));
        let difference = largest_difference(&mean(&moments), &value("large-f16", "mean"));
        assert!(difference < 0.1, "{compute:?}: {difference}");
    }
}

#[test]
fn strips_give_the_latents_of_the_whole() {
    let _alone = alone();
    let no = |config: Value, key: &str| with(config, key, json!(false));
    let cases = [
        (small(&[8], 1, 2), 29, 5),
        (small(&[8, 16], 2, 4), 11, 9),
        (small(&[4, 8, 8], 1, 1), 9, 5),
        (
            no(small(&[8, 12, 16, 16], 1, 4), "mid_block_add_attention"),
            6,
            3,
        ),
        (no(small(&[4, 8, 12, 16], 2, 4), "use_quant_conv"), 5, 4),
        (small(&[16, 48], 1, 8), 10, 17),
    ];
    for (config, height, width) in cases {
        let mut store = random_encoder(config.clone());
        let picture = picture(&store, height, width);
        for compute in [F32, BF16] {
            let whole = bits(&store.encode(compute, &picture, EncodeMode::Whole));
            for rows in [1, 3, 8, 13, 1000] {
                for mode in [
                    EncodeMode::ResnetStrips { rows },
                    EncodeMode::FirstStageStrips { rows },
                    EncodeMode::Strips { rows },
                ] {
                    let strips = bits(&store.encode(compute, &picture, mode));
                    assert!(
                        strips == whole,
                        "{config} {height}x{width} {compute:?} {mode:?}"
                    );
                    let blocks: Vec<usize> = (0..store.layout.blocks.len()).collect();
                    assert_eq!(store.visits, blocks, "{mode:?}");
                }
            }
        }
    }
}

#[test]
fn tiles_of_a_picture_are_blended_as_in_the_reference() {
    let _alone = alone();
    let mut store = recorded("wide");
    let picture = value("wide", "picture");
    let tiles = store.encode(F32, &picture, EncodeMode::tiles(4));
    let difference = largest_difference(&mean(&tiles), &value("wide", "tiled_mean"));
    assert!(difference < 2e-5, "{difference}");
    assert!(largest_difference(&mean(&tiles), &value("wide", "mean")) > 0.1);
    let one = EncodeMode::Tiles {
        size: 64,
        overlap: 0,
    };
    let whole = store.encode(F32, &picture, EncodeMode::Whole);
    assert_eq!(bits(&store.encode(F32, &picture, one)), bits(&whole));
}

/// Predicted and measured bytes of a mode with its variables set.
fn predicted_and_measured(
    store: &mut Store,
    picture: &Tensor,
    mode: &Mode,
    vars: &Vars,
) -> (u64, u64) {
    let encode_mode = EncodeMode::planned(&mode.name, vars).unwrap();
    let predicted = mode.activation.bytes(vars).unwrap().0;
    // Once before, so that threads have started and their scratch is there.
    store.encode(F32, picture, encode_mode);
    let before = memory::reset_peak();
    store.encode(F32, picture, encode_mode);
    (predicted, memory::peak() - before)
}

#[test]
fn predicted_bytes_of_encoding_are_those_measured() {
    let _alone = alone();
    memory::set_cache_limit(Some(0));
    let shapes = [
        (small(&[16, 32, 32, 32], 2, 8), 48, 10),
        (small(&[8, 16], 1, 4), 34, 24),
        (small(&[16], 2, 4), 36, 20),
    ];
    for (config, height, width) in shapes {
        let mut store = random_encoder(config);
        let picture = picture(&store, height, width);
        let (_, rows, columns) = picture.dims3().unwrap();
        let mut smallest = HashMap::new();
        for mode in &encode_modes(&store.config, rows, columns) {
            let ladder = mode.ladders.first();
            let values = ladder.map_or(vec![0], |ladder| ladder.values());
            for &value in [values.first(), values.last()].into_iter().flatten() {
                let set = |ladder: &lowtide_core::Ladder| (ladder.var.clone(), value);
                let vars: Vars = mode.ladders.iter().map(set).collect();
                let (predicted, measured) =
                    predicted_and_measured(&mut store, &picture, mode, &vars);
                // Beside maps there are vectors of norms and biases.
                let small = 16 << 10;
                let name = &mode.name;
                assert!(
                    measured <= predicted + small && predicted <= measured * 11 / 10 + small,
                    "{name} {value}: {predicted} but {measured} measured"
                );
                smallest.insert(name.clone(), measured);
            }
        }
        // With one or two resolutions, the attention in the middle is the worst moment of every mode.
        if store.config.scale() > 2 {
            assert!(smallest["strips"] < smallest["first-stage strips"]);
            assert!(smallest["first-stage strips"] < smallest["resnet strips"]);
            assert!(smallest["resnet strips"] < smallest["whole"]);
        }
    }
    memory::set_cache_limit(None);
}

/// The configuration of Stable Diffusion's VAE.
fn real() -> Value {
    json!({
        "block_out_channels": [128, 256, 512, 512], "up_block_types": vec!["UpDecoderBlock2D"; 4],
        "layers_per_block": 2, "norm_num_groups": 32, "latent_channels": 4,
    })
}

#[test]
fn formulas_name_what_a_real_encoder_takes() {
    let _alone = alone();
    let modes = encode_modes(&Config::from_json(&real()).unwrap(), 1024, 1024);
    let names: Vec<&str> = modes.iter().map(|mode| mode.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "whole",
            "resnet strips",
            "first-stage strips",
            "strips",
            "tiles"
        ]
    );
    let cost = |index: usize, value: u64| {
        let mode: &Mode = &modes[index];
        let set = |ladder: &lowtide_core::Ladder| (ladder.var.clone(), value);
        let vars: Vars = mode.ladders.iter().map(set).collect();
        (
            mode.activation.eval(&vars).unwrap(),
            mode.flops.eval(&vars).unwrap(),
        )
    };
    let (whole_bytes, whole_flops) = cost(0, 0);
    // The first resnet: 128 channels enter it, 128 lie between its convolutions, 128 leave it.
    assert_eq!(whole_bytes, 384.0 * 4.0 * 1024.0 * 1024.0);
    // By hand, multiplications a pixel: 0.59 M in the resnets at full size, 0.52 M at each of the next two sizes, 0.15 M
    // at an eighth and in the middle each, 0.11 M in the halvings, and 0.28 M of attention.
    assert!((4.8e12..4.95e12).contains(&whole_flops), "{whole_flops:e}");
    for rows in [256, 128, 64] {
        for index in 1..3 {
            let (less, more) = (cost(index + 1, rows), cost(index, rows));
            assert!(
                less.0 < more.0 && less.1 > more.1,
                "{index} {rows}: {less:?} {more:?}"
            );
        }
        assert!(cost(1, rows).1 > whole_flops);
    }
    assert!(cost(3, 16).0 < whole_bytes / 6.0, "{:?}", cost(3, 16));
    for mode in &modes[..4] {
        assert!(mode.exact && mode.resident_blocks.is_empty());
    }
    assert!(!modes[4].exact && modes[4].resident_blocks.len() == 1 + 2 * 2 + 3);
}

#[test]
fn blocks_of_the_encoder_come_in_order_of_use_and_hold_nothing_else() {
    let _alone = alone();
    let store = random_encoder(small(&[8, 8, 16, 16], 2, 4));
    let blocks = &store.layout.blocks;
    let names: Vec<&str> = blocks.iter().map(|block| block.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "head",
            "down_blocks.2.resnets.0",
            "down_blocks.2.resnets.1",
            "down_blocks.3.resnets.0",
            "down_blocks.3.resnets.1",
            "mid_block.resnets.0",
            "mid_block.attentions.0",
            "conv_out",
        ]
    );
    let has = |block: usize, name: &str| {
        let mut tensors = blocks[block].tensors.iter();
        tensors.any(|tensor| tensor.name == name)
    };
    assert!(has(0, "encoder.down_blocks.1.downsamplers.0.conv.weight"));
    assert!(has(2, "encoder.down_blocks.2.downsamplers.0.conv.weight"));
    assert!(has(7, "quant_conv.weight") && has(7, "encoder.conv_norm_out.bias"));
    let mut all = blocks.iter().flat_map(|block| &block.tensors);
    assert!(all.all(|tensor| {
        tensor.name.starts_with("encoder.") || tensor.name.starts_with("quant_conv.")
    }));
}

#[test]
fn old_names_of_the_encoders_attention_are_understood() {
    let _alone = alone();
    let mut new = random_encoder(small(&[8, 16], 1, 4));
    let mut old = renamed_as_before(&new, encoder_layout);
    let picture = picture(&new, 4, 6);
    let moments = bits(&new.encode(F32, &picture, EncodeMode::Whole));
    assert_eq!(bits(&old.encode(F32, &picture, EncodeMode::Whole)), moments);
}

#[test]
fn configurations_in_use_are_understood() {
    let _alone = alone();
    let down = vec!["DownEncoderBlock2D"; 4];
    let released = |changes: Value| {
        let mut config = real();
        config["_class_name"] = json!("AutoencoderKL");
        config["_diffusers_version"] = json!("0.19.0.dev0");
        config["_name_or_path"] = json!("../vae");
        config["act_fn"] = json!("silu");
        config["down_block_types"] = json!(down);
        config["in_channels"] = json!(3);
        config["out_channels"] = json!(3);
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        Config::from_json(&config).unwrap()
    };
    // Stable Diffusion 1.5 and its improved decoders, 2.1, XL, FLUX and Z-Image.
    let first = released(json!({"sample_size": 512}));
    assert_eq!((first.scaling_factor, first.shift_factor), (0.18215, 0.0));
    assert_eq!((first.latent_channels, first.scale()), (4, 8));
    assert!(first.use_quant_conv && first.mid_block_add_attention);
    let second = released(json!({"sample_size": 768, "scaling_factor": 0.18215}));
    assert_eq!(second, first);
    let xl = released(json!({
        "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": true,
        "latents_mean": null, "latents_std": null, "shift_factor": null,
    }));
    assert_eq!(xl.scaling_factor, 0.13025);
    let flux = released(json!({
        "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 1024,
        "use_quant_conv": false, "use_post_quant_conv": false, "force_upcast": true,
    }));
    assert_eq!((flux.latent_channels, flux.shift_factor), (16, 0.1159));
    assert!(!flux.use_quant_conv && !flux.use_post_quant_conv);
}

#[test]
fn pictures_and_noise_of_another_shape_are_refused() {
    let _alone = alone();
    let mut store = random_encoder(small(&[8, 8], 1, 2));
    let config = store.config.clone();
    for shape in [[4, 4, 4], [3, 5, 4], [3, 4, 7], [3, 0, 4]] {
        let picture = Tensor::zeros(&shape).unwrap();
        let error = encode(&mut store, F32, &config, &picture, &EncodeMode::Whole).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Shape {
                    what: "picture",
                    ..
                }
            ),
            "{error}"
        );
    }
    let compute: Compute = F32;
    let moments = store.encode(
        compute,
        &Tensor::zeros(&[3, 4, 6]).unwrap(),
        EncodeMode::Whole,
    );
    assert_eq!(moments.shape(), [4, 2, 3]);
    assert!(moments.sample(&Tensor::zeros(&[4, 3, 2]).unwrap()).is_err());
}

#[test]
fn a_device_gives_the_latents_of_the_host() {
    let _alone = alone();
    let mut store = random_encoder(small(&[8, 16], 2, 4));
    let picture = picture(&store, 12, 20);
    for mode in [
        EncodeMode::Whole,
        EncodeMode::ResnetStrips { rows: 3 },
        EncodeMode::FirstStageStrips { rows: 4 },
        EncodeMode::Strips { rows: 4 },
        EncodeMode::tiles(4),
    ] {
        store.there = None;
        let host = bits(&store.encode(F32, &picture, mode));
        store.bring();
        let there = bits(&store.encode(F32, &picture, mode));
        assert!(there == host, "{mode:?}");
    }
}
