//! What a model was made for: the `defaults` of the `lowtide.json` beside its `model_index.json`.

use lowtide_weights::ModelFolder;
use serde_json::Value;

use crate::{Error, Result};

/// The file beside `model_index.json` that holds a model's defaults.
const FILE: &str = "lowtide.json";

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
    /// The defaults of a model; those of [`Defaults::default`] where it says nothing.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when its `lowtide.json` cannot be understood.
    pub fn of(folder: &ModelFolder) -> Result<Defaults> {
        match folder.read_text(FILE)? {
            Some(text) => Defaults::from_json(&text).map_err(|problem| Error::Incomplete {
                model: folder.name.clone(),
                what: format!("{FILE}: {problem}"),
            }),
            None => Ok(Defaults::default()),
        }
    }

    /// The defaults in the text of a `lowtide.json`; what it leaves out stays as it is without one.
    fn from_json(text: &str) -> std::result::Result<Defaults, String> {
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
        let plain = Defaults::default();
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
        assert_eq!(Defaults::from_json(all), Ok(expected));
        assert_eq!(Defaults::from_json("{}"), Ok(Defaults::default()));
        for wrong in [
            "",
            "{\"defaults\": {\"steps\": \"many\"}}",
            "{\"defaults\": {\"width\": -1}}",
            "{\"defaults\": {\"guidance\": [4]}}",
        ] {
            assert!(Defaults::from_json(wrong).is_err(), "{wrong}");
        }
    }
}
