//! A picture as a detector sees it: its longer side of a given length, and grey where its shape leaves room.

use lowtide_media::Picture;
use lowtide_models::yolov8::SIDE_STEP;
use lowtide_models::{Result, Tensor};

/// What is around a picture, of 255.
const GREY: f32 = 114.0;

/// Where a picture lies in what the network sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Letterbox {
    /// Pixels of the picture.
    size: (u32, u32),
    /// Pixels of the network's input.
    pub(super) width: usize,
    /// Pixels of the network's input.
    pub(super) height: usize,
    /// Pixels of the picture within it.
    inner: (usize, usize),
    /// Columns left of it, rows above it.
    left: usize,
    top: usize,
    /// Pixels of the input a pixel of the picture.
    gain: f32,
}

impl Letterbox {
    /// For a picture of this size, its longer side becoming `side` pixels.
    pub(super) fn new(size: (u32, u32), side: usize) -> Letterbox {
        let (width, height) = (f64::from(size.0.max(1)), f64::from(size.1.max(1)));
        let gain = (side as f64 / width).min(side as f64 / height);
        let inner = |length: f64| (length * gain).round_ties_even().max(1.0) as usize;
        let inner = (inner(width), inner(height));
        let outer = |inner: usize| inner.next_multiple_of(SIDE_STEP);
        // Of an odd number of pixels the smaller half comes first.
        let before = |inner: usize| (outer(inner) - inner) / 2;
        Letterbox {
            size,
            width: outer(inner.0),
            height: outer(inner.1),
            left: before(inner.0),
            top: before(inner.1),
            inner,
            gain: gain as f32,
        }
    }

    /// The picture: bilinear between its pixels, without smoothing, as these networks are trained and used elsewhere.
    ///
    /// # Shapes
    /// (3, height, width), 0 to 1.
    ///
    /// # Errors
    /// When memory is refused.
    pub(super) fn input(&self, picture: &Picture) -> Result<Tensor> {
        let mut input = Tensor::new(&[3, self.height, self.width])?;
        let plane = self.height * self.width;
        input.data_mut().fill(GREY / 255.0);
        let columns = between(self.size.0 as usize, self.inner.0);
        let rows = between(self.size.1 as usize, self.inner.1);
        let values = picture.values();
        let stride = 3 * self.size.0 as usize;
        for (y, &(above, below, down)) in rows.iter().enumerate() {
            let (above, below) = (&values[above * stride..], &values[below * stride..]);
            let start = (self.top + y) * self.width + self.left;
            for (x, &(left, right, across)) in columns.iter().enumerate() {
                for channel in 0..3 {
                    let value = |row: &[u8], column: usize| f32::from(row[3 * column + channel]);
                    let line =
                        |row: &[u8]| value(row, left) * (1.0 - across) + value(row, right) * across;
                    let exact = line(above) * (1.0 - down) + line(below) * down;
                    input.data_mut()[channel * plane + start + x] = exact.round() / 255.0;
                }
            }
        }
        Ok(input)
    }

    /// Edges in the input as edges in the picture, within it.
    pub(super) fn back(&self, edges: [f32; 4]) -> [f32; 4] {
        let (left, top) = (self.left as f32, self.top as f32);
        let (width, height) = (self.size.0 as f32, self.size.1 as f32);
        let x = |edge: f32| ((edge - left) / self.gain).clamp(0.0, width);
        let y = |edge: f32| ((edge - top) / self.gain).clamp(0.0, height);
        [x(edges[0]), y(edges[1]), x(edges[2]), y(edges[3])]
    }

    /// A point of the picture in the input.
    pub(super) fn there(&self, x: f32, y: f32) -> (f32, f32) {
        (
            x * self.gain + self.left as f32,
            y * self.gain + self.top as f32,
        )
    }
}

/// For each of `to` pixels the two of `from` it lies between, and how far it is from the first.
fn between(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let step = from as f32 / to as f32;
    let place = |at: usize| {
        let exact = ((at as f32 + 0.5) * step - 0.5).max(0.0);
        let first = (exact as usize).min(from - 1);
        let next = (first + 1).min(from - 1);
        (first, next, exact - first as f32)
    };
    (0..to).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_side_is_as_long_as_asked_and_the_rest_is_grey() {
        let wide = Letterbox::new((300, 150), 64);
        assert_eq!((wide.width, wide.height, wide.inner), (64, 32, (64, 32)));
        let tall = Letterbox::new((100, 203), 64);
        assert_eq!((tall.width, tall.height, tall.inner), (32, 64, (32, 64)));
        let odd = Letterbox::new((200, 100), 70);
        assert_eq!((odd.width, odd.height, odd.inner), (96, 64, (70, 35)));
        assert_eq!((odd.left, odd.top), (13, 14));
        let picture = Picture::new(200, 100, vec![255; 60_000]).unwrap();
        let input = odd.input(&picture).unwrap();
        let at = |x: usize, y: usize| input.data()[y * 96 + x];
        assert_eq!((at(13, 14), at(82, 48)), (1.0, 1.0));
        assert_eq!((at(12, 14), at(13, 13)), (GREY / 255.0, GREY / 255.0));
        assert_eq!((at(83, 48), at(82, 49)), (GREY / 255.0, GREY / 255.0));
    }

    #[test]
    fn edges_come_back_to_where_they_are_in_the_picture() {
        let odd = Letterbox::new((200, 100), 70);
        let (left, top) = odd.there(20.0, 30.0);
        let back = odd.back([left, top, 1e6, -5.0]);
        assert!((back[0] - 20.0).abs() < 1e-3 && (back[1] - 30.0).abs() < 1e-3);
        assert_eq!(back[2..], [200.0, 0.0]);
    }
}
