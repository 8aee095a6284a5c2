//! How large the proofs may be on this machine.

use lowtide_cuda::HostMemory;

const MIB: u64 = 1 << 20;

/// What the restore of a large model is measured with where there is room for it.
pub(crate) const RESTORE_BYTES: u64 = 12_000_000_000;

/// Added to every budget for sums, scratch and the units in which a driver deals memory.
pub(crate) const SPARE: u64 = 64 << 20;

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// One slot of the ring, and one block in host memory.
    pub(crate) block: usize,
    /// Different blocks in host memory.
    pub(crate) blocks: usize,
    /// What is taken and given back.
    pub(crate) idle: u64,
    /// One large copy, of those that small ones wait for.
    pub(crate) large: usize,
    /// The cache that outlives a process.
    pub(crate) cache: usize,
    /// What is restored at once.
    pub(crate) restore: usize,
}

impl Sizes {
    /// Sizes for a GPU with `free` bytes, in a machine that lets `room` bytes be pinned.
    pub(crate) fn new(free: u64, room: u64) -> Sizes {
        // At no time is more than half of either in use.
        let (free, room) = (free / 2, room / 2);
        let block = (64 * MIB).min(free / 8).min(room / 16);
        Sizes {
            block: whole(block),
            blocks: 8,
            idle: (2048 * MIB).min(free),
            large: whole((512 * MIB).min(free).min(room)),
            cache: whole((1024 * MIB).min(free).min(room)),
            restore: whole(RESTORE_BYTES.min(free).min(room)),
        }
    }

    /// Sizes for a GPU that has so much free.
    pub(crate) fn here(free: u64) -> Sizes {
        Sizes::new(free, HostMemory::read().room(0).bytes)
    }
}

/// Whole pieces of 64 KiB, one at least.
fn whole(bytes: u64) -> usize {
    let piece = 64 << 10;
    usize::try_from((bytes / piece).max(1) * piece).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_machines_get_whole_proofs() {
        let sizes = Sizes::new(140 << 30, 60 << 30);
        assert_eq!(sizes.block, 64 << 20);
        assert_eq!(sizes.large, 512 << 20);
        assert_eq!(sizes.cache, 1 << 30);
        assert!(sizes.restore as u64 > RESTORE_BYTES - (1 << 16));
    }

    #[test]
    fn small_machines_get_small_ones() {
        for (free, room) in [(1u64 << 30, 512u64 << 20), (0, 0), (8 << 30, 1 << 30)] {
            let sizes = Sizes::new(free, room);
            let least = 1u64 << 20;
            assert!(sizes.restore as u64 <= (free.min(room) / 2).max(least));
            assert!((sizes.block * sizes.blocks) as u64 <= (room / 2).max(least));
            assert!(sizes.block > 0 && sizes.block.is_multiple_of(4));
        }
    }
}
