//! What adapters promise: the sum that arithmetic gives, the same bytes in any chunk or strip, and clear refusals.

// The lint's exception for tests does not reach the functions that tests share.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use half::{bf16, f16};
use lowtide_core::{BlockLayout, ComponentLayout, Dtype, TensorLayout};
use lowtide_kernels::Activation;
use lowtide_kernels::memory::{self, Buffer};
use lowtide_models::adapters::{Adapters, Factor, LowRank, Pair};
use lowtide_models::layers::{Around, ChannelAffine, Padding, Strip, gated, geglu};
use lowtide_models::weights::BlockIndex;
use lowtide_models::{Compute, Error, Precision, Tensor, Weights};

#[global_allocator]
static ALLOCATOR: memory::CountingAllocator = memory::CountingAllocator;

const F32: Compute = Compute {
    precision: Precision::F32,
};
const BF16: Compute = Compute {
    precision: Precision::Bf16,
};

/// Where the process's memory is counted, nothing else may run.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// SplitMix64, as numbers of about -1 to 1 times `size`.
fn random(seed: u64, count: usize, size: f32) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(next).map(|v| v * size).collect()
}

/// A tensor as a file holds it, and what it means.
struct Held {
    layout: TensorLayout,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

fn held(name: &str, dtype: Dtype, shape: &[usize], values: &[f32]) -> Held {
    assert_eq!(values.len(), shape.iter().product::<usize>());
    let (bytes, values): (Vec<Vec<u8>>, Vec<f32>) = values
        .iter()
        .map(|v| match dtype {
            Dtype::F16 => {
                let v = f16::from_f32(*v);
                (v.to_le_bytes().to_vec(), v.to_f32())
            }
            Dtype::Bf16 => {
                let v = bf16::from_f32(*v);
                (v.to_le_bytes().to_vec(), v.to_f32())
            }
            _ => (v.to_le_bytes().to_vec(), *v),
        })
        .unzip();
    Held {
        layout: TensorLayout {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        },
        bytes: bytes.concat(),
        values,
    }
}

fn noise(name: &str, dtype: Dtype, shape: &[usize], seed: u64) -> Held {
    let fan_in = shape[1..].iter().product::<usize>().max(1) as f32;
    let values = random(seed, shape.iter().product(), 1.0 / fan_in.sqrt());
    held(name, dtype, shape, &values)
}

/// A block with some tensors in it.
struct Block {
    layout: BlockLayout,
    index: BlockIndex,
    bytes: Vec<u8>,
}

impl Block {
    fn new(tensors: &[&Held]) -> Block {
        let layout = BlockLayout {
            name: "block".to_owned(),
            tensors: tensors.iter().map(|held| held.layout.clone()).collect(),
        };
        let mut bytes = vec![0; layout.bytes().as_usize()];
        for ((_, at), held) in layout.offsets().zip(tensors) {
            bytes[at..at + held.bytes.len()].copy_from_slice(&held.bytes);
        }
        let index = BlockIndex::new(&layout);
        Block {
            layout,
            index,
            bytes,
        }
    }

    fn weights<'a>(&'a self, adapters: &'a Adapters) -> Weights<'a> {
        Weights::live(&self.index, &self.bytes).with_adapters(Some(adapters))
    }

