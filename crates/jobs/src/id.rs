//! Names of artifacts and workers. Those of jobs are core's.

use std::fmt;
use std::str::FromStr;

use lowtide_core::job::{JobId, Moment, NotAnId};
use serde::{Deserialize, Serialize};

use crate::words;

/// A finished file's name: 48 bits of time and 80 random ones, written as a job's id is. Only such a text is ever part
/// of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ArtifactId(#[serde(with = "words::text")] JobId);

impl ArtifactId {
    /// One that nobody can guess, made at this time.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    pub fn random(at: Moment) -> ArtifactId {
        ArtifactId(JobId::new(at, words::random()))
    }

    /// The one with this time and the lower 80 of these bits.
    pub fn new(at: Moment, random: u128) -> ArtifactId {
        ArtifactId(JobId::new(at, random))
    }

    /// When it was made.
    pub fn made_at(self) -> Moment {
        Moment(u64::try_from(self.0.0 >> 80).expect("48 bits are left"))
    }

    /// Its 16 bytes, which sort as its text does.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.0.0.to_be_bytes()
    }

    /// The id of these bytes.
    pub(crate) fn from_bytes(bytes: [u8; 16]) -> ArtifactId {
        ArtifactId(JobId(u128::from_be_bytes(bytes)))
    }
}

impl fmt::Display for ArtifactId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for ArtifactId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<ArtifactId, NotAnId> {
        text.parse().map(ArtifactId)
    }
}

/// A worker's name, unique among the workers of a store: 1 to 64 of `a-z A-Z 0-9 . _ : -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId(String);

/// Longest name of a worker, characters.
const WORKER_ID_LEN_MAX: usize = 64;

/// Text that names no worker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a worker's name: 1 to {WORKER_ID_LEN_MAX} of a-z A-Z 0-9 . _ : - are needed")]
pub struct NotAWorkerId;

impl WorkerId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for WorkerId {
    type Error = NotAWorkerId;

    fn try_from(text: String) -> Result<WorkerId, NotAWorkerId> {
        let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"._:-".contains(&letter);
        if (1..=WORKER_ID_LEN_MAX).contains(&text.len()) && text.bytes().all(plain) {
            Ok(WorkerId(text))
        } else {
            Err(NotAWorkerId)
        }
    }
}

impl FromStr for WorkerId {
    type Err = NotAWorkerId;

    fn from_str(text: &str) -> Result<WorkerId, NotAWorkerId> {
        WorkerId::try_from(text.to_owned())
    }
}

impl From<WorkerId> for String {
    fn from(worker: WorkerId) -> String {
        worker.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_has_one_text_that_is_no_path() {
        let id = ArtifactId::random(Moment(1_001));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.made_at(), Moment(1_001));
        assert_eq!(ArtifactId::from_bytes(id.to_bytes()), id);
        assert_ne!(ArtifactId::random(Moment(1_001)), id);
        for text in ["", "../../etc/passwd", "0000000000000000000000000/"] {
            assert_eq!(text.parse::<ArtifactId>(), Err(NotAnId), "{text}");
        }
    }

    #[test]
    fn a_worker_has_a_plain_name() {
        for text in ["", "a/b", "a b", &"a".repeat(65)] {
            assert_eq!(text.parse::<WorkerId>(), Err(NotAWorkerId), "{text}");
        }
        let name = "host-1:cuda.0";
        assert_eq!(name.parse::<WorkerId>().unwrap().as_str(), name);
    }
}
