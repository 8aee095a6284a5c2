//! Linear layers on rows of activations.

use super::operands::{At, Matrix, MatrixIn, Rows, RowsIn, RowsMut, numbers};
use crate::blas;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::Span;
use launches::Ending;
use lowtide_kernels::{Activation, Precision};
use std::sync::atomic::{AtomicU8, Ordering};

/// Who computes products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Products {
    /// The kernels of this crate.
    Own,
    /// cuBLASLt where it can (weights in the type of the product or, for tf32, in f32; rows of whole 16 bytes), and an error
    /// where it cannot be opened.
    Cublas,
    /// cuBLASLt where it can and is there.
    #[default]
    Auto,
}

static PRODUCTS: AtomicU8 = AtomicU8::new(Products::Auto as u8);

/// Chooses who computes products, for the whole process. The bits of results depend on it.
pub fn set_products(products: Products) {
    PRODUCTS.store(products as u8, Ordering::Relaxed);
}

/// Who computes products.
pub fn products() -> Products {
    let chosen = PRODUCTS.load(Ordering::Relaxed);
    [Products::Own, Products::Cublas, Products::Auto]
        .into_iter()
        .find(|products| *products as u8 == chosen)
        .unwrap_or_default()
}

/// `out[m, n] = act(sum over k of x[m, k] * w[n, k] + bias[n])`; as [`lowtide_kernels::linear`].
///
/// # Shapes
/// `x` `[M, K]`, `w` `[N, K]`, `bias` `[N]`, `out` `[M, N]`.
///
/// # Panics
/// When the shapes do not fit, as for all of these.
pub fn linear(
    x: Rows<'_>,
    w: &Matrix<'_>,
    bias: Option<Span<'_>>,
    act: Activation,
    precision: Precision,
    out: RowsMut<'_>,
) -> Result<(), Error> {
    let bias = bias.map(|bias| numbers("a bias", &bias, w.rows));
    let ending = Ending::Linear { bias, act };
    product(
        out.data.gpu(),
        (x.at(), out.at()),
        &[w.at()],
        ending,
        precision,
    )
}

/// `out = act(out + scale * x w^T)`; as [`lowtide_kernels::linear_add`].
pub fn linear_add(
    x: Rows<'_>,
    w: &Matrix<'_>,
    scale: f32,
    act: Activation,
    precision: Precision,
    out: RowsMut<'_>,
) -> Result<(), Error> {
    let ending = Ending::Add { scale, act };
    product(
        out.data.gpu(),
        (x.at(), out.at()),
        &[w.at()],
        ending,
        precision,
    )
}

/// `out = silu(x w1^T) * (x w3^T)`; as [`lowtide_kernels::linear_swiglu`].
pub fn linear_swiglu(
    x: Rows<'_>,
    w1: &Matrix<'_>,
    w3: &Matrix<'_>,
    precision: Precision,
    out: RowsMut<'_>,
) -> Result<(), Error> {
    let weights = [w1.at(), w3.at()];
    product(
        out.data.gpu(),
        (x.at(), out.at()),
        &weights,
        Ending::Swiglu,
        precision,
    )
}

