//! Products of rows and matrices.

use crate::machine::machine;
use crate::memory::{Held, HeldMatrix, HeldRows};
use crate::numbers::{KINDS, Kind, Nearness, Random, rounded, same_bits};
use lowtide_cuda::ops::Memory;
use lowtide_cuda::ops::launches::linear::{Ending, finish_rows, product, round_rows};
use lowtide_kernels::{self as cpu, Activation, Precision, Stored};

/// Both sides multiply the same factors, in f32 exactly or nearly: a GPU's f32 factor is the sum of two tf32, 2^-22 off. They
/// add in other orders, which for up to 300 numbers is some 300^(1/2) roundings of 2^-24 each, of the sum of magnitudes: 1e-6 at most.
const SUM: f32 = 1e-6;

/// What an activation may add: both sides are within 1e-6 of the true value, relatively.
const ACTIVATION: f32 = 2e-6;

const ACTS: [Activation; 5] = [
    Activation::None,
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
];

struct Case {
    x: HeldRows,
    weights: Vec<HeldMatrix>,
    name: String,
}

impl Case {
    fn new(random: &mut Random, kinds: &[Kind], shape: [usize; 3], precision: Precision) -> Case {
        let [rows, cols, outputs] = shape;
        let plain = random.chance();
        let (gap, offset) = match plain {
            true => (0, 0),
            false => (random.below(4), random.below(4) * 4),
        };
        let x = HeldRows::new(&random.numbers(rows * cols), rows, cols, gap, offset);
        let weights = kinds.iter().map(|kind| {
            // Weights may lie anywhere, even at odd addresses.
            let offset = if plain { 0 } else { random.below(16) };
            random.matrix(*kind, outputs, cols, offset)
        });
        let weights = weights.collect();
        let name = format!("{shape:?} {kinds:?} {precision:?} gap {gap}");
        Case { x, weights, name }
    }

    /// The product with a matrix: sums in f64 of rounded factors.
    fn sums(&self, weight: usize, precision: Precision) -> Vec<f64> {
        let wide = self.weights[weight].widened();
        let round = |numbers: &[f32]| -> Vec<f64> {
            let numbers = numbers.iter();
            numbers.map(|n| rounded(precision, *n)).collect()
        };
        let wide = round(&wide);
        let mut all = Vec::new();
        for row in 0..self.x.rows {
            let x = round(&self.x.numbers[row * self.x.stride..][..self.x.cols]);
            for w in wide.chunks_exact(self.x.cols) {
                all.push(x.iter().zip(w).map(|(x, w)| x * w).sum());
            }
        }
        all
    }

    /// The sum of magnitudes of each result of a product, and 1 for what is added.
    fn magnitudes(&self, weight: usize) -> Vec<f32> {
        let wide = self.weights[weight].widened();
        let mut all = Vec::new();
        for row in 0..self.x.rows {
            let x = &self.x.numbers[row * self.x.stride..][..self.x.cols];
            for w in wide.chunks_exact(self.x.cols.max(1)) {
                all.push(1.0 + x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum::<f32>());
            }
        }
        all
    }
}

fn shapes(random: &mut Random, count: usize) -> Vec<[usize; 3]> {
    let mut shapes = vec![[1, 8, 1], [130, 72, 129], [3, 33, 70]];
    while shapes.len() < count {
        shapes.push([
            1 + random.below(140),
            1 + random.below(90),
            1 + random.below(200),
        ]);
    }
    shapes
}

/// Blocks of 32 need rows of whole ones.
fn suited(kind: Kind, [rows, cols, outputs]: [usize; 3]) -> [usize; 3] {
    match kind.1 {
        Some((_, cpu::Per::Block)) => [rows, cols.next_multiple_of(32), outputs],
        _ => [rows, cols, outputs],
    }
}

