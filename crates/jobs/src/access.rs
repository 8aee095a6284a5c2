//! Keys to the service: who may ask, and how much.
//!
//! A token has 256 random bits. What is kept of it is its SHA-256: there is nothing to guess, so that a slow sum, as
//! passwords need it, would only slow every request down; and whoever reads the store learns no token from it.

use std::fmt;

use lowtide_core::job::{Moment, Priority};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::artifacts::hex;
use crate::words;

/// What every token begins with, so that programs that look for secrets in files find it.
const PREFIX: &str = "lt_";

/// Digits of the part that names the key.
const ID_LEN: usize = 12;

/// Digits of the part that nobody can guess.
const SECRET_LEN: usize = 64;

/// Longest name of a key, letters.
const NAME_LEN_MAX: usize = 64;

/// What a client shows. It is told once, when it is made, and never written anywhere by us.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The text itself, for whoever is to have it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// How much the holder of a key may ask for. `None` is without a bound of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Requests a minute, counted by each server for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u32>,
    /// Jobs of the key that may wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
    /// Jobs of the key that may run at once, on all workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u64>,
    /// The highest priority its jobs may have.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "words::priority_option"
    )]
    pub priority: Option<Priority>,
}

/// A key, as the store has it: without its token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessKey {
    /// Which one; part of its token, and no secret.
    pub id: String,
    /// Whose it is: the owner of its jobs. Several keys may have one name, as while one is exchanged for another.
    pub name: String,
    /// SHA-256 of the token, 64 hexadecimal digits.
    pub sum: String,
    /// Whether it may see and do everything.
    pub admin: bool,
    /// How much it may ask for.
    #[serde(default)]
    pub limits: Limits,
    /// When it was made.
    #[serde(with = "words::moment")]
    pub made: Moment,
    /// By whom.
    pub made_by: String,
    /// From then on it opens nothing.
    #[serde(default, with = "words::moment_option")]
    pub ends: Option<Moment>,
    /// When it was revoked.
    #[serde(default, with = "words::moment_option")]
    pub revoked: Option<Moment>,
    /// By whom.
    #[serde(default)]
    pub revoked_by: Option<String>,
}

/// Why a token opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAccess {
    /// It is of no key.
    #[error("this key is not known")]
    Unknown,
    /// Its key was revoked.
    #[error("this key was revoked")]
    Revoked,
    /// Its key was for a time that is over.
    #[error("this key was for a time that is over")]
    Ended,
}

impl AccessKey {
    /// A new key, and its token, which is nowhere else.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    pub fn new(name: &str, made_by: &str, now: Moment) -> (AccessKey, Token) {
        let id = format!("{:032x}", words::random())[..ID_LEN].to_owned();
        let secret = format!("{:032x}{:032x}", words::random(), words::random());
        let token = Token(format!("{PREFIX}{id}_{secret}"));
        let key = AccessKey {
            id,
            name: name.to_owned(),
            sum: sum(&token.0),
            admin: false,
            limits: Limits::default(),
            made: now,
            made_by: made_by.to_owned(),
            ends: None,
            revoked: None,
            revoked_by: None,
        };
        (key, token)
    }

    /// Whether a key may be called so: the name is part of log lines, of metrics and of addresses.
    pub fn is_name(name: &str) -> bool {
        let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"-_.@".contains(&letter);
        (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(plain)
    }

    /// Whether it opens anything now.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, now: Moment) -> Result<(), NoAccess> {
        match (self.revoked, self.ends) {
            (Some(_), _) => Err(NoAccess::Revoked),
            (None, Some(ends)) if now >= ends => Err(NoAccess::Ended),
            (None, _) => Ok(()),
        }
    }
}

