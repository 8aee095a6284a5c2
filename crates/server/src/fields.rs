//! Reads requests field by field, so that each complaint names its field, and a misspelt one is found.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::refusal::Refusal;

/// An object of which fields are taken one by one. A field that is null is as good as left out.
pub(crate) struct Fields {
    fields: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// The fields of a body.
    pub(crate) fn of(body: Value) -> Result<Fields, Refusal> {
        match body {
            Value::Object(fields) => Ok(Fields {
                fields,
                known: Vec::new(),
            }),
            other => Err(Refusal::Invalid {
                field: None,
                problem: format!("the body has to be an object, not {}", kind_of(&other)),
            }),
        }
    }

    /// The field as it is.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        // The order of the rest does not matter.
        self.fields
            .swap_remove(name)
            .filter(|value| !value.is_null())
    }

    /// A text.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a text", &other)),
        }
    }

    /// A word of a list.
    pub(crate) fn word<T: FromStr<Err: Display>>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, Refusal> {
        parsed(self.text(name)?, |problem| Refusal::invalid(name, problem))
    }

    /// A whole number.
    pub(crate) fn whole(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let (from, to) = (range.start(), range.end());
        // 20.0 is a whole number too, to a client that knows only one kind of number.
        let whole = value.as_u64().or_else(|| {
            let float = value.as_f64()?;
            (float.fract() == 0.0 && (0.0..9e15).contains(&float)).then_some(float as u64)
        });
        match whole {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(wrong(
                name,
                &format!("a whole number from {from} to {to}"),
                &value,
            )),
        }
    }

    /// A number.
    pub(crate) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let (from, to) = (range.start(), range.end());
                Err(wrong(
                    name,
                    &format!("a number from {from} to {to}"),
                    &value,
                ))
            }
        }
    }

    /// Yes or no.
    pub(crate) fn flag(&mut self, name: &'static str) -> Result<Option<bool>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    /// Nothing else may be there.
    pub(crate) fn done(self) -> Result<(), Refusal> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(stranger) => Err(Refusal::invalid(
                stranger.as_str(),
                format!("there is no such field; there is {}", self.known.join(", ")),
            )),
        }
    }
}

/// What is read from text, or why it cannot be.
pub(crate) fn parsed<T: FromStr<Err: Display>>(
    text: Option<String>,
    refuse: impl FnOnce(String) -> Refusal,
) -> Result<Option<T>, Refusal> {
    let read = text.map(|text| text.parse()).transpose();
    read.map_err(|error: T::Err| refuse(error.to_string()))
}

/// What was expected, and what was found.
pub(crate) fn wrong(field: &str, expected: &str, found: &Value) -> Refusal {
    let found = match found {
        Value::Number(number) => number.to_string(),
        other => kind_of(other).to_owned(),
    };
    Refusal::invalid(field, format!("{expected} is needed, not {found}"))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_complaint_names_its_field_and_what_was_found() {
        let mut fields =
            Fields::of(json!({ "n": 11, "steps": 20.0, "size": null, "widht": 3 })).unwrap();
        let refusal = fields.whole("n", 1..=10).unwrap_err();
        assert_eq!(
            refusal.message(),
            "n: a whole number from 1 to 10 is needed, not 11"
        );
        assert_eq!(fields.whole("steps", 1..=100), Ok(Some(20)));
        assert_eq!(fields.text("size"), Ok(None));
        let refusal = fields.done().unwrap_err();
        assert_eq!(refusal.field(), Some("widht"));
        assert!(Fields::of(json!([])).is_err());
    }
}
