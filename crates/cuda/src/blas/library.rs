//! The dozen functions of cuBLASLt that are used, found at run time, and its objects with their ends.

use crate::error::Error;
use libloading::Library as Shared;
use std::ffi::c_void;
use std::ptr::{from_mut, from_ref, null_mut};
use std::sync::OnceLock;

/// Names it goes by, newest first.
const NAMES: [&str; 5] = [
    "libcublasLt.so.13",
    "libcublasLt.so.12",
    "libcublasLt.so",
    "cublasLt64_13.dll",
    "cublasLt64_12.dll",
];

// Numbers of the library's interface.
const COMPUTE_F32: i32 = 68;
const COMPUTE_F32_BY_TF32: i32 = 77;
const TYPE_F32: i32 = 0;
const TYPE_F16: i32 = 2;
const TYPE_BF16: i32 = 14;
const OPERATION_TURNED: i32 = 1;
const DESCRIPTOR_FIRST: i32 = 3;
const PREFERENCE_WORKSPACE: i32 = 1;
const PREFERENCE_REDUCTIONS: i32 = 3;
/// Of both factors, and of what is added and written.
const PREFERENCE_ALIGNMENTS: [i32; 4] = [5, 6, 7, 8];
const ALGORITHM_SPLITS: i32 = 2;
const ALGORITHM_REDUCTION: i32 = 3;
const REDUCTION_NONE: u32 = 0;

/// How many proposals are asked for: some may want to split sums.
const PROPOSALS: usize = 8;

type Object = *mut c_void;
type Status = i32;
type Create = unsafe extern "C" fn(*mut Object) -> Status;
type Destroy = unsafe extern "C" fn(Object) -> Status;
type SetAttribute = unsafe extern "C" fn(Object, i32, *const c_void, usize) -> Status;
type SetAlgorithm = unsafe extern "C" fn(*mut Algorithm, i32, *const c_void, usize) -> Status;
type DescriptorCreate = unsafe extern "C" fn(*mut Object, i32, i32) -> Status;
type LayoutCreate = unsafe extern "C" fn(*mut Object, i32, u64, u64, i64) -> Status;
type Heuristic = unsafe extern "C" fn(
    Object,
    Object,
    Object,
    Object,
    Object,
    Object,
    Object,
    i32,
    *mut Proposal,
    *mut i32,
) -> Status;
type Check = unsafe extern "C" fn(
    Object,
    Object,
    Object,
    Object,
    Object,
    Object,
    *const Algorithm,
    *mut Proposal,
) -> Status;
type Multiply = unsafe extern "C" fn(
    Object,
    Object,
    *const c_void,
    *const c_void,
    Object,
    *const c_void,
    Object,
    *const c_void,
    *const c_void,
    Object,
    *mut c_void,
    Object,
    *const Algorithm,
    *mut c_void,
    usize,
    *mut c_void,
) -> Status;

/// An algorithm, opaque.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Algorithm([u64; 8]);

/// What the library says of an algorithm.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Proposal {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [i32; 4],
}

/// The library, opened for as long as the process lives.
#[derive(Debug)]
pub(super) struct Library {
    create: Create,
    descriptor_create: DescriptorCreate,
    descriptor_destroy: Destroy,
    descriptor_set: SetAttribute,
    layout_create: LayoutCreate,
    layout_destroy: Destroy,
    preference_create: Create,
    preference_destroy: Destroy,
    preference_set: SetAttribute,
    algorithm_set: SetAlgorithm,
    heuristic: Heuristic,
    check: Check,
    multiply: Multiply,
}

fn done(what: &'static str, status: Status) -> Result<(), Error> {
    match status {
        0 => Ok(()),
        code => Err(Error::Cublas { what, code }),
    }
}