/// The key that a text is the token of. How long this takes says nothing about any token: sums are compared, all of
/// their digits, also where no key has the name in the token.
///
/// # Errors
/// Why it opens nothing; that a key was revoked is told to who has its token.
pub fn recognise<'a>(
    keys: &'a [AccessKey],
    text: &str,
    now: Moment,
) -> Result<&'a AccessKey, NoAccess> {
    let shown = sum(text);
    let named = id_of(text).and_then(|id| keys.iter().find(|key| key.id == id));
    // No text has this sum: it is not one of digits.
    let nobody = "-".repeat(shown.len());
    let kept = named.map_or(nobody.as_str(), |key| key.sum.as_str());
    let same = bool::from(kept.as_bytes().ct_eq(shown.as_bytes()));
    let key = named.filter(|_| same).ok_or(NoAccess::Unknown)?;
    key.check(now)?;
    Ok(key)
}

/// The part of a token that names its key, where it is written as tokens are.
fn id_of(text: &str) -> Option<&str> {
    let rest = text.strip_prefix(PREFIX)?;
    let (id, secret) = rest.split_once('_')?;
    (id.len() == ID_LEN && secret.len() == SECRET_LEN).then_some(id)
}

fn sum(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// What became of the jobs of one name since it first had a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Whose jobs.
    pub owner: String,
    /// Jobs accepted.
    pub submitted: u64,
    /// Jobs done.
    pub done: u64,
    /// Jobs failed.
    pub failed: u64,
    /// Jobs cancelled.
    pub cancelled: u64,
    /// Files of the jobs that were done.
    pub artifacts: u64,
    /// Milliseconds that workers had the jobs that are over, all attempts together.
    pub worked_ms: u64,
    /// Jobs that wait now, paused ones included.
    pub waiting: u64,
    /// Jobs that run now, parked ones included.
    pub running: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_its_own_key_until_that_is_revoked_or_over() {
        let (mut mine, token) = AccessKey::new("me", "root", Moment(1));
        let (other, theirs) = AccessKey::new("you", "root", Moment(1));
        assert_ne!((&mine.id, token.reveal()), (&other.id, theirs.reveal()));
        let keys = [mine.clone(), other.clone()];
        let found = recognise(&keys, token.reveal(), Moment(2)).unwrap();
        assert_eq!(found.name, "me");
        let (most, last) = token.reveal().split_at(token.reveal().len() - 1);
        let wrong = format!("{most}{}", if last == "0" { "1" } else { "0" });
        let swapped = token.reveal().replace(&mine.id, &other.id);
        for text in ["", "lt_", "lt__", &wrong, &swapped, &mine.sum, &mine.id] {
            if text == token.reveal() {
                continue;
            }
            let found = recognise(&keys, text, Moment(2));
            assert_eq!(found, Err(NoAccess::Unknown), "{text}");
        }
        mine.ends = Some(Moment(5));
        assert_eq!(mine.check(Moment(4)), Ok(()));
        assert_eq!(mine.check(Moment(5)), Err(NoAccess::Ended));
        mine.revoked = Some(Moment(3));
        let keys = [mine];
        let found = recognise(&keys, token.reveal(), Moment(4));
        assert_eq!(found, Err(NoAccess::Revoked));
        assert_eq!(recognise(&keys, &wrong, Moment(4)), Err(NoAccess::Unknown));
    }

    #[test]
    fn nothing_of_a_token_is_in_what_is_kept_or_printed() {
        let (key, token) = AccessKey::new("me", "root", Moment(1));
        let secret = token.reveal().rsplit('_').next().unwrap();
        let kept = serde_json::to_string(&key).unwrap();
        for shown in [kept.clone(), format!("{key:?}"), format!("{token:?}")] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert_eq!(serde_json::from_str::<AccessKey>(&kept).unwrap(), key);
        assert_eq!(secret.len(), SECRET_LEN);
    }

    #[test]
    fn a_name_is_plain() {
        for name in ["ci", "anna@studio", "a-b_c.1"] {
            assert!(AccessKey::is_name(name), "{name}");
        }
        let long = "a".repeat(65);
        for name in ["", "a b", "a\n", "a\"b", "ä", long.as_str()] {
            assert!(!AccessKey::is_name(name), "{name}");
        }
    }
}