#[test]
fn linear_layers_are_those_of_the_cpu() {
    let Some(machine) = machine("linear_layers_are_those_of_the_cpu") else {
        return;
    };
    let mut random = Random::new(1);
    let mut near = Nearness::new("linear");
    let shapes = shapes(&mut random, 20);
    for (index, shape) in shapes.into_iter().enumerate() {
        for precision in [Precision::Bf16, Precision::F32] {
            let kind = KINDS[(index + usize::from(precision == Precision::F32)) % KINDS.len()];
            let case = Case::new(&mut random, &[kind], suited(kind, shape), precision);
            let [rows, outputs] = [shape[0], shape[2]];
            let bias = random.chance().then(|| random.numbers(outputs));
            let act = random.pick(&ACTS);
            let gap = random.below(5);
            let mut out = HeldRows::new(&vec![0.0; rows * outputs], rows, outputs, gap, 4);
            let held = bias.as_ref().map(|bias| Held::f32s(bias, 4));
            let ending = Ending::Linear {
                bias: held.as_ref().map(Memory::at),
                act,
            };
            let weight = &case.weights[0];
            machine.run(&product(
                &case.x.gpu(),
                &[weight.gpu()],
                &ending,
                precision,
                &out.gpu(),
            ));
            let w = weight.cpu();
            cpu::linear(
                case.x.cpu(),
                &w,
                bias.as_deref(),
                act,
                precision,
                out.cpu_mut(),
            );
            let (wanted, sizes) = (out.expected(), case.magnitudes(0));
            let name = format!("{} {act:?}", case.name);
            near.check(&name, &out.result(), &wanted, |at| {
                SUM * 1.2 * sizes[at] + ACTIVATION * wanted[at].abs()
            });
        }
    }
}

#[test]
fn products_are_added_to_what_is_there() {
    let Some(machine) = machine("products_are_added_to_what_is_there") else {
        return;
    };
    let mut random = Random::new(2);
    let mut near = Nearness::new("linear_add");
    for shape in [[130, 40, 64], [17, 64, 33], [2, 30, 140]] {
        for precision in [Precision::Bf16, Precision::F32] {
            let case = Case::new(&mut random, &[(Stored::Bf16, None)], shape, precision);
            let [rows, _, outputs] = shape;
            let old = random.numbers(rows * outputs);
            let mut out = HeldRows::new(&old, rows, outputs, 3, 8);
            let (scale, act) = (0.37, random.pick(&ACTS));
            let weight = &case.weights[0];
            let ending = Ending::Add { scale, act };
            machine.run(&product(
                &case.x.gpu(),
                &[weight.gpu()],
                &ending,
                precision,
                &out.gpu(),
            ));
            cpu::linear_add(
                case.x.cpu(),
                &weight.cpu(),
                scale,
                act,
                precision,
                out.cpu_mut(),
            );
            let (wanted, sizes) = (out.expected(), case.magnitudes(0));
            near.check(&case.name, &out.result(), &wanted, |at| {
                SUM * 1.2 * sizes[at] + ACTIVATION * wanted[at].abs()
            });
        }
    }
}

#[test]
fn gated_products_are_those_of_the_cpu() {
    let Some(machine) = machine("gated_products_are_those_of_the_cpu") else {
        return;
    };
    let mut random = Random::new(3);
    let mut near = Nearness::new("linear_swiglu, linear_geglu");
    let both = |a, b| [KINDS[a], KINDS[b]];
    let kinds = [both(0, 0), both(0, 8), both(6, 2), both(8, 8), both(1, 3)];
    for (index, shape) in [
        [130, 64, 65],
        [9, 96, 20],
        [33, 32, 96],
        [140, 64, 32],
        [4, 64, 130],
    ]
    .into_iter()
    .enumerate()
    {
        for precision in [Precision::Bf16, Precision::F32] {
            let case = Case::new(&mut random, &kinds[index], shape, precision);
            let [rows, _, outputs] = shape;
            let mut out = HeldRows::new(&vec![0.0; rows * outputs], rows, outputs, 1, 0);
            let weights = [case.weights[0].gpu(), case.weights[1].gpu()];
            let biases = [random.numbers(outputs), random.numbers(outputs)];
            let held = [0, 1].map(|i| Held::f32s(&biases[i], 0));
            let (first, second) = (case.weights[0].cpu(), case.weights[1].cpu());
            let geglu = index % 2 == 0;
            let ending = match geglu {
                true => Ending::Geglu {
                    biases: [held[0].at(), held[1].at()],
                },
                false => Ending::Swiglu,
            };
            machine.run(&product(
                &case.x.gpu(),
                &weights,
                &ending,
                precision,
                &out.gpu(),
            ));
            if geglu {
                let biases = [biases[0].as_slice(), &biases[1]];
                let matrices = [&first, &second];
                cpu::linear_geglu(case.x.cpu(), matrices, biases, precision, out.cpu_mut());
            } else {
                cpu::linear_swiglu(case.x.cpu(), &first, &second, precision, out.cpu_mut());
            }
            // The error of one factor times the magnitude of the other, both ways.
            let sizes = [case.magnitudes(0), case.magnitudes(1)];
            near.check(&case.name, &out.result(), &out.expected(), |at| {
                3.0 * SUM * (sizes[0][at] + 1.0) * (sizes[1][at] + 1.0)
            });
        }
    }
}

