//! The text that goes into a picture's file: what it was made with.

use lowtide_kernels::Precision;
use lowtide_media::Parameters;

use crate::device::cpu::precision_word;
use crate::request::{Image, ImageRequest};

/// What a picture was made by.
#[derive(Clone, Copy, Debug)]
pub struct MadeBy<'a> {
    /// The model's name.
    pub model: &'a str,
    /// What products were multiplied in.
    pub precision: Precision,
    /// The approximate rungs of the plan.
    pub approximate: &'a [String],
}

impl MadeBy<'_> {
    /// The text of the `parameters` chunk of `image`, as other programs read it.
    pub fn parameters(&self, request: &ImageRequest, image: &Image) -> String {
        let mut extra = vec![("Precision", precision_word(self.precision).to_owned())];
        if let Some(factor) = request.cfg_normalization {
            extra.push(("CFG normalization", factor.to_string()));
        }
        if request.cfg_truncation < 1.0 {
            extra.push(("CFG truncation", request.cfg_truncation.to_string()));
        }
        if !self.approximate.is_empty() {
            extra.push(("Approximate", self.approximate.join(", ")));
        }
        let parameters = Parameters {
            prompt: &request.prompt,
            negative: request.negative.as_deref(),
            steps: request.steps,
            guidance: request.guidance,
            seed: image.seed,
            width: image.width,
            height: image.height,
            model: self.model,
            extra: &extra,
        };
        parameters.text()
    }
}