impl Library {
    /// The library, opened at the first call, or why it cannot be.
    pub(super) fn get() -> Result<&'static Library, &'static str> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        let library = LIBRARY.get_or_init(Library::open);
        library.as_ref().map_err(String::as_str)
    }

    fn open() -> Result<Library, String> {
        let mut reasons = Vec::new();
        for name in NAMES {
            // SAFETY: NVIDIA's library has no effects when it is loaded but on itself.
            match unsafe { Shared::new(name) } {
                // It stays: handles may live as long as the process.
                Ok(shared) => return Library::of(Box::leak(Box::new(shared))),
                Err(reason) => reasons.push(reason.to_string()),
            }
        }
        Err(reasons.swap_remove(0))
    }

    fn of(shared: &'static Shared) -> Result<Library, String> {
        fn find<F: Copy>(shared: &'static Shared, name: &str) -> Result<F, String> {
            // SAFETY: the types below are those of the library's header, the same since its version 11.
            let found = unsafe { shared.get::<F>(name.as_bytes()) };
            found.map(|f| *f).map_err(|error| error.to_string())
        }
        Ok(Library {
            create: find(shared, "cublasLtCreate")?,
            descriptor_create: find(shared, "cublasLtMatmulDescCreate")?,
            descriptor_destroy: find(shared, "cublasLtMatmulDescDestroy")?,
            descriptor_set: find(shared, "cublasLtMatmulDescSetAttribute")?,
            layout_create: find(shared, "cublasLtMatrixLayoutCreate")?,
            layout_destroy: find(shared, "cublasLtMatrixLayoutDestroy")?,
            preference_create: find(shared, "cublasLtMatmulPreferenceCreate")?,
            preference_destroy: find(shared, "cublasLtMatmulPreferenceDestroy")?,
            preference_set: find(shared, "cublasLtMatmulPreferenceSetAttribute")?,
            algorithm_set: find(shared, "cublasLtMatmulAlgoConfigSetAttribute")?,
            heuristic: find(shared, "cublasLtMatmulAlgoGetHeuristic")?,
            check: find(shared, "cublasLtMatmulAlgoCheck")?,
            multiply: find(shared, "cublasLtMatmul")?,
        })
    }

    /// A handle of the current context.
    pub(super) fn create(&self) -> Result<Handle, Error> {
        let mut raw = null_mut();
        // SAFETY: the pointer is to a live place for a handle.
        done("its start", unsafe { (self.create)(&raw mut raw) })?;
        Ok(Handle { raw })
    }

    /// The first proposal that sums along k in one go, if there is one.
    pub(super) fn choose(
        &self,
        handle: &Handle,
        problem: &Problem<'_>,
    ) -> Result<Option<Algorithm>, Error> {
        let preference = Preference::plain(self)?;
        let mut proposals = [Proposal::default(); PROPOSALS];
        let mut count = 0;
        let [operation, weights, rows, out] = problem.raw();
        // SAFETY: all objects live, and there is room for so many proposals.
        let status = unsafe {
            (self.heuristic)(
                handle.raw,
                operation,
                weights,
                rows,
                out,
                out,
                preference.raw,
                PROPOSALS as i32,
                proposals.as_mut_ptr(),
                &raw mut count,
            )
        };
        if status != 0 {
            return Ok(None);
        }
        let proposals = &proposals[..usize::try_from(count).unwrap_or(0).min(PROPOSALS)];
        let whole = proposals
            .iter()
            .filter(|proposal| proposal.state == 0)
            .find_map(|proposal| {
                let algorithm = self.without_splits(proposal.algorithm)?;
                self.fits(handle, problem, &algorithm).then_some(algorithm)
            });
        Ok(whole)
    }

    fn without_splits(&self, mut algorithm: Algorithm) -> Option<Algorithm> {
        let one = 1i32;
        let none = REDUCTION_NONE;
        for (attribute, value) in [
            (ALGORITHM_SPLITS, from_ref(&one).cast::<c_void>()),
            (ALGORITHM_REDUCTION, from_ref(&none).cast()),
        ] {
            // SAFETY: both values are live and have four bytes.
            let status = unsafe { (self.algorithm_set)(&raw mut algorithm, attribute, value, 4) };
            if status != 0 {
                return None;
            }
        }
        Some(algorithm)
    }

    /// Whether an algorithm computes a problem without memory of its own.
    pub(super) fn fits(
        &self,
        handle: &Handle,
        problem: &Problem<'_>,
        algorithm: &Algorithm,
    ) -> bool {
        let mut answer = Proposal::default();
        let [operation, weights, rows, out] = problem.raw();
        // SAFETY: all objects live.
        let status = unsafe {
            (self.check)(
                handle.raw,
                operation,
                weights,
                rows,
                out,
                out,
                from_ref(algorithm),
                from_mut(&mut answer),
            )
        };
        status == 0 && answer.state == 0 && answer.workspace == 0
    }

    /// `out = factors[0] * rows * weights + factors[1] * out`, queued in a stream; operands are weights, rows and out.
    ///
    /// # Safety
    /// The operands are as large as the problem's layouts say, on the handle's device.
    pub(super) unsafe fn multiply(
        &self,
        handle: &Handle,
        problem: &Problem<'_>,
        algorithm: &Algorithm,
        (operands, factors): ([u64; 3], [f32; 2]),
        stream: *mut c_void,
    ) -> Result<(), Error> {
        let [operation, weights, rows, out] = problem.raw();
        let [w, x, to] = operands.map(|address| address as *mut c_void);
        // SAFETY: all objects and both factors live; the operands are the caller's promise.
        let status = unsafe {
            (self.multiply)(
                handle.raw,
                operation,
                from_ref(&factors[0]).cast(),
                w,
                weights,
                x,
                rows,
                from_ref(&factors[1]).cast(),
                to,
                out,
                to,
                out,
                from_ref(algorithm),
                null_mut(),
                0,
                stream,
            )
        };
        done("a product", status)
    }
}

/// A handle of a context. It is never destroyed: that would be when its thread ends, and the driver may be gone by then.
#[derive(Debug)]
pub(super) struct Handle {
    raw: Object,
}

/// What is multiplied, and how it lies.
#[derive(Debug)]
pub(super) struct Problem<'a> {
    pub(super) operation: Descriptor<'a>,
    pub(super) weights: Layout<'a>,
    pub(super) rows: Layout<'a>,
    pub(super) out: Layout<'a>,
}

