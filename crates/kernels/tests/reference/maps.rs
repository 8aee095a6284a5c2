//! Convolutions, group norm and upsampling.

use crate::plain::*;
use lowtide_kernels::*;
use proptest::prelude::*;

/// A convolution's shape.
#[derive(Clone, Copy, Debug)]
struct Shape {
    cin: usize,
    cout: usize,
    rows: usize,
    width: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    upsample: bool,
}

impl Shape {
    fn out(&self, size: usize) -> usize {
        let virtual_size = if self.upsample { 2 * size } else { size };
        (virtual_size + 2 * self.padding - self.kernel) / self.stride + 1
    }
}

/// A convolution with everything in it.
struct Case {
    shape: Shape,
    weights: Weights,
    bias: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
    act: Option<Activation>,
    x: Vec<f32>,
    add: Vec<f32>,
}

impl Case {
    fn new(random: &mut Random, shape: Shape, stored: Stored, act: Option<Activation>) -> Self {
        let columns = shape.cin * shape.kernel * shape.kernel;
        let pixels = shape.out(shape.rows) * shape.out(shape.width);
        Self {
            shape,
            weights: Weights::random(random, stored, shape.cout, columns),
            bias: random.normal(shape.cout),
            scale: random.normal(shape.cin),
            shift: random.normal(shape.cin),
            act,
            x: random.normal(shape.cin * shape.rows * shape.width),
            add: random.normal(shape.cout * pixels),
        }
    }

