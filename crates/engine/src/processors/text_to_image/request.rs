//! The fields of a `text-to-image` request.

use lowtide_core::Quality;
use lowtide_media::{Fit, Format};
use lowtide_models::samplers::{Method, Schedule};
use serde_json::{Value, json};

use super::given::Given;
use super::loras;
use super::refiner::Rest;
use crate::defaults::Defaults;
use crate::processor::Files;
use crate::processors::fields::Fields;
use crate::request::{DEFAULT_STRENGTH, Hires, NoiseOf, Reading, Upscaler};
use crate::{COUNT_MAX, Error, ImageRequest, Result, SIDE_MAX, STEPS_MAX, drawn_seed};

/// Longest prompt in bytes: many times what a text encoder reads, and prompt and negative prompt together stay within
/// the 64 KiB that a JPEG has for its text.
pub(in crate::processors) const TEXT_BYTES_MAX: usize = 12_000;

/// Far above what any model was trained with.
pub(in crate::processors) const GUIDANCE_MAX: f32 = 1_000.0;

/// A request that is read: what the engine is asked, and how it is handed over.
#[derive(Clone, Debug)]
pub(in crate::processors) struct Request {
    pub(in crate::processors) engine: ImageRequest,
    pub(in crate::processors) format: Format,
    /// The picture to begin from.
    pub(in crate::processors) given: Option<Given>,
    /// The model that goes the rest of the way.
    pub(in crate::processors) rest: Option<Rest>,
}

pub(super) const READINGS: [&str; 2] = ["weighted", "literal"];
pub(super) const NOISES: [&str; 2] = ["cpu", "gpu"];
pub(in crate::processors) const AREAS: [&str; 2] = ["whole", "masked"];

/// Most LoRAs of a request.
pub(super) const LORAS_MAX: usize = 16;

/// How much of the way is gone again in a second pass unless a request says otherwise.
pub(super) const HIRES_STRENGTH_DEFAULT: f32 = 0.6;

/// Longest name of a sampler or schedule.
pub(in crate::processors) const WORD_BYTES_MAX: usize = 64;

/// Longest name of an input file.
pub(in crate::processors) const INPUT_BYTES_MAX: usize = 256;

/// The largest factor between two passes.
pub(super) const HIRES_SCALE_MAX: f32 = 8.0;

/// Most layers of a text encoder that can be left out.
pub(in crate::processors) const CLIP_SKIP_MAX: u64 = 32;

/// Blur and surroundings of a mask, pixels.
pub(in crate::processors) const MASK_BLUR_MAX: f32 = 256.0;
pub(in crate::processors) const PADDING_MAX: u64 = 1024;
pub(in crate::processors) const MASK_BLUR_DEFAULT: f32 = 4.0;
pub(in crate::processors) const PADDING_DEFAULT: usize = 32;

/// Fields about a picture to begin from, the mask's last.
const OF_PICTURE: [&str; 5] = ["strength", "resize", OF_MASK[0], OF_MASK[1], OF_MASK[2]];

/// Fields about its mask.
const OF_MASK: [&str; 3] = ["mask_blur", "inpaint_area", "inpaint_padding"];

/// What a request is read against.
#[derive(Clone, Copy)]
pub(in crate::processors) struct Against<'a> {
    pub(in crate::processors) defaults: &'a Defaults,
    /// What sides must be divisible by.
    pub(in crate::processors) multiple: usize,
    /// Files that it may name.
    pub(in crate::processors) files: &'a dyn Files,
    /// What it means if it does not speak of quality.
    pub(in crate::processors) quality: Quality,
}

