//! Kernels: the module that is built in, those installed later, and functions found by name.

use crate::driver::{Context, done};
use crate::error::Error;
use cudarc::driver::sys::{
    self, CUfunction, CUfunction_attribute, CUjit_option, CUmodule, CUresult,
};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

/// Shared memory that every launch may have without asking, in bytes.
const SHARED_FREE: u32 = 48 << 10;

/// Bytes that begin where the loader can read numbers.
#[repr(C, align(16))]
#[cfg_attr(not(feature = "kernels"), allow(dead_code))]
struct Aligned<B: ?Sized>(B);

#[cfg(feature = "kernels")]
static KERNELS: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));
#[cfg(not(feature = "kernels"))]
static KERNELS: &Aligned<[u8]> = &Aligned([]);

/// Whether kernels were compiled into this program.
pub fn has_kernels() -> bool {
    !KERNELS.0.is_empty()
}

/// A kernel, found.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    raw: CUfunction,
    name: &'static str,
}

impl Function {
    /// The name it was found by.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The driver's handle, which lives as long as the [`crate::Gpu`].
    pub fn raw(&self) -> CUfunction {
        self.raw
    }
}

/// One function and how much shared memory it was allowed so far.
#[derive(Debug)]
struct Found {
    function: Function,
    shared: Cell<u32>,
}

/// All modules of a context.
#[derive(Debug)]
pub(crate) struct Modules {
    context: Arc<Context>,
    device: String,
    loaded: RefCell<Vec<Module>>,
    found: RefCell<HashMap<&'static str, Found>>,
}

/// One loaded module, and the image it was loaded from.
#[derive(Debug)]
struct Module {
    raw: CUmodule,
    image: *const u8,
}

impl Modules {
    pub(crate) fn new(context: &Arc<Context>, device: &str) -> Modules {
        Modules {
            context: Arc::clone(context),
            device: device.to_owned(),
            loaded: RefCell::default(),
            found: RefCell::default(),
        }
    }

    /// Adds the kernels of a text of PTX, once.
    pub(crate) fn install(&self, ptx: &'static CStr) -> Result<(), Error> {
        self.load(ptx.to_bytes_with_nul())
    }

    fn load(&self, image: &'static [u8]) -> Result<(), Error> {
        if self
            .loaded
            .borrow()
            .iter()
            .any(|module| module.image == image.as_ptr())
        {
            return Ok(());
        }
        self.context.bind()?;
        let raw = load_image(image).map_err(|(answer, log)| self.refused(answer, &log))?;
        self.loaded.borrow_mut().push(Module {
            raw,
            image: image.as_ptr(),
        });
        Ok(())
    }

    fn refused(&self, answer: CUresult, log: &str) -> Error {
        let error = Error::of_driver("loading kernels", answer);
        if error.is_out_of_memory() || error.is_poisoned() {
            return error;
        }
        let hint = match answer {
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
                "the kernels were built for other GPUs: build them for this one with scripts/build-cuda"
            }
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
                "the driver is older than the kernels: update it"
            }
            CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND => {
                "the driver's compiler (libnvidia-ptxjitcompiler) is not installed: install all of the driver"
            }
            _ => "update the driver",
        };
        let log = if log.is_empty() {
            String::new()
        } else {
            format!("; it says: {log}")
        };
        Error::Unsuitable {
            device: self.device.clone(),
            reason: format!("it does not take the kernels ({answer:?}): {hint}{log}"),
        }
    }

    /// A kernel by its name.
    pub(crate) fn function(&self, name: &'static str) -> Result<Function, Error> {
        if let Some(found) = self.found.borrow().get(name) {
            return Ok(found.function);
        }
        if has_kernels() {
            self.load(&KERNELS.0)?;
        }
        let raw = self.look_up(name)?.ok_or_else(|| Error::MissingKernel {
            name: name.to_owned(),
        })?;
        let function = Function { raw, name };
        let found = Found {
            function,
            shared: Cell::new(SHARED_FREE),
        };
        self.found.borrow_mut().insert(name, found);
        Ok(function)
    }

    fn look_up(&self, name: &str) -> Result<Option<CUfunction>, Error> {
        let Ok(wanted) = CString::new(name) else {
            return Ok(None);
        };
        self.context.bind()?;
        for module in self.loaded.borrow().iter() {
            let mut raw = null_mut();
            // SAFETY: the module is loaded, the name ends in a zero, and the pointer is to a live handle.
            match unsafe { sys::cuModuleGetFunction(&raw mut raw, module.raw, wanted.as_ptr()) } {
                CUresult::CUDA_SUCCESS => return Ok(Some(raw)),
                CUresult::CUDA_ERROR_NOT_FOUND => {}
                answer => return Err(Error::of_driver("finding a kernel", answer)),
            }
        }
        Ok(None)
    }

    /// The kernel, allowed so much shared memory.
    pub(crate) fn ready(&self, name: &'static str, shared: u32) -> Result<Function, Error> {
        let function = self.function(name)?;
        let found = self.found.borrow();
        let Some(known) = found.get(name).filter(|found| shared > found.shared.get()) else {
            return Ok(function);
        };
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(shared).unwrap_or(i32::MAX);
        // SAFETY: the function's module is loaded.
        done("allowing a kernel more shared memory", unsafe {
            sys::cuFuncSetAttribute(function.raw, attribute, bytes)
        })?;
        known.shared.set(shared);
        Ok(function)
    }
}

/// Loads a fatbin, or PTX that ends in a zero. On refusal: the answer, and what the driver's compiler wrote.
fn load_image(image: &'static [u8]) -> Result<CUmodule, (CUresult, String)> {
    let mut log = [0u8; 2048];
    let room = log.len() - 1;
    let mut options = [
        CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values: [*mut c_void; 2] = [
        log.as_mut_ptr().cast(),
        std::ptr::without_provenance_mut(room),
    ];
    let mut raw = null_mut();
    // SAFETY: two options have two values, of the types that the driver expects of them: a buffer and its size. The
    // image is whole and lives for ever.
    let answer = unsafe {
        sys::cuModuleLoadDataEx(
            &raw mut raw,
            image.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    if answer == CUresult::CUDA_SUCCESS {
        return Ok(raw);
    }
    let text = CStr::from_bytes_until_nul(&log).unwrap_or_default();
    Err((answer, text.to_string_lossy().trim().to_owned()))
}

impl Drop for Modules {
    fn drop(&mut self) {
        if self.context.bind().is_err() {
            return;
        }
        for module in self.loaded.get_mut().drain(..) {
            // SAFETY: loaded once, and whoever drops this launches nothing of it any more. An error has nobody to go to.
            unsafe {
                let _ = sys::cuModuleUnload(module.raw);
            }
        }
    }
}
