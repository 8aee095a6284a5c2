//! Pictures as their files have them: 8 or 16 bits a value, colours and how solid they are apart.

use image::{DynamicImage, ExtendedColorType, ImageEncoder};

use crate::decode::Decoded;
use crate::picture::{PngKind, encode_png, set_text};
use crate::raster::{Mask, Picture, Raster, Region};
use crate::resize::{Filter, Stretch};
use crate::{Format, Result, Size};

/// Bits of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// 0 to 255.
    Eight,
    /// 0 to 65,535.
    Sixteen,
}

impl Depth {
    /// The largest value.
    pub fn largest(self) -> f32 {
        match self {
            Depth::Eight => 255.0,
            Depth::Sixteen => 65_535.0,
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Depth::Eight => 1,
            Depth::Sixteen => 2,
        }
    }
}

/// Values of one depth, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Values {
    Eight(Vec<u8>),
    Sixteen(Vec<u16>),
}

/// A picture as its file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Original {
    width: u32,
    height: u32,
    /// Red, green, blue; over nothing.
    colours: Values,
    /// How solid each pixel is; `None` where all are.
    alpha: Option<Values>,
}

impl Values {
    fn blank(depth: Depth, count: usize) -> Values {
        match depth {
            Depth::Eight => Values::Eight(vec![0; count]),
            Depth::Sixteen => Values::Sixteen(vec![0; count]),
        }
    }

    fn depth(&self) -> Depth {
        match self {
            Values::Eight(_) => Depth::Eight,
            Values::Sixteen(_) => Depth::Sixteen,
        }
    }

    /// A value as a share of the largest.
    fn unit(&self, at: usize) -> f32 {
        match self {
            Values::Eight(values) => f32::from(values[at]) / Depth::Eight.largest(),
            Values::Sixteen(values) => f32::from(values[at]) / Depth::Sixteen.largest(),
        }
    }

    /// Sets a value from a share of the largest: clamped, and rounded to the nearest, halves to even as numpy does.
    fn set(&mut self, at: usize, unit: f32) {
        let scaled = |depth: Depth| (unit.clamp(0.0, 1.0) * depth.largest()).round_ties_even();
        match self {
            Values::Eight(values) => values[at] = scaled(Depth::Eight) as u8,
            Values::Sixteen(values) => values[at] = scaled(Depth::Sixteen) as u16,
        }
    }

    /// Sets a row of colours from value `at` on.
    fn put(&mut self, at: usize, rows: [&[f32]; 3]) {
        fn each<T>(to: &mut [T], rows: [&[f32]; 3], largest: f32, cast: impl Fn(f32) -> T) {
            let (pixels, _) = to.as_chunks_mut::<3>();
            let values = rows[0].iter().zip(rows[1]).zip(rows[2]);
            for (pixel, ((red, green), blue)) in pixels.iter_mut().zip(values) {
                let scaled = |unit: &f32| cast((unit.clamp(0.0, 1.0) * largest).round_ties_even());
                *pixel = [red, green, blue].map(scaled);
            }
        }
        let end = at + 3 * rows[0].len();
        match self {
            Values::Eight(values) => {
                each(&mut values[at..end], rows, Depth::Eight.largest(), |v| {
                    v as u8
                });
            }
            Values::Sixteen(values) => {
                each(&mut values[at..end], rows, Depth::Sixteen.largest(), |v| {
                    v as u16
                });
            }
        }
    }

    fn eight(&self) -> Vec<u8> {
        match self {
            Values::Eight(values) => values.clone(),
            Values::Sixteen(values) => values.iter().map(|&value| narrowed(value)).collect(),
        }
    }

