//! Decoders and encoders in memory, random or from files, and comparisons of what they make.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lowtide_core::{BlockLayout, ComponentLayout, Dtype, TensorLayout};
use lowtide_models::autoencoder_kl::{
    Config, DecodeMode, EncodeMode, Moments, decode, encode, encoder_layout, layout,
};
use lowtide_models::device::Place;
use lowtide_models::weights::BlockIndex;
use lowtide_models::{BlockSource, Compute, Error, Headers, Result, Tensor, Weights};
use serde_json::{Value, json};

use crate::shadow::There;

/// How a network's blocks are found in headers.
pub(crate) type Layout = fn(&dyn Headers, &Config) -> Result<ComponentLayout>;

/// A decoder or an encoder in memory.
pub(crate) struct Store {
    pub(crate) config: Config,
    pub(crate) layout: ComponentLayout,
    pub(crate) blocks: Vec<(BlockIndex, Vec<u8>)>,
    pub(crate) visits: Vec<usize>,
    /// Its blocks on a device, where it is to be computed there.
    pub(crate) there: Option<There>,
}

impl Store {
    pub(crate) fn new(
        config: Config,
        layout: ComponentLayout,
        bytes_of: impl Fn(&TensorLayout) -> Vec<u8>,
    ) -> Store {
        let block = |block: &BlockLayout| {
            let mut bytes = vec![0; block.bytes().as_usize()];
            for (tensor, at) in block.offsets() {
                let stored = bytes_of(tensor);
                bytes[at..at + stored.len()].copy_from_slice(&stored);
            }
            (BlockIndex::new(block), bytes)
        };
        let blocks = layout.blocks.iter().map(block).collect();
        Store {
            config,
            layout,
            blocks,
            visits: Vec::new(),
            there: None,
        }
    }

    /// Brings it to a device.
    pub(crate) fn bring(&mut self) {
        self.there = Some(There::new(self.blocks.iter().map(|(_, bytes)| &bytes[..])));
    }

    pub(crate) fn decode(
        &mut self,
        compute: Compute,
        latents: &Tensor,
        mode: DecodeMode,
    ) -> Tensor {
        let config = self.config.clone();
        self.visits.clear();
        decode(self, compute, &config, latents, &mode).unwrap()
    }

    pub(crate) fn encode(
        &mut self,
        compute: Compute,
        picture: &Tensor,
        mode: EncodeMode,
    ) -> Moments {
        let config = self.config.clone();
        self.visits.clear();
        encode(self, compute, &config, picture, &mode).unwrap()
    }
}

impl BlockSource for Store {
    fn block(&mut self, index: usize) -> Result<Weights<'_>> {
        self.visits.push(index);
        let (names, bytes) = &self.blocks[index];
        Ok(match &self.there {
            None => Weights::live(names, bytes),
            Some(there) => Weights::live(names, there.bytes(index)),
        })
    }

    fn place(&self) -> Place {
        self.there.as_ref().map(There::place).unwrap_or_default()
    }
}

pub(crate) type Shapes = HashMap<String, (Dtype, Vec<usize>)>;

pub(crate) struct Known<'a>(pub(crate) &'a Shapes);

impl Headers for Known<'_> {
    fn tensor(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        self.0.get(name).cloned()
    }
}

/// Numbers that look random, -1 to 1, from a linear congruential generator.
pub(crate) fn numbers(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}

/// A decoder with every tensor that its configuration calls for, filled with numbers that keep maps near one.
pub(crate) fn random(config: Value) -> Store {
    random_as(config, layout)
}

/// As [`random`], an encoder.
pub(crate) fn random_encoder(config: Value) -> Store {
    random_as(config, encoder_layout)
}

fn random_as(config: Value, layout: Layout) -> Store {
    let config = Config::from_json(&config).unwrap();
    let mut shapes = Shapes::new();
    // The complaints of `layout` say which tensors it wants.
    let layout = loop {
        match layout(&Known(&shapes), &config) {
            Ok(layout) => break layout,
            Err(Error::MissingTensor { name }) => shapes.insert(name, (Dtype::F32, vec![0])),
            Err(Error::WrongShape { name, expected, .. }) => {
                shapes.insert(name, (Dtype::F32, expected))
            }
            Err(other) => panic!("{other}"),
        };
    };
    Store::new(config, layout, |tensor| {
        let seed = tensor
            .name
            .bytes()
            .fold(1, |hash: u64, byte| hash.wrapping_mul(31) + u64::from(byte));
        let fan_in: usize = tensor.shape[1..].iter().product();
        let norm_weight = tensor.shape.len() == 1
            && tensor.name.contains("norm")
            && tensor.name.ends_with("weight");
        let (centre, spread) = if norm_weight {
            (1.0, 0.3)
        } else {
            (0.0, (2.0 / fan_in as f32).sqrt())
        };
        let values = numbers(seed)
            .take(tensor.elements() as usize)
            .map(|value| centre + spread * value);
        values.flat_map(f32::to_le_bytes).collect()
    })
}

