//! Memory of the CPU device: a counting allocator, a limit, and aligned buffers that are reused.
//!
//! Three numbers describe the process: `live` (bytes the heap has handed out), `peak` (its high-water mark) and the
//! budget. Small allocations are only counted. A [`Buffer`], which is what tensors, slots and resident weights are made
//! of, is also *refused* when it would carry `live` over the budget, and the refusal is a value.
//!
//! Freed buffers are kept for the next one of about that size, because fresh pages cost more than the arithmetic done
//! on them. What is kept counts as live; it is given up before the cache limit or the budget is crossed. Weights that are
//! forgotten for others leave their memory to those ([`hand_over`]).

mod region;
mod spare;

pub(crate) use region::{HUGE_PAGE_BYTES, Region};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use spare::{HandOver, hand_over, spare};

/// Alignment of every buffer in bytes: one cache line, one AVX-512 vector.
pub const BUFFER_ALIGNMENT: usize = 64;

/// Buffers below this are not worth keeping: the system's allocator serves them from memory it already holds.
const REUSE_BYTES_MIN: usize = 32 << 10;

/// Allocations from this size on, in bytes, make kept buffers give way, though they are not refused themselves.
const UNKEPT_BYTES_MIN: usize = 4 << 10;

/// At most this many freed buffers are kept.
const REUSE_COUNT_MAX: usize = 64;

static LIVE: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);
static BUDGET: AtomicU64 = AtomicU64::new(u64::MAX);
static CACHE_LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);
static REUSABLE: Mutex<Vec<Region>> = Mutex::new(Vec::new());

/// Held from the look at the live bytes to the allocation, so that two threads never both take the last room.
static TAKING: Mutex<()> = Mutex::new(());

/// The system's allocator, counted. The engine installs it as the global one.
pub struct CountingAllocator;

pub(crate) fn count_up(bytes: usize) {
    if bytes >= UNKEPT_BYTES_MIN {
        give_way(bytes as u64);
    }
    LIVE.fetch_add(bytes as u64, Relaxed);
    note_peak();
}

fn note_peak() {
    PEAK.fetch_max(live(), Relaxed);
}

/// Bytes taken from the system: what is live, and what is laid aside.
fn taken() -> u64 {
    LIVE.load(Relaxed)
}

/// Frees kept buffers before an allocation that cannot be refused crosses the limit. Called from within the allocator,
/// so it must not allocate, and must not wait for a list that this very thread may hold.
fn give_way(wanted: u64) {
    let budget = BUDGET.load(Relaxed);
    while let Some(missing) = over(budget, taken(), wanted) {
        if !spare::try_free_for(missing) {
            break;
        }
    }
    let limit = CACHE_LIMIT.load(Relaxed).min(budget);
    while live().saturating_add(wanted) > limit {
        let Ok(mut kept) = REUSABLE.try_lock() else {
            return;
        };
        let Some(region) = take_largest(&mut kept) else {
            return;
        };
        drop(kept);
        drop(region);
    }
}

/// By how many bytes `wanted` more than `have` exceed a limit.
fn over(limit: u64, have: u64, wanted: u64) -> Option<u64> {
    have.saturating_add(wanted)
        .checked_sub(limit)
        .filter(|&missing| missing > 0)
}

fn take_largest(kept: &mut Vec<Region>) -> Option<Region> {
    let largest = (0..kept.len()).max_by_key(|&i| kept[i].bytes)?;
    Some(kept.swap_remove(largest))
}

pub(crate) fn count_down(bytes: usize) {
    LIVE.fetch_sub(bytes as u64, Relaxed);
}

