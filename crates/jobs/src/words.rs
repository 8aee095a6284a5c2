//! The words of `core` as JSON, and randomness for ids: core itself knows neither.

use std::fmt;
use std::str::FromStr;

use lowtide_core::job::{JobId, Moment};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A job's id that nobody can guess, made at this time.
///
/// # Panics
/// When the operating system has no randomness to give; a guessable id would be worse.
pub fn random_job_id(at: Moment) -> JobId {
    JobId::new(at, random())
}

/// 128 random bits.
pub(crate) fn random() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
    u128::from_be_bytes(bytes)
}

/// What is written and read as its text.
pub(crate) mod text {
    use super::{Deserialize, Deserializer, FromStr, Serializer, fmt};

    pub(crate) fn serialize<T: fmt::Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T: FromStr<Err: fmt::Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Declares how an optional value of a foreign type is written: through a wrapper that says how it is without `Option`.
macro_rules! optional {
    ($module:ident, $type:ty, $with:literal) => {
        pub(crate) mod $module {
            use serde::{Deserialize, Deserializer, Serialize, Serializer};

            #[derive(Serialize, Deserialize)]
            struct Wrapped(#[serde(with = $with)] $type);

            pub(crate) fn serialize<S: Serializer>(
                value: &Option<$type>,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                value.clone().map(Wrapped).serialize(serializer)
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Option<$type>, D::Error> {
                let wrapped = Option::<Wrapped>::deserialize(deserializer)?;
                Ok(wrapped.map(|Wrapped(value)| value))
            }
        }
    };
}

optional!(job_id_option, super::JobId, "crate::words::text");
optional!(moment_option, super::Moment, "crate::words::moment");
optional!(
    priority_option,
    lowtide_core::job::Priority,
    "crate::words::text"
);
optional!(
    after_job_option,
    lowtide_core::lifecycle::AfterJob,
    "crate::words::AfterJobWord"
);
optional!(
    keep_alive_option,
    lowtide_core::lifecycle::KeepAlive,
    "crate::words::KeepAliveWord"
);

/// A moment is its milliseconds.
pub(crate) mod moment {
    use super::{Deserialize, Deserializer, Moment, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        moment: &Moment,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        moment.0.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Moment, D::Error> {
        u64::deserialize(deserializer).map(Moment)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(
    remote = "lowtide_core::lifecycle::AfterJob",
    rename_all = "snake_case"
)]
pub(crate) enum AfterJobWord {
    Keep,
    Offload,
    Release,
}

#[derive(Serialize, Deserialize)]
#[serde(
    remote = "lowtide_core::lifecycle::KeepAlive",
    rename_all = "snake_case"
)]
pub(crate) enum KeepAliveWord {
    For(std::time::Duration),
    Forever,
    Auto,
}
