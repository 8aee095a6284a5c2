//! Where buffers lie: small ones on the heap, large ones in pages of their own.
//!
//! A matrix product reads the rows of its weights a few kilobytes apart, so that with pages of 4 KiB it looks up as many
//! addresses as it reads lines. Large regions begin where a huge page does and ask for huge pages, on Linux where the
//! administrator allows them on request (`/sys/kernel/mm/transparent_hugepage/enabled`), which is the usual setting.
//! They are never larger than asked for, and go back to the system when they are freed, whatever lies beside them.

use super::{BUFFER_ALIGNMENT, count_down, count_up};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Regions from this size on get pages of their own: a huge page of x86 and of most ARM systems.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// One aligned, zero-initialised allocation.
pub(crate) struct Region {
    pub(crate) pointer: NonNull<u8>,
    pub(crate) bytes: usize,
    own_pages: bool,
}

// SAFETY: a region is uniquely owned memory without interior references.
unsafe impl Send for Region {}
// SAFETY: shared access only ever reads.
unsafe impl Sync for Region {}

impl Region {
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes, BUFFER_ALIGNMENT).ok()
    }

    /// `bytes`, at least one, that are zero.
    pub(crate) fn allocate(bytes: usize) -> Option<Region> {
        if bytes >= HUGE_PAGE_BYTES
            && let Some(pages) = pages::map(bytes)
        {
            let pointer = pages?;
            count_up(bytes);
            return Some(Region {
                pointer,
                bytes,
                own_pages: true,
            });
        }
        let layout = Region::layout(bytes)?;
        // SAFETY: `bytes` is not zero.
        let pointer = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Region {
            pointer,
            bytes,
            own_pages: false,
        })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.own_pages {
            count_down(self.bytes);
            // SAFETY: mapped in `allocate` with this length, and nobody borrows what is dropped.
            unsafe { pages::unmap(self.pointer, self.bytes) };
            return;
        }
        let layout =
            Region::layout(self.bytes).expect("the layout was valid when the region was made");
        // SAFETY: allocated in `allocate` with this very layout.
        unsafe { dealloc(self.pointer.as_ptr(), layout) }
    }
}

#[cfg(unix)]
mod pages {
    use super::HUGE_PAGE_BYTES;
    use std::ptr::{NonNull, null_mut};

    /// Pages of zeros, from the beginning of a huge page on where there is room for that: `None` inside when the system
    /// has none left.
    #[allow(
        clippy::option_option,
        reason = "where there are no such pages is another answer"
    )]
    pub(super) fn map(bytes: usize) -> Option<Option<NonNull<u8>>> {
        let aligned = bytes.checked_add(HUGE_PAGE_BYTES).and_then(anonymous);
        let Some(begin) = aligned else {
            return Some(anonymous(bytes));
        };
        let before = begin.align_offset(HUGE_PAGE_BYTES);
        let length = bytes.next_multiple_of(page_bytes());
        let behind = HUGE_PAGE_BYTES - before;
        // SAFETY: what is unmapped lies before and behind the region within what was just mapped; both ends are whole
        // pages, since a huge page is.
        unsafe {
            let pointer = begin.add(before);
            if before > 0 {
                libc::munmap(begin.as_ptr().cast(), before);
            }
            if behind > 0 {
                libc::munmap(pointer.as_ptr().add(length).cast(), behind);
            }
            // Where huge pages are not to be had the region has the others.
            #[cfg(any(target_os = "linux", target_os = "android"))]
            libc::madvise(pointer.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
            Some(Some(pointer))
        }
    }

    fn anonymous(bytes: usize) -> Option<NonNull<u8>> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping at an address the system chooses touches nothing there is.
        let pointer = unsafe { libc::mmap(null_mut(), bytes, protection, flags, -1, 0) };
        if pointer == libc::MAP_FAILED {
            return None;
        }
        NonNull::new(pointer.cast())
    }

    fn page_bytes() -> usize {
        // SAFETY: a question.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
    }

    /// Gives pages back.
    ///
    /// # Safety
    /// They must be of [`map`], all of them, and nobody may look at them any more.
    pub(super) unsafe fn unmap(pointer: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's promise.
        let status = unsafe { libc::munmap(pointer.as_ptr().cast(), bytes) };
        debug_assert_eq!(status, 0, "what was mapped can be unmapped");
    }
}

#[cfg(not(unix))]
mod pages {
    use std::ptr::NonNull;

    #[allow(clippy::option_option, reason = "the same as elsewhere")]
    pub(super) fn map(_bytes: usize) -> Option<Option<NonNull<u8>>> {
        None
    }

    pub(super) unsafe fn unmap(_pointer: NonNull<u8>, _bytes: usize) {
        unreachable!("nothing is mapped here");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_of_every_size_are_aligned_zero_and_writable_to_the_end() {
        for bytes in [
            64,
            4096,
            HUGE_PAGE_BYTES - 64,
            HUGE_PAGE_BYTES,
            HUGE_PAGE_BYTES + 64,
            5 * HUGE_PAGE_BYTES + 4160,
        ] {
            let region = Region::allocate(bytes).expect("so much is there");
            assert_eq!(region.pointer.as_ptr() as usize % BUFFER_ALIGNMENT, 0);
            // SAFETY: the region has so many bytes, and nobody else.
            let all = unsafe { std::slice::from_raw_parts_mut(region.pointer.as_ptr(), bytes) };
            assert!(all.iter().all(|&byte| byte == 0), "{bytes}");
            all.fill(7);
            if cfg!(unix) && bytes >= HUGE_PAGE_BYTES {
                assert_eq!(region.pointer.as_ptr() as usize % HUGE_PAGE_BYTES, 0);
            }
        }
    }

    #[test]
    fn what_the_system_does_not_have_is_no_region() {
        assert!(Region::allocate(usize::MAX / 2 / 64 * 64).is_none());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn freed_pages_go_back_to_the_system() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").expect("Linux tells");
            let pages: usize = text
                .split(' ')
                .nth(1)
                .and_then(|n| n.parse().ok())
                .expect("a number");
            pages * 4096
        };
        let before = resident();
        let region = Region::allocate(64 << 20).expect("so much is there");
        // SAFETY: the region has so many bytes, and nobody else.
        unsafe { std::ptr::write_bytes(region.pointer.as_ptr(), 1, 64 << 20) };
        assert!(resident() > before + (60 << 20));
        drop(region);
        assert!(resident() < before + (8 << 20));
    }
}