    fn resized<const CHANNELS: usize>(
        &self,
        (width, height): (u32, u32),
        (to_width, to_height): (u32, u32),
        filter: Filter,
    ) -> Result<Values> {
        Ok(match self {
            Values::Eight(values) => {
                let raster = Raster::<CHANNELS>::new(width, height, values.clone())?;
                Values::Eight(raster.resized(to_width, to_height, filter).into_values())
            }
            Values::Sixteen(values) => {
                let (from, to) = (width as usize, to_width as usize);
                let columns = Stretch::whole(width, to_width).taps(width, filter);
                let rows = Stretch::whole(height, to_height).taps(height, filter);
                let mut across = vec![0u16; to * height as usize * CHANNELS];
                let lines = across.chunks_exact_mut(to * CHANNELS);
                for (line, row) in lines.zip(values.chunks_exact(from * CHANNELS)) {
                    for (x, (first, weights)) in columns.iter().enumerate() {
                        for channel in 0..CHANNELS {
                            let at = |k: usize| row[(first + k) * CHANNELS + channel];
                            line[x * CHANNELS + channel] = weighed(weights, at);
                        }
                    }
                }
                let mut out = vec![0u16; to * to_height as usize * CHANNELS];
                for (line, (first, weights)) in out.chunks_exact_mut(to * CHANNELS).zip(&rows) {
                    for (x, value) in line.iter_mut().enumerate() {
                        *value = weighed(weights, |k| across[(first + k) * to * CHANNELS + x]);
                    }
                }
                Values::Sixteen(out)
            }
        })
    }
}

/// A sum of values with weights in fixed point.
fn weighed(weights: &[i32], value: impl Fn(usize) -> u16) -> u16 {
    let sum = |(k, &weight): (usize, &i32)| i64::from(weight) * i64::from(value(k));
    let all: i64 = weights.iter().enumerate().map(sum).sum();
    let half = 1 << (crate::resize::WEIGHT_BITS - 1);
    ((all + half) >> crate::resize::WEIGHT_BITS).clamp(0, i64::from(u16::MAX)) as u16
}

/// The nearest of 8 bits.
fn narrowed(value: u16) -> u8 {
    ((u32::from(value) + 128) / 257) as u8
}

impl Original {
    pub(crate) fn of(image: DynamicImage) -> Result<Original> {
        let (width, height) = (image.width(), image.height());
        let (colours, alpha) = match image {
            DynamicImage::ImageRgba8(image) => {
                let (colours, alpha) = apart(&image.into_raw());
                let solid = alpha.iter().all(|&alpha| alpha == u8::MAX);
                (
                    Values::Eight(colours),
                    (!solid).then_some(Values::Eight(alpha)),
                )
            }
            DynamicImage::ImageRgba16(image) => {
                let (colours, alpha) = apart(&image.into_raw());
                let solid = alpha.iter().all(|&alpha| alpha == u16::MAX);
                (
                    Values::Sixteen(colours),
                    (!solid).then_some(Values::Sixteen(alpha)),
                )
            }
            DynamicImage::ImageRgb16(image) => (Values::Sixteen(image.into_raw()), None),
            other => (Values::Eight(other.into_rgb8().into_raw()), None),
        };
        Ok(Original {
            width,
            height,
            colours,
            alpha,
        })
    }

