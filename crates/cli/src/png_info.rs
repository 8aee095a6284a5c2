//! `lowtide png-info`: prints what a picture was made with.

use crate::args::PngInfoArgs;
use crate::console;
use crate::failure::Failure;

/// Prints the text the picture carries.
pub(crate) fn run(args: &PngInfoArgs) -> Result<(), Failure> {
    let place = args.file.display();
    let file = std::fs::read(&args.file).map_err(|cause| {
        Failure::mistake(format!(
            "'{place}' cannot be read: {cause}; name a picture file"
        ))
    })?;
    let text = lowtide_media::text_of(&file).map_err(|cause| {
        Failure::mistake(format!("'{place}' cannot be read as a picture: {cause}"))
    })?;
    match text {
        Some(text) => Ok(console::print(&format!("{}\n", text.trim_end()))?),
        None => Err(Failure::mistake(format!(
            "'{place}' carries no parameters; programs that edit or send pictures often remove them"
        ))),
    }
}
