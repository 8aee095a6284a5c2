//! A recorded family with weights, written as one file and as a folder.

use std::collections::BTreeMap;
use std::path::Path;

use lowtide_core::{Dtype, TensorLayout};
use lowtide_weights::SafetensorsWriter;
use serde_json::{Map, Value, json};

use crate::torch::{self, Saved};

/// Rows of the table of tokens: CLIP's vocabulary.
const VOCABULARY: usize = 49_408;

/// The merges that the program carries: for each, the ids of the two tokens it joins.
static MERGES: &[u8] = include_bytes!("../../src/clip_prompt/merges.bin");

/// Names and shapes of a file, what becomes of it, and its weights.
pub(crate) struct Recorded {
    record: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

fn numbers(value: &Value) -> Vec<usize> {
    let items = value.as_array().unwrap().iter();
    items.map(|n| n.as_u64().unwrap() as usize).collect()
}

fn is_table(name: &str) -> bool {
    name.ends_with("token_embedding.weight")
}

impl Recorded {
    pub(crate) fn read(family: &str) -> Recorded {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../weights/tests/fixtures/single_file")
            .join(format!("{family}.json"));
        let record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut recorded = Recorded {
            record,
            tensors: BTreeMap::new(),
        };
        recorded.fill("");
        recorded
    }

    /// The same with other weights.
    pub(crate) fn seeded(mut self, seed: &str) -> Recorded {
        self.fill(seed);
        self
    }

    fn fill(&mut self, seed: &str) {
        for (name, shape) in self.record["file"].as_object().unwrap() {
            let mut shape = numbers(shape);
            if is_table(name) {
                shape[0] = VOCABULARY;
            }
            let values = values(&format!("{seed}{name}"), &shape);
            self.tensors.insert(name.clone(), (shape, values));
        }
    }

    pub(crate) fn write_file(&self, path: &Path, kept: impl Fn(&str) -> bool) {
        let tensors: Vec<Saved<'_>> = self
            .tensors
            .iter()
            .filter(|(name, _)| kept(name))
            .map(|(name, (shape, bytes))| Saved { name, shape, bytes })
            .collect();
        if path.extension().unwrap() == "ckpt" {
            std::fs::write(path, torch::file(&tensors)).unwrap();
        } else {
            write(path, &tensors);
        }
    }

    /// The folder that diffusers' conversion makes of the file.
    pub(crate) fn write_folder(&self, folder: &Path) {
        let components = self.record["components"].as_object().unwrap();
        let class = self.record["class"].as_str().unwrap();
        let xl = class.contains("XL");
        let mut index = json!({
            "_class_name": class,
            "scheduler": ["diffusers", if xl { "EulerDiscreteScheduler" } else { "PNDMScheduler" }],
        });
        if xl {
            index["force_zeros_for_empty_prompt"] = json!(true);
        }
        for (name, component) in components {
            let (library, class, file) = match &name[..] {
                "unet" => (
                    "diffusers",
                    "UNet2DConditionModel",
                    "diffusion_pytorch_model",
                ),
                "vae" => ("diffusers", "AutoencoderKL", "diffusion_pytorch_model"),
                "text_encoder_2" => ("transformers", "CLIPTextModelWithProjection", "model"),
                _ => ("transformers", "CLIPTextModel", "model"),
            };
            index[name] = json!([library, class]);
            let inside = folder.join(name);
            std::fs::create_dir_all(&inside).unwrap();
            let config = config(name, class, xl, &component["config"]);
            json_file(&inside.join("config.json"), &config);
            self.write_component(
                &inside.join(format!("{file}.safetensors")),
                component["tensors"].as_object().unwrap(),
            );
            if let Some(second) = name.strip_prefix("text_encoder") {
                let tokenizer = format!("tokenizer{second}");
                index[&tokenizer] = json!(["transformers", "CLIPTokenizer"]);
                write_tokenizer(&folder.join(tokenizer), !second.is_empty());
            }
        }
        std::fs::create_dir_all(folder.join("scheduler")).unwrap();
        let mut scheduler = json!({
            "_class_name": index["scheduler"][1],
            "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
            "clip_sample": false, "num_train_timesteps": 1000, "prediction_type": self.record["prediction"],
            "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
        });
        if xl {
            scheduler["timestep_spacing"] = json!("leading");
        }
        json_file(&folder.join("scheduler/scheduler_config.json"), &scheduler);
        json_file(&folder.join("model_index.json"), &index);
    }

