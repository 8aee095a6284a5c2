//! What a user asks for, and what comes back.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::time::Duration;

use lowtide_core::{Bytes, Plan, Quality};
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
        }
    }
}

impl ImageRequest {
    /// Checks everything that does not need the model; `multiple` is what sides must be divisible by.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn check(&self, multiple: usize) -> Result<()> {
        for (what, side) in [("width", self.width), ("height", self.height)] {
            if side == 0 || side > SIDE_MAX {
                return Err(Error::request(
                    what,
                    format!("is {side}; it must be between {multiple} and {SIDE_MAX}"),
                ));
            }
            if side % multiple != 0 {
                let (below, above) = (side / multiple * multiple, side.next_multiple_of(multiple));
                let near = if below == 0 {
                    above.to_string()
                } else {
                    format!("{below} or {above}")
                };
                return Err(Error::request(
                    what,
                    format!("is {side}, not a multiple of {multiple}; try {near}"),
                ));
            }
        }
        if !(1..=STEPS_MAX).contains(&self.steps) {
            return Err(Error::request(
                "steps",
                format!("is {}; it must be between 1 and {STEPS_MAX}", self.steps),
            ));
        }
        if !(1..=COUNT_MAX).contains(&self.count) {
            return Err(Error::request(
                "count",
                format!("is {}; it must be between 1 and {COUNT_MAX}", self.count),
            ));
        }
        if !self.guidance.is_finite() || self.guidance < 0.0 {
            return Err(Error::request(
                "guidance",
                format!("is {}; it must be 0 (off) or more", self.guidance),
            ));
        }
        if self
            .cfg_normalization
            .is_some_and(|norm| !norm.is_finite() || norm < 0.0)
        {
            return Err(Error::request(
                "cfg-normalization",
                "must be 0 (off) or more",
            ));
        }
        if !self.cfg_truncation.is_finite() {
            return Err(Error::request("cfg-truncation", "must be a number"));
        }
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

    /// Whether `other` can share a batch: everything but texts, seed and given noise is the same.
    pub fn agrees_with(&self, other: &ImageRequest) -> bool {
        let theirs = ImageRequest {
            prompt: self.prompt.clone(),
            negative: self.negative.clone(),
            seed: self.seed,
            noise: self.noise.clone(),
            ..other.clone()
        };
        *self == theirs
    }
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
    /// Shape of `latents`: (N, C, h, w).
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
}
