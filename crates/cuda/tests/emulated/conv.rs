//! Convolutions, whole and in strips.

use crate::machine::machine;
use crate::memory::{Held, HeldMatrix};
use crate::numbers::{KINDS, Nearness, Random, rounded, same_bits};
use lowtide_cuda::ops::launches::conv::convolve;
use lowtide_cuda::ops::{At, ChannelAffineIn, Conv2dIn, FinishIn, Memory, Residual};
use lowtide_kernels::{
    self as cpu, Activation, ChannelAffine, Conv2d, Finish, MapRows, Padding, Precision,
};

/// As for linear layers: other orders of sums of up to 250 products, of the sum of magnitudes.
const SUM: f32 = 1e-6;

/// Numbers for each channel, for both.
struct PerChannel {
    scale: Vec<f32>,
    shift: Vec<f32>,
    held: [Held; 2],
    act: Activation,
}

impl PerChannel {
    fn new(random: &mut Random, channels: usize) -> PerChannel {
        let (scale, shift) = (random.numbers(channels), random.numbers(channels));
        PerChannel {
            held: [Held::f32s(&scale, 4), Held::f32s(&shift, 0)],
            scale,
            shift,
            act: random.pick(&[Activation::Silu, Activation::None, Activation::Gelu]),
        }
    }

    fn gpu(&self) -> ChannelAffineIn<At> {
        ChannelAffineIn {
            scale: self.held[0].at(),
            shift: self.held[1].at(),
            act: self.act,
        }
    }

    fn cpu(&self) -> ChannelAffine<'_> {
        ChannelAffine {
            scale: &self.scale,
            shift: &self.shift,
            act: self.act,
        }
    }
}

struct Case {
    channels: usize,
    rows: usize,
    width: usize,
    kernel: usize,
    stride: usize,
    padding: Padding,
    upsample: bool,
    x: Vec<f32>,
    weight: HeldMatrix,
    bias: Option<(Vec<f32>, Held)>,
    input: Option<PerChannel>,
    name: String,
}

impl Case {
    fn new(random: &mut Random, index: usize) -> Case {
        let kernel = [3, 1, 3, 2, 5, 3][index % 6];
        let (stride, upsample) = (1 + index / 2 % 2, index % 3 == 2);
        let (channels, outputs) = (1 + random.below(9), 1 + random.below(70));
        let (rows, width) = (kernel + random.below(9), kernel + random.below(14));
        let padding = Padding {
            top: random.below(kernel),
            left: random.below(kernel),
            bottom: random.below(kernel),
            right: random.below(kernel),
        };
        let kind = KINDS[[0, 1, 3, 0, 5, 7, 2, 0, 9][index % 9]];
        // Whole chunks of weights now and then.
        let channels = if index.is_multiple_of(2) { 8 } else { channels };
        let weight = random.matrix(kind, outputs, channels * kernel * kernel, 0);
        let bias = random.chance().then(|| {
            let bias = random.numbers(outputs);
            let held = Held::f32s(&bias, 4);
            (bias, held)
        });
        let input = random.chance().then(|| PerChannel::new(random, channels));
        Case {
            x: random.numbers(channels * rows * width),
            name: format!(
                "{index}: {channels} x {rows} x {width} by {outputs} of {kernel}, every {stride}, {padding:?}, {kind:?}, doubled {upsample}, changed {}",
                input.is_some()
            ),
            channels,
            rows,
            width,
            kernel,
            stride,
            padding,
            upsample,
            weight,
            bias,
            input,
        }
    }

    fn size_out(&self) -> (usize, usize) {
        let up = usize::from(self.upsample);
        let out =
            |size: usize, around: usize| ((size << up) + around - self.kernel) / self.stride + 1;
        let Padding {
            top,
            left,
            bottom,
            right,
        } = self.padding;
        (out(self.rows, top + bottom), out(self.width, left + right))
    }

    fn gpu(&self) -> Conv2dIn<At> {
        Conv2dIn {
            weight: self.weight.gpu(),
            bias: self.bias.as_ref().map(|(_, held)| held.at()),
            kernel: self.kernel,
            stride: self.stride,
            padding: 0,
            upsample: self.upsample,
            input: self.input.as_ref().map(PerChannel::gpu),
        }
    }

