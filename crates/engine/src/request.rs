//! What a user asks for, and what comes back.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use lowtide_core::{Bytes, Plan, Quality};
use lowtide_media::{Mask, Picture};
use lowtide_models::samplers::{Method, Schedule};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Largest side of a picture in pixels.
pub const SIDE_MAX: usize = 16_384;

/// Most denoising steps of a job.
pub const STEPS_MAX: usize = 1_000;

/// Most pictures of a job.
pub const COUNT_MAX: usize = 256;

/// Longest prompt in bytes; far above what the tokens of any model hold.
pub const PROMPT_BYTES_MAX: usize = 64 << 10;

/// How much of a given picture changes unless a request says otherwise.
pub(crate) const DEFAULT_STRENGTH: f32 = 0.75;

/// A seed for a job that names none. It has 32 bits: PyTorch's generator uses no more, and every JSON reader keeps them.
pub fn drawn_seed() -> u64 {
    // The standard library seeds its hash maps from the system; this asks for such a seed.
    RandomState::new().build_hasher().finish() >> 32
}

/// Pictures from a text, and perhaps from a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageRequest {
    /// What to draw.
    pub prompt: String,
    /// What to keep away from; used with guidance only. `None` is the empty prompt.
    pub negative: Option<String>,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale as diffusers counts it for this model: `pos + g (pos - neg)`; 0 switches it off.
    pub guidance: f32,
    /// Keeps the guided prediction's norm below this times the unguided one's.
    pub cfg_normalization: Option<f32>,
    /// Guidance stops where the time (0 noise, 1 picture) exceeds this.
    pub cfg_truncation: f32,
    /// Picture k of n is drawn from seed + k.
    pub seed: u64,
    /// How many pictures.
    pub count: usize,
    /// Initial latents (count, C, h, w), instead of noise drawn from the seed.
    #[serde(skip)]
    pub noise: Option<Vec<f32>>,
    /// Whether approximate rungs are allowed.
    #[serde(with = "quality")]
    pub quality: Quality,
    /// How a step is computed; `None`: as the checkpoint's scheduler says.
    #[serde(with = "word")]
    pub sampler: Option<Method>,
    /// How noise levels are spread over the steps; `None`: as the checkpoint's scheduler says.
    #[serde(with = "word")]
    pub schedule: Option<Schedule>,
    /// DDIM's share of fresh noise, 0 to 1.
    pub eta: f32,
    /// How much of the spread of a guided prediction is taken back, 0 (none) to 1.
    pub guidance_rescale: f32,
    /// Layers at the end of a CLIP text encoder that are left out, as diffusers counts them: 0 is none.
    pub clip_skip: usize,
    /// How the prompt is read.
    pub reading: Reading,
    /// Whose noise a seed stands for.
    pub noise_of: NoiseOf,
    /// How much of the way is gone when there is a picture to begin from, above 0 to 1.
    pub strength: f32,
    /// The picture to begin from.
    #[serde(skip)]
    pub source: Option<Arc<Source>>,
    /// A second pass at a larger size.
    pub hires: Option<Hires>,
    /// What is added to the model's weights.
    pub loras: Vec<LoraUse>,
    /// The part of the way that is gone, where another model goes the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Stretch>,
}

/// A part of the way from noise to picture, as a base model and a refiner share it: shares from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stretch {
    /// Up to here. What comes of it are latents, no pictures.
    Before(f64),
    /// From here on; `noise` has the latents of the part before.
    After(f64),
}

/// A LoRA, and how strong it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraUse {
    /// What it is called.
    pub name: String,
    /// In the network that denoises.
    pub strength: f32,
    /// In the text encoders.
    pub text_strength: f32,
}

/// How a prompt is read by models with CLIP text encoders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reading {
    /// Brackets weigh words, long texts come in chunks, as users of web UIs write them.
    #[default]
    Weighted,
    /// Every character stands for itself, and what is beyond one chunk is cut off, as diffusers does.
    Literal,
}

/// Whose random numbers a seed stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoiseOf {
    /// PyTorch's on a CPU, as diffusers draws.
    #[default]
    Cpu,
    /// PyTorch's on an NVIDIA GPU, as web UIs draw.
    Gpu,
}

