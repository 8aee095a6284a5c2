//! U-Nets in memory, whose weights follow from their names, so that a recorded case needs none.

use std::collections::HashMap;

use lowtide_core::{BlockLayout, ComponentLayout, Dtype, TensorLayout};
use lowtide_models::device::Place;
use lowtide_models::unet_2d_condition::{Added, Condition, Config, Pass, layout, predict};
use lowtide_models::weights::BlockIndex;
use lowtide_models::{Adapters, BlockSource, Compute, Error, Headers, Result, Tensor, Weights};
use serde_json::Value;

use crate::shadow::There;

/// A network in memory.
pub(crate) struct Store {
    pub(crate) config: Config,
    pub(crate) layout: ComponentLayout,
    blocks: Vec<(BlockIndex, Vec<u8>)>,
    pub(crate) visits: Vec<usize>,
    /// What is added to its layers.
    pub(crate) adapters: Option<Adapters>,
    /// Its blocks on a device, where it is to be computed there.
    pub(crate) there: Option<There>,
}

impl BlockSource for Store {
    fn block(&mut self, index: usize) -> Result<Weights<'_>> {
        self.visits.push(index);
        let (names, bytes) = &self.blocks[index];
        let weights = match &self.there {
            None => Weights::live(names, bytes),
            Some(there) => Weights::live(names, there.bytes(index)),
        };
        Ok(weights.with_adapters(self.adapters.as_ref()))
    }

    fn place(&self) -> Place {
        self.there.as_ref().map(There::place).unwrap_or_default()
    }
}

type Shapes = HashMap<String, (Dtype, Vec<usize>)>;

struct Known<'a>(&'a Shapes);

impl Headers for Known<'_> {
    fn tensor(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        self.0.get(name).cloned()
    }
}

