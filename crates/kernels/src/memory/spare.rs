//! Memory of weights that are forgotten for others that are read next.
//!
//! Fresh pages cost more than the bytes read into them, so while a model makes room for another its large buffers are
//! not given back to the system but laid aside here. What lies here is nobody's: it does not count among the live bytes,
//! any buffer of about its size takes it, it goes before the budget would refuse anything, and
//! [`give_back`](super::give_back) ends it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Region;

/// Buffers below this are not laid aside: they are few bytes and many.
const SPARE_BYTES_MIN: usize = 256 << 10;

/// The most buffers laid aside: blocks of the largest models are fewer.
const SPARE_COUNT_MAX: usize = 4096;

static SPARE: Mutex<Vec<Region>> = Mutex::new(Vec::new());

/// Bytes of them all.
static BYTES: AtomicU64 = AtomicU64::new(0);

/// How many guards there are.
static HANDING_OVER: AtomicUsize = AtomicUsize::new(0);

/// While it lives, large buffers that are freed are laid aside for the next ones of about their size, and
/// [`give_back`](super::give_back) leaves them there.
pub struct HandOver(());

/// Begins to lay freed buffers aside.
pub fn hand_over() -> HandOver {
    HANDING_OVER.fetch_add(1, Relaxed);
    HandOver(())
}

impl Drop for HandOver {
    fn drop(&mut self) {
        HANDING_OVER.fetch_sub(1, Relaxed);
    }
}

/// Whether buffers are being laid aside.
pub(super) fn handing_over() -> bool {
    HANDING_OVER.load(Relaxed) > 0
}

/// Bytes laid aside.
pub fn spare() -> u64 {
    BYTES.load(Relaxed)
}

fn list() -> MutexGuard<'static, Vec<Region>> {
    // A panic while the list is held leaves it valid: every operation on it is a single push, remove or take.
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lays a region aside if that is being done and it is large enough; else returns it.
pub(super) fn lay_aside(region: Region) -> Option<Region> {
    if !handing_over() || region.bytes < SPARE_BYTES_MIN {
        return Some(region);
    }
    let mut spare = list();
    if spare.len() >= SPARE_COUNT_MAX {
        return Some(region);
    }
    BYTES.fetch_add(region.bytes as u64, Relaxed);
    spare.push(region);
    None
}

/// The smallest region that holds `bytes` and wastes at most an eighth.
pub(super) fn take(bytes: usize) -> Option<Region> {
    if bytes < SPARE_BYTES_MIN || spare() == 0 {
        return None;
    }
    super::take_fitting(&mut list(), bytes).map(taken)
}

fn taken(region: Region) -> Region {
    BYTES.fetch_sub(region.bytes as u64, Relaxed);
    region
}

/// Frees the smallest region that makes up for `missing` bytes, else the largest. Returns whether there was one.
pub(super) fn free_for(missing: u64) -> bool {
    spare() > 0 && freed(&mut list(), missing)
}

/// As [`free_for`], from within the allocator, which must not wait for a list that its own thread may hold.
pub(super) fn try_free_for(missing: u64) -> bool {
    spare() > 0
        && SPARE
            .try_lock()
            .is_ok_and(|mut spare| freed(&mut spare, missing))
}

fn freed(spare: &mut Vec<Region>, missing: u64) -> bool {
    let bytes = |&i: &usize| spare[i].bytes as u64;
    let enough = (0..spare.len())
        .filter(|i| bytes(i) >= missing)
        .min_by_key(bytes);
    let Some(one) = enough.or_else(|| (0..spare.len()).max_by_key(bytes)) else {
        return false;
    };
    drop(taken(spare.swap_remove(one)));
    true
}

/// Frees all of them.
pub(super) fn free_all() {
    let all = std::mem::take(&mut *list());
    all.into_iter().map(taken).for_each(drop);
}

#[cfg(test)]
mod tests {
    use super::super::Buffer;
    use super::*;

    #[test]
    fn a_buffer_laid_aside_is_taken_by_the_next_of_about_its_size_alone() {
        const BYTES: usize = 3 << 20;
        let [first, small] = [BYTES, SPARE_BYTES_MIN / 2].map(|bytes| Buffer::new(bytes).unwrap());
        let address = first.bytes().as_ptr();
        let guard = hand_over();
        drop((first, small));
        super::super::give_back();
        assert_eq!(spare(), BYTES as u64, "the small one is not kept");
        drop(guard);
        let other = Buffer::new(BYTES / 2).unwrap();
        assert_eq!(spare(), BYTES as u64, "too large for that");
        let again = Buffer::new(BYTES - 4096).unwrap();
        assert_eq!((again.bytes().as_ptr(), spare()), (address, 0));
        drop((other, again));
        super::super::give_back();
        assert_eq!(spare(), 0);
    }

    #[test]
    fn what_is_freed_is_the_least_that_is_enough() {
        let region = |bytes| Region::allocate(bytes).unwrap();
        let mut regions = vec![region(512 << 10), region(4 << 20), region(1 << 20)];
        for bytes in [512 << 10, 4 << 20, 1 << 20] {
            BYTES.fetch_add(bytes, Relaxed);
        }
        let sizes = |regions: &[Region]| regions.iter().map(|r| r.bytes >> 10).collect::<Vec<_>>();
        assert!(freed(&mut regions, 600 << 10));
        assert_eq!(sizes(&regions), [512, 4096]);
        assert!(freed(&mut regions, 100 << 20));
        assert_eq!(sizes(&regions), [512]);
        assert!(freed(&mut regions, 1) && !freed(&mut regions, 1));
        assert_eq!(spare(), 0);
    }
}
