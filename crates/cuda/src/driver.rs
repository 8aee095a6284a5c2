//! The driver: whether it is there, and contexts. Every call into it passes through here or checks here first, since a
//! library that is missing would otherwise end the program.

use crate::error::Error;
use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdevice_attribute, CUresult};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// The first driver that knows the maximum size of a pool, as the driver writes versions: 12.2.
const DRIVER_MIN: i32 = 12_020;

/// What is known of a device without using it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number in this process, from 0.
    pub ordinal: usize,
    /// The name its maker gave it.
    pub name: String,
    /// Bytes of memory it has.
    pub total: u64,
    /// Bytes that were free when it was looked at. [`devices`] asks NVIDIA's management library, and says the total
    /// where there is none; a device that was opened was asked itself.
    pub free: u64,
    /// Its compute capability, major and minor.
    pub compute: (i32, i32),
    /// Multiprocessors.
    pub processors: u32,
    /// Where it is on the bus, by which the management library knows it.
    pub pci: String,
    /// Whether its memory is the machine's.
    pub integrated: bool,
}

/// The devices that the driver shows; none at all is [`Error::NoDriver`] only where the driver itself is missing.
pub fn devices() -> Result<Vec<DeviceInfo>, Error> {
    let mut devices = Vec::new();
    for ordinal in 0..start()? {
        let mut info = describe(ordinal, device(ordinal)?)?;
        if let Ok(memory) = crate::telemetry::Telemetry::open(&info.pci).and_then(|t| t.memory()) {
            info.free = memory.free;
        }
        devices.push(info);
    }
    Ok(devices)
}

/// The driver's version: 13000 is 13.0.
pub fn driver_version() -> Result<i32, Error> {
    start()?;
    let mut version = 0;
    // SAFETY: the library is there, and the pointer is to a live number.
    done("asking for the version", unsafe {
        sys::cuDriverGetVersion(&raw mut version)
    })?;
    Ok(version)
}

/// Loads and starts the driver, once, and says how many devices there are.
pub(crate) fn start() -> Result<usize, Error> {
    static STARTED: OnceLock<Result<usize, Error>> = OnceLock::new();
    STARTED.get_or_init(start_once).clone()
}

fn start_once() -> Result<usize, Error> {
    // SAFETY: it only tries to open a library by its usual names.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver {
            reason: "its library (libcuda.so.1, nvcuda.dll) cannot be opened".to_owned(),
        });
    }
    // SAFETY: the library is there, and this is the call that must be the first.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
        answer => {
            return Err(Error::NoDriver {
                reason: format!(
                    "its library is there but does not start: {answer:?} ({})",
                    answer as u32
                ),
            });
        }
    }
    let mut count: c_int = 0;
    // SAFETY: as above; the pointer is to a live number.
    done("counting devices", unsafe {
        sys::cuDeviceGetCount(&raw mut count)
    })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// A driver's answer as a value.
pub(crate) fn done(what: &'static str, answer: CUresult) -> Result<(), Error> {
    match answer {
        CUresult::CUDA_SUCCESS => Ok(()),
        answer => Err(Error::of_driver(what, answer)),
    }
}

pub(crate) fn device(ordinal: usize) -> Result<CUdevice, Error> {
    let count = start()?;
    if ordinal >= count {
        return Err(Error::NoDevice { ordinal, count });
    }
    let mut device = 0;
    // SAFETY: the driver has started, and the pointer is to a live number.
    done("finding a device", unsafe {
        sys::cuDeviceGet(&raw mut device, ordinal as c_int)
    })?;
    Ok(device)
}

fn attribute(device: CUdevice, attribute: CUdevice_attribute) -> Result<i32, Error> {
    let mut value = 0;
    // SAFETY: the device is the driver's own, and the pointer is to a live number.
    done("asking what a device can do", unsafe {
        sys::cuDeviceGetAttribute(&raw mut value, attribute, device)
    })?;
    Ok(value)
}

/// Text that the driver writes into a buffer, up to its zero.
fn text(write: impl FnOnce(*mut c_char, c_int) -> CUresult) -> Result<String, Error> {
    let mut buffer = [0u8; 256];
    let room = (buffer.len() - 1) as c_int;
    done("asking for a name", write(buffer.as_mut_ptr().cast(), room))?;
    let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default();
    Ok(text.to_string_lossy().into_owned())
}

