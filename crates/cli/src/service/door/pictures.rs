//! What the server asks about pictures: a mask from one that can be seen through, its reverse, what one was made with, how large it is.

use lowtide_media::{Format, Limits, Pixels};
use lowtide_server::Refused;

use crate::failure::one_line;

/// As [`lowtide_server::Door::mask_of`].
pub(super) fn mask_of(picture: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
    let invalid = |error: lowtide_media::Error| Refused::Invalid {
        field: "image".to_owned(),
        problem: one_line(&error.to_string()),
    };
    let decoded = lowtide_media::decode(picture, &Limits::default()).map_err(invalid)?;
    let Some(alpha) = decoded.alpha else {
        return Ok(None);
    };
    // What can be seen through is what is drawn anew: bright in a mask.
    let rgb: Vec<u8> = alpha
        .values()
        .iter()
        .flat_map(|&solid| [u8::MAX - solid; 3])
        .collect();
    if rgb.iter().all(|&value| value == 0) {
        return Ok(None);
    }
    let pixels = Pixels {
        width: alpha.width(),
        height: alpha.height(),
        rgb: &rgb,
    };
    lowtide_media::encode(pixels, Format::Png, "")
        .map(Some)
        .map_err(invalid)
}

/// As [`lowtide_server::Door::inverted`].
pub(super) fn inverted(mask: &[u8]) -> Result<Vec<u8>, Refused> {
    let invalid = |error: lowtide_media::Error| Refused::Invalid {
        field: "mask".to_owned(),
        problem: one_line(&error.to_string()),
    };
    let decoded = lowtide_media::decode(mask, &Limits::default()).map_err(invalid)?;
    let bright = decoded.picture.luminance();
    let rgb: Vec<u8> = bright
        .values()
        .iter()
        .flat_map(|&value| [u8::MAX - value; 3])
        .collect();
    let pixels = Pixels {
        width: bright.width(),
        height: bright.height(),
        rgb: &rgb,
    };
    lowtide_media::encode(pixels, Format::Png, "").map_err(invalid)
}

/// As [`lowtide_server::Door::parameters_of`].
pub(super) fn parameters_of(picture: &[u8]) -> Result<Option<String>, Refused> {
    lowtide_media::text_of(picture).map_err(|error| Refused::Invalid {
        field: "image".to_owned(),
        problem: one_line(&error.to_string()),
    })
}

/// As [`lowtide_server::Door::size_of`].
pub(super) fn size_of(picture: &[u8]) -> Result<[u32; 2], Refused> {
    let size = lowtide_media::size_of(picture, &Limits::default());
    let size = size.map_err(|error| Refused::Invalid {
        field: "image".to_owned(),
        problem: one_line(&error.to_string()),
    })?;
    Ok([size.width, size.height])
}
