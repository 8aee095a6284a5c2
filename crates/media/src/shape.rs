//! Masks of shapes: rectangles, moved, grown, shrunk, joined.

use crate::Result;
use crate::raster::Mask;

/// Whether a place counts as masked: from a half on.
fn is_on(value: u8) -> bool {
    value >= 128
}

impl Mask {
    /// A mask of `width` x `height`, 255 where `inside(x, y)`.
    ///
    /// # Errors
    /// [`crate::Error::Pixels`] when a side is 0.
    pub fn where_inside(
        width: u32,
        height: u32,
        mut inside: impl FnMut(u32, u32) -> bool,
    ) -> Result<Mask> {
        let mut values = Vec::with_capacity(width as usize * height as usize);
        for y in 0..height {
            values.extend((0..width).map(|x| if inside(x, y) { u8::MAX } else { 0 }));
        }
        Mask::new(width, height, values)
    }

    /// Whether nothing is masked.
    pub fn is_empty(&self) -> bool {
        self.values().iter().all(|&value| value == 0)
    }

    /// Pixels that are masked, from a half on.
    pub fn count(&self) -> usize {
        self.values().iter().filter(|&&value| is_on(value)).count()
    }

    /// Moved right and down by so many pixels; what leaves is lost, what comes is not masked.
    pub fn moved(&self, right: i64, down: i64) -> Mask {
        let mut moved = Mask::filled(self.width(), self.height(), [0]);
        moved.paste(self, right, down);
        moved
    }

    /// Grown by a square of `size` pixels, or shrunk where that is negative; what is beyond the edges changes nothing. An
    /// even square reaches one pixel further to the left and above: to the right and below it grows the mask more.
    ///
    /// # Source
    /// OpenCV's `dilate` and `erode` with a kernel of ones and its middle as the anchor.
    pub fn grown(&self, size: i32) -> Mask {
        let reach = size.unsigned_abs() as usize;
        let mut mask = match size {
            0 => return self.clone(),
            size if size < 0 => self.inverted(),
            _ => self.clone(),
        };
        let (width, height) = (self.width() as usize, self.height() as usize);
        let mut line = Vec::new();
        for row in mask.values_mut().chunks_exact_mut(width) {
            grow(row, reach, &mut line);
        }
        let mut column = vec![0; height];
        let values = mask.values_mut();
        for x in 0..width {
            for (to, from) in column.iter_mut().zip(values[x..].iter().step_by(width)) {
                *to = *from;
            }
            grow(&mut column, reach, &mut line);
            for (to, from) in values[x..].iter_mut().step_by(width).zip(&column) {
                *to = *from;
            }
        }
        match size < 0 {
            true => mask.inverted(),
            false => mask,
        }
    }

    /// Where either is masked; of the size of the first, the second lying over its top left corner.
    pub fn united(&self, other: &Mask) -> Mask {
        let mut mask = self.clone();
        let width = self.width() as usize;
        let both = width.min(other.width() as usize);
        let rows = mask.values_mut().chunks_exact_mut(width);
        for (y, row) in rows.enumerate().take(other.height() as usize) {
            for (value, more) in row.iter_mut().zip(&other.row(y)[..both]) {
                *value = (*value).max(*more);
            }
        }
        mask
    }
}

/// 255 where any of `size` values around is masked: half of them before, the rest from the value itself on.
fn grow(line: &mut [u8], size: usize, before: &mut Vec<u8>) {
    before.clear();
    before.extend_from_slice(line);
    let (back, ahead) = (size / 2, size - 1 - size / 2);
    let mut masked = before.iter().take(ahead).filter(|&&v| is_on(v)).count();
    for (x, value) in line.iter_mut().enumerate() {
        masked += usize::from(before.get(x + ahead).is_some_and(|&v| is_on(v)));
        *value = if masked > 0 { u8::MAX } else { 0 };
        if let Some(gone) = x.checked_sub(back) {
            masked -= usize::from(is_on(before[gone]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(rows: &[&str]) -> Mask {
        let (width, height) = (rows[0].len() as u32, rows.len() as u32);
        let at = |x: u32, y: u32| rows[y as usize].as_bytes()[x as usize] == b'#';
        Mask::where_inside(width, height, at).unwrap()
    }

    fn rows(mask: &Mask) -> Vec<String> {
        let lines = mask.values().chunks_exact(mask.width() as usize);
        let sign = |&value: &u8| if value == 255 { '#' } else { '.' };
        lines.map(|line| line.iter().map(sign).collect()).collect()
    }

    #[test]
    fn squares_grow_and_shrink_masks_as_opencv_does() {
        // cv2.dilate and cv2.erode with np.ones((n, n)).
        let dot = mask(&[".......", ".......", "...#...", ".......", "......."]);
        assert_eq!(
            rows(&dot.grown(3)),
            [".......", "..###..", "..###..", "..###..", "......."]
        );
        assert_eq!(
            rows(&dot.grown(4)),
            [".......", "..####.", "..####.", "..####.", "..####."]
        );
        assert_eq!(rows(&dot.grown(3).grown(-3)), rows(&dot));
        assert_eq!(rows(&dot.grown(0)), rows(&dot));
        assert!(dot.grown(-2).is_empty());
        // What is beyond the edges shrinks nothing.
        let full = mask(&["##", "##"]);
        assert_eq!(rows(&full.grown(-3)), rows(&full));
    }

    #[test]
    fn masks_are_moved_and_joined() {
        let corner = mask(&["#...", "....", "...."]);
        let moved = corner.moved(2, 1);
        assert_eq!(rows(&moved), ["....", "..#.", "...."]);
        assert_eq!(rows(&corner.united(&moved)), ["#...", "..#.", "...."]);
        assert!(corner.moved(-1, 0).is_empty());
        assert_eq!((corner.count(), moved.count()), (1, 1));
    }
}
