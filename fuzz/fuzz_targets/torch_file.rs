//! Any bytes as a file of `torch.save`: no panic, no lie accepted, nothing run, every error names its file.
//!
//! `cargo +nightly fuzz run torch_file fuzz/corpus/torch_file crates/weights/tests/fixtures/torch`, or with the stable
//! compiler `RUSTC_BOOTSTRAP=1 cargo fuzz run -s none torch_file …`. The first bytes are left alone: most inputs would
//! end at them.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/weights/tests/mutation/torch.rs"]
mod body;

/// How the form before archives begins.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

fuzz_target!(|input: &[u8]| {
    let _ = body::exercise(input.to_vec());
    let _ = body::exercise([MAGIC, input].concat());
});
