//! Group norms, upsampling, maps and tokens.

use crate::machine::{Machine, machine};
use crate::memory::{Held, HeldRows};
use crate::numbers::{Nearness, Random, same_bits};
use lowtide_cuda::ops::launches::map;
use lowtide_cuda::ops::{ChannelAffineIn, Memory};
use lowtide_kernels::{self as cpu, Activation, ChannelAffine};

fn add_sums(machine: &Machine, x: &[f32], shape: [usize; 3], groups: usize, sums: &Held) {
    let x = Held::f32s(x, 4);
    let scratch = Held::f64s(&vec![0.0; groups * shape[1] * 2]);
    for launch in map::group_sums(&x, shape, groups, sums, &scratch) {
        machine.run(&launch);
    }
    // Nothing was written beside it.
    scratch.to_f64s();
}

#[test]
fn groups_are_summed_alike_whole_and_in_strips() {
    let Some(machine) = machine("groups_are_summed_alike_whole_and_in_strips") else {
        return;
    };
    let mut random = Random::new(21);
    for (channels, rows, width, groups) in [(4, 40, 9, 2), (6, 7, 300, 3), (32, 3, 5, 32)] {
        let x = random.numbers(channels * rows * width);
        let whole = Held::f64s(&vec![0.0; groups * 2]);
        add_sums(&machine, &x, [channels, rows, width], groups, &whole);
        let mut wanted = vec![[0.0; 2]; groups];
        cpu::group_sums(&x, channels, rows, width, groups, &mut wanted);
        for (got, wanted) in whole.to_f64s().iter().zip(wanted.as_flattened()) {
            // Some thousand roundings of 2^-53.
            assert!((got - wanted).abs() < 1e-10, "{got} {wanted}");
        }
        let strips = Held::f64s(&vec![0.0; groups * 2]);
        for (first, count) in [(0, 1), (1, rows - 2), (rows - 1, 1)] {
            let strip: Vec<f32> = (0..channels)
                .flat_map(|c| &x[(c * rows + first) * width..][..count * width])
                .copied()
                .collect();
            add_sums(&machine, &strip, [channels, count, width], groups, &strips);
        }
        assert_eq!(
            whole.to_f64s(),
            strips.to_f64s(),
            "{channels} {rows} {width}"
        );

        let (weight, bias) = (random.numbers(channels), random.numbers(channels));
        let held = [&weight, &bias].map(|numbers| Held::f32s(numbers, 0));
        let out = [0, 1].map(|_| Held::f32s(&vec![0.0; channels], 4));
        let count = (channels / groups * rows * width) as u64;
        let (vectors, results) = ([&held[0], &held[1]], [&out[0], &out[1]]);
        machine.run(&map::group_affine(&whole, count, 1e-5, vectors, results));
        let (scale, shift) = cpu::group_affine(&wanted, count, 1e-5, &weight, &bias);
        let mut near = Nearness::new("group_affine");
        // Both compute in f64.
        near.check("scale", &out[0].to_f32s(), &scale, |at| {
            1e-6 * scale[at].abs()
        });
        near.check("shift", &out[1].to_f32s(), &shift, |_| 1e-6);
    }
}

#[test]
fn channels_are_scaled_and_maps_doubled_as_on_the_cpu() {
    let Some(machine) = machine("channels_are_scaled_and_maps_doubled_as_on_the_cpu") else {
        return;
    };
    let mut random = Random::new(22);
    let mut near = Nearness::new("channel_affine");
    for (channels, rows, width) in [(3, 5, 7), (70, 2, 4), (1, 1, 1)] {
        let x = random.numbers(channels * rows * width);
        let (scale, shift) = (random.numbers(channels), random.numbers(channels));
        let held = [&x, &scale, &shift].map(|numbers| Held::f32s(numbers, 4));
        let out = Held::f32s(&vec![0.0; x.len()], 0);
        let act = Activation::Silu;
        let affine = ChannelAffineIn {
            scale: held[1].at(),
            shift: held[2].at(),
            act,
        };
        machine.run(&map::channel_affine(
            &held[0],
            channels,
            rows * width,
            &affine,
            &out,
        ));
        let affine = ChannelAffine {
            scale: &scale,
            shift: &shift,
            act,
        };
        let mut wanted = vec![0.0; x.len()];
        cpu::channel_affine(&x, channels, rows * width, &affine, &mut wanted);
        near.check(
            &format!("{channels} channels"),
            &out.to_f32s(),
            &wanted,
            |_| 2e-6,
        );

        let out = Held::f32s(&vec![0.0; 4 * x.len()], 0);
        machine.run(&map::upsample_nearest_2x(
            &held[0],
            [channels, rows, width],
            &out,
        ));
        let mut wanted = vec![0.0; 4 * x.len()];
        cpu::upsample_nearest_2x(&x, channels, rows, width, &mut wanted);
        same_bits("doubled", &out.to_f32s(), &wanted);
    }
}

#[test]
fn maps_become_tokens_and_come_back_as_on_the_cpu() {
    let Some(machine) = machine("maps_become_tokens_and_come_back_as_on_the_cpu") else {
        return;
    };
    let mut random = Random::new(23);
    let mut near = Nearness::new("map_to_tokens");
    for (channels, plane, first, tokens) in [(3, 50, 7, 40), (70, 33, 0, 33), (32, 5, 4, 1)] {
        let x = random.numbers(channels * plane);
        let (scale, shift) = (random.numbers(channels), random.numbers(channels));
        let held = [&x, &scale, &shift].map(|numbers| Held::f32s(numbers, 4));
        let mut out = HeldRows::new(&vec![0.0; tokens * channels], tokens, channels, 3, 0);
        let factors = [&held[1], &held[2]];
        machine.run(&map::map_to_tokens(
            &held[0],
            factors,
            plane,
            first,
            &out.gpu(),
        ));
        cpu::map_to_tokens(&x, [&scale, &shift], plane, first, out.cpu_mut());
        // One rounding more or less.
        near.check("to tokens", &out.result(), &out.expected(), |_| 2.5e-7);

        let rows = HeldRows::new(&random.numbers(tokens * channels), tokens, channels, 1, 4);
        machine.run(&map::add_tokens_to_map(&rows.gpu(), &held[0], plane, first));
        let mut wanted = x.clone();
        cpu::add_tokens_to_map(rows.cpu(), &mut wanted, plane, first);
        same_bits("added", &held[0].to_f32s(), &wanted);
    }
}

#[test]
fn patches_are_those_of_z_image() {
    let Some(machine) = machine("patches_are_those_of_z_image") else {
        return;
    };
    let mut random = Random::new(24);
    let [channels, height, width] = [3, 4, 6];
    let x = random.numbers(channels * height * width);
    let held = Held::f32s(&x, 0);
    let patches = Held::f32s(&vec![0.0; x.len()], 4);
    machine.run(&map::patches(
        &held,
        [channels, height, width],
        false,
        &patches,
    ));
    let got = patches.to_f32s();
    for y in 0..height {
        for column in 0..width {
            for c in 0..channels {
                let token = y / 2 * (width / 2) + column / 2;
                let within = y % 2 * 2 + column % 2;
                let at = (token * 4 + within) * channels + c;
                assert_eq!(got[at], x[(c * height + y) * width + column]);
            }
        }
    }
    let back = Held::f32s(&vec![0.0; x.len()], 0);
    machine.run(&map::patches(
        &patches,
        [channels, height, width],
        true,
        &back,
    ));
    same_bits("back", &back.to_f32s(), &x);
}
