//! A pool of device memory with a hard maximum, and the count of what was taken from it.
//!
//! The maximum is kept twice. The count refuses exactly, to the byte that was asked for, and costs no call. The driver
//! refuses whatever the count might miss: a pool never holds more of the device than its `maxSize`.

use crate::driver::{Context, done};
use crate::error::Error;
use cudarc::driver::sys::{
    self, CUdevice, CUdeviceptr, CUmemAllocationHandleType, CUmemAllocationType, CUmemLocation,
    CUmemLocationType, CUmemPool_attribute as Attribute, CUmemPoolProps, CUmemoryPool, CUresult,
    CUstream,
};
use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::Arc;

/// What a pool rounds sizes up to, in bytes; buffers therefore begin at multiples of it.
const GRAIN: u64 = 512;

/// What the driver says of a pool, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolFigures {
    /// Handed out.
    pub used: u64,
    /// The most that was handed out since the marks were reset.
    pub used_high: u64,
    /// Taken from the device.
    pub reserved: u64,
    /// The most that was taken from the device since the marks were reset.
    pub reserved_high: u64,
}

/// What is in use, by our own count.
#[derive(Debug)]
pub(crate) struct Ledger {
    budget: u64,
    used: Cell<u64>,
    peak: Cell<u64>,
}

impl Ledger {
    pub(crate) fn new(budget: u64) -> Ledger {
        Ledger {
            budget,
            used: Cell::new(0),
            peak: Cell::new(0),
        }
    }

    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.get()
    }

    pub(crate) fn peak(&self) -> u64 {
        self.peak.get()
    }

    pub(crate) fn reset_peak(&self) {
        self.peak.set(self.used.get());
    }

    /// Whether so many more fit.
    pub(crate) fn admit(&self, asked: u64) -> Result<(), Error> {
        if self.used().saturating_add(asked) > self.budget {
            return Err(self.refusal(asked));
        }
        Ok(())
    }

    fn refusal(&self, asked: u64) -> Error {
        Error::OutOfMemory {
            asked,
            used: self.used(),
            budget: self.budget,
        }
    }

    pub(crate) fn take(&self, bytes: u64) {
        self.used
            .set(self.used().saturating_add(bytes.next_multiple_of(GRAIN)));
        self.peak.set(self.peak().max(self.used()));
    }

    pub(crate) fn give(&self, bytes: u64) {
        self.used
            .set(self.used().saturating_sub(bytes.next_multiple_of(GRAIN)));
    }

    /// Who refused, when the driver did: the device where it has less free than was asked for although the budget has
    /// room, else the budget (or what lies between the buffers in it).
    pub(crate) fn refused(&self, what: &'static str, asked: u64, free: u64) -> Error {
        if self.admit(asked).is_ok() && free < asked {
            return Error::DriverOutOfMemory { what, asked, free };
        }
        self.refusal(asked)
    }
}

/// The driver's pool.
#[derive(Debug)]
pub(crate) struct Pool {
    raw: CUmemoryPool,
    context: Arc<Context>,
    pub(crate) ledger: Ledger,
}

/// What a pool is made with.
fn properties(device: CUdevice, budget: u64) -> CUmemPoolProps {
    CUmemPoolProps {
        allocType: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        handleTypes: CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
        location: CUmemLocation {
            type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: device,
        },
        win32SecurityAttributes: null_mut(),
        maxSize: usize::try_from(budget).unwrap_or(usize::MAX),
        usage: 0,
        reserved: [0; 54],
    }
}

impl Pool {
    pub(crate) fn new(
        context: &Arc<Context>,
        device: CUdevice,
        budget: u64,
    ) -> Result<Pool, Error> {
        context.bind()?;
        let mut raw = null_mut();
        let properties = properties(device, budget);
        // SAFETY: both pointers are to live values of the types the driver expects.
        done("making a memory pool", unsafe {
            sys::cuMemPoolCreate(&raw mut raw, &raw const properties)
        })?;
        let pool = Pool {
            raw,
            context: Arc::clone(context),
            ledger: Ledger::new(budget),
        };
        // Memory between two buffers stays with the pool until it is trimmed: fresh memory costs a call to the system.
        let mut keep = u64::MAX;
        // SAFETY: this attribute is a 64-bit number.
        done("setting up a memory pool", unsafe {
            sys::cuMemPoolSetAttribute(
                pool.raw,
                Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                (&raw mut keep).cast(),
            )
        })?;
        // The driver must not make one stream wait for another on its own.
        let mut no = 0i32;
        // SAFETY: this attribute is an `int`.
        done("setting up a memory pool", unsafe {
            sys::cuMemPoolSetAttribute(
                pool.raw,
                Attribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES,
                (&raw mut no).cast(),
            )
        })?;
        Ok(pool)
    }

