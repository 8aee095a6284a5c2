//! Any bytes as an ONNX file: no panic, no lie accepted, every error names its file.
//!
//! `cargo +nightly fuzz run onnx_file fuzz/corpus/onnx_file crates/weights/tests/fixtures/other`, or with the stable
//! compiler `RUSTC_BOOTSTRAP=1 cargo fuzz run -s none onnx_file …`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/weights/tests/mutation/onnx.rs"]
mod body;

fuzz_target!(|input: &[u8]| {
    let _ = body::exercise(input);
});
