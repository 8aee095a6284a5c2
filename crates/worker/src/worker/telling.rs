//! What a worker says of itself.

use std::time::Instant;

use lowtide_core::Bytes;
use lowtide_engine::device;
use lowtide_jobs::report::{CacheStatus, Cards, DeviceCard, HolderBytes, Memory, WorkerState};

use super::{STATUS_EVERY, Worker, clock};
use crate::explain::{View, explain};
use crate::session::Open;

impl Worker {
    pub(super) fn cards(&self, profile: &lowtide_core::DeviceProfile) -> Cards {
        let mut kinds: Vec<String> = Vec::new();
        let models = self.shelf.cards();
        for kind in models.iter().flat_map(|model| &model.kinds) {
            if !kinds.contains(kind) {
                kinds.push(kind.clone());
            }
        }
        Cards {
            device: DeviceCard {
                name: profile.name.clone(),
                description: device::ground::name(),
                link_bytes_per_s: profile.link_bytes_per_s,
                cold_bytes_per_s: profile.cold_bytes_per_s,
                flops_per_s: profile.flops_per_s,
                threads: device::cpu::threads(),
                precision: device::cpu::precision_word(self.precision).to_owned(),
            },
            kinds,
            models,
        }
    }

    /// Tells how things are; unless it hurries, not more often than makes sense.
    pub(super) fn say(&mut self, hurry: bool) {
        let busy = self.sessions.iter().any(Open::is_active);
        let state = match (self.draining, self.paused, busy) {
            (true, ..) => WorkerState::Draining,
            (_, true, _) => WorkerState::Paused,
            (_, _, true) => WorkerState::Busy,
            _ if self.status.state == WorkerState::Loading && hurry => WorkerState::Loading,
            _ => WorkerState::Idle,
        };
        let changed = state != self.status.state;
        let due = self.said.is_none_or(|said| said.elapsed() >= STATUS_EVERY);
        self.unsaid = !hurry && !changed && !due;
        if self.unsaid {
            return;
        }
        self.said = Some(Instant::now());
        self.status.state = state;
        self.describe();
        self.keeper.say(self.status.clone(), busy, hurry);
    }

    pub(super) fn describe(&mut self) {
        let now = clock();
        let (budget, in_use) = self.memory();
        let models = self.shelf.statuses(now);
        let caches = self.shelf.prompt_caches();
        let active = self.sessions.iter().find(|open| open.is_active());
        self.status.explanations = explain(&View {
            active: active.map(|open| (open.view.model.as_str(), open.plan())),
            parked: self
                .sessions
                .iter()
                .filter(|open| !open.is_active())
                .count(),
            models: &models,
            budget,
            in_use,
            waiting: self.queue.jobs.len(),
            decision: &self.decision,
            rungs: self.tallies.rungs.get(),
            paused: self.paused,
            held: self.held,
        });
        let mut sessions: Vec<_> = self.sessions.iter().collect();
        sessions.sort_by_key(|open| !open.is_active());
        self.status.sessions = sessions.iter().map(|open| open.status()).collect();
        self.status.prompt_cache = CacheStatus {
            entries: caches.entries,
            bytes: caches.bytes.0,
            bytes_max: caches.bytes_max.0,
            hits: caches.hits,
            misses: caches.misses,
        };
        self.status.memory = Memory {
            budget: budget.0,
            peak: self.status.memory.peak.max(in_use.0),
            holders: self.holders(caches.bytes),
            ..Memory::default()
        };
        self.status.models = models;
        self.status.decision.clone_from(&self.decision);
        self.status.counts = self.tallies.told();
    }

    pub(super) fn holders(&self, caches: Bytes) -> Vec<HolderBytes> {
        let holder = |kind: &str, name: String, bytes: Bytes| HolderBytes {
            name,
            kind: kind.to_owned(),
            bytes: bytes.0,
        };
        let models = self.shelf.views();
        let models = models
            .into_iter()
            .map(|model| holder("model", model.name, model.device));
        let sessions = self
            .sessions
            .iter()
            .map(|open| holder("job", open.view.id.to_string(), open.view.holds));
        let cache = [holder("cache", "prompt cache".to_owned(), caches)];
        let mut holders: Vec<_> = models.chain(sessions).chain(cache).collect();
        holders.retain(|holder| holder.bytes > 0);
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
        holders
    }
}
