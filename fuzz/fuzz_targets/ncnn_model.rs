//! Any bytes as an ncnn model: no panic, no lie accepted, every error names its file. The last 64 bytes are the numbers.
//!
//! `cargo +nightly fuzz run ncnn_model`, or with the stable compiler `RUSTC_BOOTSTRAP=1 cargo fuzz run -s none ncnn_model`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/weights/tests/mutation/ncnn.rs"]
mod body;

/// How every file of layers begins; most inputs would end at it.
const START: &[u8] = b"7767517\n";

fuzz_target!(|input: &[u8]| {
    let _ = body::exercise(input);
    let _ = body::exercise(&[START, input].concat());
});
