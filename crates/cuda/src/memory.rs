//! Bytes on the GPU: buffers that own them, and parts of buffers.
//!
//! Everything here happens in the order of the compute stream: a buffer may be dropped while kernels that use it still
//! wait, since its memory is free only after them. What another stream uses must be awaited first ([`crate::Event`]).
//! Addresses are the device's and are never looked behind here.

use crate::error::Error;
use crate::gpu::Gpu;
use cudarc::driver::sys::{self, CUdeviceptr};
use std::marker::PhantomData;
use std::ops::Range;

/// Every buffer begins at a multiple of this, in bytes.
pub const BUFFER_ALIGNMENT: usize = 256;

/// Bytes on the GPU, from its pool; they go back in order of the compute stream.
#[derive(Debug)]
pub struct Buffer {
    gpu: Gpu,
    address: CUdeviceptr,
    bytes: usize,
}

impl Buffer {
    /// So many bytes with anything in them, or the budget's refusal. They are there in order of the compute stream, and
    /// may be those of a buffer that was dropped while work with it still waits: the copy stream must wait for an event
    /// that was recorded after this before it fills them.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Buffer, Error> {
        Ok(Buffer {
            gpu: gpu.clone(),
            address: gpu.allocate(bytes)?,
            bytes,
        })
    }

    /// So many bytes that are zero.
    pub fn zeroed(gpu: &Gpu, bytes: usize) -> Result<Buffer, Error> {
        let mut buffer = Buffer::new(gpu, bytes)?;
        buffer.span_mut().zero()?;
        Ok(buffer)
    }

    /// The bytes of `from`, copied; waits until they may be forgotten there.
    pub fn from_bytes(gpu: &Gpu, from: &[u8]) -> Result<Buffer, Error> {
        let mut buffer = Buffer::new(gpu, from.len())?;
        buffer.span_mut().upload(from)?;
        Ok(buffer)
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Where it is.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// All of it, to be read.
    pub fn span(&self) -> Span<'_> {
        Span {
            gpu: &self.gpu,
            address: self.address,
            bytes: self.bytes,
        }
    }

    /// All of it, to be written.
    pub fn span_mut(&mut self) -> SpanMut<'_> {
        SpanMut {
            gpu: &self.gpu,
            address: self.address,
            bytes: self.bytes,
            unique: PhantomData,
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.gpu.release(self.address, self.bytes);
    }
}

/// A part of a buffer, to be read.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    gpu: &'a Gpu,
    address: CUdeviceptr,
    bytes: usize,
}

/// A part of a buffer, to be written.
#[derive(Debug)]
pub struct SpanMut<'a> {
    gpu: &'a Gpu,
    address: CUdeviceptr,
    bytes: usize,
    unique: PhantomData<&'a mut [u8]>,
}

/// The address of a part; panics where it is none.
fn within(address: CUdeviceptr, bytes: usize, part: &Range<usize>) -> (CUdeviceptr, usize) {
    assert!(
        part.start <= part.end && part.end <= bytes,
        "bytes {} to {} of a span of {bytes}",
        part.start,
        part.end
    );
    (address + part.start as u64, part.end - part.start)
}

impl<'a> Span<'a> {
    /// A span of memory that something else owns: a slot of which the caller knows the lifetime, or scratch.
    ///
    /// # Safety
    /// So many bytes at `address` are of `gpu`'s device, and stay there for as long as the span or any work given to
    /// the compute stream with it.
    pub unsafe fn from_raw(gpu: &'a Gpu, address: u64, bytes: usize) -> Span<'a> {
        Span {
            gpu,
            address,
            bytes,
        }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// How many f32 that is.
    pub fn f32s(&self) -> usize {
        self.bytes / 4
    }

    /// The device's address of its first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Where it is.
    pub fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// Some of its bytes. Panics where it has none such.
    pub fn part(&self, part: Range<usize>) -> Span<'a> {
        let (address, bytes) = within(self.address, self.bytes, &part);
        Span {
            gpu: self.gpu,
            address,
            bytes,
        }
    }

    /// Copies it to the host, after everything given to the compute stream before, and waits. Panics where the lengths
    /// differ.
    pub fn download(&self, to: &mut [u8]) -> Result<(), Error> {
        assert_eq!(to.len(), self.bytes, "bytes to download, and room for them");
        if to.is_empty() {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: both sides have so many bytes, and the host's is not let go before the copy has ended.
        let answer = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                to.as_mut_ptr().cast(),
                self.address,
                self.bytes,
                self.gpu.compute(),
            )
        };
        let copied = self.gpu.done("a copy to the host", answer);
        // Also after a refusal: nothing may write there once this has returned.
        self.gpu.synchronise_compute().and(copied)
    }
}

