//! Weights that cannot be pinned: a thread reads them into a few page-locked chunks, from which they are copied.
//!
//! Reading and copying overlap: while one chunk is under way the next is filled. It is slower than memory that is pinned
//! once and for all, since every byte passes through the processor, but it pins next to nothing.

use crate::driver::Context;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::SpanMut;
use crate::pinned::{HostMemory, Pinned};
use crate::stream::{CHUNK_BYTES, Event, Stream, Turns, pieces};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// How many chunks a feeder has, unless it is told.
const CHUNKS: usize = 4;

/// Where bytes come from, in order: a file, or memory that is not pinned.
pub trait Source: Send {
    /// Fills all of `to` with the next bytes.
    fn fill(&mut self, to: &mut [u8]) -> io::Result<()>;
}

impl<R: io::Read + Send> Source for R {
    fn fill(&mut self, to: &mut [u8]) -> io::Result<()> {
        self.read_exact(to)
    }
}

/// What is to be copied where.
struct Job {
    address: u64,
    bytes: usize,
    source: Box<dyn Source>,
    after: Option<Event>,
    done: Event,
    told: Sender<Result<(), Error>>,
}

/// The thread, and its own stream of copies.
pub struct Feeder {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    context: Arc<Context>,
}

/// One copy that a feeder was given.
#[derive(Debug)]
pub struct Ticket {
    told: Receiver<Result<(), Error>>,
    done: Event,
}

impl Ticket {
    /// Waits until everything was read and queued, then lets the compute stream wait for the copies.
    pub fn wait(self, gpu: &Gpu) -> Result<(), Error> {
        gpu.noted(self.told.recv().unwrap_or_else(|_| Err(ended())))?;
        gpu.wait(&self.done)
    }
}

fn ended() -> Error {
    Error::Host {
        what: "reading weights for the GPU",
        reason: "the thread that reads has ended".to_owned(),
    }
}

/// What the thread works with.
struct Line {
    chunks: Vec<Pinned>,
    left: Vec<Event>,
    turns: Turns,
    stream: Stream,
}

impl Feeder {
    /// A feeder with four chunks of 16 MiB.
    pub fn new(gpu: &Gpu) -> Result<Feeder, Error> {
        Feeder::with(gpu, CHUNKS, CHUNK_BYTES)
    }

    /// A feeder with so many chunks of so many bytes each.
    pub fn with(gpu: &Gpu, chunks: usize, bytes: usize) -> Result<Feeder, Error> {
        let context = Arc::clone(gpu.context());
        let mut line = Line {
            chunks: Vec::new(),
            left: Vec::new(),
            turns: Turns::new(chunks),
            stream: Stream::new(&context)?,
        };
        for _ in 0..chunks.max(1) {
            let room = HostMemory::read();
            line.chunks
                .push(Pinned::within(&context, bytes.max(1), &room)?);
            line.left.push(Event::of(&context, false)?);
        }
        let (jobs, waiting) = channel();
        let thread = std::thread::Builder::new()
            .name("lowtide-feeder".to_owned())
            .spawn(move || serve(line, &waiting))
            .map_err(|error| Error::host_of("starting a thread", &error))?;
        Ok(Feeder {
            jobs: Some(jobs),
            thread: Some(thread),
            context,
        })
    }

    /// Hands over a copy and returns at once. It begins once `after` is past, where there is such an event: the last use
    /// of what is overwritten. It must have been recorded already.
    ///
    /// # Safety
    /// What `to` spans stays, and is used by nobody, until the ticket was waited for, or the feeder was dropped.
    pub unsafe fn start(
        &self,
        to: SpanMut<'_>,
        source: Box<dyn Source>,
        after: Option<&Event>,
    ) -> Result<Ticket, Error> {
        let done = Event::of(&self.context, false)?;
        let (told, hears) = channel();
        let job = Job {
            address: to.address(),
            bytes: to.len(),
            source,
            after: after.cloned(),
            done: done.clone(),
            told,
        };
        let jobs = self.jobs.as_ref().ok_or_else(ended)?;
        jobs.send(job).map_err(|_| ended())?;
        Ok(Ticket { told: hears, done })
    }
}

fn serve(mut line: Line, waiting: &Receiver<Job>) {
    while let Ok(job) = waiting.recv() {
        let told = job.told.clone();
        // Whoever asked may have lost interest.
        let _ = told.send(line.carry(job));
    }
    // The chunks are unpinned next, which nothing may still be copied from.
    let _ = line.stream.synchronise();
}

impl Line {
    fn carry(&mut self, mut job: Job) -> Result<(), Error> {
        if let Some(after) = &job.after {
            self.stream.wait(after)?;
        }
        let size = self.chunks[0].len();
        for piece in pieces(job.bytes, size) {
            let (place, again) = self.turns.next();
            if again {
                self.left[place].synchronise()?;
            }
            let chunk = &mut self.chunks[place].as_mut_slice()[..piece.len()];
            job.source
                .fill(chunk)
                .map_err(|error| Error::host_of("reading weights for the GPU", &error))?;
            let address = job.address + piece.start as u64;
            // SAFETY: the chunk is filled again only after its event; the room was promised by who gave the job.
            unsafe { self.stream.upload(address, chunk, usize::MAX) }?;
            self.stream.record(&self.left[place])?;
        }
        self.stream.record(&job.done)
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Feeder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feeder").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::pattern;
    use crate::memory::Buffer;

    #[test]
    fn what_is_fed_arrives() {
        let gpu = match Gpu::open(0, 64 << 20) {
            Ok(gpu) => gpu,
            Err(error) => return assert!(error.is_absent(), "{error}"),
        };
        let feeder = Feeder::with(&gpu, 2, 1 << 16).unwrap();
        let sent = pattern(1_000_000, 5);
        let mut buffer = Buffer::zeroed(&gpu, sent.len()).unwrap();
        let zeroed = Event::new(&gpu, false).unwrap();
        gpu.record(&zeroed).unwrap();
        let source = Box::new(io::Cursor::new(sent.clone()));
        // SAFETY: the buffer is used again only after the ticket.
        let ticket = unsafe { feeder.start(buffer.span_mut(), source, Some(&zeroed)) }.unwrap();
        ticket.wait(&gpu).unwrap();
        let mut back = vec![0; sent.len()];
        buffer.span().download(&mut back).unwrap();
        assert!(back == sent);
    }

    #[test]
    fn a_source_that_ends_early_is_an_error() {
        let mut short: &[u8] = &[1, 2, 3];
        let error = Source::fill(&mut short, &mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
