//! The same bits on any number of threads. The pool is made once a process, so the test runs
//! itself again with other numbers.

use lowtide_kernels::*;
use std::process::Command;

const THREADS: &str = "LOWTIDE_TEST_THREADS";

/// Mixes the bits of `numbers` into `digest` (FNV-1a).
fn mix(digest: &mut u64, numbers: &[f32]) {
    for v in numbers {
        *digest = (*digest ^ u64::from(v.to_bits())).wrapping_mul(0x0100_0000_01b3);
    }
}

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0)
        .collect()
}

fn digest() -> u64 {
    let mut digest = 0xcbf2_9ce4_8422_2325;
    let bytes: Vec<u8> = numbers(301 * 700, 1)
        .iter()
        .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
        .collect();
    let matrix = |rows, cols| Matrix {
        stored: Stored::Bf16,
        bytes: &bytes[..rows * cols * 2],
        rows,
        cols,
        scales: None,
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let x = numbers(333 * 700, 2);
        let mut out = vec![0.0; 333 * 301];
        let view = Rows::new(&x, 333, 700);
        let act = Activation::Gelu;
        let into = RowsMut::new(&mut out, 333, 301);
        linear(view, &matrix(301, 700), None, act, precision, into);
        mix(&mut digest, &out);

        let map = numbers(37 * 70 * 90, 3);
        let conv = Conv2d {
            weight: matrix(50, 37 * 9),
            bias: None,
            kernel: 3,
            stride: 1,
            padding: 1,
            upsample: false,
            input: None,
        };
        let mut out = vec![0.0; 50 * 70 * 90];
        let rows = MapRows::whole(70);
        conv2d(&conv, &map, rows, 90, precision, None, &mut out, rows);
        mix(&mut digest, &out);

        let qkv = numbers(400 * 6 * 40, 4);
        let spec = Attention {
            heads: 6,
            kv_heads: 6,
            head_dim: 40,
            scale: 1.0,
            mask: Mask::Causal,
            precision,
        };
        let mut out = vec![0.0; 400 * 240];
        let view = || Rows::new(&qkv, 400, 240);
        let into = RowsMut::new(&mut out, 400, 240);
        attention(&spec, view(), view(), view(), into);
        mix(&mut digest, &out);
    }
    let map = numbers(64 * 64 * 64, 5);
    let mut sums = [[0.0; 2]; 32];
    group_sums(&map, 64, 64, 64, 32, &mut sums);
    let mut out = vec![0.0; 64 * 64 * 64];
    let (scale, shift) = group_affine(&sums, 2 * 64 * 64, 1e-6, &[1.0; 64], &[0.0; 64]);
    let act = Activation::Silu;
    let affine = ChannelAffine {
        scale: &scale,
        shift: &shift,
        act,
    };
    channel_affine(&map, 64, 64 * 64, &affine, &mut out);
    mix(&mut digest, &out);
    rms_norm(
        Rows::new(&map, 1024, 256),
        None,
        1e-6,
        None,
        RowsMut::new(&mut out, 1024, 256),
    );
    mix(&mut digest, &out);
    let tokens = RowsMut::new(&mut out, 4096, 64);
    map_to_tokens(&map, [&scale, &shift], 4096, 0, tokens);
    let mut sum = map.clone();
    add_tokens_to_map(Rows::new(&out, 4096, 64), &mut sum, 4096, 0);
    mix(&mut digest, &sum);
    copy(&mut sum, &map);
    mix(&mut digest, &sum);
    digest
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    if let Ok(threads) = std::env::var(THREADS) {
        set_threads(threads.parse().expect("a number")).expect("nothing ran before");
        println!("digest {:016x}", digest());
        return;
    }
    let with = |threads: &str| {
        let program = std::env::current_exe().expect("a test is a program");
        let output = Command::new(program)
            .args([
                "--exact",
                "bits_do_not_depend_on_the_number_of_threads",
                "--nocapture",
            ])
            .env(THREADS, threads)
            .output()
            .expect("it runs again");
        assert!(output.status.success(), "on {threads} threads it failed");
        let text = String::from_utf8(output.stdout).expect("text");
        let at = text.find("digest ").expect("it prints its digest");
        text[at..at + 23].to_owned()
    };
    let one = with("1");
    for threads in ["2", "3", "8"] {
        assert_eq!(with(threads), one, "on {threads} threads");
    }
}

/// A result so large that it is stored past the caches has the bits of its parts, which are not.
#[test]
fn large_results_have_the_bits_of_their_parts() {
    const SIZE: [usize; 3] = [1100, 64, 1008];
    let [rows, k, outputs] = SIZE;
    let bytes: Vec<u8> = numbers(outputs * k, 1)
        .iter()
        .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
        .collect();
    let matrix = Matrix {
        stored: Stored::Bf16,
        bytes: &bytes,
        rows: outputs,
        cols: k,
        scales: None,
    };
    let (x, bias) = (numbers(rows * k, 2), numbers(outputs, 3));
    let compute = |x: &[f32], out: &mut [f32], precision| {
        let rows = x.len() / k;
        let into = RowsMut::new(out, rows, outputs);
        let act = Activation::Silu;
        linear(
            Rows::new(x, rows, k),
            &matrix,
            Some(&bias),
            act,
            precision,
            into,
        );
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let mut whole = memory::Buffer::zeroed(rows * outputs * 4).expect("there is memory");
        assert!(whole.len() >= 4 << 20 && outputs % 16 == 0);
        compute(&x, whole.f32_mut(), precision);
        let mut parts = vec![0.0; rows * outputs];
        for (x, out) in x.chunks(k * 100).zip(parts.chunks_mut(outputs * 100)) {
            compute(x, out, precision);
        }
        let differing = whole
            .f32()
            .iter()
            .zip(&parts)
            .filter(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(differing.count(), 0, "{precision:?}");
    }
}
