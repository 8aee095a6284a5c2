//! LoRAs under every kind of name: each layer of a real model is found, and what is no LoRA is refused by name.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

use std::collections::BTreeSet;
use std::path::Path;

use lowtide_core::{Dtype, TensorLayout};
use lowtide_weights::lora::{Lora, modules};
use lowtide_weights::{Checkpoint, Error, Result, render_header};
use serde_json::Value;

/// A component's layers: diffusers' name and the name of the training code.
fn layers(case: &str, component: &str) -> Vec<(String, String)> {
    let path = format!("tests/fixtures/single_file/{case}.json");
    let text = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let record: Value = serde_json::from_slice(&text).unwrap();
    let tensors = record["components"][component]["tensors"]
        .as_object()
        .unwrap();
    tensors
        .iter()
        .filter(|(_, made)| made[3].as_array().unwrap().len() >= 2)
        .filter_map(|(name, made)| {
            let theirs = made[0]
                .as_str()?
                .strip_suffix(".weight")
                .unwrap_or_default();
            Some((name.strip_suffix(".weight")?.to_owned(), theirs.to_owned()))
        })
        .collect()
}

fn names(layers: &[(String, String)]) -> Vec<String> {
    layers.iter().map(|(ours, _)| ours.clone()).collect()
}

/// A tensor of a file: name, type, shape, content.
type Part = (String, Dtype, Vec<usize>, Vec<u8>);

fn part(name: impl Into<String>, shape: &[usize]) -> Part {
    let bytes = vec![0; 4 * shape.iter().product::<usize>()];
    (name.into(), Dtype::F32, shape.to_vec(), bytes)
}

fn alpha(name: impl Into<String>, value: f32) -> Part {
    (
        name.into(),
        Dtype::F32,
        vec![],
        value.to_le_bytes().to_vec(),
    )
}

fn pair(layer: &str, ends: [&str; 2]) -> [Part; 2] {
    [
        part(format!("{layer}{}", ends[0]), &[2, 6]),
        part(format!("{layer}{}", ends[1]), &[5, 2]),
    ]
}

fn file(parts: &[Part], metadata: &[(&str, &str)]) -> Checkpoint {
    let layouts: Vec<TensorLayout> = parts
        .iter()
        .map(|(name, dtype, shape, _)| TensorLayout {
            name: name.clone(),
            dtype: *dtype,
            shape: shape.clone(),
        })
        .collect();
    let mut bytes = render_header(&layouts, metadata, "lora").unwrap();
    parts.iter().for_each(|(.., content)| bytes.extend(content));
    Checkpoint::from_memory("x.safetensors", bytes).unwrap()
}

fn open(parts: &[Part], components: &[(&str, Vec<String>)]) -> Result<Lora> {
    Lora::of(file(parts, &[]), components)
}

/// A layer's name in a file, of diffusers' name and that of the training code.
type Form = Box<dyn Fn(&str, &str) -> String>;

const KOHYA: [&str; 2] = [".lora_down.weight", ".lora_up.weight"];

/// Checks that these names mean exactly these layers.
fn check(lora: &Lora, component: &str, expected: &[String], label: &str) {
    let found: BTreeSet<&str> = lora
        .targets
        .iter()
        .filter(|t| t.component == component)
        .map(|t| t.module.as_str())
        .collect();
    let expected: BTreeSet<&str> = expected.iter().map(String::as_str).collect();
    assert_eq!(found, expected, "{label}");
    assert_eq!(lora.unmatched, Vec::<String>::new(), "{label}");
}

#[test]
fn every_layer_of_real_models_is_found_under_every_kind_of_name() {
    for case in ["sd-1", "sdxl", "tiny-refiner"] {
        let unet = layers(case, "unet");
        let components = [("unet", names(&unet))];
        let forms: [(&str, Form, [&str; 2]); 7] = [
            (
                "kohya",
                Box::new(|ours, _| format!("lora_unet_{}", ours.replace('.', "_"))),
                KOHYA,
            ),
            (
                "kohya, trained names",
                Box::new(|_, theirs| {
                    let theirs = theirs.strip_prefix("model.diffusion_model.").unwrap();
                    format!("lora_unet_{}", theirs.replace('.', "_"))
                }),
                KOHYA,
            ),
            (
                "trained names with dots",
                Box::new(|_, theirs| theirs.strip_prefix("model.").unwrap().to_owned()),
                [".lora_A.weight", ".lora_B.weight"],
            ),
            (
                "diffusers",
                Box::new(|ours, _| format!("unet.{ours}")),
                [".lora.down.weight", ".lora.up.weight"],
            ),
            (
                "peft in diffusers",
                Box::new(|ours, _| format!("unet.{ours}")),
                [".lora_A.weight", ".lora_B.weight"],
            ),
            (
                "peft",
                Box::new(|ours, _| format!("base_model.model.{ours}")),
                [".lora_A.default.weight", ".lora_B.default.weight"],
            ),
            (
                "peft, bare",
                Box::new(|ours, _| ours.to_owned()),
                [".lora_A.weight", ".lora_B.weight"],
            ),
        ];
        for (label, form, ends) in forms {
            let parts: Vec<Part> = unet
                .iter()
                .flat_map(|(ours, theirs)| pair(&form(ours, theirs), ends))
                .collect();
            let lora = open(&parts, &components).unwrap();
            check(&lora, "unet", &names(&unet), &format!("{case}: {label}"));
        }
    }
}

