//! What a model was made for: the `defaults` of the `lowtide.json` beside its `model_index.json`.

use lowtide_weights::ModelFolder;
use serde_json::Value;

use crate::{Error, Result};

/// The file beside `model_index.json` that holds a model's defaults.
const FILE: &str = "lowtide.json";

/// The longest name of a variant.
const VARIANT_CHARS_MAX: usize = 16;

/// A model whose weights this program rounded to fewer bits. Its pictures stand for those of another model, so they are
/// approximate: the result says so, and `quality: exact` is refused. A model that was published in few bits is no variant:
/// there is nothing else that it stands for, and exact means what its own file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// What it calls itself, such as `fp8 variant`.
    pub name: String,
    /// The model it was made from, if it says so.
    pub of: Option<String>,
}

/// What a model says of itself if it is a variant.
///
/// # Errors
/// As [`Defaults::of`].
pub fn variant_of(folder: &ModelFolder) -> Result<Option<Variant>> {
    let Some(text) = folder.read_text(FILE)? else {
        return Ok(None);
    };
    let incomplete = |what: String| Error::Incomplete {
        model: folder.name.clone(),
        what: format!("{FILE}: {what}"),
    };
    let json: Value =
        serde_json::from_str(&text).map_err(|cause| incomplete(format!("not JSON ({cause})")))?;
    let plain = |word: &&str| {
        let letters = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        letters && (1..=VARIANT_CHARS_MAX).contains(&word.len())
    };
    match &json["variant"]["type"] {
        Value::Null => Ok(None),
        value => match value.as_str().filter(plain) {
            Some(word) => Ok(Some(Variant {
                name: format!("{word} variant"),
                of: json["variant"]["of"].as_str().map(str::to_owned),
            })),
            None => Err(incomplete("variant.type is no name of a type".to_owned())),
        },
    }
}

/// Size, steps and guidance a model was made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Denoising steps.
    pub steps: u32,
    /// Weight of the prompt.
    pub guidance: f32,
}

impl Default for Defaults {
    /// Those of diffusers' Z-Image pipeline.
    fn default() -> Defaults {
        Defaults {
            width: 1024,
            height: 1024,
            steps: 50,
            guidance: 5.0,
        }
    }
}

impl Defaults {
    /// Those of diffusers' pipeline of this class, where the network's configuration says how large pictures are.
    fn of_class(folder: &ModelFolder) -> Defaults {
        let plain = Defaults::default();
        let config = |component: &str| folder.component(component).map(|found| &found.config);
        let Some(unet) = config("unet") else {
            return plain;
        };
        let number = |value: &Value| value.as_u64().filter(|side| (1..=2048).contains(side));
        let levels = config("vae").and_then(|vae| vae["block_out_channels"].as_array());
        let scale = levels.map_or(8, |levels| 1 << (levels.len().clamp(1, 8) - 1));
        let side = number(&unet["sample_size"]).map_or(512, |side| side as usize * scale);
        let (steps, guidance) = match &folder.class_name[..] {
            "LatentConsistencyModelPipeline" => (4, 8.5),
            class if class.contains("XL") => (50, 5.0),
            _ => (50, 7.5),
        };
        Defaults {
            width: side,
            height: side,
            steps,
            guidance,
        }
    }

    /// The defaults of a model: of its own file, else of its kind.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when its `lowtide.json` cannot be understood.
    pub fn of(folder: &ModelFolder) -> Result<Defaults> {
        match folder.read_text(FILE)? {
            Some(text) => Defaults::of_class(folder)
                .with_json(&text)
                .map_err(|problem| Error::Incomplete {
                    model: folder.name.clone(),
                    what: format!("{FILE}: {problem}"),
                }),
            None => Ok(Defaults::of_class(folder)),
        }
    }

    /// The defaults in the text of a `lowtide.json`; what it leaves out stays as it is without one.
    fn with_json(self, text: &str) -> std::result::Result<Defaults, String> {
        let json: Value =
            serde_json::from_str(text).map_err(|cause| format!("not JSON ({cause})"))?;
        let given = &json["defaults"];
        let whole = |key: &str, otherwise: u32| match &given[key] {
            Value::Null => Ok(otherwise),
            value => value
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .ok_or_else(|| format!("defaults.{key} is {value}, not a whole number below 2^32")),
        };
        let plain = self;
        let guidance = match &given["guidance"] {
            Value::Null => f64::from(plain.guidance),
            value => value
                .as_f64()
                .ok_or_else(|| format!("defaults.guidance is {value}, not a number"))?,
        };
        Ok(Defaults {
            width: whole("width", plain.width as u32)? as usize,
            height: whole("height", plain.height as u32)? as usize,
            steps: whole("steps", plain.steps)?,
            guidance: guidance as f32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_come_from_the_text_or_from_the_reference() {
        let all = r#"{"defaults": {"width": 128, "height": 64, "steps": 20, "guidance": 4}}"#;
        let expected = Defaults {
            width: 128,
            height: 64,
            steps: 20,
            guidance: 4.0,
        };
        assert_eq!(Defaults::default().with_json(all), Ok(expected));
        assert_eq!(Defaults::default().with_json("{}"), Ok(Defaults::default()));
        for wrong in [
            "",
            "{\"defaults\": {\"steps\": \"many\"}}",
            "{\"defaults\": {\"width\": -1}}",
            "{\"defaults\": {\"guidance\": [4]}}",
        ] {
            assert!(Defaults::default().with_json(wrong).is_err(), "{wrong}");
        }
    }
}