/// Numbers from -1 to 1 that follow from a name: a linear congruential generator, as `unet.py` has it.
pub(crate) fn numbers(name: &str) -> impl Iterator<Item = f32> {
    let seed = name.bytes().fold(1u64, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}

/// The values of a weight, which keep maps near one.
fn values(tensor: &TensorLayout) -> impl Iterator<Item = f32> {
    let (centre, spread) = match tensor.shape[..] {
        [_] if tensor.name.contains("norm") && tensor.name.ends_with("weight") => (1.0, 0.3),
        [_] => (0.0, 0.2),
        _ => {
            let fan_in: usize = tensor.shape[1..].iter().product();
            (0.0, (3.0 / fan_in as f64).sqrt() as f32)
        }
    };
    numbers(&tensor.name)
        .take(tensor.elements() as usize)
        .map(move |value| centre + spread * value)
}

fn stored(tensor: &TensorLayout) -> Vec<u8> {
    match tensor.dtype {
        Dtype::F32 => values(tensor).flat_map(f32::to_le_bytes).collect(),
        Dtype::Bf16 => values(tensor)
            .flat_map(|value| half::bf16::from_f32(value).to_le_bytes())
            .collect(),
        other => panic!("no weights are made as {other}"),
    }
}

impl Store {
    /// Every tensor that the configuration calls for.
    pub(crate) fn new(config: &Value, dtype: Dtype) -> Store {
        let config = Config::from_json(config).unwrap_or_else(|error| panic!("{error}"));
        let layout = called_for(&config, dtype);
        let block = |block: &BlockLayout| {
            let mut bytes = vec![0; block.bytes().as_usize()];
            for (tensor, at) in block.offsets() {
                let stored = stored(tensor);
                bytes[at..at + stored.len()].copy_from_slice(&stored);
            }
            (BlockIndex::new(block), bytes)
        };
        Store {
            blocks: layout.blocks.iter().map(block).collect(),
            config,
            layout,
            visits: Vec::new(),
            adapters: None,
            there: None,
        }
    }

    /// Brings it to a device.
    pub(crate) fn bring(&mut self) {
        self.there = Some(There::new(self.blocks.iter().map(|(_, bytes)| &bytes[..])));
    }

    pub(crate) fn predict(
        &mut self,
        (compute, chunk_rows): (Compute, usize),
        inputs: &Inputs,
        sequences: &[usize],
    ) -> Vec<Tensor> {
        let config = self.config.clone();
        let pass = Pass {
            compute,
            config: &config,
            chunk_rows,
        };
        let samples: Vec<&Tensor> = inputs.samples.iter().collect();
        let sequences: Vec<_> = sequences.iter().map(|&s| inputs.sequence(s)).collect();
        self.visits.clear();
        predict(self, pass, &samples, inputs.timestep, &sequences)
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

/// The layout of a checkpoint that has just what the configuration calls for: the complaints of `layout` say what.
fn called_for(config: &Config, dtype: Dtype) -> ComponentLayout {
    let mut shapes = Shapes::new();
    loop {
        match layout(&Known(&shapes), config) {
            Ok(layout) => return layout,
            Err(Error::MissingTensor { name }) => shapes.insert(name, (dtype, vec![0])),
            Err(Error::WrongShape { name, expected, .. }) => shapes.insert(name, (dtype, expected)),
            Err(other) => panic!("{other}"),
        };
    }
}

/// What a case asks for: numbers by their names, as `unet.py` has them.
pub(crate) struct Inputs {
    pub(crate) samples: Vec<Tensor>,
    pub(crate) timestep: f32,
    /// For each sequence its sample.
    taken: Vec<usize>,
    texts: Vec<Tensor>,
    pooled: Vec<Vec<f32>>,
    time_ids: Vec<Vec<f32>>,
    guidance: Option<f32>,
}

fn named(name: &str, shape: &[usize], spread: f32) -> Tensor {
    let values: Vec<f32> = numbers(name)
        .take(shape.iter().product())
        .map(|value| spread * value)
        .collect();
    Tensor::from_slice(shape, &values).expect("as many values as the shape has")
}

impl Inputs {
    /// As `case.json` says.
    pub(crate) fn new(config: &Config, case: &Value) -> Inputs {
        let size = |key: &str| case[key].as_u64().unwrap_or_else(|| panic!("no {key}")) as usize;
        let list = |value: &Value| -> Vec<f32> {
            let values = value.as_array().into_iter().flatten();
            values
                .filter_map(|v| v.as_f64().map(|v| v as f32))
                .collect()
        };
        let sample_shape = [config.in_channels, size("height"), size("width")];
        let taken: Vec<usize> = list(&case["taken"]).iter().map(|v| *v as usize).collect();
        let tokens = list(&case["text_tokens"]);
        let time_ids: Vec<Vec<f32>> = match case["time_ids"].as_array() {
            Some(rows) => rows.iter().map(list).collect(),
            None => Vec::new(),
        };
        let pooled = time_ids.iter().enumerate().map(|(i, ids)| {
            let width = config
                .pooled_dim(ids.len())
                .expect("a model that takes sizes");
            named(&format!("pooled.{i}"), &[width], 1.7).data().to_vec()
        });
        Inputs {
            samples: (0..size("samples"))
                .map(|i| named(&format!("sample.{i}"), &sample_shape, 1.7))
                .collect(),
            timestep: case["timestep"].as_f64().expect("a time") as f32,
            texts: tokens
                .iter()
                .enumerate()
                .map(|(i, tokens)| {
                    let shape = [*tokens as usize, config.cross_attention_dim];
                    named(&format!("text.{i}"), &shape, 1.7)
                })
                .collect(),
            taken,
            pooled: pooled.collect(),
            time_ids,
            guidance: case["guidance"].as_f64().map(|scale| scale as f32),
        }
    }

    pub(crate) fn sequences(&self) -> Vec<usize> {
        (0..self.taken.len()).collect()
    }

    fn sequence(&self, index: usize) -> (usize, Condition<'_>) {
        let added = self.time_ids.get(index).map(|ids| Added {
            pooled: &self.pooled[index],
            time_ids: ids,
        });
        let condition = Condition {
            text: &self.texts[index],
            added,
            guidance: self.guidance,
        };
        (self.taken[index], condition)
    }
}
