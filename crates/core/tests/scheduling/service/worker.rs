//! A worker of the simulation: carries out decisions with a ledger and the models' lives.

use lowtide_core::job::{JobId, Moment, Setback};
use lowtide_core::lifecycle::{Effect, Event as LifeEvent, Life, Order, Residency};
use lowtide_core::schedule::{
    Action, Candidate, Device, ModelView, Peer, Session, SessionState, Switch, decide,
    left_to_peers,
};
use lowtide_core::{Bytes, Kind, Ledger};

use super::store::Holder;
use super::{Event, LEASE_MS, Model, Shared, World};

/// Bytes a parked session keeps on the device.
const KEEPS: Bytes = Bytes::mib(4);

struct Open {
    view: Session,
    model: usize,
    /// Jobs and the numbers of their attempts.
    jobs: Vec<(usize, u32)>,
    activation: Bytes,
    step_s: f64,
    steps_left: u32,
    predicted_step_s: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Doing {
    Nothing,
    Loading,
    Stepping,
}

pub(super) struct Worker {
    index: usize,
    epoch: u32,
    alive: bool,
    stalled: Moment,
    ledger: Ledger,
    lives: Vec<Life>,
    /// When each model was used last.
    used: Vec<Moment>,
    sessions: Vec<Open>,
    doing: Doing,
    starts_since_oldest: u32,
}

/// Takes the jobs of an incarnation away from it.
pub(super) fn reap(shared: &mut Shared, holder: Holder) {
    for job in shared.store.leased_by(holder) {
        let random = shared.random.next();
        shared
            .store
            .set_back(job, Setback::Lost, (shared.now, random), &shared.world);
    }
}

impl Worker {
    pub(super) fn new(index: usize, world: &World) -> Worker {
        Worker {
            index,
            epoch: 0,
            alive: true,
            stalled: Moment(0),
            ledger: Ledger::new(world.budget),
            lives: vec![Life::default(); world.models.len()],
            used: vec![Moment(0); world.models.len()],
            sessions: Vec::new(),
            doing: Doing::Nothing,
            starts_since_oldest: 0,
        }
    }

    fn holder(&self) -> Holder {
        (self.index, self.epoch)
    }

    pub(super) fn lives_as(&self, epoch: u32) -> bool {
        self.alive && self.epoch == epoch
    }

    pub(super) fn stalled_until(&self, now: Moment) -> Option<Moment> {
        (self.stalled > now).then_some(self.stalled)
    }

    pub(super) fn is_silent(&self, epoch: u32, now: Moment) -> bool {
        !self.lives_as(epoch) || self.stalled > now
    }

    pub(super) fn die(&mut self, shared: &mut Shared, restart_ms: u64) {
        if !self.alive {
            return;
        }
        self.alive = false;
        shared.store.count_death();
        let (worker, epoch) = self.holder();
        shared.plan(
            Moment(shared.now.0 + LEASE_MS),
            Event::Reap { worker, epoch },
        );
        shared.plan(Moment(shared.now.0 + restart_ms), Event::Restart { worker });
    }

    pub(super) fn restart(&mut self, shared: &mut Shared) {
        let epoch = self.epoch + 1;
        *self = Worker {
            epoch,
            ..Worker::new(self.index, &shared.world)
        };
        self.look(shared);
    }

    pub(super) fn stall(&mut self, shared: &mut Shared, ms: u64) {
        if !self.alive || self.stalled > shared.now {
            return;
        }
        self.stalled = Moment(shared.now.0 + ms);
        let (worker, epoch) = self.holder();
        shared.plan(
            Moment(shared.now.0 + LEASE_MS),
            Event::Reap { worker, epoch },
        );
        shared.plan(self.stalled, Event::Wake { worker, epoch });
    }

    pub(super) fn hand(&mut self, shared: &mut Shared, model: usize, order: Order) {
        if self.alive && self.stalled <= shared.now {
            self.tell(shared, model, LifeEvent::Hand(order));
        }
    }

    pub(super) fn happen(&mut self, shared: &mut Shared, event: Event) {
        match event {
            Event::Moved { model, .. } => self.tell(shared, model, LifeEvent::Arrived),
            Event::Timer { model, .. } => self.tell(shared, model, LifeEvent::Tick),
            Event::Step { .. } => self.stepped(shared),
            _ => {}
        }
        self.drop_lost(shared);
        self.look(shared);
    }

    /// Looks at the world when there is nothing under way.
    pub(super) fn look(&mut self, shared: &mut Shared) {
        while self.alive && self.stalled <= shared.now && self.doing == Doing::Nothing {
            self.drop_lost(shared);
            if !self.act(shared) {
                return;
            }
        }
    }