impl<'a> SpanMut<'a> {
    /// A span of memory that something else owns, as [`Span::from_raw`].
    ///
    /// # Safety
    /// As there; and nobody else uses these bytes meanwhile.
    pub unsafe fn from_raw(gpu: &'a Gpu, address: u64, bytes: usize) -> SpanMut<'a> {
        SpanMut {
            gpu,
            address,
            bytes,
            unique: PhantomData,
        }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// How many f32 that is.
    pub fn f32s(&self) -> usize {
        self.bytes / 4
    }

    /// The device's address of its first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Where it is.
    pub fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// The same span, for a shorter time.
    pub fn reborrow(&mut self) -> SpanMut<'_> {
        SpanMut {
            gpu: self.gpu,
            address: self.address,
            bytes: self.bytes,
            unique: PhantomData,
        }
    }

    /// The same span, to be read.
    pub fn as_span(&self) -> Span<'_> {
        Span {
            gpu: self.gpu,
            address: self.address,
            bytes: self.bytes,
        }
    }

    /// Some of its bytes, for as long as it is borrowed. Panics where it has none such.
    pub fn part(&mut self, part: Range<usize>) -> SpanMut<'_> {
        let (address, bytes) = within(self.address, self.bytes, &part);
        SpanMut {
            gpu: self.gpu,
            address,
            bytes,
            unique: PhantomData,
        }
    }

    /// Both sides of byte `at`. Panics where it has none such.
    pub fn split(self, at: usize) -> (SpanMut<'a>, SpanMut<'a>) {
        let side = |part: Range<usize>| {
            let (address, bytes) = within(self.address, self.bytes, &part);
            SpanMut {
                gpu: self.gpu,
                address,
                bytes,
                unique: PhantomData,
            }
        };
        (side(0..at), side(at..self.bytes))
    }

    /// Fills it from the host, in order of the compute stream; `from` may be forgotten when this returns. Small ones
    /// wait for nothing. Panics where the lengths differ.
    pub fn upload(&mut self, from: &[u8]) -> Result<(), Error> {
        assert_eq!(from.len(), self.bytes, "bytes to upload, and room for them");
        self.gpu.upload(self.address, from)
    }

    /// Fills it from elsewhere on the GPU, in order of the compute stream. Panics where the lengths differ.
    pub fn copy_from(&mut self, from: Span<'_>) -> Result<(), Error> {
        assert_eq!(from.len(), self.bytes, "bytes to copy, and room for them");
        if from.is_empty() {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: both sides have so many bytes, for as long as anything in the compute stream.
        let answer = unsafe {
            sys::cuMemcpyDtoDAsync_v2(self.address, from.address, self.bytes, self.gpu.compute())
        };
        self.gpu.done("a copy on the GPU", answer)
    }

    /// Fills it with zeros, in order of the compute stream.
    pub fn zero(&mut self) -> Result<(), Error> {
        self.fill(0)
    }

    /// Fills it with one byte, in order of the compute stream.
    pub fn fill(&mut self, byte: u8) -> Result<(), Error> {
        if self.bytes == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: there are so many bytes, for as long as anything in the compute stream.
        let answer =
            unsafe { sys::cuMemsetD8Async(self.address, byte, self.bytes, self.gpu.compute()) };
        self.gpu.done("filling memory", answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_within() {
        assert_eq!(within(4096, 100, &(0..100)), (4096, 100));
        assert_eq!(within(4096, 100, &(60..64)), (4156, 4));
        assert_eq!(within(4096, 100, &(100..100)), (4196, 0));
    }

    #[test]
    #[should_panic(expected = "bytes 60 to 101 of a span of 100")]
    fn a_part_beyond_the_end_panics() {
        within(4096, 100, &(60..101));
    }
}
