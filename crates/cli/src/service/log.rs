//! What the service says while it runs: lines for people or JSON for programs, on standard error.

use std::io::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lowtide_core::job::Moment;
use serde_json::{Map, Value, json};

use super::settings::LogSettings;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Every decision and why.
    Debug,
    /// What a person who watches wants to see.
    Info,
    /// Something went wrong and was dealt with.
    Warn,
    /// Something went wrong.
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }

    fn of(name: &str) -> Level {
        match name {
            "debug" => Level::Debug,
            "warn" => Level::Warn,
            "error" => Level::Error,
            _ => Level::Info,
        }
    }
}

/// Writes lines.
#[derive(Clone, Debug)]
pub(crate) struct Logger {
    json: bool,
    least: Level,
    /// Who speaks, where several do.
    name: Option<Arc<str>>,
}

impl Logger {
    /// One that says what the settings ask for.
    pub(crate) fn new(settings: LogSettings) -> Logger {
        Logger {
            json: settings.json,
            least: match (settings.debug, settings.quiet) {
                (true, _) => Level::Debug,
                (_, true) => Level::Warn,
                _ => Level::Info,
            },
            name: None,
        }
    }

    /// One whose lines another process reads: JSON, whatever the settings say.
    pub(crate) fn for_parent(settings: LogSettings) -> Logger {
        let plain = Logger::new(settings);
        Logger {
            json: true,
            ..plain
        }
    }

    /// The same, in the name of somebody.
    pub(crate) fn named(&self, name: &str) -> Logger {
        Logger {
            name: Some(name.into()),
            ..self.clone()
        }
    }

    /// Says something.
    pub(crate) fn say(&self, level: Level, text: &str) {
        self.say_with(level, text, Map::new());
    }

    /// Says what a person who watches wants to see.
    pub(crate) fn info(&self, text: &str) {
        self.say(Level::Info, text);
    }

    /// Says something, with its numbers and names for programs.
    pub(crate) fn say_with(&self, level: Level, text: &str, fields: Map<String, Value>) {
        if level >= self.least {
            self.say_always(level, text, fields);
        }
    }

    /// As [`Logger::say_with`], whatever the settings leave out.
    pub(crate) fn say_always(&self, level: Level, text: &str, fields: Map<String, Value>) {
        let line = match self.json {
            true => json_line(now(), level, self.name.as_deref(), (text, fields)),
            false => text_line(now(), level, self.name.as_deref(), text),
        };
        // Where nobody listens, nobody is told. One write, so that lines of several threads do not mix.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }

    /// Passes on a line of a child: what its logger wrote, or anything else.
    pub(crate) fn pass_on(&self, line: &str) {
        let told = serde_json::from_str::<Map<String, Value>>(line).ok();
        let told = told.and_then(|mut fields| {
            let text = fields.remove("text")?.as_str()?.to_owned();
            let level = Level::of(fields.remove("level")?.as_str()?);
            fields.remove("at");
            Some((level, text, fields))
        });
        match told {
            Some((level, text, fields)) => self.say_with(level, &text, fields),
            None if line.trim().is_empty() => {}
            None => self.say(Level::Warn, line),
        }
    }
}

/// The present moment.
pub(crate) fn now() -> Moment {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Moment(since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }))
}

/// The day of a moment, in UTC.
pub(crate) fn day(at: Moment) -> String {
    let ([year, month, day], _) = at.calendar();
    format!("{year:04}-{month:02}-{day:02}")
}

fn text_line(at: Moment, level: Level, name: Option<&str>, text: &str) -> String {
    let (_, [hour, minute, second]) = at.calendar();
    let name = name.map_or_else(String::new, |name| format!("{name}  "));
    let mark = match level {
        Level::Debug | Level::Info => "",
        Level::Warn => "warning: ",
        Level::Error => "error: ",
    };
    format!("{hour:02}:{minute:02}:{second:02}  {name}{mark}{text}\n")
}

fn json_line(
    at: Moment,
    level: Level,
    name: Option<&str>,
    (text, fields): (&str, Map<String, Value>),
) -> String {
    let mut line = Map::new();
    line.insert("at".to_owned(), json!(at.iso()));
    line.insert("level".to_owned(), json!(level.name()));
    if let Some(name) = name {
        line.insert("from".to_owned(), json!(name));
    }
    line.insert("text".to_owned(), json!(text));
    for (key, value) in fields {
        line.entry(key).or_insert(value);
    }
    format!("{}\n", Value::Object(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_childs_line_survives_the_way() {
        let fields = Map::from_iter([("job".to_owned(), json!("a"))]);
        let line = json_line(Moment(0), Level::Warn, None, ("slow", fields));
        let read: Map<String, Value> = serde_json::from_str(&line).unwrap();
        assert_eq!(read["text"], "slow");
        assert_eq!(read["job"], "a");
        assert_eq!(read["at"], "1970-01-01T00:00:00.000Z");
        assert_eq!(Level::of(read["level"].as_str().unwrap()), Level::Warn);
        assert_eq!(
            text_line(Moment(61_000), Level::Warn, Some("cpu"), "slow"),
            "00:01:01  cpu  warning: slow\n"
        );
    }
}
