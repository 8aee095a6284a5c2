//! Every kernel against a plain f64 reference, on every instruction set of the machine.

mod maps;
mod plain;

use lowtide_kernels::*;
use plain::*;
use proptest::prelude::*;

#[test]
fn linear_matches_the_reference_at_awkward_shapes() {
    on_every_isa(|| {
        let mut random = Random::new(1);
        for (m, k, n) in [
            (1, 1, 1),
            (1, 7, 5),
            (2, 143, 13),
            (3, 145, 1),
            (17, 31, 29),
            (64, 288, 6),
            (65, 289, 7),
            (96, 288, 40),
            (130, 611, 131),
            (600, 33, 14),
        ] {
            for stored in STORED {
                for precision in [Precision::F32, Precision::Bf16] {
                    check_linear(&mut random, (m, k, n), stored, precision);
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn linear_matches_the_reference(
        m in 1usize..150, k in 0usize..400, n in 1usize..90, stored in 0usize..5, bf16: bool, seed: u64,
    ) {
        let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
        on_every_isa(|| check_linear(&mut Random::new(seed), (m, k, n), STORED[stored], precision));
    }
}

fn check_linear(
    random: &mut Random,
    (m, k, n): (usize, usize, usize),
    stored: Stored,
    precision: Precision,
) {
    let (x_stride, out_stride) = (k + 3, n + 5);
    let x = random.normal(m * x_stride);
    let w = Weights::random(random, stored, n, k);
    let bias = random.normal(n);
    let mut out = vec![7.0; m * out_stride];
    let acts = [
        Activation::None,
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
    ];
    let act = acts[random.below(acts.len())];
    linear(
        rows(&x, m, k, x_stride),
        &w.matrix(),
        Some(&bias),
        act,
        precision,
        rows_mut(&mut out, m, n, out_stride),
    );
    for i in 0..m {
        for j in 0..n {
            let (mut sum, mut size) = (f64::from(bias[j]), 0.0);
            for l in 0..k {
                let product = rounded(x[i * x_stride + l], precision)
                    * rounded(w.values[j * k + l], precision);
                sum += product;
                size += product.abs();
            }
            let tolerance = 2e-6 * (size + 1.0);
            let expected = act_f64(act, sum);
            let got = f64::from(out[i * out_stride + j]);
            assert!(
                (got - expected).abs() <= tolerance,
                "[{m}, {k}, {n}] {stored:?} {precision:?} {act:?} at {i}, {j}: {got} for {expected}"
            );
        }
        if i + 1 < m {
            let gap = &out[i * out_stride + n..(i + 1) * out_stride];
            assert!(gap.iter().all(|v| *v == 7.0), "wrote between rows");
        }
    }
}

#[test]
fn a_product_is_added_to_what_is_there() {
    on_every_isa(|| {
        let mut random = Random::new(41);
        for (m, k, n) in [(1, 4, 1), (3, 16, 29), (65, 4, 16), (130, 128, 77)] {
            for (precision, scale) in [(Precision::F32, -0.7), (Precision::Bf16, 1.3)] {
                let act = [Activation::None, Activation::Gelu][random.below(2)];
                let (x, old) = (random.normal(m * k), random.normal(m * (n + 2)));
                let w = Weights::random(&mut random, Stored::F16, n, k);
                let mut out = old.clone();
                let to = rows_mut(&mut out, m, n, n + 2);
                linear_add(rows(&x, m, k, k), &w.matrix(), scale, act, precision, to);
                for (at, (got, old)) in out.iter().zip(&old).enumerate() {
                    let (i, j) = (at / (n + 2), at % (n + 2));
                    if j >= n {
                        assert_eq!(got, old, "wrote between rows");
                        continue;
                    }
                    let term = |l: usize| {
                        rounded(x[i * k + l], precision) * rounded(w.values[j * k + l], precision)
                    };
                    let (sum, size) = (0..k).fold((0.0, 0.0), |(sum, size), l| {
                        (sum + term(l), size + term(l).abs())
                    });
                    let expected = act_f64(act, f64::from(*old) + f64::from(scale) * sum);
                    assert!(
                        (f64::from(*got) - expected).abs() <= 4e-6 * (size + 1.0),
                        "[{m}, {k}, {n}] {precision:?} {act:?} at {i}, {j}: {got} for {expected}"
                    );
                }
            }
        }
    });
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    on_every_isa(|| {
        let mut random = Random::new(2);
        for stored in STORED {
            for precision in [Precision::F32, Precision::Bf16] {
                let (m, k, n) = (200, 700, 53);
                let x = random.normal(m * k);
                let w = Weights::random(&mut random, stored, n, k);
                let all = linear_plain(&x, m, &w, precision);
                for (first, count) in [(0, 1), (3, 1), (199, 1), (5, 17), (60, 70), (1, 33)] {
                    let part = linear_plain(&x[first * k..], count, &w, precision);
                    assert_same_bits(&part, &all[first * n..(first + count) * n]);
                }
                // The same outputs when fewer are asked for.
                let part = Weights {
                    stored,
                    rows: 11,
                    cols: k,
                    bytes: w.bytes[..11 * k * stored.size()].to_vec(),
                    values: w.values[..11 * k].to_vec(),
                };
                let some = linear_plain(&x, m, &part, precision);
                for i in 0..m {
                    assert_same_bits(&some[i * 11..][..11], &all[i * n..][..11]);
                }
            }
        }
    });
}

fn linear_plain(x: &[f32], m: usize, w: &Weights, precision: Precision) -> Vec<f32> {
    let mut out = vec![0.0; m * w.rows];
    linear(
        rows(x, m, w.cols, w.cols),
        &w.matrix(),
        None,
        Activation::None,
        precision,
        RowsMut::new(&mut out, m, w.rows),
    );
    out
}

#[test]
fn the_gated_product_is_the_product_of_two() {
    on_every_isa(|| {
        let mut random = Random::new(3);
        for (m, k, n) in [(1, 5, 3), (70, 300, 47), (130, 288, 600)] {
            for precision in [Precision::F32, Precision::Bf16] {
                let x = random.normal(m * k);
                let w1 = Weights::random(&mut random, Stored::Bf16, n, k);
                let w3 = Weights::random(&mut random, Stored::Bf16, n, k);
                let mut out = vec![0.0; m * n];
                linear_swiglu(
                    Rows::new(&x, m, k),
                    &w1.matrix(),
                    &w3.matrix(),
                    precision,
                    RowsMut::new(&mut out, m, n),
                );
                let mut gate = linear_plain(&x, m, &w1, precision);
                activate(&mut gate, Activation::Silu);
                mul(&mut gate, &linear_plain(&x, m, &w3, precision));
                assert_same_bits(&out, &gate);
                let biases = [random.normal(n), random.normal(n)];
                linear_geglu(
                    Rows::new(&x, m, k),
                    [&w1.matrix(), &w3.matrix()],
                    [&biases[0], &biases[1]],
                    precision,
                    RowsMut::new(&mut out, m, n),
                );
                let biased = |w: &Weights, bias: &[f32], act| {
                    let mut out = vec![0.0; m * n];
                    let to = RowsMut::new(&mut out, m, n);
                    linear(
                        Rows::new(&x, m, k),
                        &w.matrix(),
                        Some(bias),
                        act,
                        precision,
                        to,
                    );
                    out
                };
                let mut value = biased(&w1, &biases[0], Activation::None);
                mul(&mut value, &biased(&w3, &biases[1], Activation::Gelu));
                assert_same_bits(&out, &value);
            }
        }
    });
}

#[test]
fn nan_and_infinity_pass_through_products() {
    on_every_isa(|| {
        for precision in [Precision::F32, Precision::Bf16] {
            let (m, k, n) = (20, 150, 9);
            let mut x = vec![1.0f32; m * k];
            x[3 * k + 149] = f32::NAN;
            x[5 * k] = f32::INFINITY;
            x[7 * k + 1] = f32::NEG_INFINITY;
            let w = Weights::of(Stored::F32, n, k, vec![0.5; n * k]);
            let out = linear_plain(&x, m, &w, precision);
            for (i, row) in out.chunks_exact(n).enumerate() {
                let right = |v: &f32| match i {
                    3 => v.is_nan(),
                    5 => *v == f32::INFINITY,
                    7 => *v == f32::NEG_INFINITY,
                    _ => *v == 75.0,
                };
                assert!(row.iter().all(right), "row {i} is {row:?}");
            }
        }
    });
}

#[test]
fn every_fp8_and_f16_number_widens_exactly() {
    on_every_isa(|| {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut out = vec![0.0; 256];
        to_f32(Stored::F8E5M2, &bytes, &mut out);
        for (byte, v) in bytes.iter().zip(&out) {
            let expected = half::f16::from_bits(u16::from(*byte) << 8).to_f32();
            assert!(v.to_bits() == expected.to_bits() || v.is_nan() && expected.is_nan());
        }
        to_f32(Stored::F8E4M3, &bytes, &mut out);
        assert_eq!((out[0x7e], out[1], out[0x38]), (448.0, 2f32.powi(-9), 1.0));
        assert_eq!((out[0xfe], out[0x80].to_bits()), (-448.0, 0x8000_0000));
        assert!(out[0x7f].is_nan() && out[0xff].is_nan());
        assert_eq!(out[0x08], 2f32.powi(-6));
        let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0.0; 65536];
        to_f32(Stored::F16, &halves, &mut out);
        for (bits, v) in (0..=u16::MAX).zip(&out) {
            let expected = half::f16::from_bits(bits).to_f64();
            assert!(f64::from(*v) == expected || v.is_nan() && expected.is_nan());
        }
    });
}

#[test]
fn activations_are_within_their_stated_errors() {
    on_every_isa(|| {
        let x: Vec<f32> = (-40_000..40_000).map(|i| i as f32 * 5e-4).collect();
        for (act, relative, absolute) in [
            (Activation::Silu, 5e-7, 1e-37),
            // Far below zero the rounding of 1.702 x counts as often as the exponent is large.
            (Activation::QuickGelu, 4e-6, 1e-37),
            (Activation::GeluTanh, 2e-6, 2e-6),
            (Activation::Gelu, 5e-7, 2e-6),
        ] {
            let mut y = x.clone();
            activate(&mut y, act);
            for (x, y) in x.iter().zip(&y) {
                let expected = act_f64(act, f64::from(*x));
                let error = (f64::from(*y) - expected).abs();
                assert!(
                    error <= relative * expected.abs() + absolute,
                    "{act:?}({x}) = {y} for {expected}"
                );
            }
        }
        for act in [
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::QuickGelu,
        ] {
            let mut special = [f32::NAN, f32::INFINITY, 0.0, -300.0, 300.0];
            activate(&mut special, act);
            assert!(special[0].is_nan(), "{act:?} swallowed a NaN");
            assert_eq!(special[1..3], [f32::INFINITY, 0.0]);
            assert!(special[3].abs() < 1e-30 && special[4] == 300.0, "{act:?}");
        }
    });
}

#[test]
fn attention_matches_the_reference() {
    on_every_isa(|| {
        let mut random = Random::new(4);
        for (tq, tk, heads, kv_heads, d) in [
            (1, 1, 1, 1, 1),
            (5, 7, 2, 1, 3),
            (96, 96, 6, 6, 48),
            (70, 131, 4, 2, 64),
            (33, 300, 2, 2, 120),
            (129, 129, 3, 1, 128),
            (17, 40, 1, 1, 512),
        ] {
            for precision in [Precision::F32, Precision::Bf16] {
                for mask in [Mask::None, Mask::Causal] {
                    let spec = Attention {
                        heads,
                        kv_heads,
                        head_dim: d,
                        scale: 1.0 / (d as f32).sqrt(),
                        mask,
                        precision,
                    };
                    check_attention(&mut random, &spec, tq, tk);
                }
            }
        }
    });
}

fn check_attention(random: &mut Random, spec: &Attention, tq: usize, tk: usize) {
    let d = spec.head_dim;
    let (cols, kv_cols) = (spec.heads * d, spec.kv_heads * d);
    let (stride, kv_stride) = (cols + 4, kv_cols + 1);
    let q = random.normal(tq * stride);
    let k = random.normal(tk * kv_stride);
    let v = random.normal(tk * kv_stride);
    let mut out = vec![3.0; tq * stride];
    attention(
        spec,
        rows(&q, tq, cols, stride),
        rows(&k, tk, kv_cols, kv_stride),
        rows(&v, tk, kv_cols, kv_stride),
        rows_mut(&mut out, tq, cols, stride),
    );
    let tolerance = match spec.precision {
        Precision::F32 => 3e-6,
        _ => 2e-2,
    };
    for h in 0..spec.heads {
        let kv = h / (spec.heads / spec.kv_heads) * d;
        for i in 0..tq {
            let seen = match spec.mask {
                Mask::None => tk,
                Mask::Causal => i + 1 + tk - tq,
            };
            let score = |j: usize| {
                let dot = |l: usize| {
                    rounded(q[i * stride + h * d + l], spec.precision)
                        * rounded(k[j * kv_stride + kv + l], spec.precision)
                };
                (0..d).map(dot).sum::<f64>() * f64::from(spec.scale)
            };
            let scores: Vec<f64> = (0..seen).map(score).collect();
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            for l in 0..d {
                let value = |j: usize| rounded(v[j * kv_stride + kv + l], spec.precision);
                let expected = (0..seen).map(|j| weights[j] * value(j)).sum::<f64>() / total;
                let got = f64::from(out[i * stride + h * d + l]);
                assert!(
                    (got - expected).abs() <= tolerance,
                    "{spec:?} [{tq}, {tk}] head {h} query {i} at {l}: {got} for {expected}"
                );
            }
        }
    }
    assert!(out[cols..stride.min(out.len())].iter().all(|v| *v == 3.0));
}

#[test]
fn a_query_has_the_same_bits_alone_and_among_others() {
    on_every_isa(|| {
        let mut random = Random::new(5);
        for precision in [Precision::F32, Precision::Bf16] {
            for mask in [Mask::None, Mask::Causal] {
                let (tk, heads, d) = (333, 3, 40);
                let spec = Attention {
                    heads,
                    kv_heads: 1,
                    head_dim: d,
                    scale: 0.2,
                    mask,
                    precision,
                };
                let q = random.normal(tk * heads * d);
                let k = random.normal(tk * d);
                let v = random.normal(tk * d);
                let part = |first: usize, count: usize| {
                    // With a causal mask, the last queries of a call see all its keys.
                    let keys = if mask == Mask::Causal {
                        first + count
                    } else {
                        tk
                    };
                    let mut out = vec![0.0; count * heads * d];
                    attention(
                        &spec,
                        Rows::new(
                            &q[first * heads * d..][..count * heads * d],
                            count,
                            heads * d,
                        ),
                        Rows::new(&k[..keys * d], keys, d),
                        Rows::new(&v[..keys * d], keys, d),
                        RowsMut::new(&mut out, count, heads * d),
                    );
                    out
                };
                let all = part(0, tk);
                for (first, count) in [(0, 1), (77, 1), (332, 1), (100, 65), (10, 300)] {
                    let some = part(first, count);
                    assert_same_bits(&some, &all[first * heads * d..][..count * heads * d]);
                }
            }
        }
    });
}

#[test]
fn attention_lets_nan_through_and_stands_large_scores() {
    on_every_isa(|| {
        let spec = Attention {
            heads: 1,
            kv_heads: 1,
            head_dim: 4,
            scale: 1.0,
            mask: Mask::None,
            precision: Precision::F32,
        };
        let mut q = vec![100.0f32; 20 * 4];
        q[4] = f32::NAN;
        let k: Vec<f32> = (0..300 * 4).map(|i| (i / 4) as f32).collect();
        let v = k.clone();
        let mut out = vec![0.0; 20 * 4];
        attention(
            &spec,
            Rows::new(&q, 20, 4),
            Rows::new(&k, 300, 4),
            Rows::new(&v, 300, 4),
            RowsMut::new(&mut out, 20, 4),
        );
        assert!(out[4..8].iter().all(|v| v.is_nan()));
        assert!(out[..4].iter().chain(&out[8..]).all(|v| *v == 299.0));
    });
}

#[test]
fn norms_match_the_reference() {
    on_every_isa(|| {
        let mut random = Random::new(6);
        for (m, n) in [(1, 1), (3, 5), (7, 16), (2, 129), (40, 1152)] {
            let stride = n + 2;
            let x = random.normal(m * stride);
            let (weight, scale, bias) = (random.normal(n), random.normal(n), random.normal(n));
            let mut rms = vec![0.0; m * n];
            let mut layer = vec![0.0; m * n];
            let start = random.normal(m * n);
            let mut added = start.clone();
            let view = || rows(&x, m, n, stride);
            rms_norm(
                view(),
                Some(&weight),
                1e-5,
                Some(&scale),
                RowsMut::new(&mut rms, m, n),
            );
            rms_norm_add(
                view(),
                &weight,
                1e-5,
                Some(&scale),
                RowsMut::new(&mut added, m, n),
            );
            let out = RowsMut::new(&mut layer, m, n);
            layer_norm(view(), Some(&weight), Some(&bias), 1e-6, Some(&scale), out);
            for i in 0..m {
                let row: Vec<f64> = x[i * stride..][..n].iter().map(|v| f64::from(*v)).collect();
                let count = n as f64;
                let mean = row.iter().sum::<f64>() / count;
                let square = row.iter().map(|v| v * v).sum::<f64>() / count;
                let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
                for j in 0..n {
                    let factor = f64::from(weight[j]) * f64::from(scale[j]);
                    let rms_expected = row[j] / (square + 1e-5).sqrt() * factor;
                    close(rms[i * n + j], rms_expected, 4e-6);
                    close(
                        added[i * n + j],
                        rms_expected + f64::from(start[i * n + j]),
                        4e-6,
                    );
                    let expected =
                        (row[j] - mean) / (variance + 1e-6).sqrt() * factor + f64::from(bias[j]);
                    close(layer[i * n + j], expected, 1e-5);
                }
            }
        }
    });
}

#[test]
fn softmax_and_rotary_match_the_reference() {
    on_every_isa(|| {
        let mut random = Random::new(7);
        let (m, n) = (9, 77);
        let x: Vec<f32> = random.normal(m * n).iter().map(|v| v * 30.0).collect();
        let mut y = x.clone();
        softmax_rows(RowsMut::new(&mut y, m, n));
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact(n)) {
            let most = x.iter().copied().fold(f32::MIN, f32::max);
            let weight = |v: f32| f64::from(v - most).exp();
            let total: f64 = x.iter().map(|v| weight(*v)).sum();
            for (x, y) in x.iter().zip(y) {
                close(*y, weight(*x) / total, 1e-6);
            }
        }
        for kind in [Rotary::Interleaved, Rotary::Halves] {
            let (tokens, heads, d) = (5, 3, 22);
            let x = random.normal(tokens * heads * d);
            let angles = random.normal(tokens * d / 2);
            let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
            let weight = random.normal(d);
            let mut y = x.clone();
            let view = RowsMut::new(&mut y, tokens, heads * d);
            head_norm_rotary(view, d, Some((&weight, 1e-6)), Some((kind, &cos, &sin)));
            for t in 0..tokens {
                for h in 0..heads {
                    let at = (t * heads + h) * d;
                    let head: Vec<f64> = x[at..at + d].iter().map(|v| f64::from(*v)).collect();
                    let rms = (head.iter().map(|v| v * v).sum::<f64>() / d as f64 + 1e-6).sqrt();
                    let n = |i: usize| head[i] / rms * f64::from(weight[i]);
                    for i in 0..d / 2 {
                        let (a, b) = match kind {
                            Rotary::Interleaved => (2 * i, 2 * i + 1),
                            Rotary::Halves => (i, i + d / 2),
                        };
                        let c = f64::from(cos[t * d / 2 + i]);
                        let s = f64::from(sin[t * d / 2 + i]);
                        close(y[at + a], n(a) * c - n(b) * s, 4e-6);
                        close(y[at + b], n(a) * s + n(b) * c, 4e-6);
                    }
                }
            }
        }
    });
}

#[test]
fn elementwise_operations_do_what_they_say() {
    on_every_isa(|| {
        for n in [0, 1, 15, 16, 17, 40_000] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let y: Vec<f32> = (0..n).map(|i| 0.5 - i as f32).collect();
            let apply = |f: &dyn Fn(&mut [f32])| {
                let mut z = x.clone();
                f(&mut z);
                z
            };
            let sums = apply(&|z| add(z, &y));
            assert!(sums.iter().all(|v| *v == 0.5));
            let scaled = apply(&|z| add_scaled(z, 2.0, &y));
            assert!(scaled.iter().zip(&x).all(|(v, x)| *v == 1.0 - x));
            let products = apply(&|z| mul(z, &y));
            assert!(products.iter().zip(&x).all(|(v, x)| *v == x * (0.5 - x)));
        }
    });
}
