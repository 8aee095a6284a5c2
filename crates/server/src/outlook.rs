//! Where jobs stand in the queue and when they will be done, from what workers say; made anew now and then, never on
//! the way of a submission.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use lowtide_core::job::{JobId, Moment};
use lowtide_core::lifecycle::Residency;
use lowtide_core::schedule::{self, ModelView, WorkerView};
use lowtide_core::{Bytes, job::Priority};
use lowtide_jobs::report::{Hints, ModelStatus};
use lowtide_jobs::{Candidates, StoreError};

use crate::app::Inner;
use crate::fleet::{Fleet, Worker};

/// Jobs of each priority that are looked at. Those behind get a position from the store and no time.
const LOOKED_AT: usize = 256;

/// An outlook that is older says nothing about a job that has just come.
const FRESH_MS_MAX: u64 = 2_000;

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    /// 1 is the next of its turn.
    pub(crate) position: u64,
    /// When it should be done; `None` where no worker is there that could do it, or the queue is held.
    pub(crate) finish: Option<Moment>,
}

/// The queue at one moment.
#[derive(Debug, Default)]
pub(crate) struct Outlook {
    made: Moment,
    held: bool,
    /// By job, those that were looked at.
    places: HashMap<JobId, Place>,
    /// When queued jobs should be done, sorted.
    finishes: Vec<Moment>,
    workers: Vec<WorkerView>,
    /// What jobs may use.
    pub(crate) budget: Option<lowtide_core::Budget>,
}

/// The latest outlook.
#[derive(Debug, Default)]
pub(crate) struct Forecasts {
    /// A std mutex: it is held only to copy or exchange the pointer.
    latest: Mutex<Arc<Outlook>>,
}

impl Forecasts {
    /// The latest one.
    pub(crate) fn latest(&self) -> Arc<Outlook> {
        Arc::clone(&self.latest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes it anew, and returns the one before and this one.
    pub(crate) fn renew(&self, app: &Inner) -> Result<(Arc<Outlook>, Arc<Outlook>), StoreError> {
        let now = app.now();
        let candidates = app.store.candidates(LOOKED_AT, now)?;
        let new = Arc::new(Outlook::new(&candidates, &app.fleet()?, now));
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *latest, Arc::clone(&new));
        Ok((old, new))
    }
}

impl Outlook {
    fn new(candidates: &Candidates, fleet: &Fleet, now: Moment) -> Outlook {
        let workers: Vec<WorkerView> = fleet
            .alive()
            .filter(|worker| worker.ready())
            .map(|worker| view(worker, now))
            .collect();
        let jobs: Vec<_> = candidates.jobs.iter().filter_map(candidate).collect();
        let estimates = match candidates.held {
            true => Vec::new(),
            false => schedule::estimate(&jobs, &workers, &schedule::Policy::default(), now),
        };
        let mut finishes: HashMap<JobId, Moment> = estimates
            .into_iter()
            .map(|estimate| (estimate.id, estimate.finish))
            .collect();
        let mut places = HashMap::with_capacity(candidates.jobs.len());
        let mut counted = HashMap::<Priority, usize>::new();
        let mut sorted: Vec<Moment> = finishes.values().copied().collect();
        sorted.sort();
        for (index, job) in candidates.jobs.iter().enumerate() {
            // Behind a class of which not all were looked at, nobody knows how many there are.
            if counted
                .iter()
                .any(|(&class, &jobs)| class > job.priority && jobs >= LOOKED_AT)
            {
                break;
            }
            *counted.entry(job.priority).or_default() += 1;
            let finish = finishes.remove(&job.id);
            places.insert(
                job.id,
                Place {
                    position: index as u64 + 1,
                    finish,
                },
            );
        }
        Outlook {
            made: now,
            held: candidates.held,
            places,
            finishes: sorted,
            workers,
            budget: fleet.budget(),
        }
    }

    /// Where a queued job stands, if it was looked at.
    pub(crate) fn place(&self, job: JobId) -> Option<Place> {
        self.places.get(&job).copied()
    }

    /// Jobs whose place is another one than in `before`, nearest first, at most so many.
    pub(crate) fn moved_since(&self, before: &Outlook, most: usize) -> Vec<(JobId, Place)> {
        let mut moved: Vec<(JobId, Place)> = self
            .places
            .iter()
            .filter(|(job, place)| before.places.get(job) != Some(place))
            .map(|(&job, &place)| (job, place))
            .collect();
        moved.sort_by_key(|(_, place)| place.position);
        moved.truncate(most);
        moved
    }