    fn cpu(&self, padding: usize) -> Conv2d<'_> {
        Conv2d {
            weight: self.weight.cpu(),
            bias: self.bias.as_ref().map(|(bias, _)| bias.as_slice()),
            kernel: self.kernel,
            stride: self.stride,
            padding,
            upsample: self.upsample,
            input: self.input.as_ref().map(PerChannel::cpu),
        }
    }

    /// Sums in f64 of rounded factors, and the bias. Of changed numbers: SiLU or nothing.
    fn sums(&self, precision: Precision) -> Vec<f32> {
        let (rows, width) = self.size_out();
        let (weight, up) = (self.weight.widened(), usize::from(self.upsample));
        let taps = self.kernel * self.kernel;
        // A number of the padded map as products have it.
        let number = |channel: usize, row: usize, column: usize| {
            let inside = |at: usize, before: usize, size: usize| {
                at.checked_sub(before).filter(|at| *at < size << up)
            };
            let (row, column) = (
                inside(row, self.padding.top, self.rows),
                inside(column, self.padding.left, self.width),
            );
            let Some((row, column)) = row.zip(column) else {
                return 0.0;
            };
            let at = (channel * self.rows + (row >> up)) * self.width + (column >> up);
            let changed = self.input.as_ref().map_or(self.x[at], |input| {
                let value = self.x[at].mul_add(input.scale[channel], input.shift[channel]);
                match input.act {
                    Activation::None => value,
                    _ => value / (1.0 + (-value).exp()),
                }
            });
            rounded(precision, changed)
        };
        let mut all = Vec::new();
        for output in 0..self.weight.rows {
            let bias = self.bias.as_ref().map_or(0.0, |(bias, _)| bias[output]);
            for at in 0..rows * width {
                let (row, column) = (at / width * self.stride, at % width * self.stride);
                let product = |k: usize| {
                    let (channel, ky, kx) = (k / taps, k % taps / self.kernel, k % self.kernel);
                    let w = rounded(precision, weight[output * self.weight.cols + k]);
                    w * number(channel, row + ky, column + kx)
                };
                let sum: f64 = (0..self.weight.cols).map(product).sum();
                all.push((sum + f64::from(bias)) as f32);
            }
        }
        all
    }

    /// Rows `first..first + count` of the map.
    fn strip(&self, first: usize, count: usize) -> Vec<f32> {
        let line = |c: usize| &self.x[(c * self.rows + first) * self.width..][..count * self.width];
        (0..self.channels).flat_map(line).copied().collect()
    }

    /// What is allowed: numbers are below 1, or below 2 where they are changed first. That they are changed within 1e-6 of
    /// each other may round a few to neighbours: 2^-8 of those in bf16, 2^-11 in tf32 and f16, and by far not of all.
    fn allowed(&self, precision: Precision) -> f32 {
        let depth = self.weight.cols as f32;
        let neighbours = match (&self.input, precision) {
            (None, _) | (_, Precision::F32) => SUM,
            (_, Precision::Bf16) => 4.0 * 2f32.powi(-8),
            (_, Precision::Tf32 | Precision::F16) => 4.0 * 2f32.powi(-11),
        };
        2.0 * SUM * depth + neighbours
    }
}

#[test]
fn convolutions_are_those_of_the_cpu() {
    let Some(machine) = machine("convolutions_are_those_of_the_cpu") else {
        return;
    };
    let mut random = Random::new(31);
    let mut near = Nearness::new("conv2d_padded");
    for index in 0..24 {
        let case = Case::new(&mut random, index);
        let precision = [Precision::Bf16, Precision::F32][index / 2 % 2];
        let (rows, width) = case.size_out();
        let count = case.weight.rows * rows * width;
        let (x_rows, out_rows) = (MapRows::whole(case.rows), MapRows::whole(rows));
        let old = random.numbers(count);
        let add = random.chance();
        let (x, out) = (Held::f32s(&case.x, 4), Held::f32s(&vec![0.0; count], 4));
        let held = Held::f32s(&old, 0);
        let residual = if add {
            Residual::Other(held.at())
        } else {
            Residual::Nothing
        };
        let (from, to) = ((&x, x_rows, case.width), (&out, out_rows));
        let (conv, plain) = (case.gpu(), FinishIn::Plain);
        machine.run(&convolve(
            &conv,
            case.padding,
            &plain,
            from,
            precision,
            &residual,
            to,
        ));
        let mut wanted = vec![0.0; count];
        let add = add.then_some(old.as_slice());
        let (x, width) = (&case.x, case.width);
        let to = &mut wanted;
        let conv = case.cpu(0);
        cpu::conv2d_padded(
            &conv,
            case.padding,
            x,
            x_rows,
            width,
            precision,
            add,
            to,
            out_rows,
        );
        near.check(&case.name, &out.to_f32s(), &wanted, |_| {
            case.allowed(precision)
        });
    }
}

