//! What may be written in a setting, and how it is read from a file, a variable or an argument.

use std::time::Duration;

use lowtide_core::Bytes;
use lowtide_core::lifecycle::KeepAlive;
use serde_json::{Value, json};

use crate::gpu::Devices;

/// What may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Anything but nothing.
    Text,
    /// auto, cpu, or some of cuda:N.
    Device,
    /// A file or the URL of a server; what may be a password in it is never shown.
    Store,
    /// A text that is never shown.
    Secret,
    /// A file or a folder; `~` is the user's.
    Path,
    /// A whole number within bounds.
    Count {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// Bytes: `600MiB`, or a number of them.
    Size,
    /// Bytes, or a share of the memory such as `10%`.
    SizeOrShare,
    /// A time: `90s`, `10m`, `2h`, `7d`, `500ms`, or a number of seconds.
    Time {
        /// Whether it may be `never`.
        never: bool,
    },
    /// `0`, a time, `forever`, `auto`.
    KeepAlive,
    /// One of these.
    Word(&'static [&'static str]),
    /// True or false.
    Flag,
    /// A list of texts; in variables and arguments separated by commas.
    Texts,
    /// A list of folders; in variables and arguments separated as in `PATH`.
    Paths,
    /// A text, a number or a truth value.
    Scalar,
}

/// The word for a time that does not come.
pub(crate) const NEVER: &str = "never";

/// Seconds in 100 years: more is a slip of the pen.
const SECONDS_MAX: f64 = 100.0 * 365.25 * 86_400.0;

/// A whole number.
fn whole(written: &Value, strict: bool) -> Option<u64> {
    match written {
        Value::Number(number) => number.as_u64(),
        Value::String(text) if !strict => text.trim().parse().ok(),
        _ => None,
    }
}

fn is_devices(text: &str) -> bool {
    text.trim().parse::<Devices>().is_ok()
}

impl Kind {
    /// Reads what was written and gives it back in one way of writing: sizes in bytes, times in seconds. `strict` in
    /// files, where numbers, lists and truth values are more than text.
    ///
    /// # Errors
    /// What would be right, as the end of a sentence.
    pub(crate) fn read(self, written: &Value, strict: bool) -> Result<Value, String> {
        let wrong = || match self {
            // What is there instead may be a secret, too, and is not repeated.
            Kind::Secret => format!("is none; {}", self.right()),
            _ => format!("is {}; {}", shown(written), self.right()),
        };
        match self {
            Kind::Text | Kind::Store | Kind::Secret => match written {
                Value::String(text) if !text.trim().is_empty() => Ok(json!(text.trim())),
                _ => Err(wrong()),
            },
            Kind::Path => match written {
                Value::String(text) if !text.is_empty() => Ok(json!(text)),
                _ => Err(wrong()),
            },
            Kind::Count { min, max } => whole(written, strict)
                .filter(|count| (min..=max).contains(count))
                .map(|count| json!(count))
                .ok_or_else(wrong),
            Kind::Size => size(written)
                .map(|Bytes(bytes)| json!(bytes))
                .ok_or_else(wrong),
            Kind::SizeOrShare => match share(written) {
                Some(percent) => Ok(json!(format!("{percent}%"))),
                None => size(written)
                    .map(|Bytes(bytes)| json!(bytes))
                    .ok_or_else(wrong),
            },
            Kind::Time { never } => match written {
                Value::String(text) if never && text.trim() == NEVER => Ok(json!(NEVER)),
                _ => seconds(written)
                    .map(|seconds| json!(seconds))
                    .ok_or_else(wrong),
            },
            Kind::KeepAlive => keep_alive(written)
                .map(|keep| json!(keep.to_string()))
                .ok_or_else(wrong),
            Kind::Device => match written {
                Value::String(text) if is_devices(text) => Ok(json!(text.trim())),
                _ => Err(wrong()),
            },
            Kind::Word(words) => match written {
                Value::String(text) if words.contains(&text.trim()) => Ok(json!(text.trim())),
                _ => Err(wrong()),
            },
            Kind::Flag => match (written, written.as_str().map(str::trim)) {
                (Value::Bool(flag), _) => Ok(json!(flag)),
                (_, Some("true" | "yes" | "on" | "1")) if !strict => Ok(json!(true)),
                (_, Some("false" | "no" | "off" | "0")) if !strict => Ok(json!(false)),
                _ => Err(wrong()),
            },
            Kind::Texts => texts(written, strict, |text| {
                text.split(',').map(str::to_owned).collect()
            })
            .ok_or_else(wrong),
            Kind::Paths => texts(written, strict, |text| {
                std::env::split_paths(text)
                    .map(|path| path.to_string_lossy().into_owned())
                    .collect()
            })
            .ok_or_else(wrong),
            Kind::Scalar => match written {
                Value::String(_) | Value::Number(_) | Value::Bool(_) => Ok(written.clone()),
                _ => Err(wrong()),
            },
        }
    }