pub(crate) fn small(channels: &[usize], layers: usize, groups: usize) -> Value {
    json!({
        "block_out_channels": channels, "up_block_types": vec!["UpDecoderBlock2D"; channels.len()],
        "layers_per_block": layers, "norm_num_groups": groups, "latent_channels": 4,
        "scaling_factor": 0.7, "shift_factor": -0.2,
    })
}

pub(crate) fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

pub(crate) fn latents(store: &Store, height: usize, width: usize) -> Tensor {
    let shape = [store.config.latent_channels, height, width];
    let values: Vec<f32> = numbers(7).take(shape.iter().product()).collect();
    Tensor::from_slice(&shape, &values).unwrap()
}

/// A picture for an encoder whose latents are of `height` x `width`.
pub(crate) fn picture(store: &Store, height: usize, width: usize) -> Tensor {
    let scale = store.config.scale();
    let shape = [store.config.in_channels, height * scale, width * scale];
    let values: Vec<f32> = numbers(9).take(shape.iter().product()).collect();
    Tensor::from_slice(&shape, &values).unwrap()
}

pub(crate) fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    a.data()
        .iter()
        .zip(b.data())
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.data().iter().map(|value| value.to_bits()).collect()
}

/// The tensors of a safetensors file, by name.
pub(crate) fn read_safetensors(path: &Path) -> (Shapes, HashMap<String, Vec<u8>>) {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let (mut shapes, mut values) = (Shapes::new(), HashMap::new());
    for (name, entry) in header
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
    {
        let dtype = match entry["dtype"].as_str().unwrap() {
            "F32" => Dtype::F32,
            "BF16" => Dtype::Bf16,
            "F16" => Dtype::F16,
            // Token ids: no business of a decoder.
            "I64" => continue,
            other => panic!("{name} is {other}"),
        };
        let list =
            |key: &str| -> Vec<usize> { serde_json::from_value(entry[key].clone()).unwrap() };
        let offsets = list("data_offsets");
        shapes.insert(name.clone(), (dtype, list("shape")));
        values.insert(
            name.clone(),
            bytes[8 + length + offsets[0]..8 + length + offsets[1]].to_vec(),
        );
    }
    (shapes, values)
}

/// A decoder from files.
pub(crate) fn stored(config: &Value, weights: &Path) -> Store {
    stored_as(config, weights, layout)
}

/// An encoder from files.
pub(crate) fn stored_encoder(config: &Value, weights: &Path) -> Store {
    stored_as(config, weights, encoder_layout)
}

fn stored_as(config: &Value, weights: &Path, layout: Layout) -> Store {
    let config = Config::from_json(config).unwrap();
    let (shapes, values) = read_safetensors(weights);
    let layout = layout(&Known(&shapes), &config).unwrap();
    Store::new(config, layout, |tensor| values[&tensor.name].clone())
}

/// The store with the attention's layers under the names they had in older files.
pub(crate) fn renamed_as_before(new: &Store, layout: Layout) -> Store {
    let renamed = [
        ("to_q.", "query."),
        ("to_k.", "key."),
        ("to_v.", "value."),
        ("to_out.0.", "proj_attn."),
    ];
    let mut shapes = Shapes::new();
    let mut values = HashMap::new();
    for (layout, (_, bytes)) in new.layout.blocks.iter().zip(&new.blocks) {
        for (tensor, at) in layout.offsets() {
            let name = renamed
                .iter()
                .fold(tensor.name.clone(), |name, (now, then)| {
                    name.replace(now, then)
                });
            shapes.insert(name.clone(), (tensor.dtype, tensor.shape.clone()));
            values.insert(name, bytes[at..at + tensor.bytes().as_usize()].to_vec());
        }
    }
    assert!(shapes.keys().any(|name| name.contains(".proj_attn.")));
    let layout = layout(&Known(&shapes), &new.config).unwrap();
    Store::new(new.config.clone(), layout, |tensor| {
        values[&tensor.name].clone()
    })
}

/// The first entry of a batch.
pub(crate) fn expected(path: &Path, name: &str) -> Tensor {
    let (shapes, values) = read_safetensors(path);
    let shape = &shapes[name].1[1..];
    let values = values[name]
        .chunks_exact(4)
        .map(|value| f32::from_le_bytes(value.try_into().unwrap()));
    let values: Vec<f32> = values.take(shape.iter().product()).collect();
    Tensor::from_slice(shape, &values).unwrap()
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures")
}

pub(crate) fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
