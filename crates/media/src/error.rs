//! What can be wrong with a file.

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None of the formats.
    #[error("not a PNG, JPEG or WebP file")]
    NotAPicture,
    /// A picture in a format that is not read.
    #[error("a {0} file; PNG, JPEG and WebP are read: save the picture as one of these")]
    OtherKind(&'static str),
    /// More than one picture.
    #[error("an animated {0} file; single pictures are read: save the frame that is meant")]
    Animated(&'static str),
    /// A PNG that ends before its pixels do.
    #[error("the picture is cut short: {0}")]
    CutShort(#[source] png::DecodingError),
    /// A PNG that cannot be read.
    #[error(transparent)]
    ReadPng(#[from] png::DecodingError),
    /// A PNG that cannot be written.
    #[error(transparent)]
    WritePng(#[from] png::EncodingError),
    /// Any other picture.
    #[error(transparent)]
    Image(#[from] image::ImageError),
    /// The text is longer than the format can hold.
    #[error("the text takes {bytes} bytes; the format has room for {bytes_max}")]
    TextTooLong {
        /// What it takes, its header included.
        bytes: usize,
        /// The most.
        bytes_max: usize,
    },
    /// A JPEG that ends before its pixels do.
    #[error("the picture is cut short: its end is missing")]
    NoEnd,
    /// The picture is larger than what is accepted, or has no pixels.
    #[error(
        "the picture has {width} x {height} pixels; at most {side_max} a side and {pixels_max} in all are accepted"
    )]
    Size {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The longest side accepted.
        side_max: u32,
        /// The most pixels accepted.
        pixels_max: u64,
    },
    /// A mask that does not go with its picture.
    #[error(
        "the mask has {} x {} pixels, the picture {} x {}",
        mask.0, mask.1, picture.0, picture.1
    )]
    Sizes {
        /// Width and height of the mask.
        mask: (u32, u32),
        /// Width and height of the picture.
        picture: (u32, u32),
    },
    /// The pixels are not as many as width and height say.
    #[error("{found} bytes of pixels where {width} x {height} have {expected}")]
    Pixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// 3 x width x height.
        expected: u64,
        /// What was given.
        found: usize,
    },
}
