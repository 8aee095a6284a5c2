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

/// Numbers from -1 to 1 that bf16 has exactly.
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

fn matrix(gpu: &Gpu, seed: u64) -> Buffer {
    let halves = numbers(seed, OUTPUTS * DEPTH);
    let bytes: Vec<u8> = halves
        .iter()
        .flat_map(|n| half::bf16::from_f32(*n).to_le_bytes())
        .collect();
    Buffer::from_bytes(gpu, &bytes).unwrap()
}

fn view(buffer: &Buffer) -> Matrix<'_> {
    Matrix {
        stored: Stored::Bf16,
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
    gated: bool,
) -> Result<Vec<f32>, Error> {
    let mut out = Buffer::zeroed(gpu, rows * OUTPUTS * 4)?;
    let part = x.span().part(first * DEPTH * 4..(first + rows) * DEPTH * 4);
    let x = Rows::new(part, rows, DEPTH);
    let [w1, w3] = weights.map(view);
    let to = RowsMut::new(out.span_mut(), rows, OUTPUTS);
    if gated {
        linear_swiglu(x, &w1, &w3, Precision::Bf16, to)?;
    } else {
        linear(x, &w1, None, Activation::Silu, Precision::Bf16, to)?;
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
    let x = floats(&gpu, &numbers(1, ROWS * DEPTH));
    let (w1, w3) = (matrix(&gpu, 2), matrix(&gpu, 3));
    for gated in [false, true] {
        let mut results = Vec::new();
        for way in [Products::Own, Products::Cublas] {
            set_products(way);
            let whole = match product(&gpu, &x, [&w1, &w3], (0, ROWS), gated) {
                Ok(whole) => whole,
                Err(error @ Error::Host { .. }) => return skip(&error.to_string()),
                Err(error) => panic!("{error}"),
            };
            let mut parts = Vec::new();
            for (first, rows) in [(0, 1), (1, 130), (131, 169)] {
                parts.extend(product(&gpu, &x, [&w1, &w3], (first, rows), gated).unwrap());
            }
            assert!(
                whole == parts,
                "{way:?}, gated {gated}: rows depend on their company"
            );
            results.push(whole);
        }
        // The same factors, added in another order: some roundings of sums of up to 170.
        for (own, other) in results[0].iter().zip(&results[1]) {
            let allowed = 1e-3 * (1.0 + own.abs());
            assert!(
                (own - other).abs() <= allowed,
                "{own} and {other}, gated {gated}"
            );
        }
    }
    set_products(Products::default());
}