#[test]
fn text_encoders_are_found_under_every_kind_of_name() {
    let (one, two) = (
        layers("sdxl", "text_encoder"),
        layers("sdxl", "text_encoder_2"),
    );
    let components = [
        ("unet", vec![]),
        ("text_encoder", names(&one)),
        ("text_encoder_2", names(&two)),
    ];
    let kohya = |prefix: &str, all: &[(String, String)]| -> Vec<Part> {
        let name = |ours: &str| format!("{prefix}{}", ours.replace('.', "_"));
        all.iter()
            .flat_map(|(ours, _)| pair(&name(ours), KOHYA))
            .collect()
    };
    let lora = open(
        &[kohya("lora_te1_", &one), kohya("lora_te2_", &two)].concat(),
        &components,
    )
    .unwrap();
    check(&lora, "text_encoder", &names(&one), "kohya");
    check(&lora, "text_encoder_2", &names(&two), "kohya");
    check(
        &open(&kohya("lora_te_", &one), &components).unwrap(),
        "text_encoder",
        &names(&one),
        "kohya, one",
    );
    for ends in [
        [
            ".lora_linear_layer.down.weight",
            ".lora_linear_layer.up.weight",
        ],
        [".lora_A.weight", ".lora_B.weight"],
    ] {
        for cut in ["", "text_model."] {
            let name =
                |ours: &str| format!("text_encoder_2.{}", ours.strip_prefix(cut).unwrap_or(ours));
            let parts: Vec<Part> = two
                .iter()
                .flat_map(|(ours, _)| pair(&name(ours), ends))
                .collect();
            check(
                &open(&parts, &components).unwrap(),
                "text_encoder_2",
                &names(&two),
                cut,
            );
        }
    }
}

#[test]
fn old_processors_are_found() {
    let unet = names(&layers("sd-1", "unet"));
    let text = names(&layers("sd-1", "text_encoder"));
    let attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
    let layer = "text_model.encoder.layers.3.self_attn";
    let ends = ["_lora.down.weight", "_lora.up.weight"];
    let mut parts = Vec::new();
    for projection in ["to_q", "to_k", "to_v", "to_out"] {
        parts.extend(pair(
            &format!("unet.{attention}.processor.{projection}"),
            ends,
        ));
        parts.extend(pair(&format!("text_encoder.{layer}.{projection}"), ends));
    }
    let lora = open(&parts, &[("unet", unet), ("text_encoder", text)]).unwrap();
    let expect = |at: &str, all: [&str; 4]| all.map(|p| format!("{at}.{p}")).to_vec();
    check(
        &lora,
        "unet",
        &expect(attention, ["to_q", "to_k", "to_v", "to_out.0"]),
        "unet",
    );
    check(
        &lora,
        "text_encoder",
        &expect(layer, ["q_proj", "k_proj", "v_proj", "out_proj"]),
        "text",
    );
}

#[test]
fn alpha_rank_and_kernel_are_read() {
    let components = [(
        "unet",
        vec![
            "conv_in".to_owned(),
            "conv_out".to_owned(),
            "a.b".to_owned(),
        ],
    )];
    let parts = [
        part("lora_unet_conv_in.lora_down.weight", &[4, 3, 3, 3]),
        part("lora_unet_conv_in.lora_up.weight", &[8, 4, 1, 1]),
        alpha("lora_unet_conv_in.alpha", 1.0),
        part("lora_unet_conv_out.lora_down.weight", &[4, 3, 1, 1]),
        part("lora_unet_conv_out.lora_mid.weight", &[5, 4, 3, 3]),
        part("lora_unet_conv_out.lora_up.weight", &[8, 5, 1, 1]),
        part("lora_unet_a_b.lora_down.weight", &[2, 3]),
        part("lora_unet_a_b.lora_up.weight", &[8, 2]),
        (
            "lora_unet_unknown.alpha".to_owned(),
            Dtype::Bf16,
            vec![],
            vec![0x80, 0x3f],
        ),
        part("bundle_emb.x.string_to_param.*", &[1, 3]),
    ];
    let lora = open(&parts, &components).unwrap();
    let facts: Vec<_> = lora
        .targets
        .iter()
        .map(|t| {
            (
                t.module.as_str(),
                t.rank,
                t.kernel,
                t.alpha,
                t.scale(),
                t.mid.is_some(),
            )
        })
        .collect();
    assert_eq!(
        facts,
        [
            ("a.b", 2, 1, 2.0, 1.0, false),
            ("conv_in", 4, 3, 1.0, 0.25, false),
            ("conv_out", 4, 3, 4.0, 1.0, true),
        ]
    );
    assert_eq!(
        lora.unmatched,
        ["bundle_emb.x.string_to_param.*", "lora_unet_unknown"]
    );
}