    /// A black picture, solid or entirely clear, to be filled.
    pub fn blank(width: u32, height: u32, depth: Depth, alpha: bool) -> Original {
        let count = width as usize * height as usize;
        Original {
            width,
            height,
            colours: Values::blank(depth, 3 * count),
            alpha: alpha.then(|| Values::blank(depth, count)),
        }
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Bits of its values.
    pub fn depth(&self) -> Depth {
        self.colours.depth()
    }

    /// Whether it can be seen through somewhere.
    pub fn has_alpha(&self) -> bool {
        self.alpha.is_some()
    }

    /// What is known of it before it is unpacked.
    pub fn size(&self) -> Size {
        Size {
            width: self.width,
            height: self.height,
            alpha: self.has_alpha(),
            deep: self.depth() == Depth::Sixteen,
        }
    }

    /// Bytes of its values.
    pub fn bytes(&self) -> usize {
        let channels = if self.has_alpha() { 4 } else { 3 };
        channels * self.depth().bytes() * self.width as usize * self.height as usize
    }

    /// Its values from byte `at` on, little endian: the colours, or, with `alpha`, how solid it is.
    ///
    /// # Panics
    /// When there are not so many, or values of 16 bits would be cut.
    pub fn read(&self, alpha: bool, at: usize, to: &mut [u8]) {
        match self.values(alpha) {
            Values::Eight(values) => to.copy_from_slice(&values[at..at + to.len()]),
            Values::Sixteen(values) => {
                let (pairs, rest) = to.as_chunks_mut::<2>();
                assert!(at.is_multiple_of(2) && rest.is_empty(), "a value is cut");
                let from = &values[at / 2..at / 2 + pairs.len()];
                for (pair, value) in pairs.iter_mut().zip(from) {
                    *pair = value.to_le_bytes();
                }
            }
        }
    }

    /// Puts values there as [`Original::read`] gives them.
    ///
    /// # Panics
    /// As [`Original::read`].
    pub fn write(&mut self, alpha: bool, at: usize, from: &[u8]) {
        let values = match alpha {
            true => self.alpha.as_mut().expect("it can be seen through"),
            false => &mut self.colours,
        };
        match values {
            Values::Eight(values) => values[at..at + from.len()].copy_from_slice(from),
            Values::Sixteen(values) => {
                let (pairs, rest) = from.as_chunks::<2>();
                assert!(at.is_multiple_of(2) && rest.is_empty(), "a value is cut");
                let to = &mut values[at / 2..at / 2 + pairs.len()];
                for (value, pair) in to.iter_mut().zip(pairs) {
                    *value = u16::from_le_bytes(*pair);
                }
            }
        }
    }

    fn values(&self, alpha: bool) -> &Values {
        match alpha {
            true => self.alpha.as_ref().expect("it can be seen through"),
            false => &self.colours,
        }
    }

    /// Planes of a part of it, 0 to 1, as networks take them: the colours, or, with `alpha`, how solid it is three times.
    /// Beyond its right and lower edge it is mirrored, the edge itself not repeated.
    ///
    /// # Shapes
    /// (3, region.height, region.width).
    pub fn planes(&self, region: Region, alpha: bool, out: &mut [f32]) {
        let (width, plane) = (region.width as usize, out.len() / 3);
        for (index, value) in out.iter_mut().enumerate() {
            let (channel, pixel) = (index / plane, index % plane);
            let x = mirrored(region.left as usize + pixel % width, self.width as usize);
            let y = mirrored(region.top as usize + pixel / width, self.height as usize);
            let at = y * self.width as usize + x;
            *value = match (&self.alpha, alpha) {
                (Some(solid), true) => solid.unit(at),
                (None, true) => 1.0,
                (_, false) => self.colours.unit(3 * at + channel),
            };
        }
    }

    /// Puts planes (3, rows, columns), 0 to 1, of which those from `from` on are wanted, into `region` of it; with
    /// `alpha` their mean says how solid it is.
    pub fn put(
        &mut self,
        region: Region,
        alpha: bool,
        planes: &[f32],
        (columns, from): (usize, (usize, usize)),
    ) {
        let plane = planes.len() / 3;
        let (width, count) = (self.width as usize, region.width as usize);
        for y in 0..region.height as usize {
            let to = (region.top as usize + y) * width + region.left as usize;
            let from = (from.1 + y) * columns + from.0;
            let row = |channel: usize| &planes[channel * plane + from..][..count];
            let rows = [row(0), row(1), row(2)];
            match (&mut self.alpha, alpha) {
                (Some(solid), true) => {
                    for (x, ((a, b), c)) in rows[0].iter().zip(rows[1]).zip(rows[2]).enumerate() {
                        solid.set(to + x, (a + b + c) / 3.0);
                    }
                }
                (None, true) => {}
                (_, false) => self.colours.put(3 * to, rows),
            }
        }
    }

    /// It in another size.
    ///
    /// # Errors
    /// When it has no pixels.
    pub fn resized(&self, width: u32, height: u32, filter: Filter) -> Result<Original> {
        let (from, to) = ((self.width, self.height), (width.max(1), height.max(1)));
        let alpha = self.alpha.as_ref();
        Ok(Original {
            width: to.0,
            height: to.1,
            colours: self.colours.resized::<3>(from, to, filter)?,
            alpha: alpha
                .map(|alpha| alpha.resized::<1>(from, to, filter))
                .transpose()?,
        })
    }

    /// A small look at it, of sides of at most `side_max` pixels, in 8 bits over white: its first `done` rows, and below
    /// them `other`, which shows the same. Each pixel is one of those it stands for.
    pub fn glance(&self, other: &Original, done: u32, side_max: u32) -> Picture {
        let longer = self.width.max(self.height).max(1);
        let side = |side: u32| {
            let scaled = u64::from(side) * u64::from(side_max.min(longer)) / u64::from(longer);
            (scaled as u32).max(1)
        };
        let (width, height) = (side(self.width), side(self.height));
        let mut small = Picture::filled(width, height, [0; 3]);
        for (at, pixel) in small
            .values_mut()
            .as_chunks_mut::<3>()
            .0
            .iter_mut()
            .enumerate()
        {
            let (x, y) = (at as u64 % u64::from(width), at as u64 / u64::from(width));
            let here = y * u64::from(self.height) / u64::from(height) < u64::from(done);
            let from = if here { self } else { other };
            let column = x * u64::from(from.width) / u64::from(width);
            let row = y * u64::from(from.height) / u64::from(height);
            let place = (row * u64::from(from.width) + column) as usize;
            let alpha = from.alpha.as_ref().map_or(1.0, |alpha| alpha.unit(place));
            for (channel, value) in pixel.iter_mut().enumerate() {
                let unit = from.colours.unit(3 * place + channel);
                *value = (255.0 * (unit * alpha + 1.0 - alpha)).round() as u8;
            }
        }
        small
    }

    /// It in 8 bits, over white.
    ///
    /// # Errors
    /// When it has no pixels.
    pub fn flattened(&self) -> Result<Decoded> {
        let mut rgb = self.colours.eight();
        let alpha = self.alpha.as_ref().map(Values::eight);
        if let Some(alpha) = &alpha {
            for (pixel, &alpha) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(alpha) {
                *pixel = pixel.map(|value| crate::decode::over(value, alpha));
            }
        }
        let (width, height) = (self.width, self.height);
        Ok(Decoded {
            picture: Picture::new(width, height, rgb)?,
            alpha: alpha
                .map(|alpha| Mask::new(width, height, alpha))
                .transpose()?,
        })
    }

    /// The bytes of a file in `format` that holds it and `text`. PNG keeps everything, WebP 8 bits and what can be seen
    /// through, JPEG 8 bits over white.
    ///
    /// # Errors
    /// As [`crate::encode`].
    pub fn encode(&self, format: Format, text: &str) -> Result<Vec<u8>> {
        let (width, height) = (self.width, self.height);
        if format == Format::Jpeg || (format == Format::Webp && self.alpha.is_none()) {
            return crate::encode(self.flattened()?.picture.pixels(), format, text);
        }
        let mut file = Vec::new();
        if format == Format::Webp {
            let mut encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut file);
            set_text(&mut encoder, text)?;
            let pixels = self.interleaved_eight();
            encoder.write_image(&pixels, width, height, ExtendedColorType::Rgba8)?;
            return Ok(file);
        }
        let (kind, pixels) = match (self.depth(), &self.alpha) {
            (Depth::Eight, None) => (PngKind::RGB8, self.colours.eight()),
            (Depth::Eight, Some(_)) => (PngKind::RGBA8, self.interleaved_eight()),
            (Depth::Sixteen, None) => (PngKind::RGB16, self.sixteen_bytes()),
            (Depth::Sixteen, Some(_)) => (PngKind::RGBA16, self.sixteen_bytes()),
        };
        encode_png((width, height), kind, &pixels, text, &mut file)?;
        Ok(file)
    }

