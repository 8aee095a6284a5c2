//! Any bytes as a safetensors header: no panic, no lie accepted, every error names its file.
//!
//! `cargo +nightly fuzz run safetensors_header`, or with the stable compiler
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run -s none safetensors_header`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/weights/tests/mutation/body.rs"]
mod body;

fuzz_target!(|input: &[u8]| {
    let _ = body::exercise(input);
});
