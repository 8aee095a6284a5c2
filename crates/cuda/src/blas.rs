//! Products by cuBLASLt, where it is there: opened when it is first wanted, never linked.
//!
//! It multiplies weights that lie in the type of the product (for tf32, in f32) with activations that are rounded into scratch
//! first, in groups of rows so that scratch stays small. One algorithm is chosen for each type, width and depth, at a number of
//! rows that is always the same, and serves every number of rows: without a split sum, a row's bits follow from those alone.

mod library;

use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::Span;
use crate::ops::is_as_multiplied;
use crate::ops::launches::{Launch, linear as launches};
use crate::ops::{At, MatrixIn, Memory, RowsIn};
use launches::Ending;
use library::{Algorithm, Descriptor, Factors, Handle, Layout, Library, Problem};
use lowtide_kernels::{Activation, Precision};
use std::cell::RefCell;
use std::collections::HashMap;

/// Where rounded activations lie, and the second product of two.
const SCRATCH_ROUNDED: usize = 0;
const SCRATCH_SECOND: usize = 3;

/// Bytes of each at most, unless 128 rows need more.
const ROUNDED_BYTES: usize = 32 << 20;
const SECOND_BYTES: usize = 64 << 20;

/// The number of rows that algorithms are chosen for.
const CHOSEN_ROWS: usize = 2048;

/// A product as algorithms know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    factors: Factors,
    outputs: usize,
    depth: usize,
}

/// A handle and the algorithms that were chosen with it; `None` where there is none.
struct Chosen {
    handle: Handle,
    algorithms: HashMap<Kind, Option<Algorithm>>,
}

thread_local! {
    // By compute stream: a handle belongs to the context that was current when it was made.
    static CHOSEN: RefCell<HashMap<usize, Chosen>> = RefCell::default();
}

/// What it multiplies in; nothing that stands for two tf32.
fn factors(precision: Precision) -> Option<Factors> {
    match precision {
        Precision::Bf16 => Some(Factors::Bf16),
        Precision::F16 => Some(Factors::F16),
        Precision::Tf32 => Some(Factors::Tf32),
        Precision::F32 => None,
    }
}

/// Computes a product, or says with `false` that nothing was done. The rows' number has no say in that.
///
/// # Errors
/// Where the library is required and cannot be opened, and what the driver says.
pub(crate) fn product(
    gpu: &Gpu,
    (x, out): (RowsIn<At>, RowsIn<At>),
    weights: &[MatrixIn<At>],
    (ending, precision): (&Ending, Precision),
    required: bool,
) -> Result<bool, Error> {
    let taken = |weight: &MatrixIn<At>| is_as_multiplied(weight, precision);
    let factors = match factors(precision) {
        Some(factors) if x.cols > 0 && weights.iter().all(taken) => factors,
        _ => return Ok(false),
    };
    let library = match Library::get() {
        Ok(library) => library,
        Err(reason) if required => {
            return Err(Error::Host {
                what: "opening cuBLASLt",
                reason: reason.to_owned(),
            });
        }
        Err(_) => return Ok(false),
    };
    // It wants results at multiples of sixteen bytes.
    if !out.data.address.is_multiple_of(16) || !out.stride.is_multiple_of(4) {
        return Ok(false);
    }
    gpu.bind()?;
    CHOSEN.with_borrow_mut(|chosen| {
        let key = gpu.compute() as usize;
        let chosen = match chosen.entry(key) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => new.insert(Chosen {
                handle: library.create()?,
                algorithms: HashMap::new(),
            }),
        };
        let kind = Kind {
            factors,
            outputs: out.cols,
            depth: x.cols,
        };
        let Some(algorithm) = chosen.algorithm(library, kind)? else {
            return Ok(false);
        };
        let job = Job {
            gpu,
            library,
            precision,
            kind,
            handle: &chosen.handle,
            algorithm,
        };
        job.run((x, out), weights, ending)
    })
}

impl Chosen {
    fn algorithm(&mut self, library: &Library, kind: Kind) -> Result<Option<Algorithm>, Error> {
        if let Some(known) = self.algorithms.get(&kind) {
            return Ok(*known);
        }
        let problem = kind.problem(library, CHOSEN_ROWS, kind.outputs)?;
        let algorithm = library.choose(&self.handle, &problem)?;
        self.algorithms.insert(kind, algorithm);
        Ok(algorithm)
    }
}

