//! When queued jobs will start and finish, by the same order that [`decide`](super::decide) follows.

use std::collections::{BTreeMap, VecDeque};

use super::{Candidate, ModelView, Policy};
use crate::job::{JobId, Moment};

/// A worker, as far as an estimate needs to know it.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerView {
    /// When it will have finished what it has open.
    pub free_at: Moment,
    /// The model it will then have on its device.
    pub loaded: Option<String>,
    /// The models it can run, with their load times.
    pub models: Vec<ModelView>,
}

/// When a queued job will run.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// The job.
    pub id: JobId,
    /// Its place in the queue: 1 is the next to start.
    pub position: usize,
    /// When it should start.
    pub start: Moment,
    /// When it should be finished.
    pub finish: Moment,
}

/// Estimates for every job of `candidates` that some worker can run, in the order in which they should start.
///
/// It plays the queue to its end: whichever worker is free first takes the job of the best standing, the model it used
/// last being the one it has. Jobs to come, deadlines, batches and switching between sessions are left out, so that it
/// takes no longer than the number of jobs times that of their kinds.
pub fn estimate(
    candidates: &[Candidate],
    workers: &[WorkerView],
    policy: &Policy,
    now: Moment,
) -> Vec<Estimate> {
    let mut lines = Lines::of(candidates);
    let mut workers: Vec<Worker<'_>> = workers
        .iter()
        .map(|view| Worker {
            free_s: view.free_at.seconds_since(now),
            loaded: view.loaded.as_deref(),
            starts: 0,
            displaced: false,
            models: view.models.iter().map(|m| (m.name.as_str(), m)).collect(),
        })
        .collect();
    let mut estimates = Vec::with_capacity(candidates.len());
    while !workers.is_empty() && !lines.is_empty() {
        let first =
            (0..workers.len()).min_by(|&a, &b| workers[a].free_s.total_cmp(&workers[b].free_s));
        let Some(index) = first else { break };
        let worker = &mut workers[index];
        let Some(job) = worker.take(&mut lines, policy, now) else {
            // What is left needs models it does not have.
            workers.swap_remove(index);
            continue;
        };
        let ready_s = job
            .not_before
            .map_or(0.0, |moment| moment.seconds_since(now));
        let start_s = worker.free_s.max(ready_s);
        let load_s = worker.load_s(&job.model);
        worker.free_s = start_s + load_s + job.seconds.max(0.0);
        worker.loaded = Some(&job.model);
        worker.displaced |= load_s > 0.0;
        estimates.push(Estimate {
            id: job.id,
            position: 0,
            start: now.plus_seconds(start_s),
            finish: now.plus_seconds(worker.free_s),
        });
    }
    estimates.sort_by_key(|estimate| estimate.start);
    for (index, estimate) in estimates.iter_mut().enumerate() {
        estimate.position = index + 1;
    }
    estimates
}

/// Seconds until a full queue has a place again, for `Retry-After`: until the first job of it starts. None for an empty
/// queue, which has a place already.
pub fn retry_after_s(estimates: &[Estimate], now: Moment) -> Option<f64> {
    let first = estimates.iter().map(|estimate| estimate.start).min()?;
    Some(first.seconds_since(now))
}

/// The jobs by model and class, each line in the order of submission: only the first of a line can be next.
struct Lines<'a>(BTreeMap<(&'a str, crate::job::Priority), VecDeque<&'a Candidate>>);

impl<'a> Lines<'a> {
    fn of(candidates: &'a [Candidate]) -> Lines<'a> {
        let mut lines: BTreeMap<_, VecDeque<&Candidate>> = BTreeMap::new();
        for job in candidates {
            let line = lines.entry((job.model.as_str(), job.priority));
            line.or_default().push_back(job);
        }
        for line in lines.values_mut() {
            // One that may not start yet stands where it would if it were submitted then.
            line.make_contiguous().sort_by_key(|job| {
                (
                    job.submitted.max(job.not_before.unwrap_or_default()),
                    job.id,
                )
            });
        }
        Lines(lines)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

struct Worker<'a> {
    free_s: f64,
    loaded: Option<&'a str>,
    starts: u32,
    /// Whether it loaded a model, so that what was on the device before may no longer be there.
    displaced: bool,
    models: BTreeMap<&'a str, &'a ModelView>,
}

impl<'a> Worker<'a> {
    fn load_s(&self, model: &str) -> f64 {
        match self.models.get(model) {
            Some(_) if self.loaded == Some(model) => 0.0,
            Some(view) => match view.load_s() {
                0.0 if self.displaced => view.from_host_s,
                load_s => load_s,
            },
            None => 0.0,
        }
    }

    /// Takes the next job off its line, if there is one it can run.
    fn take(
        &mut self,
        lines: &mut Lines<'a>,
        policy: &Policy,
        now: Moment,
    ) -> Option<&'a Candidate> {
        let oldest_turn = self.starts + 1 >= policy.turn;
        let standing_s = |job: &Candidate| {
            let ready = job.submitted.max(job.not_before.unwrap_or_default());
            let waited_s = now.as_secs_f64() - ready.as_secs_f64();
            match oldest_turn {
                true => waited_s,
                false => {
                    policy.head_start_s(job.priority) + waited_s
                        - policy.load_penalty_s(self.load_s(&job.model))
                }
            }
        };
        let runnable = lines
            .0
            .iter()
            .filter(|((model, _), _)| self.models.contains_key(model));
        let firsts = runnable.filter_map(|(key, line)| Some((*key, *line.front()?)));
        let (key, job) = firsts.max_by(|(_, a), (_, b)| {
            standing_s(a)
                .total_cmp(&standing_s(b))
                .then(b.id.cmp(&a.id))
        })?;
        let line = lines.0.get_mut(&key)?;
        line.pop_front();
        if line.is_empty() {
            lines.0.remove(&key);
        }
        self.starts = if oldest_turn { 0 } else { self.starts + 1 };
        Some(job)
    }
}