impl Request {
    /// Reads a request; what it leaves out is the model's default, a seed is drawn.
    pub(in crate::processors) fn read(request: &Value, against: Against<'_>) -> Result<Request> {
        let Against {
            defaults,
            multiple,
            files,
            quality: otherwise,
        } = against;
        let mut fields = Fields::of(request)?;
        let prompt = fields.text("prompt", TEXT_BYTES_MAX)?;
        let prompt =
            prompt.ok_or_else(|| Error::request("prompt", "is missing: say what to draw"))?;
        let negative = fields.text("negative", TEXT_BYTES_MAX)?;
        let given = read_given(&mut fields)?;
        let mut whole = |name, most: usize| -> Result<Option<usize>> {
            let found = fields.whole(name, 1..=most as u64)?;
            Ok(found.map(|value| value as usize))
        };
        let sides = (whole("width", SIDE_MAX)?, whole("height", SIDE_MAX)?);
        let (width, height) = match (sides, &given) {
            ((None, None), Some(given)) => given.size(files, defaults, multiple)?,
            ((width, height), _) => (
                width.unwrap_or(defaults.width),
                height.unwrap_or(defaults.height),
            ),
        };
        let steps = whole("steps", STEPS_MAX)?.unwrap_or(defaults.steps as usize);
        let count = whole("count", COUNT_MAX)?.unwrap_or(1);
        let guidance = fields.number("guidance", 0.0..=GUIDANCE_MAX)?;
        let cfg_normalization = fields.number("cfg_normalization", 0.0..=GUIDANCE_MAX)?;
        let cfg_truncation = fields.number("cfg_truncation", 0.0..=GUIDANCE_MAX)?;
        let seed = fields.whole("seed", 0..=u64::MAX)?;
        let quality = fields.word("quality", &["exact", "auto"])?;
        let format = fields.word("output_format", &Format::ALL.map(Format::name))?;
        let (prompt, tags) = loras::tagged(prompt)?;
        let mut engine = ImageRequest {
            prompt,
            negative: negative.map(str::to_owned),
            width,
            height,
            steps,
            guidance: guidance.unwrap_or(defaults.guidance),
            cfg_normalization: cfg_normalization.filter(|&factor| factor > 0.0),
            cfg_truncation: cfg_truncation.unwrap_or(1.0),
            seed: seed.unwrap_or_else(drawn_seed),
            count,
            noise: None,
            quality: match quality {
                Some("auto") => Quality::Auto,
                Some(_) => Quality::Exact,
                None => otherwise,
            },
            loras: loras::read(fields.list("loras", LORAS_MAX)?, tags)?,
            ..ImageRequest::default()
        };
        read_way(&mut fields, &mut engine)?;
        engine.hires = read_hires(&mut fields, &engine, multiple)?;
        let rest = Rest::read(&mut fields, &mut engine)?;
        fields.done()?;
        check_strength(&engine, given.is_some())?;
        engine.check(multiple)?;
        check_seeds(engine.seed, count)?;
        Ok(Request {
            engine,
            format: format.and_then(Format::named).unwrap_or(Format::Png),
            given,
            rest,
        })
    }

    /// The request with nothing left out.
    pub(in crate::processors) fn json(&self) -> Value {
        let engine = &self.engine;
        let given = self.given.as_ref();
        let masked = given.filter(|given| given.mask.is_some());
        let hires = engine.hires.as_ref();
        let rest = self.rest.as_ref();
        let scale = |hires: &Hires| hires.width as f32 / engine.width as f32;
        json!({
            "prompt": engine.prompt,
            "negative": engine.negative,
            "width": engine.width,
            "height": engine.height,
            "steps": engine.steps,
            "guidance": engine.guidance,
            "guidance_rescale": engine.guidance_rescale,
            "cfg_normalization": engine.cfg_normalization,
            "cfg_truncation": engine.cfg_truncation,
            "sampler": engine.sampler.map(Method::name),
            "schedule": engine.schedule.map(Schedule::name),
            "eta": engine.eta,
            "clip_skip": engine.clip_skip,
            "prompt_reading": READINGS[usize::from(engine.reading == Reading::Literal)],
            "noise": NOISES[usize::from(engine.noise_of == NoiseOf::Gpu)],
            "seed": engine.seed,
            "count": engine.count,
            "loras": loras::json(&engine.loras),
            "image": given.map(|given| &given.image),
            "mask": given.and_then(|given| given.mask.as_ref()),
            "strength": given.map(|_| engine.strength),
            "resize": given.map(|given| given.fit.name()),
            "mask_blur": masked.map(|given| given.mask_blur),
            "inpaint_area": masked.map(|given| AREAS[usize::from(given.only_masked)]),
            "inpaint_padding": masked.filter(|given| given.only_masked).map(|given| given.padding),
            "hires_scale": hires.map(scale),
            "hires_steps": hires.map(|hires| hires.steps),
            "hires_strength": hires.map(|hires| hires.strength),
            "hires_upscaler": hires.map(|hires| hires.upscaler.name()),
            "refiner": rest.map(|rest| &rest.model),
            "refiner_start": rest.map(|rest| rest.start),
            "quality": quality_word(engine.quality),
            "output_format": self.format.name(),
        })
    }

