//! The text that goes into a picture's file: what it was made with.

use lowtide_kernels::Precision;
use lowtide_media::Parameters;

use crate::device::cpu::precision_word;
use crate::request::{Image, ImageRequest, NoiseOf, Stretch};

/// What a picture was made by.
#[derive(Clone, Copy, Debug)]
pub struct MadeBy<'a> {
    /// The model's name.
    pub model: &'a str,
    /// What products were multiplied in.
    pub precision: Precision,
    /// The approximate rungs of the plan.
    pub approximate: &'a [String],
    /// The model that went the rest of the way.
    pub refiner: Option<&'a str>,
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
        extra.extend(drawing(request));
        if let (Some(refiner), Some(Stretch::Before(share))) = (self.refiner, request.part) {
            extra.push(("Refiner", refiner.to_owned()));
            extra.push(("Refiner switch at", share.to_string()));
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

/// What a request says of how it is drawn, in the words of web UIs; what is left out is the model's own.
fn drawing(request: &ImageRequest) -> Vec<(&'static str, String)> {
    let plain = ImageRequest::default();
    let mut words = Vec::new();
    let mut say = |word: &'static str, said: Option<String>| {
        words.extend(said.map(|said| (word, said)));
    };
    say("Sampler", request.sampler.map(|one| one.name().to_owned()));
    let schedule = request.schedule.map(|one| one.name().to_owned());
    say("Schedule type", schedule);
    let number = |value: f32, usual: f32| (value != usual).then(|| value.to_string());
    say("Eta", number(request.eta, plain.eta));
    let rescale = number(request.guidance_rescale, plain.guidance_rescale);
    say("CFG Rescale", rescale);
    // They count the last layer as 1.
    let skip = (request.clip_skip > 0).then(|| (request.clip_skip + 1).to_string());
    say("Clip skip", skip);
    let rng = (request.noise_of == NoiseOf::Gpu).then(|| "NV".to_owned());
    say("RNG", rng);
    let strength = request.source.as_ref().map(|_| request.strength);
    let strength = strength.or(request.hires.map(|hires| hires.strength));
    say(
        "Denoising strength",
        strength.map(|strength| strength.to_string()),
    );
    if let Some(hires) = request.hires {
        say(
            "Hires resize",
            Some(format!("{}x{}", hires.width, hires.height)),
        );
        say("Hires steps", Some(hires.steps.to_string()));
        say("Hires upscaler", Some(hires.upscaler.name().to_owned()));
    }
    let loras = request
        .loras
        .iter()
        .map(|lora| match lora.strength == lora.text_strength {
            true => format!("<lora:{}:{}>", lora.name, lora.strength),
            false => format!(
                "<lora:{}:{}:{}>",
                lora.name, lora.text_strength, lora.strength
            ),
        });
    let loras: Vec<String> = loras.collect();
    say("LoRA", (!loras.is_empty()).then(|| loras.join(" ")));
    words
}
