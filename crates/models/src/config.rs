//! Reads a component's config.json: every value bounded, every complaint naming component and key.

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::{Error, Result};

/// One component's configuration.
#[derive(Clone, Copy, Debug)]
pub struct ConfigReader<'a> {
    component: &'static str,
    value: &'a Value,
}

impl<'a> ConfigReader<'a> {
    /// Reads `value`, the config.json of `component`.
    pub fn new(component: &'static str, value: &'a Value) -> ConfigReader<'a> {
        ConfigReader { component, value }
    }

    /// An error about `key`.
    pub fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::config(self.component, key, problem)
    }

    /// The value under `key`; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// The object under `key`, or an empty one.
    pub fn object(&self, key: &str) -> ConfigReader<'a> {
        static NULL: Value = Value::Null;
        ConfigReader {
            component: self.component,
            value: self.get(key).unwrap_or(&NULL),
        }
    }

    /// A whole number within `range`; without `default` it must be there.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn size(
        &self,
        key: &str,
        default: Option<usize>,
        range: RangeInclusive<usize>,
    ) -> Result<usize> {
        let Some(value) = self.get(key) else {
            return default.ok_or_else(|| self.error(key, "is missing"));
        };
        self.bounded(key, value, range)
    }

    fn bounded(&self, key: &str, value: &Value, range: RangeInclusive<usize>) -> Result<usize> {
        let number = value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok());
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                self.error(
                    key,
                    format!(
                        "is {value}, not a whole number from {} to {}",
                        range.start(),
                        range.end()
                    ),
                )
            })
    }

    /// A list of 1 to `length_max` whole numbers, each within `range`.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn sizes(
        &self,
        key: &str,
        default: Option<&[usize]>,
        length_max: usize,
        range: RangeInclusive<usize>,
    ) -> Result<Vec<usize>> {
        let Some(value) = self.get(key) else {
            return default
                .map(<[usize]>::to_vec)
                .ok_or_else(|| self.error(key, "is missing"));
        };
        let list = value
            .as_array()
            .filter(|list| (1..=length_max).contains(&list.len()));
        let list = list.ok_or_else(|| {
            self.error(
                key,
                format!("is {value}, not a list of 1 to {length_max} numbers"),
            )
        })?;
        list.iter()
            .map(|item| self.bounded(key, item, range.clone()))
            .collect()
    }

    /// A finite number.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        let Some(value) = self.get(key) else {
            return default.ok_or_else(|| self.error(key, "is missing"));
        };
        let number = value.as_f64().filter(|number| number.is_finite());
        number.ok_or_else(|| self.error(key, format!("is {value}, not a number")))
    }

    /// True or false.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.error(key, format!("is {value}, not true or false"))),
        }
    }

    /// A word.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn word(&self, key: &str, default: &'static str) -> Result<&'a str> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_str()
                .ok_or_else(|| self.error(key, format!("is {value}, not a word"))),
        }
    }

    /// A word that must be `only`, the one choice that is built.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn only(&self, key: &str, only: &'static str) -> Result<()> {
        let word = self.word(key, only)?;
        if word == only {
            Ok(())
        } else {
            Err(self.error(key, format!("is '{word}'; only '{only}' is supported")))
        }
    }
}
