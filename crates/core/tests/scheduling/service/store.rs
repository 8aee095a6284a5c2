//! The store of the simulation: states, leases, attempts.

use std::collections::HashMap;

use lowtide_core::Bytes;
use lowtide_core::job::{JobId, JobState, Moment, Retry, RetryPolicy, Setback, Setbacks};
use lowtide_core::schedule::{Batch, Candidate};

use super::{Outcome, World};

/// A worker's incarnation.
pub(super) type Holder = (usize, u32);

struct Record {
    state: Option<JobState>,
    attempt: u32,
    setbacks: Setbacks,
    holder: Option<Holder>,
    artifacts: u32,
    not_before: Option<Moment>,
    /// At submission: starts, requeuings and deaths so far, and how many jobs were before it.
    starts: u64,
    requeued: u64,
    deaths: u64,
    older: u64,
}

pub(super) struct Store {
    records: Vec<Record>,
    by_id: HashMap<JobId, usize>,
    pub(super) queue: Vec<Candidate>,
    /// Whether something changed that a worker without work should know.
    news: bool,
    deaths: u64,
    requeued: u64,
    leased: HashMap<Holder, Vec<usize>>,
}

impl Store {
    pub(super) fn new(world: &World) -> Store {
        let record = |_| Record {
            state: None,
            attempt: 0,
            setbacks: Setbacks::default(),
            holder: None,
            artifacts: 0,
            not_before: None,
            starts: 0,
            requeued: 0,
            deaths: 0,
            older: 0,
        };
        Store {
            records: world.jobs.iter().map(record).collect(),
            by_id: world
                .jobs
                .iter()
                .enumerate()
                .map(|(i, job)| (job.id, i))
                .collect(),
            queue: Vec::new(),
            news: false,
            deaths: 0,
            requeued: 0,
            leased: HashMap::new(),
        }
    }

    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    pub(super) fn index(&self, id: JobId) -> usize {
        self.by_id[&id]
    }

    pub(super) fn count_death(&mut self) {
        self.deaths += 1;
    }

    fn go(&mut self, job: usize, next: JobState) {
        let record = &mut self.records[job];
        let state = record.state.expect("submitted");
        assert!(state.can_become(next), "job {job}: {state} becomes {next}");
        record.state = Some(next);
    }

    fn candidate(&self, job: usize, world: &World) -> Candidate {
        let spec = &world.jobs[job];
        Candidate {
            id: spec.id,
            kind: "image".to_owned(),
            model: world.models[spec.model].name.to_owned(),
            priority: spec.priority,
            submitted: spec.at,
            not_before: self.records[job].not_before,
            deadline: spec.deadline,
            seconds: spec.seconds,
            peak: world.models[spec.model].weights + spec.activation,
            batch: spec.batch.clone().map(|key| Batch {
                key,
                more: Bytes(spec.activation.0 / 2),
                more_seconds: spec.seconds * 0.4,
            }),
        }
    }

    pub(super) fn submit(&mut self, job: usize, world: &World, starts: u64) {
        let older = self.queue.len() as u64;
        let record = &mut self.records[job];
        assert!(record.state.is_none(), "job {job} is submitted twice");
        record.state = Some(JobState::Queued);
        record.starts = starts;
        record.older = older;
        record.requeued = self.requeued;
        record.deaths = self.deaths;
        let candidate = self.candidate(job, world);
        self.queue.push(candidate);
        self.news = true;
    }

