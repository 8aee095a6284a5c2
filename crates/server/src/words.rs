//! Words of core that have no text of their own there.

use std::time::Duration;

use lowtide_core::lifecycle::{AfterJob, KeepAlive, NotAKeepAlive};
use serde_json::Value;

use crate::fields::wrong;
use crate::refusal::Refusal;

/// 100,000 hours: who wants more means for ever.
pub(crate) const KEEP_MAX: Duration = Duration::from_secs(360_000_000);

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
        // 600.0 is a whole number too, to a client that knows only one kind of number.
        Value::Number(number) => match number.as_f64() {
            Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => format!("{float:.0}"),
            _ => number.to_string(),
        },
        other => {
            return Err(wrong(
                "keep_alive",
                "seconds, a duration such as 10m, forever or auto",
                other,
            ));
        }
    };
    match text.parse() {
        Ok(KeepAlive::For(time)) if time > KEEP_MAX => Err(Refusal::invalid(
            "keep_alive",
            format!(
                "at most {} s are possible; forever is a word",
                KEEP_MAX.as_secs()
            ),
        )),
        Ok(keep) => Ok(keep),
        Err(error) => Err(Refusal::invalid(
            "keep_alive",
            NotAKeepAlive::to_string(&error),
        )),
    }
}
