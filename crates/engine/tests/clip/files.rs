//! Encoders from files, held in memory, and recorded values.

use std::path::{Path, PathBuf};

use lowtide_core::{ComponentLayout, Dtype};
use lowtide_models::clip_text::{
    Class, Config, Encoded, Encoder, Sequence, Wanted, encode, layout,
};
use lowtide_models::weights::{BlockIndex, stored};
use lowtide_models::{BlockSource, Compute, Headers, Precision, Tensor, Weights};
use lowtide_weights::Checkpoint;
use serde_json::Value;

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/clip")
        .join(name)
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A tensor of a file, widened.
pub(crate) fn values(file: &Checkpoint, name: &str) -> Tensor {
    let entry = file.get(name).unwrap_or_else(|| panic!("no {name}"));
    let mut bytes = vec![0; entry.bytes as usize];
    file.read(entry, &mut bytes).unwrap();
    let mut tensor = Tensor::new(&entry.shape).unwrap();
    let stored = stored(entry.dtype, || name.to_owned()).unwrap();
    lowtide_kernels::to_f32(stored, &bytes, tensor.data_mut());
    tensor
}

/// The largest difference, in standard deviations of what is expected.
#[track_caller]
pub(crate) fn off(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let n = theirs.len() as f64;
    let mean = theirs.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let squares = theirs.iter().map(|&x| (f64::from(x) - mean).powi(2));
    let deviation = (squares.sum::<f64>() / n).sqrt();
    assert!(deviation > 1e-3, "what is expected says nothing");
    let differences = ours
        .iter()
        .zip(theirs)
        .map(|(a, b)| f64::from((a - b).abs()));
    differences.fold(0.0, f64::max) / deviation
}

/// The headers of a file.
pub(crate) struct Known<'a>(pub(crate) &'a Checkpoint);

impl Headers for Known<'_> {
    fn tensor(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        let entry = self.0.get(name)?;
        Some((entry.dtype, entry.shape.clone()))
    }
}

/// The blocks of a layout, read at once; notes which are asked for.
pub(crate) struct InMemory {
    blocks: Vec<(BlockIndex, Vec<u8>)>,
    pub(crate) visits: Vec<usize>,
}

impl InMemory {
    pub(crate) fn new(file: &Checkpoint, layout: &ComponentLayout) -> InMemory {
        let blocks = layout.blocks.iter().map(|block| {
            let mut bytes = vec![0; block.bytes().as_usize()];
            for (tensor, at) in block.offsets() {
                let range = at..at + tensor.bytes().as_usize();
                let entry = file.get(&tensor.name).unwrap();
                file.read(entry, &mut bytes[range]).unwrap();
            }
            (BlockIndex::new(block), bytes)
        });
        InMemory {
            blocks: blocks.collect(),
            visits: Vec::new(),
        }
    }
}

impl BlockSource for InMemory {
    fn block(&mut self, index: usize) -> lowtide_models::Result<Weights<'_>> {
        self.visits.push(index);
        let (index, bytes) = &self.blocks[index];
        Ok(Weights::live(index, bytes))
    }
}

/// An encoder and its files.
pub(crate) struct Opened {
    pub(crate) file: Checkpoint,
    pub(crate) config: Config,
}

impl Opened {
    pub(crate) fn new(folder: &Path) -> Opened {
        let file = Checkpoint::open(&folder.join("model.safetensors")).unwrap();
        let json = json(&folder.join("config.json"));
        let class = Class::of(json["architectures"][0].as_str().unwrap_or_else(|| {
            let projected = file.get("text_projection.weight").is_some();
            if projected {
                "CLIPTextModelWithProjection"
            } else {
                "CLIPTextModel"
            }
        }));
        let config = Config::from_json("text_encoder", class.unwrap(), &json).unwrap();
        Opened { file, config }
    }

    pub(crate) fn layout(&self, wanted: Wanted) -> ComponentLayout {
        layout(&Known(&self.file), "text_encoder", &self.config, &wanted).unwrap()
    }

    /// Encodes over `layout`, and says which blocks were asked for.
    pub(crate) fn encode(
        &self,
        layout: &ComponentLayout,
        sequences: Vec<Sequence>,
    ) -> (Vec<Encoded>, Vec<usize>) {
        let positions = values(&self.file, &layout.tables[1].name);
        let encoder = Encoder {
            compute: Compute {
                precision: Precision::F32,
            },
            config: &self.config,
            layout,
            positions: &positions,
        };
        let mut source = InMemory::new(&self.file, layout);
        let encoded = encode(&mut source, &encoder, sequences).unwrap();
        (encoded, source.visits)
    }
}