    /// What would be right.
    fn right(self) -> String {
        match self {
            Kind::Text => "write a text in quotes".to_owned(),
            Kind::Store => "write a file or a URL in quotes".to_owned(),
            Kind::Secret => "write whsec_ and base64 in quotes".to_owned(),
            Kind::Path => "write a path in quotes".to_owned(),
            Kind::Count { min, max } => format!("write a whole number from {min} to {max}"),
            Kind::Size => "write a size such as \"600MiB\" or \"8GiB\"".to_owned(),
            Kind::SizeOrShare => {
                "write a size such as \"1GiB\" or a share such as \"10%\"".to_owned()
            }
            Kind::Time { never: false } => {
                "write a time such as \"30s\", \"10m\" or \"2h\"".to_owned()
            }
            Kind::Time { never: true } => {
                "write a time such as \"90s\", \"10m\" or \"7d\", or \"never\"".to_owned()
            }
            Kind::KeepAlive => {
                "write 0, a time such as \"90s\", \"10m\" or \"2h\", \"forever\" or \"auto\""
                    .to_owned()
            }
            Kind::Device => "write auto, cpu, or GPUs such as cuda:0 or cuda:0,cuda:1".to_owned(),
            Kind::Word(words) => format!("write {}", words.join(", ")),
            Kind::Flag => "write true or false".to_owned(),
            Kind::Texts => "write a list of texts such as [\"one\", \"two\"]".to_owned(),
            Kind::Paths => "write a list of folders such as [\"~/models\"]".to_owned(),
            Kind::Scalar => "write a text, a number, true or false".to_owned(),
        }
    }

    /// A value for people, as it could be written.
    pub(crate) fn show(self, value: &Value) -> String {
        match (self, value) {
            (Kind::Size | Kind::SizeOrShare, Value::Number(number)) => number
                .as_u64()
                .map_or_else(|| number.to_string(), |bytes| Bytes(bytes).to_string()),
            (Kind::Time { .. }, Value::Number(seconds)) => {
                format!("{}s", seconds.as_f64().unwrap_or_default())
            }
            (Kind::Store, Value::String(text)) => lowtide_jobs::redacted(text),
            (Kind::Secret, _) => "***".to_owned(),
            (_, Value::String(text)) => text.clone(),
            (_, Value::Array(items)) => {
                let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
                match items.is_empty() {
                    true => "none".to_owned(),
                    false => items.join(", "),
                }
            }
            (_, other) => other.to_string(),
        }
    }
}

impl Kind {
    /// A value for programs: as it is, but for what nobody else should know.
    pub(crate) fn told(self, value: &Value) -> Value {
        match self {
            Kind::Store | Kind::Secret => json!(self.show(value)),
            _ => value.clone(),
        }
    }
}

/// What was written, short enough for a message.
fn shown(written: &Value) -> String {
    const CHARS_MAX: usize = 60;
    let text = written.to_string();
    match text.chars().count() > CHARS_MAX {
        true => format!("{}…", text.chars().take(CHARS_MAX).collect::<String>()),
        false => text,
    }
}

