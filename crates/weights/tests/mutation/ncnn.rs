//! What must hold for any bytes whatever as an ncnn model: the body of the fuzz target and of the test that runs it
//! without a fuzzer.

use lowtide_weights::{Checkpoint, Error};

/// What messages call the bytes.
const FILE: &str = "damaged.param";
/// How many bytes at the end of an input are the numbers.
pub(crate) const NUMBERS: usize = 64;

/// Takes the last bytes of `input` as the numbers and the rest as the layers, and reads every tensor.
pub(crate) fn exercise(input: &[u8]) -> Result<Checkpoint, Error> {
    let (layers, numbers) = input.split_at(input.len().saturating_sub(NUMBERS));
    let result = Checkpoint::from_ncnn_memory(FILE, layers.to_vec(), numbers.to_vec());
    match &result {
        Ok(checkpoint) => {
            for entry in checkpoint.tensors() {
                assert!(
                    entry.offset + entry.bytes <= numbers.len() as u64,
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
