//! Files of other programs: ONNX exports, ncnn's pairs of files, and networks that were pickled whole.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

#[path = "mutation/ncnn.rs"]
mod ncnn;
#[path = "mutation/onnx.rs"]
mod onnx;
#[path = "mutation/torch.rs"]
mod torch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lowtide_core::Dtype;
use lowtide_weights::{Checkpoint, Error};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/other")
        .join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap()
}

fn bytes(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let entry = checkpoint
        .get(name)
        .unwrap_or_else(|| panic!("{name} is not there"));
    let mut bytes = vec![0; entry.bytes as usize];
    checkpoint.read(entry, &mut bytes).unwrap();
    bytes
}

/// Type, shape and numbers of every tensor of `expected` are those of the tensor of that name.
fn check_holds(read: &Checkpoint, expected: &Checkpoint, exactly: bool) {
    for entry in expected.tensors() {
        let name = entry.name.as_str();
        let ours = read
            .get(name)
            .unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(
            (ours.dtype, &ours.shape),
            (entry.dtype, &entry.shape),
            "{name}"
        );
        let (ours, theirs) = (bytes(read, name), bytes(expected, name));
        if exactly || entry.dtype != Dtype::F32 {
            assert_eq!(ours, theirs, "{name}");
            continue;
        }
        let numbers = |bytes: &[u8]| -> Vec<f32> {
            let each = bytes.chunks_exact(4);
            each.map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect()
        };
        for (a, b) in numbers(&ours).into_iter().zip(numbers(&theirs)) {
            assert!(
                (a - b).abs() <= 1e-6 * b.abs().max(1.0),
                "{name}: {a} is not {b}"
            );
        }
    }
}

#[test]
fn an_exported_network_has_the_names_it_was_trained_with() {
    let read = open("net.onnx");
    // What the exporter folded has lost its last bits.
    check_holds(&read, &open("net.safetensors"), false);
    let anonymous = read.tensors().filter(|t| t.name.starts_with("onnx::"));
    assert_eq!(anonymous.count(), 0);
    assert_eq!(read.metadata("names"), Some("{0: 'face', 1: 'hand'}"));
    assert_eq!(read.metadata("nothing"), None);
}

#[test]
fn numbers_that_are_spelt_out_are_those_of_raw_data() {
    let read = open("spelt.onnx");
    check_holds(&read, &open("spelt.safetensors"), true);
    assert!(read.get("text").is_none(), "a text is never a weight");
    let fingerprint = read.fingerprint().unwrap();
    assert_eq!(fingerprint.0.len(), read.sources().len());
}

#[test]
fn of_a_network_pickled_twice_the_averaged_one_is_read() {
    for file in ["both.pt", "stripped.pt"] {
        let read = open(file);
        let expected = open("ema.safetensors");
        check_holds(&read, &expected, true);
        assert_eq!(read.tensors().len(), expected.tensors().len(), "{file}");
        assert_eq!(
            read.metadata("class"),
            Some("detectors.nn.tasks.DetectionModel")
        );
        assert_eq!(
            read.metadata("names"),
            Some(r#"{0: 'face', 1: 'it\'s a "hand"'}"#)
        );
        assert_eq!(read.metadata("epoch"), Some("3"));
    }
}

/// A small model: a convolution in f16 with a bias, slopes, and a convolution in f32.
fn small() -> (String, Vec<u8>) {
    let layers = "7767517\n5 5\n\
        Input data 0 1 data\n\
        Convolution first 1 1 data a 0=3 1=1 5=1 6=9\n\
        PReLU slopes 1 1 a b 0=3\n\
        Convolution second 1 1 b c 0=1 1=1 11=2 5=0 6=6 9=2 -23310=1,2.0e-01\n\
        PixelShuffle up 1 1 c out 0=2\n";
    let mut numbers = 0x0130_6b47u32.to_le_bytes().to_vec();
    numbers.extend((1..=9u16).flat_map(u16::to_le_bytes));
    numbers.extend([0, 0]);
    numbers.extend(
        [1.0f32, 2.0, 3.0, 0.25, 0.5, 0.75]
            .map(f32::to_le_bytes)
            .concat(),
    );
    numbers.extend(0u32.to_le_bytes());
    numbers.extend(
        [1.5f32, 2.5, 3.5, 4.5, 5.5, 6.5]
            .map(f32::to_le_bytes)
            .concat(),
    );
    (layers.to_owned(), numbers)
}

#[test]
fn the_layers_of_ncnn_tell_where_their_numbers_are() {
    let (layers, numbers) = small();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("net.param"), &layers).unwrap();
    std::fs::write(at("net.bin"), &numbers).unwrap();
    for file in ["net.param", "net.bin"] {
        let read = Checkpoint::open(&at(file)).unwrap();
        let all: Vec<_> = read
            .tensors()
            .map(|t| (t.name.as_str(), t.dtype, t.shape.clone()))
            .collect();
        assert_eq!(
            all,
            [
                ("first.weight", Dtype::F16, vec![3, 3, 1, 1]),
                ("first.bias", Dtype::F32, vec![3]),
                ("slopes.weight", Dtype::F32, vec![3]),
                ("second.weight", Dtype::F32, vec![1, 3, 2, 1]),
            ]
        );
        assert_eq!(bytes(&read, "first.weight"), numbers[4..22]);
        assert_eq!(
            bytes(&read, "slopes.weight"),
            [0.25f32, 0.5, 0.75].map(f32::to_le_bytes).concat()
        );
        assert_eq!(bytes(&read, "second.weight")[20..], 6.5f32.to_le_bytes());
    }
    std::fs::remove_file(at("net.bin")).unwrap();
    let error = Checkpoint::open(&at("net.param")).unwrap_err();
    assert!(error.to_string().contains("net.bin"), "{error}");
}

