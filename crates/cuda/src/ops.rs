//! What the kernels compute: the operations of [`lowtide_kernels`] on memory of the GPU.
//!
//! Names, shapes and meanings are those of the CPU's. Activations are f32, weights lie as a checkpoint stores them
//! ([`Matrix`]), at any address. Every call queues work in the compute stream and returns; shapes that do not fit are bugs of
//! the caller and panic with the numbers.
//!
//! # What can be relied on
//!
//! - **A result does not depend on its company.** A row of a product, a pixel of a convolution or a query of an attention
//!   has the same bits alone and among others, and in any strip of a map. Another kind of GPU may give other bits.
//! - **Products are f32, tf32, bf16 or f16, sums are f32** ([`lowtide_kernels::Precision`]). An f32 factor counts as the sum of two
//!   tf32, which is some 2^-21 of a product away from it; infinities may come out as NaN there. In f16 numbers beyond its range
//!   count as its largest, but for infinite ones of an f16 matrix, which may stay so. Weights of f32 that cuBLASLt multiplies in
//!   tf32 may be cut off where others are rounded.
//! - **NaN passes through.**
//!
//! # How it is made
//!
//! A function checks shapes, describes what has to run as [`launches::Launch`], and queues that. Descriptions know addresses
//! alone, so that tests run the same ones on a CPU.

mod attention;
mod conv;
mod elementwise;
mod launch;
mod linear;
mod map;
mod norm;
mod operands;

pub use attention::attention;
pub use conv::{Residual, convolve};
pub use elementwise::{
    activate, add, add_constant, add_scaled, copy, copy_strided, fill_rows, gather_rows, mul, tanh,
    widen,
};
pub(crate) use launch::is_as_multiplied;
pub use linear::{
    Products, linear, linear_add, linear_geglu, linear_swiglu, products, set_products,
};
pub use map::{
    add_tokens_to_map, channel_affine, channel_affine_in_place, group_affine, group_sums,
    map_to_tokens, patchify, unpatchify, upsample_nearest_2x,
};
pub use norm::{head_norm_rotary, layer_norm, rms_norm, rms_norm_add, softmax_rows};
pub use operands::{
    At, ChannelAffine, ChannelAffineIn, Conv2d, Conv2dIn, Finish, FinishIn, Matrix, MatrixIn,
    Memory, Rows, RowsIn, RowsMut, Scales, ScalesIn,
};

/// What runs for each operation, described by addresses alone; for tests, which run it elsewhere.
#[doc(hidden)]
pub mod launches {
    pub use super::attention::launches as attention;
    pub use super::conv::launches as conv;
    pub use super::elementwise::launches as elementwise;
    pub use super::launch::Launch;
    pub use super::linear::launches as linear;
    pub use super::map::launches as map;
    pub use super::norm::launches as norm;
}