#[test]
fn alphas_that_peft_noted_are_used() {
    let noted = r#"{"unet.lora_alpha": 8, "unet.alpha_pattern": {"b.to_q": 3, "q": 5}}"#;
    let parts = [
        pair("unet.a.to_q", [".lora_A.weight", ".lora_B.weight"]),
        pair("unet.b.to_q", [".lora_A.weight", ".lora_B.weight"]),
    ]
    .concat();
    let checkpoint = file(&parts, &[("lora_adapter_metadata", noted)]);
    let lora = Lora::of(
        checkpoint,
        &[("unet", vec!["a.to_q".to_owned(), "b.to_q".to_owned()])],
    )
    .unwrap();
    let alphas: Vec<f32> = lora.targets.iter().map(|t| t.alpha).collect();
    assert_eq!(alphas, [8.0, 3.0]);
}

#[test]
fn a_name_that_two_layers_share_means_neither() {
    let components = [(
        "unet",
        vec!["a.b_c".to_owned(), "a_b.c".to_owned(), "d.e".to_owned()],
    )];
    let parts = [pair("lora_unet_a_b_c", KOHYA), pair("lora_unet_d_e", KOHYA)].concat();
    let lora = open(&parts, &components).unwrap();
    assert_eq!(lora.targets.len(), 1);
    assert_eq!(lora.unmatched, ["lora_unet_a_b_c"]);
}

#[test]
fn what_is_no_lora_is_refused_by_name() {
    let components = [("unet", vec!["a.b".to_owned()])];
    let with = |extra: Part| [pair("lora_unet_a_b", KOHYA).to_vec(), vec![extra]].concat();
    let matrices = |down: &[usize], up: &[usize]| {
        vec![
            part("lora_unet_a_b.lora_down.weight", down),
            part("lora_unet_a_b.lora_up.weight", up),
        ]
    };
    let not_a_number = alpha("lora_unet_a_b.alpha", f32::NAN);
    for (parts, says) in [
        (with(part("lora_unet_a_b.hada_w1_a", &[2, 2])), "LoHa"),
        (with(part("lora_unet_a_b.lokr_w1", &[2, 2])), "LoKr"),
        (with(part("lora_unet_a_b.dora_scale", &[2, 2])), "DoRA"),
        (with(part("lora_unet_a_b.oft_blocks", &[2, 2])), "OFT"),
        (
            with(part("lora_unet_a_b.diff", &[2, 2])),
            "whole difference",
        ),
        (
            with(part("lora_unet_a_b.alpha", &[2])),
            "alpha has shape [2]",
        ),
        (with(not_a_number), "not a number"),
        (
            with(part("unet.a.b.lora_A.weight", &[2, 2])),
            "matrices is missing",
        ),
        (matrices(&[2, 6], &[5, 3]), "[2, 6], [5, 3]"),
        (matrices(&[2, 6, 3, 2], &[5, 2]), "do not go together"),
        (matrices(&[2, 6], &[5, 2, 3, 3]), "do not go together"),
        (matrices(&[0, 6], &[5, 0]), "rank of 0"),
        (matrices(&[5000, 1], &[1, 5000]), "rank of 5000"),
        (
            [
                pair("lora_unet_a_b", KOHYA),
                pair("unet.a.b", [".lora_A.weight", ".lora_B.weight"]),
            ]
            .concat(),
            "same layer",
        ),
        (
            [
                pair("unet.a.b", [".lora_A.x.weight", ".lora_B.x.weight"]),
                pair("unet.a.b", [".lora_A.y.weight", ".lora_B.y.weight"]),
            ]
            .concat(),
            "two adapters",
        ),
    ] {
        let error = open(&parts, &components).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Lora { .. }), "{says}: {text}");
        assert!(
            text.contains(says) && text.starts_with("x.safetensors"),
            "{says}: {text}"
        );
    }
}

#[test]
fn layers_are_what_has_a_matrix() {
    let parts = [
        part("a.weight", &[2, 2]),
        part("b.weight", &[2]),
        part("c.bias", &[2, 2]),
    ];
    assert_eq!(modules(&file(&parts, &[])), ["a"]);
}
