//! What is asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lowtide_core::job::{JobId, JobState, Moment, Priority};

use super::RedisStore;
use super::rows::{self, Known};
use super::scripts;
use super::wire::{Command, Reply};
use crate::accept::{LINES_MAX, MINUTE_MS, MINUTES};
use crate::numbers::Numbered;
use crate::turns::{self, OWNERS_MAX};
use crate::{
    Artifact, ArtifactId, Candidate, Candidates, Event, EventId, Events, InputId, Job, Listing,
    Minute, Preview, Result, Stats, StoreError,
};

impl RedisStore {
    fn key(&self, name: impl std::fmt::Display) -> String {
        format!("{}{name}", self.prefix)
    }

    fn record_command(&self, job: JobId) -> Command {
        let command = Command::new("HMGET").arg(self.key(format_args!("job:{job}")));
        rows::FIELDS.iter().fold(command, Command::arg)
    }

    /// The job of these fields.
    pub(super) fn record(&self, fields: &[Reply]) -> Result<Option<Known>> {
        rows::read(fields).map_err(|reason| StoreError::Corrupt {
            path: self.name().into(),
            reason,
        })
    }

    pub(super) fn remember(&self, known: Known) -> Arc<Known> {
        let known = Arc::new(known);
        self.memory.put(Arc::clone(&known));
        known
    }

