//! What is asked of `text-to-image`, as JSON: the same for a server and for this process.

use std::path::{Path, PathBuf};

use lowtide_engine::processor::Files;
use lowtide_media::Format;
use lowtide_weights::ModelFolder;
use serde_json::{Map, Value, json};

use crate::args::{GenerateArgs, QualityArg, SamplingArgs};
use crate::config::Config;
use crate::failure::{Failure, one_line};
use crate::named_files::Places;

/// Largest picture that is read.
const PICTURE_BYTES_MAX: u64 = 64 << 20;

/// Names of the pictures to begin from, as the request has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pictures {
    pub(crate) image: Option<String>,
    pub(crate) mask: Option<String>,
}

/// What is asked, as far as somebody asked it: the rest is the model's own.
pub(crate) fn request(
    args: &GenerateArgs,
    config: &Config,
    format: Format,
    pictures: &Pictures,
) -> Value {
    let mut request = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            request.insert(name.to_owned(), value);
        }
    };
    put("prompt", json!(config.prompt));
    put("negative", json!(config.negative));
    if args.size.is_some() {
        put("width", json!(config.size.width));
        put("height", json!(config.size.height));
    }
    put("steps", json!(args.steps));
    put("guidance", json!(args.guidance));
    put("cfg_normalization", json!(config.cfg_normalization));
    put("cfg_truncation", json!(config.cfg_truncation));
    put("seed", json!(config.seed));
    put("count", json!(config.count));
    let quality = match config.quality {
        QualityArg::Exact => "exact",
        QualityArg::Auto => "auto",
    };
    put("quality", json!(quality));
    put("output_format", json!(format.name()));
    put_drawing(args, pictures, &mut put);
    Value::Object(request)
}

fn put_drawing(args: &GenerateArgs, pictures: &Pictures, put: &mut impl FnMut(&str, Value)) {
    put_sampling(&args.sampling, put);
    put("image", json!(pictures.image));
    put("mask", json!(pictures.mask));
    let given = &args.given;
    put("strength", json!(given.strength));
    put("resize", json!(given.resize));
    put("mask_blur", json!(given.mask_blur));
    put("inpaint_area", json!(given.inpaint_area));
    put("inpaint_padding", json!(given.inpaint_padding));
    let hires = &args.hires;
    put("hires_scale", json!(hires.hires_scale));
    put("hires_steps", json!(hires.hires_steps));
    put("hires_strength", json!(hires.hires_strength));
    put("hires_upscaler", json!(hires.hires_upscaler));
    put("refiner", json!(args.refiner.refiner));
    put("refiner_start", json!(args.refiner.refiner_start));
}

/// What is said of sampler, noise, text encoders and LoRAs.
pub(crate) fn put_sampling(sampling: &SamplingArgs, put: &mut impl FnMut(&str, Value)) {
    put("sampler", json!(sampling.sampler));
    put("schedule", json!(sampling.schedule));
    put("eta", json!(sampling.eta));
    put("guidance_rescale", json!(sampling.guidance_rescale));
    put("clip_skip", json!(sampling.clip_skip));
    put("prompt_reading", json!(sampling.prompt_reading));
    put("noise", json!(sampling.noise_of));
    if !sampling.lora.is_empty() {
        let loras = sampling.lora.iter();
        let loras = loras.map(|lora| match lora.strength {
            Some(strength) => json!({ "name": lora.name, "strength": strength }),
            None => json!({ "name": lora.name }),
        });
        put("loras", loras.collect());
    }
}

/// The option that means a field of a request; the prompt has none, nor has what is no field.
pub(crate) fn option_of(field: &str) -> Option<String> {
    if let Some(which) = field.strip_prefix("loras ") {
        return Some(format!("--lora {which}"));
    }
    let plain = |sign: u8| sign.is_ascii_lowercase() || sign == b'_' || sign == b'-';
    Some(match field {
        "prompt" => return None,
        field if !field.bytes().all(plain) => return None,
        "width" | "height" => "--size".to_owned(),
        "noise" => "--noise-of".to_owned(),
        "loras" => "--lora".to_owned(),
        field => format!("--{}", field.replace('_', "-")),
    })
}

/// A picture's file, read whole.
///
/// # Errors
/// When it cannot be read, or is none.
pub(crate) fn read_picture(option: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let shown = path.display();
    let unreadable =
        |cause| Failure::mistake(format!("{option} '{shown}' cannot be read: {cause}"));
    let about = std::fs::metadata(path).map_err(unreadable)?;
    // Others may have no end, or wait for somebody.
    if !about.is_file() {
        return Err(Failure::mistake(format!("{option} '{shown}' is no file")));
    }
    if about.len() > PICTURE_BYTES_MAX {
        return Err(Failure::mistake(format!(
            "{option} '{shown}' has {} bytes; at most {PICTURE_BYTES_MAX} are read",
            about.len()
        )));
    }
    let file = std::fs::read(path).map_err(unreadable)?;
    match lowtide_media::format_of(&file) {
        Some(_) => Ok(file),
        None => Err(Failure::mistake(format!(
            "{option} '{shown}' is no PNG, JPEG or WebP"
        ))),
    }
}

/// Files that a request of this process names.
#[derive(Debug)]
pub(crate) struct LocalFiles {
    places: Places,
    image: Option<Vec<u8>>,
    mask: Option<Vec<u8>>,
}

/// What the two pictures are called in a request of this process.
const IMAGE: &str = "image";
const MASK: &str = "mask";

impl LocalFiles {
    /// Reads the pictures that the arguments name.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn read(args: &GenerateArgs, places: Places) -> Result<LocalFiles, Failure> {
        let read = |option: &str, path: &Option<PathBuf>| {
            let path = path.as_deref();
            path.map(|path| read_picture(option, path)).transpose()
        };
        Ok(LocalFiles {
            places,
            image: read("--image", &args.given.image)?,
            mask: read("--mask", &args.given.mask)?,
        })
    }

    /// How the request names them.
    pub(crate) fn pictures(&self) -> Pictures {
        Pictures {
            image: self.image.as_ref().map(|_| IMAGE.to_owned()),
            mask: self.mask.as_ref().map(|_| MASK.to_owned()),
        }
    }
}

impl Files for LocalFiles {
    fn input(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
        let file = match name {
            IMAGE => self.image.as_ref(),
            MASK => self.mask.as_ref(),
            _ => None,
        };
        let file = file.ok_or("there is no such picture")?;
        match file.len() as u64 > bytes_max {
            true => Err(format!("it has more than {bytes_max} bytes")),
            false => Ok(file.clone()),
        }
    }

    fn lora(&self, name: &str) -> Result<PathBuf, String> {
        self.places.lora(name)
    }

    fn embeddings(&self) -> Vec<(String, PathBuf)> {
        self.places.words()
    }

    fn detector(&self, name: &str) -> Result<PathBuf, String> {
        detector_here(name, &self.places)
    }

    fn model(&self, name: &str) -> Result<ModelFolder, String> {
        crate::models::open(name).map_err(|failure| one_line(&failure.to_string()))
    }
}

/// A detector that the user of this process names: a file of his, or one that is found by name.
pub(crate) fn detector_here(name: &str, places: &Places) -> Result<PathBuf, String> {
    let path = PathBuf::from(name);
    match path.is_file() {
        true => Ok(path),
        false => places.detector(name),
    }
}