    fn component(&self) -> ComponentLayout {
        ComponentLayout {
            name: "unet".to_owned(),
            blocks: vec![self.layout.clone()],
            tables: Vec::new(),
        }
    }
}

/// Down, mid and up of one layer, and the scale of the file.
type Parts<'a> = (&'a str, [Option<&'a Held>; 3], f32);

fn low_rank(parts: &[Parts<'_>]) -> Result<LowRank, Error> {
    let mut bytes = Vec::new();
    let pairs: Vec<(String, Pair)> = parts
        .iter()
        .map(|(module, factors, scale)| {
            let mut place = |held: &Held| {
                let at = bytes.len();
                bytes.extend(&held.bytes);
                Factor {
                    tensor: held.layout.clone(),
                    at,
                }
            };
            let pair = Pair {
                down: place(factors[0].unwrap()),
                mid: factors[1].map(&mut place),
                up: place(factors[2].unwrap()),
                scale: *scale,
            };
            ((*module).to_owned(), pair)
        })
        .collect();
    let mut buffer = Buffer::new(bytes.len()).unwrap();
    buffer.bytes_mut().copy_from_slice(&bytes);
    LowRank::new("style", buffer, pairs)
}

/// `a b` of (m, k) and (k, n).
fn product(a: &[f64], b: &[f64], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for l in 0..k {
            for j in 0..n {
                out[i * n + j] += a[i * k + l] * b[l * n + j];
            }
        }
    }
    out
}

fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// `base + sum of scale * up * down`, in double precision.
fn merged(base: &Held, pairs: &[(&Held, &Held, f32)]) -> Vec<f64> {
    let mut sum = f64s(&base.values);
    for (down, up, scale) in pairs {
        let (rows, rank) = (up.layout.shape[0], up.layout.shape[1]);
        let dims = (rows, rank, down.values.len() / rank);
        let delta = product(&f64s(&up.values), &f64s(&down.values), dims);
        for (sum, delta) in sum.iter_mut().zip(delta) {
            *sum += f64::from(*scale) * delta;
        }
    }
    sum
}

/// `x W^T` for rows of x.
fn linear(x: &[f32], w: &[f64], cols: usize) -> Vec<f64> {
    let row = |x: &[f32]| {
        let x = f64s(x);
        let dot = |w: &[f64]| w.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>();
        w.chunks_exact(cols).map(dot).collect::<Vec<_>>()
    };
    x.chunks_exact(cols).flat_map(row).collect()
}

fn silu(v: f64) -> f64 {
    v / (1.0 + (-v).exp())
}

fn close(got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let difference = (f64::from(*got) - expected).abs();
        assert!(
            difference <= tolerance,
            "value {i}: {got} for {expected}, {difference:e} apart"
        );
    }
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.data().iter().map(|v| v.to_bits()).collect()
}

#[test]
fn a_linear_layer_is_the_sum_of_its_weight_and_two_adapters() {
    let _alone = alone();
    let (rows, inputs, outputs) = (200, 37, 29);
    let weight = noise("a.proj.weight", Dtype::F16, &[outputs, inputs], 1);
    let bias = noise("a.proj.bias", Dtype::F32, &[outputs], 2);
    // A rank at which two hundred rows are more than one chunk; the other as files of convolutions have it.
    let (down, up) = (
        noise("d", Dtype::F32, &[2000, inputs], 3),
        noise("u", Dtype::Bf16, &[outputs, 2000], 4),
    );
    let (down2, up2) = (
        noise("d2", Dtype::F16, &[4, inputs, 1, 1], 5),
        noise("u2", Dtype::F16, &[outputs, 4, 1, 1], 6),
    );
    let one = low_rank(&[("a.proj", [Some(&down), None, Some(&up)], 0.5)]).unwrap();
    let two = low_rank(&[("a.proj", [Some(&down2), None, Some(&up2)], 2.0)]).unwrap();
    let adapters = Adapters::new([(Arc::new(one), 0.8), (Arc::new(two), -0.3)]);
    let block = Block::new(&[&weight, &bias]);
    let layer = block
        .weights(&adapters)
        .pp("a")
        .linear(inputs, outputs, "proj")
        .unwrap();

    let x = Tensor::from_slice(&[rows, inputs], &random(7, rows * inputs, 1.0)).unwrap();
    let whole = merged(&weight, &[(&down, &up, 0.4), (&down2, &up2, -0.6)]);
    let mut expected = linear(x.data(), &whole, inputs);
    for (i, v) in expected.iter_mut().enumerate() {
        *v = silu(*v + f64::from(bias.values[i % outputs]));
    }
    for (compute, tolerance) in [(F32, 2e-5), (BF16, 3e-2)] {
        let got = layer
            .forward_activated(compute, &x, Activation::Silu)
            .unwrap();
        close(got.data(), &expected, tolerance);
        // Some of the rows, from inside a chunk across its end, have the bits they had among all.
        let part = layer
            .forward_activated(compute, x.part(100..150), Activation::Silu)
            .unwrap();
        assert_eq!(bits(&part), bits(&got)[100 * outputs..150 * outputs]);
    }
}

#[test]
fn a_gate_with_an_adapter_on_either_side_is_the_gate_of_the_sums() {
    let _alone = alone();
    let (rows, inputs, hidden) = (300, 24, 40);
    let (w1, w3) = (
        noise("w1.weight", Dtype::Bf16, &[hidden, inputs], 1),
        noise("w3.weight", Dtype::Bf16, &[hidden, inputs], 2),
    );
    let down = noise("d", Dtype::F16, &[4, inputs], 3);
    let up = noise("u", Dtype::F16, &[hidden, 4], 4);
    let block = Block::new(&[&w1, &w3]);
    let x = Tensor::from_slice(&[rows, inputs], &random(5, rows * inputs, 1.0)).unwrap();
    for with in [["w1"].as_slice(), &["w3"], &["w1", "w3"]] {
        let parts: Vec<Parts<'_>> = with
            .iter()
            .map(|module| (*module, [Some(&down), None, Some(&up)], 1.0))
            .collect();
        let adapters = Adapters::new([(Arc::new(low_rank(&parts).unwrap()), 0.7)]);
        let weights = block.weights(&adapters);
        let [l1, l3] = ["w1", "w3"].map(|n| weights.linear_no_bias(inputs, hidden, n).unwrap());
        let got = gated(F32, &x, &l1, &l3).unwrap();
        let of = |held: &Held, name: &str| {
            let pairs: &[_] = &[(&down, &up, 0.7)];
            let there = usize::from(with.contains(&name));
            linear(x.data(), &merged(held, &pairs[..there]), inputs)
        };
        let (gate, value) = (of(&w1, "w1"), of(&w3, "w3"));
        let expected: Vec<f64> = gate.iter().zip(value).map(|(g, v)| silu(*g) * v).collect();
        close(got.data(), &expected, 1e-5);
        let part = gated(F32, x.part(200..290), &l1, &l3).unwrap();
        assert_eq!(bits(&part), bits(&got)[200 * hidden..290 * hidden]);
    }
}

#[test]
fn value_and_gate_of_one_layer_both_have_their_part_of_the_adapter() {
    let _alone = alone();
    let (rows, inputs, hidden) = (300, 24, 40);
    let weight = noise("proj.weight", Dtype::Bf16, &[2 * hidden, inputs], 1);
    let bias = noise("proj.bias", Dtype::F32, &[2 * hidden], 2);
    let down = noise("d", Dtype::F16, &[4, inputs], 3);
    let up = noise("u", Dtype::F16, &[2 * hidden, 4], 4);
    let low = low_rank(&[("proj", [Some(&down), None, Some(&up)], 1.0)]).unwrap();
    let adapters = Adapters::new([(Arc::new(low), 0.7)]);
    let block = Block::new(&[&weight, &bias]);
    let weights = block.weights(&adapters);
    let proj = weights.linear(inputs, 2 * hidden, "proj").unwrap();
    let x = Tensor::from_slice(&[rows, inputs], &random(5, rows * inputs, 1.0)).unwrap();
    let got = geglu(F32, &x, &proj).unwrap();

    // The same numbers by the activation that one layer alone applies.
    let plain = proj.forward(F32, &x).unwrap();
    let gates = proj.forward_activated(F32, &x, Activation::Gelu).unwrap();
    let expected: Vec<f64> = (0..rows * hidden)
        .map(|at| {
            let (row, column) = (at / hidden, at % hidden);
            f64::from(plain.row(row).host()[column])
                * f64::from(gates.row(row).host()[hidden + column])
        })
        .collect();
    close(got.data(), &expected, 1e-6);
    let whole = linear(x.data(), &merged(&weight, &[(&down, &up, 0.7)]), inputs);
    let sums: Vec<f64> = whole
        .iter()
        .enumerate()
        .map(|(i, v)| v + f64::from(bias.values[i % (2 * hidden)]))
        .collect();
    close(plain.data(), &sums, 1e-5);
    let part = geglu(F32, x.part(200..290), &proj).unwrap();
    assert_eq!(bits(&part), bits(&got)[200 * hidden..290 * hidden]);
}

/// A convolution, double precision, zeros around, of a map already scaled, activated and enlarged.
fn convolved(
    x: &[f64],
    (channels, height, width): (usize, usize, usize),
    w: &[f64],
    k: usize,
) -> Vec<f64> {
    let mut out = Vec::new();
    for w in w.chunks_exact(channels * k * k) {
        for (y, x0) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let mut sum = 0.0;
            for (at, w) in w.iter().enumerate() {
                let (c, dy, dx) = (at / (k * k), at / k % k, at % k);
                let (sy, sx) = ((y + dy).wrapping_sub(k / 2), (x0 + dx).wrapping_sub(k / 2));
                if sy < height && sx < width {
                    sum += w * x[(c * height + sy) * width + sx];
                }
            }
            out.push(sum);
        }
    }
    out
}

