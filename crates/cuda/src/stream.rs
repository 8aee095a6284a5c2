//! Streams, which are queues of work, and events, by which one waits for a place in another.

use crate::driver::{Context, done};
use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::SpanMut;
use cudarc::driver::sys::{self, CUevent, CUevent_flags, CUresult, CUstream, CUstream_flags};
use std::cell::Cell;
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Arc;

/// Copies are cut into pieces of this size, in bytes. There is one engine for each direction, and it takes what is queued
/// in turn: a few bytes that a kernel waits for must not stand behind hundreds of megabytes of weights.
pub const CHUNK_BYTES: usize = 16 << 20;

/// `bytes` in pieces of `chunk`, the last one perhaps shorter.
pub(crate) fn pieces(bytes: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    let chunk = chunk.max(1);
    (0..bytes)
        .step_by(chunk)
        .map(move |begin| begin..begin.saturating_add(chunk).min(bytes))
}

/// Takes places in a ring in turn and knows whether a place was taken before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turns {
    places: usize,
    taken: usize,
}

impl Turns {
    pub(crate) fn new(places: usize) -> Turns {
        Turns {
            places: places.max(1),
            taken: 0,
        }
    }

    /// The next place, and whether what was put there before must have left first.
    pub(crate) fn next(&mut self) -> (usize, bool) {
        let place = self.taken % self.places;
        let again = self.taken >= self.places;
        self.taken += 1;
        (place, again)
    }
}

/// A queue of the driver.
#[derive(Debug)]
pub(crate) struct Stream {
    raw: CUstream,
    context: Arc<Context>,
}

// SAFETY: a stream is a handle that the driver lets any thread use, one at a time or several: it locks inside.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Stream, Error> {
        context.bind()?;
        let mut raw = null_mut();
        // Not one that waits for the default stream, which libraries may use.
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointer is to a live handle.
        done("making a stream", unsafe {
            sys::cuStreamCreate(&raw mut raw, flags)
        })?;
        Ok(Stream {
            raw,
            context: Arc::clone(context),
        })
    }

    pub(crate) fn raw(&self) -> CUstream {
        self.raw
    }

    pub(crate) fn record(&self, event: &Event) -> Result<(), Error> {
        self.context.bind()?;
        // SAFETY: both handles live as long as their owners.
        done("recording an event", unsafe {
            sys::cuEventRecord(event.0.raw, self.raw)
        })
    }

    pub(crate) fn wait(&self, event: &Event) -> Result<(), Error> {
        self.context.bind()?;
        // SAFETY: both handles live as long as their owners; the driver keeps an event that somebody waits for.
        done("waiting for an event", unsafe {
            sys::cuStreamWaitEvent(self.raw, event.0.raw, 0)
        })
    }

    pub(crate) fn synchronise(&self) -> Result<(), Error> {
        self.context.bind()?;
        // SAFETY: the handle lives as long as `self`.
        done("the work before", unsafe {
            sys::cuStreamSynchronize(self.raw)
        })
    }

    /// What the driver knows of the work so far, without waiting.
    pub(crate) fn query(&self) -> Result<(), Error> {
        self.context.bind()?;
        // SAFETY: the handle lives as long as `self`.
        match unsafe { sys::cuStreamQuery(self.raw) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(()),
            answer => done("the work before", answer),
        }
    }

    /// Queues copies of `from` to `address` in pieces.
    ///
    /// # Safety
    /// `from` stays as it is until the copies are past, and `address` has room for all of it, of which nobody else makes
    /// use until then.
    pub(crate) unsafe fn upload(
        &self,
        address: u64,
        from: &[u8],
        chunk: usize,
    ) -> Result<(), Error> {
        self.context.bind()?;
        for piece in pieces(from.len(), chunk) {
            let to = address + piece.start as u64;
            let part = &from[piece];
            // SAFETY: the caller's promise.
            done("a copy to the GPU", unsafe {
                sys::cuMemcpyHtoDAsync_v2(to, part.as_ptr().cast(), part.len(), self.raw)
            })?;
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `new` and destroyed once; work in it still runs to its end. An error has nobody to go to.
            unsafe {
                let _ = sys::cuStreamDestroy_v2(self.raw);
            }
        }
    }
}

/// A place in a stream, made once and recorded again and again. A clone is the same event.
#[derive(Clone, Debug)]
pub struct Event(Arc<RawEvent>);

#[derive(Debug)]
struct RawEvent {
    raw: CUevent,
    context: Arc<Context>,
}

// SAFETY: an event is a handle that the driver lets any thread use: it locks inside.
unsafe impl Send for RawEvent {}
// SAFETY: as above.
unsafe impl Sync for RawEvent {}

impl Event {
    /// An event that is past until it is recorded. Only one that is `timed` has an [`Event::elapsed_ms`]; others cost
    /// less.
    pub fn new(gpu: &Gpu, timed: bool) -> Result<Event, Error> {
        Event::of(gpu.context(), timed)
    }

    pub(crate) fn of(context: &Arc<Context>, timed: bool) -> Result<Event, Error> {
        context.bind()?;
        let mut raw = null_mut();
        // Who waits for it sleeps, so that a core is left to those that read.
        let mut flags = CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        if !timed {
            flags |= CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        }
        // SAFETY: the pointer is to a live handle.
        done("making an event", unsafe {
            sys::cuEventCreate(&raw mut raw, flags)
        })?;
        Ok(Event(Arc::new(RawEvent {
            raw,
            context: Arc::clone(context),
        })))
    }

