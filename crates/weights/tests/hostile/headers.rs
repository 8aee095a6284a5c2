//! Single files whose header is wrong.

use lowtide_weights::{Checkpoint, HEADER_BYTES_MAX, parse_header};

use super::Case;

const FILE: &str = "odd.safetensors";

/// A file of this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn case(
    label: &'static str,
    variant: &'static str,
    tensor: Option<&'static str>,
    says: &'static [&'static str],
    bytes: Vec<u8>,
) -> Case {
    let error = Checkpoint::from_memory(FILE, bytes).expect_err(label);
    Case {
        label,
        variant,
        says,
        file: FILE,
        tensor,
        error,
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = not_safetensors();
    cases.extend(broken_json());
    cases.extend(wrong_entries());
    cases.extend(wrong_places());
    cases.extend(beyond_limits());
    cases
}

fn not_safetensors() -> Vec<Case> {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\n";
    let huge = parse_header(&(HEADER_BYTES_MAX + 1).to_le_bytes(), 1 << 40, FILE).unwrap_err();
    vec![
        case("empty", "Truncated", None, &["8 bytes", "has 0"], vec![]),
        case(
            "half a prefix",
            "Truncated",
            None,
            &["has 5", "fetch it again"],
            vec![1; 5],
        ),
        case(
            "a prefix alone",
            "HeaderBeyondFile",
            None,
            &["24 bytes", "8 in all"],
            24u64.to_le_bytes().into(),
        ),
        case(
            "no header",
            "Truncated",
            None,
            &["10 bytes", "has 8"],
            file("", 0),
        ),
        case(
            "header past the end",
            "HeaderBeyondFile",
            None,
            &["1000 bytes", "10 in all"],
            {
                let mut bytes = 1000u64.to_le_bytes().to_vec();
                bytes.extend_from_slice(b"{}");
                bytes
            },
        ),
        case(
            "all bits set",
            "HeaderBeyondFile",
            None,
            &["18446744073709551615"],
            vec![0xff; 64],
        ),
        Case {
            label: "a header of more than 100 MB in a file that has it",
            variant: "HeaderTooLarge",
            says: &["100000001", "100000000"],
            file: FILE,
            tensor: None,
            error: huge,
        },
        case(
            "git-lfs",
            "GitLfsPointer",
            None,
            &["git lfs pull"],
            pointer.into(),
        ),
        case(
            "web page",
            "OtherFormat",
            None,
            &["a web page", "logged in"],
            "<!DOCTYPE html><html>".into(),
        ),
        case(
            "web page in capitals",
            "OtherFormat",
            None,
            &["a web page"],
            "<HTML><body>".into(),
        ),
        case(
            "archive",
            "Archive",
            None,
            &["half a download"],
            b"PK\x03\x04rest of an archive".to_vec(),
        ),
        case(
            "gguf",
            "OtherFormat",
            None,
            &["GGUF"],
            b"GGUF\x03\0\0\0\0\0\0\0".to_vec(),
        ),
        case(
            "json",
            "OtherFormat",
            None,
            &["JSON"],
            br#"{"weight_map": {}}"#.to_vec(),
        ),
    ]
}

fn broken_json() -> Vec<Case> {
    let mut bad_utf8 = file(
        r#"{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#,
        4,
    );
    bad_utf8[11] = 0xff;
    vec![
        case(
            "space first",
            "HeaderStart",
            None,
            &["0x20", "'{'"],
            file(" {}", 0),
        ),
        case("an array", "HeaderStart", None, &["0x5b"], file("[]", 0)),
        case("not UTF-8", "NotUtf8", None, &["byte 11"], bad_utf8),
        case(
            "cut",
            "Json",
            None,
            &["line 1, column 5", "EOF"],
            file(r#"{"w":"#, 0),
        ),
        case(
            "text after it",
            "Json",
            None,
            &["column 4", "trailing"],
            file("{} {}", 0),
        ),
        case(
            "nul padding",
            "Json",
            None,
            &["trailing"],
            file("{}\0\0", 0),
        ),
        case(
            "entry is a number",
            "Json",
            Some("w"),
            &["column 6", "dtype, shape and data_offsets"],
            file(r#"{"w":7}"#, 0),
        ),
        case(
            "metadata is a number",
            "Json",
            None,
            &["__metadata__"],
            file(r#"{"__metadata__":7}"#, 0),
        ),
        case(
            "metadata of numbers",
            "Json",
            None,
            &["string"],
            file(r#"{"__metadata__":{"a":7}}"#, 0),
        ),
        case(
            "no dtype",
            "Json",
            Some("w"),
            &["dtype"],
            file(r#"{"w":{"shape":[],"data_offsets":[0,4]}}"#, 4),
        ),
        case(
            "no shape",
            "Json",
            Some("w"),
            &["shape"],
            file(r#"{"w":{"dtype":"F32","data_offsets":[0,4]}}"#, 4),
        ),
        case(
            "no offsets",
            "Json",
            Some("w"),
            &["data_offsets"],
            file(r#"{"w":{"dtype":"F32","shape":[]}}"#, 4),
        ),
        case(
            "dtype is a number",
            "Json",
            Some("w"),
            &["string"],
            entry("7", "[]", "[0,4]"),
        ),
        case(
            "shape is a number",
            "Json",
            Some("w"),
            &["array"],
            entry("\"F32\"", "1", "[0,4]"),
        ),
        case(
            "negative dimension",
            "Json",
            Some("w"),
            &["-1"],
            entry("\"F32\"", "[-1]", "[0,4]"),
        ),
        case(
            "fractional dimension",
            "Json",
            Some("w"),
            &["1.5"],
            entry("\"F32\"", "[1.5]", "[0,4]"),
        ),
        case(
            "dimension past 64 bits",
            "Json",
            Some("w"),
            &["1.8446744073709552e+19"],
            entry("\"F32\"", "[18446744073709551616]", "[0,4]"),
        ),
        case(
            "one offset",
            "Json",
            Some("w"),
            &["1 numbers instead of 2"],
            entry("\"F32\"", "[]", "[0]"),
        ),
        case(
            "three offsets",
            "Json",
            Some("w"),
            &["3 numbers instead of 2"],
            entry("\"F32\"", "[]", "[0,4,8]"),
        ),
        case(
            "nested without end",
            "Json",
            Some("w"),
            &["EOF while parsing a list"],
            {
                let deep = format!(r#"{{"w":{{"x":{}"#, "[".repeat(5000));
                file(&deep, 0)
            },
        ),
        case(
            "key twice in an entry",
            "DuplicateKey",
            Some("w.dtype"),
            &["twice"],
            {
                file(
                    r#"{"w":{"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,4]}}"#,
                    4,
                )
            },
        ),
        case(
            "metadata twice",
            "DuplicateKey",
            Some("__metadata__"),
            &[],
            file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0),
        ),
        case(
            "key twice in metadata",
            "DuplicateKey",
            Some("__metadata__.a"),
            &[],
            file(r#"{"__metadata__":{"a":"","a":""}}"#, 0),
        ),
    ]
}

/// A file of one tensor `w` with these JSON values and 4 bytes of data.
fn entry(dtype: &str, shape: &str, offsets: &str) -> Vec<u8> {
    file(
        &format!(r#"{{"w":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}"#),
        4,
    )
}

fn wrong_entries() -> Vec<Case> {
    vec![
        case(
            "unknown dtype",
            "UnknownDtype",
            Some("w"),
            &["'F4'", "convert"],
            entry("\"F4\"", "[]", "[0,4]"),
        ),
        case(
            "dtype in small letters",
            "UnknownDtype",
            Some("w"),
            &["'f32'"],
            entry("\"f32\"", "[]", "[0,4]"),
        ),
        case(
            "too few bytes",
            "WrongByteRange",
            Some("w"),
            &["[2]", "F32", "needs 8 bytes", "0..4 hold 4"],
            entry("\"F32\"", "[2]", "[0,4]"),
        ),
        case(
            "too many bytes",
            "WrongByteRange",
            Some("w"),
            &["needs 2 bytes", "hold 4"],
            entry("\"BF16\"", "[1]", "[0,4]"),
        ),
        case(
            "no elements, but bytes",
            "WrongByteRange",
            Some("w"),
            &["[0]", "needs 0 bytes"],
            entry("\"F32\"", "[0]", "[0,4]"),
        ),
        case(
            "backwards",
            "ReversedOffsets",
            Some("w"),
            &["begins at 4", "at 0"],
            entry("\"F32\"", "[]", "[4,0]"),
        ),
        case(
            "product past 64 bits",
            "Overflow",
            Some("w"),
            &["[4294967296, 4294967296]"],
            entry("\"U8\"", "[4294967296,4294967296]", "[0,4]"),
        ),
        case(
            "size past 64 bits",
            "Overflow",
            Some("w"),
            &["[4611686018427387904]"],
            entry("\"F32\"", "[4611686018427387904]", "[0,4]"),
        ),
        case(
            "wraps around to 4",
            "Overflow",
            Some("w"),
            &[],
            entry("\"F32\"", "[9223372036854775808,2,1]", "[0,4]"),
        ),
        case(
            "past the end",
            "OutOfRange",
            Some("w"),
            &["byte 8", "holds 4", "fetch it again"],
            entry("\"F32\"", "[2]", "[0,8]"),
        ),
        case(
            "far past the end",
            "OutOfRange",
            Some("w"),
            &["18446744073709551615"],
            entry(
                "\"F32\"",
                "[]",
                "[18446744073709551611,18446744073709551615]",
            ),
        ),
        case(
            "control characters",
            "UnknownDtype",
            Some("a\\u{1b}[31mb\\n"),
            &[],
            {
                file(
                    r#"{"a\u001b[31mb\n":{"dtype":"X","shape":[],"data_offsets":[0,4]}}"#,
                    4,
                )
            },
        ),
    ]
}

/// A file of two F32 scalars `a` and `b` with these offsets.
fn two(a: &str, b: &str, data: usize) -> Vec<u8> {
    let header = format!(
        r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":{a}}},"b":{{"dtype":"F32","shape":[1],"data_offsets":{b}}}}}"#
    );
    file(&header, data)
}

fn wrong_places() -> Vec<Case> {
    vec![
        case(
            "partly over each other",
            "Overlap",
            Some("b"),
            &["'a'", "byte 2", "ends at 4"],
            two("[0,4]", "[2,6]", 6),
        ),
        case(
            "the same bytes twice",
            "Overlap",
            Some("b"),
            &["'a'", "byte 0"],
            two("[0,4]", "[0,4]", 4),
        ),
        case(
            "in the wrong order and over each other",
            "Overlap",
            Some("a"),
            &["'b'"],
            two("[3,7]", "[0,4]", 7),
        ),
        case(
            "a hole between",
            "Hole",
            Some("b"),
            &["bytes 4..8"],
            two("[0,4]", "[8,12]", 12),
        ),
        case(
            "a hole at the start",
            "Hole",
            Some("a"),
            &["bytes 0..4"],
            two("[4,8]", "[8,12]", 12),
        ),
        case(
            "bytes at the end",
            "TrailingBytes",
            Some("b"),
            &["3 bytes"],
            two("[0,4]", "[4,8]", 11),
        ),
        case(
            "bytes and no tensor",
            "TrailingBytes",
            None,
            &["5 bytes"],
            file("{}", 5),
        ),
        case(
            "cut inside the last tensor",
            "OutOfRange",
            Some("b"),
            &["byte 8", "holds 7"],
            two("[0,4]", "[4,8]", 7),
        ),
        case(
            "one name twice",
            "DuplicateTensor",
            Some("a"),
            &["twice"],
            {
                file(
                    r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                    2,
                )
            },
        ),
        case(
            "one name twice, spelt differently",
            "DuplicateTensor",
            Some("a"),
            &["twice"],
            {
                file(
                    r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                    2,
                )
            },
        ),
    ]
}

fn beyond_limits() -> Vec<Case> {
    let long = "n".repeat(1025);
    let crowd: String = (0..=1 << 18)
        .map(|i| {
            format!(
                r#"{}"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                if i == 0 { "" } else { "," }
            )
        })
        .collect();
    vec![
        case(
            "9 dimensions",
            "TooManyDimensions",
            Some("w"),
            &["9 dimensions", "limit is 8"],
            entry("\"U8\"", "[1,1,1,1,1,1,1,1,4]", "[0,4]"),
        ),
        case(
            "a million dimensions",
            "TooManyDimensions",
            Some("w"),
            &["1000000 dimensions"],
            entry("\"U8\"", &format!("[{}1]", "1,".repeat(999_999)), "[0,4]"),
        ),
        case(
            "a long name",
            "NameTooLong",
            None,
            &["nnnnnn…'", "1025 bytes", "1024"],
            {
                file(
                    &format!(r#"{{"{long}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}}}"#),
                    0,
                )
            },
        ),
        case(
            "a crowd",
            "TooManyTensors",
            Some("262144"),
            &["more than 262144"],
            file(&format!("{{{crowd}}}"), 0),
        ),
    ]
}
