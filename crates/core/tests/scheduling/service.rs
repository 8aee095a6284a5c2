//! A service that exists only in numbers: a virtual clock, a store with leases and attempts, workers with a ledger each,
//! and faults that are planned. It decides by nothing but the functions under test.

mod store;
mod worker;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use lowtide_core::Bytes;
use lowtide_core::job::{JobId, Moment, Priority};
use lowtide_core::lifecycle::{LifePolicy, Order};
use lowtide_core::schedule::{BatchKey, Peer, Policy};

use store::Store;
use worker::Worker;

/// How long a worker may be silent before its jobs are taken from it.
pub(crate) const LEASE_MS: u64 = 30_000;

/// Numbers that look random and are the same for the same seed (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + self.unit() * (high - low)
    }

    /// A gap between arrivals that know nothing of each other.
    pub(crate) fn gap_s(&mut self, mean_s: f64) -> f64 {
        -(1.0 - self.unit()).ln() * mean_s
    }
}

/// A model of the simulation.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) weights: Bytes,
    pub(crate) from_host_s: f64,
    pub(crate) from_file_s: f64,
    pub(crate) life: LifePolicy,
}

/// A job of the simulation.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) at: Moment,
    pub(crate) model: usize,
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Moment>,
    /// What is predicted.
    pub(crate) seconds: f64,
    /// What it takes in truth, as a factor.
    pub(crate) truth: f64,
    pub(crate) steps: u32,
    pub(crate) activation: Bytes,
    pub(crate) batch: Option<BatchKey>,
}

/// Something planned to happen from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outside {
    /// The worker dies and is started again after so long.
    Death { worker: usize, restart_ms: u64 },
    /// The worker stands still for so long.
    Stall { worker: usize, ms: u64 },
    /// Loads take longer by a factor until a moment.
    SlowLink { factor: f64, until: Moment },
    /// A client does not want the job any more.
    Cancel { job: usize },
    /// A hand moves a model.
    Hand {
        worker: usize,
        model: usize,
        order: Order,
    },
}

/// Everything that is given.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) models: Vec<Model>,
    /// In the order of arrival.
    pub(crate) jobs: Vec<Job>,
    pub(crate) workers: usize,
    pub(crate) budget: Bytes,
    pub(crate) host: Bytes,
    pub(crate) open_max: usize,
    pub(crate) policy: Policy,
    pub(crate) outside: Vec<(Moment, Outside)>,
    /// One start of so many meets an allocation that fails.
    pub(crate) out_of_memory_every: Option<u64>,
    /// First come, first served, one at a time: what to compare with.
    pub(crate) fifo: bool,
    /// A job is left to a worker that has its model, where that begins it sooner.
    pub(crate) leaves: bool,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) done: usize,
    pub(crate) failed: usize,
    pub(crate) cancelled: usize,
    pub(crate) load_s: f64,
    pub(crate) compute_s: f64,
    pub(crate) loads: u64,
    pub(crate) starts: u64,
    pub(crate) parked: u64,
    pub(crate) batched: u64,
    pub(crate) deaths: u64,
    pub(crate) requeued: u64,
    pub(crate) refused_writes: u64,
    pub(crate) out_of_memory: u64,
    pub(crate) decisions: u64,
    pub(crate) deferred: u64,
    pub(crate) left: u64,
    pub(crate) end_s: f64,
    /// By class, urgent first: seconds from submission to the first start.
    pub(crate) waits_s: [Vec<f64>; 3],
    /// The largest share of its bound that any job's wait took, counted in starts.
    pub(crate) worst_of_bound: f64,
}

impl Outcome {
    /// The part of the busy time that went to loading.
    pub(crate) fn load_share(&self) -> f64 {
        self.load_s / (self.load_s + self.compute_s)
    }

    pub(crate) fn mean_wait_s(&self) -> f64 {
        let all = self.waits_s.iter().flatten();
        all.clone().sum::<f64>() / all.count().max(1) as f64
    }

    /// The longest wait of a class, and the one that 99 of 100 stay below.
    pub(crate) fn wait_s(&self, class: usize) -> (f64, f64) {
        let mut waits = self.waits_s[class].clone();
        waits.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (waits.len() as f64 * share) as usize;
            waits.get(index.min(waits.len().saturating_sub(1))).copied()
        };
        (at(1.0).unwrap_or(0.0), at(0.99).unwrap_or(0.0))
    }
}

