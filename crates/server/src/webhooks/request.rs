//! What a submission says of whom to tell.

use lowtide_jobs::Webhook;
use serde_json::{Value, json};

use crate::app::Inner;
use crate::fields::{Fields, wrong};
use crate::refusal::Refusal;

/// The field with the address; Cog and Replicate call it so.
const URL: &str = "webhook";

/// The field with what is told; Cog and Replicate call it so.
const FILTER: &str = "webhook_events_filter";

/// What may be in the filter: Cog's words, and `progress` for what its clients call logs.
const WORDS: [&str; 5] = ["start", "output", "logs", "progress", "completed"];

/// Takes whom to tell from a submission.
pub(crate) fn read(app: &Inner, fields: &mut Fields) -> Result<Option<Webhook>, Refusal> {
    let (url, filter) = (fields.text(URL)?, fields.take(FILTER));
    let Some(url) = url else {
        return match filter {
            None => Ok(None),
            Some(_) => Err(Refusal::invalid(FILTER, "means nothing without webhook")),
        };
    };
    let words = match filter {
        None => WORDS.map(str::to_owned).to_vec(),
        Some(Value::Array(words)) if !words.is_empty() => words
            .into_iter()
            .map(|word| match word {
                Value::String(word) if WORDS.contains(&word.as_str()) => Ok(word),
                Value::String(word) => Err(Refusal::invalid(
                    FILTER,
                    format!("'{word}' is none of {}", WORDS.join(", ")),
                )),
                other => Err(wrong(FILTER, "a list of words", &other)),
            })
            .collect::<Result<_, Refusal>>()?,
        Some(other) => return Err(wrong(FILTER, "a list of at least one word", &other)),
    };
    if url.len() as u64 > Webhook::URL_LEN_MAX.0 {
        let problem = format!("at most {} are allowed", Webhook::URL_LEN_MAX);
        return Err(Refusal::invalid(URL, problem));
    }
    let hosts = &app.options.webhooks.hosts;
    hosts
        .check(&url)
        .map_err(|problem| Refusal::invalid(URL, problem))?;
    let said = |any: &[&str]| words.iter().any(|word| any.contains(&word.as_str()));
    Ok(Some(Webhook {
        url,
        start: said(&["start"]),
        progress: said(&["logs", "progress"]),
        // What a job gives is there when it is over.
        completed: said(&["output", "completed"]),
    }))
}

/// The two fields in the description of a submission.
pub(crate) fn schema() -> [(&'static str, Value); 2] {
    let filter = json!({
        "type": "array", "minItems": 1, "items": { "type": "string", "enum": WORDS },
        "description": "What is told; everything where left out. logs is progress, and output is there with completed",
    });
    let url = json!({
        "type": "string", "maxLength": Webhook::URL_LEN_MAX.0, "pattern": "^https?://[^/?#@]+([/?#].*)?$",
        "description": "An address that is told what becomes of the job",
    });
    [(URL, url), (FILTER, filter)]
}
