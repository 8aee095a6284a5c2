//! Whether a GPU computes at all. A kernel that has no code for a GPU can run there without an error and leave memory as
//! it was; pictures would then come out empty, and nobody would know why.

use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::{Buffer, Span, SpanMut};
use crate::module::has_kernels;
use crate::ops;
use lowtide_kernels::{Activation, Precision, Stored};
use std::ffi::{CStr, c_void};

const PTX: &str = concat!(include_str!("check.ptx"), "\0");

/// The text of the kernels of [`checksum`] and [`busy`], which need no compiler but the driver's.
pub const PROOF_KERNELS: &CStr = match CStr::from_bytes_with_nul(PTX.as_bytes()) {
    Ok(text) => text,
    Err(_) => panic!("the text has one zero, at its end"),
};

/// Threads of a block.
const BLOCK: u32 = 256;
/// Blocks at most: more than any GPU runs at once, and few enough that their sums meet quickly.
const BLOCKS_MAX: u64 = 2048;
/// Words that the self-test looks at. No multiple of a block, so that the last one is not full.
const SELF_TEST_WORDS: usize = 300_007;

/// Queues: adds to the 8 bytes of `out` the sum of all words of `data`, each mixed with its place. The same on every GPU,
/// whatever the order. Panics where `data` is no multiple of 4 bytes, or `out` has not 8.
pub fn checksum(gpu: &Gpu, data: Span<'_>, out: SpanMut<'_>) -> Result<(), Error> {
    run(gpu, "lowtide_check_sum", data, None, out)
}

/// As [`checksum`], after `rounds` steps of a generator on every word: it takes as long as one likes, and says whether
/// the words were the right ones.
pub fn busy(gpu: &Gpu, data: Span<'_>, rounds: u32, out: SpanMut<'_>) -> Result<(), Error> {
    run(gpu, "lowtide_check_busy", data, Some(rounds), out)
}

fn run(
    gpu: &Gpu,
    name: &'static str,
    data: Span<'_>,
    rounds: Option<u32>,
    out: SpanMut<'_>,
) -> Result<(), Error> {
    assert_eq!(data.len() % 4, 0, "whole words of {} bytes", data.len());
    assert_eq!(out.len(), 8, "room for one sum");
    gpu.install(PROOF_KERNELS)?;
    let mut words = data.address();
    let mut count = (data.len() / 4) as u64;
    let mut rounds_value = rounds.unwrap_or(0);
    let mut target = out.address();
    let blocks = count.div_ceil(u64::from(BLOCK)).min(BLOCKS_MAX) as u32;
    let mut all: [*mut c_void; 4] = [
        (&raw mut words).cast(),
        (&raw mut count).cast(),
        (&raw mut rounds_value).cast(),
        (&raw mut target).cast(),
    ];
    let arguments = match rounds {
        Some(_) => &mut all[..],
        None => {
            all.swap(2, 3);
            &mut all[..3]
        }
    };
    // SAFETY: the values are of the types and in the order that the kernels declare; they read `count` words of `data`
    // and write 8 bytes of `out`.
    unsafe { gpu.launch(name, [blocks, 1, 1], [BLOCK, 1, 1], 0, arguments) }
}

fn words(data: &[u8]) -> impl Iterator<Item = (u64, u32)> {
    let words = data.chunks_exact(4);
    (1u64..).zip(words.map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])))
}

/// What [`checksum`] adds, computed here.
pub fn checksum_on_host(data: &[u8]) -> u64 {
    words(data).fold(0, |sum, (place, word)| {
        let mut x = place
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_add(u64::from(word));
        x ^= x >> 32;
        x = x.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        x ^= x >> 32;
        sum.wrapping_add(x)
    })
}

/// What [`busy`] adds, computed here, in a time that does not grow with `rounds` for every word.
pub fn busy_on_host(data: &[u8], rounds: u32) -> u64 {
    // Steps of the generator, one after the other, are one step with other numbers.
    let (factor, offset) = (0..rounds).fold((1u32, 0u32), |(factor, offset), _| {
        (
            factor.wrapping_mul(1_664_525),
            offset.wrapping_mul(1_664_525).wrapping_add(1_013_904_223),
        )
    });
    words(data).fold(0, |sum, (place, word)| {
        let x = word.wrapping_mul(factor).wrapping_add(offset);
        sum.wrapping_add(u64::from(x).wrapping_mul(place))
    })
}

