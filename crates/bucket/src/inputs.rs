//! Inputs as objects. Content is `inputs/DIGITS`; when somebody last spoke of it is in the name of an empty object beside
//! it, `inputs/DIGITS.MOMENT`, so that one list tells everything.
//!
//! Several servers write and remove at once, and nothing locks them out. Whoever speaks of an input writes the moment first
//! and then looks whether the content is there. Whoever removes one keeps its content until it has looked for moments again,
//! and puts it back if there is a new one. So somebody who was told that an input is there finds it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lowtide_core::Bytes;
use lowtide_core::job::Moment;

use crate::Bucket;
use lowtide_jobs::{InputId, InputStore, Result, StoreError};

/// What their names begin with.
const FOLDER: &str = "inputs/";

/// Digits of a moment: as many for all, so that names sort as moments do.
const MOMENT_DIGITS: usize = 16;

/// What inputs are stored as: their own pictures are told apart by who reads them.
const MEDIA_TYPE: &str = "application/octet-stream";

/// Inputs in a bucket.
#[derive(Debug)]
pub struct BucketInputs {
    bucket: Bucket,
    bytes_max: Bytes,
    /// Bytes of all of them, as of the last list and what was written here since.
    total: Mutex<Option<u64>>,
}

/// What a list says of an input.
#[derive(Clone, Debug, Default)]
struct Known {
    bytes: u64,
    /// Those in the names beside it.
    moments: Vec<Moment>,
}

impl Known {
    /// When its time began. Nobody of ours has spoken of one without a moment.
    fn began(&self) -> Moment {
        self.moments.iter().copied().max().unwrap_or(Moment(0))
    }
}

fn content_name(input: InputId) -> String {
    format!("{FOLDER}{}", input.digits())
}

fn moment_name(input: InputId, moment: Moment) -> String {
    format!("{}.{:0MOMENT_DIGITS$}", content_name(input), moment.0)
}

/// The input that an object belongs to, and the moment in its name.
fn parsed(name: &str) -> Option<(InputId, Option<Moment>)> {
    let name = name.strip_prefix(FOLDER)?;
    let (digits, moment) = match name.split_once('.') {
        Some((digits, moment)) if moment.len() == MOMENT_DIGITS => {
            (digits, Some(Moment(moment.parse().ok()?)))
        }
        Some(_) => return None,
        None => (name, None),
    };
    Some((InputId::of_digits(digits)?, moment))
}

impl BucketInputs {
    pub(crate) fn new(bucket: Bucket, bytes_max: Bytes) -> BucketInputs {
        BucketInputs {
            bucket,
            bytes_max,
            total: Mutex::new(None),
        }
    }

    fn total(&self) -> MutexGuard<'_, Option<u64>> {
        self.total.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is whose name begins so.
    fn known(&self, begin: &str) -> Result<BTreeMap<InputId, Known>> {
        let mut all: BTreeMap<InputId, Known> = BTreeMap::new();
        for object in self.bucket.client.list(begin, None)? {
            // What does not bear one of our names is not ours to touch.
            let Some((input, moment)) = parsed(&object.name) else {
                continue;
            };
            let known = all.entry(input).or_default();
            match moment {
                Some(moment) => known.moments.push(moment),
                None => known.bytes = object.bytes,
            }
        }
        Ok(all)
    }

    fn known_of(&self, input: InputId) -> Result<Known> {
        let mut all = self.known(&content_name(input))?;
        Ok(all.remove(&input).unwrap_or_default())
    }

    /// Lists everything, and takes note of how much it is.
    fn all(&self) -> Result<BTreeMap<InputId, Known>> {
        let all = self.known(FOLDER)?;
        *self.total() = Some(all.values().map(|known| known.bytes).sum());
        Ok(all)
    }

    fn held(&self) -> Result<u64> {
        let held = *self.total();
        match held {
            Some(held) => Ok(held),
            None => Ok(self.all()?.values().map(|known| known.bytes).sum()),
        }
    }