    fn interleaved_eight(&self) -> Vec<u8> {
        let (colours, alpha) = (self.colours.eight(), self.alpha.as_ref().map(Values::eight));
        let mut out = Vec::with_capacity(4 * self.width as usize * self.height as usize);
        for (pixel, rgb) in colours.as_chunks::<3>().0.iter().enumerate() {
            out.extend(rgb);
            out.push(alpha.as_ref().map_or(u8::MAX, |alpha| alpha[pixel]));
        }
        out
    }

    /// Big endian, as PNG wants them.
    fn sixteen_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes());
        if let Values::Sixteen(colours) = &self.colours {
            for (pixel, rgb) in colours.as_chunks::<3>().0.iter().enumerate() {
                out.extend(rgb.iter().flat_map(|value| value.to_be_bytes()));
                if let Some(Values::Sixteen(alpha)) = &self.alpha {
                    out.extend(alpha[pixel].to_be_bytes());
                }
            }
        }
        out
    }
}

impl From<&Picture> for Original {
    fn from(picture: &Picture) -> Original {
        Original {
            width: picture.width(),
            height: picture.height(),
            colours: Values::Eight(picture.values().to_vec()),
            alpha: None,
        }
    }
}

/// Colours and alpha of interleaved values.
fn apart<T: Copy>(values: &[T]) -> (Vec<T>, Vec<T>) {
    let (pixels, _) = values.as_chunks::<4>();
    let colours = pixels.iter().flat_map(|pixel| pixel[..3].iter().copied());
    (
        colours.collect(),
        pixels.iter().map(|pixel| pixel[3]).collect(),
    )
}

