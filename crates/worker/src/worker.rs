//! The loop: look at the world, decide, carry out.

mod hands;
mod jobs;
mod neighbours;
mod peers;
mod telling;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lowtide_core::job::Moment;
use lowtide_core::lifecycle::Event;
use lowtide_core::schedule::{
    Action, Decision, Device, ModelView, Policy, SessionState, SetAside, decide,
};
use lowtide_core::{Bytes, DeviceProfile, Kind, Ledger};
use lowtide_engine::{Options, Precision, device};
use lowtide_jobs::report::{Status, WorkerState};
use lowtide_jobs::{JobStore, StoreError, WorkerId};
use serde_json::json;

use crate::depot::Depot;
use crate::keeper::{self, Keeper};
use crate::log::{Level, Log};
use crate::publisher::{self, Publisher};
use crate::queue::{self, Queue};
use crate::session::Open;
use crate::setup::{Setup, WorkerOptions};
use crate::shelf::{self, Shelf};
use crate::status::Tallies;
use crate::stop::Stop;
use crate::stopwatch::Stopwatch;
use crate::{Error, Result};

/// Candidates of each class that are looked at.
const CANDIDATES: usize = 64;

/// The most that are, where those before them cannot run here.
const CANDIDATES_MAX: usize = 1000;

/// Without news the world is looked at again after this: jobs that wait for their next attempt announce nothing.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A queue that does not answer is asked again after this.
const STORE_AGAIN: Duration = Duration::from_millis(300);

/// So long a queue may fail to answer before the worker gives up and its supervisor begins anew.
const STORE_PATIENCE: Duration = Duration::from_secs(60);

/// The status is made anew no more often than this while nothing but progress changes.
const STATUS_EVERY: Duration = Duration::from_millis(200);

/// A model nobody knew is looked for no more often than this.
const RESCAN_EVERY: Duration = Duration::from_secs(10);

/// One that a job names is looked for by its name, no more often than this.
const SEEK_EVERY: Duration = Duration::from_secs(1);

/// So many are.
const SOUGHT_MAX: usize = 4;

/// What is free for us is asked of the system no more often than this.
const BUDGET_EVERY: Duration = Duration::from_secs(1);

fn clock() -> Moment {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Moment(since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }))
}

/// A worker on one device. Made by [`Worker::open`], does its work in [`Worker::run`].
pub struct Worker {
    store: Arc<dyn JobStore>,
    id: WorkerId,
    depot: Depot,
    device: Options,
    /// What its precision means here.
    precision: Precision,
    options: WorkerOptions,
    policy: Policy,
    log: Log,
    stopwatch: Stopwatch,
    shelf: Shelf,
    keeper: Arc<Keeper>,
    publisher: Publisher,
    tallies: Arc<Tallies>,
    status: Status,
    queue: Queue,
    /// Candidates of each class to ask for.
    lookahead: usize,
    /// The store's mark when the queue was read, and when that was.
    read: Option<(u64, Instant)>,
    sessions: Vec<Open>,
    starts_since_oldest: u32,
    paused: bool,
    /// Whether a hand holds the queue.
    held: bool,
    draining: bool,
    decision: String,
    said: Option<Instant>,
    /// Something changed since, which was not worth a status by itself.
    unsaid: bool,
    scanned: Instant,
    sought: Instant,
    budget: Option<(Instant, Bytes)>,
    /// Why what it computes on is lost to this process.
    lost: Option<String>,
}

/// What a look at the world led to.
enum Did {
    /// Something; look again at once.
    Something,
    /// Nothing, unless something changes or this time passes.
    Nothing(Duration),
}