#[test]
fn rows_have_the_same_bits_alone_and_among_others() {
    let Some(machine) = machine("rows_have_the_same_bits_alone_and_among_others") else {
        return;
    };
    let mut random = Random::new(4);
    for (kind, outputs) in [
        (KINDS[0], 130),
        (KINDS[0], 40),
        (KINDS[2], 72),
        (KINDS[2], 130),
        (KINDS[8], 72),
        (KINDS[1], 20),
    ] {
        for precision in Precision::ALL {
            let shape = [141, 96, outputs];
            let case = Case::new(&mut random, &[kind], shape, precision);
            let weights = [case.weights[0].gpu()];
            let ending = Ending::Linear {
                bias: None,
                act: Activation::Silu,
            };
            let zeros = vec![0.0; shape[0] * outputs];
            let all = HeldRows::new(&zeros, shape[0], outputs, 0, 0);
            machine.run(&product(
                &case.x.gpu(),
                &weights,
                &ending,
                precision,
                &all.gpu(),
            ));
            let parts = HeldRows::new(&zeros, shape[0], outputs, 0, 0);
            for (first, rows) in [(0, 1), (1, 57), (58, 83)] {
                let (x, out) = (case.x.gpu_rows(first, rows), parts.gpu_rows(first, rows));
                machine.run(&product(&x, &weights, &ending, precision, &out));
            }
            same_bits(&case.name, &all.result(), &parts.result());
        }
    }
}

#[test]
fn factors_are_rounded_to_the_type_of_the_product() {
    let Some(machine) = machine("factors_are_rounded_to_the_type_of_the_product") else {
        return;
    };
    let mut random = Random::new(7);
    let mut near = Nearness::new("linear, against f64");
    // Each kind of weights once with rows of whole tiles and once with some that are none.
    for (index, kind) in KINDS.iter().chain(&KINDS).enumerate() {
        let shape = suited(*kind, [[131, 72, 130], [7, 45, 40]][index / KINDS.len()]);
        for precision in [Precision::Bf16, Precision::Tf32, Precision::F16] {
            let case = Case::new(&mut random, &[*kind], shape, precision);
            let [rows, _, outputs] = shape;
            let out = HeldRows::new(&vec![0.0; rows * outputs], rows, outputs, 1, 4);
            let ending = Ending::Linear {
                bias: None,
                act: Activation::None,
            };
            let weights = [case.weights[0].gpu()];
            machine.run(&product(
                &case.x.gpu(),
                &weights,
                &ending,
                precision,
                &out.gpu(),
            ));
            let sums = case.sums(0, precision).into_iter();
            let wanted: Vec<f32> = sums.map(|sum| sum as f32).collect();
            let sizes = case.magnitudes(0);
            near.check(&case.name, &out.result(), &wanted, |at| SUM * sizes[at]);
        }
    }
}

