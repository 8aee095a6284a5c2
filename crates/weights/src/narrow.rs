//! Numbers in half their bits: how a smaller variant of a checkpoint is written.

/// The largest E4M3 number.
pub(crate) const E4M3_MAX: f32 = 448.0;
/// Below this E4M3 numbers lie evenly, so far apart.
const E4M3_NORMAL_MIN: f32 = 0.015_625;
const E4M3_STEPS_PER_ONE: f32 = 512.0;
/// The largest E4M3 number's code; the next one is not a number.
const E4M3_MAX_CODE: u8 = 0x7e;
const E4M3_NAN: u8 = 0x7f;

/// Appends numbers rounded to the nearest bf16, ties to even.
pub fn to_bf16(numbers: &[f32], out: &mut Vec<u8>) {
    out.extend(
        numbers
            .iter()
            .flat_map(|&number| half::bf16::from_f32(number).to_le_bytes()),
    );
}

/// The nearest E4M3 number's code, ties to even; what is beyond the largest becomes that.
pub(crate) fn e4m3(number: f32) -> u8 {
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
    fn bf16_rounds_to_even() {
        let mut out = Vec::new();
        to_bf16(&[1.5, -0.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], &mut out);
        assert_eq!(out, [0xc0, 0x3f, 0, 0x80, 0x80, 0x3f, 0x82, 0x3f]);
    }
}
