//! Memory that notices when something beside it is written, and makes what is read beside it NaN.

use crate::gpu;
use lowtide_cuda::ops::{At, MatrixIn, Memory, RowsIn, ScalesIn};
use lowtide_kernels as cpu;

/// What lies before and behind, in bytes.
const GUARD: usize = 64;

/// Where bytes lie: memory of this process alone, or a GPU's as well.
#[derive(Debug)]
enum Store {
    Own(Vec<u8>),
    Shared(&'static mut [u8]),
}

impl Store {
    fn new(bytes: usize) -> Store {
        match gpu::is_wanted() {
            true => Store::Shared(gpu::memory(bytes)),
            false => Store::Own(vec![0; bytes]),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Store::Own(bytes) => bytes,
            Store::Shared(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Store::Own(bytes) => bytes,
            Store::Shared(bytes) => bytes,
        }
    }
}

/// Bytes at a known distance from a multiple of 16.
#[derive(Debug)]
pub(crate) struct Held {
    all: Store,
    /// Of the first byte; taken once, since what is there changes behind Rust's back.
    address: u64,
    start: usize,
    bytes: usize,
}

impl Held {
    pub(crate) fn new(data: &[u8], offset: usize) -> Held {
        let mut all = Store::new(data.len() + 2 * GUARD + 32);
        let bytes = all.bytes_mut();
        bytes.fill(0xff);
        let start = bytes.as_ptr().align_offset(16) + GUARD + offset;
        bytes[start..start + data.len()].copy_from_slice(data);
        let address = bytes[start..].as_mut_ptr() as u64;
        Held {
            all,
            address,
            start,
            bytes: data.len(),
        }
    }

    /// f32 that begin `offset` bytes from a multiple of 16.
    pub(crate) fn f32s(numbers: &[f32], offset: usize) -> Held {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        Held::new(&bytes, offset)
    }

    pub(crate) fn f64s(numbers: &[f64]) -> Held {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        Held::new(&bytes, 0)
    }

    fn data(&self) -> &[u8] {
        let (before, rest) = self.all.bytes().split_at(self.start);
        let (data, behind) = rest.split_at(self.bytes);
        assert!(
            before.iter().chain(behind).all(|byte| *byte == 0xff),
            "something beside memory was written"
        );
        data
    }

    pub(crate) fn to_f32s(&self) -> Vec<f32> {
        let (numbers, _) = self.data().as_chunks::<4>();
        numbers.iter().map(|n| f32::from_le_bytes(*n)).collect()
    }

    pub(crate) fn to_f64s(&self) -> Vec<f64> {
        let (numbers, _) = self.data().as_chunks::<8>();
        numbers.iter().map(|n| f64::from_le_bytes(*n)).collect()
    }
}

impl Memory for Held {
    fn at(&self) -> At {
        At {
            address: self.address,
            bytes: self.bytes,
        }
    }
}

/// Rows in memory, both as the CPU's kernels and as the GPU's see them.
#[derive(Debug)]
pub(crate) struct HeldRows {
    pub(crate) numbers: Vec<f32>,
    pub(crate) held: Held,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

impl HeldRows {
    /// Numbers between rows are NaN.
    pub(crate) fn new(
        dense: &[f32],
        rows: usize,
        cols: usize,
        gap: usize,
        offset: usize,
    ) -> HeldRows {
        let stride = cols + gap;
        let mut numbers = vec![f32::NAN; (rows * stride).saturating_sub(gap)];
        for row in 0..rows {
            numbers[row * stride..][..cols].copy_from_slice(&dense[row * cols..][..cols]);
        }
        HeldRows {
            held: Held::f32s(&numbers, offset),
            numbers,
            rows,
            cols,
            stride,
        }
    }

    pub(crate) fn gpu(&self) -> RowsIn<At> {
        RowsIn {
            data: self.held.at(),
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
        }
    }

    /// Some of the rows.
    pub(crate) fn gpu_rows(&self, first: usize, rows: usize) -> RowsIn<At> {
        let all = self.held.at();
        RowsIn {
            data: At {
                address: all.address + (first * self.stride * 4) as u64,
                bytes: all.bytes - first * self.stride * 4,
            },
            rows,
            cols: self.cols,
            stride: self.stride,
        }
    }

    pub(crate) fn cpu(&self) -> cpu::Rows<'_> {
        cpu::Rows {
            data: &self.numbers,
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
        }
    }

    pub(crate) fn cpu_mut(&mut self) -> cpu::RowsMut<'_> {
        cpu::RowsMut {
            data: &mut self.numbers,
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
        }
    }

    /// What the GPU's kernels left, without gaps; the gaps must be as they were.
    pub(crate) fn result(&self) -> Vec<f32> {
        self.dense(&self.held.to_f32s())
    }

    /// What the CPU's kernels left.
    pub(crate) fn expected(&self) -> Vec<f32> {
        self.dense(&self.numbers)
    }

    fn dense(&self, numbers: &[f32]) -> Vec<f32> {
        let mut dense = Vec::new();
        for row in 0..self.rows {
            dense.extend(&numbers[row * self.stride..][..self.cols]);
            let gap = numbers[row * self.stride + self.cols..].iter();
            let gap = gap.take(self.stride - self.cols);
            assert!(
                gap.into_iter().all(|n| n.is_nan()),
                "a gap between rows was written"
            );
        }
        dense
    }
}

/// A matrix in memory, for both.
#[derive(Debug)]
pub(crate) struct HeldMatrix {
    pub(crate) stored: cpu::Stored,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bytes: Vec<u8>,
    pub(crate) scales: Option<(cpu::Stored, cpu::Per, Vec<u8>, Held)>,
    pub(crate) held: Held,
}

impl HeldMatrix {
    pub(crate) fn gpu(&self) -> MatrixIn<At> {
        MatrixIn {
            stored: self.stored,
            data: self.held.at(),
            rows: self.rows,
            cols: self.cols,
            scales: self.scales.as_ref().map(|(stored, per, _, held)| ScalesIn {
                stored: *stored,
                data: held.at(),
                per: *per,
            }),
        }
    }

    pub(crate) fn cpu(&self) -> cpu::Matrix<'_> {
        cpu::Matrix {
            stored: self.stored,
            bytes: &self.bytes,
            rows: self.rows,
            cols: self.cols,
            scales: self
                .scales
                .as_ref()
                .map(|(stored, per, bytes, _)| cpu::Scales {
                    stored: *stored,
                    bytes,
                    per: *per,
                }),
        }
    }

    /// All numbers, times their scales.
    pub(crate) fn widened(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.rows * self.cols];
        cpu::to_f32(self.stored, &self.bytes, &mut numbers);
        if let Some(scales) = &self.cpu().scales {
            scales.apply(&mut numbers, self.cols);
        }
        numbers
    }
}
