//! What has to happen from time to time: ended leases, the past, forgotten uploads, memory samples.

use std::time::{Duration, Instant};

use lowtide_core::job::Moment;
use lowtide_jobs::{Retention, StoreError};

use crate::app::Inner;

/// Samples of memory are a second apart, and passing time is told to the store as often.
const EVERY: Duration = Duration::from_secs(1);

/// A file that no job knows may be one that an attempt is about to publish. None takes so long.
const ORPHAN_AGE: Duration = Duration::from_secs(3600);

/// Files looked up at once.
const LOOKED_UP: usize = 500;

/// Runs until the server ends.
pub(crate) fn keep(app: &Inner) {
    let (mut next, mut retained) = (Instant::now(), None::<Instant>);
    while !app.hub.is_ending() {
        let now = Instant::now();
        if now < next {
            std::thread::park_timeout(next - now);
            continue;
        }
        // A machine that slept does not catch up.
        next = (next + EVERY).max(now);
        // Whoever asks the store next hears what is wrong with it; the next second tries again.
        let _ = app.store.sweep(app.now());
        if let Ok(fleet) = app.fleet() {
            app.history.note(&fleet, app.now());
        }
        let due = retained.is_none_or(|at| at.elapsed() >= app.options.retain_every);
        if let Some(retention) = app.options.retention.filter(|_| due) {
            retained = Some(now);
            let _ = retain(app, &retention);
        }
    }
}

fn retain(app: &Inner, retention: &Retention) -> Result<(), StoreError> {
    loop {
        let removed = app.store.retain(retention, app.now())?;
        for artifact in removed.artifacts {
            app.artifacts.remove(artifact)?;
        }
        if !removed.more || app.hub.is_ending() {
            break;
        }
    }
    let age_ms = u64::try_from(ORPHAN_AGE.as_millis()).unwrap_or(u64::MAX);
    let old = app
        .artifacts
        .finished_before(Moment(app.now().0.saturating_sub(age_ms)))?;
    for some in old.chunks(LOOKED_UP) {
        let known = app.store.known_artifacts(some)?;
        for &artifact in some.iter().filter(|artifact| !known.contains(artifact)) {
            app.artifacts.remove(artifact)?;
        }
    }
    forget_inputs(app)
}

/// An upload precedes its job; what no job names for some time goes.
fn forget_inputs(app: &Inner) -> Result<(), StoreError> {
    let grace_ms = u64::try_from(app.options.input_grace.as_millis()).unwrap_or(u64::MAX);
    let before = Moment(app.now().0.saturating_sub(grace_ms));
    let idle = app.inputs.idle_since(before)?;
    for some in idle.chunks(LOOKED_UP) {
        let named = app.store.named_inputs(some)?;
        for &input in some.iter().filter(|input| !named.contains(input)) {
            // One that somebody asks for at this moment stays.
            app.inputs.remove_idle(input, before)?;
        }
    }
    Ok(())
}