#[test]
fn gated_products_are_rounded_to_their_type() {
    let Some(machine) = machine("gated_products_are_rounded_to_their_type") else {
        return;
    };
    let mut random = Random::new(8);
    let mut near = Nearness::new("linear_swiglu, against f64");
    for (index, shape) in [[130, 64, 65], [9, 96, 20], [33, 40, 130]]
        .iter()
        .enumerate()
    {
        for precision in [Precision::Tf32, Precision::F16] {
            let kinds = [[KINDS[2]; 2], [KINDS[2], KINDS[8]], [KINDS[1], KINDS[3]]];
            let case = Case::new(&mut random, &kinds[index], *shape, precision);
            let [rows, _, outputs] = *shape;
            let out = HeldRows::new(&vec![0.0; rows * outputs], rows, outputs, 1, 0);
            let weights = [case.weights[0].gpu(), case.weights[1].gpu()];
            let launch = product(
                &case.x.gpu(),
                &weights,
                &Ending::Swiglu,
                precision,
                &out.gpu(),
            );
            machine.run(&launch);
            let pairs = case.sums(0, precision).into_iter();
            let pairs = pairs.zip(case.sums(1, precision));
            let wanted: Vec<f32> = pairs
                .map(|(a, b)| (a / (1.0 + (-a).exp()) * b) as f32)
                .collect();
            let sizes = [case.magnitudes(0), case.magnitudes(1)];
            near.check(&case.name, &out.result(), &wanted, |at| {
                2.0 * SUM * (sizes[0][at] + 1.0) * (sizes[1][at] + 1.0)
            });
        }
    }
}

/// Numbers at the edges of f16, each alone in its row, times one: what comes out is the number as the product has it.
#[test]
fn beyond_f16_is_its_largest_number_and_nan_is_nan() {
    let Some(machine) = machine("beyond_f16_is_its_largest_number_and_nan_is_nan") else {
        return;
    };
    let edges = [
        65503.0,
        65504.0,
        65519.9,
        65520.0,
        1e6,
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
        6.1e-5,
        6.2e-5,
        5.96e-8,
        2.98e-8,
        2.99e-8,
        8.9e-8,
        1e-30,
        1.000_488_3,
        1.001_464_8,
        0.0,
    ];
    let numbers: Vec<f32> = edges.iter().flat_map(|edge| [*edge, -*edge]).collect();
    let rows = numbers.len();
    let ending = Ending::Linear {
        bias: None,
        act: Activation::None,
    };
    for precision in [Precision::F16, Precision::Tf32] {
        let wanted: Vec<f32> = numbers
            .iter()
            .map(|n| rounded(precision, *n) as f32)
            .collect();
        let launch = |x: &HeldRows, w: &HeldMatrix, out: &HeldRows| {
            machine.run(&product(
                &x.gpu(),
                &[w.gpu()],
                &ending,
                precision,
                &out.gpu(),
            ));
        };
        let ones = |count: usize| vec![1.0; count];
        // As rows times one.
        let (x, one) = (HeldRows::new(&numbers, rows, 1, 0, 0), f32s(&ones(1), 1));
        let out = HeldRows::new(&vec![0.0; rows], rows, 1, 0, 0);
        launch(&x, &one, &out);
        same_numbers(&format!("rows, {precision:?}"), &out.result(), &wanted);
        // One times them as weights.
        let (x, w) = (HeldRows::new(&ones(1), 1, 1, 0, 0), f32s(&numbers, rows));
        let out = HeldRows::new(&vec![0.0; rows], 1, rows, 0, 0);
        launch(&x, &w, &out);
        same_numbers(&format!("weights, {precision:?}"), &out.result(), &wanted);
    }
}

fn f32s(numbers: &[f32], rows: usize) -> HeldMatrix {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    HeldMatrix {
        stored: Stored::F32,
        rows,
        cols: numbers.len() / rows,
        held: Held::new(&bytes, 0),
        bytes,
        scales: None,
    }
}

/// The same numbers, or both none. Sums begin with a zero, so that the sign of one is not looked at.
fn same_numbers(case: &str, got: &[f32], wanted: &[f32]) {
    assert_eq!(got.len(), wanted.len(), "{case}");
    for (at, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        let same = got == wanted || got.is_nan() && wanted.is_nan();
        assert!(same, "{case}: number {at} is {got:e}, not {wanted:e}");
    }
}

