//! The fuzz target's body over 200,000 headers with random faults, the same ones every time: what a fuzzer checks for
//! hours, checked for two seconds wherever the tests run.

#[path = "mutation/body.rs"]
mod body;

use std::collections::BTreeMap;

/// How many headers are tried.
const ROUNDS: u32 = 200_000;

/// Headers to begin with; the two bytes before each say how much data follows.
const SEEDS: [(u16, &str); 6] = [
    (0, "{}"),
    (
        4,
        r#"{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#,
    ),
    (
        10,
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[1,3],"data_offsets":[0,6]},"b":{"dtype":"F32","shape":[1],"data_offsets":[6,10]}}  "#,
    ),
    (
        6,
        r#"{"z":{"dtype":"F8_E4M3","shape":[2,1,1],"data_offsets":[4,6]},"y":{"data_offsets":[0,4],"shape":[2],"dtype":"F16","x":[{}]}}"#,
    ),
    (
        8,
        r#"{"e":{"dtype":"I64","shape":[0,9],"data_offsets":[0,0]},"q\u0022":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#,
    ),
    (
        3,
        r#"{"ü":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]},"__metadata__":null}"#,
    ),
];

/// Pieces that are more likely to hurt than random bytes.
const PIECES: [&str; 24] = [
    "0",
    "1",
    "-1",
    "1e9",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "[",
    "]",
    "{",
    "}",
    "[]",
    ",",
    ":",
    "\"",
    "\\",
    "null",
    "\"F32\"",
    "\"F4\"",
    "\"w\":",
    "\"dtype\":",
    "__metadata__",
    "\u{0}",
    "\u{2028}",
];

/// xorshift64*: the same faults on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }
}

/// A header that is sound but for at most one number: the faults that only the checks behind the JSON can find.
fn nearly_sound(random: &mut Random) -> Vec<u8> {
    let dtypes = [
        ("F32", 4),
        ("BF16", 2),
        ("U8", 1),
        ("F8_E5M2", 1),
        ("I64", 8),
    ];
    let count = 1 + random.below(4);
    let (victim, fault) = (random.below(count), random.below(7));
    let amount = 1 + random.below(5);
    let (mut entries, mut at) = (Vec::new(), 0);
    for number in 0..count {
        let (dtype, size) = dtypes[random.below(dtypes.len())];
        let shape = [1 + random.below(3), random.below(4)];
        let (mut begin, mut end) = (at, at + size * shape[0] * shape[1]);
        at = end;
        if number == victim {
            match fault {
                0 => (begin, end) = (begin + amount, end + amount),
                1 => (begin, end) = (begin.saturating_sub(amount), end.saturating_sub(amount)),
                2 => end += amount,
                3 => at += amount,
                _ => {}
            }
        }
        let name = if fault == 5 { number / 2 } else { number };
        entries.push(format!(
            r#""t{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        ));
    }
    let data = if fault == 4 {
        at.saturating_sub(amount)
    } else {
        at
    };
    let mut input = (data as u16).to_le_bytes().to_vec();
    input.extend_from_slice(format!("{{{}}}", entries.join(",")).as_bytes());
    input
}

/// A sound header with one to three faults in its text.
fn harmed(random: &mut Random) -> Vec<u8> {
    let (data, json) = SEEDS[random.below(SEEDS.len())];
    let mut input = data.to_le_bytes().to_vec();
    input.extend_from_slice(json.as_bytes());
    for _ in 0..1 + random.below(3) {
        harm(&mut input, random);
    }
    input
}

/// One random fault.
fn harm(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len().max(1)).min(bytes.len());
    match random.below(7) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = b'0' + random.below(10) as u8,
        2 => bytes.truncate(at),
        3 => {
            let end = (at + 1 + random.below(12)).min(bytes.len());
            bytes.drain(at..end);
        }
        4 => {
            let piece = PIECES[random.below(PIECES.len())];
            bytes.splice(at..at, piece.bytes());
        }
        5 => {
            let end = (at + 1 + random.below(60)).min(bytes.len());
            let copy = bytes[at..end].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, copy);
        }
        _ => {
            // A digit by another number: the JSON stays whole, and the checks behind it are reached.
            if let Some(digit) = bytes.iter().skip(at).position(u8::is_ascii_digit) {
                let piece = PIECES[random.below(6)];
                bytes.splice(at + digit..=at + digit, piece.bytes());
            }
        }
    }
}

#[test]
fn no_header_breaks_the_parser() {
    let mut random = Random(0x1de);
    let mut outcomes: BTreeMap<String, u32> = BTreeMap::new();
    for round in 0..ROUNDS {
        let input = if round % 4 == 0 {
            nearly_sound(&mut random)
        } else {
            harmed(&mut random)
        };
        let outcome = match body::exercise(&input) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => {
                let debug = format!("{error:?}");
                debug
                    .split(|c: char| !c.is_alphanumeric())
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            }
        };
        *outcomes.entry(outcome).or_default() += 1;
    }
    // Were the faults too gross, all of them would end in the JSON parser, and this test would say nothing.
    for outcome in [
        "accepted",
        "Json",
        "NotUtf8",
        "HeaderStart",
        "UnknownDtype",
        "WrongByteRange",
        "OutOfRange",
        "Overlap",
        "Hole",
        "TrailingBytes",
        "DuplicateKey",
        "DuplicateTensor",
        "ReversedOffsets",
        "Overflow",
    ] {
        assert!(
            outcomes.get(outcome).is_some_and(|&count| count >= 20),
            "{outcome} is hardly tried: {outcomes:?}"
        );
    }
}