/// The weight that down, mid and up come to: (out, in, k, k).
fn composed(down: &Held, mid: &Held, up: &Held) -> Vec<f64> {
    let (inner, inputs) = (down.layout.shape[0], down.layout.shape[1]);
    let (outer, taps) = (mid.layout.shape[0], mid.layout.shape[2].pow(2));
    let outputs = up.layout.shape[0];
    let mut out = vec![0.0; outputs * inputs * taps];
    for (o, i, j, q) in (0..outputs * outer * inner * inputs).map(|at| {
        let (o, rest) = (at / (outer * inner * inputs), at % (outer * inner * inputs));
        (
            o,
            rest / (inner * inputs),
            rest / inputs % inner,
            rest % inputs,
        )
    }) {
        for t in 0..taps {
            out[(o * inputs + q) * taps + t] += f64::from(up.values[o * outer + i])
                * f64::from(mid.values[(i * inner + j) * taps + t])
                * f64::from(down.values[j * inputs + q]);
        }
    }
    out
}

#[test]
fn a_convolution_with_adapters_is_the_convolution_of_the_sum_whole_and_in_strips() {
    let _alone = alone();
    let (inputs, outputs, height, width) = (5, 7, 9, 11);
    let weight = noise("conv.weight", Dtype::F16, &[outputs, inputs, 3, 3], 1);
    let bias = noise("conv.bias", Dtype::F32, &[outputs], 2);
    let down = noise("d", Dtype::F16, &[4, inputs, 3, 3], 3);
    let up = noise("u", Dtype::F16, &[outputs, 4, 1, 1], 4);
    let (down2, mid2, up2) = (
        noise("d2", Dtype::F32, &[3, inputs, 1, 1], 5),
        noise("m2", Dtype::F32, &[2, 3, 3, 3], 6),
        noise("u2", Dtype::F32, &[outputs, 2, 1, 1], 7),
    );
    let one = low_rank(&[("conv", [Some(&down), None, Some(&up)], 0.5)]).unwrap();
    let two = low_rank(&[("conv", [Some(&down2), Some(&mid2), Some(&up2)], 1.0)]).unwrap();
    let adapters = Adapters::new([(Arc::new(one), 1.2), (Arc::new(two), 0.9)]);
    let block = Block::new(&[&weight, &bias]);
    let weights = block.weights(&adapters);
    let layer = weights.conv2d(inputs, outputs, 3, "conv").unwrap();
    let mut sum = merged(&weight, &[(&down, &up, 0.6)]);
    for (sum, more) in sum.iter_mut().zip(composed(&down2, &mid2, &up2)) {
        *sum += f64::from(0.9f32) * more;
    }

    let map = random(8, inputs * height * width, 1.0);
    let (scale, shift) = (random(9, inputs, 1.0), random(10, inputs, 1.0));
    for (upsample, halve) in [(false, false), (true, false), (false, true)] {
        let times = 1 + usize::from(upsample);
        let (h, w) = (height * times, width * times);
        let seen: Vec<f64> = (0..inputs * h * w)
            .map(|at| {
                let (c, y, x) = (at / (h * w), at / w % h / times, at % w / times);
                let value = f64::from(map[(c * height + y) * width + x]);
                silu(value * f64::from(scale[c]) + f64::from(shift[c]))
            })
            .collect();
        let mut expected = convolved(&seen, (inputs, h, w), &sum, 3);
        for (i, v) in expected.iter_mut().enumerate() {
            *v += f64::from(bias.values[i / (h * w)]);
        }
        // Halved, every other row and column is left; the map's sides are odd, so the zeros around are the same.
        let even = |at: usize| at.is_multiple_of(2);
        let keep = |at: &usize| !halve || (even(at / w % h) && even(at % w));
        let expected: Vec<f64> = (0..outputs * h * w)
            .filter(keep)
            .map(|at| expected[at])
            .collect();
        let (h, w) = if halve {
            (h.div_ceil(2), w.div_ceil(2))
        } else {
            (h, w)
        };
        let around = Around {
            input: Some(ChannelAffine {
                scale: scale[..].into(),
                shift: shift[..].into(),
                act: Activation::Silu,
            }),
            upsample,
            halve: halve.then_some(Padding::all(1)),
            shift: None,
        };
        let strip = Strip {
            rows: Tensor::from_slice(&[inputs, height, width], &map).unwrap(),
            first: 0,
            height,
        };
        let forward = |rows| layer.forward(F32, &strip, around, rows, None).unwrap();
        let whole = forward(0..h).rows;
        close(whole.data(), &expected, 2e-5);
        for rows in [0..1, 1..h - 2, h - 2..h] {
            let part = forward(rows.clone()).rows;
            for channel in 0..outputs {
                let plane = &bits(&whole)[channel * h * w..][..h * w];
                let got = &bits(&part)[channel * rows.len() * w..][..rows.len() * w];
                assert_eq!(got, &plane[rows.start * w..rows.end * w]);
            }
        }
    }
}