impl Worker {
    /// Finds the models and starts the threads. Nothing is claimed yet.
    ///
    /// # Errors
    /// When the folder for sessions cannot be used, a model to preload is unknown, or products are wanted in what only GPUs
    /// have.
    pub fn open(setup: Setup) -> Result<Worker> {
        let precision = setup
            .device
            .precision
            .resolve()
            .map_err(|wrong| Error::Precision(Box::new(wrong)))?;
        device::cpu::settle_allocator();
        std::fs::create_dir_all(&setup.sessions).map_err(|cause| Error::Sessions {
            folder: setup.sessions.clone(),
            cause,
        })?;
        let profile = device::ground::profile(precision);
        let keeper = Arc::new(keeper_of(&setup)?);
        let status = keeper::starting(std::process::id(), clock());
        keeper.say(status.clone(), false, true);
        let shelf = shelf_of(&setup, &profile)?;
        let tallies = Arc::new(Tallies::default());
        let depot = Depot::new(setup.sessions, setup.shared_sessions, setup.log.clone());
        let stopwatch = Stopwatch(setup.tracer);
        let publisher = Publisher::start(&publisher::Makings {
            stopwatch: stopwatch.clone(),
            depot: depot.clone(),
            store: setup.store.clone(),
            artifacts: setup.artifacts,
            keeper: keeper.clone(),
            tallies: tallies.clone(),
            log: setup.log.clone(),
            clock,
        })?;
        let worker = Worker {
            store: setup.store,
            id: setup.id,
            depot,
            device: setup.device,
            precision,
            policy: Policy {
                batch_max: setup.options.batch_max.max(1),
                ..Policy::default()
            },
            options: setup.options,
            log: setup.log,
            stopwatch,
            shelf,
            keeper,
            publisher,
            tallies,
            status,
            queue: Queue::default(),
            lookahead: CANDIDATES,
            read: None,
            sessions: Vec::new(),
            starts_since_oldest: 0,
            paused: false,
            held: false,
            draining: false,
            decision: String::new(),
            said: None,
            unsaid: false,
            scanned: Instant::now(),
            sought: Instant::now(),
            budget: None,
            lost: None,
        };
        worker.keeper.show(worker.cards(&profile));
        Ok(worker)
    }

    /// Works until it is asked to stop; then what runs is saved and given back.
    ///
    /// # Errors
    /// When the queue cannot be reached for long, or what it computes on is lost to this process.
    pub fn run(mut self, stop: &Stop) -> Result<()> {
        self.depot.tidy(&*self.store);
        self.preload();
        let mut trouble: Option<Instant> = None;
        loop {
            if let Some(reason) = self.lost.take() {
                // Nothing can be saved, since nothing can be brought back; whoever watches gives the jobs back.
                return Err(Error::DeviceLost { reason });
            }
            if stop.is_asked() || self.draining {
                return self.drain();
            }
            match self.look() {
                Ok(Did::Something) => trouble = None,
                Ok(Did::Nothing(wait)) => {
                    trouble = None;
                    let mark = self.read.map_or(0, |(mark, _)| mark);
                    if let Err(error) = self.store.wait_change(mark, wait) {
                        self.store_trouble(&error, &mut trouble)?;
                    }
                }
                Err(error) => self.store_trouble(&error, &mut trouble)?,
            }
        }
    }

    fn store_trouble(&self, error: &StoreError, since: &mut Option<Instant>) -> Result<()> {
        let began = *since.get_or_insert_with(Instant::now);
        self.log.say(
            Level::Warn,
            format!("the queue does not answer: {error}"),
            json!({}),
        );
        // A server that is away comes back by itself; another process here would wait for it, too.
        let away = matches!(error, StoreError::Unreachable { .. });
        let tired = began.elapsed() > STORE_PATIENCE && !away;
        if tired || matches!(error, StoreError::Closed) {
            return Err(error.clone().into());
        }
        std::thread::sleep(STORE_AGAIN);
        Ok(())
    }

    fn preload(&mut self) {
        for model in self.options.preload.clone() {
            self.status.state = WorkerState::Loading;
            self.say(true);
            self.shelf.tell(&model, Event::Preload);
        }
        self.say(true);
    }