/// xorshift64*: the same faults on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }

    /// One to three faults; as often as not only one bit.
    fn harm(&mut self, bytes: &mut Vec<u8>) {
        if self.below(2) == 0 {
            let at = self.below(bytes.len());
            bytes[at] ^= 1 << self.below(8);
            return;
        }
        for _ in 0..1 + self.below(3) {
            let at = self.below(bytes.len().max(1)).min(bytes.len());
            match self.below(6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                2 if self.below(8) == 0 => bytes.truncate(at),
                3 => {
                    let end = (at + 1 + self.below(12)).min(bytes.len());
                    bytes.drain(at..end);
                }
                4 => {
                    let end = (at + 1 + self.below(40)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, copy);
                }
                _ => {
                    let number = [0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
                    let skip = self.below(number.len());
                    bytes.splice(at..at, number[skip..].iter().copied());
                }
            }
        }
    }
}

/// What became of so many damaged inputs, by the error's variant.
fn outcomes(
    seeds: &[Vec<u8>],
    rounds: usize,
    exercise: impl Fn(&[u8]) -> Result<Checkpoint, Error>,
) -> BTreeMap<String, u32> {
    let mut random = Random(0x0dd);
    let mut outcomes = BTreeMap::new();
    for round in 0..rounds {
        let mut bytes = seeds[round % seeds.len()].clone();
        random.harm(&mut bytes);
        let outcome = match exercise(&bytes) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => {
                let debug = format!("{error:?}");
                let mut words = debug.split(|c: char| !c.is_alphanumeric());
                words.next().unwrap_or_default().to_owned()
            }
        };
        *outcomes.entry(outcome).or_default() += 1;
    }
    outcomes
}

/// Were the faults too gross, all of them would end at the same check.
fn check_tried(outcomes: &BTreeMap<String, u32>, variants: &[&str]) {
    for variant in variants {
        let tried = outcomes.get(*variant).is_some_and(|&count| count >= 10);
        assert!(tried, "{variant} is hardly tried: {outcomes:?}");
    }
}

#[test]
fn no_damaged_onnx_file_breaks_the_reader() {
    let seeds: Vec<Vec<u8>> = ["net.onnx", "spelt.onnx"]
        .map(|name| std::fs::read(fixture(name)).unwrap())
        .into();
    let outcomes = outcomes(&seeds, 40_000, onnx::exercise);
    check_tried(&outcomes, &["accepted", "Onnx"]);
}

#[test]
fn no_damaged_ncnn_model_breaks_the_reader() {
    let (layers, numbers) = small();
    assert!(numbers.len() > ncnn::NUMBERS);
    // The numbers are what is left of an input's end.
    let seed = |layers: &str, numbers: &[u8]| [layers.as_bytes(), numbers].concat();
    let one = "7767517\n2 2\nInput data 0 1 data\nConvolution c 1 1 data out 0=3 1=1 5=1 6=12\n";
    let seeds = [
        seed(one, &[&[0u8; 4][..], &[7; 60]].concat()),
        seed(&layers, &numbers[..ncnn::NUMBERS]),
        seed("7767517\n1 1\nPReLU p 1 1 data out 0=16\n", &[9; 64]),
    ];
    let outcomes = outcomes(&seeds, 60_000, ncnn::exercise);
    check_tried(&outcomes, &["accepted", "Ncnn", "NotUtf8", "Truncated"]);
}

#[test]
fn no_damaged_network_breaks_the_reader() {
    let seeds: Vec<Vec<u8>> = ["both.pt", "stripped.pt"]
        .map(|name| std::fs::read(fixture(name)).unwrap())
        .into();
    let outcomes = outcomes(&seeds, 8_000, |bytes| torch::exercise(bytes.to_vec()));
    check_tried(&outcomes, &["accepted", "Pickle", "Archive"]);
}
