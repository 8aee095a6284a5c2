//! Products on a GPU, by the own kernels and by cuBLASLt. Without a GPU, kernels or the library, tests say that they were
//! skipped.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

use lowtide_cuda::ops::{Matrix, Products, Rows, RowsMut, linear, linear_swiglu, set_products};
use lowtide_cuda::{Buffer, Error, Gpu, has_kernels};
use lowtide_kernels::{Activation, Precision, Stored};

const ROWS: usize = 300;
const DEPTH: usize = 512;
const OUTPUTS: usize = 264;

fn skip(reason: &str) {
    let test = "both_ways_give_the_same_products_alone_and_among_others";
    eprintln!("skipped, not passed: {test}: {reason}");
    if let Some(file) = std::env::var_os("LOWTIDE_TEST_SKIPS") {
        use std::io::Write;
        let mut skips = std::fs::File::options()
            .append(true)
            .create(true)
            .open(file)
            .unwrap();
        writeln!(skips, "cuda::products::{test}: {reason}").unwrap();
    }
}

/// What products can be made of by both, with how their weights lie.
const TYPES: [(Precision, Stored); 3] = [
    (Precision::Bf16, Stored::Bf16),
    (Precision::F16, Stored::F16),
    (Precision::Tf32, Stored::F32),
];

/// Numbers from -1 to 1 that bf16 has exactly, as the others have.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        ((state >> 56) as f32 - 127.5) / 128.0
    };
    (0..count).map(|_| next()).collect()
}

fn floats(gpu: &Gpu, numbers: &[f32]) -> Buffer {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    Buffer::from_bytes(gpu, &bytes).unwrap()
}

/// A matrix of numbers, stored so.
fn matrix(gpu: &Gpu, numbers: &[f32], stored: Stored) -> Buffer {
    let mut bytes = Vec::new();
    for n in numbers {
        match stored {
            Stored::Bf16 => bytes.extend(half::bf16::from_f32(*n).to_le_bytes()),
            Stored::F16 => bytes.extend(half::f16::from_f32(*n).to_le_bytes()),
            _ => bytes.extend(n.to_le_bytes()),
        }
    }
    Buffer::from_bytes(gpu, &bytes).unwrap()
}

fn view(buffer: &Buffer, stored: Stored) -> Matrix<'_> {
    Matrix {
        stored,
        data: buffer.span(),
        rows: OUTPUTS,
        cols: DEPTH,
        scales: None,
    }
}

/// The product of rows from `first` on, gated or not.
fn product(
    gpu: &Gpu,
    x: &Buffer,
    weights: [&Buffer; 2],
    (first, rows): (usize, usize),
    ((precision, stored), gated): ((Precision, Stored), bool),
) -> Result<Vec<f32>, Error> {
    let mut out = Buffer::zeroed(gpu, rows * OUTPUTS * 4)?;
    let part = x.span().part(first * DEPTH * 4..(first + rows) * DEPTH * 4);
    let x = Rows::new(part, rows, DEPTH);
    let [w1, w3] = weights.map(|weight| view(weight, stored));
    let to = RowsMut::new(out.span_mut(), rows, OUTPUTS);
    if gated {
        linear_swiglu(x, &w1, &w3, precision, to)?;
    } else {
        linear(x, &w1, None, Activation::Silu, precision, to)?;
    }
    let mut bytes = vec![0; rows * OUTPUTS * 4];
    out.span().download(&mut bytes)?;
    let (numbers, _) = bytes.as_chunks::<4>();
    Ok(numbers.iter().map(|n| f32::from_le_bytes(*n)).collect())
}

#[test]
fn both_ways_give_the_same_products_alone_and_among_others() {
    if !has_kernels() {
        return skip("built without the feature `kernels`");
    }
    let gpu = match Gpu::open(0, 256 << 20) {
        Ok(gpu) => gpu,
        Err(error) => return skip(&error.to_string()),
    };
    let compared = TYPES
        .into_iter()
        .flat_map(|kind| [false, true].map(|gated| (kind, gated)))
        .try_for_each(|kind| compare(&gpu, kind))
        .and_then(|()| rounded_alike(&gpu))
        .and_then(|()| weights_of_f32(&gpu));
    set_products(Products::default());
    if let Err(reason) = compared {
        skip(&reason);
    }
}

