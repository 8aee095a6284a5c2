//! What workers say of themselves, read.

use lowtide_core::job::Moment;
use lowtide_core::{Budget, Bytes};
use lowtide_jobs::report::{Cards, Memory, Status, WorkerState};
use lowtide_jobs::{WorkerId, WorkerStatus};

/// All workers known, in the order of their names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fleet {
    /// They.
    pub(crate) workers: Vec<Worker>,
}

/// One worker.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    /// Who.
    pub(crate) id: WorkerId,
    /// Whether it was heard of lately.
    pub(crate) alive: bool,
    /// When it was last heard of.
    pub(crate) seen: Moment,
    /// How it is.
    pub(crate) status: Status,
    /// What it can do.
    pub(crate) cards: Cards,
}

impl Fleet {
    /// Reads what a store has. What cannot be read, as from a newer worker, counts as said nothing.
    pub(crate) fn read(workers: Vec<WorkerStatus>, now: Moment) -> Fleet {
        let mut workers: Vec<Worker> = workers
            .into_iter()
            .map(|worker| Worker {
                alive: worker.is_alive(now),
                seen: worker.seen,
                status: serde_json::from_str(&worker.status).unwrap_or_default(),
                cards: worker
                    .cards
                    .as_deref()
                    .and_then(|text| serde_json::from_str(text).ok())
                    .unwrap_or_default(),
                id: worker.worker,
            })
            .collect();
        workers.sort_by(|a, b| a.id.cmp(&b.id));
        Fleet { workers }
    }

    /// Those that were heard of lately.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|worker| worker.alive)
    }

    /// Whether a job can be begun soon.
    pub(crate) fn ready(&self) -> bool {
        self.alive().any(Worker::ready)
    }

    /// The largest budget of a worker that is there. Only what no plan can reclaim counts as in use: models and other
    /// jobs make room in the end.
    pub(crate) fn budget(&self) -> Option<Budget> {
        let budgets = self
            .alive()
            .filter(|worker| worker.status.memory.budget > 0);
        budgets
            .map(|worker| budget(&worker.status.memory))
            .max_by_key(Budget::available)
    }

    /// A figure of the memory of all that are there.
    pub(crate) fn memory_sum(&self, of: impl Fn(&Memory) -> u64) -> u64 {
        self.alive()
            .map(|worker| of(&worker.status.memory))
            .fold(0, u64::saturating_add)
    }
}

impl Worker {
    /// Whether it begins jobs.
    pub(crate) fn ready(&self) -> bool {
        match self.status.state {
            WorkerState::Idle | WorkerState::Loading | WorkerState::Busy => self.alive,
            WorkerState::Starting | WorkerState::Paused | WorkerState::Draining => false,
        }
    }
}

fn budget(memory: &Memory) -> Budget {
    let held = memory
        .holders
        .iter()
        .map(|holder| holder.bytes)
        .fold(0, u64::saturating_add);
    Budget {
        total: Bytes(memory.budget),
        in_use: Bytes(memory.allocated.saturating_sub(held)),
    }
}
