//! Weights that cannot stay page-locked: they pass through a few chunks that are.
//!
//! Reading and copying overlap: while one chunk is under way the next is filled. It is slower than memory that is locked
//! once and for all, since every byte passes through the processor, but it locks next to nothing.

use crate::driver::Context;
use crate::error::Error;
use crate::pinned::{HostMemory, Pinned};
use crate::stream::{CHUNK_BYTES, Event, Stream, Turns, pieces};
use std::ops::ControlFlow;
use std::sync::Arc;

/// How many chunks a ring has.
const CHUNKS: usize = 4;

/// A chunk: page-locked, or, where no more may be locked, ordinary memory, from which the driver copies by way of its own.
enum Chunk {
    Locked(Pinned),
    Plain(Vec<u8>),
}

impl Chunk {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Chunk::Locked(pinned) => pinned.as_mut_slice(),
            Chunk::Plain(bytes) => bytes,
        }
    }
}

/// The chunks, and their own stream of copies. Any thread may use it, one at a time.
pub struct Ring {
    chunks: Vec<Chunk>,
    /// By chunk: when what was put there last has left.
    left: Vec<Event>,
    turns: Turns,
    stream: Stream,
    context: Arc<Context>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("chunks", &self.chunks.len())
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring of four chunks of 16 MiB.
    pub fn new(context: &Arc<Context>) -> Result<Ring, Error> {
        Ring::within(context, (CHUNKS, CHUNK_BYTES), &HostMemory::read())
    }

    /// A ring of so many chunks of so many bytes each, in a machine that is as `memory` says.
    pub fn within(
        context: &Arc<Context>,
        (chunks, bytes): (usize, usize),
        memory: &HostMemory,
    ) -> Result<Ring, Error> {
        let count = chunks.max(1);
        let mut ring = Ring {
            chunks: Vec::new(),
            left: Vec::new(),
            turns: Turns::new(count),
            stream: Stream::new(context)?,
            context: Arc::clone(context),
        };
        for _ in 0..count {
            let chunk = match Pinned::within(context, bytes.max(1), memory) {
                Ok(pinned) => Chunk::Locked(pinned),
                Err(error) if error.is_poisoned() => return Err(error),
                Err(_) => Chunk::Plain(vec![0; bytes.max(1)]),
            };
            ring.chunks.push(chunk);
            ring.left.push(Event::of(context, false)?);
        }
        Ok(ring)
    }

    /// Whether its chunks are page-locked.
    pub fn is_locked(&self) -> bool {
        let mut chunks = self.chunks.iter();
        chunks.all(|chunk| matches!(chunk, Chunk::Locked(_)))
    }

    /// Copies `bytes` to `address`, asking `fill` for a piece after the other: from which byte on, and where to. The copies
    /// begin once `after` is past, where there is such an event: the last use of what is overwritten. Returns, before the
    /// last pieces have arrived, the event that is past once they have; nothing where `fill` broke off, and then none is under way
    /// any more.
    ///
    /// # Safety
    /// So many bytes lie at `address`, and nobody uses them until the event is past, or the ring was dropped.
    pub unsafe fn feed(
        &mut self,
        (address, bytes): (u64, usize),
        after: Option<&Event>,
        fill: &mut dyn FnMut(usize, &mut [u8]) -> ControlFlow<()>,
    ) -> Result<Option<Event>, Error> {
        if let Some(after) = after {
            self.stream.wait(after)?;
        }
        let size = self.chunks[0].bytes().len();
        for piece in pieces(bytes, size) {
            let (place, again) = self.turns.next();
            if again {
                self.left[place].synchronise()?;
            }
            let chunk = &mut self.chunks[place].bytes()[..piece.len()];
            if fill(piece.start, chunk).is_break() {
                self.stream.synchronise()?;
                return Ok(None);
            }
            let to = address + piece.start as u64;
            // SAFETY: the chunk is filled again only after its event; the room was promised by who called.
            unsafe { self.stream.upload(to, chunk, usize::MAX) }?;
            self.stream.record(&self.left[place])?;
        }
        let done = Event::of(&self.context, false)?;
        self.stream.record(&done)?;
        Ok(Some(done))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The chunks go next, which nothing may still be copied from.
        let _ = self.stream.synchronise();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::pattern;
    use crate::gpu::Gpu;
    use crate::memory::Buffer;

    fn fed(gpu: &Gpu, ring: &mut Ring, sent: &[u8]) {
        let mut buffer = Buffer::zeroed(gpu, sent.len()).unwrap();
        let zeroed = Event::new(gpu, false).unwrap();
        gpu.record(&zeroed).unwrap();
        let room = (buffer.span_mut().address(), sent.len());
        let mut next = 0;
        let mut fill = |from: usize, to: &mut [u8]| {
            assert_eq!(from, next, "pieces come in order");
            next += to.len();
            to.copy_from_slice(&sent[from..next]);
            ControlFlow::Continue(())
        };
        // SAFETY: the buffer is used again only after the event.
        let done = unsafe { ring.feed(room, Some(&zeroed), &mut fill) };
        gpu.wait(&done.unwrap().unwrap()).unwrap();
        let mut back = vec![0; sent.len()];
        buffer.span().download(&mut back).unwrap();
        assert!(back == sent);
    }

    #[test]
    fn what_is_fed_arrives_whether_memory_may_be_locked_or_not() {
        let gpu = match Gpu::open(0, 64 << 20) {
            Ok(gpu) => gpu,
            Err(error) => return assert!(error.is_absent(), "{error}"),
        };
        let sent = pattern(1_000_000, 5);
        for (memory, locked) in [
            (HostMemory::read(), true),
            // Such a machine may lock nothing.
            (HostMemory::default(), false),
        ] {
            let mut ring = Ring::within(gpu.context(), (2, 1 << 16), &memory).unwrap();
            assert_eq!(ring.is_locked(), locked);
            for bytes in [sent.len(), 5, 1 << 16] {
                fed(&gpu, &mut ring, &sent[..bytes]);
            }
        }
    }

    #[test]
    fn what_breaks_off_leaves_the_ring_usable() {
        let gpu = match Gpu::open(0, 64 << 20) {
            Ok(gpu) => gpu,
            Err(error) => return assert!(error.is_absent(), "{error}"),
        };
        let mut ring = Ring::within(gpu.context(), (2, 1 << 12), &HostMemory::read()).unwrap();
        let mut buffer = Buffer::zeroed(&gpu, 1 << 16).unwrap();
        gpu.synchronise().unwrap();
        let room = (buffer.span_mut().address(), 1 << 16);
        let mut asked = 0;
        let mut fill = |_: usize, _: &mut [u8]| {
            asked += 1;
            match asked {
                5 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        };
        // SAFETY: the buffer is not used again before the ring is.
        let done = unsafe { ring.feed(room, None, &mut fill) }.unwrap();
        assert!(done.is_none());
        drop(buffer);
        fed(&gpu, &mut ring, &pattern(100_000, 9));
    }
}
