//! Writes and reads the files people open: pictures, with what they were made with in them.
//!
//! [`encode`] turns pixels and the text of [`Parameters`] into a file's bytes in a [`Format`]; [`text_of`] reads the
//! text back from any of them. Nothing here knows how a picture came to be.
//!
//! [`decode`] unpacks pictures from strangers into a [`Picture`]; [`Raster::fitted`] brings it to a size, and [`Mask`] says
//! which parts of it may be repainted: blurred, cut out, and put back with [`overlay`].

#![forbid(unsafe_code)]

mod decode;
mod error;
mod fit;
mod format;
mod mask;
mod original;
mod parameters;
mod picture;
mod raster;
mod resize;
mod shape;

pub use decode::{
    BYTES_PER_PIXEL_MAX, Decoded, Limits, Size, decode, decode_original, format_of, size_of,
};
pub use error::{Error, Result};
pub use fit::Fit;
pub use format::Format;
pub use mask::{BLUR_RADIUS_MAX, overlay};
pub use original::{Depth, Original};
pub use parameters::Parameters;
pub use picture::{JPEG_QUALITY, Pixels, encode, shrunk, text_of};
pub use raster::{Mask, Picture, Raster, Region};
pub use resize::Filter;