    fn conv(&self) -> Conv2d<'_> {
        Conv2d {
            weight: self.weights.matrix(),
            bias: Some(&self.bias),
            kernel: self.shape.kernel,
            stride: self.shape.stride,
            padding: self.shape.padding,
            upsample: self.shape.upsample,
            input: self.act.map(|act| ChannelAffine {
                scale: &self.scale,
                shift: &self.shift,
                act,
            }),
        }
    }

    fn whole(&self, precision: Precision) -> Vec<f32> {
        let mut out = vec![0.0; self.add.len()];
        let out_rows = self.shape.out(self.shape.rows);
        conv2d(
            &self.conv(),
            &self.x,
            MapRows::whole(self.shape.rows),
            self.shape.width,
            precision,
            Some(&self.add),
            &mut out,
            MapRows::whole(out_rows),
        );
        out
    }

    /// Rows of a map `[channels, rows, width]`.
    fn slice(map: &[f32], rows: usize, width: usize, first: usize, count: usize) -> Vec<f32> {
        map.chunks_exact(rows * width)
            .flat_map(|plane| plane[first * width..][..count * width].iter().copied())
            .collect()
    }

    /// Output rows `first..first + count` from a slice of exactly the input rows they need.
    fn strip(&self, precision: Precision, first: usize, count: usize) -> Vec<f32> {
        let s = &self.shape;
        let doubled = usize::from(s.upsample);
        let low = ((first * s.stride).saturating_sub(s.padding) >> doubled).min(s.rows);
        let end = (first + count - 1) * s.stride + s.kernel;
        let high = (end.saturating_sub(s.padding).div_ceil(1 << doubled)).clamp(low, s.rows);
        let (out_rows, out_width) = (s.out(s.rows), s.out(s.width));
        let x = Self::slice(&self.x, s.rows, s.width, low, high - low);
        let mut out = Self::slice(&self.add, out_rows, out_width, first, count);
        conv2d_in_place_add(
            &self.conv(),
            &x,
            MapRows {
                total: s.rows,
                first: low,
                count: high - low,
            },
            s.width,
            precision,
            &mut out,
            MapRows {
                total: out_rows,
                first,
                count,
            },
        );
        out
    }

    /// The input as the products see it, zero outside the map.
    fn input(&self, c: usize, y: isize, x: isize, precision: Precision) -> f64 {
        self.input_between(c, y, x, precision).0
    }

    /// The same, and how far the kernels' may lie from it: an activated number next to the middle of two bf16 may be
    /// rounded to either.
    fn input_between(&self, c: usize, y: isize, x: isize, precision: Precision) -> (f64, f64) {
        let s = &self.shape;
        let (y, x) = if s.upsample {
            (y.div_euclid(2), x.div_euclid(2))
        } else {
            (y, x)
        };
        if y < 0 || x < 0 || y >= s.rows as isize || x >= s.width as isize {
            return (0.0, 0.0);
        }
        let v = self.x[(c * s.rows + y as usize) * s.width + x as usize];
        match self.act {
            None => (rounded(v, precision), 0.0),
            Some(act) => {
                let (scaled, shift) = (
                    f64::from(v) * f64::from(self.scale[c]),
                    f64::from(self.shift[c]),
                );
                let exact = act_f64(act, scaled + shift);
                let error = 2e-6 * exact.abs() + 3e-7 * (scaled.abs() + shift.abs());
                let round = |v: f64| rounded(v as f32, precision);
                let apart = round(exact + error) - round(exact - error);
                (round(exact), apart)
            }
        }
    }

    fn check(&self, precision: Precision) {
        let s = &self.shape;
        let out = self.whole(precision);
        let (out_rows, out_width) = (s.out(s.rows), s.out(s.width));
        for (i, got) in out.iter().enumerate() {
            let (n, y, x) = (
                i / (out_rows * out_width),
                i / out_width % out_rows,
                i % out_width,
            );
            let (mut sum, mut size) = (f64::from(self.bias[n]) + f64::from(self.add[i]), 1.0);
            let mut undecided = 0.0;
            for c in 0..s.cin {
                for tap in 0..s.kernel * s.kernel {
                    let (ky, kx) = (tap / s.kernel, tap % s.kernel);
                    let at = |o: usize, k: usize| (o * s.stride + k) as isize - s.padding as isize;
                    let w = self.weights.values[(n * s.cin + c) * s.kernel * s.kernel + tap];
                    let w = rounded(w, precision);
                    let (input, apart) = self.input_between(c, at(y, ky), at(x, kx), precision);
                    sum += input * w;
                    size += (input * w).abs();
                    undecided += apart * w.abs();
                }
            }
            assert!(
                (f64::from(*got) - sum).abs() <= 3e-6 * size + undecided,
                "{s:?} {precision:?} {:?} at [{n}, {y}, {x}]: {got} for {sum}",
                self.act
            );
        }
        for (first, count) in [(0, 1), (out_rows - 1, 1), (out_rows / 3, out_rows / 2)] {
            if count > 0 {
                let expected = Self::slice(&out, out_rows, out_width, first, count);
                assert_same_bits(&self.strip(precision, first, count), &expected);
            }
        }
    }
}

const SHAPES: [Shape; 9] = [
    shape(3, 5, 6, 7, 3, 1, 1, false),
    shape(16, 8, 4, 16, 1, 1, 0, false),
    shape(17, 7, 9, 33, 3, 1, 1, false),
    shape(40, 13, 5, 70, 3, 1, 1, false),
    shape(6, 4, 9, 12, 3, 2, 1, false),
    shape(5, 3, 7, 9, 3, 1, 1, true),
    shape(2, 3, 11, 13, 5, 3, 2, false),
    shape(1, 1, 1, 1, 3, 1, 1, false),
    shape(4, 6, 20, 48, 1, 1, 0, false),
];

#[allow(clippy::too_many_arguments)]
const fn shape(
    cin: usize,
    cout: usize,
    rows: usize,
    width: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    upsample: bool,
) -> Shape {
    Shape {
        cin,
        cout,
        rows,
        width,
        kernel,
        stride,
        padding,
        upsample,
    }
}