/// A picture to begin from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// It, of the request's width and height.
    pub picture: Picture,
    /// Where it is to change, of the same size: 128 and more.
    pub mask: Option<Mask>,
}

impl Source {
    /// A digest by which a saved session knows it again.
    pub(crate) fn digest(&self) -> u64 {
        // FNV-1a: the same in every process and version.
        let mask = self.mask.iter().flat_map(|mask| mask.values());
        let bytes = self.picture.values().iter().chain(mask);
        bytes.fold(0xcbf2_9ce4_8422_2325, |digest, &byte| {
            (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

/// A second pass at a larger size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hires {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Steps of the whole way, of which `strength` are gone.
    pub steps: usize,
    /// How much of the way is gone again, above 0 to 1.
    pub strength: f32,
    /// How the first pass' result becomes larger.
    pub upscaler: Upscaler,
}

/// How a picture becomes larger between two passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Upscaler {
    /// Its latents, bilinear: fast, and needs a strength of about a half.
    #[default]
    Latent,
    /// Its latents, by the nearest.
    LatentNearest,
    /// The picture itself, by Lanczos' filter.
    Lanczos,
}

impl Upscaler {
    /// All of them.
    pub const ALL: [Upscaler; 3] = [Upscaler::Latent, Upscaler::LatentNearest, Upscaler::Lanczos];

    /// As requests name it.
    pub fn name(self) -> &'static str {
        match self {
            Upscaler::Latent => "latent",
            Upscaler::LatentNearest => "latent-nearest",
            Upscaler::Lanczos => "lanczos",
        }
    }
}

/// The name of a sampler or schedule in a file.
mod word {
    use serde::{Deserialize, Deserializer, Serializer};

    /// What has a name and is found by it.
    pub(super) trait Named: Copy + 'static {
        fn name(self) -> &'static str;
        fn all() -> &'static [Self];
    }

    impl Named for super::Method {
        fn name(self) -> &'static str {
            self.name()
        }
        fn all() -> &'static [Self] {
            &Self::ALL
        }
    }

    impl Named for super::Schedule {
        fn name(self) -> &'static str {
            self.name()
        }
        fn all() -> &'static [Self] {
            &Self::ALL
        }
    }

    pub(super) fn serialize<T: Named, S: Serializer>(
        word: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match word {
            Some(word) => serializer.serialize_some(word.name()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, T: Named, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        let Some(name) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        let found = T::all().iter().find(|one| one.name() == name);
        let unknown = || serde::de::Error::custom(format!("'{name}' is not known"));
        found.copied().map(Some).ok_or_else(unknown)
    }
}

/// A quality in a file: whether it is exact.
mod quality {
    use super::Quality;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        quality: &Quality,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(*quality == Quality::Exact)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Quality, D::Error> {
        Ok(match bool::deserialize(deserializer)? {
            true => Quality::Exact,
            false => Quality::Auto,
        })
    }
}

impl Default for ImageRequest {
    /// No prompt, one picture of 512 x 512, without guidance.
    fn default() -> ImageRequest {
        ImageRequest {
            prompt: String::new(),
            negative: None,
            width: 512,
            height: 512,
            steps: 20,
            guidance: 0.0,
            cfg_normalization: None,
            cfg_truncation: 1.0,
            seed: 0,
            count: 1,
            noise: None,
            quality: Quality::Exact,
            sampler: None,
            schedule: None,
            eta: 0.0,
            guidance_rescale: 0.0,
            clip_skip: 0,
            reading: Reading::Weighted,
            noise_of: NoiseOf::Cpu,
            strength: DEFAULT_STRENGTH,
            source: None,
            hires: None,
            loras: Vec::new(),
            part: None,
        }
    }
}

impl ImageRequest {
    /// Checks everything that does not need the model; `multiple` is what sides must be divisible by.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn check(&self, multiple: usize) -> Result<()> {
        check_side("width", self.width, multiple)?;
        check_side("height", self.height, multiple)?;
        for (what, count, most) in [
            ("steps", self.steps, STEPS_MAX),
            ("count", self.count, COUNT_MAX),
        ] {
            if !(1..=most).contains(&count) {
                let problem = format!("is {count}; it must be between 1 and {most}");
                return Err(Error::request(what, problem));
            }
        }
        self.check_guidance()?;
        self.check_begin(multiple)?;
        self.check_part()?;
        for (what, text) in [
            ("prompt", Some(&self.prompt)),
            ("negative", self.negative.as_ref()),
        ] {
            let bytes = text.map_or(0, String::len);
            if bytes > PROMPT_BYTES_MAX {
                return Err(Error::request(
                    what,
                    format!("has {bytes} bytes; at most {PROMPT_BYTES_MAX} are read"),
                ));
            }
        }
        Ok(())
    }

    fn check_guidance(&self) -> Result<()> {
        if !self.guidance.is_finite() || self.guidance < 0.0 {
            let problem = format!("is {}; it must be 0 (off) or more", self.guidance);
            return Err(Error::request("guidance", problem));
        }
        let bad = |norm: f32| !norm.is_finite() || norm < 0.0;
        if self.cfg_normalization.is_some_and(bad) {
            let problem = "must be 0 (off) or more";
            return Err(Error::request("cfg-normalization", problem));
        }
        if !self.cfg_truncation.is_finite() {
            return Err(Error::request("cfg-truncation", "must be a number"));
        }
        for (what, share) in [
            ("eta", self.eta),
            ("guidance-rescale", self.guidance_rescale),
        ] {
            if !(0.0..=1.0).contains(&share) {
                let problem = format!("is {share}; it must be from 0 to 1");
                return Err(Error::request(what, problem));
            }
        }
        Ok(())
    }

    fn check_part(&self) -> Result<()> {
        let Some(Stretch::Before(share) | Stretch::After(share)) = self.part else {
            return Ok(());
        };
        if !(share > 0.0 && share < 1.0) {
            let problem = format!("is {share}; it must be above 0 and below 1");
            return Err(Error::request("refiner-start", problem));
        }
        match self.source.is_some() || self.hires.is_some() {
            true => Err(Error::request(
                "refiner",
                "goes on from noise alone, in one pass",
            )),
            false => Ok(()),
        }
    }

    fn check_begin(&self, multiple: usize) -> Result<()> {
        let gone = |what: &str, strength: f32| {
            if !(strength > 0.0 && strength <= 1.0) {
                let problem = format!("is {strength}; it must be above 0 and at most 1");
                return Err(Error::request(what, problem));
            }
            Ok(())
        };
        if let Some(source) = &self.source {
            gone("strength", self.strength)?;
            let size = (self.width as u32, self.height as u32);
            let picture = &source.picture;
            let mask = source
                .mask
                .as_ref()
                .map(|mask| (mask.width(), mask.height()));
            if (picture.width(), picture.height()) != size || mask.is_some_and(|mask| mask != size)
            {
                let problem = "is not of the size asked for (this is a bug)";
                return Err(Error::request("image", problem));
            }
        }
        if let Some(hires) = &self.hires {
            gone("hires-strength", hires.strength)?;
            if !(1..=STEPS_MAX).contains(&hires.steps) {
                let problem = format!("is {}; it must be between 1 and {STEPS_MAX}", hires.steps);
                return Err(Error::request("hires-steps", problem));
            }
            for side in [hires.width, hires.height] {
                if side == 0 || side > SIDE_MAX || side % multiple != 0 {
                    let problem = format!(
                        "gives sides of {} x {}; they must be multiples of {multiple} up to {SIDE_MAX}",
                        hires.width, hires.height
                    );
                    return Err(Error::request("hires-scale", problem));
                }
            }
        }
        Ok(())
    }

    /// Steps of the whole way of a pass, and how much of it is gone where it does not begin from noise.
    pub(crate) fn way(&self, pass: usize) -> (usize, Option<f64>) {
        let strength = |strength: f32| Some(as_written(strength));
        match (pass, &self.hires) {
            (0, _) | (_, None) => {
                let given = self.source.as_ref();
                (self.steps, given.and_then(|_| strength(self.strength)))
            }
            (_, Some(hires)) => (hires.steps, strength(hires.strength)),
        }
    }

    /// Pixels (width, height) of the result.
    pub fn result_size(&self) -> (usize, usize) {
        self.hires.map_or((self.width, self.height), |hires| {
            (hires.width, hires.height)
        })
    }

    /// Whether `other` can share a batch: everything but texts, seed, given noise and pictures is the same.
    pub fn agrees_with(&self, other: &ImageRequest) -> bool {
        let theirs = ImageRequest {
            prompt: self.prompt.clone(),
            negative: self.negative.clone(),
            seed: self.seed,
            noise: self.noise.clone(),
            source: self.source.clone(),
            ..other.clone()
        };
        let shape = |request: &ImageRequest| {
            let source = request.source.as_ref();
            source.map(|source| source.mask.is_some())
        };
        *self == theirs && shape(self) == shape(other)
    }
}