fn size(written: &Value) -> Option<Bytes> {
    match written {
        Value::Number(number) => number.as_u64().map(Bytes),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// Percent of the memory, up to 90.
fn share(written: &Value) -> Option<f64> {
    let percent: f64 = written
        .as_str()?
        .trim()
        .strip_suffix('%')?
        .trim()
        .parse()
        .ok()?;
    (0.0..=90.0).contains(&percent).then_some(percent)
}

fn seconds(written: &Value) -> Option<f64> {
    let seconds = match written {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => {
            let text = text.trim();
            let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let scale = match &text[digits.len()..] {
                "ms" => 1e-3,
                "" | "s" => 1.0,
                "m" | "min" => 60.0,
                "h" => 3_600.0,
                "d" => 86_400.0,
                _ => return None,
            };
            digits.trim().parse::<f64>().ok()? * scale
        }
        _ => return None,
    };
    (0.0..=SECONDS_MAX).contains(&seconds).then_some(seconds)
}

fn keep_alive(written: &Value) -> Option<KeepAlive> {
    match written {
        Value::Number(number) => number.to_string().parse().ok(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn texts(written: &Value, strict: bool, split: impl Fn(&str) -> Vec<String>) -> Option<Value> {
    let items: Vec<String> = match written {
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<_>>()?,
        Value::String(text) if !strict => split(text),
        _ => return None,
    };
    let items = items
        .iter()
        .map(|item| item.trim())
        .filter(|item| !item.is_empty());
    Some(items.collect())
}

/// A time as it was read; `None` for never.
pub(crate) fn time(value: &Value) -> Option<Duration> {
    value.as_f64().map(Duration::from_secs_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_in_many_ways_of_writing() {
        let time = Kind::Time { never: true };
        for (kind, written, strict, read) in [
            (Kind::Size, json!("1MiB"), true, json!(1 << 20)),
            (Kind::Size, json!(4096), true, json!(4096)),
            (Kind::SizeOrShare, json!(" 10 %"), true, json!("10%")),
            (time, json!("10m"), true, json!(600.0)),
            (time, json!(1.5), true, json!(1.5)),
            (time, json!("250ms"), true, json!(0.25)),
            (time, json!("never"), true, json!("never")),
            (Kind::KeepAlive, json!(-1), true, json!("forever")),
            (Kind::KeepAlive, json!("10m"), true, json!("600s")),
            (Kind::Flag, json!("on"), false, json!(true)),
            (Kind::Texts, json!("a, b,"), false, json!(["a", "b"])),
            (Kind::Count { min: 0, max: 9 }, json!("7"), false, json!(7)),
        ] {
            assert_eq!(kind.read(&written, strict), Ok(read), "{kind:?} {written}");
        }
    }

    #[test]
    fn what_is_wrong_is_answered_with_what_is_right() {
        let time = Kind::Time { never: false };
        for (kind, written, says) in [
            (Kind::Size, json!("lots"), "\"lots\"; write a size"),
            (Kind::Size, json!(true), "true; write a size"),
            (Kind::SizeOrShare, json!("95%"), "a share such as"),
            (time, json!("never"), "\"30s\""),
            (time, json!("5 fortnights"), "\"30s\""),
            (time, json!(-1), "\"30s\""),
            (Kind::Count { min: 1, max: 9 }, json!("7"), "from 1 to 9"),
            (Kind::Count { min: 1, max: 9 }, json!(10), "from 1 to 9"),
            (Kind::Flag, json!("true"), "true or false"),
            (Kind::Texts, json!("a,b"), "a list"),
            (Kind::Word(&["keep", "go"]), json!("stay"), "write keep, go"),
            (Kind::Scalar, json!({}), "a number"),
        ] {
            let problem = kind.read(&written, true).unwrap_err();
            assert!(problem.contains(says), "{kind:?}: {problem}");
        }
    }

    #[test]
    fn values_are_shown_as_they_could_be_written() {
        assert_eq!(Kind::Size.show(&json!(1 << 20)), "1.0 MiB");
        assert_eq!(Kind::Time { never: false }.show(&json!(600.0)), "600s");
        assert_eq!(Kind::Texts.show(&json!([])), "none");
    }
}