    /// Sessions whose jobs were all cancelled or given to others are forgotten.
    fn drop_lost(&mut self, shared: &mut Shared) {
        if self.doing != Doing::Nothing {
            return;
        }
        loop {
            let lost = |open: &Open| !open.jobs.iter().any(|&(j, a)| shared.store.holds(j, a));
            let Some(place) = self.sessions.iter().position(lost) else {
                return;
            };
            self.close(shared, place);
        }
    }

    fn close(&mut self, shared: &mut Shared, place: usize) {
        let open = self.sessions.swap_remove(place);
        let name = open.view.id.to_string();
        if self.ledger.holding(&name).on_device() > Bytes::ZERO {
            self.ledger.release_all(&name).expect("a session's bytes");
        }
        let event = match open.view.state {
            SessionState::Active { .. } => LifeEvent::JobEnds,
            SessionState::Parked | SessionState::Held => LifeEvent::ParkedJobLeaves,
        };
        self.used[open.model] = shared.now;
        self.tell(shared, open.model, event);
    }

    fn tell(&mut self, shared: &mut Shared, model: usize, event: LifeEvent) {
        let policy = shared.world.models[model].life;
        let effects = self.lives[model].on_event(event, &policy, shared.now);
        for effect in effects {
            self.carry_out(shared, model, effect);
        }
        self.ledger.assert_balanced();
    }

    fn carry_out(&mut self, shared: &mut Shared, model: usize, effect: Effect) {
        let (worker, epoch) = self.holder();
        let Model {
            name,
            weights,
            from_host_s,
            from_file_s,
            ..
        } = shared.world.models[model].clone();
        match effect {
            Effect::Move {
                from,
                to: Residency::Device,
                ..
            } => {
                if from == Residency::Host {
                    self.ledger
                        .release(name, Kind::Host, weights)
                        .expect("the host copy");
                }
                self.charge(name, Kind::Weights, weights);
                let planned_s = match from {
                    Residency::Host => from_host_s,
                    Residency::Unloaded | Residency::Device => from_file_s,
                };
                let load_s = planned_s * shared.link_factor();
                shared.outcome.load_s += load_s;
                shared.outcome.loads += 1;
                shared.plan(
                    shared.now.plus_seconds(load_s),
                    Event::Moved {
                        worker,
                        epoch,
                        model,
                    },
                );
            }
            Effect::Move { from, to, .. } => {
                let serving = |open: &Open| {
                    open.model == model && matches!(open.view.state, SessionState::Active { .. })
                };
                assert!(
                    !self.sessions.iter().any(serving),
                    "'{name}' leaves under a job"
                );
                let kind = match from {
                    Residency::Device => Some(Kind::Weights),
                    Residency::Host => Some(Kind::Host),
                    Residency::Unloaded => None,
                };
                if let Some(kind) = kind {
                    self.ledger
                        .release(name, kind, weights)
                        .expect("the weights");
                }
                if to == Residency::Host {
                    self.charge(name, Kind::Host, weights);
                }
                self.tell(shared, model, LifeEvent::Arrived);
            }
            Effect::Ready => self.ready(shared, model),
            Effect::WakeAt(at) => shared.plan(
                at,
                Event::Timer {
                    worker,
                    epoch,
                    model,
                },
            ),
            Effect::Deferred { .. } => shared.outcome.deferred += 1,
            Effect::Refused { .. } => panic!("'{name}' is to make room but cannot"),
            Effect::Already(_) => {}
        }
    }

    fn charge(&mut self, holder: &str, kind: Kind, bytes: Bytes) {
        let charged = self.ledger.charge(holder, kind, bytes);
        charged.expect("what was decided stays within the budget");
        self.ledger.assert_balanced();
    }

    fn views(&self, shared: &Shared) -> Vec<ModelView> {
        let models = shared.world.models.iter().zip(&self.lives).zip(&self.used);
        let view = |((model, life), &used): ((&Model, &Life), &Moment)| {
            let holding = self.ledger.holding(model.name);
            ModelView {
                name: model.name.to_owned(),
                residency: life.residency(),
                device: holding.weights,
                host: holding.host,
                host_full: model.weights,
                in_flight: life.in_flight() + u32::from(life.moving_to().is_some()),
                last_used: used,
                from_host_s: model.from_host_s,
                from_file_s: model.from_file_s,
            }
        };
        models.map(view).collect()
    }

