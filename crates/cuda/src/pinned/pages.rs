//! Pages of host memory of an exact size, in huge pages where they can be had, alone or shared with other processes.

use crate::error::Error;
use std::fmt;
use std::fs::File;
use std::ptr::NonNull;

/// A huge page of x86 and of most ARM systems.
#[cfg(unix)]
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Pages of zeros, mapped by themselves.
pub struct Pages {
    pointer: NonNull<u8>,
    bytes: usize,
    mapping: system::Mapping,
}

// SAFETY: pages are uniquely owned memory without interior references. What other processes write into shared pages is
// theirs to order, as [`Pages::shared`] says.
unsafe impl Send for Pages {}
// SAFETY: shared access only ever reads.
unsafe impl Sync for Pages {}

impl Pages {
    /// So many bytes that are zero. They take room in the machine as they are touched, or locked.
    pub fn anonymous(bytes: usize) -> Result<Pages, Error> {
        if bytes == 0 {
            return Ok(Pages::none());
        }
        let (pointer, mapping) = system::anonymous(bytes)?;
        Ok(Pages {
            pointer,
            bytes,
            mapping,
        })
    }

    /// The first bytes of a file that lives in memory ([`memory_file`]), as every process sees them that maps it.
    ///
    /// # Safety
    /// No process writes there while another reads or writes the same bytes, and none cuts the file.
    pub unsafe fn shared(file: &File, bytes: usize) -> Result<Pages, Error> {
        if bytes == 0 {
            return Ok(Pages::none());
        }
        let (pointer, mapping) = system::shared(file, bytes)?;
        Ok(Pages {
            pointer,
            bytes,
            mapping,
        })
    }

    fn none() -> Pages {
        Pages {
            pointer: NonNull::dangling(),
            bytes: 0,
            mapping: system::Mapping::none(),
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

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped for as long as `self`, and writing needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.bytes) }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.bytes) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.mapping.unmap();
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// A file of zeros that lives in memory and vanishes with the last process that holds it open. Children that are started
/// inherit it: a cache of weights in it outlives the worker that filled it.
pub fn memory_file(bytes: u64) -> Result<File, Error> {
    system::memory_file(bytes)
}

#[cfg(unix)]
mod system {
    use super::HUGE_PAGE_BYTES;
    use crate::error::Error;
    use std::fs::File;
    use std::os::fd::{AsRawFd, RawFd};
    use std::ptr::{NonNull, null_mut};

    /// What was mapped, to be unmapped: more than what is used, where its beginning was moved.
    pub(super) struct Mapping {
        begin: *mut libc::c_void,
        bytes: usize,
    }

    impl Mapping {
        pub(super) fn none() -> Mapping {
            Mapping {
                begin: null_mut(),
                bytes: 0,
            }
        }

        pub(super) fn unmap(&mut self) {
            if self.bytes > 0 {
                // SAFETY: mapped by `map` with this length, and nobody borrows what is dropped.
                let status = unsafe { libc::munmap(self.begin, self.bytes) };
                debug_assert_eq!(status, 0, "what was mapped can be unmapped");
            }
        }
    }