#[test]
fn without_strength_or_match_the_layer_is_the_bare_one() {
    let _alone = alone();
    let weight = noise("proj.weight", Dtype::F16, &[6, 8], 1);
    let down = noise("d", Dtype::F16, &[2, 8], 2);
    let up = noise("u", Dtype::F16, &[6, 2], 3);
    let block = Block::new(&[&weight]);
    let x = Tensor::from_slice(&[3, 8], &random(4, 24, 1.0)).unwrap();
    let run = |module: &str, strength: f32| {
        let low = low_rank(&[(module, [Some(&down), None, Some(&up)], 1.0)]).unwrap();
        let adapters = Adapters::new([(Arc::new(low), strength)]);
        let layer = block.weights(&adapters).linear_no_bias(8, 6, "proj");
        (
            bits(&layer.unwrap().forward(F32, &x).unwrap()),
            adapters.is_empty(),
        )
    };
    let (bare, none) = run("proj", 0.0);
    assert!(none);
    assert_eq!(run("other", 1.0).0, bare);
    assert_ne!(run("proj", 1.0).0, bare);
}

#[test]
fn a_lora_of_another_model_is_refused_with_both_shapes_and_an_unknown_layer_is_named() {
    let _alone = alone();
    let weight = noise("to_k.weight", Dtype::F16, &[6, 8], 1);
    let norm = noise("norm.weight", Dtype::F16, &[6], 1);
    let down = noise("d", Dtype::F16, &[2, 12], 2);
    let up = noise("u", Dtype::F16, &[6, 2], 3);
    let parts = [Some(&down), None, Some(&up)];
    let block = Block::new(&[&weight, &norm]);

    let other = Arc::new(low_rank(&[("to_k", parts, 1.0)]).unwrap());
    let adapters = Adapters::new([(other.clone(), 1.0)]);
    let loaded = block.weights(&adapters).linear_no_bias(8, 6, "to_k");
    let elsewhere = low_rank(&[("to_v", parts, 1.0), ("conv_in", parts, 1.0)]).unwrap();
    let no_layer = low_rank(&[("norm", parts, 1.0)]).unwrap();
    let layout = block.component();
    for refused in [loaded.unwrap_err(), other.check(&[&layout]).unwrap_err()] {
        assert_eq!(
            refused.to_string(),
            "LoRA 'style': layer 'to_k' is 6 x 12 in the LoRA and 6 x 8 in the model; it was made for another model"
        );
    }
    assert_eq!(elsewhere.check(&[&layout]).unwrap(), ["conv_in", "to_v"]);
    let refused = no_layer.check(&[&layout]).unwrap_err().to_string();
    assert!(refused.contains("no linear or convolution"), "{refused}");
}

