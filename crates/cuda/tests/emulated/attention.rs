//! Attention of all sizes of heads.

use crate::machine::{Machine, machine};
use crate::memory::{Held, HeldRows};
use crate::numbers::{Nearness, Random, rounded, same_bits};
use lowtide_cuda::ops::launches::attention::{attention, group, groups, scratch};
use lowtide_cuda::ops::{At, Memory, RowsIn};
use lowtide_kernels::{self as cpu, Attention, Mask, Precision};

fn run(machine: &Machine, spec: &Attention, rows: [RowsIn<At>; 3], out: RowsIn<At>) {
    let room = Held::new(&vec![0xff; scratch(spec, rows[1].rows)], 0);
    for launch in attention(spec, rows, out, room.at()) {
        machine.run(&launch);
    }
    // Nothing was written beside it.
    room.to_f32s();
}

struct Case {
    spec: Attention,
    q: HeldRows,
    k: HeldRows,
    v: HeldRows,
}

impl Case {
    fn new(random: &mut Random, spec: Attention, queries: usize, keys: usize) -> Case {
        let cols = [spec.heads, spec.kv_heads].map(|heads| heads * spec.head_dim);
        let mut rows = |count: usize, cols: usize| {
            let gap = random.below(3);
            HeldRows::new(&random.numbers(count * cols), count, cols, gap, 4)
        };
        Case {
            q: rows(queries, cols[0]),
            k: rows(keys, cols[1]),
            v: rows(keys, cols[1]),
            spec,
        }
    }

    /// In f64, with queries, keys and values rounded as the products have them, and exact weights.
    fn exact(&self) -> Vec<f32> {
        let Attention {
            heads,
            kv_heads,
            head_dim: dim,
            precision,
            ..
        } = self.spec;
        let head = |rows: &HeldRows, row: usize, head: usize| -> Vec<f64> {
            let numbers = &rows.numbers[row * rows.stride + head * dim..][..dim];
            let numbers = numbers.iter();
            numbers.map(|n| rounded(precision, *n)).collect()
        };
        let mut all = Vec::new();
        for query in 0..self.q.rows {
            let seen = match self.spec.mask {
                Mask::None => self.k.rows,
                Mask::Causal => query + 1 + self.k.rows - self.q.rows,
            };
            for of in 0..heads {
                let (q, shared) = (head(&self.q, query, of), of * kv_heads / heads);
                let score = |key: usize| {
                    let k = head(&self.k, key, shared);
                    let sum: f64 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
                    (sum * f64::from(self.spec.scale)).exp()
                };
                let weights: Vec<f64> = (0..seen).map(score).collect();
                let total: f64 = weights.iter().sum();
                let mut sums = vec![0.0; dim];
                for (key, weight) in weights.iter().enumerate() {
                    for (sum, v) in sums.iter_mut().zip(head(&self.v, key, shared)) {
                        *sum += weight / total * v;
                    }
                }
                all.extend(sums.into_iter().map(|sum| sum as f32));
            }
        }
        all
    }

    fn room(&self) -> HeldRows {
        let (rows, cols) = (self.q.rows, self.q.cols);
        HeldRows::new(&vec![0.0; rows * cols], rows, cols, 2, 4)
    }

    fn run(&self, machine: &Machine) -> HeldRows {
        let out = self.room();
        let rows = [self.q.gpu(), self.k.gpu(), self.v.gpu()];
        run(machine, &self.spec, rows, out.gpu());
        out
    }
}

fn spec(heads: [usize; 2], head_dim: usize, mask: Mask, precision: Precision) -> Attention {
    Attention {
        heads: heads[0],
        kv_heads: heads[1],
        head_dim,
        // Larger than usual, so that some keys count much more than others.
        scale: 3.0 / (head_dim as f32).sqrt(),
        mask,
        precision,
    }
}

/// Heads and those of keys, numbers of a head, queries, keys, mask.
const CASES: [([usize; 2], usize, usize, usize, Mask); 8] = [
    ([1, 1], 40, 5, 130, Mask::None),
    ([2, 1], 64, 150, 150, Mask::Causal),
    ([4, 2], 80, 33, 70, Mask::None),
    ([1, 1], 128, 17, 64, Mask::Causal),
    ([2, 2], 160, 20, 65, Mask::None),
    ([1, 1], 256, 9, 40, Mask::None),
    ([1, 1], 512, 20, 70, Mask::None),
    ([3, 3], 6, 1, 1, Mask::None),
];

#[test]
fn attention_is_that_of_the_cpu() {
    let Some(machine) = machine("attention_is_that_of_the_cpu") else {
        return;
    };
    let mut random = Random::new(41);
    let mut near = [
        Nearness::new("attention, bf16"),
        Nearness::new("attention, f32"),
    ];
    for (heads, head_dim, queries, keys, mask) in CASES {
        for precision in [Precision::Bf16, Precision::F32] {
            let case = Case::new(
                &mut random,
                spec(heads, head_dim, mask, precision),
                queries,
                keys,
            );
            let mut out = case.run(&machine);
            let got = out.result();
            let (q, k, v) = (case.q.cpu(), case.k.cpu(), case.v.cpu());
            cpu::attention(&case.spec, q, k, v, out.cpu_mut());
            // Values are below 1 and weights sum to 1. In bf16 both sides round the weights, of which those that fall on
            // either side of a half differ by 2^-8; they are few, and cancel. In f32: scores of up to 3 within 1e-6.
            let (index, allowed) = match precision {
                Precision::Bf16 => (0, 2e-3),
                _ => (1, 4e-6),
            };
            let name = format!("{heads:?} {head_dim} {queries} {keys} {mask:?} {precision:?}");
            near[index].check(&name, &got, &out.expected(), |_| allowed);
        }
    }
}