    /// Lets its time begin anew; moments before it are of no more use.
    fn speak(&self, input: InputId, now: Moment) -> Result<()> {
        let client = &self.bucket.client;
        let known = self.known_of(input)?;
        // Time only goes on: a clock that was set back must not make it look forgotten.
        if known.moments.is_empty() || known.began() < now {
            client.put(&moment_name(input, now), MEDIA_TYPE, &[])?;
            for moment in known.moments {
                client.remove(&moment_name(input, moment))?;
            }
        }
        Ok(())
    }

    fn add_to_total(&self, more: u64, less: u64) {
        let mut total = self.total();
        *total = total.map(|total| total.saturating_add(more).saturating_sub(less));
    }
}

impl InputStore for BucketInputs {
    fn put(&self, content: &[u8], now: Moment) -> Result<InputId> {
        let input = InputId::of(content);
        let bytes = content.len() as u64;
        let name = content_name(input);
        if self.bucket.client.bytes_of(&name)? != Some(bytes) {
            let held = self.held()?;
            if held.saturating_add(bytes) > self.bytes_max.0 {
                return Err(StoreError::InputsFull {
                    held,
                    limit: self.bytes_max.0,
                });
            }
        }
        self.speak(input, now)?;
        if self.bucket.client.bytes_of(&name)? == Some(bytes) {
            return Ok(input);
        }
        self.bucket.client.put(&name, MEDIA_TYPE, content)?;
        self.add_to_total(bytes, 0);
        Ok(input)
    }

    fn touch(&self, input: InputId, now: Moment) -> Result<bool> {
        let name = content_name(input);
        // Not to write about what was never here.
        if self.bucket.client.bytes_of(&name)?.is_none() {
            return Ok(false);
        }
        self.speak(input, now)?;
        Ok(self.bucket.client.bytes_of(&name)?.is_some())
    }

    fn read(&self, input: InputId, bytes_max: u64) -> Result<Vec<u8>> {
        let content = self.bucket.read_small(&content_name(input), bytes_max)?;
        let content = content.ok_or(StoreError::InputMissing { input })?;
        let found = InputId::of(&content);
        match found == input {
            true => Ok(content),
            false => Err(StoreError::InputDamaged { input, found }),
        }
    }

    fn idle_since(&self, before: Moment) -> Result<Vec<InputId>> {
        let idle = self.all()?.into_iter();
        let idle = idle.filter(|(_, known)| known.began() < before);
        Ok(idle.map(|(input, _)| input).collect())
    }

    fn remove_idle(&self, input: InputId, before: Moment) -> Result<bool> {
        let client = &self.bucket.client;
        let known = self.known_of(input)?;
        if known.began() >= before {
            return Ok(false);
        }
        let name = content_name(input);
        let content = self.bucket.read_small(&name, u64::MAX)?;
        client.remove(&name)?;
        let since = self.known_of(input)?;
        if since.began() >= before {
            if let Some(content) = &content {
                client.put(&name, MEDIA_TYPE, content)?;
            }
            return Ok(false);
        }
        for moment in since.moments {
            client.remove(&moment_name(input, moment))?;
        }
        self.add_to_total(0, content.map_or(0, |content| content.len() as u64));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sum_and_a_moment_make_a_name() {
        let input = InputId::of(b"abc");
        let content = content_name(input);
        assert_eq!(parsed(&content), Some((input, None)));
        let moment = Moment(1_700_000_000_000);
        let name = moment_name(input, moment);
        assert_eq!(parsed(&name), Some((input, Some(moment))));
        for name in [
            "inputs/README",
            "elsewhere/abc",
            &format!("{content}.png"),
            &format!("{content}.17000000000000"),
            &format!("{content}."),
        ] {
            assert_eq!(parsed(name), None, "{name}");
        }
    }
}