fn check_side(what: &str, side: usize, multiple: usize) -> Result<()> {
    if side == 0 || side > SIDE_MAX {
        let problem = format!("is {side}; it must be between {multiple} and {SIDE_MAX}");
        return Err(Error::request(what, problem));
    }
    if side.is_multiple_of(multiple) {
        return Ok(());
    }
    let (below, above) = (side / multiple * multiple, side.next_multiple_of(multiple));
    let near = match below {
        0 => above.to_string(),
        _ => format!("{below} or {above}"),
    };
    let problem = format!("is {side}, not a multiple of {multiple}; try {near}");
    Err(Error::request(what, problem))
}

/// The number that `value` was written as. Steps are counted by products with it, which a double gets right where it is
/// made of the digits, and not where it is made of the nearest single: 10 steps at 0.7 are 7, not 6.99.
pub(crate) fn as_written(value: f32) -> f64 {
    let written = value.to_string().parse();
    written.expect("what a number is written as is a number")
}

/// What a session did in one step.
#[derive(Debug)]
pub enum Step {
    /// There is more to do.
    Progress(Progress),
    /// The result. The session is over.
    Finished(Box<Outcome>),
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The phase: `encode`, `refine`, `denoise`, `decode`.
    pub phase: &'static str,
    /// Steps of the phase that are done.
    pub done: usize,
    /// Steps of the phase.
    pub total: usize,
    /// How long this step took.
    pub elapsed: Duration,
    /// Bytes in use now.
    pub memory: Bytes,
}