#[test]
fn nan_reaches_its_row_and_no_other() {
    let Some(machine) = machine("nan_reaches_its_row_and_no_other") else {
        return;
    };
    let mut random = Random::new(5);
    for precision in Precision::ALL {
        let mut numbers = random.numbers(20 * 24);
        numbers[7 * 24 + 5] = f32::NAN;
        let x = HeldRows::new(&numbers, 20, 24, 0, 0);
        let w = random.matrix(KINDS[0], 10, 24, 0);
        let out = HeldRows::new(&[0.0; 200], 20, 10, 0, 0);
        let ending = Ending::Linear {
            bias: None,
            act: Activation::None,
        };
        machine.run(&product(
            &x.gpu(),
            &[w.gpu()],
            &ending,
            precision,
            &out.gpu(),
        ));
        for (at, number) in out.result().iter().enumerate() {
            assert_eq!(number.is_nan(), at / 10 == 7, "number {at} is {number}");
        }
    }
}

/// What surrounds a product of cuBLASLt's: rounding before it, and what becomes of its sums.
#[test]
fn rounding_and_finishing_are_those_of_the_fused_kernels() {
    let Some(machine) = machine("rounding_and_finishing_are_those_of_the_fused_kernels") else {
        return;
    };
    let mut random = Random::new(6);
    let (rows, cols) = (5, 38);
    let numbers = random.numbers(rows * cols);
    let x = HeldRows::new(&numbers, rows, cols, 2, 4);
    let wanted = |precision: Precision| -> Vec<f32> {
        let numbers = numbers.iter();
        numbers.map(|n| rounded(precision, *n) as f32).collect()
    };
    for precision in [Precision::Bf16, Precision::F16] {
        let held = Held::new(&vec![0; rows * cols * 2], 0);
        machine.run(&round_rows(&x.gpu(), precision, held.at()));
        let pairs = held.to_f32s().into_iter();
        let halves = pairs.flat_map(|pair| {
            let bits = pair.to_bits();
            [bits as u16, (bits >> 16) as u16]
        });
        let halves = halves.map(|bits| match precision {
            Precision::F16 => half::f16::from_bits(bits).to_f32(),
            _ => half::bf16::from_bits(bits).to_f32(),
        });
        let name = format!("rows rounded to {precision:?}");
        same_bits(&name, &halves.collect::<Vec<_>>(), &wanted(precision));
    }
    let held = Held::new(&vec![0; rows * cols * 4], 0);
    machine.run(&round_rows(&x.gpu(), Precision::Tf32, held.at()));
    same_bits(
        "rows rounded to tf32",
        &held.to_f32s(),
        &wanted(Precision::Tf32),
    );

    let second = Held::f32s(&random.numbers(rows * cols), 0);
    let bias = Held::f32s(&random.numbers(cols), 0);
    let out = HeldRows::new(&numbers, rows, cols, 2, 4);
    machine.run(&finish_rows(&out.gpu(), Some(second.at()), &Ending::Swiglu));
    let silu = |x: f32| x / (1.0 + (-x).exp());
    let wanted: Vec<f32> = numbers
        .iter()
        .zip(second.to_f32s())
        .map(|(a, b)| silu(*a) * b)
        .collect();
    let mut near = Nearness::new("finish_rows");
    near.check("swiglu", &out.result(), &wanted, |_| ACTIVATION);
    let out = HeldRows::new(&numbers, rows, cols, 2, 4);
    let ending = Ending::Linear {
        bias: Some(bias.at()),
        act: Activation::Silu,
    };
    machine.run(&finish_rows(&out.gpu(), None, &ending));
    let biases = bias.to_f32s();
    let wanted = numbers
        .iter()
        .enumerate()
        .map(|(at, n)| silu(n + biases[at % cols]));
    near.check("linear", &out.result(), &wanted.collect::<Vec<_>>(), |_| {
        2.0 * ACTIVATION
    });
}
