//! The models of a worker: which there are, where each is, and the moves between.

mod counts;
mod opening;

use std::collections::BTreeMap;
use std::sync::Arc;

use lowtide_core::Bytes;
use lowtide_core::job::Moment;
use lowtide_core::lifecycle::{
    AfterJob, Effect, Event, KeepAlive, Life, LifePolicy, MoveWhy, Order, Residency, Tally,
};
use lowtide_core::schedule::ModelView;
use lowtide_engine::Options;
use lowtide_engine::chain::Handed;
use lowtide_engine::device::cpu;
use lowtide_engine::processor::{CacheFigures, Card, Files, Opened, Processor};
use lowtide_jobs::report::{ComponentCard, ModelCard, ModelStatus, MoveTally, Moves};
use lowtide_weights::ModelFolder;
use serde_json::json;

use crate::log::{Level, Log};
use crate::setup::{Folders, WorkerOptions};

/// What a shelf is made of.
pub(crate) struct Makings {
    pub(crate) processors: Vec<Arc<dyn Processor>>,
    pub(crate) folders: Arc<dyn Folders>,
    pub(crate) device: Options,
    pub(crate) files: Arc<dyn Files>,
    pub(crate) options: WorkerOptions,
    pub(crate) log: Log,
    /// Bytes a second from host memory to where weights are used.
    pub(crate) link_bytes_per_s: f64,
    /// Bytes a second of a first read.
    pub(crate) cold_bytes_per_s: f64,
    pub(crate) clock: fn() -> Moment,
}

/// All models a worker can run.
pub(crate) struct Shelf {
    makings: Makings,
    /// The files of requests, and what passes between the steps of a job.
    handed: Arc<Handed>,
    models: BTreeMap<String, Model>,
}

/// One model.
struct Model {
    /// The kinds it is good for, by the processors that run it.
    processors: Vec<Arc<dyn Processor>>,
    card: Card,
    life: Life,
    /// By kind: what was opened. Empty while it is unloaded.
    opened: BTreeMap<&'static str, Arc<dyn Opened>>,
    used: Moment,
    /// Whether it was ever used: before, it is not idle but untouched.
    was_used: bool,
    /// What the latest request said about the time after it.
    asked_after: Option<AfterJob>,
    asked_keep: Option<KeepAlive>,
    /// When the timer has to be looked at.
    wake: Option<Moment>,
    last_load_s: Option<f64>,
    hits: u64,
    misses: u64,
    /// Open sessions on it that are parked: they go on with what was opened.
    parked: u32,
}

/// What became of an event.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Why a move failed.
    pub(crate) failed: Option<lowtide_engine::Error>,
    /// Sentences for whoever asked.
    pub(crate) sentences: Vec<String>,
}

impl Shelf {
    /// Finds every model, by names and headers; opens none for longer than that takes.
    pub(crate) fn new(makings: Makings) -> Shelf {
        let mut shelf = Shelf {
            handed: Handed::new(makings.files.clone()),
            makings,
            models: BTreeMap::new(),
        };
        shelf.rescan();
        shelf
    }

