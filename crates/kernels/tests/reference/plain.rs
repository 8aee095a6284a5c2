//! What the references share: numbers, weights, comparisons.

use lowtide_kernels::*;
use std::sync::Mutex;

pub(crate) const STORED: [Stored; 5] = [
    Stored::F32,
    Stored::F16,
    Stored::Bf16,
    Stored::F8E4M3,
    Stored::F8E5M2,
];

/// Runs a test on each instruction set; they are forced for the process, so one test at a time.
pub(crate) fn on_every_isa(test: impl Fn()) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for isa in available_isas().into_iter().chain([Isa::AmxEmulated]) {
        force_isa(isa).expect("it is available");
        test();
    }
}

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Roughly normal numbers: sums of four uniform ones.
    pub(crate) fn normal(&mut self, count: usize) -> Vec<f32> {
        let mut uniform = || (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        (0..count)
            .map(|_| (uniform() + uniform() + uniform() + uniform()) * 1.7)
            .collect()
    }
}

/// Stored weights beside what they mean.
pub(crate) struct Weights {
    pub(crate) stored: Stored,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bytes: Vec<u8>,
    pub(crate) values: Vec<f32>,
}

impl Weights {
    pub(crate) fn random(random: &mut Random, stored: Stored, rows: usize, cols: usize) -> Self {
        Self::of(stored, rows, cols, random.normal(rows * cols))
    }

    /// Weights near `values`, as near as they can be stored.
    pub(crate) fn of(stored: Stored, rows: usize, cols: usize, values: Vec<f32>) -> Self {
        let mut bytes = Vec::new();
        for v in &values {
            match stored {
                Stored::F32 => bytes.extend(v.to_le_bytes()),
                Stored::F16 => bytes.extend(half::f16::from_f32(*v).to_le_bytes()),
                Stored::Bf16 => bytes.extend(half::bf16::from_f32(*v).to_le_bytes()),
                // Any finite byte will do; those of E4M3 here lie between 2^-6 and 2.
                Stored::F8E4M3 => bytes.push((v.to_bits() >> 8) as u8 & 0xbf),
                Stored::F8E5M2 => bytes.push((half::f16::from_f32(*v).to_bits() >> 8) as u8),
                Stored::I8 => bytes.push((v * 64.0) as i8 as u8),
            }
        }
        let mut values = vec![0.0; values.len()];
        to_f32(stored, &bytes, &mut values);
        Self {
            stored,
            rows,
            cols,
            bytes,
            values,
        }
    }

    pub(crate) fn matrix(&self) -> Matrix<'_> {
        Matrix {
            stored: self.stored,
            bytes: &self.bytes,
            rows: self.rows,
            cols: self.cols,
            scales: None,
        }
    }
}

pub(crate) fn rows(data: &[f32], rows: usize, cols: usize, stride: usize) -> Rows<'_> {
    Rows {
        data,
        rows,
        cols,
        stride,
    }
}

pub(crate) fn rows_mut(data: &mut [f32], rows: usize, cols: usize, stride: usize) -> RowsMut<'_> {
    RowsMut {
        data,
        rows,
        cols,
        stride,
    }
}

/// A factor as a product sees it.
pub(crate) fn rounded(v: f32, precision: Precision) -> f64 {
    match precision {
        Precision::F32 => f64::from(v),
        Precision::Bf16 => half::bf16::from_f32(v).to_f64(),
        Precision::Tf32 | Precision::F16 => unreachable!("processors have no {precision:?}"),
    }
}

/// The error function by its series, or by the continued fraction of its tail.
fn erf_f64(x: f64) -> f64 {
    if x.abs() > 3.0 {
        let mut fraction = 0.0;
        for n in (1..60).rev() {
            fraction = f64::from(n) / 2.0 / (x.abs() + fraction);
        }
        let tail = (-x * x).exp() / std::f64::consts::PI.sqrt() / (x.abs() + fraction);
        return x.signum() * (1.0 - tail);
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..80 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

pub(crate) fn act_f64(act: Activation, x: f64) -> f64 {
    match act {
        Activation::None => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf_f64(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        }
    }
}

#[track_caller]
pub(crate) fn close(got: f32, expected: f64, tolerance: f64) {
    let error = (f64::from(got) - expected).abs();
    assert!(
        error <= tolerance * (1.0 + expected.abs()),
        "{got} for {expected}"
    );
}

#[track_caller]
pub(crate) fn assert_same_bits(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{a} is not {b} at {i}");
    }
}
