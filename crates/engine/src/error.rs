//! What can go wrong between a request and its result.

use lowtide_core::{DoesNotFit, PlanError};
use lowtide_models as models;
use lowtide_weights as weights;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Whose fault it was, which decides what happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The request or a file it names: change it.
    User,
    /// No rung of the ladder fits the budget.
    Fit,
    /// The program or the machine.
    Program,
}

/// A failure of a job.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request asks for something that cannot be.
    #[error("{what} {problem}")]
    Request {
        /// The option or field.
        what: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The folder holds a model of a kind that is not built in.
    #[error(
        "{model} is a {class}; supported are ZImagePipeline and the pipelines of Stable Diffusion 1, 2 and XL"
    )]
    UnsupportedPipeline {
        /// The model's name.
        model: String,
        /// `_class_name` of its model_index.json.
        class: String,
    },
    /// The model lacks a part.
    #[error("{model}: {what}")]
    Incomplete {
        /// The model's name.
        model: String,
        /// What is missing.
        what: String,
    },
    /// tokenizer.json or the chat template could not be used.
    #[error("{model}/tokenizer: {problem}")]
    Tokenizer {
        /// The model's name.
        model: String,
        /// The reason.
        problem: String,
    },
    /// A file could not be read.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// A finished picture could not be put into a file.
    #[error("the picture could not be written: {0}")]
    Picture(#[from] lowtide_media::Error),
    /// A component's configuration, weights or computation.
    #[error("{model}/{component}: {source}")]
    Model {
        /// The model's name.
        model: String,
        /// The component.
        component: &'static str,
        /// What happened.
        source: models::Error,
    },
    /// A LoRA does not go with itself or with the model, or there is no memory for it.
    #[error(transparent)]
    Lora(models::Error),
    /// Nothing on the ladder fits.
    #[error("{0}")]
    DoesNotFit(DoesNotFit),
    /// Planning failed for another reason than memory.
    #[error("cannot plan: {0} (this is a bug)")]
    Plan(PlanError),
    /// A buffer was refused on the lowest rung.
    #[error("out of memory in phase {phase} on the lowest rung: {source}")]
    OutOfMemory {
        /// The phase.
        phase: &'static str,
        /// The refusal.
        source: lowtide_kernels::memory::OutOfMemory,
    },
    /// The loader thread ended without an answer.
    #[error("the loader stopped (this is a bug)")]
    LoaderStopped,
    /// The program panicked while it did this.
    #[error("the program panicked: {0}; this is a bug")]
    Panicked(String),
    /// The threads of the kernels could not be set up.
    #[error("threads: {0}")]
    Threads(String),
}

impl Error {
    /// A request error.
    pub fn request(what: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Request {
            what: what.into(),
            problem: problem.into(),
        }
    }

    /// The field of the request that asks for more than the model was made for, where that is what went wrong.
    pub fn beyond_model(&self) -> Option<&'static str> {
        let Error::Model {
            source: models::Error::BeyondModel { what, .. },
            ..
        } = self
        else {
            return None;
        };
        let sides = ["width", "height"];
        let side = sides.into_iter().find(|side| what.contains(side));
        Some(side.unwrap_or("prompt"))
    }

    /// Whether the device is lost, so that nothing in this process can compute on it any more.
    pub fn is_lost(&self) -> bool {
        use lowtide_models::device::Failure;
        match self {
            Error::Model { source, .. } | Error::Lora(source) => match source {
                models::Error::Device(failure) => matches!(failure, Failure::Lost(_)),
                models::Error::Source(source) => {
                    let failed = source.downcast_ref::<crate::stream::Failure>();
                    matches!(
                        failed,
                        Some(crate::stream::Failure::Device(Failure::Lost(_)))
                    )
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Whose fault it was.
    pub fn blame(&self) -> Blame {
        if self.is_lost() {
            return Blame::Program;
        }
        match self {
            Error::Request { .. }
            | Error::UnsupportedPipeline { .. }
            | Error::Incomplete { .. }
            | Error::Tokenizer { .. }
            | Error::Weights(_) => Blame::User,
            Error::Lora(models::Error::OutOfMemory(_)) => Blame::Fit,
            Error::Model { source, .. } | Error::Lora(source) => match source {
                models::Error::OutOfMemory(_)
                | models::Error::Shape { .. }
                | models::Error::Device(_) => Blame::Program,
                models::Error::MissingTensor { .. }
                | models::Error::WrongShape { .. }
                | models::Error::WrongDtype { .. }
                | models::Error::UnknownScales { .. }
                | models::Error::Adapter { .. }
                | models::Error::Config { .. }
                | models::Error::BeyondModel { .. }
                | models::Error::Source(_) => Blame::User,
            },
            Error::DoesNotFit(_) | Error::OutOfMemory { .. } => Blame::Fit,
            Error::Picture(_)
            | Error::Plan(_)
            | Error::LoaderStopped
            | Error::Panicked(_)
            | Error::Threads(_) => Blame::Program,
        }
    }
}

impl From<PlanError> for Error {
    fn from(error: PlanError) -> Error {
        match error {
            PlanError::DoesNotFit(numbers) => Error::DoesNotFit(numbers),
            other => Error::Plan(other),
        }
    }
}