    /// Looks for models that were not there before. Returns whether there are any.
    pub(crate) fn rescan(&mut self) -> bool {
        let before = self.models.len();
        let own: Vec<(&'static str, Arc<dyn Processor>)> = self
            .makings
            .processors
            .iter()
            .flat_map(|processor| {
                let with = |&name: &&'static str| (name, processor.clone());
                processor.own_models().iter().map(with).collect::<Vec<_>>()
            })
            .collect();
        for (name, processor) in own {
            self.add(name, vec![processor], None);
        }
        for name in self.makings.folders.names() {
            if self.models.contains_key(&name) {
                continue;
            }
            let opened = self.makings.folders.open(&name);
            if let Err(problem) = opened.map(|folder| self.add_folder(&name, folder)) {
                self.left_out(&name, &problem);
            }
        }
        self.models.len() > before
    }

    /// Looks for one model that was not there before. Returns whether it is now.
    pub(crate) fn seek(&mut self, name: &str) -> bool {
        if let Ok(folder) = self.makings.folders.open(name) {
            self.add_folder(name, folder);
        }
        self.models.contains_key(name)
    }

    fn add_folder(&mut self, name: &str, folder: ModelFolder) {
        let mut processors = self.makings.processors.clone();
        processors.retain(|processor| processor.runs(&folder));
        if !processors.is_empty() {
            self.add(name, processors, Some(folder));
        }
    }

    fn left_out(&self, name: &str, problem: &str) {
        let text = format!("model {name} is left out: {problem}");
        let log = &self.makings.log;
        log.say(Level::Warn, text, json!({ "model": name }));
    }

    fn add(
        &mut self,
        name: &str,
        processors: Vec<Arc<dyn Processor>>,
        folder: Option<ModelFolder>,
    ) {
        if self.models.contains_key(name) {
            return;
        }
        let card = match self.open_with(name, &processors[0], folder) {
            Ok(opened) => opened.card(),
            Err(problem) => return self.left_out(name, &problem.to_string()),
        };
        let model = Model {
            processors,
            card,
            life: Life::default(),
            opened: BTreeMap::new(),
            used: (self.makings.clock)(),
            was_used: false,
            asked_after: None,
            asked_keep: None,
            wake: None,
            last_load_s: None,
            hits: 0,
            misses: 0,
            parked: 0,
        };
        self.models.insert(name.to_owned(), model);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.models.keys().cloned().collect()
    }

    /// Whether jobs of this kind can use this model; none can use one that is unknown.
    pub(crate) fn runs(&self, name: &str, kind: &str) -> bool {
        let model = self.models.get(name);
        model.is_some_and(|model| model.processors.iter().any(|one| one.kind() == kind))
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.models.contains_key(name)
    }

    /// Notes what a request says about the time after it.
    pub(crate) fn wishes(
        &mut self,
        name: &str,
        after_job: Option<AfterJob>,
        keep_alive: Option<KeepAlive>,
    ) {
        if let Some(model) = self.models.get_mut(name) {
            model.asked_after = after_job;
            model.asked_keep = keep_alive;
        }
    }

    /// Counts whether a job found the model on the device.
    pub(crate) fn count_use(&mut self, name: &str) {
        if let Some(model) = self.models.get_mut(name) {
            let found = model.life.residency() == Residency::Device && model.held() > Bytes::ZERO
                || model.card.bytes == Bytes::ZERO;
            match found {
                true => model.hits += 1,
                false => model.misses += 1,
            }
        }
    }

    /// Seconds a job waited for the weights of its model.
    pub(crate) fn note_load(&mut self, name: &str, seconds: f64) {
        if let Some(model) = self.models.get_mut(name) {
            model.last_load_s = Some(seconds);
        }
    }

    /// Forgets everything of a model that a panic may have left half done.
    pub(crate) fn abandon(&mut self, name: &str) {
        if let Some(model) = self.models.get_mut(name) {
            model.opened.clear();
        }
    }

    /// Gives an event to the model's life and carries out what follows.
    pub(crate) fn tell(&mut self, name: &str, event: Event) -> Told {
        let mut told = Told::default();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let now = (self.makings.clock)();
            let policy = self.policy(name);
            let Some(model) = self.models.get_mut(name) else {
                told.sentences.push(format!("there is no model '{name}'"));
                break;
            };
            match event {
                Event::JobBegins { .. } => model.was_used = true,
                Event::JobEnds => model.used = now,
                Event::JobParks => {
                    model.used = now;
                    model.parked += 1;
                }
                Event::JobExpects => model.parked += 1,
                Event::JobResumes => {
                    model.was_used = true;
                    model.parked = model.parked.saturating_sub(1);
                }
                Event::ParkedJobLeaves => {
                    model.used = now;
                    model.parked = model.parked.saturating_sub(1);
                    if model.life.residency() == Residency::Unloaded {
                        model.close();
                    }
                }
                _ => {}
            }
            model.wake = None;
            for effect in model.life.on_event(event, &policy, now) {
                if let Some(next) = self.carry_out(name, effect, &mut told) {
                    events.push(next);
                }
            }
        }
        told
    }

    /// Gives each of these models its event.
    pub(crate) fn tell_all(&mut self, events: Vec<(String, Event)>) {
        for (model, event) in events {
            self.tell(&model, event);
        }
    }

    /// Does what a life asks for; returns the event that follows from it.
    fn carry_out(&mut self, name: &str, effect: Effect, told: &mut Told) -> Option<Event> {
        match effect {
            Effect::Move { from, to, why } => Some(self.carry_move(name, (from, to), why, told)),
            // Loads are carried out at once, so whoever told the event finds the model ready, or `failed`.
            Effect::Ready => None,
            Effect::WakeAt(at) => {
                let model = self.models.get_mut(name)?;
                model.wake = Some(model.wake.map_or(at, |wake| wake.min(at)));
                None
            }
            Effect::Already(_) | Effect::Deferred { .. } | Effect::Refused { .. } => {
                told.sentences.push(format!("{name} {effect}"));
                None
            }
        }
    }

