//! The formats of pictures, and the names they go by.

/// A format pictures are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lossless; the parameters in a text chunk.
    Png,
    /// Lossy at [`crate::JPEG_QUALITY`]; the parameters in EXIF.
    Jpeg,
    /// Lossless; the parameters in EXIF.
    Webp,
}

impl Format {
    /// All of them, the usual one first.
    pub const ALL: [Format; 3] = [Format::Png, Format::Jpeg, Format::Webp];

    /// The name in requests: `png`, `jpeg`, `webp`.
    pub fn name(self) -> &'static str {
        match self {
            Format::Png => "png",
            Format::Jpeg => "jpeg",
            Format::Webp => "webp",
        }
    }

    /// The format of a name or of a file's ending without its dot, in any case; `jpg` is one, too.
    pub fn named(name: &str) -> Option<Format> {
        match name.to_ascii_lowercase().as_str() {
            "png" => Some(Format::Png),
            "jpeg" | "jpg" => Some(Format::Jpeg),
            "webp" => Some(Format::Webp),
            _ => None,
        }
    }

    /// The media type, such as `image/png`.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Png => "image/png",
            Format::Jpeg => "image/jpeg",
            Format::Webp => "image/webp",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_found_by_its_name() {
        for format in Format::ALL {
            assert_eq!(Format::named(format.name()), Some(format));
            assert_eq!(format.media_type(), format!("image/{}", format.name()));
        }
        assert_eq!(Format::named("JPG"), Some(Format::Jpeg));
        assert_eq!(Format::named("gif"), None);
        assert_eq!(Format::named(""), None);
    }
}
