//! LoRAs of a request: a list, or `<lora:name:strength>` in the prompt as users of web UIs write it.

use serde_json::{Value, json};

use crate::processors::fields::Fields;
use crate::request::LoraUse;
use crate::{Error, Result};

/// Longest name.
const NAME_BYTES_MAX: usize = 256;

/// Strengths either way; far beyond what any picture survives.
const STRENGTH_MAX: f32 = 100.0;

/// The prompt without its tags, and what they say.
///
/// # Errors
/// [`Error::Request`] for a tag without a name or with a strength that is no number.
pub(super) fn tagged(prompt: &str) -> Result<(String, Vec<LoraUse>)> {
    let (mut rest, mut text, mut loras) = (prompt, String::new(), Vec::new());
    while let Some(start) = rest.find("<lora:") {
        let Some(end) = rest[start..].find('>') else {
            break;
        };
        let tag = &rest[start + "<lora:".len()..start + end];
        let wrong =
            |problem: &str| Error::request("prompt", format!("has <lora:{tag}>: {problem}"));
        let mut parts = tag.split(':');
        let name = parts.next().unwrap_or("").trim();
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(wrong("a name of at most 256 bytes comes first"));
        }
        let mut strength = |otherwise: f32| match parts.next() {
            None => Ok(otherwise),
            Some(word) => word
                .trim()
                .parse::<f32>()
                .map_err(|_| wrong("a strength is a number, such as <lora:name:0.8>")),
        };
        // As the web UI has it: one strength is both, of two the text encoders' comes first.
        let first = strength(1.0)?;
        let second = strength(f32::NAN)?;
        loras.push(match second.is_nan() {
            true => lora(name, (first, first))?,
            false => lora(name, (second, first))?,
        });
        text.push_str(&rest[..start]);
        rest = &rest[start + end + 1..];
    }
    text.push_str(rest);
    let text = match loras.is_empty() {
        true => text,
        false => text.trim().to_owned(),
    };
    Ok((text, loras))
}

fn lora(name: &str, (strength, text_strength): (f32, f32)) -> Result<LoraUse> {
    for strength in [strength, text_strength] {
        if !(-STRENGTH_MAX..=STRENGTH_MAX).contains(&strength) {
            let problem = format!(
                "has '{name}' with a strength of {strength}; it must be from -{STRENGTH_MAX} to {STRENGTH_MAX}"
            );
            return Err(Error::request("loras", problem));
        }
    }
    Ok(LoraUse {
        name: name.to_owned(),
        strength,
        text_strength,
    })
}

/// Those of the list, then those of the tags.
///
/// # Errors
/// [`Error::Request`].
pub(super) fn read(list: &[Value], tags: Vec<LoraUse>) -> Result<Vec<LoraUse>> {
    let mut loras = Vec::with_capacity(list.len() + tags.len());
    for one in list {
        let mut fields = Fields::of(one)?;
        let name = fields.text("name", NAME_BYTES_MAX)?.unwrap_or("");
        if name.is_empty() {
            return Err(Error::request("loras", "has one without a name"));
        }
        let strength = fields.number("strength", -STRENGTH_MAX..=STRENGTH_MAX)?;
        let strength = strength.unwrap_or(1.0);
        let text = fields.number("text_strength", -STRENGTH_MAX..=STRENGTH_MAX)?;
        fields.done()?;
        loras.push(lora(name, (strength, text.unwrap_or(strength)))?);
    }
    loras.extend(tags);
    Ok(loras)
}

/// As a request has them.
pub(super) fn json(loras: &[LoraUse]) -> Value {
    let one = |lora: &LoraUse| json!({ "name": lora.name, "strength": lora.strength, "text_strength": lora.text_strength });
    loras.iter().map(one).collect()
}

/// What the field means and may be.
pub(super) fn schema(most: usize) -> Value {
    let strength = |title: &str| json!({ "type": ["number", "null"], "minimum": -STRENGTH_MAX, "maximum": STRENGTH_MAX, "title": title });
    json!({
        "type": ["array", "null"],
        "title": "LoRAs",
        "maxItems": most,
        "items": {
            "type": "object",
            "additionalProperties": false,
            "required": ["name"],
            "properties": {
                "name": { "type": "string", "maxLength": NAME_BYTES_MAX, "title": "Name" },
                "strength": strength("Strength"),
                "text_strength": strength("Strength in the text encoders"),
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_leave_the_prompt_and_become_loras() {
        let (text, loras) = tagged("a cat <lora:ink:0.5>, <lora:big eyes>").unwrap();
        assert_eq!(text, "a cat ,");
        assert_eq!(loras[0], lora("ink", (0.5, 0.5)).unwrap());
        assert_eq!(loras[1], lora("big eyes", (1.0, 1.0)).unwrap());
        let (text, loras) = tagged("<lora:x:0.2:0.7> y").unwrap();
        assert_eq!(
            (&text[..], loras[0].strength, loras[0].text_strength),
            ("y", 0.7, 0.2)
        );
        assert_eq!(tagged("a < b <lora: c").unwrap().0, "a < b <lora: c");
        for wrong in ["<lora:>", "<lora:x:much>", "<lora:x:1e9>"] {
            assert!(tagged(wrong).is_err(), "{wrong}");
        }
    }
}
