//! Words of core that have no text of their own there.

use lowtide_core::lifecycle::{AfterJob, KeepAlive};
use serde_json::Value;

use crate::fields::wrong;
use crate::refusal::Refusal;

/// The word for it.
pub(crate) fn after_job(after: AfterJob) -> &'static str {
    match after {
        AfterJob::Keep => "keep",
        AfterJob::Offload => "offload",
        AfterJob::Release => "release",
    }
}

/// Reads the word.
pub(crate) fn read_after_job(word: &str) -> Result<AfterJob, Refusal> {
    [AfterJob::Keep, AfterJob::Offload, AfterJob::Release]
        .into_iter()
        .find(|&after| after_job(after) == word)
        .ok_or_else(|| {
            Refusal::invalid(
                "after_job",
                format!("'{word}' is none of keep, offload, release"),
            )
        })
}

/// Reads seconds, or what [`KeepAlive`] reads from text.
pub(crate) fn read_keep_alive(value: &Value) -> Result<KeepAlive, Refusal> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => {
            return Err(wrong(
                "keep_alive",
                "seconds, a duration such as 10m, forever or auto",
                other,
            ));
        }
    };
    text.parse()
        .map_err(|error: lowtide_core::lifecycle::NotAKeepAlive| {
            Refusal::invalid("keep_alive", error.to_string())
        })
}