/// Words that look like nothing in particular, the same every time.
pub(crate) fn pattern(bytes: usize, seed: u32) -> Vec<u8> {
    let mut data = Vec::with_capacity(bytes.next_multiple_of(4));
    let mut x = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    while data.len() < bytes {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        data.extend_from_slice(&(x ^ (x >> 15)).to_le_bytes());
    }
    data.truncate(bytes);
    data
}

fn refuse(gpu: &Gpu, reason: String) -> Result<(), Error> {
    Err(Error::SelfTest {
        device: gpu.info().name.clone(),
        reason,
    })
}

/// Refuses a GPU that does not compute what it should: a sum by a kernel that the driver compiles, and, where kernels are
/// built in, a product by those. Takes a few milliseconds and a few megabytes of the budget.
pub fn self_test(gpu: &Gpu) -> Result<(), Error> {
    sum_test(gpu)?;
    if has_kernels() {
        product_test(gpu)?;
    }
    gpu.check()
}

fn sum_test(gpu: &Gpu) -> Result<(), Error> {
    let sent = pattern(SELF_TEST_WORDS * 4, 1);
    let data = Buffer::from_bytes(gpu, &sent)?;
    let mut returned = vec![0; sent.len()];
    data.span().download(&mut returned)?;
    if let Some(at) = sent.iter().zip(&returned).position(|(a, b)| a != b) {
        let reason = format!(
            "{} bytes were copied there and back, and byte {at} has changed",
            sent.len()
        );
        return refuse(gpu, reason);
    }
    let mut sum = Buffer::zeroed(gpu, 8)?;
    checksum(gpu, data.span(), sum.span_mut())?;
    let got = number(&sum)?;
    let expected = checksum_on_host(&sent);
    if got != expected {
        let why = if got == 0 {
            ": the kernel did not run"
        } else {
            ""
        };
        let reason = format!(
            "a sum of {SELF_TEST_WORDS} words is {got:#018x} and should be {expected:#018x}{why}"
        );
        return refuse(gpu, reason);
    }
    Ok(())
}

/// Rows, terms and columns of the product that is tested. No tile of any kernel divides all of them.
const PRODUCT: [usize; 3] = [37, 96, 72];

/// Small whole numbers: every sum of their products is exact in every order and precision.
fn small(index: usize, step: usize) -> f32 {
    (index * step % 7) as f32 - 3.0
}

fn product_test(gpu: &Gpu) -> Result<(), Error> {
    let [rows, terms, cols] = PRODUCT;
    let left: Vec<f32> = (0..rows * terms).map(|i| small(i, 5)).collect();
    let right: Vec<f32> = (0..cols * terms).map(|i| small(i, 3)).collect();
    let bytes =
        |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let halves: Vec<u8> = right
        .iter()
        .flat_map(|x| half::bf16::from_f32(*x).to_le_bytes())
        .collect();
    let x = Buffer::from_bytes(gpu, &bytes(&left))?;
    // The last two by the own kernels alone: what a library loads for a type that few choose takes a while.
    for (stored, stored_bytes, precision) in [
        (Stored::Bf16, &halves, Precision::Bf16),
        (Stored::F32, &bytes(&right), Precision::F32),
        (Stored::Bf16, &halves, Precision::Tf32),
        (Stored::Bf16, &halves, Precision::F16),
    ] {
        let weights = Buffer::from_bytes(gpu, stored_bytes)?;
        let mut out = Buffer::zeroed(gpu, rows * cols * 4)?;
        let matrix = ops::Matrix {
            stored,
            data: weights.span(),
            rows: cols,
            cols: terms,
            scales: None,
        };
        let from = ops::Rows::new(x.span(), rows, terms);
        let to = ops::RowsMut::new(out.span_mut(), rows, cols);
        ops::linear(from, &matrix, None, Activation::None, precision, to)?;
        let mut got = vec![0; out.len()];
        out.span().download(&mut got)?;
        if let Some(reason) = wrong_product(&left, &right, &got) {
            return refuse(gpu, format!("a product in {precision:?}: {reason}"));
        }
    }
    Ok(())
}

