//! The fields of a `text-to-image` request.

use lowtide_core::Quality;
use lowtide_media::Format;
use serde_json::{Value, json};

use crate::defaults::Defaults;
use crate::processors::fields::Fields;
use crate::{COUNT_MAX, Error, ImageRequest, Result, SIDE_MAX, STEPS_MAX, drawn_seed};

/// Longest prompt in bytes: many times what a text encoder reads, and prompt and negative prompt together stay within
/// the 64 KiB that a JPEG has for its text.
const TEXT_BYTES_MAX: usize = 12_000;

/// Far above what any model was trained with.
const GUIDANCE_MAX: f32 = 1_000.0;

/// A request that is read: what the engine is asked, and how it is handed over.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) engine: ImageRequest,
    pub(super) format: Format,
}

impl Request {
    /// Reads a request; what it leaves out is the model's default, a seed is drawn. Sides are divisible by `multiple`.
    pub(super) fn read(request: &Value, defaults: &Defaults, multiple: usize) -> Result<Request> {
        let mut fields = Fields::of(request)?;
        let prompt = fields.text("prompt", TEXT_BYTES_MAX)?;
        let prompt =
            prompt.ok_or_else(|| Error::request("prompt", "is missing: say what to draw"))?;
        let negative = fields.text("negative", TEXT_BYTES_MAX)?;
        let mut whole = |name, most: usize, otherwise: usize| -> Result<usize> {
            let found = fields.whole(name, 1..=most as u64)?;
            Ok(found.map_or(otherwise, |value| value as usize))
        };
        let width = whole("width", SIDE_MAX, defaults.width)?;
        let height = whole("height", SIDE_MAX, defaults.height)?;
        let steps = whole("steps", STEPS_MAX, defaults.steps as usize)?;
        let count = whole("count", COUNT_MAX, 1)?;
        let guidance = fields.number("guidance", 0.0..=GUIDANCE_MAX)?;
        let cfg_normalization = fields.number("cfg_normalization", 0.0..=GUIDANCE_MAX)?;
        let cfg_truncation = fields.number("cfg_truncation", 0.0..=GUIDANCE_MAX)?;
        let seed = fields.whole("seed", 0..=u64::MAX)?;
        let quality = fields.word("quality", &["exact", "auto"])?;
        let format = fields.word("output_format", &Format::ALL.map(Format::name))?;
        fields.done()?;
        let engine = ImageRequest {
            prompt: prompt.to_owned(),
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
                _ => Quality::Exact,
            },
            ..ImageRequest::default()
        };
        engine.check(multiple)?;
        if engine.seed.checked_add(count as u64 - 1).is_none() {
            let problem =
                format!("is too large: the last of {count} pictures would exceed 2^64 - 1");
            return Err(Error::request("seed", problem));
        }
        Ok(Request {
            engine,
            format: format.and_then(Format::named).unwrap_or(Format::Png),
        })
    }

    /// The request with nothing left out.
    pub(super) fn json(&self) -> Value {
        let engine = &self.engine;
        json!({
            "prompt": engine.prompt,
            "negative": engine.negative,
            "width": engine.width,
            "height": engine.height,
            "steps": engine.steps,
            "guidance": engine.guidance,
            "cfg_normalization": engine.cfg_normalization,
            "cfg_truncation": engine.cfg_truncation,
            "seed": engine.seed,
            "count": engine.count,
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
        digest.0
    }
}

fn quality_word(quality: Quality) -> &'static str {
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

/// What the fields mean and may be, for a form and for a server's description of itself.
pub(super) fn schema() -> Value {
    let whole = |title: &str, least: u64, most: usize, unit: &str| {
        let mut field = json!({ "type": ["integer", "null"], "minimum": least, "maximum": most, "title": title });
        if !unit.is_empty() {
            field["unit"] = unit.into();
        }
        field
    };
    let text = |title: &str, null: bool| {
        let kind = if null {
            json!(["string", "null"])
        } else {
            json!("string")
        };
        json!({ "type": kind, "maxLength": TEXT_BYTES_MAX, "title": title, "format": "multiline" })
    };
    let number = |title: &str| json!({ "type": ["number", "null"], "minimum": 0, "maximum": GUIDANCE_MAX, "title": title });
    let mut side = whole("Width", 16, SIDE_MAX, "px");
    side["multipleOf"] = 16.into();
    let mut height = side.clone();
    height["title"] = "Height".into();
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["prompt"],
        "properties": {
            "prompt": text("Prompt", false),
            "negative": text("Negative prompt", true),
            "width": side,
            "height": height,
            "steps": whole("Steps", 1, STEPS_MAX, ""),
            "guidance": number("Guidance; 0 is off"),
            "cfg_normalization": number("Guidance normalization; 0 is off"),
            "cfg_truncation": number("Guidance stops at this time, 0 noise to 1 picture"),
            "seed": { "type": ["integer", "null"], "minimum": 0, "title": "Seed; drawn when left out" },
            "count": whole("Pictures", 1, COUNT_MAX, ""),
            "quality": { "type": ["string", "null"], "enum": ["exact", "auto", null], "default": "exact",
                         "title": "Quality; auto allows approximations when memory is short" },
            "output_format": { "type": ["string", "null"], "enum": ["png", "jpeg", "webp", null], "default": "png",
                               "title": "File format" },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMO: Defaults = Defaults {
        width: 128,
        height: 64,
        steps: 20,
        guidance: 4.0,
    };

    #[test]
    fn a_read_request_reads_as_itself() {
        let request = Request::read(&json!({"prompt": "x"}), &DEMO, 16).unwrap();
        let whole = request.json();
        assert_eq!(whole["width"], 128);
        assert_eq!(whole["guidance"], 4.0);
        assert!(whole["seed"].as_u64().unwrap() < 1 << 32);
        assert_eq!(
            Request::read(&whole, &Defaults::default(), 16)
                .unwrap()
                .json(),
            whole
        );
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
            let text = Request::read(&request, &DEMO, 16).unwrap_err().to_string();
            assert!(text.starts_with(says), "{text}");
        }
    }

    #[test]
    fn only_what_must_agree_is_in_the_digest() {
        let settings = |more: Value| {
            let mut request = json!({"prompt": "x", "seed": 1});
            for (key, value) in more.as_object().unwrap() {
                request[key] = value.clone();
            }
            Request::read(&request, &DEMO, 16).unwrap().settings()
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
        ] {
            assert_ne!(settings(other), plain);
        }
    }
}
