//! Gaussian noise as PyTorch draws it on CUDA: Philox 4x32-10, and the normal transform of the web UI's "NV" seeds.
//!
//! Every value has a counter of its own: which draw of the generator it belongs to, and its place in it. For up to as
//! many values as a card has threads this is what `torch.randn` gives on the card itself; beyond, the card deals the
//! same numbers out in another order, and the web UI's order, which is this one, is what its pictures are known by.
//!
//! # Source
//! Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.

use std::f32::consts::TAU;

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// 2^-32 as the transform's f32 constant.
const UNIT: f32 = 2.328_306_4e-10;

/// 128 random bits of a counter under a key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let [first, second] = [(0, 0), (2, 1)].map(|(word, multiplier): (usize, usize)| {
            u64::from(counter[word]) * u64::from(MULTIPLIERS[multiplier])
        });
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        for (key, step) in key.iter_mut().zip(KEY_STEPS) {
            *key = key.wrapping_add(step);
        }
    }
    counter
}

/// Fills `values` with draw number `draw` (from 0) of the generator seeded with `seed`.
pub fn fill(seed: u64, draw: u32, values: &mut [f32]) {
    let key = [seed as u32, (seed >> 32) as u32];
    for (place, value) in values.iter_mut().enumerate() {
        let bits = philox4x32([draw, 0, place as u32, 0], key);
        *value = normal(bits[0], bits[1]);
    }
}

/// Box and Muller's transform of two words; in double precision over f32 constants.
fn normal(x: u32, y: u32) -> f32 {
    let scaled = |word: u32, unit: f64| f64::from(word) * unit + unit / 2.0;
    let uniform = scaled(x, f64::from(UNIT));
    let angle = scaled(y, f64::from((f64::from(UNIT) * f64::from(TAU)) as f32));
    ((-2.0 * uniform.ln()).sqrt() * angle.sin()) as f32
}

/// The first draw of `len` values: the initial noise of one picture under the web UI's GPU seeds.
pub fn philox_randn(seed: u64, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill(seed, 0, &mut values);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_are_the_published_ones() {
        // Known answers of Random123 for philox4x32 with 10 rounds.
        let ones = u32::MAX;
        let cases = [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [ones; 4],
                [ones; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn the_noise_is_what_a_card_draws() {
        // torch.manual_seed(0); torch.randn(12, device="cuda"), to four decimals.
        let card = [
            -0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284, -1.0745,
            -0.3631, -1.6711, 2.2655,
        ];
        for (value, expected) in philox_randn(0, 12).iter().zip(card) {
            assert!((value - expected).abs() < 6e-5, "{value} is not {expected}");
        }
    }

    #[test]
    fn draws_differ_and_do_not_depend_on_their_length() {
        let mut second = [0.0; 8];
        fill(3, 1, &mut second);
        assert_ne!(philox_randn(3, 8), second);
        assert_eq!(philox_randn(3, 8), philox_randn(3, 20)[..8]);
        // The upper half of a seed counts.
        assert_ne!(philox_randn(3, 8), philox_randn(3 + (1 << 32), 8));
    }
}