pub(crate) fn describe(ordinal: usize, device: CUdevice) -> Result<DeviceInfo, Error> {
    use CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        CU_DEVICE_ATTRIBUTE_INTEGRATED as INTEGRATED,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as PROCESSORS,
    };
    let mut total = 0usize;
    // SAFETY: the device is the driver's own, and the pointer is to a live number.
    done("asking for a device's memory", unsafe {
        sys::cuDeviceTotalMem_v2(&raw mut total, device)
    })?;
    // SAFETY: the buffer has the room that is said, and is read up to its zero.
    let name = text(|to, room| unsafe { sys::cuDeviceGetName(to, room, device) })?;
    // SAFETY: as above.
    let pci = text(|to, room| unsafe { sys::cuDeviceGetPCIBusId(to, room, device) })?;
    Ok(DeviceInfo {
        ordinal,
        name,
        total: total as u64,
        free: total as u64,
        compute: (attribute(device, MAJOR)?, attribute(device, MINOR)?),
        processors: u32::try_from(attribute(device, PROCESSORS)?).unwrap_or(0),
        pci,
        integrated: attribute(device, INTEGRATED)? != 0,
    })
}

/// Refuses devices and drivers without pools that have a maximum.
pub(crate) fn fit(info: &DeviceInfo, device: CUdevice) -> Result<(), Error> {
    let refuse = |reason: String| {
        Err(Error::Unsuitable {
            device: info.name.clone(),
            reason,
        })
    };
    let version = driver_version()?;
    if version < DRIVER_MIN {
        return refuse(format!(
            "its driver speaks CUDA {}.{}, and a budget that holds needs 12.2 (driver 535 or newer): update it",
            version / 1000,
            version % 1000 / 10
        ));
    }
    let pools = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
    if attribute(device, pools)? == 0 {
        return refuse("it has no memory pools, without which a budget cannot be kept".to_owned());
    }
    Ok(())
}

thread_local! {
    /// The number of the context that calls of this thread go to, so that the driver is told only when it changes.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// Numbers of contexts, from 1. Handles come back, numbers do not.
static CONTEXTS: AtomicU64 = AtomicU64::new(1);

/// A device's primary context, held for as long as anything in it is. Any thread may pin host memory with it.
#[derive(Debug)]
pub struct Context {
    device: CUdevice,
    raw: CUcontext,
    number: u64,
}

// SAFETY: a context is a handle that the driver lets any thread use; which thread it is current in is kept per thread.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks inside.
unsafe impl Sync for Context {}

impl Context {
    pub(crate) fn retain(device: CUdevice) -> Result<Arc<Context>, Error> {
        let mut raw = null_mut();
        // SAFETY: the device is the driver's own, and the pointer is to a live handle.
        done("making a context", unsafe {
            sys::cuDevicePrimaryCtxRetain(&raw mut raw, device)
        })?;
        let context = Arc::new(Context {
            device,
            raw,
            number: CONTEXTS.fetch_add(1, Relaxed),
        });
        context.bind()?;
        Ok(context)
    }

    /// Makes it the context of this thread's calls.
    pub(crate) fn bind(&self) -> Result<(), Error> {
        if CURRENT.get() == self.number {
            return Ok(());
        }
        // SAFETY: the context is retained for as long as `self` is.
        done("choosing a context", unsafe {
            sys::cuCtxSetCurrent(self.raw)
        })?;
        CURRENT.set(self.number);
        Ok(())
    }

    /// Bytes free and in all, as the driver sees the device now.
    pub(crate) fn memory(&self) -> Result<(u64, u64), Error> {
        self.bind()?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: a context is current, and the pointers are to live numbers.
        done("asking for free memory", unsafe {
            sys::cuMemGetInfo_v2(&raw mut free, &raw mut total)
        })?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if CURRENT.get() == self.number {
            CURRENT.set(0);
        }
        // SAFETY: it was retained once, when this was made, and nothing in it is left. An error has nobody to go to.
        unsafe {
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_is_a_value() {
        match devices() {
            Ok(devices) => assert!(devices.iter().all(|device| device.total > 0)),
            Err(error) => {
                assert!(error.is_absent(), "{error}");
                assert!(error.to_string().contains("driver"), "{error}");
            }
        }
    }

    #[test]
    fn what_other_threads_need_may_go_there() {
        fn goes<T: Send + Sync>() {}
        goes::<Context>();
        goes::<crate::Event>();
        goes::<crate::Pinned>();
        goes::<Error>();
    }

    #[test]
    fn an_absent_device_is_a_value() {
        let error = device(1_000).expect_err("nobody has so many");
        assert!(error.is_absent(), "{error}");
    }
}
