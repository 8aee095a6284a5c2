//! What must hold for any bytes whatever as a file of `torch.save`: the body of the fuzz target and of the test that
//! runs it without a fuzzer.

use lowtide_weights::{Checkpoint, Error};

/// What messages call the bytes.
const FILE: &str = "damaged.pt";

/// Opens `input` and reads every tensor that it has.
pub(crate) fn exercise(input: Vec<u8>) -> Result<Checkpoint, Error> {
    let length = input.len() as u64;
    let result = Checkpoint::from_memory(FILE, input);
    match &result {
        Ok(checkpoint) => {
            for entry in checkpoint.tensors() {
                assert!(entry.offset + entry.bytes <= length, "lies in the file");
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