#[test]
fn factors_of_convolutions_are_rounded_to_their_type() {
    let Some(machine) = machine("factors_of_convolutions_are_rounded_to_their_type") else {
        return;
    };
    let mut random = Random::new(34);
    let mut near = Nearness::new("convolve, against f64");
    for index in 0..18 {
        let mut case = Case::new(&mut random, index);
        // Weights as they are multiplied every other time, in rows of whole chunks.
        if index % 2 == 0 {
            let (rows, cols) = (case.weight.rows, case.weight.cols);
            case.weight = random.matrix(KINDS[2], rows, cols, 0);
        }
        if let Some(input) = &mut case.input {
            input.act = [Activation::Silu, Activation::None][index / 2 % 2];
        }
        for precision in [Precision::Tf32, Precision::F16] {
            let (rows, width) = case.size_out();
            let x = Held::f32s(&case.x, 4);
            let out = Held::f32s(&vec![0.0; case.weight.rows * rows * width], 4);
            machine.run(&convolve(
                &case.gpu(),
                case.padding,
                &FinishIn::Plain,
                (&x, MapRows::whole(case.rows), case.width),
                precision,
                &Residual::Nothing,
                (&out, MapRows::whole(rows)),
            ));
            let name = format!("{} {precision:?}", case.name);
            near.check(&name, &out.to_f32s(), &case.sums(precision), |_| {
                case.allowed(precision)
            });
        }
    }
}

/// A map and weights with numbers beyond f16, and one that is none.
#[test]
fn convolutions_in_f16_saturate_and_let_nan_through() {
    let Some(machine) = machine("convolutions_in_f16_saturate_and_let_nan_through") else {
        return;
    };
    let mut random = Random::new(35);
    let mut case = Case::new(&mut random, 1);
    (case.input, case.bias, case.upsample) = (None, None, false);
    case.x[0] = 1e9;
    case.x[1] = f32::NEG_INFINITY;
    let last = case.x.len() - 1;
    case.x[last] = f32::NAN;
    let (rows, width) = case.size_out();
    let x = Held::f32s(&case.x, 0);
    let out = Held::f32s(&vec![0.0; case.weight.rows * rows * width], 0);
    machine.run(&convolve(
        &case.gpu(),
        case.padding,
        &FinishIn::Plain,
        (&x, MapRows::whole(case.rows), case.width),
        Precision::F16,
        &Residual::Nothing,
        (&out, MapRows::whole(rows)),
    ));
    let wanted = case.sums(Precision::F16);
    assert!(wanted.iter().any(|n| n.is_nan()), "no NaN is seen");
    assert!(wanted.iter().any(|n| n.abs() > 1e3), "nothing is large");
    assert!(wanted.iter().all(|n| n.is_nan() || n.abs() < 1e7));
    for (at, (got, wanted)) in out.to_f32s().iter().zip(&wanted).enumerate() {
        let same = (got - wanted).abs() <= 1e-6 * (65504.0 + wanted.abs());
        let same = same || got.is_nan() && wanted.is_nan();
        assert!(same, "number {at} is {got}, not {wanted}");
    }
}