#[test]
fn factors_that_do_not_go_together_are_refused() {
    let _alone = alone();
    let of = |shape: &[usize]| noise("f", Dtype::F32, shape, 1);
    let refuse = |down: &Held, mid: Option<&Held>, up: &Held, scale: f32| {
        let refused = low_rank(&[("m", [Some(down), mid, Some(up)], scale)]);
        refused.unwrap_err().to_string()
    };
    let (down, up) = (of(&[2, 8]), of(&[6, 2]));
    let (wide, tall) = (of(&[3, 8]), of(&[6, 2, 3, 3]));
    assert!(refuse(&wide, None, &up, 1.0).contains("cannot be multiplied: 'f' [3, 8], 'f' [6, 2]"));
    assert!(refuse(&down, None, &tall, 1.0).contains("cannot be multiplied"));
    assert!(refuse(&down, Some(&of(&[2, 3, 3, 3])), &up, 1.0).contains("cannot be multiplied"));
    assert!(refuse(&of(&[2, 8, 3]), None, &up, 1.0).contains("of shape [2, 8, 3]"));
    assert!(refuse(&of(&[0, 8]), None, &of(&[6, 0]), 1.0).contains("of shape [0, 8]"));
    assert!(refuse(&down, None, &up, f32::NAN).contains("scaled by NaN"));
    let (down, up) = (of(&[4097, 1]), of(&[1, 4097]));
    assert!(refuse(&down, None, &up, 1.0).contains("rank 4097, and the most is 4096"));
    let whole = held("f", Dtype::I32, &[2, 8], &[0.0; 16]);
    assert!(refuse(&whole, None, &of(&[6, 2]), 1.0).contains("'f' is stored as I32"));
    let twice = low_rank(&[
        ("m", [Some(&of(&[2, 8])), None, Some(&of(&[6, 2]))], 1.0),
        ("m", [Some(&of(&[2, 8])), None, Some(&of(&[6, 2]))], 1.0),
    ]);
    assert!(twice.unwrap_err().to_string().contains("is there twice"));
}

