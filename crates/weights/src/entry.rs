//! One tensor of a checkpoint, and how its bytes lie in the file.

use lowtide_core::{Dtype, TensorLayout};

use crate::{Result, Source};

/// How many bytes of a tensor in another order are in memory at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// One tensor of a checkpoint, and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// As in the file, or as the view of the file calls it.
    pub name: String,
    /// How one element is stored.
    pub dtype: Dtype,
    /// Dimensions, slowest first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Which of the checkpoint's files it is in.
    pub source: usize,
    /// Its first byte, from the start of that file.
    pub offset: u64,
    /// Its length in bytes: exactly what shape and dtype need.
    pub bytes: u64,
    /// How many elements further the next one of each dimension lies; `None` where they follow each other in order,
    /// as nearly all do. Otherwise the same elements in another order, without gaps: a transposed matrix.
    pub strides: Option<Box<[u64]>>,
}

impl TensorEntry {
    /// Name, type and shape, without the place.
    pub fn layout(&self) -> TensorLayout {
        TensorLayout {
            name: self.name.clone(),
            dtype: self.dtype,
            shape: self.shape.clone(),
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.bytes / self.dtype.size()
    }

    /// The same bytes under another name.
    pub(crate) fn renamed(&self, name: impl Into<String>) -> TensorEntry {
        TensorEntry {
            name: name.into(),
            ..self.clone()
        }
    }

    /// The same matrix, columns as rows; `None` for what is not a matrix.
    pub(crate) fn transposed(&self, name: impl Into<String>) -> Option<TensorEntry> {
        let [rows, cols] = self.shape[..] else {
            return None;
        };
        let strides = match self.strides.as_deref() {
            Some(&[row, col]) => Box::new([col, row]),
            _ => Box::new([1, cols as u64]),
        };
        let mut turned = self.renamed(name);
        turned.shape = vec![cols, rows];
        turned.strides = ordered(&turned.shape, strides);
        Some(turned)
    }

    /// `count` rows (slices of the first dimension) from row `first` on; `None` where they are not one range of bytes.
    pub(crate) fn rows(
        &self,
        name: impl Into<String>,
        first: usize,
        count: usize,
    ) -> Option<TensorEntry> {
        let rows = *self.shape.first()?;
        let inside = first.checked_add(count)? <= rows && self.strides.is_none() && rows > 0;
        let row_bytes = inside.then(|| self.bytes / rows as u64)?;
        let mut part = self.renamed(name);
        part.shape[0] = count;
        part.offset += first as u64 * row_bytes;
        part.bytes = count as u64 * row_bytes;
        Some(part)
    }

    /// The same elements in another shape; `None` where the count differs or they are not in order.
    pub(crate) fn reshaped(
        &self,
        name: impl Into<String>,
        shape: Vec<usize>,
    ) -> Option<TensorEntry> {
        let count = shape
            .iter()
            .try_fold(1u64, |n, &dim| n.checked_mul(dim as u64))?;
        (count == self.elements() && self.strides.is_none()).then(|| TensorEntry {
            shape,
            ..self.renamed(name)
        })
    }

    /// Reads a part of the tensor from byte `offset` of its own order on. The caller has checked that it is inside.
    pub(crate) fn read_from(&self, source: &Source, offset: u64, out: &mut [u8]) -> Result<()> {
        match &self.strides {
            None => source.read_at(self.offset + offset, out),
            Some(strides) => self.read_permuted(source, strides, offset, out),
        }
    }

    /// Walks over the stored elements in the order in which they lie, and puts those that are wanted where they belong.
    fn read_permuted(
        &self,
        source: &Source,
        strides: &[u64],
        offset: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let size = self.dtype.size();
        // Dimensions as they lie in the file, slowest first, each with its step in the tensor's own order.
        let mut steps = vec![1u64; self.shape.len()];
        for dim in (1..self.shape.len()).rev() {
            steps[dim - 1] = steps[dim] * self.shape[dim] as u64;
        }
        let mut order: Vec<usize> = (0..self.shape.len())
            .filter(|&dim| self.shape[dim] > 1)
            .collect();
        order.sort_by_key(|&dim| std::cmp::Reverse(strides[dim]));
        let mut place = Walk {
            dims: order
                .iter()
                .map(|&dim| (self.shape[dim] as u64, steps[dim]))
                .collect(),
            at: vec![0; order.len()],
            index: 0,
        };
        let end = offset + out.len() as u64;
        let mut chunk = vec![0; self.bytes.min(CHUNK_BYTES) as usize];
        let mut read = 0;
        while read < self.bytes {
            let part = &mut chunk[..(self.bytes - read).min(CHUNK_BYTES) as usize];
            source.read_at(self.offset + read, part)?;
            read += part.len() as u64;
            for element in part.chunks_exact(size as usize) {
                let begin = place.next() * size;
                // A range may begin or end inside an element.
                let (from, to) = (begin.max(offset), (begin + size).min(end));
                if from < to {
                    let inside = &element[(from - begin) as usize..(to - begin) as usize];
                    out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(inside);
                }
            }
        }
        Ok(())
    }
}

/// Indices in a tensor's own order, for elements in the order in which they lie.
struct Walk {
    /// Length and step of each dimension, the slowest first.
    dims: Vec<(u64, u64)>,
    at: Vec<u64>,
    index: u64,
}

impl Walk {
    fn next(&mut self) -> u64 {
        let now = self.index;
        for (at, &(length, step)) in self.at.iter_mut().zip(&self.dims).rev() {
            *at += 1;
            self.index += step;
            if *at < length {
                break;
            }
            self.index -= length * step;
            *at = 0;
        }
        now
    }
}

/// Strides to keep: `None` where they say no more than the shape does. Dimensions of one element have no order.
pub(crate) fn ordered(shape: &[usize], strides: Box<[u64]>) -> Option<Box<[u64]>> {
    if shape.contains(&0) {
        return None;
    }
    let mut expected = 1;
    for (&dim, &stride) in shape.iter().zip(&strides).rev() {
        if dim > 1 && stride != expected {
            return Some(strides);
        }
        expected *= dim as u64;
    }
    None
}

/// Whether the strides are those of the same elements in some order: no gaps, no element twice.
pub(crate) fn is_dense(shape: &[usize], strides: &[u64]) -> bool {
    let mut dims: Vec<(u64, u64)> = shape
        .iter()
        .zip(strides)
        .filter(|(dim, _)| **dim != 1)
        .map(|(&dim, &stride)| (stride, dim as u64))
        .collect();
    dims.sort_unstable();
    let mut expected = 1u64;
    dims.iter().all(|&(stride, dim)| {
        let fits = stride == expected;
        expected = expected.saturating_mul(dim);
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(shape: &[usize], strides: &[u64]) -> (TensorEntry, Source) {
        let count: usize = shape.iter().product();
        let values: Vec<u8> = (0..count as u16).flat_map(u16::to_le_bytes).collect();
        let entry = TensorEntry {
            name: "t".to_owned(),
            dtype: Dtype::U16,
            shape: shape.to_vec(),
            source: 0,
            offset: 0,
            bytes: 2 * count as u64,
            strides: ordered(shape, strides.into()),
        };
        let source = Source::Memory {
            name: "here".to_owned(),
            bytes: values.into(),
        };
        (entry, source)
    }

    /// What indexing by strides gives, element by element.
    fn expected(shape: &[usize], strides: &[u64]) -> Vec<u8> {
        let mut indices = vec![0u64];
        for (&dim, &stride) in shape.iter().zip(strides) {
            indices = indices
                .iter()
                .flat_map(|base| (0..dim as u64).map(move |i| base + i * stride))
                .collect();
        }
        indices
            .iter()
            .flat_map(|&i| (i as u16).to_le_bytes())
            .collect()
    }

    #[test]
    fn every_order_of_dimensions_reads_as_indexing_does() {
        for (shape, strides) in [
            (&[5usize, 7][..], &[1u64, 5][..]),
            (&[3, 1, 4], &[1, 99, 3]),
            (&[2, 3, 4, 5], &[1, 40, 10, 2]),
            (&[4, 2, 3], &[6, 1, 2]),
            (&[2, 3], &[3, 1]),
        ] {
            assert!(is_dense(shape, strides), "{shape:?} {strides:?}");
            let (entry, source) = entry(shape, strides);
            let want = expected(shape, strides);
            let mut out = vec![0; want.len()];
            entry.read_from(&source, 0, &mut out).unwrap();
            assert_eq!(out, want, "{shape:?} {strides:?}");
            // Any part of it, also one that begins and ends inside an element.
            for (from, to) in [(0, 3), (1, 6), (3, want.len() - 1), (4, 4)] {
                let mut part = vec![0; to - from];
                entry.read_from(&source, from as u64, &mut part).unwrap();
                assert_eq!(part, want[from..to], "{shape:?} {from}..{to}");
            }
        }
        assert_eq!(entry(&[2, 3], &[3, 1]).0.strides, None);
    }

    #[test]
    fn transposing_twice_changes_nothing() {
        let (entry, source) = entry(&[5, 7], &[7, 1]);
        let turned = entry.transposed("t").unwrap();
        assert_eq!(
            (turned.shape.as_slice(), turned.strides.as_deref()),
            (&[7usize, 5][..], Some(&[1u64, 7][..]))
        );
        let mut out = vec![0; 70];
        turned.read_from(&source, 0, &mut out).unwrap();
        assert_eq!(out, expected(&[7, 5], &[1, 7]));
        assert_eq!(turned.transposed("t").unwrap(), entry);
        assert!(turned.rows("r", 0, 1).is_none(), "rows lie apart");
        assert_eq!(entry.rows("r", 1, 2).unwrap().offset, 14);
        assert!(entry.rows("r", 4, 2).is_none());
    }

    #[test]
    fn gaps_and_repetitions_are_not_dense() {
        for (shape, strides) in [
            (&[2usize, 3][..], &[4u64, 1][..]),
            (&[2, 3], &[0, 1]),
            (&[2, 2], &[1, 1]),
            (&[3], &[2]),
            (&[usize::MAX, 8, usize::MAX], &[u64::MAX, 3, 1]),
        ] {
            assert!(!is_dense(shape, strides), "{shape:?} {strides:?}");
        }
    }

    #[test]
    fn large_tensors_are_read_in_chunks() {
        let (rows, cols) = (1100usize, 600usize);
        let mut entry = entry(&[rows, cols], &[cols as u64, 1]).0;
        let data: Vec<u8> = (0..rows * cols)
            .flat_map(|i| (i as u16).to_le_bytes())
            .collect();
        assert!(data.len() as u64 > CHUNK_BYTES);
        entry.bytes = data.len() as u64;
        let source = Source::Memory {
            name: "here".to_owned(),
            bytes: data.into(),
        };
        let turned = entry.transposed("t").unwrap();
        let mut out = vec![0; entry.bytes as usize];
        turned.read_from(&source, 0, &mut out).unwrap();
        let at = |r: usize, c: usize| {
            u16::from_le_bytes([out[2 * (r * rows + c)], out[2 * (r * rows + c) + 1]])
        };
        for (r, c) in [(0, 0), (599, 1099), (17, 1000), (433, 3)] {
            assert_eq!(at(r, c), (c * cols + r) as u16);
        }
    }
}