    /// A digest of what has to agree, beside the size, for requests to share a batch.
    pub(super) fn settings(&self) -> u64 {
        let engine = &self.engine;
        let mut digest = Digest::new();
        digest.add(engine.steps as u64);
        digest.add(engine.count as u64);
        digest.add(u64::from(engine.guidance.to_bits()));
        digest.add(
            engine
                .cfg_normalization
                .map_or(u64::MAX, |factor| u64::from(factor.to_bits())),
        );
        digest.add(u64::from(engine.cfg_truncation.to_bits()));
        digest.add(u64::from(engine.quality == Quality::Exact));
        // Whatever came later is added only where it is asked for, so that older digests stay what they were.
        let plain = ImageRequest::default();
        let same = ImageRequest {
            prompt: String::new(),
            negative: None,
            width: plain.width,
            height: plain.height,
            steps: plain.steps,
            count: plain.count,
            guidance: plain.guidance,
            cfg_normalization: None,
            cfg_truncation: plain.cfg_truncation,
            seed: plain.seed,
            quality: plain.quality,
            ..engine.clone()
        };
        if same != plain || self.given.is_some() {
            let more = serde_json::to_string(&same).expect("a request has only plain fields");
            more.bytes().for_each(|byte| digest.add(u64::from(byte)));
            let masked = self.given.as_ref().map(|given| given.mask.is_some());
            digest.add(masked.map_or(0, |masked| 1 + u64::from(masked)));
            let refiner = self.rest.iter().flat_map(|rest| rest.model.bytes());
            refiner.for_each(|byte| digest.add(u64::from(byte)));
        }
        digest.0
    }
}

/// Fields about a given picture; without one they mean nothing and are refused.
fn read_given(fields: &mut Fields<'_>) -> Result<Option<Given>> {
    let image = fields.text("image", INPUT_BYTES_MAX)?;
    let mask = fields.text("mask", INPUT_BYTES_MAX)?;
    let fit = fields.word("resize", &Fit::ALL.map(Fit::name))?;
    let mask_blur = fields.number("mask_blur", 0.0..=MASK_BLUR_MAX)?;
    let area = fields.word("inpaint_area", &AREAS)?;
    let padding = fields.whole("inpaint_padding", 0..=PADDING_MAX)?;
    let Some(image) = image else {
        if mask.is_some() {
            let problem = "needs a picture: give 'image' as well";
            return Err(Error::request("mask", problem));
        }
        fields.none_of(
            &OF_PICTURE,
            "without 'image'; give a picture or leave it out",
        )?;
        return Ok(None);
    };
    let only_masked = area == Some(AREAS[1]);
    // Checked requests once named these whether or not there was a mask; what says the default still is no mistake.
    let padded = padding.is_some_and(|padding| padding != PADDING_DEFAULT as u64);
    let blurred = mask_blur.is_some_and(|blur| blur != MASK_BLUR_DEFAULT);
    if mask.is_none() && (padded || blurred || only_masked) {
        fields.none_of(&OF_MASK, "without 'mask'; give a mask or leave it out")?;
    }
    if padded && !only_masked {
        let why = "unless 'inpaint_area' is 'masked'; say so or leave it out";
        fields.none_of(&["inpaint_padding"], why)?;
    }
    Ok(Some(Given {
        image: image.to_owned(),
        mask: mask.map(str::to_owned),
        fit: fit.and_then(Fit::named).unwrap_or_default(),
        mask_blur: mask_blur.unwrap_or(MASK_BLUR_DEFAULT),
        only_masked,
        padding: padding.map_or(PADDING_DEFAULT, |padding| padding as usize),
    }))
}

/// Fields about sampler, noise and text encoders.
fn read_way(fields: &mut Fields<'_>, engine: &mut ImageRequest) -> Result<()> {
    let unknown = |field: &'static str| {
        move |problem: lowtide_models::Error| Error::request(field, problem.to_string())
    };
    let sampler = fields.text("sampler", WORD_BYTES_MAX)?.map(str::parse);
    engine.sampler = sampler.transpose().map_err(unknown("sampler"))?;
    let schedule = fields.text("schedule", WORD_BYTES_MAX)?.map(str::parse);
    engine.schedule = schedule.transpose().map_err(unknown("schedule"))?;
    engine.eta = fields.number("eta", 0.0..=1.0)?.unwrap_or(0.0);
    let other = engine.sampler.filter(|&sampler| sampler != Method::Ddim);
    if let Some(other) = other.filter(|_| engine.eta > 0.0) {
        let why = format!("to the sampler {}; it is DDIM's", other.name());
        fields.none_of(&["eta"], &why)?;
    }
    let rescale = fields.number("guidance_rescale", 0.0..=1.0)?;
    engine.guidance_rescale = rescale.unwrap_or(0.0);
    let clip_skip = fields.whole("clip_skip", 0..=CLIP_SKIP_MAX)?;
    engine.clip_skip = clip_skip.unwrap_or(0) as usize;
    if fields.word("prompt_reading", &READINGS)? == Some(READINGS[1]) {
        engine.reading = Reading::Literal;
    }
    if fields.word("noise", &NOISES)? == Some(NOISES[1]) {
        engine.noise_of = NoiseOf::Gpu;
    }
    let strength = fields.number("strength", 0.0..=1.0)?;
    engine.strength = strength.unwrap_or(DEFAULT_STRENGTH);
    Ok(())
}

