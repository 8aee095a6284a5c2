//! Weights in few bits with scales beside them: how a quantised variant of a checkpoint is written.
//!
//! fp8 is E4M3 with one scale a tensor, so that its largest number becomes the largest E4M3 number. q8_0 is whole numbers
//! from -127 to 127 with one f16 scale for every 32 of a row, the arithmetic of GGUF's type of that name. Either way a
//! weight is its number times its scale.

use half::{bf16, f16};
use lowtide_core::Dtype;

pub use crate::narrow::to_bf16;
use crate::narrow::{E4M3_MAX, e4m3};

/// Numbers of a row that share a scale in q8_0.
pub const Q8_BLOCK: usize = 32;

/// The largest whole number of q8_0.
const Q8_MAX: f32 = 127.0;

/// Widens numbers stored as `from` and appends them to `out`. Returns whether they are floats that can be. `bytes` are
/// whole numbers.
#[must_use]
pub fn widen(from: Dtype, bytes: &[u8], out: &mut Vec<f32>) -> bool {
    fn each<const N: usize>(bytes: &[u8], out: &mut Vec<f32>, read: impl Fn([u8; N]) -> f32) {
        let (numbers, rest) = bytes.as_chunks::<N>();
        debug_assert!(rest.is_empty(), "whole numbers");
        out.extend(numbers.iter().map(|&number| read(number)));
    }
    match from {
        Dtype::F64 => each(bytes, out, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
        Dtype::F32 => each(bytes, out, f32::from_le_bytes),
        Dtype::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        _ => return false,
    }
    true
}

/// The largest size among numbers, those that are no numbers left out.
pub fn largest(numbers: &[f32]) -> f32 {
    let finite = numbers.iter().map(|number| number.abs());
    finite.filter(|size| size.is_finite()).fold(0.0, f32::max)
}

/// The scale of a tensor in fp8 whose largest number is `largest`.
pub fn fp8_scale(largest: f32) -> f32 {
    let scale = largest / E4M3_MAX;
    // Of nothing but zeros, and of numbers so small that their scale would be none.
    if scale.is_normal() { scale } else { 1.0 }
}

/// Appends numbers in fp8 with that scale.
pub fn fp8(numbers: &[f32], scale: f32, out: &mut Vec<u8>) {
    out.extend(numbers.iter().map(|number| e4m3(number / scale)));
}

/// Appends whole blocks in q8_0: a number each to `out`, a scale a block to `scales`. A block with anything that is no
/// number, or is beyond f16, has a scale that is none, so that it stays seen.
pub fn q8_0(numbers: &[f32], out: &mut Vec<u8>, scales: &mut Vec<u8>) {
    let (blocks, rest) = numbers.as_chunks::<Q8_BLOCK>();
    debug_assert!(rest.is_empty(), "whole blocks");
    for block in blocks {
        let sound = block.iter().all(|number| number.is_finite());
        let scale = match sound {
            true => f16::from_f32(largest(block) / Q8_MAX),
            false => f16::NAN,
        };
        scales.extend(scale.to_le_bytes());
        // Divided by what is stored, not by what it was before it was rounded.
        let scale = scale.to_f32();
        let nearest = |number: &f32| match scale == 0.0 {
            true => 0,
            false => (number / scale).round().clamp(-Q8_MAX, Q8_MAX) as i8,
        };
        out.extend(block.iter().map(|number| nearest(number) as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wavy(count: usize) -> Vec<f32> {
        let number = |i: usize| (i as f32 * 0.37).sin() * (1.0 + (i / Q8_BLOCK) as f32);
        (0..count).map(number).collect()
    }

    #[test]
    fn a_block_is_within_half_a_step_of_what_it_was() {
        let numbers = wavy(10 * Q8_BLOCK);
        let (mut out, mut scales) = (Vec::new(), Vec::new());
        q8_0(&numbers, &mut out, &mut scales);
        assert_eq!((out.len(), scales.len()), (320, 20));
        for (i, block) in numbers.chunks(Q8_BLOCK).enumerate() {
            let scale = f16::from_le_bytes([scales[2 * i], scales[2 * i + 1]]).to_f32();
            assert!((scale * Q8_MAX / largest(block) - 1.0).abs() < 1e-3);
            for (number, &byte) in block.iter().zip(&out[i * Q8_BLOCK..]) {
                let back = f32::from(byte as i8) * scale;
                // Half a step, and what the largest loses where its scale was rounded down.
                assert!(
                    (back - number).abs() <= 0.57 * scale,
                    "{number} became {back}"
                );
            }
        }
    }

    #[test]
    fn blocks_of_zeros_and_of_no_numbers() {
        let mut numbers = vec![0.0; 3 * Q8_BLOCK];
        numbers[40] = f32::NAN;
        numbers[70] = f32::INFINITY;
        let (mut out, mut scales) = (Vec::new(), Vec::new());
        q8_0(&numbers, &mut out, &mut scales);
        let scale = |i: usize| f16::from_le_bytes([scales[2 * i], scales[2 * i + 1]]);
        assert_eq!(scale(0), f16::ZERO);
        assert!(out[..Q8_BLOCK].iter().all(|&number| number == 0));
        assert!(scale(1).is_nan() && scale(2).is_nan());
        // Beyond what an f16 scale reaches.
        let (mut out, mut scales) = (Vec::new(), Vec::new());
        q8_0(&[1e9; Q8_BLOCK], &mut out, &mut scales);
        assert!(!f16::from_le_bytes([scales[0], scales[1]]).is_finite());
    }

    #[test]
    fn fp8_uses_its_whole_range_whatever_the_numbers() {
        for size in [1e-20_f32, 1e-6, 0.02, 1.0, 3e7] {
            let numbers: Vec<f32> = wavy(64).iter().map(|number| number * size).collect();
            let scale = fp8_scale(largest(&numbers));
            let mut out = Vec::new();
            fp8(&numbers, scale, &mut out);
            let top = out.iter().map(|code| code & 0x7f).max();
            assert_eq!(top, Some(0x7e), "{size}");
        }
        assert_eq!(fp8_scale(0.0), 1.0);
        assert_eq!(fp8_scale(f32::MIN_POSITIVE), 1.0);
        assert_eq!(largest(&[1.0, -3.0, f32::NAN, f32::INFINITY]), 3.0);
    }

    #[test]
    fn what_can_be_widened() {
        let mut out = Vec::new();
        for (from, bytes) in [
            (Dtype::F64, 1.5f64.to_le_bytes().to_vec()),
            (Dtype::F32, 1.5f32.to_le_bytes().to_vec()),
            (Dtype::F16, f16::from_f32(1.5).to_le_bytes().to_vec()),
            (Dtype::Bf16, bf16::from_f32(1.5).to_le_bytes().to_vec()),
        ] {
            assert!(widen(from, &bytes, &mut out));
        }
        assert_eq!(out, [1.5; 4]);
        assert!(!widen(Dtype::I8, &[1], &mut out) && !widen(Dtype::F8E4M3, &[1], &mut out));
    }
}
