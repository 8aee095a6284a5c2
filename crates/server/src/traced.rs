//! Submissions as parts of traces: a client's `traceparent`, and what it took to accept a job.

use std::time::{Instant, SystemTime};

use axum::http::HeaderMap;
use lowtide_jobs::{Span, StoreError, Submission, TraceParent};

use crate::app::Inner;

/// The header of W3C's Trace Context.
const HEADER: &str = "traceparent";

/// A submission that began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traced {
    parent: Option<TraceParent>,
    began: SystemTime,
    since: Instant,
}

/// A submission whose work is a part of a trace. `None`: nobody hears of it.
#[derive(Debug)]
pub(crate) struct Marked(Option<Span>, Instant);

impl Traced {
    /// As its client says. A header that is none is as good as missing, by its standard.
    pub(crate) fn begin(headers: &HeaderMap) -> Traced {
        let text = headers.get(HEADER).and_then(|value| value.to_str().ok());
        Traced {
            parent: text.and_then(|text| text.parse().ok()),
            began: SystemTime::now(),
            since: Instant::now(),
        }
    }

    /// Says in a submission what its work is a part of: of the submission's own span where that is told to somebody, else of
    /// the client's.
    pub(crate) fn mark(&self, app: &Inner, submission: &mut Submission) -> Marked {
        let told = app.options.tracer.is_some();
        let at = match (self.parent, told) {
            (parent, false) => parent,
            (Some(parent), true) => Some(parent.another()),
            (None, true) => Some(TraceParent::random()),
        };
        submission.wishes.trace = at;
        let span = at.filter(|at| told && at.is_sampled()).map(|at| Span {
            at,
            parent: self.parent,
            name: "submit",
            job: submission.id,
            began: self.began,
            took: self.since.elapsed(),
            about: vec![
                ("lowtide.kind", submission.kind.clone()),
                ("lowtide.model", submission.model.clone()),
            ],
            error: None,
        });
        Marked(span, self.since)
    }
}

impl Marked {
    /// It is accepted, or was not.
    pub(crate) fn note(self, app: &Inner, error: Option<&StoreError>) {
        let Marked(span, since) = self;
        if let (Some(span), Some(tracer)) = (span, &app.options.tracer) {
            tracer.note(Span {
                took: since.elapsed(),
                error: error.map(ToString::to_string),
                ..span
            });
        }
    }
}