/// A place beyond the end of a side, mirrored back.
fn mirrored(at: usize, side: usize) -> usize {
    if at < side || side < 2 {
        return at.min(side - 1);
    }
    let period = 2 * (side - 1);
    let at = at % period;
    at.min(period - at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beyond_an_edge_is_mirrored() {
        let seen: Vec<usize> = (0..9).map(|at| mirrored(at, 4)).collect();
        assert_eq!(seen, [0, 1, 2, 3, 2, 1, 0, 1, 2]);
        assert_eq!([mirrored(0, 1), mirrored(5, 1)], [0, 0]);
    }

    #[test]
    fn values_are_rounded_to_the_nearest() {
        assert_eq!([0, 128, 129, 65_535].map(narrowed), [0, 0, 1, 255]);
        let mut values = Values::blank(Depth::Eight, 4);
        for (at, unit) in [-1.0, 2.0, 0.5, 100.4 / 255.0].into_iter().enumerate() {
            values.set(at, unit);
        }
        assert_eq!(values, Values::Eight(vec![0, 255, 128, 100]));
    }

    #[test]
    fn sixteen_bits_are_resized_as_eight_are() {
        let eight: Vec<u8> = (0..3 * 23 * 17).map(|k| (k * 37 % 251) as u8).collect();
        let sixteen = Values::Sixteen(eight.iter().map(|&v| u16::from(v) * 257).collect());
        for to in [(40, 31), (9, 40), (23, 5)] {
            let small = Values::Eight(eight.clone()).resized::<3>((23, 17), to, Filter::Lanczos);
            let deep = sixteen.resized::<3>((23, 17), to, Filter::Lanczos).unwrap();
            let (a, b) = (small.unwrap().eight(), deep.eight());
            let worst = a.iter().zip(&b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            // Eight bits are rounded between rows and columns.
            assert!(worst <= 2, "{to:?}: {worst}");
        }
    }
}