    fn carry_move(
        &mut self,
        name: &str,
        (from, to): (Residency, Residency),
        why: MoveWhy,
        told: &mut Told,
    ) -> Event {
        let start = (self.makings.clock)();
        // Its pages go to the model that needs the room: fresh ones cost more than what is read into them.
        let handing_over = (why == MoveWhy::MakeRoom).then(cpu::hand_over);
        let done = match to {
            Residency::Device => self.load(name, why),
            Residency::Host => Ok(self.forget(name)),
            Residency::Unloaded => {
                let bytes = self.forget(name);
                if let Some(model) = self.models.get_mut(name) {
                    model.close();
                }
                cpu::give_back();
                Ok(bytes)
            }
        };
        drop(handing_over);
        let seconds = (self.makings.clock)().seconds_since(start);
        match done {
            Ok(bytes) => {
                let sentence = format!(
                    "{name} moved from {from} to {to} in {:.0} ms: {why}",
                    seconds * 1e3
                );
                let fields = json!({ "model": name, "from": from.name(), "to": to.name(), "bytes": bytes.0,
                                     "seconds": seconds, "why": why.to_string() });
                self.makings.log.say(Level::Info, sentence.clone(), fields);
                told.sentences.push(sentence);
                Event::Arrived
            }
            Err(error) => {
                let sentence = format!("{name} could not move from {from} to {to}: {error}");
                let fields = json!({ "model": name, "from": from.name(), "to": to.name() });
                self.makings.log.say(Level::Warn, sentence.clone(), fields);
                told.sentences.push(sentence);
                told.failed = Some(error);
                Event::MoveFailed
            }
        }
    }