/// One finished picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// 3 bytes a pixel, row by row.
    pub rgb: Vec<u8>,
    /// The seed that draws this picture alone.
    pub seed: u64,
}

/// A small look at a picture in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sketch<'a> {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// 3 bytes a pixel, row by row.
    pub rgb: &'a [u8],
}

/// What a job gives.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The pictures of all members that were not dropped.
    pub images: Vec<Image>,
    /// By member: which of the pictures are its; `None` for one that was dropped.
    pub members: Vec<Option<Range<usize>>>,
    /// Shape of `latents`: (N, C, h, w); N pictures, also where none was decoded.
    pub latents_shape: [usize; 4],
    /// The latents that were decoded; empty unless asked for.
    pub latents: Vec<f32>,
    /// The pictures in 0..1, (N, 3, H, W); empty unless asked for.
    pub values: Vec<f32>,
    /// What it took.
    pub report: Report,
}

/// What a job took.
#[derive(Clone, Debug)]
pub struct Report {
    /// The plan that was carried out.
    pub plan: Plan,
    /// Seconds by phase.
    pub seconds: BTreeMap<&'static str, f64>,
    /// Seconds that computing waited for weights, by phase.
    pub waited: BTreeMap<&'static str, f64>,
    /// Seconds that weights were read, by phase, whether computing waited for them or not.
    pub reading: BTreeMap<&'static str, f64>,
    /// Highest number of bytes in use, by phase.
    pub peak: BTreeMap<&'static str, Bytes>,
    /// Bytes of weights read.
    pub bytes_read: u64,
    /// Rungs taken after an unexpected refusal of memory.
    pub rungs_taken: usize,
    /// Different texts the job needed, prompts and negative prompts.
    pub prompts: usize,
    /// How many of them were not encoded, since what is made of them was still there.
    pub prompts_cached: usize,
    /// What the user should be told beside: parts of the request that had no effect.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::as_written;

    #[test]
    fn strengths_count_steps_as_they_are_written() {
        for (steps, strength, gone) in [(10, 0.7, 7), (5, 0.6, 3), (10, 0.3, 3), (20, 0.55, 11)] {
            assert_eq!((f64::from(steps) * as_written(strength)) as usize, gone);
        }
        assert_eq!(as_written(1.0), 1.0);
    }
}