/// Fields about a second pass.
fn read_hires(
    fields: &mut Fields<'_>,
    engine: &ImageRequest,
    multiple: usize,
) -> Result<Option<Hires>> {
    let scale = fields.number("hires_scale", 1.0..=HIRES_SCALE_MAX)?;
    let steps = fields.whole("hires_steps", 1..=STEPS_MAX as u64)?;
    let strength = fields.number("hires_strength", 0.0..=1.0)?;
    let upscaler = fields.word("hires_upscaler", &Upscaler::ALL.map(Upscaler::name))?;
    let Some(scale) = scale.filter(|&scale| scale > 1.0) else {
        let others = ["hires_steps", "hires_strength", "hires_upscaler"];
        fields.none_of(
            &others,
            "without a 'hires_scale' above 1; give one or leave it out",
        )?;
        return Ok(None);
    };
    let side = |side: usize| {
        let wanted = side as f32 * scale / multiple as f32;
        (wanted.round() as usize * multiple).max(multiple)
    };
    let named = |word: &str| Upscaler::ALL.into_iter().find(|one| one.name() == word);
    Ok(Some(Hires {
        width: side(engine.width),
        height: side(engine.height),
        steps: steps.map_or(engine.steps, |steps| steps as usize),
        strength: strength.unwrap_or(HIRES_STRENGTH_DEFAULT),
        upscaler: upscaler.and_then(named).unwrap_or_default(),
    }))
}

/// The last picture needs a seed, too.
fn check_seeds(seed: u64, count: usize) -> Result<()> {
    match seed.checked_add(count as u64 - 1) {
        Some(_) => Ok(()),
        None => {
            let problem =
                format!("is too large: the last of {count} pictures would exceed 2^64 - 1");
            Err(Error::request("seed", problem))
        }
    }
}

/// A strength that leaves nothing to do is said before the picture is there.
pub(in crate::processors) fn check_strength(engine: &ImageRequest, given: bool) -> Result<()> {
    let none = engine.strength <= 0.0 || ((engine.steps as f32 * engine.strength) as usize) < 1;
    if given && none {
        let problem = format!(
            "is {}: of {} steps not one would be done; use more of either",
            engine.strength, engine.steps
        );
        return Err(Error::request("strength", problem));
    }
    Ok(())
}

pub(super) fn quality_word(quality: Quality) -> &'static str {
    match quality {
        Quality::Exact => "exact",
        Quality::Auto => "auto",
    }
}

/// FNV-1a with 64 bits: the same in every process and version, unlike the standard library's hashes.
struct Digest(u64);

impl Digest {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;

    fn new() -> Digest {
        Digest(Digest::OFFSET)
    }

