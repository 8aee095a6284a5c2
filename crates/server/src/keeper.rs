//! What has to happen from time to time: ended leases and memory samples; on a thread of its own, since files may be far
//! away, the past and forgotten uploads.

use std::time::{Duration, Instant};

use lowtide_core::job::Moment;
use lowtide_jobs::{Retention, StoreError};

use crate::access;
use crate::app::Inner;

/// Samples of memory are a second apart, and passing time is told to the store as often.
const EVERY: Duration = Duration::from_secs(1);

/// Files that no job knows are looked for so often: all names there are listed for it.
const ORPHANS_EVERY: Duration = Duration::from_secs(3600);

/// A file that no job knows may be one that an attempt is about to publish. None takes so long.
const ORPHAN_AGE: Duration = Duration::from_secs(3600);

/// Files looked up at once.
const LOOKED_UP: usize = 500;

/// Keeps time until the server ends.
pub(crate) fn keep(app: &Inner) {
    let mut next = Instant::now();
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
        // So a key that was revoked anywhere opens nothing here a second later.
        let _ = access::renew(app);
        if let Ok(fleet) = app.fleet() {
            app.history.note(&fleet, app.now());
        }
    }
}

/// Forgets the past until the server ends.
pub(crate) fn forget(app: &Inner) {
    let mut orphans = None::<Instant>;
    while !app.hub.is_ending() {
        let began = Instant::now();
        if let Some(retention) = app.options.retention {
            // What is wrong with store or files, whoever asks them hears; the next time tries again.
            let _ = retain(app, &retention);
            if orphans.is_none_or(|at| at.elapsed() >= ORPHANS_EVERY) && forget_orphans(app).is_ok()
            {
                orphans = Some(began);
            }
            let _ = forget_inputs(app);
        }
        let rest = app.options.retain_every;
        while !app.hub.is_ending() && began.elapsed() < rest {
            std::thread::park_timeout(rest.saturating_sub(began.elapsed()));
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
            return Ok(());
        }
    }
}

/// Files that an attempt wrote and never told of.
fn forget_orphans(app: &Inner) -> Result<(), StoreError> {
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
    Ok(())
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