    /// Waits until everything before its place is done.
    pub fn synchronise(&self) -> Result<(), Error> {
        self.0.context.bind()?;
        // SAFETY: the handle lives as long as `self`.
        done("the work before an event", unsafe {
            sys::cuEventSynchronize(self.0.raw)
        })
    }

    /// Whether everything before its place is done.
    pub fn is_past(&self) -> Result<bool, Error> {
        self.0.context.bind()?;
        // SAFETY: the handle lives as long as `self`.
        match unsafe { sys::cuEventQuery(self.0.raw) } {
            CUresult::CUDA_SUCCESS => Ok(true),
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => Err(Error::of_driver("the work before an event", answer)),
        }
    }

    /// Milliseconds on the GPU's clock from `since` to here; waits for both. Both must be timed and recorded.
    pub fn elapsed_ms(&self, since: &Event) -> Result<f32, Error> {
        since.synchronise()?;
        self.synchronise()?;
        let mut ms = 0.0f32;
        // SAFETY: both handles live as long as their owners, and the pointer is to a live number.
        done("taking the time between events", unsafe {
            sys::cuEventElapsedTime(&raw mut ms, since.0.raw, self.0.raw)
        })?;
        Ok(ms)
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `of` and destroyed once. An error has nobody to go to.
            unsafe {
                let _ = sys::cuEventDestroy_v2(self.raw);
            }
        }
    }
}

/// The copy stream: host memory goes to the GPU in it while the compute stream works.
#[derive(Debug)]
pub struct Copies {
    stream: Stream,
    chunk: Cell<usize>,
}

impl Copies {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Copies, Error> {
        Ok(Copies {
            stream: Stream::new(context)?,
            chunk: Cell::new(CHUNK_BYTES),
        })
    }

    /// Queues a copy and returns at once, where `from` is page-locked; else the driver copies it aside first, which is
    /// slower and takes the caller's time. Panics where the lengths differ.
    ///
    /// # Safety
    /// `from` stays untouched and pinned until an event recorded after this is past; `to` is not used by the compute
    /// stream, nor freed in it, before it waits for such an event; and the copy stream has been told to wait
    /// ([`Copies::wait`]) for whatever used `to` before.
    pub unsafe fn start(&self, to: SpanMut<'_>, from: &[u8]) -> Result<(), Error> {
        assert_eq!(from.len(), to.len(), "bytes to copy, and room for them");
        // SAFETY: the caller's promise.
        let queued = unsafe { self.stream.upload(to.address(), from, self.chunk.get()) };
        to.gpu().noted(queued)
    }

    /// Queues a copy back to the host and returns at once, where `to` is page-locked. Panics where the lengths differ.
    ///
    /// # Safety
    /// As for [`Copies::start`], the other way round: `to` is not read before an event recorded after this is past.
    pub unsafe fn start_back(
        &self,
        to: &mut [u8],
        from: crate::memory::Span<'_>,
    ) -> Result<(), Error> {
        assert_eq!(from.len(), to.len(), "bytes to copy, and room for them");
        from.gpu().bind()?;
        for piece in pieces(to.len(), self.chunk.get()) {
            let address = from.address() + piece.start as u64;
            let part = &mut to[piece];
            // SAFETY: the caller's promise.
            let answer = unsafe {
                sys::cuMemcpyDtoHAsync_v2(
                    part.as_mut_ptr().cast(),
                    address,
                    part.len(),
                    self.stream.raw(),
                )
            };
            from.gpu().done("a copy to the host", answer)?;
        }
        Ok(())
    }

    /// Puts the event behind everything queued here so far.
    pub fn record(&self, event: &Event) -> Result<(), Error> {
        self.stream.record(event)
    }

    /// What is queued here from now on waits for the event's last place. One that was never recorded is past.
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        self.stream.wait(event)
    }

    /// Waits until everything queued here is done.
    pub fn synchronise(&self) -> Result<(), Error> {
        self.stream.synchronise()
    }

    pub(crate) fn query(&self) -> Result<(), Error> {
        self.stream.query()
    }

    /// The size of a piece, in bytes.
    pub fn chunk(&self) -> usize {
        self.chunk.get()
    }

    /// Another size for the pieces of copies from now on; `usize::MAX` cuts nothing.
    pub fn set_chunk(&self, bytes: usize) {
        self.chunk.set(bytes.max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_everything_once() {
        for (bytes, chunk, ends) in [
            (0, 16, &[][..]),
            (1, 16, &[1]),
            (16, 16, &[16]),
            (33, 16, &[16, 32, 33]),
            (5, usize::MAX, &[5]),
            (2, 0, &[1, 2]),
        ] {
            let cut: Vec<_> = pieces(bytes, chunk).collect();
            let found: Vec<usize> = cut.iter().map(|piece| piece.end).collect();
            assert_eq!(found, ends, "{bytes} in {chunk}");
            let begins: Vec<usize> = cut.iter().map(|piece| piece.start).collect();
            let expected = std::iter::once(&0).chain(ends).take(ends.len());
            assert!(begins.iter().eq(expected), "{begins:?}");
        }
    }

    #[test]
    fn a_place_is_waited_for_from_its_second_turn_on() {
        let mut turns = Turns::new(3);
        let taken: Vec<_> = (0..7).map(|_| turns.next()).collect();
        let expected = [
            (0, false),
            (1, false),
            (2, false),
            (0, true),
            (1, true),
            (2, true),
            (0, true),
        ];
        assert_eq!(taken, expected);
        let mut one = Turns::new(0);
        assert_eq!([one.next(), one.next()], [(0, false), (0, true)]);
    }
}
