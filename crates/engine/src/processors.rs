//! Every kind of job there is.

mod detail;
mod detect;
mod fields;
mod no_op;
mod noise;
mod text_to_image;
mod upscale;

use std::sync::Arc;

pub use text_to_image::{Prepared, Refiner};

use crate::processor::Processor;

/// All of them. A new kind is a file beside this one and a line here.
pub fn all() -> Vec<Arc<dyn Processor>> {
    vec![
        Arc::new(text_to_image::TextToImages),
        Arc::new(upscale::Upscales),
        Arc::new(detail::Detail),
        Arc::new(detect::Detect),
        Arc::new(noise::Noise),
        Arc::new(no_op::NoOp),
    ]
}