    /// When a job that has just come, behind so many others, should be done; `None` where nothing is known.
    pub(crate) fn newcomer(
        &self,
        ahead: u64,
        model: &str,
        seconds: f64,
        now: Moment,
    ) -> Option<Moment> {
        if self.held || now.since(self.made).as_millis() > u128::from(FRESH_MS_MAX) {
            return None;
        }
        let able: Vec<(&WorkerView, f64)> = self
            .workers
            .iter()
            .filter_map(|worker| {
                Some((
                    worker,
                    worker
                        .models
                        .iter()
                        .find(|view| view.name == model)?
                        .load_s(),
                ))
            })
            .collect();
        let (_, load_s) = able.iter().min_by(|a, b| a.0.free_at.cmp(&b.0.free_at))?;
        let mut free: Vec<Moment> = able.iter().map(|(worker, _)| worker.free_at).collect();
        free.extend(&self.finishes);
        free.sort();
        // Each job before it takes one of the moments at which a worker becomes free.
        let start = free.get(usize::try_from(ahead).ok()?)?;
        Some((*start).max(now).plus_seconds(load_s + seconds))
    }
}

fn candidate(job: &lowtide_jobs::Candidate) -> Option<schedule::Candidate> {
    // Without a prediction it would count as nothing, and so would the wait of all behind it.
    let hints = Hints::from_json(job.hints.as_deref()?)?;
    Some(schedule::Candidate {
        id: job.id,
        kind: job.kind.clone(),
        model: job.model.clone(),
        priority: job.priority,
        submitted: job.submitted,
        not_before: None,
        deadline: job.deadline,
        seconds: hints.seconds,
        peak: Bytes(hints.peak),
        batch: None,
    })
}

fn view(worker: &Worker, now: Moment) -> WorkerView {
    let status = &worker.status;
    let remaining_s: f64 = status
        .sessions
        .iter()
        .map(|session| session.remaining_s.max(0.0))
        .sum();
    let loaded = status.sessions.last().map(|session| session.model.clone());
    let resident = || {
        status
            .models
            .iter()
            .find(|model| residency(model) == Residency::Device)
    };
    WorkerView {
        free_at: now.plus_seconds(remaining_s),
        loaded: loaded.or_else(|| Some(resident()?.name.clone())),
        models: status
            .models
            .iter()
            .map(|model| model_view(model, worker, now))
            .collect(),
    }
}

fn residency(model: &ModelStatus) -> Residency {
    match model.residency.as_str() {
        "device" => Residency::Device,
        "host" => Residency::Host,
        _ => Residency::Unloaded,
    }
}

fn model_view(model: &ModelStatus, worker: &Worker, now: Moment) -> ModelView {
    let rate = |bytes_per_s: f64| match bytes_per_s > 0.0 {
        true => model.bytes as f64 / bytes_per_s,
        false => 0.0,
    };
    let measured =
        |tally: &lowtide_jobs::report::MoveTally| (tally.count > 0).then_some(tally.last_s);
    let device = &worker.cards.device;
    ModelView {
        name: model.name.clone(),
        residency: residency(model),
        device: Bytes(model.device_bytes),
        host: Bytes(model.host_bytes),
        host_full: Bytes(model.bytes),
        in_flight: model.in_flight,
        last_used: now,
        from_host_s: measured(&model.moves.restores)
            .unwrap_or_else(|| rate(device.link_bytes_per_s)),
        from_file_s: measured(&model.moves.loads).unwrap_or_else(|| rate(device.cold_bytes_per_s)),
    }
}

#[cfg(test)]
mod tests {
    use lowtide_jobs::report::{SessionStatus, Status, WorkerState};

    use super::*;

    fn fleet(remaining_s: f64) -> Fleet {
        let status = Status {
            state: WorkerState::Busy,
            sessions: vec![SessionStatus {
                remaining_s,
                model: "m".to_owned(),
                ..SessionStatus::default()
            }],
            models: vec![ModelStatus {
                name: "m".to_owned(),
                residency: "device".to_owned(),
                ..ModelStatus::default()
            }],
            ..Status::default()
        };
        Fleet {
            workers: vec![Worker {
                id: "w".parse().unwrap(),
                alive: true,
                seen: Moment(0),
                status,
                cards: lowtide_jobs::report::Cards::default(),
            }],
        }
    }

    fn queued(id: u128) -> lowtide_jobs::Candidate {
        lowtide_jobs::Candidate {
            id: JobId(id),
            kind: "k".to_owned(),
            model: "m".to_owned(),
            priority: Priority::Normal,
            owner: None,
            submitted: Moment(id as u64),
            deadline: None,
            setbacks: lowtide_core::job::Setbacks::default(),
            hints: Some(
                Hints {
                    seconds: 5.0,
                    ..Hints::default()
                }
                .to_json(),
            ),
            session: None,
        }
    }

    #[test]
    fn jobs_come_after_what_runs_and_after_each_other() {
        let now = Moment(10_000);
        let candidates = Candidates {
            held: false,
            jobs: vec![queued(1), queued(2)],
        };
        let outlook = Outlook::new(&candidates, &fleet(3.0), now);
        let place = outlook.place(JobId(2)).unwrap();
        assert_eq!((place.position, place.finish), (2, Some(Moment(23_000))));
        assert_eq!(outlook.newcomer(2, "m", 5.0, now), Some(Moment(28_000)));
        assert_eq!(
            outlook.newcomer(7, "m", 5.0, now),
            None,
            "more came meanwhile"
        );
        assert_eq!(outlook.newcomer(2, "other", 5.0, now), None, "nobody can");
        assert_eq!(
            outlook.newcomer(2, "m", 5.0, Moment(20_000)),
            None,
            "too old"
        );
    }

    #[test]
    fn a_held_queue_has_places_and_no_times() {
        let candidates = Candidates {
            held: true,
            jobs: vec![queued(1)],
        };
        let outlook = Outlook::new(&candidates, &fleet(0.0), Moment(0));
        assert_eq!(
            outlook.place(JobId(1)),
            Some(Place {
                position: 1,
                finish: None
            })
        );
        assert_eq!(outlook.newcomer(0, "m", 1.0, Moment(0)), None);
    }
}