    fn look(&mut self) -> lowtide_jobs::Result<Did> {
        let mark = self.store.change_mark()?;
        let stale = self
            .read
            .is_none_or(|(seen, at)| seen != mark || at.elapsed() >= LOOK_EVERY);
        if stale {
            self.commands()?;
            if self.draining {
                return Ok(Did::Something);
            }
            let candidates = self.store.candidates(self.lookahead, clock())?;
            self.held = candidates.held;
            let mut jobs = candidates.jobs;
            // Kinds that are not done here are left to workers that do them.
            let shelf = &self.shelf;
            let left = |model: &str, kind: &str| shelf.contains(model) && !shelf.runs(model, kind);
            jobs.retain(|job| {
                let steps = queue::steps_of(job);
                let left = match steps.is_empty() {
                    true => left(&job.model, &job.kind),
                    false => steps.iter().any(|step| left(&step.model, &step.kind)),
                };
                !candidates.held && !left
            });
            self.queue = Queue::new(jobs);
            self.leave_to_peers()?;
            self.read = Some((mark, Instant::now()));
        }
        self.shelf.tick();
        self.obey()?;
        self.make_room_for_others();
        let decision = self.decide();
        self.unknown_models(&decision);
        let sentence = decision.to_string();
        if sentence != self.decision {
            self.log.say(Level::Debug, sentence.clone(), json!({}));
            self.decision = sentence;
        }
        self.starts_since_oldest = decision.starts_since_oldest;
        let did = self.act(decision.action)?;
        self.say(false);
        Ok(did)
    }

    /// The budget, and what of it is in use.
    fn memory(&mut self) -> (Bytes, Bytes) {
        // What is free changes with every page others touch; decisions need a figure that stands still for a moment, and
        // asking the system takes a while.
        let fresh = self.budget.filter(|(at, _)| at.elapsed() < BUDGET_EVERY);
        let known = fresh.map(|(_, total)| total).or(self.device.budget);
        let now = device::figures::budget(known, self.device.reserve);
        if fresh.is_none() {
            self.budget = Some((Instant::now(), now.total));
        }
        (now.total, now.in_use)
    }

    fn decide(&mut self) -> Decision {
        let models = self.shelf.views();
        let ledger = self.ledger(&models);
        let mut sessions: Vec<_> = self.sessions.iter().map(|open| open.view.clone()).collect();
        // No job can ever have more than what neither others nor open sessions keep. Where one was planned when there
        // was more, it is planned anew as it begins, or goes on in smaller pieces.
        let weights = models.iter().map(|model| model.device).sum::<Bytes>();
        let holds = sessions.iter().map(|session| session.holds).sum::<Bytes>();
        let keeps = sessions.iter().map(|session| session.keeps).sum::<Bytes>();
        let others = ledger.in_use().saturating_sub(weights + holds);
        let most = ledger.budget().saturating_sub(others + keeps);
        for session in &mut sessions {
            if session.state == SessionState::Parked {
                session.peak = session.peak.min(most);
            }
        }
        for job in &mut self.queue.jobs {
            job.peak = job.peak.min(most);
        }
        let device = Device {
            ledger: &ledger,
            host_free: Bytes(u64::MAX / 4),
            models: &models,
            sessions: &sessions,
            open_max: self.options.max_concurrent_jobs.max(1),
            paused: self.paused,
            starts_since_oldest: self.starts_since_oldest,
        };
        decide(&self.queue.jobs, &device, &self.policy, clock())
    }

    /// The books as they are: what was measured, by holder.
    fn ledger(&mut self, models: &[ModelView]) -> Ledger {
        let (total, in_use) = self.memory();
        let mut ledger = Ledger::new(total);
        let mut charge = |holder: &str, kind: Kind, bytes: Bytes| {
            // What is measured can lie above the budget for a moment; the books then are full.
            let bytes = bytes.min(ledger.free());
            if bytes > Bytes::ZERO {
                ledger
                    .charge(holder, kind, bytes)
                    .expect("no more than what is free");
            }
        };
        let mut ours = Bytes::ZERO;
        for model in models {
            charge(&model.name, Kind::Weights, model.device);
            ours += model.device;
        }
        for open in &self.sessions {
            charge(&open.view.id.to_string(), Kind::Activation, open.view.holds);
            ours += open.view.holds;
        }
        charge(
            "everything else",
            Kind::Activation,
            in_use.saturating_sub(ours),
        );
        ledger
    }