    /// Jobs as they are now, in the order asked for.
    pub(super) fn fetch(&self, jobs: &[JobId]) -> Result<Vec<Option<Arc<Known>>>> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let commands = jobs.iter().map(|&job| self.record_command(job)).collect();
        let replies = self.reader.call(commands, false)?;
        let read = |reply: Reply| {
            let known = self.record(&reply.list())?;
            Ok(known.map(|known| self.remember(known)))
        };
        replies.into_iter().map(read).collect()
    }

    /// A job with its request.
    pub(super) fn whole(&self, job: JobId) -> Result<Job> {
        let request = Command::new("HGET")
            .arg(self.key(format_args!("job:{job}")))
            .arg("q");
        let replies = self
            .reader
            .call(vec![self.record_command(job), request], false)?;
        let mut replies = replies.into_iter();
        let fields = replies.next().unwrap_or(Reply::Nil).list();
        let known = self.record(&fields)?;
        let known = known.ok_or(StoreError::NotFound { job })?;
        let mut job = known.job.clone();
        self.memory.put(Arc::new(known));
        job.request = replies
            .next()
            .map(|request| request.text())
            .unwrap_or_default();
        Ok(job)
    }

    pub(super) fn list_jobs(&self, listing: &Listing) -> Result<Vec<Job>> {
        let states = match listing.states.is_empty() {
            true => JobState::ALL.to_vec(),
            false => {
                let mut states = listing.states.clone();
                states.sort_by_key(|state| state.number());
                states.dedup();
                states
            }
        };
        let command = scripts::LIST
            .call(&self.prefix)
            .arg(listing.owner.as_deref().unwrap_or_default())
            .number(listing.limit.min(LINES_MAX) as u64)
            .number_or_none(listing.before);
        let command = states
            .iter()
            .fold(command, |command, state| command.number(state.number()));
        let jobs = self.reader.one(command, false)?.list();
        let mut listed = Vec::with_capacity(jobs.len());
        for fields in jobs {
            let known = self.record(&fields.list())?;
            listed.extend(known.map(|known| known.job));
        }
        Ok(listed)
    }

    pub(super) fn before(&self, job: JobId) -> Result<Option<u64>> {
        let command = scripts::AHEAD.call(&self.prefix).arg(job.to_string());
        let reply = self.reader.one(command, false)?.list();
        let word = reply.first().map(Reply::text).unwrap_or_default();
        match word.as_str() {
            "ok" => Ok(reply.get(1).map(Reply::number)),
            "no" => Ok(None),
            _ => Err(StoreError::NotFound { job }),
        }
    }

    pub(super) fn to_choose(&self, per_priority: usize, now: Moment) -> Result<Candidates> {
        let command = scripts::CANDIDATES
            .call(&self.prefix)
            .number(per_priority.min(LINES_MAX) as u64)
            .number(now.0)
            .number(OWNERS_MAX as u64);
        let reply = self.reader.one(command, false)?.list();
        let (held, classes) = reply
            .split_first()
            .ok_or_else(|| self.strange("the candidates"))?;
        let (served, classes) = classes
            .split_last()
            .ok_or_else(|| self.strange("the candidates"))?;
        let mut found = Vec::new();
        for class in classes {
            let pairs = class.clone().list();
            for pair in pairs.chunks_exact(2) {
                let id: JobId = pair[0]
                    .text()
                    .parse()
                    .map_err(|_| self.strange("a candidate's id"))?;
                let known = self.memory.get(id);
                let known = known.filter(|known| known.version == pair[1].text());
                found.push((id, known));
            }
        }
        let unknown: Vec<JobId> = found
            .iter()
            .filter(|(_, known)| known.is_none())
            .map(|(id, _)| *id)
            .collect();
        let mut fetched = self.fetch(&unknown)?.into_iter();
        let jobs = found.into_iter().filter_map(|(_, known)| {
            let known = known.or_else(|| fetched.next().flatten())?;
            // One that somebody took since is none.
            (known.job.state == JobState::Queued).then_some(known)
        });
        let jobs = self.startable(jobs.collect())?;
        let served = pairs(served);
        let served = served.into_iter().map(|(owner, at)| (owner, Moment(at)));
        Ok(Candidates {
            held: held.text() == "1",
            jobs: each_in_turn(jobs, per_priority, &served.collect()),
        })
    }

    /// Those of whose owners fewer run than may.
    fn startable(&self, jobs: Vec<Arc<Known>>) -> Result<Vec<Arc<Known>>> {
        let bounded = |known: &Arc<Known>| {
            let job = &known.job;
            job.owner.clone().zip(job.running_max)
        };
        let owners: BTreeSet<String> = jobs
            .iter()
            .filter_map(|known| Some(bounded(known)?.0))
            .collect();
        if owners.is_empty() {
            return Ok(jobs);
        }
        let count = |owner: &String, state| {
            Command::new("ZCARD").arg(self.key(format_args!("in:{state}:{owner}")))
        };
        let commands = owners
            .iter()
            .flat_map(|owner| [count(owner, 2), count(owner, 3)])
            .collect();
        let replies = self.reader.call(commands, false)?;
        let sums = replies
            .chunks_exact(2)
            .map(|two| two[0].number() + two[1].number());
        let running: HashMap<String, u64> = owners.into_iter().zip(sums).collect();
        let may = |known: &Arc<Known>| match bounded(known) {
            Some((owner, most)) => running.get(&owner).is_none_or(|&now| now < most),
            None => true,
        };
        Ok(jobs.into_iter().filter(may).collect())
    }

    pub(super) fn numbers(&self, now: Moment) -> Result<Stats> {
        let command = scripts::STATS
            .call(&self.prefix)
            .number(now.0 / MINUTE_MS)
            .number(MINUTES);
        let reply = self.reader.one(command, false)?.list();
        let [
            held,
            artifacts,
            bytes,
            last,
            tally,
            oldest,
            running,
            minutes,
        ] = &reply[..]
        else {
            return Err(self.strange("the numbers"));
        };
        let classes = [Priority::Urgent, Priority::Normal, Priority::Batch];
        let oldest = oldest.clone().list();
        let oldest_waiting: BTreeMap<Priority, Moment> = classes
            .into_iter()
            .zip(&oldest)
            .filter_map(|(class, at)| Some((class, Moment(at.some_number()?))))
            .collect();
        Ok(Stats {
            held: held.text() == "1",
            counts: counts(&pairs(tally)),
            oldest_waiting,
            oldest_running: running.some_number().map(Moment),
            minutes: minutes.clone().list().into_iter().map(minute).collect(),
            artifacts: artifacts.number(),
            artifact_bytes: bytes.number(),
            last_event: EventId(last.number()),
        })
    }

    pub(super) fn find_artifact(&self, artifact: ArtifactId) -> Result<Option<(JobId, Artifact)>> {
        let command = Command::new("HGET")
            .arg(self.key("artifacts"))
            .arg(artifact.to_string());
        let Some(id) = self.reader.one(command, false)?.some() else {
            return Ok(None);
        };
        let id: JobId = id.parse().map_err(|_| self.strange("an artifact's job"))?;
        let known = self.fetch(&[id])?.pop().flatten();
        let files = known.and_then(|known| known.job.outcome.clone());
        let mut files = files.into_iter().flat_map(|outcome| outcome.artifacts);
        Ok(files
            .find(|file| file.id == artifact)
            .map(|file| (id, file)))
    }

    pub(super) fn have_jobs(&self, of: &[ArtifactId]) -> Result<Vec<ArtifactId>> {
        let names = of.iter().map(ArtifactId::to_string).collect();
        let known = self.fields_there("artifacts", names)?;
        let there = of.iter().zip(known).filter(|(_, known)| *known);
        Ok(there.map(|(id, _)| *id).collect())
    }

    pub(super) fn have_names(&self, of: &[InputId]) -> Result<Vec<InputId>> {
        let names = of.iter().map(InputId::digits).collect();
        let named = self.fields_there("inputs", names)?;
        let there = of.iter().zip(named).filter(|(_, named)| *named);
        Ok(there.map(|(id, _)| *id).collect())
    }

    /// Which fields a hash has.
    fn fields_there(&self, hash: &str, names: Vec<String>) -> Result<Vec<bool>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let command = Command::new("HMGET").arg(self.key(hash));
        let command = names.iter().fold(command, Command::arg);
        let found = self.reader.one(command, false)?.list();
        Ok(found.iter().map(|value| *value != Reply::Nil).collect())
    }

    pub(super) fn latest_preview(&self, job: JobId) -> Result<Option<Preview>> {
        let command = Command::new("HMGET")
            .arg(self.key(format_args!("preview:{job}")))
            .arg("type")
            .arg("content");
        let mut fields = self.reader.one(command, false)?.list().into_iter();
        let media_type = fields.next().and_then(|kind| kind.some());
        let content = fields.next().and_then(Reply::bytes);
        Ok(media_type
            .zip(content)
            .map(|(media_type, content)| Preview {
                media_type,
                content,
            }))
    }

    pub(super) fn log_after(
        &self,
        after: EventId,
        job: Option<JobId>,
        limit: usize,
    ) -> Result<Events> {
        let log = match job {
            Some(job) => self.key(format_args!("log:{job}")),
            None => self.key("events"),
        };
        // Numbers of entries end with those that a script can count to.
        let after = after.0.min(i64::MAX as u64);
        let range = Command::new("XRANGE")
            .arg(log)
            .arg(format!("({after}-0"))
            .arg("+")
            .arg("COUNT")
            .number(limit.min(LINES_MAX) as u64);
        let trimmed = Command::new("HGET").arg(self.key("meta")).arg("trimmed");
        let replies = self.reader.call(vec![range, trimmed], false)?;
        let [entries, trimmed] = &replies[..] else {
            return Err(self.strange("the events"));
        };
        let entries = entries.clone().list().into_iter();
        let events = entries.map(|entry| event(entry, job).ok_or_else(|| self.strange("an event")));
        Ok(Events {
            events: events.collect::<Result<_>>()?,
            gap: trimmed.some_number().is_some_and(|trimmed| after < trimmed),
        })
    }

    /// For an answer that is not what a script of ours gives.
    pub(super) fn strange(&self, what: &str) -> StoreError {
        StoreError::Corrupt {
            path: self.name().into(),
            reason: format!("{what} cannot be read"),
        }
    }
}

