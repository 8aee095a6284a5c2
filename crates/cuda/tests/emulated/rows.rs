//! Norms, softmax, and numbers one by one.

use crate::machine::machine;
use crate::memory::{Held, HeldRows};
use crate::numbers::{KINDS, Nearness, Random, same_bits};
use lowtide_cuda::ops::Memory;
use lowtide_cuda::ops::launches::{elementwise, norm};
use lowtide_kernels::{self as cpu, Activation, Rotary};

/// Sums of up to 1,100 squares in another order (some 30 roundings of 2^-24), and a root: relative to results of about 1.
const NORM: f32 = 4e-6;

fn vector(random: &mut Random, count: usize) -> (Vec<f32>, Held) {
    let numbers = random.numbers(count);
    let held = Held::f32s(&numbers, random.below(4) * 4);
    (numbers, held)
}

#[test]
fn norms_of_rows_are_those_of_the_cpu() {
    let Some(machine) = machine("norms_of_rows_are_those_of_the_cpu") else {
        return;
    };
    let mut random = Random::new(11);
    let mut near = Nearness::new("rms_norm, rms_norm_add, layer_norm");
    for (rows, cols) in [(1, 1), (3, 7), (5, 64), (4, 1030), (7, 300), (2, 2)] {
        let case = format!("{rows} x {cols}");
        let (gap, offset) = (random.below(3), random.below(4) * 4);
        let x = HeldRows::new(&random.numbers(rows * cols), rows, cols, gap, offset);
        let (weight, held_weight) = vector(&mut random, cols);
        let (scale, held_scale) = vector(&mut random, cols);
        let (bias, held_bias) = vector(&mut random, cols);
        let old = random.numbers(rows * cols);
        let eps = 1e-5;
        let with = random.chance();
        let at = |held: &Held| with.then(|| held.at());
        let cpu_scale = with.then_some(scale.as_slice());

        let mut out = HeldRows::new(&old, rows, cols, 1, 4);
        let (gpu, plain) = (x.gpu(), held_weight.at());
        machine.run(&norm::rms_norm(
            &gpu,
            Some(&plain),
            eps,
            at(&held_scale).as_ref(),
            &out.gpu(),
        ));
        cpu::rms_norm(x.cpu(), Some(&weight), eps, cpu_scale, out.cpu_mut());
        near.check(&case, &out.result(), &out.expected(), |_| NORM);

        let mut out = HeldRows::new(&old, rows, cols, 0, 0);
        machine.run(&norm::rms_norm_add(
            &gpu,
            &plain,
            eps,
            at(&held_scale).as_ref(),
            &out.gpu(),
        ));
        cpu::rms_norm_add(x.cpu(), &weight, eps, cpu_scale, out.cpu_mut());
        near.check(&case, &out.result(), &out.expected(), |_| NORM);

        let mut out = HeldRows::new(&old, rows, cols, 0, 0);
        let vectors = [at(&held_weight), at(&held_bias), at(&held_scale)];
        let vectors = [&vectors[0], &vectors[1], &vectors[2]].map(Option::as_ref);
        machine.run(&norm::layer_norm(&gpu, vectors, eps, &out.gpu()));
        let (w, b) = (
            with.then_some(weight.as_slice()),
            with.then_some(bias.as_slice()),
        );
        cpu::layer_norm(x.cpu(), w, b, eps, cpu_scale, out.cpu_mut());
        // Of two numbers that nearly agree, the mean takes most away.
        near.check(&case, &out.result(), &out.expected(), |_| 4.0 * NORM);

        let alone = HeldRows::new(&old, rows, cols, 0, 0);
        for row in 0..rows {
            let (x, out) = (x.gpu_rows(row, 1), alone.gpu_rows(row, 1));
            machine.run(&norm::layer_norm(&x, vectors, eps, &out));
        }
        same_bits(&case, &alone.result(), &out.result());
    }
}

#[test]
fn softmax_of_rows_is_that_of_the_cpu() {
    let Some(machine) = machine("softmax_of_rows_is_that_of_the_cpu") else {
        return;
    };
    let mut random = Random::new(12);
    let mut near = Nearness::new("softmax_rows");
    for (rows, cols) in [(1, 1), (3, 31), (4, 700)] {
        let numbers: Vec<f32> = random
            .numbers(rows * cols)
            .iter()
            .map(|n| n * 20.0)
            .collect();
        let mut x = HeldRows::new(&numbers, rows, cols, 2, 4);
        machine.run(&norm::softmax_rows(&x.gpu()));
        cpu::softmax_rows(x.cpu_mut());
        // Powers within 2e-7 and a sum of powers.
        near.check(
            &format!("{rows} x {cols}"),
            &x.result(),
            &x.expected(),
            |_| 1e-6,
        );
    }
}

#[test]
fn heads_are_normed_and_turned_as_on_the_cpu() {
    let Some(machine) = machine("heads_are_normed_and_turned_as_on_the_cpu") else {
        return;
    };
    let mut random = Random::new(13);
    let mut near = Nearness::new("head_norm_rotary");
    for (tokens, heads, head_dim) in [(1, 1, 2), (5, 3, 40), (9, 2, 128), (3, 5, 6)] {
        for kind in [None, Some(Rotary::Interleaved), Some(Rotary::Halves)] {
            for with in [true, false] {
                let numbers = random.numbers(tokens * heads * head_dim);
                let mut x = HeldRows::new(&numbers, tokens, heads * head_dim, 3, 4);
                let (weight, held_weight) = vector(&mut random, head_dim);
                let (cos, held_cos) = vector(&mut random, tokens * head_dim / 2);
                let (sin, held_sin) = vector(&mut random, tokens * head_dim / 2);
                let rotary = kind.map(|kind| (kind, &held_cos, &held_sin));
                let normed = with.then_some((&held_weight, 1e-6));
                machine.run(&norm::head_norm_rotary(&x.gpu(), head_dim, normed, rotary));
                let rotary = kind.map(|kind| (kind, cos.as_slice(), sin.as_slice()));
                let normed = with.then_some((weight.as_slice(), 1e-6));
                cpu::head_norm_rotary(x.cpu_mut(), head_dim, normed, rotary);
                let case = format!("{tokens} x {heads} x {head_dim}, {kind:?}, {with}");
                near.check(&case, &x.result(), &x.expected(), |_| NORM);
            }
        }
    }
}

