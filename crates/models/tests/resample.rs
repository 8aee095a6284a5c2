//! What resampling promises: what torch recorded (`tools/reference/resample.py`).

// The lint's exception for tests does not reach the functions that tests share.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use lowtide_models::resample::{Resampling, resample};
use lowtide_models::{Error, Tensor};
use serde_json::Value;

const METHODS: [(&str, Resampling); 6] = [
    ("nearest", Resampling::Nearest),
    ("nearest-exact", Resampling::NearestExact),
    ("bilinear", Resampling::Bilinear { antialias: false }),
    (
        "bilinear-antialias",
        Resampling::Bilinear { antialias: true },
    ),
    ("bicubic", Resampling::Bicubic { antialias: false }),
    ("bicubic-antialias", Resampling::Bicubic { antialias: true }),
];

const SIZES: [[usize; 2]; 6] = [[18, 28], [13, 21], [9, 14], [4, 30], [5, 3], [1, 1]];

/// A recorded map.
fn recorded(file: &[u8], name: &str) -> Tensor {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let list =
        |key: &str| -> Vec<usize> { serde_json::from_value(header[name][key].clone()).unwrap() };
    let (shape, offsets) = (list("shape"), list("data_offsets"));
    let bytes = &file[8 + length + offsets[0]..8 + length + offsets[1]];
    let values: Vec<f32> = bytes
        .as_chunks()
        .0
        .iter()
        .map(|&value| f32::from_le_bytes(value))
        .collect();
    Tensor::from_slice(&shape[1..], &values).unwrap()
}

#[test]
fn latents_are_resampled_as_torch_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resample.safetensors");
    let file = std::fs::read(path).unwrap();
    let source = recorded(&file, "source");
    for (name, how) in METHODS {
        for [height, width] in SIZES {
            let expected = recorded(&file, &format!("{name}.{height}x{width}"));
            let ours = resample(&source, height, width, how).unwrap();
            assert_eq!(ours.shape(), expected.shape());
            let pairs = ours.data().iter().zip(expected.data());
            let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < 5e-6, "{name} {height}x{width}: {difference}");
        }
    }
}

#[test]
fn a_side_of_nothing_is_refused() {
    let source = Tensor::zeros(&[2, 3, 3]).unwrap();
    for (height, width) in [(0, 3), (3, 0)] {
        let refused = resample(&source, height, width, Resampling::Nearest).unwrap_err();
        assert!(matches!(refused, Error::Shape { .. }), "{refused}");
    }
}
