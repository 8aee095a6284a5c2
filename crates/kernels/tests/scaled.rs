//! Weights with scales: on every instruction set and in every shape, the bits of the same weights multiplied out.

use std::sync::{Mutex, PoisonError};

use lowtide_kernels::*;

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }
}

/// A matrix with scales, and the same multiplied out.
struct Weights {
    stored: Stored,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    scale_stored: Stored,
    scales: Vec<u8>,
    per: Per,
    plain: Vec<u8>,
}

impl Weights {
    fn new(
        random: &mut Random,
        stored: Stored,
        (scale_stored, per): (Stored, Per),
        rows: usize,
        cols: usize,
    ) -> Weights {
        let bytes: Vec<u8> = (0..rows * cols)
            // Neither of E4M3's codes that are no numbers, nor any of E5M2's beyond them.
            .map(|_| (random.next() >> 32) as u8 & if stored == Stored::I8 { 0xff } else { 0xbb })
            .collect();
        let count = match per {
            Per::Matrix => 1,
            Per::Row => rows,
            Per::Block => rows * cols / BLOCK,
        };
        let mut scales = Vec::new();
        for _ in 0..count {
            let scale = random.number() * 0.03;
            match scale_stored {
                Stored::F16 => scales.extend(half::f16::from_f32(scale).to_le_bytes()),
                Stored::Bf16 => scales.extend(half::bf16::from_f32(scale).to_le_bytes()),
                _ => scales.extend(scale.to_le_bytes()),
            }
        }
        let mut widened = vec![0.0; bytes.len()];
        to_f32(stored, &bytes, &mut widened);
        let mut factors = vec![0.0; count];
        to_f32(scale_stored, &scales, &mut factors);
        let plain = widened.iter().enumerate().flat_map(|(at, number)| {
            let factor = match per {
                Per::Matrix => factors[0],
                Per::Row => factors[at / cols],
                Per::Block => factors[at / BLOCK],
            };
            (number * factor).to_le_bytes()
        });
        Weights {
            stored,
            rows,
            cols,
            plain: plain.collect(),
            bytes,
            scale_stored,
            scales,
            per,
        }
    }

    fn scaled(&self) -> Matrix<'_> {
        Matrix {
            stored: self.stored,
            bytes: &self.bytes,
            rows: self.rows,
            cols: self.cols,
            scales: Some(Scales {
                stored: self.scale_stored,
                bytes: &self.scales,
                per: self.per,
            }),
        }
    }

    fn plain(&self) -> Matrix<'_> {
        Matrix {
            stored: Stored::F32,
            bytes: &self.plain,
            rows: self.rows,
            cols: self.cols,
            scales: None,
        }
    }
}

const KINDS: [(Stored, (Stored, Per)); 7] = [
    (Stored::I8, (Stored::F16, Per::Block)),
    (Stored::I8, (Stored::F32, Per::Row)),
    (Stored::I8, (Stored::Bf16, Per::Block)),
    (Stored::F8E4M3, (Stored::F32, Per::Matrix)),
    (Stored::F8E4M3, (Stored::Bf16, Per::Row)),
    (Stored::F8E5M2, (Stored::F32, Per::Row)),
    (Stored::F8E4M3, (Stored::F16, Per::Block)),
];

/// On each instruction set; they are forced for the process, so one test at a time.
fn on_every_isa(test: impl Fn()) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for isa in available_isas().into_iter().chain([Isa::AmxEmulated]) {
        force_isa(isa).expect("it is available");
        test();
    }
}

fn product(x: &[f32], rows: usize, w: &Matrix<'_>, precision: Precision) -> Vec<f32> {
    let mut out = vec![7.0; rows * w.rows];
    linear(
        Rows::new(x, rows, w.cols),
        w,
        None,
        Activation::None,
        precision,
        RowsMut::new(&mut out, rows, w.rows),
    );
    out
}

#[track_caller]
fn same_bits(a: &[f32], b: &[f32], what: &str) {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(bits(a) == bits(b), "{what}");
}

#[test]
fn products_have_the_bits_of_the_weights_multiplied_out() {
    on_every_isa(|| {
        let mut random = Random(5);
        for (m, k, n) in [
            (1, 32, 5),
            (3, 160, 33),
            (4, 608, 70),
            (5, 32, 1),
            (65, 288, 40),
            (130, 416, 131),
        ] {
            let x = random.numbers(m * k);
            for (stored, scales) in KINDS {
                let w = Weights::new(&mut random, stored, scales, n, k);
                for precision in [Precision::F32, Precision::Bf16] {
                    let what = format!("{stored:?} {scales:?} {m}x{k}x{n} {precision:?}");
                    let ours = product(&x, m, &w.scaled(), precision);
                    same_bits(&ours, &product(&x, m, &w.plain(), precision), &what);
                    // Alone, as among others.
                    let last = product(&x[(m - 1) * k..], 1, &w.scaled(), precision);
                    same_bits(&last, &ours[(m - 1) * n..], &what);
                    // Some rows of the weights.
                    let part = n / 3..n;
                    let some = product(&x, m, &w.scaled().rows_at(part.clone()), precision);
                    for (some, all) in some.chunks(part.len()).zip(ours.chunks(n)) {
                        same_bits(some, &all[part.clone()], &what);
                    }
                }
            }
        }
    });
}

#[test]
fn rows_of_odd_lengths_take_scales_of_the_matrix_and_of_rows() {
    on_every_isa(|| {
        let mut random = Random(6);
        for (m, k, n) in [(1, 1, 3), (2, 33, 7), (70, 147, 12), (7, 291, 9)] {
            let x = random.numbers(m * k);
            for (stored, scales) in KINDS {
                if scales.1 == Per::Block {
                    continue;
                }
                let w = Weights::new(&mut random, stored, scales, n, k);
                for precision in [Precision::F32, Precision::Bf16] {
                    let ours = product(&x, m, &w.scaled(), precision);
                    let plain = product(&x, m, &w.plain(), precision);
                    same_bits(&ours, &plain, &format!("{stored:?} {scales:?} {m}x{k}x{n}"));
                }
            }
        }
    });
}

#[test]
fn convolutions_and_gates_take_them_too() {
    on_every_isa(|| {
        let mut random = Random(7);
        let (channels, outputs, side) = (32, 20, 9);
        let map = random.numbers(channels * side * side);
        let kind = KINDS[0];
        let w = Weights::new(&mut random, kind.0, kind.1, outputs, channels * 9);
        let gates = Weights::new(&mut random, kind.0, kind.1, 40, 96);
        let x = random.numbers(70 * 96);
        for precision in [Precision::F32, Precision::Bf16] {
            let convolved = |weight| {
                let conv = Conv2d {
                    weight,
                    bias: None,
                    kernel: 3,
                    stride: 1,
                    padding: 1,
                    upsample: false,
                    input: None,
                };
                let mut out = vec![0.0; outputs * side * side];
                let rows = MapRows::whole(side);
                conv2d(&conv, &map, rows, side, precision, None, &mut out, rows);
                out
            };
            same_bits(&convolved(w.scaled()), &convolved(w.plain()), "3 x 3");
            let gated = |w: Matrix<'_>| {
                let (a, b) = (w.rows_at(0..20), w.rows_at(20..40));
                let mut out = vec![0.0; 70 * 20];
                let (from, to) = (Rows::new(&x, 70, 96), RowsMut::new(&mut out, 70, 20));
                linear_swiglu(from, &a, &b, precision, to);
                out
            };
            same_bits(&gated(gates.scaled()), &gated(gates.plain()), "gates");
        }
    });
}
