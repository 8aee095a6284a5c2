//! What must hold for any bytes whatever as an ONNX file: the body of the fuzz target and of the test that runs it
//! without a fuzzer.

use lowtide_weights::{Checkpoint, Error};

/// What messages call the bytes.
const FILE: &str = "damaged.onnx";
/// The first field, which is how such a file is recognised: version 8 of the format, and the producer's name.
pub(crate) const START: &[u8] = b"\x08\x08\x12\x01x";

/// Opens `input` behind a sound start and reads every tensor that it has.
pub(crate) fn exercise(input: &[u8]) -> Result<Checkpoint, Error> {
    let result = Checkpoint::from_memory(FILE, [START, input].concat());
    match &result {
        Ok(checkpoint) => {
            for entry in checkpoint.tensors() {
                let source = &checkpoint.sources()[entry.source];
                assert!(
                    entry.offset + entry.bytes <= source.byte_len(),
                    "lies in the file"
                );
                let mut bytes = vec![0; entry.bytes as usize];
                checkpoint
                    .read(entry, &mut bytes)
                    .expect("what is described can be read");
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.starts_with(FILE), "does not name the file: {text}");
            assert!(
                !text.chars().any(char::is_control),
                "harms a terminal: {text:?}"
            );
        }
    }
    result
}
