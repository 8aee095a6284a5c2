//! Gaussian noise exactly as PyTorch's CPU generator draws it: mt19937 and its normal transform. Also as its CUDA generator
//! does ([`philox`]), and either as a job draws it, picture by picture ([`Draws`]).
//!
//! # Source
//! PyTorch `at::mt19937` and `normal_fill` (ATen/native/cpu/DistributionTemplates.h); Matsumoto and Nishimura, 1998.

mod draws;
pub mod philox;

pub use draws::{Draws, Generator};

const STATE: usize = 624;
const SHIFT: usize = 397;

/// The Mersenne Twister with 32-bit output, seeded as PyTorch seeds it.
pub struct Mt19937 {
    state: [u32; STATE],
    next: usize,
}

impl Mt19937 {
    /// The generator for `seed`; PyTorch uses the lower 32 bits.
    pub fn new(seed: u64) -> Mt19937 {
        let mut state = [0; STATE];
        state[0] = seed as u32;
        for i in 1..STATE {
            let previous: u32 = state[i - 1];
            state[i] = 1_812_433_253u32
                .wrapping_mul(previous ^ (previous >> 30))
                .wrapping_add(i as u32);
        }
        Mt19937 { state, next: STATE }
    }

    fn refill(&mut self) {
        for i in 0..STATE {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE] & 0x7fff_ffff);
            let twist = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + SHIFT) % STATE] ^ (y >> 1) ^ twist;
        }
        self.next = 0;
    }

    /// The next 32 random bits.
    pub fn random(&mut self) -> u32 {
        if self.next == STATE {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// The next 64 random bits: the first word drawn is the upper half.
    fn random64(&mut self) -> u64 {
        let high = u64::from(self.random());
        (high << 32) | u64::from(self.random())
    }

    /// Uniform in [0, 1) with 24 bits.
    fn uniform_f32(&mut self) -> f32 {
        const SCALE: f32 = 1.0 / (1 << 24) as f32;
        (self.random() & 0x00ff_ffff) as f32 * SCALE
    }

    /// Uniform in [0, 1) with 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        const SCALE: f64 = 1.0 / (1u64 << 53) as f64;
        (self.random64() & ((1 << 53) - 1)) as f64 * SCALE
    }

    /// `torch.randn(len, generator)` in f32.
    pub fn randn(&mut self, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        self.fill(&mut values);
        values
    }

    /// As [`Mt19937::randn`], into memory that is there already.
    pub fn fill(&mut self, values: &mut [f32]) {
        if values.len() < NORMAL_LANES {
            self.fill_short(values);
        } else {
            self.fill_long(values);
        }
    }

    /// Passes over the bits that [`Mt19937::randn`] of `len` values takes.
    pub(crate) fn skip(&mut self, len: usize) {
        let words = if len < NORMAL_LANES {
            // Two doubles a pair of values.
            len.div_ceil(2) * 4
        } else if len.is_multiple_of(NORMAL_LANES) {
            len
        } else {
            len + NORMAL_LANES
        };
        for _ in 0..words {
            self.random();
        }
    }

    /// Fewer than 16 values: pairs of one double-precision Box-Muller transform, the second kept for the next value.
    fn fill_short(&mut self, values: &mut [f32]) {
        let mut kept = None;
        let mut draw = || {
            kept.take().unwrap_or_else(|| {
                let angle = 2.0 * std::f64::consts::PI * self.uniform_f64();
                let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
                kept = Some(radius * angle.sin());
                radius * angle.cos()
            })
        };
        values.fill_with(|| draw() as f32);
    }

    /// At least 16 values: all uniforms first, then blocks of 16 transformed in place; a last block that would be
    /// short is drawn anew over the last 16 values.
    fn fill_long(&mut self, values: &mut [f32]) {
        let len = values.len();
        values.fill_with(|| self.uniform_f32());
        for block in values.chunks_exact_mut(NORMAL_LANES) {
            box_muller(block);
        }
        if !len.is_multiple_of(NORMAL_LANES) {
            let last = &mut values[len - NORMAL_LANES..];
            last.fill_with(|| self.uniform_f32());
            box_muller(last);
        }
    }
}

/// Values transformed together: lane i and lane i + 8 share one radius and angle.
const NORMAL_LANES: usize = 16;

fn box_muller(block: &mut [f32]) {
    for lane in 0..NORMAL_LANES / 2 {
        let u1 = 1.0 - block[lane];
        let u2 = block[lane + NORMAL_LANES / 2];
        let radius = (-2.0 * f64::from(u1).ln() as f32).sqrt();
        let angle = 2.0 * std::f32::consts::PI * u2;
        let (sin, cos) = f64::from(angle).sin_cos();
        block[lane] = radius * cos as f32;
        block[lane + NORMAL_LANES / 2] = radius * sin as f32;
    }
}

/// The noise of one picture: `torch.randn` of `len` values from a fresh generator seeded with `seed`.
pub fn randn(seed: u64, len: usize) -> Vec<f32> {
    Mt19937::new(seed).randn(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twister_gives_the_published_sequence() {
        // First outputs for the reference implementation's default seed.
        let mut generator = Mt19937::new(5489);
        assert_eq!(
            [generator.random(), generator.random(), generator.random()],
            [3_499_211_612, 581_869_302, 3_890_346_734]
        );
    }

    #[test]
    fn noise_is_what_pytorch_draws() {
        // torch 2.15: torch.randn(n, generator=torch.Generator().manual_seed(seed)): the first values and the last.
        let cases: [(u64, usize, &[f32], f32); 4] = [
            (
                0,
                5,
                &[1.540_996_1, -0.293_428_9, -2.178_789_4, 0.568_431_26],
                -1.084_522_4,
            ),
            (
                1,
                16,
                &[-1.525_595_9, -0.750_231_8, -0.653_980_9, -1.609_484_8],
                0.467_635_5,
            ),
            (
                42,
                17,
                &[1.926_915_3, -0.159_597_47, -0.497_397_54, 0.439_589_26],
                -0.309_726_8,
            ),
            (
                7,
                100,
                &[-0.820_134_5, 0.395_631_16, 0.898_908_5, -1.388_403_4],
                0.640_272_6,
            ),
        ];
        for (seed, len, first, last) in cases {
            let values = randn(seed, len);
            assert_eq!(values.len(), len);
            let ends = values.iter().zip(first).chain([(&values[len - 1], &last)]);
            for (value, expected) in ends {
                assert!(
                    (value - expected).abs() < 3e-6,
                    "seed {seed}: {value} is not {expected}"
                );
            }
        }
    }
}