/// `out = (x value^T + bias) * gelu(x gate^T + bias)`; as [`lowtide_kernels::linear_geglu`].
pub fn linear_geglu(
    x: Rows<'_>,
    [value, gate]: [&Matrix<'_>; 2],
    biases: [Span<'_>; 2],
    precision: Precision,
    out: RowsMut<'_>,
) -> Result<(), Error> {
    let biases = biases.map(|bias| numbers("a bias", &bias, value.rows));
    let weights = [value.at(), gate.at()];
    let ending = Ending::Geglu { biases };
    product(
        out.data.gpu(),
        (x.at(), out.at()),
        &weights,
        ending,
        precision,
    )
}

fn product(
    gpu: &Gpu,
    (x, out): (RowsIn<At>, RowsIn<At>),
    weights: &[MatrixIn<At>],
    ending: Ending,
    precision: Precision,
) -> Result<(), Error> {
    launches::check(&x, weights, &ending, &out);
    if x.rows == 0 || out.cols == 0 {
        return Ok(());
    }
    let products = products();
    if products != Products::Own
        && blas::product(
            gpu,
            (x, out),
            weights,
            (&ending, precision),
            products == Products::Cublas,
        )?
    {
        return Ok(());
    }
    // SAFETY: the description is of this operation, from spans whose lengths were checked.
    unsafe { launches::product(&x, weights, &ending, precision, &out).run(gpu) }
}

/// What runs.
pub mod launches {
    use crate::ops::launch::{Launch, THREADS, act_code, is_as_multiplied};
    use crate::ops::operands::{At, MatrixIn, RowsIn};
    use lowtide_kernels::{Activation, Precision};

    /// Rows of a tile.
    const TILE_ROWS: usize = 128;

    /// The kernels of a type: of one matrix, wide and narrow, and of two.
    macro_rules! kernels_of {
        ($of:literal) => {
            [
                [concat!("linear_", $of), concat!("linear_", $of, "_narrow")],
                [
                    concat!("linear_", $of, "_dual"),
                    concat!("linear_", $of, "_dual_narrow"),
                ],
            ]
        };
    }

    /// What becomes of the sums of a product.
    #[derive(Clone, Copy, Debug)]
    pub enum Ending {
        /// `act(sum + bias)`.
        Linear {
            /// One f32 an output.
            bias: Option<At>,
            /// Applied last.
            act: Activation,
        },
        /// `act(out + scale * sum)`.
        Add {
            /// The factor.
            scale: f32,
            /// Applied last.
            act: Activation,
        },
        /// SiLU of the first sum times the second.
        Swiglu,
        /// The first sum times GELU of the second, each with its bias.
        Geglu {
            /// One f32 an output, for both.
            biases: [At; 2],
        },
    }

    impl Ending {
        /// Its number in kernels/linear.cu, its activation, biases and factor.
        pub(crate) fn parts(&self) -> (usize, Activation, [Option<At>; 2], f32) {
            match *self {
                Ending::Linear { bias, act } => (0, act, [bias, None], 1.0),
                Ending::Add { scale, act } => (1, act, [None, None], scale),
                Ending::Swiglu => (2, Activation::None, [None, None], 1.0),
                Ending::Geglu { biases } => (3, Activation::None, biases.map(Some), 1.0),
            }
        }

        fn is_dual(&self) -> bool {
            matches!(self, Ending::Swiglu | Ending::Geglu { .. })
        }
    }

    /// Panics unless the shapes fit each other.
    pub(crate) fn check(
        x: &RowsIn<At>,
        weights: &[MatrixIn<At>],
        ending: &Ending,
        out: &RowsIn<At>,
    ) {
        assert_eq!(
            weights.len(),
            1 + usize::from(ending.is_dual()),
            "matrices of a product"
        );
        for w in weights {
            assert_eq!(
                (x.cols, out.cols, out.rows),
                (w.cols, w.rows, x.rows),
                "x [{}, {}] times w [{}, {}] into out [{}, {}] (x cols, out cols, out rows)",
                x.rows,
                x.cols,
                w.rows,
                w.cols,
                out.rows,
                out.cols
            );
        }
    }

    /// Whether tiles of half the width leave less undone of `outputs`. By their number alone: the bits of a row must not
    /// depend on how many rows there are, although these tiles give the same.
    pub(crate) fn is_narrow(outputs: usize, across: usize) -> bool {
        let half = across / 2;
        5 * outputs.div_ceil(half) * half <= 4 * outputs.div_ceil(across) * across
    }

    fn kernel(
        weights: &[MatrixIn<At>],
        precision: Precision,
        outputs: usize,
    ) -> (&'static str, usize) {
        let dual = weights.len() == 2;
        let across = if dual { 64 } else { 128 };
        let narrow = is_narrow(outputs, across);
        let copied = weights
            .iter()
            .all(|weight| is_as_multiplied(weight, precision));
        let kernels = match (precision, copied) {
            (Precision::Bf16, true) => kernels_of!("bf16_copied"),
            (Precision::Bf16, false) => kernels_of!("bf16_widened"),
            (Precision::F16, true) => kernels_of!("f16_copied"),
            (Precision::F16, false) => kernels_of!("f16_widened"),
            (Precision::Tf32, _) => kernels_of!("tf32_widened"),
            (Precision::F32, _) => kernels_of!("f32_widened"),
        };
        let kernel = kernels[usize::from(dual)][usize::from(narrow)];
        (kernel, if narrow { across / 2 } else { across })
    }

    /// Rows times one matrix, or two.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn product(
        x: &RowsIn<At>,
        weights: &[MatrixIn<At>],
        ending: &Ending,
        precision: Precision,
        out: &RowsIn<At>,
    ) -> Launch {
        check(x, weights, ending, out);
        let (kernel, across) = kernel(weights, precision, out.cols);
        let tiles = x.rows.div_ceil(TILE_ROWS) * out.cols.div_ceil(across);
        let (finish, act, [bias, second_bias], scale) = ending.parts();
        let x_wide = x.data.address.is_multiple_of(16) && x.stride.is_multiple_of(4);
        Launch::new(kernel, [tiles, 1, 1], THREADS)
            .at(x.data)
            .long(x.stride)
            .int(usize::from(x_wide))
            .int(x.rows)
            .int(x.cols)
            .int(out.cols)
            .matrix(&weights[0])
            .matrix(weights.last().unwrap_or(&weights[0]))
            .int(finish)
            .int(act_code(act))
            .at_if(bias)
            .at_if(second_bias)
            .float(scale)
            .at(out.data)
            .long(out.stride)
    }

    /// Bytes of a factor of a product.
    pub(crate) fn factor_bytes(precision: Precision) -> usize {
        match precision {
            Precision::Bf16 | Precision::F16 => 2,
            Precision::F32 | Precision::Tf32 => 4,
        }
    }

    /// Rows without gaps, rounded as a product wants them; for cuBLASLt.
    ///
    /// # Panics
    /// Where rows are no whole pairs, or there is no room for them.
    pub fn round_rows(x: &RowsIn<At>, precision: Precision, to: At) -> Launch {
        let pairs = x.rows * x.cols / 2;
        assert!(
            x.cols.is_multiple_of(2) && to.bytes >= pairs * 2 * factor_bytes(precision),
            "{} rows of {} numbers in {precision:?} to {} bytes",
            x.rows,
            x.cols,
            to.bytes
        );
        let kernel = match precision {
            Precision::Bf16 => "round_rows_bf16",
            Precision::F16 => "round_rows_f16",
            Precision::Tf32 => "round_rows_tf32",
            Precision::F32 => panic!("rows of f32 are not rounded"),
        };
        Launch::along(kernel, pairs)
            .at(x.data)
            .long(x.stride)
            .int(x.cols)
            .long(pairs)
            .at(to)
    }

    /// What [`product`] does with sums that lie in `out`, and in `second` without gaps.
    pub fn finish_rows(out: &RowsIn<At>, second: Option<At>, ending: &Ending) -> Launch {
        let (finish, act, [bias, second_bias], _) = ending.parts();
        let count = out.rows * out.cols;
        Launch::along("finish_rows", count)
            .at(out.data)
            .long(out.stride)
            .int(out.cols)
            .long(count)
            .at_if(second)
            .int(finish)
            .int(act_code(act))
            .at_if(bias)
            .at_if(second_bias)
    }
}
