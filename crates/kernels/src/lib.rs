//! Computes on a CPU: GEMM, convolution, attention, norms, by instruction set.

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
mod scratch;
mod simd;
mod stored;
mod threads;

pub use attention::{Attention, Mask, attention};
pub use conv::{
    ChannelAffine, Conv2d, MapRows, Padding, conv2d, conv2d_in_place_add, conv2d_padded,
};
pub use elementwise::{activate, add, add_scaled, mul};
pub use isa::{Isa, available_isas, force_isa, isa, isa_from_env, native_bf16};
pub use linear::{linear, linear_swiglu};
pub use map::{
    channel_affine, channel_affine_in_place, group_affine, group_sums, upsample_nearest_2x,
};
pub use math::Activation;
pub use norm::{Rotary, head_norm_rotary, layer_norm, rms_norm, rms_norm_add, softmax_rows};
pub use rows::{Rows, RowsMut};
pub use scratch::{scratch_allocated, scratch_bytes};
pub use stored::{Matrix, Precision, Stored, to_f32};
pub use threads::{ThreadsError, set_threads, threads};