/// Something that happens within.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive {
        job: usize,
    },
    Outside {
        index: usize,
    },
    Restart {
        worker: usize,
    },
    /// The worker's leases of that incarnation have run out, if it still is silent.
    Reap {
        worker: usize,
        epoch: u32,
    },
    Wake {
        worker: usize,
        epoch: u32,
    },
    Step {
        worker: usize,
        epoch: u32,
    },
    Moved {
        worker: usize,
        epoch: u32,
        model: usize,
    },
    Timer {
        worker: usize,
        epoch: u32,
        model: usize,
    },
}

/// What workers share.
struct Shared {
    world: World,
    store: Store,
    random: Random,
    outcome: Outcome,
    now: Moment,
    events: BinaryHeap<Reverse<(Moment, u64, Event)>>,
    sequence: u64,
    slow: (f64, Moment),
    /// What is known of each worker, where they leave jobs to each other.
    peers: Vec<Option<Peer>>,
}

impl Shared {
    fn plan(&mut self, at: Moment, event: Event) {
        self.sequence += 1;
        self.events
            .push(Reverse((at.max(self.now), self.sequence, event)));
    }

    fn link_factor(&self) -> f64 {
        match self.now < self.slow.1 {
            true => self.slow.0,
            false => 1.0,
        }
    }
}

/// Runs the world to its end. Panics, the seed in the message, when a promise is broken.
pub(crate) fn run(world: World) -> Outcome {
    let seed = world.seed;
    let result =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Service::new(world).run()));
    match result {
        Ok(outcome) => outcome,
        Err(panic) => {
            let said = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_default();
            panic!("seed {seed}: {said}");
        }
    }
}

struct Service {
    shared: Shared,
    workers: Vec<Worker>,
}

impl Service {
    fn new(world: World) -> Service {
        let workers = (0..world.workers).map(|index| Worker::new(index, &world));
        let mut service = Service {
            workers: workers.collect(),
            shared: Shared {
                store: Store::new(&world),
                random: Random(world.seed ^ 0x5eed),
                outcome: Outcome::default(),
                now: Moment(0),
                events: BinaryHeap::new(),
                sequence: 0,
                slow: (1.0, Moment(0)),
                peers: Vec::new(),
                world,
            },
        };
        for job in 0..service.shared.world.jobs.len() {
            let at = service.shared.world.jobs[job].at;
            service.shared.plan(at, Event::Arrive { job });
        }
        for index in 0..service.shared.world.outside.len() {
            let at = service.shared.world.outside[index].0;
            service.shared.plan(at, Event::Outside { index });
        }
        service
    }

    fn run(mut self) -> Outcome {
        while let Some(Reverse((at, _, event))) = self.shared.events.pop() {
            self.shared.now = at;
            self.happen(event);
            if self.shared.store.take_news() {
                for worker in 0..self.workers.len() {
                    self.tell_of_peers();
                    self.workers[worker].look(&mut self.shared);
                }
            }
            self.tell_of_peers();
        }
        self.shared.store.assert_all_ended(&mut self.shared.outcome);
        self.shared.outcome.end_s = self.shared.now.as_secs_f64();
        self.shared.outcome
    }

    fn tell_of_peers(&mut self) {
        if self.shared.world.leaves {
            let peers = self.workers.iter().map(|one| one.as_peer(&self.shared));
            self.shared.peers = peers.collect();
        }
    }

    fn happen(&mut self, event: Event) {
        let shared = &mut self.shared;
        match event {
            Event::Arrive { job } => shared
                .store
                .submit(job, &shared.world, shared.outcome.starts),
            Event::Outside { index } => self.outside(self.shared.world.outside[index].1),
            Event::Restart { worker } => self.workers[worker].restart(shared),
            Event::Reap { worker, epoch } => {
                if self.workers[worker].is_silent(epoch, shared.now) {
                    worker::reap(shared, (worker, epoch));
                }
            }
            Event::Wake { worker, epoch }
            | Event::Step { worker, epoch }
            | Event::Moved { worker, epoch, .. }
            | Event::Timer { worker, epoch, .. } => {
                let worker = &mut self.workers[worker];
                if !worker.lives_as(epoch) {
                    return;
                }
                match worker.stalled_until(shared.now) {
                    Some(later) => shared.plan(later, event),
                    None => worker.happen(shared, event),
                }
            }
        }
    }

    fn outside(&mut self, outside: Outside) {
        let shared = &mut self.shared;
        match outside {
            Outside::Death { worker, restart_ms } => {
                self.workers[worker].die(shared, restart_ms);
            }
            Outside::Stall { worker, ms } => self.workers[worker].stall(shared, ms),
            Outside::SlowLink { factor, until } => shared.slow = (factor, until),
            Outside::Cancel { job } => {
                shared.store.cancel(job);
            }
            Outside::Hand {
                worker,
                model,
                order,
            } => self.workers[worker].hand(shared, model, order),
        }
    }
}
