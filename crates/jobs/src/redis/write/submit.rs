//! Accepting jobs.

use std::collections::HashMap;

use lowtide_core::job::{JobId, Moment};

use super::save::{full, owner_full};
use crate::numbers::Numbered;
use crate::redis::RedisStore;
use crate::redis::rows;
use crate::redis::scripts;
use crate::redis::wire::{Command, Reply};
use crate::{Accepted, Clash, Happening, Job, Result, StoreError, Submission};

/// How often others may submit the same at the same time before a caller is told that the store is busy.
const TRIES_MAX: u32 = 16;

impl RedisStore {
    pub(in crate::redis) fn accept(
        &self,
        submissions: &[Submission],
        now: Moment,
    ) -> Result<Vec<Accepted>> {
        self.policy.check_batch(submissions.len())?;
        for submission in submissions {
            self.policy.check(submission)?;
        }
        let mut answers = repeated(submissions)?;
        for _ in 0..TRIES_MAX {
            let new: Vec<usize> = (0..answers.len())
                .filter(|&place| answers[place].is_none())
                .collect();
            if new.is_empty() {
                break;
            }
            let fresh: Vec<&Submission> = new.iter().map(|&place| &submissions[place]).collect();
            let reply = self.writer.one(self.submission(&fresh, now), true)?.list();
            let (word, rest) = reply
                .split_first()
                .ok_or_else(|| self.strange("a submission"))?;
            match word.text().as_str() {
                word @ ("ok" | "again") => {
                    self.mark.changed();
                    let ahead = rest.first().cloned().unwrap_or(Reply::Nil).list();
                    for (place, ahead) in new.into_iter().zip(ahead) {
                        answers[place] = Some(Accepted {
                            job: submissions[place].id,
                            existed: false,
                            ahead: ahead.some_number().filter(|_| word == "ok"),
                        });
                    }
                    break;
                }
                "known" => {
                    let known = rest.first().cloned().unwrap_or(Reply::Nil).list();
                    for (place, accepted) in self.earlier(&new, submissions, known)? {
                        answers[place] = Some(accepted);
                    }
                }
                "owner" => return Err(self.refusal(owner_full(rest), fresh[0].id, now)),
                "full" => return Err(self.refusal(full(rest), fresh[0].id, now)),
                _ => return Err(self.strange("a submission")),
            }
        }
        // Of one that is there twice, the first is the job.
        let busy = StoreError::Busy {
            path: self.name().into(),
            waited_ms: 0,
        };
        answers
            .into_iter()
            .map(|answer| answer.ok_or_else(|| busy.clone()))
            .collect()
    }

    fn submission(&self, fresh: &[&Submission], now: Moment) -> Command {
        let mut command = scripts::SUBMIT
            .call(&self.prefix)
            .number(now.0)
            .number(self.policy.waiting_max)
            .arg(&self.sender)
            .number(fresh.len() as u64);
        for submission in fresh {
            let priority = self.policy.priority_of(submission);
            let job = Job::accepted((*submission).clone(), priority, 0, now);
            let event = serde_json::to_string(&Happening::Submitted { priority });
            let mut inputs: Vec<String> = submission
                .inputs
                .iter()
                .map(|input| input.digits())
                .collect();
            inputs.sort();
            inputs.dedup();
            command = command
                .arg(job.id.to_string())
                .arg(self.versions.next())
                .arg(rows::text(&job))
                .arg(&submission.request)
                .arg(submission.hints.as_deref().unwrap_or_default())
                .number(priority.number())
                .number_or_none(submission.start_by.map(|at| at.0))
                .arg(submission.owner.as_deref().unwrap_or_default())
                .arg(key(submission).unwrap_or_default())
                .arg(event.expect("an event has JSON"))
                .arg(inputs.join(" "))
                .number_or_none(submission.quota.waiting_max);
        }
        command
    }