/// The first number of a product that is not what it should be, in words.
fn wrong_product(left: &[f32], right: &[f32], got: &[u8]) -> Option<String> {
    let [_, terms, cols] = PRODUCT;
    let numbers = got
        .chunks_exact(4)
        .map(|n| f32::from_le_bytes([n[0], n[1], n[2], n[3]]));
    for (at, number) in numbers.enumerate() {
        let (row, col) = (at / cols, at % cols);
        let row = &left[row * terms..][..terms];
        let expected: f32 = row
            .iter()
            .zip(&right[col * terms..][..terms])
            .map(|(a, b)| a * b)
            .sum();
        if number != expected {
            return Some(format!("number {at} is {number} and should be {expected}"));
        }
    }
    None
}

/// A sum, waited for.
pub(crate) fn number(sum: &Buffer) -> Result<u64, Error> {
    let mut bytes = [0; 8];
    sum.span().download(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_know_every_word_and_its_place() {
        let data = pattern(4096, 7);
        let sum = checksum_on_host(&data);
        for at in [0, 4, 2048, 4092] {
            let mut other = data.clone();
            other[at] ^= 1;
            assert_ne!(checksum_on_host(&other), sum, "byte {at}");
        }
        let mut swapped = data.clone();
        swapped.swap(0, 4);
        assert_ne!(checksum_on_host(&swapped), sum);
        assert_ne!(
            checksum_on_host(&[0; 64]),
            0,
            "zeros are no result of nothing"
        );
    }

    #[test]
    fn many_steps_are_one_step() {
        let data = pattern(64, 3);
        for rounds in [0, 1, 2, 37] {
            let slowly = words(&data).fold(0u64, |sum, (place, word)| {
                let x = (0..rounds).fold(word, |x, _| {
                    x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
                });
                sum.wrapping_add(u64::from(x).wrapping_mul(place))
            });
            assert_eq!(busy_on_host(&data, rounds), slowly, "{rounds}");
        }
    }

    #[test]
    fn a_wrong_product_is_noticed() {
        let [rows, terms, cols] = PRODUCT;
        let left: Vec<f32> = (0..rows * terms).map(|i| small(i, 5)).collect();
        let right: Vec<f32> = (0..cols * terms).map(|i| small(i, 3)).collect();
        let mut product = Vec::new();
        for row in left.chunks_exact(terms) {
            for col in right.chunks_exact(terms) {
                // The other way round: sums of small whole numbers know no order.
                let sum: f32 = row.iter().zip(col).rev().map(|(a, b)| a * b).sum();
                product.extend_from_slice(&sum.to_le_bytes());
            }
        }
        assert_eq!(wrong_product(&left, &right, &product), None);
        let nothing = vec![0; product.len()];
        assert!(wrong_product(&left, &right, &nothing).is_some());
        let last = product.len() - 1;
        product[last] ^= 0x40;
        assert!(wrong_product(&left, &right, &product).is_some());
    }

    #[test]
    fn patterns_differ_by_seed_and_have_their_length() {
        assert_eq!(pattern(10, 1).len(), 10);
        assert_ne!(pattern(64, 1), pattern(64, 2));
        assert_eq!(pattern(64, 1), pattern(64, 1));
    }

    #[test]
    fn the_text_has_the_kernels_that_are_launched() {
        let text = PROOF_KERNELS.to_str().unwrap();
        for name in ["lowtide_check_sum", "lowtide_check_busy"] {
            assert!(text.contains(&format!(".entry {name}(")), "{name}");
        }
    }

    #[test]
    fn a_gpu_passes_the_self_test() {
        match Gpu::open(0, 64 << 20) {
            Ok(gpu) => assert_eq!(self_test(&gpu), Ok(())),
            Err(error) => assert!(error.is_absent(), "{error}"),
        }
    }
}