    /// Decides and begins to do it. Returns whether to decide again.
    fn act(&mut self, shared: &mut Shared) -> bool {
        shared.outcome.decisions += 1;
        let models = self.views(shared);
        let on_host: Bytes = models.iter().map(|model| model.host).sum();
        let sessions: Vec<Session> = self.sessions.iter().map(|open| open.view.clone()).collect();
        let device = Device {
            ledger: &self.ledger,
            host_free: shared.world.host.saturating_sub(on_host),
            models: &models,
            sessions: &sessions,
            open_max: shared.world.open_max,
            paused: false,
            starts_since_oldest: self.starts_since_oldest,
        };
        let some = match (shared.world.fifo, shared.world.leaves) {
            (true, _) => Some(first_come_first_served(&shared.store.queue, shared.now)),
            (false, true) => Some(self.not_left(shared, &models)),
            (false, false) => None,
        };
        let (now, policy) = (shared.now, &shared.world.policy);
        let queue = some.as_ref().unwrap_or(&shared.store.queue);
        let decision = decide(queue, &device, policy, now);
        if shared.outcome.decisions.is_multiple_of(1024) {
            let sentence = decision.to_string();
            assert!(
                !sentence.contains("NaN") && !sentence.contains("inf"),
                "{sentence}"
            );
        }
        self.starts_since_oldest = decision.starts_since_oldest;
        let (worker, epoch) = self.holder();
        match decision.action {
            Action::Continue { .. } => self.step(shared),
            Action::Start {
                job, mates, switch, ..
            } => {
                self.switch(shared, &switch);
                self.start(shared, job, &mates);
                // Nothing is being done when an allocation failed.
                return self.doing == Doing::Nothing;
            }
            Action::Resume { job, switch, .. } => {
                self.switch(shared, &switch);
                self.resume(shared, job);
            }
            Action::Park { .. } => panic!("nobody paused the worker"),
            Action::Wait { until } => shared.plan(until, Event::Wake { worker, epoch }),
            Action::Nothing => {}
        }
        false
    }

    /// The queue without what others begin sooner; what is left is looked at again when it was left long enough.
    fn not_left(&self, shared: &mut Shared, models: &[ModelView]) -> Vec<Candidate> {
        let others = shared.peers.iter().enumerate();
        let others = others.filter(|(index, _)| *index != self.index);
        let peers: Vec<Peer> = others.filter_map(|(_, peer)| peer.clone()).collect();
        let mut queue = shared.store.queue.clone();
        let left = left_to_peers(&queue, models, &peers, shared.now);
        let (worker, epoch) = self.holder();
        for left in left {
            let job = queue.iter().position(|job| job.id == left.job);
            let job = queue.remove(job.expect("what is left is queued"));
            let until = job.submitted.plus_seconds(left.load_s);
            shared.outcome.left += 1;
            shared.plan(until, Event::Wake { worker, epoch });
        }
        queue
    }

    /// What others know of it.
    pub(super) fn as_peer(&self, shared: &Shared) -> Option<Peer> {
        let there = self.alive && self.stalled <= shared.now;
        let names = shared.world.models.iter().zip(&self.lives);
        let warm = names.filter(|(_, life)| life.residency() == Residency::Device);
        there.then(|| Peer {
            name: self.index.to_string(),
            free_in_s: self.sessions.iter().map(|open| open.view.remaining_s).sum(),
            on_device: warm.map(|(model, _)| model.name.to_owned()).collect(),
        })
    }

    fn start(&mut self, shared: &mut Shared, id: JobId, mates: &[JobId]) {
        shared.outcome.starts += 1;
        shared.outcome.batched += mates.len() as u64;
        let holder = self.holder();
        let mut jobs = Vec::new();
        for (place, &job) in std::iter::once(&id).chain(mates).enumerate() {
            let Shared {
                store,
                world,
                outcome,
                now,
                ..
            } = shared;
            let attempt = store.claim(job, holder, (*now, place > 0), world, outcome);
            jobs.push((store.index(job), attempt));
        }
        let spec = &shared.world.jobs[jobs[0].0];
        let model = &shared.world.models[spec.model];
        let more = mates.len() as u64;
        let activation = spec.activation + Bytes(spec.activation.0 / 2) * more;
        let seconds = spec.seconds * (1.0 + 0.4 * more as f64);
        let open = Open {
            view: Session {
                id,
                model: model.name.to_owned(),
                priority: spec.priority,
                submitted: spec.at,
                deadline: spec.deadline,
                remaining_s: seconds,
                peak: model.weights + activation,
                holds: Bytes::ZERO,
                keeps: KEEPS.min(activation),
                state: SessionState::Active { since: shared.now },
            },
            model: spec.model,
            jobs,
            activation,
            step_s: seconds * spec.truth / f64::from(spec.steps),
            steps_left: spec.steps,
            predicted_step_s: seconds / f64::from(spec.steps),
        };
        let model = open.model;
        self.sessions.push(open);
        self.doing = Doing::Loading;
        self.tell(shared, model, LifeEvent::JobBegins { keep_alive: None });
    }

