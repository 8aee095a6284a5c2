//! What every store checks before it accepts something, and the bounds all of them have.

use std::time::Duration;

use lowtide_core::Bytes;
use lowtide_core::job::Moment;
use serde_json::Value;

use crate::{Job, Policy, Result, StoreError, Submission, Webhook};

/// Longest name of a kind, a model, an owner or a key.
const NAME_LEN_MAX: Bytes = Bytes(256);

/// Milliseconds in the unit in which throughput is counted.
pub(crate) const MINUTE_MS: u64 = 60_000;

/// Minutes of throughput in the numbers.
pub(crate) const MINUTES: u64 = 60;

/// Most lines of one answer, however many are asked for.
pub(crate) const LINES_MAX: usize = 1_000;

impl Policy {
    /// Whether so many can be submitted at once.
    ///
    /// # Errors
    /// `TooLarge`.
    pub(crate) fn check_batch(&self, len: usize) -> Result<()> {
        if len <= self.batch_len_max {
            return Ok(());
        }
        Err(StoreError::TooLarge {
            field: "batch",
            bytes: len as u64,
            limit: self.batch_len_max as u64,
        })
    }

    /// Whether a submission makes sense by itself.
    ///
    /// # Errors
    /// `TooLarge`, `Invalid`, with the name of what is wrong.
    pub(crate) fn check(&self, submission: &Submission) -> Result<()> {
        for (field, text) in [
            ("request", Some(&submission.request)),
            ("hints", submission.hints.as_ref()),
        ] {
            let Some(text) = text else { continue };
            fits(field, text.len(), self.json_max)?;
            if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
                let reason = format!("not JSON: {error}");
                return Err(StoreError::Invalid { field, reason });
            }
        }
        for (field, text) in [
            ("kind", Some(&submission.kind)),
            ("model", Some(&submission.model)),
            ("owner", submission.owner.as_ref()),
            ("idempotency key", submission.idempotency_key.as_ref()),
        ] {
            let Some(text) = text else { continue };
            if text.is_empty() {
                let reason = "it is empty".to_owned();
                return Err(StoreError::Invalid { field, reason });
            }
            fits(field, text.len(), NAME_LEN_MAX)?;
        }
        if let Some(webhook) = &submission.webhook {
            fits("webhook", webhook.url.len(), Webhook::URL_LEN_MAX)?;
        }
        Ok(())
    }

    /// Milliseconds until the next job should finish, by how many of the latest ones did since when.
    pub(crate) fn retry_after_ms(&self, (jobs, since): (u64, Option<Moment>), now: Moment) -> u64 {
        since.map_or(millis(self.retry_after_default), |since| {
            (millis(now.since(since)) / jobs.max(1)).max(1)
        })
    }
}

impl Job {
    /// Whether this job came of the same request.
    pub(crate) fn is_of(&self, submission: &Submission) -> bool {
        self.kind == submission.kind
            && self.model == submission.model
            && self.owner == submission.owner
            && self.idempotency_key == submission.idempotency_key
            && self.webhook == submission.webhook
            && same_json(&self.request, &submission.request)
    }
}

/// Whether two texts are the same JSON, however they are spaced and ordered.
pub(crate) fn same_json(a: &str, b: &str) -> bool {
    let parse = |text| serde_json::from_str::<Value>(text).ok();
    a == b || parse(a).zip(parse(b)).is_some_and(|(a, b)| a == b)
}

/// Refuses what is too long.
pub(crate) fn fits(field: &'static str, len: usize, limit: Bytes) -> Result<()> {
    match u64::try_from(len) {
        Ok(bytes) if bytes > limit.0 => Err(StoreError::TooLarge {
            field,
            bytes,
            limit: limit.0,
        }),
        _ => Ok(()),
    }
}

/// Whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