    /// Jobs that cannot run here: their models are looked for now and then, and where they hide others, further jobs are
    /// looked at.
    fn unknown_models(&mut self, decision: &Decision) {
        let unknown = |aside: &SetAside| match aside {
            SetAside::UnknownModel { model, .. } => Some(model.clone()),
            _ => None,
        };
        let mut unknown: Vec<String> = decision.set_aside.iter().filter_map(unknown).collect();
        let all = !unknown.is_empty() && self.scanned.elapsed() >= RESCAN_EVERY;
        // One that is being fetched should not have to wait for that.
        let some = !unknown.is_empty() && self.sought.elapsed() >= SEEK_EVERY;
        if all || some {
            self.sought = Instant::now();
            unknown.dedup();
            unknown.truncate(SOUGHT_MAX);
            let mut found = false;
            for model in &unknown {
                found |= self.shelf.seek(model);
            }
            if all {
                self.scanned = Instant::now();
                found |= self.shelf.rescan();
            }
            if found {
                let profile = device::ground::profile(self.precision);
                self.keeper.show(self.cards(&profile));
                self.read = None;
            }
        }
        let listed = self.queue.jobs.len();
        let all_aside = listed > 0 && decision.set_aside.len() >= listed;
        if all_aside && listed >= self.lookahead && self.lookahead < CANDIDATES_MAX {
            self.lookahead = (self.lookahead * 4).min(CANDIDATES_MAX);
            self.read = None;
        } else if listed < CANDIDATES {
            self.lookahead = CANDIDATES;
        }
    }

    fn act(&mut self, action: Action) -> lowtide_jobs::Result<Did> {
        match action {
            Action::Continue { .. } => self.step(),
            Action::Start {
                job,
                kind,
                model,
                mates,
                switch,
            } => {
                self.switch(&switch);
                let mut jobs = vec![job];
                jobs.extend(mates);
                self.start(&jobs, &kind, &model);
            }
            Action::Resume { job, switch, .. } => {
                self.switch(&switch);
                self.resume(job);
            }
            Action::Park { job } => self.park(job),
            Action::Wait { .. } | Action::Nothing => return Ok(Did::Nothing(self.wait())),
        }
        Ok(Did::Something)
    }

    /// How long nothing happens by itself.
    fn wait(&self) -> Duration {
        if self.unsaid {
            return STATUS_EVERY;
        }
        let timer = self.shelf.wake().map(|at| at.since(clock()));
        timer.map_or(LOOK_EVERY, |timer| {
            timer.clamp(Duration::from_millis(1), LOOK_EVERY)
        })
    }

    /// Saves and gives back everything, waits for what is being written, says goodbye.
    fn drain(mut self) -> Result<()> {
        self.draining = true;
        self.say(true);
        while !self.sessions.is_empty() {
            let members: Vec<usize> = self.sessions[0].present().map(|(place, _)| place).collect();
            for member in members {
                self.give_back(0, member);
            }
            self.close(0);
        }
        let Worker {
            store,
            id,
            publisher,
            keeper,
            log,
            ..
        } = self;
        drop(publisher);
        drop(keeper);
        let forgotten = store.forget_worker(&id);
        log.say(
            Level::Info,
            "ended; everything that ran is saved",
            json!({}),
        );
        Ok(forgotten?)
    }
}

fn keeper_of(setup: &Setup) -> Result<Keeper> {
    Keeper::start(keeper::Makings {
        store: setup.store.clone(),
        worker: setup.id.clone(),
        lease: setup.options.lease,
        heartbeat: setup.options.heartbeat,
        threads: device::cpu::threads(),
        log: setup.log.clone(),
        clock,
    })
}

fn shelf_of(setup: &Setup, profile: &DeviceProfile) -> Result<Shelf> {
    let shelf = Shelf::new(shelf::Makings {
        processors: setup.processors.clone(),
        folders: setup.folders.clone(),
        device: setup.device,
        files: setup.files.clone(),
        options: setup.options.clone(),
        log: setup.log.clone(),
        link_bytes_per_s: profile.link_bytes_per_s,
        cold_bytes_per_s: profile.cold_bytes_per_s,
        clock,
    });
    let missing = |model: &&String| !shelf.contains(model);
    match setup.options.preload.iter().find(missing) {
        Some(model) => Err(Error::NoSuchModel {
            model: model.clone(),
            known: shelf.names().join(", "),
        }),
        None => Ok(shelf),
    }
}
