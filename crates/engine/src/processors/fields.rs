//! Reads the fields of a request, so that every complaint names its field and says what would be right.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// A request that is being read. A field that is `null` counts as left out, since many clients write that.
pub(super) struct Fields<'a> {
    all: &'a Map<String, Value>,
    known: BTreeSet<&'static str>,
}

impl<'a> Fields<'a> {
    /// The fields of `request`.
    ///
    /// # Errors
    /// [`Error::Request`] when it is no object; as all errors of this type.
    pub(super) fn of(request: &'a Value) -> Result<Fields<'a>> {
        let all = request
            .as_object()
            .ok_or_else(|| Error::request("request", "must be a JSON object"))?;
        Ok(Fields {
            all,
            known: BTreeSet::new(),
        })
    }

    fn get(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.insert(name);
        self.all.get(name).filter(|value| !value.is_null())
    }

    /// A whole number between two bounds.
    pub(super) fn whole(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<u64>,
    ) -> Result<Option<u64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        // 512.0 is what some languages write for 512.
        let exact = |x: &f64| x.fract() == 0.0 && (0.0..9e15).contains(x);
        let number = value
            .as_u64()
            .or_else(|| value.as_f64().filter(exact).map(|x| x as u64));
        match number.filter(|number| bounds.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(
                name,
                value,
                &format!("a whole number from {} to {}", bounds.start(), bounds.end()),
            )),
        }
    }

    /// A number between two bounds.
    pub(super) fn number(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<f32>,
    ) -> Result<Option<f32>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = value.as_f64().map(|number| number as f32);
        match number.filter(|number| bounds.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let (low, high) = (bounds.start(), bounds.end());
                Err(wrong(
                    name,
                    value,
                    &format!("a number from {low} to {high}"),
                ))
            }
        }
    }

    /// A text of at most `bytes_max` bytes.
    pub(super) fn text(&mut self, name: &'static str, bytes_max: usize) -> Result<Option<&'a str>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let Some(text) = value.as_str() else {
            return Err(wrong(name, value, "a text"));
        };
        if text.len() > bytes_max {
            let problem = format!("has {} bytes; at most {bytes_max} are read", text.len());
            return Err(Error::request(name, problem));
        }
        Ok(Some(text))
    }

    /// One of some words.
    pub(super) fn word(
        &mut self,
        name: &'static str,
        words: &[&'static str],
    ) -> Result<Option<&'static str>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let found = words.iter().find(|word| value.as_str() == Some(**word));
        match found {
            Some(word) => Ok(Some(word)),
            None => Err(wrong(name, value, &format!("one of {}", words.join(", ")))),
        }
    }

    /// Refuses fields that mean nothing here, because of what another one says or does not say.
    pub(super) fn none_of(&self, names: &[&'static str], why: &str) -> Result<()> {
        let said = |name: &&&str| self.all.get(**name).is_some_and(|value| !value.is_null());
        match names.iter().find(said) {
            None => Ok(()),
            Some(name) => Err(Error::request(*name, format!("means nothing {why}"))),
        }
    }

    /// A whole number between two bounds that may be below 0.
    pub(super) fn signed(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<i64>,
    ) -> Result<Option<i64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let exact = |x: &f64| x.fract() == 0.0 && x.abs() < 9e15;
        let number = value
            .as_i64()
            .or_else(|| value.as_f64().filter(exact).map(|x| x as i64));
        match number.filter(|number| bounds.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let (low, high) = (bounds.start(), bounds.end());
                let right = format!("a whole number from {low} to {high}");
                Err(wrong(name, value, &right))
            }
        }
    }

    /// A list of at most `most` things.
    pub(super) fn list(&mut self, name: &'static str, most: usize) -> Result<&'a [Value]> {
        let Some(value) = self.get(name) else {
            return Ok(&[]);
        };
        match value.as_array() {
            Some(list) if list.len() <= most => Ok(list),
            _ => Err(wrong(name, value, &format!("a list of at most {most}"))),
        }
    }

    /// Refuses a field that nobody asked for.
    pub(super) fn done(self) -> Result<()> {
        match self.all.keys().find(|key| !self.known.contains(&key[..])) {
            None => Ok(()),
            Some(unknown) => {
                let known: Vec<&str> = self.known.into_iter().collect();
                let problem = format!("is not a field here; there are {}", known.join(", "));
                let name: String = unknown.chars().take(NAME_CHARS_MAX).collect();
                Err(Error::request(name, problem))
            }
        }
    }
}

/// Characters of a client's own words that are repeated to it.
const NAME_CHARS_MAX: usize = 64;

fn wrong(name: &'static str, value: &Value, right: &str) -> Error {
    let shown: String = value.to_string().chars().take(NAME_CHARS_MAX).collect();
    Error::request(name, format!("is {shown}; it must be {right}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(request: &Value) -> Result<(Option<u64>, Option<f32>)> {
        let mut fields = Fields::of(request)?;
        let read = (
            fields.whole("width", 16..=64)?,
            fields.number("scale", 0.0..=1.0)?,
        );
        fields.text("prompt", 4)?;
        if fields.word("quality", &["exact", "auto"])?.is_none() {
            fields.none_of(&["prompt"], "without 'quality'; leave it out")?;
        }
        fields.done()?;
        Ok(read)
    }

    #[test]
    fn what_is_left_out_or_null_is_none() {
        assert_eq!(read(&json!({})).unwrap(), (None, None));
        assert_eq!(
            read(&json!({"width": null, "scale": null})).unwrap(),
            (None, None)
        );
        assert_eq!(
            read(&json!({"width": 32.0, "scale": 1})).unwrap(),
            (Some(32), Some(1.0))
        );
    }

    #[test]
    fn complaints_name_the_field() {
        for (request, says) in [
            (json!([]), "request must be a JSON object"),
            (
                json!({"width": 15}),
                "width is 15; it must be a whole number from 16 to 64",
            ),
            (json!({"width": -1}), "width is -1; it"),
            (json!({"width": 16.5}), "width is 16.5; it"),
            (json!({"width": 1e300}), "width is 1e+300; it"),
            (json!({"width": "32"}), "width is \"32\"; it"),
            (
                json!({"scale": 2}),
                "scale is 2; it must be a number from 0 to 1",
            ),
            (json!({"prompt": 1}), "prompt is 1; it must be a text"),
            (
                json!({"prompt": "x"}),
                "prompt means nothing without 'quality'; leave it out",
            ),
            (
                json!({"prompt": "12345"}),
                "prompt has 5 bytes; at most 4 are read",
            ),
            (
                json!({"quality": "best"}),
                "quality is \"best\"; it must be one of exact, auto",
            ),
            (
                json!({"hight": 1}),
                "hight is not a field here; there are prompt, quality, scale, width",
            ),
        ] {
            let text = read(&request).unwrap_err().to_string();
            assert!(text.starts_with(says), "{text}");
        }
    }
}