    /// A worker claims a job. Returns the attempt's number.
    pub(super) fn claim(
        &mut self,
        id: JobId,
        holder: Holder,
        (now, mate): (Moment, bool),
        world: &World,
        outcome: &mut Outcome,
    ) -> u32 {
        let job = self.index(id);
        let place = self.queue.iter().position(|candidate| candidate.id == id);
        let candidate = self
            .queue
            .swap_remove(place.expect("a claimed job is queued"));
        assert!(
            candidate.not_before.is_none_or(|m| m <= now),
            "claimed too early"
        );
        self.go(job, JobState::Running);
        self.leased.entry(holder).or_default().push(job);
        let record = &mut self.records[job];
        record.attempt += 1;
        record.holder = Some(holder);
        if record.attempt == 1 {
            let spec = &world.jobs[job];
            let class = lowtide_core::job::Priority::ALL
                .iter()
                .position(|&class| class == spec.priority)
                .expect("a class");
            outcome.waits_s[class].push(now.seconds_since(spec.at));
            if !mate && !world.fifo {
                // A job tried again can stand before this one once more, and a worker that died has forgotten how
                // many turns it took.
                let older = record.older + self.requeued - record.requeued;
                let forgotten = 2 * u64::from(world.policy.turn) * (self.deaths - record.deaths);
                let most = world.policy.starts_max(older, world.workers as u64) + forgotten;
                let took = outcome.starts - record.starts;
                assert!(
                    took <= most,
                    "job {job} starts after {took} starts; at most {most} are promised"
                );
                outcome.worst_of_bound = outcome.worst_of_bound.max(took as f64 / most as f64);
            }
        }
        record.attempt
    }

    /// Whether that attempt still has the lease.
    pub(super) fn holds(&self, job: usize, attempt: u32) -> bool {
        let record = &self.records[job];
        record.attempt == attempt && record.state.is_some_and(JobState::is_leased)
    }

    pub(super) fn park(&mut self, job: usize, attempt: u32, parked: bool) {
        if self.holds(job, attempt) {
            let next = if parked {
                JobState::Parked
            } else {
                JobState::Running
            };
            if self.records[job].state != Some(next) {
                self.go(job, next);
            }
        }
    }

    fn end_lease(&mut self, job: usize) {
        if let Some(holder) = self.records[job].holder.take()
            && let Some(leased) = self.leased.get_mut(&holder)
        {
            leased.retain(|&other| other != job);
        }
    }

    /// A worker publishes. Refused when the lease was lost meanwhile.
    pub(super) fn finish(&mut self, job: usize, attempt: u32) -> bool {
        if !self.holds(job, attempt) {
            return false;
        }
        self.end_lease(job);
        self.go(job, JobState::Done);
        self.records[job].artifacts += 1;
        true
    }

    /// An attempt ended without a result.
    pub(super) fn set_back(
        &mut self,
        job: usize,
        setback: Setback,
        (now, random): (Moment, u64),
        world: &World,
    ) {
        self.end_lease(job);
        let record = &mut self.records[job];
        record.setbacks = record.setbacks.and(setback);
        match RetryPolicy::default().after(setback, record.setbacks, now, random) {
            Retry::GiveUp => self.go(job, JobState::Failed),
            Retry::From(moment) => {
                record.not_before = Some(moment);
                self.requeued += 1;
                self.go(job, JobState::Queued);
                let candidate = self.candidate(job, world);
                self.queue.push(candidate);
            }
        }
        self.news = true;
    }

    /// What an incarnation of a worker has leases on.
    pub(super) fn leased_by(&self, holder: Holder) -> Vec<usize> {
        self.leased.get(&holder).cloned().unwrap_or_default()
    }

    pub(super) fn cancel(&mut self, job: usize) {
        let Some(state) = self.records[job].state else {
            return;
        };
        if state.is_final() {
            return;
        }
        self.queue
            .retain(|candidate| self.by_id[&candidate.id] != job);
        self.end_lease(job);
        self.go(job, JobState::Cancelled);
    }

    pub(super) fn assert_all_ended(&self, outcome: &mut Outcome) {
        for (job, record) in self.records.iter().enumerate() {
            let artifacts = match record.state.expect("submitted") {
                JobState::Done => {
                    outcome.done += 1;
                    1
                }
                JobState::Failed => {
                    outcome.failed += 1;
                    0
                }
                JobState::Cancelled => {
                    outcome.cancelled += 1;
                    0
                }
                state => panic!("job {job} is left {state}"),
            };
            assert_eq!(record.artifacts, artifacts, "artifacts of job {job}");
        }
        assert!(self.queue.is_empty(), "jobs are left in the queue");
        outcome.requeued = self.requeued;
        outcome.deaths = self.deaths;
    }
}