    fn add(&mut self, value: u64) {
        for byte in value.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(Digest::PRIME);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(request: &Value, defaults: &Defaults) -> Result<Request> {
        let against = Against {
            defaults,
            multiple: 16,
            files: &crate::processor::NoFiles,
            quality: Quality::Exact,
        };
        Request::read(request, against)
    }

    const DEMO: Defaults = Defaults {
        width: 128,
        height: 64,
        steps: 20,
        guidance: 4.0,
    };

    #[test]
    fn a_read_request_reads_as_itself() {
        let request = read(&json!({"prompt": "x"}), &DEMO).unwrap();
        let whole = request.json();
        assert_eq!(whole["width"], 128);
        assert_eq!(whole["guidance"], 4.0);
        assert!(whole["seed"].as_u64().unwrap() < 1 << 32);
        assert_eq!(read(&whole, &Defaults::default()).unwrap().json(), whole);
    }

    #[test]
    fn mistakes_name_the_field() {
        for (request, says) in [
            (json!({}), "prompt is missing"),
            (json!({"prompt": 1}), "prompt is 1"),
            (
                json!({"prompt": "x".repeat(20_000)}),
                "prompt has 20000 bytes",
            ),
            (
                json!({"prompt": "x", "width": 100}),
                "width is 100, not a multiple of 16; try 96 or 112",
            ),
            (json!({"prompt": "x", "height": 1e9}), "height is 1"),
            (json!({"prompt": "x", "steps": 0}), "steps is 0"),
            (json!({"prompt": "x", "count": 1000}), "count is 1000"),
            (json!({"prompt": "x", "guidance": -1}), "guidance is -1"),
            (
                json!({"prompt": "x", "seed": u64::MAX, "count": 2}),
                "seed is too large",
            ),
            (
                json!({"prompt": "x", "quality": "best"}),
                "quality is \"best\"",
            ),
            (
                json!({"prompt": "x", "output_format": "gif"}),
                "output_format is \"gif\"",
            ),
            (
                json!({"prompt": "x", "model": "../x"}),
                "model is not a field here",
            ),
        ] {
            let text = read(&request, &DEMO).unwrap_err().to_string();
            assert!(text.starts_with(says), "{text}");
        }
    }

    #[test]
    fn fields_that_mean_nothing_without_others_are_refused() {
        for (request, says) in [
            (
                json!({"prompt": "x", "mask": "m"}),
                "mask needs a picture: give 'image'",
            ),
            (
                json!({"prompt": "x", "resize": "crop"}),
                "resize means nothing without 'image'; give a picture",
            ),
            (
                json!({"prompt": "x", "strength": 0.5}),
                "strength means nothing without 'image'",
            ),
            (
                json!({"prompt": "x", "mask_blur": 4}),
                "mask_blur means nothing without 'image'",
            ),
            (
                json!({"prompt": "x", "hires_steps": 4, "hires_scale": 1}),
                "hires_steps means nothing without a 'hires_scale' above 1",
            ),
            (
                json!({"prompt": "x", "refiner_start": 0.5}),
                "refiner_start means nothing without 'refiner'",
            ),
            (
                json!({"prompt": "x", "refiner": "r", "hires_scale": 2}),
                "hires_scale means nothing beside 'refiner'",
            ),
            (
                json!({"prompt": "x", "refiner": "r", "refiner_start": 1}),
                "refiner-start is 1; it must be above 0 and below 1",
            ),
            (
                json!({"prompt": "x", "eta": 0.5, "sampler": "Euler"}),
                "eta means nothing to the sampler",
            ),
        ] {
            let text = read(&request, &DEMO).unwrap_err().to_string();
            assert!(text.starts_with(says), "{text}");
        }
    }

    #[test]
    fn fields_about_a_mask_need_one() {
        let read = |more: Value| {
            let mut request = json!({"prompt": "x", "image": "i", "width": 64, "height": 64});
            let more = more.as_object().unwrap().clone();
            request.as_object_mut().unwrap().extend(more);
            super::tests::read(&request, &DEMO).map(|request| request.json())
        };
        for (more, says) in [
            (
                json!({"mask_blur": 9}),
                "mask_blur means nothing without 'mask'",
            ),
            (
                json!({"inpaint_area": "masked"}),
                "inpaint_area means nothing without 'mask'",
            ),
            (
                json!({"mask": "m", "inpaint_padding": 8}),
                "inpaint_padding means nothing unless 'inpaint_area' is 'masked'",
            ),
        ] {
            let text = read(more).unwrap_err().to_string();
            assert!(text.starts_with(says), "{text}");
        }
        let whole = read(json!({"mask": "m", "mask_blur": 9})).unwrap();
        assert_eq!(
            (&whole["mask_blur"], &whole["inpaint_padding"]),
            (&json!(9.0), &Value::Null)
        );
        assert_eq!(read(whole.clone()).unwrap(), whole);
        // As earlier versions wrote every checked request with a picture.
        let older =
            json!({"mask": null, "mask_blur": 4.0, "inpaint_area": "whole", "inpaint_padding": 32});
        assert!(read(older).unwrap()["mask_blur"].is_null());
    }

    #[test]
    fn only_what_must_agree_is_in_the_digest() {
        let settings = |more: Value| {
            let mut request = json!({"prompt": "x", "seed": 1});
            for (key, value) in more.as_object().unwrap() {
                request[key] = value.clone();
            }
            read(&request, &DEMO).unwrap().settings()
        };
        let plain = settings(json!({}));
        // Stored digests are compared with those of later versions.
        assert_eq!(plain, 0x1fee_7d79_555f_8f54);
        for same in [
            json!({"prompt": "y", "negative": "z", "seed": 9}),
            json!({"output_format": "jpeg"}),
        ] {
            assert_eq!(settings(same), plain);
        }
        for other in [
            json!({"steps": 21}),
            json!({"count": 2}),
            json!({"guidance": 4.5}),
            json!({"cfg_normalization": 1}),
            json!({"cfg_truncation": 0.5}),
            json!({"quality": "auto"}),
            json!({"refiner": "r"}),
        ] {
            assert_ne!(settings(other), plain);
        }
    }
}