    /// Jobs that were there before: each is the same again, or all of it is refused.
    fn earlier(
        &self,
        new: &[usize],
        submissions: &[Submission],
        known: Vec<Reply>,
    ) -> Result<Vec<(usize, Accepted)>> {
        let mut found = Vec::new();
        for item in known {
            let item = item.list();
            let [place, clash, id] = &item[..] else {
                return Err(self.strange("a job that is there"));
            };
            let place = usize::try_from(place.number())
                .ok()
                .and_then(|place| new.get(place.checked_sub(1)?).copied())
                .ok_or_else(|| self.strange("a job that is there"))?;
            let clash = match clash.text().as_str() {
                "id" => Clash::Id,
                _ => Clash::Key,
            };
            let id: JobId = id.text().parse().map_err(|_| self.strange("a job's id"))?;
            match self.whole(id) {
                Ok(job) => {
                    found.push((place, same(&job, &submissions[place], clash)?));
                }
                // Forgotten meanwhile: the next try makes a new one.
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// The earlier job, if it is of the same request.
fn same(earlier: &Job, submission: &Submission, clash: Clash) -> Result<Accepted> {
    let existing = earlier.id;
    match earlier.is_of(submission) {
        true => Ok(Accepted {
            job: existing,
            existed: true,
            ahead: None,
        }),
        false => Err(StoreError::Conflict { clash, existing }),
    }
}

/// Those of a batch that repeat an earlier one of it have their answers.
fn repeated(submissions: &[Submission]) -> Result<Vec<Option<Accepted>>> {
    let mut by_id: HashMap<JobId, usize> = HashMap::new();
    let mut by_key: HashMap<String, usize> = HashMap::new();
    let mut answers = Vec::with_capacity(submissions.len());
    for (place, submission) in submissions.iter().enumerate() {
        let key = key(submission);
        let first = match by_id.get(&submission.id) {
            Some(&first) => Some((first, Clash::Id)),
            None => key
                .as_ref()
                .and_then(|key| by_key.get(key))
                .map(|&first| (first, Clash::Key)),
        };
        let answer = match first {
            Some((first, clash)) => {
                let first = &submissions[first];
                let priority = first.priority.unwrap_or_default();
                let job = Job::accepted(first.clone(), priority, 0, Moment(0));
                Some(same(&job, submission, clash)?)
            }
            None => {
                by_id.insert(submission.id, place);
                if let Some(key) = key {
                    by_key.insert(key, place);
                }
                None
            }
        };
        answers.push(answer);
    }
    Ok(answers)
}

/// An owner's key as one text, which no other owner and key have.
fn key(submission: &Submission) -> Option<String> {
    let key = submission.idempotency_key.as_ref()?;
    let owner = submission.owner.as_deref().unwrap_or_default();
    Some(format!("{}:{owner}{key}", owner.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyed(number: u128, owner: &str, key: &str, request: &str) -> Submission {
        Submission {
            owner: (!owner.is_empty()).then(|| owner.to_owned()),
            idempotency_key: Some(key.to_owned()),
            ..Submission::new(JobId(number), "kind", "model", request)
        }
    }

    #[test]
    fn a_key_is_an_owners() {
        let key = |owner, text| key(&keyed(1, owner, text, "{}"));
        assert_ne!(key("a", "bc"), key("ab", "c"));
        assert_ne!(key("", "abc"), key("abc", ""));
        assert_eq!(key("a", "b"), key("a", "b"));
    }

    #[test]
    fn what_a_batch_repeats_is_one_job_or_a_conflict() {
        let first = keyed(1, "me", "k", "{\"a\":1}");
        let again = keyed(2, "me", "k", "{ \"a\": 1 }");
        let answers = repeated(&[first.clone(), again, keyed(3, "you", "k", "{}")]).unwrap();
        assert_eq!((&answers[0], &answers[2]), (&None, &None));
        assert_eq!(
            answers[1].map(|answer| (answer.job, answer.existed)),
            Some((JobId(1), true))
        );
        let other = keyed(1, "me", "k", "{}");
        let existing = JobId(1);
        let clash = Clash::Id;
        assert_eq!(
            repeated(&[first, other]),
            Err(StoreError::Conflict { clash, existing })
        );
    }
}