/// Both ways, whole and in parts. In words why that cannot be done here.
fn compare(gpu: &Gpu, kind: ((Precision, Stored), bool)) -> Result<(), String> {
    let stored = kind.0.1;
    let x = floats(gpu, &numbers(1, ROWS * DEPTH));
    let [w1, w3] = [2, 3].map(|seed| matrix(gpu, &numbers(seed, OUTPUTS * DEPTH), stored));
    let mut results = Vec::new();
    for way in [Products::Own, Products::Cublas] {
        set_products(way);
        let whole = match product(gpu, &x, [&w1, &w3], (0, ROWS), kind) {
            Ok(whole) => whole,
            Err(error @ Error::Host { .. }) => return Err(error.to_string()),
            Err(error) => panic!("{error}"),
        };
        let mut parts = Vec::new();
        for (first, rows) in [(0, 1), (1, 130), (131, 169)] {
            parts.extend(product(gpu, &x, [&w1, &w3], (first, rows), kind).unwrap());
        }
        assert!(
            whole == parts,
            "{way:?}, {kind:?}: rows depend on their company"
        );
        results.push(whole);
    }
    // The same factors, added in another order: some roundings of sums of up to 170.
    for (own, other) in results[0].iter().zip(&results[1]) {
        let allowed = 1e-3 * (1.0 + own.abs());
        assert!(
            (own - other).abs() <= allowed,
            "{own} and {other}, {kind:?}"
        );
    }
    Ok(())
}

/// Activations that no type has exactly, some beyond f16 and one that is none: both ways round them alike, and saturate.
fn rounded_alike(gpu: &Gpu) -> Result<(), String> {
    let mut rows = numbers(4, ROWS * DEPTH);
    for (at, number) in rows.iter_mut().enumerate() {
        *number = match at / DEPTH {
            0 => *number * 1e6,
            1 if at % DEPTH == 7 => f32::NAN,
            _ => *number / 3.0,
        };
    }
    let x = floats(gpu, &rows);
    for kind in TYPES {
        let w = matrix(gpu, &numbers(5, OUTPUTS * DEPTH), kind.1);
        let [own, other] = both(gpu, (&x, &w), kind)?;
        for (at, (own, other)) in own.iter().zip(&other).enumerate() {
            assert_eq!(own.is_nan(), at / OUTPUTS == 1, "{kind:?}: {at} is {own}");
            assert!(!own.is_infinite(), "{kind:?}: {at} is {own}");
            let size = if at < OUTPUTS { 1e8 } else { 60.0 };
            let near = (own - other).abs() <= 1e-5 * size || own.is_nan() && other.is_nan();
            assert!(near, "{own} and {other}, {kind:?}, number {at}");
        }
    }
    Ok(())
}

/// Weights of f32 in tf32: the library may cut them off where the kernels round, which is 2^-10 of each at most.
fn weights_of_f32(gpu: &Gpu) -> Result<(), String> {
    let x = floats(gpu, &numbers(6, ROWS * DEPTH));
    let thirds: Vec<f32> = numbers(7, OUTPUTS * DEPTH)
        .iter()
        .map(|n| n / 3.0)
        .collect();
    let w = matrix(gpu, &thirds, Stored::F32);
    let [own, other] = both(gpu, (&x, &w), (Precision::Tf32, Stored::F32))?;
    let apart = own.iter().zip(&other).map(|(a, b)| (a - b).abs());
    let apart = apart.fold(0.0, f32::max);
    eprintln!("tf32 of weights in f32, both ways: {apart:.1e} apart");
    // Sums of 512 products of halves and sixths on average.
    assert!(apart <= 2f32.powi(-10) * 512.0 / 12.0, "{apart}");
    Ok(())
}

/// A product by the kernels and by the library; in words why that cannot be done here.
fn both(
    gpu: &Gpu,
    (x, w): (&Buffer, &Buffer),
    kind: (Precision, Stored),
) -> Result<[Vec<f32>; 2], String> {
    let mut results = [Vec::new(), Vec::new()];
    for (way, result) in [Products::Own, Products::Cublas]
        .into_iter()
        .zip(&mut results)
    {
        set_products(way);
        *result = match product(gpu, x, [w, w], (0, ROWS), (kind, false)) {
            Ok(result) => result,
            Err(error @ Error::Host { .. }) => return Err(error.to_string()),
            Err(error) => panic!("{error}"),
        };
    }
    Ok(results)
}
