//! Models that several kinds of jobs use are one in memory.
//!
//! Each kind opens a model for itself. Where two of them open the same files, they get the same pipeline: what one has
//! read the other finds, without comparing any bytes.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use lowtide_weights::Fingerprint;

use crate::pipeline::Pipeline;
use crate::processor::Files;

/// What was opened, and by whom.
struct Open {
    /// The files of requests, which embeddings come from; told apart by where they are in memory.
    files: Weak<dyn Files>,
    name: String,
    weights: Vec<Fingerprint>,
    model: Weak<dyn Pipeline>,
}

static ALL: Mutex<Vec<Open>> = Mutex::new(Vec::new());

/// The pipeline that is open already for the same files and the same weights, else `model`, which then is it for others.
pub(crate) fn one_of(model: Arc<dyn Pipeline>, files: &Arc<dyn Files>) -> Arc<dyn Pipeline> {
    let weights = model
        .parts()
        .into_iter()
        .map(|part| part.blocks.fingerprint());
    let Ok(weights) = weights.collect::<Result<Vec<Fingerprint>, _>>() else {
        // Whoever reads from a file that is gone is told so then.
        return model;
    };
    // A list is changed by one push or one retain, so a panic elsewhere leaves it valid.
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|open| open.model.strong_count() > 0);
    let same = |open: &&Open| {
        let theirs = open.files.upgrade();
        theirs.is_some_and(|theirs| Arc::ptr_eq(&theirs, files))
            && open.name == model.name()
            && open.weights == weights
    };
    if let Some(known) = all.iter().find(same).and_then(|open| open.model.upgrade()) {
        return known;
    }
    all.push(Open {
        files: Arc::downgrade(files),
        name: model.name().to_owned(),
        weights,
        model: Arc::downgrade(&model),
    });
    model
}
