//! What a server asks about jobs before it accepts them: which kinds and models there are, whether a request can be,
//! what it would cost. It asks through a trait, so that it never sees a tensor.

use std::fmt;

use lowtide_core::{Budget, Bytes};
use lowtide_jobs::report::Hints;
use serde_json::Value;

use crate::Downloads;
use crate::refusal::Refusal;

/// What the service offers. Calls may take milliseconds, and come from many threads.
pub trait Door: Send + Sync {
    /// The kinds of jobs that are enabled.
    fn kinds(&self) -> Vec<Kind>;

    /// The models that can be named, aliases included.
    fn models(&self) -> Vec<ModelEntry>;

    /// Checks a request, fills it in and predicts its cost. `budget`: what the worker's device allows now; `None` where
    /// no worker has said so yet.
    ///
    /// # Errors
    /// Why it cannot be a job.
    fn check(
        &self,
        kind: &str,
        model: Option<&str>,
        request: Value,
        budget: Option<Budget>,
    ) -> Result<Checked, Refused>;

    /// As [`Door::check`], with the plan.
    ///
    /// # Errors
    /// As [`Door::check`].
    fn plan(
        &self,
        kind: &str,
        model: Option<&str>,
        request: Value,
        budget: Option<Budget>,
    ) -> Result<Planned, Refused>;

    /// A mask as requests have it, whose bright parts are drawn anew, from a picture that can be seen through there. `None`
    /// where it can be seen through nowhere.
    ///
    /// # Errors
    /// `Invalid` with the field `image`: it is no picture.
    fn mask_of(&self, picture: &[u8]) -> Result<Option<Vec<u8>>, Refused>;

    /// The mask that is bright where this one is dark.
    ///
    /// # Errors
    /// `Invalid` with the field `mask`: it is no picture.
    fn inverted(&self, mask: &[u8]) -> Result<Vec<u8>, Refused>;

    /// What a picture was made with, as it says itself, in the words of the Stable Diffusion web UI. `None` where it says
    /// nothing.
    ///
    /// # Errors
    /// `Invalid` with the field `image`: it is no picture.
    fn parameters_of(&self, picture: &[u8]) -> Result<Option<String>, Refused>;

    /// Width and height of a picture in pixels, upright.
    ///
    /// # Errors
    /// `Invalid` with the field `image`: it is no picture.
    fn size_of(&self, picture: &[u8]) -> Result<[u32; 2], Refused>;

    /// The LoRAs that requests can name.
    fn loras(&self) -> Vec<Extra>;

    /// The words of textual inversion that prompts can have.
    fn embeddings(&self) -> Vec<Extra>;

    /// Whoever fetches models that are not here; `None` where nobody does.
    fn downloads(&self) -> Option<&dyn Downloads> {
        None
    }
}

/// A small file beside the models that requests can name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// The name.
    pub name: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// A kind of job.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// Its name.
    pub name: String,
    /// One sentence.
    pub about: String,
    /// The JSON Schema of its requests.
    pub schema: Value,
    /// The model where a request names none.
    pub model_default: Option<String>,
}

/// A model that can be named.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelEntry {
    /// The name.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// The kinds of jobs it is good for.
    pub kinds: Vec<String>,
    /// Bytes of its weights.
    pub bytes: Bytes,
    /// What a request leaves out.
    pub defaults: Value,
}

/// A request that can be a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// The model's own name, whatever alias was used.
    pub model: String,
    /// The request with everything filled in.
    pub request: Value,
    /// What it will cost.
    pub hints: Hints,
}

/// A request with its plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The request.
    pub checked: Checked,
    /// Phases with placements, bytes and seconds; null for kinds without a plan.
    pub plan: Value,
    /// The plan's sentences.
    pub reasons: Vec<String>,
    /// The rungs that make the result approximate.
    pub approximate: Vec<String>,
}

/// Why a request cannot be a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Refused {
    /// No such kind: 404.
    UnknownKind {
        /// What was named.
        kind: String,
        /// What there is.
        known: Vec<String>,
    },
    /// No such model for this kind: 404.
    UnknownModel {
        /// What was named.
        model: String,
        /// What there is.
        known: Vec<String>,
    },
    /// No such model here, and it does not come either: 404.
    NotHere {
        /// What was named.
        model: String,
        /// Why, and what to do.
        problem: String,
    },
    /// Something in the request: 422.
    Invalid {
        /// The field, such as `width`.
        field: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// No rung of the ladder fits: 422 with the numbers.
    DoesNotFit {
        /// The sentence.
        sentence: String,
        /// The smallest peak.
        needed: Bytes,
        /// What there is.
        budget: Bytes,
        /// The smallest budget that would do.
        smallest: Bytes,
    },
    /// The model's files or the program: 500.
    Broken {
        /// The sentence.
        sentence: String,
    },
}

impl fmt::Display for Refused {
    /// The sentence that a client is told.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Refusal::from(self.clone()).message())
    }
}
