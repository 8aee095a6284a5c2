//! JSON beside the weights: configurations and indices, read strictly. A key that stands twice is an error, because
//! two readers would then disagree about what the file says.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::header::is_git_lfs_pointer;
use crate::{Error, Result};

/// The parser's reason, without the place that serde_json appends to it.
pub(crate) fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// UTF-8, and not what git-lfs leaves in place of a file.
pub(crate) fn text(bytes: Vec<u8>, file: &str) -> Result<String> {
    if is_git_lfs_pointer(&bytes) {
        return Err(Error::GitLfsPointer {
            file: file.to_owned(),
        });
    }
    String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to() as u64;
        Error::NotUtf8 {
            file: file.to_owned(),
            offset,
        }
    })
}

/// Reads one JSON value that fills the whole text.
pub(crate) fn parse(text: &str, file: &str) -> Result<Value> {
    let twice = RefCell::new(None);
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = ValueSeed(&twice)
        .deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value));
    parsed.map_err(|e| match twice.take() {
        Some(key) => Error::DuplicateKey {
            file: file.to_owned(),
            key,
        },
        None => Error::Json {
            file: file.to_owned(),
            tensor: None,
            line: e.line(),
            column: e.column(),
            why: reason(&e),
        },
    })
}

/// Holds the key that stood twice, if that is what stopped the parser.
struct ValueSeed<'a>(&'a RefCell<Option<String>>);

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;
    fn deserialize<D: serde::Deserializer<'de>>(
        self,
        json: D,
    ) -> std::result::Result<Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(ValueSeed(self.0))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(ValueSeed(self.0))?;
            if values.contains_key(&key) {
                *self.0.borrow_mut() = Some(key);
                return Err(serde::de::Error::custom("refused"));
            }
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive() {
        let text = r#"{"b": [1, -2, 3.5, null, true], "a": {"x": "ü\n"}}"#;
        let ours = parse(text, "config.json").unwrap();
        assert_eq!(ours, serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(
            ours.to_string(),
            r#"{"b":[1,-2,3.5,null,true],"a":{"x":"ü\n"}}"#,
            "keys keep their order"
        );
    }

    #[test]
    fn a_key_twice_is_refused_at_any_depth() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"x":[{"a":1,"b":2,"a":3}]}"#,
            r#"{"a":1,"\u0061":2}"#,
        ] {
            let error = parse(text, "config.json").unwrap_err();
            assert!(
                matches!(&error, Error::DuplicateKey { key, .. } if key == "a"),
                "{text}: {error}"
            );
            assert!(
                error
                    .to_string()
                    .starts_with("config.json: 'a' stands there twice"),
                "{error}"
            );
        }
    }

    #[test]
    fn broken_text_is_told_with_its_place() {
        let error = parse("{\n  \"a\": 1,\n  oops\n}", "config.json").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("config.json: broken JSON at line 3, column 3"),
            "{error}"
        );
        assert!(
            parse("{} {}", "config.json").is_err(),
            "a second value is not ignored"
        );
        assert!(parse("", "config.json").is_err());
        let deep = "[".repeat(100_000);
        assert!(
            matches!(parse(&deep, "config.json"), Err(Error::Json { .. })),
            "depth is an error, not a crash"
        );
    }

    #[test]
    fn pointers_and_bad_bytes_are_recognised() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n".to_vec();
        assert!(matches!(
            text(pointer, "config.json"),
            Err(Error::GitLfsPointer { .. })
        ));
        let error = text(b"{\"a\": \"\xff\"}".to_vec(), "config.json").unwrap_err();
        assert!(matches!(error, Error::NotUtf8 { offset: 7, .. }), "{error}");
    }
}
