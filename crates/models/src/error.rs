//! What can go wrong while a model is described, loaded or computed.

use lowtide_core::Dtype;
use lowtide_kernels::memory::OutOfMemory;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of a model, with the data a sentence for a person is made of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint lacks a tensor that the configuration calls for.
    #[error(
        "tensor '{name}' is missing: the checkpoint does not match its config.json, or is incomplete"
    )]
    MissingTensor {
        /// Full name in the component's checkpoint.
        name: String,
    },
    /// A tensor does not have the shape that the configuration calls for.
    #[error("tensor '{name}' has shape {found:?} where config.json calls for {expected:?}")]
    WrongShape {
        /// Full name in the component's checkpoint.
        name: String,
        /// What the configuration says.
        expected: Vec<usize>,
        /// What the file says.
        found: Vec<usize>,
    },
    /// A tensor is stored in a type no layer computes with.
    #[error(
        "tensor '{name}' is stored as {found}, which is no floating-point type that Lowtide computes with"
    )]
    WrongDtype {
        /// Full name in the component's checkpoint.
        name: String,
        /// What the file says.
        found: Dtype,
    },
    /// A weight of few bits has scales beside it of a kind that is not known.
    #[error(
        "tensor '{name}' holds scales of a kind that Lowtide does not compute with; it knows one number, one a row and one for every 32 numbers of a row, called weight_scale or scale_weight. Use the model in f16 or bf16"
    )]
    UnknownScales {
        /// Full name in the component's checkpoint.
        name: String,
    },
    /// What a LoRA adds does not go with itself or with the model.
    #[error("LoRA '{adapter}': layer '{module}' {problem}")]
    Adapter {
        /// The LoRA's name.
        adapter: String,
        /// The layer, as the model's checkpoint names it.
        module: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A configuration value is missing, of the wrong kind, or out of bounds.
    #[error("{component}: config value '{key}' {problem}")]
    Config {
        /// The component whose config it is.
        component: &'static str,
        /// The key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A request asks for more than the model was made for.
    #[error("{what} is {asked}, but this model goes up to {limit}")]
    BeyondModel {
        /// What was asked for.
        what: &'static str,
        /// How much of it.
        asked: usize,
        /// The limit.
        limit: usize,
    },
    /// Two tensors do not go together. This is a bug.
    #[error("{what}: expected {expected:?}, found {found:?} (this is a bug)")]
    Shape {
        /// The operation.
        what: &'static str,
        /// What it needs.
        expected: Vec<usize>,
        /// What it was given.
        found: Vec<usize>,
    },
    /// A buffer was refused.
    #[error("out of memory: {0}")]
    OutOfMemory(#[from] OutOfMemory),
    /// What computes failed.
    #[error("{0}")]
    Device(#[source] crate::device::Failure),
    /// A block could not be had from where it lives.
    #[error("{0}")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// A configuration error.
    pub fn config(component: &'static str, key: &str, problem: impl Into<String>) -> Error {
        Error::Config {
            component,
            key: key.to_owned(),
            problem: problem.into(),
        }
    }
}