impl Kind {
    /// `rows` times a matrix, into results that are `stride` apart. The library counts along columns: a row-major matrix is a
    /// column-major one turned, so that weights are its first factor, turned, and rows are columns.
    fn problem(self, library: &Library, rows: usize, stride: usize) -> Result<Problem<'_>, Error> {
        let (depth, factors) = (self.depth, self.factors);
        Ok(Problem {
            operation: Descriptor::turned_first(library, factors)?,
            weights: Layout::factors(library, factors, [depth, self.outputs, depth])?,
            rows: Layout::factors(library, factors, [depth, rows, depth])?,
            out: Layout::f32(library, [self.outputs, rows, stride])?,
        })
    }
}

/// One product on its way.
struct Job<'a> {
    gpu: &'a Gpu,
    library: &'a Library,
    handle: &'a Handle,
    precision: Precision,
    kind: Kind,
    algorithm: Algorithm,
}

impl Job<'_> {
    fn run(
        &self,
        (x, out): (RowsIn<At>, RowsIn<At>),
        weights: &[MatrixIn<At>],
        ending: &Ending,
    ) -> Result<bool, Error> {
        let dual = weights.len() == 2;
        let row_bytes = launches::factor_bytes(self.precision) * x.cols;
        let mut group = (ROUNDED_BYTES / row_bytes).max(128);
        if dual {
            group = group.min((SECOND_BYTES / (4 * out.cols)).max(128));
        }
        let group = (group / 128 * 128).min(x.rows);
        let rounded = self.gpu.scratch(SCRATCH_ROUNDED, group * row_bytes)?;
        let second = match dual {
            true => Some(self.gpu.scratch(SCRATCH_SECOND, group * out.cols * 4)?),
            false => None,
        };
        // Looked at for every group before anything is written.
        for rows in [group, x.rows % group] {
            if rows > 0 && !self.fits(rows, out.stride)? {
                return Ok(false);
            }
        }
        for first in (0..x.rows).step_by(group) {
            let rows = group.min(x.rows - first);
            let part = (x.part(first, rows), out.part(first, rows));
            self.group(part, weights, ending, rounded, second)?;
        }
        Ok(true)
    }

    fn fits(&self, rows: usize, stride: usize) -> Result<bool, Error> {
        let problem = self.kind.problem(self.library, rows, stride)?;
        Ok(self.library.fits(self.handle, &problem, &self.algorithm))
    }

    fn group(
        &self,
        (x, out): (RowsIn<At>, RowsIn<At>),
        weights: &[MatrixIn<At>],
        ending: &Ending,
        rounded: Span<'_>,
        second: Option<Span<'_>>,
    ) -> Result<(), Error> {
        self.launch(&launches::round_rows(&x, self.precision, rounded.at()))?;
        let factors = match *ending {
            Ending::Add { scale, .. } => [scale, 1.0],
            _ => [1.0, 0.0],
        };
        self.multiply(&weights[0], (rounded, x.rows), factors, &out)?;
        let second = second.map(|second| RowsIn {
            data: second.at(),
            stride: out.cols,
            ..out
        });
        if let (Some(second), Some(weight)) = (&second, weights.get(1)) {
            self.multiply(weight, (rounded, x.rows), [1.0, 0.0], second)?;
        }
        let done = matches!(
            ending,
            Ending::Linear {
                bias: None,
                act: Activation::None
            } | Ending::Add {
                act: Activation::None,
                ..
            }
        );
        if done {
            return Ok(());
        }
        self.launch(&launches::finish_rows(
            &out,
            second.map(|second| second.data),
            ending,
        ))
    }

    fn multiply(
        &self,
        weight: &MatrixIn<At>,
        (rounded, rows): (Span<'_>, usize),
        factors: [f32; 2],
        out: &RowsIn<At>,
    ) -> Result<(), Error> {
        let problem = self.kind.problem(self.library, rows, out.stride)?;
        let operands = [weight.data.address, rounded.address(), out.data.address];
        // SAFETY: the operands are as large as the problem's layouts say, which were made from their shapes.
        unsafe {
            self.library.multiply(
                self.handle,
                &problem,
                &self.algorithm,
                (operands, factors),
                self.gpu.compute().cast(),
            )
        }
    }

    fn launch(&self, launch: &Launch) -> Result<(), Error> {
        // SAFETY: described above from operands that were checked, and scratch that is large enough.
        unsafe { launch.run(self.gpu) }
    }
}
