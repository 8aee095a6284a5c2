//! What takes time in a job's life, for whoever traces it.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use lowtide_core::job::JobId;
use lowtide_jobs::{Span, TraceParent, Tracer};

/// Tells a tracer, where there is one and the job is traced.
#[derive(Clone, Debug)]
pub(crate) struct Stopwatch(pub(crate) Option<Arc<dyn Tracer>>);

/// When something began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began(SystemTime, Instant);

/// A job, and what its work is a part of.
pub(crate) type Traced = (JobId, Option<TraceParent>);

impl Stopwatch {
    pub(crate) fn begin(&self) -> Began {
        Began(SystemTime::now(), Instant::now())
    }

    /// Something is over.
    pub(crate) fn note(
        &self,
        (job, parent): Traced,
        name: &'static str,
        Began(began, since): Began,
        about: Vec<(&'static str, String)>,
        error: Option<String>,
    ) {
        let (Some(tracer), Some(parent)) = (&self.0, parent.filter(|at| at.is_sampled())) else {
            return;
        };
        tracer.note(Span {
            at: parent.another(),
            parent: Some(parent),
            name,
            job,
            began,
            took: since.elapsed(),
            about,
            error,
        });
    }
}