    fn map(bytes: usize, flags: libc::c_int, file: RawFd) -> Result<NonNull<u8>, Error> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address the system chooses touches nothing there is.
        let begin = unsafe { libc::mmap(null_mut(), bytes, protection, flags, file, 0) };
        if begin == libc::MAP_FAILED {
            return Err(Error::host("mapping memory"));
        }
        NonNull::new(begin.cast()).ok_or_else(|| Error::host("mapping memory"))
    }

    fn want_huge_pages(pointer: NonNull<u8>, bytes: usize) {
        // SAFETY: the pages were just mapped. A refusal means that they are small ones, which serve as well.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        unsafe {
            libc::madvise(pointer.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let _ = (pointer, bytes);
    }

    /// Pages that begin where a huge page does. What lies before and behind them is never touched, and so costs nothing.
    pub(super) fn anonymous(bytes: usize) -> Result<(NonNull<u8>, Mapping), Error> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mapped = bytes.saturating_add(HUGE_PAGE_BYTES);
        let begin = map(mapped, flags, -1)?;
        let mapping = Mapping {
            begin: begin.as_ptr().cast(),
            bytes: mapped,
        };
        // SAFETY: a huge page begins within the first HUGE_PAGE_BYTES of the mapping, and `bytes` fit behind that.
        let pointer = unsafe { begin.add(begin.align_offset(HUGE_PAGE_BYTES)) };
        want_huge_pages(pointer, bytes);
        Ok((pointer, mapping))
    }

    pub(super) fn shared(file: &File, bytes: usize) -> Result<(NonNull<u8>, Mapping), Error> {
        let has = file
            .metadata()
            .map_err(|error| Error::host_of("looking at shared memory", &error))?
            .len();
        if has < bytes as u64 {
            return Err(Error::Host {
                what: "mapping shared memory",
                reason: format!("it has {has} bytes, not {bytes}"),
            });
        }
        let pointer = map(bytes, libc::MAP_SHARED, file.as_raw_fd())?;
        want_huge_pages(pointer, bytes);
        let mapping = Mapping {
            begin: pointer.as_ptr().cast(),
            bytes,
        };
        Ok((pointer, mapping))
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) fn memory_file(bytes: u64) -> Result<File, Error> {
        use std::os::fd::FromRawFd;
        // Not closed when another program is started: the next worker is to have it.
        // SAFETY: the name ends in a zero.
        let raw = unsafe { libc::memfd_create(c"lowtide-weights".as_ptr(), 0) };
        if raw < 0 {
            return Err(Error::host("making a file in memory"));
        }
        // SAFETY: it was just opened and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(raw) };
        file.set_len(bytes)
            .map_err(|error| Error::host_of("sizing a file in memory", &error))?;
        Ok(file)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(super) fn memory_file(_bytes: u64) -> Result<File, Error> {
        Err(Error::Host {
            what: "making a file in memory",
            reason: "this system has none".to_owned(),
        })
    }
}

#[cfg(not(unix))]
mod system {
    use crate::error::Error;
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::fs::File;
    use std::ptr::NonNull;

    const PAGE_BYTES: usize = 4096;

    pub(super) struct Mapping(Option<(NonNull<u8>, Layout)>);

    impl Mapping {
        pub(super) fn none() -> Mapping {
            Mapping(None)
        }

        pub(super) fn unmap(&mut self) {
            if let Some((pointer, layout)) = self.0.take() {
                // SAFETY: allocated in `anonymous` with this very layout.
                unsafe { dealloc(pointer.as_ptr(), layout) }
            }
        }
    }

    fn refused(what: &'static str, reason: &str) -> Error {
        Error::Host {
            what,
            reason: reason.to_owned(),
        }
    }

    pub(super) fn anonymous(bytes: usize) -> Result<(NonNull<u8>, Mapping), Error> {
        let what = "allocating memory";
        let layout = Layout::from_size_align(bytes, PAGE_BYTES)
            .map_err(|_| refused(what, "no system has so much"))?;
        // SAFETY: the caller asks for one byte at least.
        let pointer = NonNull::new(unsafe { alloc_zeroed(layout) })
            .ok_or_else(|| refused(what, "the system has none left"))?;
        Ok((pointer, Mapping(Some((pointer, layout)))))
    }

    pub(super) fn shared(_file: &File, _bytes: usize) -> Result<(NonNull<u8>, Mapping), Error> {
        Err(refused("mapping shared memory", "this system has none"))
    }

    pub(super) fn memory_file(_bytes: u64) -> Result<File, Error> {
        Err(refused("making a file in memory", "this system has none"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_every_size_are_zero_and_writable_to_the_end() {
        for bytes in [0, 1, 4096, (2 << 20) - 1, (2 << 20) + 1] {
            let mut pages = Pages::anonymous(bytes).unwrap();
            assert_eq!(pages.len(), bytes);
            assert!(pages.as_slice().iter().all(|&byte| byte == 0), "{bytes}");
            pages.as_mut_slice().fill(7);
            let address = pages.as_slice().as_ptr() as usize;
            assert!(bytes == 0 || address.is_multiple_of(4096), "{bytes}");
        }
    }

    #[test]
    fn what_the_system_does_not_have_is_an_error() {
        assert!(Pages::anonymous(usize::MAX / 2).is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_in_memory_is_seen_by_all_who_map_it() {
        let file = memory_file(1 << 20).unwrap();
        // SAFETY: this process alone has it, and uses one view at a time.
        let mut one = unsafe { Pages::shared(&file, 1 << 20) }.unwrap();
        one.as_mut_slice()[12345] = 99;
        drop(one);
        // SAFETY: as above.
        let other = unsafe { Pages::shared(&file, 1 << 20) }.unwrap();
        assert_eq!(other.as_slice()[12345], 99);
        // SAFETY: as above.
        let longer = unsafe { Pages::shared(&file, 2 << 20) };
        assert!(longer.unwrap_err().to_string().contains("1048576"));
    }
}