#[test]
fn numbers_one_by_one_are_those_of_the_cpu() {
    let Some(machine) = machine("numbers_one_by_one_are_those_of_the_cpu") else {
        return;
    };
    let mut random = Random::new(14);
    let mut near = Nearness::new("add, add_scaled, mul, activate, tanh, add_constant");
    for count in [1, 3, 257, 4100] {
        for offset in [0, 4] {
            let (numbers, others) = (random.numbers(count), random.numbers(count));
            let y = Held::f32s(&others, random.pick(&[0, 8]));
            let fresh = || (numbers.clone(), Held::f32s(&numbers, offset));
            let case = format!("{count} numbers at {offset}");
            let (mut wanted, x) = fresh();
            machine.run(&elementwise::add_scaled(&x, 0.3, &y));
            cpu::add_scaled(&mut wanted, 0.3, &others);
            same_bits(&case, &x.to_f32s(), &wanted);
            let (mut wanted, x) = fresh();
            machine.run(&elementwise::mul(&x, &y));
            cpu::mul(&mut wanted, &others);
            same_bits(&case, &x.to_f32s(), &wanted);
            let (_, x) = fresh();
            machine.run(&elementwise::copy(&x, &y));
            same_bits(&case, &x.to_f32s(), &others);
            let (wanted, x) = fresh();
            machine.run(&elementwise::tanh(&x));
            let wanted: Vec<f32> = wanted.iter().map(|n| n.tanh()).collect();
            near.check(&case, &x.to_f32s(), &wanted, |_| 1e-6);
            let (wanted, x) = fresh();
            machine.run(&elementwise::add_constant(&x, 0.7));
            let wanted: Vec<f32> = wanted.iter().map(|n| n + 0.7).collect();
            same_bits(&case, &x.to_f32s(), &wanted);
            for act in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
                let (mut wanted, x) = fresh();
                machine.run(&elementwise::activate(&x, act));
                cpu::activate(&mut wanted, act);
                near.check(&case, &x.to_f32s(), &wanted, |_| 1e-6);
            }
        }
    }
}

#[test]
fn rows_go_where_they_are_sent() {
    let Some(machine) = machine("rows_go_where_they_are_sent") else {
        return;
    };
    let mut random = Random::new(15);
    for (rows, cols, gaps, offset) in [(5, 12, (4, 8), 0), (3, 7, (0, 2), 4), (1, 300, (1, 0), 8)] {
        let numbers = random.numbers(rows * cols);
        let from = HeldRows::new(&numbers, rows, cols, gaps.0, offset);
        let to = HeldRows::new(&vec![0.0; rows * cols], rows, cols, gaps.1, 0);
        machine.run(&elementwise::copy_strided(&from.gpu(), &to.gpu()));
        same_bits("copied", &to.result(), &numbers);
        let (row, held) = vector(&mut random, cols);
        machine.run(&elementwise::fill_rows(&to.gpu(), &held));
        let wanted: Vec<f32> = (0..rows).flat_map(|_| row.clone()).collect();
        same_bits("filled", &to.result(), &wanted);
    }
}

#[test]
fn stored_numbers_widen_exactly() {
    let Some(machine) = machine("stored_numbers_widen_exactly") else {
        return;
    };
    let mut random = Random::new(16);
    for kind in KINDS {
        let (rows, cols) = (5, 64);
        let matrix = random.matrix(kind, rows, cols, 3);
        let out = Held::f32s(&vec![0.0; rows * cols], 4);
        machine.run(&elementwise::widen(&matrix.gpu(), &out));
        let wide = matrix.widened();
        same_bits(&format!("{kind:?}"), &out.to_f32s(), &wide);
        let ids: [u32; 4] = [4, 0, 9, 4];
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let ids_held = Held::new(&bytes, 4);
        let out = HeldRows::new(&vec![0.0; 4 * cols], 4, cols, 2, 0);
        machine.run(&elementwise::gather_rows(
            &matrix.gpu(),
            &ids_held,
            &out.gpu(),
        ));
        for (row, id) in out.result().chunks_exact(cols).zip(ids) {
            match wide.chunks_exact(cols).nth(id as usize) {
                Some(wanted) => same_bits(&format!("row {id} of {kind:?}"), row, wanted),
                None => assert!(row.iter().all(|n| n.is_nan()), "a row that is not there"),
            }
        }
    }
    // Every code of the small kinds, subnormals and NaN among them.
    for stored in [cpu::Stored::F8E4M3, cpu::Stored::F8E5M2, cpu::Stored::I8] {
        let all: Vec<u8> = (0..=255).collect();
        let held = Held::new(&all, 0);
        let matrix = lowtide_cuda::ops::MatrixIn {
            stored,
            data: held.at(),
            rows: 1,
            cols: 256,
            scales: None,
        };
        let out = Held::f32s(&[0.0; 256], 0);
        machine.run(&elementwise::widen(&matrix, &out));
        let mut wanted = [0.0; 256];
        cpu::to_f32(stored, &all, &mut wanted);
        let mut near = Nearness::new("widen");
        near.check(&format!("{stored:?}"), &out.to_f32s(), &wanted, |_| 0.0);
    }
}