#[test]
fn convolutions_match_the_reference_whole_and_in_strips() {
    on_every_isa(|| {
        let mut random = Random::new(11);
        for shape in SHAPES {
            for precision in [Precision::F32, Precision::Bf16] {
                for act in [None, Some(Activation::None), Some(Activation::Silu)] {
                    for stored in [Stored::F32, Stored::Bf16] {
                        Case::new(&mut random, shape, stored, act).check(precision);
                    }
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn convolutions_match_the_reference(
        (cin, cout, rows, width) in (1usize..40, 1usize..12, 1usize..9, 1usize..40),
        (kernel, stride, padding) in (1usize..4, 1usize..3, 0usize..3),
        upsample: bool, act: bool, bf16: bool, seed: u64,
    ) {
        let shape = shape(cin, cout, rows, width, kernel, stride, padding, upsample);
        let smallest = rows.min(width) << usize::from(upsample);
        prop_assume!(smallest + 2 * padding >= kernel);
        let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
        let act = act.then_some(Activation::Silu);
        on_every_isa(|| Case::new(&mut Random::new(seed), shape, Stored::Bf16, act).check(precision));
    }
}

#[test]
fn padding_may_differ_by_side() {
    on_every_isa(|| {
        let mut random = Random::new(12);
        // As the downsampler of a latent autoencoder: a column and a row of zeros behind, none before.
        let case = Case::new(
            &mut random,
            shape(3, 4, 8, 10, 3, 2, 1, false),
            Stored::F32,
            None,
        );
        let padding = Padding {
            top: 0,
            left: 0,
            bottom: 1,
            right: 1,
        };
        let mut out = vec![0.0; 4 * 4 * 5];
        let map = MapRows::whole;
        let conv = case.conv();
        let f32 = Precision::F32;
        conv2d_padded(
            &conv,
            padding,
            &case.x,
            map(8),
            10,
            f32,
            None,
            &mut out,
            map(4),
        );
        for (i, got) in out.iter().enumerate() {
            let (n, y, x) = (i / 20, i / 5 % 4, i % 5);
            let mut sum = f64::from(case.bias[n]);
            for k in 0..27 {
                let (c, ky, kx) = (k / 9, (k / 3 % 3) as isize, (k % 3) as isize);
                let (y, x) = (2 * y as isize + ky, 2 * x as isize + kx);
                sum += case.input(c, y, x, f32) * f64::from(case.weights.values[n * 27 + k]);
            }
            close(*got, sum, 5e-6);
        }
    });
}

#[test]
fn results_are_finished_before_anything_is_added() {
    on_every_isa(|| {
        let mut random = Random::new(13);
        for shape in [
            shape(5, 9, 7, 23, 3, 1, 1, false),
            shape(64, 32, 6, 40, 3, 1, 1, false),
            shape(7, 3, 4, 9, 3, 1, 1, true),
        ] {
            let case = Case::new(&mut random, shape, Stored::F16, None);
            let slopes = random.normal(shape.cout);
            let (map, width) = (MapRows::whole(shape.rows), shape.width);
            let out_rows = MapRows::whole(shape.out(shape.rows));
            let finish = [
                Finish::Plain,
                Finish::Scaled(0.2),
                Finish::Leaky(0.2),
                Finish::Leaky(0.0),
                Finish::Slopes(&slopes),
            ];
            for precision in [Precision::F32, Precision::Bf16] {
                let mut plain = vec![0.0; case.add.len()];
                let conv = case.conv();
                conv2d(
                    &conv, &case.x, map, width, precision, None, &mut plain, out_rows,
                );
                let act = Activation::Silu;
                let (scale, shift) = (&case.bias[..], &slopes[..]);
                let affine = ChannelAffine { scale, shift, act };
                for finish in [Finish::Silu, Finish::Affine(affine)] {
                    let mut want = plain.clone();
                    match finish {
                        Finish::Affine(affine) => {
                            let pixels = plain.len() / shape.cout;
                            channel_affine_in_place(&mut want, shape.cout, pixels, &affine);
                        }
                        _ => activate(&mut want, act),
                    }
                    let mut out = vec![0.0; plain.len()];
                    conv2d_finished(
                        &conv, finish, &case.x, map, width, precision, None, &mut out, out_rows,
                    );
                    assert!(out == want, "{finish:?} {precision:?}");
                }
                for finish in finish {
                    let expected = |(at, &value): (usize, &f32)| {
                        let factor = match finish {
                            Finish::Plain => 1.0,
                            Finish::Scaled(factor) => factor,
                            Finish::Leaky(slope) if value < 0.0 => slope,
                            Finish::Slopes(slopes) if value < 0.0 => {
                                slopes[at * shape.cout / plain.len()]
                            }
                            _ => 1.0,
                        };
                        value * factor
                    };
                    let finished: Vec<f32> = plain.iter().enumerate().map(expected).collect();
                    for add in [None, Some(&case.add[..])] {
                        let mut out = vec![0.0; plain.len()];
                        conv2d_finished(
                            &conv, finish, &case.x, map, width, precision, add, &mut out, out_rows,
                        );
                        for (at, got) in out.iter().enumerate() {
                            let want = finished[at] + add.map_or(0.0, |add| add[at]);
                            assert_eq!(*got, want, "{finish:?} {precision:?} at {at}");
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn columns_of_a_map_have_the_bits_they_have_in_the_whole() {
    on_every_isa(|| {
        let mut random = Random::new(17);
        for (cin, cout, stored) in [
            (32, 48, Stored::F32),
            (19, 5, Stored::Bf16),
            (80, 33, Stored::F16),
        ] {
            let (rows, width) = (11, 90);
            let act = Some(Activation::Silu).filter(|_| cin == 80);
            let case = Case::new(
                &mut random,
                shape(cin, cout, rows, width, 3, 1, 1, false),
                stored,
                act,
            );
            for precision in [Precision::F32, Precision::Bf16] {
                let whole = case.whole(precision);
                for columns in [0..9, 3..20, 20..90, 41..89] {
                    let crop = |map: &[f32]| -> Vec<f32> {
                        let lines = map.chunks_exact(width);
                        lines
                            .flat_map(|line| line[columns.clone()].to_vec())
                            .collect()
                    };
                    let (x, add) = (crop(&case.x), crop(&case.add));
                    let mut out = vec![0.0; add.len()];
                    let map = MapRows::whole(rows);
                    let wide = columns.len();
                    conv2d(
                        &case.conv(),
                        &x,
                        map,
                        wide,
                        precision,
                        Some(&add),
                        &mut out,
                        map,
                    );
                    let expected = crop(&whole);
                    for (at, (got, want)) in out.iter().zip(&expected).enumerate() {
                        // Where the part's edge is not the map's, what is beyond it was there in the whole.
                        let inside = (1..wide - 1).contains(&(at % wide));
                        assert!(
                            !inside || got == want,
                            "{precision:?} {columns:?} at {at}: {got} {want}"
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn zeros_around_a_map_stay_zeros_under_an_activation() {
    on_every_isa(|| {
        // A shift of one would make the padding count if it were shifted too.
        let weights = Weights::of(Stored::F32, 1, 9, vec![1.0; 9]);
        let (scale, shift) = ([0.0], [1.0]);
        let conv = Conv2d {
            weight: weights.matrix(),
            bias: None,
            kernel: 3,
            stride: 1,
            padding: 1,
            upsample: false,
            input: Some(ChannelAffine {
                scale: &scale,
                shift: &shift,
                act: Activation::None,
            }),
        };
        let mut out = vec![0.0; 9];
        let map = MapRows::whole(3);
        conv2d(
            &conv,
            &[5.0; 9],
            map,
            3,
            Precision::F32,
            None,
            &mut out,
            map,
        );
        assert_eq!(out, [4.0, 6.0, 4.0, 6.0, 9.0, 6.0, 4.0, 6.0, 4.0]);
    });
}

#[test]
#[should_panic(expected = "need input rows")]
fn a_slice_without_its_halo_is_refused() {
    let weights = Weights::of(Stored::F32, 1, 9, vec![1.0; 9]);
    let conv = Conv2d {
        weight: weights.matrix(),
        bias: None,
        kernel: 3,
        stride: 1,
        padding: 1,
        upsample: false,
        input: None,
    };
    let rows = MapRows {
        total: 8,
        first: 2,
        count: 2,
    };
    let mut out = [0.0; 8];
    conv2d(
        &conv,
        &[0.0; 8],
        rows,
        4,
        Precision::F32,
        None,
        &mut out,
        rows,
    );
}

#[test]
fn group_sums_do_not_depend_on_strips_and_give_a_group_norm() {
    on_every_isa(|| {
        let mut random = Random::new(13);
        let (channels, rows, width, groups) = (12, 13, 37, 4);
        let x: Vec<f32> = random
            .normal(channels * rows * width)
            .iter()
            .map(|v| v * 3.0 + 5.0)
            .collect();
        let mut sums = vec![[0.0; 2]; groups];
        group_sums(&x, channels, rows, width, groups, &mut sums);
        let mut by_strips = vec![[0.0; 2]; groups];
        for (first, count) in [(0, 1), (1, 5), (6, 7)] {
            let strip = Case::slice(&x, rows, width, first, count);
            group_sums(&strip, channels, count, width, groups, &mut by_strips);
        }
        assert_eq!(sums, by_strips);
        let (weight, bias) = (random.normal(channels), random.normal(channels));
        let count = (channels / groups * rows * width) as u64;
        let (scale, shift) = group_affine(&sums, count, 1e-6, &weight, &bias);
        let mut y = vec![0.0; x.len()];
        let affine = ChannelAffine {
            scale: &scale,
            shift: &shift,
            act: Activation::Silu,
        };
        channel_affine(&x, channels, rows * width, &affine, &mut y);
        let size = count as usize;
        for (i, got) in y.iter().enumerate() {
            let group = &x[i / size * size..][..size];
            let mean = group.iter().map(|v| f64::from(*v)).sum::<f64>() / count as f64;
            let square = |v: &f32| (f64::from(*v) - mean).powi(2);
            let variance = group.iter().map(square).sum::<f64>() / count as f64;
            let c = i / (rows * width);
            let norm = (f64::from(x[i]) - mean) / (variance + 1e-6).sqrt();
            let expected = norm * f64::from(weight[c]) + f64::from(bias[c]);
            close(*got, act_f64(Activation::Silu, expected), 5e-6);
        }
    });
}

#[test]
fn upsampling_repeats_rows_and_columns() {
    let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let mut out = [0.0; 24];
    upsample_nearest_2x(&x, 1, 2, 3, &mut out);
    let (top, bottom) = (
        [1.0, 1.0, 2.0, 2.0, 3.0, 3.0],
        [4.0, 4.0, 5.0, 5.0, 6.0, 6.0],
    );
    assert_eq!(out[..12], [top, top].concat());
    assert_eq!(out[12..], [bottom, bottom].concat());
}

#[test]
fn maps_become_tokens_and_tokens_are_added_to_maps() {
    on_every_isa(|| {
        let mut random = Random::new(17);
        for (channels, plane, first, count) in [
            (1, 1, 0, 1),
            (16, 48, 16, 16),
            (20, 63, 5, 58),
            (37, 129, 0, 129),
            (960, 300, 17, 200),
        ] {
            let map = random.normal(channels * plane);
            let (scale, shift) = (random.normal(channels), random.normal(channels));
            let mut tokens = vec![0.0; count * channels];
            let out = RowsMut::new(&mut tokens, count, channels);
            map_to_tokens(&map, [&scale, &shift], plane, first, out);
            let mut sum = map.clone();
            let view = Rows::new(&tokens, count, channels);
            add_tokens_to_map(view, &mut sum, plane, first);
            for c in 0..channels {
                for place in 0..plane {
                    let at = c * plane + place;
                    let Some(t) = place.checked_sub(first).filter(|t| *t < count) else {
                        assert_eq!(sum[at], map[at], "a place that has no token");
                        continue;
                    };
                    let token = map[at] * scale[c] + shift[c];
                    assert_eq!(tokens[t * channels + c], token);
                    assert_eq!(sum[at], map[at] + token);
                }
            }
            let mut copied = vec![0.0; map.len()];
            copy(&mut copied, &map);
            assert_eq!(copied, map);
        }
    });
}