#[test]
fn attention_in_tf32_and_f16_is_near_that_in_f64() {
    let Some(machine) = machine("attention_in_tf32_and_f16_is_near_that_in_f64") else {
        return;
    };
    let mut random = Random::new(43);
    let mut near = Nearness::new("attention, tf32 and f16");
    for (heads, head_dim, queries, keys, mask) in CASES {
        for precision in [Precision::Tf32, Precision::F16] {
            let spec = spec(heads, head_dim, mask, precision);
            let case = Case::new(&mut random, spec, queries, keys);
            let out = case.run(&machine);
            // Weights sum to 1 and are rounded by 2^-11 of each at most, not all the same way; values are below 1.
            let name = format!("{heads:?} {head_dim} {queries} {keys} {mask:?} {precision:?}");
            near.check(&name, &out.result(), &case.exact(), |_| 2.5e-4);
        }
    }
}

/// Values beyond f16 are its largest number; one that is none reaches all queries that see it, of its head alone.
#[test]
fn attention_in_f16_saturates_and_lets_nan_through() {
    let Some(machine) = machine("attention_in_f16_saturates_and_lets_nan_through") else {
        return;
    };
    let mut random = Random::new(44);
    let spec = spec([2, 2], 64, Mask::None, Precision::F16);
    let mut case = Case::new(&mut random, spec, 5, 70);
    let numbers = |numbers: Vec<f32>| HeldRows::new(&numbers, 70, 128, 0, 0);
    case.v = numbers(vec![1e6; 70 * 128]);
    let got = case.run(&machine).result();
    for (at, number) in got.iter().enumerate() {
        let near = (number - 65504.0).abs() < 20.0;
        assert!(near, "number {at} is {number}, not about 65504");
    }
    let mut values = random.numbers(70 * 128);
    values[66 * 128 + 70] = f32::NAN;
    case.v = numbers(values);
    for (at, number) in case.run(&machine).result().iter().enumerate() {
        assert_eq!(number.is_nan(), at % 128 == 70, "number {at} is {number}");
    }
}

#[test]
fn queries_have_the_same_bits_alone_and_among_others() {
    let Some(machine) = machine("queries_have_the_same_bits_alone_and_among_others") else {
        return;
    };
    let mut random = Random::new(42);
    for precision in Precision::ALL {
        for mask in [Mask::None, Mask::Causal] {
            let case = Case::new(&mut random, spec([2, 1], 48, mask, precision), 139, 150);
            let whole = case.run(&machine);
            let parts = case.room();
            for (first, count) in [(0, 3), (3, 100), (103, 36)] {
                // What the last of these sees is all that is there for a causal part.
                let keys = match mask {
                    Mask::None => case.k.rows,
                    Mask::Causal => first + count + case.k.rows - case.q.rows,
                };
                let rows = [
                    case.q.gpu_rows(first, count),
                    case.k.gpu_rows(0, keys),
                    case.v.gpu_rows(0, keys),
                ];
                run(&machine, &case.spec, rows, parts.gpu_rows(first, count));
            }
            same_bits(
                &format!("{mask:?} {precision:?}"),
                &whole.result(),
                &parts.result(),
            );
        }
    }
}

#[test]
fn groups_of_heads_have_the_bits_of_all_together() {
    let Some(machine) = machine("groups_of_heads_have_the_bits_of_all_together") else {
        return;
    };
    let mut random = Random::new(77);
    for precision in Precision::ALL {
        for (heads, kv_heads, head_dim) in [(6, 3, 64), (4, 4, 40), (5, 5, 13)] {
            let spec = Attention {
                heads,
                kv_heads,
                head_dim,
                scale: 0.2,
                mask: Mask::None,
                precision,
            };
            let case = Case::new(&mut random, spec, 9, 70);
            let rows = [&case.q, &case.k, &case.v].map(HeldRows::gpu);
            let nothing =
                || HeldRows::new(&vec![0.0; 9 * heads * head_dim], 9, heads * head_dim, 2, 4);
            let all = nothing();
            run(&machine, &spec, rows, all.gpu());
            let each = scratch(&spec, 70) / kv_heads;
            for together in [1, 2] {
                let parts = groups(&spec, 70, together * each);
                assert_eq!(parts.len(), kv_heads.div_ceil(together));
                let out = nothing();
                for part in parts {
                    let (spec, rows, out) = group(&spec, &part, rows, out.gpu());
                    run(&machine, &spec, rows, out);
                }
                let name = format!("{spec:?}, {together} heads together");
                same_bits(&name, &out.result(), &all.result());
            }
        }
    }
}
