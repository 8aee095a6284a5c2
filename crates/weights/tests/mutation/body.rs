//! What must hold for any bytes whatever: the body of the fuzz target and of the test that runs it without a fuzzer.

use lowtide_core::TensorLayout;
use lowtide_weights::{Error, Header, PREFIX_BYTES, parse_header, render_header};

/// What messages call the bytes.
const FILE: &str = "fuzz.safetensors";

/// Parses `input` in two ways and checks what comes out: as a file, and as the JSON of a header before so much data
/// as its first two bytes say, so that a fuzzer need not guess the length prefix. Returns the second result.
pub(crate) fn exercise(input: &[u8]) -> Result<Header, Error> {
    let _ = checked(input, input.len() as u64);
    let Some((data, json)) = input.split_first_chunk::<2>() else {
        return parse_header(input, input.len() as u64, FILE);
    };
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json);
    let file_len = file.len() as u64 + u64::from(u16::from_le_bytes(*data));
    checked(&file, file_len)
}

/// Parses, and checks every promise about what was accepted and what is said of what was refused.
fn checked(bytes: &[u8], file_len: u64) -> Result<Header, Error> {
    let result = parse_header(bytes, file_len, FILE);
    match &result {
        Ok(header) => check_header(header, bytes, file_len),
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

fn check_header(header: &Header, bytes: &[u8], file_len: u64) {
    assert!(header.data_start >= PREFIX_BYTES + 2 && header.data_start <= bytes.len() as u64);
    let mut at = header.data_start;
    let mut names = std::collections::HashSet::new();
    for tensor in &header.tensors {
        assert_eq!(tensor.offset, at, "tensors tile the data");
        assert_eq!(
            tensor.layout().bytes().0,
            tensor.bytes,
            "as long as the shape says"
        );
        assert_eq!(tensor.source, 0);
        assert!(names.insert(&tensor.name), "a name once");
        at += tensor.bytes;
    }
    assert_eq!(at, file_len, "to the end");
    let layouts: Vec<TensorLayout> = header.tensors.iter().map(|t| t.layout()).collect();
    let metadata: Vec<(&str, &str)> = header
        .metadata
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let again = render_header(&layouts, &metadata, FILE).expect("what is read can be written");
    let again_len = again.len() as u64 + (file_len - header.data_start);
    let again = parse_header(&again, again_len, FILE).expect("what is written can be read");
    assert_eq!(again.metadata, header.metadata);
    assert_eq!(
        again.tensors.iter().map(|t| t.layout()).collect::<Vec<_>>(),
        layouts,
        "and says the same"
    );
}
