//! What a worker does, in lines.

use std::sync::Arc;

use serde_json::{Map, Value};

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For finding out why: every decision.
    Debug,
    /// What a person watching wants to see: jobs and moves.
    Info,
    /// Something went wrong and was dealt with.
    Warn,
    /// Something went wrong.
    Error,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// How much it matters.
    pub level: Level,
    /// The sentence.
    pub text: String,
    /// Its numbers and names, for programs.
    pub fields: Map<String, Value>,
}

/// Takes lines. Called from several threads.
#[derive(Clone)]
pub struct Log(Arc<dyn Fn(Line) + Send + Sync>);

impl Log {
    /// Lines go to `take`.
    pub fn new(take: impl Fn(Line) + Send + Sync + 'static) -> Log {
        Log(Arc::new(take))
    }

    /// Lines go nowhere.
    pub fn none() -> Log {
        Log::new(|_| {})
    }

    pub(crate) fn say(&self, level: Level, text: impl Into<String>, fields: Value) {
        let fields = match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        (self.0)(Line {
            level,
            text: text.into(),
            fields,
        });
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Log")
    }
}