/// By class, within it the owners in turn.
fn each_in_turn(
    mut jobs: Vec<Arc<Known>>,
    per_priority: usize,
    served: &HashMap<String, Moment>,
) -> Vec<Candidate> {
    jobs.sort_by_key(|known| (known.job.turn, known.job.seq));
    let mut ordered = Vec::with_capacity(jobs.len());
    for priority in Priority::ALL {
        let of_class = jobs.iter().filter(|known| known.job.priority == priority);
        let of_class = of_class.map(|known| (known.job.turn < 0, candidate(&known.job)));
        let in_turn = turns::in_turns(of_class.collect(), served);
        ordered.extend(in_turn.into_iter().take(per_priority));
    }
    ordered
}

fn candidate(job: &Job) -> Candidate {
    Candidate {
        id: job.id,
        kind: job.kind.clone(),
        model: job.model.clone(),
        priority: job.priority,
        owner: job.owner.clone(),
        submitted: job.submitted,
        deadline: job.deadline,
        setbacks: job.setbacks,
        hints: job.hints.clone(),
        session: job.session.clone(),
    }
}

/// A hash as names and values.
fn pairs(reply: &Reply) -> HashMap<String, u64> {
    let items = reply.clone().list();
    let pairs = items.chunks_exact(2);
    pairs
        .map(|pair| (pair[0].text(), pair[1].number()))
        .collect()
}

fn counts(tally: &HashMap<String, u64>) -> HashMap<(JobState, Priority), u64> {
    let mut counts = HashMap::new();
    for state in JobState::ALL {
        for priority in Priority::ALL {
            let name = format!("{}:{}", state.number(), priority.number());
            if let Some(&jobs) = tally.get(&name).filter(|&&jobs| jobs > 0) {
                counts.insert((state, priority), jobs);
            }
        }
    }
    counts
}

fn minute(reply: Reply) -> Minute {
    let parts = reply.list();
    let number = parts.first().map(Reply::number).unwrap_or_default();
    let fields = parts.get(1).map(pairs).unwrap_or_default();
    let field = |name: &str| fields.get(name).copied().unwrap_or_default();
    Minute {
        from: Moment(number.saturating_mul(MINUTE_MS)),
        submitted: field("submitted"),
        started: field("started"),
        done: field("done"),
        failed: field("failed"),
        cancelled: field("cancelled"),
        waited_ms: field("waited_ms"),
        ran_ms: field("ran_ms"),
    }
}

/// An entry of a stream: its id, and its fields. Those of a job's own log do not repeat the job.
fn event(entry: Reply, of: Option<JobId>) -> Option<Event> {
    let parts = entry.list();
    let [id, fields] = &parts[..] else {
        return None;
    };
    let id = id.text();
    let (number, _) = id.split_once('-')?;
    let fields = fields.clone().list();
    let field = |name: &str| {
        let mut pairs = fields.chunks_exact(2);
        pairs
            .find(|pair| pair[0].text() == name)
            .map(|pair| pair[1].text())
    };
    let job = match (of, field("job")) {
        (Some(job), _) => Some(job),
        (None, Some(job)) if !job.is_empty() => Some(job.parse().ok()?),
        (None, _) => None,
    };
    Some(Event {
        id: EventId(number.parse().ok()?),
        at: Moment(field("at")?.parse().ok()?),
        job,
        what: serde_json::from_str(&field("what")?).ok()?,
    })
}
