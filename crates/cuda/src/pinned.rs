//! Host memory that the GPU copies from by itself: page-locked, of an exact size, and never more of it than the machine
//! can spare.

mod pages;
mod room;

pub use pages::{Pages, memory_file};
pub use room::{HostMemory, Room};

use crate::driver::{Context, done};
use crate::error::Error;
use cudarc::driver::sys;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes that are page-locked by this process.
static PINNED: AtomicU64 = AtomicU64::new(0);

/// Bytes that this process has page-locked now.
pub fn pinned_bytes() -> u64 {
    PINNED.load(Relaxed)
}

/// Page-locked host memory. Any thread may read it, and whoever has it alone may write it.
///
/// Locking takes about a second a GiB: do it once, in the background, never once a job.
pub struct Pinned {
    pages: Pages,
    context: Arc<Context>,
}

impl Pinned {
    /// So many bytes of zeros, or the refusal of [`HostMemory::room`].
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Pinned, Error> {
        Pinned::within(context, bytes, &HostMemory::read())
    }

    /// As [`Pinned::new`] in a machine that is as `memory` says.
    pub fn within(
        context: &Arc<Context>,
        bytes: usize,
        memory: &HostMemory,
    ) -> Result<Pinned, Error> {
        memory.room(pinned_bytes()).admit(bytes as u64)?;
        Pinned::register(context, Pages::anonymous(bytes)?)
    }

    /// Page-locks memory that is there already, whatever the limits say. Of memory that several processes share each
    /// locks its own view.
    pub fn register(context: &Arc<Context>, pages: Pages) -> Result<Pinned, Error> {
        if !pages.is_empty() {
            context.bind()?;
            // Every context may copy from it.
            let flags = sys::CU_MEMHOSTREGISTER_PORTABLE;
            let pointer = pages.as_slice().as_ptr().cast_mut().cast();
            // SAFETY: so many bytes are mapped there until `drop` has unregistered them.
            done("page-locking host memory", unsafe {
                sys::cuMemHostRegister_v2(pointer, pages.len(), flags)
            })?;
        }
        PINNED.fetch_add(pages.len() as u64, Relaxed);
        Ok(Pinned {
            pages,
            context: Arc::clone(context),
        })
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.pages.as_slice()
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.pages.as_mut_slice()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        PINNED.fetch_sub(self.len() as u64, Relaxed);
        if !self.is_empty() && self.context.bind().is_ok() {
            let pointer = self.pages.as_mut_slice().as_mut_ptr().cast();
            // SAFETY: registered in `register`, once. An error has nobody to go to: the pages go all the same.
            let _ = unsafe { sys::cuMemHostUnregister(pointer) };
        }
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned")
            .field("bytes", &self.len())
            .finish_non_exhaustive()
    }
}