// SAFETY: every call is passed on to `System` unchanged; counting touches only atomics and allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is `System`'s contract.
        let pointer = unsafe { System.alloc(layout) };
        if !pointer.is_null() {
            count_up(layout.size());
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if !pointer.is_null() {
            count_up(layout.size());
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count_down(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        let moved = unsafe { System.realloc(pointer, layout, size) };
        if !moved.is_null() {
            // Counted down first: while it moves, the old and the new block may both exist, but the system's
            // allocator grows large blocks in place, and small ones do not matter to a budget.
            count_down(layout.size());
            count_up(size);
        }
        moved
    }
}

/// Bytes handed out now, by the heap and as large buffers, without what is laid aside for others (large buffers alone
/// where [`CountingAllocator`] is not installed).
pub fn live() -> u64 {
    taken().saturating_sub(spare())
}

/// The highest `live` since the last [`reset_peak`].
pub fn peak() -> u64 {
    PEAK.load(Relaxed)
}

/// Starts a new high-water mark at the present value, which is returned.
pub fn reset_peak() -> u64 {
    let live = live();
    PEAK.store(live, Relaxed);
    live
}

/// Sets the number of bytes that no buffer may exceed, and frees what is laid aside beyond it; `None` lifts the limit.
pub fn set_budget(bytes: Option<u64>) {
    BUDGET.store(bytes.unwrap_or(u64::MAX), Relaxed);
    spare_room(0);
}

/// The limit of [`set_budget`] in force.
pub fn budget() -> Option<u64> {
    Some(BUDGET.load(Relaxed)).filter(|&bytes| bytes != u64::MAX)
}

/// Sets the number of live bytes up to which freed buffers are kept (a phase's predicted peak), and trims to it.
pub fn set_cache_limit(bytes: Option<u64>) {
    CACHE_LIMIT.store(bytes.unwrap_or(u64::MAX), Relaxed);
    make_room(0);
}

/// Gives every kept buffer back to the system; what is laid aside for others stays.
pub fn trim() {
    let kept = std::mem::take(&mut *reusable());
    drop(kept);
}

/// Gives every kept buffer back to the system, and what was laid aside unless that is still being done.
pub fn give_back() {
    trim();
    if !spare::handing_over() {
        spare::free_all();
    }
}

fn reusable() -> std::sync::MutexGuard<'static, Vec<Region>> {
    // A panic while the list is held leaves it valid: every operation on it is a single push, remove or take.
    REUSABLE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Frees kept buffers, largest first, until `wanted` more bytes stay within the cache limit and the budget.
fn make_room(wanted: u64) {
    spare_room(wanted);
    let limit = CACHE_LIMIT.load(Relaxed).min(BUDGET.load(Relaxed));
    while live().saturating_add(wanted) > limit {
        let Some(region) = take_largest(&mut reusable()) else {
            return;
        };
        drop(region);
    }
}

/// Frees what is laid aside until `wanted` more bytes stay within the budget.
fn spare_room(wanted: u64) {
    let budget = BUDGET.load(Relaxed);
    while let Some(missing) = over(budget, taken(), wanted) {
        if !spare::free_for(missing) {
            return;
        }
    }
}

/// A buffer was refused: it would have carried the live bytes over the budget, or the system had none left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub needed: u64,
    /// Bytes in use at that moment.
    pub live: u64,
    /// The limit in force; `u64::MAX` when there was none.
    pub budget: u64,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            needed,
            live,
            budget,
        } = self;
        if *budget == u64::MAX {
            write!(
                f,
                "the system has no {needed} bytes left beside {live} in use"
            )
        } else {
            write!(
                f,
                "{needed} bytes more than the {live} in use exceed the budget of {budget}"
            )
        }
    }
}

impl std::error::Error for OutOfMemory {}

/// An aligned buffer of bytes, counted and limited; read as bytes or as f32.
///
/// Its contents are initialised but unspecified, since it may be a reused one, unless made by [`Buffer::zeroed`].
pub struct Buffer {
    region: Option<Region>,
    len: usize,
}