#[test]
fn results_are_finished_as_on_the_cpu() {
    let Some(machine) = machine("results_are_finished_as_on_the_cpu") else {
        return;
    };
    let mut random = Random::new(32);
    let mut near = Nearness::new("conv2d_finished");
    for index in 0..6 {
        let mut case = Case::new(&mut random, index);
        case.padding = Padding::all(case.kernel / 2);
        let precision = [Precision::Bf16, Precision::F32][index % 2];
        let (rows, width) = case.size_out();
        let outputs = case.weight.rows;
        let per_channel = PerChannel::new(&mut random, outputs);
        let (finish, cpu_finish) = match index {
            0 => (FinishIn::Plain, Finish::Plain),
            1 => (FinishIn::Scaled(0.2), Finish::Scaled(0.2)),
            2 => (FinishIn::Leaky(0.1), Finish::Leaky(0.1)),
            3 => {
                let slopes = per_channel.held[0].at();
                (FinishIn::Slopes(slopes), Finish::Slopes(&per_channel.scale))
            }
            4 => (FinishIn::Silu, Finish::Silu),
            _ => (
                FinishIn::Affine(per_channel.gpu()),
                Finish::Affine(per_channel.cpu()),
            ),
        };
        let count = outputs * rows * width;
        let old = random.numbers(count);
        let (x, out) = (Held::f32s(&case.x, 0), Held::f32s(&old, 0));
        let (x_rows, out_rows) = (MapRows::whole(case.rows), MapRows::whole(rows));
        let (from, to) = ((&x, x_rows, case.width), (&out, out_rows));
        // The residual is what is there already.
        let (conv, there) = (case.gpu(), Residual::Out);
        machine.run(&convolve(
            &conv,
            case.padding,
            &finish,
            from,
            precision,
            &there,
            to,
        ));
        let mut wanted = vec![0.0; count];
        let (conv, to) = (case.cpu(case.kernel / 2), &mut wanted);
        let (x, width, add) = (&case.x, case.width, Some(old.as_slice()));
        cpu::conv2d_finished(
            &conv, cpu_finish, x, x_rows, width, precision, add, to, out_rows,
        );
        near.check(&case.name, &out.to_f32s(), &wanted, |_| {
            1.2 * case.allowed(precision) + 2e-6
        });
    }
}

#[test]
fn strips_have_the_bits_of_the_whole() {
    let Some(machine) = machine("strips_have_the_bits_of_the_whole") else {
        return;
    };
    let mut random = Random::new(33);
    for index in 0..16 {
        let case = Case::new(&mut random, index);
        let precision = Precision::ALL[index / 2 % 4];
        let (rows, width) = case.size_out();
        let outputs = case.weight.rows;
        let whole = Held::f32s(&vec![0.0; outputs * rows * width], 0);
        let x = Held::f32s(&case.x, 0);
        let (conv, nothing) = (case.gpu(), Residual::Nothing);
        let from = (&x, MapRows::whole(case.rows), case.width);
        let to = (&whole, MapRows::whole(rows));
        let plain = FinishIn::Plain;
        machine.run(&convolve(
            &conv,
            case.padding,
            &plain,
            from,
            precision,
            &nothing,
            to,
        ));
        let whole = whole.to_f32s();
        for first in 0..rows {
            let count = (rows - first).min(2);
            // Only the rows of the input that these need.
            let up = usize::from(case.upsample);
            let top = (first * case.stride).saturating_sub(case.padding.top) >> up;
            let end = (first + count - 1) * case.stride + case.kernel;
            let end = (end.saturating_sub(case.padding.top).div_ceil(1 << up)).min(case.rows);
            let top = top.min(end);
            let strip = Held::f32s(&case.strip(top, end - top), 8);
            let out = Held::f32s(&vec![0.0; outputs * count * width], 4);
            let slice = |total, first, count| MapRows {
                total,
                first,
                count,
            };
            let from = (&strip, slice(case.rows, top, end - top), case.width);
            let to = (&out, slice(rows, first, count));
            machine.run(&convolve(
                &conv,
                case.padding,
                &plain,
                from,
                precision,
                &nothing,
                to,
            ));
            let wanted: Vec<f32> = (0..outputs)
                .flat_map(|c| &whole[(c * rows + first) * width..][..count * width])
                .copied()
                .collect();
            same_bits(&case.name, &out.to_f32s(), &wanted);
        }
    }
}