    /// Asks the driver, past the count: the answer is its own.
    pub(crate) fn ask(&self, bytes: u64, stream: CUstream) -> Result<CUdeviceptr, CUresult> {
        let mut address = 0;
        // SAFETY: pool and stream live as long as the device they belong to, which the caller holds.
        let answer = unsafe {
            sys::cuMemAllocFromPoolAsync(&raw mut address, bytes as usize, self.raw, stream)
        };
        match answer {
            CUresult::CUDA_SUCCESS => Ok(address),
            answer => Err(answer),
        }
    }

    /// Gives what nobody uses back to the device. Work that still holds something must have ended.
    pub(crate) fn trim(&self) -> Result<(), Error> {
        self.context.bind()?;
        // SAFETY: the pool lives as long as `self`.
        done("giving memory back", unsafe {
            sys::cuMemPoolTrimTo(self.raw, 0)
        })
    }

    pub(crate) fn figures(&self) -> Result<PoolFigures, Error> {
        self.context.bind()?;
        Ok(PoolFigures {
            used: self.figure(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
            used_high: self.figure(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?,
            reserved: self.figure(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?,
            reserved_high: self.figure(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH)?,
        })
    }

    fn figure(&self, attribute: Attribute) -> Result<u64, Error> {
        let mut value = 0u64;
        // SAFETY: the four attributes asked for are 64-bit numbers.
        done("asking a memory pool", unsafe {
            sys::cuMemPoolGetAttribute(self.raw, attribute, (&raw mut value).cast())
        })?;
        Ok(value)
    }

    /// Lets both marks begin anew. Meaningful only while nothing is being freed.
    pub(crate) fn reset_marks(&self) -> Result<(), Error> {
        self.context.bind()?;
        for attribute in [
            Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
            Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH,
        ] {
            let mut zero = 0u64;
            // SAFETY: both attributes are 64-bit numbers, and zero is the only one that may be written.
            done("resetting a memory pool's marks", unsafe {
                sys::cuMemPoolSetAttribute(self.raw, attribute, (&raw mut zero).cast())
            })?;
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `new`, and whoever drops it has no buffer of it left. An error has nobody to go to.
            unsafe {
                let _ = sys::cuMemPoolDestroy(self.raw);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_refuses_to_the_byte() {
        let ledger = Ledger::new(4096);
        ledger.take(1000);
        assert_eq!(ledger.used(), 1024);
        assert_eq!(ledger.admit(3072), Ok(()));
        assert_eq!(
            ledger.admit(3073),
            Err(Error::OutOfMemory {
                asked: 3073,
                used: 1024,
                budget: 4096
            })
        );
        assert!(ledger.admit(u64::MAX).is_err());
        ledger.give(1000);
        assert_eq!((ledger.used(), ledger.peak()), (0, 1024));
        ledger.reset_peak();
        assert_eq!(ledger.peak(), 0);
    }

    #[test]
    fn a_refusal_names_who_refused() {
        let ledger = Ledger::new(1 << 30);
        let device = ledger.refused("a buffer", 1 << 20, 4096);
        assert_eq!(
            device,
            Error::DriverOutOfMemory {
                what: "a buffer",
                asked: 1 << 20,
                free: 4096
            }
        );
        // The device has room: the pool's own maximum, or what lies between its buffers.
        let budget = ledger.refused("a buffer", 1 << 20, 1 << 34);
        assert!(matches!(budget, Error::OutOfMemory { .. }), "{budget}");
        // Both lack room: the budget comes first, since it is what the caller set.
        let both = ledger.refused("a buffer", 2 << 30, 0);
        assert!(matches!(both, Error::OutOfMemory { .. }), "{both}");
    }

    #[test]
    fn a_pool_is_made_with_its_maximum() {
        let properties = properties(3, 5 << 30);
        assert_eq!(properties.maxSize, 5 << 30);
        assert_eq!(properties.location.id, 3);
    }
}