impl Buffer {
    /// A buffer of `len` bytes with unspecified contents.
    ///
    /// # Errors
    /// [`OutOfMemory`] when it would cross the budget even after all kept buffers were given up.
    pub fn new(len: usize) -> Result<Buffer, OutOfMemory> {
        let bytes = len.max(1).next_multiple_of(BUFFER_ALIGNMENT);
        if let Some(region) = take_reusable(bytes).or_else(|| spare::take(bytes)) {
            note_peak();
            return Ok(Buffer {
                region: Some(region),
                len,
            });
        }
        let _taking = TAKING
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        make_room(bytes as u64);
        let refused = |live| OutOfMemory {
            needed: bytes as u64,
            live,
            budget: BUDGET.load(Relaxed),
        };
        let live = live();
        if taken().saturating_add(bytes as u64) > BUDGET.load(Relaxed) {
            return Err(refused(live));
        }
        let region = Region::allocate(bytes).ok_or_else(|| refused(live))?;
        Ok(Buffer {
            region: Some(region),
            len,
        })
    }

    /// A buffer of `len` zero bytes.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn zeroed(len: usize) -> Result<Buffer, OutOfMemory> {
        let mut buffer = Buffer::new(len)?;
        buffer.bytes_mut().fill(0);
        Ok(buffer)
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn pointer(&self) -> *mut u8 {
        self.region
            .as_ref()
            .expect("present until dropped")
            .pointer
            .as_ptr()
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the region is at least `len` long, initialised, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.len) }
    }

    /// The whole f32 values in it.
    pub fn f32(&self) -> &[f32] {
        // SAFETY: 64-byte aligned, initialised, `len / 4` whole values; every bit pattern is an f32.
        unsafe { std::slice::from_raw_parts(self.pointer().cast(), self.len / 4) }
    }

    /// The whole f32 values in it, to be written.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `f32`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer().cast(), self.len / 4) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(region) = self.region.take() else {
            return;
        };
        let Some(region) = spare::lay_aside(region) else {
            return;
        };
        if region.bytes < REUSE_BYTES_MIN
            || live() > CACHE_LIMIT.load(Relaxed).min(BUDGET.load(Relaxed))
        {
            return;
        }
        let mut kept = reusable();
        if kept.len() < REUSE_COUNT_MAX {
            kept.push(region);
        }
    }
}

/// The smallest kept region that holds `bytes` and wastes at most an eighth.
fn take_reusable(bytes: usize) -> Option<Region> {
    if bytes < REUSE_BYTES_MIN {
        return None;
    }
    take_fitting(&mut reusable(), bytes)
}

/// The smallest of these that holds `bytes` and wastes at most an eighth.
fn take_fitting(regions: &mut Vec<Region>, bytes: usize) -> Option<Region> {
    let fits = |region: &Region| region.bytes >= bytes && region.bytes - bytes <= bytes / 8;
    let best = (0..regions.len())
        .filter(|&i| fits(&regions[i]))
        .min_by_key(|&i| regions[i].bytes)?;
    Some(regions.swap_remove(best))
}

#[cfg(test)]
mod tests {
    use super::*;

    // The tests of this module share process-wide counters; nextest gives each its own process, and under plain
    // `cargo test` this lock keeps them apart.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn a_buffer_is_aligned_and_reads_as_f32() {
        let _alone = ALONE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut buffer = Buffer::zeroed(4 * 1001).unwrap();
        assert_eq!(buffer.bytes().as_ptr() as usize % BUFFER_ALIGNMENT, 0);
        assert_eq!(buffer.f32().len(), 1001);
        buffer.f32_mut()[1000] = 2.5;
        assert_eq!(&buffer.bytes()[4000..], 2.5f32.to_le_bytes());
    }

    #[test]
    fn an_empty_buffer_is_fine() {
        let buffer = Buffer::new(0).unwrap();
        assert!(buffer.is_empty() && buffer.f32().is_empty());
    }

    #[test]
    fn a_freed_buffer_is_used_again_and_trimmed() {
        let _alone = ALONE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let first = Buffer::new(1 << 20).unwrap();
        let address = first.bytes().as_ptr();
        drop(first);
        let second = Buffer::new((1 << 20) - 4096).unwrap();
        assert_eq!(second.bytes().as_ptr(), address);
        drop(second);
        trim();
        assert!(reusable().is_empty());
    }

    #[test]
    fn an_impossible_size_is_refused_as_a_value() {
        let _alone = ALONE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        assert!(Buffer::new(usize::MAX / 2).is_err());
    }
}
