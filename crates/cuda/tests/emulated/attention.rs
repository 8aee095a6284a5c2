//! Attention of all sizes of heads.

use crate::machine::{Machine, machine};
use crate::memory::{Held, HeldRows};
use crate::numbers::{Nearness, Random, same_bits};
use lowtide_cuda::ops::launches::attention::{attention, scratch};
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
    let cases = [
        ([1, 1], 40, 5, 130, Mask::None),
        ([2, 1], 64, 150, 150, Mask::Causal),
        ([4, 2], 80, 33, 70, Mask::None),
        ([1, 1], 128, 17, 64, Mask::Causal),
        ([2, 2], 160, 20, 65, Mask::None),
        ([1, 1], 256, 9, 40, Mask::None),
        ([1, 1], 512, 20, 70, Mask::None),
        ([3, 3], 6, 1, 1, Mask::None),
    ];
    for (heads, head_dim, queries, keys, mask) in cases {
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
                Precision::F32 => (1, 4e-6),
            };
            let name = format!("{heads:?} {head_dim} {queries} {keys} {mask:?} {precision:?}");
            near[index].check(&name, &got, &out.expected(), |_| allowed);
        }
    }
}

#[test]
fn queries_have_the_same_bits_alone_and_among_others() {
    let Some(machine) = machine("queries_have_the_same_bits_alone_and_among_others") else {
        return;
    };
    let mut random = Random::new(42);
    for precision in [Precision::Bf16, Precision::F32] {
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
