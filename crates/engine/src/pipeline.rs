//! Pipelines: which components a model has, what a job does with them, and what each phase costs.

pub mod z_image;
