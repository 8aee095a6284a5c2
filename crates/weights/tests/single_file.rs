//! Models in one file: the same components as diffusers' conversion makes of them, tensor by tensor, for every family
//! at its real size and for small ones. The fixtures hold names and shapes; files of the real size are holes.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use lowtide_core::{Dtype, TensorLayout};
use lowtide_weights::{Checkpoint, Error, ModelFolder, render_header};
use serde_json::{Value, json};

/// Files up to so many bytes get content, which is then compared.
const WRITTEN_BYTES_MAX: u64 = 64 << 20;

/// A recorded family.
struct Case {
    name: String,
    record: Value,
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/single_file");
    let mut cases: Vec<Case> = folder
        .read_dir()
        .unwrap()
        .map(|file| {
            let path = file.unwrap().path();
            let record = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            Case { name, record }
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(cases.len(), 12);
    cases
}

fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

fn numbers(value: &Value) -> Vec<usize> {
    let items = value.as_array().unwrap().iter();
    items.map(|n| n.as_u64().unwrap() as usize).collect()
}

fn layout(name: &str, shape: &[usize]) -> TensorLayout {
    TensorLayout {
        name: name.to_owned(),
        dtype: Dtype::F16,
        shape: shape.to_vec(),
    }
}

impl Case {
    /// The file's tensors, some renamed, some left out.
    fn layouts(&self, rename: impl Fn(&str) -> Option<String>) -> Vec<TensorLayout> {
        let file = self.record["file"].as_object().unwrap();
        file.iter()
            .filter_map(|(name, shape)| Some(layout(&rename(name)?, &numbers(shape))))
            .collect()
    }

    fn components(&self) -> &serde_json::Map<String, Value> {
        self.record["components"].as_object().unwrap()
    }
}

/// A file on a disk, and where each tensor of it begins.
struct Written {
    path: PathBuf,
    at: BTreeMap<String, u64>,
    /// Empty where the file is a hole.
    bytes: Vec<u8>,
    _folder: tempfile::TempDir,
}

fn write(layouts: &[TensorLayout], metadata: &[(&str, &str)]) -> Written {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut bytes = render_header(layouts, metadata, "model").unwrap();
    let mut at = BTreeMap::new();
    let mut end = bytes.len() as u64;
    for layout in layouts {
        at.insert(layout.name.clone(), end);
        end += layout.bytes().0;
    }
    let mut file = std::fs::File::create(&path).unwrap();
    if end <= WRITTEN_BYTES_MAX {
        let mut state = 1u32;
        while (bytes.len() as u64) < end {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.push((state >> 24) as u8);
        }
        file.write_all(&bytes).unwrap();
    } else {
        file.write_all(&bytes).unwrap();
        file.set_len(end).unwrap();
        bytes.clear();
    }
    Written {
        path,
        at,
        bytes,
        _folder: folder,
    }
}

/// Checks that a component has exactly the tensors that diffusers made, from where it took them.
fn check_tensors(weights: &Checkpoint, expected: &Value, written: &Written, label: &str) {
    let expected = expected.as_object().unwrap();
    let names: Vec<&str> = weights.tensors().map(|t| t.name.as_str()).collect();
    for name in &names {
        assert!(expected.contains_key(*name), "{label}: {name} is too much");
    }
    assert_eq!(names.len(), expected.len(), "{label}");
    for (name, made) in expected {
        let entry = weights
            .get(name)
            .unwrap_or_else(|| panic!("{label}: no {name}"));
        let shape = numbers(&made[3]);
        let (source, first, turned) = (
            made[0].as_str().unwrap(),
            made[1].as_u64().unwrap(),
            made[2] == json!(1),
        );
        assert_eq!(entry.shape, shape, "{label}: {name}");
        let row = 2 * shape[1..].iter().product::<usize>() as u64;
        let begin = written.at[source] + first * row;
        assert_eq!(entry.offset, begin, "{label}: {name}");
        assert_eq!(entry.strides.is_some(), turned, "{label}: {name}");
        if !written.bytes.is_empty() {
            let stored = &written.bytes[begin as usize..][..entry.bytes as usize];
            let mut read = vec![0; stored.len()];
            weights.read(entry, &mut read).unwrap();
            for (index, element) in read.chunks_exact(2).enumerate() {
                let from = match turned {
                    true => (index % shape[1]) * shape[0] + index / shape[1],
                    false => index,
                };
                assert_eq!(element, &stored[2 * from..2 * from + 2], "{label}: {name}");
            }
        }
    }
}

fn check_config(found: &Value, expected: &Value, label: &str) {
    for (key, value) in expected.as_object().unwrap() {
        if key == "transformer_layers_per_block" {
            assert_eq!(depths(found), depths(expected), "{label}");
        } else if !key.starts_with('_') {
            assert_eq!(&found[key], value, "{label}: {key}");
        }
    }
}

/// Transformer layers a level, those with attention; a number stands for all.
fn depths(config: &Value) -> Vec<(usize, Value)> {
    let kinds = config["down_block_types"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate();
    let layers = &config["transformer_layers_per_block"];
    kinds
        .filter(|(_, kind)| kind.as_str().unwrap().contains("CrossAttn"))
        .map(|(level, _)| (level, layers.get(level).unwrap_or(layers).clone()))
        .collect()
}

#[test]
fn every_family_gives_what_diffusers_conversion_gives() {
    for case in cases() {
        let written = write(&case.layouts(|name| Some(name.to_owned())), &[]);
        let model = ModelFolder::open(&written.path).unwrap();
        assert_eq!(model.name, "model");
        assert_eq!(model.class_name, case.record["class"], "{}", case.name);
        let scheduler = &model.component("scheduler").unwrap().config;
        assert_eq!(
            scheduler["prediction_type"], case.record["prediction"],
            "{}",
            case.name
        );
        for component in model.components.iter().filter(|c| c.has_weights) {
            let label = format!("{} {}", case.name, component.name);
            let expected = &case.components()[&component.name];
            let weights = model.checkpoint(&component.name).unwrap();
            check_tensors(&weights, &expected["tensors"], &written, &label);
            check_config(&component.config, &expected["config"], &label);
        }
        let networks = model.components.iter().filter(|c| c.has_weights).count();
        assert_eq!(networks, case.components().len(), "{}", case.name);
        assert_eq!(model.check_complete().is_ok(), model.missing().is_empty());
        assert_eq!(model.summary().unwrap().components.len(), networks + 1);
    }
}

#[test]
fn configurations_have_what_no_shape_tells() {
    let written = write(&case("sdxl").layouts(|name| Some(name.to_owned())), &[]);
    let model = ModelFolder::open(&written.path).unwrap();
    let config = |name| &model.component(name).unwrap().config;
    assert_eq!(config("vae")["scaling_factor"], 0.13025);
    assert_eq!(config("vae")["force_upcast"], true);
    assert_eq!(config("scheduler")["_class_name"], "EulerDiscreteScheduler");
    assert_eq!(
        model.setting("force_zeros_for_empty_prompt"),
        Some(&json!(true))
    );
    assert_eq!(
        model.component("unet").unwrap().class,
        "UNet2DConditionModel"
    );
    let second = model.component("text_encoder_2").unwrap();
    assert_eq!(
        (second.class.as_str(), second.library.as_str()),
        ("CLIPTextModelWithProjection", "transformers")
    );
    let refiner = write(
        &case("sdxl-refiner").layouts(|name| Some(name.to_owned())),
        &[],
    );
    let refiner = ModelFolder::open(&refiner.path).unwrap();
    assert_eq!(
        refiner.setting("requires_aesthetics_score"),
        Some(&json!(true))
    );
    assert!(refiner.component("text_encoder").is_none());
}

#[test]
fn marks_in_a_file_tell_what_it_predicts() {
    let tiny = case("tiny-xl");
    let mut layouts = tiny.layouts(|name| Some(name.to_owned()));
    layouts.push(layout("v_pred", &[]));
    layouts.push(layout("ztsnr", &[]));
    let prediction = |layouts: &[TensorLayout], metadata: &[(&str, &str)]| {
        let written = write(layouts, metadata);
        let model = ModelFolder::open(&written.path).unwrap();
        model.component("scheduler").unwrap().config.clone()
    };
    let marked = prediction(&layouts, &[]);
    assert_eq!(marked["prediction_type"], "v_prediction");
    assert_eq!(marked["rescale_betas_zero_snr"], true);
    let said = prediction(&layouts, &[("modelspec.prediction_type", "epsilon")]);
    assert_eq!(said["prediction_type"], "epsilon");
    // The step count that tells the version of 2.0 for small pictures.
    let two = case("tiny-2").layouts(|name| Some(name.to_owned()));
    assert_eq!(prediction(&two, &[])["prediction_type"], "v_prediction");
    let base = prediction(&two, &[("global_step", "875000")]);
    assert_eq!(base["prediction_type"], "epsilon");
    let written = write(&two, &[]);
    let model = ModelFolder::open(&written.path).unwrap();
    let model = model
        .with_setting("scheduler", "prediction_type", "epsilon")
        .unwrap();
    assert_eq!(
        model.component("scheduler").unwrap().config["prediction_type"],
        "epsilon"
    );
}

#[test]
fn what_training_leaves_is_passed_over() {
    let tiny = case("tiny-1");
    let mut layouts = tiny.layouts(|name| Some(name.to_owned()));
    for name in [
        "betas",
        "model_ema.decay",
        "model_ema.diffusion_modelout0weight",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.logit_scale",
        "first_stage_model.loss.logvar",
        "model.diffusion_model.strange",
    ] {
        layouts.insert(layouts.len() / 2, layout(name, &[4]));
    }
    let written = write(&layouts, &[]);
    let model = ModelFolder::open(&written.path).unwrap();
    for (name, expected) in tiny.components() {
        let weights = model.checkpoint(name).unwrap();
        check_tensors(&weights, &expected["tensors"], &written, name);
    }
}

#[test]
fn averages_are_used_where_nothing_else_is_there() {
    for name in ["tiny-1", "sd-1", "tiny-2", "sdxl"] {
        let recorded = case(name);
        let flat = |name: &str| match name.strip_prefix("model.diffusion_model.") {
            Some(rest) => format!("model_ema.diffusion_model{}", rest.replace('.', "")),
            None => name.to_owned(),
        };
        let written = write(&recorded.layouts(|name| Some(flat(name))), &[]);
        let model = ModelFolder::open(&written.path).unwrap();
        assert_eq!(model.class_name, recorded.record["class"]);
        let mut expected = recorded.components()["unet"]["tensors"].clone();
        for made in expected.as_object_mut().unwrap().values_mut() {
            made[0] = json!(flat(made[0].as_str().unwrap()));
        }
        check_tensors(
            &model.checkpoint("unet").unwrap(),
            &expected,
            &written,
            name,
        );
    }
}

#[test]
fn names_cut_by_other_tools_are_known() {
    let tiny = case("tiny-1");
    for prefix in ["", "diffusion_model."] {
        let cut = |name: &str| {
            let rest = name.strip_prefix("model.diffusion_model.")?;
            Some(format!("{prefix}{rest}"))
        };
        let written = write(&tiny.layouts(cut), &[]);
        let model = ModelFolder::open(&written.path).unwrap();
        assert_eq!(model.missing(), ["vae", "text_encoder"]);
        assert_eq!(
            model.checkpoint("unet").unwrap().tensors().len(),
            tiny.components()["unet"]["tensors"]
                .as_object()
                .unwrap()
                .len()
        );
    }
    // CLIP without the part that transformers puts first.
    let short = |name: &str| Some(name.replace("transformer.text_model.", "transformer."));
    let written = write(&tiny.layouts(short), &[]);
    let model = ModelFolder::open(&written.path).unwrap();
    let weights = model.checkpoint("text_encoder").unwrap();
    assert!(weights.get("text_model.final_layer_norm.weight").is_some());
}

#[test]
fn a_missing_component_is_named_and_can_come_from_elsewhere() {
    let whole = case("tiny-xl");
    let file = write(&whole.layouts(|name| Some(name.to_owned())), &[]);
    let bare = write(
        &case("tiny-unet-only").layouts(|name| Some(name.to_owned())),
        &[],
    );
    let model = ModelFolder::open(&bare.path).unwrap();
    assert_eq!(model.missing(), ["vae", "text_encoder", "text_encoder_2"]);
    let error = model.checkpoint("vae").unwrap_err();
    assert!(matches!(error, Error::ComponentNotInFile { .. }), "{error}");
    let model = model.with_component("vae", &file.path).unwrap();
    let model = model.with_component("text_encoder", &file.path).unwrap();
    let model = model.with_component("text_encoder_2", &file.path).unwrap();
    model.check_complete().unwrap();
    for name in ["vae", "text_encoder", "text_encoder_2"] {
        let expected = &whole.components()[name];
        check_tensors(
            &model.checkpoint(name).unwrap(),
            &expected["tensors"],
            &file,
            name,
        );
        check_config(
            &model.component(name).unwrap().config,
            &expected["config"],
            name,
        );
    }
}

#[test]
fn a_vae_alone_takes_the_place_of_a_models() {
    let recorded = case("tiny-xl");
    let model = || {
        ModelFolder::open(&write(&recorded.layouts(|name| Some(name.to_owned())), &[]).path)
            .unwrap()
    };
    let trained = |name: &str| Some(name.strip_prefix("first_stage_model.")?.to_owned());
    let file = write(&recorded.layouts(trained), &[]);
    let replaced = model().with_component("vae", &file.path).unwrap();
    let config = &replaced.component("vae").unwrap().config;
    check_config(
        config,
        &recorded.components()["vae"]["config"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(key, _)| key.contains("channels") || key.contains("layers"))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        "vae",
    );
    assert_eq!(config["scaling_factor"], 0.13025, "as the model's own");
    assert_eq!(replaced.components.len(), model().components.len());
    let ours = replaced.checkpoint("vae").unwrap();
    // The same one under diffusers' names.
    let layouts: Vec<TensorLayout> = ours.tensors().map(|t| layout(&t.name, &t.shape)).collect();
    let file = write(&layouts, &[]);
    let again = model().with_component("vae", &file.path).unwrap();
    assert_eq!(&again.component("vae").unwrap().config, config);
    assert_eq!(
        again.checkpoint("vae").unwrap().tensors().len(),
        layouts.len()
    );
    // And from a folder, as diffusers keeps it.
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(
        &file.path,
        folder
            .path()
            .join("diffusion_pytorch_model.fp16.safetensors"),
    )
    .unwrap();
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"_class_name":"AutoencoderKL","scaling_factor":0.5}"#,
    )
    .unwrap();
    let third = model().with_component("vae", folder.path()).unwrap();
    assert_eq!(
        third.component("vae").unwrap().config["scaling_factor"],
        0.5
    );
    assert_eq!(
        third.checkpoint("vae").unwrap().tensors().len(),
        layouts.len()
    );
}

#[test]
fn a_tokenizer_can_come_from_a_folder() {
    let written = write(&case("tiny-1").layouts(|name| Some(name.to_owned())), &[]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("vocab.json"), "{}").unwrap();
    let model = ModelFolder::open(&written.path).unwrap();
    assert_eq!(model.read_text("tokenizer/vocab.json").unwrap(), None);
    let model = model.with_component("tokenizer", folder.path()).unwrap();
    assert_eq!(
        model.read_text("tokenizer/vocab.json").unwrap().as_deref(),
        Some("{}")
    );
    assert!(!model.component("tokenizer").unwrap().has_weights);
    assert!(matches!(
        model.read_text("tokenizer/../x"),
        Err(Error::UnsafePath { .. })
    ));
}

#[test]
fn what_is_no_model_is_told() {
    let open = |layouts: &[TensorLayout]| {
        ModelFolder::open(&write(layouts, &[]).path)
            .unwrap_err()
            .to_string()
    };
    for (name, says) in [
        ("lora_unet_x.lora_down.weight", "LoRA"),
        ("control_model.x.weight", "ControlNet"),
        (
            "model.diffusion_model.joint_blocks.0.x.weight",
            "Stable Diffusion 3",
        ),
        ("double_blocks.0.x", "FLUX"),
        ("decoder.up.0.block.0.conv1.weight", "VAE alone"),
        ("down_blocks.0.resnets.0.conv1.weight", "diffusers' names"),
        ("emb_params", "textual inversion"),
        ("x", "not those of"),
    ] {
        let text = open(&[layout(name, &[4, 4])]);
        assert!(
            text.contains(says) && text.contains("model.safetensors"),
            "{name}: {text}"
        );
    }
    let tiny = case("tiny-1");
    let without = |part: &'static str| {
        tiny.layouts(move |name| (!name.contains(part)).then(|| name.to_owned()))
    };
    let reshaped = |part: &str, shape: &[usize]| {
        let mut layouts = tiny.layouts(|name| Some(name.to_owned()));
        let at = layouts.iter().position(|l| l.name.contains(part)).unwrap();
        layouts[at].shape = shape.to_vec();
        layouts
    };
    for (layouts, says) in [
        (without("out.2.weight"), "'out.2.weight' is missing"),
        (without("output_blocks.2.1.transformer"), "output_blocks"),
        (without("middle_block.1."), "no attention"),
        (without("decoder.up.0.block.1"), "resnets"),
        (without("decoder.conv_out"), "missing"),
        (without("token_embedding"), "token_embedding"),
        (
            reshaped("input_blocks.0.0.weight", &[4]),
            "not a convolution",
        ),
        (reshaped("fc1.weight", &[4, 4, 4]), "2 dimensions"),
    ] {
        let text = open(&layouts);
        assert!(text.contains(says), "{says}: {text}");
    }
}