    /// Opens a model; when no job waits, its weights are read at once, else they come as they are used.
    fn load(&mut self, name: &str, why: MoveWhy) -> lowtide_engine::Result<Bytes> {
        let start = (self.makings.clock)();
        let kinds: Vec<&'static str> = self.models.get(name).map_or_else(Vec::new, |model| {
            model
                .processors
                .iter()
                .map(|processor| processor.kind())
                .collect()
        });
        let mut held = Bytes::ZERO;
        for kind in kinds {
            let opened = self.opened(name, kind)?;
            if why != MoveWhy::Job {
                held += opened.load()?;
            }
        }
        let seconds = (self.makings.clock)().seconds_since(start);
        self.note_load(name, seconds);
        Ok(held)
    }

    fn forget(&mut self, name: &str) -> Bytes {
        let model = self.models.get(name);
        let opened = model.map(|model| model.opened.values());
        opened.map_or(Bytes::ZERO, |opened| opened.map(|one| one.forget()).sum())
    }

    /// Lets timers run out. Returns whether anything moved.
    pub(crate) fn tick(&mut self) -> bool {
        let now = (self.makings.clock)();
        let due = |(name, model): (&String, &Model)| {
            model.wake.filter(|&wake| wake <= now).map(|_| name.clone())
        };
        let due: Vec<String> = self.models.iter().filter_map(due).collect();
        for name in &due {
            self.tell(name, Event::Tick);
        }
        !due.is_empty()
    }

    /// When the next timer runs out.
    pub(crate) fn wake(&self) -> Option<Moment> {
        self.models.values().filter_map(|model| model.wake).min()
    }

    /// Carries out an order of a hand, for one model or for all that are not where they should be.
    pub(crate) fn order(&mut self, name: Option<&str>, order: Order) -> Result<String, String> {
        let names: Vec<String> = match name {
            Some(name) if self.contains(name) => vec![name.to_owned()],
            Some(name) => {
                let known = self.names().join(", ");
                return Err(format!("there is no model '{name}'; there are {known}"));
            }
            None => {
                let elsewhere = |name: &String| self.models[name].life.residency() > order.to();
                self.names().into_iter().filter(elsewhere).collect()
            }
        };
        let mut sentences = Vec::new();
        for name in names {
            let told = self.tell(&name, Event::Hand(order));
            if let Some(error) = told.failed {
                return Err(error.to_string());
            }
            sentences.extend(told.sentences);
        }
        match sentences.is_empty() {
            true => Ok(format!("nothing to {order}")),
            false => Ok(sentences.join("; ")),
        }
    }

    fn policy(&self, name: &str) -> LifePolicy {
        let options = &self.makings.options;
        let own = options.models.get(name).copied().unwrap_or_default();
        // What a model's own options say about the time after a job counts more than what all are kept by.
        let for_all = options.keep_alive.filter(|_| own.after_job.is_none());
        let mut policy = LifePolicy {
            keep_alive: own.keep_alive.or(for_all),
            after_job: own.after_job.unwrap_or(options.after_job),
            idle: own.idle.unwrap_or(options.idle),
            ..LifePolicy::default()
        };
        let Some(model) = self.models.get(name) else {
            return policy;
        };
        policy.from_host_s = self.restore_s(model);
        // What a request says about the time after it counts more than what the configuration says about keeping.
        if let (Some(after), None) = (model.asked_after, model.asked_keep) {
            policy.after_job = after;
            policy.keep_alive = None;
        }
        policy
    }

    fn restore_s(&self, model: &Model) -> f64 {
        model.card.bytes.0 as f64 / self.makings.link_bytes_per_s.max(1.0)
    }

    fn load_s(&self, model: &Model) -> f64 {
        model.card.bytes.0 as f64 / self.makings.cold_bytes_per_s.max(1.0)
    }

    /// Bytes of weights on the device.
    pub(crate) fn held(&self) -> Bytes {
        self.each_once().values().copied().sum()
    }

    /// Bytes of the caches of prompts, and how they do.
    pub(crate) fn prompt_caches(&self) -> CacheFigures {
        let opened = self.models.values().flat_map(|model| model.opened.values());
        opened
            .map(|opened| opened.prompt_cache())
            .fold(CacheFigures::default(), |sum, one| CacheFigures {
                entries: sum.entries + one.entries,
                bytes: sum.bytes + one.bytes,
                bytes_max: sum.bytes_max + one.bytes_max,
                hits: sum.hits + one.hits,
                misses: sum.misses + one.misses,
            })
    }

    /// The models as deciding needs to know them.
    pub(crate) fn views(&self) -> Vec<ModelView> {
        let held = self.each_once();
        let view = |(name, model): (&String, &Model)| ModelView {
            name: name.clone(),
            residency: model.life.residency(),
            device: held[name.as_str()],
            host: Bytes::ZERO,
            // The host tier of a CPU is the system's page cache, which is nobody's.
            host_full: Bytes::ZERO,
            in_flight: model.life.in_flight() + u32::from(model.life.moving_to().is_some()),
            last_used: model.used,
            from_host_s: self.restore_s(model),
            from_file_s: self.load_s(model),
        };
        self.models.iter().map(view).collect()
    }

    /// The models as others are told about them.
    pub(crate) fn cards(&self) -> Vec<ModelCard> {
        let card = |(name, model): (&String, &Model)| ModelCard {
            name: name.clone(),
            kinds: model.kinds(),
            bytes: model.card.bytes.0,
            components: model
                .card
                .components
                .iter()
                .map(|(name, blocks, bytes)| ComponentCard {
                    name: name.clone(),
                    blocks: *blocks,
                    bytes: bytes.0,
                })
                .collect(),
            defaults: model.card.defaults.clone(),
        };
        self.models.iter().map(card).collect()
    }

    /// Where every model is, in words.
    pub(crate) fn statuses(&self, now: Moment) -> Vec<ModelStatus> {
        let held = self.each_once();
        let status = |(name, model): (&String, &Model)| {
            let counts = model.life.counts();
            let here = held[name.as_str()];
            ModelStatus {
                name: name.clone(),
                residency: model.life.residency().name().to_owned(),
                moving_to: model.life.moving_to().map(|to| to.name().to_owned()),
                device_bytes: here.0,
                shared_bytes: model.held().saturating_sub(here).0,
                host_bytes: 0,
                // Steps may use weights beside the model's own, such as those of detectors.
                bytes: model.card.bytes.max(model.held()).0,
                in_flight: model.life.in_flight(),
                idle_s: model.life.idle_s(now).filter(|_| model.was_used),
                leaves_in_s: model.wake.map(|wake| wake.seconds_since(now)),
                keep_alive: self.keep_words(name, model),
                last_load_s: model.last_load_s,
                moves: Moves {
                    loads: tally(&counts.from_files),
                    restores: tally(&counts.from_host),
                    offloads: tally(&counts.offloads),
                    releases: tally(&counts.releases),
                    failed: tally(&counts.failed),
                },
                hits: model.hits,
                misses: model.misses,
            }
        };
        self.models.iter().map(status).collect()
    }

    fn keep_words(&self, name: &str, model: &Model) -> String {
        let policy = self.policy(name);
        match (model.asked_keep.or(policy.keep_alive), policy.after_job) {
            (Some(keep), _) => keep.to_string(),
            (None, AfterJob::Release) => "0s".to_owned(),
            (None, AfterJob::Offload) => "0s on the device".to_owned(),
            (None, AfterJob::Keep) => match policy.idle {
                Some(idle) => format!("{}s", idle.as_secs()),
                None => "forever".to_owned(),
            },
        }
    }
}

impl Model {
    /// Lets go of what was opened, unless a parked session goes on with it.
    fn close(&mut self) {
        if self.parked == 0 {
            self.opened.clear();
        }
    }

    fn kinds(&self) -> Vec<String> {
        let kinds = self.processors.iter().map(|processor| processor.kind());
        kinds.map(str::to_owned).collect()
    }
}

fn tally(tally: &Tally) -> MoveTally {
    MoveTally {
        count: tally.count,
        seconds: tally.seconds,
        last_s: tally.last_s,
    }
}
