//! Writes and reads the files people open: pictures, with what they were made with in them.
//!
//! [`encode`] turns pixels and the text of [`Parameters`] into a file's bytes in a [`Format`]; [`text_of`] reads the
//! text back from any of them. Nothing here knows how a picture came to be.

#![forbid(unsafe_code)]

mod error;
mod format;
mod parameters;
mod picture;

pub use error::{Error, Result};
pub use format::Format;
pub use parameters::Parameters;
pub use picture::{JPEG_QUALITY, Pixels, encode, shrunk, text_of};