    /// A component's tensors, each cut out of the file's, and turned where the conversion turns it.
    fn write_component(&self, path: &Path, made: &Map<String, Value>) {
        let cut = made.iter().map(|(name, made)| {
            let (first, turned) = (made[1].as_u64().unwrap() as usize, made[2] == json!(1));
            let source = made[0].as_str().unwrap();
            let mut shape = numbers(&made[3]);
            if is_table(source) {
                shape[0] = VOCABULARY;
            }
            let bytes = &self.tensors[source].1;
            let count: usize = shape.iter().product();
            let row: usize = 2 * shape[1..].iter().product::<usize>();
            let bytes = match turned {
                false => bytes[first * row..][..2 * count].to_vec(),
                true => turn(bytes, shape[1], shape[0]),
            };
            (name, shape, bytes)
        });
        let cut: Vec<_> = cut.collect();
        let tensors = cut
            .iter()
            .map(|(name, shape, bytes)| Saved { name, shape, bytes });
        write(path, &tensors.collect::<Vec<_>>());
    }
}

/// `rows` rows of `cols` f16 numbers, columns as rows.
fn turn(bytes: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let numbers = bytes.as_chunks::<2>().0;
    let turned = (0..cols).flat_map(|col| (0..rows).map(move |row| row * cols + col));
    turned.flat_map(|at| numbers[at]).collect()
}

fn write(path: &Path, tensors: &[Saved<'_>]) {
    let layouts: Vec<TensorLayout> = tensors
        .iter()
        .map(|tensor| TensorLayout {
            name: tensor.name.to_owned(),
            dtype: Dtype::F16,
            shape: tensor.shape.to_vec(),
        })
        .collect();
    let mut writer = SafetensorsWriter::create(path, &layouts).unwrap();
    for tensor in tensors {
        writer.write(tensor.name, tensor.bytes).unwrap();
    }
    writer.finish().unwrap();
}

fn json_file(path: &Path, value: &Value) {
    std::fs::write(path, format!("{value:#}")).unwrap();
}

/// What is recorded of a component's configuration, and what published ones of its kind say besides.
fn config(name: &str, class: &str, xl: bool, recorded: &Value) -> Value {
    let mut config = recorded.clone();
    if name == "vae" {
        let levels = recorded["block_out_channels"].as_array().unwrap().len();
        config["_class_name"] = json!(class);
        config["down_block_types"] = json!(vec!["DownEncoderBlock2D"; levels]);
        config["up_block_types"] = json!(vec!["UpDecoderBlock2D"; levels]);
        config["scaling_factor"] = json!(if xl { 0.13025 } else { 0.18215 });
    } else if name == "unet" {
        config["_class_name"] = json!(class);
    } else {
        config["architectures"] = json!([class]);
        config["vocab_size"] = json!(VOCABULARY);
    }
    config
}

/// The letter that stands for each byte, in the order of their ids.
fn letters() -> Vec<char> {
    let shown: Vec<u32> = (33..=126).chain(161..=172).chain(174..=255).collect();
    let hidden = (0..256).filter(|byte| !shown.contains(byte)).count() as u32;
    let all = shown.into_iter().chain(256..256 + hidden);
    all.map(|code| char::from_u32(code).unwrap()).collect()
}

/// The files of a tokenizer as published models have them.
fn write_tokenizer(folder: &Path, pad_zero: bool) {
    std::fs::create_dir_all(folder).unwrap();
    let letters = letters();
    let mut tokens: Vec<String> = letters.iter().map(char::to_string).collect();
    tokens.extend(letters.iter().map(|letter| format!("{letter}</w>")));
    let mut merges = "#version: 0.2\n".to_owned();
    for pair in MERGES.chunks_exact(4) {
        let token = |at: usize| &tokens[usize::from(u16::from_le_bytes([pair[at], pair[at + 1]]))];
        let (a, b) = (token(0).clone(), token(2).clone());
        merges.push_str(&format!("{a} {b}\n"));
        tokens.push(format!("{a}{b}"));
    }
    tokens.extend(["<|startoftext|>".to_owned(), "<|endoftext|>".to_owned()]);
    assert_eq!(tokens.len(), VOCABULARY);
    let ids = tokens.iter().zip(0..);
    let vocabulary: Map<String, Value> =
        ids.map(|(token, id)| (token.clone(), json!(id))).collect();
    json_file(&folder.join("vocab.json"), &Value::Object(vocabulary));
    std::fs::write(folder.join("merges.txt"), merges).unwrap();
    let pad = if pad_zero { "!" } else { "<|endoftext|>" };
    let special = json!({
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad,
    });
    json_file(&folder.join("special_tokens_map.json"), &special);
    let mut settings = special;
    settings["model_max_length"] = json!(77);
    settings["tokenizer_class"] = json!("CLIPTokenizer");
    json_file(&folder.join("tokenizer_config.json"), &settings);
}

/// f16 numbers that follow from a name: of either sign and about 1 / sqrt(inputs) large; around 1 for scales of norms.
fn values(name: &str, shape: &[usize]) -> Vec<u8> {
    const ONE: u16 = 15 << 10;
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    }) | 1;
    let inputs: usize = shape[1..].iter().product();
    let is_scale = shape.len() == 1 && name.ends_with("weight");
    let exponent = match shape.len() {
        1 => 10,
        _ if name.contains("embedding") => 12,
        _ => 15 - (inputs as f32).sqrt().log2().ceil() as u16,
    };
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let (sign, fraction) = ((state >> 63) as u16, (state >> 40) as u16 & 0x3ff);
        let bits = if is_scale {
            ONE | (fraction >> 2)
        } else {
            sign << 15 | exponent << 10 | fraction
        };
        bits.to_le_bytes()
    };
    (0..shape.iter().product::<usize>())
        .flat_map(next)
        .collect()
}