#[test]
fn applying_takes_no_more_memory_than_it_says() {
    let _alone = alone();
    let (rows, dim) = (5000, 320);
    let weight = noise("proj.weight", Dtype::F32, &[dim, dim], 1);
    let (down, up) = (
        noise("d", Dtype::F32, &[128, dim], 2),
        noise("u", Dtype::F32, &[dim, 128], 3),
    );
    let low = low_rank(&[("proj", [Some(&down), None, Some(&up)], 1.0)]).unwrap();
    let adapters = Adapters::new([(Arc::new(low), 1.0)]);
    assert_eq!(adapters.bytes().0, 2 * 128 * 320 * 4);
    let block = Block::new(&[&weight]);
    let x = Tensor::from_slice(&[rows, dim], &random(4, rows * dim, 1.0)).unwrap();
    let peak = |adapters: &Adapters| {
        let layer = block.weights(adapters).linear_no_bias(dim, dim, "proj");
        let layer = layer.unwrap();
        let _scratch = layer.forward(F32, &x).unwrap();
        drop(_scratch);
        memory::trim();
        let before = memory::reset_peak();
        let _out = layer.forward(F32, &x).unwrap();
        memory::peak() - before
    };
    let (bare, with) = (peak(&Adapters::default()), peak(&adapters));
    let more = with - bare;
    assert!(more > 500_000, "{more} bytes more: it was not applied");
    assert!(more <= adapters.scratch_bytes(rows).0, "{more} bytes more");
}