    fn resume(&mut self, shared: &mut Shared, id: JobId) {
        let open = self.sessions.iter_mut().find(|open| open.view.id == id);
        let open = open.expect("a resumed session is open");
        assert_eq!(open.view.state, SessionState::Parked);
        open.view.state = SessionState::Active { since: shared.now };
        for &(job, attempt) in &open.jobs {
            shared.store.park(job, attempt, false);
        }
        let model = open.model;
        self.doing = Doing::Loading;
        self.tell(shared, model, LifeEvent::JobResumes);
    }

    fn active(&self) -> Option<usize> {
        let active = |open: &Open| matches!(open.view.state, SessionState::Active { .. });
        self.sessions.iter().position(active)
    }

    /// The model is there: the active session takes its bytes, which can fail, and steps.
    fn ready(&mut self, shared: &mut Shared, model: usize) {
        if self.doing != Doing::Loading {
            return;
        }
        let place = self.active().expect("a model is loaded for a session");
        let open = &self.sessions[place];
        assert_eq!(open.model, model, "another model is ready");
        let fails = shared.world.out_of_memory_every;
        if fails.is_some_and(|every| shared.random.below(every) == 0) {
            shared.outcome.out_of_memory += 1;
            for (job, attempt) in open.jobs.clone() {
                if shared.store.holds(job, attempt) {
                    let random = shared.random.next();
                    let at = (shared.now, random);
                    shared
                        .store
                        .set_back(job, Setback::Transient, at, &shared.world);
                }
            }
            self.doing = Doing::Nothing;
            self.close(shared, place);
            return;
        }
        let (name, bytes) = (open.view.id.to_string(), open.activation - open.view.holds);
        self.charge(&name, Kind::Activation, bytes);
        let open = &mut self.sessions[place];
        open.view.holds = open.activation;
        open.view.state = SessionState::Active { since: shared.now };
        self.step(shared);
    }

    fn step(&mut self, shared: &mut Shared) {
        self.doing = Doing::Stepping;
        let place = self.active().expect("a session steps");
        let (worker, epoch) = self.holder();
        let at = shared.now.plus_seconds(self.sessions[place].step_s);
        shared.plan(at, Event::Step { worker, epoch });
    }

    fn stepped(&mut self, shared: &mut Shared) {
        self.doing = Doing::Nothing;
        let place = self.active().expect("a session stepped");
        let open = &mut self.sessions[place];
        shared.outcome.compute_s += open.step_s;
        open.view.remaining_s = (open.view.remaining_s - open.predicted_step_s).max(0.0);
        open.steps_left -= 1;
        self.used[open.model] = shared.now;
        if open.steps_left > 0 {
            return;
        }
        for (job, attempt) in open.jobs.clone() {
            if !shared.store.finish(job, attempt) {
                shared.outcome.refused_writes += 1;
            }
        }
        self.close(shared, place);
    }

    fn switch(&mut self, shared: &mut Shared, switch: &Switch) {
        if let Some(id) = switch.park {
            shared.outcome.parked += 1;
            let open = self.sessions.iter_mut().find(|open| open.view.id == id);
            let open = open.expect("the parked session is open");
            open.view.state = SessionState::Parked;
            let gives_back = open.view.holds - open.view.keeps;
            open.view.holds = open.view.keeps;
            for &(job, attempt) in &open.jobs {
                shared.store.park(job, attempt, true);
            }
            let model = open.model;
            self.ledger
                .release(&id.to_string(), Kind::Activation, gives_back)
                .expect("a session's bytes");
            self.used[model] = shared.now;
            self.tell(shared, model, LifeEvent::JobParks);
        }
        for eviction in &switch.evict {
            let models = &shared.world.models;
            let model = models.iter().position(|model| model.name == eviction.model);
            let model = model.expect("an evicted model exists");
            self.tell(shared, model, LifeEvent::MakeRoom { to: eviction.to });
        }
    }
}

/// The job that came first, alone; where none may start yet, all of them, so that the wait is found.
fn first_come_first_served(queue: &[Candidate], now: Moment) -> Vec<Candidate> {
    let ready = |job: &&Candidate| job.not_before.is_none_or(|moment| moment <= now);
    let first = queue
        .iter()
        .filter(ready)
        .min_by_key(|job| (job.submitted, job.id));
    match first {
        Some(first) => vec![Candidate {
            batch: None,
            ..first.clone()
        }],
        None => queue.to_vec(),
    }
}
