//! Computes on a CPU: GEMM, convolution, attention, norms, by instruction set.
//!
//! Activations are f32, row-major. Weights are borrowed bytes as a checkpoint stores them
//! ([`Matrix`]) and are never repacked as a whole: a block that streams in is used where it was
//! read. A thread keeps at most [`scratch_bytes`]`(1)` of scratch, whatever the shapes.
//!
//! # What can be relied on
//!
//! - **A result does not depend on its company.** A row of a product, a pixel of a convolution or
//!   a query of an attention has the same bits alone and among others, in any strip of a map, and
//!   on any number of threads. The order of every sum follows from its length alone. Another
//!   instruction set may give other bits.
//! - **NaN and infinity pass through.**
//! - **Products are f32 or bf16, sums are f32** ([`Precision`]). Stored f16, bf16 and fp8 widen
//!   exactly; int8 and fp8 with [`Scales`] are multiplied by them in f32 first.
//! - Shapes that do not fit are bugs of the caller and panic with the numbers.
//!
//! # How it is made
//!
//! The lanes of a vector run over activations: tokens, pixels, queries. A panel of up to 64 lanes
//! of them is packed into the first-level cache, and weights are broadcast against it from where
//! they lie ([`linear`], [`conv2d`], both products of [`attention`]); a call with a few rows turns
//! the weights round instead. Kernels are written once over sixteen f32 lanes and compiled for
//! each [`Isa`], chosen at the first call or by `LOWTIDE_ISA`. AMX takes weights as tiles
//! as they lie, panels packed for much of k at once, and is used only after a known product came
//! out right. There are no kernels for NEON: there the compiler's vectors of the portable ones serve.
//!
//! Work is dealt to rayon's global pool ([`set_threads`]), the caller taking part; a call waits
//! for no thread that has not begun.

mod attention;
mod conv;
mod elementwise;
mod gemm;
mod isa;
mod linear;
mod map;
mod math;
pub mod memory;
mod norm;
mod rows;
mod scaled;
mod scratch;
mod simd;
mod stored;
mod threads;
mod tokens;

pub use attention::{Attention, Mask, attention};
pub use conv::{
    ChannelAffine, Conv2d, Finish, MapRows, Padding, conv2d, conv2d_finished, conv2d_in_place_add,
    conv2d_padded,
};
pub use elementwise::{activate, add, add_scaled, copy, mul};
pub use isa::{Isa, amx_refused, available_isas, force_isa, isa, isa_from_env, native_bf16};
pub use linear::{linear, linear_add, linear_geglu, linear_swiglu};
pub use map::{
    channel_affine, channel_affine_in_place, group_affine, group_sums, upsample_nearest_2x,
};
pub use math::Activation;
pub use norm::{Rotary, head_norm_rotary, layer_norm, rms_norm, rms_norm_add, softmax_rows};
pub use rows::{Rows, RowsMut};
pub use scaled::{BLOCK, Per, Scales};
pub use scratch::{scratch_allocated, scratch_bytes};
pub use stored::{Matrix, Precision, Stored, to_f32};
pub use threads::{ThreadsError, set_threads, threads};
pub use tokens::{add_tokens_to_map, map_to_tokens};
