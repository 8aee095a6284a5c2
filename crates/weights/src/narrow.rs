//! Numbers in fewer bits: how a smaller variant of a checkpoint is written.

use half::{bf16, f16};
use lowtide_core::Dtype;

/// The largest E4M3 number.
const E4M3_MAX: f32 = 448.0;
/// Below this E4M3 numbers lie evenly, so far apart.
const E4M3_NORMAL_MIN: f32 = 0.015_625;
const E4M3_STEPS_PER_ONE: f32 = 512.0;
/// The largest E4M3 number's code; the next one is not a number.
const E4M3_MAX_CODE: u8 = 0x7e;
const E4M3_NAN: u8 = 0x7f;

/// Rounds numbers stored as `from` to the nearest ones of `to` (ties to even) and appends them to `out`; what is beyond
/// the largest number of an 8-bit type becomes that. Returns whether the two types are among those that can be: floats,
/// to BF16 or F8_E4M3. `bytes` are whole numbers.
#[must_use]
pub fn narrow(from: Dtype, to: Dtype, bytes: &[u8], out: &mut Vec<u8>) -> bool {
    match from {
        Dtype::F64 => each(to, bytes, out, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
        Dtype::F32 => each(to, bytes, out, f32::from_le_bytes),
        Dtype::F16 => each(to, bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::Bf16 => each(to, bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        _ => false,
    }
}

fn each<const N: usize>(
    to: Dtype,
    bytes: &[u8],
    out: &mut Vec<u8>,
    read: impl Fn([u8; N]) -> f32,
) -> bool {
    let (numbers, rest) = bytes.as_chunks::<N>();
    debug_assert!(rest.is_empty(), "whole numbers");
    match to {
        Dtype::Bf16 => {
            out.extend(
                numbers
                    .iter()
                    .flat_map(|&b| bf16::from_f32(read(b)).to_le_bytes()),
            );
        }
        Dtype::F8E4M3 => out.extend(numbers.iter().map(|&b| e4m3(read(b)))),
        _ => return false,
    }
    true
}

/// The nearest E4M3 number's code.
fn e4m3(number: f32) -> u8 {
    let sign = if number.is_sign_negative() { 0x80 } else { 0 };
    let size = number.abs();
    let code = if number.is_nan() {
        E4M3_NAN
    } else if size >= E4M3_MAX {
        E4M3_MAX_CODE
    } else if size < E4M3_NORMAL_MIN {
        (size * E4M3_STEPS_PER_ONE).round_ties_even() as u8
    } else {
        // Twenty bits of the fraction go; a carry runs into the exponent, as it should.
        let bits = size.to_bits();
        let rounded = (bits + 0x7_ffff + ((bits >> 20) & 1)) >> 20;
        const BIASES_APART: u32 = 127 - 7;
        ((rounded - (BIASES_APART << 3)) as u8).min(E4M3_MAX_CODE)
    };
    sign | code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a code means.
    fn value(code: u8) -> f32 {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let size = match exponent {
            0 => fraction / 512.0,
            _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
        };
        if code & 0x80 != 0 { -size } else { size }
    }

    #[test]
    fn every_e4m3_number_stays_and_those_between_go_to_the_nearest() {
        for code in (0..=0x7e).chain(0x80..=0xfe) {
            assert_eq!(e4m3(value(code)), code, "{code:02x}");
        }
        for code in 0..0x7e_u8 {
            let (low, high) = (value(code), value(code + 1));
            let middle = (low + high) / 2.0;
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!(e4m3(middle), even, "{middle}");
            assert_eq!(e4m3(f32::from_bits(middle.to_bits() + 1)), code + 1);
            assert_eq!(e4m3(f32::from_bits(middle.to_bits() - 1)), code);
            assert_eq!(e4m3(-middle), even | 0x80);
        }
        for large in [449.0, 1e30, f32::INFINITY] {
            assert_eq!((e4m3(large), e4m3(-large)), (0x7e, 0xfe));
        }
        assert_eq!(e4m3(f32::NAN) & 0x7f, 0x7f);
    }

    #[test]
    fn from_each_type_to_each() {
        let mut out = Vec::new();
        for (from, bytes) in [
            (Dtype::F64, 1.5f64.to_le_bytes().to_vec()),
            (Dtype::F32, 1.5f32.to_le_bytes().to_vec()),
            (Dtype::F16, f16::from_f32(1.5).to_le_bytes().to_vec()),
            (Dtype::Bf16, bf16::from_f32(1.5).to_le_bytes().to_vec()),
        ] {
            assert!(narrow(from, Dtype::F8E4M3, &bytes, &mut out));
            assert!(narrow(from, Dtype::Bf16, &bytes, &mut out));
            assert_eq!(out, [0x3c, 0xc0, 0x3f], "{from}");
            out.clear();
            assert!(!narrow(from, Dtype::I8, &bytes, &mut out));
        }
        assert!(!narrow(Dtype::I32, Dtype::Bf16, &[0; 4], &mut out));
        assert!(out.is_empty());
    }
}
