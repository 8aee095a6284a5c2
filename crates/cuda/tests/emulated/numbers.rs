//! Numbers that follow from a seed, and how near results are.

use crate::memory::{Held, HeldMatrix};
use lowtide_kernels::{BLOCK, Per, Precision, Stored};

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From -1 to 1.
    pub(crate) fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }

    pub(crate) fn chance(&mut self) -> bool {
        self.below(2) == 1
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn stored(&mut self, stored: Stored, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            let number = self.number();
            match stored {
                Stored::F32 => bytes.extend(number.to_le_bytes()),
                Stored::F16 => bytes.extend(half::f16::from_f32(number).to_le_bytes()),
                Stored::Bf16 => bytes.extend(half::bf16::from_f32(number).to_le_bytes()),
                // Without the codes that are no finite number, and below 2.
                Stored::F8E4M3 | Stored::F8E5M2 => bytes.push((self.next() >> 32) as u8 & 0xbf),
                Stored::I8 => bytes.push((self.next() >> 32) as u8),
            }
        }
        bytes
    }

    /// A matrix of numbers about as large as 1; `offset` bytes from a multiple of 16.
    pub(crate) fn matrix(
        &mut self,
        kind: Kind,
        rows: usize,
        cols: usize,
        offset: usize,
    ) -> HeldMatrix {
        let (stored, scales) = kind;
        let bytes = self.stored(stored, rows * cols);
        let scales = scales.map(|(scale_stored, per)| {
            let count = match per {
                Per::Matrix => 1,
                Per::Row => rows,
                Per::Block => rows * cols / BLOCK,
            };
            let size = if stored == Stored::I8 {
                1.0 / 127.0
            } else {
                1.0
            };
            let mut scales = Vec::new();
            for _ in 0..count {
                let scale = (self.number() * 0.4 + 0.6) * size;
                match scale_stored {
                    Stored::F16 => scales.extend(half::f16::from_f32(scale).to_le_bytes()),
                    Stored::Bf16 => scales.extend(half::bf16::from_f32(scale).to_le_bytes()),
                    _ => scales.extend(scale.to_le_bytes()),
                }
            }
            let held = Held::new(&scales, offset % 4);
            (scale_stored, per, scales, held)
        });
        HeldMatrix {
            stored,
            rows,
            cols,
            held: Held::new(&bytes, offset),
            bytes,
            scales,
        }
    }
}

/// How a matrix is stored, and its scales.
pub(crate) type Kind = (Stored, Option<(Stored, Per)>);

pub(crate) const KINDS: [Kind; 10] = [
    (Stored::Bf16, None),
    (Stored::F32, None),
    (Stored::F16, None),
    (Stored::F8E4M3, None),
    (Stored::F8E5M2, None),
    (Stored::Bf16, Some((Stored::F32, Per::Row))),
    (Stored::F8E4M3, Some((Stored::F32, Per::Matrix))),
    (Stored::F8E5M2, Some((Stored::Bf16, Per::Row))),
    (Stored::I8, Some((Stored::F16, Per::Block))),
    (Stored::I8, Some((Stored::F32, Per::Row))),
];

/// What a product makes of a factor, by other means than the kernels'.
pub(crate) fn rounded(precision: Precision, number: f32) -> f64 {
    if number.is_nan() {
        return f64::NAN;
    }
    match precision {
        Precision::F32 => f64::from(number),
        Precision::Bf16 => half::bf16::from_f32(number).to_f64(),
        Precision::F16 => half::f16::from_f32(number.clamp(-65504.0, 65504.0)).to_f64(),
        // Ten bits of fraction, halves away from zero.
        Precision::Tf32 if number.is_finite() => {
            let step = f64::from(number.abs().to_bits() >> 23).max(1.0) - 127.0 - 10.0;
            let step = step.exp2();
            (f64::from(number) / step).round() * step
        }
        Precision::Tf32 => f64::from(number),
    }
}

/// How much of what is allowed was needed at most, which is said at the end.
pub(crate) struct Nearness {
    what: &'static str,
    worst: f32,
    largest: f32,
}

impl Nearness {
    pub(crate) fn new(what: &'static str) -> Nearness {
        Nearness {
            what,
            worst: 0.0,
            largest: 0.0,
        }
    }

    /// Panics where results are further apart than `allowed(index)`.
    pub(crate) fn check(
        &mut self,
        case: &str,
        got: &[f32],
        wanted: &[f32],
        allowed: impl Fn(usize) -> f32,
    ) {
        assert_eq!(got.len(), wanted.len(), "{}: {case}", self.what);
        for (at, (got, wanted)) in got.iter().zip(wanted).enumerate() {
            if got.is_nan() && wanted.is_nan() || got == wanted {
                continue;
            }
            let distance = (got - wanted).abs();
            assert!(
                distance <= allowed(at),
                "{}: {case}: number {at} is {got}, not {wanted}: {distance:e} away, {:e} allowed",
                self.what,
                allowed(at)
            );
            self.worst = self.worst.max(distance / allowed(at));
            self.largest = self.largest.max(distance);
        }
    }
}

impl Drop for Nearness {
    fn drop(&mut self) {
        eprintln!(
            "{}: at most {:.1e} apart, {:.0} % of what is allowed",
            self.what,
            self.largest,
            self.worst * 100.0
        );
    }
}

/// Panics unless both have the same bits.
pub(crate) fn same_bits(case: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{case}");
    for (at, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(
            a.to_bits(),
            b.to_bits(),
            "{case}: number {at} is {a} and {b}"
        );
    }
}