impl Problem<'_> {
    fn raw(&self) -> [Object; 4] {
        [
            self.operation.raw,
            self.weights.raw,
            self.rows.raw,
            self.out.raw,
        ]
    }
}

/// What both factors of a product are; sums and results are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Factors {
    Bf16,
    F16,
    /// They lie as f32.
    Tf32,
}

/// What a product is.
#[derive(Debug)]
pub(super) struct Descriptor<'a> {
    library: &'a Library,
    raw: Object,
}

impl Descriptor<'_> {
    /// Sums in f32, the first factor turned.
    pub(super) fn turned_first(
        library: &Library,
        factors: Factors,
    ) -> Result<Descriptor<'_>, Error> {
        let compute = match factors {
            Factors::Bf16 | Factors::F16 => COMPUTE_F32,
            Factors::Tf32 => COMPUTE_F32_BY_TF32,
        };
        let mut raw = null_mut();
        // SAFETY: the pointer is to a live place for an object.
        let status = unsafe { (library.descriptor_create)(&raw mut raw, compute, TYPE_F32) };
        done("a description", status)?;
        let made = Descriptor { library, raw };
        let turned = from_ref(&OPERATION_TURNED).cast();
        // SAFETY: the object lives, and so do the value's four bytes.
        let status = unsafe { (library.descriptor_set)(raw, DESCRIPTOR_FIRST, turned, 4) };
        done("a description", status).map(|()| made)
    }
}

impl Drop for Descriptor<'_> {
    fn drop(&mut self) {
        // SAFETY: made once, dropped once.
        let _ = unsafe { (self.library.descriptor_destroy)(self.raw) };
    }
}

/// How a matrix lies, column by column.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    library: &'a Library,
    raw: Object,
}

impl Layout<'_> {
    fn new(
        library: &Library,
        kind: i32,
        [rows, columns, stride]: [usize; 3],
    ) -> Result<Layout<'_>, Error> {
        let mut raw = null_mut();
        // SAFETY: the pointer is to a live place for an object.
        let status = unsafe {
            (library.layout_create)(
                &raw mut raw,
                kind,
                rows as u64,
                columns as u64,
                stride as i64,
            )
        };
        done("a layout", status)?;
        Ok(Layout { library, raw })
    }

    /// Of a product's factors: rows, columns, and numbers from one column to the next.
    pub(super) fn factors(
        library: &Library,
        factors: Factors,
        size: [usize; 3],
    ) -> Result<Layout<'_>, Error> {
        let kind = match factors {
            Factors::Bf16 => TYPE_BF16,
            Factors::F16 => TYPE_F16,
            Factors::Tf32 => TYPE_F32,
        };
        Layout::new(library, kind, size)
    }

    /// Of f32.
    pub(super) fn f32(library: &Library, size: [usize; 3]) -> Result<Layout<'_>, Error> {
        Layout::new(library, TYPE_F32, size)
    }
}

impl Drop for Layout<'_> {
    fn drop(&mut self) {
        // SAFETY: made once, dropped once.
        let _ = unsafe { (self.library.layout_destroy)(self.raw) };
    }
}

/// What is asked of algorithms.
struct Preference<'a> {
    library: &'a Library,
    raw: Object,
}

impl Preference<'_> {
    /// No memory of their own, no sums in parts, and nothing that wants more than 16 bytes of alignment.
    fn plain(library: &Library) -> Result<Preference<'_>, Error> {
        let mut raw = null_mut();
        // SAFETY: the pointer is to a live place for an object.
        done("a preference", unsafe {
            (library.preference_create)(&raw mut raw)
        })?;
        let made = Preference { library, raw };
        let (bytes, reductions, alignment) = (0u64, REDUCTION_NONE, 16u32);
        let mut wishes = vec![
            (PREFERENCE_WORKSPACE, from_ref(&bytes).cast::<c_void>(), 8),
            (PREFERENCE_REDUCTIONS, from_ref(&reductions).cast(), 4),
        ];
        wishes.extend(PREFERENCE_ALIGNMENTS.map(|side| (side, from_ref(&alignment).cast(), 4)));
        for (attribute, value, size) in wishes {
            // SAFETY: the object lives, and so do the values with as many bytes.
            let status = unsafe { (library.preference_set)(raw, attribute, value, size) };
            done("a preference", status)?;
        }
        Ok(made)
    }
}

impl Drop for Preference<'_> {
    fn drop(&mut self) {
        // SAFETY: made once, dropped once.
        let _ = unsafe { (self.library.preference_destroy)(self.raw) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposals_are_as_large_as_the_header_says() {
        assert_eq!((size_of::<Algorithm>(), size_of::<Proposal>()), (64, 96));
        assert_eq!(std::mem::offset_of!(Proposal, state), 72);
    }

    #[test]
    fn a_machine_without_the_library_is_told_so() {
        if let Err(reason) = Library::get() {
            assert!(!reason.is_empty());
        }
    }
}
